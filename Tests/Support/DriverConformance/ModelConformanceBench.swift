// The model as the machine: its registers and memory on a bus, its ports as the devices.

import AddressSpace
package import DeviceModel
import GuestMemory
package import SMMUv3
import SMMUv3Spec
import SystemBus

/// A machine around the model.
package final class ModelConformanceBench: ConformanceBench {
    package var access: any PhysicalAccess { bus }
    package let eventQueueLine = ModelConformanceBench.line("eventq")
    package let globalErrorLine = ModelConformanceBench.line("gerror")
    package let clock = BenchClock()
    package let deviations: Set<Deviation> = []

    private let bus = SystemBus()
    private let smmu: SMMUv3
    private let ports: [StreamPort]
    private var dmaCount = 0

    /// - Parameter identification: What the SMMU says of itself.
    package init(_ identification: Identification) throws {
        try bus.addRAM(
            .anonymous(byteCount: BoardLayout.ramByteCount, name: "ram"),
            at: PhysicalAddress(BoardLayout.ram),
            name: "ram"
        )
        var options = SMMUv3Options()
        options.commandExecution = .inline
        let smmu = SMMUv3(
            name: "model",
            identification: identification,
            options: options,
            bus: bus,
            interrupts: .init(eventQueue: eventQueueLine, globalError: globalErrorLine)
        )
        self.smmu = smmu
        ports = BoardLayout.streams.map { smmu.makePort(for: StreamID($0)) }
        guard
            let window = AddressRange(start: BoardLayout.registers, byteCount: RegisterOffset.windowByteCount)
        else { preconditionFailure("the window is in the address space") }
        try bus.addWindow(smmu, at: window, name: "smmu")
    }

    deinit { smmu.stop() }

    private static func line(_ label: String) -> InterruptLine {
        InterruptLine(identity: InterruptIdentity(controller: "/intc", specifier: [0]), label: label)
    }

    private func nextWord() throws -> UInt32 {
        guard dmaCount < BoardLayout.dmaCount else {
            throw ConformanceFailure("too many DMAs for one machine")
        }
        defer { dmaCount += 1 }
        return BoardLayout.word(dmaCount)
    }

    package func write(_ requester: Int, at iova: UInt64) throws -> UInt32 {
        let word = try nextWord()
        store(requester, word, iova)
        return word
    }

    package func copy(_ requester: Int, from source: UInt64, to target: UInt64) throws {
        var word = try nextWord()
        do throws(DMAFault) {
            var found: UInt32 = 0
            try withUnsafeMutableBytes(of: &found) { (bytes) throws(DMAFault) in
                try ports[requester].read(
                    at: IOVirtualAddress(source),
                    into: bytes,
                    TransactionAttributes()
                )
            }
            word = UInt32(littleEndian: found)
        } catch {
            // The device goes on with what it has; the event queue tells of the fault.
        }
        store(requester, word, target)
    }

    private func store(_ requester: Int, _ word: UInt32, _ iova: UInt64) {
        do throws(DMAFault) {
            try withUnsafeBytes(of: word.littleEndian) { (bytes) throws(DMAFault) in
                try ports[requester].write(bytes, at: IOVirtualAddress(iova), TransactionAttributes())
            }
        } catch {
            // As above.
        }
    }

    /// The model's lines are the driver's.
    package func deliverInterrupts() {}
}
