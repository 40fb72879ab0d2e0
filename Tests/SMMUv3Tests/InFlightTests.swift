// Transactions in flight: CMD_SYNC waits for them, and nothing lands after it.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

/// A register window that answers when it is told to.
final class Gate: RegisterTarget {
    let entered = Count()
    let opened = Flag()
    let finished = Count()

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        pass()
        return 0x6A7E
    }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) { pass() }

    private func pass() {
        entered.increment()
        opened.wait()
        finished.increment()
    }
}

@Suite("DMA in flight", .serialized)
struct InFlightTests {
    static let gateAddress: UInt64 = 0x0A00_0000

    static func threadGuest() throws -> TestGuest {
        var setup = GuestSetup()
        setup.options.commandExecution = .thread
        setup.commandLog2 = 8
        return try TestGuest(setup)
    }

    /// Puts a gate at ``gateAddress``.
    static func addGate(_ guest: TestGuest) throws -> Gate {
        let gate = Gate()
        let range = try #require(AddressRange(start: gateAddress, byteCount: 0x1000))
        try guest.bus.addWindow(gate, at: range, name: "gate")
        return gate
    }

    /// Queues commands, rings, and does not wait.
    static func post(_ guest: TestGuest, _ commands: RawCommand...) throws {
        for command in commands { try guest.queue(command) }
        try guest.ring()
    }

    @Test(
        "a transaction inside its memory access holds CMD_SYNC back, and nothing else",
        arguments: [
            TransactionKind.read, .write,
        ]
    )
    func syncWaits(_ kind: TransactionKind) throws {
        let guest = try Self.threadGuest()
        let gate = try Self.addGate(guest)
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: Self.gateAddress)
        let page = try guest.page(holding: 3)
        try tables.map(0x2000, to: page)
        try guest.attach(6, CDWords(asid: 2, ttb0: tables.root))
        let smmu = guest.smmu
        let blocked = TestThread {
            let port = smmu.makePort(for: StreamID(5))
            if kind == .read {
                #expect(port.read64(at: 0x1000) == .ok(0x6A7E))
            } else {
                #expect(port.write64(1, at: 0x1000) == .ok(0))
            }
        }
        gate.entered.wait(for: 1)
        // The page goes; a command before the CMD_SYNC is consumed, the CMD_SYNC is not.
        try tables.unmap(0x1000)
        let pulses = guest.syncLine.count
        let syncIndex = guest.commandProd + 1
        try Self.post(guest, Raw.tlbiNHVA(0x1000, asid: 1), Raw.sync(cs: 1), Raw.sync(cs: 1))
        while try guest.commandCons != syncIndex { sched_yield() }
        for round in 0..<200 as Range<UInt64> {
            // Registers answer, other streams work, new transactions of this one fault, and none of it lets it go.
            #expect(try guest.commandCons == syncIndex)
            #expect(try guest.read32(0x20) == 0b1101)
            try guest.write32(0x50, 0b101)
            #expect(guest.dmaWrite(6, 0x2008, round) == .ok(0))
            #expect(guest.dmaRead(6, 0x2008) == .ok(round))
            #expect(guest.dmaRead(5, 0x1000) == .fTranslation)
            sched_yield()
        }
        #expect(guest.syncLine.count == pulses)
        #expect(gate.finished.current == 0)
        gate.opened.set()
        try guest.waitForCommands()
        #expect(gate.finished.current == 1, "the access was over before the CMD_SYNC was")
        while guest.syncLine.count < pulses + 2 { sched_yield() }
        blocked.join()
        let awaited = guest.smmu.statistics.first { $0.name == "sync-awaited-transactions" }?.value
        // Each CMD_SYNC may have met a transaction of this thread as well.
        #expect((1...3).contains(awaited ?? 0))
    }

    @Test("CMDQEN off while a CMD_SYNC waits: acknowledged when it is over, CONS past it and then still")
    func disableWhileWaiting() throws {
        let guest = try Self.threadGuest()
        let gate = try Self.addGate(guest)
        try guest.setSTE(5, .bypass)
        let smmu = guest.smmu
        let blocked = TestThread { _ = smmu.makePort(for: StreamID(5)).write64(0, at: Self.gateAddress) }
        gate.entered.wait(for: 1)
        let at = guest.commandProd
        let syncs = { guest.smmu.statistics.first { $0.name == "syncs" }?.value ?? 0 }
        let before = syncs()
        try Self.post(guest, Raw.sync(), Raw.sync())
        // CONS stands on the first CMD_SYNC before it is begun, too: only the count tells that it waits.
        while syncs() == before { sched_yield() }
        try guest.write32(0x20, 0b0101)
        for _ in 0..<100 {
            #expect(try guest.read32(0x24) == 0b1101, "not acknowledged")
            // A field is not rewritten before its update is acknowledged.
            try guest.write32(0x20, 0b1101)
            #expect(try guest.read32(0x20) == 0b0101)
            try guest.write32(0x9C, 0x77)
            #expect(try guest.commandCons == at)
            sched_yield()
        }
        gate.opened.set()
        while try guest.read32(0x24) != 0b0101 { sched_yield() }
        // The first was under way and is consumed, the second is not.
        let cons = try guest.commandCons
        #expect(cons == at + 1)
        #expect(syncs() <= before + 1)
        for _ in 0..<100 {
            #expect(try guest.commandCons == cons)
            sched_yield()
        }
        try guest.write32(0x20, 0b1101)
        try guest.waitForCommands()
        blocked.join()
    }

    @Test("a reset while a CMD_SYNC waits: the old command writes nothing into the new registers")
    func resetWhileWaiting() throws {
        let guest = try Self.threadGuest()
        let gate = try Self.addGate(guest)
        try guest.setSTE(5, .bypass)
        let smmu = guest.smmu
        let blocked = TestThread { _ = smmu.makePort(for: StreamID(5)).write64(0, at: Self.gateAddress) }
        gate.entered.wait(for: 1)
        let syncs = { guest.smmu.statistics.first { $0.name == "syncs" }?.value ?? 0 }
        let before = syncs()
        try Self.post(guest, Raw.sync(cs: 1))
        while syncs() == before { sched_yield() }
        guest.smmu.reset()
        gate.opened.set()
        blocked.join()
        for _ in 0..<200 {
            #expect(try guest.read32(0x9C) == 0)
            #expect(try guest.read32(0x60) == 0)
            sched_yield()
        }
    }

    // MARK: The race that matters

    /// What the threads of a race share.
    final class Race: Sendable {
        let stop = Flag()
        let landed = Count()
        let faulted = Count()
        let leaks = Count()
    }

    @Test("DMA against unmap, TLBI and CMD_SYNC: nothing lands after it", arguments: [1, 2])
    func nothingLandsLate(_ seed: UInt64) throws {
        let guest = try Self.threadGuest()
        let tables = try guest.attachTables(5)
        let pages = try (0..<2).map { _ in try guest.page(holding: 0) }
        let race = Race()
        let smmu = guest.smmu
        let writers = (0..<3).map { index in
            TestThread {
                let port = smmu.makePort(for: StreamID(5))
                // Sizes from one word to most of a page, all over it.
                let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
                defer { bytes.deallocate() }
                bytes.initializeMemory(as: UInt8.self, repeating: 0xD0 + UInt8(index))
                var random = SplitMix(seed: seed &* 100 &+ UInt64(index))
                while !race.stop.isSet {
                    let size = Int(8 << (random.next() % 9))
                    let offset = random.next() % UInt64(4096 - size + 1)
                    do throws(DMAFault) {
                        let piece = UnsafeRawBufferPointer(rebasing: bytes[..<size])
                        try port.write(piece, at: IOVirtualAddress(0x1000 + offset), .plain)
                        race.landed.increment()
                    } catch {
                        race.faulted.increment()
                    }
                    if index > 0, random.next() % 4 == 0 { port.rest() }
                }
            }
        }
        for round in 0..<200 {
            let page = pages[round % 2]
            let before = race.landed.current
            try tables.map(0x1000, to: page)
            race.landed.wait(for: before + 3)
            try tables.unmap(0x1000)
            // By address, by range, by ASID, and all: each must be waited for alike.
            let command = [
                Raw.tlbiNHVA(0x1000, asid: 1),
                Raw.tlbiRange(0x1000, asid: 1, num: 0, scale: 0, ttl: 3, tg: 1), Raw.tlbiNHASID(1),
                Raw.tlbiNHAll,
            ][round % 4]
            try guest.issue([command, Raw.sync()])
            // The page belongs to somebody else now.
            for word in 0..<512 as Range<UInt64> { try guest.poke(page + word * 8, 0xC0FFEE) }
            let faults = race.faulted.current
            race.faulted.wait(for: faults + 6)
            let isIntact = try (0..<512 as Range<UInt64>).allSatisfy {
                try guest.peek(page + $0 * 8) == 0xC0FFEE
            }
            #expect(isIntact, "seed \(seed), round \(round)")
        }
        race.stop.set()
        for writer in writers { writer.join() }
    }

    @Test("reads against unmap, TLBI and CMD_SYNC: nobody sees what the page is used for next")
    func nothingIsReadLate() throws {
        let guest = try Self.threadGuest()
        let tables = try guest.attachTables(5)
        let pages = try (0..<2).map { _ in try guest.page(holding: 0) }
        let race = Race()
        let smmu = guest.smmu
        let readers = (0..<2).map { _ in
            TestThread {
                let port = smmu.makePort(for: StreamID(5))
                while !race.stop.isSet {
                    switch port.read64(at: 0x1008) {
                    case .ok(0x5EC2E7): race.leaks.increment()
                    case .ok: race.landed.increment()
                    default: race.faulted.increment()
                    }
                }
            }
        }
        for round in 0..<300 {
            let page = pages[round % 2]
            try guest.poke(page + 8, 1)
            let before = race.landed.current
            try tables.map(0x1000, to: page)
            race.landed.wait(for: before + 2)
            try tables.unmap(0x1000)
            try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
            try guest.poke(page + 8, 0x5EC2E7)
            let faults = race.faulted.current
            race.faulted.wait(for: faults + 4)
            #expect(race.leaks.current == 0, "round \(round)")
        }
        race.stop.set()
        for reader in readers { reader.join() }
    }

    @Test("a stream's configuration taken away: nothing lands after CFGI and CMD_SYNC")
    func configurationRace() throws {
        let guest = try Self.threadGuest()
        let page = try guest.page(holding: 0)
        let ste = try guest.steAddress(5)
        let race = Race()
        let smmu = guest.smmu
        let writers = (0..<2).map { _ in
            TestThread {
                let port = smmu.makePort(for: StreamID(5))
                while !race.stop.isSet {
                    if port.write64(0xDEAD, at: page) == .ok(0) {
                        race.landed.increment()
                    } else {
                        race.faulted.increment()
                    }
                }
            }
        }
        for round in 0..<200 {
            let before = race.landed.current
            try guest.poke(ste, STEWords.bypass.words)
            try guest.sync(Raw.cfgiSTE(5))
            race.landed.wait(for: before + 2)
            try guest.poke(ste, 1)
            try guest.sync(Raw.cfgiSTE(5))
            try guest.poke(page, 0xC0FFEE)
            let faults = race.faulted.current
            race.faulted.wait(for: faults + 4)
            #expect(try guest.peek(page) == 0xC0FFEE, "round \(round)")
        }
        race.stop.set()
        for writer in writers { writer.join() }
    }

    @Test("ports that come and go during invalidations")
    func portTurnover() throws {
        let guest = try Self.threadGuest()
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 4))
        let smmu = guest.smmu
        let stop = Flag()
        let threads = (0..<2).map { _ in
            TestThread {
                while !stop.isSet {
                    for _ in 0..<40 {
                        let port = smmu.makePort(for: StreamID(5))
                        #expect(port.read64(at: 0x1000) == .ok(4))
                    }
                }
            }
        }
        for _ in 0..<300 { try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1), Raw.cfgiSTE(5)) }
        stop.set()
        for thread in threads { thread.join() }
    }
}
