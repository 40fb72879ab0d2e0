// Both stages: whose fault it is, what is combined, and which TLBI removes what.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Nested translation")
struct NestedTests {
    @Test("data comes through both stages, the CD and the tables through stage 2", arguments: [2, 3])
    func data(_ block: Int) throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: block)
        let page = try guest.page(holding: 0xABCD)
        try nested.map(0x7000, toPhysical: page)
        #expect(guest.dmaRead(6, 0x7000) == .ok(0xABCD))
        #expect(guest.dmaWrite(6, 0x7008, 77) == .ok(0))
        #expect(try guest.peek(page + 8) == 77)
        #expect(try guest.takeEvents() == [])
    }

    @Test("stage-2 faults of CD fetches, table fetches and the address: S2, CLASS, IPA, TTRnW")
    func events() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        let page = try guest.page(holding: 1)
        try nested.map(0x1234_5000, toPhysical: page)
        let context = nested.ipa(try #require(guest.contexts[6]))
        let tables = try (1...3).map { nested.ipa(try nested.stage1.entry(0x1234_5000, level: $0)) }
        let data = nested.ipa(page)
        // What is taken away, how, and what the record says.
        let cases: [(ipa: UInt64, flags: UInt64?, event: UInt64, eventClass: UInt64)] =
            [(context, nil, 0x10, 0), (data, nil, 0x10, 2)] + tables.map { ($0, nil, 0x10, 1) }
            + [
                (context, Leaf2.readWrite & ~Leaf2.read, 0x13, 0),
                (tables[1], Leaf2.readWrite & ~Leaf2.read, 0x13, 1),
                (data, Leaf2.readWrite & ~Leaf2.write, 0x13, 2),
                (context, Leaf2.readWrite & ~Leaf2.af, 0x12, 0),
                (tables[2], Leaf2.readWrite & ~Leaf2.af, 0x12, 1),
                (data, Leaf2.readWrite & ~Leaf2.af, 0x12, 2),
            ]
        for (ipa, flags, event, eventClass) in cases {
            let page = ipa & ~0xFFF
            let entry = try nested.stage2.entry(page)
            let good = try guest.peek(entry)
            try guest.poke(entry, flags.map { good & ~0x4FC | $0 & 0x4FC } ?? 0)
            try guest.sync(Raw.tlbiS12VMAll(7), Raw.cfgiCDAll(6))
            #expect(guest.dmaWrite(6, 0x1234_5678) == .event(UInt8(event)))
            let expected = eventWords(
                event,
                stream: 6,
                isRead: false,
                eventClass: eventClass,
                isStage2: true,
                isTableRead: event == 0x13 && eventClass == 1,
                input: 0x1234_5678,
                fetch: page
            )
            #expect(try guest.takeEvents() == [expected])
            try guest.poke(entry, good)
            try guest.sync(Raw.tlbiS12VMAll(7), Raw.cfgiCDAll(6))
            #expect(guest.dmaWrite(6, 0x1234_5678) == .ok(0))
        }
    }

    @Test("aborted fetches: whose descriptor it was, and at which physical address")
    func aborts() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        try nested.map(0x5000, toPhysical: try guest.page(holding: 1))
        let hole: UInt64 = 0x7000_0000
        let table = try nested.stage1.entry(0x5000, level: 3)
        // A page of stage 1's tables is shown where nobody answers: stage 2 is fine, the fetch is not.
        let page = try nested.stage2.entry(nested.ipa(table) & ~0xFFF)
        let good = try guest.peek(page)
        try guest.poke(page, hole | Leaf2.readWrite | 3)
        #expect(guest.dmaRead(6, 0x5008) == .event(0x0B))
        try guest.poke(page, good)
        // A table of stage 2 is where nobody answers: CLASS says what it was walked for.
        let context = try nested.stage2.entry(nested.ipa(try #require(guest.contexts[6])), level: 2)
        let whole = try guest.peek(context)
        try guest.poke(context, hole | 3)
        try guest.sync(Raw.tlbiS12VMAll(7), Raw.cfgiCDAll(6))
        #expect(guest.dmaRead(6, 0x5008) == .event(0x0B))
        try guest.poke(context, whole)
        let index = nested.ipa(try #require(guest.contexts[6])) >> 12 & 511
        #expect(
            try guest.takeEvents() == [
                eventWords(
                    0x0B,
                    stream: 6,
                    isRead: true,
                    eventClass: 1,
                    input: 0x5008,
                    fetch: hole | table & 0xFFF
                ),
                eventWords(
                    0x0B,
                    stream: 6,
                    isRead: true,
                    eventClass: 0,
                    isStage2: true,
                    input: 0x5008,
                    fetch: hole | index * 8
                ),
            ]
        )
    }

    @Test("a CD that stage 2 shows where nobody answers is F_CD_FETCH with the physical address")
    func contextAbort() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        let context = try #require(guest.contexts[6])
        try guest.poke(try nested.stage2.entry(nested.ipa(context)), 0x7000_0000 | Leaf2.readWrite | 3)
        #expect(guest.dmaRead(6, 0x5008) == .event(0x09))
        let expected = [0x09 | 6 << 32, 0, 0, 0x7000_0000 | context & 0xFFF] as [UInt64]
        #expect(try guest.takeEvents() == [expected])
    }

    @Test("S2PTW: tables and CDs in Device memory fault; data does not")
    func protectedTableWalks() throws {
        for (isProtected, isNested) in [(true, true), (false, true), (true, false)] {
            let guest = try TestGuest.full()
            let nested = try NestedSetup(guest, block: 3) { $0.ptw = isProtected }
            let page = try guest.page(holding: 9)
            try nested.map(0x5000, toPhysical: page)
            let data = try nested.stage2.entry(nested.ipa(page))
            try guest.poke(data, try guest.peek(data) & ~0x3C | Leaf2.device)
            #expect(guest.dmaRead(6, 0x5000) == .ok(9), "data may be Device memory")
            guard isNested else { continue }
            let table = nested.ipa(try nested.stage1.entry(0x5000, level: 3)) & ~0xFFF
            let entry = try nested.stage2.entry(table)
            try guest.poke(entry, try guest.peek(entry) & ~0x3C | Leaf2.device)
            try guest.sync(Raw.tlbiS12VMAll(7))
            #expect(guest.dmaRead(6, 0x5000) == (isProtected ? .fPermission : .ok(9)))
        }
    }

    @Test("permissions of both stages: stage 1's fault comes first", arguments: 0..<64 as Range<UInt64>)
    func permissions(_ bits: UInt64) throws {
        let (ap, s2AP, xn) = (bits & 3, bits >> 2 & 3, bits >> 4)
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        let page = try guest.page(holding: 3)
        try nested.map(0x5000, toPhysical: page, Leaf.af | Leaf.nG | ap << 6)
        let entry = try nested.stage2.entry(nested.ipa(page))
        try guest.poke(entry, try guest.peek(entry) & ~(3 << 6) | s2AP << 6 | xn << 53)
        for isPrivileged in [false, true] {
            for (isWrite, isInstruction) in [(false, false), (true, false), (false, true)] {
                let attributes = TransactionAttributes(
                    isPrivileged: isPrivileged,
                    isInstruction: isInstruction
                )
                // AP[2:1]: bit 1 read-only, bit 0 unprivileged too. Code that unprivileged may write is not run.
                let reachable = isPrivileged || ap & 1 == 1
                let first =
                    isInstruction ? !(isPrivileged && ap == 1) : reachable && !(isWrite && ap & 2 == 2)
                let second =
                    isInstruction
                    ? xn == 0 || xn == (isPrivileged ? 3 : 1) : s2AP & (isWrite ? 2 : 1) != 0
                for _ in 0..<2 {  // By a walk, and by the TLB.
                    let outcome =
                        isWrite
                        ? guest.dmaWrite(6, 0x5000, 3, attributes) : guest.dmaRead(6, 0x5000, attributes)
                    #expect((outcome == .ok(isWrite ? 0 : 3)) == (first && second))
                    let events = try guest.takeEvents()
                    #expect(events.count == (first && second ? 0 : 1))
                    if let words = events.first {
                        #expect(words[0] & 0xFF == 0x13)
                        #expect(words[1] >> 39 & 1 == (first ? 1 : 0), "whose fault it is")
                        #expect(words[3] == (first ? nested.ipa(page) : 0))
                    }
                }
            }
        }
    }

    @Test("S1DSS 1: without a SubstreamID stage 2 alone; with one both stages")
    func bypassedStage1() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest)
        let page = try guest.page(holding: 21)
        try nested.map(0x5000, toPhysical: page)
        let table = guest.allocate(128)
        try guest.poke(table + 64, CDWords(ttb0: nested.ipa(nested.stage1.root)).words)
        var ste = STEWords(config: 0b111, s1ContextPtr: nested.ipa(table), s1CDMax: 1, s1DSS: 1, s2VMID: 7)
        ste.extra = Stage2Words(ttb: nested.stage2.root).words
        try guest.setSTE(6, ste)
        #expect(guest.dmaRead(6, nested.ipa(page)) == .ok(21))
        let attributes = TransactionAttributes(substreamID: SubstreamID(1))
        #expect(guest.dmaRead(6, 0x5000, attributes) == .ok(21))
        #expect(guest.dmaRead(6, 0x5000) == .fTranslation)
        let record = try #require(try guest.takeEvents().first)
        #expect(record[1] >> 39 & 1 == 1, "stage 2's")
    }

    @Test("explain shows both stages' descriptors and the IPA")
    func explanation() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest)
        let page = try guest.page(holding: 1)
        try nested.map(0x5000, toPhysical: page)
        let transaction = Transaction(
            streamID: StreamID(6),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(0x5008)
        )
        let explanation = guest.smmu.explain(transaction)
        guard case .translated(let translation) = explanation.outcome else {
            Issue.record("\(explanation.outcome)")
            return
        }
        #expect(translation.output.rawValue == page + 8)
        #expect(translation.intermediate == nested.ipa(page) + 8)
        #expect(translation.stages == .nested)
        let levels = explanation.steps.compactMap { step -> [Int]? in
            guard case .fetched(.descriptor(_, _, let level, let format)) = step else { return nil }
            return [format.stage == .stage1 ? 1 : 2, level]
        }
        // Stage 2 for the CD, for each descriptor of stage 1, and for the address: levels 1 and 2 each time.
        let second = [[2, 1], [2, 2]]
        #expect(levels == second + second + [[1, 1]] + second + [[1, 2]] + second + [[1, 3]] + second)
    }
}
