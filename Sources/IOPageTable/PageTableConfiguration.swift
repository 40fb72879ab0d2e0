// The shape of a page table: stage, granule, address sizes, levels, page and block sizes.

/// The smallest page that a table maps, and the size of each of its tables.
package enum PageTableGranule: Int, CaseIterable, Sendable, Comparable {
    case kib4 = 12
    case kib16 = 14
    case kib64 = 16

    /// log2 of the size in bytes.
    package var log2: Int { rawValue }
    /// The size in bytes.
    package var byteCount: UInt64 { 1 << UInt64(rawValue) }
    /// How many address bits one full table resolves.
    var stride: Int { rawValue - 3 }

    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// What becomes of an unmap of part of a block.
package enum PartialUnmapPolicy: Sendable {
    /// It stops there, as newer kernels do (since about 6.13).
    case refuse
    /// A table of the next level takes the block's place, without break-before-make, as older kernels did.
    case split
}

/// Which stage a table is for.
package enum PageTableStage: Hashable, Sendable {
    /// From VA: a CD names it.
    case one
    /// From IPA: an STE names it.
    ///
    /// - Parameter forcesWriteBack: STE.S2FWB, which changes the encoding of memory types.
    case two(forcesWriteBack: Bool)
}

/// What a table is built for.
///
/// A value that exists is one for which tables can be built.
package struct PageTableConfiguration: Hashable, Sendable {
    package let stage: PageTableStage
    package let granule: PageTableGranule
    /// How many bits an IOVA has, or an IPA in stage 2 (ias); T0SZ is 64 less this.
    package let inputAddressBits: Int
    /// How many bits a physical address has (oas): 32, 36, 40, 42, 44, 48 or 52.
    package let outputAddressBits: Int
    /// Whether the walker snoops the CPU's caches (IDR0.COHACC, `dma-coherent`).
    package let isCoherent: Bool
    package let partialUnmap: PartialUnmapPolicy
    /// Whether hardware notes in a leaf that it was written (HTTU, CD.HD); stage 1 alone, as in Linux.
    package let tracksDirtyState: Bool

    /// The level of the top table, 0...3.
    package let startLevel: Int
    /// How many IOVA bits the top table resolves; in stage 2 all concatenated tables together.
    let topIndexBits: Int
    /// The sizes of pages and blocks, ascending.
    package let pageByteCounts: [UInt64]

    /// Checks and derives the shape.
    ///
    /// Sizes above 48 bits are used in full with 64 KiB pages only and are capped to 48 otherwise, as Linux does.
    /// - Throws: ``IOPageTableError/unsupportedInputSize(bits:)`` where T0SZ would leave 12...39,
    ///   or where stage 2 would need more than 16 tables side by side;
    ///   ``IOPageTableError/unsupportedOutputSize(bits:)`` where CD.IPS cannot say the size.
    package init(
        stage: PageTableStage = .one,
        granule: PageTableGranule,
        inputAddressBits: Int,
        outputAddressBits: Int,
        isCoherent: Bool,
        partialUnmap: PartialUnmapPolicy = .refuse,
        tracksDirtyState: Bool = false
    ) throws(IOPageTableError) {
        let limit = granule == .kib64 ? 52 : 48
        guard (25...64).contains(inputAddressBits) else {
            throw .unsupportedInputSize(bits: inputAddressBits)
        }
        let outputBits = min(outputAddressBits, limit)
        guard Self.physicalSizes.contains(outputBits) else {
            throw .unsupportedOutputSize(bits: outputAddressBits)
        }
        self.stage = stage
        self.granule = granule
        self.inputAddressBits = min(inputAddressBits, limit)
        self.outputAddressBits = outputBits
        self.isCoherent = isCoherent
        self.partialUnmap = partialUnmap
        self.tracksDirtyState = tracksDirtyState && stage == .one

        let resolved = self.inputAddressBits - granule.log2
        let levels = (resolved + granule.stride - 1) / granule.stride
        let topBits = resolved - granule.stride * (levels - 1)
        let concatenates =
            stage != .one
            && Self.mustConcatenate(
                granule,
                startLevel: 4 - levels,
                inputBits: self.inputAddressBits,
                outputBits: outputBits
            )
        guard !concatenates || topBits <= 4 else { throw .unsupportedInputSize(bits: inputAddressBits) }
        startLevel = 4 - levels + (concatenates ? 1 : 0)
        topIndexBits = topBits + (concatenates ? granule.stride : 0)
        pageByteCounts = Self.pageByteCounts(granule, outputBits, startLevel: startLevel)
    }

    /// Whether stage 2 has to begin a level lower, with up to 16 tables side by side (Arm ARM R_DXBSH, R_SRKBC).
    private static func mustConcatenate(
        _ granule: PageTableGranule,
        startLevel: Int,
        inputBits: Int,
        outputBits: Int
    ) -> Bool {
        switch (granule, startLevel) {
        case (.kib4, 0): outputBits == 40 || outputBits == 42
        case (.kib16, 0): inputBits == 48 || outputBits == 48
        case (.kib16, 1): outputBits == 40
        default: false
        }
    }

    /// The sizes that CD.IPS encodes as 0...6.
    static let physicalSizes = [32, 36, 40, 42, 44, 48, 52]

    private static func pageByteCounts(_ granule: PageTableGranule, _ outputBits: Int, startLevel: Int)
        -> [UInt64]
    {
        // The lowest level number at which the architecture has blocks.
        let topBlockLevel =
            switch granule {
            case .kib4: 1
            case .kib16: 2
            case .kib64: outputBits > 48 ? 1 : 2
            }
        let levels = max(topBlockLevel, startLevel)...3
        return levels.reversed().map { 1 << UInt64(granule.log2 + granule.stride * (3 - $0)) }
    }
}

// MARK: Geometry

extension PageTableConfiguration {
    /// The lowest IOVA bit that a table of `level` resolves.
    func shift(ofLevel level: Int) -> UInt64 { UInt64(granule.log2 + granule.stride * (3 - level)) }

    /// How many bytes of IOVA one entry of a table of `level` covers.
    package func entryByteCount(atLevel level: Int) -> UInt64 { 1 << shift(ofLevel: level) }

    /// The level whose entries cover `pageByteCount`, one of ``pageByteCounts``.
    func level(ofPages pageByteCount: UInt64) -> Int {
        3 - (pageByteCount.trailingZeroBitCount - granule.log2) / granule.stride
    }

    /// How many entries a table of `level` has.
    func entryCount(atLevel level: Int) -> UInt64 {
        1 << UInt64(level == startLevel ? topIndexBits : granule.stride)
    }

    /// The index of the entry for `iova`, which lies within the input size, in a table of `level`.
    func index(of iova: UInt64, atLevel level: Int) -> UInt64 {
        (iova &>> shift(ofLevel: level)) & (entryCount(atLevel: level) &- 1)
    }

    /// How large the top table is: 8 bytes an entry, and never less than the 64 bytes of its least alignment.
    package var topTableByteCount: UInt64 { max(64, entryCount(atLevel: startLevel) * 8) }

    /// Whether `level` has leaves.
    func hasLeaves(atLevel level: Int) -> Bool { pageByteCounts.contains(entryByteCount(atLevel: level)) }

    /// Which pages to use next, and how many before a larger size is worth another look.
    ///
    /// The rule is the kernel's: the largest size that the remaining length holds and to which both addresses
    /// are aligned; and only so many that the next larger size can start at its first boundary.
    /// - Precondition: All three are multiples of the granule, `byteCount` is not zero.
    func pageChoice(iova: UInt64, physical: UInt64, byteCount: UInt64) -> (
        pageByteCount: UInt64, count: UInt64
    ) {
        let merged = iova | physical
        let usable = pageByteCounts.lastIndex { $0 <= byteCount && merged & ($0 &- 1) == 0 }
        guard let usable else { preconditionFailure("addresses and size are multiples of the granule") }
        let page = pageByteCounts[usable]
        var length = byteCount
        if usable + 1 < pageByteCounts.count {
            let larger = pageByteCounts[usable + 1]
            let offset = larger &- (merged & (larger &- 1))
            // Both terms are at most 2^42 above and the length lies within the input size: no overflow.
            if (iova ^ physical) & (larger &- 1) == 0, offset &+ larger <= length { length = offset }
        }
        return (page, length / page)
    }
}
