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
    /// Where ``SMMUv3/walkQuickly(_:_:_:)`` puts what it finds.
    var entry = CachedTranslation.none
    /// Where the last step through stage 2 has put what it found.
    var second = Stage2Answer()
}

extension QuickWalk {
    /// Reports what was walked, and where that came to nothing what of it is not walked again.
    @inline(__always)  // Once for each walk.
    func report(_ isDone: Bool, to observer: inout some LookupObserver, _ counters: Counters) {
        let fetched = isDone ? descriptors : descriptorsKept
        observer.accessedTables(fetched)
        observer.walked(isDone ? walks : walksKept, fetching: fetched, counters)
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
            reader: bus.makeDescriptorReader(),
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
    /// - Returns: Whether there is a translation that permits the access: ``QuickWalk/entry``. Otherwise
    ///   ``walkStage1(_:_:)`` has to say what becomes of it.
    @inline(never)  // Keeps the way of a TLB hit small.
    func walkQuickly(_ address: UInt64, _ access: EffectiveAccess, _ walk: inout QuickWalk) -> Bool {
        walk.plan.pointee.isUpper(address)
            ? translate(~0, address, walk.plan.pointee.upper, access, &walk)
            : translate(0, address, walk.plan.pointee.lower, access, &walk)
    }

    /// - Parameter sign: What the bits above the input size have to be.
    @inline(__always)  // Once for each half of the addresses.
    private func translate(
        _ sign: UInt64,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ access: EffectiveAccess,
        _ walk: inout QuickWalk
    ) -> Bool {
        guard half.pointee.isUsable, (address ^ sign) &>> half.pointee.inputBits == 0,
            let leaf = stage1Leaf(of: address, half, &walk)
        else { return false }
        let word = leaf.descriptor
        guard word & half.pointee.requiredFlags == half.pointee.requiredFlags,
            !(options.cachesContiguousGroups && word[bit: 52])
        else { return false }
        let isClean = half.pointee.updatesDirtyState && word[bit: 51] && word[bit: 7]
        guard !(isClean && access.isWrite) else { return false }
        let output = half.pointee.address(in: word, leaf.lowBit)
        guard half.pointee.reaches(output) else { return false }
        var permissions = walk.plan.pointee.permissionTable.permissions(
            of: word,
            leaf.hierarchical,
            isClean: isClean
        )
        if half.pointee.refusesUnprivileged { permissions.subtract(.unprivileged) }
        guard permissions.contains(access.required) else { return false }
        let index = (word &>> 2) & 0b111
        walk.entry = CachedTranslation(
            inputBase: address & (UInt64.max &<< leaf.lowBit),
            outputBase: output,
            intermediateBase: output,
            log2Bytes: UInt8(truncatingIfNeeded: leaf.lowBit),
            firstStageLog2Bytes: UInt8(truncatingIfNeeded: leaf.lowBit),
            level: UInt8(truncatingIfNeeded: leaf.level),
            granule: half.pointee.granule,
            isGlobal: walk.plan.pointee.hasTwoRanges && !word[bit: 11],
            tag: walk.plan.pointee.tag,
            stage1Permissions: permissions,
            stage2Permissions: .all,
            isWritableClean: isClean,
            memoryAttribute: UInt8(truncatingIfNeeded: walk.plan.pointee.effectiveMAIR &>> (index &* 8)),
            shareability: MemoryAttributes.effectiveShareability(
                half.pointee.shareability ?? UInt8(truncatingIfNeeded: (word &>> 8) & 0b11)
            )
        )
        return !walk.plan.pointee.translatesStage2 || follow(address, access, &walk)
    }

    /// Puts stage 2 behind what stage 1 gives.
    ///
    /// - Returns: Whether that went well.
    @inline(never)  // Keeps the walk without stage 2 small.
    private func follow(_ address: UInt64, _ access: EffectiveAccess, _ walk: inout QuickWalk) -> Bool {
        let ipa = walk.entry.output(for: address)
        guard stage2(ipa, access.required, isInput: true, isWrite: access.isWrite, &walk) else {
            return false
        }
        let second = walk.second
        let attributes = MemoryAttributes(
            mair: walk.entry.memoryAttribute,
            shareability: walk.entry.shareability
        )
        .combined(
            memAttr: second.memoryAttribute,
            sh: second.shareability,
            forcesWriteBack: walk.plan.pointee.stage2ForcesWriteBack
        )
        let size = min(walk.entry.log2Bytes, second.log2Bytes)
        let above = UInt64.max &<< UInt64(size)
        walk.entry.log2Bytes = size
        walk.entry.inputBase = address & above
        walk.entry.intermediateBase = ipa & above
        walk.entry.outputBase = second.output & above
        walk.entry.stage2Permissions = second.permissions
        if second.isWritableClean { walk.entry.isWritableClean = true }
        walk.entry.memoryAttribute = attributes.mair
        walk.entry.shareability = attributes.shareability
        return true
    }

    /// The leaf of stage 1; nil where there is none, or a table is out of reach.
    @inline(__always)  // By one caller for each half.
    private func stage1Leaf(
        of address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> FoundLeaf? {
        let isNested = walk.plan.pointee.translatesStage2
        var step = WalkStep(half)
        // The table's address is a physical one.
        var isLocated = !isNested
        if walk.looksInWalkCache, half.pointee.usesWalkCache,
            let known = walkCache.lookUp(address, walk.plan.pointee.walkTag, half)
        {
            step.goOn(from: known, half)
            isLocated = true
        }
        walk.walks &+= 1
        var isKnown = true
        while true {
            var location = half.pointee.entry(of: address, in: step.table, step.lowBit, step.mask)
            if !isLocated {
                guard stage2(location, .unprivilegedRead, isInput: false, isWrite: false, &walk) else {
                    return nil
                }
                location = walk.second.output
                // A table that stage 2 has in more than one page is nowhere by itself.
                if UInt64(walk.second.log2Bytes) < half.pointee.pageBits { isKnown = true }
            }
            if !isKnown, walk.fillsWalkCache, half.pointee.usesWalkCache {
                walkCache.insert(
                    step.table(at: location, half),
                    for: address,
                    walk.plan.pointee.walkTag,
                    walkedAt: walk.generation
                )
                // This walk itself is begun again, from here.
                walk.descriptorsKept = walk.descriptors
                walk.walksKept = walk.walks &- 1
            }
            guard let word = walk.reader.load(location) else { return nil }
            walk.descriptors &+= 1
            let descriptor = half.pointee.descriptor(word)
            guard descriptor & 0b11 == 0b11, step.level < 3 else {
                guard descriptor & 1 != 0, half.pointee.isLeaf(descriptor, level: step.level) else {
                    return nil
                }
                return FoundLeaf(descriptor, step)
            }
            guard step.goOn(by: descriptor, half) else { return nil }
            isKnown = false
            isLocated = !isNested
        }
    }
}
