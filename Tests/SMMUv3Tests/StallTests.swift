// The stall model: what waits, how software lets it go on, and what ends it.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import Synchronization
import Testing

@testable import SMMUv3

/// One access on a thread of its own, and what became of it.
private final class Requester {
    private final class Box: Sendable {
        let outcome = Mutex<DMAOutcome?>(nil)
        let done = Flag()
    }
    private let box = Box()
    private let thread: TestThread

    init(
        _ smmu: SMMUv3,
        _ streamID: UInt32,
        _ address: UInt64,
        writes value: UInt64? = nil,
        _ attributes: TransactionAttributes = .plain,
        canStall: Bool = true
    ) {
        thread = TestThread { [box] in
            let port = smmu.makePort(for: StreamID(streamID), canStall: canStall)
            let outcome =
                value.map { port.write64($0, at: address, attributes) }
                ?? port.read64(at: address, attributes)
            box.outcome.withLock { $0 = outcome }
            box.done.set()
        }
    }

    var isDone: Bool { box.done.isSet }

    func finish() -> DMAOutcome? {
        thread.join()
        return box.outcome.withLock { $0 }
    }
}

@Suite("Stalls", .serialized)
struct StallTests {
    /// A guest with a stream 6 that stalls and maps nothing yet.
    private struct Stalling {
        let guest: TestGuest
        let tables: GuestTables

        init(
            eventLog2: UInt64 = 6,
            _ execution: SMMUv3Options.CommandExecution = .thread,
            _ identification: (inout Identification) -> Void = { _ in },
            _ change: (inout CDWords) -> Void = { _ in }
        ) throws {
            var setup = GuestSetup()
            setup.identification = .full()
            identification(&setup.identification)
            setup.options.commandExecution = execution
            setup.eventLog2 = eventLog2
            guest = try TestGuest(setup)
            tables = try guest.attachTables(6) { cd in
                cd.s = true
                change(&cd)
            }
        }

        func counts() -> (recorded: Int, unrecorded: Int) {
            guest.smmu.registers.withLock { $0.stalls.counts }
        }

        func wait(recorded: Int, unrecorded: Int = 0) {
            let isSo = eventually { counts() == (recorded, unrecorded) }
            #expect(isSo, "\(counts()) instead of \((recorded, unrecorded))")
        }

        /// The next record, when it is there.
        func nextEvent() throws -> [UInt64] {
            let isThere = try eventually {
                UInt64(try guest.read32(0x1_00A8)) & 0x7F_FFFF != guest.eventCons
            }
            try #require(isThere, "no event")
            return try #require(try guest.takeEvents(upTo: 1).first)
        }
    }

    /// CMD_RESUME: Ac in bit 12, Ab in bit 13, StreamID in 63:32, STAG in 79:64.
    private static func resume(_ streamID: UInt64, _ stag: UInt64, ac: Bool = false, ab: Bool = false)
        -> RawCommand
    {
        RawCommand(low: 0x44 | bit(ac, 12) | bit(ab, 13) | streamID << 32, high: stag)
    }

    @Test("the record of a stall, to the bit: Stall in 95, STAG in 79:64, and what it always has")
    func goldenWords() throws {
        let test = try Stalling()
        let first = Requester(test.guest.smmu, 6, 0x1008, writes: 1)
        #expect(try test.nextEvent() == [0x0000_0006_0000_0010, 0x0000_0200_8000_0000, 0x1008, 0])
        let second = Requester(test.guest.smmu, 6, 0x2010, TransactionAttributes(isPrivileged: true))
        #expect(try test.nextEvent() == [0x0000_0006_0000_0010, 0x0000_020A_8000_0001, 0x2010, 0])
        test.guest.smmu.endStalls()
        #expect(first.finish() == .fTranslation)
        #expect(second.finish() == .fTranslation)
    }

    @Test(
        "CMD_RESUME: retry finds the page that came, abort aborts, terminate reads as zero and ignores writes",
        arguments: [SMMUv3Options.CommandExecution.inline, .thread]
    )
    func resumes(_ execution: SMMUv3Options.CommandExecution) throws {
        let test = try Stalling(execution)
        let guest = test.guest
        let page = try guest.page(holding: 0x77)
        let retried = Requester(guest.smmu, 6, 0x1000)
        #expect(try test.nextEvent()[1] & 0xFFFF == 0)
        let aborted = Requester(guest.smmu, 6, 0x2000)
        #expect(try test.nextEvent()[1] & 0xFFFF == 1)
        let read = Requester(guest.smmu, 6, 0x3000)
        #expect(try test.nextEvent()[1] & 0xFFFF == 2)
        let write = Requester(guest.smmu, 6, 0x4008, writes: 0xBAD)
        #expect(try test.nextEvent()[1] & 0xFFFF == 3)
        for address in [0x1000, 0x2000, 0x3000, 0x4000] as [UInt64] { try test.tables.map(address, to: page) }
        #expect(test.counts() == (4, 0))
        #expect(![retried, aborted, read, write].contains { $0.isDone }, "nothing goes on by itself")
        try guest.sync(Self.resume(6, 0, ac: true))
        #expect(retried.finish() == .ok(0x77))
        // Ac wins over Ab; here Ab alone.
        try guest.sync(Self.resume(6, 1, ab: true))
        #expect(aborted.finish() == .fTranslation)
        try guest.sync(Self.resume(6, 2), Self.resume(6, 3))
        #expect(read.finish() == .ok(0))
        #expect(write.finish() == .ok(0))
        #expect(try guest.peek(page + 8) == 0, "the write went nowhere")
        #expect(test.counts() == (0, 0))
        #expect(try guest.takeEvents() == [])
        #expect(try guest.activeErrors == 0)
    }

    @Test("a retry that faults again stalls again, under another STAG")
    func retryFaultsAgain() throws {
        let test = try Stalling()
        let requester = Requester(test.guest.smmu, 6, 0x1000)
        for stag in 0..<3 as Range<UInt64> {
            #expect(try test.nextEvent()[1] & 0xFFFF == stag)
            try test.guest.sync(Self.resume(6, stag, ac: true, ab: true))
        }
        #expect(try test.nextEvent()[1] & 0xFFFF == 3)
        try test.guest.sync(Self.resume(6, 3, ab: true))
        #expect(requester.finish() == .fTranslation)
    }

    @Test("CMD_RESUME of a STAG or StreamID that nothing has does nothing and is no error")
    func strangers() throws {
        let test = try Stalling()
        let requester = Requester(test.guest.smmu, 6, 0x1000)
        _ = try test.nextEvent()
        try test.guest.sync(
            Self.resume(6, 1, ac: true),
            Self.resume(7, 0, ac: true),
            Self.resume(6, 0xFFFF, ab: true),
            RawCommand(low: 0x45 | 7 << 32)
        )
        #expect(test.counts() == (1, 0))
        #expect(!requester.isDone)
        #expect(try test.guest.activeErrors == 0)
        try test.guest.sync(Self.resume(6, 0, ab: true))
        #expect(requester.finish() == .fTranslation)
        // Given back: a second CMD_RESUME of it does nothing.
        try test.guest.sync(Self.resume(6, 0, ac: true))
        #expect(try test.guest.activeErrors == 0)
    }

    @Test(
        "a stalled transaction does not hold CMD_SYNC back, and holds no page: it goes where the new one is"
    )
    func notInFlight() throws {
        let test = try Stalling()
        let guest = test.guest
        let old = try guest.page(holding: 1)
        let new = try guest.page(holding: 2)
        // Not writable: F_PERMISSION, with the translation in the TLB.
        try test.tables.map(0x1000, to: old, Leaf.readWrite | Leaf.readOnly)
        let requester = Requester(guest.smmu, 6, 0x1008, writes: 0x99)
        #expect(try test.nextEvent()[0] & 0xFF == 0x13)
        try test.tables.unmap(0x1000)
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        guest.smmu.waitForAccessesInFlight()
        try test.tables.map(0x1000, to: new)
        try guest.sync(Self.resume(6, 0, ac: true))
        #expect(requester.finish() == .ok(0))
        #expect(try guest.peek(old + 8) == 0)
        #expect(try guest.peek(new + 8) == 0x99)
    }

    @Test("a full queue loses no stall and does not overflow: each is recorded when there is room")
    func fullQueue() throws {
        let test = try Stalling(eventLog2: 0)
        let guest = test.guest
        let page = try guest.page(holding: 0x55)
        // One entry, taken by an event that is no stall.
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        let requesters = (1...3 as ClosedRange<UInt64>).map { Requester(guest.smmu, 6, $0 << 12) }
        test.wait(recorded: 0, unrecorded: 3)
        #expect(try guest.read32(0x1_00A8) == 1, "no overflow")
        #expect(try guest.takeEvents(upTo: 1).count == 1)
        var seen: [UInt64] = []
        for round in 0..<3 {
            let event = try test.nextEvent()
            seen.append(event[2])
            #expect(event[1] & 0x8000_FFFF == 0x8000_0000 | UInt64(round))
            #expect(try guest.read32(0x1_00A8) & 0x8000_0000 == 0)
        }
        #expect(seen.sorted() == [0x1000, 0x2000, 0x3000])
        test.wait(recorded: 3)
        for address in seen { try test.tables.map(address, to: page) }
        for stag in 0..<3 as Range<UInt64> { try guest.sync(Self.resume(6, stag, ac: true)) }
        for requester in requesters { #expect(requester.finish() == .ok(0x55)) }
        #expect(guest.smmu.events().count == 4, "each once")
    }

    @Test("what waits for room goes on by itself where its page has come meanwhile, without an event")
    func earlyRetry() throws {
        let test = try Stalling(eventLog2: 0)
        let guest = test.guest
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        let requester = Requester(guest.smmu, 6, 0x1000)
        test.wait(recorded: 0, unrecorded: 1)
        try test.tables.map(0x1000, to: try guest.page(holding: 0x55))
        #expect(try guest.takeEvents().count == 1)
        #expect(requester.finish() == .ok(0x55))
        #expect(try guest.takeEvents() == [])
    }

    @Test("stalls wait while EVENTQEN is 0 and while EVENTQ_ABT_ERR is active")
    func notWritable() throws {
        let test = try Stalling()
        let guest = test.guest
        try guest.write32(0x20, 0b1001)
        let first = Requester(guest.smmu, 6, 0x1000)
        test.wait(recorded: 0, unrecorded: 1)
        try guest.write32(0x20, 0b1101)
        #expect(try test.nextEvent()[2] == 0x1000)
        // The queue is where nobody is.
        let base = try guest.read64(0xA0)
        try guest.write32(0x20, 0b1001)
        try guest.write64(0xA0, 0x44_0000_0000 | 6)
        try guest.write32(0x20, 0b1101)
        let second = Requester(guest.smmu, 6, 0x2000)
        test.wait(recorded: 1, unrecorded: 1)
        #expect(try guest.activeErrors == 1 << 2)
        try guest.write32(0x20, 0b1001)
        try guest.write64(0xA0, base)
        try guest.write32(0x20, 0b1101)
        test.wait(recorded: 1, unrecorded: 1)
        try guest.write32(0x64, 1 << 2)
        let event = try test.nextEvent()
        #expect(event[2] == 0x2000)
        #expect(event[1] & 0xFFFF == 1, "the STAG of the write that failed names it")
        try guest.sync(RawCommand(low: 0x45 | 6 << 32))
        #expect(first.finish() == .fTranslation)
        #expect(second.finish() == .fTranslation)
    }

    @Test("STALL_MAX bounds the stalls that are recorded; the next gets the STAG that is given back")
    func stallMax() throws {
        let test = try Stalling(.thread, { $0.idr5.stallMax = 2 })
        let guest = test.guest
        let requesters = (1...3 as ClosedRange<UInt64>).map { Requester(guest.smmu, 6, $0 << 12) }
        test.wait(recorded: 2, unrecorded: 1)
        #expect(try guest.takeEvents().map { $0[1] & 0xFFFF } == [0, 1])
        try guest.sync(Self.resume(6, 1, ab: true))
        #expect(try test.nextEvent()[1] & 0xFFFF == 1)
        try guest.sync(RawCommand(low: 0x45 | 6 << 32))
        for requester in requesters { #expect(requester.finish() == .fTranslation) }
        #expect(test.counts() == (0, 0))
    }

    @Test("CMD_STALL_TERM aborts every stalled transaction of its stream, recorded or not, and no other's")
    func terminateStream() throws {
        let test = try Stalling(.thread, { $0.idr5.stallMax = 2 })
        let guest = test.guest
        _ = try guest.attachTables(7, asid: 2) { $0.s = true }
        let other = Requester(guest.smmu, 7, 0x1000)
        test.wait(recorded: 1)
        let meant = (1...2 as ClosedRange<UInt64>).map { Requester(guest.smmu, 6, $0 << 12) }
        test.wait(recorded: 2, unrecorded: 1)
        // As software must: the stream terminates new transactions first.
        try guest.setSTE(6, STEWords(config: 0))
        try guest.sync(RawCommand(low: 0x45 | 6 << 32))
        for requester in meant {
            let outcome = requester.finish()
            #expect(outcome == .fTranslation || outcome == .aborted)
        }
        #expect(test.counts() == (1, 0))
        #expect(!other.isDone)
        guest.smmu.endStalls()
        #expect(other.finish() == .fTranslation)
    }

    @Test("SMMUEN 1 -> 0, reset and the end abort what is stalled", arguments: 0..<4)
    func ends(_ way: Int) throws {
        let test = try Stalling(eventLog2: 0)
        let guest = test.guest
        let requesters = (1...2 as ClosedRange<UInt64>).map { Requester(guest.smmu, 6, $0 << 12) }
        test.wait(recorded: 1, unrecorded: 1)
        switch way {
        case 0: try guest.write32(0x20, 0b1100)
        case 1: guest.smmu.reset()
        case 2: guest.smmu.endStalls()
        default: guest.smmu.stop()
        }
        for requester in requesters { #expect(requester.finish() == .fTranslation) }
        #expect(test.counts() == (0, 0))
        guard way >= 2 else { return }
        // Nobody waits any more.
        #expect(guest.dmaRead(6, 0x3000) == .fTranslation)
    }

    @Test("a stall is recorded whatever CD.A and CD.R say", arguments: [false, true], [false, true])
    func terminateBitsAreIgnored(_ a: Bool, _ r: Bool) throws {
        let test = try Stalling(.thread, { _ in }) { cd in
            cd.a = a
            cd.r = r
        }
        let requester = Requester(test.guest.smmu, 6, 0x1000)
        #expect(try test.nextEvent()[1] == 0x0000_0208_8000_0000)
        try test.guest.sync(Self.resume(6, 0, ab: true))
        #expect(requester.finish() == .fTranslation)
    }

    @Test("TERM_MODEL 1: to terminate is to abort")
    func terminateModel() throws {
        let test = try Stalling(.thread, { $0.idr0.termModel = true })
        let requester = Requester(test.guest.smmu, 6, 0x1000)
        _ = try test.nextEvent()
        try test.guest.sync(Self.resume(6, 0))
        #expect(requester.finish() == .fTranslation)
    }

    @Test("requesters that may not stall, as PCIe's, are aborted at once, and the event says so")
    func withoutStalls() throws {
        let test = try Stalling(.thread, { _ in }) { $0.r = false }
        let port = test.guest.smmu.makePort(for: StreamID(6), canStall: false)
        #expect(port.read64(at: 0x1000) == .fTranslation)
        #expect(try test.guest.takeEvents() == [[0x0000_0006_0000_0010, 0x0000_0208_0000_0000, 0x1000, 0]])
        #expect(test.counts() == (0, 0))
    }

    @Test("STE.S2S: faults of stage 2 stall, whatever S2R says; those that are not translation faults abort")
    func stage2() throws {
        var setup = GuestSetup()
        setup.identification = .full()
        setup.options.commandExecution = .thread
        let guest = try TestGuest(setup)
        let root = guest.allocate(4096)
        let page = try guest.page(holding: 0x31)
        var ste = STEWords(config: 0b110)
        // 1 GiB blocks from a table of level 1.
        ste.extra = Stage2Words(t0SZ: 25, sl0: 1, s: true, r: false, ttb: root).words
        try guest.setSTE(6, ste)
        let requester = Requester(guest.smmu, 6, page)
        while try guest.read32(0x1_00A8) == 0 { sched_yield() }
        // S2 in bit 103, CLASS IN, RnW, Stall; the IPA in word 3.
        #expect(try guest.takeEvents() == [[0x0000_0006_0000_0010, 0x0000_0288_8000_0000, page, page]])
        try guest.poke(root + (page >> 30) * 8, page & ~0x3FFF_FFFF | Leaf2.readWrite | 0b01)
        try guest.sync(Self.resume(6, 0, ac: true))
        #expect(requester.finish() == .ok(0x31))
        // A table where nobody is: F_WALK_EABT never stalls.
        try guest.poke(root, 0x44_0000_0000 | 0b11)
        try guest.sync(Raw.tlbiS12VMAll(0))
        #expect(guest.dmaRead(6, 0x1000) == .event(0x0B))
    }

    @Test("memory is not lent across a stall: the copy that follows stalls")
    func lending() throws {
        let test = try Stalling()
        let port = test.guest.smmu.makePort(for: StreamID(6))
        try test.tables.map(0x1000, to: try test.guest.page(holding: 1))
        let ranges = [
            DMARange(address: IOVirtualAddress(0x1000), byteCount: 8),
            DMARange(address: IOVirtualAddress(0x2000), byteCount: 8),
        ]
        let isLent = try port.lend(ranges, for: .read, .plain) { _ in Issue.record("lent") }
        #expect(!isLent)
        #expect(try test.guest.takeEvents() == [])
        #expect(test.counts() == (0, 0))
    }

    @Test(
        "without stalls (STALL_MODEL 1) CMD_RESUME and CMD_STALL_TERM are illegal",
        arguments: [0x44, 0x45]
    )
    func withoutModel(_ opcode: UInt64) throws {
        let guest = try TestGuest()
        try guest.issue(RawCommand(low: opcode))
        #expect(try guest.commandError == 1)
        // With it SSec is.
        var setup = GuestSetup()
        setup.identification = .full()
        let other = try TestGuest(setup)
        try other.issue(RawCommand(low: opcode))
        #expect(try other.activeErrors == 0)
        try other.issue(RawCommand(low: opcode | 1 << 10))
        #expect(try other.commandError == 1)
    }

    @Test("many requesters, a small queue and a driver that resumes: everyone arrives")
    func crowd() throws {
        let test = try Stalling(eventLog2: 1, .thread, { $0.idr5.stallMax = 3 })
        let guest = test.guest
        let count: UInt64 = 12
        let pages = try (0..<count).map { try guest.page(holding: 0x100 + $0) }
        let requesters = (0..<count).map { Requester(guest.smmu, 6, ($0 + 1) << 12) }
        while !requesters.allSatisfy({ $0.isDone }) {
            for event in try guest.takeEvents() {
                #expect(event[1] & 0x8000_0000 != 0)
                let index = (event[2] >> 12) - 1
                try test.tables.map(event[2], to: pages[Int(index)])
                try guest.issue(Self.resume(6, event[1] & 0xFFFF, ac: true))
            }
            sched_yield()
        }
        for (index, requester) in requesters.enumerated() {
            #expect(requester.finish() == .ok(0x100 + UInt64(index)))
        }
        #expect(test.counts() == (0, 0))
        #expect(try guest.read32(0x1_00A8) & 0x8000_0000 == 0)
    }
}
