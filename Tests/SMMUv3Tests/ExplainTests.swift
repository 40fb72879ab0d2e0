// Explanations for people: every step of a look-up with its address and word, and what the caches hide.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Explanations")
struct ExplainTests {
    static func transaction(
        _ address: UInt64,
        stream: UInt32 = 5,
        _ kind: TransactionKind = .read,
        _ attributes: TransactionAttributes = .plain
    ) -> Transaction {
        Transaction(
            streamID: StreamID(stream),
            attributes: attributes,
            kind: kind,
            address: IOVirtualAddress(address)
        )
    }

    @Test("a whole look-up: two-level stream table, two-level CD table, four levels of translation table")
    func completeWalk() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(12, split: 8)
        let guest = try TestGuest(setup)
        let tables = GuestTables(guest, size: 16)
        let page = try guest.page(holding: 1)
        try tables.map(0x1234_5678_9000, to: page)
        let l1 = guest.allocate(64)
        let leaf = guest.allocate(4096)
        let cd = CDWords(t0SZ: 16, ttb0: tables.root)
        let ste = STEWords(s1Fmt: 1, s1ContextPtr: l1, s1CDMax: 8, s1DSS: 2)
        try guest.poke(l1 + 8, leaf | 1)
        try guest.poke(leaf + 2 * 64, cd.words)
        try guest.setSTE(0x105, ste)
        let attributes = TransactionAttributes(substreamID: SubstreamID(0x42))
        let explanation = guest.smmu.explain(
            Self.transaction(0x1234_5678_9ABC, stream: 0x105, .write, attributes)
        )
        var expected: [ExplainedStep] = [
            .fetched(
                .l1std(
                    PhysicalAddress(guest.streamTable + 8),
                    L1STD(word: try guest.peek(guest.streamTable + 8))
                )
            ),
            .fetched(.ste(PhysicalAddress(try guest.steAddress(0x105)), STE(words: SIMD8(ste.words)))),
            .fetched(.l1cd(PhysicalAddress(l1 + 8), L1CD(word: leaf | 1))),
            .fetched(.cd(PhysicalAddress(leaf + 128), CD(words: SIMD8(cd.words)))),
        ]
        for level in 0...3 {
            let entry = try tables.entry(0x1234_5678_9000, level: level)
            let word = try guest.peek(entry)
            expected.append(
                .fetched(
                    .descriptor(
                        PhysicalAddress(entry),
                        Descriptor(rawValue: word),
                        level: level,
                        format: TableFormat(stage: .stage1, granule: .kib4)
                    )
                )
            )
        }
        #expect(explanation.steps == expected)
        guard case .translated(let translation) = explanation.outcome else {
            Issue.record("\(explanation.outcome)")
            return
        }
        #expect(translation.output.rawValue == page + 0xABC)
        #expect(explanation.staleness == [])
    }

    @Test("nothing is recorded, cached or counted as a transaction")
    func noTrace() throws {
        let guest = try TestGuest()
        _ = try guest.attachTables(5)
        guard case .fault(let fault) = guest.smmu.probe(Self.transaction(0x1000)) else {
            Issue.record("translated")
            return
        }
        #expect(fault.event == .fTranslation)
        #expect(fault.record?.words[2] == 0x1000)
        #expect(guest.smmu.explain(Self.transaction(0x1000)).outcome == .fault(fault))
        #expect(guest.smmu.events().isEmpty)
        #expect(try guest.takeEvents() == [])
        let statistics = Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })
        #expect(statistics["transactions"] == 0)
        #expect(statistics["tlb-resident"] == 0)
        #expect(statistics["config-resident-stes"] == 0)
        #expect(statistics["faults"] == 0)
    }

    @Test("bypasses and silent aborts are explained in words")
    func remarks() throws {
        let guest = try TestGuest()
        try guest.setSTE(5, .bypass)
        let explanation = guest.smmu.explain(Self.transaction(0x1000))
        #expect(explanation.steps.count == 2)
        try guest.setSTE(5, STEWords(config: 0))
        guard case .fault(let fault) = guest.smmu.explain(Self.transaction(0x1000)).outcome else {
            Issue.record("translated")
            return
        }
        #expect(fault.event == nil)
        #expect(fault.response == .abort)
        #expect(fault.reason.contains("STE.Config"))
        try guest.write32(0x20, 0b1100)
        #expect(guest.smmu.explain(Self.transaction(0x1000)).steps == [.note("SMMU_CR0.SMMUEN is 0")])
    }

    // MARK: Staleness

    /// A stream 5 with 0x1000 mapped and cached.
    static func cached(_ flags: UInt64 = Leaf.readWrite) throws -> (TestGuest, GuestTables, UInt64) {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        let page = try guest.page(holding: 2)
        try tables.map(0x1000, to: page, flags)
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        return (guest, tables, page)
    }

    static func findings(_ guest: TestGuest, _ kind: TransactionKind = .read) -> [String] {
        guest.smmu.explain(transaction(0x1000, kind)).staleness
    }

    @Test("nothing is stale where nothing changed, or where it was invalidated")
    func fresh() throws {
        let (guest, tables, _) = try Self.cached()
        #expect(Self.findings(guest) == [])
        try tables.unmap(0x1000)
        #expect(Self.findings(guest).count == 1)
        try guest.sync(Raw.tlbiNHVA(0x1000, asid: 1))
        #expect(Self.findings(guest) == [])
    }

    @Test("a translation that memory no longer holds: unmapped, moved, its table gone, its rights changed")
    func staleTranslations() throws {
        for change in ["unmapped", "moved", "table gone", "table nowhere", "no more writes", "access flag"] {
            let (guest, tables, page) = try Self.cached()
            switch change {
            case "unmapped": try tables.unmap(0x1000)
            case "moved": try tables.map(0x1000, to: page + 0x1000)
            case "table gone": try guest.poke(try tables.entry(0x1000, level: 2), 0)
            case "table nowhere": try guest.poke(try tables.entry(0x1000, level: 2), 0x66_0000_0000 | 3)
            case "access flag": try tables.map(0x1000, to: page, Leaf.unprivileged | Leaf.nG)
            default: try tables.map(0x1000, to: page, Leaf.readWrite | Leaf.readOnly)
            }
            let kind: TransactionKind = change == "no more writes" ? .write : .read
            let findings = Self.findings(guest, kind)
            #expect(findings.count == 1, "\(change)")
            #expect(findings.first?.contains("CMD_TLBI_NH_VA for ASID 1, address 0x1000 is missing") == true)
        }
        // The other way round: memory permits, the TLB refuses.
        let (guest, tables, page) = try Self.cached(Leaf.readWrite | Leaf.readOnly)
        try tables.map(0x1000, to: page)
        #expect(Self.findings(guest, .write).count == 1)
        #expect(Self.findings(guest, .read) == [])
    }

    @Test("an STE or a CD that memory no longer holds")
    func staleConfiguration() throws {
        let (guest, tables, _) = try Self.cached()
        try guest.poke(try guest.steAddress(5), STEWords(config: 0).words)
        #expect(Self.findings(guest).first?.contains("CMD_CFGI_STE for StreamID 0x5 is missing") == true)
        let (other, _, _) = try Self.cached()
        let context = try #require(other.contexts[5])
        try other.poke(context, CDWords(v: false).words)
        #expect(
            Self.findings(other).first?.contains("CMD_CFGI_CD for StreamID 0x5, SubstreamID 0x0 is missing")
                == true
        )
        try guest.sync(Raw.cfgiSTE(5))
        try other.sync(Raw.cfgiCD(5))
        #expect(Self.findings(guest) == [])
        #expect(Self.findings(other) == [])
        _ = tables
    }

    @Test("a level-1 descriptor that no longer leads to the cached STE")
    func staleLevel1() throws {
        var setup = GuestSetup()
        setup.streamTable = .twoLevel(12, split: 8)
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 2))
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        try guest.poke(guest.streamTable, 0)
        #expect(guest.dmaRead(5, 0x1000) == .ok(2))
        #expect(Self.findings(guest).first?.contains("CMD_CFGI_STE") == true)
        try guest.sync(Raw.cfgiSTE(5, leaf: false))
        #expect(guest.dmaRead(5, 0x1000) == .event(0x02))
        #expect(Self.findings(guest) == [])
    }
}
