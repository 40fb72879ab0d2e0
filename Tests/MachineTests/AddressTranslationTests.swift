// A function's ATS in a whole machine: offered where the tree and the SMMU have it, and used as software enables it.

import AddressSpace
import DeviceModel
import Glibc
import Machine
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

@Suite("ATS in a machine")
struct AddressTranslationTests {
    private static let board = TestBoard.small.replacing(
        "bus-range = <0 0xf>;",
        with: "bus-range = <0 0xf>; ats-supported;"
    )
    private static let smmu: UInt64 = 0x2B40_0000
    /// The configuration space of 0000:00:03.0.
    private static let configuration: UInt64 = 0x5001_8000

    private func machine(
        _ device: String = "iommu-testdev,at=0000:00:03.0",
        _ board: String = board,
        _ profile: MachineOptions.SMMUProfile = .full,
        atcEntries: Int = 64
    ) throws -> Machine {
        var options = MachineOptions()
        options.driver = .none
        options.smmuProfile = profile
        options.atcEntries = atcEntries
        options.devices = [try DeviceSpecification(argument: device)]
        return try Machine(board: try TestBoard.load(board), options: options)
    }

    /// The extended capabilities' IDs, in their order.
    private func capabilities(_ machine: Machine) throws -> [UInt64] {
        var found: [UInt64] = []
        var offset: UInt64 = 0x100
        while offset != 0, found.count < 10 {
            let header = try machine.bus.load(.word, at: PhysicalAddress(Self.configuration + offset))
            if header != 0 { found.append(header & 0xFFFF) }
            offset = header >> 20
        }
        return found
    }

    @Test("ATS and PRI are offered where the tree says ats-supported, the SMMU has them, and nobody says no")
    func offers() throws {
        func offered(_ machine: Machine) throws -> [UInt64] {
            defer { machine.stop() }
            return try capabilities(machine)
        }
        #expect(try offered(try machine()) == [0x0F, 0x13])
        #expect(try offered(try machine("virtio-rng,at=0000:00:03.0")) == [0x0F, 0x13])
        #expect(try offered(try machine("dma-test-engine,at=0000:00:03.0")) == [0x0F, 0x13, 0x1B])
        #expect(try offered(try machine("iommu-testdev,at=0000:00:03.0,ats=off")) == [])
        #expect(try offered(try machine("iommu-testdev,at=0000:00:03.0", Self.board, .stage1)) == [])
        #expect(try offered(try machine("iommu-testdev,at=0000:00:03.0", TestBoard.small)) == [])
        let error = #expect(throws: MachineError.self) {
            try machine("iommu-testdev,at=0000:00:03.0,ats=on", TestBoard.small)
        }
        #expect(error?.description.contains("ats-supported") == true)
    }

    /// Has the device at 0000:00:03.0 write 4 bytes to an IOVA.
    private func write(_ machine: Machine, to address: UInt64, _ physical: UInt64) throws -> UInt64 {
        func store(_ value: UInt64, _ offset: UInt64) throws {
            try machine.bus.store(value, .word, at: PhysicalAddress(0x6000_0000 + offset))
        }
        func load(_ offset: UInt64) throws -> UInt64 {
            try machine.bus.load(.word, at: PhysicalAddress(0x6000_0000 + offset))
        }
        try store(address & 0xFFFF_FFFF, 0x04)
        try store(address >> 32, 0x08)
        try store(4, 0x0C)
        try store(physical, 0x1C)
        try store(1, 0x14)
        _ = try load(0x00)
        while try load(0x10) == 0xFFFF_FFFE { sched_yield() }
        return try load(0x10)
    }

    @Test("a function's DMA goes through its ATC once software has enabled ATS in it and in its stream's STE")
    func transfers() throws {
        let machine = try machine()
        defer { machine.stop() }
        func poke(_ address: UInt64, _ value: UInt64) throws {
            try machine.bus.storeRAM64(value, at: PhysicalAddress(address))
        }
        func store(_ value: UInt64, _ address: UInt64, _ width: AccessWidth = .word) throws {
            try machine.bus.store(value, width, at: PhysicalAddress(address))
        }
        // A linear stream table for StreamIDs of 17 bits, a CD, and one table with a block of 1 GiB.
        let (table, context, root): (UInt64, UInt64, UInt64) = (0x8100_0000, 0x8200_0000, 0x8200_1000)
        let ste = table + 0x1_0018 * 64
        try poke(ste, context | 0b101 << 1 | 1)
        // EATS 1.
        try poke(ste + 8, 1 << 28)
        // T0SZ 25, EPD1, V, IPS 48 bits, AA64, R, A, ASID 1.
        try poke(context, 25 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 48)
        try poke(context + 8, root)
        try poke(context + 24, 0xFF)
        // IOVA 0x4000_0000 to RAM: unprivileged, accessed, not global.
        try poke(root + 8, 0x8000_0000 | 1 << 11 | 1 << 10 | 1 << 6 | 0b01)
        let command: UInt64 = 0x8300_0000
        try store(table, Self.smmu + 0x80, .doubleword)
        try store(17, Self.smmu + 0x88)
        try store(command | 4, Self.smmu + 0x90, .doubleword)
        // CMDQEN, SMMUEN, ATSCHK.
        try store(0b1_1001, Self.smmu + 0x20)
        // BAR 0; Memory Space and Bus Master.
        try store(0x6000_0000, Self.configuration + 0x10)
        try store(0b110, Self.configuration + 4, .halfword)
        #expect(try write(machine, to: 0x4020_0000, 0x8020_0000) == 0)
        func statistic(_ name: String) -> UInt64? {
            machine.functions[0].atsStatistics.first { $0.name == name }?.value
        }
        #expect(statistic("ats-requests") == 0)
        // ATS Control.Enable.
        try store(0x8000, Self.configuration + 0x106, .halfword)
        for index in 0..<3 as Range<UInt64> {
            let offset = 0x30_0000 + index * 0x1000
            #expect(try write(machine, to: 0x4000_0000 + offset, 0x8000_0000 + offset) == 0)
        }
        #expect(statistic("ats-requests") == 1, "one for the block")
        #expect(statistic("atc-resident") == 1)
        // CMD_ATC_INV of everything, by the StreamID that the tree gives the function; CMD_SYNC.
        try poke(root + 8, 0)
        try poke(command, 0x30)
        try poke(command + 16, 0x46)
        try poke(command + 32, 0x40 | 0x1_0018 << 32)
        try poke(command + 40, 52)
        try poke(command + 48, 0x46)
        try store(4, Self.smmu + 0x98)
        while try machine.bus.load(.word, at: PhysicalAddress(Self.smmu + 0x9C)) != 4 { sched_yield() }
        #expect(statistic("atc-resident") == 0)
        #expect(try write(machine, to: 0x4020_0000, 0x8020_0000) == 0xDEAD_0002)
    }
}
