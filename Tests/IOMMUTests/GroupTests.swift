// The IOMMU core: parameters, groups, types, owners, and what sysfs shows.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Kernel parameters")
struct KernelParameterTests {
    @Test(
        "values as kstrtobool reads them",
        arguments: [
            ("0", false), ("1", true), ("y", true), ("N", false), ("on", true), ("off", false),
            ("True", true),
        ]
    )
    func values(_ text: String, _ expected: Bool) {
        let parameters = KernelParameters("quiet iommu.strict=\(text) iommu.passthrough=\(text)")
        #expect(parameters.strict == expected)
        #expect(parameters.passthrough == expected)
        #expect(parameters.complaints.isEmpty)
    }

    @Test func theLastOneCountsAndNothingAfterTwoDashes() {
        #expect(!KernelParameters("iommu.strict=1 iommu.strict=0 -- iommu.strict=1").strict)
    }

    @Test func modulesTakeBothSpellingsAndNoValue() {
        let parameters = KernelParameters("arm_smmu_v3.disable_bypass=n arm-smmu-v3.disable-msipolling")
        #expect(!parameters.disableBypass)
        #expect(parameters.disableMSIPolling)
    }

    @Test("what cannot be read is told and left alone", arguments: ["", "x", "o", "ox", "2"])
    func malformed(_ text: String) {
        let parameters = KernelParameters("iommu.strict=\(text)")
        #expect(parameters.strict)
        #expect(parameters.complaints == ["Malformed early option 'iommu.strict'"])
    }

    @Test func theDefaultDomainFollows() {
        #expect(KernelParameters("").defaultDomainKind == .dma)
        #expect(KernelParameters("iommu.strict=0").defaultDomainKind == .dmaFQ)
        #expect(KernelParameters("iommu.strict=0 iommu.passthrough=1").defaultDomainKind == .identity)
        #expect(
            KernelParameters("iommu.strict=0").announcement.last
                == "iommu: DMA domain TLB invalidation policy: lazy mode (set via kernel command line)"
        )
    }
}

@Suite("IOMMU groups")
struct GroupTests {
    private static let entry = AttachTests.entry

    private static func start(_ commandLine: String = "", bench: DriverBench = DriverBench()) throws -> (
        core: IOMMUCore, driver: SMMUv3Driver
    ) {
        (IOMMUCore(KernelParameters(commandLine)), try bench.start())
    }

    private static func addNIC(_ core: IOMMUCore, _ driver: SMMUv3Driver, untrusted: Bool = false) throws
        -> IOMMUGroup
    {
        try core.addDevice(
            "0000:00:01.0",
            driver: driver,
            key: .pci(segment: 0, leader: 8),
            streams: [StreamID(0x103)],
            isUntrusted: untrusted
        )
    }

    @Test(
        "the parameters choose the STE",
        arguments: [
            ("", 5 as UInt64, "DMA"), ("iommu.strict=0", 5, "DMA-FQ"), ("iommu.passthrough=1", 4, "identity"),
        ]
    )
    func defaults(_ commandLine: String, _ config: UInt64, _ type: String) throws {
        let bench = DriverBench()
        let (core, driver) = try Self.start(commandLine, bench: bench)
        let group = try Self.addNIC(core, driver)
        #expect(group.type == type)
        #expect((bench.smmu.word(Self.entry) >> 1) & 7 == config)
        driver.stop()
    }

    @Test func untrustedDevicesAreStrictWhateverIsAsked() throws {
        let (core, driver) = try Self.start("iommu.passthrough=1")
        let group = try Self.addNIC(core, driver, untrusted: true)
        #expect(group.type == "DMA")
        #expect(throws: IOMMUGroupError.self) { try group.setType(.identity) }
        #expect(throws: IOMMUGroupError.self) { try group.setType(.dmaFQ) }
        #expect(group.type == "DMA")
        driver.stop()
    }

    @Test func anUntrustedDeviceCannotJoinAGroupThatIsNotStrict() throws {
        let (core, driver) = try Self.start("iommu.strict=0")
        let group = try Self.addNIC(core, driver)
        #expect(throws: IOMMUGroupError.self) {
            _ = try core.addDevice(
                "0000:00:01.1",
                driver: driver,
                key: .pci(segment: 0, leader: 8),
                streams: [StreamID(0x104)],
                isUntrusted: true
            )
        }
        #expect(group.members.count == 1)
        #expect(core.group(of: "0000:00:01.1") == nil)
        // Its stream is free again.
        #expect(driver.endpoint(of: StreamID(0x104)) == nil)
        driver.stop()
    }

    @Test func aGroupMovesWhole() throws {
        let bench = DriverBench()
        let (core, driver) = try Self.start(bench: bench)
        let group = try Self.addNIC(core, driver)
        let same = try core.addDevice(
            "0000:00:01.1",
            driver: driver,
            key: .pci(segment: 0, leader: 8),
            streams: [StreamID(0x104)]
        )
        #expect(group === same)
        let other = try core.addDevice(
            "uart",
            driver: driver,
            key: .platform("uart"),
            streams: [StreamID(0x105)]
        )
        #expect(other.id == group.id + 1)
        try group.claim(by: "vfio")
        #expect((0..<3).map { (bench.smmu.word(Self.entry + $0 * 64) >> 1) & 7 } == [0, 0, 5])
        let domain = try driver.makeDomain(.unmanaged)
        try group.attach(domain, by: "vfio")
        #expect(group.members.allSatisfy { driver.domain(of: $0) === domain })
        try group.release(by: "vfio")
        #expect(group.members.allSatisfy { driver.domain(of: $0) === group.defaultDomain })
        driver.stop()
    }

    @Test func whoUsesTheGroupKeepsItFromOthers() throws {
        let (core, driver) = try Self.start()
        let group = try Self.addNIC(core, driver)
        try group.useDefaultDomain()
        #expect(throws: IOMMUGroupError.notPermitted("group 0 is in use")) { try group.claim(by: "vfio") }
        group.unuseDefaultDomain()
        try group.claim(by: "vfio")
        #expect(throws: IOMMUGroupError.busy("group 0 is not in its default domain")) {
            try group.useDefaultDomain()
        }
        #expect(throws: IOMMUGroupError.notPermitted("iommufd does not own group 0")) {
            try group.release(by: "iommufd")
        }
        let domain = try driver.makeDomain(.unmanaged)
        try group.attach(domain, by: "vfio")
        let second = try driver.makeDomain(.unmanaged)
        #expect(throws: IOMMUGroupError.busy("group 0 is attached to another domain")) {
            try group.attach(second, by: "vfio")
        }
        driver.stop()
    }

    @Test func theTypeChangesAsSysfsAllows() throws {
        let (core, driver) = try Self.start()
        let group = try Self.addNIC(core, driver)
        try group.useDefaultDomain()
        let domain = group.defaultDomain
        #expect(throws: IOMMUGroupError.notPermitted("group 0 has no device, or somebody uses it")) {
            try group.setType(.identity)
        }
        // The one change that a bound driver need not notice.
        try group.setType(.dmaFQ)
        #expect(group.type == "DMA-FQ")
        #expect(group.defaultDomain === domain)
        #expect(throws: IOMMUGroupError.self) { try group.setType(.dma) }
        group.unuseDefaultDomain()
        try group.setType(.dma)
        #expect(group.type == "DMA")
        #expect(group.defaultDomain !== domain)
        try group.setType(.identity)
        #expect(driver.domain(of: group.members[0]) === driver.identityDomain)
        try group.setType(.auto)
        #expect(group.type == "DMA")
        driver.stop()
    }

    @Test func whatMustStayMappedCannotBeClaimed() throws {
        let (core, driver) = try Self.start()
        let framebuffer = try #require(AddressRange(start: 0x4200_0000, byteCount: 0x2000))
        let group = try core.addDevice(
            "display",
            driver: driver,
            key: .platform("display"),
            streams: [StreamID(0x103)],
            reservedRegions: [ReservedRegion(.direct, framebuffer)]
        )
        #expect(throws: IOMMUGroupError.driver(.endpointNeedsDirectRegions("display"))) {
            try group.claim(by: "vfio")
        }
        #expect(group.owner == nil)
        #expect(
            core.sysfs["/sys/kernel/iommu_groups/0/reserved_regions"]
                == "0x0000000008000000 0x00000000080fffff msi\n"
                + "0x0000000042000000 0x0000000042001fff direct\n"
        )
        driver.stop()
    }

    @Test func sysfsAndRemoval() throws {
        let (core, driver) = try Self.start()
        _ = try Self.addNIC(core, driver)
        #expect(core.sysfs["/sys/kernel/iommu_groups/0/type"] == "DMA\n")
        #expect(core.sysfs["/sys/kernel/iommu_groups/0/devices/0000:00:01.0"] == "0000:00:01.0")
        #expect(
            core.sysfs["/sys/class/iommu/smmu3.0x0000000009050000/devices/0000:00:01.0"] == "0000:00:01.0"
        )
        #expect(throws: IOMMUGroupError.busy("0000:00:01.0 has a group already")) {
            _ = try Self.addNIC(core, driver)
        }
        try core.removeDevice("0000:00:01.0")
        #expect(core.sysfs.isEmpty)
        #expect(throws: IOMMUGroupError.invalid("0000:00:01.0 has no group")) {
            try core.removeDevice("0000:00:01.0")
        }
        // Numbers are not used again while the core lives.
        #expect(try Self.addNIC(core, driver).id == 1)
        driver.stop()
    }
}

@Suite("PCI groups")
struct PCIGroupingTests {
    private static let all = PCITopologyNode.AccessControl.isolating

    private static func port(
        _ kind: PCITopologyNode.Kind,
        _ id: UInt16,
        below parent: UInt16? = nil,
        isolating: Bool
    ) -> PCITopologyNode {
        PCITopologyNode(
            kind,
            at: id,
            below: parent,
            accessCapability: isolating ? all : nil,
            accessControl: isolating ? all : []
        )
    }

    @Test func endpointsOnTheRootBusStandAlone() {
        let grouping = PCIGrouping([.init(.endpoint, at: 8), .init(.endpoint, at: 16)])
        #expect(grouping.group(of: 8) == [8])
        #expect(grouping.group(of: 16) == [16])
        #expect(grouping.group(of: 24) == nil)
    }

    @Test func functionsOfOneDeviceShareUnlessACSKeepsThemApart() {
        func function(_ id: UInt16, _ capability: PCITopologyNode.AccessControl?) -> PCITopologyNode {
            .init(
                .endpoint,
                at: id,
                isMultiFunction: true,
                accessCapability: capability,
                accessControl: capability ?? []
            )
        }
        // The device has no request redirect to switch on: it is not asked for.
        let services: PCITopologyNode.AccessControl = [.completionRedirect]
        let grouping = PCIGrouping([
            function(8, nil), function(9, nil), function(10, services), function(16, nil),
        ])
        #expect(grouping.group(of: 8) == [8, 9])
        #expect(grouping.group(of: 9) == [8, 9])
        #expect(grouping.group(of: 10) == [10])
        #expect(grouping.group(of: 16) == [16])
    }

    @Test(
        "a root port without ACS is one group with all below it, one with ACS is not",
        arguments: [false, true]
    )
    func rootPort(_ isolating: Bool) {
        let grouping = PCIGrouping([
            Self.port(.rootPort, 0x08, isolating: isolating),
            .init(.endpoint, at: 0x100, below: 0x08),
        ])
        #expect(grouping.group(of: 0x100) == (isolating ? [0x100] : [0x08, 0x100]))
    }

    @Test("a switch isolates if its downstream ports and the root port do", arguments: [false, true])
    func aSwitch(_ rootIsolates: Bool) {
        let grouping = PCIGrouping([
            Self.port(.rootPort, 0x08, isolating: rootIsolates),
            .init(.upstreamPort, at: 0x100, below: 0x08),
            Self.port(.downstreamPort, 0x200, below: 0x100, isolating: true),
            Self.port(.downstreamPort, 0x208, below: 0x100, isolating: true),
            .init(.endpoint, at: 0x300, below: 0x200),
            .init(.endpoint, at: 0x400, below: 0x208),
        ])
        let everything: [UInt16] = [0x08, 0x100, 0x200, 0x208, 0x300, 0x400]
        #expect(grouping.group(of: 0x300) == (rootIsolates ? [0x300] : everything))
    }

    @Test func behindAConventionalBridgeAllSpeakInItsName() {
        let grouping = PCIGrouping([
            Self.port(.rootPort, 0x08, isolating: true),
            .init(.conventionalBridge, at: 0x100, below: 0x08),
            .init(.endpoint, at: 0x208, below: 0x100),
            .init(.endpoint, at: 0x210, below: 0x100),
        ])
        #expect(grouping.group(of: 0x208) == [0x100, 0x208, 0x210])
    }

    @Test func aliasesShare() {
        let grouping = PCIGrouping([.init(.endpoint, at: 8, aliases: [16, 99]), .init(.endpoint, at: 16)])
        #expect(grouping.group(of: 16) == [8, 16])
    }

    @Test func aTopologyThatBitesItsTailEnds() {
        let grouping = PCIGrouping([
            .init(.rootPort, at: 8, below: 16), .init(.rootPort, at: 16, below: 8),
            .init(.endpoint, at: 0x100, below: 8),
        ])
        #expect(grouping.group(of: 0x100) == [8, 16, 0x100])
    }
}
