// Walks that succeed, made short: by plans rather than formats, with nothing at hand that only a fault needs.
//
// Whatever is out of the ordinary, a fault above all, is given up here and walked again by the walks of
// Stage1Walk.swift and Stage2Walk.swift, which know the order of faults and every update of a descriptor. By then the
// caches may know what was found on the way; that is counted, and not fetched again.

import BitFields
import SMMUv3Spec
import SystemBus

/// Which caches the walks of a look-up go by.
struct WalkCaches: OptionSet {
    let rawValue: UInt8

    /// Stage-2 translations are looked for in the TLB.
    static let looksInTLB = WalkCaches(rawValue: 1 << 0)
    /// They are kept there.
    static let fillsTLB = WalkCaches(rawValue: 1 << 1)
    /// The same of the walk cache.
    static let looksInWalkCache = WalkCaches(rawValue: 1 << 2)
    static let fillsWalkCache = WalkCaches(rawValue: 1 << 3)
}

/// What the walks of one look-up have at hand, and what they come to.
struct QuickWalk {
    var reader: DescriptorReader
    /// Of a ``ResolvedStream`` that the caller keeps.
    let plan: UnsafePointer<StreamPlan>
    let generation: InvalidationStamp
    let caches: WalkCaches
    var walks: UInt64 = 0
    var descriptors: UInt64 = 0
    /// How many of both need not be made again where this fails: the caches know what they came to.
    var walksKept: UInt64 = 0
    var descriptorsKept: UInt64 = 0
    /// How many descriptors on the way to the last leaf the walk cache does not know.
    var descriptorsNotKept: UInt64 = 0
    /// Where the configuration was compared with what is in memory, how many structures that took, and how many of
    /// the walks and descriptors.
    var structures: UInt64 = 0
    var walksBefore: UInt64 = 0
    var descriptorsBefore: UInt64 = 0
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

    @inline(__always)  // For each walk.
    var looksInTLB: Bool { caches.contains(.looksInTLB) }
    @inline(__always)  // Likewise.
    var fillsTLB: Bool { caches.contains(.fillsTLB) }
    @inline(__always)  // Likewise.
    var looksInWalkCache: Bool { caches.contains(.looksInWalkCache) }
    @inline(__always)  // Likewise.
    var fillsWalkCache: Bool { caches.contains(.fillsWalkCache) }

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
            caches: walkCaches(policy)
        )
    }

    /// The caches that walks go by where look-ups do as `policy` says.
    func walkCaches(_ policy: CachePolicy) -> WalkCaches {
        var caches: WalkCaches = []
        guard policy.looksInCaches else { return caches }
        if options.tlbEntries > 0 { caches.insert(.looksInTLB) }
        if walkCache.isEnabled { caches.insert(.looksInWalkCache) }
        guard policy == .cached else { return caches }
        return caches.union(WalkCaches(rawValue: caches.rawValue &<< 1))
    }

    /// Walks stage 1, and stage 2 behind it where it translates.
    ///
    /// - Parameters:
    ///   - address: The input address, canonical.
    ///   - required: What is to be permitted.
    /// - Returns: Whether there is a translation that permits the access: `walk` says which. Otherwise
    ///   ``walkStage1(_:_:)`` has to say what becomes of it.
    @inline(__always)  // By few callers.
    func walkQuickly(_ address: UInt64, _ required: Permissions, _ walk: inout QuickWalk) -> Bool {
        walk.plan.pointee.translatesStage2
            ? walkBothStages(address, required, &walk) : walkOneStage(address, required, &walk)
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func walkBothStages(_ address: UInt64, _ required: Permissions, _ walk: inout QuickWalk) -> Bool {
        guard let half = tables(for: address, walk.plan) else { return false }
        walk.walks &+= 1
        let leaf: FoundLeaf
        // Most walks of those that the walk cache knows anything of.
        if walk.looksInWalkCache, half.pointee.usesWalkCache, half.pointee.isUsual,
            let known = walkCache.lastTable4KiB(address, half.pointee.tag),
            let word = walk.reader.word(in: known.address, at: WalkPlan.offset4KiB(of: address, 9)),
            half.pointee.isOrdinaryLeaf(word)
        {
            walk.descriptors &+= 1
            let base = word & WalkPlan.addressMask4KiB
            leaf = FoundLeaf(descriptor: word, base: base, lowBit: 12, above: known.hierarchical)
        } else {
            leaf = descendBehindStage2(address, half, &walk)
        }
        guard leaf.descriptor != 0, accept(leaf, address, half, required, &walk),
            stepThroughStage2(walk.output, required, isInput: true, &walk)
        else { return false }
        walk.output = walk.second.output
        walk.log2Bytes = min(walk.log2Bytes, walk.second.log2Bytes)
        walk.permissions.formIntersection(walk.second.permissions)
        return walk.reader.isIntact
    }

    /// The tables of an address, if they are walked quickly and it is of their input size.
    @inline(__always)  // For each walk.
    private func tables(for address: UInt64, _ plan: UnsafePointer<StreamPlan>) -> UnsafePointer<WalkPlan>? {
        let isUpper = plan.pointee.isUpper(address)
        let half = isUpper ? plan.pointee.upper : plan.pointee.lower
        // What the bits above the input size have to be.
        let sign = isUpper ? UInt64.max : 0
        return half.pointee.isUsable && (address ^ sign) & half.pointee.beyondInput == 0 ? half : nil
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func walkOneStage(_ address: UInt64, _ required: Permissions, _ walk: inout QuickWalk) -> Bool {
        guard let half = tables(for: address, walk.plan) else { return false }
        walk.walks &+= 1
        return ordinaryPage(of: address, half, &walk) { (word, above, walk) in
            let base = word & WalkPlan.addressMask4KiB
            let leaf = FoundLeaf(descriptor: word, base: base, lowBit: 12, above: above)
            return acceptUsable(leaf, address, half, required, &walk) && walk.reader.isIntact
        } other: { (entry, step, start, walk) in
            walkOneStage(entry, step, start, address, half, required, &walk)
        }
    }

    /// The same from an entry on, as ``goOn(_:_:_:_:since:_:)`` has it, by tables of every shape.
    @inline(never)  // Keeps the walk of ordinary tables small.
    private func walkOneStage(
        _ entry: UInt64,
        _ first: WalkStep,
        _ start: UInt64,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ required: Permissions,
        _ walk: inout QuickWalk
    ) -> Bool {
        let leaf = goOn(entry, first, address, half, since: start, &walk)
        return leaf.descriptor != 0 && accept(leaf, address, half, required, &walk) && walk.reader.isIntact
    }

    /// Takes a leaf of stage 1 that is not updated, and permits the access.
    ///
    /// - Returns: Whether it is one: ``QuickWalk/first``, and what has been found so far.
    @inline(__always)  // By two callers.
    private func accept(
        _ found: FoundLeaf,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ required: Permissions,
        _ walk: inout QuickWalk
    ) -> Bool {
        found.descriptor & half.pointee.requiredFlags == half.pointee.requiredFlags
            && acceptUsable(found, address, half, required, &walk)
    }

    /// The same of a leaf that has the access flag where it needs it.
    @inline(__always)  // By few callers.
    private func acceptUsable(
        _ found: FoundLeaf,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ required: Permissions,
        _ walk: inout QuickWalk
    ) -> Bool {
        let leaf = found.descriptor
        guard !(leaf[bit: 52] && options.cachesContiguousGroups)
        else { return false }
        let isClean = leaf[bit: 51] && half.pointee.updatesDirtyState && leaf[bit: 7]
        guard !(isClean && required.includesWrite) else { return false }
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
        walk.output = found.base | (address & ~(UInt64.max &<< found.lowBit))
        walk.log2Bytes = found.lowBit
        walk.permissions = permissions
        return true
    }
}
