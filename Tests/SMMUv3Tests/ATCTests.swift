// A function's ATC in front of an SMMU: translations that it keeps, invalidations, page requests, and DMA in flight.

import AddressSpace
import DeviceModel
import Glibc
import PCIFunction
import SMMUv3Spec
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

/// A function without registers.
private final class EmptyModel: PCIFunctionModel {
    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        0
    }
    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {}
    func reset() {}
}

/// A function with ATS and PRI behind a guest's SMMU, as StreamID 6.
private struct ATSFunction {
    let cache: AddressTranslationCache
    let function: PCIFunction
    /// Where ATS Capability and PRI Capability stand, as the list has them.
    static let ats = 0x100
    static let pri = 0x108

    init(
        _ guest: TestGuest,
        entries: Int = 64,
        timeout: UInt32 = 60_000,
        ats: Bool = true,
        pageRequests: UInt32 = 0
    ) throws {
        var options = AddressTranslationCacheOptions()
        options.entryCount = entries
        options.pageResponseTimeoutMilliseconds = timeout
        let cache = AddressTranslationCache(options: options)
        self.cache = cache
        let smmu = guest.smmu
        function = PCIFunction(
            name: "0000:00:00.6",
            PCIFunctionDescription(
                identity: PCIIdentity(vendorID: 0x1234, deviceID: 1, classCode: 0xFF_0000),
                capabilities: [
                    .express(.endpoint), .ats(invalidateQueueDepth: 0), .pri(outstandingRequests: 32),
                ],
                interruptPin: 0
            ),
            model: EmptyModel(),
            makePort: {
                smmu.connect(cache, at: StreamID(6))
                return ATCPort(cache, smmu.makePort(for: StreamID(6), canStall: false))
            }
        )
        function.connect(cache)
        #expect(function.readConfiguration(at: Self.ats, byteCount: 2) == 0x000F)
        #expect(function.readConfiguration(at: Self.pri, byteCount: 2) == 0x0013)
        function.writeConfiguration(0b100, at: 4, byteCount: 2)
        if ats { setATS(true) }
        if pageRequests > 0 {
            function.writeConfiguration(pageRequests, at: Self.pri + 12, byteCount: 4)
            function.writeConfiguration(1, at: Self.pri + 4, byteCount: 2)
        }
    }

    func setATS(_ isEnabled: Bool) {
        function.writeConfiguration(isEnabled ? 0x8000 : 0, at: Self.ats + 6, byteCount: 2)
    }

    func statistic(_ name: String) -> UInt64 { cache.statistics.first { $0.name == name }?.value ?? 999 }
    /// Page Request Status.
    var status: UInt32 { function.readConfiguration(at: Self.pri + 6, byteCount: 2) }
}

@Suite("ATCs of functions", .serialized)
struct ATCTests {
    private func guest(_ change: (inout GuestSetup) -> Void = { _ in }) throws -> (TestGuest, GuestTables) {
        let guest = try TestGuest.full(change)
        try guest.setATS()
        let tables = GuestTables(guest)
        try guest.attach(6, CDWords(ttb0: tables.root), STEWords(eats: 1))
        return (guest, tables)
    }

    @Test("one translation request for each page; then hits, which the SMMU sees as translated transactions")
    func hits() throws {
        let (guest, tables) = try guest()
        let page = try guest.page(holding: 6)
        try tables.map(0x5000, to: page)
        let device = try ATSFunction(guest)
        let ports = (0..<2).map { _ in device.function.makePort() }
        for round in 0..<4 as Range<UInt64> {
            for port in ports {
                #expect(port.read64(at: 0x5000) == .ok(6))
                #expect(port.write64(round, at: 0x5008) == .ok(0))
            }
        }
        #expect(try guest.peek(page + 8) == 3)
        #expect(device.statistic("ats-requests") == 1, "the page is writable, so a read was told so")
        #expect(device.statistic("atc-resident") == 1)
        let transactions = guest.smmu.statistics.first { $0.name == "transactions" }?.value
        #expect(transactions == 16)
        // Stale, as software that forgets CMD_ATC_INV would find it.
        try tables.unmap(0x5000)
        try guest.sync(Raw.tlbiNHAll)
        #expect(ports[0].read64(at: 0x5000) == .ok(6))
        try guest.sync(ATCInvalidationTests.atcInv(6, 0x5000, size: 0))
        #expect(device.statistic("atc-resident") == 0)
        #expect(ports[0].read64(at: 0x5000) == .fTranslation, "untranslated, and so with its event")
        #expect(try guest.takeEvents().count == 1)
    }

    @Test("DMA over many pages: contiguous or not, with a hole, to the top of the address space")
    func ranges() throws {
        let (guest, tables) = try guest()
        let pages = try (0..<3).map { try guest.page(holding: UInt64($0)) }
        for (index, page) in pages.reversed().enumerated() {
            try tables.map(0x5000 + UInt64(index) * 0x1000, to: page)
        }
        let device = try ATSFunction(guest)
        let port = device.function.makePort()
        var bytes = [UInt8](repeating: 0, count: 0x2800)
        for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: index / 7) }
        try bytes.withUnsafeBytes { try port.write($0, at: IOVirtualAddress(0x5400), .plain) }
        var back = [UInt8](repeating: 0, count: bytes.count)
        try back.withUnsafeMutableBytes { try port.read(at: IOVirtualAddress(0x5400), into: $0, .plain) }
        #expect(back == bytes)
        #expect(try guest.peek(pages[1]) & 0xFF == UInt64(UInt8(truncatingIfNeeded: 0xC00 / 7)))
        // The fourth page is not there: what came before it is told, by untranslated addresses.
        let fault = #expect(throws: DMAFault.self) {
            try back.withUnsafeMutableBytes { try port.read(at: IOVirtualAddress(0x6000), into: $0, .plain) }
        }
        #expect(
            fault
                == DMAFault(
                    cause: .event(0x10),
                    address: IOVirtualAddress(0x8000),
                    bytesTransferred: 0x2000
                )
        )
        #expect(try guest.takeEvents().map { $0[2] } == [0x8000])
        let top = port.read64(at: 0xFFFF_FFFF_FFFF_FFFC)
        #expect(top == guest.dmaRead(6, 0xFFFF_FFFF_FFFF_FFFC))
        // Lent: the pieces of memory behind, in their order.
        var pieces: [Int] = []
        let ranges = [
            DMARange(address: IOVirtualAddress(0x5800), byteCount: 0x1000),
            DMARange(address: IOVirtualAddress(0x7000), byteCount: 8),
        ]
        let isLent = try port.lend(ranges, for: .read, .plain) { pieces = $0.map { Int($0.iov_len) } }
        #expect(isLent)
        #expect(pieces == [0x800, 0x800, 8])
        let isHoleLent = try port.lend(
            [DMARange(address: IOVirtualAddress(0x7800), byteCount: 0x1000)],
            for: .read,
            .plain
        ) { _ in Issue.record("nothing is there") }
        #expect(!isHoleLent, "copying says why")
    }

    @Test("blocks, replacement, and an ATC without entries")
    func capacity() throws {
        let (guest, tables) = try guest()
        try tables.map(0x20_0000, to: TestGuest.ram, level: 2)
        for index in 0..<16 as Range<UInt64> {
            try tables.map(0x1000 + index * 0x1000, to: try guest.page(holding: index))
        }
        let block = try ATSFunction(guest)
        let port = block.function.makePort()
        for offset in stride(from: 0 as UInt64, to: 0x20_0000, by: 0x1_0000) {
            #expect(port.read64(at: 0x20_0000 + offset) == .ok(try guest.peek(TestGuest.ram + offset)))
        }
        #expect(block.statistic("ats-requests") == 1)
        let small = try ATSFunction(guest, entries: 2)
        let other = small.function.makePort()
        for _ in 0..<3 {
            for index in 0..<8 as Range<UInt64> {
                #expect(other.read64(at: 0x1000 + index * 0x1000) == .ok(index))
            }
        }
        #expect(small.statistic("atc-resident") == 2)
        // A loan of much more than it holds: copied instead.
        let isLent = try small.function.makePort().lend(
            [DMARange(address: IOVirtualAddress(0x1000), byteCount: 0x1_0000)],
            for: .read,
            .plain
        ) { _ in Issue.record("more than there is room for") }
        #expect(!isLent)
        let none = try ATSFunction(guest, entries: 0)
        #expect(none.function.makePort().read64(at: 0x1000) == .ok(0))
        #expect(none.statistic("ats-requests") == 0)
        #expect(try guest.takeEvents() == [])
    }

    @Test("ATS is used while the function's register enables it, and the stream's STE")
    func enabling() throws {
        let (guest, tables) = try guest()
        try tables.map(0x5000, to: try guest.page(holding: 6))
        let device = try ATSFunction(guest, ats: false)
        let port = device.function.makePort()
        #expect(port.read64(at: 0x5000) == .ok(6))
        #expect(device.statistic("ats-requests") == 0)
        device.setATS(true)
        #expect(port.read64(at: 0x5000) == .ok(6))
        #expect(device.statistic("atc-resident") == 1)
        device.setATS(false)
        #expect(device.statistic("atc-resident") == 0, "clearing Enable empties the ATC")
        #expect(port.read64(at: 0x5000) == .ok(6))
        #expect(device.statistic("ats-requests") == 1)
        // Where the STE has no ATS, the answer is Unsupported Request: untranslated then.
        device.setATS(true)
        try guest.attach(6, CDWords(ttb0: tables.root))
        #expect(port.read64(at: 0x5000) == .ok(6))
        #expect(try guest.takeEvents().map { $0[0] & 0xFF } == [0x05])
        // A function-level reset is as any other.
        device.function.reset()
        #expect(!device.function.pageServices.isATSEnabled)
        device.function.writeConfiguration(0b100, at: 4, byteCount: 2)
        #expect(port.read64(at: 0x5000) == .ok(6))
        #expect(device.statistic("ats-requests") == 2)
    }

    @Test("CMD_ATC_INV drops what it names, by address and PASID")
    func invalidation() throws {
        let (guest, _) = try guest()
        let tables = GuestTables(guest)
        let pages = try (0..<4).map { try guest.page(holding: UInt64($0)) }
        for (index, page) in pages.enumerated() { try tables.map(UInt64(index + 1) << 12, to: page) }
        let contexts = guest.allocate(64 << 2)
        for index in 0..<4 as Range<UInt64> {
            try guest.poke(contexts + index * 64, CDWords(asid: index, ttb0: tables.root).words)
        }
        try guest.setSTE(6, STEWords(s1ContextPtr: contexts, s1CDMax: 2, s1DSS: 0b10, eats: 1))
        let device = try ATSFunction(guest)
        let port = device.function.makePort()
        /// Fills four pages of no PASID, and of 1 and 2.
        func fill() {
            for pasid in [nil, 1, 2] as [UInt32?] {
                let attributes = TransactionAttributes(substreamID: pasid.map { SubstreamID($0) })
                for page in 1...4 as ClosedRange<UInt64> { _ = port.read64(at: page << 12, attributes) }
            }
            #expect(device.statistic("atc-resident") == 12)
        }
        typealias Inv = ATCInvalidationTests
        let cases: [(RawCommand, UInt64)] = [
            (Inv.atcInv(6, 0x1000, size: 0), 9),
            (Inv.atcInv(6, 0x2000, size: 1), 6),
            (Inv.atcInv(6, 0x1000, size: 0, ssid: 1), 11),
            (Inv.atcInv(6, 0, size: 52, ssid: 2), 8),
            (Inv.atcInv(6, 0x1000, size: 0, ssid: 2, global: true), 9),
            (Inv.atcInv(6, 0, size: 52, ssid: 3), 12),
            (Inv.atcInv(6, 0x10_0000, size: 8), 12),
            (Inv.atcInv(6, 0, size: 52), 0),
            (Inv.atcInv(7, 0, size: 52), 12),
        ]
        for (command, left) in cases {
            fill()
            try guest.sync(command)
            #expect(device.statistic("atc-resident") == left, "\(command)")
        }
    }

    // MARK: Page requests

    @Test("a page that is not there is asked for; the DMA waits for the response, and goes on")
    func pageRequests() throws {
        let (guest, tables) = try guest { $0.options.commandExecution = .thread }
        let queue = guest.allocate(16 << 3)
        try guest.write64(0xC0, queue | 3)
        try guest.write32(0x20, PageRequestTests.priqen)
        let page = try guest.page(holding: 0)
        let device = try ATSFunction(guest, pageRequests: 4)
        #expect(device.status & 0x100 == 0, "not stopped")
        let function = device.function
        let outcome = Mutex<DMAOutcome?>(nil)
        let dma = TestThread {
            let result = function.makePort().write64(0x77, at: 0x5008)
            outcome.withLock { $0 = result }
        }
        #expect(try eventually { try guest.read32(0x1_00C8) == 1 })
        #expect(try guest.peek(queue) == 0x6000_0000_0000_0006, "W, Last")
        #expect(try guest.peek(queue + 8) == 0x5000)
        #expect(outcome.withLock { $0 } == nil)
        // CMD_SYNC waits for nobody who waits for a page.
        try guest.sync(Raw.tlbiNHAll)
        try tables.map(0x5000, to: page)
        try guest.issue(RawCommand(low: 0x41 | 6 << 32, high: 0 | 2 << 12))
        dma.join()
        #expect(outcome.withLock { $0 } == .ok(0))
        #expect(try guest.peek(page + 8) == 0x77)
        // A page that cannot be had.
        let refused = TestThread {
            let result = function.makePort().read64(at: 0x9000)
            outcome.withLock { $0 = result }
        }
        #expect(try eventually { try guest.read32(0x1_00C8) == 2 })
        #expect(try guest.peek(queue + 24) == 0x9001, "the next group")
        try guest.issue(RawCommand(low: 0x41 | 6 << 32, high: 1 | 1 << 12))
        refused.join()
        #expect(outcome.withLock { $0 } == .fTranslation)
        #expect(device.status & 0b11 == 0)
        // A response that nobody waits for.
        try guest.issue(RawCommand(low: 0x41 | 6 << 32, high: 9 | 2 << 12))
        #expect(device.status & 0b11 == 0b10, "Unexpected Page Request Group Index")
        function.writeConfiguration(0b10, at: ATSFunction.pri + 6, byteCount: 2)
        #expect(device.status & 0b11 == 0)
        #expect(try guest.takeEvents().count == 1)
    }

    @Test("no more requests at a time than are allotted; the others take their turn")
    func allotment() throws {
        let (guest, tables) = try guest { $0.options.commandExecution = .thread }
        let queue = guest.allocate(16 << 4)
        try guest.write64(0xC0, queue | 4)
        try guest.write32(0x20, PageRequestTests.priqen)
        let device = try ATSFunction(guest, pageRequests: 1)
        let function = device.function
        let done = Count()
        let threads = (1...3).map { index in
            TestThread {
                if function.makePort().read64(at: UInt64(index) << 12) == .ok(UInt64(index)) {
                    done.increment()
                }
            }
        }
        for round in 1...3 as ClosedRange<UInt32> {
            #expect(try eventually { try guest.read32(0x1_00C8) == round })
            for _ in 0..<50 {
                #expect(try guest.read32(0x1_00C8) == round)
                sched_yield()
            }
            let entry = try guest.peek(queue + UInt64(round - 1) * 16 + 8)
            try tables.map(entry & ~0xFFF, to: try guest.page(holding: entry >> 12))
            try guest.issue(RawCommand(low: 0x41 | 6 << 32, high: entry & 0x1FF | 2 << 12))
        }
        for thread in threads { thread.join() }
        #expect(done.current == 3)
        #expect(device.statistic("page-requests") == 3)
    }

    @Test("a response that does not come, a queue that is off, PRI that is disabled: nobody waits for ever")
    func withoutResponse() throws {
        let (guest, _) = try guest { $0.options.commandExecution = .thread }
        let queue = guest.allocate(16 << 4)
        try guest.write64(0xC0, queue | 4)
        // The queue is off: Response Failure at once.
        let failing = try ATSFunction(guest, pageRequests: 1)
        #expect(failing.function.makePort().read64(at: 0x5000) == .fTranslation)
        #expect(failing.status & 0b11 == 0b01, "Response Failure")
        try guest.write32(0x20, PageRequestTests.priqen)
        // Nobody answers.
        let impatient = try ATSFunction(guest, timeout: 1, pageRequests: 1)
        #expect(impatient.function.makePort().read64(at: 0x5000) == .fTranslation)
        // Its only request is still under way.
        #expect(impatient.function.makePort().read64(at: 0x5000) == .fTranslation)
        #expect(impatient.statistic("page-requests") == 1)
        // Disabled, reset or stopped while somebody waits.
        let ways: [(ATSFunction) -> Void] = [
            { $0.function.writeConfiguration(0, at: ATSFunction.pri + 4, byteCount: 2) },
            { $0.setATS(false) },
            { $0.function.reset() },
            { $0.cache.stop() },
        ]
        for end in ways {
            let device = try ATSFunction(guest, pageRequests: 1)
            let function = device.function
            let before = try guest.read32(0x1_00C8)
            let waiting = TestThread { _ = function.makePort().read64(at: 0x5000) }
            #expect(try eventually { try guest.read32(0x1_00C8) == before + 1 })
            end(device)
            waiting.join()
        }
    }

    @Test("interrupt messages go untranslated, and wait for no page")
    func messages() throws {
        let (guest, tables) = try guest { $0.options.commandExecution = .thread }
        let queue = guest.allocate(32)
        try guest.write64(0xC0, queue)
        try guest.write32(0x20, PageRequestTests.priqen)
        let device = try ATSFunction(guest, pageRequests: 8)
        let port = device.function.makePort()
        let message = TransactionAttributes(isMessage: true)
        #expect(port.write64(1, at: 0x5000, message) == .fTranslation)
        try tables.map(0x5000, to: try guest.page(holding: 6))
        #expect(port.write64(1, at: 0x5000, message) == .ok(0))
        #expect(device.statistic("page-requests") == 0)
        #expect(device.statistic("ats-requests") == 0)
    }

    @Test("an overflow's response lets the function try again")
    func overflow() throws {
        let (guest, tables) = try guest()
        let queue = guest.allocate(32)
        try guest.write64(0xC0, queue)
        try guest.write32(0x20, PageRequestTests.priqen)
        // The queue's one entry is taken already.
        guest.port(6).sendPageRequest(
            PageRequest(address: IOVirtualAddress(0), group: 5, wantsRead: true, wantsWrite: false)
        )
        let device = try ATSFunction(guest, pageRequests: 8)
        let port = device.function.makePort()
        #expect(port.read64(at: 0x5000) == .fTranslation, "again and again, but not for ever")
        #expect(device.statistic("page-requests") == 8)
        #expect(try guest.read32(0x1_00C8) == 0x8000_0001)
        try tables.map(0x5000, to: try guest.page(holding: 6))
        #expect(port.read64(at: 0x5000) == .ok(6))
    }

    // MARK: Races

    /// Fills memory through a loan; false where there is none.
    private static func lendAndFill(_ port: any DMAPort, _ address: UInt64, _ byteCount: Int) -> Bool {
        let range = DMARange(address: IOVirtualAddress(address), byteCount: byteCount)
        let isLent = try? port.lend([range], for: .write, .plain) { pieces in
            for piece in pieces { memset(piece.iov_base, 0xD0, piece.iov_len) }
        }
        return isLent == true
    }

    @Test("DMA through an ATC against unmap, TLBI, CMD_ATC_INV and CMD_SYNC: nothing lands after it")
    func nothingLandsLate() throws {
        let (guest, tables) = try guest {
            $0.options.commandExecution = .thread
            $0.commandLog2 = 8
        }
        let pages = try (0..<2).map { _ in try guest.page(holding: 0) }
        let device = try ATSFunction(guest)
        let race = InFlightTests.Race()
        let function = device.function
        let writers = (0..<3).map { index in
            TestThread {
                let port = function.makePort()
                let bytes = [UInt8](repeating: 0xD0 + UInt8(index), count: 4096)
                var random = SplitMix(seed: 7 &+ UInt64(index))
                while !race.stop.isSet {
                    let size = Int(8 << (random.next() % 9))
                    let offset = random.next() % UInt64(4096 - size + 1)
                    let isDone = bytes.withUnsafeBytes { buffer in
                        let piece = UnsafeRawBufferPointer(rebasing: buffer[..<size])
                        // One of them by loans of the memory.
                        guard index > 0 else { return Self.lendAndFill(port, 0x1000 + offset, size) }
                        return (try? port.write(piece, at: IOVirtualAddress(0x1000 + offset), .plain)) != nil
                    }
                    if isDone { race.landed.increment() } else { race.faulted.increment() }
                }
            }
        }
        for round in 0..<200 {
            let page = pages[round % 2]
            let before = race.landed.current
            try tables.map(0x1000, to: page)
            race.landed.wait(for: before + 3)
            try tables.unmap(0x1000)
            // As Linux: the SMMU's TLB first, then the ATC.
            try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
            try guest.sync(ATCInvalidationTests.atcInv(6, 0x1000, size: round % 3 == 0 ? 52 : 0))
            for word in 0..<512 as Range<UInt64> { try guest.poke(page + word * 8, 0xC0FFEE) }
            let faults = race.faulted.current
            race.faulted.wait(for: faults + 6)
            let isIntact = try (0..<512 as Range<UInt64>).allSatisfy {
                try guest.peek(page + $0 * 8) == 0xC0FFEE
            }
            #expect(isIntact, "round \(round)")
        }
        race.stop.set()
        for writer in writers { writer.join() }
        #expect(device.statistic("atc-invalidations") == 200)
    }

    @Test("a translated transaction inside its memory access holds the CMD_SYNC after CMD_ATC_INV back")
    func syncWaits() throws {
        let (guest, tables) = try guest { $0.options.commandExecution = .thread }
        let gate = try InFlightTests.addGate(guest)
        try tables.map(0x1000, to: InFlightTests.gateAddress)
        let function = try ATSFunction(guest).function
        let blocked = TestThread { #expect(function.makePort().read64(at: 0x1000) == .ok(0x6A7E)) }
        gate.entered.wait(for: 1)
        let sync = guest.commandProd + 1
        try InFlightTests.post(guest, ATCInvalidationTests.atcInv(6, 0x1000, size: 0), Raw.sync())
        while try guest.commandCons != sync { sched_yield() }
        for _ in 0..<200 {
            #expect(try guest.commandCons == sync)
            sched_yield()
        }
        #expect(gate.finished.current == 0)
        gate.opened.set()
        try guest.waitForCommands()
        #expect(gate.finished.current == 1)
        blocked.join()
    }

    @Test("commands that a translated transaction rings for run when it has ended", arguments: [false, true])
    func doorbell(_ isInline: Bool) throws {
        let (guest, tables) = try guest { $0.options.commandExecution = isInline ? .inline : .thread }
        try tables.map(0x1000, to: TestGuest.window)
        let port = try ATSFunction(guest).function.makePort()
        try guest.queue(ATCInvalidationTests.atcInv(6, 0x1000, size: 0))
        try guest.queue(Raw.sync())
        var value = UInt32(guest.commandProd)
        try withUnsafeBytes(of: &value) { try port.write($0, at: IOVirtualAddress(0x1098), .plain) }
        try guest.waitForCommands()
        #expect(try guest.activeErrors == 0)
    }
}
