// A stream table, linear or in two levels, and how the SMMU is told of it.

import AddressSpace
import SMMUv3Spec

/// Where STEs are.
struct StreamTable {
    var base: UInt64 = Layout.streamTable
    var log2Size: UInt64
    var split: UInt64 = 6
    let isTwoLevel: Bool
    /// SMMU_CR2: PTM, RECINVSID, E2H.
    var cr2: UInt32 = 0b010
    /// L1STD.Span of each second level, of this type's own choice where there is none.
    private var secondLevels: [UInt64: UInt64] = [:]

    init(_ builder: CaseBuilder, isTwoLevel: Bool) {
        self.isTwoLevel = isTwoLevel
        // StreamID 0x500 has to be in it.
        log2Size = 11
        guard isTwoLevel else { return }
        log2Size = 11 + builder.random.below(6)
        split = builder.random.pick([6, 8, 10])
    }

    var byteCount: UInt64 { isTwoLevel ? max(64, 8 << (log2Size - split)) : 64 << log2Size }

    /// STRTAB_BASE_CFG.
    var configuration: UInt32 {
        UInt32(log2Size | (isTwoLevel ? split << 6 | 1 << 16 : 0))
    }

    /// The L1STD of a StreamID.
    func firstLevel(_ streamID: UInt64) -> UInt64 { base + streamID >> split * 8 }

    /// Puts a stream's STE where it belongs, and its CD where the STE says.
    mutating func place(_ stream: Stream, _ builder: CaseBuilder) {
        var stream = stream
        place(&stream, builder)
    }

    /// The same, and notes where the STE is.
    mutating func place(_ stream: inout Stream, _ builder: CaseBuilder) {
        let streamID = UInt64(stream.streamID.rawValue)
        if isTwoLevel {
            let index = streamID >> split
            let within = streamID & ((1 << split) - 1)
            if secondLevels[index] == nil {
                // As many as it needs, or more.
                var span: UInt64 = 1
                while 1 << (span - 1) <= within { span += 1 }
                span += builder.random.below(split + 2 - span)
                guard let table = builder.allocate(64 << (span - 1)) else { return }
                secondLevels[index] = table
                builder.poke(firstLevel(streamID), table | span)
            }
            stream.steAddress = (secondLevels[index] ?? 0) + within * 64
        } else {
            stream.steAddress = base + streamID * 64
        }
        builder.poke(stream.steAddress, stream.ste.words)
        if stream.contextAddress != 0 { builder.poke(stream.contextAddress, stream.cd.words) }
    }

    func boot(_ builder: CaseBuilder, isEnabled: Bool = true) {
        // Bits of the base below the table's own size say nothing.
        let low = builder.random.chance(10) ? builder.random.next() & (byteCount - 1) & ~0x3F : 0
        builder.boot(base: base | low, configuration: configuration, isEnabled: isEnabled, cr2: cr2)
    }
}
