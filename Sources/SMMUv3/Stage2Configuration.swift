// The stage-2 half of an STE, checked and decoded.

import BitFields
import SMMUv3Spec

/// What a valid STE with Config 0b11x configures of stage 2.
struct Stage2Configuration: Equatable, Sendable {
    /// S2TTB, aligned to the size of the first table or of the tables that are concatenated to it.
    var tableBase: UInt64
    /// 64 - S2T0SZ.
    var inputBits: Int
    /// The level of the first table, -1...3.
    var startLevel: Int
    var format: TableFormat
    /// min(S2PS, OAS) in bits.
    var outputBits: Int
    /// S2AFFD, of effect without `updatesAccessFlag`.
    var accessFlagFaultsDisabled: Bool
    /// S2HA.
    var updatesAccessFlag: Bool
    /// S2HD, of effect with S2HA alone.
    var updatesDirtyState: Bool
    /// S2FWB.
    var forcesWriteBack: Bool
    /// S2PTW, of effect where stage 1 translates too: the tables of stage 1 may not lie in Device memory.
    var protectsTableWalks: Bool
    /// S2SH0: with S2DS every leaf's shareability.
    var walkShareability: UInt8
    /// SMMU_IDR3.XNX: XN has two bits.
    var hasXNX: Bool
    /// S2R: faults are recorded.
    var records: Bool
    /// S2S: faults stall.
    var stalls: Bool
    var vmid: UInt16
    /// VMSAv8-32 LPAE tables (S2AA64 == 0): execution needs read permission.
    var isAArch32 = false

    /// How many address bits the first table resolves, concatenated tables included.
    var firstIndexBits: Int { inputBits - format.granule.log2Bytes(ofLevel: startLevel) }
}

extension Identification {
    /// The level that S2SL0 and S2SL0_2 encode for a granule; nil where they are reserved.
    func stage2StartLevel(_ ste: STE, _ granule: Granule) -> Int? {
        let ds = idr5.ds && ste.s2DS
        switch granule {
        case .kib4:
            if ds, ste.s2SL0Bit2 { return ste.s2SL0 == 0 ? -1 : nil }
            switch ste.s2SL0 {
            case 0b00: return 2
            case 0b01: return 1
            case 0b10: return 0
            default: return idr3.stt ? 3 : nil
            }
        case .kib16:
            return ste.s2SL0 < 0b11 ? 3 - Int(ste.s2SL0) : ds ? 0 : nil
        case .kib64:
            return ste.s2SL0 < 0b11 ? 3 - Int(ste.s2SL0) : nil
        }
    }

    /// Why the stage-2 fields of an STE with Config 0b11x are ILLEGAL; nil where they are not.
    func stage2Violation(of ste: STE) -> String? {
        if !ste.s2AA64, idr3.fwb, ste.s2FWB { return "STE.S2FWB is 1 with STE.S2AA64 0" }
        if ste.s2S, idr0.stallModel == 0b01 {
            return "STE.S2S is 1 with SMMU_IDR0.STALL_MODEL 1 (no stalls)"
        }
        if !ste.s2S, idr0.stallModel == 0b10 {
            return "STE.S2S is 0 with SMMU_IDR0.STALL_MODEL 2 (stalls forced)"
        }
        if !ste.s2AA64 {
            if let reason = aarch32Stage2Violation(of: ste) { return reason }
            return stage2EndianViolation(of: ste)
        }
        if idr0.ttf & 0b10 == 0 { return "STE.S2AA64 is 1; SMMU_IDR0.TTF has no AArch64 tables" }
        if ste.s2HA || ste.s2HD, idr0.httu == 0 {
            return "STE.S2HA or STE.S2HD is 1 with SMMU_IDR0.HTTU 0"
        }
        if ste.s2HD, idr0.httu == 1 {
            return "STE.S2HD is 1 with SMMU_IDR0.HTTU 1 (access flag alone)"
        }
        if ste.s2HAFT, !ste.s2HA, idr0.httu == 3 { return "STE.S2HAFT is 1 with STE.S2HA 0" }
        if let reason = stage2ShapeViolation(of: ste) { return reason }
        return stage2EndianViolation(of: ste)
    }

    private func stage2EndianViolation(of ste: STE) -> String? {
        if idr0.ttendian == 0b10, ste.s2ENDI {
            return "STE.S2ENDI is 1; SMMU_IDR0.TTENDIAN has little-endian alone"
        }
        if idr0.ttendian == 0b11, !ste.s2ENDI {
            return "STE.S2ENDI is 0; SMMU_IDR0.TTENDIAN has big-endian alone"
        }
        return nil
    }

    private func stage2ShapeViolation(of ste: STE) -> String? {
        guard let granule = Granule(s2TG: ste.s2TG), supports(granule) else {
            return "STE.S2TG selects a granule that is reserved or that SMMU_IDR5 does not have"
        }
        let ds = idr5.ds && ste.s2DS
        let outputBits = AddressSize.effectiveBits(encoding: ste.s2PS, limit: idr5.oas)
        guard ste.s2TTB >> UInt64(outputBits) == 0, granule == .kib64 || ds || ste.s2TTB < 1 << 48 else {
            return
                "STE.S2TTB 0x\(String(ste.s2TTB, radix: 16)) is beyond the \(outputBits)-bit output address "
                + "size of stage 2"
        }
        let largest = !idr3.stt ? 39 : granule == .kib64 ? 47 : 48
        let smallest = max(granule == .kib64 || ds ? 12 : 16, 64 - inputAddressBits)
        let size = Int(ste.s2T0SZ)
        guard size >= smallest, size <= largest else {
            return "STE.S2T0SZ is \(size), outside \(smallest)...\(largest)"
        }
        guard let level = stage2StartLevel(ste, granule) else {
            return "STE.S2SL0 0b\(String(ste.s2SL0, radix: 2)) is reserved for \(granule) tables"
        }
        let indexBits = 64 - size - granule.log2Bytes(ofLevel: level)
        // At most 16 tables are concatenated.
        guard indexBits >= 1, indexBits <= granule.stride + 4 else {
            return "STE.S2T0SZ \(size) and STE.S2SL0, which is start level \(level), are inconsistent"
        }
        return nil
    }

    /// Decodes stage 2 of an STE in which `stage2Violation` found nothing.
    func stage2(of ste: STE) -> Stage2Configuration {
        guard ste.s2AA64 else { return aarch32Stage2(of: ste) }
        let granule = Granule(s2TG: ste.s2TG) ?? .kib4
        let outputBits = AddressSize.effectiveBits(encoding: ste.s2PS, limit: idr5.oas)
        var result = Stage2Configuration(
            tableBase: 0,
            inputBits: 64 - Int(ste.s2T0SZ),
            startLevel: stage2StartLevel(ste, granule) ?? 3,
            format: TableFormat(
                stage: .stage2,
                granule: granule,
                has52BitOutput: granule == .kib64 && has52BitOutput,
                ds: granule != .kib64 && idr5.ds && ste.s2DS,
                isBigEndian: ste.s2ENDI
            ),
            outputBits: outputBits,
            accessFlagFaultsDisabled: ste.s2AFFD,
            updatesAccessFlag: ste.s2HA,
            updatesDirtyState: ste.s2HA && ste.s2HD,
            forcesWriteBack: idr3.fwb && ste.s2FWB,
            protectsTableWalks: ste.s2PTW,
            walkShareability: ste.s2SH0,
            hasXNX: idr3.xnx,
            records: ste.s2R,
            stalls: ste.s2S,
            vmid: ste.s2VMID
        )
        result.tableBase = TableFormat.alignedBase(ste.s2TTB, result.firstIndexBits, outputBits)
        return result
    }
}
