// An STE, checked and decoded: what the translation of a stream works from.

import BitFields
import SMMUv3Spec

/// What a valid STE configures.
struct StreamConfiguration: Equatable, Sendable {
    var config: StreamConfig
    var world: StreamWorld
    /// The VMID tag: S2VMID in NS-EL1 where stage 2 is implemented, else 0.
    var vmid: UInt16
    var privCfg: UInt8
    var instCfg: UInt8
    /// S1STALLD, which a CD's legality depends on.
    var s1STALLD: Bool
    var contextTable: ContextTable
    /// Stage 2, where Config enables it.
    var stage2: Stage2Configuration?
    /// The bus's attributes after MTCFG, MemAttr, SHCFG and ALLOCCFG.
    var incoming: MemoryAttributes

    /// Where the CDs are, and how many.
    struct ContextTable: Equatable, Sendable {
        /// S1ContextPtr, aligned as its shape requires; an IPA where stage 2 translates.
        var base: UInt64
        /// S1CDMax: log2 of the number of CDs; 0 is one CD and no SubstreamIDs.
        var log2Count: UInt8
        /// log2 of the CDs in a level-2 table, or nil for a linear table.
        var log2LeafCount: UInt8?
        /// S1DSS.
        var defaultSubstream: UInt8
    }
}

extension Identification {
    /// Whether STE.STRW says nothing (`strw_unused` of the specification's SteIllegal()).
    private func ignoresSTRW(_ config: StreamConfig) -> Bool {
        !idr0.s1P || !idr0.hyp || config.translatesStage2 || config == .bypass
    }

    /// Why an STE is invalid or ILLEGAL (IHI 0070, 5.2 and SteIllegal()), in words; nil where it is valid.
    func violation(of ste: STE) -> String? {
        guard ste.v else { return "STE.V is 0" }
        let config = ste.config
        // Config 0b0xx terminates and is never ILLEGAL: nothing else is looked at.
        guard !config.abortsSilently else { return nil }
        if config.translatesStage1, !idr0.s1P {
            return "STE.Config enables stage 1, which SMMU_IDR0.S1P says is not implemented"
        }
        if config.translatesStage2, !idr0.s2P {
            return "STE.Config enables stage 2, which SMMU_IDR0.S2P says is not implemented"
        }
        if let reason = atsViolation(of: ste) { return reason }
        if !ignoresSTRW(config), ste.strw & 1 != 0 {
            return "STE.STRW is 0b\(String(ste.strw, radix: 2)), reserved in the Non-secure table"
        }
        if config.translatesStage1, let reason = stage1Violation(of: ste) { return reason }
        if config.translatesStage2, let reason = stage2Violation(of: ste) { return reason }
        if usesVMID(ste), !idr0.vmid16, ste.s2VMID > 0xFF {
            return "STE.S2VMID has upper bits with SMMU_IDR0.VMID16 0"
        }
        if config == .nested, idr3.mpam, ste.s1MPAM, ste.vmsPtr >= outputAddressLimit {
            return "STE.VMSPtr is beyond the \(outputAddressBits)-bit output address size"
        }
        return nil
    }

    /// Whether S2VMID is not IGNORED.
    func usesVMID(_ ste: STE) -> Bool {
        guard idr0.s2P, ste.config != .bypass else { return false }
        return ignoresSTRW(ste.config) || ste.strw == 0
    }

    private func atsViolation(of ste: STE) -> String? {
        // EATS is IGNORED without ATS, and in bypass.
        guard idr0.ats, ste.config != .bypass else { return nil }
        switch ste.eats {
        case 0b01 where ste.config.translatesStage2 && ste.s2S:
            return "STE.EATS is 1 with STE.S2S 1: stage 2 of an ATS stream may not stall"
        case 0b10 where ste.config != .nested || ste.s2S || idr0.ns1ATS:
            return "STE.EATS is 2 (split-stage), which needs Config 0b111, S2S 0 and SMMU_IDR0.NS1ATS 0"
        case 0b11 where idr3.dpt && !ignoresSTRW(ste.config) && ste.strw != 0:
            return "STE.EATS is 3 in another StreamWorld than NS-EL1"
        default:
            return nil
        }
    }

    private func stage1Violation(of ste: STE) -> String? {
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
        // With AArch64 tables IAS is OAS, so the limit is the same where the pointer is an IPA.
        if ste.s1ContextPtr >= outputAddressLimit {
            return "STE.S1ContextPtr 0x\(String(ste.s1ContextPtr, radix: 16)) is beyond the "
                + "\(outputAddressBits)-bit \(ste.config.translatesStage2 ? "intermediate" : "output") "
                + "address size"
        }
        return nil
    }

    /// Decodes an STE in which ``violation(of:)`` found nothing.
    ///
    /// - Parameter isE2H: SMMU_CR2.E2H.
    func decode(_ ste: STE, isE2H: Bool) -> StreamConfiguration {
        let hasSubstreams = idr1.ssidsize != 0 && ste.s1CDMax != 0
        let world =
            ignoresSTRW(ste.config) ? .nsEL1 : StreamWorld(strw: ste.strw, e2H: isE2H) ?? .nsEL1
        return StreamConfiguration(
            config: ste.config,
            world: world,
            vmid: usesVMID(ste) ? ste.s2VMID : 0,
            privCfg: idr1.attrPermsOvr ? ste.privCfg : 0,
            instCfg: idr1.attrPermsOvr ? ste.instCfg : 0,
            s1STALLD: ste.s1STALLD,
            contextTable: contextTable(of: ste, hasSubstreams),
            stage2: ste.config.translatesStage2 ? stage2(of: ste) : nil,
            incoming: idr1.attrTypesOvr
                ? MemoryAttributes.bus.overridden(
                    memAttr: ste.mtCfg ? ste.memAttr : nil,
                    shCfg: ste.shCfg,
                    allocCfg: ste.allocCfg
                ) : .bus
        )
    }

    private func contextTable(of ste: STE, _ hasSubstreams: Bool) -> StreamConfiguration.ContextTable {
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
        return StreamConfiguration.ContextTable(
            base: base,
            log2Count: log2Count,
            log2LeafCount: leaf,
            defaultSubstream: hasSubstreams ? ste.s1DSS : 0
        )
    }
}

extension AddressSize {
    /// min(IPS or S2PS, OAS) in bits.
    static func effectiveBits(encoding: UInt8, limit: UInt8) -> Int {
        min(bits(encoding: encoding), bits(encoding: limit))
    }
}
