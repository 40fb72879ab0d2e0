// Doorbells in memory (Doorbell Buffer Config).

import NVMe
import Testing

@Suite struct ShadowDoorbellTests {
    static let doorbells = TestDriver.buffer + 0x60_0000
    static let eventIndexes = TestDriver.buffer + 0x60_1000

    private func configure(_ driver: TestDriver, _ pairs: [TestQueuePair]) {
        let command = TestCommand(0x7C).prp1(Self.doorbells).prp2(Self.eventIndexes)
        #expect(driver.admin.execute(command).status == 0)
        for pair in pairs { pair.shadow = (Self.doorbells, Self.eventIndexes) }
    }

    @Test(arguments: [true, false])
    func commandsAreFoundWithFewRegisterWrites(isPinned: Bool) throws {
        let machine = try TestMachine()
        if !isPinned { try machine.enableMSIX() }
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1, entryCount: 32)
        configure(driver, [pair])
        let before = pair.registerWriteCount
        // Rounds of several commands, each with a ring of its own, with no more than the queue takes outstanding.
        for round in 0..<200 {
            for index in 0..<16 {
                let place = TestDriver.buffer + UInt64(index) * 512
                pair.submit(TestDriver.transfer(2, block: UInt64(round), count: 1, place))
            }
            for _ in 0..<16 { #expect(pair.takeCompletion().status == 0) }
        }
        // Without the shadows it would be 6400; with the pin, each head is asked for.
        #expect(pair.registerWriteCount - before < 6400)
        #expect(machine.controller.queueStatistics.last?.commands == 3200)
    }

    @Test func queuesMadeLaterHaveThemToo() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        // What memory held before is not a doorbell.
        machine.write([UInt8](repeating: 0x7F, count: 8192), at: Self.doorbells)
        configure(driver, [])
        let pair = driver.createQueues(2)
        pair.shadow = (Self.doorbells, Self.eventIndexes)
        #expect(machine.load32(Self.doorbells + 16) == 0)
        #expect(machine.load32(Self.eventIndexes + 20) == 0)
        for _ in 0..<100 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
    }

    @Test func aQueueInUseGoesOnWhereItIs() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        for _ in 0..<5 { pair.execute(TestCommand(0x00, namespace: 1)) }
        configure(driver, [pair])
        #expect(machine.load32(Self.doorbells + 8) == 5)
        #expect(machine.load32(Self.doorbells + 12) == 5)
        for _ in 0..<100 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
    }

    @Test func buffersThatAreMovedTakeTheirValuesAlong() throws {
        let machine = try TestMachine()
        try machine.enableMSIX()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        configure(driver, [pair])
        for _ in 0..<37 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
        let moved = Self.doorbells + 0x1_0000
        let command = TestCommand(0x7C).prp1(moved).prp2(moved + 0x1000)
        #expect(driver.admin.execute(command).status == 0)
        #expect(machine.load32(moved + 8) == 37)
        #expect(machine.load32(moved + 12) == 37)
        pair.shadow = (moved, moved + 0x1000)
        for _ in 0..<37 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
        // Where the next place cannot be reached, the registers go on from the last value.
        #expect(driver.admin.execute(command.prp1(0x1000)).status == 0x004)
        pair.shadow = nil
        for _ in 0..<37 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
    }

    @Test func valuesBeyondTheQueueAreNotFollowed() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        configure(driver, [pair])
        let request = driver.admin.submit(TestCommand(0x0C))
        machine.store32(64, Self.doorbells + 8)
        machine.write32(1, 0x1008)
        let event = driver.admin.takeCompletion()
        #expect(event.identifier == request)
        #expect(event.result == 0x01_0100)
        machine.store32(0, Self.doorbells + 8)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }

    @Test("A queue that is looked at is served without a register write, and stops when it is to")
    func silence() throws {
        var parameters = NVMeParameters(serialNumber: "test-1")
        // Longer than the test.
        parameters.pollMicroseconds = 60_000_000
        let machine = try TestMachine(parameters)
        try machine.enableMSIX()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        // First with the register alone: it is looked at as well.
        for _ in 0..<100 { #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0) }
        configure(driver, [pair])
        var silent = 0
        // Who was held up at looking does not for a while.
        waitUntil("16 commands in a row that need no register write") {
            let before = pair.registerWriteCount
            #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
            silent = pair.registerWriteCount == before ? silent + 1 : 0
            return silent == 16
        }
        // A tail beyond the queue is reported and waited out, not looked at for ever.
        let request = driver.admin.submit(TestCommand(0x0C))
        machine.store32(64, Self.doorbells + 8)
        machine.write32(pair.tail, 0x1008)
        let event = driver.admin.takeCompletion()
        #expect(event.identifier == request)
        #expect(event.result == 0x01_0100)
        machine.store32(pair.tail, Self.doorbells + 8)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
        driver.shutDown()
    }

    @Test func buffersThatAreNoPagesAreRefused() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        for (first, second) in [
            (0, Self.eventIndexes), (Self.doorbells, 0), (Self.doorbells + 8, Self.eventIndexes),
        ] {
            #expect(driver.admin.execute(TestCommand(0x7C).prp1(first).prp2(second)).status == 0x002)
        }
        let pair = driver.createQueues(1)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }
}
