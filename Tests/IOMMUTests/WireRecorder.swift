// Everything that the driver does to hardware and to what hardware reads, in order, as text; and registers
// that are stuck.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Synchronization

@testable import IOMMU

/// Registers and memory of a fake SMMU, with a record of the accesses.
///
/// One line each, all numbers hexadecimal:
///
/// - `r32 020 0000000d`: a register was read, and what it said.
/// - `w32 020 00000008`, `w64 080 4000000040004000`: a register was written.
/// - `m64 40010000 0000000000000001`: 8 bytes of memory were stored; `x64` where by compare and exchange.
/// - `cmd 0400000000000000 1f00000000000000`: a command's 16 bytes in the order in which they lie in memory.
final class WireRecorder: PhysicalAccess {
    private struct State {
        var lines: [String] = []
        /// Bits of registers that do not become 1, by offset.
        var stuckLow: [UInt64: UInt32] = [:]
    }

    private let smmu: FakeSMMU
    private let commandQueue: Range<UInt64>
    private let state = Mutex(State())

    init(_ smmu: FakeSMMU, commandQueue: Range<UInt64> = 0x4000_0000..<0x4000_4000) {
        self.smmu = smmu
        self.commandQueue = commandQueue
    }

    /// Bits of a register read as zero whatever the hardware says.
    func stickLow(_ offset: UInt64, _ bits: UInt32) { state.withLock { $0.stuckLow[offset] = bits } }

    /// The lines since the last call.
    func take() -> [String] {
        state.withLock { state in
            defer { state.lines = [] }
            return state.lines
        }
    }

    private static func offset(_ address: PhysicalAddress) -> UInt64? {
        let offset = address.rawValue &- FakeSMMU.registerBase
        return offset < 0x2_0000 ? offset : nil
    }

    private static func bytes(_ word: UInt64) -> String {
        littleEndianBytes(word).map { hex($0, digits: 2) }.joined()
    }

    private func note(_ line: String) { state.withLock { $0.lines.append(line) } }

    private func noteMemory(_ verb: String, _ address: PhysicalAddress, _ value: UInt64) {
        guard commandQueue.contains(address.rawValue) else {
            note("\(verb) \(hex(address.rawValue)) \(hex(value, digits: 16))")
            return
        }
        // A command's second word goes to the line of its first.
        state.withLock { state in
            if address.rawValue & 8 == 0 {
                state.lines.append("cmd \(Self.bytes(value))")
            } else {
                state.lines[state.lines.count - 1] += " \(Self.bytes(value))"
            }
        }
    }

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let value = try smmu.load(width, at: address)
        guard let offset = Self.offset(address) else { return value }
        let seen = value & ~UInt64(state.withLock { $0.stuckLow[offset] } ?? 0)
        note("r\(width.rawValue * 8) \(hex(offset, digits: 3)) \(hex(seen, digits: width.rawValue * 2))")
        return seen
    }

    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        if let offset = Self.offset(address) {
            note("w\(width.rawValue * 8) \(hex(offset, digits: 3)) \(hex(value, digits: width.rawValue * 2))")
        } else {
            noteMemory("m64", address, value)
        }
        try smmu.store(value, width, at: address)
    }

    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        try smmu.read(byteCount, at: address)
    }

    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        try smmu.write(bytes, at: address)
    }

    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        try smmu.fill(byte, byteCount: byteCount, at: address)
    }

    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        noteMemory("x64", address, desired)
        return try smmu.compareExchange64(expected: expected, desired: desired, at: address)
    }
}

/// A driver whose every access is recorded.
struct WireBench {
    let smmu: FakeSMMU
    let wire: WireRecorder
    let frames: PhysicalFrameAllocator
    let messages: Mutex<[String]>.Shared
    var options: SMMUv3DriverOptions

    init(_ identification: [UInt64: UInt32] = [:]) {
        smmu = FakeSMMU(FakeSMMU.identification.merging(identification) { $1 })
        wire = WireRecorder(smmu)
        let ram = AddressRange(start: FakeSMMU.ramBase, byteCount: FakeSMMU.ramByteCount)
        frames = PhysicalFrameAllocator(memory: smmu, ranges: ram.map { [$0] } ?? [])
        let messages = Mutex<[String]>.Shared()
        self.messages = messages
        options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.interruptHandling = .inline
        options.clock = SteppingClock()
        options.logSink = { messages.append($0) }
    }

    func start(_ interrupts: SMMUInterrupts? = nil, registerByteCount: UInt64 = 0x2_0000)
        throws(SMMUDriverError) -> SMMUv3Driver
    {
        try SMMUv3Driver(
            access: wire,
            registerBase: PhysicalAddress(FakeSMMU.registerBase),
            registerByteCount: registerByteCount,
            frames: frames,
            interrupts: interrupts ?? .named(eventq: smmu.eventqLine, gerror: smmu.gerrorLine),
            options: options
        )
    }
}

extension Mutex<[String]> {
    /// Lines that a log's sink collects, also of a driver that did not start.
    final class Shared: Sendable {
        private let lines = Mutex<[String]>([])

        /// Adds a line, without the device's name.
        func append(_ line: String) {
            let prefix = "arm-smmu-v3 9050000.iommu: "
            lines.withLock { $0.append(line.hasPrefix(prefix) ? String(line.dropFirst(prefix.count)) : line) }
        }

        var all: [String] { lines.withLock { $0 } }
    }
}
