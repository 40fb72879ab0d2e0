// The command queue under load: wrap, full, many producers, both ways of completion.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Synchronization
import Testing

@testable import IOMMU

@Suite("Command queue")
struct CommandQueueTests {
    /// A driver with a queue of 128 entries.
    private static func start(_ bench: inout DriverBench) throws -> SMMUv3Driver {
        bench.options.queueLog2Limit = 7
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        return driver
    }

    @Test func commandsArriveInOrderAcrossManyWraps() throws {
        var bench = DriverBench()
        let driver = try Self.start(&bench)
        var expected: [RawCommand] = []
        for index in 0..<200 as Range<UInt32> {
            let commands = (0..<5).map { Command.cfgiSTE(StreamID(index * 5 + $0), leaf: true) }
            try driver.device.commands.issue(commands, thenSync: index % 3 == 0)
            expected += commands.map { RawCommand($0.words[0], $0.words[1]) }
            if index % 3 == 0 { expected.append(.sync) }
        }
        #expect(bench.smmu.takeCommands() == expected)
    }

    @Test func aFullQueueIsWaitedForAndThenAnError() throws {
        var bench = DriverBench()
        let driver = try Self.start(&bench)
        bench.smmu.script { $0.isQueueHung = true }
        let batch = [Command](repeating: .tlbiNSNHAll(), count: 64)
        try driver.device.commands.issue(batch, thenSync: false)
        try driver.device.commands.issue(batch, thenSync: false)
        // Entries 4 to 131: full.
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: 132, consumer: 4)) {
            try driver.device.commands.issue([.tlbiNSNHAll()], thenSync: false)
        }
        #expect(driver.messages.last == "CMDQ timeout")
        // It recovers when the SMMU does.
        bench.smmu.script { $0.isQueueHung = false }
        bench.smmu.runCommands()
        try driver.synchronize()
        #expect(bench.smmu.takeCommands().count == 129)
    }

    @Test func aConsumerThatNamesNothingIsNotBelieved() throws {
        var bench = DriverBench()
        let driver = try Self.start(&bench)
        bench.smmu.script { $0.isQueueHung = true }
        bench.smmu.setRegister(0x9C, 0x70)
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: 5, consumer: 0x70)) {
            try driver.synchronize()
        }
    }

    @Test func withMSIsTheSyncIsAnsweredInItsOwnEntry() throws {
        // IDR0.MSI.
        let bench = DriverBench([0: 0x094C_301A])
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        _ = bench.trace.take()
        try driver.synchronize()
        // Entry 4 of the queue at 0x4000_0000: CS = IRQ, MSIAddr in the second word.
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0FC0_1046, 0x4000_0040)])
        #expect(bench.smmu.word(0x4000_0040) == 0)
        // CMDQ_CONS was not read.
        #expect(
            bench.trace.take() == [.command(Command(words: [0x0FC0_1046, 0x4000_0040])), .write32(0x98, 5)]
        )
        for _ in 0..<3000 { try driver.synchronize() }
    }

    @Test func msiPollingCanBeSwitchedOff() throws {
        var bench = DriverBench([0: 0x094C_301A])
        bench.options.disablesMSIPolling = true
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        try driver.synchronize()
        #expect(bench.smmu.takeCommands() == [.sync])
    }

    @Test("many producers share a small queue", arguments: [0x094C_101A, 0x094C_301A] as [UInt32])
    func manyProducers(_ idr0: UInt32) async throws {
        var bench = DriverBench([0: idr0])
        bench.options.clock = MonotonicClock()
        let driver = try Self.start(&bench)
        let queue = driver.device.commands
        await withTaskGroup(of: Void.self) { group in
            for producer in 0..<4 as Range<UInt32> {
                group.addTask {
                    for index in 0..<250 as Range<UInt32> {
                        let stream = StreamID(producer << 16 | index)
                        do {
                            try queue.issue(
                                [.cfgiSTE(stream, leaf: true), .cfgiCDAll(stream)],
                                thenSync: index % 2 == 0
                            )
                        } catch { Issue.record("producer \(producer): \(error)") }
                    }
                }
            }
        }
        try driver.synchronize()
        let commands = bench.smmu.takeCommands()
        // Two commands and every other time a CMD_SYNC, 250 times on four threads; one CMD_SYNC at the end.
        #expect(commands.count == 2501)
        for producer in 0..<4 as Range<UInt64> {
            let own = commands.indices.filter { index in
                let low = commands[index].low
                return low & 0xFF == 3 && low >> 48 == producer
            }
            let numbers = own.map { (commands[$0].low >> 32) & 0xFFFF }
            #expect(numbers == Array(0..<250))
            // What one call inserted lies together.
            #expect(own.allSatisfy { commands[$0 + 1].low == commands[$0].low + 3 })
        }
    }

    @Test func domainsAreMappedAndUnmappedByManyThreads() async throws {
        var bench = DriverBench()
        bench.options.clock = MonotonicClock()
        bench.options.interruptHandling = .threads
        let driver = try Self.start(&bench)
        let used = bench.frames.usedByteCount
        let shared = try driver.makeDomain(.dma)
        await withTaskGroup(of: Void.self) { group in
            for task in 0..<4 as Range<UInt64> {
                group.addTask {
                    do {
                        let own = try driver.makeDomain(.dma)
                        for round in 0..<40 as Range<UInt64> {
                            let domain = round % 2 == 0 ? shared : own
                            let size = 0x1000 * (1 + round % 5)
                            let iova = try domain.map(
                                PhysicalAddress(0x4200_0000 + task << 20),
                                byteCount: size,
                                permissions: .readWrite
                            )
                            let found = try domain.translate(iova)?.physical
                            #expect(found == PhysicalAddress(0x4200_0000 + task << 20))
                            #expect(try domain.unmap(iova, byteCount: size).byteCount == size)
                        }
                    } catch { Issue.record("task \(task): \(error)") }
                }
            }
        }
        #expect(driver.device.asids.usedCount == 1)
        #expect(shared.asid == 1)
        #expect(bench.frames.usedByteCount <= used + 0x6000)
    }
}
