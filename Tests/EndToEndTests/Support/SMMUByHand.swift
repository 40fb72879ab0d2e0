// A driver outside: programs the SMMU with words, through registers and memory alone.
//
// Every word is written out from the architecture's tables; nothing of the model or the driver is used.

import SMMUClient

/// An SMMU with stage 1 for one stream, IOVAs 0x10000 to 0x1FFFF mapped to RAM, and its event queue's interrupt on.
struct SMMUByHand {
    /// Where the IOVAs from ``iova`` on lead.
    static let target = TestBoard.memory + 0x20_0000
    static let iova: UInt64 = 0x1_0000
    static let byteCount: UInt64 = 0x1_0000

    private static let streamTable = TestBoard.memory + 0x10_0000
    private static let contextDescriptor = TestBoard.memory + 0x11_0000
    private static let tables = TestBoard.memory + 0x12_0000
    static let eventQueue = TestBoard.memory + 0x13_0000
    private static let commandQueue = TestBoard.memory + 0x14_0000

    private let client: ControlClient

    /// Sets everything up, and waits until the SMMU has taken it.
    init(_ client: ControlClient) throws {
        self.client = client
        try writeTranslationTables()
        try writeContextDescriptor()
        try writeStreamTableEntry()
        try programRegisters()
    }

    private func writeTranslationTables() throws {
        // 4 KiB granule and 39-bit addresses: the walk starts at level 1. Table descriptors end in 0b11.
        try client.store(0x8012_1003, 64, at: Self.tables)
        try client.store(0x8012_2003, 64, at: Self.tables + 0x1000)
        for page in 0..<16 as Range<UInt64> {
            // AF [10], SH [9:8] = inner, AP [7:6] = unprivileged read and write, AttrIndx 0, page 0b11.
            let descriptor = (Self.target + page * 0x1000) | 0x743
            try client.store(descriptor, 64, at: Self.tables + 0x2000 + (16 + page) * 8)
        }
    }

    private func writeContextDescriptor() throws {
        // T0SZ 25, TG0 4 KiB, IR0 and OR0 write-back, SH0 inner, EPD1, V; IPS 48 bits, AA64, R, A, ASET, ASID 1.
        try client.store(0x0001_E205_C000_3519, 64, at: Self.contextDescriptor)
        try client.store(Self.tables, 64, at: Self.contextDescriptor + 8)  // TTB0
        try client.store(0xFF, 64, at: Self.contextDescriptor + 24)  // MAIR: Attr0 is Normal write-back.
    }

    private func writeStreamTableEntry() throws {
        let entry = Self.streamTable + UInt64(TestBoard.stream) * 64
        // V [0], Config [3:1] = 0b101: stage 1; S1ContextPtr [55:6].
        try client.store(Self.contextDescriptor | 0xB, 64, at: entry)
        // SHCFG [109:108] = 0b01: as it comes in.
        try client.store(1 << 44, 64, at: entry + 8)
    }

    private func programRegisters() throws {
        try register(0x28, 0x0)  // CR1
        try register(0x2C, 0x2)  // CR2: RECINVSID [1]
        try register(0x80, Self.streamTable, 64)  // STRTAB_BASE
        try register(0x88, 0x8)  // STRTAB_BASE_CFG: linear, 2^8 entries
        try register(0x90, Self.commandQueue | 0x4, 64)  // CMDQ_BASE: 2^4 entries
        try register(0x98, 0x0)  // CMDQ_PROD
        try register(0x9C, 0x0)  // CMDQ_CONS
        try register(0xA0, Self.eventQueue | 0x4, 64)  // EVENTQ_BASE: 2^4 entries
        try register(0x1_00A8, 0x0)  // EVENTQ_PROD
        try register(0x1_00AC, 0x0)  // EVENTQ_CONS
        try register(0x50, 0x5)  // IRQ_CTRL: GERROR_IRQEN [0], EVENTQ_IRQEN [2]
        // CR0: SMMUEN [0], EVENTQEN [2], CMDQEN [3]. CR0ACK follows it.
        try register(0x20, 0xD)
        while try client.load(32, at: TestBoard.registers + 0x24) != 0xD {}
    }

    private func register(_ offset: UInt64, _ value: UInt64, _ bits: Int = 32) throws {
        try client.store(value, bits, at: TestBoard.registers + offset)
    }

    /// Takes the mapping of the page at this IOVA away, and waits until no DMA uses it any more.
    func unmap(_ iova: UInt64) throws {
        try client.store(0, 64, at: Self.tables + 0x2000 + (iova >> 12) * 8)
        // CMD_TLBI_NH_VA: opcode 0x12, ASID [63:48] = 1; Leaf [64] and Addr [127:76]. Then CMD_SYNC: 0x46.
        let next = try client.load(32, at: TestBoard.registers + 0x98)
        let first = Self.commandQueue + (next & 0xF) * 16
        let second = Self.commandQueue + ((next + 1) & 0xF) * 16
        try client.store(0x0001_0000_0000_0012, 64, at: first)
        try client.store(iova | 1, 64, at: first + 8)
        try client.store(0x46, 64, at: second)
        try client.store(0, 64, at: second + 8)
        try register(0x98, (next + 2) & 0x1F)
        while try client.load(32, at: TestBoard.registers + 0x9C) != (next + 2) & 0x1F {}
    }
}
