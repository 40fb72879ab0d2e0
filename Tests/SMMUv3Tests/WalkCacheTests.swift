// The walk cache: a table that a driver moves without the right TLBI is still used, and the right one cures it.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

/// A stream whose walk went through a level-3 table that memory no longer has there.
private struct MovedTable {
    static let read: UInt64 = 0x1000
    /// In the same table, not read before it moved.
    static let other: UInt64 = 0x2000
    let guest: TestGuest
    /// The level-2 descriptor that was changed.
    let entry: UInt64

    /// - Parameter entries: How many tables the walk cache holds; nil is the default.
    init(_ entries: Int? = nil) throws {
        guest = try TestGuest.full { $0.options.walkCacheEntries = entries }
        let tables = GuestTables(guest, size: 16)
        try tables.map(Self.read, to: try guest.page(holding: 1))
        try tables.map(Self.other, to: try guest.page(holding: 2))
        try guest.attach(5, CDWords(t0SZ: 16, asid: 10, ttb0: tables.root))
        #expect(guest.dmaRead(5, Self.read) == .ok(1))
        entry = try tables.entry(Self.read, level: 2)
        let table = guest.allocate(4096)
        try guest.poke(table + 16, try guest.page(holding: 3) | Leaf.readWrite | 0b11)
        try guest.poke(entry, table | 0b11)
    }
}

@Suite("Walk cache")
struct WalkCacheTests {
    static let commands: [(name: String, commands: [RawCommand], cures: Bool)] = [
        ("nothing", [], false),
        ("CFGI_ALL", [Raw.cfgiAll], false),
        ("NH_VA, Leaf 1", [Raw.tlbiNHVA(0x2000, asid: 10)], false),
        ("NH_VA", [Raw.tlbiNHVA(0x2000, asid: 10, leaf: false)], true),
        ("NH_VA of another page of the table", [Raw.tlbiNHVA(0x5000, asid: 10, leaf: false)], true),
        ("NH_VA of the last page", [Raw.tlbiNHVA(0x1F_F000, asid: 10, leaf: false)], true),
        ("NH_VA of the page after", [Raw.tlbiNHVA(0x20_0000, asid: 10, leaf: false)], false),
        ("NH_VA of another ASID", [Raw.tlbiNHVA(0x2000, asid: 11, leaf: false)], false),
        ("NH_VAA, Leaf 1", [Raw.tlbiNHVAA(0x2000)], false),
        ("NH_VAA", [Raw.tlbiNHVAA(0x2000, leaf: false)], true),
        ("NH_VAA elsewhere", [Raw.tlbiNHVAA(0x20_0000, leaf: false)], false),
        ("NH_ASID", [Raw.tlbiNHASID(10)], true),
        ("NH_ASID of another", [Raw.tlbiNHASID(11)], false),
        ("NH_ALL", [Raw.tlbiNHAll], true),
        ("NH_ALL of another VMID", [Raw.tlbiNHAll(vmid: 1)], false),
        ("NSNH_ALL", [Raw.tlbiNSNHAll], true),
        ("S12_VMALL", [Raw.tlbiS12VMAll(0)], true),
        ("S12_VMALL of another VMID", [Raw.tlbiS12VMAll(1)], false),
        ("S2_IPA", [RawCommand(low: 0x2A, high: 0x2000)], false),
        ("EL2_ALL", [Raw.tlbiEL2All], false),
        ("range, Leaf 1", [range(0x1000, num: 3, ttl: 0, tg: 1, leaf: true)], false),
        ("range", [range(0x1000, num: 3, ttl: 0, tg: 1)], true),
        ("range with the leaves' level", [range(0x1000, num: 3, ttl: 3, tg: 1)], true),
        ("range of all ASIDs", [range(0x1000, asid: nil, num: 3, ttl: 0, tg: 1)], true),
        ("range of 1 GiB", [range(0, num: 7, scale: 15, ttl: 0, tg: 1)], true),
        ("range after the table", [range(0x20_0000, num: 3, ttl: 0, tg: 1)], false),
        ("range of another granule", [range(0, num: 3, ttl: 0, tg: 2)], false),
    ]

    private static func range(
        _ address: UInt64,
        asid: UInt64? = 10,
        num: UInt64,
        scale: UInt64 = 0,
        ttl: UInt64,
        tg: UInt64,
        leaf: Bool = false
    ) -> RawCommand {
        Raw.tlbiRange(address, asid: asid, num: num, scale: scale, ttl: ttl, tg: tg, leaf: leaf)
    }

    @Test("what each TLBI removes of a table that moved", arguments: commands.indices)
    func movedTable(_ index: Int) throws {
        let (name, commands, cures) = Self.commands[index]
        let moved = try MovedTable()
        try moved.guest.sync()
        try moved.guest.issue(commands + [Raw.sync()])
        #expect(moved.guest.dmaRead(5, MovedTable.other) == .ok(cures ? 3 : 2), "\(name)")
    }

    @Test("without entries, and by default without a TLB, each walk begins at the first table")
    func none() throws {
        let moved = try MovedTable(0)
        #expect(moved.guest.dmaRead(5, MovedTable.other) == .ok(3))
        #expect(moved.guest.smmu.walkCache.residentCount == 0)
        var options = SMMUv3Options()
        #expect(options.effectiveWalkCacheEntries > 0)
        options.tlbEntries = 0
        #expect(options.effectiveWalkCacheEntries == 0)
        options.walkCacheEntries = 7
        #expect(options.effectiveWalkCacheEntries == 7)
    }

    @Test("a page that the table no longer has faults until the table is forgotten")
    func staleFault() throws {
        let moved = try MovedTable()
        // The old table has nothing at 0x3000; the new one has.
        let table = try moved.guest.peek(moved.entry) & ~0xFFF
        try moved.guest.poke(table + 24, try moved.guest.page(holding: 4) | Leaf.readWrite | 0b11)
        #expect(moved.guest.dmaRead(5, 0x3000) == .fTranslation)
        try moved.guest.sync(Raw.tlbiNHVA(0x3000, asid: 10, leaf: false))
        #expect(moved.guest.dmaRead(5, 0x3000) == .ok(4))
    }

    @Test("hierarchical attributes are those of the walk that found the table")
    func hierarchicalAttributes() throws {
        let moved = try MovedTable()
        let table = try moved.guest.peek(moved.entry) & ~0xFFF
        // APTable: no writes below.
        try moved.guest.poke(moved.entry, table | 0b10 << 61 | 0b11)
        #expect(moved.guest.dmaWrite(5, MovedTable.other) == .ok(0))
        try moved.guest.sync(Raw.tlbiNHASID(10))
        #expect(moved.guest.dmaWrite(5, MovedTable.other) == .fPermission)
        // Kept with the table: the next page's walk begins at it.
        try moved.guest.poke(table + 24, try moved.guest.page(holding: 4) | Leaf.readWrite | 0b11)
        #expect(moved.guest.dmaRead(5, 0x3000) == .ok(4))
        #expect(moved.guest.dmaWrite(5, 0x3000) == .fPermission)
    }

    @Test("an explanation says which table is stale, and with which TLBI")
    func explanation() throws {
        let moved = try MovedTable()
        let transaction = ExplainTests.transaction(MovedTable.other)
        let staleness = moved.guest.smmu.explain(transaction).staleness
        #expect(staleness.count == 1)
        #expect(staleness.first?.contains("level-3 table") == true)
        #expect(staleness.first?.contains("CMD_TLBI_NH_VA without Leaf") == true)
        try moved.guest.sync(Raw.tlbiNHVA(MovedTable.other, asid: 10, leaf: false))
        #expect(moved.guest.smmu.explain(transaction).staleness == [])
        #expect(moved.guest.dmaRead(5, MovedTable.other) == .ok(3))
        #expect(moved.guest.smmu.explain(transaction).staleness == [])
        // A page of the same table that no walk has looked for.
        #expect(moved.guest.smmu.explain(ExplainTests.transaction(0x7000)).staleness == [])
    }

    @Test("a walk that finds its last table reads one descriptor")
    func fetches() throws {
        let guest = try TestGuest.full()
        let tables = GuestTables(guest, size: 16)
        for page in 1...3 as ClosedRange<UInt64> {
            try tables.map(page << 12, to: try guest.page(holding: page))
        }
        try guest.attach(5, CDWords(t0SZ: 16, asid: 10, ttb0: tables.root))
        func counts() -> [UInt64] {
            guest.smmu.statistics.filter { ["walks", "descriptor-fetches"].contains($0.name) }.map(\.value)
        }
        let start = counts()
        #expect(guest.dmaRead(5, 0x1000) == .ok(1))
        #expect(counts() == [start[0] + 1, start[1] + 4])
        #expect(guest.dmaRead(5, 0x2000) == .ok(2))
        #expect(counts() == [start[0] + 2, start[1] + 5])
        try guest.sync(Raw.tlbiNHASID(10))
        #expect(guest.dmaRead(5, 0x3000) == .ok(3))
        #expect(counts() == [start[0] + 3, start[1] + 9])
    }

    @Test("without a walk cache a walk reads a descriptor for each level down to the page or block")
    func fetchesWithoutWalkCache() throws {
        for (size, level) in [(16, 3), (16, 2), (16, 1), (25, 3), (25, 2), (25, 1), (34, 3), (34, 2)]
            as [(UInt64, Int)]
        {
            let guest = try TestGuest.full {
                $0.options.tlbEntries = 0
                $0.options.walkCacheEntries = 0
            }
            let tables = GuestTables(guest, size: size)
            // Far from what the guest has allocated.
            let address: UInt64 = 0x300_2000
            try guest.poke(TestGuest.ram + address, 7)
            let base = address & ~((1 << TestGranule.kib4.levelBits(level)) - 1)
            try tables.map(base, to: TestGuest.ram + base, level: level)
            try guest.attach(5, CDWords(t0SZ: size, asid: 10, ttb0: tables.root))
            func counts() -> [UInt64] {
                guest.smmu.statistics.filter { ["walks", "descriptor-fetches"].contains($0.name) }.map(
                    \.value
                )
            }
            let start = counts()
            #expect(guest.dmaRead(5, address) == .ok(7), "\(size) \(level)")
            #expect(
                counts() == [start[0] + 1, start[1] + UInt64(level - tables.startLevel + 1)],
                "\(size) \(level)"
            )
        }
    }

    @Test("without a walk cache a walk in two stages reads each table of both, for each table of the first")
    func fetchesWithoutWalkCacheNested() throws {
        for (block, expected) in [(3, 15), (2, 11)] as [(Int, UInt64)] {
            let guest = try TestGuest.full {
                $0.options.tlbEntries = 0
                $0.options.walkCacheEntries = 0
            }
            let nested = try NestedSetup(guest, block: block)
            try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
            // The CD is cached from here on.
            #expect(guest.dmaRead(6, 0x5000) == .ok(1))
            func counts() -> [UInt64] {
                guest.smmu.statistics.filter { ["walks", "descriptor-fetches"].contains($0.name) }.map(
                    \.value
                )
            }
            try nested.map(0x6000, toPhysical: try guest.page(holding: 2))
            let start = counts()
            #expect(guest.dmaRead(6, 0x6000) == .ok(2))
            // Stage 1, and stage 2 for each of its three tables and for what it gives.
            #expect(counts() == [start[0] + 5, start[1] + expected], "\(block)")
        }
    }

    @Test(
        "the same where the first table of stage 1 is a part of a page, and with blocks",
        arguments: [2, 3]
    )
    func smallFirstTableNested(_ block: Int) throws {
        for entries in [0, nil] as [Int?] {
            let guest = try TestGuest.full {
                $0.options.tlbEntries = 0
                $0.options.configurationCacheEntries = 0
                $0.options.walkCacheEntries = entries
            }
            _ = guest.allocate(4096, alignment: 4096)
            _ = guest.allocate(0x340, alignment: 64)
            // Two entries of 1 GiB.
            let stage1 = StageTables(
                guest,
                granule: 12,
                startLevel: 1,
                inputBits: 31,
                bias: NestedSetup.bias
            )
            try #require(stage1.root & 0xFFF >= 0x340)
            // Not what the page begins with.
            for index in 0...1 as ClosedRange<UInt64> {
                try guest.poke(stage1.root & ~0xFFF + index * 8, NestedSetup.ipaOfRAM | Leaf.readWrite | 0b01)
            }
            let nested = try NestedSetup(guest, block: block) { _ in
            } cd: {
                $0.t0SZ = 33
                $0.ttb0 = stage1.root - NestedSetup.bias
            }
            for upper in [0, 1 << 30] as [UInt64] {
                let page = try guest.page(holding: 7 + upper)
                try stage1.map(upper + 0x5000, to: nested.ipa(page), Leaf.readWrite)
                try stage1.map(upper + 0x20_0000, to: NestedSetup.ipaOfRAM, level: 2, Leaf.readWrite)
                for _ in 0..<2 {
                    #expect(guest.dmaRead(6, upper + 0x5000) == .ok(7 + upper))
                    let inBlock = upper + 0x20_0000 + (page - TestGuest.ram) % 0x20_0000
                    let base = TestGuest.ram + (page - TestGuest.ram) % 0x20_0000
                    #expect(guest.dmaRead(6, inBlock) == .ok(try guest.peek(base)))
                }
            }
            #expect(guest.dmaRead(6, 1 << 31) == .event(0x10))
        }
    }

    // MARK: Stage 2

    @Test("where stage 2 moves a table of stage 1, both TLBIs are needed")
    func nested() throws {
        for (commands, cures) in [
            ([], false),
            ([RawCommand(low: 0x2A | 7 << 32, high: 0)], false),
            ([Raw.tlbiNHAll(vmid: 7)], false),
            ([Raw.tlbiNHAll(vmid: 8), Raw.tlbiS12VMAll(8)], false),
            ([Raw.tlbiS12VMAll(7)], true),
        ] as [([RawCommand], Bool)] {
            let guest = try TestGuest.full()
            let nested = try NestedSetup(guest, block: 3)
            try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
            try nested.map(0x6000, toPhysical: try guest.page(holding: 2))
            #expect(guest.dmaRead(6, 0x5000) == .ok(1))
            // Another page takes the place of stage 1's level-3 table.
            let table = try nested.stage1.entry(0x6000) & ~0xFFF
            let copy = guest.allocate(4096)
            let physical = try guest.page(holding: 3)
            try guest.poke(copy + 48, nested.ipa(physical) | Leaf.readWrite | 0b11)
            try nested.stage2.map(nested.ipa(table), to: copy)
            try guest.issue(commands + [Raw.sync()])
            #expect(guest.dmaRead(6, 0x6000) == .ok(cures ? 3 : 2), "\(commands)")
        }
    }

    @Test("the TLBIs of both stages, each by address, cure it too")
    func nestedByAddress() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
        try nested.map(0x6000, toPhysical: try guest.page(holding: 2))
        #expect(guest.dmaRead(6, 0x5000) == .ok(1))
        let table = try nested.stage1.entry(0x6000) & ~0xFFF
        let copy = guest.allocate(4096)
        try guest.poke(copy + 48, nested.ipa(try guest.page(holding: 3)) | Leaf.readWrite | 0b11)
        try nested.stage2.map(nested.ipa(table), to: copy)
        try guest.sync(Raw.tlbiS2IPA(vmid: 7, nested.ipa(table)))
        #expect(guest.dmaRead(6, 0x6000) == .ok(2), "what both stages gave is left")
        try guest.sync(RawCommand(low: 0x12 | 7 << 32 | 1 << 48, high: 0x6000))
        #expect(guest.dmaRead(6, 0x6000) == .ok(3))
    }

    @Test("what each TLBI removes of a table of stage 2 that moved")
    func stage2() throws {
        for (commands, cures) in [
            ([], false),
            ([Raw.tlbiS2IPA(vmid: 7, 0x9000_2000)], false),
            ([RawCommand(low: 0x2A | 7 << 32, high: 0x9000_2000)], true),
            ([RawCommand(low: 0x2A | 7 << 32, high: 0x9020_0000)], false),
            ([RawCommand(low: 0x2A | 8 << 32, high: 0x9000_2000)], false),
            ([Raw.tlbiNHAll(vmid: 7)], false),
            ([Raw.tlbiS12VMAll(8)], false),
            ([Raw.tlbiS12VMAll(7)], true),
            ([Raw.tlbiNSNHAll], true),
        ] as [([RawCommand], Bool)] {
            let guest = try TestGuest.full()
            let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
            try tables.map(0x9000_1000, to: try guest.page(holding: 1))
            try tables.map(0x9000_2000, to: try guest.page(holding: 2))
            try guest.setSTE(4, Stage2Tests.ste(Stage2Words(ttb: tables.root), vmid: 7))
            #expect(guest.dmaRead(4, 0x9000_1000) == .ok(1))
            let copy = guest.allocate(4096)
            try guest.poke(copy + 16, try guest.page(holding: 3) | Leaf2.readWrite | 0b11)
            try guest.poke(try tables.entry(0x9000_1000, level: 2), copy | 0b11)
            try guest.issue(commands + [Raw.sync()])
            #expect(guest.dmaRead(4, 0x9000_2000) == .ok(cures ? 3 : 2), "\(commands)")
        }
    }

    // MARK: The cache by itself

    private static let tag = WalkCache.Tag(
        RegimeTag(regime: .nsEL1, vmid: 3, asid: 9, aset: false),
        isNested: false
    )

    private func lookUp(_ cache: WalkCache, _ address: UInt64) -> WalkCache.Table? {
        cache.lookUp(address, Self.tag, smallest: 21, stride: 9, largest: 39)
    }

    @Test("what an invalidation has overtaken is not kept")
    func overtaken() {
        let generation = InvalidationGeneration()
        let cache = WalkCache(entryCount: 16, generation: generation)
        let table = WalkCache.Table(address: 0x5000, log2Bytes: 21, hierarchical: 0)
        // Of configuration, or of tables alone, before the translations' own.
        for invalidate in [
            { generation.advance() }, { cache.invalidate(.vmid([.nsEL1], 7)) },
            { generation.advanceTranslations() },
        ] as [() -> Void] {
            let before = generation.stamp()
            invalidate()
            cache.insert(table, for: 0x1234_5678, Self.tag, walkedAt: before)
            #expect(lookUp(cache, 0x1234_5678) == nil)
        }
        cache.insert(table, for: 0x1234_5678, Self.tag, walkedAt: generation.stamp())
        #expect(lookUp(cache, 0x1234_5678) == table)
        #expect(cache.residentCount == 1)
    }

    @Test("the smallest table wins, and the larger ones are behind it")
    func nesting() {
        let generation = InvalidationGeneration()
        let cache = WalkCache(entryCount: 64, generation: generation)
        for size in [39, 30, 21] as [UInt64] {
            let table = WalkCache.Table(
                address: size << 12,
                log2Bytes: size,
                hierarchical: (size & 0xF) << 59
            )
            cache.insert(table, for: 0x7F_FFFF_F000, Self.tag, walkedAt: generation.stamp())
            #expect(lookUp(cache, 0x7F_FFFF_FFFF) == table)
        }
        #expect(lookUp(cache, 0x7F_FFDF_FFFF)?.log2Bytes == 30)
        #expect(lookUp(cache, 0x7F_BFFF_FFFF)?.log2Bytes == 39)
        #expect(lookUp(cache, 0xFF_FFFF_FFFF) == nil)
        let scope = TranslationCache.AddressScope(first: 0x7F_FFFF_F000, last: 0x7F_FFFF_FFFF)
        cache.invalidate(.address(.nsEL1, vmid: 3, asid: 9, scope))
        #expect(cache.residentCount == 0, "all levels of the address")
    }

    @Test("VMIDs that differ in ignored bits are covered")
    func wildcards() {
        let generation = InvalidationGeneration()
        let cache = WalkCache(entryCount: 64, generation: generation)
        let table = WalkCache.Table(address: 0x5000, log2Bytes: 21, hierarchical: 0)
        let scope = TranslationCache.AddressScope(first: 0, last: 0xFFF)
        for (wildcard, isLeft) in [(0, true), (1, true), (3, false)] as [(UInt16, Bool)] {
            cache.insert(table, for: 0, Self.tag, walkedAt: generation.stamp())
            cache.invalidate(
                .address(.nsEL1, vmid: 0, asid: 9, scope),
                ignoringVMIDBits: wildcard
            )
            #expect((lookUp(cache, 0) != nil) == isLeft)
        }
    }

    @Test("threads that fill, look up and invalidate never see a table of another address, or one removed")
    func threads() {
        let generation = InvalidationGeneration()
        // Few entries: everybody meets in them.
        let cache = WalkCache(entryCount: 4, generation: generation)
        let stop = Flag()
        let wrong = Count()
        let hits = Count()
        @Sendable func table(_ page: UInt64) -> WalkCache.Table {
            WalkCache.Table(address: page << 21, log2Bytes: 21, hierarchical: (page & 0xF) << 59)
        }
        let users = (0..<2 as Range<UInt64>).map { seed in
            TestThread {
                var random = SplitMix(seed: seed)
                while !stop.isSet {
                    let page = random.next() % 16
                    if let found = cache.lookUp(
                        page << 21,
                        Self.tag,
                        smallest: 21,
                        stride: 9,
                        largest: 39
                    ) {
                        hits.increment()
                        if found != table(page) { wrong.increment() }
                    } else {
                        cache.insert(
                            table(page),
                            for: page << 21,
                            Self.tag,
                            walkedAt: generation.stamp()
                        )
                    }
                }
            }
        }
        var random = SplitMix(seed: 99)
        var rounds = 0
        while hits.current < 2000 || rounds < 2000 {
            let page = random.next() % 16
            // What was read before the invalidation may not come back after it.
            let before = generation.stamp()
            let scope = TranslationCache.AddressScope(first: page << 21, last: page << 21 | 0xFFF)
            cache.invalidate(.address(.nsEL1, vmid: 3, asid: 9, scope))
            let stale = WalkCache.Table(address: 0xBAD_0000, log2Bytes: 21, hierarchical: 0)
            cache.insert(stale, for: page << 21, Self.tag, walkedAt: before)
            rounds += 1
        }
        stop.set()
        for user in users { user.join() }
        #expect(wrong.current == 0)
    }

    // MARK: Against walks from the first table

    @Test(
        "a driver that invalidates what it has to gets the same answers as without caches",
        arguments: Array(1...6 as ClosedRange<UInt64>)
    )
    func rightDriver(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        // No TLB, so that each look-up walks; few entries, so that they are replaced.
        let guest = try TestGuest.full {
            $0.options.tlbEntries = 0
            $0.options.walkCacheEntries = seed % 2 == 0 ? 8 : 256
        }
        let tables = GuestTables(guest, size: 16)
        let bases: [UInt64] = [0, 0x20_0000, 0x4000_0000, 0x80_0000_0000, 0x7FFF_FFE0_0000, 0x4020_0000]
        let pages = try (1...16 as ClosedRange<UInt64>).map { try guest.page(holding: $0) }
        try guest.attach(5, CDWords(t0SZ: 16, asid: 10, ttb0: tables.root))
        func address() -> UInt64 {
            bases[Int(random.next() % UInt64(bases.count))] + (random.next() % 4) << 12
        }
        for _ in 0..<400 {
            let target = address()
            switch random.next() % 8 {
            case 0...3:
                // Another leaf, or none: the tables stay.
                let leaf = try tables.entry(target)
                let page = pages[Int(random.next() % UInt64(pages.count))]
                let isMapped = random.next() % 4 != 0
                try guest.poke(leaf, isMapped ? page | Leaf.readWrite | 0b11 : 0)
                try guest.sync(Raw.tlbiNHVA(target, asid: 10))
            case 4:
                // A table is taken away at some level.
                let level = Int(random.next() % 3)
                try guest.poke(try tables.entry(target, level: level), 0)
                try guest.sync(Raw.tlbiNHVA(target, asid: 10, leaf: false))
                if level < 2 { try guest.sync(Raw.tlbiNHASID(10)) }
            case 5:
                // A table gets another place, and what it says of those below.
                let entry = try tables.entry(target, level: 2)
                try guest.poke(entry, guest.allocate(4096) | (random.next() % 2) << 62 | 0b11)
                try guest.sync(Raw.tlbiNHVAA(target, leaf: false))
            default:
                break
            }
            for _ in 0..<4 {
                let address = address()
                let isWrite = random.next() % 2 == 0
                let transaction = ExplainTests.transaction(address, isWrite ? .write : .read)
                let expected = guest.smmu.probe(transaction)
                var observer = NoObserver()
                let answer: Explanation.Outcome
                do {
                    answer = .translated(
                        try guest.smmu.translate(
                            transaction,
                            guest.smmu.currentControls(),
                            .cached,
                            &observer
                        )
                    )
                } catch {
                    answer = .fault(error)
                }
                guard answer == expected else {
                    Issue.record(
                        "seed \(seed) address \(String(address, radix: 16)): \(answer), not \(expected)"
                    )
                    return
                }
            }
        }
        #expect(guest.smmu.walkCache.residentCount > 0)
    }
}
