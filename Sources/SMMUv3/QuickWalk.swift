// Walks that succeed, made short: by plans rather than formats, with nothing at hand that only a fault needs.
//
// Whatever is out of the ordinary, a fault above all, gives nil here and is walked again from its beginning by
// the walks of Stage1Walk.swift and Stage2Walk.swift, which know the order of faults and every update of a
// descriptor. Nothing has been counted by then, and nothing changed but that the TLB may know more of stage 2.

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

/// A leaf and what was found above it.
private struct FoundLeaf {
    var descriptor: UInt64
    /// log2 of the page or block, and its level.
    var lowBit: UInt64
    var level: Int
    /// The tables' hierarchical attributes, where a descriptor has them.
    var hierarchical: UInt64
    /// How many descriptors on the way to it the walk cache does not know.
    var descriptorsNotKept: UInt64 = 0

    @inline(__always)  // Once for each walk.
    init(_ descriptor: UInt64, _ step: Step) {
        self.descriptor = descriptor
        lowBit = step.lowBit
        level = step.level
        hierarchical = step.hierarchical
    }
}

/// What stage 2 makes of one IPA.
private struct Stage2Answer {
    var output: UInt64
    var log2Bytes: UInt8
    var permissions: Permissions
    var memoryAttribute: UInt8
    var shareability: UInt8
    var isWritableClean: Bool

    init(_ entry: CachedTranslation, _ ipa: UInt64) {
        output = entry.output(for: ipa)
        log2Bytes = entry.log2Bytes
        permissions = entry.stage2Permissions
        memoryAttribute = entry.memoryAttribute
        shareability = entry.shareability
        isWritableClean = entry.isWritableClean
    }

    init(
        output: UInt64,
        log2Bytes: UInt8,
        permissions: Permissions,
        memoryAttribute: UInt8,
        shareability: UInt8,
        isWritableClean: Bool
    ) {
        self.output = output
        self.log2Bytes = log2Bytes
        self.permissions = permissions
        self.memoryAttribute = memoryAttribute
        self.shareability = shareability
        self.isWritableClean = isWritableClean
    }
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

/// What a port keeps of a translation.
struct QuickTranslation {
    var output: UInt64
    /// How many bytes from there on it covers.
    var byteCount: UInt64
    /// What the page permits, for each kind of access as the device drives it.
    var permissions: Permissions
    /// Whether it goes by the invalidations of its region; see ``InvalidationGeneration``.
    var isOfRegion: Bool
}

extension SMMUv3 {
    /// Translates for a port that knows its configuration, as ``translate(_:_:_:_:_:)`` does.
    ///
    /// - Returns: nil where that has to say what becomes of it.
    @inline(__always)  // By one caller, for each look-up that a port does not answer.
    func translateQuickly(
        _ address: UInt64,
        _ driven: EffectiveAccess,
        _ plan: UnsafePointer<StreamPlan>,
        _ generation: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) -> QuickTranslation? {
        guard plan.pointee.translatesStage1 else { return nil }
        let hasOverrides = plan.pointee.privCfg | plan.pointee.instCfg != 0
        let access =
            hasOverrides
            ? driven.overridden(privCfg: plan.pointee.privCfg, instCfg: plan.pointee.instCfg) : driven
        let address = plan.pointee.canonical(address)
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        // Without a plan the address may be another half's.
        guard half.pointee.isUsable, !half.pointee.refusesUnprivileged || access.isPrivileged else {
            return nil
        }
        var walk = makeQuickWalk(plan, .cached, generation)
        if walk.looksInTLB, let hit = translationCache.lookUp(address, tag: plan.pointee.tag) {
            guard hit.permissions.contains(access.required) else { return nil }
            walk.entry = hit
        } else {
            let isDone = walkQuickly(address, access, &walk)
            walk.report(isDone, to: &accesses, counters)
            guard isDone else { return nil }
            if walk.fillsTLB { translationCache.fill(walk.entry, walkedAt: generation) }
        }
        let below = ~(UInt64.max &<< UInt64(walk.entry.log2Bytes))
        let permissions = walk.entry.permissions
        return QuickTranslation(
            output: walk.entry.outputBase | (address & below),
            byteCount: below &- (address & below) &+ 1,
            permissions: hasOverrides
                ? incomingPermissions(
                    permissions,
                    privCfg: plan.pointee.privCfg,
                    instCfg: plan.pointee.instCfg
                ) : permissions,
            isOfRegion: walk.entry.isOfRegion
        )
    }

    /// Where a CD or L1CD is behind stage 2; nil where ``translateStage2(_:_:_:)`` has to say.
    func locateQuickly(
        _ ipa: UInt64,
        _ plan: UnsafePointer<StreamPlan>,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) -> UInt64? {
        guard !type(of: observer).hearsOfStructures else { return nil }
        var walk = makeQuickWalk(plan, lookup.policy, lookup.generation)
        let answer = stage2(ipa, .unprivilegedRead, isInput: false, isWrite: false, &walk)
        walk.report(answer != nil, to: &observer, counters)
        return answer?.output
    }

    @inline(__always)  // By three callers.
    func makeQuickWalk(_ plan: UnsafePointer<StreamPlan>, _ policy: CachePolicy, _ generation: InvalidationStamp)
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
        guard let second = stage2(ipa, access.required, isInput: true, isWrite: access.isWrite, &walk) else {
            return false
        }
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
        var step = Step(half)
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
                guard
                    let answer = stage2(location, .unprivilegedRead, isInput: false, isWrite: false, &walk)
                else { return nil }
                location = answer.output
                // A table that stage 2 has in more than one page is nowhere by itself.
                if UInt64(answer.log2Bytes) < half.pointee.pageBits { isKnown = true }
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

    /// Translates an IPA by stage 2, from the TLB or by a walk; nil where ``translateStage2(_:_:_:)`` has to.
    @inline(never)  // For each table of stage 1, and for what it gives.
    private func stage2(
        _ ipa: UInt64,
        _ required: Permissions,
        isInput: Bool,
        isWrite: Bool,
        _ walk: inout QuickWalk
    ) -> Stage2Answer? {
        let plan = walk.plan
        guard ipa &>> plan.pointee.stage2.pointee.inputBits == 0, plan.pointee.stage2.pointee.isUsable else {
            return nil
        }
        let answer: Stage2Answer
        if walk.looksInTLB, let hit = translationCache.lookUp(ipa, tag: plan.pointee.stage2Tag),
            hit.answers(required, isWrite: isWrite)
        {
            answer = Stage2Answer(hit, ipa)
        } else {
            guard let found = walkStage2(ipa, isWrite: isWrite, &walk) else { return nil }
            answer = found
        }
        guard answer.permissions.contains(required) else { return nil }
        guard isInput || !plan.pointee.stage2ProtectsTables else {
            let isDevice = Stage2Configuration.isDevice(
                memAttr: answer.memoryAttribute,
                forcesWriteBack: plan.pointee.stage2ForcesWriteBack
            )
            return isDevice ? nil : answer
        }
        return answer
    }

    @inline(__always)  // By one caller.
    private func walkStage2(_ ipa: UInt64, isWrite: Bool, _ walk: inout QuickWalk) -> Stage2Answer? {
        let half = walk.plan.pointee.stage2
        guard let leaf = stage2Leaf(of: ipa, half, &walk) else { return nil }
        let word = leaf.descriptor
        guard word & half.pointee.requiredFlags == half.pointee.requiredFlags,
            !(options.cachesContiguousGroups && word[bit: 52])
        else { return nil }
        let isClean = half.pointee.updatesDirtyState && word[bit: 51] && !word[bit: 7]
        guard !(isClean && isWrite) else { return nil }
        let output = half.pointee.address(in: word, leaf.lowBit)
        guard half.pointee.reaches(output) else { return nil }
        let answer = Stage2Answer(
            output: output | (ipa & ~(UInt64.max &<< leaf.lowBit)),
            log2Bytes: UInt8(truncatingIfNeeded: leaf.lowBit),
            permissions: walk.plan.pointee.stage2Rights.permissions(of: word),
            memoryAttribute: UInt8(truncatingIfNeeded: (word &>> 2) & 0b1111),
            shareability: half.pointee.shareability ?? UInt8(truncatingIfNeeded: (word &>> 8) & 0b11),
            isWritableClean: isClean
        )
        if walk.fillsTLB {
            let base = ipa & (UInt64.max &<< leaf.lowBit)
            translationCache.fill(
                CachedTranslation(
                    inputBase: base,
                    outputBase: output,
                    intermediateBase: base,
                    log2Bytes: answer.log2Bytes,
                    firstStageLog2Bytes: answer.log2Bytes,
                    level: UInt8(truncatingIfNeeded: leaf.level),
                    granule: half.pointee.granule,
                    isGlobal: false,
                    tag: walk.plan.pointee.stage2Tag,
                    stage1Permissions: .all,
                    stage2Permissions: answer.permissions,
                    isWritableClean: isClean,
                    memoryAttribute: answer.memoryAttribute,
                    shareability: answer.shareability
                ),
                walkedAt: walk.generation
            )
            walk.descriptorsKept &+= leaf.descriptorsNotKept
            walk.walksKept &+= 1
        }
        return answer
    }

    /// The leaf of stage 2; nil where there is none, or a table is out of reach.
    @inline(__always)  // By one caller.
    private func stage2Leaf(
        of ipa: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> FoundLeaf? {
        var step = Step(half)
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

/// Where a walk is.
private struct Step {
    var level: Int
    /// log2 of what an entry of the table covers.
    var lowBit: UInt64
    /// Which bits of an offset into the table there are.
    var mask: UInt64
    var table: UInt64
    var hierarchical: UInt64 = 0

    /// Before the first table.
    @inline(__always)  // Once for each walk.
    init(_ half: UnsafePointer<WalkPlan>) {
        level = half.pointee.firstLevel
        lowBit = half.pointee.firstLowBit
        mask = half.pointee.firstIndexMask
        table = half.pointee.table
    }

    /// Before the table that a descriptor points at.
    ///
    /// - Returns: Whether that is within the output size.
    @inline(__always)  // Once for each level of every walk.
    mutating func goOn(by descriptor: UInt64, _ half: UnsafePointer<WalkPlan>) -> Bool {
        table = half.pointee.address(in: descriptor, half.pointee.pageBits)
        hierarchical |= descriptor & half.pointee.hierarchicalMask
        level &+= 1
        lowBit &-= half.pointee.stride
        mask = half.pointee.indexMask
        return half.pointee.reaches(table)
    }

    /// Before a table that the walk cache knows.
    @inline(__always)  // Once for each walk.
    mutating func goOn(from known: WalkCache.Table, _ half: UnsafePointer<WalkPlan>) {
        table = known.address
        hierarchical = known.hierarchical & half.pointee.hierarchicalMask
        lowBit = known.log2Bytes &- half.pointee.stride
        mask = half.pointee.indexMask
        level = half.pointee.level(ofEntriesCovering: lowBit)
    }

    /// What the walk cache is told of the table, one of whose entries is at `location`.
    @inline(__always)  // Once for each table that was not known.
    func table(at location: UInt64, _ half: UnsafePointer<WalkPlan>) -> WalkCache.Table {
        WalkCache.Table(
            address: location & (UInt64.max &<< half.pointee.pageBits),
            log2Bytes: lowBit &+ half.pointee.stride,
            hierarchical: hierarchical
        )
    }
}

extension WalkCache {
    /// The table that is furthest on the way to `address` in tables of this shape.
    @inline(__always)  // Once for each walk.
    fileprivate func lookUp(_ address: UInt64, _ tag: Tag, _ half: UnsafePointer<WalkPlan>) -> Table? {
        lookUp(
            address,
            tag,
            smallest: half.pointee.pageBits &+ half.pointee.stride,
            stride: half.pointee.stride,
            largest: half.pointee.firstLowBit
        )
    }

    /// The table that is furthest on the way to a canonical address of a stream's.
    func lookUp(_ address: UInt64, _ plan: UnsafePointer<StreamPlan>) -> Table? {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        guard half.pointee.isUsable, half.pointee.usesWalkCache else { return nil }
        return lookUp(address, plan.pointee.walkTag, half)
    }
}
