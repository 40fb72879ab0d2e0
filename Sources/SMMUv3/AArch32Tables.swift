// VMSAv8-32 LPAE tables: what differs from VMSAv8-64 with a granule of 4 KiB.

import BitFields
import SMMUv3Spec

// Descriptors are the same words, and walks the same steps. What differs: addresses have 32 bits and are shared out
// between TTB0 and TTB1 by TxSZ, outputs have 40 bits, nothing is updated by hardware, XN holds for both privileges,
// and execution needs read permission.

extension Identification {
    /// IAS in bits: the size of the largest IPA, 40 with VMSAv8-32 tables where OAS is smaller.
    var inputAddressBits: Int {
        max(idr0.ttf & 0b01 != 0 ? 40 : 0, idr0.ttf & 0b10 != 0 ? outputAddressBits : 0)
    }

    /// The first address beyond IAS.
    var inputAddressLimit: UInt64 { 1 << UInt64(inputAddressBits) }

    /// Why the table format that a CD selects is ILLEGAL; nil where it is not.
    func formatViolation(of cd: CD, in stream: StreamConfiguration) -> String? {
        guard cd.aa64 else {
            if idr0.ttf & 0b01 == 0 { return "CD.AA64 is 0; SMMU_IDR0.TTF has AArch64 tables alone" }
            guard stream.world != .nsEL2E2H else { return "CD.AA64 is 0 in the StreamWorld NS-EL2-E2H" }
            return nil
        }
        if idr0.ttf & 0b10 == 0 { return "CD.AA64 is 1; SMMU_IDR0.TTF has no AArch64 tables" }
        guard stream.stage2?.isAArch32 != true else { return "CD.AA64 is 1 where STE.S2AA64 is 0" }
        return nil
    }

    /// Decodes a CD with AA64 == 0 in which nothing was found to be wrong.
    func decodeAArch32(_ cd: CD, in stream: StreamConfiguration) -> ContextConfiguration {
        let hasTwoRanges = stream.world.hasTwoRanges
        func region(_ size: UInt8, _ table: UInt64, isWalkDisabled: Bool, _ had: Bool) -> TableRegion {
            TableRegion(
                isWalkDisabled: isWalkDisabled,
                ignoresTopByte: false,
                refusesUnprivileged: false,
                inputBits: 32 - Int(size & 0b111),
                format: TableFormat(stage: .stage1, granule: .kib4, isBigEndian: cd.endi),
                tableBase: table,
                ignoresHierarchicalAttributes: had && idr3.had,
                walkShareability: 0
            )
        }
        return ContextConfiguration(
            lower: region(cd.t0SZ, cd.ttb0, isWalkDisabled: hasTwoRanges && cd.epd0, cd.had0),
            upper: region(cd.t1SZ, cd.ttb1, isWalkDisabled: !hasTwoRanges || cd.epd1, cd.had1),
            outputBits: 40,
            asid: hasTwoRanges ? cd.asid : 0,
            aset: hasTwoRanges && cd.aset,
            mair: cd.mair,
            accessFlagFaultsDisabled: cd.affd,
            updatesAccessFlag: false,
            updatesDirtyState: false,
            permissionRules: PermissionRules(
                hasTwoRanges: hasTwoRanges,
                wxn: cd.wxn,
                pan: hasTwoRanges && cd.pan,
                epan: false,
                isAArch32: true,
                uwxn: hasTwoRanges && cd.uwxn
            ),
            aborts: cd.a,
            records: cd.r,
            stalls: cd.s
        )
    }

    /// Why the stage-2 fields of an STE with S2AA64 == 0 are ILLEGAL; nil where they are not.
    func aarch32Stage2Violation(of ste: STE) -> String? {
        if idr0.ttf & 0b01 == 0 { return "STE.S2AA64 is 0; SMMU_IDR0.TTF has AArch64 tables alone" }
        if ste.s2HA || ste.s2HD { return "STE.S2HA or STE.S2HD is 1 with STE.S2AA64 0" }
        if ste.s2TTB >> 40 != 0 {
            return "STE.S2TTB 0x\(String(ste.s2TTB, radix: 16)) is beyond the 40 bits of AArch32 tables"
        }
        guard ste.s2SL0 <= 1 else { return "STE.S2SL0 0b\(String(ste.s2SL0, radix: 2)) is reserved" }
        let level = 2 - Int(ste.s2SL0)
        let bits = Self.aarch32InputBits(of: ste)
        let indexBits = bits - Granule.kib4.log2Bytes(ofLevel: level)
        guard indexBits >= 1, indexBits <= Granule.kib4.stride + 4 else {
            return "STE.S2T0SZ, \(bits) bits, and STE.S2SL0, which is start level \(level), are inconsistent"
        }
        return nil
    }

    /// Decodes stage 2 of an STE with S2AA64 == 0 in which nothing was found to be wrong.
    func aarch32Stage2(of ste: STE) -> Stage2Configuration {
        var result = Stage2Configuration(
            tableBase: 0,
            inputBits: Self.aarch32InputBits(of: ste),
            startLevel: 2 - Int(min(ste.s2SL0, 1)),
            format: TableFormat(stage: .stage2, granule: .kib4, isBigEndian: ste.s2ENDI),
            outputBits: 40,
            accessFlagFaultsDisabled: ste.s2AFFD,
            updatesAccessFlag: false,
            updatesDirtyState: false,
            forcesWriteBack: false,
            protectsTableWalks: ste.s2PTW,
            walkShareability: 0,
            hasXNX: idr3.xnx,
            records: ste.s2R,
            stalls: ste.s2S,
            vmid: ste.s2VMID,
            isAArch32: true
        )
        result.tableBase = TableFormat.alignedBase(ste.s2TTB, result.firstIndexBits, 40)
        return result
    }

    /// 32 - S2T0SZ, whose four bits are signed.
    private static func aarch32InputBits(of ste: STE) -> Int {
        let size = Int(ste.s2T0SZ & 0b1111)
        return 32 - (size >= 8 ? size - 16 : size)
    }
}

extension ContextConfiguration {
    /// Whether TTB1 translates a 32-bit address: it is in the range that T1SZ gives it, or, where that is all of
    /// them, outside of T0SZ's.
    ///
    /// False for an address that is in neither: it is outside of TTB0's.
    func isUpperOf32Bits(_ address: UInt64) -> Bool {
        guard hasTwoRanges, address >> 32 == 0 else { return false }
        guard upper.inputBits < 32 else {
            return lower.inputBits < 32 && address >> UInt64(lower.inputBits) != 0
        }
        return ~address & 0xFFFF_FFFF & (UInt64.max &<< UInt64(upper.inputBits)) == 0
    }
}

extension PermissionRules {
    /// What a VMSAv8-32 leaf permits.
    func aarch32Permissions(of leaf: Descriptor, _ hierarchical: HierarchicalAttributes) -> Permissions {
        let isWritable = !hierarchical.removesWrites && leaf.ap & 0b10 == 0
        let mayExecute = !leaf.uxn && !hierarchical.unprivilegedExecuteNever
        guard hasTwoRanges else {
            var result: Permissions = .read
            if isWritable { result.formUnion(.write) }
            if mayExecute, !(wxn && isWritable) { result.formUnion(.execute) }
            return result
        }
        let reachesUnprivileged = leaf.ap & 0b01 != 0 && !hierarchical.removesUnprivileged
        let isWritableUnprivileged = reachesUnprivileged && isWritable
        var result = Permissions()
        if reachesUnprivileged {
            result.insert(.unprivilegedRead)
            if isWritable { result.insert(.unprivilegedWrite) }
            if mayExecute, !(wxn && isWritable) { result.insert(.unprivilegedExecute) }
        }
        if mayExecute, !leaf.pxn, !hierarchical.privilegedExecuteNever, !(wxn && isWritable),
            !(uwxn && isWritableUnprivileged)
        {
            result.insert(.privilegedExecute)
        }
        if !(pan && reachesUnprivileged) {
            result.insert(.privilegedRead)
            if isWritable { result.insert(.privilegedWrite) }
        }
        return result
    }
}
