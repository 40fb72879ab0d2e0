// Our own boards under dts/. The expected values are what a person reads in the sources.

import AddressSpace
import DeviceModel
import DeviceTree
import Testing

@Suite("Our own boards")
struct OwnBoardTests {
    // MARK: - virt.dts

    @Test("virt: one SMMU with one combined interrupt, PCIe behind it, nothing to warn of")
    func virt() throws {
        let board = try BoardDescription.load(compile("dts/virt.dts"))
        #expect(board.model == "smmud virt")
        #expect(board.memory.map(\.range) == [range(0x4000_0000, 0x4000_0000)])
        let smmu = try #require(board.smmus.first)
        #expect(smmu.registers == range(0x905_0000, 0x2_0000))
        #expect(
            smmu.lines == ["combined": spi(74, id: 106, .edgeRising, of: "/interrupt-controller@8000000")]
        )
        #expect(smmu.msiParent == nil)
        #expect(board.warnings.isEmpty)
        let host = try #require(board.pcieHosts.first)
        #expect(host.ecam == range(0x40_1000_0000, 0x1000_0000))
        #expect(host.children.map(\.path) == ["/pcie@4010000000/nvme@1,0", "/pcie@4010000000/ethernet@2,0"])
        #expect(host.children.map(\.requesterID) == [0x8, 0x10])
        #expect(board.masters.isEmpty)
    }

    // MARK: - soc.dts

    private func soc() throws -> BoardDescription { try BoardDescription.load(compile("dts/soc.dts")) }

    @Test("soc: 2 and 62 GiB of RAM, nothing to warn of")
    func socMemory() throws {
        let board = try soc()
        #expect(board.memory.map(\.range) == [range(0x8000_0000, 2 << 30), range(0x8_8000_0000, 62 << 30)])
        #expect(board.warnings.isEmpty)
    }

    @Test("soc: an SMMU for the platform devices and one for PCIe, four interrupts each")
    func socSMMUs() throws {
        let board = try soc()
        let gic = "/interrupt-controller@30000000"
        #expect(board.smmus.map(\.path) == ["/iommu@2b400000", "/iommu@2b600000"])
        #expect(
            board.smmus.map(\.lines) == [
                [
                    "eventq": spi(74, id: 106, .edgeRising, of: gic),
                    "gerror": spi(75, id: 107, .edgeRising, of: gic),
                    "priq": spi(76, id: 108, .edgeRising, of: gic),
                    "cmdq-sync": spi(77, id: 109, .edgeRising, of: gic),
                ],
                [
                    "eventq": spi(80, id: 112, .edgeRising, of: gic),
                    "gerror": spi(81, id: 113, .edgeRising, of: gic),
                    "priq": spi(82, id: 114, .edgeRising, of: gic),
                    "cmdq-sync": spi(83, id: 115, .edgeRising, of: gic),
                ],
            ]
        )
        #expect(board.smmus.map(\.msiParent?.specifier) == [nil, [0x20000]])
    }

    @Test("soc: counters inside one SMMU's region and behind the other's")
    func socPMCGs() throws {
        let board = try soc()
        #expect(board.pmcgs.map(\.page0) == [range(0x2b42_0000, 0x1000), range(0x2b62_0000, 0x1000)])
        #expect(board.pmcgs.map(\.page1) == [range(0x2b43_0000, 0x1000), nil])
        #expect(board.pmcgs.map(\.interrupt?.interruptID) == [110, 116])
        #expect(board.pmcgs.map(\.smmuPath) == ["/iommu@2b400000", "/iommu@2b600000"])
        #expect(board.pmcgs.map(\.msiParent?.specifier) == [nil, [0x20001]])
    }

    @Test("soc: reserved memory of four kinds")
    func socReservedMemory() throws {
        let board = try soc()
        let reserved = board.reservedMemory
        #expect(
            reserved.map(\.range) == [
                range(0xf000_0000, 0x80_0000), range(0xfe00_0000, 0x200_0000), nil, nil,
            ]
        )
        #expect(reserved.map(\.isNoMap) == [false, true, false, false])
        #expect(reserved[3].dynamic?.byteCount == 0x400_0000)
        #expect(reserved[3].dynamic?.alignment == 0x20_0000)
        #expect(reserved[3].dynamic?.allowedRanges == [range(0x8000_0000, 0x8000_0000)])
        #expect(reserved[3].isReusable)
        let display = try #require(board.device("/soc@40000000/display@200000"))
        #expect(
            display.reservedIOVAs == [
                ReservedIOVA(
                    range: range(0xf000_0000, 0x80_0000),
                    kind: .direct,
                    regionPath: "/reserved-memory/framebuffer@f0000000"
                )
            ]
        )
        let accelerator = try #require(board.device("/soc@40000000/accelerator@400000"))
        #expect(accelerator.reservedIOVAs.map(\.kind) == [.reserved, .reserved])
        // The first GiB, and from 1 TiB to the end of 48 bits.
        #expect(
            accelerator.reservedIOVAs.map(\.range) == [
                range(0, 0x4000_0000), AddressRange(first: 0x100_0000_0000, last: 0xffff_ffff_ffff),
            ]
        )
    }

    @Test("soc: platform masters with one and with four StreamIDs, registers through the bus's ranges")
    func socMasters() throws {
        let board = try soc()
        let bus = "/soc@40000000/"
        #expect(
            board.masters.map(\.path) == [
                bus + "dma-controller@100000", bus + "display@200000", bus + "crypto@300000",
                bus + "accelerator@400000", bus + "virtio@500000",
            ]
        )
        #expect(
            board.masters.map { $0.iommus.compactMap(\.streamID?.rawValue) }
                == [[0x10, 0x11, 0x12, 0x13], [0x20], [0x30], [0x40], [0x50]]
        )
        #expect(board.masters.flatMap(\.iommus).allSatisfy { $0.path == "/iommu@2b400000" })
        #expect(board.masters.map(\.isDMACoherent) == [false, false, true, true, true])
        #expect(board.masters.map(\.pasidBits) == [0, 0, 0, 8, 0])
        #expect(board.masters.map(\.canStall) == [false, false, false, true, false])
        #expect(
            board.masters.map { $0.registers.first?.range.first } == [
                0x4010_0000, 0x4020_0000, 0x4030_0000, 0x4040_0000, 0x4050_0000,
            ]
        )
        #expect(board.device(bus + "ethernet@600000")?.iommus.isEmpty == true)
        #expect(board.device(bus + "accelerator@400000")?.interrupts.map(\.name) == ["done", "error"])
    }

    @Test("soc: StreamIDs of PCIe functions are RequesterIDs plus 0x10000, behind a bridge too")
    func socPCIe() throws {
        let host = try #require(try soc().pcieHosts.first)
        #expect(host.busRange == 0...15)
        #expect(host.windows.map(\.isPrefetchable) == [false, false, true])
        let streams = host.children.map { child in
            (
                child.path.split(separator: "/").last.map(String.init),
                child.requesterID.flatMap { host.iommu(forRequester: $0)?.streamID?.rawValue }
            )
        }
        #expect(streams.map(\.0) == ["pcie@1,0", "nvme@0,0", "ethernet@2,0", "ethernet@2,1"])
        #expect(streams.map(\.1) == [0x10008, 0x10100, 0x10010, 0x10011])
        #expect(host.iommu(forRequester: 0x1000) == nil, "iommu-map covers 0x0 to 0xfff")
        #expect(host.msiController(forRequester: 0x10)?.deviceID == 0x10010)
        #expect(host.supportsATS)
    }
}
