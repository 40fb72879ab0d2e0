// Stage 2 alone: shapes, legality, faults, permissions.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// One row of the specification's table of consistent S2SL0 and S2T0SZ (IHI 0070, 5.2).
struct Stage2Shape: Sendable, CustomTestStringConvertible {
    let granule: Int
    let tg: UInt64
    let sl0: UInt64
    var sl0Bit2 = false
    let startLevel: Int
    /// S2T0SZ with 48-bit addresses; empty is none.
    let small: [UInt64]
    /// S2T0SZ with S2DS (for 64 KiB: with 52-bit addresses).
    let large: [UInt64]

    var testDescription: String { "\(1 << (granule - 10)) KiB from level \(startLevel)" }

    private static func row(
        _ granule: Int,
        _ sl0: UInt64,
        _ level: Int,
        _ small: ClosedRange<UInt64>?,
        _ large: ClosedRange<UInt64>,
        sl0Bit2: Bool = false
    ) -> Stage2Shape {
        Stage2Shape(
            granule: granule,
            tg: granule == 12 ? 0 : granule == 16 ? 1 : 2,
            sl0: sl0,
            sl0Bit2: sl0Bit2,
            startLevel: level,
            small: small.map { Array($0) } ?? [],
            large: Array(large)
        )
    }

    /// With small translation tables (STT).
    static let all = [
        row(12, 0, -1, nil, 12...15, sl0Bit2: true),
        row(12, 2, 0, 16...24, 12...24), row(12, 1, 1, 21...33, 21...33),
        row(12, 0, 2, 30...42, 30...42), row(12, 3, 3, 39...48, 39...48),
        row(14, 3, 0, nil, 12...16), row(14, 2, 1, 16...27, 13...27),
        row(14, 1, 2, 24...38, 24...38), row(14, 0, 3, 35...48, 35...48),
        row(16, 2, 1, 16...21, 12...21), row(16, 1, 2, 18...34, 18...34), row(16, 0, 3, 31...47, 31...47),
        // S2SL0 3 of the 64 KiB granule is reserved.
        Stage2Shape(granule: 16, tg: 1, sl0: 3, startLevel: 0, small: [], large: []),
    ]
}

@Suite("Stage 2")
struct Stage2Tests {
    static func ste(_ words: Stage2Words, config: UInt64 = 0b110, vmid: UInt64 = 7) -> STEWords {
        STEWords(config: config, s2VMID: vmid, extra: words.words)
    }

    private func isLegal(_ identification: Identification, _ words: Stage2Words) -> Bool {
        identification.violation(of: STE(words: SIMD8(Self.ste(words).words))) == nil
    }

    @Test(
        "S2T0SZ and S2SL0: what the specification's table has is legal, the rest is not",
        arguments: Stage2Shape.all
    )
    func shapes(_ shape: Stage2Shape) {
        let small = Identification.full()
        var withoutSTT = Identification.full()
        withoutSTT.idr3.stt = false
        let large = Identification.full(outputAddressBits: 52)
        for size in 0..<64 as Range<UInt64> {
            var words = Stage2Words(t0SZ: size, sl0: shape.sl0, tg: shape.tg)
            if !shape.sl0Bit2 {
                #expect(isLegal(small, words) == shape.small.contains(size), "S2T0SZ \(size)")
                let isShort = size <= 39 && !(shape.granule == 12 && shape.startLevel == 3)
                #expect(
                    isLegal(withoutSTT, words) == (shape.small.contains(size) && isShort),
                    "S2T0SZ \(size) without STT"
                )
            }
            words.ds = shape.granule != 16
            words.sl0Bit2 = shape.sl0Bit2
            #expect(isLegal(large, words) == shape.large.contains(size), "S2T0SZ \(size) with 52 bits")
        }
    }

    @Test(
        "the first and the last page of every shape, through each concatenated table",
        arguments: Stage2Shape.all
    )
    func walks(_ shape: Stage2Shape) throws {
        for (sizes, isLarge) in [(shape.small, false), (shape.large, true)] {
            for size in Set([sizes.first, sizes.last].compactMap(\.self)) {
                let guest = try TestGuest.full(bits: isLarge ? 52 : 48)
                let bits = 64 - Int(size)
                let tables = StageTables(
                    guest,
                    granule: shape.granule,
                    startLevel: shape.startLevel,
                    inputBits: bits
                )
                tables.ds = isLarge && shape.granule != 16
                tables.has52Bits = isLarge
                let words = Stage2Words(
                    t0SZ: size,
                    sl0: shape.sl0,
                    tg: shape.tg,
                    ps: 6,
                    sl0Bit2: shape.sl0Bit2,
                    ds: tables.ds,
                    ttb: tables.root
                )
                try guest.setSTE(6, Self.ste(words))
                let concatenated = max(0, tables.firstBits - (shape.granule - 3))
                let step: UInt64 = 1 << UInt64(bits - concatenated)
                let last: UInt64 = (1 << UInt64(bits)) - (1 << UInt64(shape.granule))
                let addresses = Set((0..<UInt64(1 << concatenated)).map { $0 * step } + [last])
                for address in addresses {
                    try tables.map(
                        address,
                        to: try guest.page(holding: address | 1, 1 << UInt64(shape.granule))
                    )
                }
                for address in addresses {
                    #expect(guest.dmaRead(6, address) == .ok(address | 1), "S2T0SZ \(size)")
                }
                let beyond: UInt64 = 1 << UInt64(bits)
                let limit = guest.smmu.identification.outputAddressBits
                // Beyond IAS is stage 1's fault, whichever stage is on.
                #expect(
                    guest.dmaRead(6, beyond) == (bits < limit ? .fTranslation : .fAddrSize),
                    "S2T0SZ \(size)"
                )
            }
        }
    }

    /// A change of an STE that is legal, or not.
    struct Variant: Sendable {
        let name: String
        let isIllegal: Bool
        let change: @Sendable (inout STEWords, inout Stage2Words) -> Void
    }

    private static func illegal(
        _ name: String,
        _ change: @escaping @Sendable (inout STEWords, inout Stage2Words) -> Void
    ) -> Variant { Variant(name: name, isIllegal: true, change: change) }

    private static func legal(
        _ name: String,
        _ change: @escaping @Sendable (inout STEWords, inout Stage2Words) -> Void
    ) -> Variant { Variant(name: name, isIllegal: false, change: change) }

    static let variants: [Variant] = [
        illegal("S2AA64 0, S2SL0 2") { _, words in (words.aa64, words.sl0) = (false, 2) },
        illegal("S2TG 3") { _, words in words.tg = 3 },
        illegal("S2TTB beyond S2PS") { _, words in
            words.ps = 0
            words.ttb = 1 << 32
        },
        illegal("S2T0SZ too small") { _, words in
            words.t0SZ = 15
            words.sl0 = 2
        },
        illegal("S2SL0 inconsistent") { _, words in words.sl0 = 0 },
        illegal("nested: S1CDMax") { ste, _ in
            ste.config = 0b111
            ste.s1CDMax = 21
        },
        illegal("nested: S1ContextPtr beyond IAS") { ste, _ in
            ste.config = 0b111
            ste.s1ContextPtr = 1 << 48
        },
        legal("as it is") { _, _ in },
        legal("nested: S1STALLD") { ste, _ in
            ste.config = 0b111
            ste.s1STALLD = true
        },
        legal("stage-1 fields are ignored") { ste, _ in
            ste.s1CDMax = 21
            ste.s1STALLD = true
            ste.s1ContextPtr = 1 << 50
            ste.s1Fmt = 1
            ste.strw = 3
        },
        legal("S2HA and S2HD") { _, words in
            words.ha = true
            words.hd = true
        },
        legal("S2HD alone is off") { _, words in words.hd = true },
        legal("S2ENDI") { _, words in words.endi = true },
        legal("S2PS above OAS") { _, words in words.ps = 7 },
        legal("a 16-bit VMID") { ste, _ in ste.s2VMID = 0xFFFF },
        legal("EATS without ATS") { ste, _ in ste.eats = 3 },
    ]

    @Test("ILLEGAL stage-2 fields, and those that are not")
    func legality() throws {
        let guest = try TestGuest.full()
        for variant in Self.variants {
            let name = variant.name
            var (ste, words) = (Self.ste(Stage2Words()), Stage2Words(ttb: 0x8000_0000))
            variant.change(&ste, &words)
            ste.extra = words.words
            try guest.setSTE(6, ste)
            let outcome = guest.dmaRead(6, 0x1000)
            #expect((outcome == .event(0x04)) == variant.isIllegal, "\(name): \(outcome)")
            if variant.isIllegal { #expect(try guest.takeEvents() == [eventWords(4, stream: 6)], "\(name)") }
            _ = try guest.takeEvents()
        }
    }

    @Test("profiles: what the identification takes away makes stage-2 STEs illegal")
    func profiles() {
        func violation(_ words: Stage2Words, vmid: UInt64 = 7, _ change: (inout Identification) -> Void)
            -> Bool
        {
            var identification = Identification.full()
            change(&identification)
            return identification.violation(of: STE(words: SIMD8(Self.ste(words, vmid: vmid).words))) != nil
        }
        #expect(violation(Stage2Words()) { $0.idr0.s2P = false })
        #expect(!violation(Stage2Words()) { _ in })
        #expect(violation(Stage2Words(ha: true)) { $0.idr0.httu = 0 })
        #expect(violation(Stage2Words(hd: true, ha: true)) { $0.idr0.httu = 1 })
        #expect(!violation(Stage2Words(ha: true)) { $0.idr0.httu = 1 })
        #expect(violation(Stage2Words(), vmid: 0x100) { $0.idr0.vmid16 = false })
        #expect(!violation(Stage2Words(), vmid: 0xFF) { $0.idr0.vmid16 = false })
        #expect(violation(Stage2Words(endi: true)) { $0.idr0.ttendian = 2 })
        #expect(violation(Stage2Words()) { $0.idr0.ttendian = 3 })
        #expect(violation(Stage2Words()) { $0.idr5.gran4K = false })
        #expect(violation(Stage2Words(s: true)) { $0.idr0.stallModel = 1 })
        #expect(violation(Stage2Words()) { $0.idr0.stallModel = 2 })
        #expect(!violation(Stage2Words(s: true)) { $0.idr0.stallModel = 2 })
        #expect(!violation(Stage2Words(s: true)) { $0.idr0.stallModel = 0 })
    }

    @Test("S2VMID counts in stage-1-only streams too, and is ignored in bypass")
    func vmidOfOtherStreams() {
        var identification = Identification.full()
        identification.idr0.vmid16 = false
        let nsEL1 = STE(words: SIMD8(STEWords(s2VMID: 0x100).words))
        #expect(identification.violation(of: nsEL1) != nil)
        let nsEL2 = STE(words: SIMD8(STEWords(strw: 2, s2VMID: 0x100).words))
        #expect(identification.violation(of: nsEL2) == nil)
        let bypass = STE(words: SIMD8(STEWords(config: 0b100, s2VMID: 0x100).words))
        #expect(identification.violation(of: bypass) == nil)
        identification.idr0.s2P = false
        #expect(identification.violation(of: nsEL1) == nil)
    }

    @Test("events of stage 2 alone, to the bit; S2R decides whether they are recorded")
    func events() throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        let page = try guest.page(holding: 42)
        try tables.map(0x1_0000_1000, to: page, Leaf2.readWrite & ~Leaf2.af)
        try tables.map(0x1_0000_2000, to: page, Leaf2.readWrite & ~Leaf2.write)
        try tables.map(0x1_0000_3000, to: 1 << 40)
        try tables.poke(try tables.entry(0x1_0020_0000, level: 2), 0x7000_0000 | 3)
        for records in [true, false] {
            try guest.setSTE(6, Self.ste(Stage2Words(ps: 2, r: records, ttb: tables.root)))
            let privileged = TransactionAttributes(isPrivileged: true, isInstruction: true)
            #expect(guest.dmaRead(6, 0x1_0000_0008, privileged) == .fTranslation)
            #expect(guest.dmaWrite(6, 0x80_0000_0010) == .fTranslation, "inside the 40 bits")
            #expect(guest.dmaRead(6, 0x1_0000_1238) == .fAccess)
            #expect(guest.dmaWrite(6, 0x1_0000_2238) == .fPermission)
            #expect(guest.dmaRead(6, 0x1_0000_2000) == .ok(42))
            #expect(guest.dmaRead(6, 0x1_0000_3FF8) == .fAddrSize)
            #expect(guest.dmaRead(6, 0x1_0020_1008) == .event(0x0B))
            func words(_ number: UInt64, _ isRead: Bool, _ input: UInt64) -> [UInt64] {
                eventWords(
                    number,
                    stream: 6,
                    isRead: isRead,
                    eventClass: 2,
                    isStage2: true,
                    input: input,
                    fetch: input & ~0xFFF
                )
            }
            let abort = eventWords(
                0x0B,
                stream: 6,
                isRead: true,
                eventClass: 2,
                isStage2: true,
                input: 0x1_0020_1008,
                fetch: 0x7000_0008
            )
            let first = eventWords(
                0x10,
                stream: 6,
                isRead: true,
                isPrivileged: true,
                isInstruction: true,
                eventClass: 2,
                isStage2: true,
                input: 0x1_0000_0008,
                fetch: 0x1_0000_0000
            )
            let faults = [
                first, words(0x10, false, 0x80_0000_0010), words(0x12, true, 0x1_0000_1238),
                words(0x13, false, 0x1_0000_2238), words(0x11, true, 0x1_0000_3FF8),
            ]
            #expect(try guest.takeEvents() == (records ? faults : []) + [abort])
        }
    }

    @Test("an address beyond IAS is a stage-1 F_ADDR_SIZE, recorded whatever S2R says")
    func beyondIAS() throws {
        let guest = try TestGuest.full()
        try guest.setSTE(6, Self.ste(Stage2Words(r: false)))
        #expect(guest.dmaWrite(6, 1 << 48) == .fAddrSize)
        #expect(
            try guest.takeEvents() == [
                eventWords(0x11, stream: 6, isRead: false, eventClass: 2, input: 1 << 48)
            ]
        )
    }

    @Test("a SubstreamID without stage 1 is C_BAD_SUBSTREAMID")
    func substream() throws {
        let guest = try TestGuest.full()
        try guest.setSTE(6, Self.ste(Stage2Words()))
        let attributes = TransactionAttributes(substreamID: SubstreamID(3))
        #expect(guest.dmaRead(6, 0x1000, attributes) == .event(0x08))
    }

    @Test("S2AP for data, XN[1:0] for execution: at each privilege", arguments: 0..<16 as Range<UInt64>)
    func permissions(_ bits: UInt64) throws {
        let (s2AP, xn) = (bits & 3, bits >> 2)
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try tables.map(0, to: try guest.page(holding: 1), Leaf2.af | Leaf2.normal | s2AP << 6 | xn << 53)
        try guest.setSTE(6, Self.ste(Stage2Words(ttb: tables.root)))
        // XN: 0 both may, 1 unprivileged alone, 2 nobody, 3 privileged alone.
        for isPrivileged in [false, true] {
            let data = TransactionAttributes(isPrivileged: isPrivileged)
            let fetch = TransactionAttributes(isPrivileged: isPrivileged, isInstruction: true)
            #expect((guest.dmaRead(6, 0, data) == .ok(1)) == (s2AP & 1 == 1))
            #expect((guest.dmaRead(6, 0, fetch) == .ok(1)) == (xn == 0 || xn == (isPrivileged ? 3 : 1)))
            #expect((guest.dmaWrite(6, 0, 1, data) == .ok(0)) == (s2AP & 2 == 2))
            #expect((guest.dmaWrite(6, 0, 1, fetch) == .ok(0)) == (s2AP & 2 == 2), "writes are data")
        }
    }

    @Test("S2AFFD: a clear access flag does not fault")
    func accessFlag() throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try tables.map(0, to: try guest.page(holding: 5), Leaf2.readWrite & ~Leaf2.af)
        try guest.setSTE(6, Self.ste(Stage2Words(affd: true, ttb: tables.root)))
        #expect(guest.dmaRead(6, 0) == .ok(5))
    }
}
