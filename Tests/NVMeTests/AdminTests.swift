// Admin commands: what each answers, and the status of each that is wrong.

import NVMe
import Testing

@Suite struct AdminTests {
    let machine: TestMachine
    let driver: TestDriver
    let page = TestDriver.buffer

    init() throws {
        machine = try TestMachine()
        driver = TestDriver(machine)
    }

    private func status(_ command: TestCommand) -> UInt16 { driver.admin.execute(command).status }

    @Test func unknownOpcodesAreInvalid() {
        // Namespace Management, Firmware Commit, Self-test, Keep Alive, Format, Sanitize and what nobody defined.
        for opcode: UInt8 in [0x0D, 0x10, 0x14, 0x18, 0x80, 0x84, 0x03, 0xFF] {
            let completion = driver.admin.execute(TestCommand(opcode))
            #expect(completion.status == 0x001)
            #expect(completion.isPermanent)
        }
        // Fused operations, and SGLs in admin commands.
        #expect(status(TestCommand(0x06).prp1(page).with(10, 1).with(0, 0x0106)) == 0x002)
        #expect(status(TestCommand(0x06).prp1(page).with(10, 1).with(0, 0x4006)) == 0x002)
    }

    @Test func identifyRefusesWhatIsNotThere() {
        #expect(status(TestCommand(0x06, namespace: 2).prp1(page)) == 0x00B)
        #expect(status(TestCommand(0x06, namespace: 0xFFFF_FFFF).prp1(page)) == 0x00B)
        #expect(status(TestCommand(0x06, namespace: 0xFFFF_FFFE).prp1(page).with(10, 2)) == 0x00B)
        #expect(status(TestCommand(0x06, namespace: 1).prp1(page).with(10, 0x10)) == 0x002)
        #expect(status(TestCommand(0x06, namespace: 1).prp1(page).with(10, 2)) == 0)
        #expect(machine.load64(page) == 0)
        #expect(status(TestCommand(0x06).prp1(page + 2).with(10, 1)) == 0x013)
        let fault = driver.admin.execute(TestCommand(0x06).prp1(0x1000).with(10, 1))
        #expect(fault.status == 0x004)
        #expect(!fault.isPermanent)
    }

    @Test func queuesAreCreatedAndDeletedInTheirOrder() {
        func completions(_ id: UInt32, _ size: UInt32, _ flags: UInt32 = 1, at base: UInt64? = nil) -> UInt16
        {
            status(TestCommand(0x05).prp1(base ?? page).with(10, size << 16 | id).with(11, flags))
        }
        func commands(_ id: UInt32, _ size: UInt32, _ flags: UInt32, at base: UInt64? = nil) -> UInt16 {
            status(TestCommand(0x01).prp1(base ?? page).with(10, size << 16 | id).with(11, flags))
        }
        #expect(completions(0, 7) == 0x101)
        #expect(completions(9, 7) == 0x101)
        #expect(completions(1, 0) == 0x102)
        #expect(completions(1, 1024) == 0x102)
        #expect(completions(1, 7, 0) == 0x002)
        #expect(completions(1, 7, 1, at: page + 512) == 0x013)
        // By the pin there is vector 0 only.
        #expect(completions(1, 7, 1 | 2 | 1 << 16) == 0x108)
        #expect(completions(1, 1023) == 0)
        #expect(completions(1, 7) == 0x101)
        #expect(commands(1, 7, 1) == 0x101)
        #expect(commands(1, 7, 1 | 9 << 16) == 0x101)
        #expect(commands(1, 7, 1 | 2 << 16) == 0x100)
        #expect(commands(1, 0, 1 | 1 << 16) == 0x102)
        #expect(commands(1, 7, 1 << 16) == 0x002)
        #expect(commands(1, 7, 1 | 1 << 16, at: page + 0x800) == 0x013)
        #expect(commands(1, 7, 1 | 1 << 16) == 0)
        #expect(commands(1, 7, 1 | 1 << 16) == 0x101)
        // Deletion: the completion queue after all that use it.
        #expect(status(TestCommand(0x04).with(10, 1)) == 0x10C)
        #expect(status(TestCommand(0x00).with(10, 0)) == 0x101)
        #expect(status(TestCommand(0x00).with(10, 2)) == 0x101)
        #expect(status(TestCommand(0x00).with(10, 1)) == 0)
        #expect(status(TestCommand(0x00).with(10, 1)) == 0x101)
        #expect(status(TestCommand(0x04).with(10, 1)) == 0)
        #expect(status(TestCommand(0x04).with(10, 1)) == 0x101)
        #expect(status(TestCommand(0x04).with(10, 0)) == 0x101)
    }

    @Test func queuesOfAnUnsaidEntrySizeAreRefused() throws {
        let machine = try TestMachine()
        let admin = TestDriver(machine).admin
        // CC.IOSQES and CC.IOCQES as they were not set yet.
        machine.write32(1, 0x14)
        #expect(admin.execute(TestCommand(0x05).prp1(page).with(10, 7 << 16 | 1).with(11, 1)).status == 0x102)
        machine.write32(1 | 4 << 20, 0x14)
        #expect(admin.execute(TestCommand(0x05).prp1(page).with(10, 7 << 16 | 1).with(11, 1)).status == 0)
        let commands = TestCommand(0x01).prp1(page).with(10, 7 << 16 | 1).with(11, 1 | 1 << 16)
        #expect(admin.execute(commands).status == 0x102)
    }

    @Test func featuresHaveDefaultsAndKeepWhatIsSet() {
        func get(_ feature: UInt32, _ dword11: UInt32 = 0) -> TestCompletion {
            driver.admin.execute(TestCommand(0x0A).with(10, feature).with(11, dword11))
        }
        func set(_ feature: UInt32, _ dword11: UInt32, namespace: UInt32 = 0) -> UInt16 {
            status(TestCommand(0x09, namespace: namespace).with(10, feature).with(11, dword11))
        }
        #expect(get(0x06).result == 1)
        #expect(get(0x07).result == 7 | 7 << 16)
        #expect(get(0x04).result == 0x157)
        #expect(get(0x04, 1 << 20).result == 0)
        #expect(get(0x0B).result == 0)
        for (feature, value) in [
            (0x01, 0x0302_0103), (0x05, 0x0064), (0x06, 0), (0x08, 0x0A03), (0x0A, 1), (0x0B, 0x1FF),
        ] as [(UInt32, UInt32)] {
            #expect(set(feature, value, namespace: feature == 0x05 ? 1 : 0) == 0, "feature \(feature)")
            #expect(get(feature).result == UInt64(value))
            // Its default, and that it can be changed and not saved.
            #expect(get(feature | 1 << 8).result == (feature == 0x06 ? 1 : 0))
            #expect(get(feature | 3 << 8).result == (feature == 0x05 ? 6 : 4))
        }
        #expect(set(0x04, 0x0150) == 0)
        #expect(set(0x04, 1 << 20 | 0x0110) == 0)
        #expect(get(0x04).result == 0x150)
        #expect(get(0x04, 1 << 20).result == 0x110)
        #expect(get(0x04, 1 << 16).status == 0x002)
        #expect(set(0x09, 1 << 16 | 3) == 0)
        #expect(get(0x09, 3).result == 1 << 16 | 3)
        #expect(get(0x09, 4).result == 4)
        #expect(set(0x09, 999) == 0x002)
        #expect(get(0x09, 999).status == 0x002)
        #expect(set(0x02, 1) == 0x002)
        #expect(set(0x02, 0) == 0)
        #expect(set(0x05, 1 << 16, namespace: 1) == 0x002)
        // Unknown ones, those of no namespace, and what cannot be saved.
        #expect(set(0x0F, 0) == 0x002)
        #expect(get(0x7F).status == 0x002)
        #expect(get(0x06 | 4 << 8).status == 0x002)
        #expect(set(0x06, 1, namespace: 1) == 0x10F)
        #expect(set(0x06, 1, namespace: 7) == 0x00B)
        #expect(set(0x06 | 1 << 31, 1) == 0x10D)
    }

    @Test func theNumberOfQueuesIsSaidBeforeTheFirst() {
        #expect(status(TestCommand(0x09).with(10, 7).with(11, 0xFFFF)) == 0x002)
        #expect(status(TestCommand(0x09).with(10, 7).with(11, 0xFFFF_0000)) == 0x002)
        _ = driver.createQueues(1)
        #expect(status(TestCommand(0x09).with(10, 7).with(11, 0)) == 0x00C)
    }

    @Test func logPagesAreThereInPartAndInWhole() {
        func log(_ page: UInt32, dwords: UInt32, offset: UInt32 = 0, namespace: UInt32 = 0xFFFF_FFFF)
            -> UInt16
        {
            status(
                TestCommand(0x02, namespace: namespace).prp1(self.page).with(10, (dwords - 1) << 16 | page)
                    .with(12, offset)
            )
        }
        #expect(log(0x02, dwords: 128) == 0)
        #expect(machine.read(5, at: page) == [0, 0x2C, 0x01, 100, 10])
        #expect(log(0x03, dwords: 128) == 0)
        #expect(machine.read(16, at: page) == [1, 0, 0, 0, 0, 0, 0, 0] + Array("1.0     ".utf8))
        #expect(log(0x05, dwords: 1024) == 0)
        // Admin Identify is supported; Write (01h of the second half) changes blocks, Read (02h) does not.
        #expect(machine.load32(page + 6 * 4) == 1)
        #expect(machine.load32(page + 0x0D * 4) == 0)
        #expect(machine.load32(page + 1024 + 4) == 3)
        #expect(machine.load32(page + 1024 + 8) == 1)
        machine.write([UInt8](repeating: 0xEE, count: 64), at: page)
        #expect(log(0x03, dwords: 16, offset: 504) == 0)
        // What lies beyond a page stays as it is.
        #expect(machine.read(16, at: page) == [0, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0xEE, count: 8))
        #expect(log(0x03, dwords: 1, offset: 2) == 0x002)
        #expect(log(0x03, dwords: 1, offset: 516) == 0x002)
        #expect(log(0x03, dwords: 1, offset: 512) == 0)
        #expect(log(0x04, dwords: 1) == 0x109)
        #expect(log(0x80, dwords: 1) == 0x109)
        #expect(log(0x02, dwords: 128, namespace: 1) == 0x002)
        #expect(log(0x02, dwords: 128, namespace: 0) == 0)
        // NUMDU: 1 MiB and a dword is more than one transfer.
        #expect(status(TestCommand(0x02).prp1(page).with(10, 3).with(11, 4)) == 0x002)
    }

    @Test func theErrorLogTellsOfTheLastErrorsNewestFirst() {
        for index in 0..<20 { #expect(status(TestCommand(0x7F, namespace: UInt32(index))) == 0x001) }
        let read = TestCommand(0x02).prp1(page).with(10, 255 << 16 | 1)
        #expect(status(read) == 0)
        #expect(machine.load64(page) == 20)
        // SQID, CID, then the status field with DNR and M above the phase bit.
        #expect(machine.load64(page + 8) == 0xFFFF_C002_0013_0000)
        #expect(machine.load32(page + 24) == 19)
        #expect(machine.load64(page + 15 * 64) == 5)
    }

    @Test func eventsOfDoorbellsGoToOutstandingRequests() {
        let first = driver.admin.submit(TestCommand(0x0C))
        let second = driver.admin.submit(TestCommand(0x0C))
        // A doorbell of a queue that is not there: error status, 00h, log page 01h.
        machine.write32(1, 0x1010)
        let event = driver.admin.takeCompletion()
        #expect(event.identifier == first)
        #expect(event.result == 0x01_0000)
        #expect(event.status == 0)
        // A value that the queue has not: told once the log page was read.
        machine.write32(32, 0x1000)
        let log = TestCommand(0x02).prp1(page).with(10, 15 << 16 | 1)
        #expect(driver.admin.execute(log.with(10, 15 << 16 | 1 << 15 | 1)).status == 0)
        #expect(!driver.admin.hasCompletion)
        let reading = driver.admin.submit(log)
        let completions = [driver.admin.takeCompletion(), driver.admin.takeCompletion()]
        #expect(completions.map(\.identifier) == [reading, second])
        #expect(completions.last?.result == 0x01_0100)
    }

    @Test func fourRequestsAreOutstandingAtMostAndCanBeAborted() {
        let requests = (0..<4).map { _ in driver.admin.submit(TestCommand(0x0C)) }
        let fifth = driver.admin.submit(TestCommand(0x0C))
        let refused = driver.admin.takeCompletion()
        #expect(refused.identifier == fifth)
        #expect(refused.status == 0x105)
        // Abort: the request ends with 07h, then the abort says that it did.
        let abort = driver.admin.submit(TestCommand(0x08).with(10, UInt32(requests[2]) << 16))
        let aborted = driver.admin.takeCompletion()
        #expect(aborted.identifier == requests[2])
        #expect(aborted.status == 0x007)
        let done = driver.admin.takeCompletion()
        #expect(done.identifier == abort)
        #expect(done.status == 0)
        #expect(done.result == 0)
        // One that is not outstanding, and a queue that is not there.
        #expect(driver.admin.execute(TestCommand(0x08).with(10, 0x7777 << 16)).result == 1)
        #expect(status(TestCommand(0x08).with(10, 5)) == 0x002)
    }

    @Test func aResetDropsOutstandingRequests() {
        driver.admin.submit(TestCommand(0x0C))
        let again = TestDriver(machine)
        for _ in 0..<4 { again.admin.submit(TestCommand(0x0C)) }
        #expect(again.admin.execute(TestCommand(0x0C)).status == 0x105)
    }
}
