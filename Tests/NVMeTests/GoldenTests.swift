// Layouts, against integers worked out from the specification's tables and Linux's headers.

import DeviceModel
import NVMe
import PCIFunction
import Testing

@Suite struct GoldenTests {
    @Test func registersAfterPowerOn() throws {
        let machine = try TestMachine()
        // NVMe 1.4, figure 69 (CAP): MQES 1023, CQR, TO 60 (30 s), CSS NVM (bit 37), MPSMAX 4 (bits 55:52).
        #expect(machine.read64(0x00) == 0x0040_0020_3C01_03FF)
        // Linux's NVME_VS(1, 4, 0).
        #expect(machine.read32(0x08) == 0x0001_0400)
        for offset: UInt64 in [
            0x0C, 0x10, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C, 0xE00, 0x1000,
        ] {
            #expect(machine.read32(offset) == 0, "offset \(offset)")
        }
        // A read of 64 bits, and of the bytes of VS.
        #expect(try machine.function.readBAR(0, at: 0, width: .doubleword) == 0x0040_0020_3C01_03FF)
        #expect(try machine.function.readBAR(0, at: 9, width: .byte) == 0x04)
        #expect(throws: RegisterAccessError.misaligned) {
            try machine.function.readBAR(0, at: 2, width: .word)
        }
        #expect(throws: RegisterAccessError.unsupportedWidth) {
            try machine.function.writeBAR(0, 1, at: 0x14, width: .halfword)
        }
        #expect(throws: RegisterAccessError.misaligned) {
            try machine.function.writeBAR(0, 1, at: 0x16, width: .word)
        }
    }

    @Test func registersKeepWhatIsWrittenButForReservedBits() throws {
        let machine = try TestMachine()
        machine.write64(0x1234_5678_9ABC_DFFF, 0x28)
        #expect(machine.read64(0x28) == 0x1234_5678_9ABC_D000)
        try machine.function.writeBAR(0, 0xFFFF_FFFF_FFFF_FFFF, at: 0x30, width: .doubleword)
        #expect(machine.read64(0x30) == 0xFFFF_FFFF_FFFF_F000)
        machine.write32(0xFFFF_FFFF, 0x24)
        #expect(machine.read32(0x24) == 0x0FFF_0FFF)
        machine.write32(0xF, 0x0C)
        machine.write32(0x5, 0x10)
        #expect(machine.read32(0x0C) == 0xA)
        #expect(machine.read32(0x10) == 0xA)
        // Those that cannot be written stay as they are.
        machine.write32(0xFFFF_FFFF, 0x00)
        machine.write32(0xFFFF_FFFF, 0x08)
        machine.write32(0xFFFF_FFFF, 0x1C)
        machine.write32(0x4E56_4D65, 0x20)
        #expect(machine.read64(0x00) == 0x0040_0020_3C01_03FF)
        #expect(machine.read32(0x08) == 0x0001_0400)
        #expect(machine.read32(0x1C) == 0)
        #expect(machine.read32(0x20) == 0)
    }

    @Test func theFunctionIsAnNVMeControllerOfClass010802() throws {
        let machine = try TestMachine()
        #expect(machine.function.readConfiguration(at: 0x08, byteCount: 4) == 0x0108_0200)
        // BAR 0: memory, 64 bits, 16 KiB.
        machine.function.writeConfiguration(0xFFFF_FFFF, at: 0x10, byteCount: 4)
        #expect(machine.function.readConfiguration(at: 0x10, byteCount: 4) == 0xFFFF_C004)
        #expect(machine.findCapability(0x11) != nil)
        let without = try TestMachine(offersMSIX: false)
        #expect(without.findCapability(0x11) == nil)
        #expect(without.findCapability(0x05) != nil)
    }

    @Test func aCompletionIsTheSpecificationsSixteenBytes() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        // An opcode that is none: SCT 0, SC 01h, M and DNR.
        driver.admin.submit(TestCommand(0x7F))
        let completion = driver.admin.takeCompletion()
        #expect(completion.status == 0x001)
        let place = driver.admin.completionBase
        #expect(machine.load64(place) == 0)
        // SQHD 1, SQID 0; CID 0; phase 1, status 0x6001 << 1.
        #expect(machine.load64(place + 8) == 0xC003_0000_0000_0001)
    }

    @Test func identifyController() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let page = TestDriver.buffer
        machine.write([UInt8](repeating: 0xEE, count: 4096), at: page)
        #expect(driver.admin.execute(TestCommand(0x06).prp1(page).with(10, 1)).status == 0)
        let bytes = machine.read(4096, at: page)
        // Offsets as struct nvme_id_ctrl of Linux has them.
        #expect(bytes[0..<4] == [0x34, 0x12, 0x34, 0x12])
        #expect(bytes[4..<24] == Array("test-1              ".utf8)[...])
        #expect(bytes[24..<64] == Array(("smmud NVMe" + String(repeating: " ", count: 30)).utf8)[...])
        #expect(bytes[64..<72] == Array("1.0     ".utf8)[...])
        #expect(bytes[77] == 8)
        #expect(bytes[80..<84] == [0x00, 0x04, 0x01, 0x00])
        #expect(bytes[111] == 1)
        #expect(bytes[256..<258] == [0x00, 0x01])
        #expect(bytes[258..<263] == [3, 3, 3, 6, 15])
        #expect(bytes[512..<514] == [0x66, 0x44])
        #expect(bytes[516..<522] == [1, 0, 0, 0, 0x1D, 0])
        #expect(bytes[525] == 7)
        #expect(bytes[536..<540] == [1, 0, 0, 0])
        #expect(String(decoding: bytes[768..<800], as: UTF8.self) == "nqn.2014-08.org.nvmexpress:uuid:")
        #expect(bytes[836] == 0)
    }

    @Test(arguments: [(512, 16384, 9), (4096, 2048, 12)])
    func identifyNamespace(blockByteCount: Int, blocks: UInt64, shift: UInt8) throws {
        var parameters = NVMeParameters(serialNumber: "test-1")
        parameters.logicalBlockByteCount = blockByteCount
        let machine = try TestMachine(parameters)
        let driver = TestDriver(machine)
        let page = TestDriver.buffer
        #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(page)).status == 0)
        let bytes = machine.read(4096, at: page)
        for place: UInt64 in [0, 8, 16] { #expect(machine.load64(page + place) == blocks) }
        // NLBAF 0, FLBAS 0, DLFEAT: zeros, and Write Zeroes may deallocate.
        #expect(bytes[25] == 0)
        #expect(bytes[26] == 0)
        #expect(bytes[33] == 0x09)
        #expect(bytes[99] == 0)
        // LBAF0: LBADS in bits 23:16, no metadata.
        #expect(bytes[128..<132] == [0, 0, shift, 0])
        let identifier = bytes[104..<120]
        #expect(identifier.contains { $0 != 0 })
        // The descriptors: NIDT 2 (NGUID) and 3 (UUID), NIDL 16, then the end.
        #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(page).with(10, 3)).status == 0)
        let list = machine.read(4096, at: page)
        #expect(list[0..<4] == [2, 16, 0, 0])
        #expect(Array(list[4..<20]) == Array(identifier))
        #expect(list[20..<24] == [3, 16, 0, 0])
        #expect(Array(list[24..<40]) == Array(identifier))
        #expect(list[40...].allSatisfy { $0 == 0 })
    }

    @Test func differentSerialNumbersAreDifferentDisks() throws {
        var found: Set<[UInt8]> = []
        for serial in ["a", "b", "ab", "ba", "disk0", "disk1"] {
            let machine = try TestMachine(NVMeParameters(serialNumber: serial))
            let driver = TestDriver(machine)
            #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(TestDriver.buffer)).status == 0)
            found.insert(machine.read(16, at: TestDriver.buffer + 104))
        }
        #expect(found.count == 6)
    }
}
