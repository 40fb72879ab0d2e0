// Descriptors in memory, word by word, worked out by hand from the architecture's descriptor tables.

import AddressSpace
import Testing

@testable import IOPageTable

@Suite("Descriptors of stage 1")
struct DescriptorTests {
    /// Permissions, and the attribute bits of a page: nG 11, AF 10, SH 9:8 (3 inner, 2 outer), AP[2] 7 (read
    /// only), AP[1] 6 (unprivileged), AttrIndx 4:2 (0 NC, 1 WB, 2 device), XN 54:53, type 1:0 (3 page).
    static let attributes: [(MappingPermissions, UInt64)] = [
        ([.read, .write, .cacheable], 0x0000_0000_0000_0F47),
        ([.read, .cacheable], 0x0000_0000_0000_0FC7),
        ([.read], 0x0000_0000_0000_0EC3),
        ([.write], 0x0000_0000_0000_0E43),
        ([.read, .write, .privileged, .cacheable], 0x0000_0000_0000_0F07),
        ([.read, .write, .noExecute, .cacheable], 0x0060_0000_0000_0F47),
        ([.write, .noExecute, .device], 0x0060_0000_0000_0E4B),
        ([.read, .write, .device, .cacheable], 0x0000_0000_0000_0F4B),
    ]

    @Test("a page carries the attributes of its permissions", arguments: attributes)
    func pageAttributes(_ permissions: MappingPermissions, _ expected: UInt64) throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x1000, 0x8_0000_3000, 0x1000, permissions)
        #expect(try bench.leaf(0x1000) == expected | 0x8_0000_3000)
    }

    @Test func mappingOnePageWritesThreeTablesAndOneLeaf() throws {
        var bench = try PageTableBench(.kib4)
        #expect(bench.table.root == PhysicalAddress(0x4000_0000))
        // Level 0 index 1, level 1 index 2, level 2 index 3, level 3 index 4.
        let iova: UInt64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12
        try bench.map(iova, 0x1234_5000, 0x1000)
        let stores = bench.memory.takeStores()
        #expect(
            stores.map(\.address) == [0x4000_0008, 0x4000_1010, 0x4000_2018, 0x4000_3020]
        )
        #expect(
            stores.map(\.value) == [0x4000_1003, 0x4000_2003, 0x4000_3003, 0x1234_5F47]
        )
        #expect(bench.table.tableCount == 4)
    }

    @Test func blocksHaveTypeOneAtTheirLevel() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_0000, 0x8020_0000, 0x20_0000)
        #expect(try bench.leaf(0x20_0000) == 0x8020_0F45)
        try bench.map(0x4000_0000, 0x1_8000_0000, 0x4000_0000)
        #expect(try bench.leaf(0x4000_0000) == 0x1_8000_0F45)
        var medium = try PageTableBench(.kib16)
        try medium.map(0x200_0000, 0x8200_0000, 0x200_0000)
        #expect(try medium.leaf(0x200_0000) == 0x8200_0F45)
        var large = try PageTableBench(.kib64)
        try large.map(0x2000_0000, 0xA000_0000, 0x2000_0000)
        #expect(try large.leaf(0x2000_0000) == 0xA000_0F45)
    }

    @Test("with 64 KiB pages bits [15:12] hold physical address bits [51:48]")
    func wideAddresses() throws {
        var bench = try PageTableBench(.kib64, input: 52, output: 52)
        try bench.map(0x8_0000_0001_0000, 0xF_1234_5677_0000, 0x1_0000)
        #expect(try bench.leaf(0x8_0000_0001_0000) == 0x0000_1234_5677_FF47)
        #expect(try bench.physical(0x8_0000_0001_0042) == 0xF_1234_5677_0042)
        // A 4 TiB block: bits [47:42] of its address, and [51:48] below.
        try bench.map(0x400_0000_0000, 0x9_FC00_0000_0000, 0x400_0000_0000)
        #expect(try bench.leaf(0x400_0000_0000) == 0x0000_FC00_0000_9F45)
        #expect(try bench.physical(0x4FF_FFFF_FFFF) == 0x9_FCFF_FFFF_FFFF)
    }

    @Test func aWalkerThatDoesNotSnoopGetsTablesMarkedSynced() throws {
        var bench = try PageTableBench(.kib64, isCoherent: false)
        try bench.map(0, 0x9000_0000, 0x1_0000, [.read])
        // Each link is first made and then marked in bit 55.
        #expect(
            bench.memory.takeStores().map(\.value) == [
                0x4001_0003, 0x0080_0000_4001_0003, 0x4002_0003, 0x0080_0000_4002_0003, 0x9000_0EC3,
            ]
        )
        #expect(try bench.physical(0x42) == 0x9000_0042)
    }

    @Test func aWalkNamesEachDescriptorOnTheWay() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_0000, 0x8020_0000, 0x20_0000)
        #expect(
            try bench.table.walk(IOVirtualAddress(0x21_2345)) == [
                PageTableWalkStep(
                    level: 0,
                    descriptorAddress: PhysicalAddress(0x4000_0000),
                    descriptor: 0x4000_1003
                ),
                PageTableWalkStep(
                    level: 1,
                    descriptorAddress: PhysicalAddress(0x4000_1000),
                    descriptor: 0x4000_2003
                ),
                PageTableWalkStep(
                    level: 2,
                    descriptorAddress: PhysicalAddress(0x4000_2008),
                    descriptor: 0x8020_0F45
                ),
            ]
        )
        #expect(
            try bench.table.translate(IOVirtualAddress(0x21_2345))
                == PageTableTranslation(
                    physical: PhysicalAddress(0x8021_2345),
                    pageByteCount: 0x20_0000,
                    permissions: [.read, .write, .cacheable],
                    descriptor: 0x8020_0F45
                )
        )
        #expect(try bench.table.walk(IOVirtualAddress(1 << 48)).isEmpty)
    }
}
