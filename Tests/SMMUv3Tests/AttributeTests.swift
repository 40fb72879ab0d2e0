// Memory types, shareability and hints of what goes to the bus: every source, and how stages combine.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Memory attributes")
struct AttributeTests {
    private func translation(
        _ guest: TestGuest,
        _ address: UInt64,
        _ kind: TransactionKind = .read,
        _ attributes: TransactionAttributes = .plain
    ) throws -> Translation {
        let transaction = Transaction(
            streamID: StreamID(6),
            attributes: attributes,
            kind: kind,
            address: IOVirtualAddress(address)
        )
        guard case .translated(let translation) = guest.smmu.probe(transaction) else {
            Issue.record("0x\(String(address, radix: 16)) is not translated")
            throw NotTranslated()
        }
        return translation
    }
    private struct NotTranslated: Error {}

    /// MemAttr[3:0] 0...15 of stage 2 on Normal Write-Back, as MAIR bytes: outer nibble, inner nibble.
    static let byMemAttr: [UInt8] = [
        0x00, 0x04, 0x08, 0x0C, 0x00, 0x44, 0x4B, 0x4F, 0x00, 0xB4, 0xBB, 0xBF, 0x00, 0xF4, 0xFB, 0xFF,
    ]
    /// The same with S2FWB: bit 3 says nothing.
    static let byForcedMemAttr: [UInt8] = [0x00, 0x04, 0x08, 0x0C, 0x00, 0x44, 0xFF, 0xFF]

    @Test(
        "stage 2 alone: each MemAttr on what the bus gives, with and without S2FWB",
        arguments: [false, true]
    )
    func stage2(_ fwb: Bool) throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try guest.setSTE(
            6,
            STEWords(
                config: 0b110,
                s1DSS: 0,
                extra: {
                    var words = Stage2Words(ttb: tables.root, fwb: fwb).words
                    words[1] |= 1 << 44  // SHCFG: incoming.
                    return words
                }()
            )
        )
        for memAttr in 0..<16 as Range<UInt64> {
            let address = memAttr << 12
            try tables.map(address, to: 0x1000, Leaf2.read | Leaf2.af | memAttr << 2 | 3 << 8)
            let attributes = try translation(guest, address).attributes
            let expected = fwb ? Self.byForcedMemAttr[Int(memAttr & 7)] : Self.byMemAttr[Int(memAttr)]
            #expect(attributes.mair == expected, "MemAttr \(memAttr)")
            let isOuter = expected < 0x10 || expected == 0x44
            #expect(attributes.shareability == (isOuter ? 2 : 3), "MemAttr \(memAttr)")
        }
    }

    /// Rows: stage 1's MAIR byte.
    ///
    /// Columns: MemAttr nGnRE, NC, WT, WB; with FWB nGnRE, NC, WB, stage 1's.
    static let combinations: [(mair: UInt64, plain: [UInt8], forced: [UInt8])] = [
        (0x00, [0x00, 0x00, 0x00, 0x00], [0x00, 0x00, 0xFF, 0x00]),
        (0x0C, [0x04, 0x0C, 0x0C, 0x0C], [0x04, 0x0C, 0xFF, 0x0C]),
        (0x44, [0x04, 0x44, 0x44, 0x44], [0x04, 0x44, 0xFF, 0x44]),
        (0xBB, [0x04, 0x44, 0xBB, 0xBB], [0x04, 0x44, 0xFF, 0xBB]),
        (0xFF, [0x04, 0x44, 0xBB, 0xFF], [0x04, 0x44, 0xFF, 0xFF]),
        // Write-Back without write-allocate, transient: hints stay through stage 2.
        (0x66, [0x04, 0x44, 0x22, 0x66], [0x04, 0x44, 0x66, 0x66]),
    ]

    @Test("both stages: the stronger type, and what S2FWB forces", arguments: [false, true])
    func combined(_ fwb: Bool) throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3) {
            $0.fwb = fwb
        } cd: { cd in
            cd.mair = Self.combinations.enumerated().reduce(0) {
                $0 | $1.element.mair << UInt64($1.offset * 8)
            }
        }
        // With FWB the tables of stage 1 and the CD keep MemAttr 0b1111: bit 3 says nothing, 0b111 is fine.
        for (column, memAttr) in (fwb ? [1, 5, 6, 7] : [1, 5, 10, 15] as [UInt64]).enumerated() {
            let page = guest.allocate(0x1000)
            let entry = try nested.stage2.entry(nested.ipa(page))
            try guest.poke(entry, try guest.peek(entry) & ~0x3C | memAttr << 2)
            for (row, combination) in Self.combinations.enumerated() {
                let address = 0x10_0000 + UInt64(row * 4 + column) << 12
                try nested.map(address, toPhysical: page, Leaf.readWrite | UInt64(row) << 2)
                let expected = (fwb ? combination.forced : combination.plain)[column]
                let mair = try translation(guest, address).attributes.mair
                #expect(mair == expected, "MAIR \(combination.mair), MemAttr \(memAttr)")
                // The TLB keeps the same.
                let controls = guest.smmu.currentControls()
                var observer = NoObserver()
                let transaction = Transaction(
                    streamID: StreamID(6),
                    attributes: .plain,
                    kind: .read,
                    address: IOVirtualAddress(address)
                )
                for isFromTLB in [false, true] {
                    let cached = try guest.smmu.translate(transaction, controls, .cached, &observer)
                    #expect(cached.attributes.mair == expected)
                    #expect(cached.isFromTLB == isFromTLB)
                }
            }
        }
    }

    @Test("shareability: Outer before Inner before Non-shareable; 0b01 counts as Non-shareable")
    func shareability() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3) { _ in
        } cd: {
            $0.mair = 0xFF
        }
        let strongest: [[UInt8]] = [[0, 0, 2, 3], [0, 0, 2, 3], [2, 2, 2, 2], [3, 3, 2, 3]]
        for second in 0..<4 as Range<UInt64> {
            let page = guest.allocate(0x1000)
            let entry = try nested.stage2.entry(nested.ipa(page))
            try guest.poke(entry, try guest.peek(entry) | second << 8)
            for first in 0..<4 as Range<UInt64> {
                let address = (first * 4 + second) << 12
                try nested.map(address, toPhysical: page, Leaf.readWrite | first << 8)
                let found = try translation(guest, address).attributes.shareability
                #expect(found == strongest[Int(first)][Int(second)])
            }
        }
    }

    /// MTCFG, MemAttr, ALLOCCFG, SHCFG; what goes to the bus.
    static let overrides: [(mt: UInt64?, alloc: UInt64, sh: UInt64, mair: UInt8, shareability: UInt8)] = [
        (nil, 0, 1, 0xFF, 0), (nil, 0, 0, 0xFF, 0), (nil, 0, 2, 0xFF, 2), (nil, 0, 3, 0xFF, 3),
        (1, 0, 1, 0x04, 2), (5, 0, 3, 0x44, 2), (10, 0, 3, 0xBB, 3), (4, 0, 1, 0x00, 2),
        // ALLOCCFG 0b1RWT: R and W allocate, T transient; what allocates nothing is not transient.
        (nil, 0b1100, 1, 0xEE, 0), (nil, 0b1010, 1, 0xDD, 0), (nil, 0b1111, 1, 0x77, 0),
        (nil, 0b1001, 1, 0xCC, 0), (nil, 0b0111, 1, 0xFF, 0), (1, 0b1111, 1, 0x04, 2),
    ]

    @Test("overrides by the STE and by GBPA replace what the bus gives, where IDR1 says that they work")
    func overrides() throws {
        for (mt, alloc, sh, mair, shareability) in Self.overrides {
            let guest = try TestGuest.full()
            var ste = STEWords.bypass
            ste.extra[1] = field(mt ?? 0, 32) | bit(mt != nil, 36) | field(alloc, 37) | field(sh, 44)
            try guest.setSTE(6, ste)
            let expected = MemoryAttributes(mair: mair, shareability: shareability)
            #expect(try translation(guest, 0x1000).attributes == expected)
            try guest.write32(0x20, 0b1100)
            let gbpa = field(mt ?? 0, 0) | bit(mt != nil, 4) | field(alloc, 8) | field(sh, 12)
            try guest.write32(0x44, UInt32(gbpa) | 1 << 31)
            #expect(try translation(guest, 0x1000).attributes == expected)
        }
        let guest = try TestGuest()
        var ste = STEWords.bypass
        ste.extra[1] = field(1, 32) | bit(true, 36)
        try guest.setSTE(6, ste)
        #expect(try translation(guest, 0x1000).attributes == MemoryAttributes(mair: 0xFF, shareability: 0))
    }

    @Test("stage 1 takes the type from MAIR, and of the incoming attributes the hints, if they are cacheable")
    func hints() throws {
        // ALLOCCFG or MemAttr of the STE, then MAIR's byte and what comes of it.
        let cases: [(mt: UInt64?, alloc: UInt64, mair: UInt64, expected: UInt8)] = [
            (nil, 0, 0xFF, 0xFF), (nil, 0b1100, 0xFF, 0xEE), (nil, 0b1110, 0xDD, 0xDD),
            (nil, 0b1100, 0xDD, 0xCC), (nil, 0b1111, 0xBB, 0x33), (nil, 0b1100, 0x44, 0x44),
            (nil, 0b1100, 0x04, 0x04), (5, 0b1100, 0xFF, 0xFF), (1, 0b1100, 0xFF, 0xFF),
            // Reserved bytes: Device of bits [3:2]; a low nibble of 0 is Write-Through transient.
            (nil, 0, 0x07, 0x04), (nil, 0, 0xF0, 0xF3),
        ]
        for (mt, alloc, mair, expected) in cases {
            let guest = try TestGuest.full()
            let tables = GuestTables(guest)
            try tables.map(0x5000, to: TestGuest.ram)
            var ste = STEWords()
            ste.extra[1] = field(mt ?? 0, 32) | bit(mt != nil, 36) | field(alloc, 37) | field(1, 44)
            try guest.attach(6, CDWords(ttb0: tables.root, mair: mair), ste)
            #expect(try translation(guest, 0x5000).attributes.mair == expected, "MAIR \(mair)")
        }
    }

    @Test("PRIVCFG and INSTCFG, of the STE and of GBPA, are in the answer")
    func access() throws {
        let guest = try TestGuest.full()
        for (priv, inst) in [(0, 0), (2, 2), (3, 3)] as [(UInt64, UInt64)] {
            let expected = priv == 3 ? [true, true] : priv == 2 ? [false, false] : [true, true]
            try guest.setSTE(6, STEWords(config: 0b100, privCfg: priv, instCfg: inst))
            let all = TransactionAttributes(isPrivileged: true, isInstruction: true)
            let read = try translation(guest, 0x1000, .read, all)
            #expect([read.isPrivileged, read.isInstruction] == expected)
            let write = try translation(guest, 0x1000, .write, all)
            #expect([write.isPrivileged, write.isInstruction] == [expected[0], false], "writes are data")
            try guest.write32(0x20, 0b1100)
            try guest.write32(0x44, UInt32(priv << 16 | inst << 18 | 1 << 31))
            let bypassed = try translation(guest, 0x1000, .read, all)
            #expect([bypassed.isPrivileged, bypassed.isInstruction] == expected)
            try guest.write32(0x20, 0b1101)
        }
    }
}
