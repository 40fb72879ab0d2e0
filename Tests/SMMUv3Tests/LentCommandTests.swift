// Commands that the writer of a register executes: which ones, how many, and who does the rest.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("Commands in lent time", .serialized)
struct LentCommandTests {
    /// Rings for a guest as its window does, once the thread has noticed that there was nothing more to do.
    private static func ring(_ guest: TestGuest, afterThread: Bool = true) throws {
        while afterThread, !guest.smmu.commandProcessor.isIdle { sched_yield() }
        try guest.smmu.lendingTime { try guest.ring() }
    }

    private static func statistic(_ name: String, _ guest: TestGuest) -> UInt64 {
        guest.smmu.statistics.first { $0.name == name }?.value ?? 0
    }

    @Test("invalidations and a CMD_SYNC are over when the write returns")
    func atOnce() throws {
        let guest = try InFlightTests.threadGuest()
        let tables = try guest.attachTables(5)
        let page = try guest.page(holding: 3)
        try tables.map(0x1000, to: page)
        for round in 1...100 {
            #expect(guest.dmaRead(5, 0x1000) == .ok(3))
            try tables.unmap(0x1000)
            let pulses = guest.syncLine.count
            for command in [Raw.tlbiNHVA(0x1000, asid: 1), Raw.cfgiSTE(5), Raw.sync(cs: 1)] {
                try guest.queue(command)
            }
            try Self.ring(guest)
            #expect(try guest.commandCons == guest.commandProd, "round \(round)")
            #expect(guest.syncLine.count == pulses + 1, "round \(round)")
            #expect(guest.dmaRead(5, 0x1000) == .fTranslation, "round \(round)")
            try tables.map(0x1000, to: page)
        }
    }

    @Test("a CMD_SYNC that has to wait is the thread's: the write returns, and it waits")
    func syncWaits() throws {
        let guest = try InFlightTests.threadGuest()
        let gate = try InFlightTests.addGate(guest)
        try guest.setSTE(5, .bypass)
        let smmu = guest.smmu
        let blocked = TestThread {
            _ = smmu.makePort(for: StreamID(5)).write64(0, at: InFlightTests.gateAddress)
        }
        gate.entered.wait(for: 1)
        let syncs = Self.statistic("syncs", guest)
        let index = guest.commandProd + 1
        for command in [Raw.tlbiNHAll, Raw.sync(cs: 1), Raw.sync(cs: 1)] { try guest.queue(command) }
        // This would not return if the caller waited: the gate is opened below.
        try Self.ring(guest)
        #expect(try guest.commandCons == index)
        for _ in 0..<200 {
            try Self.ring(guest, afterThread: false)
            #expect(try guest.commandCons == index)
            sched_yield()
        }
        #expect(gate.finished.current == 0)
        gate.opened.set()
        try guest.waitForCommands()
        #expect(gate.finished.current == 1, "the access was over before the CMD_SYNC was")
        blocked.join()
        #expect(Self.statistic("syncs", guest) == syncs + 2, "none is counted twice")
        while guest.syncLine.count < 2 { sched_yield() }
    }

    @Test("a long queue is not all the writer's, and all of it is executed in its order")
    func longQueue() throws {
        let guest = try InFlightTests.threadGuest()
        let before = Self.statistic("syncs", guest)
        #expect(CommandProcessor.lentCommandCount < 200)
        for _ in 0..<20 {
            for _ in 0..<199 { try guest.queue(Raw.tlbiNHAll) }
            try guest.queue(Raw.sync())
            try Self.ring(guest)
            try guest.waitForCommands()
        }
        #expect(Self.statistic("syncs", guest) == before + 20)
    }

    /// Memory of a peer that answers when it is told to.
    private final class SlowPeer: RemoteMemory {
        let asked = Count()
        let opened = Flag()

        func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
            asked.increment()
            opened.wait()
            for index in buffer.indices { buffer[index] = 0 }
            return true
        }
        func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool { true }
    }

    @Test("a CMD_PREFETCH_CONFIG is the writer's, and the thread's where a peer keeps memory to itself")
    func prefetch() throws {
        let guest = try InFlightTests.threadGuest()
        _ = try guest.attachTables(5)
        let before = Self.statistic("config-resident-cds", guest)
        try guest.queue(RawCommand(low: 0x1 | 5 << 32))
        try guest.queue(Raw.sync())
        try Self.ring(guest)
        #expect(try guest.commandCons == guest.commandProd)
        #expect(Self.statistic("config-resident-cds", guest) == before + 1)
        let peer = SlowPeer()
        let range = try #require(AddressRange(start: 0x1_0000_0000, byteCount: 0x1000))
        try guest.bus.addRemote(peer, at: range, isWritable: true, name: "peer")
        // A CD that the peer has.
        var ste = STEWords()
        ste.s1ContextPtr = range.first
        try guest.setSTE(6, ste)
        try guest.queue(RawCommand(low: 0x1 | 6 << 32))
        try guest.queue(Raw.sync())
        // This would not return if the caller waited.
        try Self.ring(guest)
        #expect(try guest.commandCons == guest.commandProd - 2)
        peer.asked.wait(for: 1)
        peer.opened.set()
        try guest.waitForCommands()
        #expect(try guest.activeErrors == 0)
    }

    @Test("what fails, and what has to ask somebody, is the thread's")
    func others() throws {
        let guest = try InFlightTests.threadGuest()
        // A reserved opcode behind one that is done at once.
        try guest.queue(Raw.tlbiNHAll)
        try guest.queue(RawCommand(low: 0xFF, high: 0))
        try Self.ring(guest)
        while try guest.activeErrors != 1 { sched_yield() }
        #expect(try guest.read32(0x9C) >> 24 == 1, "CERROR_ILL")
        #expect(try guest.commandCons == guest.commandProd - 1)
        // CMD_PREFETCH_ADDR walks, and memory may be somebody else's to give.
        let next = try InFlightTests.threadGuest()
        try next.queue(RawCommand(low: 0x2 | 5 << 32, high: 0x1000))
        try next.queue(Raw.sync())
        try Self.ring(next)
        try next.waitForCommands()
        #expect(try next.activeErrors == 0)
    }

    @Test("CMD_SYNC's message: to memory at once, to a register window by the thread")
    func messages() throws {
        var setup = MessageTests.setup
        setup.options.commandExecution = .thread
        let guest = try TestGuest(setup)
        let gate = try InFlightTests.addGate(guest)
        let word = guest.allocate(64)
        try guest.queue(MessageTests.sync(word, 0x77))
        try Self.ring(guest)
        #expect(try guest.peek(word) & 0xFFFF_FFFF == 0x77)
        // The window takes the message when it likes; the writer does not wait for that.
        try guest.queue(MessageTests.sync(InFlightTests.gateAddress, 1))
        try Self.ring(guest)
        gate.entered.wait(for: 1)
        #expect(gate.finished.current == 0)
        gate.opened.set()
        try guest.waitForCommands()
        gate.finished.wait(for: 1)
    }

    @Test("writers that lend and writers that do not: no command is left behind")
    func mixedWriters() throws {
        let guest = try InFlightTests.threadGuest()
        let (bus, stop) = (guest.bus, Flag())
        // Toggling bits of CR0 leaves word without new commands, from threads that lend nothing.
        let others = (0..<2).map { _ in
            TestThread {
                while !stop.isSet {
                    try? bus.store(0b1101, .word, at: PhysicalAddress(TestGuest.window + 0x20))
                }
            }
        }
        for round in 0..<2000 {
            try guest.queue(Raw.tlbiNHAll)
            try guest.queue(Raw.sync())
            if round % 3 == 0 { try guest.ring() } else { try Self.ring(guest, afterThread: false) }
            try guest.waitForCommands()
        }
        stop.set()
        for thread in others { thread.join() }
    }

    @Test("DMA against unmap, TLBI and CMD_SYNC in lent time: nothing lands after it")
    func nothingLandsLate() throws {
        let guest = try InFlightTests.threadGuest()
        let tables = try guest.attachTables(5)
        let pages = try (0..<2).map { _ in try guest.page(holding: 0) }
        let race = InFlightTests.Race()
        let smmu = guest.smmu
        let writers = (0..<3).map { index in
            TestThread {
                let port = smmu.makePort(for: StreamID(5))
                while !race.stop.isSet {
                    if port.write64(0xD0 + UInt64(index), at: 0x1008) == .ok(0) {
                        race.landed.increment()
                    } else {
                        race.faulted.increment()
                    }
                }
            }
        }
        for round in 0..<400 {
            let page = pages[round % 2]
            let before = race.landed.current
            try tables.map(0x1000, to: page)
            race.landed.wait(for: before + 3)
            try tables.unmap(0x1000)
            try guest.queue([Raw.tlbiNHVA(0x1000, asid: 1), Raw.tlbiNHASID(1)][round % 2])
            try guest.queue(Raw.sync())
            try Self.ring(guest)
            try guest.waitForCommands()
            try guest.poke(page + 8, 0xC0FFEE)
            let faults = race.faulted.current
            race.faulted.wait(for: faults + 6)
            #expect(try guest.peek(page + 8) == 0xC0FFEE, "round \(round)")
        }
        race.stop.set()
        for writer in writers { writer.join() }
    }
}
