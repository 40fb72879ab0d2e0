// QEMU as the machine: its `virt` with an SMMUv3, its `edu` devices as the devices, its GIC for the
// interrupts.

import AddressSpace
package import DeviceModel
package import Differential
import SMMUv3Spec

/// A machine in a QEMU of its own.
package final class QEMUConformanceBench: ConformanceBench {
    private static let ecam: UInt64 = 0x40_1000_0000
    private static let bars: UInt64 = 0x1000_0000
    /// Where an `edu` thinks that its buffer is.
    private static let deviceBuffer: UInt64 = 0x4_0000
    private static let deviceBufferBytes: UInt64 = 4096
    private static let distributor: UInt64 = 0x0800_0000
    /// The SMMU's interrupts, in the words of 32 interrupts from 96 on.
    private static let eventQueueBit: UInt64 = 1 << (106 - 96)
    private static let globalErrorBit: UInt64 = 1 << (109 - 96)

    package var access: any PhysicalAccess { machine }
    package let eventQueueLine = QEMUConformanceBench.line("eventq", 106)
    package let globalErrorLine = QEMUConformanceBench.line("gerror", 109)
    package let clock = BenchClock()
    package let deviations = Set(Deviation.allCases)

    private let machine: QTestAccess
    private var dmaCount = 0

    /// Starts a QEMU.
    ///
    /// - Parameters:
    ///   - command: QEMU, with what it takes to start it.
    ///   - shape: Which stages its SMMU has.
    ///   - folder: Where its socket and its memory may be.
    package init(command: [String], shape: MachineShape, folder: String) throws {
        let process = try QEMUProcess(command, shape, folder: folder)
        // What tells that QEMU has opened its files.
        process.read32(BoardLayout.registers)
        guard try process.flush().count == 1 else { throw ConformanceFailure("QEMU has no SMMU") }
        process.removeFiles()
        machine = QTestAccess(process)
        try enumerate()
        try fillBuffers()
        // Edge-triggered: what pulses stays pending.
        _ = try machine.ask(["writel \(hex(Self.distributor + 0xC18)) 0x0aa00000"])
        clock.setWhileWaiting { [machine, eventQueueLine, globalErrorLine] in
            // What goes wrong here is what the driver's own next access throws.
            try? Self.deliver(machine, eventQueueLine, globalErrorLine)
        }
    }

    private static func line(_ label: String, _ number: UInt32) -> InterruptLine {
        InterruptLine(
            identity: InterruptIdentity(
                controller: "/intc",
                specifier: [0, number - 32, 1],
                interruptID: number,
                trigger: .edgeRising
            ),
            label: label
        )
    }

    // MARK: Devices

    private func function(_ stream: UInt32) -> UInt64 { Self.ecam + UInt64(stream) << 12 }
    private func bar(_ requester: Int) -> UInt64 { Self.bars + UInt64(requester) << 20 }

    /// Gives the root port its buses and each device its BAR.
    private func enumerate() throws {
        let port = function(0x10)
        var lines = [
            "writel \(hex(port + 0x18)) 0x00050500", "writel \(hex(port + 0x20)) 0x10201020",
            "writel \(hex(port + 0x04)) 0x6",
        ]
        for (requester, stream) in BoardLayout.streams.enumerated() {
            lines.append("writel \(hex(function(stream) + 0x10)) \(hex(bar(requester)))")
            lines.append("writel \(hex(function(stream) + 0x04)) 0x6")
            lines.append("readl \(hex(bar(requester)))")
        }
        guard try machine.ask(lines).allSatisfy({ $0 == 0x0100_00ED }) else {
            throw ConformanceFailure("QEMU's edu devices do not answer")
        }
    }

    /// Gives each device the words that it is going to write, past the SMMU, which is off.
    private func fillBuffers() throws {
        var lines: [String] = []
        for index in 0..<BoardLayout.dmaCount {
            let address = BoardLayout.scratch + UInt64(index) * 4
            lines.append("writel \(hex(address)) \(hex(BoardLayout.word(index)))")
        }
        for requester in BoardLayout.streams.indices {
            lines += transfer(
                requester,
                from: BoardLayout.scratch,
                to: Self.deviceBuffer,
                Self.deviceBufferBytes,
                0b001
            )
        }
        _ = try machine.ask(lines)
    }

    /// The lines that make a device move bytes, and its timer of 100 ms end.
    private func transfer(_ requester: Int, from: UInt64, to: UInt64, _ count: UInt64, _ command: UInt64)
        -> [String]
    {
        ([(0x80, from), (0x88, to), (0x90, count), (0x98, command)] as [(UInt64, UInt64)]).map {
            offset,
            value in
            "writeq \(hex(bar(requester) + offset)) \(hex(value))"
        } + ["clock_step 100000000"]
    }

    private func nextSlot() throws -> (word: UInt32, address: UInt64) {
        guard dmaCount < BoardLayout.dmaCount else {
            throw ConformanceFailure("too many DMAs for one machine")
        }
        defer { dmaCount += 1 }
        return (BoardLayout.word(dmaCount), Self.deviceBuffer + UInt64(dmaCount) * 4)
    }

    package func write(_ requester: Int, at iova: UInt64) throws -> UInt32 {
        let slot = try nextSlot()
        _ = try machine.ask(transfer(requester, from: slot.address, to: iova, 4, 0b011))
        return slot.word
    }

    package func copy(_ requester: Int, from source: UInt64, to target: UInt64) throws {
        let slot = try nextSlot()
        _ = try machine.ask(
            transfer(requester, from: source, to: slot.address, 4, 0b001)
                + transfer(requester, from: slot.address, to: target, 4, 0b011)
        )
    }

    // MARK: Interrupts

    package func deliverInterrupts() throws {
        try Self.deliver(machine, eventQueueLine, globalErrorLine)
    }

    /// Reads what the GIC's distributor has pending, takes it away there, and passes it on.
    private static func deliver(
        _ machine: QTestAccess,
        _ eventQueueLine: InterruptLine,
        _ globalErrorLine: InterruptLine
    ) throws {
        let found = try machine.ask(["readl \(hex(distributor + 0x20C))"]).last ?? 0
        let pending = found & (eventQueueBit | globalErrorBit)
        guard pending != 0 else { return }
        _ = try machine.ask(["writel \(hex(distributor + 0x28C)) \(hex(pending))"])
        if pending & eventQueueBit != 0 { eventQueueLine.pulse() }
        if pending & globalErrorBit != 0 { globalErrorLine.pulse() }
    }
}

private func hex(_ value: some FixedWidthInteger) -> String { "0x" + String(value, radix: 16) }
