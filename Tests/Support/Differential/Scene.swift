// What a DMA finds in memory: the ground on which a difference is judged.

import SMMUv3Spec

/// The structures of one DMA as it finds them.
struct Scene {
    /// The L1STD, with a stream table of two levels.
    private(set) var l1std: L1STD?
    private(set) var split: UInt64 = 0
    /// Nil where the stream table does not lead to one.
    private(set) var ste: STE?
    private(set) var referee: Referee?

    init(ram: GuestRAM, run: Case, dma: DMA, index: Int) {
        var base: UInt64 = 0
        var configuration: UInt64 = 0
        for step in run.steps {
            switch step {
            case .register64(RegisterOffset.strtabBase, let value): base = value & 0xF_FFFF_FFFF_FFC0
            case .register32(RegisterOffset.strtabBaseCfg, let value): configuration = UInt64(value)
            default: break
            }
        }
        let stream = UInt64(Layout.streams[dma.requester])
        let log2Size = configuration & 0x3F
        guard stream >> log2Size == 0 else { return }
        var address = base & ~((64 << log2Size) - 1) + stream * 64
        if configuration >> 16 & 3 == 1 {
            split = configuration >> 6 & 0x1F
            let table = base & ~(max(64, 8 << (log2Size - split)) - 1)
            guard let entry = ram.load64(table + stream >> split * 8) else { return }
            l1std = L1STD(word: entry)
            guard entry & 0x1F != 0, entry & 0x1F < 12 else { return }
            let size: UInt64 = 64 << ((entry & 0x1F) - 1)
            address = entry & 0xFF_FFFF_FFFF_FFC0 & ~(size - 1) + (stream & ((1 << split) - 1)) * 64
        }
        var ste = STE()
        for index in 0..<8 {
            guard let word = ram.load64(address + UInt64(index) * 8) else { return }
            ste.words[index] = word
        }
        self.ste = ste
        referee = Referee(ram: ram, ste: ste, dma: dma, index: index)
    }
}
