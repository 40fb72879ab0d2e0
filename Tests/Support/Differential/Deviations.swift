// Which known deviation of QEMU a difference is.

import AddressSpace
import SMMUv3Spec

/// A difference that has a place in a case, and what is known of it.
struct Finding {
    let verdict: Verdict
    let index: Int
    let scene: Scene?

    var run: Case { verdict.run }
    var dma: DMA { run.dmas[index] }
    var model: DMAOutcome { verdict.model.dmas[index] }
    var qemu: DMAOutcome { verdict.qemu.dmas[index] }

    /// The one event that there is.
    func event(_ outcome: DMAOutcome) -> EventNumber? {
        outcome.records.count == 1 ? outcome.records[0].number : nil
    }

    /// Whether QEMU translated for another DMA before, so that its TLB has something.
    var hasEarlierHit: Bool {
        zip(run.dmas, verdict.qemu.dmas).prefix(index).contains { $0.isWrite != dma.isWrite && $1.isMoved }
    }

    /// The same, where it was to the same page.
    var hasEarlierHitInPage: Bool {
        zip(run.dmas, verdict.qemu.dmas).prefix(index).contains {
            $0.isWrite != dma.isWrite && $1.isMoved && ($0.address ^ dma.address) >> 12 == 0
        }
    }

    /// Commands by address that were the last before this DMA.
    var lastInvalidations: [Command] {
        var (count, result) = (0, [Command]())
        for step in run.steps {
            switch step {
            case .commands(let commands): result = commands
            case .dma:
                if count == index {
                    return result.filter { $0.opcode == .tlbiNHVA || $0.opcode == .tlbiNHVAA }
                }
                count += 1
            default: break
            }
        }
        return []
    }

    /// Whether QEMU answers as it did before software's change.
    var isStale: Bool {
        guard let before = dma.before else { return false }
        return qemu.ofPage() == verdict.qemu.dmas[before].ofPage()
    }
}

/// One thing that QEMU is known to do otherwise than the architecture says, beside those in ``Quirks``.
struct KnownDeviation: Sendable {
    let name: String
    let explains: @Sendable (Finding) -> Bool
}

/// QEMU's known deviations.
package enum Deviations {
    /// The name of each.
    static var names: Set<String> {
        Set((structures + caches).map(\.name) + Quirks.named.map(\.1))
            .union(["command-accepted", "aptable-not-cached", "nested-permissions-not-cached"])
    }

    /// The names of those that explain a difference; none where it is not known.
    static func names(_ difference: Difference, _ verdict: Verdict, _ scenes: [Int: Scene]) -> [String] {
        switch difference.place {
        case .dma(let index):
            guard !difference.isEither else { return [] }
            let finding = Finding(verdict: verdict, index: index, scene: scenes[index])
            if let known = structures.first(where: { $0.explains(finding) }) { return [known.name] }
            let names = scenes[index]?.referee?.names(model: finding.model, qemu: finding.qemu) ?? []
            if !names.isEmpty { return names }
            return caches.first { $0.explains(finding) }.map { [$0.name] } ?? cached(finding)
        case .commands, .errors:
            return isAccepted(verdict) ? ["command-accepted"] : []
        case .memory:
            return []
        }
    }

    private static func cached(_ finding: Finding) -> [String] {
        guard finding.hasEarlierHit else { return [] }
        let name = finding.scene?.referee?.cachedName(model: finding.model, qemu: finding.qemu)
        return name.map { [$0] } ?? []
    }

    /// Whether a case ends with a command that is illegal, and QEMU executed it.
    private static func isAccepted(_ verdict: Verdict) -> Bool {
        guard case .commands(let last)? = verdict.run.steps.last, let command = last.first,
            CaseGenerator.accepted.contains(command)
                || verdict.run.shape.stages == .stage2 && [.cfgiCD, .cfgiCDAll].contains(command.opcode),
            let ours = verdict.model.commandConsumers.last, let theirs = verdict.qemu.commandConsumers.last
        else { return false }
        return ours >> 24 == 1 && theirs == UInt32((ours & 0xFF) + 2) & 0xFF
    }

    /// Deviations in what QEMU makes of an STE, an L1STD or a CD.
    private static let structures: [KnownDeviation] = [
        KnownDeviation(name: "l1std-span-doubled") {
            guard let entry = $0.scene?.l1std, let split = $0.scene?.split, entry.span > 0 else {
                return false
            }
            let within = UInt64(Layout.streams[$0.dma.requester]) & ((1 << split) - 1)
            return UInt64(entry.span) <= split + 1 && within >> UInt64(entry.span - 1) != 0
                && $0.event($0.model) == .cBadStreamID
        },
        KnownDeviation(name: "bad-streamid-recorded") {
            $0.run.steps.contains(.register32(RegisterOffset.cr2, 0)) && $0.model == DMAOutcome()
                && $0.event($0.qemu) == .cBadStreamID
        },
        KnownDeviation(name: "s1cdmax-refused") {
            $0.scene?.ste?.s1CDMax != 0 && $0.event($0.qemu) == .cBadSTE
        },
        KnownDeviation(name: "s2-updates-accepted") {
            guard let ste = $0.scene?.ste, ste.s2HA || ste.s2HD else { return false }
            return $0.event($0.model) == .cBadSTE
        },
        KnownDeviation(name: "context-beyond-oas") {
            guard let ste = $0.scene?.ste, ste.s1ContextPtr >> 44 != 0 else { return false }
            return $0.event($0.model) == .cBadSTE
                && ($0.event($0.qemu) == .fCDFetch
                    || ste.config == .nested
                        && ($0.event($0.qemu) == .fTranslation || $0.qemu == DMAOutcome()))
        },
        KnownDeviation(name: "s2-size-beyond-ps") {
            guard let ste = $0.scene?.ste, ste.config.translatesStage2 else { return false }
            let bits = [32, 36, 40, 42, 44, 44, 44, 44][Int(ste.s2PS)]
            return 64 - Int(ste.s2T0SZ) > bits && $0.event($0.qemu) == .cBadSTE
        },
        KnownDeviation(name: "s2t0sz-too-large-accepted") {
            guard let ste = $0.scene?.ste, ste.config.translatesStage2 else { return false }
            return ste.s2TG == 0 && ste.s2SL0 == 2 && ste.s2T0SZ == 35 && $0.event($0.model) == .cBadSTE
        },
    ]

    /// Deviations in what QEMU's TLB holds and gives up.
    private static let caches: [KnownDeviation] = [
        KnownDeviation(name: "stage2-hit-unrecorded") {
            $0.scene?.ste?.config == .stage2 && $0.event($0.model) == .fPermission && $0.model.records[0].s2
                && $0.qemu == DMAOutcome() && $0.hasEarlierHit
        },
        KnownDeviation(name: "nested-hit-as-stage2-without-ipa") {
            guard let ste = $0.scene?.ste, ste.config == .nested, $0.hasEarlierHit,
                $0.model == DMAOutcome() || $0.event($0.model) == .fPermission || $0.hasEarlierHitInPage
            else { return false }
            var expected = EventRecord()
            expected.number = .fPermission
            expected.streamID = StreamID(Layout.streams[$0.dma.requester])
            expected.rnw = !$0.dma.isWrite
            expected.s2 = true
            expected.eventClass = .in
            expected.inputAddress = $0.dma.address
            return $0.qemu == (ste.s2R ? DMAOutcome(records: [expected]) : DMAOutcome())
        },
        KnownDeviation(name: "tlbi-compares-top-byte") { finding in
            finding.isStale
                && finding.lastInvalidations.contains {
                    $0.address >> 56 != finding.dma.address >> 56
                        && ($0.address ^ finding.dma.address) & 0xFF_FFFF_C000_0000 == 0
                }
        },
        KnownDeviation(name: "nested-block-invalidated-in-part") { finding in
            finding.isStale && finding.scene?.ste?.config == .nested
                && finding.lastInvalidations.contains {
                    ($0.address ^ finding.dma.address) & 0xFF_FFFF_FFFF_F000 != 0
                }
        },
    ]
}
