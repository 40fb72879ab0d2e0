// Reset, power states and the bus-master gate.

import AddressSpace
import DeviceModel
import PCIFunction
import Testing

@Suite struct ResetTests {
    private func programmed() throws -> Fixture {
        let fixture = Fixture(bars: ConfigurationTests.bars, ConfigurationTests.everything)
        fixture.enable()
        fixture.write(0x4000_0000, 0x10)
        fixture.write(0x55, 0x3C, 1)
        fixture.write(0x8000, 0x62, 2)
        try fixture.function.writeBAR(0, 0, at: 0x100C, width: .word)
        fixture.function.signal(vector: 1)
        fixture.function.setINTx(true)
        return fixture
    }

    // PCI Express Base Specification, 6.6.2.
    @Test(arguments: [(0x8000, 0x074, 2), (0x80, 0x075, 1), (0x0000_8000, 0x074, 4)] as [(UInt32, Int, Int)])
    func functionLevelResetPutsEverythingBack(value: UInt32, offset: Int, byteCount: Int) throws {
        let fixture = try programmed()
        let changes = fixture.host.configurationChanges
        #expect(fixture.function.initiatesReset(value, at: offset, byteCount: byteCount))
        fixture.write(value, offset, byteCount)
        #expect(fixture.model.resets == 1)
        #expect(nonzeroWords { fixture.read($0) } == ConfigurationTests.golden)
        #expect(!fixture.function.isBusMaster)
        #expect(!fixture.function.isMemoryEnabled)
        #expect(try fixture.function.readBAR(0, at: 0x100C, width: .word) == 1)
        #expect(try fixture.function.readBAR(4, at: 0x800, width: .doubleword) == 0)
        #expect(!fixture.host.pin)
        #expect(fixture.host.configurationChanges == changes + 1)
        #expect(fixture.memory.taken() == [])
    }

    @Test func otherWritesToDeviceControlDoNotReset() throws {
        let fixture = try programmed()
        fixture.write(0x7FFF, 0x074, 2)
        fixture.write(0x80, 0x074, 1)
        fixture.write(0x8000, 0x076, 2)
        fixture.write(0xFFFF_FFFF, 0x070)
        #expect(fixture.model.resets == 0)
        #expect(fixture.read(0x74, 2) == 0x7F80)
    }

    @Test func statusBitsAreClearedByOnes() {
        let fixture = Fixture(ConfigurationTests.everything)
        fixture.function.setINTx(true)
        fixture.write(0xFFFF, 0x06, 2)
        // Capabilities List and Interrupt Status are read-only.
        #expect(fixture.read(0x06, 2) == 0x0018)
    }
}

@Suite struct PowerTests {
    // Power management stands at 0x40, its PMCSR at 0x44.
    @Test func statesThatAreNotThereAreDiscarded() {
        let fixture = Fixture([.powerManagement])
        for (written, read) in [(1, 0), (2, 0), (3, 3), (1, 3), (2, 3), (0, 0)] as [(UInt32, UInt32)] {
            fixture.write(written, 0x44, 2)
            #expect(fixture.read(0x44, 2) == 0x0008 | read)
        }
    }

    @Test func inD3hotNothingIsIssuedOrAnsweredButConfiguration() throws {
        let fixture = Fixture([.powerManagement, .msi(vectorCount: 1)])
        fixture.enable()
        fixture.write(0x1000, 0x4C)
        fixture.write(1, 0x4A, 2)
        let port = fixture.function.makePort()
        let changes = fixture.host.configurationChanges
        fixture.write(3, 0x44, 2)
        #expect(fixture.host.configurationChanges == changes + 1)
        #expect(!fixture.function.isMemoryEnabled)
        #expect(!fixture.function.isBusMaster)
        #expect(throws: DMAFault.self) { try port.store(1, .word, at: IOVirtualAddress(0x2000)) }
        fixture.function.signal(vector: 0)
        #expect(fixture.memory.taken() == [])
        #expect(fixture.read(0x00) == 0x5678_1234)
        // Command keeps its bits: No_Soft_Reset.
        #expect(fixture.read(0x04, 2) == 0x0006)
        fixture.write(0, 0x44, 2)
        #expect(fixture.function.isMemoryEnabled)
        try port.store(1, .word, at: IOVirtualAddress(0x2000))
        #expect(fixture.memory.taken() == [.message(0x2000, 1)])
        #expect(fixture.model.resets == 0)
    }

    @Test func pinIsQuietInD3hot() {
        let fixture = Fixture([.powerManagement])
        fixture.function.setINTx(true)
        fixture.write(3, 0x44, 2)
        #expect(!fixture.host.pin)
        fixture.write(0, 0x44, 2)
        #expect(fixture.host.pin)
    }
}

@Suite struct BusMasterTests {
    @Test func portsIssueNothingWhileBusMasterEnableIs0() throws {
        let fixture = Fixture()
        let port = fixture.function.makePort()
        let target = IOVirtualAddress(0x1_0000)
        let refused = DMAFault(cause: .aborted, address: target, bytesTransferred: 0)
        #expect(throws: refused) { try port.store(1, .word, at: target) }
        #expect(throws: refused) { try port.load(.word, at: target) }
        #expect(throws: refused) {
            try port.lend([DMARange(address: target, byteCount: 4)], for: .read, .plain) { _ in }
        }
        fixture.write(0x0004, 0x04, 2)
        try port.store(1, .word, at: target)
        #expect(try port.load(.word, at: target) == 0)
        #expect(try !port.lend([DMARange(address: target, byteCount: 4)], for: .read, .plain) { _ in })
        fixture.write(0, 0x04, 2)
        #expect(throws: refused) { try port.store(1, .word, at: target) }
        #expect(fixture.memory.taken() == [.message(0x1_0000, 1)])
    }
}
