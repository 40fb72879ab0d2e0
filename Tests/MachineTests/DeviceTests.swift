// Devices with a model on the machine's own buses, as software finds and drives them.

import AddressSpace
import DeviceModel
import Glibc
import Machine
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

/// The small board with a virtio transport, a test engine and a root port with a function below it.
private let deviceBoard = TestBoard.small
    .replacing(
        "nic@2,0 { reg = <0x1000 0 0 0 0>; };",
        with: """
            nic@2,0 { reg = <0x1000 0 0 0 0>; };
            port@4,0 {
                device_type = "pci";
                reg = <0x2000 0 0 0 0>;
                bus-range = <1 1>;
                #address-cells = <3>;
                #size-cells = <2>;
                ranges;
                rng@0 { reg = <0x10000 0 0 0 0>; smmud,device = "virtio-rng"; };
            };
            """
    )
    .replacing(
        "ethernet@40020000 {",
        with: """
            virtio@40030000 {
                compatible = "virtio,mmio";
                reg = <0 0x40030000 0 0x200>;
                interrupts = <0 80 4>;
                iommus = <&smmu 0x30>;
                smmud,device = "virtio-rng";
            };
            engine@40040000 {
                compatible = "smmud,dma-test-engine";
                reg = <0 0x40040000 0 0x20000>;
                iommus = <&smmu 0x31>;
                smmud,device = "dma-test-engine";
            };
            ethernet@40020000 {
            """
    )

@Suite("Devices with a model")
struct DeviceTests {
    private let machine: Machine

    init() throws {
        var options = MachineOptions()
        options.driver = .none
        options.devices = [try DeviceSpecification(argument: "iommu-testdev,at=0000:00:03.0")]
        machine = try Machine(board: try TestBoard.load(deviceBoard), options: options)
    }

    private func load(_ address: UInt64, _ width: AccessWidth = .word) throws -> UInt64 {
        try machine.bus.load(width, at: PhysicalAddress(address))
    }

    private func store(_ value: UInt64, _ address: UInt64, _ width: AccessWidth = .word) throws {
        try machine.bus.store(value, width, at: PhysicalAddress(address))
    }

    private func ecam(_ bus: UInt64, _ device: UInt64, _ register: UInt64) -> UInt64 {
        0x5000_0000 + bus << 20 + device << 15 + register
    }

    @Test("a function answers in the ECAM window, and its BAR where software puts it")
    func function() throws {
        defer { machine.stop() }
        #expect(try load(ecam(0, 3, 0)) == 0x0005_1B36)
        #expect(try load(ecam(0, 5, 0)) == 0xFFFF_FFFF)
        try store(0xFFFF_FFFF, ecam(0, 3, 0x10))
        #expect(try load(ecam(0, 3, 0x10)) == 0xFFFF_F000)
        try store(0x6000_1000, ecam(0, 3, 0x10))
        try store(0x0006, ecam(0, 3, 4), .halfword)
        try store(0x8000_2000, 0x6000_1004)
        #expect(try load(0x6000_1004) == 0x8000_2000)
        // It moves while it runs.
        try store(0x6000_8000, ecam(0, 3, 0x10))
        #expect(try load(0x6000_8004) == 0x8000_2000)
        #expect(throws: BusError.self) { try load(0x6000_1004) }
    }

    @Test("a function below a root port has the StreamID of the bus number that software gives it")
    func rootPort() throws {
        defer { machine.stop() }
        #expect(try load(ecam(0, 4, 8)) >> 16 == 0x0604)
        #expect(try load(ecam(1, 0, 0)) == 0xFFFF_FFFF)
        try store(0x0001_0100, ecam(0, 4, 0x18))
        #expect(try load(ecam(1, 0, 0)) == 0x1044_1AF4)
        let function = try #require(machine.functions.first { $0.kind == .virtioRNG })
        #expect(function.endpoint.streams == [StreamID(0x10100)])
    }

    @Test("a platform device answers at the tree's address, and drives the tree's line")
    func platform() throws {
        defer { machine.stop() }
        #expect(try load(0x4003_0000) == 0x7472_6976)
        #expect(try load(0x4003_0008) == 4)
        let line = try #require(machine.interrupts.first { $0.device == "/virtio@40030000" })
        #expect(line.line.identity.interruptID == UInt32(112))
        #expect(machine.platformDevices.map(\.kind) == [.virtioRNG, .dmaTestEngine])
    }

    @Test(
        "the test engine's DMA goes where the SMMU lets it, and what it does not is recorded under its StreamID"
    )
    func engine() throws {
        defer { machine.stop() }
        let engine: UInt64 = 0x4004_0000
        func sum(_ address: UInt64) throws -> UInt64 {
            try store(address, engine + 0x28, .doubleword)
            try store(address + 7, engine + 0x30, .doubleword)
            try store(4, engine)
            while try load(engine) == 4 { sched_yield() }
            return try load(engine)
        }
        // As reset leaves it the SMMU lets everything through.
        try store(0x1122_3344_5566_7788, 0x8020_0000, .doubleword)
        #expect(try sum(0x8020_0000) == 1)
        #expect(try load(engine + 0x48, .doubleword) == 0x1122_3344_5566_7788)
        // GBPA.ABORT, by its update protocol: then nothing, and no event either.
        try store(0x8010_0000, 0x2B40_0044)
        #expect(try sum(0x8020_0000) == 0xFFFF_FFFF)
        #expect(machine.smmus[0].model.events().isEmpty)

        var options = MachineOptions()
        options.driver = .own
        let driven = try Machine(board: try TestBoard.load(deviceBoard), options: options)
        defer { driven.stop() }
        #expect(driven.startDriver().isEmpty)
        try driven.bus.store(0x4000, .doubleword, at: PhysicalAddress(engine + 0x28))
        try driven.bus.store(0x4007, .doubleword, at: PhysicalAddress(engine + 0x30))
        try driven.bus.store(4, .word, at: PhysicalAddress(engine))
        while try driven.bus.load(.word, at: PhysicalAddress(engine)) == 4 { sched_yield() }
        #expect(try driven.bus.load(.word, at: PhysicalAddress(engine)) == 0xFFFF_FFFF)
        let event = try #require(driven.smmus[0].model.events().first)
        #expect(event.record.words[0] == 0x31 << 32 | 0x10)
        #expect(event.record.words[2] == 0x4000)
    }

    @Test("two devices at one place, and devices that are no platform devices, are refused")
    func conflicts() throws {
        func complaint(_ arguments: [String]) throws -> String {
            var options = MachineOptions()
            options.driver = .none
            options.devices = try arguments.map { try DeviceSpecification(argument: $0) }
            let board = try TestBoard.load(deviceBoard)
            let error = #expect(throws: MachineError.self) { try Machine(board: board, options: options) }
            return error?.description ?? ""
        }
        let twice = ["iommu-testdev,at=0000:00:03.0", "virtio-rng,at=0000:00:03.0"]
        #expect(try complaint(twice).contains("a iommu-testdev is at /pcie@50000000/0000:00:03.0 already"))
        #expect(
            try complaint(["iommu-testdev,at=/dma@40000000"]).contains("is a PCIe function: at=0000:00:01.0")
        )
        #expect(try complaint(["virtio-rng,at=/display@40010000"]).contains("needs interrupts"))
        #expect(try complaint(["virtio-rng,at=0000:02:00.0"]).contains("no root port leads there"))
    }
}
