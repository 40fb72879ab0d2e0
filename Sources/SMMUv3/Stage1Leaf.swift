// What a stage-1 leaf says: address, permissions, attributes, and the update that an access makes of it.

import BitFields
import SMMUv3Spec

/// The hierarchical attributes that a walk accumulates from table descriptors.
struct HierarchicalAttributes {
    /// PXNTable, UXNTable and APTable of every table descriptor, or'ed, where they are in a descriptor.
    private var fields = Descriptor()

    /// APTable[0]: no unprivileged access below.
    var removesUnprivileged: Bool { fields.apTable & 0b01 != 0 }
    /// APTable[1]: no writes below.
    var removesWrites: Bool { fields.apTable & 0b10 != 0 }
    var unprivilegedExecuteNever: Bool { fields.uxnTable }
    var privilegedExecuteNever: Bool { fields.pxnTable }

    mutating func accumulate(_ table: Descriptor) { fields.rawValue |= table.rawValue }
}

/// Where a leaf was found.
struct Stage1Leaf {
    var level: Int
    /// log2 of the page or block.
    var lowBit: Int
    var hierarchical: HierarchicalAttributes
}

extension SMMUv3 {
    /// What a leaf translates to, and what it has to be replaced by first where hardware updates it (HTTU).
    @inline(__always)  // Once for each walk, by one caller.
    func translation(
        of descriptor: Descriptor,
        _ leaf: Stage1Leaf,
        _ region: TableRegion,
        _ address: UInt64,
        _ input: WalkInput
    ) throws(TranslationFault) -> (CachedTranslation, update: Descriptor?) {
        var output = region.format.outputAddress(of: descriptor, level: leaf.level)
        guard output &>> UInt64(input.context.outputBits) == 0 else {
            throw translationFault(
                .fAddrSize,
                input,
                "the level-\(leaf.level) leaf's output address is beyond \(input.context.outputBits) bits"
            )
        }
        guard descriptor.af || input.context.updatesAccessFlag || input.context.accessFlagFaultsDisabled
        else {
            throw translationFault(.fAccess, input, "the level-\(leaf.level) leaf's access flag is 0")
        }
        // Writable by the dirty bit modifier: read-only until something writes.
        let isClean = input.context.updatesDirtyState && descriptor.dbm && descriptor.ap & 0b10 != 0
        var permissions = input.context.permissionRules.permissions(
            of: descriptor,
            leaf.hierarchical,
            isClean: isClean
        )
        let update = try update(of: descriptor, leaf, isClean, &permissions, input)
        var size = leaf.lowBit
        if options.cachesContiguousGroups, descriptor.contiguous {
            size += region.format.log2ContiguousEntries(level: leaf.level)
            output = output.roundedDown(toPowerOfTwo: 1 &<< UInt64(size))
        }
        // A 40-bit output of AArch32 tables is cut off at OAS, where it is not an IPA.
        if input.context.permissionRules.isAArch32, !input.resolved.translatesStage2 {
            output &= identification.outputAddressLimit &- 1
        }
        let attribute = UInt8(
            truncatingIfNeeded: input.context.mair &>> (UInt64(descriptor.attrIndx & 7) &* 8)
        )
        let shareability = region.format.ds ? region.walkShareability : descriptor.sh
        let translation = CachedTranslation(
            inputBase: address.roundedDown(toPowerOfTwo: 1 &<< UInt64(size)),
            outputBase: output,
            intermediateBase: output,
            log2Bytes: UInt8(size),
            firstStageLog2Bytes: UInt8(size),
            level: UInt8(leaf.level),
            granule: region.format.granule,
            isGlobal: input.context.hasTwoRanges && !descriptor.nG,
            tag: input.tag,
            stage1Permissions: permissions,
            stage2Permissions: .all,
            isWritableClean: isClean && (update ?? descriptor).ap & 0b10 != 0,
            memoryAttribute: MemoryAttributes.effectiveMAIR(attribute),
            shareability: MemoryAttributes.effectiveShareability(shareability)
        )
        return (translation, update)
    }

    /// The descriptor with the access flag and the dirty state that an access sets; nil where it sets none.
    ///
    /// Nothing is set for an access that faults.
    private func update(
        of descriptor: Descriptor,
        _ leaf: Stage1Leaf,
        _ isClean: Bool,
        _ permissions: inout Permissions,
        _ input: WalkInput
    ) throws(TranslationFault) -> Descriptor? {
        var updated = descriptor
        if input.context.updatesAccessFlag { updated.af = true }
        if isClean, input.access.isWrite {
            var dirty = updated
            dirty.ap &= 0b01
            let written = input.context.permissionRules.permissions(
                of: dirty,
                leaf.hierarchical,
                isClean: false
            )
            if written.contains(input.access.required) {
                updated = dirty
                permissions = written
            }
        }
        guard updated != descriptor else { return nil }
        guard permissions.contains(input.access.required) else {
            throw translationFault(
                .fPermission,
                input,
                "the page does not permit \(input.access.description)"
            )
        }
        return updated
    }
}

extension PermissionRules {
    /// What a leaf of stage 1 permits.
    ///
    /// - Parameters:
    ///   - leaf: The leaf.
    ///   - hierarchical: What the tables above it take away.
    ///   - isClean: It is read-only for want of a dirty state alone: writable where that decides on execution.
    func permissions(of leaf: Descriptor, _ hierarchical: HierarchicalAttributes, isClean: Bool)
        -> Permissions
    {
        guard !isAArch32 else { return aarch32Permissions(of: leaf, hierarchical) }
        let mayWrite = !hierarchical.removesWrites && (leaf.ap & 0b10 == 0 || isClean)
        let isWritable = mayWrite && leaf.ap & 0b10 == 0
        guard hasTwoRanges else {
            // One privilege level: AP[1] counts as 1, UXN is XN.
            var result: Permissions = .read
            if isWritable { result.formUnion(.write) }
            if !leaf.uxn, !hierarchical.unprivilegedExecuteNever, !(wxn && mayWrite) {
                result.formUnion(.execute)
            }
            return result
        }
        let reachesUnprivileged = leaf.ap & 0b01 != 0 && !hierarchical.removesUnprivileged
        let mayWriteUnprivileged = reachesUnprivileged && mayWrite
        var result = Permissions()
        // Execute does not need read. What unprivileged code can write, privileged code does not execute.
        if !leaf.pxn, !hierarchical.privilegedExecuteNever, !mayWriteUnprivileged, !(wxn && mayWrite) {
            result.insert(.privilegedExecute)
        }
        if !leaf.uxn, !hierarchical.unprivilegedExecuteNever, !(wxn && mayWriteUnprivileged) {
            result.insert(.unprivilegedExecute)
        }
        if reachesUnprivileged {
            result.insert(.unprivilegedRead)
            if isWritable { result.insert(.unprivilegedWrite) }
        }
        // PAN: privileged data accesses to what unprivileged ones reach are refused.
        let isRefused = reachesUnprivileged || (epan && result.contains(.unprivilegedExecute))
        if !(pan && isRefused) {
            result.insert(.privilegedRead)
            if isWritable { result.insert(.privilegedWrite) }
        }
        return result
    }
}
