// QEMU's iommu-testdev, in the order of QEMU's own tests of it.

import DeviceModel
import PCIFunction
import PlatformDevices
import Testing

@Suite struct IOMMUTestDeviceTests {
    let machine: TestMachine
    let function: PCIFunction

    init() throws {
        let machine = try TestMachine()
        self.machine = machine
        function = try IOMMUTestDevice.makeFunction(name: "testdev", physical: machine.bus) {
            machine.makePort()
        }
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
    }

    private func set(_ value: UInt64, _ offset: UInt64) throws {
        try function.writeBAR(0, value, at: offset, width: .word)
    }
    private func get(_ offset: UInt64) throws -> UInt64 { try function.readBAR(0, at: offset, width: .word) }

    /// Sets up, arms, triggers and polls.
    private func run(
        _ address: UInt64,
        physical: UInt64,
        byteCount: UInt64 = 4,
        attributes: UInt64 = 0b1010
    ) throws -> UInt64 {
        try set(address & 0xFFFF_FFFF, 0x04)
        try set(address >> 32, 0x08)
        try set(physical & 0xFFFF_FFFF, 0x1C)
        try set(physical >> 32, 0x20)
        try set(byteCount, 0x0C)
        try set(attributes, 0x18)
        try set(1, 0x14)
        #expect(try get(0x10) == 0xFFFF_FFFE)
        #expect(try get(0x00) == 0)
        try waitUntil("the result") { try get(0x10) != 0xFFFF_FFFE }
        return try get(0x10)
    }

    @Test func identityAndRegistersAfterPowerOn() throws {
        #expect(function.readConfiguration(at: 0, byteCount: 4) == 0x0005_1B36)
        #expect(try get(0x10) == 0xFFFF_FFFF)
        #expect(try get(0x18) == 0b10)
        for offset: UInt64 in [0x04, 0x08, 0x0C, 0x1C, 0x20, 0x24, 0xFFC] { #expect(try get(offset) == 0) }
        #expect(throws: RegisterAccessError.unsupportedWidth) {
            try function.readBAR(0, at: 0, width: .doubleword)
        }
    }

    @Test func thePatternIsWrittenAndReadBack() throws {
        #expect(try run(TestMachine.ram + 0x1002, physical: TestMachine.ram + 0x1002, byteCount: 7) == 0)
        #expect(
            try machine.read(8, at: TestMachine.ram + 0x1002) == [
                0x78, 0x56, 0x34, 0x12, 0x78, 0x56, 0x34, 0,
            ]
        )
    }

    @Test func eachFailureHasItsResult() throws {
        let place = TestMachine.ram
        #expect(try run(place, physical: place, byteCount: 0) == 0xDEAD_0001)
        #expect(try run(place, physical: place, byteCount: 1 << 20 + 1) == 0xDEAD_0001)
        #expect(try run(0x1000, physical: place) == 0xDEAD_0002)
        #expect(try run(place, physical: 0x1000) == 0xDEAD_0003)
        #expect(try run(place, physical: place + 0x100) == 0xDEAD_0004)
        // Secure and non-secure at once; secure.
        #expect(try run(place, physical: place, attributes: 0b1011) == 0xDEAD_0006)
        #expect(try run(place, physical: place, attributes: 0b1001) == 0xDEAD_0002)
        // Without the doorbell.
        #expect(try get(0x00) == 0)
        #expect(try get(0x10) == 0xDEAD_0005)
        try set(1, 0x14)
        try set(0, 0x14)
        #expect(try get(0x10) == 0xFFFF_FFFF)
        #expect(try get(0x00) == 0)
        #expect(try get(0x10) == 0xDEAD_0005)
    }

    @Test func aResetForgetsEverything() throws {
        #expect(try run(TestMachine.ram, physical: TestMachine.ram) == 0)
        function.reset()
        #expect(try get(0x04) == 0)
        #expect(try get(0x10) == 0xFFFF_FFFF)
    }

    @Test func triggersWithoutEndLeaveOneTransferPending() throws {
        try set(TestMachine.ram, 0x04)
        try set(TestMachine.ram, 0x1C)
        try set(4, 0x0C)
        for _ in 0..<10_000 {
            try set(1, 0x14)
            _ = try get(0x00)
        }
        try waitUntil("the result") { try get(0x10) == 0 }
    }
}
