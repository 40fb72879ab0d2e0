// IORTs from elsewhere and by hand, read field by field. Expected values are worked out from DEN0049's tables.

import ACPITables
import IORTFixtures
import Testing

@Suite("IORT")
struct IORTTableTests {
    private func table(_ name: String) throws -> IORTTable { try IORTTable(try IORTFixture(name).bytes) }

    private func node(_ table: IORTTable, _ offset: UInt32) throws -> IORTNode {
        try #require(table.node(at: offset))
    }

    @Test("The header: signature, length, revision, and who made it")
    func header() throws {
        let header = try table("everything").header
        #expect(header.signature == "IORT")
        #expect(header.byteCount == 0x39C)
        #expect(header.revision == 6)
        #expect(header.oemID == "SMMUD")
        #expect(header.oemTableID == "FIXTURE")
    }

    @Test("A table with a node of each kind has nothing to warn of, and each node where it starts")
    func everyKind() throws {
        let table = try table("everything")
        #expect(table.warnings.isEmpty)
        #expect(table.nodes.map(\.type.rawValue) == [0, 4, 4, 4, 5, 5, 2, 2, 1, 1, 6, 6, 3])
        #expect(
            table.nodes.map(\.offset) == [
                0x30, 0x4C, 0xB8, 0x110, 0x154, 0x17C, 0x1B8, 0x208, 0x23C, 0x28C, 0x2C8, 0x30C, 0x350,
            ]
        )
        #expect(table.nodes.map(\.identifier) == Array(0...12))
        #expect(table.node(at: 0x4D) == nil)
        #expect(try node(table, 0x30).content == .itsGroup(identifiers: [0, 1]))
        #expect(try node(table, 0x350).content == .smmu(base: 0x2B00_0000))
    }

    @Test("SMMUv3 nodes: base, overrides, model, GSIVs, DeviceID mapping")
    func smmuV3() throws {
        let table = try table("everything")
        let first = try node(table, 0x4C)
        guard case .smmuV3(let smmu) = first.content else {
            Issue.record("no SMMUv3")
            return
        }
        #expect(smmu.base == 0x2B40_0000)
        #expect(smmu.isCoherent)
        #expect(smmu.httuOverride == 2)
        #expect(smmu.isProximityDomainValid)
        #expect(smmu.isDeviceIDMappingIndexValid)
        #expect(smmu.model == .generic)
        #expect(smmu.gsivs == [106, 108, 107, 109])
        #expect(smmu.deviceIDMappingIndex == 1)
        #expect(first.revision == 5)
        #expect(
            first.mappings == [
                IORTMapping(
                    inputBase: 0,
                    countMinusOne: 0xFFFF,
                    outputBase: 0,
                    outputReference: 0x30,
                    flags: 0
                ),
                IORTMapping(
                    inputBase: 0,
                    countMinusOne: 0,
                    outputBase: 0x10000,
                    outputReference: 0x30,
                    flags: 1
                ),
            ]
        )
        guard case .smmuV3(let second) = try node(table, 0xB8).content,
            case .smmuV3(let third) = try node(table, 0x110).content
        else {
            Issue.record("no SMMUv3")
            return
        }
        #expect(second.model == .hisiliconHi161x)
        #expect(!second.isCoherent)
        #expect(third.model == .caviumCN99xx)
        #expect(third.gsivs == [120, 120, 120, 120])
    }

    @Test("PMCG nodes: both pages, interrupt, and whose events they are")
    func counterGroups() throws {
        let table = try table("everything")
        guard case .pmcg(let first) = try node(table, 0x154).content,
            case .pmcg(let second) = try node(table, 0x17C).content
        else {
            Issue.record("no PMCG")
            return
        }
        #expect(first.page0 == 0x2B42_0000)
        #expect(first.page1 == 0x2B43_0000)
        #expect(first.overflowGSIV == 115)
        #expect(first.nodeReference == 0x4C)
        #expect(second.overflowGSIV == 0)
        #expect(second.nodeReference == 0xB8)
    }

    @Test("Root complexes: coherence, ATS, segment, and what later revisions added")
    func rootComplexes() throws {
        let table = try table("everything")
        guard case .rootComplex(let newer) = try node(table, 0x1B8).content,
            case .rootComplex(let older) = try node(table, 0x208).content
        else {
            Issue.record("no root complex")
            return
        }
        #expect(newer.memoryAccess.isCoherent)
        #expect(newer.memoryAccess.flags == 3)
        #expect(newer.supportsATS)
        #expect(newer.segment == 0)
        #expect(newer.addressSizeLimit == 48)
        #expect(newer.pasidCapabilities == 20)
        #expect(older.segment == 1)
        #expect(!older.supportsATS)
        #expect(older.addressSizeLimit == nil)
        #expect(older.pasidCapabilities == 0)
    }

    @Test("Named components: path, stall, SubstreamID width, address limit")
    func namedComponents() throws {
        let table = try table("everything")
        guard case .namedComponent(let first) = try node(table, 0x23C).content,
            case .namedComponent(let second) = try node(table, 0x28C).content
        else {
            Issue.record("no named component")
            return
        }
        #expect(first.objectName == "\\_SB_.DMA0")
        #expect(first.canStall)
        #expect(first.substreamBits == 10)
        #expect(first.addressSizeLimit == 40)
        #expect(first.memoryAccess.isCoherent)
        #expect(second.objectName == "\\_SB_.USB0")
        #expect(!second.canStall)
        #expect(!second.memoryAccess.isCoherent)
    }

    @Test("Reserved memory ranges: flags, attributes, descriptors behind the mappings")
    func reservedRanges() throws {
        let table = try table("everything")
        guard case .rmr(let first) = try node(table, 0x2C8).content,
            case .rmr(let second) = try node(table, 0x30C).content
        else {
            Issue.record("no RMR")
            return
        }
        #expect(first.descriptors.map(\.base) == [0x8830_0000])
        #expect(first.descriptors.map(\.byteCount) == [0x10_0000])
        #expect(first.accessAttributes == 5)
        #expect(!first.isRemappingPermitted)
        #expect(second.isRemappingPermitted)
        #expect(!second.isPrivileged)
    }

    @Test("QEMU's table, which another program wrote")
    func qemu() throws {
        let table = try table("qemu-virt")
        #expect(table.warnings.isEmpty)
        #expect(table.header.revision == 3)
        #expect(table.nodes.map(\.type) == [.itsGroup, .smmuV3, .rootComplex])
        #expect(table.nodes.map(\.revision) == [1, 4, 3])
        guard case .smmuV3(let smmu) = table.nodes[1].content else {
            Issue.record("no SMMUv3")
            return
        }
        #expect(smmu.base == 0x905_0000)
        #expect(smmu.gsivs == [106, 107, 109, 108])
        #expect(table.nodes[2].mappings.map(\.countMinusOne) == [0x100, 0xFEFF])
    }

    @Test("Ampere Altra's table, as it was published: its checksum shows that it is whole")
    func altra() throws {
        let bytes = try IORTFixture("altra").bytes
        #expect(bytes[9] == 0x95)
        let table = try IORTTable(bytes)
        #expect(table.warnings.isEmpty)
        #expect(table.header.oemID == "Ampere")
        #expect(table.nodes.count == 18)
        let bases = table.nodes.compactMap { node in
            if case .smmuV3(let smmu) = node.content { smmu.base } else { nil }
        }
        #expect(
            bases == [
                0x33FF_E000_0000, 0x37FF_E000_0000, 0x3FFF_E000_0000, 0x23FF_E000_0000, 0x2BFF_E000_0000,
                0x2FFF_E000_0000,
            ]
        )
    }
}
