// An IORT beside a device tree: what is matched, what is added, and what cannot both be so.

import AddressSpace
import DeviceModel
import DeviceTree
import IORTFixtures
import Testing

@Suite("An IORT beside a device tree")
struct IORTBesideTreeTests {
    private static let source = """
        /dts-v1/;
        / {
            model = "beside";
            compatible = "smmud,beside";
            #address-cells = <2>;
            #size-cells = <2>;
            interrupt-parent = <&gic>;
            memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x40000000>; };
            gic: interrupt-controller@8000000 {
                compatible = "arm,gic-v3";
                reg = <0 0x08000000 0 0x10000>, <0 0x080a0000 0 0xf60000>;
                interrupt-controller;
                #interrupt-cells = <3>;
                #address-cells = <2>;
                #size-cells = <2>;
                ranges;
                its: msi-controller@8080000 {
                    compatible = "arm,gic-v3-its";
                    reg = <0 0x08080000 0 0x20000>;
                    msi-controller;
                    #msi-cells = <1>;
                };
            };
            smmu: iommu@9050000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x09050000 0 0x20000>;
                interrupts = <0 74 1>;
                interrupt-names = "combined";
                #iommu-cells = <1>;
                status = "disabled";
            };
            dma0@a000000 { compatible = "smmud,dma"; reg = <0 0x0a000000 0 0x1000>; };
            usb@a010000 {
                compatible = "smmud,usb";
                reg = <0 0x0a010000 0 0x1000>;
                smmud,acpi-path = "\\\\_SB_.USB0";
            };
            pcie@4010000000 {
                compatible = "pci-host-ecam-generic";
                device_type = "pci";
                reg = <0x40 0x10000000 0 0x10000000>;
                bus-range = <0 0xff>;
                #address-cells = <3>;
                #size-cells = <2>;
                ranges = <0x02000000 0 0x10000000 0 0x10000000 0 0x10000000>;
                msi-map = <0x0 &its 0x0 0x10000>;
            };
        };
        """
    private static let msiMap = "msi-map = <0x0 &its 0x0 0x10000>;"
    private static let host = "/pcie@4010000000"
    private static let gic = "/interrupt-controller@8000000"

    private func tree(_ changes: (String, String)...) throws -> [UInt8] {
        var text = Self.source
        for (old, new) in changes {
            try #require(text.contains(old), "\(old)")
            text = text.replacing(old, with: new)
        }
        let source = try TemporaryFile(Array(text.utf8))
        return try run("dtc", ["-q", "-I", "dts", "-O", "dtb", source.path])
    }

    private func errors(_ tree: [UInt8], _ iort: IORTFixture) -> [String] {
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(tree: tree, iort: iort.bytes)
            return []
        } catch {
            return error.diagnostics.map(\.description)
        }
    }

    @Test(
        "The tree gives RAM, GIC, ITS and the host of the segment; the IORT gives the SMMU and the host's StreamIDs"
    )
    func qemu() throws {
        let board = try BoardDescription.load(tree: tree(), iort: IORTFixture("qemu-virt").bytes)
        #expect(board.model == "beside")
        #expect(board.memory.map(\.range) == [range(0x8000_0000, 0x4000_0000)])
        #expect(board.smmus.map(\.path) == ["/iommu@9050000", "/iort/smmuv3@9050000"])
        #expect(board.enabledSMMUs.map(\.path) == ["/iort/smmuv3@9050000"])
        #expect(board.smmus[1].lines["eventq"] == spi(74, id: 106, .edgeRising, of: Self.gic))
        #expect(board.interruptControllers.map(\.path) == [Self.gic])
        #expect(board.msiControllers.map(\.path) == [Self.gic + "/msi-controller@8080000"])
        #expect(board.pcieHosts.map(\.path) == [Self.host])
        let host = board.pcieHosts[0]
        #expect(host.ecam == range(0x40_1000_0000, 0x1000_0000))
        #expect(host.iommu(forRequester: 0x10)?.path == "/iort/smmuv3@9050000")
        #expect(host.iommu(forRequester: 0x10)?.streamID?.rawValue == 0x10)
        #expect(host.iommu(forRequester: 0x100) == nil)
        #expect(host.msiController(forRequester: 0x100)?.deviceID == 0x100)
        #expect(host.isDMACoherent)
        #expect(board.warnings.count == 1)
    }

    @Test("Named components are the tree's devices by smmud,acpi-path or by name; what has no match is added")
    func matching() throws {
        let board = try BoardDescription.load(
            tree: tree((Self.msiMap, "")),
            iort: IORTFixture("everything").bytes
        )
        #expect(board.devices.map(\.path) == ["/dma0@a000000", "/usb@a010000"])
        let dma = board.devices[0]
        #expect(dma.compatible == ["smmud,dma"])
        #expect(dma.registers.map(\.range) == [range(0xA00_0000, 0x1000)])
        #expect(dma.iommus.map(\.streamID?.rawValue) == [0x42, 0x43])
        #expect(dma.pasidBits == 10)
        #expect(dma.canStall)
        #expect(dma.reservedIOVAs.map(\.kind) == [.direct, .reserved])
        let its = Self.gic + "/msi-controller@8080000"
        #expect(board.devices[1].msiParent == MSIParent(controllerPath: its, specifier: [7]))
        #expect(board.pcieHosts.map(\.path) == [Self.host, "/iort/pcie@1"])
        #expect(board.pcieHosts[0].msiController(forRequester: 8)?.path == its)
        #expect(board.pcieHosts[0].msiController(forRequester: 8)?.deviceID == 0x1008)
        #expect(board.pcieHosts[0].supportsATS)
        // The group has two ITSs, and the tree has one.
        #expect(
            board.warnings.map(\.description) == [
                "IORT node 0x30 (ITS group): Identifiers: has ITS 1, and the tree's are 0 to 0; it is shown, and its messages "
                    + "arrive nowhere"
            ]
        )
    }

    @Test("A name that several of the tree's nodes have is nobody's")
    func ambiguousName() throws {
        let dma = "dma0@a000000 { compatible = \"smmud,dma\"; reg = <0 0x0a000000 0 0x1000>; };"
        let board = try BoardDescription.load(
            tree: tree(
                (Self.msiMap, ""),
                (dma, dma + "dma0@b000000 { compatible = \"smmud,dma\"; reg = <0 0x0b000000 0 0x1000>; };")
            ),
            iort: IORTFixture("everything").bytes
        )
        #expect(
            board.devices.map(\.path) == [
                "/dma0@a000000", "/dma0@b000000", "/usb@a010000", "/iort/_SB_/DMA0",
            ]
        )
        #expect(board.masters.map(\.path) == ["/iort/_SB_/DMA0"])
    }

    @Test("A host's segment is linux,pci-domain where the tree says so")
    func segments() throws {
        let board = try BoardDescription.load(
            tree: tree((Self.msiMap, "linux,pci-domain = <1>;")),
            iort: IORTFixture("everything").bytes
        )
        #expect(board.pcieHosts.map(\.path) == [Self.host, "/iort/pcie@0"])
        #expect(board.pcieHosts[0].iommu(forRequester: 0)?.streamID?.rawValue == 0x20000)
    }

    @Test("An SMMU comes from the tree or from the IORT, and so do a host's StreamIDs")
    func sameSMMU() throws {
        let enabled = try tree(
            ("status = \"disabled\";", ""),
            (Self.msiMap, Self.msiMap + "iommu-map = <0x0 &smmu 0x0 0x10000>;")
        )
        #expect(
            errors(enabled, try IORTFixture("qemu-virt")) == [
                "IORT node 0x48 (SMMUv3): Base Address: 0x9050000-0x906ffff overlaps 0x9050000-0x906ffff of /iommu@9050000; "
                    + "an SMMU comes from the tree or from the IORT: give the tree's node status = \"disabled\"",
                "IORT node 0xa0 (root complex): PCI Segment Number: 0x0 is /pcie@4010000000, whose iommu-map leads to "
                    + "/iommu@9050000; the mapping comes from the tree or from the IORT: take iommu-map out "
                    + "of the tree, or give the SMMU there status = \"disabled\"",
            ]
        )
    }

    @Test("An iommu-map to an SMMU that is disabled gives way")
    func disabledSMMU() throws {
        let disabled = try tree((Self.msiMap, "iommu-map = <0x0 &smmu 0x0 0x10000>;"))
        let board = try BoardDescription.load(tree: disabled, iort: IORTFixture("qemu-virt").bytes)
        #expect(board.pcieHosts[0].iommuMap.map(\.targetPath) == ["/iort/smmuv3@9050000"])
    }

    @Test("DeviceIDs of the tree and of the IORT must agree")
    func deviceIDs() throws {
        #expect(
            errors(try tree(), try IORTFixture("everything").without(0x208)).last
                == "IORT node 0x1b8 (root complex): ID mappings: give RequesterID 0x0 DeviceID 0x1000 of "
                + "/interrupt-controller@8000000/msi-controller@8080000; /pcie@4010000000 gives it DeviceID 0x0 of "
                + "/interrupt-controller@8000000/msi-controller@8080000"
        )
    }

    @Test("A device with iommus in the tree has no named component")
    func sameDevice() throws {
        let tree = try tree(
            (Self.msiMap, ""),
            ("status = \"disabled\";", ""),
            ("smmud,dma\";", "smmud,dma\"; iommus = <&smmu 1>;")
        )
        #expect(
            errors(tree, try IORTFixture("everything")) == [
                "IORT node 0x23c (named component): Device Name: \"\\_SB_.DMA0\" is /dma0@a000000, which has iommus; StreamIDs "
                    + "come from the tree or from the IORT: take iommus out of the tree"
            ]
        )
    }

    @Test("Registers of the IORT's SMMUs stand on nothing of the tree's")
    func overlap() throws {
        let iort = try IORTFixture("qemu-virt").with(IORTChange(0x58, 0x8000_0000))
        #expect(
            errors(try tree(), iort) == [
                "IORT node 0x48 (SMMUv3): Base Address: 0x80000000-0x8001ffff overlaps 0x80000000-0xbfffffff, which is RAM "
                    + "of /memory@80000000; RAM and register regions each need addresses of their own"
            ]
        )
    }
}
