// Range invalidation on the model: of the entries around a range those that it covers go, and no other.

import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("Range invalidation")
struct RangeInvalidationTests {
    /// What names a range.
    enum Kind: UInt64, CaseIterable, Sendable, CustomTestStringConvertible {
        case nhVA = 0x12
        case nhVAA = 0x13
        case el2VA = 0x22
        case el2VAA = 0x23
        case s2IPA = 0x2A
        var testDescription: String { "opcode 0x\(String(rawValue, radix: 16))" }
    }

    /// An entry of the TLB: a page or a block.
    struct Entry {
        let first: UInt64
        let level: Int
        let byteCount: UInt64
        var last: UInt64 { first + byteCount - 1 }

        func overlaps(_ other: Entry) -> Bool { first <= other.last && other.first <= last }
    }

    /// A stream 1 with 48-bit tables of one granule, of the stage and world that the command is for.
    struct Space {
        static let output = TestGuest.ram
        let guest: TestGuest
        let granule: TestGranule
        let kind: Kind
        let tables: StageTables

        init(_ kind: Kind, _ granule: TestGranule) throws {
            (self.kind, self.granule) = (kind, granule)
            guest = try TestGuest.full()
            let level = granule.bits == 12 ? 0 : kind == .s2IPA ? 1 : granule.startLevel(16)
            tables = StageTables(guest, granule: Int(granule.bits), startLevel: level, inputBits: 48)
            switch kind {
            case .nhVA, .nhVAA:
                try guest.attach(
                    1,
                    CDWords(t0SZ: 16, tg0: granule.tg0, asid: 3, ttb0: tables.root),
                    STEWords(s2VMID: 7)
                )
            case .el2VA, .el2VAA:
                try guest.attach(
                    1,
                    CDWords(t0SZ: 16, tg0: granule.tg0, ttb0: tables.root),
                    STEWords(strw: 2)
                )
            case .s2IPA:
                var ste = STEWords(config: 0b110, s2VMID: 7)
                ste.extra = Stage2Words(t0SZ: 16, sl0: 2, tg: granule.tg0, ttb: tables.root).words
                try guest.setSTE(1, ste)
            }
        }

        /// Has the TLB hold an entry that memory has not any more.
        func cache(_ entry: Entry) throws {
            let flags = kind == .s2IPA ? Leaf2.readWrite : Leaf.readWrite
            try tables.map(entry.first, to: Self.output, level: entry.level, flags)
            #expect(isCached(entry))
            try tables.unmap(entry.first, level: entry.level)
            #expect(isCached(entry))
        }

        func isCached(_ entry: Entry) -> Bool {
            let outcome = guest.dmaRead(1, entry.first)
            if case .ok = outcome { return true }
            #expect(outcome == .fTranslation)
            return false
        }

        func invalidate(_ first: UInt64, num: UInt64, scale: UInt64, ttl: UInt64) throws {
            // VMID 7 and ASID 3 where the command has them.
            let tag: UInt64 = kind == .nhVA ? 0x0003_0007 << 32 : kind == .el2VA ? 0 : 0x0000_0007 << 32
            try guest.sync(
                RawCommand(
                    low: kind.rawValue | num << 12 | scale << 20 | (kind == .el2VAA ? 0 : tag),
                    high: first | granule.tlbi << 10 | ttl << 8 | 1
                )
            )
        }
    }

    /// Entries at and around the ends of a range, none over another.
    private func entries(_ range: Entry, _ granule: TestGranule, _ random: inout SplitMix) -> [Entry] {
        var result: [Entry] = []
        let ends = [
            range.first, range.last, range.first &- 1, range.last &+ 1, range.first / 2 + range.last / 2,
        ]
        for round in 0..<14 {
            guard let level = granule.leafLevels.randomElement(using: &random) else { continue }
            let byteCount: UInt64 = 1 << granule.levelBits(level)
            let end = ends[round % ends.count]
            let address = round < 10 ? end : end &+ (random.next() % 5) &* byteCount &- 2 &* byteCount
            let entry = Entry(
                first: address & ~(byteCount - 1) & 0x7FFF_FFFF_FFFF,
                level: level,
                byteCount: byteCount
            )
            // A page's table lies where a block's descriptor would.
            if !result.contains(where: { $0.overlaps(entry) }) { result.append(entry) }
        }
        return result
    }

    @Test(
        "what a range of a level covers is gone, and what it does not cover stays",
        arguments: Kind.allCases,
        TestGranule.all
    )
    func covered(_ kind: Kind, _ granule: TestGranule) throws {
        var (gone, kept) = (0, 0)
        for seed in 1...12 as ClosedRange<UInt64> {
            var random = SplitMix(seed: seed &* 104_729 &+ kind.rawValue &+ granule.bits)
            // TTL 1 is reserved with 16 KiB, and there are no leaves of 64 KiB at level 1.
            let ttl = granule.bits == 12 ? random.next() % 4 : [0, 2, 3][Int(random.next() % 3)]
            let unit = ttl == 0 ? granule.bits : granule.levelBits(Int(ttl))
            let num = random.next() % 32
            // A range of blocks is as long as one at least.
            let scale = min(unit - granule.bits + random.next() % 5, 31)
            guard num > 0 || scale > 0 || ttl > 0 else { continue }
            let first = (random.next() & 0x3FFF_FFFF_FFFF) & ~((1 << unit) - 1)
            let range = Entry(first: first, level: 0, byteCount: ((num + 1) << scale) << granule.bits)
            let space = try Space(kind, granule)
            let entries = entries(range, granule, &random)
            for entry in entries { try space.cache(entry) }
            try space.invalidate(first, num: num, scale: scale, ttl: ttl)
            for entry in entries {
                let isMeant = entry.overlaps(range) && (ttl == 0 || UInt64(entry.level) == ttl)
                #expect(
                    space.isCached(entry) != isMeant,
                    "seed \(seed): level \(entry.level) at \(String(entry.first, radix: 16)), NUM \(num) SCALE \(scale)"
                )
                if isMeant { gone += 1 } else { kept += 1 }
            }
        }
        #expect(gone > 0 && kept > 0, "both happen")
    }

    @Test(
        "SCALE 31 and NUM 31 do not wrap: everything from there to the top, and nothing below",
        arguments: Kind.allCases
    )
    func largest(_ kind: Kind) throws {
        let space = try Space(kind, .kib4)
        let entries = [0x1000, 0x5000, 0x4000_0000, 0x7FFF_FFFF_F000].map {
            Entry(first: $0, level: 3, byteCount: 0x1000)
        }
        for entry in entries { try space.cache(entry) }
        try space.invalidate(0x5000, num: 31, scale: 31, ttl: 0)
        #expect(entries.map(space.isCached) == [true, false, false, false])
    }
}
