// What boards of ours and others do not show, in trees of a few lines.

import AddressSpace
import DeviceModel
import DeviceTree
import Testing

@Suite("Small trees")
struct SmallTreeTests {
    /// A board with a GIC of this kind, RAM, and whatever else a test writes.
    private func load(gic: String = "arm,gic-v3", _ body: String) throws
        -> BoardDescription
    {
        let text = """
            /dts-v1/;
            / {
                #address-cells = <2>;
                #size-cells = <2>;
                interrupt-parent = <&gic>;
                memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x40000000>; };
                gic: interrupt-controller@30000000 {
                    compatible = "\(gic)";
                    reg = <0 0x30000000 0 0x10000>, <0 0x30080000 0 0x40000>;
                    interrupt-controller;
                    #interrupt-cells = <3>;
                };
                \(body)
            };
            """
        let source = try TemporaryFile(Array(text.utf8))
        return try BoardDescription.load(run("dtc", ["-q", "-I", "dts", "-O", "dtb", source.path]))
    }

    @Test("a counter group's SMMU: around it, before it, the only one, or the one that smmud,smmu names")
    func counterGroups() throws {
        func group(_ address: String, _ properties: String = "") -> String {
            """
            pmu@\(address) {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x\(address) 0 0x1000>;
                interrupts = <0 9 1>;
                \(properties)
            };
            """
        }
        let board = try load(
            """
            first: iommu@10000000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x10000000 0 0x100000>;
                #iommu-cells = <1>;
                interrupts = <0 1 1>;
            };
            second: iommu@11000000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x11000000 0 0x20000>;
                #iommu-cells = <1>;
                interrupts = <0 2 1>;
                status = "disabled";
            };
            """ + group("10020000") + group("10200000") + group("11020000") + group("0f000000")
                + group("12000000", "smmud,smmu = <&first>;")
        )
        let (first, second) = ("/iommu@10000000", "/iommu@11000000")
        // A disabled SMMU keeps its group: it is not another SMMU's.
        #expect(board.pmcgs.map(\.smmuPath) == [first, first, second, first, first])
        #expect(try load(group("10020000")).pmcgs.map(\.smmuPath) == [nil])
    }

    private func smmu(_ properties: String) -> String {
        """
        smmu: iommu@10000000 {
            compatible = "arm,smmu-v3";
            reg = <0 0x10000000 0 0x20000>;
            #iommu-cells = <1>;
            \(properties)
        };
        """
    }

    // MARK: - Interrupts

    @Test("Unnamed interrupts have the binding's order: eventq, gerror, priq, cmdq-sync")
    func unnamedOrder() throws {
        let board = try load(smmu("interrupts = <0 1 1>, <0 2 1>, <0 3 1>, <0 4 1>;"))
        let lines = try #require(board.smmus.first).lines.mapValues(\.interruptID)
        #expect(lines == ["eventq": 33, "gerror": 34, "priq": 35, "cmdq-sync": 36])
    }

    @Test("A single unnamed interrupt is the combined one")
    func unnamedCombined() throws {
        let board = try load(smmu("interrupts = <0 1 1>;"))
        #expect(board.smmus.first?.interrupts.map(\.role) == [.combined])
    }

    @Test("interrupts-extended goes before interrupts")
    func extended() throws {
        let board = try load(
            smmu("interrupts-extended = <&gic 0 9 1>, <&other 5>; interrupts = <0 1 1>;")
                + "other: other { interrupt-controller; #interrupt-cells = <1>; };"
        )
        let interrupts = try #require(board.smmus.first).interrupts
        #expect(interrupts.map(\.identity.controller) == ["/interrupt-controller@30000000", "/other"])
        #expect(interrupts.map(\.identity.specifier) == [[0, 9, 1], [5]])
        #expect(interrupts.map(\.identity.interruptID) == [41, nil])
        #expect(interrupts.map(\.identity.trigger) == [.edgeRising, nil])
    }

    @Test("A GICv3's four kinds of interrupt have the INTIDs of its binding")
    func gicV3Kinds() throws {
        let device =
            "dev@0 { reg = <0 0 0 0x1000>; interrupts = <0 987 4>, <1 15 8>, <2 1023 1>, <3 63 2>; };"
        let interrupts = try #require(try load(device).device("/dev@0")).interrupts.map(\.identity)
        // SPI 987 is INTID 1019, PPI 15 is 31, extended SPI 1023 is 5119, extended PPI 63 is 1119.
        #expect(interrupts.map(\.interruptID) == [1019, 31, 5119, 1119])
        #expect(interrupts.map(\.trigger) == [.levelHigh, .levelLow, .edgeRising, .edgeFalling])
    }

    @Test("A GICv2 has SPIs and PPIs, and CPU masks beside the trigger")
    func gicV2() throws {
        let device = "dev@0 { reg = <0 0 0 0x1000>; interrupts = <0 10 4>, <1 13 0xf08>; };"
        let board = try load(gic: "arm,gic-400", device)
        #expect(board.interruptControllers.map(\.kind) == [.gicV2])
        let interrupts = try #require(board.device("/dev@0")).interrupts.map(\.identity)
        #expect(interrupts.map(\.interruptID) == [42, 29])
        #expect(interrupts.map(\.trigger) == [.levelHigh, .levelLow])
        #expect(throws: DeviceTreeErrors.self) {
            try self.load(gic: "arm,gic-400", smmu("interrupts = <2 1 1>;"))
        }
    }

    // MARK: - SMMU

    @Test("With the Cavium quirk one page is enough")
    func cavium() throws {
        let node = """
            iommu@10000000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x10000000 0 0x10000>;
                #iommu-cells = <1>;
                interrupts = <0 1 1>;
                cavium,cn9900-broken-page1-regspace;
            };
            """
        let smmu = try #require(try load(node).smmus.first)
        #expect(smmu.hasBrokenPage1RegisterSpace)
        #expect(smmu.architectedRegisters == range(0x1000_0000, 0x1_0000))
    }

    @Test("dma-coherent of a bus holds for what is on it, unless dma-noncoherent takes it back")
    func inheritedCoherency() throws {
        let board = try load(
            """
            bus {
                #address-cells = <2>;
                #size-cells = <2>;
                ranges;
                dma-coherent;
                a@1000 { reg = <0 0x1000 0 0x1000>; };
                b@2000 { reg = <0 0x2000 0 0x1000>; dma-noncoherent; };
            };
            c@3000 { reg = <0 0x3000 0 0x1000>; };
            """
        )
        #expect(board.devices.map(\.isDMACoherent) == [true, false, false])
    }

    // MARK: - Addresses

    @Test("Registers pass through the ranges of three buses with different cell counts")
    func nestedRanges() throws {
        let board = try load(
            """
            outer {
                #address-cells = <2>;
                #size-cells = <1>;
                ranges = <1 0 0 0x20000000 0x1000000>, <2 0 0 0x21000000 0x1000000>;
                middle {
                    #address-cells = <1>;
                    #size-cells = <1>;
                    ranges = <0x0 2 0x800000 0x100000>;
                    inner {
                        #address-cells = <1>;
                        #size-cells = <1>;
                        ranges;
                        dev@4000 { reg = <0x4000 0x1000>; };
                    };
                };
            };
            """
        )
        // 0x4000 is <2 0x804000> on the outer bus, which puts <2 0> at 0x21000000.
        #expect(board.devices.map { $0.registers.map(\.range) } == [[range(0x2180_4000, 0x1000)]])
    }

    @Test("What a disabled bus holds is not there")
    func disabledBus() throws {
        let board = try load(
            """
            bus {
                #address-cells = <2>;
                #size-cells = <2>;
                ranges;
                status = "disabled";
                \(smmu("interrupts = <0 1 1>;"))
                dev@0 { reg = <0 0 0 0x1000>; iommus = <&smmu 1>; };
            };
            """
        )
        #expect(board.smmus.map(\.isEnabled) == [false])
        #expect(board.masters.isEmpty)
    }

    @Test("Reserved IOVAs pass through dma-ranges of the device's bus")
    func dmaRanges() throws {
        let board = try load(
            smmu("interrupts = <0 1 1>;")
                + """
                reserved-memory {
                    #address-cells = <2>;
                    #size-cells = <2>;
                    ranges;
                    window: window { iommu-addresses = <&dev 0 0x1000000 0 0x100000>; };
                };
                bus {
                    #address-cells = <2>;
                    #size-cells = <2>;
                    ranges;
                    dma-ranges = <0 0 0 0x80000000 0 0x40000000>;
                    dev: dev@0 { reg = <0 0 0 0x1000>; iommus = <&smmu 1>; memory-region = <&window>; };
                };
                """
        )
        #expect(board.masters.first?.reservedIOVAs.map(\.range) == [range(0x8100_0000, 0x10_0000)])
    }

    // MARK: - PCIe and MSI

    @Test("iommu-map-mask joins functions; two SMMUs and a hole split one host")
    func iommuMaps() throws {
        let board = try load(
            smmu("interrupts = <0 1 1>;")
                + """
                second: iommu@11000000 {
                    compatible = "arm,smmu-v3";
                    reg = <0 0x11000000 0 0x20000>;
                    #iommu-cells = <1>;
                    interrupts = <0 2 1>;
                };
                old: iommu@12000000 {
                    compatible = "arm,smmu-v2";
                    reg = <0 0x12000000 0 0x20000>;
                    #iommu-cells = <1>;
                };
                pcie@50000000 {
                    compatible = "pci-host-ecam-generic";
                    device_type = "pci";
                    #address-cells = <3>;
                    #size-cells = <2>;
                    reg = <0 0x50000000 0 0x10000000>;
                    ranges = <0x02000000 0 0x60000000 0 0x60000000 0 0x1000000>;
                    iommu-map = <0x000 &smmu 0x400 0x100>, <0x200 &second 0 0x100>, <0x300 &old 7 0x100>;
                    iommu-map-mask = <0xfff8>;
                };
                """
        )
        let host = try #require(board.pcieHosts.first)
        // Functions 0 and 3 of device 1: the mask leaves the device.
        #expect(host.iommu(forRequester: 0x08)?.streamID == StreamID(0x408))
        #expect(host.iommu(forRequester: 0x0b)?.streamID == StreamID(0x408))
        #expect(host.iommu(forRequester: 0x100) == nil)
        #expect(host.iommu(forRequester: 0x210)?.path == "/iommu@11000000")
        #expect(host.iommu(forRequester: 0x210)?.streamID == StreamID(0x10))
        #expect(host.iommu(forRequester: 0x300)?.kind == .other("arm,smmu-v2"))
        #expect(host.iommu(forRequester: 0x300)?.streamID == nil)
    }

    @Test("A GICv2m frame is an MSI controller with no cells; a host names it without one")
    func gicV2m() throws {
        let board = try load(
            gic: "arm,gic-400",
            """
            v2m: v2m@30020000 {
                compatible = "arm,gic-v2m-frame";
                reg = <0 0x30020000 0 0x1000>;
                msi-controller;
            };
            pcie@50000000 {
                compatible = "pci-host-ecam-generic";
                device_type = "pci";
                #address-cells = <3>;
                #size-cells = <2>;
                reg = <0 0x50000000 0 0x10000000>;
                ranges = <0x02000000 0 0x60000000 0 0x60000000 0 0x1000000>;
                msi-parent = <&v2m>;
            };
            """
        )
        #expect(board.msiControllers.map(\.kind) == [.gicV2m])
        #expect(board.pcieHosts.first?.msiController(forRequester: 8)?.path == "/v2m@30020000")
        #expect(board.pcieHosts.first?.busRange == 0...255)
    }
}
