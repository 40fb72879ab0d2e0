// The table of commands: every opcode and every illegal form, as two words worked out by hand from the bit numbers of
// IHI 0070, chapter 4; with CMDQ_CONS and GERROR after it, and what of seven cached things it forgets.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// One command and what comes of it.
struct CommandRow: Sendable, CustomTestStringConvertible {
    /// What becomes of the command.
    enum Outcome: Sendable {
        /// Consumed; it forgets those of ``CachedThings/names``.
        case forgets(String)
        case illegal
        /// Illegal as long as SMMU_IDRn does not have the feature.
        case notImplemented(@Sendable (Identification) -> Bool)
    }

    let name: String
    let low: UInt64
    let high: UInt64
    let outcome: Outcome
    /// SMMU_CR2.E2H.
    var isE2H = false
    /// What the profile does not have.
    var without: (@Sendable (inout Identification) -> Void)?

    var testDescription: String { name }
    var opcode: Opcode { Opcode(rawValue: UInt8(truncatingIfNeeded: low)) }

    init(_ name: String, _ low: UInt64, _ outcome: Outcome, isE2H: Bool = false) {
        self.init(name, low, 0, outcome, isE2H: isE2H)
    }

    init(
        _ name: String,
        _ low: UInt64,
        _ high: UInt64,
        _ outcome: Outcome,
        isE2H: Bool = false,
        without: (@Sendable (inout Identification) -> Void)? = nil
    ) {
        (self.name, self.low, self.high, self.outcome) = (name, low, high, outcome)
        (self.isE2H, self.without) = (isE2H, without)
    }
}

/// Things that the SMMU has cached and that memory says otherwise of, one letter each.
///
/// `s` the STE of stream 0xB, `c` the CD of stream 0xC; of the TLB `1` and `g` stage 1 of stream 1, VMID 7, ASID 3, its
/// page at 0x5000 and the global one at 0x9000; `n` both stages of stream 2, VMID 7, ASID 3, at 0x5000; `2` stage 2 of
/// stream 3, VMID 7, IPA 0x9000_0000; `e` EL2 or EL2-E2H of stream 4, ASID 3, at 0x5000.
struct CachedThings {
    static let names = "sc1gn2e"
    let guest: TestGuest
    private let old: UInt64
    private let new: UInt64

    init(isE2H: Bool) throws {
        guest = try TestGuest.full()
        if isE2H {
            try guest.write32(0x20, 0b1100)
            try guest.write32(0x2C, 0b111)
            try guest.write32(0x20, 0b1101)
        }
        (old, new) = (try guest.page(holding: 0xA), try guest.page(holding: 0xB))
        try guest.setSTE(0xB, .bypass)
        let first = try guest.attachTables(0xC, asid: 4)
        let other = GuestTables(guest)
        try first.map(0x5000, to: old)
        try other.map(0x5000, to: new)
        let stage1 = GuestTables(guest)
        try stage1.map(0x5000, to: old)
        try stage1.map(0x9000, to: old, Leaf.global)
        try guest.attach(1, CDWords(asid: 3, ttb0: stage1.root), STEWords(s2VMID: 7))
        let nested = try NestedSetup(guest, stream: 2) { _ in
        } cd: {
            $0.asid = 3
        }
        try nested.map(0x5000, toPhysical: old)
        let stage2 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try stage2.map(0x9000_0000, to: old)
        var ste = STEWords(config: 0b110, s2VMID: 7)
        ste.extra = Stage2Words(ttb: stage2.root).words
        try guest.setSTE(3, ste)
        let el2 = GuestTables(guest)
        try el2.map(0x5000, to: old)
        try guest.attach(4, CDWords(asid: 3, ttb0: el2.root), STEWords(strw: 2))
        #expect(forgotten == "", "all of it answers as memory was")
        // From here on memory says otherwise, and nobody has told the SMMU.
        try guest.poke(try guest.steAddress(0xB), STEWords(config: 0).words)
        let context = try #require(guest.contexts[0xC])
        try guest.poke(context, CDWords(asid: 5, ttb0: other.root).words)
        try stage1.map(0x5000, to: new)
        try stage1.map(0x9000, to: new, Leaf.global)
        try nested.map(0x5000, toPhysical: new)
        try stage2.map(0x9000_0000, to: new)
        try el2.map(0x5000, to: new)
        #expect(forgotten == "", "the caches hide it")
    }

    /// Which of them answer as memory says now.
    var forgotten: String {
        let answers: [(Character, DMAOutcome, DMAOutcome)] = [
            ("s", guest.dmaRead(0xB, old), .aborted),
            ("c", guest.dmaRead(0xC, 0x5000), .ok(0xB)),
            ("1", guest.dmaRead(1, 0x5000), .ok(0xB)),
            ("g", guest.dmaRead(1, 0x9000), .ok(0xB)),
            ("n", guest.dmaRead(2, 0x5000), .ok(0xB)),
            ("2", guest.dmaRead(3, 0x9000_0000), .ok(0xB)),
            ("e", guest.dmaRead(4, 0x5000), .ok(0xB)),
        ]
        for (name, answer, new) in answers {
            #expect(answer == .ok(0xA) || answer == new, "\(name) answers neither as before nor as now")
        }
        return String(answers.filter { $0.1 == $0.2 }.map(\.0))
    }
}

extension CommandRow {
    static let rows = configuration + guestTLB + otherTLB + others + illegal + profiles

    private static let configuration: [CommandRow] = [
        // SSV, SubstreamID 2, StreamID 6.
        CommandRow("PREFETCH_CONFIG", 0x0000_0006_0000_2801, .forgets("")),
        CommandRow("PREFETCH_ADDR", 0x0000_0001_0000_2802, 0x5000, .forgets("")),
        CommandRow("CFGI_STE, Leaf", 0x0000_000B_0000_0003, 1, .forgets("s")),
        CommandRow("CFGI_STE takes the CDs along", 0x0000_000C_0000_0003, 0, .forgets("c")),
        CommandRow("CFGI_STE of another stream", 0x0000_000A_0000_0003, 1, .forgets("")),
        // 2^(Range + 1) StreamIDs from 8 on, the low bits of the StreamID ignored.
        CommandRow("CFGI_STE_RANGE 8...11", 0x0000_000A_0000_0004, 1, .forgets("s")),
        CommandRow("CFGI_STE_RANGE 8...15", 0x0000_000F_0000_0004, 2, .forgets("sc")),
        CommandRow("CFGI_STE_RANGE 0...7", 0x0000_0007_0000_0004, 2, .forgets("")),
        CommandRow("CFGI_ALL", 0x0000_0000_0000_0004, 31, .forgets("sc")),
        CommandRow("CFGI_CD", 0x0000_000C_0000_0005, 1, .forgets("c")),
        CommandRow("CFGI_CD of another SubstreamID", 0x0000_000C_0000_1005, 1, .forgets("")),
        CommandRow("CFGI_CD leaves the STE", 0x0000_000B_0000_0005, 0, .forgets("")),
        CommandRow("CFGI_CD_ALL", 0x0000_000C_0000_0006, .forgets("c")),
        CommandRow("CFGI_VMS_PIDM", 0x0000_0007_0000_0007, .notImplemented { $0.idr3.mpam }),
    ]

    private static let guestTLB: [CommandRow] = [
        CommandRow("TLBI_NH_ALL", 0x0000_0007_0000_0010, .forgets("1gn")),
        CommandRow("TLBI_NH_ALL, another VMID", 0x0000_0008_0000_0010, .forgets("")),
        CommandRow("TLBI_NH_ASID", 0x0003_0007_0000_0011, .forgets("1n")),
        CommandRow("TLBI_NH_ASID, another ASID", 0x0004_0007_0000_0011, .forgets("")),
        CommandRow("TLBI_NH_VA", 0x0003_0007_0000_0012, 0x5001, .forgets("1n")),
        CommandRow("TLBI_NH_VA, a global page by another ASID", 0x0004_0007_0000_0012, 0x9001, .forgets("g")),
        // TG 1, NUM 7, SCALE 0, TTL 3: 8 pages of 4 KiB from 0x2000 on.
        CommandRow("TLBI_NH_VA, a range", 0x0003_0007_0000_7012, 0x2701, .forgets("1gn")),
        CommandRow("TLBI_NH_VA, a range of the wrong level", 0x0003_0007_0000_7012, 0x0601, .forgets("")),
        CommandRow("TLBI_NH_VA, a range of 16 KiB pages", 0x0003_0007_0000_7012, 0x0B01, .forgets("")),
        CommandRow("TLBI_NH_VAA", 0x0000_0007_0000_0013, 0x5001, .forgets("1n")),
        CommandRow("TLBI_NH_VAA, a range", 0x0000_0007_0010_3013, 0x2700, .forgets("1gn")),
        CommandRow("TLBI_S12_VMALL", 0x0000_0007_0000_0028, .forgets("1gn2")),
        CommandRow("TLBI_S12_VMALL, another VMID", 0x0000_0006_0000_0028, .forgets("")),
        CommandRow("TLBI_S2_IPA", 0x0000_0007_0000_002A, 0x9000_0001, .forgets("2")),
        CommandRow("TLBI_S2_IPA, the next page", 0x0000_0007_0000_002A, 0x9000_1001, .forgets("")),
        // NUM 0, SCALE 9: 512 pages.
        CommandRow("TLBI_S2_IPA, a range", 0x0000_0007_0090_002A, 0x8FE0_1701, .forgets("2")),
        CommandRow("TLBI_S2_IPA, a range before it", 0x0000_0007_0090_002A, 0x8FE0_0701, .forgets("")),
        CommandRow("TLBI_NSNH_ALL", 0x0000_0000_0000_0030, .forgets("1gn2")),
    ]

    private static let otherTLB: [CommandRow] = [
        CommandRow("TLBI_EL2_ALL", 0x0000_0000_0000_0020, .forgets("e")),
        CommandRow("TLBI_EL2_ALL, E2H", 0x0000_0000_0000_0020, .forgets("e"), isE2H: true),
        CommandRow("TLBI_EL2_ASID: NS-EL2 has none", 0x0003_0000_0000_0021, .forgets("")),
        CommandRow("TLBI_EL2_ASID, E2H", 0x0003_0000_0000_0021, .forgets("e"), isE2H: true),
        CommandRow("TLBI_EL2_VA, whatever the ASID", 0x0009_0000_0000_0022, 0x5001, .forgets("e")),
        CommandRow("TLBI_EL2_VA, E2H", 0x0003_0000_0000_0022, 0x5001, .forgets("e"), isE2H: true),
        CommandRow(
            "TLBI_EL2_VA, E2H, another ASID",
            0x0009_0000_0000_0022,
            0x5001,
            .forgets(""),
            isE2H: true
        ),
        CommandRow("TLBI_EL2_VAA", 0x0000_0000_0000_0023, 0x5001, .forgets("e")),
        CommandRow(
            "TLBI_EL2_VAA, E2H, another page",
            0x0000_0000_0000_0023,
            0x6001,
            .forgets(""),
            isE2H: true
        ),
        CommandRow("TLBI_EL3_ALL", 0x0000_0000_0000_0018, .illegal),
        CommandRow("TLBI_EL3_VA", 0x0000_0000_0000_001A, 0x5001, .illegal),
        CommandRow("TLBI_S_EL2_ALL", 0x0000_0000_0000_0050, .illegal),
        CommandRow("TLBI_S_EL2_ASID", 0x0003_0000_0000_0051, .illegal),
        CommandRow("TLBI_S_EL2_VA", 0x0003_0000_0000_0052, 0x5001, .illegal),
        CommandRow("TLBI_S_EL2_VAA", 0x0000_0000_0000_0053, 0x5001, .illegal),
        CommandRow("TLBI_S_S12_VMALL", 0x0000_0007_0000_0058, .illegal),
        CommandRow("TLBI_S_S2_IPA", 0x0000_0007_0000_005A, 0x9000_0001, .illegal),
        CommandRow("TLBI_SNH_ALL", 0x0000_0000_0000_0060, .illegal),
    ]

    private static let others: [CommandRow] = [
        // SSV, SubstreamID 2, StreamID 6, Size 52.
        CommandRow("ATC_INV", 0x0000_0006_0000_2840, 0x34, .notImplemented { $0.idr0.ats }),
        // PRGIndex 5, Resp 2.
        CommandRow("PRI_RESP", 0x0000_0006_0000_2841, 0x2005, .notImplemented { $0.idr0.pri }),
        // Ac, StreamID 6, STAG 9: nobody waits.
        CommandRow("RESUME", 0x0000_0006_0000_1044, 9, .forgets("")),
        CommandRow("STALL_TERM", 0x0000_0006_0000_0045, .forgets("")),
        CommandRow("SYNC, SIG_NONE", 0x0000_0000_0000_0046, .forgets("")),
        CommandRow("SYNC, SIG_IRQ", 0x0000_0000_0FC0_1046, .forgets("")),
        CommandRow("SYNC, SIG_SEV", 0x0000_0000_0FC0_2046, .forgets("")),
        // The device permission table came with RME DA, which no profile has.
        CommandRow("DPTI_ALL", 0x0000_0000_0000_0070, .illegal),
        CommandRow("DPTI_PA", 0x0000_0000_0000_0073, 0x5000, .illegal),
    ]

    // MARK: Illegal forms

    private static let illegal: [CommandRow] =
        [
            ("PREFETCH_CONFIG", 0x01), ("PREFETCH_ADDR", 0x02), ("CFGI_STE", 0x03), ("CFGI_STE_RANGE", 0x04),
            ("CFGI_CD", 0x05), ("CFGI_CD_ALL", 0x06), ("CFGI_VMS_PIDM", 0x07), ("RESUME", 0x44),
            ("STALL_TERM", 0x45),
        ].map { CommandRow("\($0), SSec", 0x0000_0001_0000_0400 | $1, .illegal) }
        + [("NH_VA", 0x12), ("NH_VAA", 0x13), ("EL2_VA", 0x22), ("EL2_VAA", 0x23), ("S2_IPA", 0x2A)].flatMap {
            (name: String, opcode: UInt64) in
            // TG 1, 2 and 3 with NUM, SCALE and TTL 0; TTL 1 counts as 0 with 16 KiB.
            [0x400, 0x800, 0xC00, 0x900].map { (high: UInt64) in
                CommandRow("TLBI_\(name), reserved range \(high >> 8)", opcode, high, .illegal)
            }
        }
        + [
            CommandRow("SYNC, CS 3", 0x0000_0000_0000_3046, .illegal),
            CommandRow("PRI_RESP, Resp 3", 0x0000_0006_0000_0041, 0x3005, .illegal),
        ]
        + [
            0x00, 0x08, 0x0F, 0x14, 0x19, 0x24, 0x29, 0x2B, 0x31, 0x42, 0x47, 0x54, 0x61, 0x71, 0x80, 0x8F,
            0x90, 0xFF,
        ]
        .map { (opcode: UInt64) in CommandRow("opcode \(String(opcode, radix: 16))", opcode, 0, .illegal) }

    private static let profiles: [CommandRow] =
        [0x05, 0x06, 0x10, 0x11, 0x12, 0x13].map { (opcode: UInt64) in
            CommandRow("opcode \(String(opcode, radix: 16)) without stage 1", opcode, 0, .illegal) {
                $0.idr0.s1P = false
            }
        }
        + [0x28, 0x2A].map { (opcode: UInt64) in
            CommandRow("opcode \(String(opcode, radix: 16)) without stage 2", opcode, 0, .illegal) {
                $0.idr0.s2P = false
            }
        }
        + [0x20, 0x21, 0x22, 0x23].map { (opcode: UInt64) in
            CommandRow("opcode \(String(opcode, radix: 16)) without Hyp", opcode, 0, .illegal) {
                $0.idr0.hyp = false
            }
        }
        + [0x44, 0x45].map { (opcode: UInt64) in
            CommandRow("opcode \(String(opcode, radix: 16)) without stalls", opcode, 0, .illegal) {
                $0.idr0.stallModel = 1
            }
        }
}

@Suite("Table of commands")
struct GoldenCommandTests {
    /// Starts the command queue anew at entry 0, so that CMDQ_CONS is known to the bit.
    static func restartQueue(_ guest: TestGuest) throws {
        try guest.write32(0x20, 0b0101)
        try guest.write32(0x98, 0)
        try guest.write32(0x9C, 0)
        guest.commandProd = 0
        try guest.write32(0x20, 0b1101)
    }

    @Test("what it forgets; CMDQ_CONS and GERROR, to the bit", arguments: CommandRow.rows)
    func command(_ row: CommandRow) throws {
        let things = row.without == nil ? try CachedThings(isE2H: row.isE2H) : nil
        let guest =
            try things?.guest
            ?? TestGuest.full { setup in row.without?(&setup.identification) }
        try Self.restartQueue(guest)
        try guest.issue(RawCommand(low: row.low, high: row.high))
        var expected = ""
        var isConsumed = false
        switch row.outcome {
        case .forgets(let names): (expected, isConsumed) = (names, true)
        case .illegal: break
        case .notImplemented(let isAdvertised):
            #expect(!isAdvertised(guest.smmu.identification), "it is there now: the row needs an outcome")
        }
        // RD 1; or ERR CERROR_ILL in bits 30:24 and RD 0, with CMDQ_ERR.
        #expect(try guest.read32(0x9C) == (isConsumed ? 0x0000_0001 : 0x0100_0000))
        #expect(try guest.read32(0x60) == (isConsumed ? 0 : 1))
        #expect(guest.errorLine.count == (isConsumed ? 0 : 1))
        if let things { #expect(things.forgotten == expected) }
        #expect(try guest.takeEvents() == [], "no command is an event")
    }

    @Test("the table has every opcode as it should be sent, and a name for each of its own")
    func isComplete() {
        let plain = CommandRow.rows.filter { $0.without == nil && $0.low & 0x400 == 0 }
        for opcode in Opcode.all {
            let name = "\(opcode)".without(prefix: "CMD_")
            #expect(plain.contains { $0.opcode == opcode && $0.name.hasPrefix(name) }, "\(opcode)")
        }
        // A row's name begins with what the architecture calls its opcode.
        for row in plain where row.opcode.name == nil { #expect(row.name.hasPrefix("opcode"), "\(row.name)") }
    }
}

extension String {
    /// Without a prefix that it may have.
    fileprivate func without(prefix: String) -> String {
        hasPrefix(prefix) ? String(dropFirst(prefix.count)) : self
    }
}
