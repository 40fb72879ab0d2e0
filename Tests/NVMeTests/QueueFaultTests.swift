// Queues that cannot be reached: the controller fails, and a reset helps.

import NVMe
import PCIFunction
import Testing

@Suite struct QueueFaultTests {
    private func expectFailure(_ machine: TestMachine) {
        waitUntil("CSTS.CFS") { machine.read32(0x1C) & 2 != 0 }
        #expect(machine.controller.hasFailed)
        // By a controller reset alone.
        let driver = TestDriver(machine)
        #expect(!machine.controller.hasFailed)
        let pair = driver.createQueues(1)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }

    @Test func commandsThatCannotBeFetchedAreFatal() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        // The second queue's commands stand where no memory is.
        let size: UInt32 = 63 << 16 | 2
        let commands = TestCommand(0x01).prp1(0x1000).with(10, size).with(11, 1 | 1 << 16)
        #expect(driver.admin.execute(commands).status == 0)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
        machine.write32(1, 0x1010)
        expectFailure(machine)
    }

    @Test func completionsThatCannotBePostedAreFatal() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let size: UInt32 = 63 << 16 | 1
        let completions = TestCommand(0x05).prp1(0x1000).with(10, size).with(11, 1)
        #expect(driver.admin.execute(completions).status == 0)
        let base = TestMachine.ramBase + 0x40_0000
        let commands = TestCommand(0x01).prp1(base).with(10, size).with(11, 1 | 1 << 16)
        #expect(driver.admin.execute(commands).status == 0)
        machine.write(TestCommand(0x00, namespace: 1).bytes, at: base)
        machine.write32(1, 0x1008)
        expectFailure(machine)
    }

    @Test func aShadowDoorbellThatIsNotThereIsADataTransferError() throws {
        let machine = try TestMachine()
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        let command = TestCommand(0x7C).prp1(0x1000).prp2(0x2000)
        #expect(driver.admin.execute(command).status == 0x004)
        // The register goes on to be the doorbell.
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }
}
