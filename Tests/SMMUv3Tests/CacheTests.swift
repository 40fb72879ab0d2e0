// The caches: a missing invalidation shows, the right command cures it, another one does not.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

/// Translations in several ASIDs, all cached and then unmapped in memory.
private struct StaleSet {
    /// The entries by name: which stream reaches them, and where.
    static let entries: [(name: Character, stream: UInt32, address: UInt64)] = [
        ("A", 1, 0x1000),  // ASID 10
        ("B", 2, 0x1000),  // ASID 20
        ("C", 1, 0x2000),  // ASID 10
        ("G", 1, 0x8000),  // ASID 10, global
        ("K", 1, 0x28_0000),  // ASID 10, in the 2 MiB block from 0x20_0000 on
        ("M", 1, 0x4000_0000),  // ASID 10, a 1 GiB block
        ("U", 1, 0xFFFF_FFFF_FFFF_1000),  // ASID 10, upper half
    ]
    let guest: TestGuest

    init(_ setup: GuestSetup = GuestSetup()) throws {
        guest = try TestGuest(setup)
        let lower = GuestTables(guest)
        let upper = GuestTables(guest)
        let other = GuestTables(guest)
        let page = try guest.page(holding: 1)
        try lower.map(0x1000, to: page)
        try lower.map(0x2000, to: page)
        try lower.map(0x8000, to: page, Leaf.global)
        try lower.map(0x20_0000, to: TestGuest.ram, level: 2)
        try lower.map(0x4000_0000, to: TestGuest.ram, level: 1)
        try upper.map(0xFFFF_FFFF_FFFF_1000, to: page)
        try other.map(0x1000, to: page)
        try guest.attach(1, CDWords(epd1: false, asid: 10, ttb0: lower.root, ttb1: upper.root))
        try guest.attach(2, CDWords(asid: 20, ttb0: other.root))
        for entry in Self.entries {
            let outcome = guest.dmaRead(entry.stream, entry.address)
            guard case .ok = outcome else {
                Issue.record("\(entry.name): \(outcome)")
                continue
            }
        }
        try lower.unmap(0x1000)
        try lower.unmap(0x2000)
        try lower.unmap(0x8000)
        try lower.unmap(0x20_0000, level: 2)
        try lower.unmap(0x4000_0000, level: 1)
        try upper.unmap(0xFFFF_FFFF_FFFF_1000)
        try other.unmap(0x1000)
    }

    /// The names of the entries that no longer translate.
    func cured() -> String {
        String(
            Self.entries.filter { entry in
                guest.dmaRead(entry.stream, entry.address) == .fTranslation
            }.map(\.name)
        )
    }
}

@Suite("Caches")
struct CacheTests {
    static let translationCases: [(String, [RawCommand], String)] = [
        ("nothing", [], ""),
        ("CMD_SYNC", [], ""),
        ("CFGI_ALL", [Raw.cfgiAll], ""),
        ("CFGI_STE and CFGI_CD", [Raw.cfgiSTE(1), Raw.cfgiCD(1), Raw.cfgiCDAll(1)], ""),
        ("NH_VA", [Raw.tlbiNHVA(0x1000, asid: 10)], "A"),
        ("NH_VA, Leaf 0", [Raw.tlbiNHVA(0x1000, asid: 10, leaf: false)], "A"),
        ("NH_VA of the other ASID", [Raw.tlbiNHVA(0x1000, asid: 20)], "B"),
        ("NH_VA of an ASID that nobody has", [Raw.tlbiNHVA(0x1000, asid: 30)], ""),
        ("NH_VA of another page", [Raw.tlbiNHVA(0x3000, asid: 10)], ""),
        ("NH_VA of the page before", [Raw.tlbiNHVA(0, asid: 10)], ""),
        ("NH_VAA", [Raw.tlbiNHVAA(0x1000)], "AB"),
        ("NH_VAA of another page", [Raw.tlbiNHVAA(0x9000)], ""),
        ("NH_VA of a global page, whatever the ASID", [Raw.tlbiNHVA(0x8000, asid: 99)], "G"),
        ("NH_VAA of a global page", [Raw.tlbiNHVAA(0x8000)], "G"),
        ("NH_ASID spares global pages", [Raw.tlbiNHASID(10)], "ACKMU"),
        ("NH_ASID of the other", [Raw.tlbiNHASID(20)], "B"),
        ("NH_ASID of nobody", [Raw.tlbiNHASID(0x110A)], ""),
        ("NH_ALL", [Raw.tlbiNHAll], "ABCGKMU"),
        ("NSNH_ALL", [Raw.tlbiNSNHAll], "ABCGKMU"),
        ("the first page of a block", [Raw.tlbiNHVA(0x20_0000, asid: 10)], "K"),
        ("the last page of a block", [Raw.tlbiNHVA(0x3F_F000, asid: 10)], "K"),
        ("any page of a block", [Raw.tlbiNHVAA(0x2A_B000)], "K"),
        ("the page before a block", [Raw.tlbiNHVA(0x1F_F000, asid: 10)], ""),
        ("the page after a block", [Raw.tlbiNHVA(0x40_0000, asid: 10)], ""),
        ("any page of a 1 GiB block", [Raw.tlbiNHVA(0x7FFF_F000, asid: 10)], "M"),
        ("the page after a 1 GiB block", [Raw.tlbiNHVA(0x8000_0000, asid: 10)], ""),
        ("the upper half", [Raw.tlbiNHVA(0xFFFF_FFFF_FFFF_1000, asid: 10)], "U"),
        ("the upper half of another ASID", [Raw.tlbiNHVA(0xFFFF_FFFF_FFFF_1000, asid: 20)], ""),
        ("range of 2 pages", [Raw.tlbiRange(0x1000, asid: 10, num: 1, scale: 0, ttl: 0, tg: 1)], "AC"),
        ("range of 2 pages, TTL 3", [Raw.tlbiRange(0x1000, asid: 10, num: 1, scale: 0, ttl: 3, tg: 1)], "AC"),
        ("range of 1 page, TTL 3", [Raw.tlbiRange(0x1000, asid: 10, num: 0, scale: 0, ttl: 3, tg: 1)], "A"),
        (
            "range of 1 page, SCALE 1", [Raw.tlbiRange(0x1000, asid: 10, num: 0, scale: 1, ttl: 0, tg: 1)],
            "AC"
        ),
        ("range, all ASIDs", [Raw.tlbiRange(0x1000, asid: nil, num: 1, scale: 0, ttl: 0, tg: 1)], "ABC"),
        ("range of 8 pages", [Raw.tlbiRange(0x1000, asid: 10, num: 7, scale: 0, ttl: 0, tg: 1)], "ACG"),
        ("range of 7 pages", [Raw.tlbiRange(0x1000, asid: 10, num: 6, scale: 0, ttl: 0, tg: 1)], "AC"),
        ("range of 4 MiB", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 5, ttl: 0, tg: 1)], "ACGK"),
        ("range of 4 MiB, TTL 3", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 5, ttl: 3, tg: 1)], "ACG"),
        ("range of 4 MiB, TTL 2", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 5, ttl: 2, tg: 1)], "K"),
        ("range of 4 GiB, TTL 1", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 15, ttl: 1, tg: 1)], "M"),
        ("range of 4 GiB", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 15, ttl: 0, tg: 1)], "ACGKM"),
        (
            "range of everything below", [Raw.tlbiRange(0, asid: nil, num: 31, scale: 31, ttl: 0, tg: 1)],
            "ABCGKM"
        ),
        (
            "range to the top",
            [
                Raw.tlbiRange(0xFFFF_FFFF_FFFF_1000, asid: 10, num: 31, scale: 31, ttl: 0, tg: 1)
            ], "U"
        ),
        ("range of another granule", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 5, ttl: 0, tg: 2)], ""),
        ("range of another granule", [Raw.tlbiRange(0, asid: 10, num: 31, scale: 5, ttl: 0, tg: 3)], ""),
        (
            "range with TG 0 is one address",
            [Raw.tlbiRange(0x1000, asid: 10, num: 31, scale: 5, ttl: 2, tg: 0)], "A"
        ),
    ]

    @Test("TLB invalidations are exact", arguments: translationCases.indices, [4096, 16])
    func translationInvalidation(_ index: Int, _ tlbEntries: Int) throws {
        let (name, commands, expected) = Self.translationCases[index]
        var setup = GuestSetup()
        setup.options.tlbEntries = tlbEntries
        let stale = try StaleSet(setup)
        if name != "nothing" { try stale.guest.issue(commands + [Raw.sync()]) }
        // In 16 entries something may have been evicted: then too much is cured, and never too little.
        let cured = stale.cured()
        if tlbEntries == 4096 {
            #expect(cured == expected, "\(name)")
        } else {
            #expect(Set(expected).isSubset(of: Set(cured)), "\(name)")
        }
        #expect(try stale.guest.activeErrors == 0)
    }

    @Test("without a TLB nothing is stale, not in the ports either")
    func withoutTLB() throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = 0
        #expect(try StaleSet(setup).cured() == "ABCGKMU")
    }

    /// Ranges: granule, base, NUM, SCALE.
    static func ranges() -> [(TestGranule, UInt64, UInt64, UInt64)] {
        var random = SplitMix(seed: 7)
        var cases: [(TestGranule, UInt64, UInt64, UInt64)] = []
        for granule in TestGranule.all {
            for num in [0, 1, 2, 30, 31] as [UInt64] { cases.append((granule, 0x10 << granule.bits, num, 1)) }
            for scale in [0, 1, 4, 5, 9, 14, 19] as [UInt64] {
                cases.append((granule, 0x3 << granule.bits, 1, scale))
            }
            for _ in 0..<12 {
                let base = (random.next() & 0xFFFF_FFFF) << granule.bits & 0x3FFF_FFFF_FFFF
                cases.append((granule, base, random.next() & 31, random.next() % 16))
            }
        }
        return cases
    }

    @Test("a range covers (NUM + 1) * 2^SCALE granules: the first and the last, and not their neighbours")
    func rangeEdges() throws {
        for (granule, base, num, scale) in Self.ranges() {
            guard num > 0 || scale > 0 else { continue }
            let guest = try TestGuest()
            let tables = try guest.attachTables(1, granule, size: 16)
            let bytes = ((num + 1) << scale) << granule.bits
            let inside = Set([
                base, base + bytes - granule.pageBytes, base + (bytes / 2) & ~(granule.pageBytes - 1),
            ])
            let outside = [base &- granule.pageBytes, base + bytes].filter { $0 < 1 << 48 }
            let page = try guest.page(holding: 3, granule.pageBytes)
            for address in inside.union(outside) {
                try tables.map(address, to: page)
                #expect(guest.dmaRead(1, address) == .ok(3))
                try tables.unmap(address)
            }
            try guest.sync(Raw.tlbiRange(base, asid: 1, num: num, scale: scale, ttl: 0, tg: granule.tlbi))
            for address in inside {
                #expect(guest.dmaRead(1, address) == .fTranslation, "\(granule) \(num) \(scale)")
            }
            for address in outside {
                #expect(guest.dmaRead(1, address) == .ok(3), "\(granule) \(num) \(scale)")
            }
        }
    }

    @Test(
        "an unmap split into ranges as Linux splits it leaves nothing",
        arguments: [1, 2, 31, 32, 33, 511, 1023, 1025]
    )
    func linuxRanges(_ pages: UInt64) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 3)
        let base: UInt64 = 0x123_4000
        for index in 0...pages {
            try tables.map(base + index << 12, to: page)
            #expect(guest.dmaRead(1, base + index << 12) == .ok(3))
            try tables.unmap(base + index << 12)
        }
        var remaining = pages
        var address = base
        var commands: [RawCommand] = []
        while remaining > 0 {
            let scale = UInt64(remaining.trailingZeroBitCount)
            let count = (remaining >> scale) & 31
            commands.append(Raw.tlbiRange(address, asid: 1, num: count - 1, scale: scale, ttl: 3, tg: 1))
            address += count << (scale + 12)
            remaining -= count << scale
        }
        if pages == 1023 { #expect(commands.count == 2) }
        try guest.issue(commands + [Raw.sync()])
        for index in 0..<pages { #expect(guest.dmaRead(1, base + index << 12) == .fTranslation) }
        #expect(guest.dmaRead(1, base + pages << 12) == .ok(3), "the page after it")
    }

    // MARK: What entries answer for

    @Test("global entries answer for every ASID of their set; ASET keeps the sets apart")
    func globalEntries() throws {
        let guest = try TestGuest()
        for (stream, asid, aset) in [(1, 10, false), (2, 20, false), (3, 10, true), (4, 10, false)]
            as [(UInt64, UInt64, Bool)]
        {
            let tables = try guest.attachTables(stream, asid: asid) { $0.aset = aset }
            try tables.map(0x8000, to: try guest.page(holding: stream), Leaf.global)
            try tables.map(0x9000, to: try guest.page(holding: 0x10 + stream))
        }
        #expect(guest.dmaRead(1, 0x8000) == .ok(1))
        #expect(guest.dmaRead(2, 0x8000) == .ok(1), "another ASID hits the global entry")
        #expect(guest.dmaRead(3, 0x8000) == .ok(3), "another ASET does not")
        #expect(guest.dmaRead(1, 0x9000) == .ok(0x11))
        #expect(guest.dmaRead(2, 0x9000) == .ok(0x12))
        #expect(guest.dmaRead(3, 0x9000) == .ok(0x11), "for an entry with an ASID the ASET does not matter")
        #expect(guest.dmaRead(4, 0x9000) == .ok(0x11), "the key is not the StreamID")
        // By command ASET never matters.
        try guest.sync(Raw.tlbiNHVA(0x8000, asid: 77))
        #expect(guest.dmaRead(2, 0x8000) == .ok(2))
        #expect(guest.dmaRead(3, 0x8000) == .ok(3))
    }

    @Test("faults are never remembered: a new mapping needs no invalidation")
    func faultsAreNotCached() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1) { $0.ips = 2 }
        let page = try guest.page(holding: 6)
        for (flags, output, fault) in [
            (Leaf.readWrite, 1 << 40, 0x11), (Leaf.unprivileged, page, 0x12),
        ] as [(UInt64, UInt64, UInt8)] {
            #expect(guest.dmaRead(1, 0x1000) == .fTranslation)
            try tables.map(0x1000, to: output, flags)
            #expect(guest.dmaRead(1, 0x1000) == .event(fault))
            try tables.map(0x1000, to: page)
            #expect(guest.dmaRead(1, 0x1000) == .ok(6))
            try tables.unmap(0x1000)
            try guest.sync(Raw.tlbiNHAll)
        }
    }

    @Test("a permission fault may come from a cached entry, and a grant shows after the TLBI")
    func permissionsAreCached() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 6)
        try tables.map(0x1000, to: page, Leaf.readWrite | Leaf.readOnly)
        #expect(guest.dmaRead(1, 0x1000) == .ok(6))
        try tables.map(0x1000, to: page)
        #expect(guest.dmaWrite(1, 0x1000, 7) == .fPermission)
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        #expect(guest.dmaWrite(1, 0x1000, 7) == .ok(0))
        // And the other way round: a right that was taken away is used until the TLBI.
        try tables.map(0x1000, to: page, Leaf.readWrite | Leaf.readOnly)
        #expect(guest.dmaWrite(1, 0x1000, 8) == .ok(0))
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        #expect(guest.dmaWrite(1, 0x1000, 9) == .fPermission)
        #expect(try guest.peek(page) == 8)
    }

    @Test(
        "a block split into pages under a cached block: the old or the new translation, and one TLBI ends the old"
    )
    func blockSplit() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        try tables.map(0x20_0000, to: TestGuest.ram, level: 2)
        #expect(guest.dmaRead(1, 0x20_0000) != .fTranslation)
        try tables.unmap(0x20_0000, level: 2)
        try tables.map(0x20_1000, to: try guest.page(holding: 5))
        #expect(guest.dmaRead(1, 0x20_1000) != .ok(5), "the block answers still")
        try guest.sync(Raw.tlbiNHVA(0x20_5000, asid: 1))
        #expect(guest.dmaRead(1, 0x20_1000) == .ok(5))
        #expect(guest.dmaRead(1, 0x20_0000) == .fTranslation)
    }

    @Test("entries leave when there is no room, and then memory decides")
    func eviction() throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = 4
        setup.options.configurationCacheEntries = 1
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(1)
        try guest.attach(2, CDWords(asid: 2, ttb0: tables.root))
        let page = try guest.page(holding: 5)
        for index in 0..<64 as Range<UInt64> {
            try tables.map(0x1000 * index, to: page)
            #expect(guest.dmaRead(1, 0x1000 * index) == .ok(5))
            try tables.unmap(0x1000 * index)
        }
        let statistics = Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })
        #expect(statistics["tlb-resident"] == 4)
        #expect(statistics["tlb-evictions"] == 60)
        #expect(statistics["tlb-fills"] == 64)
        #expect(statistics["config-resident-stes"] == 1)
        // A new port has no lookaside of its own: four of the 64 pages still answer.
        let port = guest.smmu.makePort(for: StreamID(1))
        let answers = (0..<64 as Range<UInt64>).filter { port.read64(at: 0x1000 * $0) == .ok(5) }
        #expect(answers == [60, 61, 62, 63])
        // One STE at a time: stream 2 drives stream 1's out, which is then read from memory again.
        try guest.poke(try guest.steAddress(1), STEWords(config: 0).words)
        _ = guest.dmaRead(2, 0)
        #expect(guest.smmu.makePort(for: StreamID(1)).read64(at: 0) == .aborted)
    }

    // MARK: Configuration

    static let streamCases: [(String, [RawCommand], Bool)] = [
        ("nothing", [], false),
        ("TLBI", [Raw.tlbiNSNHAll, Raw.tlbiNHAll, Raw.tlbiNHASID(1)], false),
        ("CFGI_STE", [Raw.cfgiSTE(5)], true),
        ("CFGI_STE, Leaf 0", [Raw.cfgiSTE(5, leaf: false)], true),
        ("CFGI_STE of others", [Raw.cfgiSTE(4), Raw.cfgiSTE(6), Raw.cfgiSTE(0x10005)], false),
        ("CFGI_CD and CFGI_CD_ALL", [Raw.cfgiCD(5), Raw.cfgiCDAll(5)], false),
        ("CFGI_STE_RANGE of 2 around it", [Raw.cfgiSTERange(4, range: 0)], true),
        ("CFGI_STE_RANGE of 2 beside it", [Raw.cfgiSTERange(6, range: 0)], false),
        ("CFGI_STE_RANGE ignores low bits", [Raw.cfgiSTERange(7, range: 1)], true),
        (
            "CFGI_STE_RANGE of 4 beside it", [Raw.cfgiSTERange(8, range: 1), Raw.cfgiSTERange(0, range: 1)],
            false
        ),
        ("CFGI_STE_RANGE of 2^16", [Raw.cfgiSTERange(0xABCD, range: 15)], true),
        ("CFGI_STE_RANGE of 2^16 elsewhere", [Raw.cfgiSTERange(0x1ABCD, range: 15)], false),
        ("CFGI_STE_RANGE of 2^31", [Raw.cfgiSTERange(0x7FFF_FFFF, range: 30)], true),
        ("CFGI_STE_RANGE of the upper 2^31", [Raw.cfgiSTERange(0x8000_0000, range: 30)], false),
        ("CFGI_ALL", [Raw.cfgiAll], true),
        ("CFGI_ALL ignores the StreamID", [Raw.cfgiSTERange(0xFFFF_FFFF, range: 31)], true),
    ]

    @Test("an STE lives in the cache until a command names it", arguments: streamCases.indices)
    func streamInvalidation(_ index: Int) throws {
        let (name, commands, isCured) = Self.streamCases[index]
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        try guest.poke(try guest.steAddress(5), STEWords(config: 0).words)
        if !commands.isEmpty { try guest.issue(commands + [Raw.sync()]) }
        #expect(guest.dmaRead(5, 0x1000) == (isCured ? .aborted : .ok(2)), "\(name)")
        #expect(
            guest.smmu.makePort(for: StreamID(5)).read64(at: 0x1000) == (isCured ? .aborted : .ok(2)),
            "\(name)"
        )
    }

    static let contextCases: [(String, [RawCommand], Bool)] = [
        ("nothing", [], false),
        ("TLBI", [Raw.tlbiNSNHAll], false),
        ("CFGI_CD", [Raw.cfgiCD(5, 3)], true),
        ("CFGI_CD, Leaf 0", [Raw.cfgiCD(5, 3, leaf: false)], true),
        ("CFGI_CD of other substreams", [Raw.cfgiCD(5, 0), Raw.cfgiCD(5, 2), Raw.cfgiCD(5, 0x10003)], false),
        ("CFGI_CD of another stream", [Raw.cfgiCD(6, 3)], false),
        ("CFGI_CD_ALL", [Raw.cfgiCDAll(5)], true),
        ("CFGI_CD_ALL of others", [Raw.cfgiCDAll(4), Raw.cfgiCDAll(6)], false),
        ("CFGI_STE", [Raw.cfgiSTE(5)], true),
        ("CFGI_STE of others", [Raw.cfgiSTE(3), Raw.cfgiSTE(6)], false),
        ("CFGI_STE_RANGE", [Raw.cfgiSTERange(4, range: 0)], true),
        ("CFGI_ALL", [Raw.cfgiAll], true),
    ]

    @Test("a CD lives in the cache until a command names it or its stream", arguments: contextCases.indices)
    func contextInvalidation(_ index: Int) throws {
        let (name, commands, isCured) = Self.contextCases[index]
        let guest = try TestGuest()
        let tables = GuestTables(guest)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        let contexts = guest.allocate(64 * 16)
        for substream in [2, 3] as [UInt64] {
            try guest.poke(contexts + substream * 64, CDWords(asid: substream, ttb0: tables.root).words)
        }
        for stream in [5, 6] as [UInt64] {
            try guest.setSTE(stream, STEWords(s1ContextPtr: contexts, s1CDMax: 4, s1DSS: 2))
        }
        let attributes = TransactionAttributes(substreamID: SubstreamID(3))
        #expect(guest.dmaRead(5, 0x1000, attributes) == .ok(2))
        #expect(guest.dmaRead(6, 0x1000, attributes) == .ok(2))
        try guest.poke(contexts + 3 * 64, CDWords(v: false).words)
        if !commands.isEmpty { try guest.issue(commands + [Raw.sync()]) }
        #expect(guest.dmaRead(5, 0x1000, attributes) == (isCured ? .event(0x0A) : .ok(2)), "\(name)")
    }

    @Test("a CD that n streams share needs n CFGI_CDs")
    func sharedContext() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        let context = try #require(guest.contexts[5])
        try guest.setSTE(6, STEWords(s1ContextPtr: context))
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        #expect(guest.dmaRead(6, 0x1000) == .ok(2))
        try guest.poke(context, CDWords(v: false).words)
        try guest.sync(Raw.cfgiCD(5))
        #expect(guest.dmaRead(5, 0x1000) == .event(0x0A))
        #expect(guest.dmaRead(6, 0x1000) == .ok(2))
    }

    @Test("A and R change with CFGI_CD alone; the TLB keeps its entries")
    func faultConfigurationNeedsNoTLBI() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        #expect(guest.dmaRead(5, 0x1000) == .fTranslation)
        let context = try #require(guest.contexts[5])
        try guest.poke(context, CDWords(a: false, ttb0: tables.root).words)
        #expect(guest.dmaRead(5, 0x1000) == .fTranslation)
        try guest.sync(Raw.cfgiCD(5))
        #expect(guest.dmaRead(5, 0x1000) == .ok(0))
    }

    @Test("invalid structures are kept or not, as the option says", arguments: [true, false])
    func invalidStructures(_ isKept: Bool) throws {
        var setup = GuestSetup()
        setup.options.cachesInvalidStructures = isKept
        let guest = try TestGuest(setup)
        #expect(guest.dmaRead(5, 0x1000) == .event(0x04))
        let tables = GuestTables(guest)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        let context = guest.allocate(64)
        try guest.poke(try guest.steAddress(5), STEWords(s1ContextPtr: context).words)
        #expect(guest.dmaRead(5, 0x1000) == .event(isKept ? 0x04 : 0x0A))
        try guest.sync(Raw.cfgiSTE(5))
        #expect(guest.dmaRead(5, 0x1000) == .event(0x0A))
        try guest.poke(context, CDWords(ttb0: tables.root).words)
        #expect(guest.dmaRead(5, 0x1000) == (isKept ? .event(0x0A) : .ok(2)))
        try guest.sync(Raw.cfgiCD(5))
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
    }

    @Test("an aborted fetch is not kept: when the structure is there, it is used")
    func abortedFetchesAreNotCached() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(12, split: 8)
        let guest = try TestGuest(setup)
        try guest.poke(guest.streamTable, 0x70_0000_0000 | 9)
        #expect(guest.dmaRead(5, 0x8000_0000) == .event(0x03))
        let leaf = guest.allocate(64 << 8)
        try guest.poke(leaf + 5 * 64, STEWords(s1ContextPtr: 0x70_0000_0000).words)
        try guest.poke(guest.streamTable, leaf | 9)
        #expect(guest.dmaRead(5, 0x8000_0000) == .event(0x09))
        // A level-1 descriptor that is made valid needs no command either (as Linux relies on).
        #expect(guest.dmaRead(0x105, 0x8000_0000) == .event(0x02))
        try guest.poke(guest.streamTable + 8, leaf | 9)
        #expect(guest.dmaRead(0x105, 0x8000_0000) == .event(0x09))
    }

    @Test("switching the SMMU off and on invalidates nothing")
    func enableInvalidatesNothing() throws {
        let stale = try StaleSet()
        let guest = stale.guest
        try guest.poke(try guest.steAddress(1), STEWords(config: 0).words)
        try guest.write32(0x20, 0b1100)
        #expect(guest.dmaRead(1, TestGuest.ram) != .aborted, "bypassed meanwhile")
        try guest.write32(0x20, 0b1101)
        #expect(stale.cured() == "")
    }

    @Test("without a configuration cache memory decides at once")
    func withoutConfigurationCache() throws {
        var setup = GuestSetup()
        setup.options.configurationCacheEntries = 0
        setup.options.tlbEntries = 0
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        try guest.poke(try guest.steAddress(5), STEWords(config: 0).words)
        #expect(guest.dmaRead(5, 0x1000) == .aborted)
    }

    @Test("without a configuration cache the registers decide at once, too")
    func registersWithoutConfigurationCache() throws {
        var setup = GuestSetup()
        setup.options.configurationCacheEntries = 0
        setup.options.tlbEntries = 0
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        for _ in 0..<2 { #expect(guest.dmaRead(5, 0x1000) == .ok(2)) }
        let size = try guest.read32(0x88)
        func use(_ table: UInt64, _ size: UInt32) throws {
            try guest.write32(0x20, 0b1100)
            try guest.write64(0x80, 1 << 62 | table)
            try guest.write32(0x88, size)
            try guest.write32(0x20, 0b1101)
        }
        // A table in which the stream is to be aborted.
        let other = guest.allocate(64 << UInt64(size))
        try guest.poke(other + 5 * 64, STEWords(config: 0).words)
        try use(other, size)
        for _ in 0..<2 { #expect(guest.dmaRead(5, 0x1000) == .aborted) }
        try use(guest.streamTable, size)
        for _ in 0..<2 { #expect(guest.dmaRead(5, 0x1000) == .ok(2)) }
        // A table that ends before the stream.
        try use(guest.streamTable, 2)
        for _ in 0..<2 { #expect(guest.dmaRead(5, 0x1000) == .event(0x02)) }
        try use(guest.streamTable, size)
        for _ in 0..<2 { #expect(guest.dmaRead(5, 0x1000) == .ok(2)) }
    }

    @Test("a store with room for n keeps the newest n, and fills what was emptied before it evicts")
    func boundedStore() {
        var store = BoundedStore<Int, Int>(capacity: 3)
        var evictions = (0..<3).map { store.insert($0 * 10, for: $0) }
        evictions.append(store.insert(11, for: 1))
        #expect(evictions == [false, false, false, false])
        #expect(store[1] == 11)
        let removals = [store.remove(1), store.remove(1)]
        #expect(removals == [true, false])
        let afterHole = [store.insert(30, for: 3), store.insert(40, for: 4)]
        #expect(afterHole == [false, true], "into the hole; then 0 goes")
        #expect([store[0], store[2], store[3], store[4]] == [nil, 20, 30, 40])
        let removed = store.removeAll { $0 > 2 }
        #expect(removed == 2)
        let refilled = [store.insert(50, for: 5), store.insert(60, for: 6)]
        #expect(refilled == [false, false])
        #expect(store.count == 3)
        var none = BoundedStore<Int, Int>(capacity: 0)
        let kept = none.insert(1, for: 1)
        #expect(!kept)
        #expect(none[1] == nil)
    }

    // MARK: Look-ups that an invalidation overtakes

    /// Does something once, in the middle of a look-up.
    struct Interloper: LookupObserver {
        var trigger: (FetchedStructure) -> Bool
        var action: () -> Void
        var isDone = false

        mutating func fetched(_ structure: @autoclosure () -> FetchedStructure) {
            if !isDone, trigger(structure()) {
                isDone = true
                action()
            }
        }
        mutating func note(_ text: @autoclosure () -> String) {}
    }

    @Test(
        "what a look-up fetched before an invalidation is not kept after it",
        arguments: ["STE", "CD", "descriptor"]
    )
    func overtakenLookup(_ moment: String) throws {
        let guest = try TestGuest()
        let old = try guest.attachTables(5)
        let new = GuestTables(guest)
        try old.map(0x1000, to: try guest.page(holding: 0x01D))
        try new.map(0x1000, to: try guest.page(holding: 0x2E3))
        let context = guest.allocate(64)
        let oldContext = try #require(guest.contexts[5])
        try guest.poke(context, CDWords(ttb0: new.root).words)
        let steAddress = try guest.steAddress(5)
        var interloper = Interloper(
            trigger: { structure in
                switch structure {
                case .ste: moment == "STE"
                case .cd: moment == "CD"
                case .descriptor: moment == "descriptor"
                default: false
                }
            },
            action: {
                // A new CD table, a new CD, new tables; then every command that this calls for.
                try? guest.poke(steAddress, STEWords(s1ContextPtr: context).words)
                try? guest.poke(oldContext, CDWords(ttb0: new.root).words)
                try? guest.sync(Raw.cfgiSTE(5), Raw.cfgiCDAll(5), Raw.tlbiNHAll)
            }
        )
        let transaction = Transaction(
            streamID: StreamID(5),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(0x1000)
        )
        _ = try guest.smmu.translate(transaction, guest.smmu.currentControls(), .cached, &interloper)
        #expect(interloper.isDone)
        #expect(
            guest.dmaRead(5, 0x1000) == .ok(0x2E3),
            "after the CMD_SYNC only the new configuration counts"
        )
    }

    @Test("registers that change between a transaction's start and its fetches leave nothing stale either")
    func overtakenControls() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 0x01D))
        let controls = guest.smmu.currentControls()
        // The stream table moves: the SMMU is switched off, everything invalidated, and switched on again.
        let table = guest.allocate(64 << 8)
        try guest.write32(0x20, 0b1100)
        try guest.write64(0x80, table)
        try guest.sync(Raw.cfgiAll, Raw.tlbiNSNHAll)
        try guest.write32(0x20, 0b1101)
        var observer = NoObserver()
        let transaction = Transaction(
            streamID: StreamID(5),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(0x1000)
        )
        _ = try guest.smmu.translate(transaction, controls, .cached, &observer)
        #expect(guest.dmaRead(5, 0x1000) == .event(0x04), "the new table's STE is invalid")
    }

    @Test("a port's own memory follows every invalidation and every change of the registers")
    func portLookaside() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        let page = try guest.page(holding: 2)
        try tables.map(0x1000, to: page)
        func hits() -> UInt64 { guest.smmu.statistics.first { $0.name == "port-hits" }?.value ?? 0 }
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        let before = hits()
        for _ in 0..<10 { #expect(guest.dmaRead(5, 0x1000) == .ok(2)) }
        #expect(hits() == before + 10)
        // Another substream, another privilege, another kind: not the same entry, or another check.
        #expect(guest.dmaRead(5, 0x1000, TransactionAttributes(substreamID: SubstreamID(0))) == .event(0x08))
        try tables.unmap(0x1000)
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        #expect(guest.dmaRead(5, 0x1000) == .fTranslation)
        // SMMUEN off: the same address bypasses; on again: it faults.
        try guest.write32(0x20, 0b1100)
        #expect(guest.dmaRead(5, 0x1000) == .nobody(0x1000))
        #expect(guest.dmaRead(5, page) == .ok(2))
        try guest.write32(0x44, 0x8010_0000)
        #expect(guest.dmaRead(5, page) == .aborted)
        try guest.write32(0x20, 0b1101)
        #expect(guest.dmaRead(5, page) == .fTranslation)
    }
}
