// An STE and a CD, checked and decoded: what the translation of a stream works from.

import BitFields
import SMMUv3Spec

/// What a valid STE configures.
struct StreamConfiguration: Equatable, Sendable {
    var config: StreamConfig
    var world: StreamWorld
    /// The VMID tag: S2VMID, or 0 where stage 2 is not implemented.
    var vmid: UInt16
    var privCfg: UInt8
    var instCfg: UInt8
    /// S1STALLD, which a CD's legality depends on.
    var s1STALLD: Bool
    var contextTable: ContextTable

    /// Where the CDs are, and how many.
    struct ContextTable: Equatable, Sendable {
        /// S1ContextPtr, aligned as its shape requires.
        var base: UInt64
        /// S1CDMax: log2 of the number of CDs; 0 is one CD and no SubstreamIDs.
        var log2Count: UInt8
        /// log2 of the CDs in a level-2 table, or nil for a linear table.
        var log2LeafCount: UInt8?
        /// S1DSS.
        var defaultSubstream: UInt8
    }
}

/// The part of a CD that one half of the address space is translated with: TTB0 and its fields, or TTB1.
struct TableRegion: Equatable, Sendable {
    /// EPDn: no walk.
    var isWalkDisabled: Bool
    /// TBIn: address bits [63:56] are ignored.
    var ignoresTopByte: Bool
    /// 64 - TnSZ.
    var inputBits: Int
    var granule: Granule
    /// TTBn.
    var tableBase: UInt64
    /// HADn.
    var ignoresHierarchicalAttributes: Bool
}

/// What a valid CD configures.
struct ContextConfiguration: Equatable, Sendable {
    var lower: TableRegion
    var upper: TableRegion
    /// min(IPS, OAS) in bits.
    var outputBits: Int
    var asid: UInt16
    var aset: Bool
    var mair: UInt64
    /// AFFD.
    var accessFlagFaultsDisabled: Bool
    var wxn: Bool
    var pan: Bool
    /// CD.A: terminated transactions abort; otherwise read as zero, write ignored.
    var aborts: Bool
    /// CD.R: translation-related faults are recorded.
    var records: Bool
}

// MARK: Checking an STE

extension Identification {
    /// Why an STE is invalid or ILLEGAL (IHI 0070, 5.2 and SteIllegal()), in words; nil where it is valid.
    func violation(of ste: STE) -> String? {
        guard ste.v else { return "STE.V is 0" }
        let config = ste.config
        // Config 0b0xx terminates and is never ILLEGAL: nothing else is looked at.
        guard config.rawValue & 0b100 != 0 else { return nil }
        if config.translatesStage1, !idr0.s1P {
            return "STE.Config enables stage 1, which SMMU_IDR0.S1P says is not implemented"
        }
        if config.translatesStage2, !idr0.s2P {
            return "STE.Config enables stage 2, which SMMU_IDR0.S2P says is not implemented"
        }
        guard config.translatesStage1 else { return nil }
        return stage1Violation(of: ste)
    }

    private func stage1Violation(of ste: STE) -> String? {
        // STRW is RES0 without EL2 support, and IGNORED with stage 2.
        if idr0.s1P, idr0.hyp, !ste.config.translatesStage2, ste.strw & 1 != 0 {
            return "STE.STRW is 0b\(String(ste.strw, radix: 2)), reserved in the Non-secure table"
        }
        if ste.s1STALLD, idr0.stallModel != 0 {
            return "STE.S1STALLD is 1 with SMMU_IDR0.STALL_MODEL \(idr0.stallModel); only model 0 permits it"
        }
        if idr1.ssidsize != 0, ste.s1CDMax > idr1.ssidsize {
            return "STE.S1CDMax is \(ste.s1CDMax), above SMMU_IDR1.SSIDSIZE \(idr1.ssidsize)"
        }
        if idr1.ssidsize != 0, ste.s1CDMax != 0, !idr0.cd2L, ste.s1Fmt == 1 || ste.s1Fmt == 2 {
            return
                "STE.S1Fmt is \(ste.s1Fmt), a 2-level CD table, which SMMU_IDR0.CD2L says is not implemented"
        }
        if ste.s1ContextPtr >= outputAddressLimit {
            return "STE.S1ContextPtr 0x\(String(ste.s1ContextPtr, radix: 16)) is beyond the "
                + "\(outputAddressBits)-bit output address size"
        }
        return nil
    }

    /// Decodes an STE in which ``violation(of:)`` found nothing.
    func decode(_ ste: STE) -> StreamConfiguration {
        let hasSubstreams = idr1.ssidsize != 0 && ste.s1CDMax != 0
        let log2Count = hasSubstreams ? ste.s1CDMax : 0
        var base = ste.s1ContextPtr
        var leaf: UInt8?
        // The bits that the table's own size implies to be zero: see IHI 0070, 5.2, S1ContextPtr.
        if log2Count > 0 {
            switch ste.s1Fmt {
            case 0b01:
                leaf = 6
                base = base.roundedDown(toPowerOfTwo: max(64, 8 << UInt64(max(log2Count, 6) - 6)))
            case 0b10:
                leaf = 10
                base = base.roundedDown(toPowerOfTwo: max(64, 8 << UInt64(max(log2Count, 10) - 10)))
            default:
                base = base.roundedDown(toPowerOfTwo: 64 << UInt64(log2Count))
            }
        }
        let overridesPermissions = idr1.attrPermsOvr
        return StreamConfiguration(
            config: ste.config,
            world: .nsEL1,
            vmid: idr0.s2P ? ste.s2VMID : 0,
            privCfg: overridesPermissions ? ste.privCfg : 0,
            instCfg: overridesPermissions ? ste.instCfg : 0,
            s1STALLD: ste.s1STALLD,
            contextTable: StreamConfiguration.ContextTable(
                base: base,
                log2Count: log2Count,
                log2LeafCount: leaf,
                defaultSubstream: hasSubstreams ? ste.s1DSS : 0
            )
        )
    }
}

// MARK: Checking a CD

extension Identification {
    /// Why a CD is invalid or ILLEGAL (IHI 0070, 5.4 and CdIllegal()), in words; nil where it is valid.
    func violation(of cd: CD, in stream: StreamConfiguration) -> String? {
        guard cd.v else { return "CD.V is 0" }
        if stream.s1STALLD, cd.s { return "CD.S is 1 though STE.S1STALLD forbids stalls" }
        if idr0.termModel, !cd.a { return "CD.A is 0 with SMMU_IDR0.TERM_MODEL 1" }
        if idr0.stallModel == 0b01, cd.s { return "CD.S is 1 with SMMU_IDR0.STALL_MODEL 1 (no stalls)" }
        if idr0.stallModel == 0b10, !cd.s { return "CD.S is 0 with SMMU_IDR0.STALL_MODEL 2 (stalls forced)" }
        if !(cd.epd0 && cd.epd1) {
            if idr0.ttendian == 0b10, cd.endi {
                return "CD.ENDI is 1; SMMU_IDR0.TTENDIAN has little-endian alone"
            }
            if idr0.ttendian == 0b11, !cd.endi {
                return "CD.ENDI is 0; SMMU_IDR0.TTENDIAN has big-endian alone"
            }
        }
        if !cd.aa64, idr0.ttf & 0b01 == 0 { return "CD.AA64 is 0; SMMU_IDR0.TTF has AArch64 tables alone" }
        if cd.aa64, idr0.ttf & 0b10 == 0 { return "CD.AA64 is 1; SMMU_IDR0.TTF has no AArch64 tables" }
        if cd.ha || cd.hd, idr0.httu == 0 { return "CD.HA or CD.HD is 1 with SMMU_IDR0.HTTU 0" }
        if cd.hd, idr0.httu == 1 { return "CD.HD is 1 with SMMU_IDR0.HTTU 1 (access flag alone)" }
        if !idr0.asid16, cd.asid > 0xFF { return "CD.ASID has upper bits with SMMU_IDR0.ASID16 0" }
        // Both halves are checked for every transaction, whichever half its address selects.
        if !cd.epd0 {
            let granule = Granule(tg0: cd.tg0)
            if let reason = regionViolation(cd, "0", size: cd.t0SZ, granule: granule, table: cd.ttb0) {
                return reason
            }
        }
        if !cd.epd1 {
            let granule = Granule(tg1: cd.tg1)
            if let reason = regionViolation(cd, "1", size: cd.t1SZ, granule: granule, table: cd.ttb1) {
                return reason
            }
        }
        return nil
    }

    private func regionViolation(_ cd: CD, _ n: String, size: UInt8, granule: Granule?, table: UInt64)
        -> String?
    {
        guard let granule, supports(granule) else {
            return "CD.TG\(n) selects a granule that is reserved or that SMMU_IDR5 does not have"
        }
        let largest: UInt8 = !idr3.stt ? 39 : granule == .kib64 ? 47 : 48
        let hasLargeInput = idr5.vax >= 1 && (granule == .kib64 || (idr5.ds && cd.ds))
        let smallest: UInt8 = hasLargeInput ? 12 : 16
        guard size >= smallest, size <= largest else {
            return "CD.T\(n)SZ is \(size), outside \(smallest)...\(largest)"
        }
        let outputBits = AddressSize.effectiveBits(encoding: cd.ips, limit: idr5.oas)
        let limit: UInt64 = 1 << UInt64(outputBits)
        guard table < limit, granule == .kib64 || (idr5.ds && cd.ds) || table < 1 << 48 else {
            return
                "CD.TTB\(n) 0x\(String(table, radix: 16)) is beyond the \(outputBits)-bit intermediate address size"
        }
        return nil
    }

    /// Decodes a CD in which ``violation(of:in:)`` found nothing.
    func decode(_ cd: CD) -> ContextConfiguration {
        ContextConfiguration(
            lower: TableRegion(
                isWalkDisabled: cd.epd0,
                ignoresTopByte: cd.tbi0,
                inputBits: 64 - Int(cd.t0SZ),
                // A region whose walks are disabled may hold anything; its granule is never used.
                granule: Granule(tg0: cd.tg0) ?? .kib4,
                tableBase: cd.ttb0,
                ignoresHierarchicalAttributes: cd.had0 && idr3.had
            ),
            upper: TableRegion(
                isWalkDisabled: cd.epd1,
                ignoresTopByte: cd.tbi1,
                inputBits: 64 - Int(cd.t1SZ),
                granule: Granule(tg1: cd.tg1) ?? .kib4,
                tableBase: cd.ttb1,
                ignoresHierarchicalAttributes: cd.had1 && idr3.had
            ),
            outputBits: AddressSize.effectiveBits(encoding: cd.ips, limit: idr5.oas),
            asid: cd.asid,
            aset: cd.aset,
            mair: cd.mair,
            accessFlagFaultsDisabled: cd.affd,
            wxn: cd.wxn,
            pan: cd.pan,
            aborts: cd.a,
            records: cd.r
        )
    }
}

extension AddressSize {
    /// min(IPS, OAS) in bits.
    static func effectiveBits(encoding: UInt8, limit: UInt8) -> Int {
        min(bits(encoding: encoding), bits(encoding: limit))
    }
}
