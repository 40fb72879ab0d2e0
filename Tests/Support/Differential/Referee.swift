// A third reader of a case: what the architecture says of a DMA, and what QEMU is known to make of it.

import SMMUv3Spec

/// Reads a DMA's structures in memory as it finds them, without caches.
///
/// It takes no part in finding a difference. Where there is one, a known deviation of QEMU explains it only if this
/// says what the model says, and with ``Quirks`` says what QEMU does, record and all.
final class Referee {
    let architecture: DMAOutcome
    private let qemu: DMAOutcome
    /// What QEMU would do without one of its quirks, in the order of ``Quirks/named``.
    private let without: [DMAOutcome]
    /// What QEMU would do where its TLB had the translation.
    private let apTableForgotten: DMAOutcome?
    private let stage2Forgotten: DMAOutcome?

    /// Nil where no tables are walked.
    init?(ram: GuestRAM, ste: STE, dma: DMA, index: Int) {
        guard ste.v, ste.config.rawValue > 0b100 else { return nil }
        func outcome(_ quirks: Quirks) -> DMAOutcome? {
            var walk = RefereeWalk(ram: ram, ste: ste, quirks: quirks, dma: dma)
            return walk.outcome(index)
        }
        guard let architecture = outcome([]), let qemu = outcome(.all) else { return nil }
        self.architecture = architecture
        self.qemu = qemu
        without = Quirks.named.compactMap { outcome(Quirks.all.subtracting($0.0)) }
        apTableForgotten = outcome(Quirks.all.union(.apTableForgotten))
        stage2Forgotten = outcome(Quirks.all.union(.stage2PermissionsForgotten))
        guard without.count == Quirks.named.count else { return nil }
    }

    /// The quirk of QEMU's TLB that explains an outcome, where the TLB had the translation.
    func cachedName(model: DMAOutcome, qemu theirs: DMAOutcome) -> String? {
        guard model == architecture else { return nil }
        if theirs == apTableForgotten { return "aptable-not-cached" }
        if theirs == stage2Forgotten { return "nested-permissions-not-cached" }
        return nil
    }

    /// The quirks by which the model's outcome and QEMU's differ; none where they do not explain it.
    func names(model: DMAOutcome, qemu theirs: DMAOutcome) -> [String] {
        guard model == architecture, theirs == qemu else { return [] }
        let names = zip(Quirks.named, without).compactMap { $1 != qemu ? $0.1 : nil }
        return names.isEmpty ? ["several-quirks"] : names
    }

    var text: String { "referee: architecture \(architecture); QEMU \(qemu)" }
}
