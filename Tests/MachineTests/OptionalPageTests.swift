// Optional pages of an SMMU's registers on a machine's bus: there where the board has room for them.

import AddressSpace
import DeviceModel
import Machine
import SMMUv3
import Testing

@Suite("Optional register pages of a machine")
struct OptionalPageTests {
    private static let smmu: UInt64 = 0x2B40_0000

    /// The test board with a register window of another size, and more nodes before its first device.
    private static func machine(windowBytes: String, _ nodes: String = "") throws -> Machine {
        let window = "reg = <0 0x2b400000 0 0x20000>;"
        let anchor = "dma@40000000 {"
        let wide = TestBoard.small.replacing(window, with: "reg = <0 0x2b400000 0 \(windowBytes)>;")
        let board = wide.replacing(anchor, with: nodes + "\n" + anchor)
        try #require(TestBoard.small.contains(window) && TestBoard.small.contains(anchor))
        var options = MachineOptions()
        options.smmuProfile = .full
        options.driver = .none
        return try Machine(board: try TestBoard.load(board), options: options)
    }

    private static func word(_ machine: Machine, _ offset: UInt64) throws -> UInt64 {
        let bus: any PhysicalAccess = machine.bus
        return try bus.load(.word, at: PhysicalAddress(smmu + offset))
    }

    @Test("a window of 1 MiB: VATOS and the enhanced queues in its last two pages, nobody between")
    func wideWindow() throws {
        let machine = try Self.machine(windowBytes: "0x100000")
        defer { machine.stop() }
        #expect(try Self.word(machine, 0x0) & 1 << 20 != 0, "IDR0.VATOS")
        #expect(try Self.word(machine, 0x4) & 1 << 31 != 0, "IDR1.ECMDQ")
        #expect(try Self.word(machine, 0x8) == 12, "BA_VATOS")
        #expect(try Self.word(machine, 0x4000) == 0xF_0003, "CMDQ_CONTROL_PAGE_BASE0")
        // VATOS_ADDR, and the first queue's EN and ENACK.
        let bus: any PhysicalAccess = machine.bus
        try bus.store(0x5000, .word, at: PhysicalAddress(Self.smmu + 0xE_0A10))
        #expect(try Self.word(machine, 0xE_0A10) == 0x5000)
        try bus.store(1 << 31, .word, at: PhysicalAddress(Self.smmu + 0xF_0008))
        #expect(try Self.word(machine, 0xF_000C) == 1 << 31)
        #expect(throws: (any Error).self) { try Self.word(machine, 0x2_0000) }
    }

    @Test("no optional pages where there is no room, or a counter group in it")
    func narrowWindow() throws {
        let group = """
            pmu@2b420000 {
                compatible = "arm,smmu-v3-pmcg";
                reg = <0 0x2b420000 0 0x1000>;
                interrupts = <0 78 1>;
            };
            """
        for (bytes, nodes) in [("0x20000", ""), ("0x30000", ""), ("0x40000", group)] {
            let machine = try Self.machine(windowBytes: bytes, nodes)
            defer { machine.stop() }
            #expect(try Self.word(machine, 0x0) & 1 << 20 == 0)
            #expect(try Self.word(machine, 0x4) & 1 << 31 == 0)
        }
        // The group in front of the pages is not in their way.
        let machine = try Self.machine(windowBytes: "0x60000", group)
        defer { machine.stop() }
        #expect(try Self.word(machine, 0x8) == 2)
    }
}
