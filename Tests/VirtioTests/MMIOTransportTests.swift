// Virtio over MMIO: the register map, the interrupt line, a whole disk behind it.

import AddressSpace
import DeviceModel
import Testing
import Virtio

@Suite struct MMIOTransportTests {
    let machine: TestMachine
    let file: TestImage
    let block: VirtioBlock
    let driver: MMIODriver

    init() throws {
        machine = try TestMachine()
        file = try TestImage(byteCount: 1 << 20)
        block = VirtioBlock(image: try file.open(), queueCount: 2, serial: "m")
        driver = try MMIODriver(machine, block)
    }

    @Test func registers_readAsTheSpecificationHasThem() throws {
        // MagicValue "virt", Version 2, DeviceID 2 (block).
        #expect(driver.read(0x00) == 0x7472_6976)
        #expect(driver.read(0x04) == 2)
        #expect(driver.read(0x08) == 2)
        #expect(driver.read(0x70) == 0)
        driver.write(1, 0x30)
        #expect(driver.read(0x34) == 256)
        driver.write(2, 0x30)
        #expect(driver.read(0x34) == 0)
        driver.write(0x1_0000, 0x30)
        #expect(driver.read(0x34) == 0)
        // No shared memory: length and base are -1.
        for offset in [0xB0, 0xB4, 0xB8, 0xBC] as [UInt64] { #expect(driver.read(offset) == 0xFFFF_FFFF) }
        // The capacity, 2048 sectors, as two words and as one.
        #expect(driver.configuration(0, .word) == 2048)
        #expect(driver.configuration(0, .doubleword) == 2048)
        #expect(driver.configuration(34, .halfword) == 2)
        #expect(driver.configuration(0xF8, .doubleword) == 0)
    }

    @Test func accessesThatNoRegisterTakes_areRefused() {
        let window = driver.window
        #expect(throws: RegisterAccessError.unsupportedWidth) { try window.read(at: 0, width: .byte) }
        #expect(throws: RegisterAccessError.unsupportedWidth) {
            try window.write(0, at: 0x80, width: .doubleword)
        }
        #expect(throws: RegisterAccessError.misaligned) { try window.read(at: 2, width: .word) }
        #expect(throws: RegisterAccessError.noSuchRegister) { try window.read(at: 0x200, width: .word) }
    }

    @Test func aDiskWorksAndItsLineFollowsTheInterruptStatus() throws {
        let queue = try driver.start(features: .max, queues: 2)[0]
        let disk = DiskDriver(driver, queue)
        let data = machine.allocate(1024)
        machine.put([UInt8](repeating: 0x42, count: 1024), data)
        #expect(try disk.request(1, sector: 5, [.out(data, 1024)]) == Outcome(0, 1))
        #expect(file.content(at: 2560, 1024) == [UInt8](repeating: 0x42, count: 1024))
        #expect(eventually { driver.line.isAsserted })
        // Only what is acknowledged goes.
        driver.write(2, 0x64)
        #expect(driver.line.isAsserted)
        #expect(driver.takeInterrupts() == 1)
        #expect(!driver.line.isAsserted)
        #expect(driver.read(0x60) == 0)
    }

    @Test("what was used between a driver's look at InterruptStatus and its acknowledgement interrupts again")
    func usedBeforeTheAcknowledgement() throws {
        // Without event indices each used buffer interrupts.
        let queue = try driver.start(features: ~(1 << 29), queues: 1)[0]
        let disk = DiskDriver(driver, queue)
        _ = try disk.request(4, sector: 0)
        #expect(eventually { driver.line.isAsserted })
        #expect(driver.read(0x60) == 1)
        // The driver's write is under way while it looks into its ring, and finds nothing more there.
        let before = block.statistics["interrupts"]
        _ = try disk.request(4, sector: 0)
        #expect(eventually { block.statistics["interrupts"] > before })
        driver.write(1, 0x64)
        #expect(driver.line.isAsserted)
        #expect(driver.read(0x60) == 1)
        driver.write(1, 0x64)
        #expect(!driver.line.isAsserted)
        #expect(driver.read(0x60) == 0)
        // A driver that does not look acknowledges what there is.
        _ = try disk.request(4, sector: 0)
        #expect(eventually { driver.line.isAsserted })
        driver.write(1, 0x64)
        #expect(!driver.line.isAsserted)
    }

    @Test func reset_lowersTheLineAndForgetsTheQueues() throws {
        let queue = try driver.start(features: .max, queues: 1)[0]
        _ = try DiskDriver(driver, queue).request(4, sector: 0)
        #expect(eventually { driver.line.isAsserted })
        driver.reset()
        #expect(!driver.line.isAsserted)
        driver.write(0, 0x30)
        #expect(driver.read(0x44) == 0)
    }

    @Test func queueReady_takesAQueueOutAndIn() throws {
        let queue = try driver.start(features: .max, queues: 1)[0]
        _ = try DiskDriver(driver, queue).request(4, sector: 0)
        driver.write(0, 0x30)
        driver.write(0, 0x44)
        #expect(driver.read(0x44) == 0)
        let fresh = DriverQueue(machine, size: 8, hasEventIndex: true)
        driver.setQueue(0, fresh)
        #expect(try DiskDriver(driver, fresh).request(4, sector: 0).status == 0)
    }

    @Test func queueReset_isOverWhenItReadsZero() throws {
        let queue = try driver.start(features: .max, queues: 1)[0]
        _ = try DiskDriver(driver, queue).request(4, sector: 0)
        driver.write(0, 0x30)
        driver.write(1, 0xC0)
        #expect(eventually { driver.read(0xC0) == 0 })
        #expect(driver.read(0x44) == 0)
    }

    @Test func generation_countsWhatTheDeviceChangesByItself() throws {
        let (near, _) = try NetPackets.loop()
        let address = try #require(MACAddress("52:54:00:12:34:56"))
        let net = VirtioNet(backend: near, address: address)
        let driver = try MMIODriver(machine, net)
        try driver.start(features: .max, queues: 2)
        let before = driver.read(0xFC)
        net.setLink(isUp: false)
        #expect(driver.read(0xFC) == before + 1)
        #expect(driver.configuration(6, .halfword) == 0)
        #expect(driver.line.isAsserted)
        #expect(driver.takeInterrupts() == 2)
        net.setLink(isUp: false)
        #expect(driver.read(0xFC) == before + 1)
    }
}
