// The four words of a TLB entry: what goes in comes out, and golden words that were worked out by hand.

import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("TLB entries")
struct TLBEntryTests {
    private func withTable(_ setCount: Int = 16, _ body: (TLBTable) throws -> Void) rethrows {
        let count = TLBTable.byteCount(setCount) / 8
        let memory = UnsafeMutableRawPointer.allocate(byteCount: count * 8, alignment: 64)
        let words = memory.initializeMemory(as: UInt64.self, repeating: 0, count: count)
        defer { memory.deallocate() }
        try body(TLBTable(words: words, setCount: setCount))
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
        withTable { table in
            table.write(TLBEntry.Words(golden), at: 5)
            let entry = table.entry(5)
            // Page 0x1_2345 of the upper half, bit 52 of which is [41] and that of 2^46 bytes [35]; below it the size,
            // 1 for 4 KiB. ASET << 42, global << 58, 3 << 59.
            #expect(entry.hot[0] == 0x1C00_07F0_0002_468B)
            // VMID << 48, a part << 47, not of the region for it is global, permissions << 40.
            #expect(entry.hot[1] == 0xABCD_91FE_DCBA_9876)
            // Stage-1 permissions 0b010001 << 52, shareability 3 << 58, writable-clean << 60.
            #expect(entry.cold[0] == 0x1D10_0011_2233_405A)
            // ASET << 32, ASID << 16, granule 1 << 14, level 2 << 12, all << 6, 21.
            #expect(entry.cold[1] == 0x0000_0001_1234_6FD5)
        }
    }

    @Test(
        "a range of addresses has its size in it",
        arguments: [
            (0x0000_0000_0000_0000 as UInt64, 12 as UInt64, 0x000_0000_0001 as UInt64),
            (0x0000_0000_0000_1000, 12, 0x000_0000_0003), (0x0000_0000_0020_0000, 21, 0x000_0000_0600),
            (0x000F_FFFF_FFFF_F000, 12, 0x1FF_FFFF_FFFF), (0xFFFF_FFFF_FFFF_F000, 12, 0x3FF_FFFF_FFFF),
            (0xFFF0_0000_0000_0000, 52, 0x300_0000_0000), (0x0000_0000_0000_0000, 52, 0x100_0000_0000),
        ]
    )
    func range(_ base: UInt64, _ log2Bytes: UInt64, _ word: UInt64) {
        #expect(TLBEntry.range(base >> log2Bytes, log2Bytes) == word)
        #expect(TLBEntry.first(word) == base)
        #expect(TLBEntry.log2Bytes(word) == Int(log2Bytes))
    }

    @Test("an address that no entry has finds none, whatever its upper bits are cut to")
    func notSignExtended() {
        let cache = TranslationCache(entryCount: 64, generation: InvalidationGeneration())
        var entry = golden
        for base in [0x0000_0000_1234_5000, 0xFFFF_FFFF_1234_5000] as [UInt64] {
            entry.inputBase = base
            cache.fill(entry, walkedAt: cache.generation.stamp())
            #expect(cache.peek(base | 0xFFF, tag: entry.tag)?.inputBase == base)
            for bit in 52..<64 {
                #expect(cache.peek(base ^ 1 << UInt64(bit), tag: entry.tag) == nil, "bit \(bit)")
            }
            entry.inputBase = base ^ 1 << 60
            cache.fill(entry, walkedAt: cache.generation.stamp())
        }
        #expect(cache.counters.residentEntries == 2, "what the words have no room for is not kept")
        let astray = TranslationCache.AddressScope(first: 0x0010_0000_1234_5000, last: 0x0010_0000_1234_5FFF)
        cache.invalidate(.address(entry.tag.regime, vmid: entry.tag.vmid, asid: 1, astray))
        #expect(cache.counters.residentEntries == 2)
    }

    @Test("whatever is written comes out again, and nothing once it is cleared")
    func roundTrip() {
        var random = SplitMix(seed: 61)
        withTable { table in
            for _ in 0..<2000 {
                func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
                var translation = golden
                translation.log2Bytes = UInt8(12 + below(41))
                let half: UInt64 = below(2) == 0 ? 0xFFF0_0000_0000_0000 : 0
                translation.inputBase =
                    (random.next() & 0x000F_FFFF_FFFF_FFFF | half) & UInt64.max
                    << UInt64(translation.log2Bytes)
                translation.outputBase = random.next() & 0x000F_FFFF_FFFF_F000
                translation.intermediateBase = random.next() & 0x000F_FFFF_FFFF_F000
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
                let index = place(of: translation, in: table)
                let entry = table.entry(index)
                table.write(TLBEntry.Words(translation), at: index)
                #expect(entry.current == translation)

                // What a look-up goes by: the sizes that there are, and whether something is global.
                table.words[0] = 1 << UInt64(translation.log2Bytes)
                table.words[1] = translation.isGlobal ? 1 : 0
                let key = TLBKey(translation.tag)
                let last = translation.inputBase | ~(UInt64.max << UInt64(translation.log2Bytes))
                #expect(table.find(last, key)?.index == index)
                let hit = table.hit(translation.inputBase, key)
                #expect(hit?.outputBase == translation.outputBase)
                #expect(hit?.permissions == translation.permissions)
                #expect(hit?.log2Bytes == translation.log2Bytes)
                #expect(hit?.isOfRegion == translation.isOfRegion)
                for other in others(than: translation) {
                    #expect(table.hit(translation.inputBase, TLBKey(other)) == nil)
                }
                entry.clear()
                #expect(entry.current == nil)
                #expect(table.hit(translation.inputBase, key) == nil)
            }
        }
    }

    private func place(of entry: CachedTranslation, in table: TLBTable) -> Int {
        let mix = TLBKey.mix(entry.tag, isGlobal: entry.isGlobal)
        return table.setIndex(entry.inputBase >> UInt64(entry.log2Bytes), mix) * TLBTable.ways + 2
    }

    /// Tags that a translation does not answer for.
    private func others(than entry: CachedTranslation) -> [RegimeTag] {
        var (regime, vmid, context) = (entry.tag, entry.tag, entry.tag)
        regime.regime = entry.tag.regime == .nsEL1 ? .nsEL2 : .nsEL1
        vmid.vmid ^= 0x8000
        if entry.isGlobal { context.aset.toggle() } else { context.asid ^= 1 }
        return [regime, vmid, context]
    }

    @Test("what is replaced between two loads of a look-up is not taken for what was sought")
    func replacedMeanwhile() throws {
        try withTable { table in
            var (sought, other) = (golden, golden)
            (sought.isGlobal, other.isGlobal) = (false, false)
            other.inputBase ^= 0x40_0000
            let index = place(of: sought, in: table)
            table.words[0] = 1 << 12
            let key = TLBKey(sought.tag)
            table.write(TLBEntry.Words(sought), at: index)
            let found = try #require(table.find(sought.inputBase, key))
            #expect(table.isUnchanged(found))
            #expect(table.translation(found) == sought)

            // There and back: each word that the look-up compares is as it was.
            sought.outputBase ^= 0x1000
            table.write(TLBEntry.Words(other), at: index)
            table.write(TLBEntry.Words(sought), at: index)
            #expect(!table.isUnchanged(found))
            #expect(table.translation(found) == nil)
            #expect(table.hit(sought.inputBase, key)?.outputBase == sought.outputBase)

            // As the look-up sees it whose thread was stopped while the writer is between its stores.
            let counter = table.sequence(index / TLBTable.ways)
            counter.pointee += 1
            table.entry(index).hot[1] ^= 1
            let torn = try #require(table.find(sought.inputBase, key), "the first word is there")
            #expect(!table.isUnchanged(torn))
            #expect(table.hit(sought.inputBase, key) == nil)
            counter.pointee += 1
            #expect(!table.isUnchanged(torn), "nor once the writer is done")
        }
    }

    @Test("pages in a row fill the whole table, and evict nothing", arguments: [0 as UInt64, 1, 2, 3, 777])
    func pagesInARow(_ firstPage: UInt64) {
        let cache = TranslationCache(entryCount: 4096, generation: InvalidationGeneration())
        var entry = golden
        (entry.isGlobal, entry.firstStageLog2Bytes) = (false, 12)
        for page in 0..<4096 as Range<UInt64> {
            entry.inputBase = (firstPage + page) << 12
            cache.fill(entry, walkedAt: cache.generation.stamp())
        }
        // Where the row crosses a multiple of the table's size, a set or two are of both ends.
        #expect(cache.counters.evictions <= (firstPage % 4 == 0 ? 0 : 4))
        #expect(cache.counters.residentEntries == 4096 - Int(cache.counters.evictions))
    }
}
