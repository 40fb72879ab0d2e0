// An entry of the TLB in four words: two that look-ups read, and two for who wants to know everything.

import CLinux
import SMMUv3Spec

/// What a look-up compares, worked out once for a configuration.
struct TLBKey: Equatable, Sendable {
    /// The first word of an entry of the tag's own, but for the address.
    let own: UInt64
    /// The same of a global entry, which need not match the ASID.
    let global: UInt64
    let vmid: UInt64
    /// How far into the table the sets of the address space begin, as a fraction of 2^64.
    let mix: UInt64
    let globalMix: UInt64

    init(_ tag: RegimeTag) {
        own = Self.word(tag, isGlobal: false)
        global = Self.word(tag, isGlobal: true)
        vmid = UInt64(tag.vmid)
        mix = Self.mix(tag, isGlobal: false)
        globalMix = Self.mix(tag, isGlobal: true)
    }

    /// The first word of an entry but for the address.
    ///
    /// One that is not global need not match CD.ASET.
    @inline(__always)  // Once for each fill.
    static func word(_ tag: RegimeTag, isGlobal: Bool) -> UInt64 {
        UInt64(tag.regime.rawValue) &<< 59
            | (isGlobal ? TLBEntry.globalBit | (tag.aset ? 1 &<< 42 : 0) : UInt64(tag.asid) &<< 42)
    }

    /// A fraction of 2^64, which numbers in a row spread evenly: by the golden ratio, and by the plastic one.
    @inline(__always)  // Likewise.
    static func mix(_ tag: RegimeTag, isGlobal: Bool) -> UInt64 {
        (isGlobal ? 0 : UInt64(tag.asid) &* 0x9E37_79B9_7F4A_7C15) &+ UInt64(tag.vmid)
            &* 0xC13F_A9A9_02A6_328F
    }
}

/// What a port needs of a translation.
struct TLBHit {
    /// The output address of the entry's first byte.
    var outputBase: UInt64 = 0
    /// What all stages together permit.
    var permissions = Permissions()
    /// log2 of the bytes that it covers.
    var log2Bytes: UInt8 = 0
    /// Whether it goes by the invalidations of its region; see ``InvalidationGeneration``.
    var isOfRegion: Bool = false
}

/// The place of one entry.
///
/// | word | bits | what |
/// | --- | --- | --- |
/// | hot 0 | [41:0] | which addresses; see ``range(_:_:)`` |
/// | | [57:42] | ASID; of a global entry ASET in [42] |
/// | | [58], [60:59] | global; regime |
/// | hot 1 | [39:0] | bits [51:12] of ``CachedTranslation/outputBase`` |
/// | | [45:40] | permissions of all stages |
/// | | [46], [47] | ``CachedTranslation/isOfRegion``; ``CachedTranslation/isPartial`` |
/// | | [63:48] | VMID |
/// | cold 0 | [51:12], [7:0] | ``CachedTranslation/intermediateBase``; memory attribute |
/// | | [57:52] | stage-1 permissions |
/// | | [59:58], [60] | shareability; writable-clean |
/// | cold 1 | [5:0], [11:6] | log2 of the first stage's page or block; stage-2 permissions |
/// | | [13:12], [15:14] | level; granule |
/// | | [31:16], [32] | ASID; ASET |
///
/// Hot 0 is 0 where there is no entry. The hot words of a set are a line of the host's, and what a look-up compares
/// is all of hot 0, and the VMID.
struct TLBEntry {
    static let wordCount = 2
    static let globalBit: UInt64 = 1 &<< 58
    static let partialBit: UInt64 = 1 &<< 47
    private static let pageMask: UInt64 = (1 &<< 40) &- 1
    private static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000

    let hot: UnsafeMutablePointer<UInt64>
    let cold: UnsafeMutablePointer<UInt64>

    @inline(__always)
    static func + (entry: TLBEntry, count: Int) -> TLBEntry {
        TLBEntry(hot: entry.hot + count &* wordCount, cold: entry.cold + count &* wordCount)
    }

    /// Whether an address is one that entries may have: below 52 bits, or so far from the top.
    @inline(__always)  // Once for each look-up.
    static func isSignExtended(_ address: UInt64) -> Bool { ((address &>> 52) &+ 1) & 0xFFE == 0 }

    /// A page, or a block of any size, in 42 bits.
    ///
    /// Bits [52:12] of the address, where [52] stands for all above, and below the first bit that counts one that is
    /// set: how many zeros follow is the size.
    ///
    /// - Parameter page: A sign-extended address without the bits of the offset.
    @inline(__always)  // Likewise.
    static func range(_ page: UInt64, _ log2Bytes: UInt64) -> UInt64 {
        let base = page &<< log2Bytes
        return (base &<< 11) &>> 22 | 1 &<< (log2Bytes &- 12)
    }

    /// What a port needs of an entry with these hot words.
    @inline(__always)  // Likewise.
    static func hit(_ output: UInt64, _ log2Bytes: UInt64) -> TLBHit {
        TLBHit(
            outputBase: (output &<< 24) &>> 12,
            permissions: permissions(output),
            log2Bytes: UInt8(truncatingIfNeeded: log2Bytes),
            isOfRegion: output & 1 &<< 46 != 0
        )
    }

    /// Of the second hot word, what all stages permit.
    @inline(__always)  // Likewise.
    static func permissions(_ output: UInt64) -> Permissions {
        Permissions(rawValue: UInt8(truncatingIfNeeded: output &>> 40) & 0x3F)
    }

    /// Of the second hot word, the VMID.
    @inline(__always)  // Likewise.
    static func vmid(_ output: UInt64) -> UInt64 { output &>> 48 }

    /// Of the second hot word, how many pages of 4 KiB there are in the output above its own first one.
    @inline(__always)  // Once for each run of pages.
    static func pagesAbove(_ output: UInt64) -> UInt64 { ~output & pageMask }

    // MARK: Under the lock

    @inline(__always)  // For each entry of a set that a translation goes into.
    var isValid: Bool { hot[0] != 0 }

    /// What it holds.
    var current: CachedTranslation? {
        let tag = smmud_load_u64(hot)
        return tag == 0 ? nil : translation(tag)
    }

    /// All of it; without the lock, as good as ``TLBTable/isUnchanged(_:)`` says afterwards.
    ///
    /// - Parameter tag: Its first word, not 0.
    func translation(_ tag: UInt64) -> CachedTranslation {
        let output = smmud_load_u64(hot + 1)
        let intermediate = smmud_load_u64(cold)
        let rest = smmud_load_u64(cold + 1)
        return CachedTranslation(
            inputBase: Self.first(tag),
            outputBase: (output & Self.pageMask) &<< 12,
            intermediateBase: intermediate & Self.addressMask,
            log2Bytes: UInt8(truncatingIfNeeded: Self.log2Bytes(tag)),
            firstStageLog2Bytes: UInt8(truncatingIfNeeded: rest) & 0x3F,
            level: UInt8(truncatingIfNeeded: rest &>> 12) & 3,
            granule: Self.granules[Int(truncatingIfNeeded: rest &>> 14) & 3],
            isGlobal: tag & Self.globalBit != 0,
            tag: RegimeTag(
                regime: Self.regimes[Int(truncatingIfNeeded: tag &>> 59) & 3],
                vmid: UInt16(truncatingIfNeeded: Self.vmid(output)),
                asid: UInt16(truncatingIfNeeded: rest &>> 16),
                aset: rest & 1 &<< 32 != 0
            ),
            stage1Permissions: Permissions(rawValue: UInt8(truncatingIfNeeded: intermediate &>> 52) & 0x3F),
            stage2Permissions: Permissions(rawValue: UInt8(truncatingIfNeeded: rest &>> 6) & 0x3F),
            isWritableClean: intermediate & 1 &<< 60 != 0,
            memoryAttribute: UInt8(truncatingIfNeeded: intermediate),
            shareability: UInt8(truncatingIfNeeded: intermediate &>> 58) & 3
        )
    }

    /// The first address, sign-extended; of the first word, which is not 0.
    @inline(__always)  // Once for each entry that a scan looks at.
    static func first(_ tag: UInt64) -> UInt64 {
        let bits = tag & (1 &<< 42 &- 1)
        // Without the bit that stands for the size, and with bit 52 up to the top.
        let address = (bits & (bits &- 1)) &<< 11
        return UInt64(bitPattern: Int64(bitPattern: address &<< 11) &>> 11)
    }

    /// ``CachedTranslation/log2Bytes``, of the first word, which is not 0.
    @inline(__always)  // Likewise.
    static func log2Bytes(_ tag: UInt64) -> Int { tag.trailingZeroBitCount &+ 12 }

    /// Removes what it holds.
    ///
    /// Who has read the first word before, and reads the second after it, has what was there.
    @inline(__always)  // Once for each entry that goes.
    func clear() { smmud_store_u64(hot, 0) }

    /// Whether it holds a translation of the same addresses, with the same tag, as these words are.
    @inline(__always)  // For each entry of a set that a translation goes into.
    func isSame(as other: Words) -> Bool {
        hot[0] == other.tag && (hot[1] ^ other.output) &>> 48 == 0
    }

    /// Replaces what it holds: for ``TLBTable/write(_:at:)``, who tells readers.
    @inline(__always)  // Once for each fill.
    func store(_ words: Words) {
        smmud_store_u64(cold, words.intermediate)
        smmud_store_u64(cold + 1, words.rest)
        smmud_store_u64(hot + 1, words.output)
        smmud_store_u64(hot, words.tag)
    }

    /// What the four words are.
    struct Words: Equatable {
        let tag: UInt64
        let output: UInt64
        let intermediate: UInt64
        let rest: UInt64
    }

    @inline(__always)  // Once for each fill.
    static func output(
        _ base: UInt64,
        _ permissions: Permissions,
        isOfRegion: Bool,
        isPartial: Bool,
        vmid: UInt64
    ) -> UInt64 {
        (base &>> 12) & pageMask | UInt64(permissions.rawValue) &<< 40 | (isOfRegion ? 1 : 0) &<< 46
            | (isPartial ? partialBit : 0) | vmid &<< 48
    }

    @inline(__always)  // Likewise.
    static func intermediate(
        _ base: UInt64,
        memoryAttribute: UInt64,
        _ stage1Permissions: Permissions,
        shareability: UInt8,
        isWritableClean: Bool
    ) -> UInt64 {
        base & addressMask | memoryAttribute | UInt64(stage1Permissions.rawValue) &<< 52
            | UInt64(shareability & 3) &<< 58 | (isWritableClean ? 1 : 0) &<< 60
    }

    @inline(__always)  // Likewise.
    static func rest(
        firstStageLog2Bytes: UInt64,
        _ stage2Permissions: Permissions,
        level: UInt64,
        _ granule: Granule,
        _ tag: RegimeTag
    ) -> UInt64 {
        firstStageLog2Bytes & 0x3F | UInt64(stage2Permissions.rawValue) &<< 6 | (level & 3) &<< 12
            | code(granule) &<< 14 | UInt64(tag.asid) &<< 16 | (tag.aset ? 1 : 0) &<< 32
    }

    /// Whether the words have room for it: what walks come to has 52 bits of address, and pages of 4 KiB at least.
    @inline(__always)  // Once for each fill.
    static func canHold(_ entry: borrowing CachedTranslation) -> Bool {
        let log2Bytes = entry.log2Bytes
        guard log2Bytes >= 12, log2Bytes <= 52 else { return false }
        return isSignExtended(entry.inputBase)
    }

    private static let granules: InlineArray<4, Granule> = [.kib4, .kib16, .kib64, .kib4]
    private static let regimes: InlineArray<4, TranslationRegime> = [.nsEL1, .nsEL1Stage2, .nsEL2, .nsEL2E2H]

    static func code(_ granule: Granule) -> UInt64 {
        switch granule {
        case .kib4: 0
        case .kib16: 1
        case .kib64: 2
        }
    }
}

extension TLBEntry.Words {
    /// - Parameter entry: One that ``TLBEntry/canHold(_:)``.
    @inline(__always)  // Once for each fill.
    init(_ entry: borrowing CachedTranslation) {
        let log2Bytes = UInt64(entry.log2Bytes)
        self.init(
            tag: TLBEntry.range(entry.inputBase &>> log2Bytes, log2Bytes)
                | TLBKey.word(entry.tag, isGlobal: entry.isGlobal),
            output: TLBEntry.output(
                entry.outputBase,
                entry.permissions,
                isOfRegion: entry.isOfRegion,
                isPartial: entry.isPartial,
                vmid: UInt64(entry.tag.vmid)
            ),
            intermediate: TLBEntry.intermediate(
                entry.intermediateBase,
                memoryAttribute: UInt64(entry.memoryAttribute),
                entry.stage1Permissions,
                shareability: entry.shareability,
                isWritableClean: entry.isWritableClean
            ),
            rest: TLBEntry.rest(
                firstStageLog2Bytes: UInt64(entry.firstStageLog2Bytes),
                entry.stage2Permissions,
                level: UInt64(entry.level),
                entry.granule,
                entry.tag
            )
        )
    }
}
