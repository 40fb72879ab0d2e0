// A disk's queue that is looked at before its driver is asked to notify.

import DeviceModel
import Testing
import Virtio

@Suite struct QueuePollingTests {
    /// Longer than any test: who looks goes on until there is something, or until it is stopped.
    private static let forever = 60_000_000
    /// A queue that is not looked at is silent now and then as well: while it is about to be armed.
    private static let row = 16

    /// Makes requests until so many in a row needed no notification; false where there are none.
    private func staysSilent(_ fixture: TestDisk, _ disk: DiskDriver) throws -> Bool {
        let into = fixture.machine.allocate(512)
        var silent = 0
        var failed = false
        // Who was held up at looking does not for a while.
        let isSilent = eventually {
            disk.add(0, sector: 1, [.into(into, 512)])
            let wants = disk.queue.wantsNotification(added: 1)
            if wants { disk.driver.notify(0) }
            silent = wants ? 0 : silent + 1
            failed = failed || (try? disk.queue.await()) == nil
            return failed || silent == Self.row
        }
        try #require(!failed)
        return isSilent
    }

    @Test("A queue that is looked at is served without a notification", arguments: [false, true])
    func silence(isPacked: Bool) throws {
        let fixture = try TestDisk(isPacked: isPacked, pollMicroseconds: Self.forever)
        #expect(try staysSilent(fixture, fixture.disk))
    }

    @Test("Without event indices it is the flag that keeps the driver silent")
    func flag() throws {
        let fixture = try TestDisk(features: ~(1 << 29), pollMicroseconds: Self.forever)
        #expect(try staysSilent(fixture, fixture.disk))
    }

    @Test("Who looks stops at a reset, and serves the queue that comes after it")
    func reset() throws {
        let fixture = try TestDisk(pollMicroseconds: Self.forever)
        for _ in 0..<3 {
            let queues = try fixture.driver.start(features: .max, queues: 1)
            let disk = DiskDriver(fixture.driver, queues[0])
            #expect(try staysSilent(fixture, disk))
            fixture.driver.reset()
            #expect(eventually { fixture.driver.status == 0 })
        }
    }

    @Test("What a driver puts into the ring that is no index ends the looking as it ends a queue")
    func nonsense() throws {
        let fixture = try TestDisk(pollMicroseconds: Self.forever)
        #expect(try staysSilent(fixture, fixture.disk))
        let index = fixture.disk.queue.availableIndex
        fixture.machine.store(UInt64(index &+ 1000), .halfword, fixture.disk.queue.available + 2)
        fixture.driver.notify(0)
        #expect(eventually { fixture.needsReset })
    }
}
