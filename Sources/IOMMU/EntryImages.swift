// The STEs and CDs that the driver writes.

import AddressSpace
import IOPageTable
import SMMUv3Spec

extension STE {
    /// Every transaction is aborted, without an event: a blocked stream.
    static var aborting: STE {
        var entry = STE()
        entry.v = true
        entry.config = .abort
        return entry
    }

    /// Transactions pass untranslated.
    static func bypassing(_ features: SMMUFeatures) -> STE {
        var entry = STE()
        entry.v = true
        entry.config = .bypass
        if features.flags.contains(.attributeOverrides) { entry.shCfg = 0b01 }  // Use incoming.
        return entry
    }

    /// What becomes of transactions without a SubstreamID where a stream has a CD table.
    enum Unsubstreamed: UInt8 {
        case terminates = 0
        case bypasses = 1
        case usesFirstContext = 2
    }

    /// Stage 1 through a CD table.
    ///
    /// - Parameters:
    ///   - table: The endpoint's CD table.
    ///   - unsubstreamed: STE.S1DSS.
    ///   - canStall: Whether the endpoint bears being stalled.
    ///   - usesE2H: Whether the translation regime is EL2-E2H, as the CPU's.
    ///   - features: What the SMMU can do.
    ///   - ats: The function's registers, where it is to have ATS.
    static func translating(
        _ table: ContextTable,
        unsubstreamed: Unsubstreamed,
        canStall: Bool,
        usesE2H: Bool,
        features: SMMUFeatures,
        ats: (any PageServices)? = nil
    ) -> STE {
        var entry = STE()
        entry.v = true
        entry.config = .stage1
        // Full ATS; responses that the SMMU makes itself are as the function wants them.
        entry.eats = ats == nil ? 0 : 1
        entry.ppar = ats?.hasPRI == true && ats?.responsesNeedPASID == true
        entry.s1Fmt = table.isTwoLevel ? 2 : 0
        entry.s1ContextPtr = table.address.rawValue
        entry.s1CDMax = UInt8(table.log2Count)
        entry.s1DSS = unsubstreamed.rawValue
        entry.s1CIR = 1  // Write-back, read-allocate.
        entry.s1COR = 1
        entry.s1CSH = 3  // Inner Shareable.
        entry.s1STALLD = features.flags.contains(.stalls) && !canStall
        entry.strw = usesE2H ? 2 : 0
        if unsubstreamed == .bypasses, features.flags.contains(.attributeOverrides) { entry.shCfg = 0b01 }
        return entry
    }

    /// Stage 2 alone.
    ///
    /// Linux: arm_smmu_make_s2_domain_ste.
    static func translatingStage2(
        _ configuration: PageTableConfiguration,
        root: PhysicalAddress,
        vmid: UInt16,
        canStall: Bool,
        features: SMMUFeatures
    ) -> STE {
        var entry = STE()
        entry.v = true
        entry.config = .stage2
        if features.flags.contains(.attributeOverrides) { entry.shCfg = 0b01 }
        let controls = configuration.stageTwoControls
        entry.s2FWB = controls.s2FWB
        entry.s2VMID = vmid
        entry.s2T0SZ = controls.s2T0SZ
        entry.s2SL0 = controls.s2SL0
        entry.s2IR0 = controls.s2IR0
        entry.s2OR0 = controls.s2OR0
        entry.s2SH0 = controls.s2SH0
        entry.s2TG = controls.s2TG
        entry.s2PS = controls.s2PS
        entry.s2AA64 = true
        entry.s2PTW = true
        entry.s2S = canStall
        entry.s2R = true
        entry.s2TTB = root.rawValue
        return entry
    }
}

extension CD {
    /// A stage-1 table for one ASID; TTB1 is not used.
    init(_ configuration: PageTableConfiguration, root: PhysicalAddress, asid: UInt16, canStall: Bool) {
        self.init()
        let controls = configuration.controls
        t0SZ = controls.t0sz
        tg0 = controls.tg0
        ir0 = controls.ir0
        or0 = controls.or0
        sh0 = controls.sh0
        epd1 = true
        v = true
        ips = controls.ips
        aa64 = true
        s = canStall
        r = true
        a = true
        aset = true
        self.asid = asid
        ttb0 = root.rawValue
        mair = controls.mair
        // Linux sets both: dirty state is never updated without the Access flag.
        ha = configuration.tracksDirtyState
        hd = configuration.tracksDirtyState
    }

    /// A process's table: as the CPU uses it, so the ASID belongs to a set that is shared with it (ASET = 0).
    ///
    /// Linux: arm_smmu_make_sva_cd.
    static func process(
        _ configuration: PageTableConfiguration,
        root: PhysicalAddress,
        asid: UInt16,
        canStall: Bool
    ) -> CD {
        var entry = CD(configuration, root: root, asid: asid, canStall: canStall)
        entry.aset = false
        return entry
    }

    /// The CD of a process that has ended, until the device lets go: nothing is walked, and what comes is aborted at
    /// once and without an event, so that its end is not held up by a device that goes on.
    ///
    /// Linux: arm_smmu_make_sva_cd without a mm.
    ///
    /// - Parameter mustStall: Whether the SMMU can do nothing but stall (IDR0.STALL_MODEL = 0b10).
    static func quiet(
        _ configuration: PageTableConfiguration,
        asid: UInt16,
        canStall: Bool,
        mustStall: Bool
    ) -> CD {
        var entry = CD()
        entry.epd0 = true
        entry.epd1 = true
        entry.v = true
        entry.aa64 = true
        entry.ips = configuration.controls.ips
        entry.s = canStall && mustStall
        entry.r = mustStall
        entry.a = true
        entry.asid = asid
        entry.mair = configuration.controls.mair
        return entry
    }
}
