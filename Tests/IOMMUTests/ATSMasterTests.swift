// Functions with ATS: the order in which the driver sets them up, and what they are told to drop.

import AddressSpace
import IOPageTable
import SMMUv3Spec
import Synchronization
import Testing

@testable import IOMMU

@Suite("Functions with ATS")
struct ATSMasterTests {
    private static let stream = StreamID(0x103)
    /// CMD_ATC_INV of everything of the stream: Size is 52.
    private static let everything = RawCommand(0x0000_0103_0000_0040, 52)

    private struct Setup {
        let bench = DriverBench(PageFaultTests.identification)
        let services = FakeServices()
        let driver: SMMUv3Driver
        let endpoint: IOMMUEndpoint

        init() throws {
            driver = try bench.start()
            endpoint = try driver.addEndpoint(
                "function",
                streams: [stream],
                substreamBits: 8,
                services: services
            )
        }

        /// STE.EATS and STE.PPAR.
        func entry() throws -> (eats: UInt64, ppar: UInt64) {
            let address = try driver.attachments.withLock { try $0.streamTable.entry(for: stream) }
            let word = bench.smmu.word(address.rawValue + 8)
            return (word >> 28 & 3, word >> 18 & 1)
        }
    }

    @Test func attachEnablesATSAfterTheSTEAndDisablesItBefore() throws {
        let setup = try Setup()
        #expect(setup.services.take() == ["PASID"])
        let domain = try setup.driver.makeDomain(.dma)
        _ = setup.bench.smmu.takeCommands()
        try setup.driver.attach(setup.endpoint, to: domain)
        #expect(setup.services.take() == ["ATS 12"])
        #expect(try setup.entry() == (1, 1))
        // The last commands: what it may have kept goes before it begins.
        #expect(setup.bench.smmu.takeCommands().suffix(2) == [Self.everything, .sync])
        let other = try setup.driver.makeDomain(.unmanaged)
        try setup.driver.attach(setup.endpoint, to: other)
        #expect(setup.services.take().isEmpty)
        #expect(setup.bench.smmu.takeCommands().suffix(2) == [Self.everything, .sync])
        // The old domain has nobody to tell any more.
        try domain.flushAll()
        #expect(!setup.bench.smmu.takeCommands().contains(Self.everything))
        try setup.driver.attach(setup.endpoint, to: setup.driver.identityDomain)
        #expect(setup.services.take() == ["ATS off"])
        #expect(try setup.entry().eats == 0)
        #expect(setup.bench.smmu.takeCommands().suffix(2) == [Self.everything, .sync])
        try setup.driver.removeEndpoint(setup.endpoint)
        #expect(setup.services.take() == ["PASID off"])
    }

    @Test func anUnmapInvalidatesTheTLBAndThenTheFunctions() throws {
        let setup = try Setup()
        let domain = try setup.driver.makeDomain(.unmanaged)
        try setup.driver.attach(setup.endpoint, to: domain)
        try domain.map(
            IOVirtualAddress(0x7000),
            to: PhysicalAddress(0x4010_0000),
            byteCount: 0x2000,
            permissions: .readWrite
        )
        _ = setup.bench.smmu.takeCommands()
        _ = try domain.unmap(IOVirtualAddress(0x7000), byteCount: 0x2000)
        let commands = setup.bench.smmu.takeCommands()
        // TLBI_NH_VA, SYNC; ATC_INV of pages 0 to 15, which is what holds 7 and 8, SYNC.
        #expect(commands.count == 4)
        #expect(commands.first.map { $0.low & 0xFF } == 0x12)
        #expect(commands.dropFirst() == [.sync, RawCommand(0x0000_0103_0000_0040, 4), .sync])
    }

    @Test(
        "the span of an invalidation is the kernel's",
        arguments: [
            (0x7000, 0x1000, 0x7000, 0), (0x8000, 0x2000, 0x8000, 1), (0x7000, 0x2000, 0, 4),
            (0xFF_F000, 0x2000, 0, 13),
        ] as [(UInt64, UInt64, UInt64, UInt8)]
    )
    func span(_ start: UInt64, _ byteCount: UInt64, _ address: UInt64, _ size: UInt8) throws {
        let range = try #require(AddressRange(start: start, byteCount: byteCount))
        #expect(ATSMasters.span(range) == (address, size))
    }

    @Test func pageRequestsAreEnabledWithPageFaultsAndNeedATS() throws {
        let setup = try Setup()
        #expect(throws: SVAError.self) { try setup.driver.enable(.pageFaults, for: setup.endpoint) }
        try setup.driver.attach(setup.endpoint, to: setup.driver.makeDomain(.dma))
        _ = setup.services.take()
        try setup.driver.enable(.pageFaults, for: setup.endpoint)
        #expect(setup.services.take() == ["PRI 32"])
        try setup.driver.disable(.pageFaults, for: setup.endpoint)
        #expect(setup.services.take() == ["PRI off"])
    }
}
