// An entry of the TLB in four words, which are read without a lock while somebody may be writing them.

import CLinux
import SMMUv3Spec

/// What a look-up compares, worked out once for a configuration.
struct TLBKey: Equatable, Sendable {
    /// The second word of an entry of the tag's own, without size and version.
    private let ownWord: UInt64
    /// The same of a global entry.
    private let globalWord: UInt64
    /// What spreads address spaces over the sets.
    let mix: UInt64
    let globalMix: UInt64

    init(_ tag: RegimeTag) {
        let regime = 1 | UInt64(tag.regime.rawValue) &<< 7 | UInt64(tag.vmid) &<< 27
        ownWord = regime | UInt64(tag.asid) &<< 11
        globalWord = regime | 1 &<< 9 | (tag.aset ? 1 &<< 10 : 0)
        mix = Self.spread(asid: tag.asid, vmid: tag.vmid)
        globalMix = Self.spread(asid: 0, vmid: tag.vmid)
    }

    private static func spread(asid: UInt16, vmid: UInt16) -> UInt64 {
        let hash = (UInt64(asid) &<< 16 | UInt64(vmid)) &* 0x9E37_79B9_7F4A_7C15
        return hash &>> 32
    }

    /// An entry that is not global need not match CD.ASET.
    @inline(__always)
    func own(_ log2Bytes: UInt64) -> (word: UInt64, mask: UInt64) {
        (ownWord | log2Bytes &<< 1, TLBEntry.versionBit &- 1 &- 1 &<< 10)
    }

    /// A global entry need not match the ASID.
    @inline(__always)
    func global(_ log2Bytes: UInt64) -> (word: UInt64, mask: UInt64) {
        (globalWord | log2Bytes &<< 1, (TLBEntry.versionBit &- 1) & ~(0xFFFF &<< 11))
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
/// | 0 | [63:12] | ``CachedTranslation/inputBase`` |
/// | | [11:6], [5:0] | stage-2 permissions; log2 of the first stage's page or block |
/// | 1 | [0], [6:1] | valid; log2 of the bytes covered |
/// | | [8:7], [9], [10] | regime; global; ASET |
/// | | [26:11], [42:27] | ASID; VMID |
/// | | [63:43] | version, another with each change |
/// | 2 | [51:12] | ``CachedTranslation/outputBase`` |
/// | | [5:0], [7] | permissions of all stages; writable-clean |
/// | | [9:8], [11:10] | level; granule |
/// | | [57:52], [59:58] | stage-1 permissions; shareability |
/// | 3 | [51:12], [7:0] | ``CachedTranslation/intermediateBase``; memory attribute |
///
/// One thread at a time writes, under the cache's lock: word 1 first, without the valid bit, and last. Readers read
/// word 1 before and after the others; it is the same only where the others belong to it, unless two million changes of
/// the place happen between the two.
struct TLBEntry {
    static let wordCount = 4
    static let versionBit: UInt64 = 1 &<< 43
    private static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000

    let words: UnsafeMutablePointer<UInt64>

    @inline(__always)
    static func + (entry: TLBEntry, count: Int) -> TLBEntry {
        TLBEntry(words: entry.words + count &* wordCount)
    }

    /// Compares an entry.
    ///
    /// - Returns: Its second word where it is the one that is sought, which is never 0; otherwise 0.
    @inline(__always)  // Several times for each look-up.
    func match(_ inputBase: UInt64, _ key: (word: UInt64, mask: UInt64)) -> UInt64 {
        let word = smmud_load_u64(words + 1)
        guard word & key.mask == key.word, smmud_load_u64(words) & ~0xFFF == inputBase else { return 0 }
        return word
    }

    /// In what an entry differs from the one that is sought; 0 where it is that.
    @inline(__always)  // Several times for each look-up.
    func differs(from inputBase: UInt64, _ key: (word: UInt64, mask: UInt64)) -> UInt64 {
        ((smmud_load_u64(words + 1) & key.mask) ^ key.word) | ((smmud_load_u64(words) & ~0xFFF) ^ inputBase)
    }

    /// What a port needs of an entry that has matched; nil where it has changed since.
    @inline(__always)  // Once for each look-up.
    func hit(matchedAt word: UInt64) -> TLBHit? {
        let input = smmud_load_u64(words)
        let output = smmud_load_u64(words + 2)
        guard smmud_load_u64(words + 1) == word else { return nil }
        return TLBHit(
            outputBase: output & Self.addressMask,
            permissions: Permissions(rawValue: UInt8(truncatingIfNeeded: output) & 0x3F),
            log2Bytes: UInt8(truncatingIfNeeded: word &>> 1) & 0x3F,
            isOfRegion: word & 1 &<< 9 == 0 && input & 0x3F <= InvalidationGeneration.log2RegionBytes
        )
    }

    /// All of an entry that has matched; nil where it has changed since.
    func translation(matchedAt word: UInt64) -> CachedTranslation? {
        let input = smmud_load_u64(words)
        let output = smmud_load_u64(words + 2)
        let intermediate = smmud_load_u64(words + 3)
        guard smmud_load_u64(words + 1) == word else { return nil }
        return CachedTranslation(
            inputBase: input & ~0xFFF,
            outputBase: output & Self.addressMask,
            intermediateBase: intermediate & Self.addressMask,
            log2Bytes: UInt8(truncatingIfNeeded: word &>> 1) & 0x3F,
            firstStageLog2Bytes: UInt8(truncatingIfNeeded: input) & 0x3F,
            level: UInt8(truncatingIfNeeded: output &>> 8) & 3,
            granule: Self.granules[Int(truncatingIfNeeded: output &>> 10) & 3],
            isGlobal: word & 1 &<< 9 != 0,
            tag: RegimeTag(
                regime: Self.regimes[Int(truncatingIfNeeded: word &>> 7) & 3],
                vmid: UInt16(truncatingIfNeeded: word &>> 27),
                asid: UInt16(truncatingIfNeeded: word &>> 11),
                aset: word & 1 &<< 10 != 0
            ),
            stage1Permissions: Permissions(rawValue: UInt8(truncatingIfNeeded: output &>> 52) & 0x3F),
            stage2Permissions: Permissions(rawValue: UInt8(truncatingIfNeeded: input &>> 6) & 0x3F),
            isWritableClean: output & 1 &<< 7 != 0,
            memoryAttribute: UInt8(truncatingIfNeeded: intermediate),
            shareability: UInt8(truncatingIfNeeded: output &>> 58) & 3
        )
    }

    // MARK: Under the lock

    var isValid: Bool { words[1] & 1 != 0 }

    /// What it holds.
    var current: CachedTranslation? { isValid ? translation(matchedAt: words[1]) : nil }

    func clear() { smmud_store_u64(words + 1, (words[1] | (Self.versionBit &- 1)) &+ 1) }

    /// Whether it holds a translation of the same addresses, with the same tag, as these words are.
    @inline(__always)  // For each entry of a set that a translation goes into.
    func isSame(as other: Words) -> Bool {
        (words[1] ^ other.tag) & (Self.versionBit &- 1) == 0 && (words[0] ^ other.input) & ~0xFFF == 0
    }

    /// Replaces what it holds.
    ///
    /// Each store is after those before it, for whoever loads in order.
    @inline(__always)  // Once for each fill.
    func write(_ entry: Words) {
        clear()
        smmud_store_u64(words, entry.input)
        smmud_store_u64(words + 2, entry.output)
        smmud_store_u64(words + 3, entry.intermediate)
        smmud_store_u64(words + 1, words[1] | entry.tag)
    }

    func write(_ entry: CachedTranslation) { write(Words(entry)) }

    /// What the four words are, but for the version.
    struct Words {
        let input: UInt64
        let tag: UInt64
        let output: UInt64
        let intermediate: UInt64

        @inline(__always)  // Once for each fill.
        init(_ entry: borrowing CachedTranslation) {
            input =
                entry.inputBase & ~0xFFF | UInt64(entry.stage2Permissions.rawValue) &<< 6
                | UInt64(entry.firstStageLog2Bytes & 0x3F)
            var word: UInt64 = 1 | UInt64(entry.log2Bytes & 0x3F) &<< 1
            word |= UInt64(entry.tag.regime.rawValue) &<< 7
            word |= (entry.isGlobal ? 1 : 0) &<< 9
            word |= (entry.tag.aset ? 1 : 0) &<< 10
            word |= UInt64(entry.tag.asid) &<< 11
            word |= UInt64(entry.tag.vmid) &<< 27
            tag = word
            word = entry.outputBase & TLBEntry.addressMask
            word |= UInt64(entry.permissions.rawValue)
            word |= (entry.isWritableClean ? 1 : 0) &<< 7
            word |= UInt64(entry.level & 3) &<< 8
            word |= TLBEntry.code(entry.granule) &<< 10
            word |= UInt64(entry.stage1Permissions.rawValue) &<< 52
            word |= UInt64(entry.shareability & 3) &<< 58
            output = word
            intermediate = entry.intermediateBase & TLBEntry.addressMask | UInt64(entry.memoryAttribute)
        }
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
