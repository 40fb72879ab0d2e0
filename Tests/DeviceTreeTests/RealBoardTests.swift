// Real boards' device trees. The expected values are read off `dtc -I dtb -O dts`, not off our own parser.

import AddressSpace
import DeviceModel
import DeviceTree
import Testing

@Suite("Real boards")
struct RealBoardTests {
    // MARK: - QEMU's virt machine

    @Test("QEMU virt: 1 GiB of RAM, an SMMUv3 with four SPIs in an order of its own")
    func qemuSMMU() throws {
        let board = try BoardDescription.load(board("qemu/virt-smmuv3.dtb"))
        #expect(board.compatible == ["linux,dummy-virt"])
        #expect(board.memory.map(\.range) == [range(0x4000_0000, 0x4000_0000)])
        let smmu = try #require(board.smmus.first)
        #expect(board.smmus.count == 1)
        #expect(smmu.path == "/smmuv3@9050000")
        #expect(smmu.isEnabled)
        #expect(smmu.isDMACoherent)
        #expect(smmu.registers == range(0x905_0000, 0x2_0000))
        // interrupts = <0 0x4a 1>, <0 0x4b 1>, <0 0x4c 1>, <0 0x4d 1>, named eventq, priq, cmdq-sync, gerror.
        let gic = "/intc@8000000"
        #expect(
            smmu.lines == [
                "eventq": spi(74, id: 106, .edgeRising, of: gic),
                "priq": spi(75, id: 107, .edgeRising, of: gic),
                "cmdq-sync": spi(76, id: 108, .edgeRising, of: gic),
                "gerror": spi(77, id: 109, .edgeRising, of: gic),
            ]
        )
        #expect(board.warnings.isEmpty)
    }

    @Test("QEMU virt: all functions behind the SMMU, three windows, pins swizzled over four SPIs")
    func qemuPCIe() throws {
        let board = try BoardDescription.load(board("qemu/virt-smmuv3.dtb"))
        let host = try #require(board.pcieHosts.first)
        #expect(host.ecam == range(0x40_1000_0000, 0x1000_0000))
        #expect(host.busRange == 0...255)
        #expect(host.domain == 0)
        #expect(host.windows.map(\.space) == [.io, .memory32, .memory64])
        #expect(
            host.windows.map(\.cpuRange) == [
                range(0x3eff_0000, 0x1_0000), range(0x1000_0000, 0x2eff_0000),
                range(0x80_0000_0000, 0x80_0000_0000),
            ]
        )
        #expect(host.windows.map(\.pciAddress) == [0, 0x1000_0000, 0x80_0000_0000])
        #expect(host.windows.allSatisfy { !$0.isPrefetchable })
        let reference = host.iommu(forRequester: 0xff_f8)
        #expect(reference?.path == "/smmuv3@9050000")
        #expect(reference?.streamID == StreamID(0xfff8))
        #expect(host.msiController(forRequester: 0x10)?.path == "/intc@8000000/its@8080000")
        // interrupt-map: device 2, INTA: <0x1000 0 0 1 &gic 0 0 0 5 4>.
        #expect(host.interrupt(forRequester: 0x10, pin: 1) == spi(5, id: 37, .levelHigh, of: "/intc@8000000"))
        // interrupt-map-mask 0x1800 leaves device 2 of devices 6, 10, ...: device 6 function 3, INTD.
        #expect(host.interrupt(forRequester: 0x33, pin: 4) == spi(4, id: 36, .levelHigh, of: "/intc@8000000"))
    }

    @Test("QEMU virt: GICv3 with its ITS, and 32 virtio transports without an IOMMU")
    func qemuDevices() throws {
        let board = try BoardDescription.load(board("qemu/virt-smmuv3.dtb"))
        let gic = try #require(board.interruptControllers.first)
        #expect(gic.kind == .gicV3)
        #expect(gic.registers.map(\.range) == [range(0x800_0000, 0x1_0000), range(0x80a_0000, 0xf6_0000)])
        #expect(board.msiControllers.map(\.kind) == [.its])
        #expect(board.msiControllers.first?.registers.first?.range == range(0x808_0000, 0x2_0000))
        let virtio = board.devices.filter { $0.compatible == ["virtio,mmio"] }
        #expect(virtio.count == 32)
        #expect(virtio.last?.registers.first?.range == range(0xa00_3e00, 0x200))
        #expect(virtio.last?.interrupts.first?.identity == spi(47, id: 79, .edgeRising, of: gic.path))
        #expect(board.masters.isEmpty)
    }

    // MARK: - Arm's FVP

    @Test("FVP: RAM of one node in two places, SMMU with four named SPIs and an MSI parent")
    func fvpSMMU() throws {
        let board = try BoardDescription.load(board("arm/fvp-base-revc.dtb"))
        #expect(
            board.memory.map(\.range) == [
                range(0x8000_0000, 0x8000_0000), range(0x8_8000_0000, 0x8000_0000),
            ]
        )
        let smmu = try #require(board.smmus.first)
        #expect(smmu.path == "/iommu@2b400000")
        #expect(smmu.registers == range(0x2b40_0000, 0x10_0000))
        #expect(smmu.architectedRegisters == range(0x2b40_0000, 0x2_0000))
        let gic = "/interrupt-controller@2f000000"
        #expect(
            smmu.lines == [
                "eventq": spi(0x4a, id: 106, .edgeRising, of: gic),
                "gerror": spi(0x4f, id: 111, .edgeRising, of: gic),
                "priq": spi(0x4b, id: 107, .edgeRising, of: gic),
                "cmdq-sync": spi(0x4d, id: 109, .edgeRising, of: gic),
            ]
        )
        #expect(smmu.msiParent?.controllerPath == gic + "/msi-controller@2f020000")
        #expect(smmu.msiParent?.specifier == [0x10000])
        #expect(board.reservedMemory.map(\.range) == [range(0x1800_0000, 0x80_0000)])
        #expect(board.reservedMemory.first?.isNoMap == true)
        #expect(board.warnings.isEmpty)
    }

    @Test("FVP: two buses of an ECAM window with room for 256, all behind the SMMU")
    func fvpPCIe() throws {
        let board = try BoardDescription.load(board("arm/fvp-base-revc.dtb"))
        let host = try #require(board.pcieHosts.first)
        #expect(host.path == "/pci@40000000")
        #expect(host.ecam == range(0x4000_0000, 0x1000_0000))
        #expect(host.busRange == 0...1)
        #expect(host.windows.map(\.cpuRange) == [range(0x5000_0000, 0x1000_0000)])
        #expect(host.iommuMap.map(\.length) == [0x10000])
        #expect(host.iommu(forRequester: 8)?.streamID == StreamID(8))
        #expect(host.supportsATS)
        #expect(host.isDMACoherent)
        // interrupt-map: INTB is <0 0 0 2 &gic 0 0 0 0xa9 4>; the mask leaves the pin alone.
        #expect(
            host.interrupt(forRequester: 0xf8, pin: 2)
                == spi(0xa9, id: 201, .levelHigh, of: "/interrupt-controller@2f000000")
        )
    }

    @Test("FVP: a virtio transport three buses down: chip selects in addresses, a nexus for interrupts")
    func fvpVirtio() throws {
        let board = try BoardDescription.load(board("arm/fvp-base-revc.dtb"))
        let motherboard = "/bus@8000000/motherboard-bus@8000000"
        let virtio = try #require(board.device(motherboard + "/iofpga-bus@300000000/virtio@130000"))
        // 0x130000 on the FPGA's bus is <3 0x130000> on the motherboard's, which maps <3 0> to 0x1c000000.
        #expect(virtio.registers.map(\.range) == [range(0x1c13_0000, 0x200)])
        // interrupts = <0x2a>; interrupt-map of bus@8000000: <0 0 0x2a &gic 0 0 0 0x2a 4>.
        #expect(
            virtio.interrupts.map(\.identity)
                == [spi(0x2a, id: 74, .levelHigh, of: "/interrupt-controller@2f000000")]
        )
        #expect(board.device(motherboard + "/iofpga-bus@300000000/virtio@200000") == nil, "it is disabled")
        #expect(
            board.device(motherboard + "/flash@0")?.registers.map(\.range) == [
                range(0x800_0000, 0x400_0000), range(0xc00_0000, 0x400_0000),
            ]
        )
    }

    // MARK: - HiSilicon's D05

    @Test("hip07: five SMMUs, one disabled, four with equal interrupt numbers on four mbigens")
    func hip07SMMUs() throws {
        let board = try BoardDescription.load(board("hisilicon/hip07-d05.dtb"))
        #expect(
            board.smmus.map(\.registers) == [
                range(0xa004_0000, 0x2_0000), range(0xd004_0000, 0x2_0000), range(0x8_d004_0000, 0x2_0000),
                range(0x400_d004_0000, 0x2_0000), range(0x408_d004_0000, 0x2_0000),
            ]
        )
        #expect(board.smmus.map(\.isEnabled) == [false, true, true, true, true])
        #expect(board.smmus.allSatisfy { $0.hasBrokenPrefetchCommand && $0.isDMACoherent })
        #expect(board.enabledSMMUs.count == 4)
        let units = ["d0080000", "8,d0080000", "400,d0080000", "408,d0080000"]
        for (smmu, unit) in zip(board.enabledSMMUs, units) {
            // interrupts = <0x2dd 1>, <0x2de 1>, <0x2df 1>, named eventq, gerror, priq.
            func pin(_ number: UInt32) -> InterruptIdentity {
                InterruptIdentity(
                    controller: "/interrupt-controller@\(unit)/intc_smmu_alg",
                    specifier: [number, 1],
                    interruptID: nil,
                    trigger: .edgeRising
                )
            }
            #expect(smmu.lines == ["eventq": pin(0x2dd), "gerror": pin(0x2de), "priq": pin(0x2df)])
        }
        // Equal numbers, yet no two are one line.
        #expect(Set(board.enabledSMMUs.flatMap(\.interrupts).map(\.identity)).count == 12)
        #expect(board.warnings.isEmpty)
    }

    @Test("hip07: an mbigen sends its pins' messages to an ITS under its own DeviceID")
    func hip07Mbigen() throws {
        let board = try BoardDescription.load(board("hisilicon/hip07-d05.dtb"))
        let mbigen = try #require(
            board.interruptControllers.first { $0.path == "/interrupt-controller@8,d0080000/intc_smmu_alg" }
        )
        #expect(mbigen.kind == .mbigen)
        #expect(mbigen.interruptCells == 2)
        #expect(mbigen.msiParent?.controllerPath == "/interrupt-controller@4d000000/msi-controller@8c6000000")
        #expect(mbigen.msiParent?.specifier == [0x42b1b])
        #expect(board.msiControllers.filter { $0.kind == .its }.count == 8)
    }

    @Test("hip07: four crypto engines, each behind the SMMU of its own die with StreamID 0x600")
    func hip07Masters() throws {
        let board = try BoardDescription.load(board("hisilicon/hip07-d05.dtb"))
        let units: [(UInt64, String)] = [
            (0xd000_0000, "d0"), (0x8_d000_0000, "8d0"), (0x400_d000_0000, "400d0"),
            (0x408_d000_0000, "408d0"),
        ]
        #expect(board.masters.map(\.path) == units.map { "/soc/crypto@\($0.1)000000" })
        for (master, (address, unit)) in zip(board.masters, units) {
            #expect(master.iommus.map(\.path) == ["/iommu@\(unit)040000"])
            #expect(master.iommus.map(\.streamID) == [StreamID(0x600)])
            #expect(master.registers.first?.range == range(address, 0x1_0000))
            #expect(master.isDMACoherent)
        }
    }

    @Test("hip07: a PCIe host on buses 0xf8 to 0xff, without an IOMMU, pins to an mbigen")
    func hip07PCIe() throws {
        let board = try BoardDescription.load(board("hisilicon/hip07-d05.dtb"))
        let host = try #require(board.pcieHosts.first)
        #expect(host.path == "/soc/pcie@af800000")
        #expect(host.ecam == range(0xaf80_0000, 0x80_0000))
        #expect(host.busRange == 0xf8...0xff)
        #expect(host.iommu(forRequester: 0xf808) == nil)
        #expect(host.msiController(forRequester: 0xf808)?.deviceID == 0xf808)
        #expect(host.msiController(forRequester: 0x0008) == nil, "msi-map covers 0xf800 to 0xffff")
        let pin = host.interrupt(forRequester: 0xf800, pin: 3)
        #expect(pin?.controller == "/interrupt-controller@a0080000/intc_pcie2_a")
        #expect(pin?.specifier == [0x29f, 4])
        #expect(pin?.trigger == .levelHigh)
    }

    // MARK: - RK3588

    @Test("RK3588: both SMMUv3s are there and disabled, their interrupts have a fourth cell")
    func rk3588SMMUs() throws {
        let board = try BoardDescription.load(board("rockchip/rk3588-rock-5b.dtb"))
        #expect(board.model == "Radxa ROCK 5B")
        #expect(
            board.smmus.map(\.registers) == [range(0xfc90_0000, 0x20_0000), range(0xfcb0_0000, 0x20_0000)]
        )
        #expect(board.smmus.map(\.isEnabled) == [false, false])
        let eventQueue = board.smmus.first?.interrupt(.eventQueue)
        #expect(
            eventQueue
                == spi(0x171, id: 401, .edgeRising, of: "/interrupt-controller@fe600000", moreCells: [0])
        )
        #expect(board.memory.isEmpty, "the boot loader fills it in")
        #expect(
            board.warnings.map(\.description) == [
                "/: no RAM; boards whose firmware fills it in need a node memory@... with device_type = "
                    + "\"memory\" and a reg",
                "/: no arm,smmu-v3 node that is enabled; all DMA goes untranslated",
            ]
        )
    }

    @Test("RK3588: masters behind IOMMUs of another kind are listed with that, untranslated")
    func rk3588Masters() throws {
        let board = try BoardDescription.load(board("rockchip/rk3588-rock-5b.dtb"))
        #expect(board.masters.count == 5, "a sixth, vop@fdd90000, is disabled")
        #expect(board.masters.flatMap(\.iommus).allSatisfy { $0.kind == .other("rockchip,rk3588-iommu") })
        let codec = try #require(board.device("/video-codec@fdb50000"))
        #expect(codec.iommus.map(\.path) == ["/iommu@fdb50800"])
        #expect(codec.iommus.first?.specifier == [])
        #expect(codec.iommus.first?.streamID == nil)
        #expect(codec.interrupts.first?.name == "vdpu")
    }

    @Test("RK3588: DesignWare PCIe hosts have windows and MSI maps, and no ECAM")
    func rk3588PCIe() throws {
        let board = try BoardDescription.load(board("rockchip/rk3588-rock-5b.dtb"))
        #expect(board.pcieHosts.map(\.path) == ["/pcie@fe190000", "/pcie@fe150000", "/pcie@fe170000"])
        let host = try #require(board.pcieHosts.last)
        #expect(host.ecam == nil)
        #expect(host.busRange == 0x20...0x2f)
        #expect(host.registers.map(\.name) == ["dbi", "apb", "config"])
        #expect(host.iommuMap.isEmpty)
        #expect(host.msiController(forRequester: 0x2008)?.deviceID == 0x2008)
        #expect(
            host.interruptRoutes.map(\.identity.controller).allSatisfy {
                $0 == host.path + "/legacy-interrupt-controller"
            }
        )
    }
}
