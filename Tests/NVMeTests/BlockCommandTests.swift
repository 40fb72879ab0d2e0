// The NVM command set: ranges, flags, zeros, comparisons, and what the image refuses.

import NVMe
import Synchronization
import Testing

@Suite struct BlockCommandTests {
    let machine: TestMachine
    let driver: TestDriver
    let pair: TestQueuePair
    let page = TestDriver.buffer

    init() throws {
        machine = try TestMachine()
        driver = TestDriver(machine)
        pair = driver.createQueues(1)
    }

    private func transfer(_ opcode: UInt8, _ block: UInt64, _ count: UInt32 = 1, flags: UInt32 = 0)
        -> TestCommand
    {
        let command = TestDriver.transfer(opcode, block: block, count: count, page, page + 4096)
        return command.with(12, command.words[12] | flags)
    }

    @Test(arguments: [1, 2, 5, 8] as [UInt8])
    func blocksBeyondTheNamespaceAreOutOfRange(opcode: UInt8) {
        // 16384 blocks.
        #expect(pair.execute(transfer(opcode, 16383)).status == 0)
        for (block, count) in [(16384, 1), (16383, 2), (UInt64.max, 1), (UInt64.max - 7, 8), (1 << 55, 1)]
            as [(UInt64, UInt32)]
        {
            let completion = pair.execute(transfer(opcode, block, count))
            #expect(completion.status == 0x080, "block \(block)")
            #expect(completion.isPermanent)
        }
    }

    @Test(arguments: [0, 1, 2, 5, 8, 9] as [UInt8])
    func otherNamespacesAreInvalid(opcode: UInt8) {
        for namespace: UInt32 in [0, 2, 0xFFFF_FFFE] {
            let command = transfer(opcode, 0).with(1, namespace)
            #expect(pair.execute(command).status == 0x00B)
        }
        // Flush alone goes to all of them.
        let all = pair.execute(transfer(opcode, 0).with(1, 0xFFFF_FFFF))
        #expect(all.status == (opcode == 0 ? 0 : 0x00B))
    }

    @Test func aQueuesThreadThatSleepsSaysSoToItsPort() throws {
        let rests = RestCount()
        let machine = try TestMachine(rests: rests)
        let pair = TestDriver(machine).createQueues(1)
        // Before a command there is nothing to do, and after it there is nothing more.
        for _ in 0..<3 {
            let before = rests.value.load(ordering: .sequentiallyConsistent)
            #expect(pair.execute(transfer(2, 0)).status == 0)
            waitUntil("a thread says so") { rests.value.load(ordering: .sequentiallyConsistent) != before }
        }
    }

    @Test func unknownAndFusedCommandsAreRefused() {
        // Write Uncorrectable, Verify, Reservation Register, Zone Management.
        for opcode: UInt8 in [0x04, 0x0C, 0x0D, 0x79, 0xFF] {
            #expect(pair.execute(TestCommand(opcode, namespace: 1)).status == 0x001)
        }
        #expect(pair.execute(transfer(2, 0).with(0, 0x0102)).status == 0x002)
        #expect(machine.controller.queueStatistics.last?.errors == 6)
    }

    @Test func transfersOfMoreThanMDTSAreInvalid() {
        // 2^8 pages are 2048 blocks.
        let list = page + 0x10_0000
        for index in 0..<256 { machine.store64(page + UInt64(index) * 4096, list + UInt64(index) * 8) }
        let whole = TestDriver.transfer(2, block: 0, count: 2048, page, list + 8)
        #expect(pair.execute(whole).status == 0)
        #expect(pair.execute(TestDriver.transfer(2, block: 0, count: 2049, page, list + 8)).status == 0x002)
        // Write Zeroes moves no data.
        #expect(pair.execute(TestDriver.transfer(8, block: 0, count: 16384, 0)).status == 0)
    }

    @Test func writesWithFUAAndWithoutACacheAreThere() {
        let bytes = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        machine.write(bytes, at: page)
        #expect(pair.execute(transfer(1, 7, flags: 1 << 30)).status == 0)
        #expect(machine.file.bytes(at: 3584, count: 512) == bytes)
        #expect(driver.admin.execute(TestCommand(0x09).with(10, 6).with(11, 0)).status == 0)
        #expect(pair.execute(transfer(1, 8)).status == 0)
        #expect(machine.file.bytes(at: 4096, count: 512) == bytes)
        #expect(pair.execute(transfer(2, 8, flags: 1 << 30)).status == 0)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }

    @Test(arguments: [0, 1 << 25, 1 << 30] as [UInt32])
    func zeroesGoToTheirBlocksAlone(flags: UInt32) {
        machine.file.fill([UInt8](repeating: 0xFF, count: 65536), at: 0)
        #expect(pair.execute(transfer(8, 8, 16, flags: flags)).status == 0)
        let found = machine.file.bytes(at: 0, count: 65536)
        #expect(found[4096..<12288].allSatisfy { $0 == 0 })
        #expect(found[..<4096].allSatisfy { $0 == 0xFF })
        #expect(found[12288...].allSatisfy { $0 == 0xFF })
    }

    @Test func comparisonsTellWhetherAllBytesAreEqual() {
        let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 >> 5) }
        machine.file.fill(bytes, at: 0)
        machine.write(bytes, at: page)
        #expect(pair.execute(transfer(5, 0, 16)).status == 0)
        machine.write([bytes[8191] ^ 1], at: page + 8191)
        let completion = pair.execute(transfer(5, 0, 16))
        #expect(completion.status == 0x285)
        #expect(completion.isPermanent)
    }

    /// Ranges as struct nvme_dsm_range of Linux: attributes, count, first block.
    private func manageDataset(_ ranges: [(UInt32, UInt64)], attributes: UInt32 = 4) -> TestCompletion {
        for (index, range) in ranges.enumerated() {
            machine.store64(UInt64(range.0) << 32, page + UInt64(index) * 16)
            machine.store64(range.1, page + UInt64(index) * 16 + 8)
        }
        return pair.execute(
            TestCommand(0x09, namespace: 1).prp1(page).with(10, UInt32(ranges.count - 1)).with(11, attributes)
        )
    }

    @Test func deallocatedBlocksReadAsZeroes() {
        machine.file.fill([UInt8](repeating: 0xFF, count: 65536), at: 0)
        // A hint is no deallocation.
        #expect(manageDataset([(8, 0)], attributes: 1).status == 0)
        #expect(machine.file.bytes(at: 0, count: 4096).allSatisfy { $0 == 0xFF })
        #expect(manageDataset([(8, 8), (1, 0), (0, 5), (8, 100)]).status == 0)
        let found = machine.file.bytes(at: 0, count: 65536)
        #expect(found[..<512].allSatisfy { $0 == 0 })
        #expect(found[512..<4096].allSatisfy { $0 == 0xFF })
        #expect(found[4096..<8192].allSatisfy { $0 == 0 })
        #expect(found[8192..<51200].allSatisfy { $0 == 0xFF })
        #expect(found[51200..<55296].allSatisfy { $0 == 0 })
    }

    @Test func rangesBeyondTheNamespaceDeallocateNothing() {
        machine.file.fill([UInt8](repeating: 0xFF, count: 8192), at: 0)
        #expect(manageDataset([(8, 0), (2, 16383)]).status == 0x080)
        #expect(manageDataset([(8, 0), (1, UInt64.max)]).status == 0x080)
        #expect(manageDataset([(8, 0), (UInt32.max, 0)]).status == 0x080)
        #expect(machine.file.bytes(at: 0, count: 8192).allSatisfy { $0 == 0xFF })
        // 256 ranges are what can be said at most.
        #expect(manageDataset((0..<256).map { (1, UInt64($0)) }).status == 0)
        #expect(machine.file.bytes(at: 0, count: 8192).allSatisfy { $0 == 0 })
    }

    @Test func blocksOf4096BytesAreAddressedAsSuch() throws {
        var parameters = NVMeParameters(serialNumber: "large")
        parameters.logicalBlockByteCount = 4096
        let machine = try TestMachine(parameters)
        let pair = TestDriver(machine).createQueues(1)
        let bytes = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 5) }
        machine.write(bytes, at: page)
        #expect(pair.execute(TestDriver.transfer(1, block: 3, count: 1, page)).status == 0)
        #expect(machine.file.bytes(at: 12288, count: 4096) == bytes)
        #expect(pair.execute(TestDriver.transfer(1, block: 2048, count: 1, page)).status == 0x080)
    }

    @Test func aReadOnlyImageIsAWriteProtectedNamespace() throws {
        let machine = try TestMachine(isReadOnly: true)
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        #expect(driver.admin.execute(TestCommand(0x06, namespace: 1).prp1(page)).status == 0)
        #expect(machine.read(1, at: page + 99) == [1])
        for opcode: UInt8 in [1, 8, 9] {
            #expect(pair.execute(TestDriver.transfer(opcode, block: 0, count: 1, page)).status == 0x020)
        }
        #expect(pair.execute(TestDriver.transfer(2, block: 0, count: 1, page)).status == 0)
        #expect(pair.execute(TestDriver.transfer(2, block: 0, count: 1, page).with(12, 1 << 30)).status == 0)
        #expect(pair.execute(TestCommand(0x00, namespace: 1)).status == 0)
    }

    @Test func aFileThatWasTruncatedIsAnUnrecoveredReadError() {
        machine.file.truncate(to: 4096)
        let completion = pair.execute(transfer(2, 100))
        #expect(completion.status == 0x281)
        // SMART counts it, and what was read and written.
        #expect(pair.execute(transfer(2, 0)).status == 0)
        #expect(driver.admin.execute(TestCommand(0x02).prp1(page).with(10, 127 << 16 | 2)).status == 0)
        #expect(machine.load64(page + 160) == 1)
        #expect(machine.load64(page + 32) == 1)
        #expect(machine.load64(page + 64) == 1)
    }
}
