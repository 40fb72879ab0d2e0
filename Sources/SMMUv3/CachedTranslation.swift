// One translation as the TLB keeps it: what it is found by, and what it answers.

import SMMUv3Spec

/// Which accesses a translation permits, one bit for each of read, write and execute at each privilege.
struct Permissions: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    init(rawValue: UInt8) { self.rawValue = rawValue }

    static let unprivilegedRead = Permissions(rawValue: 1 << 0)
    static let unprivilegedWrite = Permissions(rawValue: 1 << 1)
    static let unprivilegedExecute = Permissions(rawValue: 1 << 2)
    static let privilegedRead = Permissions(rawValue: 1 << 3)
    static let privilegedWrite = Permissions(rawValue: 1 << 4)
    static let privilegedExecute = Permissions(rawValue: 1 << 5)

    static let read: Permissions = [.unprivilegedRead, .privilegedRead]
    static let write: Permissions = [.unprivilegedWrite, .privilegedWrite]
    static let execute: Permissions = [.unprivilegedExecute, .privilegedExecute]
    static let unprivileged: Permissions = [.unprivilegedRead, .unprivilegedWrite, .unprivilegedExecute]
    static let all = Permissions(rawValue: 0x3F)

    /// Whether writes are among them.
    @inline(__always)  // Once for each walk.
    var includesWrite: Bool { rawValue & Self.write.rawValue != 0 }
}

/// Whose addresses a translation is for: what a TLBI names by its opcode.
enum TranslationRegime: UInt8, Hashable, Sendable {
    /// NS-EL1 by VA: stage 1 alone, or both stages in one.
    case nsEL1
    /// NS-EL1 by IPA: stage 2 alone.
    case nsEL1Stage2
    case nsEL2
    case nsEL2E2H

    /// The regime of a stream's own addresses in a Non-secure StreamWorld.
    init(_ world: StreamWorld) {
        switch world {
        case .nsEL2: self = .nsEL2
        case .nsEL2E2H: self = .nsEL2E2H
        default: self = .nsEL1
        }
    }
}

/// What an entry is tagged with beside its address (IHI 0070, 3.17 and 16.8).
struct RegimeTag: Hashable, Sendable {
    var regime: TranslationRegime
    /// S2VMID in NS-EL1 where stage 2 is implemented; else 0.
    var vmid: UInt16
    /// 0 where the regime has none: stage 2, NS-EL2.
    var asid: UInt16
    /// CD.ASET: what a global entry must match, and a non-global one need not.
    var aset: Bool
}

/// One translation of one page or block, or of the part of a stage-1 page that one stage-2 page holds.
struct CachedTranslation: Equatable, Sendable {
    /// The first input address, sign-extended from bit 55; an IPA in ``TranslationRegime/nsEL1Stage2``.
    var inputBase: UInt64
    var outputBase: UInt64
    /// The IPA of the first byte where both stages translate; otherwise as `outputBase`.
    var intermediateBase: UInt64
    /// log2 of the bytes that it covers.
    var log2Bytes: UInt8
    /// log2 of the page or block of the first stage: a TLBI for any address in there removes this entry too.
    var firstStageLog2Bytes: UInt8
    /// The level of the first stage's leaf descriptor, 0...3.
    var level: UInt8
    /// The first stage's granule.
    var granule: Granule
    /// nG == 0: answers for every ASID with the same ASET.
    var isGlobal: Bool
    var tag: RegimeTag
    /// What stage 1 permits; all where it does not translate.
    var stage1Permissions: Permissions
    /// What stage 2 permits; all where it does not translate.
    var stage2Permissions: Permissions
    /// A write that is not permitted may still be, once a walk has marked the page dirty (HTTU).
    var isWritableClean: Bool
    /// A MAIR byte, with stage 2's part in it where both translate; stage 2's MemAttr[3:0] where it is alone.
    var memoryAttribute: UInt8
    /// SH[1:0], with stage 2's part in it.
    var shareability: UInt8

    /// Nothing yet.
    static let none = CachedTranslation(
        inputBase: 0,
        outputBase: 0,
        intermediateBase: 0,
        log2Bytes: 0,
        firstStageLog2Bytes: 0,
        level: 0,
        granule: .kib4,
        isGlobal: false,
        tag: RegimeTag(regime: .nsEL1, vmid: 0, asid: 0, aset: false),
        stage1Permissions: [],
        stage2Permissions: [],
        isWritableClean: false,
        memoryAttribute: 0,
        shareability: 0
    )

    /// What all stages together permit.
    var permissions: Permissions { stage1Permissions.intersection(stage2Permissions) }

    /// Whether it is a part of the first stage's page or block.
    var isPartial: Bool { firstStageLog2Bytes != log2Bytes }

    /// Whether it goes by the invalidations of its region; see ``InvalidationGeneration``.
    ///
    /// Not what is larger, nor what is global: a TLBI of any ASID removes that.
    var isOfRegion: Bool {
        !isGlobal && UInt64(firstStageLog2Bytes) <= InvalidationGeneration.log2RegionBytes
    }

    func output(for input: UInt64) -> UInt64 { outputBase | offset(of: input) }

    /// The IPA that stage 1 makes of `input`.
    func intermediate(for input: UInt64) -> UInt64 { intermediateBase | offset(of: input) }

    private func offset(of input: UInt64) -> UInt64 { input & ((1 &<< UInt64(log2Bytes)) &- 1) }

    /// Whether it answers an access, or a walk might answer better.
    func answers(_ required: Permissions, isWrite: Bool) -> Bool {
        !(isWrite && isWritableClean) || permissions.contains(required)
    }

    /// This stage-1 translation followed by stage 2's of the address that it gives for `input`.
    func followed(by stage2: CachedTranslation, for input: UInt64, attributes: MemoryAttributes)
        -> CachedTranslation
    {
        var result = self
        let size = min(log2Bytes, stage2.log2Bytes)
        let below: UInt64 = (1 &<< UInt64(size)) &- 1
        let ipa = output(for: input)
        result.log2Bytes = size
        result.inputBase = input & ~below
        result.intermediateBase = ipa & ~below
        result.outputBase = stage2.output(for: ipa) & ~below
        result.stage2Permissions = stage2.stage2Permissions
        result.isWritableClean = isWritableClean || stage2.isWritableClean
        result.memoryAttribute = attributes.mair
        result.shareability = attributes.shareability
        return result
    }
}
