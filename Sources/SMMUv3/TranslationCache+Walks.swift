// What a quick walk of one stage has found, put into the TLB's words without a detour.

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
        guard !walk.plan.pointee.translatesStage2 else {
            return fill(walk.entry(of: address), walkedAt: stamp)
        }
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
}

extension QuickWalk {
    /// ``entry(of:)`` where stage 2 does not translate, as a ``TLBEntry``.
    ///
    /// It has room for it: the walk has seen that the address is of the input size, which is 52 bits at most.
    @inline(__always)  // By one caller.
    func words(of address: UInt64) -> TLBEntry.Words {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        let isGlobal = !first.isNotGlobal
        let base = output & (UInt64.max &<< log2Bytes)
        let shareability = MemoryAttributes.effectiveShareability(
            half.pointee.shareability(of: first.leaf)
        )
        return TLBEntry.Words(
            tag: (isGlobal ? plan.pointee.key.global : plan.pointee.key.own)
                | TLBEntry.range(address &>> log2Bytes, log2Bytes),
            output: TLBEntry.output(
                base,
                permissions,
                isOfRegion: isOfRegion,
                isPartial: false,
                vmid: plan.pointee.key.vmid
            ),
            intermediate: TLBEntry.intermediate(
                base,
                memoryAttribute: (plan.pointee.effectiveMAIR &>> ((first.leaf &>> 2 & 0b111) &* 8)) & 0xFF,
                first.permissions,
                shareability: shareability,
                isWritableClean: first.isWritableClean
            ),
            rest: TLBEntry.rest(
                firstStageLog2Bytes: log2Bytes,
                .all,
                level: UInt64(truncatingIfNeeded: half.pointee.level(ofEntriesCovering: log2Bytes)),
                half.pointee.granule,
                plan.pointee.tag
            )
        )
    }
}
