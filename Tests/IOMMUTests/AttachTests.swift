// Endpoints and domains: entries in memory word by word, and commands in the documented order.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Endpoints and attachment")
struct AttachTests {
    /// STE of stream 0x103: level-2 table of 16 KiB at 0x4001_0000, entry 3.
    static let entry: UInt64 = 0x4001_00C0
    /// CMD_CFGI_STE and CMD_CFGI_CD, Leaf = 1, of stream 0x103.
    static let cfgiSTE = RawCommand(0x0000_0103_0000_0003, 1)
    static let cfgiCD = RawCommand(0x0000_0103_0000_0005, 1)
    static let prefetch = RawCommand(0x0000_0103_0000_0001, 0)

    /// A driver with one endpoint, past its reset commands.
    static func start(_ bench: DriverBench, substreamBits: Int = 0) throws -> (SMMUv3Driver, IOMMUEndpoint) {
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint(
            "nic",
            streams: [StreamID(0x103)],
            substreamBits: substreamBits
        )
        _ = bench.smmu.takeCommands()
        _ = bench.smmu.takeStores()
        return (driver, endpoint)
    }

    // MARK: Endpoints

    @Test func theFirstStreamOfASpanBuildsItsLevel2TableWithoutAWord() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        #expect(bench.smmu.word(0x4000_4008) == 0x4001_0009)
        #expect(bench.smmu.words(Self.entry) == [1, 0, 0, 0, 0, 0, 0, 0])
        #expect(bench.smmu.words(0x4001_0000 + 255 * 64)[0] == 1)
        #expect(driver.endpoint(of: StreamID(0x103)) === endpoint)
        #expect(driver.domain(of: endpoint) === driver.blockedDomain)
        #expect(bench.smmu.takeCommands().isEmpty)
    }

    @Test func streamsHaveOneOwner() throws {
        let (driver, endpoint) = try Self.start(DriverBench())
        #expect(throws: SMMUDriverError.streamInUse(StreamID(0x103), endpoint: "nic")) {
            _ = try driver.addEndpoint("disk", streams: [StreamID(0x200), StreamID(0x103)])
        }
        #expect(driver.endpoint(of: StreamID(0x200)) == nil)
        #expect(throws: SMMUDriverError.noStreams(endpoint: "disk")) {
            _ = try driver.addEndpoint("disk", streams: [])
        }
        #expect(throws: SMMUDriverError.streamOutOfRange(StreamID(0x1_0000), count: 0x1_0000)) {
            _ = try driver.addEndpoint("disk", streams: [StreamID(0x1_0000)])
        }
        try driver.removeEndpoint(endpoint)
        let next = try driver.addEndpoint("disk", streams: [StreamID(0x103), StreamID(0x103)])
        #expect(next.streams == [StreamID(0x103)])
        #expect(throws: SMMUDriverError.unknownEndpoint("nic")) {
            try driver.attach(endpoint, to: driver.identityDomain)
        }
    }

    // MARK: Stage 1

    @Test func attachingWritesTheContextThenTheStreamEntryEachInTwoSteps() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        let domain = try driver.makeDomain(.unmanaged)
        #expect(domain.asid == 1)
        let root = try #require(domain.root)
        try driver.attach(endpoint, to: domain)
        // T0SZ 16, IR0, OR0, SH0, EPD1, V; IPS 44 bits, AA64, R, A, ASET, ASID 1.
        let context: UInt64 = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        #expect(
            bench.smmu.words(context) == [
                0x0001_E204_C000_3510, root.rawValue, 0, 0x0000_0000_F404_FF44, 0, 0, 0, 0,
            ]
        )
        // V, Config 5; S1DSS 2, S1CIR 1, S1COR 1, S1CSH 3.
        #expect(bench.smmu.words(Self.entry) == [context | 0xB, 0xD6, 0, 0, 0, 0, 0, 0])
        #expect(
            bench.smmu.takeStores().map(\.address).filter { $0 & ~63 == context || $0 & ~63 == Self.entry }
                == [context + 8, context + 24, context, Self.entry + 8, Self.entry]
        )
        #expect(
            bench.smmu.takeCommands() == [
                Self.cfgiCD, .sync, Self.cfgiCD, .sync, Self.cfgiSTE, .sync, Self.cfgiSTE, .sync,
                Self.prefetch,
            ]
        )
        #expect(driver.domain(of: endpoint) === domain)
    }

    @Test func detachingBlocksInOneStoreAndThenClears() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        let context: UInt64 = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        _ = bench.smmu.takeCommands()
        _ = bench.smmu.takeStores()
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(bench.smmu.words(Self.entry) == [1, 0, 0, 0, 0, 0, 0, 0])
        #expect(bench.smmu.words(context) == [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(
            bench.smmu.takeStores().map(\.address).filter { $0 & ~63 == context || $0 & ~63 == Self.entry }
                == [Self.entry, Self.entry + 8, context, context + 8, context + 24]
        )
        #expect(
            bench.smmu.takeCommands() == [
                Self.cfgiSTE, .sync, Self.cfgiSTE, .sync, Self.prefetch, Self.cfgiCD, .sync, Self.cfgiCD,
                .sync,
            ]
        )
    }

    @Test func bypassIsOneStoreAway() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(bench.smmu.words(Self.entry) == [9, 0, 0, 0, 0, 0, 0, 0])
        #expect(bench.smmu.takeCommands() == [Self.cfgiSTE, .sync, Self.prefetch])
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(bench.smmu.takeCommands().isEmpty)
    }

    @Test func anotherDomainGoesThroughAnInvalidContext() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        let first = try driver.makeDomain(.unmanaged)
        let second = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: first)
        let context: UInt64 = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        _ = bench.smmu.takeStores()
        _ = bench.smmu.takeCommands()
        try driver.attach(endpoint, to: second)
        // ASID and TTB0 differ: V = 0 in between. The STE is as before.
        let stores = bench.smmu.takeStores().filter { $0.address & ~63 == context }
        #expect(stores.map(\.address) == [context, context + 8, context])
        #expect(stores.map(\.value) == [0, try #require(second.root).rawValue, 0x0002_E204_C000_3510])
        #expect(
            bench.smmu.takeCommands() == [
                Self.cfgiCD, .sync, Self.cfgiCD, .sync, Self.cfgiCD, .sync, Self.prefetch,
            ]
        )
    }

    @Test func everyStreamOfAnEndpointIsToldOfItsContext() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("gpu", streams: [StreamID(0x103), StreamID(0x7)])
        let domain = try driver.makeDomain(.unmanaged)
        _ = bench.smmu.takeCommands()
        try driver.attach(endpoint, to: domain)
        let otherCD = RawCommand(0x0000_0007_0000_0005, 1)
        let otherSTE = RawCommand(0x0000_0007_0000_0003, 1)
        #expect(
            bench.smmu.takeCommands() == [
                Self.cfgiCD, otherCD, .sync, Self.cfgiCD, otherCD, .sync, Self.cfgiSTE, .sync, Self.cfgiSTE,
                .sync,
                Self.prefetch, otherSTE, .sync, otherSTE, .sync, RawCommand(0x0000_0007_0000_0001, 0),
            ]
        )
    }

    @Test func aBrokenPrefetchIsNotSent() throws {
        var bench = DriverBench()
        bench.options.hasBrokenPrefetch = true
        let (driver, endpoint) = try Self.start(bench)
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(bench.smmu.takeCommands() == [Self.cfgiSTE, .sync])
    }

    @Test func stallsAreSwitchedOffForAnEndpointThatCannotStall() throws {
        // STALL_MODEL 0: both ways.
        let bench = DriverBench([0: 0x084C_101A])
        let driver = try bench.start()
        let plain = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        let stalling = try driver.addEndpoint("gpu", streams: [StreamID(0x104)], canStall: true)
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(plain, to: domain)
        try driver.attach(stalling, to: domain)
        #expect(bench.smmu.word(Self.entry + 8) == 0xD6 | 1 << 27)
        #expect(bench.smmu.word(Self.entry + 64 + 8) == 0xD6)
        let context = bench.smmu.word(Self.entry + 64) & 0x00FF_FFFF_FFFF_FFC0
        #expect(bench.smmu.word(context) == 0x0001_F204_C000_3510)  // CD.S, bit 44.
    }

    // MARK: Substreams

    @Test func substreamsLiveInTheEndpointsLinearTable() throws {
        // SSIDSIZE 8.
        let bench = DriverBench([4: 0x0273_0210])
        let (driver, endpoint) = try Self.start(bench, substreamBits: 5)
        #expect(endpoint.substreamBits == 5)
        let domain = try driver.makeDomain(.unmanaged)
        let other = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        // S1CDMax 5, S1Fmt 0.
        let table = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        #expect(bench.smmu.word(Self.entry) == table | 0xB | 5 << 59)
        _ = bench.smmu.takeCommands()
        try driver.attach(endpoint, substream: SubstreamID(9), to: other)
        #expect(bench.smmu.word(table + 9 * 64) == 0x0002_E204_C000_3510)
        let cfgi = RawCommand(0x0000_0103_0000_9005, 1)
        #expect(bench.smmu.takeCommands() == [cfgi, .sync, cfgi, .sync])
        #expect(throws: SMMUDriverError.substreamInUse(SubstreamID(9))) {
            try driver.attach(endpoint, substream: SubstreamID(9), to: domain)
        }
        for number in [0, 32] as [UInt32] {
            #expect(throws: SMMUDriverError.substreamOutOfRange(SubstreamID(number), bits: 5)) {
                try driver.attach(endpoint, substream: SubstreamID(number), to: other)
            }
        }
        #expect(throws: SMMUDriverError.substreamNeedsTranslation(.identity)) {
            try driver.attach(endpoint, substream: SubstreamID(3), to: driver.identityDomain)
        }
        try driver.detach(endpoint, substream: SubstreamID(9))
        #expect(bench.smmu.words(table + 9 * 64) == [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(throws: SMMUDriverError.substreamNotAttached(SubstreamID(9))) {
            try driver.detach(endpoint, substream: SubstreamID(9))
        }
    }

    @Test func manySubstreamsTakeTwoLevelsWithLeavesOf64KiB() throws {
        // SSIDSIZE 20.
        let bench = DriverBench([4: 0x0273_0510])
        let (driver, endpoint) = try Self.start(bench, substreamBits: 16)
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        // S1CDMax 16, S1Fmt 2.
        let table = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        #expect(bench.smmu.word(Self.entry) == table | 0xB | 2 << 4 | 16 << 59)
        let leaf = bench.smmu.word(table) & ~0xFFF
        #expect(bench.smmu.word(table) == leaf | 1)
        #expect(leaf & 0xFFFF == 0)
        #expect(bench.smmu.word(leaf) == 0x0001_E204_C000_3510)
        _ = bench.smmu.takeCommands()
        // Substream 0x1402: leaf 5, entry 2. The L1CD is invalidated with Leaf = 0 first.
        try driver.attach(endpoint, substream: SubstreamID(0x1402), to: domain)
        let second = bench.smmu.word(table + 5 * 8) & ~0xFFF
        #expect(bench.smmu.word(second + 2 * 64) == 0x0001_E204_C000_3510)
        let cfgi = RawCommand(0x0000_0103_0140_2005, 1)
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(0x0000_0103_0140_2005, 0), .sync, cfgi, .sync, cfgi, .sync,
            ]
        )
    }

    @Test func withoutTwoLevelsThereAreAtMost1024Substreams() throws {
        let bench = DriverBench([0: 0x0944_101A, 4: 0x0273_0510])
        #expect(try Self.start(bench, substreamBits: 16).1.substreamBits == 10)
    }

    @Test func aBypassingStreamKeepsBypassingBesideItsSubstreams() throws {
        // SSIDSIZE 8, ATTR_TYPES_OVR.
        let bench = DriverBench([4: 0x0A73_0210])
        let (driver, endpoint) = try Self.start(bench, substreamBits: 5)
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(bench.smmu.words(Self.entry, 2) == [9, 1 << 44])
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, substream: SubstreamID(1), to: domain)
        // S1DSS 1: what has no SubstreamID bypasses, with the incoming shareability.
        #expect(bench.smmu.word(Self.entry) & 0xF == 0xB)
        #expect(bench.smmu.word(Self.entry + 8) == 0xD5 | 1 << 44)
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(bench.smmu.word(Self.entry + 8) == 0xD4)
        try driver.detach(endpoint, substream: SubstreamID(1))
        #expect(bench.smmu.words(Self.entry, 2) == [1, 0])
    }

    // MARK: Regions and instances

    @Test func directRegionsAreMappedBeforeTheEndpointComes() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let region = try #require(AddressRange(start: 0x8000_0000, byteCount: 0x3000))
        let hole = try #require(AddressRange(start: 0x9000_0000, byteCount: 0x1000))
        let endpoint = try driver.addEndpoint(
            "display",
            streams: [StreamID(0x103)],
            reservedRegions: [
                ReservedRegion(.direct, region, permissions: .readWrite), ReservedRegion(.reserved, hole),
            ]
        )
        let domain = try driver.makeDomain(.dma)
        try driver.attach(endpoint, to: domain)
        #expect(try domain.translate(IOVirtualAddress(0x8000_2FFF))?.physical == PhysicalAddress(0x8000_2FFF))
        #expect(try domain.translate(IOVirtualAddress(0x8000_3000)) == nil)
        #expect(throws: SMMUDriverError.reservedRange(hole)) {
            try domain.map(
                IOVirtualAddress(0x9000_0000),
                to: PhysicalAddress(0),
                byteCount: 0x1000,
                permissions: .read
            )
        }
        #expect(throws: SMMUDriverError.endpointNeedsDirectRegions("display")) {
            try driver.attach(endpoint, to: driver.blockedDomain)
        }
        #expect(driver.domain(of: endpoint) === domain)
        // A second endpoint with the same region finds it mapped.
        let second = try driver.addEndpoint(
            "panel",
            streams: [StreamID(0x104)],
            reservedRegions: endpoint.reservedRegions
        )
        try driver.attach(second, to: domain)
        // Without its driver the endpoint still reaches its memory.
        try driver.removeEndpoint(endpoint)
        #expect(bench.smmu.words(Self.entry) == [9, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test func aDomainBelongsToOneSMMU() throws {
        let (driver, endpoint) = try Self.start(DriverBench())
        let other = try DriverBench().start()
        #expect(throws: SMMUDriverError.domainOfAnotherSMMU) {
            try driver.attach(endpoint, to: other.identityDomain)
        }
    }

    @Test func everyASIDIsHandedOutOnceAndComesBack() throws {
        // ASID16 = 0: 255 of them.
        let bench = DriverBench([0: 0x094C_001A])
        let driver = try bench.start()
        var domains = try (1...255).map { _ in try driver.makeDomain(.unmanaged) }
        #expect(Set(domains.compactMap(\.asid)) == Set(1...255))
        #expect(throws: SMMUDriverError.asidsExhausted(count: 255)) { _ = try driver.makeDomain(.unmanaged) }
        _ = bench.smmu.takeCommands()
        domains.remove(at: 41)
        // TLBI_NH_ASID and CMD_SYNC before the ASID is used again.
        #expect(bench.smmu.takeCommands() == [RawCommand(0x002A_0000_0000_0011, 0), .sync])
        #expect(try driver.makeDomain(.unmanaged).asid == 42)
    }

    @Test func aChangeThatTheSMMUDoesNotFollowKeepsBothDomainsAlive() throws {
        let bench = DriverBench()
        let (driver, endpoint) = try Self.start(bench)
        let used = bench.frames.usedByteCount
        do {
            let domain = try driver.makeDomain(.unmanaged)
            bench.smmu.script { $0.isQueueHung = true }
            #expect(throws: SMMUDriverError.self) { try driver.attach(endpoint, to: domain) }
        }
        // The CD may name the domain's table: neither is given back.
        #expect(bench.frames.usedByteCount == used + 0x2000)
    }
}
