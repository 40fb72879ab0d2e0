// Dirty tracking on the model: what devices write is found, once.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SystemBus
import Testing

@testable import IOMMU

@Suite("Dirty tracking")
struct DirtyTrackingTests {
    @Test("a page that a device writes is dirty until it is asked for", arguments: PageTableGranule.allCases)
    func life(_ granule: PageTableGranule) throws {
        let bench = try ModelBench(.full())
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(3)])
        let domain = try driver.makeDomain(.unmanaged, granule: granule, tracksDirtyState: true)
        #expect(domain.tracksDirtyState)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(3))
        let page = granule.byteCount
        let base = page * 16
        let whole = try #require(AddressRange(start: base, byteCount: 8 * page))
        try domain.map(
            IOVirtualAddress(base),
            to: PhysicalAddress(ModelBench.buffers),
            byteCount: 8 * page,
            permissions: [.read, .write, .cacheable]
        )
        #expect(try domain.readDirty(whole) == [whole])
        #expect(try domain.readDirty(whole) == [])
        // Reads make nothing dirty; writes do, also through a translation that a read left in the TLB.
        for index in 0..<8 as Range<UInt64> { #expect(port.read(base + index * page) == .ok(0)) }
        #expect(try domain.readDirty(whole) == [])
        for index in [1, 2, 5] as [UInt64] { #expect(port.write(base + index * page + 8, index) == .ok(0)) }
        let written = try [(1, 2), (5, 1)].map {
            try #require(AddressRange(start: base + $0 * page, byteCount: $1 * page))
        }
        #expect(try domain.readDirty(whole, clears: false) == written)
        #expect(try domain.readDirty(whole) == written)
        // The TLB holds them as dirty no more: the next write is seen again.
        #expect(port.write(base + 5 * page, 7) == .ok(0))
        #expect(try domain.readDirty(whole) == [written[1]])
        #expect(driver.events().isEmpty)
        driver.stop()
    }

    @Test func whereHardwareDoesNotNoteItNobodyCanTrack() throws {
        let bench = try ModelBench()
        let driver = try bench.start()
        let asids = driver.device.asids.usedCount
        #expect(throws: SMMUDriverError.noDirtyTracking) {
            _ = try driver.makeDomain(.unmanaged, tracksDirtyState: true)
        }
        #expect(SMMUDriverError.noDirtyTracking.errorName == "EOPNOTSUPP")
        #expect(driver.device.asids.usedCount == asids)
        let domain = try driver.makeDomain(.unmanaged)
        let range = try #require(AddressRange(start: 0x1000, byteCount: 0x1000))
        #expect(throws: SMMUDriverError.noDirtyTracking) { _ = try domain.readDirty(range) }
        driver.stop()
    }

    @Test func theContextSaysHAAndHD() throws {
        // IDR0.HTTU = 2.
        let bench = DriverBench([0x0: 0x094C_109A])
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        try driver.attach(endpoint, to: try driver.makeDomain(.unmanaged, tracksDirtyState: true))
        let context = bench.smmu.word(AttachTests.entry) & 0x00FF_FFFF_FFFF_FFC0
        // Word 0 of MappingTests.granules, and HA [43], HD [42].
        #expect(bench.smmu.word(context) == 0x0001_EE04_C000_3510)
        driver.stop()
    }
}
