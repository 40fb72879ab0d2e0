// The table of events: every event number, provoked, and its record compared word by word with words worked out by
// hand from the bit numbers of IHI 0070, 7.3.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// One way to an event.
struct EventRow: Sendable, CustomTestStringConvertible {
    let name: String
    /// The record: four words.
    let words: [UInt64]
    /// The SMMU before the row's own preparation.
    var streamTable = StreamTableShape.linear(8)
    /// Does what raises the event, on an SMMU of the full profile.
    let provoke: @Sendable (TestGuest) throws -> DMAOutcome

    var testDescription: String { name }
    var number: UInt8 { UInt8(truncatingIfNeeded: words[0]) }

    init(
        _ name: String,
        _ words: [UInt64],
        streamTable: StreamTableShape = .linear(8),
        _ provoke: @escaping @Sendable (TestGuest) throws -> DMAOutcome
    ) {
        self.name = name
        self.words = words
        self.streamTable = streamTable
        self.provoke = provoke
    }
}

/// A stream 0x2A whose CD and stage-1 tables lie at fixed IPAs, page by page.
struct FixedNested {
    static let context: UInt64 = 0x2_0000_1000
    /// The tables of levels 1, 2 and 3.
    static let tables: [UInt64] = [0x2_0000_3000, 0x2_0000_4000, 0x2_0000_5000]
    static let data: UInt64 = 0x2_0000_6000
    /// Indices 0, 0x91 and 0x145 of the three levels.
    static let address: UInt64 = 0x1234_5678

    let guest: TestGuest
    let stage2: StageTables

    init(_ guest: TestGuest) throws {
        self.guest = guest
        stage2 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        var pages: [UInt64: UInt64] = [:]
        for ipa in [Self.context, Self.data] + Self.tables {
            let page = guest.allocate(0x1000)
            pages[ipa] = page
            try stage2.map(ipa, to: page)
        }
        func store(_ ipa: UInt64, _ word: UInt64) throws {
            let page = try #require(pages[ipa & ~0xFFF])
            try guest.poke(page + (ipa & 0xFFF), word)
        }
        try store(Self.tables[0], Self.tables[1] | 0b11)
        try store(Self.tables[1] + 0x91 * 8, Self.tables[2] | 0b11)
        try store(Self.tables[2] + 0x145 * 8, Self.data | Leaf.readWrite | 0b11)
        for (index, word) in CDWords(ttb0: Self.tables[0]).words.enumerated() {
            try store(Self.context + 0x40 + UInt64(index) * 8, word)
        }
        var ste = STEWords(config: 0b111, s1ContextPtr: Self.context + 0x40, s2VMID: 7)
        ste.extra = Stage2Words(ttb: stage2.root).words
        try guest.setSTE(0x2A, ste)
    }

    /// Changes what stage 2 says of an IPA's page.
    func change(_ ipa: UInt64, _ change: (UInt64) -> UInt64) throws {
        let entry = try stage2.entry(ipa)
        try guest.poke(entry, change(try guest.peek(entry)))
    }

    func write() -> DMAOutcome { guest.dmaWrite(0x2A, Self.address) }
}

/// What the table's rows need again and again.
enum EventRig {
    /// Nobody is there, whatever is fetched or written.
    static let nowhere: UInt64 = 0x9_0000_0000
    static let fetch = TransactionAttributes(isPrivileged: true, isInstruction: true)
    static let substream5 = TransactionAttributes(substreamID: SubstreamID(5))

    static func moveStreamTable(_ guest: TestGuest) throws {
        try guest.write32(0x20, 0b1100)
        try guest.write64(0x80, nowhere)
        try guest.write32(0x20, 0b1101)
        try guest.sync(Raw.cfgiAll)
    }

    /// A stream 0x2A with a page at 0x1000 that each of the four faults is made at: IPS of 36 bits.
    static func stage1(_ guest: TestGuest, stalls: Bool = false) throws {
        let tables = try guest.attachTables(0x2A) { cd in
            cd.ips = 1
            cd.s = stalls
        }
        try tables.map(0x2000, to: 1 << 36)
        try tables.map(0x3000, to: TestGuest.ram, Leaf.unprivileged | Leaf.nG)
        try tables.map(0x4000, to: TestGuest.ram, Leaf.af | Leaf.nG | Leaf.readOnly | Leaf.unprivileged)
    }

    /// The same of stage 2 alone: S2PS of 40 bits, IPAs from 4 GiB on.
    static func stage2(_ guest: TestGuest, stalls: Bool = false) throws {
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try tables.map(0x1_0000_2000, to: 1 << 40)
        try tables.map(0x1_0000_3000, to: TestGuest.ram, Leaf2.readWrite & ~Leaf2.af)
        try tables.map(0x1_0000_4000, to: TestGuest.ram, Leaf2.readWrite & ~Leaf2.write)
        try tables.poke(try tables.entry(0x1_0020_0000, level: 2), 0x7000_0000 | 0b11)
        var ste = STEWords(config: 0b110, s2VMID: 7)
        ste.extra = Stage2Words(ps: 2, s: stalls, r: !stalls, ttb: tables.root).words
        try guest.setSTE(0x2A, ste)
    }
}

extension EventRow {
    static let rows = configuration + contexts + stage1 + stage2 + nested + aborts

    // MARK: Configuration

    private static let configuration: [EventRow] = [
        EventRow("C_BAD_STREAMID", [0x0000_1234_0000_0002, 0, 0, 0]) { $0.dmaRead(0x1234, 0x5000) },
        EventRow("C_BAD_STREAMID, SSV", [0x0000_1234_0000_5802, 0, 0, 0]) {
            $0.dmaRead(0x1234, 0x5000, EventRig.substream5)
        },
        EventRow(
            "C_BAD_STREAMID, Span 0",
            [0x0000_006A_0000_0002, 0, 0, 0],
            streamTable: .twoLevel(8, split: 6)
        ) { $0.dmaRead(0x6A, 0x5000) },
        EventRow("F_STE_FETCH", [0x0000_002A_0000_0003, 0, 0, 0x9_0000_0A80]) { guest in
            try EventRig.moveStreamTable(guest)
            return guest.dmaRead(0x2A, 0x5000)
        },
        EventRow(
            "F_STE_FETCH, L1STD",
            [0x0000_006A_0000_0003, 0, 0, 0x9_0000_0008],
            streamTable: .twoLevel(8, split: 6)
        ) { guest in
            try EventRig.moveStreamTable(guest)
            return guest.dmaRead(0x6A, 0x5000)
        },
        EventRow("C_BAD_STE, V = 0", [0x0000_002A_0000_0004, 0, 0, 0]) { $0.dmaWrite(0x2A, 0x5000) },
        EventRow("C_BAD_STE, STRW 1", [0x0000_002A_0000_5804, 0, 0, 0]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: guest.allocate(64), strw: 1))
            return guest.dmaRead(0x2A, 0x5000, EventRig.substream5)
        },
    ]

    private static let contexts: [EventRow] = [
        EventRow("F_STREAM_DISABLED, S1DSS 0", [0x0000_002A_0000_0006, 0, 0, 0]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: guest.allocate(128), s1CDMax: 1))
            return guest.dmaRead(0x2A, 0x5000)
        },
        EventRow("F_STREAM_DISABLED, S1DSS 2 and SubstreamID 0", [0x0000_002A_0000_0806, 0, 0, 0]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: guest.allocate(128), s1CDMax: 1, s1DSS: 2))
            return guest.dmaRead(0x2A, 0x5000, TransactionAttributes(substreamID: SubstreamID(0)))
        },
        EventRow("C_BAD_SUBSTREAMID, no SSV in its record", [0x0000_002A_0000_5008, 0, 0, 0]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: guest.allocate(64)))
            return guest.dmaRead(0x2A, 0x5000, EventRig.substream5)
        },
        EventRow("F_CD_FETCH", [0x0000_002A_0000_0009, 0, 0, 0x9_0000_0040]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: EventRig.nowhere + 0x40))
            return guest.dmaRead(0x2A, 0x5000)
        },
        EventRow("F_CD_FETCH, L1CD", [0x0000_002A_0040_0809, 0, 0, 0x9_0000_0008]) { guest in
            try guest.setSTE(
                0x2A,
                STEWords(s1Fmt: 2, s1ContextPtr: EventRig.nowhere, s1CDMax: 11, s1DSS: 2)
            )
            return guest.dmaRead(0x2A, 0x5000, TransactionAttributes(substreamID: SubstreamID(0x400)))
        },
        EventRow("C_BAD_CD, V = 0", [0x0000_002A_0000_000A, 0, 0, 0]) { guest in
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: guest.allocate(64)))
            return guest.dmaRead(0x2A, 0x5000)
        },
        EventRow("C_BAD_CD, AA64 = 0", [0x0000_002A_0000_580A, 0, 0, 0]) { guest in
            let contexts = guest.allocate(64 * 8)
            try guest.poke(contexts + 5 * 64, CDWords(aa64: false).words)
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: contexts, s1CDMax: 3, s1DSS: 2))
            return guest.dmaRead(0x2A, 0x5000, EventRig.substream5)
        },
    ]

    // MARK: One stage

    private static let stage1: [EventRow] = [
        EventRow("F_TRANSLATION", [0x0000_002A_0000_0010, 0x0000_0200_0000_0000, 0x1238, 0]) { guest in
            try EventRig.stage1(guest)
            return guest.dmaWrite(0x2A, 0x1238)
        },
        EventRow(
            "F_TRANSLATION, SSV, a privileged fetch, the top byte as it came",
            [0x0000_002A_0000_5810, 0x0000_020E_0000_0000, 0xA500_0000_0000_1238, 0]
        ) { guest in
            let contexts = guest.allocate(64 * 8)
            let cd = CDWords(tbi0: true, ttb0: guest.allocate(0x1000))
            try guest.poke(contexts + 5 * 64, cd.words)
            try guest.setSTE(0x2A, STEWords(s1ContextPtr: contexts, s1CDMax: 3, s1DSS: 2))
            let fetch = TransactionAttributes(
                substreamID: SubstreamID(5),
                isPrivileged: true,
                isInstruction: true
            )
            return guest.dmaRead(0x2A, 0xA500_0000_0000_1238, fetch)
        },
        EventRow("F_ADDR_SIZE", [0x0000_002A_0000_0011, 0x0000_0208_0000_0000, 0x2FF8, 0]) { guest in
            try EventRig.stage1(guest)
            return guest.dmaRead(0x2A, 0x2FF8)
        },
        EventRow(
            "F_ADDR_SIZE, bypass",
            [0x0000_002A_0000_0011, 0x0000_0200_0000_0000, 0x1_0000_0000_0000, 0]
        ) { guest in
            try guest.setSTE(0x2A, .bypass)
            return guest.dmaWrite(0x2A, 1 << 48)
        },
        EventRow("F_ACCESS", [0x0000_002A_0000_0012, 0x0000_020A_0000_0000, 0x3000, 0]) { guest in
            try EventRig.stage1(guest)
            return guest.dmaRead(0x2A, 0x3000, TransactionAttributes(isPrivileged: true))
        },
        EventRow("F_PERMISSION", [0x0000_002A_0000_0013, 0x0000_0202_0000_0000, 0x4010, 0]) { guest in
            try EventRig.stage1(guest)
            // Writes are data, whatever the requester says.
            return guest.dmaWrite(0x2A, 0x4010, 1, EventRig.fetch)
        },
    ]

    private static let stage2: [EventRow] = [
        EventRow(
            "F_TRANSLATION, stage 2",
            [0x0000_002A_0000_0010, 0x0000_028E_0000_0000, 0x1_0000_1238, 0x1_0000_1000]
        ) { guest in
            try EventRig.stage2(guest)
            return guest.dmaRead(0x2A, 0x1_0000_1238, EventRig.fetch)
        },
        EventRow(
            "F_ADDR_SIZE, stage 2",
            [0x0000_002A_0000_0011, 0x0000_0280_0000_0000, 0x1_0000_2008, 0x1_0000_2000]
        ) { guest in
            try EventRig.stage2(guest)
            return guest.dmaWrite(0x2A, 0x1_0000_2008)
        },
        EventRow(
            "F_ACCESS, stage 2",
            [0x0000_002A_0000_0012, 0x0000_0288_0000_0000, 0x1_0000_3008, 0x1_0000_3000]
        ) { guest in
            try EventRig.stage2(guest)
            return guest.dmaRead(0x2A, 0x1_0000_3008)
        },
        EventRow(
            "F_PERMISSION, stage 2",
            [0x0000_002A_0000_0013, 0x0000_0280_0000_0000, 0x1_0000_4FF8, 0x1_0000_4000]
        ) { guest in
            try EventRig.stage2(guest)
            return guest.dmaWrite(0x2A, 0x1_0000_4FF8)
        },
    ]
}
