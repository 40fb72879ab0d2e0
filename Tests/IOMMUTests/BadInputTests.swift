// What a driver of devices can get wrong or run out of: the kernel's error, and everything goes on.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

@testable import IOMMU

@Suite("Bad input and exhaustion")
struct BadInputTests {
    private static let page = PhysicalAddress(ModelBench.buffers)

    /// The error that `body` throws.
    private static func error(_ body: () throws -> Void) -> (any Error)? {
        do {
            try body()
            return nil
        } catch { return error }
    }

    private static func dmaError(_ body: () throws -> Void) -> DMAError? { error(body) as? DMAError }

    private static func driverError(_ body: () throws -> Void) -> SMMUDriverError? {
        error(body) as? SMMUDriverError
    }

    /// A mapping is made, used and taken away.
    private static func stillWorks(_ bench: DMABench) throws {
        try bench.put(ModelBench.buffers + 0x8000, 0xC0FFEE)
        let physical = PhysicalAddress(ModelBench.buffers + 0x8000)
        let address = try bench.device.map(physical, byteCount: 0x1000, .toDevice)
        #expect(bench.port.read(address.rawValue) == .ok(0xC0FFEE))
        try bench.device.unmap(address, byteCount: 0x1000, .toDevice)
        try bench.domain.flushLazyUnmaps()
        #expect(bench.port.read(address.rawValue) == .translationFault)
    }

    // MARK: Mistakes with mappings

    @Test("what was not mapped so is refused in dma-debug's words", arguments: [IOMMUDomainKind.dma, .dmaFQ])
    func mistakes(_ kind: IOMMUDomainKind) throws {
        let bench = try DMABench(kind)
        let device = bench.device
        let address = try device.map(Self.page, byteCount: 0x2000, .toDevice)
        let place = "[device address=0x\(hex(address.rawValue, digits: 16))]"
        let attempts: [(() throws -> Void, String)] = [
            (
                {
                    try device.unmap(
                        IOVirtualAddress(address.rawValue + 0x1000),
                        byteCount: 0x1000,
                        .toDevice
                    )
                },
                "device driver tries to free DMA memory it has not allocated "
                    + "[device address=0x\(hex(address.rawValue + 0x1000, digits: 16))] [size=4096 bytes]"
            ),
            (
                { try device.unmap(address, byteCount: 0x1000, .toDevice) },
                "device driver frees DMA memory with different size \(place) "
                    + "[map size=8192 bytes] [unmap size=4096 bytes]"
            ),
            (
                { try device.unmap(address, byteCount: 0x2000, .fromDevice) },
                "device driver frees DMA memory with different direction \(place) [size=8192 bytes] "
                    + "[mapped with DMA_TO_DEVICE] [unmapped with DMA_FROM_DEVICE]"
            ),
            (
                { try device.unmap(address, byteCount: 0x2000, .toDevice, .mmio) },
                "device driver frees DMA memory with wrong function \(place) [size=8192 bytes] "
                    + "[mapped as single] [unmapped as resource]"
            ),
            (
                {
                    try device.syncForCPU(address, offset: 0x1001, byteCount: 0x1000, .toDevice)
                },
                "device driver syncs DMA memory outside allocated range \(place) "
                    + "[allocation size=8192 bytes] [sync offset+size=8193]"
            ),
            (
                {
                    try device.syncForDevice(IOVirtualAddress(0x1000), byteCount: 8, .toDevice)
                },
                "device driver tries to sync DMA memory it has not allocated "
                    + "[device address=0x0000000000001000] [size=8 bytes]"
            ),
            (
                { try device.syncForCPU(address, byteCount: 8, .fromDevice) },
                "device driver syncs DMA memory with different direction \(place) [size=8 bytes] "
                    + "[mapped with DMA_TO_DEVICE] [synced with DMA_FROM_DEVICE]"
            ),
        ]
        for (attempt, message) in attempts {
            let found = Self.dmaError(attempt)
            #expect(found == .misuse(message))
            #expect(found?.errorName == "EINVAL")
            #expect(bench.messages.last == "nic: " + message)
        }
        #expect(bench.messages.count == attempts.count)
        // It is mapped as it was.
        #expect(bench.port.read(address.rawValue + 0x1FF8) == .ok(0))
        try device.unmap(address, byteCount: 0x2000, .toDevice)
        #expect(
            Self.dmaError { try device.unmap(address, byteCount: 0x2000, .toDevice) }
                != nil
        )
        try Self.stillWorks(bench)
    }

    @Test func requestsWithoutSenseAreInvalid() throws {
        let bench = try DMABench(.dma)
        let device = bench.device
        let attempts: [() throws -> Void] = [
            { _ = try device.map(Self.page, byteCount: 0, .toDevice) },
            { _ = try device.map(PhysicalAddress(.max), byteCount: 2, .toDevice) },
            { _ = try device.allocateCoherent(byteCount: 0) },
            { _ = try device.allocateCoherent(byteCount: .max) },
            { _ = try device.map([], .toDevice) },
            { try device.setSegmentBoundaryMask(0xFFF0) },
        ]
        for attempt in attempts { #expect(Self.dmaError(attempt)?.errorName == "EINVAL") }
        // Physical addresses that no page table can hold.
        let beyond = Self.dmaError {
            _ = try device.map(PhysicalAddress(1 << 60), byteCount: 8, .toDevice)
        }
        #expect(beyond?.errorName == "ERANGE")
        #expect(device.mappingCount == 0)
        #expect(bench.domain.iovaStatistics?.cachedCount == 1)
        try Self.stillWorks(bench)
    }

    @Test func aMappingThatSomebodyTookAwayByHandIsToldAndGoes() throws {
        let bench = try DMABench(.dma)
        let address = try bench.device.map(Self.page, byteCount: 0x2000, .toDevice)
        _ = try bench.domain.unmap(address, byteCount: 0x1000)
        try bench.device.unmap(address, byteCount: 0x2000, .toDevice)
        #expect(
            bench.messages.count == 1 && bench.messages[0].hasPrefix("nic: unmapped 0x0 of 0x2000 bytes at")
        )
        try Self.stillWorks(bench)
    }

    @Test func aDriverThatLeavesMappingsIsTold() throws {
        let bench = try DMABench(.dma)
        #expect(bench.device.driverUnbinds() == 0)
        _ = try bench.device.map(Self.page, byteCount: 0x1000, .fromDevice)
        let buffer = try bench.device.allocateCoherent(byteCount: 64)
        #expect(bench.device.driverUnbinds() == 2)
        #expect(
            bench.messages == [
                "nic: device driver has pending DMA allocations while released from device [count=2] "
                    + "One of leaked entries details: [device address=0x00000000ffffe000] [size=64 bytes] "
                    + "[mapped with DMA_BIDIRECTIONAL] [mapped as coherent]"
            ]
        )
        try bench.device.freeCoherent(buffer)
        #expect(bench.device.driverUnbinds() == 1)
    }

    @Test func whatMayStillBeInTheTLBIsNotUsedAgain() throws {
        let bench = DriverBench()
        let (driver, domain) = try MappingTests.start(bench, .dma)
        let device = DMADevice(
            "nic",
            domain: domain,
            memory: DMAMemory(frames: bench.frames, access: bench.smmu)
        )
        // The second buffer is beyond 44 bits; the first one's mapping has to go again, and cannot.
        let buffers = [0x4300_0000, 1 << 50].map { DMABuffer(PhysicalAddress($0), byteCount: 0x1000) }
        bench.smmu.script { $0.isQueueHung = true }
        let found = Self.dmaError { _ = try device.map(buffers, .toDevice) }
        #expect(found?.errorName == "ETIMEDOUT" && found?.leavesTranslations == true)
        bench.smmu.script { $0.isQueueHung = false }
        #expect(device.mappingCount == 0)
        #expect(domain.iovaStatistics?.takenByteCount == 0x3000)
        // A refusal of the table's alone costs nothing.
        #expect(Self.dmaError { _ = try device.map(buffers, .toDevice) }?.errorName == "ERANGE")
        domain.emptyIOVACache()
        #expect(domain.iovaStatistics?.takenByteCount == 0x3000)
        driver.stop()
    }

    // MARK: Mistakes with domains

    @Test func mistakesWithDomainsHaveTheKernelsErrorNumbers() throws {
        let bench = try DMABench(.unmanaged)
        let driver = bench.driver
        let endpoint = try #require(driver.endpoints.first)
        let domain = bench.domain
        let iova = IOVirtualAddress(0x10_0000)
        try domain.map(iova, to: Self.page, byteCount: 0x2000, permissions: .readWrite)
        let other = try ModelBench().start()
        let foreign = try other.makeDomain(.dma)
        let attempts: [(() throws -> Void, String)] = [
            // Twice the same StreamID, and a stream that no table has.
            (
                { _ = try driver.addEndpoint("x", streams: [StreamID(0x103)]) },
                "ENODEV"
            ),
            (
                { _ = try driver.addEndpoint("x", streams: [StreamID(.max)]) },
                "ERANGE"
            ),
            ({ _ = try driver.addEndpoint("x", streams: []) }, "EINVAL"),
            ({ try driver.attach(endpoint, to: foreign) }, "EINVAL"),
            (
                {
                    try driver.attach(endpoint, substream: SubstreamID(1), to: domain)
                },
                "ERANGE"
            ),
            (
                {
                    try domain.map(iova, to: Self.page, byteCount: 0x1000, permissions: .read)
                },
                "EEXIST"
            ),
            (
                {
                    try domain.map(
                        IOVirtualAddress(1 << 50),
                        to: Self.page,
                        byteCount: 0x1000,
                        permissions: .read
                    )
                },
                "ERANGE"
            ),
            (
                {
                    try domain.map(
                        IOVirtualAddress(0x10),
                        to: Self.page,
                        byteCount: 0x1000,
                        permissions: .read
                    )
                },
                "EINVAL"
            ),
            (
                {
                    _ = try driver.identityDomain.unmap(iova, byteCount: 0x1000)
                },
                "EINVAL"
            ),
        ]
        for (index, (attempt, name)) in attempts.enumerated() {
            let found = Self.driverError(attempt)
            #expect(found?.errorName == name, "attempt \(index): \(String(describing: found))")
        }
        // To its own domain once more changes nothing, and an unmap of nothing unmaps nothing.
        try driver.attach(endpoint, to: domain)
        let outcome = try domain.unmap(IOVirtualAddress(0x20_0000), byteCount: 0x1000)
        #expect(outcome.byteCount == 0 && outcome.stoppedBy?.errorName == "ENOENT")
        #expect(bench.port.write(0x10_1FF8, 5) == .ok(0))
        other.stop()
    }

    // MARK: Exhaustion

    @Test func whenASIDsRunOutDomainsThatAreThereGoOn() throws {
        var identification = Identification.stage1()
        identification.idr0.asid16 = false
        let model = try ModelBench(identification)
        let driver = try model.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(1)])
        var domains = try (0..<255).map { _ in try driver.makeDomain(.dma) }
        let used = model.frames.usedByteCount
        let found = Self.driverError { _ = try driver.makeDomain(.dma) }
        #expect(found == .asidsExhausted(count: 255))
        #expect(found?.errorName == "EBUSY")
        #expect(model.frames.usedByteCount == used)
        let last = try #require(domains.last)
        try driver.attach(endpoint, to: last)
        let device = DMADevice(
            "nic",
            domain: last,
            memory: DMAMemory(frames: model.frames, access: model.bus)
        )
        let address = try device.map(Self.page, byteCount: 8, .toDevice)
        #expect(model.smmu.makePort(for: StreamID(1)).read(address.rawValue) == .ok(0))
        domains.removeFirst(3)
        #expect(try driver.makeDomain(.dma).asid == 1)
        driver.stop()
    }

    @Test("when IOVAs run out what is mapped stays", arguments: [IOMMUDomainKind.dma, .dmaFQ])
    func iovas(_ kind: IOMMUDomainKind) throws {
        let bench = try DMABench(kind)
        try bench.device.setMaskAndCoherentMask(0xFFFF)
        let held = try (0..<15).map { _ in try bench.device.map(Self.page, byteCount: 0x1000, .toDevice) }
        let single = Self.dmaError {
            _ = try bench.device.map(Self.page, byteCount: 0x1000, .toDevice)
        }
        #expect(single == .noMemory(.iovasExhausted(byteCount: 0x1000)) && single?.errorName == "ENOMEM")
        let buffers = [DMABuffer(Self.page, byteCount: 0x1000)]
        #expect(
            Self.dmaError { _ = try bench.device.map(buffers, .toDevice) }?.errorName
                == "ENOMEM"
        )
        let used = bench.model.frames.usedByteCount
        #expect(
            Self.dmaError { _ = try bench.device.allocateCoherent(byteCount: 0x3000) }?
                .errorName
                == "ENOMEM"
        )
        #expect(bench.model.frames.usedByteCount == used)
        #expect(bench.messages.first == "nic: no free range of 0x1000 bytes of IOVAs")
        #expect(held.allSatisfy { bench.port.read($0.rawValue) == .ok(0) })
        for address in held { try bench.device.unmap(address, byteCount: 0x1000, .toDevice) }
        try Self.stillWorks(bench)
    }

    @Test("when frames run out nothing is half mapped", arguments: [IOMMUDomainKind.dma, .dmaFQ])
    func frames(_ kind: IOMMUDomainKind) throws {
        let bench = try DMABench(kind)
        let frames = bench.model.frames
        let warm = try bench.device.map(Self.page, byteCount: 0x1000, .toDevice)
        var held: [PhysicalAddress] = []
        for order in stride(from: 25, through: 12, by: -1) {
            while let block = try? frames.allocate(byteCount: 1 << UInt64(order), alignment: 1) {
                held.append(block)
            }
        }
        // 4 KiB fewer than what this needs: two tables of level 3 and one block fewer than it has pages.
        let last = held.removeLast()
        try frames.free(last)
        let buffers = (0..<1025).map {
            DMABuffer(PhysicalAddress(ModelBench.buffers + $0 * 0x2000), byteCount: 0x1000)
        }
        let mapped = Self.dmaError { _ = try bench.device.map(buffers, .toDevice) }
        #expect(mapped?.errorName == "ENOMEM")
        let coherent = Self.dmaError {
            _ = try bench.device.allocateCoherent(byteCount: 0x2000)
        }
        #expect(coherent?.errorName == "ENOMEM")
        let domain = Self.driverError {
            // The first takes the last frame, if the failed map left it.
            _ = (try bench.driver.makeDomain(.dma), try bench.driver.makeDomain(.dma))
        }
        #expect(domain?.errorName == "ENOMEM")
        #expect(bench.device.mappingCount == 1)
        #expect(bench.port.read(warm.rawValue) == .ok(0))
        for block in held { try frames.free(block) }
        try bench.device.unmap(warm, byteCount: 0x1000, .toDevice)
        try Self.stillWorks(bench)
        #expect(bench.device.mappingCount == 0)
        bench.domain.emptyIOVACache()
        #expect(bench.domain.iovaStatistics?.takenByteCount == 0x1000)
    }
}
