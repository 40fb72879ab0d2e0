// The four words of a TLB entry: what goes in comes out, and golden words that were worked out by hand.

import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("TLB entries")
struct TLBEntryTests {
    private func withEntry(_ body: (TLBEntry) throws -> Void) rethrows {
        let words = UnsafeMutablePointer<UInt64>.allocate(capacity: TLBEntry.wordCount)
        words.initialize(repeating: 0, count: TLBEntry.wordCount)
        defer { words.deallocate() }
        try body(TLBEntry(words: words))
    }

    private let golden = CachedTranslation(
        inputBase: 0xFFFF_8000_1234_5000,
        outputBase: 0x000F_EDCB_A987_6000,
        intermediateBase: 0x0000_0011_2233_4000,
        log2Bytes: 12,
        firstStageLog2Bytes: 21,
        level: 2,
        granule: .kib16,
        isGlobal: true,
        tag: RegimeTag(regime: .nsEL2E2H, vmid: 0xABCD, asid: 0x1234, aset: true),
        stage1Permissions: [.unprivilegedRead, .privilegedWrite],
        stage2Permissions: .all,
        isWritableClean: true,
        memoryAttribute: 0x5A,
        shareability: 3
    )

    @Test("golden words, put together from the table of the type by hand")
    func words() {
        withEntry { entry in
            entry.write(golden)
            #expect(entry.words[0] == 0xFFFF_8000_1234_5FD5)  // 0b111111 and 21.
            // Valid, 12 << 1, 3 << 7, global, ASET; ASID << 11; VMID << 27; the first version.
            #expect(entry.words[1] == 0x0000_0D5E_6891_A799)
            // Stage-1 permissions 0b010001 << 52, shareability 3 << 58; level 2 << 8, granule 1 << 10, bit 7.
            #expect(entry.words[2] == 0x0D1F_EDCB_A987_6691)
            #expect(entry.words[3] == 0x0000_0011_2233_405A)
        }
    }

    @Test("whatever is written comes out again, and nothing once it is cleared")
    func roundTrip() {
        var random = SplitMix(seed: 61)
        withEntry { entry in
            for _ in 0..<2000 {
                func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
                var translation = golden
                translation.inputBase = random.next() & ~0xFFF
                translation.outputBase = random.next() & 0x000F_FFFF_FFFF_F000
                translation.intermediateBase = random.next() & 0x000F_FFFF_FFFF_F000
                translation.log2Bytes = UInt8(12 + below(40))
                translation.firstStageLog2Bytes = UInt8(12 + below(40))
                translation.level = UInt8(below(4))
                translation.granule = Granule.allCases[below(3)]
                translation.isGlobal = below(2) == 0
                translation.tag = RegimeTag(
                    regime: [.nsEL1, .nsEL1Stage2, .nsEL2, .nsEL2E2H][below(4)],
                    vmid: UInt16(truncatingIfNeeded: random.next()),
                    asid: UInt16(truncatingIfNeeded: random.next()),
                    aset: below(2) == 0
                )
                translation.stage1Permissions = Permissions(rawValue: UInt8(below(64)))
                translation.stage2Permissions = Permissions(rawValue: UInt8(below(64)))
                translation.isWritableClean = below(2) == 0
                translation.memoryAttribute = UInt8(below(256))
                translation.shareability = UInt8(below(4))
                entry.write(translation)
                #expect(entry.current == translation)

                let key = TLBKey(translation.tag)
                let log2 = UInt64(translation.log2Bytes)
                let sought = translation.isGlobal ? key.global(log2) : key.own(log2)
                let other = translation.isGlobal ? key.own(log2) : key.global(log2)
                let word = entry.match(translation.inputBase, sought)
                #expect(word != 0)
                #expect(entry.match(translation.inputBase, other) == 0)
                #expect(entry.match(translation.inputBase ^ 0x1000, sought) == 0)
                let hit = entry.hit(matchedAt: word)
                #expect(hit?.outputBase == translation.outputBase)
                #expect(hit?.permissions == translation.permissions)
                #expect(hit?.isOfRegion == translation.isOfRegion)

                entry.write(translation)
                #expect(entry.hit(matchedAt: word) == nil, "written again meanwhile, if with the same")
                #expect(entry.translation(matchedAt: word) == nil)
                entry.clear()
                #expect(entry.current == nil)
                #expect(entry.match(translation.inputBase, sought) == 0)
            }
        }
    }
}
