// What the cases are made of: a driver on a bench, and DMA with its outcome checked.

import AddressSpace
import DeviceModel
import IOMMU
import IOPageTable
import SMMUv3Spec
import Synchronization

/// Something was not as it has to be.
package struct ConformanceFailure: Error, CustomStringConvertible {
    package let description: String

    init(_ description: String, line: Int = #line) { self.description = "\(description) (line \(line))" }
}

/// Fails where the condition does not hold.
func expect(_ condition: Bool, _ text: @autoclosure () -> String, line: Int = #line) throws {
    if !condition { throw ConformanceFailure(text(), line: line) }
}

/// Fails where the two differ.
func expectEqual<Value: Equatable>(_ found: Value, _ wanted: Value, _ what: String, line: Int = #line) throws
{
    try expect(found == wanted, "\(what) is \(found), not \(wanted)", line: line)
}

/// A bench's memory and registers with what one case changes about them: bits of the identification registers
/// that the driver does not get to see, and a command that is spoiled on its way.
final class AdaptedAccess: PhysicalAccess {
    private struct State {
        /// By offset.
        var hidden: [UInt64: UInt32] = [:]
        var commandToSpoil: UInt8?
    }

    private let base: any PhysicalAccess
    private let state: Mutex<State>

    /// - Parameters:
    ///   - base: The bench's.
    ///   - hidden: Bits of registers that read as zero, by the register's offset.
    init(_ base: any PhysicalAccess, hiding hidden: [UInt64: UInt32]) {
        self.base = base
        state = Mutex(State(hidden: hidden))
    }

    /// The next command with this opcode gets one that does not exist.
    func spoilNextCommand(_ opcode: UInt8) { state.withLock { $0.commandToSpoil = opcode } }

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let hidden = state.withLock { $0.hidden[address.rawValue &- BoardLayout.registers] } ?? 0
        return try base.load(width, at: address) & ~UInt64(hidden)
    }

    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        let isSpoiled = state.withLock { state in
            // The first words of commands alone have an opcode, and a queue's entries are aligned to 16
            // bytes.
            guard width == .doubleword, address.rawValue >= BoardLayout.ram, address.rawValue & 15 == 0,
                let opcode = state.commandToSpoil, UInt8(truncatingIfNeeded: value) == opcode
            else { return false }
            state.commandToSpoil = nil
            return true
        }
        try base.store(isSpoiled ? value | 0xFF : value, width, at: address)
    }

    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        try base.read(byteCount, at: address)
    }

    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        try base.write(bytes, at: address)
    }

    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        try base.fill(byte, byteCount: byteCount, at: address)
    }

    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        try base.compareExchange64(expected: expected, desired: desired, at: address)
    }
}

/// A driver on a bench.
final class Rig {
    /// Where every domain of a case has a page that devices can always write to.
    static let drain: UInt64 = 0x7000_0000
    /// The memory behind it: the last page of the buffers.
    static let drainMemory = BoardLayout.buffers + BoardLayout.buffersByteCount - 0x1_0000

    let bench: any ConformanceBench
    let access: AdaptedAccess
    let frames: PhysicalFrameAllocator
    let trace = DriverTrace()
    let driver: SMMUv3Driver
    private var seenEvents: UInt64 = 0
    private var marks: UInt32 = 0x5EED_0000

    /// Starts the driver.
    ///
    /// - Parameters:
    ///   - bench: The machine.
    ///   - hidden: Bits of identification registers that the driver does not see, by offset.
    ///   - frames: Memory for its tables; nil takes all that the machine has for them.
    ///   - change: What is different about its options.
    init(
        _ bench: any ConformanceBench,
        hiding hidden: [UInt64: UInt32] = [:],
        frames: PhysicalFrameAllocator? = nil,
        _ change: (inout SMMUv3DriverOptions) -> Void = { _ in }
    ) throws {
        self.bench = bench
        access = AdaptedAccess(bench.access, hiding: hidden)
        let tables = try Self.range(BoardLayout.tables, BoardLayout.tablesByteCount)
        self.frames = frames ?? PhysicalFrameAllocator(memory: access, ranges: [tables])
        var options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.interruptHandling = .inline
        options.clock = bench.clock
        options.trace = trace
        options.queueLog2Limit = 8
        change(&options)
        driver = try SMMUv3Driver(
            access: access,
            registerBase: PhysicalAddress(BoardLayout.registers),
            registerByteCount: 0x2_0000,
            frames: self.frames,
            interrupts: .named(eventq: bench.eventQueueLine, gerror: bench.globalErrorLine),
            options: options
        )
    }

    static func range(_ start: UInt64, _ byteCount: UInt64) throws -> AddressRange {
        guard let range = AddressRange(start: start, byteCount: byteCount) else {
            throw ConformanceFailure("no range at \(start)")
        }
        return range
    }

    // MARK: Looking

    /// A register as it is.
    func register(_ offset: UInt64) throws -> UInt32 {
        UInt32(
            truncatingIfNeeded: try bench.access.load(
                .word,
                at: PhysicalAddress(BoardLayout.registers + offset)
            )
        )
    }

    func word(_ physical: UInt64) throws -> UInt32 {
        UInt32(truncatingIfNeeded: try bench.access.load(.word, at: PhysicalAddress(physical)))
    }

    func put(_ physical: UInt64, _ value: UInt32) throws {
        try bench.access.store(UInt64(value), .word, at: PhysicalAddress(physical))
    }

    /// The log's lines without the device's name.
    var messages: [String] {
        let prefix = "arm-smmu-v3 9050000.iommu: "
        return driver.log.lines().map { line in
            line.text.hasPrefix(prefix) ? String(line.text.dropFirst(prefix.count)) : line.text
        }
    }

    /// Lets the driver see to interrupts.
    ///
    /// - Returns: The records that it took since the last call.
    func takeEvents() throws -> [EventRecord] {
        try bench.deliverInterrupts()
        driver.pollInterrupts()
        let events = driver.events(since: seenEvents)
        seenEvents = driver.log.eventCount
        return events.map(\.record)
    }

    /// The commands that the driver put into the queue since the last call.
    func takeCommands() -> [Command] {
        trace.take().compactMap { action in
            if case .command(let command) = action { command } else { nil }
        }
    }

    // MARK: Domains

    /// An endpoint for a device.
    func addEndpoint(_ requester: Int) throws -> IOMMUEndpoint {
        try driver.addEndpoint("device \(requester)", streams: [StreamID(BoardLayout.streams[requester])])
    }

    /// A domain in which devices can write to ``drain``.
    func makeDomain(_ kind: IOMMUDomainKind = .unmanaged, granule: PageTableGranule? = nil) throws
        -> IOMMUDomain
    {
        let domain = try driver.makeDomain(kind, granule: granule)
        try domain.map(
            IOVirtualAddress(Self.drain),
            to: PhysicalAddress(Self.drainMemory),
            byteCount: 0x1_0000,
            permissions: .readWrite
        )
        return domain
    }

    func map(
        _ domain: IOMMUDomain,
        _ iova: UInt64,
        to physical: UInt64,
        _ byteCount: UInt64 = 0x1000,
        _ permissions: MappingPermissions = [.read, .write, .cacheable]
    ) throws {
        try domain.map(
            IOVirtualAddress(iova),
            to: PhysicalAddress(physical),
            byteCount: byteCount,
            permissions: permissions
        )
    }

    func unmap(_ domain: IOMMUDomain, _ iova: UInt64, _ byteCount: UInt64 = 0x1000, line: Int = #line) throws
    {
        let outcome = try domain.unmap(IOVirtualAddress(iova), byteCount: byteCount)
        try expectEqual(outcome.byteCount, byteCount, "what was unmapped", line: line)
    }

    // MARK: DMA

    /// The device reads what is in memory, and writes what arrives there.
    func expectReaches(
        _ requester: Int,
        _ iova: UInt64,
        _ physical: UInt64,
        drain: UInt64 = Rig.drain,
        line: Int = #line
    ) throws {
        marks += 1
        try put(physical, marks)
        try put(Self.drainMemory, 0)
        try bench.copy(requester, from: iova, to: drain)
        try expectEqual(try word(Self.drainMemory), marks, "what a device read", line: line)
        let written = try bench.write(requester, at: iova)
        try expectEqual(try word(physical), written, "memory after a device wrote", line: line)
        try expectEqual(try takeEvents(), [], "events of DMA that went through", line: line)
    }

    /// Neither a read nor a write goes through; each has one event of this kind, whose fields are right.
    func expectFaults(
        _ requester: Int,
        _ iova: UInt64,
        _ physical: UInt64,
        _ number: EventNumber,
        drain: UInt64? = Rig.drain,
        line: Int = #line
    ) throws {
        try expectAborts(requester, iova, physical, isWrite: true, line: line)
        try expectEvents([number], requester, iova, isRead: false, line: line)
        guard let drain else { return }
        try put(physical, 0x0BAD_0BAD)
        try put(Self.drainMemory, 0x5AFE_5AFE)
        try bench.copy(requester, from: iova, to: drain)
        let had = try word(Self.drainMemory)
        try expect(had != 0x0BAD_0BAD, "a device read what it may not", line: line)
        try expect(had != 0x5AFE_5AFE, "a device did not write what it had", line: line)
        try expectEvents([number], requester, iova, isRead: true, line: line)
    }

    func expectEvents(
        _ numbers: [EventNumber],
        _ requester: Int,
        _ iova: UInt64,
        isRead: Bool,
        line: Int = #line
    ) throws {
        let events = try takeEvents()
        try expectEqual(events.map(\.number), numbers, "the events", line: line)
        for event in events {
            try expectEqual(event.streamID.rawValue, BoardLayout.streams[requester], "StreamID", line: line)
            guard event.number.isTranslationRelated else { continue }
            try expectEqual(event.inputAddress, iova, "the event's address", line: line)
            try expectEqual(event.rnw, isRead, "the event's RnW", line: line)
            try expect(!event.s2 && !event.stall, "an event of stage 2, or a stall", line: line)
        }
    }

    /// What the device writes does not arrive.
    func expectAborts(
        _ requester: Int,
        _ iova: UInt64,
        _ physical: UInt64,
        isWrite: Bool = true,
        line: Int = #line
    ) throws {
        try put(physical, 0x0BAD_0BAD)
        _ = try bench.write(requester, at: iova)
        try expectEqual(try word(physical), 0x0BAD_0BAD, "memory that must not be written", line: line)
    }

    /// Neither a write nor an event.
    func expectAbortsSilently(_ requester: Int, _ iova: UInt64, _ physical: UInt64, line: Int = #line) throws
    {
        try expectAborts(requester, iova, physical, line: line)
        try expectEqual(try takeEvents(), [], "events of a blocked device", line: line)
    }
}
