// A third reader of a case: what the architecture says of a DMA, and what QEMU is known to make of it.

import SMMUv3Spec

/// Reads a DMA's structures in memory as it finds them, without caches.
///
/// It takes no part in finding a difference. Where there is one, a known deviation of QEMU explains it only if this
/// says what the model says, and with ``Quirks`` says what QEMU does, record and all.
final class Referee {
    private let architecture: DMAOutcome
    private let qemu: DMAOutcome
    /// What QEMU would do without one of its quirks, in the order of ``Quirks/named``.
    private let without: [DMAOutcome]

    /// Nil where no tables are walked.
    init?(ram: GuestRAM, shape: MachineShape, dma: DMA, index: Int, steps: [Step]) {
        guard let ste = Self.streamTableEntry(ram, dma, steps), ste.v, ste.config.rawValue > 0b100 else { return nil }
        func outcome(_ quirks: Quirks) -> DMAOutcome? {
            var walk = RefereeWalk(ram: ram, ste: ste, quirks: quirks, dma: dma)
            return walk.outcome(index)
        }
        guard let architecture = outcome([]), let qemu = outcome(.all) else { return nil }
        self.architecture = architecture
        self.qemu = qemu
        without = Quirks.named.compactMap { outcome(Quirks.all.subtracting($0.0)) }
        guard without.count == Quirks.named.count else { return nil }
    }

    /// The quirks by which the model's outcome and QEMU's differ; none where they do not explain it.
    func names(model: DMAOutcome, qemu theirs: DMAOutcome) -> [String] {
        guard model == architecture, theirs == qemu else { return [] }
        let names = zip(Quirks.named, without).compactMap { $1 != qemu ? $0.1 : nil }
        return names.isEmpty ? ["several-quirks"] : names
    }

    var text: String { "referee: architecture \(architecture); QEMU \(qemu)" }

    /// The STE of a DMA, by the stream table that registers name.
    static func streamTableEntry(_ ram: GuestRAM, _ dma: DMA, _ steps: [Step]) -> STE? {
        var base: UInt64 = 0
        var configuration: UInt64 = 0
        for step in steps {
            switch step {
            case .register64(RegisterOffset.strtabBase, let value): base = value & 0xF_FFFF_FFFF_FFC0
            case .register32(RegisterOffset.strtabBaseCfg, let value): configuration = UInt64(value)
            default: break
            }
        }
        let stream = UInt64(Layout.streams[dma.requester])
        let log2Size = configuration & 0x3F
        guard stream >> log2Size == 0 else { return nil }
        var address = base & ~((64 << log2Size) - 1) + stream * 64
        if configuration >> 16 & 3 == 1 {
            let split = configuration >> 6 & 0x1F
            let table = base & ~(max(64, 8 << (log2Size - split)) - 1)
            guard let entry = ram.load64(table + stream >> split * 8), entry & 0x1F != 0 else { return nil }
            let size: UInt64 = 64 << ((entry & 0x1F) - 1)
            address = entry & 0xFF_FFFF_FFFF_FFC0 & ~(size - 1) + (stream & ((1 << split) - 1)) * 64
        }
        var ste = STE()
        for index in 0..<8 {
            guard let word = ram.load64(address + UInt64(index) * 8) else { return nil }
            ste.words[index] = word
        }
        return ste
    }
}
