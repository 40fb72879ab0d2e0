// The window of physical addresses that a guest sees our platform devices through.

package import AddressSpace
package import DeviceModel
import DeviceTree
import SMMUv3
import Synchronization
package import SystemBus
package import VFIOUserProtocol
package import VFIOUserServer

/// A PCIe function that no driver wants, whose BAR 0 is a window on the machine's bus.
///
/// A VMM that knows no platform devices over a socket gives the guest this function's BAR at the addresses that
/// the device tree names, and the guest finds SMMUs, PMCGs and platform devices there.
///
/// Its MSI-X vectors are for the VMM, too: vector n stands for SPI n. A VMM whose MSI frame takes messages of 32 + n
/// gives entry n that frame's doorbell and that data, and binds an eventfd to it. Then a message of one of
/// our devices, which our SMMU has translated, is a signal of that eventfd.
package final class MachineWindow: VFIOUserDevice {
    /// What the window shows: a power of two bytes, at a multiple of that.
    package let range: AddressRange
    package let description: VFIOUserDeviceDescription
    private let bus: SystemBus
    /// Whose commands are executed by the thread that brings the write of a queue's index.
    private let smmus: [MachineSMMU]
    private let configuration: [UInt8]
    private let state = Mutex(State())

    private struct State: Sendable {
        var registers: [UInt8] = []
        var interrupts: (any VFIOUserInterrupts)?
        /// How many of our lines are active, where interrupts go by this function's pin.
        var assertedCount = 0
        /// Up to the last MSI-X vector that the client bound.
        var boundVectorCount = 0
    }

    private enum Register {
        static let command = 0x04
        static let bar0 = 0x10
        static let bar2 = 0x18
        static let msix = 0x40
    }

    /// A vector for each SPI that ``QtestClient`` can set as well.
    private static let vectorCount = Int(QtestClient.interruptCount)
    /// BAR 2 has the MSI-X table, 16 bytes for each vector, and the pending bits behind it: the client keeps both.
    private static let vectorByteCount: UInt64 = 8192
    private static let pendingBitOffset: UInt32 = 4096

    /// - Parameters:
    ///   - range: See ``range``; ``enclosing(_:)`` gives one.
    ///   - smmus: Those whose commands a guest's write may execute, as ``SMMUv3/lendingTime(_:)`` has it.
    package init(_ range: AddressRange, on bus: SystemBus, smmus: [MachineSMMU] = []) {
        self.range = range
        self.bus = bus
        self.smmus = smmus
        description = .pci(
            regions: [
                .bar(0): VFIOUserRegionDescription(size: range.byteCount),
                .bar(2): VFIOUserRegionDescription(size: Self.vectorByteCount),
                .configuration: VFIOUserRegionDescription(size: 256),
            ],
            interrupts: [
                .intx: .intx, .msix: VFIOUserInterruptDescription(count: UInt32(Self.vectorCount)),
            ]
        )
        var bytes = [UInt8](repeating: 0, count: 256)
        // A vendor of no products; class "unassigned": no driver binds to it.
        bytes.replaceSubrange(0..<4, with: [0xF4, 0x1A, 0xFF, 0x10])
        bytes[0x0A] = 0x00
        bytes[0x0B] = 0xFF
        bytes[0x3D] = 1
        // A list of capabilities, of one: MSI-X, with its table and pending bits in BAR 2.
        bytes[0x06] = 0x10
        bytes[0x34] = UInt8(Register.msix)
        let capability: [UInt16] = [
            0x0011, UInt16(Self.vectorCount - 1), 2, 0, UInt16(Self.pendingBitOffset | 2), 0,
        ]
        for (index, half) in capability.enumerated() {
            bytes[Register.msix + 2 * index] = UInt8(truncatingIfNeeded: half)
            bytes[Register.msix + 2 * index + 1] = UInt8(truncatingIfNeeded: half >> 8)
        }
        configuration = bytes
        state.withLock { $0.registers = bytes }
    }

    /// The smallest window that shows all of these, nil where there is none below 4 GiB.
    package static func enclosing(_ ranges: [AddressRange]) -> AddressRange? {
        guard let first = ranges.map(\.first).min(), let last = ranges.map(\.last).max() else { return nil }
        var byteCount: UInt64 = 1 << 16
        while first & ~(byteCount - 1) != last & ~(byteCount - 1) {
            byteCount <<= 1
            guard byteCount <= 1 << 31 else { return nil }
        }
        guard last < 1 << 32 else { return nil }
        return AddressRange(start: first & ~(byteCount - 1), byteCount: byteCount)
    }

    // MARK: Interrupts

    /// An input of the pin, for a machine without another way to its guest's interrupt controller.
    package var pin: any InterruptSink { PinSink(self) }

    private final class PinSink: InterruptSink {
        private let window: MachineWindow
        init(_ window: MachineWindow) { self.window = window }

        func signal(_ signal: InterruptSignal, on line: InterruptLine) { window.take(signal) }
    }

    private func take(_ signal: InterruptSignal) {
        state.withLock { state in
            switch signal {
            case .pulse:
                guard state.assertedCount == 0 else { return }
                // One occurrence: the client deasserts it itself at the guest's next access.
                state.interrupts?.setINTx(true)
                state.interrupts?.setINTx(false)
            case .asserted:
                state.assertedCount += 1
                if state.assertedCount == 1 { state.interrupts?.setINTx(true) }
            case .deasserted:
                state.assertedCount -= 1
                if state.assertedCount == 0 { state.interrupts?.setINTx(false) }
            }
        }
    }

    package func clientAttached(_ interrupts: any VFIOUserInterrupts) {
        state.withLock { state in
            state.interrupts = interrupts
            if state.assertedCount > 0 { interrupts.setINTx(true) }
        }
    }

    package func clientDetached() {
        state.withLock { state in
            state.interrupts = nil
            state.boundVectorCount = 0
        }
    }

    package func interruptsChanged(_ index: VFIOUserInterruptIndex, boundVectors: Int) {
        guard index == .msix else { return }
        state.withLock { $0.boundVectorCount = boundVectors }
    }

    /// Has the client send a message to its MSI frame.
    ///
    /// - Parameter data: An INTID.
    /// - Returns: Whether the client has bound vectors for it.
    func send(message data: UInt32) -> Bool {
        guard data >= 32 else { return false }
        let vector = Int(data - 32)
        let interrupts = state.withLock { vector < $0.boundVectorCount ? $0.interrupts : nil }
        guard let interrupts else { return false }
        interrupts.signal(.msix, vector: vector)
        return true
    }

    /// Puts this function's own registers back.
    ///
    /// The machine behind it goes on: a client resets each of its functions at every start, and what stands behind
    /// the window is more than this one.
    package func reset() { state.withLock { $0.registers = configuration } }

    // MARK: Accesses

    package func readRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(VFIOUserError) {
        if region == .bar(0) { return read(at: offset, into: buffer) }
        guard region == .configuration else {
            for index in buffer.indices { buffer[index] = 0 }
            return
        }
        let registers = state.withLock { $0.registers }
        buffer.copyBytes(from: registers[Int(offset)..<Int(offset) + buffer.count])
    }

    package func writeRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        _ buffer: UnsafeRawBufferPointer
    ) throws(VFIOUserError) {
        if region == .bar(0) { return write(buffer, at: offset) }
        guard region == .configuration else { return }
        let mask = ~UInt32(truncatingIfNeeded: range.byteCount - 1)
        state.withLock { state in
            for (index, byte) in buffer.enumerated() {
                let place = Int(offset) + index
                let writable: UInt8 =
                    switch place {
                    case Register.command: 0x06
                    case Register.command + 1: 0x04
                    case Register.bar0..<Register.bar0 + 4:
                        UInt8(truncatingIfNeeded: mask >> UInt32(8 * (place - Register.bar0)))
                    case Register.bar2..<Register.bar2 + 4:
                        UInt8(
                            truncatingIfNeeded: ~UInt32(Self.vectorByteCount - 1)
                                >> UInt32(8 * (place - Register.bar2))
                        )
                    // MSI-X Enable and Function Mask.
                    case Register.msix + 3: 0xC0
                    case 0x3C: 0xFF
                    default: 0
                    }
                state.registers[place] = state.registers[place] & ~writable | byte & writable
            }
        }
    }

    /// Reads registers; where nobody answers, all ones, as a bus without an answer gives.
    private func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        var done = 0
        while done < buffer.count {
            let place = offset &+ UInt64(done)
            let width = Self.width(at: place, upTo: buffer.count - done)
            let value = load(width, place)
            for index in 0..<width.rawValue {
                buffer[done + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
            }
            done += width.rawValue
        }
    }

    private func load(_ width: AccessWidth, _ offset: UInt64) -> UInt64 {
        guard let target = registerAddress(offset) else { return width.allOnes }
        return (try? bus.load(width, at: target)) ?? width.allOnes
    }

    /// Writes registers; where nobody answers, nothing happens.
    private func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) {
        var done = 0
        while done < buffer.count {
            let place = offset &+ UInt64(done)
            let width = Self.width(at: place, upTo: buffer.count - done)
            var value: UInt64 = 0
            for index in 0..<width.rawValue { value |= UInt64(buffer[done + index]) << UInt64(8 * index) }
            if let target = registerAddress(place) { store(value, width, at: target) }
            done += width.rawValue
        }
    }

    /// Writes one register.
    ///
    /// A guest waits for its CMD_SYNC with a processor that spins, so each thread that has to be woken before it is
    /// complete counts. This one is in no transaction, and all that a guest waits for here is its own next access.
    private func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) {
        let owner = smmus.first { $0.node.architectedRegisters.contains(address.rawValue) }
        guard let smmu = owner?.model else {
            try? bus.store(value, width, at: address)
            return
        }
        smmu.lendingTime { try? bus.store(value, width, at: address) }
    }

    /// The physical address of a place in the window, unless RAM is there: a guest has that itself.
    private func registerAddress(_ offset: UInt64) -> PhysicalAddress? {
        let address = PhysicalAddress(range.first &+ offset)
        return bus.isRegisterWindow(at: address) ? address : nil
    }

    private static func width(at offset: UInt64, upTo count: Int) -> AccessWidth {
        for width in [AccessWidth.doubleword, .word, .halfword]
        where count >= width.rawValue && offset & UInt64(width.rawValue - 1) == 0 {
            return width
        }
        return .byte
    }
}
