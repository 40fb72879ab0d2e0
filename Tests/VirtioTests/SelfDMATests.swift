// Devices whose DMA reaches their own registers: peer-to-peer transfers that a driver aims at the device itself.

import AddressSpace
import BlockStorage
import DeviceModel
import PCIFunction
import Synchronization
import SystemBus
import Testing
import Virtio

/// A function's BAR 0, or its configuration space, as a window on the bus.
private final class FunctionWindow: RegisterTarget {
    /// Not held: the function's ports hold the bus, and the bus holds this.
    private struct Owner { weak var function: PCIFunction? }
    private let owner: Mutex<Owner>
    private let isConfiguration: Bool
    private var function: PCIFunction? { owner.withLock { $0.function } }

    init(_ function: PCIFunction, isConfiguration: Bool) {
        owner = Mutex(Owner(function: function))
        self.isConfiguration = isConfiguration
    }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard let function else { throw .noSuchRegister }
        guard isConfiguration else { return try function.readBAR(0, at: offset, width: width) }
        return UInt64(function.readConfiguration(at: Int(offset), byteCount: width.rawValue))
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard let function else { throw .noSuchRegister }
        guard isConfiguration else { return try function.writeBAR(0, value, at: offset, width: width) }
        let word = UInt32(truncatingIfNeeded: value)
        function.writeConfiguration(word, at: Int(offset), byteCount: width.rawValue)
    }
}

@Suite struct SelfDMATests {
    private let barBase: UInt64 = 0x1000_0000
    private let configurationBase: UInt64 = 0x2000_0000

    private func disk(serial: String) throws -> (PCIDriver, DiskDriver, TestImage) {
        let machine = try TestMachine()
        let file = try TestImage(byteCount: 1 << 20)
        let block = VirtioBlock(image: try file.open(), serial: serial)
        let driver = try PCIDriver(machine, block)
        for (base, isConfiguration) in [(barBase, false), (configurationBase, true)] {
            let window = FunctionWindow(driver.function, isConfiguration: isConfiguration)
            let range = try #require(AddressRange(start: base, byteCount: isConfiguration ? 0x1000 : 0x4000))
            try machine.bus.addWindow(window, at: range, name: "function")
        }
        let queue = try driver.start(features: .max, queues: 1)[0]
        return (driver, DiskDriver(driver, queue), file)
    }

    private func works(_ driver: PCIDriver) throws {
        driver.function.writeConfiguration(0x0006, at: 4, byteCount: 2)
        let queue = try driver.start(features: .max, queues: 1)[0]
        #expect(try DiskDriver(driver, queue).request(4, sector: 0).status == 0)
    }

    @Test func aStatusByteThatIsTheDeviceStatus_resetsAndNothingHangs() throws {
        let (driver, disk, file) = try disk(serial: "")
        defer { withExtendedLifetime(file) {} }
        driver.machine.put(little(4, 4) + little(0, 12), disk.header)
        // The request's status, OK, is a write of 0 to device_status.
        disk.queue.add([.out(disk.header, 16), .into(barBase + 20, 1)])
        driver.notify(0)
        #expect(eventually { driver.status == 0 })
        #expect(disk.queue.usedIndex == 0)
        try works(driver)
    }

    @Test func aFunctionLevelResetByTheFunctionsOwnDMA_doesNotWaitForItself() throws {
        // Two bytes, 0xC2 0x80: Device Control with Initiate Function Level Reset.
        let (driver, disk, file) = try disk(serial: "\u{80}")
        defer { withExtendedLifetime(file) {} }
        var place = UInt64(driver.function.readConfiguration(at: 0x34, byteCount: 1))
        while driver.function.readConfiguration(at: Int(place), byteCount: 1) != 0x10 {
            place = UInt64(driver.function.readConfiguration(at: Int(place) + 1, byteCount: 1))
            try #require(place != 0)
        }
        disk.add(8, sector: 0, [.into(configurationBase + place + 8, 2)])
        driver.notify(0)
        #expect(eventually { driver.status == 0 })
        #expect(disk.queue.usedIndex == 0)
        try works(driver)
    }

    @Test func aRingOnTheNotificationRegister_isServedAndStopped() throws {
        let (driver, disk, file) = try disk(serial: "")
        defer { withExtendedLifetime(file) {} }
        // Data that goes to the notification register wakes the device's own thread.
        disk.add(8, sector: 0, [.into(barBase + 0x3000, 2)])
        driver.notify(0)
        #expect(try disk.queue.await().length == 3)
        try works(driver)
    }
}
