// Split virtqueues: what lies where, suppression, wrapping, and drivers that mean harm.

import DeviceModel
import SeededRandomness
import Synchronization
import Testing
import Virtio

@Suite struct SplitRingTests {
    @Test func usedElements_lieWhereTheSpecificationHasThem() throws {
        let fixture = try TestDisk(ringSize: 8)
        let queue = fixture.queues[0]
        _ = try fixture.disk.request(4, sector: 0)
        // flags (2), idx (2), then id (4) and length (4). The mock takes descriptor 0 first.
        #expect(fixture.machine.bytes(12, queue.used) == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        // avail_event stands after 8 elements: the next chain is to be notified.
        #expect(eventually { fixture.machine.load(.halfword, queue.used + 4 + 8 * 8) == 1 })
    }

    private struct Lost: Error {}

    @Test(arguments: [UInt64.max, ~(1 << 29)])
    func indicesWrapAroundWithoutLosingABuffer(features: UInt64) throws {
        let fixture = try TestDisk(features: features, ringSize: 256)
        let queue = fixture.queues[0]
        let header = fixture.machine.allocate(16)
        let status = fixture.machine.allocate(1)
        // An unknown type: an answer without the disk.
        fixture.machine.put(little(99, 4), header)
        queue.setDescriptor(at: queue.descriptors, header, 16, flags: 1, next: 1)
        queue.setDescriptor(at: queue.descriptors + 16, status, 1, flags: 2, next: 0)
        var completed = 0
        while completed < 66_000 {
            // The same chain over and over: a device does not mind.
            for _ in 0..<250 { queue.publish(0) }
            if queue.wantsNotification(added: 250) { fixture.driver.notify(0) }
            for _ in 0..<250 {
                guard try queue.await() == (0, 1) else { throw Lost() }
                completed += 1
            }
        }
        #expect(queue.usedIndex == UInt16(truncatingIfNeeded: completed))
        #expect(fixture.block.statistics["errors"] == UInt64(completed))
    }

    @Test func eventIndex_interruptsOnceItIsPassedAndNotBefore() throws {
        let fixture = try TestDisk()
        let queue = fixture.queues[0]
        queue.setUsedEvent(2)
        for _ in 0..<2 { _ = try fixture.disk.request(4, sector: 0) }
        // Completions are shown before the interrupt: the third request proves that the second had its chance.
        #expect(fixture.driver.pin.assertions.load(ordering: .relaxed) == 0)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { fixture.driver.pin.level })
        #expect(fixture.block.statistics["interrupts"] == 1)
    }

    @Test func noInterruptFlag_isObeyedWithoutEventIndices() throws {
        let fixture = try TestDisk(features: ~(1 << 29))
        let queue = fixture.queues[0]
        fixture.machine.store(1, .halfword, queue.available)
        for _ in 0..<3 { _ = try fixture.disk.request(4, sector: 0) }
        #expect(fixture.driver.pin.assertions.load(ordering: .relaxed) == 0)
        fixture.machine.store(0, .halfword, queue.available)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { fixture.driver.pin.level })
    }

    /// What a driver may not do, each as a change to a ring of 8.
    enum Harm: CaseIterable {
        case headOutOfRange, nextOutOfRange, loop, indexJump, readableAfterWritable, tooManyBytes
        case bufferLeavesSpace, indirectWithNext, indirectInIndirect, emptyTable, crookedTable, hugeTable
        case nextOutOfTable, loopInTable, noHeader, noStatus
    }

    @Test(arguments: Harm.allCases)
    func harm_endsInNeedsResetAndAResetHeals(harm: Harm) throws {
        let fixture = try TestDisk(ringSize: 8)
        let queue = fixture.queues[0]
        try doHarm(harm, fixture.machine, queue)
        fixture.driver.notify(0)
        #expect(eventually { fixture.needsReset })
        #expect(fixture.block.statistics["malformed"] == 1)
        // The configuration interrupt, bit 1, says that there is something to look at.
        #expect(fixture.driver.takeInterrupts() & 2 == 2)
        guard case .malformed = fixture.driver.transport?.lastError else {
            Issue.record("\(String(describing: fixture.driver.transport?.lastError))")
            return
        }
        let fresh = try fixture.driver.start(features: .max, queues: 1)[0]
        #expect(try DiskDriver(fixture.driver, fresh).request(4, sector: 0).status == 0)
    }

    private func doHarm(_ harm: Harm, _ machine: TestMachine, _ queue: DriverQueue) throws {
        let buffer = machine.allocate(4096)
        let table = machine.allocate(4096)
        func set(
            _ index: UInt64,
            _ length: UInt32,
            _ flags: UInt16,
            _ next: UInt16,
            at address: UInt64? = nil
        ) {
            let place = queue.descriptors + 16 * index
            queue.setDescriptor(at: place, address ?? buffer, length, flags: flags, next: next)
        }
        func inTable(_ index: UInt64, _ flags: UInt16, _ next: UInt16) {
            queue.setDescriptor(at: table + 16 * index, buffer, 16, flags: flags, next: next)
        }
        switch harm {
        case .headOutOfRange: return queue.publish(8)
        case .nextOutOfRange: set(0, 16, 1, 8)
        case .loop:
            set(0, 16, 1, 1)
            set(1, 16, 1, 0)
        case .indexJump:
            machine.store(9, .halfword, queue.available + 2)
            return
        case .readableAfterWritable:
            set(0, 16, 1 | 2, 1)
            set(1, 16, 0, 0)
        case .tooManyBytes:
            set(0, .max, 1, 1)
            set(1, .max, 0, 0)
        case .bufferLeavesSpace: set(0, 17, 0, 0, at: .max - 15)
        case .indirectWithNext: set(0, 32, 4 | 1, 1, at: table)
        case .indirectInIndirect:
            set(0, 32, 4, 0, at: table)
            inTable(0, 4, 0)
        case .emptyTable: set(0, 0, 4, 0, at: table)
        case .crookedTable: set(0, 24, 4, 0, at: table)
        case .hugeTable: set(0, 16 * 1025, 4, 0, at: table)
        case .nextOutOfTable:
            set(0, 32, 4, 0, at: table)
            inTable(0, 1, 2)
        case .loopInTable:
            set(0, 32, 4, 0, at: table)
            inTable(0, 1, 1)
            inTable(1, 1, 0)
        case .noHeader:
            set(0, 15, 1, 1)
            set(1, 1, 2, 0)
        case .noStatus: set(0, 16, 0, 0)
        }
        queue.publish(0)
    }

    @Test(arguments: 0..<3)
    func aPartOfTheRingThatFaults_endsInNeedsReset(part: Int) throws {
        let fixture = try TestDisk()
        let driver = fixture.driver
        driver.reset()
        driver.setStatus(3)
        driver.setFeatures(3 << 32)
        driver.setStatus(11)
        let queue = DriverQueue(fixture.machine, size: 16)
        let parts = [queue.descriptors, queue.available, queue.used]
        for (index, address) in parts.enumerated() {
            let place = index == part ? TestMachine.nowhere : address
            driver.write(driver.common, place, UInt64(32 + 8 * index), .doubleword)
        }
        driver.write(driver.common, 1, 28, .halfword)
        driver.setStatus(15)
        queue.publish(0)
        driver.notify(0)
        #expect(eventually { fixture.needsReset })
        #expect(fixture.block.statistics["dma-faults"] == 1)
        guard case .fault = driver.transport?.lastError else {
            Issue.record("\(String(describing: driver.transport?.lastError))")
            return
        }
    }

    @Test(arguments: [(12, 0), (0, 0), (16, 8), (16, 0xFFFF_FFFF_FFFF_FFF0)] as [(UInt16, UInt64)])
    func aQueueThatCannotBe_isNotStarted(size: UInt16, offset: UInt64) throws {
        let fixture = try TestDisk()
        let driver = fixture.driver
        driver.reset()
        driver.setStatus(3)
        driver.setFeatures(3 << 32)
        driver.setStatus(11)
        driver.write(driver.common, UInt64(size), 24, .halfword)
        driver.write(driver.common, offset, 32, .doubleword)
        driver.write(driver.common, 1, 28, .halfword)
        driver.setStatus(15)
        #expect(fixture.needsReset)
    }

    @Test(arguments: 1...40 as ClosedRange<UInt64>)
    func randomRings_areSurvivedAndLeaveTheDeviceUsable(seed: UInt64) throws {
        let fixture = try TestDisk(ringSize: 8)
        let (machine, driver) = (fixture.machine, fixture.driver)
        let playground = machine.allocate(65536)
        var random = SplitMix(seed: seed)
        for _ in 0..<8 {
            let queue = try driver.start(features: .max, queues: 1, size: 8)[0]
            let table = machine.allocate(256)
            for place in 0..<24 as Range<UInt64> {
                let address = place < 8 ? queue.descriptors + 16 * place : table + 16 * (place - 8)
                let target = [playground, table, TestMachine.nowhere, random.next()].randomElement(
                    using: &random
                )
                let lengths: [UInt32] = [
                    0, 1, 16, 17, 32, 256, 512, 4096, .max, UInt32.random(in: 0...8192, using: &random),
                ]
                queue.setDescriptor(
                    at: address,
                    target ?? 0,
                    lengths.randomElement(using: &random) ?? 0,
                    flags: UInt16.random(in: 0...7, using: &random),
                    next: UInt16.random(in: 0...9, using: &random)
                )
            }
            machine.put(
                (0..<64).flatMap { _ in little(UInt64.random(in: 0...14, using: &random), 4) },
                playground
            )
            for _ in 0..<4 { queue.publish(UInt16.random(in: 0...8, using: &random)) }
            driver.notify(0)
            #expect(
                eventually { fixture.needsReset || queue.usedIndex == queue.availableIndex },
                "seed \(seed)"
            )
        }
        let fresh = try driver.start(features: .max, queues: 1)[0]
        #expect(try DiskDriver(driver, fresh).request(4, sector: 0).status == 0, "seed \(seed)")
    }
}
