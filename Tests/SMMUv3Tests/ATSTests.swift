// Translation requests of PCIe functions, and the transactions that they translate themselves.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

@Suite("ATS")
struct ATSTests {
    /// A stage-1 stream with ATS, a page at 0x5000 and a block of 2 MiB at 0x20_0000.
    private func stage1(
        eats: UInt64 = 0b01,
        flags: UInt64 = Leaf.readWrite,
        _ change: (inout STEWords, inout CDWords) -> Void = { _, _ in }
    ) throws -> (guest: TestGuest, tables: GuestTables, page: UInt64) {
        let guest = try TestGuest.full()
        try guest.setATS()
        let tables = GuestTables(guest)
        let page = try guest.page(holding: 6)
        try tables.map(0x5000, to: page, flags)
        try tables.map(0x20_0000, to: 0x4000_0000, level: 2)
        var ste = STEWords(eats: eats)
        var cd = CDWords(ttb0: tables.root)
        change(&ste, &cd)
        try guest.attach(6, cd, ste)
        return (guest, tables, page)
    }

    // MARK: Translation requests

    @Test("a translation request gets the page or block, and the permissions that it has; no event")
    func requests() throws {
        let (guest, tables, page) = try stage1()
        #expect(guest.ask(6, 0x5ABC) == .granted(page))
        #expect(guest.ask(6, 0x5000, nw: true) == .granted(page))
        #expect(guest.ask(6, 0x21_3000) == .granted(0x4000_0000, 21))
        try tables.map(0x6000, to: page, Leaf.readWrite | Leaf.readOnly)
        #expect(guest.ask(6, 0x6000) == .granted(page, w: false))
        // Privileged pages are not for a request without a PASID.
        try tables.map(0x7000, to: page, Leaf.af)
        #expect(guest.ask(6, 0x7000) == .denied)
        #expect(try guest.takeEvents() == [])
    }

    @Test("faults of the translation are answers without permission, and no events")
    func faults() throws {
        let (guest, tables, page) = try stage1()
        #expect(guest.ask(6, 0x8000) == .denied, "F_TRANSLATION")
        #expect(guest.ask(6, 1 << 40) == .denied, "outside the tables")
        try tables.map(0x9000, to: page, Leaf.readWrite & ~Leaf.af)
        #expect(guest.ask(6, 0x9000) == .denied, "F_ACCESS")
        var tooFar = CDWords(ips: 0, ttb0: tables.root)
        tooFar.asid = 2
        try tables.map(0xA000, to: 0x1_0000_0000)
        try guest.attach(7, tooFar, STEWords(eats: 1))
        #expect(guest.ask(7, 0xA000) == .denied, "F_ADDR_SIZE")
        #expect(try guest.takeEvents() == [])
    }

    @Test("a request that may write makes a writable-clean page dirty, one with NW does not")
    func dirtyState() throws {
        let clean = HTTUTests.clean & ~Leaf.af
        let (guest, tables, page) = try stage1(flags: clean) { _, cd in
            cd.ha = true
            cd.hd = true
        }
        let entry = try tables.entry(0x5000)
        #expect(guest.ask(6, 0x5000, nw: true) == .granted(page, w: false))
        #expect(try guest.peek(entry) == page | clean | Leaf.af | 3, "accessed")
        #expect(guest.ask(6, 0x5000) == .granted(page))
        #expect(try guest.peek(entry) == page | (clean | Leaf.af) & ~Leaf.readOnly | 3, "dirty")
        #expect(guest.ask(6, 0x5000, nw: true) == .granted(page), "dirty already")
        // Without HD a writable-clean page is read-only; what gives no permission sets nothing.
        let (other, otherTables, otherPage) = try stage1(flags: clean) { _, cd in cd.ha = true }
        #expect(other.ask(6, 0x5000) == .granted(otherPage, w: false))
        try otherTables.map(0x7000, to: otherPage, 0)
        #expect(other.ask(6, 0x7000) == .denied)
        #expect(try other.peek(try otherTables.entry(0x7000)) == otherPage | 3)
    }

    @Test("execute and privilege are of requests with a PASID, and asked for")
    func substreams() throws {
        let guest = try TestGuest.full()
        try guest.setATS()
        let tables = GuestTables(guest)
        let page = try guest.page(holding: 6)
        let privileged = Leaf.af | Leaf.nG
        try tables.map(0x5000, to: page, privileged)
        try tables.map(0x6000, to: page, Leaf.readWrite | Leaf.readOnly)
        try tables.map(0x7000, to: page, Leaf.readWrite | Leaf.readOnly | Leaf.uxn)
        let contexts = guest.allocate(64 << 2)
        for index in 0..<4 as Range<UInt64> {
            try guest.poke(contexts + index * 64, CDWords(asid: index, ttb0: tables.root).words)
        }
        try guest.setSTE(6, STEWords(s1ContextPtr: contexts, s1CDMax: 2, s1DSS: 0b10, eats: 1))
        func answer(r: Bool, w: Bool, x: Bool, priv: Bool) -> ATSTranslationAnswer {
            .success(
                ATSTranslation(
                    output: r || w ? page : 0,
                    log2Bytes: 12,
                    canRead: r,
                    canWrite: w,
                    canExecute: x,
                    isPrivileged: priv
                )
            )
        }
        #expect(guest.ask(6, 0x5000, 1) == answer(r: false, w: false, x: false, priv: false))
        #expect(guest.ask(6, 0x5000, 1, priv: true) == answer(r: true, w: true, x: false, priv: true))
        #expect(
            guest.ask(6, 0x5000, 1, exe: true, priv: true) == answer(r: true, w: true, x: true, priv: true)
        )
        #expect(guest.ask(6, 0x5000, exe: true, priv: true) == .denied, "no PASID, no privilege")
        #expect(guest.ask(6, 0x6000, 2, exe: true) == answer(r: true, w: false, x: true, priv: false))
        #expect(guest.ask(6, 0x6000, exe: true) == answer(r: true, w: false, x: false, priv: false))
        #expect(guest.ask(6, 0x7000, 2, exe: true) == answer(r: true, w: false, x: false, priv: false))
        #expect(try guest.takeEvents() == [])
    }

    @Test("where ATS is off: Unsupported Request and F_BAD_ATS_TREQ, to the bit; Config 0 is silent")
    func refusals() throws {
        let golden: [UInt64] = [0x0000_0006_0000_0005, 0, 0x0000_0000_0000_5008, 0]
        for eats in [0b00, 0b11] as [UInt64] {
            let (guest, _, _) = try stage1(eats: eats)
            #expect(guest.ask(6, 0x5008) == .unsupportedRequest)
            #expect(try guest.takeEvents() == [golden])
        }
        let (guest, _, page) = try stage1()
        try guest.setSTE(6, STEWords(config: 0b100, eats: 1))
        #expect(guest.ask(6, 0x5008, 3) == .unsupportedRequest)
        #expect(try guest.takeEvents() == [[0x0000_0006_0000_3805, 0, 0x5008, 0]])
        try guest.setSTE(6, STEWords(config: 0b000, eats: 1))
        #expect(guest.ask(6, page) == .unsupportedRequest)
        #expect(try guest.takeEvents() == [])
        // SMMUEN 0: the event queue works on.
        try guest.write32(0x20, 0b1100)
        #expect(guest.ask(6, 0x5008) == .unsupportedRequest)
        #expect(try guest.takeEvents() == [golden])
        // An SMMU without ATS has no way to ask.
        let other = try TestGuest()
        #expect(other.ask(6, 0x5008) == .unsupportedRequest)
        #expect(try other.takeEvents() == [])
    }

    @Test("errors of the configuration: Completer Abort, and an event where REC_CFG_ATS wants it")
    func configurationErrors() throws {
        for records in [false, true] {
            for recordsStreamIDs in [false, true] {
                let (guest, tables, _) = try stage1()
                try guest.setATS(recordsConfiguration: records, recordsStreamIDs: recordsStreamIDs)
                #expect(guest.ask(6, 0x5000, 1) == .completerAbort, "C_BAD_SUBSTREAMID")
                #expect(guest.ask(900, 0x5000) == .completerAbort, "C_BAD_STREAMID")
                #expect(guest.ask(9, 0x5000) == .completerAbort, "C_BAD_STE")
                // Nobody at a table's address.
                try guest.poke(try tables.entry(0x5000, level: 1), 0x7000_0000_0000 | 3)
                try guest.sync(Raw.tlbiNHAll)
                #expect(guest.ask(6, 0x5000) == .completerAbort, "F_WALK_EABT")
                try guest.poke(try #require(guest.contexts[6]), [UInt64](repeating: 0, count: 8))
                try guest.sync(Raw.cfgiCD(6))
                #expect(guest.ask(6, 0x5000) == .completerAbort, "C_BAD_CD")
                let events = try guest.takeEvents().map { $0[0] & 0xFF }
                #expect(
                    events == (records ? [0x08] + (recordsStreamIDs ? [0x02] : []) + [0x04, 0x0B, 0x0A] : [])
                )
            }
        }
    }

    @Test("S1DSS skips stage 1: the address itself, read and write")
    func skippedStage1() throws {
        let guest = try TestGuest.full()
        try guest.setATS()
        let contexts = guest.allocate(64 << 1)
        try guest.setSTE(6, STEWords(s1ContextPtr: contexts, s1CDMax: 1, s1DSS: 0b01, eats: 1))
        #expect(guest.ask(6, 0x1234_5000) == .granted(0, 48))
        #expect(guest.ask(6, 1 << 48) == .denied, "F_ADDR_SIZE")
        try guest.setSTE(6, STEWords(s1ContextPtr: contexts, s1CDMax: 1, s1DSS: 0b00, eats: 1))
        #expect(guest.ask(6, 0x1234_5000) == .completerAbort, "F_STREAM_DISABLED")
        #expect(try guest.takeEvents() == [])
    }

    // MARK: Nested

    private func nested(eats: UInt64) throws -> (guest: TestGuest, nested: NestedSetup, page: UInt64) {
        let guest = try TestGuest.full()
        try guest.setATS()
        let nested = try NestedSetup(guest) { $0.eats = eats }
        let page = try guest.page(holding: 6)
        try nested.map(0x5000, toPhysical: page)
        return (guest, nested, page)
    }

    @Test("full ATS of both stages gives physical addresses, split-stage ATS IPAs; permissions are of both")
    func stages() throws {
        for isSplit in [false, true] {
            let (guest, nested, page) = try nested(eats: isSplit ? 0b10 : 0b01)
            let output = isSplit ? nested.ipa(page) : page
            #expect(guest.ask(6, 0x5000) == .granted(output))
            // Stage 2 takes writes away from the 2 MiB around another page.
            let other: UInt64 = TestGuest.ram + 0x100_0000
            try nested.map(0x6000, toPhysical: other)
            try nested.stage2.map(
                nested.ipa(other),
                to: other,
                level: 2,
                Leaf2.read | Leaf2.af | Leaf2.normal
            )
            #expect(guest.ask(6, 0x6000) == .granted(isSplit ? nested.ipa(other) : other, w: false))
            // Stage 2 has nothing there.
            try nested.stage1.map(0x7000, to: 0x1000, Leaf.readWrite)
            #expect(guest.ask(6, 0x7000) == .denied)
            #expect(try guest.takeEvents() == [])
        }
    }

    @Test("split-stage needs ATSCHK: without it, it is as no ATS at all")
    func splitWithoutCheck() throws {
        let (guest, _, page) = try nested(eats: 0b10)
        try guest.setATS(check: false)
        #expect(guest.ask(6, 0x5000) == .unsupportedRequest)
        #expect(try guest.takeEvents() == [[0x0000_0006_0000_0005, 0, 0x5000, 0]])
        #expect(
            guest.dmaRead(6, page, .translated) == .ok(6),
            "and translated transactions are not looked at"
        )
    }

    // MARK: Translated transactions

    @Test("without ATSCHK translated transactions pass, whatever the STE says, up to the output size")
    func unchecked() throws {
        let (guest, _, page) = try stage1(eats: 0)
        try guest.setATS(check: false)
        #expect(guest.dmaRead(6, page, .translated) == .ok(6))
        #expect(guest.dmaWrite(200, page, 9, .translated) == .ok(0))
        #expect(guest.dmaRead(6, 1 << 48, .translated) == .aborted)
        #expect(guest.dmaRead(6, 0x5000) == .ok(9), "untranslated ones of the same port do not")
        #expect(try guest.takeEvents() == [])
    }

    @Test("with ATSCHK they pass where EATS lets them, else F_TRANSL_FORBIDDEN, to the bit")
    func checked() throws {
        let (guest, _, page) = try stage1()
        #expect(guest.dmaRead(6, page, .translated) == .ok(6))
        #expect(guest.dmaWrite(6, page + 8, 7, .translated) == .ok(0))
        #expect(guest.dmaRead(6, 1 << 48, .translated) == .aborted)
        #expect(try guest.takeEvents() == [])
        // The STE changes: what the port remembers goes.
        try guest.setSTE(6, STEWords(config: 0b100, eats: 1))
        #expect(guest.dmaRead(6, page, .translated) == .event(0x07))
        let attributes = TransactionAttributes(
            substreamID: SubstreamID(5),
            isPrivileged: true,
            isInstruction: true,
            isTranslated: true
        )
        #expect(guest.dmaWrite(6, page, 1, attributes) == .event(0x07))
        #expect(
            try guest.takeEvents() == [
                [0x0000_0006_0000_0007, 0x0000_0008_0000_0000, page, 0],
                [0x0000_0006_0000_0007, 0, page, 0],
            ]
        )
        try guest.setSTE(6, STEWords(config: 0))
        #expect(guest.dmaRead(6, page, .translated) == .aborted)
        #expect(try guest.takeEvents() == [])
        try guest.write32(0x20, 0b1_1100)
        #expect(guest.dmaRead(6, page, .translated) == .event(0x07))
        #expect(try guest.takeEvents().count == 1)
    }

    @Test("errors of the configuration are recorded where REC_CFG_ATS wants them, whatever RECINVSID says")
    func checkedConfiguration() throws {
        for records in [false, true] {
            let (guest, _, page) = try stage1()
            try guest.setATS(recordsConfiguration: records)
            #expect(guest.dmaRead(900, page, .translated) == .event(0x02))
            #expect(guest.dmaRead(9, page, .translated) == .event(0x04))
            #expect(try guest.takeEvents().map { $0[0] & 0xFF } == (records ? [0x02, 0x04] : []))
        }
    }

    @Test("split-stage: the address of a translated transaction is an IPA, with stage 2's faults")
    func split() throws {
        let (guest, nested, page) = try nested(eats: 0b10)
        let ipa = nested.ipa(page)
        #expect(guest.dmaRead(6, ipa, .translated) == .ok(6))
        #expect(guest.dmaWrite(6, ipa, 8, .translated) == .ok(0))
        #expect(try guest.peek(page) == 8)
        #expect(guest.dmaRead(6, 0x1008, .translated) == .fTranslation)
        #expect(guest.dmaRead(6, 1 << 48, .translated) == .fAddrSize)
        #expect(
            try guest.takeEvents() == [
                // F_TRANSLATION, read, S2, CLASS IN, IPA 0x1000.
                [0x0000_0006_0000_0010, 0x0000_0288_0000_0000, 0x1008, 0x1000],
                // F_ADDR_SIZE of stage 1.
                [0x0000_0006_0000_0011, 0x0000_0208_0000_0000, 1 << 48, 0],
            ]
        )
        // Stage 2 changes under it: what the port remembers is good until it is invalidated.
        try nested.stage2.map(ipa & ~0x1F_FFFF, to: 0, level: 2, 0)
        try guest.sync(Raw.tlbiS2IPA(vmid: 7, ipa))
        #expect(guest.dmaRead(6, ipa, .translated) == .fAccess)
    }

    @Test("a port keeps translated and untranslated addresses apart")
    func apart() throws {
        let (guest, tables, page) = try stage1()
        let other = try guest.page(holding: 77)
        // The page's own address, as an untranslated one, is another page.
        try tables.map(page & 0x7F_FFFF_FFFF, to: other)
        for _ in 0..<3 {
            #expect(guest.dmaRead(6, page, .translated) == .ok(6))
            #expect(guest.dmaRead(6, page) == .ok(77))
        }
    }

    @Test("what EATS, S2S and NS1ATS forbid is ILLEGAL")
    func legality() throws {
        var full = Identification.full()
        func isLegal(_ words: [UInt64]) -> Bool {
            full.violation(of: STE(words: SIMD8(words))) == nil
        }
        func stage2(_ config: UInt64, _ eats: UInt64, s: Bool) -> [UInt64] {
            var ste = STEWords(config: config, eats: eats)
            var words = Stage2Words()
            words.s = s
            ste.extra = words.words
            return ste.words
        }
        for eats in 0...3 as ClosedRange<UInt64> {
            #expect(isLegal(STEWords(config: 0b101, eats: eats).words) == (eats != 2), "stage 1")
            #expect(isLegal(stage2(0b110, eats, s: false)) == (eats != 2), "stage 2")
            #expect(isLegal(stage2(0b111, eats, s: false)), "nested")
            #expect(isLegal(stage2(0b111, eats, s: true)) == (eats == 0 || eats == 3), "nested, S2S")
            #expect(isLegal(STEWords(config: 0b100, eats: eats).words), "IGNORED in bypass")
        }
        full.idr0.ns1ATS = true
        #expect(!isLegal(stage2(0b111, 2, s: false)))
        full.idr0.ats = false
        #expect(isLegal(stage2(0b111, 2, s: true)), "IGNORED without ATS")
    }

    @Test("performance monitors hear of translation requests and of translated transactions")
    func monitors() throws {
        final class Monitor: SMMUPerformanceMonitor {
            private let counts = Mutex<[SMMUPerformanceEvent: UInt64]>([:])
            func count(_ event: SMMUPerformanceEvent, _ streamID: StreamID, _ amount: UInt64) {
                counts.withLock { $0[event, default: 0] += amount }
            }
            subscript(_ event: SMMUPerformanceEvent) -> UInt64 { counts.withLock { $0[event] ?? 0 } }
        }
        let (guest, _, page) = try stage1()
        let monitor = Monitor()
        guest.smmu.report(guest.smmu.performanceEvents, to: monitor)
        _ = guest.ask(6, 0x5000)
        _ = guest.ask(6, 0x8000)
        _ = guest.dmaRead(6, page, .translated)
        _ = guest.dmaRead(6, 0x5000)
        #expect(monitor[.atsTranslationRequest] == 2)
        #expect(monitor[.atsTranslatedTransaction] == 1)
        #expect(monitor[.transaction] == 2)
        #expect(monitor[.configurationAccess] == 2, "of the first request")
    }
}
