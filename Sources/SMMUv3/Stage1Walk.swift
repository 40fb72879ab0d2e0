// The walk of VMSAv8-64 stage-1 tables.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// The hierarchical attributes that a walk accumulates from table descriptors.
private struct HierarchicalAttributes {
    /// APTable[0]: no unprivileged access below.
    var removesUnprivileged = false
    /// APTable[1]: no writes below.
    var removesWrites = false
    var unprivilegedExecuteNever = false
    var privilegedExecuteNever = false

    mutating func accumulate(_ table: Descriptor) {
        removesUnprivileged = removesUnprivileged || table.apTable & 0b01 != 0
        removesWrites = removesWrites || table.apTable & 0b10 != 0
        unprivilegedExecuteNever = unprivilegedExecuteNever || table.uxnTable
        privilegedExecuteNever = privilegedExecuteNever || table.pxnTable
    }
}

/// Everything that one stage-1 walk needs to know beside the tables.
struct WalkInput {
    var transaction: Transaction
    var access: EffectiveAccess
    var context: ContextConfiguration
    var tag: RegimeTag
}

extension ContextConfiguration {
    /// The input address with the top byte replaced where it is ignored, so that equal translations compare equal.
    func canonical(_ address: UInt64) -> UInt64 {
        let isUpper = address[bit: 55]
        let region = isUpper ? upper : lower
        guard region.ignoresTopByte else { return address }
        return isUpper ? address | 0xFF00_0000_0000_0000 : address & 0x00FF_FFFF_FFFF_FFFF
    }

    /// The region that translates an address: by bit 55, with or without a top byte.
    func region(of address: UInt64) -> TableRegion { address[bit: 55] ? upper : lower }
}

extension SMMUv3 {
    /// Translates through stage 1 by walking the tables.
    ///
    /// Permissions are returned, not checked.
    ///
    /// The order of faults is the architecture's (IHI 0070, 7.3.22): range, then for each level external abort,
    /// invalid descriptor, address size; then at the leaf the access flag.
    func walkStage1(_ input: WalkInput, _ observer: inout some LookupObserver) throws(TranslationFault)
        -> CachedTranslation
    {
        let address = input.context.canonical(input.transaction.address.rawValue)
        let region = input.context.region(of: address)
        try checkRange(address, region, input)
        count(.walks)

        let granule = region.granule
        let granuleBits = granule.log2Bytes
        let stride = granule.stride
        var level = 3 - (region.inputBits - 1 - granuleBits) / stride
        var indexBits = region.inputBits - (granuleBits + stride * (3 - level))
        // The first table is aligned to its own size: the bits below are treated as zero.
        var table = region.tableBase & ~((8 &<< UInt64(indexBits)) &- 1)
        var hierarchical = HierarchicalAttributes()

        while true {
            let lowBit = granuleBits + stride * (3 - level)
            let index = (address &>> UInt64(lowBit)) & ((1 &<< UInt64(indexBits)) &- 1)
            let descriptor = try fetchDescriptor(
                PhysicalAddress(table &+ index &* 8),
                level,
                granule,
                input,
                &observer
            )
            guard descriptor.isValid else {
                throw translationFault(.fTranslation, input, "the level-\(level) descriptor is invalid")
            }
            if level < 3, descriptor.isTableOrPage {
                table = descriptor.nextTableAddress(granule: granule, has52BitOutput: false, ds: false)
                guard table &>> UInt64(input.context.outputBits) == 0 else {
                    throw translationFault(
                        .fAddrSize,
                        input,
                        "the level-\(level) table descriptor points beyond \(input.context.outputBits) bits"
                    )
                }
                if !region.ignoresHierarchicalAttributes { hierarchical.accumulate(descriptor) }
                level += 1
                indexBits = stride
                continue
            }
            guard isLeaf(descriptor, level: level, granule: granule) else {
                throw translationFault(
                    .fTranslation,
                    input,
                    "a block is not possible at level \(level) of \(granule.byteCount)-byte tables"
                )
            }
            return try leaf(descriptor, level, lowBit, hierarchical, address, granule, input)
        }
    }

    private func checkRange(_ address: UInt64, _ region: TableRegion, _ input: WalkInput)
        throws(TranslationFault)
    {
        guard !region.isWalkDisabled else {
            let half = address[bit: 55] ? "1" : "0"
            throw translationFault(.fTranslation, input, "CD.EPD\(half) disables walks of TTB\(half)")
        }
        let isUpper = address[bit: 55]
        let outside = (isUpper ? ~address : address) &>> UInt64(region.inputBits)
        guard outside == 0 else {
            throw translationFault(
                .fTranslation,
                input,
                "the address is outside the \(region.inputBits)-bit range of TTB\(isUpper ? 1 : 0)"
            )
        }
    }

    private func fetchDescriptor(
        _ address: PhysicalAddress,
        _ level: Int,
        _ granule: Granule,
        _ input: WalkInput,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Descriptor {
        let word: UInt64
        observer.accessing(.translationTable)
        do {
            word = try bus.loadRAM64(at: address)
        } catch {
            throw .abort(
                .walkExternalAbort(
                    streamID: input.transaction.streamID,
                    substreamID: input.transaction.attributes.substreamID,
                    pnu: input.access.isPrivileged,
                    ind: input.access.isInstruction,
                    rnw: !input.access.isWrite,
                    s2: false,
                    eventClass: .ttd,
                    inputAddress: input.transaction.address.rawValue,
                    fetchAddress: address.rawValue
                ),
                "nobody answers at the level-\(level) descriptor's address \(address)"
            )
        }
        count(.descriptorFetches)
        let descriptor = Descriptor(rawValue: word)
        observer.fetched(.descriptor(address, descriptor, level: level, granule: granule))
        return descriptor
    }

    /// Whether a valid descriptor is a page, or a block at a level that has blocks (without 52-bit addresses).
    private func isLeaf(_ descriptor: Descriptor, level: Int, granule: Granule) -> Bool {
        guard level < 3 else { return descriptor.isTableOrPage }
        return switch granule {
        case .kib4: level == 1 || level == 2
        case .kib16, .kib64: level == 2
        }
    }

    private func leaf(
        _ descriptor: Descriptor,
        _ level: Int,
        _ lowBit: Int,
        _ hierarchical: HierarchicalAttributes,
        _ address: UInt64,
        _ granule: Granule,
        _ input: WalkInput
    ) throws(TranslationFault) -> CachedTranslation {
        let context = input.context
        let output = descriptor.outputAddress(
            granule: granule,
            level: level,
            has52BitOutput: false,
            ds: false
        )
        guard output &>> UInt64(context.outputBits) == 0 else {
            throw translationFault(
                .fAddrSize,
                input,
                "the level-\(level) leaf's output address is beyond \(context.outputBits) bits"
            )
        }
        // HTTU is not implemented, so HA is always 0 here.
        guard descriptor.af || context.accessFlagFaultsDisabled else {
            throw translationFault(.fAccess, input, "the level-\(level) leaf's access flag is 0")
        }
        let attribute = UInt8(truncatingIfNeeded: context.mair &>> (UInt64(descriptor.attrIndx & 7) &* 8))
        return CachedTranslation(
            inputBase: address.roundedDown(toPowerOfTwo: 1 &<< UInt64(lowBit)),
            outputBase: output,
            log2Bytes: UInt8(lowBit),
            level: UInt8(level),
            granule: granule,
            isGlobal: !descriptor.nG,
            tag: input.tag,
            permissions: permissions(descriptor, hierarchical, context),
            memoryAttribute: attribute,
            shareability: descriptor.sh
        )
    }

    /// What a leaf permits (VMSAv8-64, stage 1, two privilege levels).
    private func permissions(
        _ leaf: Descriptor,
        _ hierarchical: HierarchicalAttributes,
        _ context: ContextConfiguration
    ) -> Permissions {
        let isWritable = leaf.ap & 0b10 == 0 && !hierarchical.removesWrites
        let isUnprivilegedAccessible = leaf.ap & 0b01 != 0 && !hierarchical.removesUnprivileged
        var result = Permissions()
        if isUnprivilegedAccessible {
            result.insert(.unprivilegedRead)
            if isWritable { result.insert(.unprivilegedWrite) }
        }
        // PAN: privileged data accesses to what unprivileged ones reach are refused.
        if !(context.pan && isUnprivilegedAccessible) {
            result.insert(.privilegedRead)
            if isWritable { result.insert(.privilegedWrite) }
        }
        let isUnprivilegedWritable = isUnprivilegedAccessible && isWritable
        // Execute does not need read. What unprivileged code can write, privileged code does not execute.
        if !leaf.pxn, !hierarchical.privilegedExecuteNever, !isUnprivilegedWritable,
            !(context.wxn && isWritable)
        {
            result.insert(.privilegedExecute)
        }
        if !leaf.uxn, !hierarchical.unprivilegedExecuteNever, !(context.wxn && isUnprivilegedWritable) {
            result.insert(.unprivilegedExecute)
        }
        return result
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
            response: input.context.aborts ? .abort : .readAsZeroWriteIgnored,
            event: number,
            record: input.context.records ? record : nil,
            reason: reason
        )
    }
}
