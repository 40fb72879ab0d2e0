// The part of a quick walk that stage 2 is: alone, or behind each table of stage 1.

import BitFields
import SMMUv3Spec
import SystemBus

/// What stage 2 makes of one IPA.
struct Stage2Answer {
    /// The leaf, in the processor's byte order; where the TLB had it those bits that say what memory it is.
    var leaf: UInt64 = 0
    /// The address of the IPA itself.
    var output: UInt64 = 0
    var log2Bytes: UInt64 = 0
    var permissions = Permissions()
    var isWritableClean = false

    /// MemAttr[3:0].
    var memoryAttribute: UInt8 { UInt8(truncatingIfNeeded: leaf &>> 2) & 0b1111 }
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
    @inline(__always)  // By few callers.
    func stage2(
        _ ipa: UInt64,
        _ required: Permissions,
        isInput: Bool,
        _ walk: inout QuickWalk
    ) -> Bool {
        stepThroughStage2(ipa, required, isInput: isInput, &walk) && walk.reader.isIntact
    }

    /// The same as a step of a longer walk, which asks at its end whether ``QuickWalk/reader`` is intact.
    @inline(never)  // For each table of stage 1, and for what it gives.
    func stepThroughStage2(
        _ ipa: UInt64,
        _ required: Permissions,
        isInput: Bool,
        _ walk: inout QuickWalk
    ) -> Bool {
        let plan = walk.plan
        guard ipa &>> plan.pointee.stage2.pointee.inputBits == 0, plan.pointee.stage2.pointee.isUsable else {
            return false
        }
        if !walk.looksInTLB || !findStage2(ipa, required, &walk) {
            guard walkStage2(ipa, isWrite: required.includesWrite, &walk) else { return false }
        }
        guard walk.second.permissions.contains(required) else { return false }
        return isInput || permitsTable(walk.second.leaf, plan)
    }

    /// What the TLB has of stage 2.
    @inline(never)  // Keeps the walk small.
    private func findStage2(_ ipa: UInt64, _ required: Permissions, _ walk: inout QuickWalk) -> Bool {
        guard let hit = translationCache.lookUp(ipa, tag: walk.plan.pointee.stage2Tag),
            hit.answers(required, isWrite: required.includesWrite)
        else { return false }
        walk.second = Stage2Answer(
            leaf: UInt64(hit.memoryAttribute) &<< 2 | UInt64(hit.shareability) &<< 8,
            output: hit.output(for: ipa),
            log2Bytes: UInt64(hit.log2Bytes),
            permissions: hit.stage2Permissions,
            isWritableClean: hit.isWritableClean
        )
        return true
    }

    @inline(__always)  // By one caller.
    private func walkStage2(_ ipa: UInt64, isWrite: Bool, _ walk: inout QuickWalk) -> Bool {
        let half = walk.plan.pointee.stage2
        let found = stage2Leaf(of: ipa, half, &walk)
        let leaf = found.descriptor
        guard leaf != 0, leaf & half.pointee.requiredFlags == half.pointee.requiredFlags,
            !(leaf[bit: 52] && options.cachesContiguousGroups)
        else { return false }
        let isClean = leaf[bit: 51] && half.pointee.updatesDirtyState && !leaf[bit: 7]
        guard !(isClean && isWrite) else { return false }
        walk.second = Stage2Answer(
            leaf: leaf,
            output: found.base | (ipa & ~(UInt64.max &<< found.lowBit)),
            log2Bytes: found.lowBit,
            permissions: walk.plan.pointee.stage2Rights.permissions(of: leaf),
            isWritableClean: isClean
        )
        return !walk.fillsTLB || keepStage2(ipa, &walk)
    }

    /// The leaf of an IPA by a walk.
    @inline(__always)  // By two callers.
    private func stage2Leaf(of ipa: UInt64, _ half: UnsafePointer<WalkPlan>, _ walk: inout QuickWalk)
        -> FoundLeaf
    {
        walk.walks &+= 1
        return descend(ipa, half, &walk)
    }

    /// Keeps ``QuickWalk/second`` in the TLB.
    ///
    /// - Returns: Whether all that was read so far was there.
    @inline(__always)  // By one caller.
    private func keepStage2(_ ipa: UInt64, _ walk: inout QuickWalk) -> Bool {
        guard walk.reader.isIntact else { return false }
        translationCache.fillStage2(&walk, of: ipa)
        walk.descriptorsKept &+= walk.descriptorsNotKept
        walk.walksKept &+= 1
        return true
    }

    /// Goes down tables of stage 1 that stage 2 translates, from where the walk cache knows one, to the leaf.
    @inline(__always)  // By one caller.
    func descendBehindStage2(
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        walk.caches.isEmpty && half.pointee.isUsual && walk.plan.pointee.stage2.pointee.isUsual
            ? descendBehindOrdinaryStage2(address, half, &walk)
            : descendBehindAnyStage2(address, half, WalkStep(half), &walk)
    }

    /// The same of ``WalkPlan/isUsual`` tables in both stages, and no cache is to know any.
    ///
    /// Here is no call but the last, so that all of it is in registers.
    @inline(never)  // Keeps the walk without stage 2 small.
    private func descendBehindOrdinaryStage2(
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        let second = walk.plan.pointee.stage2
        let reader = walk.reader
        var step = WalkStep(half)
        var tables: UInt64 = 0
        var leaf = FoundLeaf.none
        // A table is within a page: what stage 2 makes of it does not wait for the offset.
        while let page = page(of: step.table, second, walk.plan, reader),
            let word = reader.wordNearby(
                in: page,
                at: step.table & 0xFFF &+ (address &>> step.shift) & step.mask
            )
        {
            tables &+= 1
            guard step.shift != 9, WalkPlan.isOrdinary(word, half.pointee.unusualMask) else {
                let descriptor = half.pointee.descriptor(word)
                // A table that is out of the ordinary: once more below.
                if step.shift != 9, descriptor & 0b11 == 0b11 {
                    tables &-= 1
                } else {
                    leaf = step.leaf(descriptor, half)
                }
                break
            }
            step.goOn(byOrdinary: word)
        }
        walk.walks &+= tables
        walk.descriptors &+= tables &* (second.pointee.levels &+ 1)
        guard leaf.descriptor == 0 else { return leaf }
        return descendBehindAnyStage2(address, half, step, &walk)
    }

    /// The page of a stage-1 table that ordinary tables of stage 2 have; nil is no answer.
    ///
    /// Each read waits for the one before: what need not wait is worked out beside it.
    @_transparent  // For each table of stage 1.
    private func page(
        of ipa: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ plan: UnsafePointer<StreamPlan>,
        _ reader: DescriptorReader
    ) -> UInt64? {
        guard ipa & half.pointee.beyondInput == 0 else { return nil }
        let start = half.pointee.firstShift
        let unusualMask = half.pointee.unusualMask
        var table = half.pointee.table
        var offset: UInt64
        if start == 36 {
            offset = (ipa &>> 36) & half.pointee.firstIndexMask
            guard let word = reader.wordNearby(in: table, at: offset),
                WalkPlan.isOrdinary(word, unusualMask)
            else { return nil }
            table = word & WalkPlan.addressMask4KiB
            offset = WalkPlan.offset4KiB(of: ipa, 27)
        } else {
            offset = (ipa &>> start) & half.pointee.firstIndexMask
        }
        if start >= 27 {
            guard let word = reader.wordNearby(in: table, at: offset),
                WalkPlan.isOrdinary(word, unusualMask)
            else { return nil }
            table = word & WalkPlan.addressMask4KiB
            offset = WalkPlan.offset4KiB(of: ipa, 18)
        }
        if start >= 18 {
            guard let word = reader.wordNearby(in: table, at: offset),
                WalkPlan.isOrdinary(word, unusualMask)
            else { return nil }
            table = word & WalkPlan.addressMask4KiB
            offset = WalkPlan.offset4KiB(of: ipa, 9)
        }
        guard let leaf = reader.wordNearby(in: table, at: offset),
            (leaf ^ half.pointee.ordinaryTable) & half.pointee.unusualTableMask == 0,
            !(leaf[bit: 52] && options.cachesContiguousGroups), permitsTable(leaf, plan)
        else { return nil }
        return leaf & WalkPlan.addressMask4KiB
    }

    /// The same of tables of every shape, whether or not the caches are to know them.
    ///
    /// - Parameter first: Where it begins, if the walk cache does not know better.
    @inline(never)  // Likewise.
    private func descendBehindAnyStage2(
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ first: WalkStep,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        let keepsTables = walk.fillsWalkCache && half.pointee.usesWalkCache
        let isUsual = half.pointee.isUsual
        let unusualMask = half.pointee.unusualMask
        var step = first
        // Whether the table's address is a physical one.
        var isLocated = false
        if walk.looksInWalkCache, half.pointee.usesWalkCache, let known = walkCache.lookUp(address, half) {
            step.goOn(from: known, half)
            isLocated = true
        }
        // There is no need to keep where the first one is.
        var isToBeKept = false
        while true {
            var location = step.entry(of: address)
            if !isLocated {
                guard let place = locateTable(location, &walk) else { return .none }
                location = place.address
                // A table that stage 2 has in more than one page is nowhere by itself.
                if isToBeKept, place.log2Bytes >= half.pointee.pageBits {
                    guard keep(step, at: location, address, half, &walk) else { return .none }
                    // Should this walk come to nothing, the next begins here.
                    walk.descriptorsKept = walk.descriptors &- walk.descriptorsBefore
                    walk.walksKept = walk.walks &- walk.walksBefore &- 1
                }
            }
            guard let word = walk.reader.word(at: location) else { return .none }
            walk.descriptors &+= 1
            isLocated = false
            isToBeKept = keepsTables
            if isUsual, step.shift != 9, WalkPlan.isOrdinary(word, unusualMask) {
                step.goOn(byOrdinary: word)
                continue
            }
            let descriptor = half.pointee.descriptor(word)
            guard step.shift != half.pointee.pageShift, descriptor & 0b11 == 0b11 else {
                return step.leaf(descriptor, half)
            }
            guard step.goOn(by: descriptor, half) else { return .none }
        }
    }

    /// Where an entry of a stage-1 table is, and log2 of how many bytes around it are in one piece.
    @inline(__always)  // By one caller.
    private func locateTable(_ ipa: UInt64, _ walk: inout QuickWalk) -> (address: UInt64, log2Bytes: UInt64)?
    {
        if walk.looksInTLB {
            guard stepThroughStage2(ipa, .unprivilegedRead, isInput: false, &walk) else {
                return nil
            }
            return (walk.second.output, walk.second.log2Bytes)
        }
        // The same, of which no more is wanted than that.
        let half = walk.plan.pointee.stage2
        guard ipa &>> half.pointee.inputBits == 0, half.pointee.isUsable else { return nil }
        let leaf = stage2Leaf(of: ipa, half, &walk)
        guard leaf.descriptor & half.pointee.tableFlags == half.pointee.tableFlags,
            !(leaf.descriptor[bit: 52] && options.cachesContiguousGroups),
            permitsTable(leaf.descriptor, walk.plan)
        else { return nil }
        return (leaf.base | (ipa & ~(UInt64.max &<< leaf.lowBit)), leaf.lowBit)
    }

    /// Whether tables of stage 1 may be in what a leaf maps.
    @inline(__always)  // For each table of stage 1.
    private func permitsTable(_ leaf: UInt64, _ plan: UnsafePointer<StreamPlan>) -> Bool {
        !plan.pointee.stage2ProtectsTables
            || !Stage2Configuration.isDevice(
                memAttr: UInt8(truncatingIfNeeded: leaf &>> 2) & 0b1111,
                forcesWriteBack: plan.pointee.stage2ForcesWriteBack
            )
    }
}
