// Without a configuration cache a small access compares its configuration with memory within its walk: what that
// counts, and what it must not pass over.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Configuration compared with memory")
struct ComparedConfigurationTests {
    /// Walks, descriptors, configuration structures.
    private func counts(_ guest: TestGuest) -> [UInt64] {
        let statistics = Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })
        return ["walks", "descriptor-fetches", "config-fetches"].map { statistics[$0] ?? .max }
    }

    /// How much a read of 8 bytes adds to each, which is to end so.
    private func rise(_ guest: TestGuest, _ stream: UInt32, _ address: UInt64, _ expected: DMAOutcome)
        -> [UInt64]
    {
        let start = counts(guest)
        #expect(guest.dmaRead(stream, address) == expected, "\(address)")
        return zip(counts(guest), start).map { $0 &- $1 }
    }

    private func nested(walkCacheEntries: Int) throws -> (TestGuest, NestedSetup) {
        let guest = try TestGuest.full {
            $0.options.tlbEntries = 0
            $0.options.configurationCacheEntries = 0
            $0.options.walkCacheEntries = walkCacheEntries
        }
        let nested = try NestedSetup(guest, block: 3)
        try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
        try nested.map(0x6000, toPhysical: try guest.page(holding: 2))
        return (guest, nested)
    }

    @Test("each access in one stage fetches STE, CD and the tables, the first as those after it")
    func oneStage() throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = 0
        setup.options.configurationCacheEntries = 0
        let guest = try TestGuest(setup)
        try guest.attachTables(1).map(0x1000, to: try guest.page(holding: 7))
        for _ in 0..<3 {
            #expect(rise(guest, 1, 0x1000, .ok(7)) == [1, 3, 2])
        }
        // Not what the long way fetches once more.
        #expect(rise(guest, 1, 0x2000, .event(0x10)) == [1, 3, 2])
    }

    @Test("each access in two stages walks stage 2 for the CD, too")
    func twoStages() throws {
        let (guest, nested) = try nested(walkCacheEntries: 0)
        _ = nested
        // Stage 2 for the CD; stage 1, and stage 2 for each of its three tables and for what it gives.
        let expected: [UInt64] = [1 + 5, 3 + 15, 2]
        for address in [0x5000, 0x6000, 0x5000] as [UInt64] {
            let value: UInt64 = address == 0x5000 ? 1 : 2
            #expect(rise(guest, 6, address, .ok(value)) == expected)
        }
        // What stage 1 gives is nothing.
        #expect(rise(guest, 6, 0x7000, .event(0x10)) == [1 + 4, 3 + 12, 2])
    }

    @Test("with a walk cache, and with one that a walk fills that comes to nothing")
    func twoStagesByWalkCache() throws {
        let (guest, nested) = try nested(walkCacheEntries: 1024)
        #expect(guest.dmaRead(6, 0x5000) == .ok(1))
        // The CD's page by the last table of stage 2; stage 1's page by its last table; its output likewise.
        let expected: [UInt64] = [3, 3, 2]
        #expect(rise(guest, 6, 0x6000, .ok(2)) == expected)
        #expect(rise(guest, 6, 0x7000, .event(0x10)) == [2, 2, 2])
        // A table that nobody has looked for: stage 2's walk for it, and its descriptor, count once.
        try nested.map(0x40_5000, toPhysical: try guest.page(holding: 3))
        #expect(rise(guest, 6, 0x40_6000, .event(0x10)) == [3, 4, 2])
    }

    @Test("monitors hear of its structures, whether or not they hear of transactions")
    func monitors() throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = 0
        setup.options.configurationCacheEntries = 0
        let guest = try TestGuest(setup)
        try guest.attachTables(1).map(0x1000, to: try guest.page(holding: 7))
        let monitor = RecordingMonitor()
        guest.smmu.report([.configurationAccess, .tableWalkAccess], to: monitor)
        for _ in 0..<3 {
            #expect(guest.dmaRead(1, 0x1000) == .ok(7))
            #expect(monitor.take(1) == [0, 0, 0, 3, 2])
        }
    }

    @Test("a page that the TLB has is not walked because no configuration is cached")
    func answeredByTLB() throws {
        var setup = GuestSetup()
        setup.options.configurationCacheEntries = 0
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(1)
        // Two pages that a port keeps in the same place: it has the first, and the TLB both.
        let pages: [UInt64] = [0x1000, 0x4_1000]
        for page in pages { try tables.map(page, to: try guest.page(holding: page)) }
        for page in pages { #expect(guest.dmaRead(1, page) == .ok(page)) }
        for _ in 0..<3 { #expect(rise(guest, 1, 0x4_1000, .ok(0x4_1000)) == [0, 0, 2]) }
        // Nor does what memory says of it matter then.
        try tables.map(0x4_1000, to: try guest.page(holding: 3))
        #expect(guest.dmaRead(1, 0x4_1000) == .ok(0x4_1000))
    }

    @Test("an STE or CD that changes counts at once, behind both stages, too")
    func changes() throws {
        let (guest, nested) = try nested(walkCacheEntries: 0)
        #expect(guest.dmaRead(6, 0x5000) == .ok(1))
        let context = try #require(guest.contexts[6])
        var words = CDWords(ttb0: nested.stage1.root - NestedSetup.bias)
        words.v = false
        let before = try (0..<8).map { try guest.peek(context + $0 * 8) }
        try guest.poke(context, words.words)
        #expect(guest.dmaRead(6, 0x5000) == .event(0x0A))
        try guest.poke(context, before)
        #expect(guest.dmaRead(6, 0x5000) == .ok(1))
        // Stage 2 has the CD's page somewhere else.
        let page = guest.allocate(4096, alignment: 4096)
        try guest.poke(page + context & 0xFFF, words.words)
        try nested.stage2.map(nested.ipa(context & ~0xFFF), to: page)
        #expect(guest.dmaRead(6, 0x5000) == .event(0x0A))
        try guest.poke(try guest.steAddress(6), STEWords(config: 0).words)
        #expect(guest.dmaRead(6, 0x5000) == .aborted)
    }

    /// A guest with 2-level stream table and no cache of configuration, and stream 0x105 with a page at 0x1000 that
    /// holds 7.
    private func twoLevel() throws -> TestGuest {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(12, split: 8)
        setup.options.tlbEntries = 0
        setup.options.configurationCacheEntries = 0
        let guest = try TestGuest(setup)
        try guest.attachTables(0x105).map(0x1000, to: try guest.page(holding: 7))
        return guest
    }

    @Test(
        "with a 2-level stream table each access fetches L1STD, STE, CD and the tables, the first as those after it"
    )
    func twoLevelTable() throws {
        let guest = try twoLevel()
        for _ in 0..<3 { #expect(rise(guest, 0x105, 0x1000, .ok(7)) == [1, 3, 3]) }
        #expect(rise(guest, 0x105, 0x2000, .event(0x10)) == [1, 3, 3])
        let monitor = RecordingMonitor()
        guest.smmu.report([.configurationAccess, .tableWalkAccess], to: monitor)
        for _ in 0..<2 {
            #expect(guest.dmaRead(0x105, 0x1000) == .ok(7))
            #expect(monitor.take(0x105) == [0, 0, 0, 3, 3])
        }
    }

    @Test("an L1STD that changes counts at once: another array of STEs, a Span too short, none, nobody there")
    func levelOneChanges() throws {
        let guest = try twoLevel()
        let l1 = guest.streamTable + 8
        let before = try guest.peek(l1)
        #expect(guest.dmaRead(0x105, 0x1000) == .ok(7))
        // The same words elsewhere; then what is behind the old pointer does not matter.
        let old = before & ~0x1F
        let copy = guest.allocate(64 << 8, alignment: 64 << 8)
        try guest.poke(copy + 5 * 64, try (0..<8).map { try guest.peek(old + 5 * 64 + $0 * 8) })
        try guest.poke(l1, copy | 9)
        #expect(rise(guest, 0x105, 0x1000, .ok(7)) == [1, 3, 3])
        try guest.poke(old + 5 * 64, STEWords(config: 0).words)
        #expect(rise(guest, 0x105, 0x1000, .ok(7)) == [1, 3, 3])
        try guest.poke(copy + 5 * 64, STEWords(config: 0).words)
        #expect(guest.dmaRead(0x105, 0x1000) == .aborted)
        try guest.poke(old + 5 * 64, STEWords.bypass.words)
        try guest.poke(l1, before)
        #expect(guest.dmaRead(0x105, try guest.page(holding: 3)) == .ok(3))
        // Spans of 4 STEs, and of none: C_BAD_STREAMID.
        for span in [3, 0] as [UInt64] {
            try guest.poke(l1, old | span)
            #expect(rise(guest, 0x105, 0x1000, .event(0x02)) == [0, 0, 1])
        }
        // F_STE_FETCH.
        try guest.poke(l1, 0x10_0000_0000 | 9)
        #expect(guest.dmaRead(0x105, 0x1000) == .event(0x03))
    }
}
