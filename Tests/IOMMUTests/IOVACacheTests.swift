// The caches of free IOVAs: what they save, and that nothing hides in them.

import AddressSpace
import DeviceModel
import IOPageTable
import Synchronization
import Testing

@testable import IOMMU

@Suite("IOVA caches")
struct IOVACacheTests {
    @Test func sizesUpTo32PagesArePowersOfTwo() {
        let orders = [0, 1, 2, 3, 4, 5, 16, 17, 32, 33, .max].map { IOVARangeCache.order(ofPages: $0) }
        #expect(orders == [nil, 0, 1, 2, 2, 3, 4, 5, 5, nil, nil])
    }

    @Test func twoMagazinesOf127FillBeforeTheDepotDoes() {
        let cache = IOVARangeCache()
        // 34 full magazines stay: two of the thread's and 32 in the depot; the next is thrown out whole.
        for pfn in 0..<UInt64(34 * 127) { #expect(cache.put(pfn, order: 0, slot: 3).isEmpty) }
        #expect(cache.count == 34 * 127)
        #expect(cache.put(9999, order: 0, slot: 3).count == 127)
        #expect(cache.count == 33 * 127 + 1)
        // Another thread takes full magazines from the depot.
        for _ in 0..<32 * 127 { #expect(cache.take(order: 0, upTo: .max, slot: 5) != nil) }
        #expect(cache.take(order: 0, upTo: .max, slot: 5) == nil)
        #expect(cache.take(order: 1, upTo: .max, slot: 3) == nil)
        #expect(cache.take(order: 0, upTo: .max, slot: 3) == 9999)
        #expect(cache.hitCount == 32 * 127 + 1)
        #expect(cache.takeAll().count == 127)
        #expect(cache.count == 0)
    }

    @Test func aMagazineGivesTheLastOneBelowTheLimit() {
        var magazine = IOVAMagazine()
        for pfn in [5, 100, 7, 200] as [UInt64] { magazine.push(pfn) }
        #expect(magazine.pop(upTo: 50) == 7)
        #expect(magazine.pop(upTo: 50) == 5)
        #expect(magazine.pop(upTo: 50) == nil)
        #expect(magazine.pop(upTo: .max) == 100)
    }

    @Test func mappingsInFlightCostASearchOnceAndThenNone() throws {
        let bench = try DMABench(.dma)
        let page = PhysicalAddress(ModelBench.buffers)
        for round in 0..<50 {
            var held: [(IOVirtualAddress, UInt64)] = []
            for pages in [1, 2, 3, 5, 8, 17, 32] as [UInt64] {
                held.append((try bench.device.map(page, byteCount: pages << 12, .toDevice), pages << 12))
            }
            for (address, byteCount) in held {
                try bench.device.unmap(address, byteCount: byteCount, .toDevice)
            }
            let statistics = try #require(bench.domain.iovaStatistics)
            // 3 and 5 pages are 4 and 8, so there are seven ranges of six sizes.
            #expect(statistics.searchCount == 7 && statistics.cacheHitCount == round * 7)
            #expect(statistics.cachedCount == 7)
        }
        // Larger ones are searched for each time.
        for _ in 0..<3 {
            let address = try bench.device.map(page, byteCount: 33 << 12, .toDevice)
            try bench.device.unmap(address, byteCount: 33 << 12, .toDevice)
        }
        #expect(bench.domain.iovaStatistics?.searchCount == 10)
    }

    @Test func whatCachesHoldIsFoundBeforeAddressesRunOut() throws {
        let bench = try DMABench(.dma)
        // 255 pages: all of them in the mask but page 0.
        try bench.device.setMask(0xF_FFFF)
        let page = PhysicalAddress(ModelBench.buffers)
        let single = try (0..<255).map { _ in try bench.device.map(page, byteCount: 0x1000, .toDevice) }
        #expect(throws: DMAError.noMemory(.iovasExhausted(byteCount: 0x1000))) {
            _ = try bench.device.map(page, byteCount: 0x1000, .toDevice)
        }
        for address in single { try bench.device.unmap(address, byteCount: 0x1000, .toDevice) }
        #expect(bench.domain.iovaStatistics?.cachedCount == 255)
        // 128 pages are in no magazine.
        let large = try bench.device.map(page, byteCount: 128 << 12, .toDevice)
        #expect(large == IOVirtualAddress(0x8_0000))
        #expect(bench.domain.iovaStatistics?.cachedCount == 0)
    }

    @Test func whatWaitsForAFlushIsFoundBeforeAddressesRunOut() throws {
        let bench = try DMABench(.dmaFQ)
        try bench.device.setMask(0xFFFF)
        let page = PhysicalAddress(ModelBench.buffers)
        let single = try (0..<15).map { _ in try bench.device.map(page, byteCount: 0x1000, .toDevice) }
        for address in single { try bench.device.unmap(address, byteCount: 0x1000, .toDevice) }
        #expect(bench.domain.lazyUnmapCount == 15)
        #expect(try bench.device.map(page, byteCount: 8 << 12, .toDevice) == IOVirtualAddress(0x8000))
        #expect(bench.domain.lazyUnmapCount == 0)
    }

    @Test func aSizeThatWasNotFoundBelow4GiBIsNotSearchedForAgain() throws {
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48)
        let half: UInt64 = 1 << 31
        #expect(iovas.allocateHighest(byteCount: half, limit: 0xFFFF_FFFF) == IOVirtualAddress(half))
        #expect(iovas.searchCount == 1)
        for _ in 0..<5 {
            #expect(iovas.allocateHighest(byteCount: half, limit: 0xFFFF_FFFF) == nil)
            #expect(iovas.allocateHighest(byteCount: 2 * half, limit: 0xFFFF_FFFF) == nil)
        }
        #expect(iovas.searchCount == 2)
        // Smaller ones are, and a small mask that fails says nothing of others.
        #expect(iovas.allocateHighest(byteCount: 0x4000, limit: 0x3FFF) == nil)
        #expect(
            iovas.allocateHighest(byteCount: 0x4000, limit: 0xFFFF_FFFF) == IOVirtualAddress(half - 0x4000)
        )
        #expect(iovas.searchCount == 4)
        // Above 4 GiB is another matter.
        #expect(iovas.allocateHighest(byteCount: half, limit: .max) != nil)
        iovas.release(try #require(AddressRange(start: half, byteCount: half)))
        #expect(iovas.allocateHighest(byteCount: half, limit: 0xFFFF_FFFF) == IOVirtualAddress(half))
    }

    @Test func anAddressThatSomebodyMapsByHandIsInNoCache() throws {
        let bench = try DMABench(.dma)
        let page = PhysicalAddress(ModelBench.buffers)
        let address = try bench.device.map(page, byteCount: 0x1000, .toDevice)
        try bench.device.unmap(address, byteCount: 0x1000, .toDevice)
        try bench.domain.map(address, to: page, byteCount: 0x1000, permissions: .read)
        let other = try bench.device.map(page, byteCount: 0x1000, .toDevice)
        #expect(other != address)
        try bench.device.unmap(other, byteCount: 0x1000, .toDevice)
        _ = try bench.domain.unmap(address, byteCount: 0x1000)
        #expect(bench.device.mappingCount == 0)
    }
}

@Suite("MSI doorbells")
struct MSIDoorbellTests {
    /// Registers of an ITS: GITS_TRANSLATER.
    private static let doorbell = PhysicalAddress(0x4008_0040)

    @Test func aDoorbellsPageIsMappedOnceForADomain() throws {
        let bench = try DMABench(.dma)
        let address = try bench.domain.prepareMSI(Self.doorbell)
        #expect(address == IOVirtualAddress(0xFFFF_FFFF_F040))
        #expect(try bench.domain.prepareMSI(PhysicalAddress(0x4008_0044)).rawValue == address.rawValue + 4)
        #expect(
            bench.domain.doorbellPages == [PhysicalAddress(0x4008_0000): IOVirtualAddress(0xFFFF_FFFF_F000)]
        )
        let translation = try #require(try bench.domain.translate(address))
        #expect(translation.physical == Self.doorbell)
        // Stage 1 has no page that cannot be read.
        #expect(translation.permissions == [.read, .write, .noExecute, .device])
        #expect(bench.port.write(address.rawValue, 0x55) == .ok(0))
        #expect(try bench.get(0x4008_0040) == 0x55)
        // A mask that is smaller matters to who comes first alone.
        #expect(try bench.domain.prepareMSI(Self.doorbell, limit: 0xFFFF_FFFF) == address)
        #expect(
            try bench.domain.prepareMSI(PhysicalAddress(0x4010_0000), limit: 0xFFFF_FFFF)
                == IOVirtualAddress(0xFFFF_F000)
        )
    }

    @Test func whereNothingTranslatesTheDoorbellIsItself() throws {
        let bench = try DMABench(.identity)
        #expect(try bench.domain.prepareMSI(Self.doorbell) == IOVirtualAddress(0x4008_0040))
        let hardware = try DMABench(.dma)
        let region = try #require(AddressRange(start: 0x4008_0000, byteCount: 0x1_0000))
        try hardware.domain.apply(ReservedRegion(.msi, region))
        #expect(try hardware.domain.prepareMSI(Self.doorbell) == IOVirtualAddress(0x4008_0040))
        #expect(hardware.domain.doorbellPages.isEmpty)
    }

    @Test func whoMapsByHandSetsACookie() throws {
        let bench = try DMABench(.unmanaged)
        #expect(try bench.domain.prepareMSI(Self.doorbell) == IOVirtualAddress(0x4008_0040))
        let region = try #require(ReservedRegion.softwareMSI)
        #expect(region.range.description == "0x8000000-0x80fffff" && region.kind.sysfsName == "msi")
        // Two pages.
        try bench.domain.setMSICookie(
            try #require(AddressRange(start: region.range.first, byteCount: 0x2000))
        )
        #expect(throws: SMMUDriverError.self) { try bench.domain.setMSICookie(region.range) }
        #expect(try bench.domain.prepareMSI(Self.doorbell) == IOVirtualAddress(0x800_0040))
        #expect(try bench.domain.prepareMSI(PhysicalAddress(0x4010_0040)) == IOVirtualAddress(0x800_1040))
        #expect(throws: SMMUDriverError.iovasExhausted(byteCount: 0x1000)) {
            _ = try bench.domain.prepareMSI(PhysicalAddress(0x4020_0040))
        }
        #expect(try bench.domain.prepareMSI(Self.doorbell) == IOVirtualAddress(0x800_0040))
        let managed = try DMABench(.dma)
        #expect(throws: SMMUDriverError.invalidCookie("a domain of kind dma has no MSI cookie (EINVAL)")) {
            try managed.domain.setMSICookie(region.range)
        }
    }

    @Test func softwareMSIRegionsAreNoHoleInADomainThatChooses() throws {
        let bench = try DMABench(.dma)
        let region = try #require(ReservedRegion.softwareMSI)
        try bench.domain.apply(region)
        try bench.domain.map(
            IOVirtualAddress(region.range.first),
            to: PhysicalAddress(ModelBench.buffers),
            byteCount: 0x1000,
            permissions: .read
        )
        #expect(bench.domain.iovaStatistics?.takenByteCount == 0x2000)
    }
}
