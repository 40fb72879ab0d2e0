// Virtio over PCI: layouts, negotiation, interrupts, resets.

import AddressSpace
import DeviceModel
import PCIFunction
import Synchronization
import Testing
import Virtio

@Suite struct PCITransportTests {
    @Test func identityAndCapabilities_areThoseOfAModernDevice() throws {
        let fixture = try TestDisk(queueCount: 2)
        let driver = fixture.driver
        let function = driver.function
        // Red Hat's vendor ID; 0x1040 + 2; revision 1 and above is modern only; mass storage.
        #expect(function.readConfiguration(at: 0, byteCount: 4) == 0x1042_1AF4)
        #expect(function.readConfiguration(at: 8, byteCount: 4) == 0x0180_0001)
        #expect(driver.common == Structure(bar: 0, offset: 0, byteCount: 60))
        #expect(driver.interruptStatus == Structure(bar: 0, offset: 0x1000, byteCount: 1))
        #expect(driver.device == Structure(bar: 0, offset: 0x2000, byteCount: 60))
        #expect(driver.notifications == Structure(bar: 0, offset: 0x3000, byteCount: 8))
        #expect(driver.notifyMultiplier == 4)
        // The notification capability byte by byte: ID 0x09, next, length 20, type 2, BAR 0, id 0, padding, offset,
        // length, multiplier.
        let start = function.vendorCapabilityOffset(1)
        let bytes = (0..<20).map {
            UInt8(truncatingIfNeeded: function.readConfiguration(at: start + $0, byteCount: 1))
        }
        #expect(bytes[0] == 9)
        #expect(
            Array(bytes[2...]) == [20, 2, 0, 0, 0, 0, 0x00, 0x30, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0]
        )
    }

    @Test func commonConfiguration_isWhereTheSpecificationHasIt() throws {
        let fixture = try TestDisk(queueCount: 2)
        let driver = fixture.driver
        func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
            driver.read(driver.common, offset, width)
        }
        driver.write(driver.common, 1, 22, .halfword)
        #expect(read(16, .halfword) == 0xFFFF)
        #expect(read(18, .halfword) == 2)
        #expect(read(20, .byte) == 15)
        #expect(read(24, .halfword) == 16)
        #expect(read(26, .halfword) == 0xFFFF)
        #expect(read(28, .halfword) == 1)
        #expect(read(30, .halfword) == 1)
        #expect(read(32, .doubleword) == fixture.queues[1].descriptors)
        #expect(read(40, .word) == fixture.queues[1].available & 0xFFFF_FFFF)
        #expect(read(48, .word) == fixture.queues[1].used & 0xFFFF_FFFF)
        #expect(read(58, .halfword) == 0)
        // Any width reads the same bytes: num_queues and device_status in one word.
        #expect(read(20, .word) & 0xFF == 15)
        #expect(read(16, .word) == 0x0002_FFFF)
        // No queue of that number: size 0.
        driver.write(driver.common, 2, 22, .halfword)
        #expect(read(24, .halfword) == 0)
        // What is enabled is not changed under the device.
        driver.write(driver.common, 0, 22, .halfword)
        driver.write(driver.common, 0xDEAD_0000, 32, .word)
        #expect(read(32, .doubleword) == fixture.queues[0].descriptors)
    }

    @Test(arguments: [0, 0x1_0000_0000, 0x2_0000_0000, 0x3_0010_0000, 0x8000_0003_0000_0000] as [UInt64])
    func featuresOK_isRefusedWithoutWhatTheDeviceNeeds(features: UInt64) throws {
        let fixture = try TestDisk()
        let driver = fixture.driver
        driver.reset()
        driver.setStatus(3)
        driver.setFeatures(features)
        driver.setStatus(11)
        #expect(driver.status == 3)
        // And without it there is no DRIVER_OK either.
        driver.setStatus(15)
        #expect(driver.status == 3)
    }

    @Test func featuresBeyondTheSecondWord_areRefusedToo() throws {
        let driver = try TestDisk().driver
        driver.reset()
        driver.setFeatures(3 << 32)
        driver.write(driver.common, 2, 8, .word)
        driver.write(driver.common, 1, 12, .word)
        driver.write(driver.common, 2, 0, .word)
        #expect(driver.read(driver.common, 4, .word) == 0)
        driver.setStatus(11)
        #expect(driver.status == 3)
    }

    @Test func pin_followsTheInterruptStatusWhichAReadClears() throws {
        let fixture = try TestDisk()
        #expect(!fixture.driver.pin.level)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { fixture.driver.pin.level })
        #expect(fixture.driver.takeInterrupts() == 1)
        #expect(!fixture.driver.pin.level)
        #expect(fixture.driver.takeInterrupts() == 0)
        // Interrupt Disable keeps the pin low, and Status shows the cause all the same.
        fixture.driver.function.writeConfiguration(0x0406, at: 4, byteCount: 2)
        fixture.queues[0].setUsedEvent(1)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { fixture.driver.function.readConfiguration(at: 6, byteCount: 2) & 8 != 0 })
        #expect(!fixture.driver.pin.level)
        fixture.driver.function.writeConfiguration(0x0006, at: 4, byteCount: 2)
        #expect(fixture.driver.pin.level)
    }

    @Test func messages_goToTheQueuesVectorAndTheConfigurations() throws {
        let fixture = try TestDisk(queueCount: 2, offersMSIX: true)
        let (driver, machine) = (fixture.driver, fixture.machine)
        let doorbell = machine.allocate(64)
        let table = Structure(bar: 1, offset: 0, byteCount: 48)
        for vector in 0..<3 as Range<UInt64> {
            driver.write(table, doorbell + 4 * vector, 16 * vector, .word)
            driver.write(table, 0, 16 * vector + 4, .word)
            driver.write(table, 0x100 + vector, 16 * vector + 8, .word)
            driver.write(table, 0, 16 * vector + 12, .word)
        }
        let msix = try #require(capability(0x11, driver.function))
        driver.function.writeConfiguration(0x8000, at: msix + 2, byteCount: 2)
        // Vector 2 to queue 0, 1 to the configuration; there is no vector 3.
        driver.write(driver.common, 0, 22, .halfword)
        driver.write(driver.common, 3, 26, .halfword)
        #expect(driver.read(driver.common, 26, .halfword) == 0xFFFF)
        driver.write(driver.common, 2, 26, .halfword)
        #expect(driver.read(driver.common, 26, .halfword) == 2)
        driver.write(driver.common, 1, 16, .halfword)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { machine.load(.word, doorbell + 8) == 0x102 })
        #expect(driver.takeInterrupts() == 0)
        #expect(driver.pin.assertions.load(ordering: .relaxed) == 0)
        // Queue 1 has no vector: it interrupts nobody. What follows on queue 0 says that it had its chance.
        let other = DiskDriver(driver, fixture.queues[1], index: 1)
        #expect(try other.request(4, sector: 0).status == 0)
        // A ring that is broken: the configuration's vector.
        fixture.queues[1].publish(99)
        driver.notify(1)
        #expect(eventually { machine.load(.word, doorbell + 4) == 0x101 })
        #expect(machine.load(.word, doorbell) == 0)
        #expect(fixture.needsReset)
    }

    private func capability(_ id: UInt32, _ function: PCIFunction) -> Int? {
        var place = Int(function.readConfiguration(at: 0x34, byteCount: 1))
        while place != 0 {
            if function.readConfiguration(at: place, byteCount: 1) == id { return place }
            place = Int(function.readConfiguration(at: place + 1, byteCount: 1))
        }
        return nil
    }

    @Test func accessCapability_reachesRegistersThroughConfigurationSpace() throws {
        let driver = try TestDisk().driver
        let place = driver.accessCapability
        let function = driver.function
        func aim(_ offset: UInt32, _ count: UInt32) {
            function.writeConfiguration(0, at: place + 4, byteCount: 1)
            function.writeConfiguration(offset, at: place + 8, byteCount: 4)
            function.writeConfiguration(count, at: place + 12, byteCount: 4)
        }
        aim(0x2000, 4)
        #expect(function.readConfiguration(at: place + 16, byteCount: 4) == 8192)
        aim(20, 1)
        #expect(function.readConfiguration(at: place + 16, byteCount: 1) == 15)
        function.writeConfiguration(0, at: place + 16, byteCount: 1)
        #expect(eventually { driver.status == 0 })
        // A length that is no access, a BAR that is not there: nothing happens.
        aim(20, 3)
        function.writeConfiguration(1, at: place + 16, byteCount: 4)
        aim(0xFFFF_FFFC, 4)
        function.writeConfiguration(1, at: place + 16, byteCount: 4)
        #expect(function.readConfiguration(at: place + 16, byteCount: 4) == 0xFFFF_FFFF)
        #expect(driver.status == 0)
    }

    @Test func registersAnswerNobodyWhoAsksWrongly() throws {
        let driver = try TestDisk().driver
        let function = driver.function
        #expect(throws: RegisterAccessError.misaligned) { try function.readBAR(0, at: 2, width: .word) }
        #expect(throws: RegisterAccessError.noSuchRegister) {
            try function.readBAR(0, at: 0x4000, width: .word)
        }
        #expect(throws: RegisterAccessError.noSuchRegister) {
            try function.writeBAR(3, 0, at: 0, width: .word)
        }
        // A status written as a word, a notification of a queue that is not there: no effect, no trap.
        driver.write(driver.common, 0, 20, .word)
        #expect(driver.status == 15)
        driver.write(driver.notifications, 0, 0xFFC, .word)
        #expect(driver.read(driver.device, 0xFF8, .doubleword) == 0)
    }

    @Test func functionLevelReset_putsEverythingBack() throws {
        let fixture = try TestDisk()
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { fixture.driver.pin.level })
        let express = try #require(capability(0x10, fixture.driver.function))
        fixture.driver.function.writeConfiguration(0x8000, at: express + 8, byteCount: 2)
        #expect(fixture.driver.status == 0)
        #expect(!fixture.driver.pin.level)
        #expect(fixture.driver.read(fixture.driver.common, 32, .doubleword) == 0)
        // A driver that begins again is served again.
        fixture.driver.function.writeConfiguration(0x0006, at: 4, byteCount: 2)
        let queues = try fixture.driver.start(features: .max, queues: 1)
        #expect(try DiskDriver(fixture.driver, queues[0]).request(4, sector: 0).status == 0)
    }

    @Test func reset_isOverWhenNothingIsInFlightAndNothingFollows() throws {
        let machine = try TestMachine()
        let page = machine.allocate(4096)
        let valve = SlowPort.Valve(page: page)
        valve.isHeld.store(true, ordering: .sequentiallyConsistent)
        let file = try TestImage(byteCount: 1 << 20)
        let block = VirtioBlock(image: try file.open())
        let makePort = machine.makePort
        let driver = try PCIDriver(machine, block) { SlowPort(makePort(), valve) }
        let queue = try driver.start(features: .max, queues: 1)[0]
        let disk = DiskDriver(driver, queue)
        disk.add(0, sector: 0, [.into(page, 512)])
        driver.notify(0)
        #expect(eventually { valve.isWaiting.load(ordering: .sequentiallyConsistent) })
        driver.setStatus(0)
        // The transaction is in flight still, and the status says so.
        #expect(driver.status == 15)
        let accesses = valve.accesses.load(ordering: .sequentiallyConsistent)
        valve.isHeld.store(false, ordering: .sequentiallyConsistent)
        #expect(eventually { driver.status == 0 })
        // It was the last: no status byte, no used element, no interrupt.
        let started = try driver.start(features: .max, queues: 1)[0]
        #expect(try DiskDriver(driver, started).request(4, sector: 0).status == 0)
        #expect(machine.load(.byte, disk.statusAddress) == 0xEE)
        #expect(queue.usedIndex == 0)
        #expect(accesses > 0)
    }

    @Test func aThreadThatSleepsSaysSoToItsPort_behindTheFunctionToo() throws {
        let machine = try TestMachine()
        let valve = SlowPort.Valve(page: 0)
        let file = try TestImage(byteCount: 1 << 20)
        let makePort = machine.makePort
        let driver = try PCIDriver(machine, VirtioBlock(image: try file.open())) {
            SlowPort(makePort(), valve)
        }
        let queue = try driver.start(features: .max, queues: 1)[0]
        #expect(try DiskDriver(driver, queue).request(4, sector: 0).status == 0)
        #expect(eventually { valve.rests.load(ordering: .sequentiallyConsistent) > 0 })
    }

    @Test func reset_underLoad_givesTheMemoryBack() throws {
        let fixture = try TestDisk(queueCount: 4)
        let (machine, driver) = (fixture.machine, fixture.driver)
        var given: [(start: UInt64, end: UInt64)] = []
        for round in 0..<60 {
            let start = machine.allocate(4096)
            let queues = try driver.start(features: .max, queues: 4, size: 32, isPacked: round % 2 == 1)
            for (index, queue) in queues.enumerated() {
                let disk = DiskDriver(driver, queue, index: index)
                let data = machine.allocate(4096)
                for sector in 0..<8 as Range<UInt64> { disk.add(0, sector: 8 * sector, [.into(data, 4096)]) }
                driver.notify(index)
            }
            driver.reset()
            #expect(!driver.pin.level)
            // From here on it is ours.
            let end = machine.allocate(4096)
            machine.put([UInt8](repeating: 0xC5, count: Int(end - start)), start)
            given.append((start, end))
        }
        for (start, end) in given {
            #expect(machine.bytes(Int(end - start), start).allSatisfy { $0 == 0xC5 })
        }
        #expect(!fixture.needsReset)
        #expect(fixture.block.statistics["dma-faults"] == 0)
    }

    @Test func queueReset_stopsOneQueueWhichMayBeSetUpAnew() throws {
        let fixture = try TestDisk(queueCount: 2)
        let driver = fixture.driver
        #expect(try fixture.disk.request(4, sector: 0).status == 0)
        driver.write(driver.common, 0, 22, .halfword)
        driver.write(driver.common, 1, 58, .halfword)
        #expect(eventually { driver.read(driver.common, 58, .halfword) == 0 })
        #expect(driver.read(driver.common, 28, .halfword) == 0)
        #expect(driver.status == 15)
        let other = DiskDriver(driver, fixture.queues[1], index: 1)
        #expect(try other.request(4, sector: 0).status == 0)
        let fresh = DriverQueue(fixture.machine, size: 8, hasEventIndex: true)
        driver.setQueue(0, fresh)
        #expect(try DiskDriver(driver, fresh).request(4, sector: 0).status == 0)
    }

    @Test func busMasterDisabled_nothingIsIssued() throws {
        let fixture = try TestDisk()
        fixture.driver.function.writeConfiguration(0x0002, at: 4, byteCount: 2)
        fixture.disk.add(4, sector: 0)
        fixture.driver.notify(0)
        #expect(eventually { fixture.needsReset })
        #expect(fixture.queues[0].usedIndex == 0)
    }

    @Test func lettingGoOfAFunction_endsItsThreadsAndItsDevice() throws {
        weak var device: VirtioBlock?
        weak var function: PCIFunction?
        do {
            let fixture = try TestDisk(queueCount: 3)
            _ = try fixture.disk.request(4, sector: 0)
            device = fixture.block
            function = fixture.driver.function
            #expect(device != nil && function != nil)
        }
        #expect(function == nil)
        #expect(eventually { device == nil })
    }
}
