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
    static func translating(
        _ table: ContextTable,
        unsubstreamed: Unsubstreamed,
        canStall: Bool,
        usesE2H: Bool,
        features: SMMUFeatures
    ) -> STE {
        var entry = STE()
        entry.v = true
        entry.config = .stage1
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
}
