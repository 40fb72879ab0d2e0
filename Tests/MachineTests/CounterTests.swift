// Counter groups of a whole machine: DMA through the control socket's methods, registers over the bus.

import AddressSpace
import ControlProtocol
import DeviceModel
import Machine
import SMMUv3
import Testing

@Suite("The machine's performance counters")
struct CounterTests {
    /// The test board with more nodes before its first device, and more properties of its first SMMU.
    private func machine(
        _ nodes: String,
        smmuProperties: String = "",
        driver: MachineOptions.Driver = .own
    ) throws -> Machine {
        let anchor = "dma@40000000 {"
        let smmu = "smmu: iommu@2b400000 {"
        let parts = TestBoard.small
            .replacing(smmu, with: smmu + "\n" + smmuProperties, maxReplacements: 1)
            .split(separator: anchor, maxSplits: 1)
        try #require(parts.count == 2)
        var options = MachineOptions()
        options.driver = driver
        return try Machine(
            board: try TestBoard.load(parts[0] + nodes + "\n" + anchor + parts[1]),
            options: options
        )
    }

    /// Page 0 behind the SMMU's two pages, and page 1.
    private static let relocated = """
        pmu@2b420000 {
            compatible = "arm,smmu-v3-pmcg";
            reg = <0 0x2b420000 0 0x1000>, <0 0x2b430000 0 0x1000>;
            interrupts = <0 78 1>;
        };
        """

    /// The registers of one group on a machine's bus.
    private struct Group {
        let bus: any PhysicalAccess
        let page0: UInt64
        let page1: UInt64

        func write(_ address: UInt64, _ value: UInt64, _ width: AccessWidth = .word) throws {
            try bus.store(value, width, at: PhysicalAddress(address))
        }

        func read(_ address: UInt64, _ width: AccessWidth = .word) throws -> UInt64 {
            try bus.load(width, at: PhysicalAddress(address))
        }

        /// Counts these events, each with a StreamID or with all, from 0.
        func start(_ events: [(event: UInt64, stream: UInt64?)]) throws {
            try write(page0 + 0xE04, 0)
            for (index, counter) in events.enumerated() {
                let index = UInt64(index)
                try write(page0 + 0x400 + 4 * index, counter.event | (counter.stream == nil ? 1 << 29 : 0))
                try write(page0 + 0xA00 + 4 * index, counter.stream ?? 0xFFFF_FFFF)
                try write(page1 + 8 * index, 0, .doubleword)
                try write(page0 + 0xC00, 1 << index, .doubleword)
            }
            try write(page0 + 0xE04, 1)
        }

        func counters(_ count: UInt64) throws -> [UInt64] {
            try (0..<count).map { try read(page1 + 8 * $0, .doubleword) }
        }
    }

    @Test("a DMA through the driver's tables counts what explain shows of it")
    func dma() throws {
        // Without the driver's CMD_PREFETCH_CONFIG, which would have the structures fetched already, or not yet.
        let machine = try machine(Self.relocated, smmuProperties: "hisilicon,broken-prefetch-cmd;")
        machine.startDriver()
        defer { machine.stop() }
        let client = TestClient(machine)
        let group = Group(bus: machine.bus, page0: 0x2B42_0000, page1: 0x2B43_0000)
        // 8 counters of 64 bits with capture, in page 1; events 0 to 5.
        #expect(try group.read(group.page0 + 0xE00) == 0x0050_3F07)
        #expect(try group.read(group.page0 + 0xE20, .doubleword) == 0x3F)

        let mapped = Methods.IOMMUMap.Parameters(device: "dma@40000000", iova: 0x10000, length: 0x4000)
        _ = try client.call(Methods.IOMMUMap.self, mapped)
        let kinds = try client.call(Methods.Explain.self, .init(device: "dma@40000000", iova: 0x10000))
            .steps.map(\.kind)
        let descriptors = UInt64(kinds.filter { $0 == "descriptor" }.count)
        let structures = UInt64(kinds.filter { ["l1std", "ste", "cd"].contains($0) }.count)
        #expect(descriptors == 4)
        #expect(structures == 3)

        try group.start([(1, nil), (2, nil), (3, nil), (4, nil), (5, nil), (1, 0x11), (4, 0x11)])
        let data = ByteString([UInt8](repeating: 0x5A, count: 0x2800))
        let write = Methods.DMAWrite.Parameters(device: "dma@40000000", iova: 0x10C00, data: data)
        #expect(try client.call(Methods.DMAWrite.self, write).fault == nil)
        // 0x10C00 to 0x133FF: four pages, each translated for itself, of which the first finds the table of all; one
        // fetch of the configuration.
        let walked = descriptors + 3
        #expect(try group.counters(7) == [4, 4, 1, walked, structures, 0, 0])
        #expect(try client.call(Methods.DMAWrite.self, write).fault == nil)
        #expect(try group.counters(7) == [8, 4, 1, walked, structures, 0, 0])
        // The device's other StreamID: its configuration is its own, the TLB's translations are both's.
        var other = write
        other.stream = 0x11
        #expect(try client.call(Methods.DMAWrite.self, other).fault == nil)
        #expect(try group.counters(7) == [12, 4, 2, walked, 2 * structures, 4, 0])
        // A fault is a transaction like any other.
        other.iova = 0x20000
        #expect(try client.call(Methods.DMAWrite.self, other).fault?.name == "F_TRANSLATION")
        #expect(try group.counters(7)[5] == 5)

        try group.write(group.page0 + 0xE04, 0)
        #expect(try client.call(Methods.DMAWrite.self, write).fault == nil)
        #expect(try group.counters(7)[0] == 13)
    }

    @Test("an overflow pulses the line that the tree says")
    func interrupt() throws {
        let machine = try machine(Self.relocated, driver: .none)
        defer { machine.stop() }
        let client = TestClient(machine)
        let group = Group(bus: machine.bus, page0: 0x2B42_0000, page1: 0x2B43_0000)
        try group.start([(1, 0x10)])
        try group.write(group.page1, .max, .doubleword)
        try group.write(group.page0 + 0xC40, 1, .doubleword)
        try group.write(group.page0 + 0xE50, 1)
        let read = Methods.DMARead.Parameters(device: "dma@40000000", iova: 0x8800_0000, length: 8)
        #expect(try client.call(Methods.DMARead.self, read).fault == nil)
        let line = try #require(
            try client.call(Methods.InterruptsList.self, .init()).interrupts.first { $0.label == "overflow" }
        )
        #expect(line.device == "/pmu@2b420000")
        #expect(line.intid == 110)
        #expect(line.pulses == 1)
        #expect(try group.read(group.page1 + 0xCC0, .doubleword) == 1)
        #expect(try group.read(group.page0 + 0xCC0, .doubleword) == 0, "relocated")
    }

    @Test("a group without a wire sends messages, to memory as to anywhere")
    func message() throws {
        let machine = try machine(
            """
            its: msi-controller@30040000 {
                compatible = "arm,gic-v3-its";
                reg = <0 0x30040000 0 0x20000>;
                msi-controller;
                #msi-cells = <1>;
            };
            pmu@2b420000 {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x2b420000 0 0x1000>;
                msi-parent = <&its 0x20001>;
            };
            """,
            driver: .none
        )
        defer { machine.stop() }
        let group = Group(bus: machine.bus, page0: 0x2B42_0000, page1: 0x2B42_0000)
        #expect(try group.read(group.page0 + 0xE00) & 1 << 21 != 0)
        func overflow() throws {
            try group.write(group.page1, .max, .doubleword)
            let client = TestClient(machine)
            let read = Methods.DMARead.Parameters(device: "dma@40000000", iova: 0x8800_0000, length: 8)
            #expect(try client.call(Methods.DMARead.self, read).fault == nil)
        }
        try group.write(group.page0 + 0xE58, 0x8900_0040, .doubleword)
        try group.write(group.page0 + 0xE60, 0x4E)
        try group.start([(1, nil)])
        try group.write(group.page0 + 0xC40, 1, .doubleword)
        try group.write(group.page0 + 0xE50, 1)
        try overflow()
        #expect(try group.read(0x8900_0040) == 0x4E)
        #expect(try group.read(group.page0 + 0xE68) == 0)
        // Nobody is there.
        try group.write(group.page0 + 0xE50, 0)
        try group.write(group.page0 + 0xE58, 0x7000_0000, .doubleword)
        try group.write(group.page0 + 0xE50, 1)
        try overflow()
        #expect(try group.read(group.page0 + 0xE68) == 1)
    }

    @Test("each group counts for its SMMU, by its place or by smmud,smmu")
    func twoSMMUs() throws {
        let machine = try machine(
            """
            second: iommu@2b600000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x2b600000 0 0x20000>;
                interrupts = <0 80 1>;
                #iommu-cells = <1>;
            };
            pmu@2b420000 {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x2b420000 0 0x1000>;
                interrupts = <0 78 1>;
            };
            pmu@2b620000 {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x2b620000 0 0x2000>;
                interrupts = <0 84 1>;
            };
            pmu@2b630000 {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x2b630000 0 0x1000>;
                interrupts = <0 85 1>;
                smmud,smmu = <&smmu>;
            };
            """,
            driver: .none
        )
        defer { machine.stop() }
        let client = TestClient(machine)
        let board = try client.call(Methods.MachineDescribe.self, Nothing())
        let (first, second) = ("/iommu@2b400000", "/iommu@2b600000")
        #expect(board.pmcgs.map(\.smmu) == [first, second, first])
        let groups = [0x2B42_0000, 0x2B62_0000, 0x2B63_0000].map { (base: UInt64) in
            Group(bus: machine.bus, page0: base, page1: base)
        }
        for group in groups { try group.start([(1, nil)]) }
        for (smmu, count) in [(first, 2), (second, 3)] {
            for _ in 0..<count {
                let read = Methods.DMARead.Parameters(
                    smmu: .path(smmu),
                    stream: 0x42,
                    iova: 0x8800_0000,
                    length: 8
                )
                #expect(try client.call(Methods.DMARead.self, read).fault == nil)
            }
        }
        #expect(try groups.map { try $0.counters(1)[0] } == [2, 3, 2])
        // A larger `reg` than the architecture's page has nothing behind it.
        #expect(throws: BusError.self) { try groups[1].read(0x2B62_1000) }
    }
}
