// The kernel's STE and CD transition scripts on the model: whatever the driver's stores have made of the entry so
// far, the SMMU sees the old one, the new one, or an invalid one where the script says that there has to be one.

import AddressSpace
import DeviceModel
import SMMUv3
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// From one entry to another, and what the kernel promises on the way.
struct Transition<Entry: Sendable>: Sendable, CustomTestStringConvertible {
    let name: String
    /// How often it invalidates.
    let syncs: Int
    /// Whether no transaction meets an invalid entry.
    let isHitless: Bool
    let from: @Sendable (TransitionBench) -> Entry
    let to: @Sendable (TransitionBench) -> Entry
    var testDescription: String { name }

    init(
        _ name: String,
        syncs: Int,
        isHitless: Bool = true,
        _ from: @escaping @Sendable (TransitionBench) -> Entry,
        _ to: @escaping @Sendable (TransitionBench) -> Entry
    ) {
        (self.name, self.syncs, self.isHitless, self.from, self.to) = (name, syncs, isHitless, from, to)
    }
}

@Suite("STE and CD transitions on the model")
struct TransitionTests {
    // MARK: The scripts

    static let bypassAndAbort: [Transition<STE>] = [
        Transition("bypass to abort", syncs: 2) {
            $0.bypass
        } _: { _ in
            .aborting
        },
        Transition("abort to bypass", syncs: 2) { _ in
            .aborting
        } _: {
            $0.bypass
        },
        Transition("stage 1 to abort", syncs: 2) {
            $0.stage1()
        } _: { _ in
            .aborting
        },
        Transition("abort to stage 1", syncs: 2) { _ in
            .aborting
        } _: {
            $0.stage1()
        },
        Transition("stage 1 to bypass", syncs: 3) {
            $0.stage1()
        } _: {
            $0.bypass
        },
        Transition("bypass to stage 1", syncs: 3) {
            $0.bypass
        } _: {
            $0.stage1()
        },
        Transition("S1DSS bypass to bypass", syncs: 2) {
            $0.stage1(dss: 1)
        } _: {
            $0.bypass
        },
        Transition("bypass to S1DSS bypass", syncs: 2) {
            $0.bypass
        } _: {
            $0.stage1(dss: 1)
        },
        Transition("stage 2 to abort", syncs: 2) {
            $0.stage2()
        } _: { _ in
            .aborting
        },
        Transition("abort to stage 2", syncs: 2) { _ in
            .aborting
        } _: {
            $0.stage2()
        },
        Transition("stage 2 to bypass", syncs: 2) {
            $0.stage2()
        } _: {
            $0.bypass
        },
        Transition("bypass to stage 2", syncs: 2) {
            $0.bypass
        } _: {
            $0.stage2()
        },
    ]

    static let betweenStages: [Transition<STE>] = [
        Transition("S1DSS substream 0 to bypass", syncs: 1) {
            $0.stage1()
        } _: {
            $0.stage1(dss: 1)
        },
        Transition("S1DSS bypass to substream 0", syncs: 1) {
            $0.stage1(dss: 1)
        } _: {
            $0.stage1()
        },
        Transition("S1DSS substream 0 to terminate", syncs: 1) {
            $0.stage1()
        } _: {
            $0.stage1(dss: 0)
        },
        Transition("stage 1 to stage 2", syncs: 3) {
            $0.stage1()
        } _: {
            $0.stage2()
        },
        Transition("stage 2 to stage 1", syncs: 3) {
            $0.stage2()
        } _: {
            $0.stage1()
        },
        Transition("stage 1 to stage 2, stalls", syncs: 3) {
            $0.stage1(ats: false)
        } _: {
            $0.stage2(ats: false, canStall: true)
        },
        Transition("stage 2 to stage 1, stalls", syncs: 3) {
            $0.stage2(ats: false, canStall: true)
        } _: {
            $0.stage1(ats: false)
        },
        Transition("nested with S1DSS bypass to stage 2", syncs: 3) {
            $0.nested(dss: 1, ats: true)
        } _: {
            $0.stage2(ats: false)
        },
        Transition("stage 2 to nested with S1DSS bypass", syncs: 2) {
            $0.stage2(ats: false)
        } _: {
            $0.nested(dss: 1, ats: true)
        },
        Transition("ATS on, stage 1", syncs: 1) {
            $0.stage1(ats: false)
        } _: {
            $0.stage1()
        },
        Transition("ATS off, stage 1", syncs: 1) {
            $0.stage1()
        } _: {
            $0.stage1(ats: false)
        },
        Transition("ATS on, stage 2", syncs: 1) {
            $0.stage2(ats: false)
        } _: {
            $0.stage2()
        },
        Transition("ATS off, both stages", syncs: 1) {
            $0.nested(dss: 2, ats: true)
        } _: {
            $0.nested(dss: 2, ats: false)
        },
    ]

    static let broken: [Transition<STE>] = [
        Transition("another CD table and another S1DSS", syncs: 3, isHitless: false) {
            $0.stage1()
        } _: {
            $0.stage1(dss: 1, table: 1)
        },
        // What the kernel's script leaves out: VMIDs other than 0 are looked at by stage 1 too.
        Transition("stage 1 to stage 2 with a VMID", syncs: 3, isHitless: false) {
            $0.stage1()
        } _: {
            $0.stage2(vmid: 9)
        },
        Transition("stage 2 of another VMID to stage 1", syncs: 3, isHitless: false) {
            $0.stage2(vmid: 9)
        } _: {
            $0.stage1()
        },
        // EATS 01 with S2S would be ILLEGAL in between, so these bits are not harmless there.
        Transition("stalls to ATS, stage 2", syncs: 3, isHitless: false) {
            $0.stage2(ats: false, canStall: true)
        } _: {
            $0.stage2(ats: true, canStall: false)
        },
    ]

    static let contexts: [Transition<CD>] = [
        Transition("no CD to a domain's", syncs: 2, isHitless: false) { _ in
            CD()
        } _: {
            $0.context(root: 0, asid: 1997)
        },
        Transition("a domain's CD to none", syncs: 2, isHitless: false) {
            $0.context(root: 0, asid: 1997)
        } _: { _ in
            CD()
        },
        Transition("another ASID", syncs: 1) {
            $0.context(root: 0, asid: 778)
        } _: {
            $0.context(root: 0, asid: 1997)
        },
        Transition("another table", syncs: 1) {
            $0.context(root: 0, asid: 778)
        } _: {
            $0.context(root: 1, asid: 778)
        },
        Transition("another ASID and another table", syncs: 3, isHitless: false) {
            $0.context(root: 0, asid: 778)
        } _: {
            $0.context(root: 1, asid: 1997)
        },
        Transition("no CD to a process's", syncs: 2, isHitless: false) { _ in
            CD()
        } _: {
            $0.process(asid: 1997, isQuiesced: false)
        },
        Transition("a process's CD to none", syncs: 2, isHitless: false) {
            $0.process(asid: 1997, isQuiesced: false)
        } _: { _ in
            CD()
        },
        Transition("a process that ends", syncs: 2) {
            $0.process(asid: 1997, isQuiesced: false)
        } _: {
            $0.process(asid: 1997, isQuiesced: true)
        },
        Transition("a process that comes back", syncs: 2) {
            $0.process(asid: 1997, isQuiesced: true)
        } _: {
            $0.process(asid: 1997, isQuiesced: false)
        },
    ]

    // MARK: The tests

    @Test("an STE on its way", arguments: bypassAndAbort + betweenStages + broken)
    func streamTableEntry(_ transition: Transition<STE>) throws {
        let test = try TransitionBench()
        let (from, to) = (transition.from(test), transition.to(test))
        let run = try Self.change(test, at: test.entry, from.words, to.words) {
            EntryUpdate(from: STE(words: $0), to: to)
        } invalidate: {
            .cfgiSTE(StreamID(1), leaf: true)
        }
        #expect(run.syncs == transition.syncs)
        #expect(run.wasInvalid == !transition.isHitless)
    }

    @Test("a CD on its way", arguments: contexts)
    func contextDescriptor(_ transition: Transition<CD>) throws {
        let test = try TransitionBench()
        try test.store(test.stage1().words, at: test.entry)
        try test.driver.device.complete([.cfgiSTE(StreamID(1), leaf: true)])
        let (from, to) = (transition.from(test), transition.to(test))
        let run = try Self.change(test, at: test.contexts[0], from.words, to.words) {
            EntryUpdate(from: CD(words: $0), to: to)
        } invalidate: {
            .cfgiCD(StreamID(1), SubstreamID(0), leaf: true)
        }
        #expect(run.syncs == transition.syncs)
        #expect(run.wasInvalid == !transition.isHitless)
    }

    @Test("any STE to any other: old, new or invalid after each store")
    func anyToAny() throws {
        let test = try TransitionBench()
        let images: [STE] = [
            STE(), .aborting, test.bypass, test.stage1(), test.stage1(dss: 1, table: 1, vmid: 9),
            test.stage2(ats: false, canStall: true), test.stage2(vmid: 9), test.nested(dss: 1, ats: true),
        ]
        for from in images {
            for to in images where from != to {
                _ = try Self.change(test, at: test.entry, from.words, to.words) {
                    EntryUpdate(from: STE(words: $0), to: to)
                } invalidate: {
                    .cfgiSTE(StreamID(1), leaf: true)
                }
            }
        }
    }

    /// What happened on the way.
    struct Run {
        var syncs = 0
        /// Whether the model met V = 0 in between, or at either end.
        var wasInvalid = false
    }

    /// Lets the driver change an entry, and looks at the model after every store (past the caches) and after every
    /// invalidation (through them).
    static func change(
        _ test: TransitionBench,
        at entry: UInt64,
        _ from: SIMD8<UInt64>,
        _ to: SIMD8<UInt64>,
        _ makeUpdate: (SIMD8<UInt64>) -> EntryUpdate,
        invalidate: () -> Command
    ) throws -> Run {
        let smmu = test.bench.smmu
        let new = try test.answers(to, at: entry)
        try test.driver.device.complete([invalidate(), .tlbiNSNHAll()])
        let newDMA = [test.dma(nil), test.dma(1)]
        let invalid = try test.answers(SIMD8(repeating: 0), at: entry)
        try test.driver.device.complete([invalidate(), .tlbiNSNHAll()])
        let invalidDMA = [test.dma(nil), test.dma(1)]
        let old = try test.answers(from, at: entry)
        try test.driver.device.complete([invalidate(), .tlbiNSNHAll()])
        let oldDMA = [test.dma(nil), test.dma(1)]

        let seen = Mutex<[[Explanation.Outcome]]>([])
        let range = entry..<entry + 64
        test.access.observe { address in
            guard range.contains(address.rawValue) else { return }
            let answers = TransitionBench.answers(smmu)
            seen.withLock { $0.append(answers) }
        }
        defer { test.access.observe(nil) }
        var run = Run()
        try test.driver.device.update(at: PhysicalAddress(entry), makeUpdate) { () throws(SMMUDriverError) in
            run.syncs += 1
            // Through the caches each access by itself: what is of one VMID and one ASID is one space to the TLB,
            // whatever the STE, and it is invalidated at the end alone.
            for isInvalidated in [false, true] {
                if isInvalidated { try test.driver.device.complete([invalidate()]) }
                for (index, dma) in [test.dma(nil), test.dma(1)].enumerated() {
                    let expected = [oldDMA[index], newDMA[index], invalidDMA[index]]
                    #expect(expected.contains(dma), "\(dma), not one of \(expected)")
                }
            }
        }
        for (index, answers) in seen.withLock({ $0 }).enumerated() {
            #expect(
                [old, new, invalid].contains(answers),
                "store \(index): \(answers), was \(old), will be \(new)"
            )
            if answers == invalid { run.wasInvalid = true }
        }
        if old == invalid { run.wasInvalid = true }
        let words = try (0..<8).map {
            try test.bench.bus.load(.doubleword, at: PhysicalAddress(entry + UInt64($0) * 8))
        }
        #expect(words == (0..<8).map { to[$0] })
        try test.driver.device.complete([.tlbiNSNHAll()])
        #expect([test.dma(nil), test.dma(1)] == newDMA)
        return run
    }
}
