// Interrupts: the pin, MSI, MSI-X, and masks.

import DeviceModel
import NVMe
import PCIFunction
import Synchronization
import Testing

/// A completion queue whose reader takes each entry, and says so, before the write of it has returned.
private final class QuickReader: RegisterTarget {
    private weak let function: PCIFunction?
    private let host: PinHost
    private let levels = Mutex<[Bool]>([])

    init(_ machine: TestMachine) { (function, host) = (machine.function, machine.host) }

    /// The pin's level after each entry was taken.
    var pinLevels: [Bool] { levels.withLock { $0 } }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset % 16 == 8 else { return }
        // CQ1HDBL, to behind this entry.
        try function?.writeBAR(0, offset / 16 + 1, at: 0x100C, width: .word)
        levels.withLock { $0.append(host.isAsserted) }
    }
}

@Suite struct InterruptTests {
    @Test func thePinIsActiveWhileEntriesStandInAQueue() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        waitUntil("the pin is inactive") { !machine.host.isAsserted }
        pair.submit(TestCommand(0x00, namespace: 1))
        pair.submit(TestCommand(0x00, namespace: 1))
        waitUntil("the pin is active") { machine.host.isAsserted }
        _ = pair.takeCompletion()
        _ = pair.takeCompletion(ringing: false)
        // The entry is in memory before the pin tells of it.
        waitUntil("the pin is active") { machine.host.isAsserted }
        // Masked by INTMS, it is not; unmasked by INTMC, it is again.
        machine.write32(1, 0x0C)
        #expect(!machine.host.isAsserted)
        machine.write32(1, 0x10)
        #expect(machine.host.isAsserted)
        pair.ringCompletions()
        #expect(!machine.host.isAsserted)
        // A queue without IEN is silent.
        let silent = driver.createQueues(2, interrupts: false)
        waitUntil("the pin is inactive") { !machine.host.isAsserted }
        silent.submit(TestCommand(0x00, namespace: 1))
        waitUntil("an entry") { silent.hasCompletion }
        #expect(!machine.host.isAsserted)
        #expect(machine.doorbell.received.isEmpty)
    }

    @Test func anEntryThatIsReadWhileItIsWrittenDoesNotActivateThePin() throws {
        let machine = try TestMachine()
        let reader = QuickReader(machine)
        let base: UInt64 = 0x1000_0000
        try machine.addWindow(reader, at: base, byteCount: 0x1000)
        let driver = TestDriver(machine)
        let completions = TestCommand(0x05).prp1(base).with(10, 63 << 16 | 1).with(11, 1 | 2)
        #expect(driver.admin.execute(completions).status == 0)
        let submissions = TestCommand(0x01).prp1(TestDriver.buffer).with(10, 63 << 16 | 1).with(
            11,
            1 | 1 << 16
        )
        #expect(driver.admin.execute(submissions).status == 0)
        waitUntil("the pin is inactive") { !machine.host.isAsserted }
        // Flush, thrice: what the queue's memory has is zeroes, and opcode 0 is Flush.
        machine.write32(3, 0x1008)
        waitUntil("three entries") { reader.pinLevels.count == 3 }
        #expect(reader.pinLevels == [false, false, false])
        waitUntil("the pin is inactive") { !machine.host.isAsserted }
    }

    @Test func eachQueueSendsTheMessageOfItsVector() throws {
        let machine = try TestMachine(offersMSIX: false)
        try machine.enableMSI(log2VectorCount: 4)
        let driver = TestDriver(machine)
        let pairs = (1...3).map { driver.createQueues(UInt16($0), vector: UInt32($0 * 3)) }
        // The admin queue's is vector 0; messages of completions in a row may be one.
        waitUntil("vector 0") { machine.doorbell.received.contains(0x200) }
        for (index, pair) in pairs.enumerated() {
            pair.execute(TestCommand(0x00, namespace: 1))
            let message = 0x203 + UInt32(index) * 3
            waitUntil("vector \(message - 0x200)") { machine.doorbell.received.contains(message) }
        }
        #expect(Set(machine.doorbell.received) == [0x200, 0x203, 0x206, 0x209])
        #expect(!machine.host.isAsserted)
    }

    @Test func messagesOfMSIWaitForINTMC() throws {
        let machine = try TestMachine(offersMSIX: false)
        try machine.enableMSI(log2VectorCount: 4)
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1, vector: 5)
        machine.write32(1 << 5, 0x0C)
        pair.execute(TestCommand(0x00, namespace: 1))
        pair.execute(TestCommand(0x00, namespace: 1))
        // Once the queue is gone, its thread has sent all that it had to.
        #expect(driver.admin.execute(TestCommand(0x00).with(10, 1)).status == 0)
        #expect(!machine.doorbell.received.contains(0x205))
        machine.write32(1 << 5, 0x10)
        waitUntil("the message") { machine.doorbell.received.contains(0x205) }
    }

    @Test func vectorsThatTheFunctionHasNotAreInvalid() throws {
        let machine = try TestMachine()
        try machine.enableMSIX()
        let driver = TestDriver(machine)
        let command = TestCommand(0x05).prp1(TestDriver.buffer).with(10, 7 << 16 | 1)
        #expect(driver.admin.execute(command.with(11, 3 | 64 << 16)).status == 0x108)
        #expect(driver.admin.execute(command.with(11, 3 | 8 << 16)).status == 0)
    }

    @Test func manyCompletionsAtOnceAreFollowedByAMessage() throws {
        let machine = try TestMachine()
        try machine.enableMSIX()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1, vector: 1)
        for round in 1...10 {
            let before = machine.doorbell.received.filter { $0 == 0x101 }.count
            for _ in 0..<40 { pair.enqueue(TestCommand(0x00, namespace: 1)) }
            pair.ring(pair.tail, place: 2)
            for _ in 0..<40 { _ = pair.takeCompletion() }
            // The last entry's message comes after it: a driver that sleeps is woken.
            waitUntil("a message of round \(round)") {
                machine.doorbell.received.filter { $0 == 0x101 }.count > before
            }
        }
    }

    @Test func aHostThatTakesVectorsIsToldThem() throws {
        let machine = try TestMachine()
        machine.function.setInterruptModeOverride(.msix)
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1, vector: 4)
        pair.execute(TestCommand(0x00, namespace: 1))
        waitUntil("vector 4") { machine.host.signalled.last == 4 }
        #expect(Set(machine.host.signalled) == [0, 4])
    }
}
