// The walk of stage-1 tables.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// Everything that one stage-1 walk needs to know beside the tables.
struct WalkInput {
    var transaction: Transaction
    var access: EffectiveAccess
    var resolved: ResolvedStream
    var tag: RegimeTag
    var lookup: LookupScope
    /// What stage 1 gives is not translated further, though stage 2 is there: a request that asks for the IPA.
    var endsAtStage1 = false

    @inline(__always)  // Only what is asked for is to be loaded.
    var context: ContextConfiguration { resolved.context }

    /// Stage 2, through which the tables are read where it translates.
    @inline(__always)  // Likewise.
    var stage2: Stage2Configuration? { resolved.stream.stage2 }
}

/// Whether a look-up goes through the caches, and the invalidation generation before it began.
struct LookupScope {
    var policy: SMMUv3.CachePolicy
    var generation: InvalidationStamp
}

extension SMMUv3 {
    /// Translates through stage 1 by walking the tables.
    ///
    /// Permissions are returned, not checked, except before the descriptor is updated. The output is an IPA where
    /// stage 2 translates.
    ///
    /// The order of faults is the architecture's (IHI 0070, 7.3.22): range, then for each level external abort,
    /// invalid descriptor, address size; then at the leaf the access flag.
    func walkStage1(_ input: WalkInput, _ observer: inout some LookupObserver) throws(TranslationFault)
        -> CachedTranslation
    {
        let address = input.context.canonical(input.transaction.address.rawValue)
        let region = input.context.region(of: address)
        try checkRange(address, region, input)
        observer.walked(1, fetching: 0, counters)

        let format = region.format
        let granuleBits = format.granule.log2Bytes
        let stride = format.granule.stride
        let outputBits = input.context.outputBits
        var level = 3 - (region.inputBits - 1 - granuleBits) / stride
        var lowBit = granuleBits + stride * (3 - level)
        var indexBits = region.inputBits - lowBit
        var table = TableFormat.alignedBase(region.tableBase, indexBits, outputBits)
        var hierarchical = HierarchicalAttributes()
        var isLocated = false
        if !type(of: observer).hearsOfStructures, let known = knownTable(for: address, input) {
            (table, isLocated) = (known.address, true)
            hierarchical.accumulate(Descriptor(rawValue: known.hierarchical))
            lowBit = Int(known.log2Bytes) - stride
            level = 3 - (lowBit - granuleBits) / stride
            indexBits = stride
        }
        var attempts = 0
        while true {
            let index = (address &>> UInt64(lowBit)) & ((1 &<< UInt64(indexBits)) &- 1)
            let entry = table &+ index &* 8
            let descriptor = try fetchDescriptor(entry, isLocated, level, format, input, &observer)
            guard descriptor.isValid else {
                throw translationFault(.fTranslation, input, "the level-\(level) descriptor is invalid")
            }
            if level < 3, descriptor.isTableOrPage {
                table = format.nextTable(of: descriptor.value)
                guard table &>> UInt64(outputBits) == 0 else {
                    throw tableAddressFault(level, input)
                }
                if !region.ignoresHierarchicalAttributes { hierarchical.accumulate(descriptor.value) }
                level &+= 1
                lowBit &-= stride
                indexBits = stride
                isLocated = false
                continue
            }
            guard format.isLeaf(descriptor.value, level: level) else {
                throw translationFault(
                    .fTranslation,
                    input,
                    "a block is not possible at level \(level) of \(format.granule) tables"
                )
            }
            let leaf = Stage1Leaf(level: level, lowBit: lowBit, hierarchical: hierarchical)
            let (translation, updated) = try translation(of: descriptor.value, leaf, region, address, input)
            guard let updated else { return translation }
            try checkBehind(translation, address, input)
            if try update(descriptor, entry, to: updated, format, input, &observer) { return translation }
            // Somebody else changed it meanwhile: what it says now counts.
            attempts += 1
            guard attempts < Self.descriptorUpdateAttempts else {
                throw walkAbort(input, descriptor.location, "the descriptor at \(entry) never stays the same")
            }
        }
    }

    /// The table that the walk cache has furthest on the way to an address: behind both stages, where both translate.
    private func knownTable(for address: UInt64, _ input: WalkInput) -> WalkCache.Table? {
        guard input.lookup.policy.looksInCaches else { return nil }
        return walkCache.lookUp(address, input.resolved.plan)
    }

    private func tableAddressFault(_ level: Int, _ input: WalkInput) -> TranslationFault {
        translationFault(
            .fAddrSize,
            input,
            "the level-\(level) table descriptor points beyond \(input.context.outputBits) bits"
        )
    }

    /// Whether stage 2 would let the access through: an access that faults there updates nothing in stage 1.
    ///
    /// Looks at memory alone, so that stage 2 is not updated either before stage 1 is.
    private func checkBehind(_ translation: CachedTranslation, _ address: UInt64, _ input: WalkInput)
        throws(TranslationFault)
    {
        guard let stage2 = input.stage2, !input.endsAtStage1 else { return }
        let request = Stage2Request(
            transaction: input.transaction,
            access: input.access,
            purpose: .input,
            ipa: translation.output(for: address),
            lookup: LookupScope(policy: .uncached, generation: input.lookup.generation)
        )
        var observer = NoObserver()
        _ = try translateStage2(request, stage2, &observer)
    }

    private func checkRange(_ address: UInt64, _ region: TableRegion, _ input: WalkInput)
        throws(TranslationFault)
    {
        let isUpper = input.context.isUpper(address)
        guard !region.isWalkDisabled else {
            let half = isUpper ? "1" : "0"
            throw translationFault(.fTranslation, input, "CD.EPD\(half) disables walks of TTB\(half)")
        }
        // Of 32 bits, those that are TTB1's are in its range.
        let top = isUpper ? input.context.permissionRules.isAArch32 ? 0 : ~address : address
        let outside = top &>> UInt64(region.inputBits)
        guard outside == 0 else {
            throw translationFault(
                .fTranslation,
                input,
                "the address is outside the \(region.inputBits)-bit range of TTB\(isUpper ? 1 : 0)"
            )
        }
    }

    @inline(__always)  // Once for each level of every walk.
    private func fetchDescriptor(
        _ address: UInt64,
        _ isLocated: Bool,
        _ level: Int,
        _ format: TableFormat,
        _ input: WalkInput,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> LocatedDescriptor {
        var location = PhysicalAddress(address)
        if input.resolved.translatesStage2, !isLocated, let stage2 = input.stage2 {
            location = try physicalTable(address, .tableRead, stage2, input, &observer)
        }
        let descriptor: LocatedDescriptor
        observer.accessing(.translationTable)
        do {
            descriptor = try loadDescriptor(at: location, format)
        } catch {
            throw walkAbort(
                input,
                location,
                "nobody answers at the level-\(level) descriptor's address \(location)"
            )
        }
        observer.walked(0, fetching: 1, counters)
        observer.fetched(.descriptor(location, descriptor.value, level: level, format: format))
        return descriptor
    }

    /// Where a stage-1 descriptor is behind stage 2.
    private func physicalTable(
        _ address: UInt64,
        _ purpose: Stage2Request.Purpose,
        _ stage2: Stage2Configuration,
        _ input: WalkInput,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> PhysicalAddress {
        let request = Stage2Request(
            transaction: input.transaction,
            access: input.access,
            purpose: purpose,
            ipa: address,
            lookup: input.lookup
        )
        let (translation, _) = try translateStage2(request, stage2, &observer)
        return PhysicalAddress(translation.output(for: address))
    }

    /// Marks a leaf accessed or dirty.
    ///
    /// - Returns: Whether it was still what was read.
    private func update(
        _ descriptor: LocatedDescriptor,
        _ entry: UInt64,
        to new: Descriptor,
        _ format: TableFormat,
        _ input: WalkInput,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Bool {
        guard input.lookup.policy == .cached else {
            observer.note("a transaction would set \(describeUpdate(descriptor.value, new)) of the leaf")
            return true
        }
        var current = descriptor
        if let stage2 = input.stage2 {
            current.location = try physicalTable(
                entry,
                .tableUpdate,
                stage2,
                input,
                &observer
            )
        }
        do {
            return try update(current, to: new, format)
        } catch {
            throw walkAbort(
                input,
                current.location,
                "the descriptor at \(current.location) cannot be updated"
            )
        }
    }

    private func walkAbort(_ input: WalkInput, _ location: PhysicalAddress, _ reason: String)
        -> TranslationFault
    {
        // Always aborts, always recorded: CD.A and CD.R do not count (5.5).
        .abort(
            .walkExternalAbort(
                streamID: input.transaction.streamID,
                substreamID: input.transaction.attributes.substreamID,
                pnu: input.access.isPrivileged,
                ind: input.access.isInstruction,
                rnw: !input.access.isWrite,
                s2: false,
                eventClass: .ttd,
                inputAddress: input.transaction.address.rawValue,
                fetchAddress: location.rawValue
            ),
            reason
        )
    }

    /// A stage-1 fault that CD.A and CD.R decide on: F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION.
    func translationFault(_ number: EventNumber, _ input: WalkInput, _ reason: String) -> TranslationFault {
        let record = EventRecord.translationRelated(
            number,
            streamID: input.transaction.streamID,
            substreamID: input.transaction.attributes.substreamID,
            pnu: input.access.isPrivileged,
            ind: input.access.isInstruction,
            rnw: !input.access.isWrite,
            s2: false,
            eventClass: .in,
            inputAddress: input.transaction.address.rawValue,
            ipa: 0
        )
        return TranslationFault(
            response: input.context.stalls
                ? .stall : input.context.aborts ? .abort : .readAsZeroWriteIgnored,
            event: number,
            // What stalls is always recorded: who else should resume it?
            record: input.context.records || input.context.stalls ? record : nil,
            reason: reason
        )
    }
}

/// Which of a leaf's flags an update sets.
func describeUpdate(_ old: Descriptor, _ new: Descriptor) -> String {
    var other = old
    other.af = new.af
    switch (old.af != new.af, other != new) {
    case (true, false): return "the access flag"
    case (false, _): return "the dirty state"
    default: return "the access flag and the dirty state"
    }
}
