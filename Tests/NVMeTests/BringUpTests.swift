// From power-on to I/O and back, as Linux's driver goes.

import DeviceModel
import NVMe
import PCIFunction
import Testing

@Suite struct BringUpTests {
    @Test func aDriverThatWorksAsLinuxDoesReadsAndWritesBlocks() throws {
        let machine = try TestMachine()
        try machine.enableMSIX()
        let driver = TestDriver(machine)
        let page = TestDriver.buffer
        // nvme_init_identify, nvme_set_queue_count.
        #expect(driver.admin.execute(TestCommand(0x06).prp1(page).with(10, 1)).status == 0)
        #expect(machine.read(6, at: page + 4) == Array("test-1".utf8))
        let count = driver.admin.execute(TestCommand(0x09).with(10, 7).with(11, 3 | 3 << 16))
        #expect(count.status == 0)
        #expect(count.result == 7 | 7 << 16)
        // Two queue pairs, on vectors 1 and 2.
        let first = driver.createQueues(1, vector: 1)
        let second = driver.createQueues(2, vector: 2)
        // nvme_scan_ns_list, nvme_identify_ns_descs, nvme_identify_ns.
        #expect(driver.admin.execute(TestCommand(0x06).prp1(page).with(10, 2)).status == 0)
        #expect(machine.load64(page) == 1)
        #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(page).with(10, 3)).status == 0)
        #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(page)).status == 0)
        #expect(machine.load64(page) == 16384)

        let written = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ $0 >> 8) }
        machine.write(written, at: page)
        #expect(first.execute(TestDriver.transfer(1, block: 100, count: 8, page)).status == 0)
        #expect(machine.file.bytes(at: 51200, count: 4096) == written)
        #expect(second.execute(TestDriver.transfer(2, block: 100, count: 8, page + 0x4000)).status == 0)
        #expect(machine.read(4096, at: page + 0x4000) == written)
        #expect(first.execute(TestCommand(0x00, namespace: 1)).status == 0)
        waitUntil("a message of each vector") { Set(machine.doorbell.received) == [0x100, 0x101, 0x102] }

        driver.shutDown()
        machine.write32(machine.read32(0x14) & ~0xC001, 0x14)
        waitUntil("CSTS is 0") { machine.read32(0x1C) == 0 }
    }

    @Test func aFullRingOfCommandsWrapsManyTimes() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1, entryCount: 8)
        for round in 0..<20 {
            var expected: [UInt16] = []
            for index in 0..<7 {
                let block = UInt64(round * 7 + index)
                machine.write(
                    [UInt8](repeating: UInt8(block + 1), count: 512),
                    at: TestDriver.buffer + block * 512
                )
                expected.append(
                    pair.enqueue(
                        TestDriver.transfer(1, block: block, count: 1, TestDriver.buffer + block * 512)
                    )
                )
            }
            pair.ring(pair.tail, place: 2)
            for identifier in expected {
                let completion = pair.takeCompletion()
                #expect(completion.identifier == identifier)
                #expect(completion.status == 0)
            }
        }
        let found = machine.file.bytes(at: 0, count: 140 * 512)
        for block in 0..<140 { #expect(found[block * 512] == UInt8(block + 1)) }
        let statistics = machine.controller.queueStatistics
        #expect(statistics.map(\.id) == [0, 1])
        #expect(statistics.last?.commands == 140)
        #expect(statistics.last?.bytes == 140 * 512)
        #expect(statistics.last?.errors == 0)
    }

    @Test func aFullCompletionQueueWaitsForTheDriver() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let base = TestMachine.ramBase + 0x40_0000
        // 4 entries for completions, 64 for commands.
        let pair = TestQueuePair(machine, id: 1, entryCount: 64, at: base)
        let small = TestCommand(0x05).prp1(pair.completionBase).with(10, 3 << 16 | 1).with(11, 1)
        #expect(driver.admin.execute(small).status == 0)
        let commands = TestCommand(0x01).prp1(base).with(10, 63 << 16 | 1).with(11, 1 | 1 << 16)
        #expect(driver.admin.execute(commands).status == 0)
        for _ in 0..<10 { pair.enqueue(TestCommand(0x00, namespace: 1)) }
        pair.ring(pair.tail, place: 2)
        // Three are there, the fourth has no room.
        for index in 0..<3 {
            waitUntil("entry \(index)") {
                machine.load64(pair.completionBase + UInt64(index) * 16 + 8) >> 48 & 1 == 1
            }
        }
        #expect(machine.load64(pair.completionBase + 3 * 16 + 8) == 0)
        var seen: [UInt16] = []
        var place: UInt32 = 0
        var phase: UInt64 = 1
        for _ in 0..<10 {
            let address = pair.completionBase + UInt64(place) * 16 + 8
            waitUntil("the next entry") { machine.load64(address) >> 48 & 1 == phase }
            seen.append(UInt16(truncatingIfNeeded: machine.load64(address) >> 32))
            place += 1
            if place == 4 {
                place = 0
                phase ^= 1
            }
            machine.write32(place, 0x100C)
        }
        #expect(seen == Array(0..<10))
    }

    @Test func disablingAndEnablingAgainStartsAfresh() throws {
        let machine = try TestMachine()
        for _ in 0..<5 {
            let driver = TestDriver(machine)
            let pair = driver.createQueues(1)
            #expect(pair.execute(TestDriver.transfer(2, block: 0, count: 8, TestDriver.buffer)).status == 0)
        }
        #expect(machine.controller.queueStatistics.count == 2)
        machine.write32(0, 0x14)
        waitUntil("CSTS.RDY is 0") { machine.read32(0x1C) == 0 }
        #expect(machine.controller.queueStatistics.isEmpty)
    }

    @Test func aResetEndsDMAAndClearsRegisters() throws {
        let machine = try TestMachine()
        for round in 0..<10 {
            let driver = TestDriver(machine)
            let pair = driver.createQueues(1)
            for index in 0..<32 {
                let place = TestDriver.buffer + UInt64(index) * 4096
                pair.enqueue(TestDriver.transfer(2, block: UInt64(index), count: 8, place))
            }
            pair.ring(pair.tail, place: 2)
            // By function-level reset and by the machine, in turn.
            if round % 2 == 0 {
                machine.function.reset()
            } else {
                let express = try #require(machine.findCapability(0x10))
                machine.function.writeConfiguration(0x8000, at: express + 8, byteCount: 2)
            }
            // From here on memory is ours alone.
            machine.write([UInt8](repeating: 0xA5, count: 32 * 4096), at: TestDriver.buffer)
            #expect(machine.read32(0x14) == 0)
            #expect(machine.read32(0x1C) == 0)
            #expect(machine.read32(0x24) == 0)
            #expect(machine.read64(0x28) == 0)
            #expect(machine.function.readConfiguration(at: 0x04, byteCount: 2) == 0)
            #expect(machine.read(32 * 4096, at: TestDriver.buffer).allSatisfy { $0 == 0xA5 })
            machine.function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        }
    }

    @Test func aControllerWithoutBusMasteringFailsAndRecovers() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        machine.function.writeConfiguration(0x0002, at: 0x04, byteCount: 2)
        driver.admin.submit(TestCommand(0x06).prp1(TestDriver.buffer).with(10, 1))
        waitUntil("CSTS.CFS") { machine.read32(0x1C) & 2 != 0 }
        machine.function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        let again = TestDriver(machine)
        #expect(again.admin.execute(TestCommand(0x06).prp1(TestDriver.buffer).with(10, 1)).status == 0)
    }

    @Test(
        arguments: [
            // CC.MPS beyond CAP.MPSMAX, CC.CSS, CC.AMS; admin queues of one entry.
            (5 << 7 | 1, 31 | 31 << 16), (1 << 4 | 1, 31 | 31 << 16), (1 << 11 | 1, 31 | 31 << 16), (1, 0),
            (1, 31), (1, 31 << 16),
        ] as [(UInt32, UInt32)]
    )
    func impossibleConfigurationsFail(configuration: UInt32, sizes: UInt32) throws {
        let machine = try TestMachine()
        machine.write32(sizes, 0x24)
        machine.write64(TestMachine.ramBase, 0x28)
        machine.write64(TestMachine.ramBase + 0x1000, 0x30)
        machine.write32(configuration, 0x14)
        waitUntil("CSTS.CFS") { machine.read32(0x1C) == 2 }
        machine.write32(0, 0x14)
        waitUntil("CSTS is 0") { machine.read32(0x1C) == 0 }
        let driver = TestDriver(machine)
        #expect(driver.admin.execute(TestCommand(0x06).prp1(TestDriver.buffer).with(10, 1)).status == 0)
    }

    @Test func shutdownOfADisabledControllerCompletes() throws {
        let machine = try TestMachine()
        machine.write32(0x4000, 0x14)
        waitUntil("CSTS.SHST is 10b") { machine.read32(0x1C) == 0x8 }
        let driver = TestDriver(machine)
        #expect(driver.admin.execute(TestCommand(0x06).prp1(TestDriver.buffer).with(10, 1)).status == 0)
    }

    @Test func aFunctionThatIsLetGoOfEndsItsThreads() throws {
        weak var controller: NVMeController?
        do {
            let machine = try TestMachine()
            controller = machine.controller
            _ = TestDriver(machine).createQueues(1)
        }
        #expect(controller == nil)
    }
}
