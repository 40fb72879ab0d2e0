// From a StreamID to an STE and from a SubstreamID to a CD: table shapes, and what makes a structure ILLEGAL.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Stream tables")
struct StreamTableTests {
    static let cBadStreamID = DMAOutcome.event(0x02)
    static let fSTEFetch = DMAOutcome.event(0x03)
    static let cBadSTE = DMAOutcome.event(0x04)

    @Test("a linear table holds 2^LOG2SIZE STEs; beyond is C_BAD_STREAMID, recorded only with RECINVSID")
    func linear() throws {
        for recorded in [true, false] {
            var setup = GuestSetup()
            setup.streamTable = .linear(4)
            let guest = try TestGuest(setup)
            if !recorded {
                try guest.write32(0x20, 0b1100)
                try guest.write32(0x2C, 0)
                try guest.write32(0x20, 0b1101)
            }
            let page = try guest.page(holding: 9)
            for stream in [0, 7, 15] as [UInt64] { try guest.setSTE(stream, .bypass) }
            for stream in [0, 7, 15] as [UInt32] { #expect(guest.dmaRead(stream, page) == .ok(9)) }
            #expect(guest.dmaRead(1, page) == Self.cBadSTE)
            _ = try guest.takeEvents()
            for stream in [16, 17, 0xFFFF, 0xFFFF_FFFF] as [UInt32] {
                #expect(guest.dmaRead(stream, page) == Self.cBadStreamID)
                let record = eventWords(2, stream: UInt64(stream))
                #expect(try guest.takeEvents() == (recorded ? [record] : []))
            }
        }
    }

    @Test("LOG2SIZE above SIDSIZE is capped for the range check, and literal for the base's alignment")
    func log2SizeAboveSidsize() throws {
        var setup = GuestSetup()
        setup.identification = .stage1(streamIDBits: 4)
        setup.streamTable = .linear(4)
        setup.boots = false
        let guest = try TestGuest(setup)
        // 2^8 STEs need 16 KiB of alignment: the base's low bits are treated as zero although SIDSIZE is 4.
        let table = guest.allocate(0x4000)
        try guest.write64(0x80, table + 0x2000)
        try guest.write32(0x88, 8)
        try guest.poke(table + 3 * 64, STEWords.bypass.words)
        try guest.write32(0x20, 1)
        let page = try guest.page(holding: 5)
        #expect(guest.dmaRead(3, page) == .ok(5))
        #expect(guest.dmaRead(16, page) == Self.cBadStreamID)
        #expect(guest.dmaRead(15, page) == Self.cBadSTE)
    }

    @Test("a linear table of any LOG2SIZE ends in an answer", arguments: 0...63 as ClosedRange<UInt32>)
    func everyLog2Size(_ log2: UInt32) throws {
        var setup = GuestSetup()
        setup.identification = .stage1(streamIDBits: 32)
        setup.boots = false
        let guest = try TestGuest(setup)
        for format in [0, 1, 2, 3] as [UInt32] {
            for split in [0, 6, 8, 10, 31] as [UInt32] {
                try guest.write32(0x20, 0)
                try guest.write64(0x80, 0xF_FFFF_FFFF_FFC0)
                try guest.write32(0x88, log2 | split << 6 | format << 16)
                try guest.write32(0x20, 1)
                for stream in [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF] as [UInt32] {
                    let outcome = guest.dmaRead(stream, 0x8000_0000)
                    #expect(outcome == Self.cBadStreamID || outcome == Self.fSTEFetch, "\(outcome)")
                }
            }
        }
    }

    @Test("2-level tables with each SPLIT, and reserved SPLITs as 6", arguments: [6, 8, 10, 0, 7, 9, 31])
    func twoLevel(_ split: UInt64) throws {
        let effective: UInt64 = [8, 10].contains(split) ? split : 6
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(14, split: effective)
        setup.boots = false
        let guest = try TestGuest(setup)
        let table = guest.allocate(8 << (14 - effective), alignment: 8 << (14 - effective))
        try guest.write64(0x80, table)
        try guest.write32(0x88, UInt32(14 | split << 6 | 1 << 16))
        let leaf = guest.allocate(64 << effective)
        // The third leaf holds all 2^SPLIT STEs.
        try guest.poke(table + 2 * 8, leaf | (effective + 1))
        let last = (1 << effective) - 1 as UInt64
        try guest.poke(leaf + last * 64, STEWords.bypass.words)
        try guest.write32(0x2C, 0b10)
        try guest.write32(0x20, 1)
        let page = try guest.page(holding: 5)
        #expect(guest.dmaRead(UInt32(2 << effective | last), page) == .ok(5))
        #expect(guest.dmaRead(UInt32(2 << effective), page) == Self.cBadSTE)
        #expect(guest.dmaRead(UInt32(1 << effective | last), page) == Self.cBadStreamID)
        #expect(guest.dmaRead(1 << 14, page) == Self.cBadStreamID)
    }

    @Test("Span: 2^(Span - 1) STEs, not more; 0, 12 to 31 and above SPLIT + 1 hold none", arguments: 0...31)
    func span(_ span: UInt64) throws {
        for split in [6, 8, 10] as [UInt64] {
            var setup = GuestSetup()
            setup.streamTable = .twoLevel(16, split: split)
            let guest = try TestGuest(setup)
            let leaf = guest.allocate(64 << split)
            for index in 0..<(1 << split) as Range<UInt64> {
                try guest.poke(leaf + index * 64, STEWords.bypass.words)
            }
            try guest.poke(guest.streamTable, leaf | span)
            let isUsable = span >= 1 && span <= 11 && span <= split + 1
            let count: UInt64 = isUsable ? 1 << (span - 1) : 0
            let page = try guest.page(holding: 5)
            for stream in [0, 1, 2, 31, 32, 63, 64, 255, 256, 511, 512, 1023] as [UInt64]
            where stream < 1 << split {
                let expected: DMAOutcome = stream < count ? .ok(5) : Self.cBadStreamID
                #expect(guest.dmaRead(UInt32(stream), page) == expected, "StreamID \(stream), SPLIT \(split)")
            }
        }
    }

    @Test("L2Ptr is aligned to its own array, and the level-1 table to its size")
    func alignment() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(16, split: 8)
        setup.boots = false
        let guest = try TestGuest(setup)
        // 256 level-1 descriptors: 2 KiB.
        let table = guest.allocate(0x800)
        let leaf = guest.allocate(64 * 16)
        try guest.write64(0x80, table + 0x7C0)
        try guest.write32(0x88, UInt32(16 | 8 << 6 | 1 << 16))
        // 16 STEs, so bits 9:0 of L2Ptr are treated as zero.
        try guest.poke(table + 8, (leaf + 0x3C0) | 5)
        try guest.poke(leaf + 3 * 64, STEWords.bypass.words)
        try guest.write32(0x20, 1)
        let page = try guest.page(holding: 5)
        #expect(guest.dmaRead(0x103, page) == .ok(5))
    }

    @Test("FMT reserved is linear; a table re-programmed from 2-level to linear is linear")
    func reprogramming() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(12, split: 8)
        let guest = try TestGuest(setup)
        let page = try guest.page(holding: 5)
        try guest.setSTE(0x123, .bypass)
        #expect(guest.dmaRead(0x123, page) == .ok(5))
        let linear = guest.allocate(64 << 6)
        try guest.poke(linear + 9 * 64, STEWords.bypass.words)
        for format in [0, 2, 3] as [UInt32] {
            try guest.write32(0x20, 0b1100)
            try guest.write64(0x80, linear)
            try guest.write32(0x88, 6 | 8 << 6 | format << 16)
            try guest.sync(Raw.cfgiAll)
            try guest.write32(0x20, 0b1101)
            #expect(guest.dmaRead(9, page) == .ok(5))
            #expect(guest.dmaRead(0x123, page) == Self.cBadStreamID)
        }
    }

    @Test("nobody at the stream table: F_STE_FETCH with the address of the structure, whichever level")
    func fetchAborts() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(16, split: 8)
        let guest = try TestGuest(setup)
        try guest.poke(guest.streamTable, 0x10_0000_0000 | 9)
        #expect(guest.dmaRead(5, 0) == Self.fSTEFetch)
        #expect(try guest.takeEvents() == [eventWords(3, stream: 5, fetch: 0x10_0000_0140)])
        try guest.write32(0x20, 0b1100)
        try guest.write64(0x80, 0x20_0000_0000)
        try guest.write32(0x20, 0b1101)
        #expect(guest.dmaWrite(0x305, 0) == Self.fSTEFetch)
        #expect(try guest.takeEvents() == [eventWords(3, stream: 0x305, fetch: 0x20_0000_0018)])
        // A register window is not memory to a fetch.
        try guest.write32(0x20, 0b1100)
        try guest.write64(0x80, TestGuest.window)
        try guest.write32(0x88, 4)
        try guest.write32(0x20, 0b1101)
        #expect(guest.dmaWrite(1, 0) == Self.fSTEFetch)
    }
}

@Suite("STEs")
struct STETests {
    enum Expected: Sendable {
        case translates, bypasses, silent, illegal
    }

    static let cases: [(String, STEWords, Expected)] = [
        ("V = 0", STEWords(v: false), .illegal),
        ("V = 0, abort", STEWords(v: false, config: 0), .illegal),
        ("stage 1", STEWords(), .translates),
        ("Config 000", STEWords(config: 0b000), .silent),
        ("Config 001", STEWords(config: 0b001), .silent),
        ("Config 010", STEWords(config: 0b010), .silent),
        ("Config 011", STEWords(config: 0b011), .silent),
        (
            "Config 0xx with everything else wrong",
            STEWords(
                config: 0b001,
                s1CDMax: 31,
                s1STALLD: true,
                strw: 3,
                extra: [0xFF << 48, 0, 0xFFFF, 0, 0, 0, 0, 0]
            ), .silent
        ),
        ("bypass", .bypass, .bypasses),
        (
            "bypass ignores S1* and S2*",
            STEWords(
                config: 0b100,
                s1Fmt: 3,
                s1ContextPtr: 0xFF_0000_0000_0000,
                s1CDMax: 31,
                s1DSS: 0,
                s1STALLD: true,
                strw: 3,
                s2VMID: 0xFFFF,
                extra: [0, 0, ~0, ~0, 0, 0, 0, 0]
            ), .bypasses
        ),
        ("stage 2 without IDR0.S2P", STEWords(config: 0b110), .illegal),
        ("nested without IDR0.S2P", STEWords(config: 0b111), .illegal),
        ("S1STALLD with STALL_MODEL 1", STEWords(s1STALLD: true), .illegal),
        ("S1CDMax = SSIDSIZE", STEWords(s1CDMax: 20, s1DSS: 2), .translates),
        ("S1CDMax above SSIDSIZE", STEWords(s1CDMax: 21, s1DSS: 2), .illegal),
        ("S1CDMax above SSIDSIZE, bypass", STEWords(config: 0b100, s1CDMax: 21), .bypasses),
        ("S1ContextPtr beyond OAS", STEWords(s1ContextPtr: 1 << 48), .illegal),
        ("S1ContextPtr far beyond OAS", STEWords(s1ContextPtr: 1 << 55), .illegal),
        ("S1Fmt without S1CDMax is ignored", STEWords(s1Fmt: 2), .translates),
        ("STRW is RES0 without Hyp", STEWords(strw: 3), .translates),
        (
            "S2* ignored with stage 1", STEWords(s2VMID: 0xABCD, extra: [0, 0, ~0xFFFF, ~0, ~0, ~0, ~0, ~0]),
            .translates
        ),
        ("EATS ignored without ATS", STEWords(eats: 2), .translates),
        ("EATS 1 ignored without ATS", STEWords(eats: 1), .translates),
        ("S1DSS ignored without substreams", STEWords(s1DSS: 0), .translates),
        ("PRIVCFG and INSTCFG 01 are incoming", STEWords(privCfg: 1, instCfg: 1), .translates),
        // S1PIE, S1MPAM, CONT, DCP, PPAR, MEV, SW_RESERVED, memory attributes, S1CIR, S1COR, S1CSH.
        ("the rest of word 1", STEWords(extra: [0, 0xFFF0_3FFF_07FE_F0FC, 0, 0, 0, 0, 0, 0]), .translates),
    ]

    @Test("legal, ILLEGAL or silent", arguments: cases.indices)
    func legality(_ index: Int) throws {
        let (name, ste, expected) = Self.cases[index]
        let guest = try TestGuest()
        let tables = GuestTables(guest)
        let page = try guest.page(holding: 77)
        try tables.map(0x4000, to: page)
        var changed = ste
        if changed.s1ContextPtr == 0 {
            // Room for a table of 2^20 CDs is not needed: only CD 0 is looked at.
            changed.s1ContextPtr = guest.allocate(64, alignment: ste.s1CDMax > 6 ? 32 << 20 : 64)
            if ste.s1CDMax > 19 { changed.s1Fmt = 2 }
        }
        let cd = CDWords(ttb0: tables.root).words
        if ste.s1CDMax > 19, ste.s1CDMax < 21 {
            let leaf = guest.allocate(64 << 10)
            try guest.poke(changed.s1ContextPtr, leaf | 1)
            try guest.poke(leaf, cd)
        } else if changed.s1ContextPtr < 1 << 48 {
            try guest.poke(changed.s1ContextPtr, cd)
        }
        try guest.setSTE(6, changed)
        switch expected {
        case .translates:
            #expect(guest.dmaRead(6, 0x4000) == .ok(77), "\(name)")
        case .bypasses:
            #expect(guest.dmaRead(6, page) == .ok(77), "\(name)")
        case .silent:
            #expect(guest.dmaRead(6, 0x4000) == .aborted, "\(name)")
            #expect(guest.dmaWrite(6, 0x4000) == .aborted, "\(name)")
        case .illegal:
            #expect(guest.dmaRead(6, 0x4000) == .event(0x04), "\(name)")
            #expect(try guest.takeEvents() == [eventWords(4, stream: 6)], "\(name)")
        }
        #expect(try guest.takeEvents() == [], "\(name)")
    }

    @Test("profiles: what IDR0 takes away makes STEs illegal")
    func profiles() throws {
        var identification = Identification.stage1()
        let ste = STE(words: SIMD8(STEWords(s1Fmt: 1, s1CDMax: 3).words))
        #expect(identification.violation(of: ste) == nil)
        identification.idr0.cd2L = false
        #expect(identification.violation(of: ste) != nil)
        let linear = STE(words: SIMD8(STEWords(s1Fmt: 3, s1CDMax: 3).words))
        #expect(identification.violation(of: linear) == nil, "S1Fmt 3 is linear")
        identification.idr1.ssidsize = 0
        #expect(
            identification.violation(of: ste) == nil,
            "S1Fmt and S1CDMax are ignored without SubstreamIDs"
        )
        identification.idr0.s1P = false
        #expect(identification.violation(of: linear) != nil)
        #expect(identification.violation(of: STE(words: SIMD8(STEWords.bypass.words))) == nil)
        var stalling = Identification.stage1()
        stalling.idr0.stallModel = 0
        let stallD = STE(words: SIMD8(STEWords(s1STALLD: true).words))
        #expect(stalling.violation(of: stallD) == nil)
        stalling.idr0.stallModel = 2
        #expect(stalling.violation(of: stallD) != nil)
    }

    @Test("an address beyond OAS in bypass: stage-1 F_ADDR_SIZE, always aborted and recorded")
    func bypassBeyondOAS() throws {
        let guest = try TestGuest()
        try guest.setSTE(6, .bypass)
        #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFF8) == .nobody(0xFFFF_FFFF_FFF8))
        let attributes = TransactionAttributes(isPrivileged: true, isInstruction: true)
        #expect(guest.dmaRead(6, 0x1_0000_0000_0008, attributes) == .fAddrSize)
        #expect(guest.dmaWrite(6, 0xFF00_0000_0000_0000, 0, attributes) == .fAddrSize)
        #expect(
            try guest.takeEvents() == [
                eventWords(
                    0x11,
                    stream: 6,
                    isRead: true,
                    isPrivileged: true,
                    isInstruction: true,
                    eventClass: 2,
                    input: 0x1_0000_0000_0008
                ),
                eventWords(
                    0x11,
                    stream: 6,
                    isRead: false,
                    isPrivileged: true,
                    eventClass: 2,
                    input: 0xFF00_0000_0000_0000
                ),
            ]
        )
        #expect(guest.dmaRead(6, 0x1000, TransactionAttributes(substreamID: SubstreamID(0))) == .event(0x08))
        #expect(try guest.takeEvents() == [CDTests.badSubstream(0)])
    }
}

extension SIMD8 where Scalar == UInt64 {
    init(_ words: [UInt64]) {
        self.init(words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7])
    }
}

@Suite("CDs")
struct CDTests {
    static let cases: [(String, CDWords, Bool)] = [
        ("as Linux writes it", CDWords(), true),
        ("V = 0", CDWords(v: false), false),
        ("S = 1 with STALL_MODEL 1", CDWords(s: true), false),
        ("ENDI = 1 with little-endian alone", CDWords(endi: true), false),
        ("AA64 = 0 without AArch32 tables", CDWords(aa64: false), false),
        ("HA with HTTU 0", CDWords(ha: true), false),
        ("HD with HTTU 0", CDWords(hd: true), false),
        ("HA and HD with HTTU 0", CDWords(hd: true, ha: true), false),
        ("T0SZ 15", CDWords(t0SZ: 15), false), ("T0SZ 16", CDWords(t0SZ: 16), true),
        ("T0SZ 39", CDWords(t0SZ: 39), true), ("T0SZ 40", CDWords(t0SZ: 40), false),
        ("T0SZ 0", CDWords(t0SZ: 0), false), ("T0SZ 63", CDWords(t0SZ: 63), false),
        ("T1SZ out of range with EPD1", CDWords(t1SZ: 0), true),
        ("T1SZ out of range without EPD1", CDWords(t1SZ: 15, epd1: false), false),
        ("T1SZ 40 without EPD1", CDWords(t1SZ: 40, epd1: false), false),
        ("TG0 reserved", CDWords(tg0: 3), false),
        ("TG1 reserved without EPD1", CDWords(tg1: 0, epd1: false), false),
        ("TG1 reserved with EPD1", CDWords(tg1: 0), true),
        ("TTB1 beyond IPS without EPD1", CDWords(epd1: false, ips: 2, ttb1: 1 << 40), false),
        ("TTB1 within IPS without EPD1", CDWords(epd1: false, ips: 2, ttb1: 1 << 39), true),
        ("TTB1 beyond IPS with EPD1", CDWords(ips: 2, ttb1: 1 << 40), true),
        ("IPS 6 is capped to OAS", CDWords(ips: 6), true),
        ("IPS 7 is capped to OAS", CDWords(ips: 7), true),
        ("TTB1 beyond OAS, IPS 6", CDWords(epd1: false, ips: 6, ttb1: 1 << 48), false),
        ("ASID above 8 bits with ASID16", CDWords(asid: 0xFFFF), true),
        ("UWXN is ignored for VMSAv8-64", CDWords(extra: [1 << 37, 0, 0, 0, 0, 0, 0, 0]), true),
        // NSCFG0, E0PD0, HAFT, PnCH, EPAN, HWU0xx.
        (
            "features that IDR3 does not have, word 1",
            CDWords(extra: [0, 0xFC00_0000_0000_000D, 0, 0, 0, 0, 0, 0]), true
        ),
        // NSCFG1, E0PD1, AIE, DS, PIE, HWU1xx.
        (
            "features that IDR3 does not have, word 2",
            CDWords(extra: [0, 0, 0xFC00_0000_0000_000D, 0, 0, 0, 0, 0]), true
        ),
        ("AMAIR, PARTID, permission indirection", CDWords(extra: [0, 0, 0, 0, ~0, ~0, ~0, ~0]), true),
    ]

    @Test("legal or C_BAD_CD", arguments: cases.indices)
    func legality(_ index: Int) throws {
        let (name, cd, isLegal) = Self.cases[index]
        let guest = try TestGuest()
        let size = (16...39).contains(cd.t0SZ) ? cd.t0SZ : 25
        let tables = GuestTables(guest, size: size)
        try tables.map(0x4000, to: try guest.page(holding: 77))
        var changed = cd
        changed.ttb0 = tables.root
        try guest.attach(6, changed)
        #expect(guest.dmaRead(6, 0x4000) == (isLegal ? .ok(77) : .event(0x0A)), "\(name)")
        #expect(try guest.takeEvents() == (isLegal ? [] : [eventWords(0x0A, stream: 6)]), "\(name)")
    }

    @Test("TTB0 beyond the effective IPS is C_BAD_CD, whichever half is used; EPD0 removes the check")
    func tableBaseLimits() throws {
        for (ips, bits) in [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 48), (7, 48)]
            as [(UInt64, UInt64)]
        {
            let guest = try TestGuest()
            let upper = GuestTables(guest)
            try upper.map(0xFFFF_FFFF_FFFF_4000, to: try guest.page(holding: 3))
            var cd = CDWords(epd1: false, ips: ips, ttb0: 1 << bits, ttb1: upper.root)
            try guest.attach(6, cd)
            #expect(guest.dmaRead(6, 0x4000) == .event(0x0A))
            #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_4000) == .event(0x0A))
            cd.epd0 = true
            try guest.attach(6, cd)
            #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_4000) == .ok(3))
            #expect(guest.dmaRead(6, 0x4000) == .fTranslation)
            // The last table within the limit is legal, and nobody is there.
            cd.epd0 = false
            cd.ttb0 = 1 << bits - 0x1000
            try guest.attach(6, cd)
            #expect(guest.dmaRead(6, 0x4000) == .event(0x0B))
        }
    }

    @Test("profiles: TERM_MODEL, ASID16 and STALL_MODEL 2")
    func profiles() {
        func violation(_ cd: CDWords, _ change: (inout Identification) -> Void, s1STALLD: Bool = false)
            -> String?
        {
            var identification = Identification.stage1()
            change(&identification)
            var stream = identification.decode(STE(words: SIMD8(STEWords().words)), isE2H: false)
            stream.s1STALLD = s1STALLD
            return identification.violation(of: CD(words: SIMD8(cd.words)), in: stream)
        }
        #expect(violation(CDWords(a: false)) { _ in } == nil)
        #expect(violation(CDWords(a: false)) { $0.idr0.termModel = true } != nil)
        #expect(violation(CDWords(asid: 0x100)) { $0.idr0.asid16 = false } != nil)
        #expect(violation(CDWords(asid: 0xFF)) { $0.idr0.asid16 = false } == nil)
        #expect(violation(CDWords(s: false)) { $0.idr0.stallModel = 2 } != nil)
        #expect(violation(CDWords(s: true)) { $0.idr0.stallModel = 2 } == nil)
        #expect(violation(CDWords(s: true)) { $0.idr0.stallModel = 0 } == nil)
        #expect(violation(CDWords(s: true), { $0.idr0.stallModel = 0 }, s1STALLD: true) != nil)
        #expect(violation(CDWords()) { $0.idr5.gran4K = false } != nil)
        #expect(violation(CDWords(tg0: 1)) { $0.idr5.gran4K = false } == nil)
        #expect(violation(CDWords(endi: true)) { $0.idr0.ttendian = 0 } == nil)
        #expect(violation(CDWords(epd0: true, endi: true)) { _ in } == nil, "no table is walked")
    }

    // MARK: Substreams

    /// C_BAD_SUBSTREAMID of stream 6: bit 11, SSV, stays 0.
    static func badSubstream(_ substreamID: UInt64) -> [UInt64] {
        [0x0000_0006_0000_0008 | substreamID << 12, 0, 0, 0]
    }

    /// A stream with substreams whose CDs map address 0x4000 to a page with their index.
    static func substreams(
        _ guest: TestGuest,
        format: UInt64,
        log2: UInt64,
        dss: UInt64,
        indices: [UInt64],
        misalign: UInt64 = 0
    ) throws {
        let leafBits: UInt64 = format == 1 ? 6 : 10
        let isLinear = format == 0 || format == 3
        let entries: UInt64 = log2 > leafBits ? 1 << (log2 - leafBits) : 1
        let bytes: UInt64 = isLinear ? 64 << log2 : max(64, 8 * entries)
        let table = guest.allocate(bytes, alignment: bytes)
        for index in indices {
            let tables = GuestTables(guest)
            try tables.map(0x4000, to: try guest.page(holding: 0x1000 + index))
            let cd = CDWords(asid: index + 1, ttb0: tables.root).words
            guard !isLinear else {
                try guest.poke(table + index * 64, cd)
                continue
            }
            let l1 = table + (index >> leafBits) * 8
            if try guest.peek(l1) == 0 { try guest.poke(l1, guest.allocate(64 << leafBits) | 1) }
            let leaf = try guest.peek(l1) & ~0xFFF
            try guest.poke(leaf + (index & ((1 << leafBits) - 1)) * 64, cd)
        }
        try guest.setSTE(
            6,
            STEWords(s1Fmt: format, s1ContextPtr: table | misalign, s1CDMax: log2, s1DSS: dss)
        )
    }

    static func with(_ substream: UInt32) -> TransactionAttributes {
        TransactionAttributes(substreamID: SubstreamID(substream))
    }

    @Test(
        "CD tables of each shape",
        arguments: [
            (0, 4), (3, 4), (0, 10), (1, 4), (1, 6), (1, 7), (1, 10), (1, 12), (2, 5), (2, 10), (2, 11),
            (2, 14),
            (2, 20),
        ] as [(UInt64, UInt64)]
    )
    func contextTableShapes(_ format: UInt64, _ log2: UInt64) throws {
        let guest = try TestGuest()
        let last: UInt64 = (1 << log2) - 1
        let indices = Set([0, 1, 5, 63, 64, 65, 1023, 1024, last].filter { $0 <= last }).sorted()
        // Bits that the table's size implies are zero.
        let isLinear = format == 0 || format == 3
        let implied: UInt64 =
            isLinear ? (64 << log2) - 64 : format == 1 && log2 >= 10 ? (8 << (log2 - 6)) - 64 : 0
        try Self.substreams(guest, format: format, log2: log2, dss: 2, indices: indices, misalign: implied)
        for index in indices where index > 0 {
            #expect(guest.dmaRead(6, 0x4000, Self.with(UInt32(index))) == .ok(0x1000 + index))
        }
        #expect(guest.dmaRead(6, 0x4000) == .ok(0x1000), "S1DSS 2: CD 0")
        #expect(
            guest.dmaRead(6, 0x4000, Self.with(0)) == .event(0x06),
            "S1DSS 2: SubstreamID 0 is not to be used"
        )
        _ = try guest.takeEvents()
        for beyond in [last + 1, 0xF_FFFF, 0xFFFF_FFFF] as [UInt64] where beyond > last {
            #expect(guest.dmaRead(6, 0x4000, Self.with(UInt32(beyond))) == .event(0x08))
            #expect(try guest.takeEvents() == [Self.badSubstream(beyond & 0xF_FFFF)])
        }
    }

    @Test("S1DSS decides on traffic without a SubstreamID", arguments: 0...3 as ClosedRange<UInt64>)
    func defaultSubstream(_ dss: UInt64) throws {
        let guest = try TestGuest()
        try Self.substreams(guest, format: 0, log2: 3, dss: dss, indices: [0, 1])
        let page = try guest.page(holding: 99)
        switch dss {
        case 1:
            #expect(guest.dmaRead(6, page) == .ok(99), "bypassed")
            #expect(guest.dmaRead(6, 1 << 48) == .fAddrSize)
        case 2:
            #expect(guest.dmaRead(6, 0x4000) == .ok(0x1000))
        default:
            #expect(guest.dmaRead(6, 0x4000) == .event(0x06))
            #expect(try guest.takeEvents() == [eventWords(6, stream: 6)])
        }
        #expect(guest.dmaRead(6, 0x4000, Self.with(1)) == .ok(0x1001))
        _ = try guest.takeEvents()
        let zero = guest.dmaRead(6, 0x4000, Self.with(0))
        #expect(zero == (dss == 2 ? .event(0x06) : .ok(0x1000)))
        #expect(try guest.takeEvents() == (dss == 2 ? [eventWords(6, stream: 6, substream: 0)] : []))
    }

    @Test("a SubstreamID where the STE has none is C_BAD_SUBSTREAMID, recorded without SSV")
    func substreamWithoutSubstreams() throws {
        let guest = try TestGuest()
        try guest.attachTables(6).map(0x4000, to: try guest.page(holding: 1))
        #expect(guest.dmaRead(6, 0x4000, Self.with(0)) == .event(0x08))
        #expect(guest.dmaRead(6, 0x4000, Self.with(0x12345)) == .event(0x08))
        #expect(try guest.takeEvents() == [Self.badSubstream(0), Self.badSubstream(0x12345)])
    }

    @Test("level-1 CD descriptors: invalid, beyond OAS, and nobody there")
    func firstLevelContexts() throws {
        let guest = try TestGuest()
        let table = guest.allocate(64)
        try guest.setSTE(6, STEWords(s1Fmt: 1, s1ContextPtr: table, s1CDMax: 8, s1DSS: 2))
        #expect(guest.dmaRead(6, 0x4000, Self.with(0x41)) == .event(0x08), "V = 0")
        #expect(guest.dmaRead(6, 0x4000) == .event(0x08), "V = 0, by S1DSS")
        try guest.poke(table + 8, 1 << 48 | 1)
        #expect(guest.dmaRead(6, 0x4000, Self.with(0x41)) == .event(0x08), "L2Ptr beyond OAS")
        try guest.poke(table + 8, 0x10_0000_0000 | 1)
        #expect(guest.dmaWrite(6, 0x4000, 0, Self.with(0x41)) == .event(0x09), "nobody at the CD")
        try guest.setSTE(6, STEWords(s1Fmt: 1, s1ContextPtr: 0x20_0000_0000, s1CDMax: 8, s1DSS: 2))
        #expect(guest.dmaRead(6, 0x4000, Self.with(0xC1)) == .event(0x09), "nobody at the level-1 table")
        let expected: [[UInt64]] = [
            Self.badSubstream(0x41), Self.badSubstream(0), Self.badSubstream(0x41),
            eventWords(9, stream: 6, substream: 0x41, fetch: 0x10_0000_0040),
            eventWords(9, stream: 6, substream: 0xC1, fetch: 0x20_0000_0018),
        ]
        #expect(try guest.takeEvents() == expected)
    }

    @Test("nobody at a single CD: F_CD_FETCH with its address in the fourth word")
    func singleContextAbort() throws {
        let guest = try TestGuest()
        try guest.setSTE(6, STEWords(s1ContextPtr: 0xFFFF_FFFF_FFC0))
        #expect(guest.dmaRead(6, 0x4000) == .event(0x09))
        #expect(try guest.takeEvents() == [eventWords(9, stream: 6, fetch: 0xFFFF_FFFF_FFC0)])
    }
}
