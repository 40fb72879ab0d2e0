// Walks that succeed, made short: by plans rather than formats, with nothing at hand that only a fault needs.
//
// Whatever is out of the ordinary, a fault above all, is given up here and walked again by the walks of
// Stage1Walk.swift and Stage2Walk.swift, which know the order of faults and every update of a descriptor. By then the
// caches may know what was found on the way; that is counted, and not fetched again.

import BitFields
import SMMUv3Spec
import SystemBus

/// What the walks of one look-up have at hand, and what they come to.
struct QuickWalk {
    var reader: DescriptorReader
    /// Of a ``ResolvedStream`` that the caller keeps.
    let plan: UnsafePointer<StreamPlan>
    let generation: InvalidationStamp
    /// Whether stage-2 translations are looked for in the TLB.
    let looksInTLB: Bool
    /// Whether they are kept there.
    let fillsTLB: Bool
    /// The same of the walk cache.
    let looksInWalkCache: Bool
    let fillsWalkCache: Bool
    var walks: UInt64 = 0
    var descriptors: UInt64 = 0
    /// How many of both need not be made again where this fails: the caches know what they came to.
    var walksKept: UInt64 = 0
    var descriptorsKept: UInt64 = 0
    /// How many descriptors on the way to the last leaf the walk cache does not know.
    var descriptorsNotKept: UInt64 = 0
    /// Where stage 1 has put what it found, and where the last step through stage 2 has.
    var first = Stage1Answer()
    var second = Stage2Answer()
    /// What ``SMMUv3/walkQuickly(_:_:_:)`` has found: the output address, log2 of the bytes that the translation
    /// covers, and what all stages together permit.
    var output: UInt64 = 0
    var log2Bytes: UInt64 = 0
    var permissions = Permissions()
}

extension TLBHit {
    /// What ``SMMUv3/walkQuickly(_:_:_:)`` has found.
    @inline(__always)  // Once for each walk.
    init(_ walk: borrowing QuickWalk) {
        outputBase = walk.output & (UInt64.max &<< walk.log2Bytes)
        permissions = walk.permissions
        log2Bytes = UInt8(truncatingIfNeeded: walk.log2Bytes)
        isOfRegion = walk.isOfRegion
    }
}

/// What stage 1 makes of one address.
struct Stage1Answer {
    /// The leaf, in the processor's byte order.
    var leaf: UInt64 = 0
    /// The address of its first byte: an IPA, where stage 2 translates.
    var base: UInt64 = 0
    var log2Bytes: UInt64 = 0
    var permissions = Permissions()
    var isWritableClean = false
    /// Whether it answers for the ASID's addresses alone.
    var isNotGlobal = false
}

extension QuickWalk {
    /// Reports what was walked, and where that came to nothing what of it is not walked again.
    @inline(__always)  // Once for each walk.
    func report(_ isDone: Bool, to observer: inout some LookupObserver, _ counters: Counters) {
        let fetched = isDone ? descriptors : descriptorsKept
        observer.accessedTables(fetched)
        observer.walked(isDone ? walks : walksKept, fetching: fetched, counters)
    }

    /// Whether what was found goes by the invalidations of its region; see ``CachedTranslation/isOfRegion``.
    @inline(__always)  // Once for each walk.
    var isOfRegion: Bool {
        first.isNotGlobal && first.log2Bytes <= InvalidationGeneration.log2RegionBytes
    }

    /// What ``SMMUv3/walkQuickly(_:_:_:)`` has found for an address, as the TLB keeps it.
    func entry(of address: UInt64) -> CachedTranslation {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        let above = UInt64.max &<< log2Bytes
        let ipa = first.base | (address & ~(UInt64.max &<< first.log2Bytes))
        let index = (first.leaf &>> 2) & 0b111
        var result = CachedTranslation(
            inputBase: address & above,
            outputBase: output & above,
            intermediateBase: ipa & above,
            log2Bytes: UInt8(truncatingIfNeeded: log2Bytes),
            firstStageLog2Bytes: UInt8(truncatingIfNeeded: first.log2Bytes),
            level: UInt8(truncatingIfNeeded: half.pointee.level(ofEntriesCovering: first.log2Bytes)),
            granule: half.pointee.granule,
            isGlobal: !first.isNotGlobal,
            tag: plan.pointee.tag,
            stage1Permissions: first.permissions,
            stage2Permissions: .all,
            isWritableClean: first.isWritableClean,
            memoryAttribute: UInt8(truncatingIfNeeded: plan.pointee.effectiveMAIR &>> (index &* 8)),
            shareability: MemoryAttributes.effectiveShareability(half.pointee.shareability(of: first.leaf))
        )
        guard plan.pointee.translatesStage2 else { return result }
        let attributes = MemoryAttributes(
            mair: result.memoryAttribute,
            shareability: result.shareability
        )
        .combined(
            memAttr: second.memoryAttribute,
            sh: plan.pointee.stage2.pointee.shareability(of: second.leaf),
            forcesWriteBack: plan.pointee.stage2ForcesWriteBack
        )
        result.stage2Permissions = second.permissions
        if second.isWritableClean { result.isWritableClean = true }
        result.memoryAttribute = attributes.mair
        result.shareability = attributes.shareability
        return result
    }
}

extension SMMUv3 {
    @inline(__always)  // By three callers.
    func makeQuickWalk(
        _ plan: UnsafePointer<StreamPlan>,
        _ policy: CachePolicy,
        _ generation: InvalidationStamp
    )
        -> QuickWalk
    {
        QuickWalk(
            reader: busView.makeDescriptorReader(),
            plan: plan,
            generation: generation,
            looksInTLB: policy.looksInCaches && options.tlbEntries > 0,
            fillsTLB: policy == .cached && options.tlbEntries > 0,
            looksInWalkCache: policy.looksInCaches && walkCache.isEnabled,
            fillsWalkCache: policy == .cached && walkCache.isEnabled
        )
    }

    /// Walks stage 1, and stage 2 behind it where it translates.
    ///
    /// - Parameters:
    ///   - address: The input address, canonical.
    ///   - access: What is to be permitted.
    /// - Returns: Whether there is a translation that permits the access: `walk` says which. Otherwise
    ///   ``walkStage1(_:_:)`` has to say what becomes of it.
    @inline(never)  // Keeps the way of a TLB hit small.
    func walkQuickly(_ address: UInt64, _ access: EffectiveAccess, _ walk: inout QuickWalk) -> Bool {
        let plan = walk.plan
        let isUpper = plan.pointee.isUpper(address)
        let half = isUpper ? plan.pointee.upper : plan.pointee.lower
        // What the bits above the input size have to be.
        let sign = isUpper ? UInt64.max : 0
        guard half.pointee.isUsable, (address ^ sign) &>> half.pointee.inputBits == 0 else { return false }
        var step = WalkStep(half)
        let isNested = plan.pointee.translatesStage2
        var isLocated = !isNested
        if walk.looksInWalkCache, half.pointee.usesWalkCache, let known = walkCache.lookUp(address, half) {
            step.goOn(from: known, half)
            isLocated = true
        }
        walk.walks &+= 1
        let leaf =
            isNested
            ? descendBehindStage2(address, half, step, isLocated, &walk) : descend(address, half, step, &walk)
        guard leaf.descriptor != 0, accept(leaf, half, access.required, isWrite: access.isWrite, &walk) else {
            return false
        }
        walk.output = walk.first.base | (address & ~(UInt64.max &<< walk.first.log2Bytes))
        walk.log2Bytes = walk.first.log2Bytes
        walk.permissions = walk.first.permissions
        if isNested {
            guard
                stepThroughStage2(
                    walk.output,
                    access.required,
                    isInput: true,
                    isWrite: access.isWrite,
                    &walk
                )
            else { return false }
            walk.output = walk.second.output
            walk.log2Bytes = min(walk.log2Bytes, walk.second.log2Bytes)
            walk.permissions.formIntersection(walk.second.permissions)
        }
        return walk.reader.isIntact
    }

    /// Takes a leaf of stage 1 that is not updated, and permits the access.
    ///
    /// - Returns: Whether it is one: ``QuickWalk/first``.
    @inline(__always)  // By one caller.
    private func accept(
        _ found: FoundLeaf,
        _ half: UnsafePointer<WalkPlan>,
        _ required: Permissions,
        isWrite: Bool,
        _ walk: inout QuickWalk
    ) -> Bool {
        let leaf = found.descriptor
        guard leaf & half.pointee.requiredFlags == half.pointee.requiredFlags,
            !(leaf[bit: 52] && options.cachesContiguousGroups)
        else { return false }
        let isClean = leaf[bit: 51] && half.pointee.updatesDirtyState && leaf[bit: 7]
        guard !(isClean && isWrite) else { return false }
        var permissions = walk.plan.pointee.permissionTable.permissions(
            of: leaf,
            found.above & half.pointee.hierarchicalMask,
            isClean: isClean
        )
        if half.pointee.refusesUnprivileged { permissions.subtract(.unprivileged) }
        guard permissions.contains(required) else { return false }
        walk.first = Stage1Answer(
            leaf: leaf,
            base: found.base,
            log2Bytes: found.lowBit,
            permissions: permissions,
            isWritableClean: isClean,
            isNotGlobal: !walk.plan.pointee.hasTwoRanges || leaf[bit: 11]
        )
        return true
    }
}
