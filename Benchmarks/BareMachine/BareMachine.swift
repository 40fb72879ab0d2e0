// The least machine around one SMMUv3: RAM, a register window, hand-written tables. For benchmarks and fuzzing.

import AddressSpace
import CLinux
import DeviceModel
package import GuestMemory
package import SMMUv3
package import SMMUv3Spec
package import SystemBus

/// One SMMUv3 before one bank of RAM, with queues, a linear stream table and one address space in 4 KiB tables.
///
/// It programs the SMMU through registers and memory, as a driver does, and has nothing of a driver beside: no
/// allocator that gives back, no error handling beyond throwing. One thread uses it at a time; ports are the
/// exception, each of which may have a thread of its own.
package final class BareMachine {
    /// Where things are.
    ///
    /// All of it, up to ``tables``, is below the first 64 KiB of RAM.
    package enum Layout {
        package static let window: UInt64 = 0x0900_0000
        package static let ram: UInt64 = 0x8000_0000
        package static let streamTable = ram
        package static let log2Streams: UInt64 = 8
        package static let commandQueue = ram + 0x4000
        package static let log2Commands: UInt64 = 7
        package static let eventQueue = ram + 0x5000
        package static let log2Events: UInt64 = 7
        package static let contexts = ram + 0x6000
        package static let contextCount: UInt64 = 64
        /// The level-0 table of the address space; the others follow it.
        package static let tables = ram + 0x8000
    }

    package let bus = SystemBus()
    package let memory: MemoryRegion
    package let smmu: SMMUv3
    private var nextTable = Layout.tables + 0x1000
    private var stage2Root: UInt64?
    private var commandProducer: UInt64 = 0
    /// The command queue, which software writes by its own addresses.
    private let commands: UnsafeMutablePointer<UInt64>
    private let windowByteCount: UInt64

    /// Builds the machine with its SMMU in reset.
    ///
    /// - Parameters:
    ///   - memory: Its RAM, at ``Layout/ram``; what it holds is used as it is.
    ///   - identification: What its SMMU says of itself.
    ///   - interrupts: The SMMU's outputs; unconnected unless given.
    ///   - windowByteCount: How much the SMMU's registers take: optional pages stand behind page 1.
    package init(
        memory: MemoryRegion,
        identification: Identification = .stage1(),
        options: SMMUv3Options,
        interrupts: SMMUv3.Interrupts = SMMUv3.Interrupts(),
        windowByteCount: UInt64 = RegisterOffset.windowByteCount
    ) throws {
        self.memory = memory
        self.windowByteCount = windowByteCount
        commands = try memory.pointer(
            at: Layout.commandQueue - Layout.ram,
            count: 16 << Layout.log2Commands,
            for: .write
        )
        .assumingMemoryBound(to: UInt64.self)
        try bus.addRAM(memory, at: PhysicalAddress(Layout.ram), name: "ram")
        smmu = SMMUv3(
            name: "smmu",
            identification: identification,
            options: options,
            bus: bus,
            interrupts: interrupts
        )
        guard let window = AddressRange(start: Layout.window, byteCount: windowByteCount)
        else {
            preconditionFailure("the window is in the address space")
        }
        try bus.addWindow(smmu, at: window, name: "smmu")
    }

    /// Takes the SMMU off the bus: the bus holds it, and it holds the bus, so neither would ever go.
    deinit {
        smmu.stop()
        if let window = AddressRange(start: Layout.window, byteCount: windowByteCount) {
            bus.removeWindow(at: window)
        }
        bus.reclaim()
    }

    // MARK: Registers and memory

    package func read32(_ offset: UInt64) throws -> UInt32 {
        UInt32(truncatingIfNeeded: try bus.load(.word, at: PhysicalAddress(Layout.window + offset)))
    }

    package func write32(_ offset: UInt64, _ value: UInt64) throws {
        try bus.store(value, .word, at: PhysicalAddress(Layout.window + offset))
    }

    package func write64(_ offset: UInt64, _ value: UInt64) throws {
        try bus.store(value, .doubleword, at: PhysicalAddress(Layout.window + offset))
    }

    package func load(_ address: UInt64) throws -> UInt64 {
        try bus.loadRAM64(at: PhysicalAddress(address))
    }

    package func store(_ word: UInt64, at address: UInt64) throws {
        try bus.storeRAM64(word, at: PhysicalAddress(address))
    }

    package func store(_ words: UInt64..., at address: UInt64) throws {
        for (index, word) in words.enumerated() {
            try bus.storeRAM64(word, at: PhysicalAddress(address + UInt64(index) * 8))
        }
    }

    // MARK: Bring-up

    /// Gives the SMMU its stream table and queues and switches it on, its interrupts too.
    ///
    /// - Parameter hasTwoLevels: Whether an L1STD, which takes a page behind the tables, leads to the first 64 STEs.
    package func enable(hasTwoLevels: Bool = false) throws {
        // Inner shareable, write-back cacheable tables and queues; RECINVSID.
        try write32(RegisterOffset.cr1, 0b11_01_01_11_01_01)
        try write32(RegisterOffset.cr2, 0b10)
        try write64(
            RegisterOffset.strtabBase,
            hasTwoLevels ? putLevelOne() : Layout.streamTable
        )
        // SPLIT = 6, FMT = 2-level.
        try write32(
            RegisterOffset.strtabBaseCfg,
            Layout.log2Streams | (hasTwoLevels ? 1 << 16 | 6 << 6 : 0)
        )
        try write64(RegisterOffset.cmdqBase, Layout.commandQueue | Layout.log2Commands)
        try write64(RegisterOffset.eventqBase, Layout.eventQueue | Layout.log2Events)
        try write32(RegisterOffset.irqCtrl, 0b101)
        // CMDQEN, EVENTQEN, SMMUEN.
        try write32(RegisterOffset.cr0, 0b1101)
    }

    /// - Returns: The address of the first-level stream table.
    private func putLevelOne() throws -> UInt64 {
        let table = nextTable
        nextTable += 0x1000
        // Span = 7: 2^6 STEs.
        try store(Layout.streamTable | 7, at: table)
        return table
    }

    /// Gives a stream stage 1 of the machine's one address space, under an ASID of its own.
    ///
    /// - Parameters:
    ///   - streamID: Below ``Layout/contextCount``.
    ///   - isNested: Whether stage 2 stands behind it, under VMID 1: all of RAM where it is, in pages of 4 KiB.
    ///     The SMMU must have it.
    package func attach(_ streamID: UInt64, isNested: Bool = false) throws {
        precondition(streamID < Layout.contextCount, "the machine has room for 64 contexts")
        let context = Layout.contexts + streamID * 64
        var cd = CD()
        cd.v = true
        cd.aa64 = true
        cd.t0SZ = 16
        cd.tg0 = 0b00
        cd.epd1 = true
        cd.ips = 5
        cd.ttb0 = Layout.tables
        cd.asid = UInt16(streamID) + 1
        cd.a = true
        cd.r = true
        cd.mair = 0xFF
        for index in 0..<8 { try store(cd.words[index], at: context + UInt64(index) * 8) }
        var ste = STE()
        ste.config = .stage1
        ste.s1ContextPtr = context
        ste.v = true
        if isNested { try putStage2(behind: &ste) }
        for index in 0..<8 {
            try store(ste.words[index], at: Layout.streamTable + streamID * 64 + UInt64(index) * 8)
        }
    }

    private func putStage2(behind ste: inout STE) throws {
        ste.config = .nested
        ste.s2VMID = 1
        ste.s2T0SZ = 16
        ste.s2SL0 = 2
        ste.s2PS = 5
        ste.s2AA64 = true
        ste.s2R = true
        ste.s2TTB = try stage2Tables()
    }

    /// The level-0 table of stage 2; made the first time.
    private func stage2Tables() throws -> UInt64 {
        if let stage2Root { return stage2Root }
        let root = nextTable
        nextTable += 0x1000
        stage2Root = root
        for address in stride(from: Layout.ram, to: Layout.ram + memory.byteCount, by: 0x1000) {
            // AF, inner shareable, S2AP = read and write, MemAttr = write-back, page.
            try store(address | 0x7FF, at: try leaf(of: address, below: root))
        }
        return root
    }

    // MARK: The address space

    /// The address of the descriptor that maps an address at a level; makes the tables above it.
    package func leaf(of address: UInt64, level leafLevel: UInt64 = 3, below root: UInt64 = Layout.tables)
        throws
        -> UInt64
    {
        var table = root
        for level in 0..<leafLevel {
            let entry = table + ((address >> (39 - 9 * level)) & 0x1FF) * 8
            if try load(entry) == 0 {
                try store(nextTable | 0b11, at: entry)
                nextTable += 0x1000
            }
            table = try load(entry) & 0xFFFF_FFFF_F000
        }
        return table + ((address >> (39 - 9 * leafLevel)) & 0x1FF) * 8
    }

    /// Maps pages of 4 KiB, readable and writable without privilege.
    package func map(_ address: UInt64, to output: UInt64, byteCount: UInt64) throws {
        for offset in stride(from: 0, to: byteCount, by: 0x1000) {
            // nG, AF, inner shareable, AP = read and write for all, page.
            try store((output + offset) | 0xF43, at: try leaf(of: address + offset))
        }
    }

    /// Maps one block of 2 MiB, likewise.
    package func mapBlock(_ address: UInt64, to output: UInt64) throws {
        try store(output | 0xF41, at: try leaf(of: address, level: 2))
    }

    /// Where the tables end, so far: RAM from here on is free.
    package var tablesEnd: UInt64 { nextTable }

    // MARK: Commands

    /// Queues commands and rings the doorbell once.
    package func submit(_ commands: Command...) throws { try submit(commands) }

    package func submit(_ commands: [Command]) throws {
        for command in commands { put(command) }
        try write32(RegisterOffset.cmdqProd, commandProducer)
    }

    /// The same without an array: where commands are counted, only the SMMU's allocations are to be seen.
    package func submitPair(_ first: Command, _ second: Command) throws {
        put(first)
        put(second)
        try write32(RegisterOffset.cmdqProd, commandProducer)
    }

    private func put(_ command: Command) {
        let place = commands + Int(truncatingIfNeeded: commandProducer & ((1 << Layout.log2Commands) - 1)) * 2
        smmud_store_u64(place, command.words[0])
        smmud_store_u64(place + 1, command.words[1])
        commandProducer = (commandProducer + 1) & ((2 << Layout.log2Commands) - 1)
    }

    /// Whether SMMU_CMDQ_CONS has reached what was submitted: what a driver polls while no error is pending.
    package var hasConsumedAll: Bool {
        get throws { UInt64(try read32(RegisterOffset.cmdqCons)) & 0xF_FFFF == commandProducer }
    }

    /// Whether every command that was submitted has been consumed.
    ///
    /// A queue that is disabled or stopped is not idle, even where PROD has gone round until it meets CONS.
    package var isIdle: Bool {
        get throws {
            let isStopped = try (read32(RegisterOffset.gerror) ^ read32(RegisterOffset.gerrorn)) & 1 != 0
            let isEnabled = CR0(rawValue: try read32(RegisterOffset.cr0ack)).cmdqen
            let consumer = UInt64(try read32(RegisterOffset.cmdqCons)) & 0xF_FFFF
            return isEnabled && !isStopped && consumer == commandProducer
        }
    }
}
