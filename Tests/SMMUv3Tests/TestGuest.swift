// A driver-side guest: RAM, an SMMU at a window of the bus, tables and queues written as an operating system
// writes them.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

/// Counts a line's signals.
final class RecordingSink: InterruptSink {
    private let pulses = Mutex(0)
    func signal(_ signal: InterruptSignal, on line: InterruptLine) {
        if signal == .pulse { pulses.withLock { $0 += 1 } }
    }
    var count: Int { pulses.withLock { $0 } }
}

/// What a device sees of one access of up to 8 bytes.
enum DMAOutcome: Hashable {
    /// Done; what a read returned, 0 for a write.
    case ok(UInt64)
    case event(UInt8)
    case aborted
    /// It went to this address, and nobody is there.
    case nobody(UInt64)
    case other
}

/// The shape of the stream table that a guest builds.
enum StreamTableShape {
    case linear(UInt64)
    case twoLevel(UInt64, split: UInt64)
}

/// What a guest was built with.
struct GuestSetup {
    var identification = Identification.stage1()
    var options = TestGuest.inlineOptions
    var streamTable = StreamTableShape.linear(8)
    var commandLog2: UInt64 = 6
    var eventLog2: UInt64 = 6
    var hasCombinedLineOnly = false
    var boots = true
}

final class TestGuest {
    static let window: UInt64 = 0x0900_0000
    static let ram: UInt64 = 0x8000_0000
    static let ramBytes: UInt64 = 64 << 20

    static var inlineOptions: SMMUv3Options {
        var options = SMMUv3Options()
        options.commandExecution = .inline
        return options
    }

    let setup: GuestSetup
    let bus = SystemBus()
    let memory: MemoryRegion
    let smmu: SMMUv3
    let eventLine = RecordingSink()
    let errorLine = RecordingSink()
    let syncLine = RecordingSink()
    let pageRequestLine = RecordingSink()
    let combinedLine = RecordingSink()
    private var free = TestGuest.ram

    var streamTable: UInt64 = 0
    var commandQueue: UInt64 = 0
    var eventQueue: UInt64 = 0
    var commandProd: UInt64 = 0
    var eventCons: UInt64 = 0
    /// Where the CD of a stream that ``attach(_:_:)`` attached is.
    var contexts: [UInt64: UInt64] = [:]
    private var ports: [UInt32: StreamPort] = [:]

    init(_ setup: GuestSetup = GuestSetup()) throws {
        self.setup = setup
        memory = try .anonymous(byteCount: Self.ramBytes, name: "ram")
        try bus.addRAM(memory, at: PhysicalAddress(Self.ram), name: "ram")
        func line(_ label: String, _ sink: RecordingSink) -> InterruptLine {
            let line = InterruptLine(
                identity: InterruptIdentity(controller: "/intc", specifier: [0]),
                label: label
            )
            line.connect(sink)
            return line
        }
        let interrupts: SMMUv3.Interrupts
        if setup.hasCombinedLineOnly {
            interrupts = .init(combined: line("combined", combinedLine))
        } else {
            interrupts = .init(
                eventQueue: line("eventq", eventLine),
                globalError: line("gerror", errorLine),
                commandSync: line("cmdq-sync", syncLine),
                pageRequestQueue: line("priq", pageRequestLine)
            )
        }
        smmu = SMMUv3(
            name: "/smmu@9000000",
            identification: setup.identification,
            options: setup.options,
            bus: bus,
            interrupts: interrupts
        )
        let window = try #require(AddressRange(start: Self.window, byteCount: 0x2_0000))
        try bus.addWindow(smmu, at: window, name: "smmu")
        if setup.boots { try boot() }
    }

    deinit {
        smmu.stop()
    }

    // MARK: Memory

    /// Zeroed memory, aligned.
    func allocate(_ byteCount: UInt64, alignment: UInt64? = nil) -> UInt64 {
        let alignment = alignment ?? max(byteCount, 64)
        let address = (free + alignment - 1) & ~(alignment - 1)
        free = address + byteCount
        precondition(free <= Self.ram + Self.ramBytes, "the guest is out of memory")
        return address
    }

    func peek(_ address: UInt64) throws -> UInt64 { try bus.loadRAM64(at: PhysicalAddress(address)) }
    func poke(_ address: UInt64, _ value: UInt64) throws {
        try bus.storeRAM64(value, at: PhysicalAddress(address))
    }
    func poke(_ address: UInt64, _ words: [UInt64]) throws {
        for (index, word) in words.enumerated() { try poke(address + UInt64(index) * 8, word) }
    }

    // MARK: Registers

    func read32(_ offset: UInt64) throws -> UInt32 {
        UInt32(truncatingIfNeeded: try bus.load(.word, at: PhysicalAddress(Self.window + offset)))
    }
    func write32(_ offset: UInt64, _ value: UInt32) throws {
        try bus.store(UInt64(value), .word, at: PhysicalAddress(Self.window + offset))
    }
    func read64(_ offset: UInt64) throws -> UInt64 {
        try bus.load(.doubleword, at: PhysicalAddress(Self.window + offset))
    }
    func write64(_ offset: UInt64, _ value: UInt64) throws {
        try bus.store(value, .doubleword, at: PhysicalAddress(Self.window + offset))
    }

    // MARK: Bring-up, in the order of a driver

    func boot() throws {
        try write32(0x20, 0)
        try write32(0x28, 0b11_01_01_11_01_01)
        try write32(0x2C, 0b110)
        try setStreamTable()
        commandQueue = allocate(16 << setup.commandLog2)
        try write64(0x90, 1 << 62 | commandQueue | setup.commandLog2)
        try write32(0x98, 0)
        try write32(0x9C, 0)
        try write32(0x20, 0b1000)
        #expect(try read32(0x24) == 0b1000)
        try issue(Raw.cfgiAll, Raw.sync(), Raw.tlbiNSNHAll, Raw.sync())
        eventQueue = allocate(32 << setup.eventLog2)
        try write64(0xA0, 1 << 62 | eventQueue | setup.eventLog2)
        try write32(0x1_00A8, 0)
        try write32(0x1_00AC, 0)
        try write32(0x20, 0b1100)
        try write32(0x50, 0b101)
        try write32(0x20, 0b1101)
        #expect(try read32(0x24) == 0b1101)
    }

    private func setStreamTable() throws {
        switch setup.streamTable {
        case .linear(let log2):
            streamTable = allocate(64 << log2)
            try write64(0x80, 1 << 62 | streamTable)
            try write32(0x88, UInt32(log2))
        case .twoLevel(let log2, let split):
            streamTable = allocate(max(64, 8 << (log2 - split)))
            try write64(0x80, 1 << 62 | streamTable)
            try write32(0x88, UInt32(log2 | split << 6 | 1 << 16))
        }
    }

    // MARK: Commands

    func issue(_ commands: RawCommand...) throws { try issue(commands) }

    /// Queues commands and waits until they are consumed, or the queue has stopped at an error.
    func issue(_ commands: [RawCommand]) throws {
        for command in commands {
            try queue(command)
            try ring()
            try waitForCommands()
        }
    }

    /// Writes a command without telling the SMMU.
    func queue(_ command: RawCommand) throws {
        let entry = commandQueue + (commandProd & ((1 << setup.commandLog2) - 1)) * 16
        try poke(entry, [command.low, command.high])
        commandProd = (commandProd + 1) & ((2 << setup.commandLog2) - 1)
    }

    func ring() throws { try write32(0x98, UInt32(commandProd)) }

    var commandCons: UInt64 {
        get throws { UInt64(try read32(0x9C)) & 0xF_FFFF }
    }

    var commandError: UInt32 { get throws { (try read32(0x9C) >> 24) & 0x7F } }
    var activeErrors: UInt32 { get throws { try read32(0x60) ^ read32(0x64) } }

    func waitForCommands() throws {
        while try commandCons != commandProd, try activeErrors & 1 == 0 { sched_yield() }
    }

    /// What a driver does after an unmap or a change of configuration.
    func sync(_ commands: RawCommand...) throws { try issue(commands + [Raw.sync()]) }

    // MARK: Events

    /// Takes every record out of the event queue.
    ///
    /// - Parameter limit: How many at most. Where stalls wait for room, each that is taken lets the next one come.
    func takeEvents(upTo limit: Int = .max) throws -> [[UInt64]] {
        var events: [[UInt64]] = []
        let mask: UInt64 = (2 << setup.eventLog2) - 1
        while events.count < limit, UInt64(try read32(0x1_00A8)) & mask != eventCons {
            let entry = eventQueue + (eventCons & (mask >> 1)) * 32
            events.append(try (0..<4).map { try peek(entry + $0 * 8) })
            eventCons = (eventCons + 1) & mask
            // OVACKFLG keeps what it was.
            try write32(0x1_00AC, UInt32(eventCons) | (try read32(0x1_00AC) & 0x8000_0000))
        }
        return events
    }

    // MARK: Configuration

    /// Where the STE of a stream is; makes its level-2 table if need be.
    func steAddress(_ streamID: UInt64) throws -> UInt64 {
        switch setup.streamTable {
        case .linear:
            return streamTable + streamID * 64
        case .twoLevel(_, let split):
            let l1 = streamTable + (streamID >> split) * 8
            if try peek(l1) == 0 { try poke(l1, allocate(64 << split) | (split + 1)) }
            return (try peek(l1) & ~0x1F) + (streamID & ((1 << split) - 1)) * 64
        }
    }

    func setSTE(_ streamID: UInt64, _ ste: STEWords) throws {
        try poke(try steAddress(streamID), ste.words)
        try sync(Raw.cfgiSTE(streamID))
    }

    /// Gives a stream one CD of its own.
    @discardableResult
    func attach(_ streamID: UInt64, _ cd: CDWords, _ ste: STEWords = STEWords()) throws -> UInt64 {
        let context = allocate(64)
        try poke(context, cd.words)
        contexts[streamID] = context
        var ste = ste
        ste.s1ContextPtr = context
        try setSTE(streamID, ste)
        return context
    }

    // MARK: DMA

    func port(_ streamID: UInt32) -> StreamPort {
        if let port = ports[streamID] { return port }
        let port = smmu.makePort(for: StreamID(streamID))
        ports[streamID] = port
        return port
    }

    func dmaRead(
        _ streamID: UInt32,
        _ address: UInt64,
        _ attributes: TransactionAttributes = .plain
    ) -> DMAOutcome {
        port(streamID).read64(at: address, attributes)
    }

    func dmaWrite(
        _ streamID: UInt32,
        _ address: UInt64,
        _ value: UInt64 = 0x1122_3344_5566_7788,
        _ attributes: TransactionAttributes = .plain
    ) -> DMAOutcome {
        port(streamID).write64(value, at: address, attributes)
    }
}

extension DMAPort {
    /// Reads 8 bytes.
    func read64(at address: UInt64, _ attributes: TransactionAttributes = .plain) -> DMAOutcome {
        var value: UInt64 = 0xDEAD_DEAD_DEAD_DEAD
        do throws(DMAFault) {
            try withUnsafeMutableBytes(of: &value) { buffer throws(DMAFault) in
                try read(at: IOVirtualAddress(address), into: buffer, attributes)
            }
            return .ok(value)
        } catch {
            return DMAOutcome(error)
        }
    }

    /// Writes 8 bytes.
    func write64(_ value: UInt64, at address: UInt64, _ attributes: TransactionAttributes = .plain)
        -> DMAOutcome
    {
        do throws(DMAFault) {
            try withUnsafeBytes(of: value) { buffer throws(DMAFault) in
                try write(buffer, at: IOVirtualAddress(address), attributes)
            }
            return .ok(0)
        } catch {
            return DMAOutcome(error)
        }
    }
}

extension DMAOutcome {
    init(_ fault: DMAFault) {
        switch fault.cause {
        case .event(let number): self = .event(number)
        case .aborted: self = .aborted
        case .bus(.unassigned(let address)): self = .nobody(address.rawValue)
        case .bus: self = .other
        }
    }
}

extension DMAOutcome {
    static let fTranslation = Self.event(0x10)
    static let fAddrSize = Self.event(0x11)
    static let fAccess = Self.event(0x12)
    static let fPermission = Self.event(0x13)
}
