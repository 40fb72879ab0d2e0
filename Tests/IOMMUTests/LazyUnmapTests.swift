// Lazy unmapping: what is sent when, and the window in which what was unmapped is still reached.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// Time that passes when the test says so.
final class HandClock: DriverClock {
    private let now = Atomic<UInt64>(0)

    func nanoseconds() -> UInt64 { now.load(ordering: .relaxed) }
    func pause(attempt: Int) { now.wrappingAdd(1, ordering: .relaxed) }
    func advance(_ nanoseconds: UInt64) { now.wrappingAdd(nanoseconds, ordering: .relaxed) }
}

@Suite("Lazy unmapping")
struct LazyUnmapTests {
    /// TLBI_NH_ASID of ASID 1.
    private static let flush = RawCommand(0x0001_0000_0000_0011, 0)
    private static let page = PhysicalAddress(0x4300_0000)

    private static func start(_ kind: IOMMUDomainKind, _ clock: HandClock = HandClock()) throws -> (
        DriverBench, SMMUv3Driver, IOMMUDomain
    ) {
        var bench = DriverBench()
        bench.options.clock = clock
        let (driver, domain) = try MappingTests.start(bench, kind)
        return (bench, driver, domain)
    }

    private static func mapAndUnmap(_ domain: IOMMUDomain) throws -> IOVirtualAddress {
        let iova = try domain.map(page, byteCount: 0x1000, permissions: .read)
        #expect(try domain.unmapDMA(iova, byteCount: 0x1000).byteCount == 0x1000)
        return iova
    }

    @Test("the window: a translation in the TLB is used until the flush, and not in strict mode")
    func window() throws {
        for kind in [IOMMUDomainKind.dma, .dmaFQ] {
            let clock = HandClock()
            let bench = try ModelBench()
            let driver = try bench.start { $0.clock = clock }
            let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
            let domain = try driver.makeDomain(kind)
            try driver.attach(endpoint, to: domain)
            let port = bench.smmu.makePort(for: StreamID(0x103))
            try bench.bus.store(0xC0FFEE, .doubleword, at: PhysicalAddress(ModelBench.buffers))
            let iova = try domain.map(
                PhysicalAddress(ModelBench.buffers),
                byteCount: 0x1000,
                permissions: [.read, .write, .cacheable]
            )
            #expect(port.read(iova.rawValue) == .ok(0xC0FFEE))
            _ = try domain.unmapDMA(iova, byteCount: 0x1000)
            #expect(try domain.translate(iova) == nil)
            if kind == .dmaFQ {
                #expect(domain.lazyUnmapCount == 1)
                clock.advance(9_999_000)
                driver.pollTimers()
                #expect(port.read(iova.rawValue) == .ok(0xC0FFEE))
                clock.advance(1000)
                driver.pollTimers()
            }
            #expect(domain.lazyUnmapCount == 0)
            #expect(port.read(iova.rawValue) == .translationFault)
            driver.stop()
        }
    }

    @Test func strictInvalidatesByAddressAtOnce() throws {
        let (bench, driver, domain) = try Self.start(.dma)
        let iova = try Self.mapAndUnmap(domain)
        #expect(
            bench.smmu.takeCommands()
                == [RawCommand(0x0001_0000_0000_0012, iova.rawValue | 0x701), .sync]
        )
        driver.stop()
    }

    @Test func lazySendsNothingBeforeTheTimer() throws {
        let clock = HandClock()
        let (bench, driver, domain) = try Self.start(.dmaFQ, clock)
        let first = try Self.mapAndUnmap(domain)
        clock.advance(5_000_000)
        let second = try Self.mapAndUnmap(domain)
        // The first one's address is not free yet.
        #expect(second.rawValue == first.rawValue - 0x1000)
        clock.advance(4_999_999)
        driver.pollTimers()
        #expect(bench.smmu.takeCommands().isEmpty)
        // 10 ms after the first one, for both.
        clock.advance(1)
        driver.pollTimers()
        #expect(bench.smmu.takeCommands() == [Self.flush, .sync])
        driver.pollTimers()
        #expect(bench.smmu.takeCommands().isEmpty)
        #expect(try domain.map(Self.page, byteCount: 0x1000, permissions: .read) == first)
        driver.stop()
    }

    @Test func aFullRingFlushesInline() throws {
        let (bench, driver, domain) = try Self.start(.dmaFQ)
        for _ in 0..<255 { _ = try Self.mapAndUnmap(domain) }
        #expect(bench.smmu.takeCommands().isEmpty)
        #expect(domain.lazyUnmapCount == 255)
        _ = try Self.mapAndUnmap(domain)
        #expect(bench.smmu.takeCommands() == [Self.flush, .sync])
        // Only what came after the flush waits.
        #expect(domain.lazyUnmapCount == 1)
        driver.stop()
    }

    @Test func aFailedFlushKeepsTheAddresses() throws {
        // The clock of the bench: a second's timeout is over at once.
        let bench = DriverBench()
        let (driver, domain) = try MappingTests.start(bench, .dmaFQ)
        let first = try Self.mapAndUnmap(domain)
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.self) { try domain.flushLazyUnmaps() }
        #expect(domain.lazyUnmapCount == 1)
        #expect(try domain.map(Self.page, byteCount: 0x1000, permissions: .read) < first)
        bench.smmu.script { $0.isQueueHung = false }
        try domain.flushLazyUnmaps()
        #expect(domain.lazyUnmapCount == 0)
        driver.stop()
    }

    @Test func aMapAtAChosenAddressFlushesFirst() throws {
        let (bench, driver, domain) = try Self.start(.dmaFQ)
        let iova = try Self.mapAndUnmap(domain)
        try domain.map(iova, to: Self.page, byteCount: 0x1000, permissions: .read)
        #expect(bench.smmu.takeCommands() == [Self.flush, .sync])
        #expect(domain.lazyUnmapCount == 0)
        // The later flush does not give the address away.
        _ = try Self.mapAndUnmap(domain)
        try domain.flushLazyUnmaps()
        #expect(try domain.map(Self.page, byteCount: 0x1000, permissions: .read) != iova)
        driver.stop()
    }

    @Test func aStrictDomainBecomesLazyWhileItIsUsed() throws {
        let (bench, driver, domain) = try Self.start(.dma)
        #expect(domain.kind == .dma)
        domain.startFlushQueue()
        #expect(domain.kind == .dmaFQ)
        _ = try Self.mapAndUnmap(domain)
        #expect(bench.smmu.takeCommands().isEmpty)
        driver.stop()
    }

    @Test func theTimersThreadFlushesByItself() throws {
        var bench = DriverBench()
        bench.options.clock = MonotonicClock()
        bench.options.interruptHandling = .threads
        let (driver, domain) = try MappingTests.start(bench, .dmaFQ)
        _ = try Self.mapAndUnmap(domain)
        while domain.lazyUnmapCount > 0 { MonotonicClock().pause(attempt: 110) }
        #expect(bench.smmu.takeCommands() == [Self.flush, .sync])
        driver.stop()
    }
}
