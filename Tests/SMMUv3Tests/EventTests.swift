// Events: whether a fault aborts or answers zeroes, whether it is recorded, and the queue that takes the records.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Events")
struct EventTests {
    static let substream = TransactionAttributes(substreamID: SubstreamID(0x2), isPrivileged: true)

    /// A stream 6 whose CDs fault in each way at a known address.
    struct Faults {
        let guest: TestGuest
        static let addresses: [(number: UInt8, address: UInt64)] = [
            (0x10, 0x1000), (0x11, 0x2000), (0x12, 0x3000), (0x13, 0x4000),
        ]

        init(a: Bool, r: Bool) throws {
            guest = try TestGuest()
            let tables = try guest.attachTables(6) { cd in
                cd.a = a
                cd.r = r
                cd.ips = 2
            }
            try tables.map(0x2000, to: 1 << 40)
            try tables.map(0x3000, to: TestGuest.ram, Leaf.unprivileged | Leaf.nG)
            try tables.map(0x4000, to: TestGuest.ram, Leaf.af | Leaf.nG)
            let table = try tables.entry(0x40_0000, level: 2)
            try guest.poke(table, 0x90_0000_0000 | 0b11)
        }
    }

    @Test("CD.A and CD.R: abort or zeroes, recorded or not", arguments: [false, true], [false, true])
    func terminateModels(_ a: Bool, _ r: Bool) throws {
        let faults = try Faults(a: a, r: r)
        let guest = faults.guest
        for (number, address) in Faults.addresses {
            let before = try guest.peek(TestGuest.ram)
            let write = guest.dmaWrite(6, address, 0xBAD)
            let read = guest.dmaRead(6, address)
            #expect(write == (a ? .event(number) : .ok(0)))
            #expect(read == (a ? .event(number) : .ok(0)), "reads as zero")
            #expect(try guest.peek(TestGuest.ram) == before, "writes are ignored")
            let records = [false, true].map {
                eventWords(UInt64(number), stream: 6, isRead: $0, eventClass: 2, input: address)
            }
            #expect(try guest.takeEvents() == (r ? records : []))
            let logged = guest.smmu.events().suffix(2)
            #expect(logged.allSatisfy { $0.disposition == (r ? .recorded : .notRecorded) })
            #expect(logged.allSatisfy { $0.record.number.rawValue == number })
        }
    }

    @Test("what A and R do not touch: external aborts of walks abort and are recorded")
    func walkAbortsAlwaysAbort() throws {
        let guest = try Faults(a: false, r: false).guest
        #expect(guest.dmaWrite(6, 0x40_5000) == .event(0x0B))
        let expected = eventWords(
            0x0B,
            stream: 6,
            isRead: false,
            eventClass: 1,
            input: 0x40_5000,
            fetch: 0x90_0000_0028
        )
        #expect(try guest.takeEvents() == [expected])
    }

    @Test("zeroes end at the smallest page: what follows is translated by itself")
    func readAsZeroIsByPage() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6) { $0.a = false }
        let page = try guest.page(holding: 0x55)
        try tables.map(0x2000, to: page)
        var buffer = [UInt8](repeating: 0xFF, count: 0x1808)
        try buffer.withUnsafeMutableBytes {
            try guest.port(6).read(at: IOVirtualAddress(0x800), into: $0, .plain)
        }
        #expect(buffer[..<0x1800].allSatisfy { $0 == 0 })
        #expect(buffer[0x1800] == 0x55)
        #expect(try guest.takeEvents().map { $0[2] } == [0x800, 0x1000])
    }

    @Test("records carry SSV, SubstreamID, PnU, InD, RnW and the address as it came, bit for bit")
    func recordBits() throws {
        let guest = try TestGuest()
        let tables = GuestTables(guest)
        let contexts = guest.allocate(64 * 4, alignment: 256)
        try guest.poke(contexts + 2 * 64, CDWords(tbi0: true, ttb0: tables.root).words)
        try guest.setSTE(0x8B, STEWords(s1ContextPtr: contexts, s1CDMax: 2, s1DSS: 2))
        let fetch = TransactionAttributes(
            substreamID: SubstreamID(2),
            isPrivileged: false,
            isInstruction: true
        )
        #expect(guest.dmaRead(0x8B, 0xA500_0000_0000_1238, fetch) == .fTranslation)
        #expect(guest.dmaWrite(0x8B, 0x5A00_0000_0000_1238, 0, Self.substream) == .fTranslation)
        #expect(
            guest.dmaRead(0x8B, 0x1238, TransactionAttributes(substreamID: SubstreamID(1))) == .event(0x0A)
        )
        #expect(
            try guest.takeEvents() == [
                // Event 0x10, SSV, SubstreamID 2, StreamID 0x8B; RnW, InD, CLASS IN.
                [0x0000_008B_0000_2810, 0x0000_020C_0000_0000, 0xA500_0000_0000_1238, 0],
                // PnU, a write.
                [0x0000_008B_0000_2810, 0x0000_0202_0000_0000, 0x5A00_0000_0000_1238, 0],
                [0x0000_008B_0000_180A, 0, 0, 0],
            ]
        )
    }

    @Test("golden words of every event of this profile")
    func goldenWords() throws {
        let guest = try TestGuest()
        var expected: [[UInt64]] = []
        // C_BAD_STREAMID.
        #expect(guest.dmaRead(0x1234, 0) == .event(0x02))
        expected.append([0x0000_1234_0000_0002, 0, 0, 0])
        // C_BAD_STE.
        #expect(guest.dmaRead(0x10, 0, Self.substream) == .event(0x04))
        expected.append([0x0000_0010_0000_2804, 0, 0, 0])
        // F_CD_FETCH, at 0x9_0000_0040.
        try guest.setSTE(0x10, STEWords(s1ContextPtr: 0x9_0000_0040))
        #expect(guest.dmaRead(0x10, 0) == .event(0x09))
        expected.append([0x0000_0010_0000_0009, 0, 0, 0x9_0000_0040])
        // C_BAD_SUBSTREAMID.
        #expect(guest.dmaRead(0x10, 0, Self.substream) == .event(0x08))
        expected.append([0x0000_0010_0000_2008, 0, 0, 0])
        // C_BAD_CD.
        let context = guest.allocate(64)
        try guest.setSTE(0x10, STEWords(s1ContextPtr: context))
        #expect(guest.dmaRead(0x10, 0) == .event(0x0A))
        expected.append([0x0000_0010_0000_000A, 0, 0, 0])
        // F_STREAM_DISABLED.
        try guest.setSTE(0x10, STEWords(s1ContextPtr: context, s1CDMax: 1))
        #expect(guest.dmaRead(0x10, 0) == .event(0x06))
        expected.append([0x0000_0010_0000_0006, 0, 0, 0])
        // F_WALK_EABT: CLASS TTD, RnW, InD; the root is beyond memory, index 2 of level 1.
        try guest.attach(0x10, CDWords(ttb0: 0x8_0000_0000))
        #expect(guest.dmaRead(0x10, 0x8000_0000, TransactionAttributes(isInstruction: true)) == .event(0x0B))
        expected.append([0x0000_0010_0000_000B, 0x0000_010C_0000_0000, 0x8000_0000, 0x8_0000_0010])
        // F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION: CLASS IN, a write.
        let tables = try guest.attachTables(0x11, asid: 2) { $0.ips = 1 }
        try tables.map(0x2000, to: 1 << 36)
        try tables.map(0x3000, to: 0, 0)
        try tables.map(0x4000, to: 0, Leaf.af | Leaf.readOnly | Leaf.unprivileged)
        for number in [0x10, 0x11, 0x12, 0x13] as [UInt64] {
            let address = (number - 0xF) * 0x1000
            #expect(guest.dmaWrite(0x11, address + 8) == .event(UInt8(number)))
            expected.append([0x0000_0011_0000_0000 | number, 0x0000_0200_0000_0000, address + 8, 0])
        }
        #expect(try guest.takeEvents() == expected)
        #expect(guest.smmu.events().map { $0.record.words[0] } == expected.map { $0[0] })
        #expect(guest.smmu.events().allSatisfy { !$0.reason.isEmpty })
        #expect(guest.smmu.events(after: 3).first?.sequence == 4)
    }

    // MARK: The queue

    /// A guest with an event queue of 4 entries and a stream 1 that faults.
    static func small(_ log2: UInt64 = 2) throws -> TestGuest {
        var setup = GuestSetup()
        setup.eventLog2 = log2
        return try TestGuest(setup)
    }

    @Test("the wrap flag turns over, lap after lap", arguments: [0, 1, 2, 5] as [UInt64])
    func laps(_ log2: UInt64) throws {
        let guest = try Self.small(log2)
        let size: UInt64 = 1 << log2
        for number in 0..<(size * 5 + 3) {
            #expect(guest.dmaRead(UInt32(0x1000 + number), 0) == .event(0x02))
            #expect(UInt64(try guest.read32(0x1_00A8)) == (number + 1) & (2 * size - 1))
            #expect(try guest.takeEvents() == [[(0x1000 + number) << 32 | 2, 0, 0, 0]])
        }
        #expect(guest.eventLine.count == Int(size * 5 + 3), "each came into an empty queue")
    }

    @Test(
        "a full queue: OVFLG toggles once until it is acknowledged, and recording goes on when there is room"
    )
    func overflow() throws {
        let guest = try Self.small()
        for number in 0..<4 as Range<UInt32> { _ = guest.dmaRead(0x1000 + number, 0) }
        #expect(try guest.read32(0x1_00A8) == 4, "full: index 0, wrap 1, no overflow yet")
        #expect(try guest.activeErrors == 0)
        for number in 4..<7 as Range<UInt32> { _ = guest.dmaRead(0x1000 + number, 0) }
        #expect(try guest.read32(0x1_00A8) == 0x8000_0004)
        #expect(try guest.activeErrors == 0, "an overflow is no global error")
        #expect(guest.errorLine.count == 0)
        #expect(guest.eventLine.count == 1)
        // Room for two; OVFLG is not acknowledged: recording goes on.
        try guest.write32(0x1_00AC, 2)
        _ = guest.dmaRead(0x1007, 0)
        _ = guest.dmaRead(0x1008, 0)
        #expect(try guest.read32(0x1_00A8) == 0x8000_0006)
        _ = guest.dmaRead(0x1009, 0)
        #expect(
            try guest.read32(0x1_00A8) == 0x8000_0006,
            "a second overflow before the acknowledge shows nothing"
        )
        // Acknowledge; the next overflow toggles back to 0.
        try guest.write32(0x1_00AC, 0x8000_0002)
        _ = guest.dmaRead(0x100A, 0)
        #expect(try guest.read32(0x1_00A8) == 0x0000_0006)
        let dispositions = guest.smmu.events().map(\.disposition)
        let expected: [LoggedEvent.Disposition] =
            Array(repeating: .recorded, count: 4) + Array(repeating: .overflow, count: 3)
            + [.recorded, .recorded, .overflow, .overflow]
        #expect(dispositions == expected)
        // Entry 1 of the queue was overwritten by the sixth record only after it was free.
        #expect(try guest.peek(guest.eventQueue) == 0x1007 << 32 | 2)
        #expect(try guest.peek(guest.eventQueue + 3 * 32) == 0x1003 << 32 | 2)
    }

    @Test("indices that no queue can have count as full: nothing unread is overwritten")
    func inconsistentIndices() throws {
        let guest = try Self.small()
        try guest.write32(0x1_00AC, 2)
        try guest.poke(guest.eventQueue, 0x5555)
        _ = guest.dmaRead(0x1000, 0)
        #expect(try guest.peek(guest.eventQueue) == 0x5555)
        #expect(try guest.read32(0x1_00A8) == 0x8000_0000)
        // Bits above the wrap flag do not matter.
        try guest.write32(0x1_00AC, 0x000F_FFF8)
        _ = guest.dmaRead(0x1000, 0)
        #expect(try guest.peek(guest.eventQueue) == 0x1000 << 32 | 2)
    }

    @Test("LOG2SIZE above IDR1.EVENTQS is capped")
    func cappedSize() throws {
        var setup = GuestSetup()
        setup.identification.idr1.eventqs = 1
        setup.eventLog2 = 1
        setup.boots = false
        let guest = try TestGuest(setup)
        let queue = guest.allocate(0x1000)
        try guest.write64(0xA0, queue | 7)
        try guest.write32(0x2C, 2)
        try guest.write32(0x20, 0b101)
        for number in 0..<3 as Range<UInt32> { _ = guest.dmaRead(0x1000 + number, 0) }
        #expect(try guest.read64(0xA0) == queue | 7, "reads back as written")
        #expect(try guest.read32(0x1_00A8) == 0x8000_0002)
    }

    @Test(
        "a queue that is not there: EVENTQ_ABT_ERR, its interrupt, no PROD; nothing more until acknowledged"
    )
    func writeAborts() throws {
        let guest = try Self.small()
        try guest.write32(0x20, 0b1001)
        let queue = try guest.read64(0xA0)
        try guest.write64(0xA0, 0x77_0000_0000 | 2)
        try guest.write32(0x20, 0b1101)
        _ = guest.dmaRead(0x1000, 0)
        #expect(try guest.activeErrors == 0b100)
        #expect(try guest.read32(0x60) == 0b100)
        #expect(try guest.read32(0x1_00A8) == 0)
        #expect(guest.errorLine.count == 1)
        #expect(guest.eventLine.count == 0)
        _ = guest.dmaRead(0x1001, 0)
        #expect(guest.errorLine.count == 1)
        #expect(try guest.read32(0x60) == 0b100, "toggled once")
        try guest.write32(0x64, 0b100)
        #expect(try guest.activeErrors == 0)
        _ = guest.dmaRead(0x1002, 0)
        #expect(try guest.read32(0x60) == 0, "and toggled back")
        #expect(guest.errorLine.count == 2)
        try guest.write32(0x64, 0)
        try guest.write32(0x20, 0b1001)
        try guest.write64(0xA0, queue)
        try guest.write32(0x20, 0b1101)
        _ = guest.dmaRead(0x1003, 0)
        #expect(try guest.takeEvents() == [[0x1003 << 32 | 2, 0, 0, 0]])
        #expect(guest.smmu.events().map(\.disposition) == [.aborted, .notWritable, .aborted, .recorded])
    }

    @Test("EVENTQEN = 0: the fault aborts, nothing is written, no overflow")
    func disabledQueue() throws {
        let guest = try Self.small()
        try guest.write32(0x20, 0b1001)
        for number in 0..<9 as Range<UInt32> { #expect(guest.dmaRead(0x1000 + number, 0) == .event(0x02)) }
        #expect(try guest.read32(0x1_00A8) == 0)
        #expect(guest.eventLine.count == 0)
        #expect(guest.smmu.events().allSatisfy { $0.disposition == .notWritable })
    }

    @Test("the interrupt is for empty to non-empty alone, and only while it is enabled")
    func interrupt() throws {
        let guest = try Self.small()
        _ = guest.dmaRead(0x1000, 0)
        _ = guest.dmaRead(0x1001, 0)
        #expect(guest.eventLine.count == 1)
        // Read one of two: the queue is not empty.
        try guest.write32(0x1_00AC, 1)
        _ = guest.dmaRead(0x1002, 0)
        #expect(guest.eventLine.count == 1)
        guest.eventCons = 1
        _ = try guest.takeEvents()
        try guest.write32(0x50, 0)
        #expect(try guest.read32(0x54) == 0)
        _ = guest.dmaRead(0x1003, 0)
        #expect(guest.eventLine.count == 1)
        try guest.write32(0x50, 0b101)
        #expect(guest.eventLine.count == 1, "no interrupt for what happened before")
        _ = try guest.takeEvents()
        _ = guest.dmaRead(0x1004, 0)
        #expect(guest.eventLine.count == 2)
    }

    @Test("a combined line carries every output's pulses")
    func combinedLine() throws {
        var setup = GuestSetup()
        setup.hasCombinedLineOnly = true
        let guest = try TestGuest(setup)
        _ = guest.dmaRead(0x1000, 0)
        #expect(guest.combinedLine.count == 1)
        try guest.sync(Raw.sync(cs: 1))
        #expect(guest.combinedLine.count == 2)
        try guest.issue(RawCommand(low: 0xFF))
        #expect(guest.combinedLine.count == 3)
    }

    @Test("observers hear every event, and the log keeps the newest")
    func observers() throws {
        final class Observer: EventObserver {
            let heard = RecordingSink()
            let line = InterruptLine(identity: InterruptIdentity(controller: "/", specifier: []), label: "")
            func eventHappened(_ event: LoggedEvent, in smmu: SMMUv3) { heard.signal(.pulse, on: line) }
        }
        var setup = GuestSetup()
        setup.options.eventLogCapacity = 16
        let guest = try TestGuest(setup)
        let observer = Observer()
        guest.smmu.addEventObserver(observer)
        for _ in 0..<100 { _ = guest.dmaRead(0x1000, 0) }
        #expect(observer.heard.count == 100)
        #expect(guest.smmu.events().count <= 16)
        #expect(guest.smmu.events().last?.sequence == 100)
    }
}
