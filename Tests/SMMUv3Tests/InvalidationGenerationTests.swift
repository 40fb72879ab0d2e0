// What ports keep goes by invalidations near it, and by all where it has to.

import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

extension InvalidationGeneration {
    fileprivate func permitsKeeping(_ entry: CachedTranslation, _ stamp: InvalidationStamp) -> Bool {
        counts.permitsKeeping(isOfRegion: entry.isOfRegion, stamp)
    }
}

@Suite("Generations of invalidation")
struct InvalidationGenerationTests {
    private func entry(log2Bytes: UInt8, isGlobal: Bool = false) -> CachedTranslation {
        var entry = CachedTranslation.none
        entry.log2Bytes = log2Bytes
        entry.firstStageLog2Bytes = log2Bytes
        entry.isGlobal = isGlobal
        return entry
    }

    @Test("an invalidation by address counts in its region alone; blocks and global pages go by all")
    func regions() {
        let generation = InvalidationGeneration()
        let region = InvalidationGeneration.region(of: 0x4000_0000, asid: 3, vmid: 7)
        let stamp = generation.stamp(region)
        let anywhere = generation.stamp()
        let page = entry(log2Bytes: 12)
        generation.advanceTranslations(first: 0x4020_0000, last: 0x4020_0FFF, asid: 3, vmid: 7)
        #expect(generation.permitsKeeping(page, stamp))
        #expect(!generation.permitsKeeping(entry(log2Bytes: 30), stamp))
        #expect(!generation.permitsKeeping(entry(log2Bytes: 12, isGlobal: true), stamp))
        #expect(!generation.permitsKeeping(page, anywhere))
        #expect(!generation.permitsKeepingTables(stamp))
        generation.advanceTranslations(first: 0x4000_0000, last: 0x4000_0FFF, asid: 3, vmid: 7)
        #expect(!generation.permitsKeeping(page, stamp))
    }

    @Test("a range counts in each of its regions, a long one everywhere; ignored address bits do not matter")
    func ranges() {
        let generation = InvalidationGeneration()
        let page = entry(log2Bytes: 12)
        func survives(_ address: UInt64, _ first: UInt64, _ last: UInt64) -> Bool {
            let region = InvalidationGeneration.region(of: address, asid: 1, vmid: 0)
            let stamp = generation.stamp(region)
            generation.advanceTranslations(first: first, last: last, asid: 1, vmid: 0)
            return generation.permitsKeeping(page, stamp)
        }
        for address in [0x1F_F000, 0x20_0000, 0x7F_F000] as [UInt64] {
            #expect(!survives(address, 0x1F_F000, 0x7F_FFFF))
        }
        #expect(survives(0x80_0000, 0x1F_F000, 0x7F_FFFF))
        #expect(!survives(0x8000_0000, 0, 0x1FF_FFFF), "sixteen regions are all")
        #expect(!survives(0x1000, 0x2000, 0x1000), "a range that ends before it begins is all")
        #expect(!survives(0xAB00_0000_0000_1000, 0x1000, 0x1FFF))
        let stamp = generation.stamp(InvalidationGeneration.region(of: 0x1000, asid: 1, vmid: 0))
        generation.advance()
        #expect(!generation.permitsKeeping(page, stamp) && !generation.isCurrentConfiguration(stamp))
    }

    @Test("a port remembers a page beside a TLBI elsewhere, and not the page that it names")
    func ports() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 7)
        try tables.map(0x1000, to: page)
        try tables.map(0x40_0000, to: page)
        func portHits() -> UInt64 {
            guest.smmu.statistics.first { $0.name == "port-hits" }?.value ?? 0
        }
        func isRemembered(_ address: UInt64) -> Bool {
            let before = portHits()
            #expect(guest.dmaRead(1, address) == .ok(7))
            return portHits() == before + 1
        }
        // The first look-up does not know the ASID yet; what it finds goes by all.
        for address in [0x40_0000, 0x1000] as [UInt64] { _ = isRemembered(address) }
        #expect(isRemembered(0x1000))
        try guest.sync(Raw.tlbiNHVA(0x40_0000, asid: 1))
        #expect(isRemembered(0x1000))
        #expect(!isRemembered(0x40_0000))
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        #expect(!isRemembered(0x1000))
        #expect(isRemembered(0x40_0000))
    }
}
