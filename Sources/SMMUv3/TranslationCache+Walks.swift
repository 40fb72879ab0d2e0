// What quick walks have found, put into the TLB's words without a detour.

import SMMUv3Spec

extension TranslationCache {
    /// As ``fill(_:walkedAt:)`` with ``QuickWalk/entry(of:)``.
    ///
    /// - Parameters:
    ///   - walk: Is not changed: so it is not copied.
    ///   - address: The canonical address that was walked.
    @inline(never)  // Keeps the way of a TLB hit small.
    func fill(_ walk: inout QuickWalk, of address: UInt64, walkedAt stamp: InvalidationStamp) {
        guard setCount > 0 else { return }
        let plan = walk.plan
        let isGlobal = !walk.first.isNotGlobal
        let page = address &>> walk.log2Bytes
        keep(
            walk.words(of: address),
            table.setIndex(page, isGlobal ? plan.pointee.key.globalMix : plan.pointee.key.mix) &* Self.ways,
            Int(truncatingIfNeeded: page) & (Self.ways &- 1),
            isOfRegion: walk.isOfRegion,
            walkedAt: stamp
        )
    }

    /// The same with what the last step through stage 2 has found of an IPA: ``QuickWalk/second``.
    @inline(never)  // Keeps the walk small.
    func fillStage2(_ walk: inout QuickWalk, of ipa: UInt64) {
        guard setCount > 0 else { return }
        let log2Bytes = walk.second.log2Bytes
        let page = ipa &>> log2Bytes
        keep(
            walk.stage2Words(of: ipa),
            table.setIndex(page, walk.plan.pointee.stage2Key.mix) &* Self.ways,
            Int(truncatingIfNeeded: page) & (Self.ways &- 1),
            isOfRegion: log2Bytes <= InvalidationGeneration.log2RegionBytes,
            walkedAt: walk.generation
        )
    }
}

// There is room for either: a walk has seen that the address is of the input size, which is 52 bits at most, and
// pages are of 4 KiB at least.
extension QuickWalk {
    /// ``entry(of:)`` as a ``TLBEntry``.
    @inline(__always)  // By one caller.
    func words(of address: UInt64) -> TLBEntry.Words {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        let isGlobal = !first.isNotGlobal
        let above = UInt64.max &<< log2Bytes
        let byte = (plan.pointee.effectiveMAIR &>> ((first.leaf &>> 2 & 0b111) &* 8)) & 0xFF
        var attributes = MemoryAttributes(
            mair: UInt8(truncatingIfNeeded: byte),
            shareability: MemoryAttributes.effectiveShareability(half.pointee.shareability(of: first.leaf))
        )
        var intermediate = output & above
        var isWritableClean = first.isWritableClean
        var stage2Permissions = Permissions.all
        if plan.pointee.translatesStage2 {
            attributes = attributes.combined(
                memAttr: second.memoryAttribute,
                sh: plan.pointee.stage2.pointee.shareability(of: second.leaf),
                forcesWriteBack: plan.pointee.stage2ForcesWriteBack
            )
            intermediate = (first.base | (address & ~(UInt64.max &<< first.log2Bytes))) & above
            isWritableClean = isWritableClean || second.isWritableClean
            stage2Permissions = second.permissions
        }
        return TLBEntry.Words(
            tag: (isGlobal ? plan.pointee.key.global : plan.pointee.key.own)
                | TLBEntry.range(address &>> log2Bytes, log2Bytes),
            output: TLBEntry.output(
                output & above,
                permissions,
                isOfRegion: isOfRegion,
                isPartial: first.log2Bytes != log2Bytes,
                vmid: plan.pointee.key.vmid
            ),
            intermediate: TLBEntry.intermediate(
                intermediate,
                memoryAttribute: UInt64(attributes.mair),
                first.permissions,
                shareability: attributes.shareability,
                isWritableClean: isWritableClean
            ),
            rest: TLBEntry.rest(
                firstStageLog2Bytes: first.log2Bytes,
                stage2Permissions,
                level: UInt64(truncatingIfNeeded: half.pointee.level(ofEntriesCovering: first.log2Bytes)),
                half.pointee.granule,
                plan.pointee.tag
            )
        )
    }

    /// The translation of an IPA by stage 2 alone, as a ``TLBEntry``.
    @inline(__always)  // By one caller.
    func stage2Words(of ipa: UInt64) -> TLBEntry.Words {
        let half = plan.pointee.stage2
        let log2Bytes = second.log2Bytes
        let above = UInt64.max &<< log2Bytes
        return TLBEntry.Words(
            tag: plan.pointee.stage2Key.own | TLBEntry.range(ipa &>> log2Bytes, log2Bytes),
            output: TLBEntry.output(
                second.output & above,
                second.permissions,
                isOfRegion: log2Bytes <= InvalidationGeneration.log2RegionBytes,
                isPartial: false,
                vmid: plan.pointee.stage2Key.vmid
            ),
            intermediate: TLBEntry.intermediate(
                ipa & above,
                memoryAttribute: UInt64(second.memoryAttribute),
                .all,
                shareability: half.pointee.shareability(of: second.leaf),
                isWritableClean: second.isWritableClean
            ),
            rest: TLBEntry.rest(
                firstStageLog2Bytes: log2Bytes,
                second.permissions,
                level: UInt64(truncatingIfNeeded: half.pointee.level(ofEntriesCovering: log2Bytes)),
                half.pointee.granule,
                plan.pointee.stage2Tag
            )
        )
    }
}
