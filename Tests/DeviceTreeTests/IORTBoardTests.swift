// Boards that an IORT describes alone. Expected values are worked out from the tables by hand, as Linux would.

import AddressSpace
import DeviceModel
import DeviceTree
import IORTFixtures
import Testing

/// RAM for tables that say nothing of it, away from everything that they name.
let iortRAM = range(0x8000_0000, 0x4000_0000)

extension BoardDescription {
    /// The board of an IORT alone.
    static func load(_ fixture: IORTFixture) throws(DeviceTreeErrors) -> BoardDescription {
        try load(tree: nil, iort: fixture.bytes, ram: [iortRAM])
    }
}

/// An SPI of the GIC that a board without a tree has.
func iortSPI(_ number: UInt32, id: UInt32) -> InterruptIdentity {
    spi(number, id: id, .edgeRising, of: "/iort/gic")
}

@Suite("Boards from an IORT alone")
struct IORTBoardTests {
    private func everything() throws -> BoardDescription { try .load(try IORTFixture("everything")) }

    @Test("SMMUs: registers, interrupts by GSIV, coherence, quirks, where their own messages go")
    func smmus() throws {
        let board = try everything()
        #expect(
            board.smmus.map(\.path) == [
                "/iort/smmuv3@2b400000", "/iort/smmuv3@2b600000", "/iort/smmuv3@2b800000",
            ]
        )
        #expect(
            board.smmus.map(\.registers) == [
                range(0x2B40_0000, 0x2_0000), range(0x2B60_0000, 0x2_0000), range(0x2B80_0000, 0x1_0000),
            ]
        )
        #expect(
            board.smmus.map(\.lines) == [
                [
                    "eventq": iortSPI(74, id: 106), "gerror": iortSPI(75, id: 107),
                    "priq": iortSPI(76, id: 108), "cmdq-sync": iortSPI(77, id: 109),
                ],
                [
                    "eventq": iortSPI(80, id: 112), "gerror": iortSPI(81, id: 113),
                    "cmdq-sync": iortSPI(82, id: 114),
                ],
                ["combined": iortSPI(88, id: 120)],
            ]
        )
        #expect(board.smmus.map(\.isDMACoherent) == [true, false, true])
        #expect(board.smmus.map(\.hasBrokenPrefetchCommand) == [false, true, false])
        #expect(board.smmus.map(\.hasBrokenPage1RegisterSpace) == [false, false, true])
        #expect(board.smmus.map(\.isEnabled) == [true, true, true])
        #expect(board.smmus.map(\.httuOverride) == [2, 0, 0])
        // Of the RMRs: their devices are running.
        #expect(
            board.smmus.map { $0.firmwareStreams.map(\.rawValue) } == [Array(0x1008...0x1017), [0x42], []]
        )
        #expect(
            board.smmus.map(\.msiParent) == [
                MSIParent(controllerPath: "/iort/its@0", specifier: [0x10000]),
                MSIParent(controllerPath: "/iort/its@0", specifier: [0x10001]), nil,
            ]
        )
        #expect(board.model == "SMMUD FIXTURE")
        #expect(board.warnings.isEmpty)
    }

    @Test("Counter groups: pages, interrupt or messages, and whose they are")
    func counterGroups() throws {
        #expect(
            try everything().pmcgs == [
                PMCGNode(
                    path: "/iort/pmcg@2b420000",
                    page0: range(0x2B42_0000, 0x1000),
                    page1: range(0x2B43_0000, 0x1000),
                    interrupt: iortSPI(83, id: 115),
                    smmuPath: "/iort/smmuv3@2b400000"
                ),
                PMCGNode(
                    path: "/iort/pmcg@2b620000",
                    page0: range(0x2B62_0000, 0x1000),
                    page1: range(0x2B63_0000, 0x1000),
                    msiParent: MSIParent(controllerPath: "/iort/its@0", specifier: [0x10002]),
                    smmuPath: "/iort/smmuv3@2b600000"
                ),
            ]
        )
    }

    @Test("Root complexes: RequesterID to StreamID, and on to DeviceID, or to DeviceID alone")
    func rootComplexes() throws {
        let board = try everything()
        #expect(board.pcieHosts.map(\.path) == ["/iort/pcie@0", "/iort/pcie@1"])
        #expect(board.pcieHosts.map(\.domain) == [0, 1])
        #expect(board.pcieHosts.map(\.supportsATS) == [true, false])
        #expect(board.pcieHosts.map(\.isDMACoherent) == [true, true])
        let host = board.pcieHosts[0]
        #expect(host.iommu(forRequester: 0x08)?.path == "/iort/smmuv3@2b400000")
        #expect(host.iommu(forRequester: 0x08)?.streamID?.rawValue == 0x1008)
        #expect(host.iommu(forRequester: 0xFF)?.streamID?.rawValue == 0x10FF)
        #expect(host.iommu(forRequester: 0x100) == nil)
        #expect(host.msiController(forRequester: 0x08)?.deviceID == 0x1008)
        #expect(host.msiController(forRequester: 0x123)?.deviceID == 0x123)
        #expect(host.msiController(forRequester: 0x123)?.path == "/iort/its@0")
        #expect(host.msiController(forRequester: 0x200) == nil)
        let other = board.pcieHosts[1]
        #expect(other.iommu(forRequester: 0xFFFF)?.streamID?.rawValue == 0x2FFFF)
        // StreamIDs from 0x20000 on are in no mapping of the SMMU.
        #expect(other.msiController(forRequester: 0) == nil)
    }

    @Test("Named components: StreamIDs, SubstreamIDs, stalls, coherence, DeviceID")
    func namedComponents() throws {
        let board = try everything()
        #expect(board.devices.map(\.path) == ["/iort/_SB_/DMA0", "/iort/_SB_/USB0"])
        let dma = board.devices[0]
        #expect(dma.iommus.map(\.path) == ["/iort/smmuv3@2b600000", "/iort/smmuv3@2b600000"])
        #expect(dma.iommus.map(\.streamID?.rawValue) == [0x42, 0x43])
        #expect(dma.canStall)
        #expect(dma.pasidBits == 10)
        #expect(dma.isDMACoherent)
        #expect(dma.msiParent == nil)
        let usb = board.devices[1]
        #expect(usb.iommus.isEmpty)
        #expect(!usb.isDMACoherent)
        #expect(usb.msiParent == MSIParent(controllerPath: "/iort/its@0", specifier: [7]))
        #expect(board.masters.map(\.path) == ["/iort/_SB_/DMA0"])
    }

    @Test("RMRs are direct regions of their devices; addresses that a device cannot drive are set apart")
    func reservedRanges() throws {
        let board = try everything()
        #expect(board.reservedMemory.map(\.path) == ["/iort/rmr@88300000", "/iort/rmr@89000000"])
        #expect(
            board.reservedMemory.map(\.range) == [
                range(0x8830_0000, 0x10_0000), range(0x8900_0000, 0x1_0000),
            ]
        )
        #expect(
            board.reservedMemory.map(\.iommuAddresses) == [
                [IOMMUAddress(devicePath: "/iort/_SB_/DMA0", range: range(0x8830_0000, 0x10_0000))],
                [IOMMUAddress(devicePath: "/iort/pcie@0", range: range(0x8900_0000, 0x1_0000))],
            ]
        )
        let above40 = try #require(AddressRange(first: 1 << 40, last: .max))
        #expect(
            board.devices[0].reservedIOVAs == [
                ReservedIOVA(
                    range: range(0x8830_0000, 0x10_0000),
                    kind: .direct,
                    regionPath: "/iort/rmr@88300000"
                ),
                ReservedIOVA(range: above40, kind: .reserved, regionPath: "/iort/_SB_/DMA0"),
            ]
        )
        let above48 = try #require(AddressRange(first: 1 << 48, last: .max))
        let limit = ReservedIOVA(range: above48, kind: .reserved, regionPath: "/iort/pcie@0")
        let direct = ReservedIOVA(
            range: range(0x8900_0000, 0x1_0000),
            kind: .directRelaxable,
            regionPath: "/iort/rmr@89000000"
        )
        // StreamIDs 0x1008 to 0x1017 are RequesterIDs 8 to 0x17.
        let host = board.pcieHosts[0]
        #expect(host.reservedIOVAs(forRequester: 7) == [limit])
        #expect(host.reservedIOVAs(forRequester: 8) == [direct, limit])
        #expect(host.reservedIOVAs(forRequester: 0x17) == [direct, limit])
        #expect(host.reservedIOVAs(forRequester: 0x18) == [limit])
        #expect(board.pcieHosts[1].reservedIOVAs(forRequester: 8).isEmpty)
    }

    @Test("RAM is what was asked for, or a default that is warned of")
    func ram() throws {
        #expect(try everything().memory == [MemoryRegion(path: "/memory@80000000", range: iortRAM)])
        let board = try BoardDescription.load(tree: nil, iort: IORTFixture("altra").bytes)
        #expect(board.memory.map(\.range) == [range(0x4000_0000, 0x1000_0000)])
        #expect(
            board.warnings.map(\.description) == [
                "--ram: missing, and an IORT says nothing of RAM: 0x40000000-0x4fffffff is RAM; --ram ADDRESS,SIZE puts it "
                    + "elsewhere"
            ]
        )
    }

    @Test("QEMU's table: RequesterID 0x100 is the second mapping's, for the first has one ID too many")
    func qemu() throws {
        let board = try BoardDescription.load(IORTFixture("qemu-virt"))
        #expect(
            board.warnings.map(\.description) == [
                "IORT node 0xa0 (root complex): ID mapping 0: ID Count: reaches to 0x100, where ID mapping 1 begins; it is "
                    + "the number of IDs minus one; that ID is left to ID mapping 1, as in Linux"
            ]
        )
        let host = try #require(board.pcieHosts.first)
        #expect(host.iommu(forRequester: 0xFF)?.streamID?.rawValue == 0xFF)
        #expect(host.iommu(forRequester: 0x100) == nil)
        #expect(host.msiController(forRequester: 0xFF)?.deviceID == 0xFF)
        #expect(host.msiController(forRequester: 0x100)?.deviceID == 0x100)
        #expect(host.iommuMap.map(\.length) == [0x100])
        let smmu = try #require(board.smmus.first)
        #expect(smmu.registers == range(0x905_0000, 0x2_0000))
        #expect(
            smmu.lines == [
                "eventq": iortSPI(74, id: 106), "priq": iortSPI(75, id: 107),
                "cmdq-sync": iortSPI(76, id: 108),
                "gerror": iortSPI(77, id: 109),
            ]
        )
        // All interrupts are wired, so that the index means nothing.
        #expect(smmu.msiParent == nil)
    }

    @Test("Altra's table: an SMMU for each root complex, whose interrupts are messages")
    func altra() throws {
        let board = try BoardDescription.load(IORTFixture("altra"))
        #expect(board.warnings.isEmpty)
        #expect(board.smmus.flatMap(\.interrupts).isEmpty)
        #expect(
            board.smmus.map { $0.msiParent?.specifier } == [
                [0], [0x10000], [0x30000], [0x40000], [0x60000], [0x70000],
            ]
        )
        #expect(
            board.smmus.map { $0.msiParent?.controllerPath } == [0, 1, 3, 4, 6, 7].map { "/iort/its@\($0)" }
        )
        #expect(board.pcieHosts.map(\.domain) == [12, 13, 0, 2, 4, 5])
        let host = try #require(board.pcieHosts.first { $0.domain == 2 })
        #expect(host.iommu(forRequester: 0x1234)?.path == "/iort/smmuv3@23ffe0000000")
        #expect(host.iommu(forRequester: 0x1234)?.streamID?.rawValue == 0x1234)
        #expect(host.msiController(forRequester: 0x1234)?.path == "/iort/its@4")
        #expect(host.msiController(forRequester: 0x1234)?.deviceID == 0x41234)
    }

    @Test("A root complex with one single mapping gives all its functions that ID")
    func singleMapping() throws {
        let board = try BoardDescription.load(
            IORTFixture("everything").with(IORTChange(0x238, 1))
        )
        let host = board.pcieHosts[1]
        for requester in [0, 8, 0xFFFF] as [UInt16] {
            #expect(host.iommu(forRequester: requester)?.streamID?.rawValue == 0x20000)
        }
    }

    @Test(
        "Before revision 5 an SMMU's mapping index counts unless all interrupts are wired; then by its flag"
    )
    func mappingIndex() throws {
        let table = try IORTFixture("everything")
        // Revision 5, flag cleared: mapping 1 is nobody's.
        let unflagged = try BoardDescription.load(table.with(IORTChange(0x64, 0x0D)))
        #expect(unflagged.smmus[0].msiParent == nil)
        #expect(
            unflagged.warnings.map(\.description) == [
                "IORT node 0x4c (SMMUv3): ID mapping 1: Flags: has Single Mapping; in an SMMU only the mapping at Device "
                    + "ID Mapping Index may, where that counts; it is ignored, as in Linux"
            ]
        )
        // Revision 4 with all four GSIVs: the same.
        let wired = try BoardDescription.load(table.with(IORTChange(0x4F, 4, byteCount: 1)))
        #expect(wired.smmus[0].msiParent == nil)
        // Revision 4 without one of them.
        let unwired = try BoardDescription.load(
            table.with(IORTChange(0x4F, 4, byteCount: 1), IORTChange(0x7C, 0))
        )
        #expect(unwired.smmus[0].msiParent?.specifier == [0x10000])
        #expect(unwired.smmus[0].interrupt(.priQueue) == nil)
    }

    @Test("A table without an SMMUv3 is a board all the same, and says so")
    func noSMMU() throws {
        let board = try BoardDescription.load(
            IORTFixture("everything").with(IORTChange(36, 1))
        )
        #expect(board.smmus.isEmpty)
        #expect(
            board.warnings.map(\.description) == [
                "/: no SMMUv3, in the tree or in the IORT; all DMA goes untranslated"
            ]
        )
    }
}
