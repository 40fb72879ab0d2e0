// Real boards' device trees, with facts read off their sources.

import AddressSpace
import DeviceModel
import DeviceTree
import Testing

@Suite("Real boards")
struct RealBoardTests {
    @Test("QEMU's virt machine: RAM, an SMMUv3 with four SPIs, PCIe behind it", .tags())
    func qemuVirt() throws {
        for name in [
            "qemu/virt-smmuv3.dtb", "arm/fvp-base-revc.dtb", "hisilicon/hip07-d05.dtb",
            "rockchip/rk3588-rock-5b.dtb",
        ] {
            let b = try BoardDescription.load(board(name))
            print(name, b.model ?? "-", b.compatible)
            for x in b.memory { print(" ram", x) }
            for x in b.reservedMemory { print(" res", x) }
            for x in b.smmus { print(" smmu", x) }
            for x in b.interruptControllers {
                print(" intc", x.path, x.kind, x.interruptCells, x.registers.map(\.range.description))
            }
            for x in b.msiControllers { print(" msi", x.path, x.kind, x.registers.map(\.range.description)) }
            for x in b.pcieHosts { print(" pcie", x) }
            for x in b.devices {
                print(
                    " dev",
                    x.path,
                    x.registers.map(\.range.description),
                    x.interrupts.map {
                        ($0.identity.controller, $0.identity.specifier, $0.identity.interruptID ?? 0)
                    },
                    x.iommus
                )
            }
            for x in b.warnings { print(" WARN", x) }
        }
    }
}
