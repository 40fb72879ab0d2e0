// Packed virtqueues: layout, wrapping, suppression, and drivers that mean harm.

import DeviceModel
import SeededRandomness
import Synchronization
import Testing
import Virtio

@Suite struct PackedRingTests {
    private func disk(ringSize: Int = 16, features: UInt64 = .max) throws -> (TestDisk, PackedDriverQueue) {
        let fixture = try TestDisk(features: features, ringSize: ringSize, isPacked: true)
        return (fixture, try #require(fixture.queues[0] as? PackedDriverQueue))
    }

    @Test func usedDescriptor_isWhereTheChainBegan() throws {
        let (fixture, queue) = try disk(ringSize: 5)
        #expect(try fixture.disk.request(4, sector: 0) == Outcome(0, 1))
        // Length 1, ID 100, flags AVAIL, USED and WRITE. The address stays the driver's.
        #expect(fixture.machine.bytes(8, queue.descriptors + 8) == [1, 0, 0, 0, 100, 0, 0x82, 0x80])
        #expect(fixture.machine.load(.doubleword, queue.descriptors) == fixture.disk.header)
        // The next notification is wanted for place 2, first time round: 0x8002, RING_EVENT_FLAGS_DESC.
        #expect(eventually { fixture.machine.load(.word, queue.used) == 0x0002_8002 })
    }

    @Test(arguments: [false, true])
    func aDiskWorks(isIndirect: Bool) throws {
        let (fixture, _) = try disk(ringSize: 7)
        let machine = fixture.machine
        let (out, into) = (machine.allocate(4096), machine.allocate(4096))
        for round in 0..<50 as Range<UInt64> {
            let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 3 &+ Int(round)) }
            machine.put(pattern, out)
            let pieces: [DriverBuffer] = [.out(out, 1000), .out(out + 1000, 3096)]
            #expect(
                try fixture.disk.request(1, sector: round, pieces, isIndirect: isIndirect) == Outcome(0, 1)
            )
            let read: [DriverBuffer] = [.into(into, 4096)]
            #expect(
                try fixture.disk.request(0, sector: round, read, isIndirect: isIndirect) == Outcome(0, 4097)
            )
            #expect(machine.bytes(4096, into) == pattern)
        }
    }

    @Test(arguments: [UInt64.max, ~(1 << 29)])
    func batchesGoRoundTheRingWithoutLosingABuffer(features: UInt64) throws {
        let (fixture, queue) = try disk(ringSize: 77, features: features)
        let header = fixture.machine.allocate(16)
        let status = fixture.machine.allocate(1)
        fixture.machine.put(little(99, 4), header)
        var random = SplitMix(seed: 3)
        var completed = 0
        for _ in 0..<200 {
            let count = Int.random(in: 1...25, using: &random)
            for _ in 0..<count {
                let isLong = Bool.random(using: &random)
                let pieces: [DriverBuffer] =
                    isLong ? [.out(header, 8), .out(header + 8, 8)] : [.out(header, 16)]
                #expect(queue.add(pieces + [.into(status, 1)]) != nil)
            }
            if queue.wantsNotification(added: 1) { fixture.driver.notify(0) }
            for _ in 0..<count { _ = try queue.await() }
            completed += count
        }
        #expect(fixture.block.statistics["errors"] == UInt64(completed))
    }

    @Test func interrupts_areAsTheDriverWantsThem() throws {
        let (fixture, queue) = try disk(ringSize: 8)
        let pin = fixture.driver.pin
        // RING_EVENT_FLAGS_DISABLE.
        queue.setEvent(0, wrap: true, flags: 1)
        for _ in 0..<3 { _ = try fixture.disk.request(4, sector: 0) }
        #expect(pin.assertions.load(ordering: .relaxed) == 0)
        // A request takes two places: 6 and 7, then 0 and 1 of the second time round. Wanted is the latter's.
        queue.setEvent(0, wrap: false, flags: 2)
        _ = try fixture.disk.request(4, sector: 0)
        queue.setEvent(0, wrap: false, flags: 2)
        #expect(pin.assertions.load(ordering: .relaxed) == 0)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { pin.level })
        #expect(fixture.block.statistics["interrupts"] == 1)
        #expect(fixture.driver.takeInterrupts() == 1)
        // RING_EVENT_FLAGS_ENABLE: every one.
        queue.setEvent(0, wrap: false, flags: 0)
        _ = try fixture.disk.request(4, sector: 0)
        #expect(eventually { pin.level })
    }

    @Test func mergedBuffers_areSeenTogether() throws {
        let machine = try TestMachine()
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near, isPacked: true)
        let two = try NetDriver(machine, far, isPacked: true)
        let frame = (0..<1400).map { UInt8(truncatingIfNeeded: $0) }
        for _ in 0..<20 {
            let buffers = (0..<3).map { _ in two.offer(512) }
            try one.send(frame)
            #expect(try two.receive.await().length == 512)
            // With the first of a frame's buffers the others are there.
            #expect(two.receive.take()?.length == 512)
            #expect(two.receive.take()?.length == 388)
            #expect(machine.load(.halfword, buffers[0] + 10) == 3)
            #expect(machine.bytes(388, buffers[2]) == Array(frame.suffix(388)))
        }
    }

    enum Harm: CaseIterable {
        case endless, indirectInChain, indirectWithNext, indirectInIndirect, crookedTable, hugeTable
        case readableAfterWritable, bufferLeavesSpace, noHeader
    }

    @Test(arguments: Harm.allCases)
    func harm_endsInNeedsResetAndAResetHeals(harm: Harm) throws {
        let (fixture, queue) = try disk(ringSize: 8)
        let buffer = fixture.machine.allocate(4096)
        let table = fixture.machine.allocate(4096)
        func set(_ index: UInt64, _ length: UInt32, _ flags: UInt16, at address: UInt64? = nil) {
            let place = queue.descriptors + 16 * index
            queue.setPacked(at: place, address ?? buffer, length, id: 1, flags: flags | 1 << 7)
        }
        switch harm {
        case .endless: for index in (0..<8 as Range<UInt64>).reversed() { set(index, 4, 1) }
        case .indirectInChain:
            set(1, 16, 4, at: table)
            set(0, 16, 1)
        case .indirectWithNext: set(0, 16, 4 | 1, at: table)
        case .indirectInIndirect:
            queue.setPacked(at: table, buffer, 16, id: 0, flags: 4)
            set(0, 16, 4, at: table)
        case .crookedTable: set(0, 15, 4, at: table)
        case .hugeTable: set(0, 16 * 1025, 4, at: table)
        case .readableAfterWritable:
            set(1, 16, 0)
            set(0, 16, 1 | 2)
        case .bufferLeavesSpace: set(0, 17, 0, at: .max - 15)
        case .noHeader: set(0, 1, 2)
        }
        fixture.driver.notify(0)
        #expect(eventually { fixture.needsReset })
        #expect(fixture.block.statistics["malformed"] == 1)
        let fresh = try fixture.driver.start(features: .max, queues: 1, isPacked: true)[0]
        #expect(try DiskDriver(fixture.driver, fresh).request(4, sector: 0).status == 0)
    }

    @Test(arguments: 1...30 as ClosedRange<UInt64>)
    func randomRings_areSurvivedAndLeaveTheDeviceUsable(seed: UInt64) throws {
        let (fixture, _) = try disk(ringSize: 8)
        let (machine, driver) = (fixture.machine, fixture.driver)
        let playground = machine.allocate(65536)
        var random = SplitMix(seed: seed)
        for _ in 0..<8 {
            let started = try driver.start(features: .max, queues: 1, size: 8, isPacked: true)[0]
            let queue = try #require(started as? PackedDriverQueue)
            let table = machine.allocate(256)
            for place in (0..<24 as Range<UInt64>).reversed() {
                let address = place < 8 ? queue.descriptors + 16 * place : table + 16 * (place - 8)
                let targets = [playground, table, TestMachine.nowhere, random.next()]
                let lengths: [UInt32] = [0, 1, 16, 17, 32, 256, 512, 4096, .max]
                let flags =
                    UInt16.random(in: 0...7, using: &random)
                    | (place == 0 || Bool.random(using: &random) ? 1 << 7 : 0)
                queue.setPacked(
                    at: address,
                    targets.randomElement(using: &random) ?? 0,
                    lengths.randomElement(using: &random) ?? 0,
                    id: UInt16.random(in: 0...9, using: &random),
                    flags: flags
                )
            }
            driver.notify(0)
            // Either it is refused, or the head is used.
            #expect(
                eventually {
                    fixture.needsReset || machine.load(.halfword, queue.descriptors + 14) >> 15 & 1 == 1
                },
                "seed \(seed)"
            )
        }
        let fresh = try driver.start(features: .max, queues: 1, isPacked: true)[0]
        #expect(try DiskDriver(driver, fresh).request(4, sector: 0).status == 0, "seed \(seed)")
    }
}
