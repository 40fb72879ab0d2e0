// What the SMMU reports to performance monitors: exactly what each transaction does.

import AddressSpace
import DeviceModel
import Synchronization
import Testing

@testable import SMMUv3

/// Adds up what it is told, by StreamID and event.
final class RecordingMonitor: SMMUPerformanceMonitor {
    private let counts = Mutex<[UInt32: [SMMUPerformanceEvent: UInt64]]>([:])

    func count(_ event: SMMUPerformanceEvent, _ streamID: StreamID, _ amount: UInt64) {
        counts.withLock { $0[streamID.rawValue, default: [:]][event, default: 0] += amount }
    }

    /// Takes what was counted for a stream: transactions, TLB misses, configuration cache misses, descriptors,
    /// structures.
    func take(_ streamID: UInt32) -> [UInt64] {
        let events = counts.withLock { $0.removeValue(forKey: streamID) } ?? [:]
        return [.transaction, .tlbMiss, .configurationCacheMiss, .tableWalkAccess, .configurationAccess].map {
            events[$0] ?? 0
        }
    }

    var isEmpty: Bool { counts.withLock { $0.isEmpty } }
}

@Suite("What performance monitors are told")
struct PerformanceTests {
    /// A guest whose walks all begin at the first table: what a walk reads does not depend on those before it.
    private func guest(_ setup: GuestSetup = GuestSetup(), walkCacheEntries: Int = 0) throws
        -> (TestGuest, RecordingMonitor)
    {
        var setup = setup
        setup.options.walkCacheEntries = walkCacheEntries
        let guest = try TestGuest(setup)
        let monitor = RecordingMonitor()
        guest.smmu.report(guest.smmu.performanceEvents, to: monitor)
        return (guest, monitor)
    }

    @Test("who begins to count is told of the next transaction, also where the port had an answer of its own")
    func lateMonitor() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        try tables.map(0x1000, to: try guest.page(holding: 7))
        for _ in 0..<3 { #expect(guest.dmaRead(1, 0x1000) == .ok(7)) }
        let monitor = RecordingMonitor()
        guest.smmu.report(guest.smmu.performanceEvents, to: monitor)
        for _ in 0..<3 {
            #expect(guest.dmaRead(1, 0x1000) == .ok(7))
            #expect(monitor.take(1).first == 1)
        }
        guest.smmu.report([], to: monitor)
        for _ in 0..<3 { #expect(guest.dmaRead(1, 0x1000) == .ok(7)) }
        #expect(monitor.isEmpty)
    }

    @Test("statistics count each byte and each transaction once, whichever way a DMA takes")
    func statistics() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let output = try guest.page(holding: 7)
        for page in 0..<8 as Range<UInt64> { try tables.map(0x1000 + page << 12, to: output) }
        let port = guest.smmu.makePort(for: StreamID(1))
        var buffer = [UInt8](repeating: 0, count: 0x8000)
        func changes(_ body: () throws -> Void) rethrows -> [UInt64] {
            let names = [
                "transactions", "port-hits", "tlb-hits", "tlb-misses", "bytes-read", "bytes-written",
            ]
            func values() -> [UInt64] {
                let all = Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })
                return names.map { all[$0] ?? .max }
            }
            let before = values()
            try body()
            return zip(values(), before).map { $0 &- $1 }
        }
        func read(_ address: UInt64, _ count: Int) throws {
            try buffer.withUnsafeMutableBytes {
                try port.read(
                    at: IOVirtualAddress(address),
                    into: UnsafeMutableRawBufferPointer(rebasing: $0[..<count]),
                    .plain
                )
            }
        }
        func write(_ address: UInt64, _ count: Int) throws {
            try buffer.withUnsafeBytes {
                try port.write(
                    UnsafeRawBufferPointer(rebasing: $0[..<count]),
                    at: IOVirtualAddress(address),
                    .plain
                )
            }
        }
        #expect(
            try changes { try read(0x1000, 8) } == [1, 0, 0, 1, 8, 0],
            "the configuration is looked up, too"
        )
        #expect(try changes { try read(0x1008, 16) } == [1, 1, 0, 0, 16, 0], "the port remembers")
        #expect(try changes { try read(0x2FF8, 8) } == [1, 0, 0, 1, 8, 0], "a walk")
        #expect(try changes { try write(0x3000, 24) } == [1, 0, 0, 1, 0, 24], "likewise")
        #expect(try changes { try write(0x3000, 24) } == [1, 1, 0, 0, 0, 24])
        #expect(
            try changes { try read(0x1000, 0x3000) } == [3, 0, 3, 0, 0x3000, 0],
            "three pages by the TLB"
        )
        #expect(try changes { try read(0x3800, 0x1800) } == [2, 0, 1, 1, 0x1800, 0], "one, and a walk")
        #expect(try changes { try write(0x5000, 0x2000) } == [2, 0, 0, 2, 0, 0x2000], "two walks")
        // Another port, to which the TLB answers.
        let other = guest.smmu.makePort(for: StreamID(1))
        #expect(other.read64(at: 0x1000) == .ok(0), "what was written")
        #expect(changes { _ = other.read64(at: 0x2000) } == [1, 0, 1, 0, 8, 0])
    }

    @Test("what leads to no RAM is counted once, too, with a TLB and without", arguments: [0, 64])
    func statisticsOfNoRAM(tlbEntries: Int) throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = tlbEntries
        let (guest, monitor) = try guest(setup)
        let tables = try guest.attachTables(1)
        try tables.map(0x1000, to: TestGuest.window)
        try tables.map(0x2000, to: try guest.page(holding: 7))
        #expect(guest.dmaRead(1, 0x2000) == .ok(7))
        _ = monitor.take(1)
        // Only misses are counted: the port's short ways are open.
        guest.smmu.report([.tlbMiss, .tableWalkAccess], to: monitor)
        let names = ["tlb-hits", "walks", "descriptor-fetches"]
        func values() -> [UInt64] {
            let all = Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })
            return names.map { all[$0] ?? .max }
        }
        let before = values()
        let port = guest.smmu.makePort(for: StreamID(1))
        for _ in 0..<3 { _ = port.read64(at: 0x1000) }
        let walks: UInt64 = tlbEntries == 0 ? 3 : 1
        #expect(zip(values(), before).map { $0 &- $1 } == [0, walks, 3 * walks])
        #expect(monitor.take(1) == [0, walks, 0, 3 * walks, 0])
        // Another port, where the first look-up made the configuration known.
        let other = guest.smmu.makePort(for: StreamID(1))
        #expect(other.read64(at: 0x2000) == .ok(7))
        let known = values()
        _ = other.read64(at: 0x1000)
        let more: UInt64 = tlbEntries == 0 ? 1 : 0
        #expect(zip(values(), known).map { $0 &- $1 } == [1 - more, more, 3 * more])
    }

    @Test("each transaction counts once, with the misses and the accesses that it made")
    func transactions() throws {
        let (guest, monitor) = try guest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 7)
        try tables.map(0x1000, to: page)
        try tables.map(0x2000, to: page, Leaf.readWrite | Leaf.readOnly)
        try tables.map(0x20_0000, to: TestGuest.ram, level: 2)
        #expect(monitor.isEmpty)

        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 1, 1, 3, 2], "the first: STE, CD and three levels")
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 0, 0, 0, 0], "the port remembers")
        #expect(guest.smmu.makePort(for: StreamID(1)).read64(at: 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 0, 0, 0, 0], "the TLB remembers")
        #expect(guest.dmaRead(1, 0x2000) == .ok(7))
        #expect(monitor.take(1) == [1, 1, 0, 3, 0], "another page")
        #expect(guest.dmaWrite(1, 0x2000) == .fPermission)
        #expect(monitor.take(1) == [1, 0, 0, 0, 0], "terminated, from the TLB")
        for _ in 0..<2 {
            #expect(guest.dmaRead(1, 0x3000) == .fTranslation)
            #expect(monitor.take(1) == [1, 1, 0, 3, 0], "faults are not cached")
        }
        _ = guest.dmaRead(1, 0x20_0000)
        #expect(monitor.take(1) == [1, 1, 0, 2, 0], "a block ends at level 2")
        #expect(guest.dmaRead(1, 0x100_0000_0000) == .fTranslation)
        #expect(monitor.take(1) == [1, 0, 0, 0, 0], "out of range: no table is looked at")

        try guest.sync(Raw.tlbiNSNHAll)
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 1, 0, 3, 0], "after CMD_TLBI_NSNH_ALL")
        try guest.sync(Raw.cfgiSTE(1))
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 0, 1, 0, 2], "after CMD_CFGI_STE")
    }

    @Test("with the walk cache a walk reads what is not known, a fault's walk nothing twice")
    func walkCache() throws {
        let (guest, monitor) = try guest(walkCacheEntries: 64)
        let tables = try guest.attachTables(1)
        try tables.map(0x1000, to: try guest.page(holding: 7))
        try tables.map(0x20_0000, to: TestGuest.ram, level: 2)
        #expect(guest.dmaRead(1, 0x3000) == .fTranslation)
        #expect(monitor.take(1) == [1, 1, 1, 3, 2])
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 1, 0, 1, 0], "the last table is known")
        #expect(guest.dmaRead(1, 0x3000) == .fTranslation)
        #expect(monitor.take(1) == [1, 1, 0, 1, 0])
        _ = guest.dmaRead(1, 0x20_0000)
        #expect(monitor.take(1) == [1, 1, 0, 1, 0], "the level-2 table is known")
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(monitor.take(1) == [1, 1, 0, 3, 0], "after CMD_TLBI_NSNH_ALL")
        // As many in each order, where stage 2 is behind, and its results are kept as well.
        var counts: [[UInt64]] = []
        for entries in [0, 64] {
            let guest = try TestGuest.full { $0.options.walkCacheEntries = entries }
            let monitor = RecordingMonitor()
            guest.smmu.report(guest.smmu.performanceEvents, to: monitor)
            let nested = try NestedSetup(guest, block: 3)
            try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
            #expect(guest.dmaRead(6, 0x6000) == .fTranslation)
            counts.append(monitor.take(6))
        }
        // The CD, three levels, each 3 of stage 2 but those that the TLB knows, with or without a walk cache.
        #expect(counts[0][3] >= counts[1][3])
        #expect(counts[0][3] > 3 && counts[1][3] > 3)
    }

    @Test("a DMA is a transaction for each translation that it needs")
    func splitTransfers() throws {
        let (guest, monitor) = try guest()
        let tables = try guest.attachTables(1)
        for page in UInt64(0)..<4 { try tables.map(0x1000 * page, to: TestGuest.ram) }
        var buffer = [UInt8](repeating: 0, count: 0x2800)
        try buffer.withUnsafeMutableBytes { buffer in
            try guest.port(1).read(at: IOVirtualAddress(0xC00), into: buffer, .plain)
        }
        #expect(monitor.take(1) == [4, 4, 1, 12, 2])
    }

    @Test("memory that is lent counts as what is copied does, and an attempt that ends in copying does not")
    func lentMemory() throws {
        let (guest, monitor) = try guest()
        let tables = try guest.attachTables(1)
        for page in UInt64(0)..<4 { try tables.map(0x1000 * page, to: TestGuest.ram + 0x10_0000) }
        let range = DMARange(address: IOVirtualAddress(0xC00), byteCount: 0x2800)
        #expect(try guest.port(1).lend([range, range], for: .write, .plain) { _ in })
        #expect(monitor.take(1) == [8, 4, 1, 12, 2])
        // Nobody can lend a register window.
        try tables.map(0x8000, to: TestGuest.window)
        let window = DMARange(address: IOVirtualAddress(0x8000), byteCount: 4)
        #expect(try !guest.port(1).lend([range, window], for: .read, .plain) { _ in })
        #expect(monitor.take(1)[0] == 0)
        let unmapped = DMARange(address: IOVirtualAddress(0x3C00), byteCount: 0x800)
        #expect(throws: DMAFault.self) { try guest.port(1).lend([unmapped], for: .read, .plain) { _ in } }
        #expect(monitor.take(1) == [2, 1, 0, 3, 0])
    }

    @Test("accesses that nobody answers are accesses; what is invalid was fetched")
    func failedAccesses() throws {
        let (guest, monitor) = try guest()
        let tables = try guest.attachTables(1)
        try guest.poke(tables.root, 0xFF_0000_0003)
        #expect(guest.dmaRead(1, 0x1000) == .event(0x0B))
        #expect(monitor.take(1) == [1, 1, 1, 2, 2], "F_WALK_EABT at level 2")
        #expect(guest.dmaRead(3, 0x1000) == .event(0x04))
        #expect(monitor.take(3) == [1, 0, 1, 0, 1], "C_BAD_STE")
        #expect(guest.dmaRead(0x100, 0x1000) == .event(0x02))
        #expect(monitor.take(0x100) == [1, 0, 0, 0, 0], "C_BAD_STREAMID: beyond the table")
        try guest.write32(0x20, 0b1100)
        #expect(guest.dmaRead(1, TestGuest.ram) == .ok(try guest.peek(TestGuest.ram)))
        #expect(monitor.take(1) == [1, 0, 0, 0, 0], "SMMUEN is 0")
    }

    @Test("first levels of stream and CD tables are structures too")
    func firstLevels() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(16, split: 8)
        let (guest, monitor) = try guest(setup)
        let tables = try guest.attachTables(0x1234)
        try tables.map(0x1000, to: try guest.page(holding: 7))
        #expect(guest.dmaRead(0x1234, 0x1000) == .ok(7))
        #expect(monitor.take(0x1234) == [1, 1, 1, 3, 3])
    }

    @Test("without caches every transaction misses")
    func withoutCaches() throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = 0
        setup.options.configurationCacheEntries = 0
        let (guest, monitor) = try guest(setup)
        try guest.attachTables(1).map(0x1000, to: try guest.page(holding: 7))
        for _ in 0..<3 {
            #expect(guest.dmaRead(1, 0x1000) == .ok(7))
            #expect(monitor.take(1) == [1, 1, 1, 3, 2])
        }
    }

    @Test("only what a monitor wants is reported to it, and tools are no transactions")
    func selection() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        try tables.map(0x1000, to: try guest.page(holding: 7))
        let (first, second) = (RecordingMonitor(), RecordingMonitor())
        guest.smmu.report([.tableWalkAccess], to: first)
        guest.smmu.report([.transaction, .tlbMiss], to: second)
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(first.take(1) == [0, 0, 0, 3, 0])
        #expect(second.take(1) == [1, 1, 0, 0, 0])

        guest.smmu.report([], to: second)
        let transaction = Transaction(
            streamID: StreamID(1),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(0x1000)
        )
        _ = guest.smmu.explain(transaction)
        _ = guest.smmu.probe(transaction)
        #expect(first.isEmpty)
        #expect(!guest.smmu.performance.countsTransactions)
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(guest.dmaRead(1, 0x1000) == .ok(7))
        #expect(first.take(1) == [0, 0, 0, 3, 0])
        #expect(second.isEmpty)
    }
}
