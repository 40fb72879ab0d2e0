// The part of a quick walk that stage 2 is: alone, or behind each table of stage 1.

import BitFields
import SMMUv3Spec
import SystemBus

/// What stage 2 makes of one IPA.
struct Stage2Answer {
    var output: UInt64 = 0
    var log2Bytes: UInt8 = 0
    var permissions = Permissions()
    var memoryAttribute: UInt8 = 0
    var shareability: UInt8 = 0
    var isWritableClean = false
}

/// What a stage-2 leaf permits, by its S2AP and by its XN.
struct Stage2Rights: Equatable, Sendable {
    /// A byte of permissions for each S2AP, then one for each XN[1:0].
    private var word: UInt64 = 0

    /// For a stage 2 that does not translate.
    init() {}

    /// Made of ``Stage2Configuration/permissions(of:)``; not for VMSAv8-32.
    init(_ stage2: Stage2Configuration) {
        for value in 0..<4 as Range<UInt64> {
            let byAP = Descriptor(rawValue: value &<< 6 | 0b10 &<< 53)
            let byXN = Descriptor(rawValue: value &<< 53)
            word |= UInt64(stage2.permissions(of: byAP).rawValue) &<< (value &* 8)
            word |= UInt64(stage2.permissions(of: byXN).rawValue) &<< (32 &+ value &* 8)
        }
    }

    /// What a leaf permits.
    @inline(__always)  // Once for each stage-2 walk.
    func permissions(of leaf: UInt64) -> Permissions {
        let byAP = word &>> ((leaf &>> 6 & 0b11) &* 8)
        let byXN = word &>> (32 &+ (leaf &>> 53 & 0b11) &* 8)
        return Permissions(rawValue: UInt8(truncatingIfNeeded: byAP | byXN))
    }
}

extension SMMUv3 {
    /// Translates an IPA by stage 2, from the TLB or by a walk.
    ///
    /// - Returns: Whether ``QuickWalk/second`` is what it gives; ``translateStage2(_:_:_:)`` has to say otherwise.
    @inline(never)  // For each table of stage 1, and for what it gives.
    func stage2(
        _ ipa: UInt64,
        _ required: Permissions,
        isInput: Bool,
        isWrite: Bool,
        _ walk: inout QuickWalk
    ) -> Bool {
        let plan = walk.plan
        guard ipa &>> plan.pointee.stage2.pointee.inputBits == 0, plan.pointee.stage2.pointee.isUsable else {
            return false
        }
        if !walk.looksInTLB || !findStage2(ipa, required, isWrite: isWrite, &walk) {
            guard walkStage2(ipa, isWrite: isWrite, &walk) else { return false }
        }
        guard walk.second.permissions.contains(required) else { return false }
        return isInput || !plan.pointee.stage2ProtectsTables
            || !Stage2Configuration.isDevice(
                memAttr: walk.second.memoryAttribute,
                forcesWriteBack: plan.pointee.stage2ForcesWriteBack
            )
    }

    /// What the TLB has of stage 2.
    @inline(never)  // Keeps the walk small.
    private func findStage2(
        _ ipa: UInt64,
        _ required: Permissions,
        isWrite: Bool,
        _ walk: inout QuickWalk
    ) -> Bool {
        guard let hit = translationCache.lookUp(ipa, tag: walk.plan.pointee.stage2Tag),
            hit.answers(required, isWrite: isWrite)
        else { return false }
        walk.second = Stage2Answer(
            output: hit.output(for: ipa),
            log2Bytes: hit.log2Bytes,
            permissions: hit.stage2Permissions,
            memoryAttribute: hit.memoryAttribute,
            shareability: hit.shareability,
            isWritableClean: hit.isWritableClean
        )
        return true
    }

    @inline(__always)  // By one caller.
    private func walkStage2(_ ipa: UInt64, isWrite: Bool, _ walk: inout QuickWalk) -> Bool {
        let half = walk.plan.pointee.stage2
        guard let leaf = stage2Leaf(of: ipa, half, &walk) else { return false }
        let word = leaf.descriptor
        guard word & half.pointee.requiredFlags == half.pointee.requiredFlags,
            !(options.cachesContiguousGroups && word[bit: 52])
        else { return false }
        let isClean = half.pointee.updatesDirtyState && word[bit: 51] && !word[bit: 7]
        guard !(isClean && isWrite) else { return false }
        let output = half.pointee.address(in: word, leaf.lowBit)
        guard half.pointee.reaches(output) else { return false }
        walk.second = Stage2Answer(
            output: output | (ipa & ~(UInt64.max &<< leaf.lowBit)),
            log2Bytes: UInt8(truncatingIfNeeded: leaf.lowBit),
            permissions: walk.plan.pointee.stage2Rights.permissions(of: word),
            memoryAttribute: UInt8(truncatingIfNeeded: (word &>> 2) & 0b1111),
            shareability: half.pointee.shareability ?? UInt8(truncatingIfNeeded: (word &>> 8) & 0b11),
            isWritableClean: isClean
        )
        if walk.fillsTLB { keepStage2(ipa, output, leaf, &walk) }
        return true
    }

    /// Keeps ``QuickWalk/second`` in the TLB.
    @inline(never)  // Keeps the walk small.
    private func keepStage2(_ ipa: UInt64, _ output: UInt64, _ leaf: FoundLeaf, _ walk: inout QuickWalk) {
        let base = ipa & (UInt64.max &<< leaf.lowBit)
        translationCache.fill(
            CachedTranslation(
                inputBase: base,
                outputBase: output,
                intermediateBase: base,
                log2Bytes: walk.second.log2Bytes,
                firstStageLog2Bytes: walk.second.log2Bytes,
                level: UInt8(truncatingIfNeeded: leaf.level),
                granule: walk.plan.pointee.stage2.pointee.granule,
                isGlobal: false,
                tag: walk.plan.pointee.stage2Tag,
                stage1Permissions: .all,
                stage2Permissions: walk.second.permissions,
                isWritableClean: walk.second.isWritableClean,
                memoryAttribute: walk.second.memoryAttribute,
                shareability: walk.second.shareability
            ),
            walkedAt: walk.generation
        )
        walk.descriptorsKept &+= leaf.descriptorsNotKept
        walk.walksKept &+= 1
    }

    /// The leaf of stage 2; nil where there is none, or a table is out of reach.
    @inline(__always)  // By one caller.
    private func stage2Leaf(
        of ipa: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> FoundLeaf? {
        var step = WalkStep(half)
        if walk.looksInWalkCache,
            let known = walkCache.lookUp(ipa, walk.plan.pointee.stage2WalkTag, half)
        {
            step.goOn(from: known, half)
        }
        walk.walks &+= 1
        var mark = walk.descriptors
        while true {
            let location = half.pointee.entry(of: ipa, in: step.table, step.lowBit, step.mask)
            guard let word = walk.reader.load(location) else { return nil }
            walk.descriptors &+= 1
            let descriptor = half.pointee.descriptor(word)
            guard descriptor & 0b11 == 0b11, step.level < 3 else {
                guard descriptor & 1 != 0, half.pointee.isLeaf(descriptor, level: step.level) else {
                    return nil
                }
                var leaf = FoundLeaf(descriptor, step)
                leaf.descriptorsNotKept = walk.descriptors &- mark
                return leaf
            }
            guard step.goOn(by: descriptor, half) else { return nil }
            if walk.fillsWalkCache {
                walkCache.insert(
                    step.table(at: step.table, half),
                    for: ipa,
                    walk.plan.pointee.stage2WalkTag,
                    walkedAt: walk.generation
                )
                walk.descriptorsKept &+= walk.descriptors &- mark
                mark = walk.descriptors
            }
        }
    }
}
