// Domains of stage 2: on an SMMU that has nothing else, and as parents that others could nest in.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

@testable import IOMMU

@Suite("Stage-2 domains")
struct StageTwoDomainTests {
    private static let iova: UInt64 = 0x10_0000
    private static let memory = ModelBench.buffers + 0x5000

    private static func stage2Only() -> Identification { .stage2() }

    private func map(_ domain: IOMMUDomain, _ iova: UInt64 = iova, to physical: UInt64 = memory) throws {
        try domain.map(
            IOVirtualAddress(iova),
            to: PhysicalAddress(physical),
            byteCount: 0x1000,
            permissions: [.readWrite, .cacheable]
        )
    }

    @Test("an SMMU without stage 1 translates by stage 2, until the unmap")
    func translates() throws {
        let bench = try ModelBench(Self.stage2Only())
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("device", streams: [StreamID(0x10)])
        let domain = try driver.makeDomain(.dma)
        #expect(domain.asid == nil && domain.vmid == 1)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(0x10))
        #expect(port.read(Self.iova) == .translationFault)
        try map(domain)
        #expect(port.write(Self.iova, 0x1234) == .ok(0))
        #expect(try bench.bus.load(.doubleword, at: PhysicalAddress(Self.memory)) == 0x1234)
        #expect(port.read(Self.iova) == .ok(0x1234))
        #expect(try domain.unmap(IOVirtualAddress(Self.iova), byteCount: 0x1000).byteCount == 0x1000)
        #expect(port.read(Self.iova) == .translationFault)
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(port.read(Self.iova) == .fault(.aborted))
    }

    @Test("the STE is the kernel's, word by word")
    func entry() throws {
        let bench = try ModelBench(Self.stage2Only())
        let driver = try bench.start()
        let domain = try driver.makeDomain(.unmanaged, granule: .kib4)
        let root = try #require(domain.root).rawValue
        let features = driver.features
        try #require(features.outputAddressBits == 52 || features.outputAddressBits == 48)
        let entry = STE.translatingStage2(
            try #require(domain.configuration),
            root: PhysicalAddress(root),
            vmid: 0x1234,
            canStall: true,
            features: features
        )
        // arm_smmu_make_s2_domain_ste. V, Config = 0b110; SHCFG = 0b01, use incoming; S2T0SZ = 16, S2SL0 = 2 (level 0),
        // S2IR0 = S2OR0 = 1, S2SH0 = 3, S2TG = 0, S2PS = 5, S2AA64, S2PTW, S2S, S2R.
        #expect(entry.words[0] == 0xD)
        #expect(entry.words[1] == (features.flags.contains(.attributeOverrides) ? 0x1000_0000_0000 : 0))
        #expect(entry.words[2] == 0x064D_3590_0000_1234)
        #expect(entry.words[3] == root)
        for word in 4..<8 { #expect(entry.words[word] == 0) }
    }

    @Test("unmaps are named by VMID and IPA, the end of a domain by its VMID")
    func commands() throws {
        let bench = try ModelBench(Self.stage2Only())
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("device", streams: [StreamID(0x10)])
        var domain: IOMMUDomain? = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: try #require(domain))
        try map(try #require(domain))
        func opcodes(since first: UInt64) -> [Opcode] {
            driver.sentCommands(since: first).commands.map(\.command.opcode)
        }
        var first = driver.device.commands.history.next
        _ = try domain?.unmap(IOVirtualAddress(Self.iova), byteCount: 0x1000)
        #expect(opcodes(since: first) == [.tlbiS2IPA, .sync])
        try driver.attach(endpoint, to: driver.blockedDomain)
        first = driver.device.commands.history.next
        domain = nil
        #expect(opcodes(since: first) == [.tlbiS12VMAll, .sync])
        // The number is free again.
        #expect(try driver.makeDomain(.unmanaged).vmid == 1)
    }

    @Test("VMIDs run out with the kernel's error, and everything goes on")
    func exhaustion() throws {
        var identification = Self.stage2Only()
        identification.idr0.vmid16 = false
        let bench = try ModelBench(identification)
        let driver = try bench.start()
        var domains = try (1...255).map { _ in try driver.makeDomain(.unmanaged) }
        #expect(Set(domains.compactMap(\.vmid)).count == 255)
        #expect(throws: SMMUDriverError.vmidsExhausted(count: 255)) { try driver.makeDomain(.unmanaged) }
        #expect(SMMUDriverError.vmidsExhausted(count: 255).errorName == "ENOSPC")
        let freed = try #require(domains.popLast()?.vmid)
        #expect(try driver.makeDomain(.unmanaged).vmid == freed)
        #expect(driver.device.vmids.usedCount == 254)
        domains = []
        #expect(driver.device.vmids.usedCount == 0)
    }

    @Test("where there is stage 1 a domain is stage 2 only as a parent, and SubstreamIDs do without it")
    func parents() throws {
        let bench = try ModelBench(.full())
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("device", streams: [StreamID(0x10)], substreamBits: 4)
        let stage1 = try driver.makeDomain(.unmanaged)
        let parent = try driver.makeDomain(.unmanaged, isNestingParent: true)
        #expect(stage1.vmid == nil && stage1.asid != nil)
        #expect(parent.vmid == 1 && parent.asid == nil)
        #expect(throws: SMMUDriverError.substreamNeedsStage1) {
            try driver.attach(endpoint, substream: SubstreamID(3), to: parent)
        }
        try driver.attach(endpoint, substream: SubstreamID(3), to: stage1)
        #expect(throws: SMMUDriverError.substreamsInUse(endpoint: "device")) {
            try driver.attach(endpoint, to: parent)
        }
        try driver.detach(endpoint, substream: SubstreamID(3))
        try driver.attach(endpoint, to: parent)
        #expect(throws: SMMUDriverError.substreamNeedsStage1) {
            try driver.attach(endpoint, substream: SubstreamID(3), to: stage1)
        }
        try map(parent)
        let port = bench.smmu.makePort(for: StreamID(0x10))
        #expect(port.write(Self.iova, 7) == .ok(0))
        // And back to stage 1, under the same address.
        try map(stage1, to: Self.memory + 0x1000)
        try driver.attach(endpoint, to: stage1)
        #expect(port.write(Self.iova, 8) == .ok(0))
        #expect(try bench.bus.load(.doubleword, at: PhysicalAddress(Self.memory)) == 7)
        #expect(try bench.bus.load(.doubleword, at: PhysicalAddress(Self.memory + 0x1000)) == 8)

        let stage1Alone = try ModelBench(.stage1()).start()
        #expect(throws: SMMUDriverError.noNesting) {
            try stage1Alone.makeDomain(.unmanaged, isNestingParent: true)
        }
    }

    @Test(
        "every granule and size of leaf translates as the driver mapped it",
        arguments: PageTableGranule.allCases
    )
    func granules(granule: PageTableGranule) throws {
        let bench = try ModelBench(Self.stage2Only())
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("device", streams: [StreamID(0x10)])
        let domain = try driver.makeDomain(.unmanaged, granule: granule)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(0x10))
        let sizes = try #require(domain.configuration).pageByteCounts.filter {
            $0 <= ModelBench.buffersByteCount
        }
        try #require(sizes.count >= 2)
        for (index, size) in sizes.enumerated() {
            let iova = UInt64(index + 1) << 36
            try domain.map(
                IOVirtualAddress(iova),
                to: PhysicalAddress(ModelBench.buffers),
                byteCount: size,
                permissions: [.readWrite, .cacheable]
            )
            let value = UInt64(index) + 0x55
            #expect(port.write(iova + size - 8, value) == .ok(0))
            #expect(
                try bench.bus.load(.doubleword, at: PhysicalAddress(ModelBench.buffers + size - 8)) == value
            )
            #expect(port.read(iova + size) == .translationFault)
            _ = try domain.unmap(IOVirtualAddress(iova), byteCount: size)
            #expect(port.read(iova) == .translationFault)
        }
    }
}
