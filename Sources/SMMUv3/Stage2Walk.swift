// Stage 2: from an IPA to a physical address, by the TLB or by a walk of its tables.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// One IPA that stage 2 is to translate, and what for.
struct Stage2Request {
    /// What is at the IPA: CLASS of an event, and what has to be permitted.
    enum Purpose {
        /// The transaction's own data.
        case input
        /// A CD or L1CD.
        case context
        /// A stage-1 descriptor that is read.
        case tableRead
        /// A stage-1 descriptor that is updated (HTTU).
        case tableUpdate
    }

    var transaction: Transaction
    var access: EffectiveAccess
    var purpose: Purpose
    var ipa: UInt64
    var lookup: LookupScope

    var isWrite: Bool { purpose == .input ? access.isWrite : purpose == .tableUpdate }

    /// Which permission it needs; structures are data, whatever they are fetched for.
    var required: Permissions {
        switch purpose {
        case .input: access.required
        case .context, .tableRead: .unprivilegedRead
        case .tableUpdate: .unprivilegedWrite
        }
    }

    var eventClass: EventClass {
        switch purpose {
        case .input: .in
        case .context: .cd
        case .tableRead, .tableUpdate: .ttd
        }
    }

    /// In words.
    var subject: String {
        switch purpose {
        case .input: access.description
        case .context: "reads of CDs"
        case .tableRead: "reads of stage-1 descriptors"
        case .tableUpdate: "updates of stage-1 descriptors"
        }
    }
}

extension SMMUv3 {
    /// Translates an IPA, permissions checked.
    ///
    /// - Returns: The translation, and whether the TLB had it.
    func translateStage2(
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> (CachedTranslation, isFromTLB: Bool) {
        guard request.ipa &>> UInt64(stage2.inputBits) == 0 else {
            throw stage2Fault(
                .fTranslation,
                request,
                stage2,
                "the IPA is outside the \(stage2.inputBits)-bit range of stage 2"
            )
        }
        let tag = RegimeTag(regime: .nsEL1Stage2, vmid: stage2.vmid, asid: 0, aset: false)
        let entry: CachedTranslation
        var isFromTLB = false
        if request.lookup.policy.looksInCaches, let hit = translationCache.lookUp(request.ipa, tag: tag),
            hit.answers(request.required, isWrite: request.isWrite)
        {
            entry = hit
            isFromTLB = true
        } else {
            entry = try walkStage2(request, stage2, tag, &observer)
            if request.lookup.policy == .cached {
                translationCache.fill(entry, walkedAt: request.lookup.generation)
            }
        }
        try checkStage2(entry, request, stage2)
        return (entry, isFromTLB)
    }

    private func checkStage2(
        _ entry: CachedTranslation,
        _ request: Stage2Request,
        _ stage2: Stage2Configuration
    ) throws(TranslationFault) {
        guard entry.stage2Permissions.contains(request.required) else {
            throw stage2Fault(
                .fPermission,
                request,
                stage2,
                "stage 2 does not permit \(request.subject) at IPA 0x\(String(request.ipa, radix: 16))"
            )
        }
        guard request.purpose != .input, stage2.protectsTableWalks,
            stage2.isDevice(memAttr: entry.memoryAttribute)
        else { return }
        throw stage2Fault(
            .fPermission,
            request,
            stage2,
            "STE.S2PTW is 1 and IPA 0x\(String(request.ipa, radix: 16)) is Device memory"
        )
    }

    /// Walks the tables; the order of faults is as in stage 1.
    private func walkStage2(
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ tag: RegimeTag,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> CachedTranslation {
        observer.walked(1, fetching: 0, counters)
        let granule = stage2.format.granule
        var level = stage2.startLevel
        var indexBits = stage2.firstIndexBits
        var table = stage2.tableBase
        if !type(of: observer).hearsOfStructures, request.lookup.policy.looksInCaches, !stage2.isAArch32,
            let known = walkCache.lookUp(
                request.ipa,
                WalkCache.Tag(tag, isNested: false),
                smallest: UInt64(granule.log2Bytes &+ granule.stride),
                stride: UInt64(granule.stride),
                largest: UInt64(granule.log2Bytes(ofLevel: level))
            )
        {
            table = known.address
            level = 3 - (Int(known.log2Bytes) - granule.stride - granule.log2Bytes) / granule.stride
            indexBits = granule.stride
        }
        var attempts = 0
        while true {
            let lowBit = granule.log2Bytes(ofLevel: level)
            let index = (request.ipa &>> UInt64(lowBit)) & ((1 &<< UInt64(indexBits)) &- 1)
            let location = PhysicalAddress(table &+ index &* 8)
            let descriptor = try fetchStage2Descriptor(location, level, request, stage2, &observer)
            guard descriptor.isValid else {
                throw stage2Fault(
                    .fTranslation,
                    request,
                    stage2,
                    "the stage-2 level-\(level) descriptor is invalid"
                )
            }
            if level < 3, descriptor.isTableOrPage {
                table = stage2.format.nextTable(of: descriptor.value)
                guard table &>> UInt64(stage2.outputBits) == 0 else {
                    throw stage2Fault(
                        .fAddrSize,
                        request,
                        stage2,
                        "the stage-2 level-\(level) table descriptor points beyond \(stage2.outputBits) bits"
                    )
                }
                level += 1
                indexBits = granule.stride
                continue
            }
            guard stage2.format.isLeaf(descriptor.value, level: level) else {
                throw stage2Fault(
                    .fTranslation,
                    request,
                    stage2,
                    "a block is not possible at level \(level) of \(granule) tables"
                )
            }
            let (entry, updated) = try stage2Translation(of: descriptor.value, level, request, stage2, tag)
            guard let updated else { return entry }
            if try updateStage2(descriptor, to: updated, request, stage2, &observer) { return entry }
            attempts += 1
            guard attempts < Self.descriptorUpdateAttempts else {
                throw stage2WalkAbort(request, location, "the descriptor at \(location) never stays the same")
            }
        }
    }

    private func fetchStage2Descriptor(
        _ location: PhysicalAddress,
        _ level: Int,
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> LocatedDescriptor {
        let descriptor: LocatedDescriptor
        observer.accessing(.translationTable)
        do {
            descriptor = try loadDescriptor(at: location, stage2.format)
        } catch {
            throw stage2WalkAbort(
                request,
                location,
                "nobody answers at the stage-2 level-\(level) descriptor's address \(location)"
            )
        }
        observer.walked(0, fetching: 1, counters)
        observer.fetched(.descriptor(location, descriptor.value, level: level, format: stage2.format))
        return descriptor
    }

    /// What a leaf translates to, and what it has to be replaced by first where hardware updates it.
    private func stage2Translation(
        of descriptor: Descriptor,
        _ level: Int,
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ tag: RegimeTag
    ) throws(TranslationFault) -> (CachedTranslation, update: Descriptor?) {
        var output = stage2.format.outputAddress(of: descriptor, level: level)
        guard output &>> UInt64(stage2.outputBits) == 0 else {
            throw stage2Fault(
                .fAddrSize,
                request,
                stage2,
                "the stage-2 level-\(level) leaf's output address is beyond \(stage2.outputBits) bits"
            )
        }
        guard descriptor.af || stage2.updatesAccessFlag || stage2.accessFlagFaultsDisabled else {
            throw stage2Fault(
                .fAccess,
                request,
                stage2,
                "the stage-2 level-\(level) leaf's access flag is 0"
            )
        }
        let isClean = stage2.updatesDirtyState && descriptor.dbm && descriptor.s2AP & 0b10 == 0
        var updated = descriptor
        if stage2.updatesAccessFlag { updated.af = true }
        if isClean, request.isWrite { updated.s2AP |= 0b10 }
        let permissions = stage2.permissions(of: updated)
        if updated != descriptor, !permissions.contains(request.required) {
            // Nothing is set for an access that faults.
            throw stage2Fault(.fPermission, request, stage2, "stage 2 does not permit \(request.subject)")
        }
        var size = stage2.format.granule.log2Bytes(ofLevel: level)
        if options.cachesContiguousGroups, descriptor.contiguous {
            size += stage2.format.log2ContiguousEntries(level: level)
            output = output.roundedDown(toPowerOfTwo: 1 &<< UInt64(size))
        }
        // A 40-bit output of AArch32 tables is cut off at OAS.
        if stage2.isAArch32 { output &= identification.outputAddressLimit &- 1 }
        let input = request.ipa.roundedDown(toPowerOfTwo: 1 &<< UInt64(size))
        let translation = CachedTranslation(
            inputBase: input,
            outputBase: output,
            intermediateBase: input,
            log2Bytes: UInt8(size),
            firstStageLog2Bytes: UInt8(size),
            level: UInt8(level),
            granule: stage2.format.granule,
            isGlobal: false,
            tag: tag,
            stage1Permissions: .all,
            stage2Permissions: permissions,
            isWritableClean: isClean && !request.isWrite,
            memoryAttribute: descriptor.s2MemAttr,
            shareability: stage2.format.ds ? stage2.walkShareability : descriptor.sh
        )
        return (translation, updated == descriptor ? nil : updated)
    }

    private func updateStage2(
        _ descriptor: LocatedDescriptor,
        to new: Descriptor,
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Bool {
        guard request.lookup.policy == .cached else {
            observer.note("a transaction would set \(describeUpdate(descriptor.value, new)) of the leaf")
            return true
        }
        do {
            return try update(descriptor, to: new, stage2.format)
        } catch {
            throw stage2WalkAbort(
                request,
                descriptor.location,
                "the stage-2 descriptor at \(descriptor.location) cannot be updated"
            )
        }
    }

    private func stage2WalkAbort(_ request: Stage2Request, _ location: PhysicalAddress, _ reason: String)
        -> TranslationFault
    {
        .abort(
            .walkExternalAbort(
                streamID: request.transaction.streamID,
                substreamID: request.transaction.attributes.substreamID,
                pnu: request.access.isPrivileged,
                ind: request.access.isInstruction,
                rnw: !request.access.isWrite,
                s2: true,
                eventClass: request.eventClass,
                inputAddress: request.transaction.address.rawValue,
                fetchAddress: location.rawValue
            ),
            reason
        )
    }

    /// A stage-2 fault, which aborts, and which STE.S2R decides to record.
    func stage2Fault(
        _ number: EventNumber,
        _ request: Stage2Request,
        _ stage2: Stage2Configuration,
        _ reason: String
    ) -> TranslationFault {
        var fault = TranslationFault.abort(
            .translationRelated(
                number,
                streamID: request.transaction.streamID,
                substreamID: request.transaction.attributes.substreamID,
                pnu: request.access.isPrivileged,
                ind: request.access.isInstruction,
                rnw: !request.access.isWrite,
                s2: true,
                eventClass: request.eventClass,
                inputAddress: request.transaction.address.rawValue,
                ipa: request.ipa,
                ttRnW: number == .fPermission && request.purpose == .tableRead
            ),
            isRecorded: stage2.records || stage2.stalls,
            reason
        )
        if stage2.stalls { fault.response = .stall }
        return fault
    }
}

extension Stage2Configuration {
    /// What a leaf permits: data by S2AP whatever the privilege, execution by XN.
    func permissions(of leaf: Descriptor) -> Permissions {
        var result = Permissions()
        if leaf.s2AP & 0b01 != 0 { result.formUnion(.read) }
        if leaf.s2AP & 0b10 != 0 { result.formUnion(.write) }
        switch hasXNX ? leaf.s2XN : leaf.s2XN & 0b10 {
        case 0b00: result.formUnion(.execute)
        case 0b01: result.insert(.unprivilegedExecute)
        case 0b10: break
        default: result.insert(.privilegedExecute)
        }
        // AArch32 has no pages that can be executed alone.
        if isAArch32, leaf.s2AP & 0b01 == 0 { result.subtract(.execute) }
        return result
    }

    /// Whether MemAttr of a leaf is a Device type, by itself.
    func isDevice(memAttr: UInt8) -> Bool {
        Self.isDevice(memAttr: memAttr, forcesWriteBack: forcesWriteBack)
    }

    static func isDevice(memAttr: UInt8, forcesWriteBack: Bool) -> Bool {
        if forcesWriteBack { return memAttr & 0b111 <= 0b100 }
        if case .device = MemoryAttributes.type(memAttr: memAttr) { return true }
        return false
    }
}
