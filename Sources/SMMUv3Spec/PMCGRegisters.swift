// The registers of a performance monitor counter group (PMCG).

import BitFields

/// SMMU_PMCG_EVTYPERn (0x400 + 4n): what a counter counts.
public struct PMCGEvtyper: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// EVENT [15:0]: the event.
    public var event: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// FILTER_PARTID [16]: filter by PARTID.
    public var filterPartID: Bool {
        get { rawValue[bit: 16] }
        set { rawValue[bit: 16] = newValue }
    }

    /// FILTER_PMG [17]: filter by PMG.
    public var filterPMG: Bool {
        get { rawValue[bit: 17] }
        set { rawValue[bit: 17] = newValue }
    }

    /// FILTER_MPAM_SP [19:18]: MPAM space of the filter.
    public var filterMPAMSP: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 18...19]) }
        set { rawValue[bits: 18...19] = UInt32(newValue) }
    }

    /// FILTER_REALM_SID [28]: the filter names Realm StreamIDs.
    public var filterRealmSID: Bool {
        get { rawValue[bit: 28] }
        set { rawValue[bit: 28] = newValue }
    }

    /// FILTER_SID_SPAN [29]: SMRn holds a span of StreamIDs.
    public var filterSIDSpan: Bool {
        get { rawValue[bit: 29] }
        set { rawValue[bit: 29] = newValue }
    }

    /// FILTER_SEC_SID [30]: the filter names Secure StreamIDs.
    public var filterSecSID: Bool {
        get { rawValue[bit: 30] }
        set { rawValue[bit: 30] = newValue }
    }

    /// OVFCAP [31]: an overflow captures every counter.
    public var ovfcap: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_PMCG_SMRn (0xA00 + 4n): the filter of a counter.
public struct PMCGSmr: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// STREAMID [31:0]: the StreamID, or the span of StreamIDs.
    public var streamID: UInt32 {
        get { rawValue[bits: 0...31] }
        set { rawValue[bits: 0...31] = newValue }
    }

    /// PARTID [15:0]: with FILTER_PARTID: the PARTID.
    public var partID: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// PMG [23:16]: with FILTER_PMG: the PMG.
    public var pmg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...23]) }
        set { rawValue[bits: 16...23] = UInt32(newValue) }
    }
}

/// SMMU_PMCG_CFGR (0xE00): what the group has.
public struct PMCGCfgr: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// NCTR [5:0]: the number of counters, less 1.
    public var nctr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...5]) }
        set { rawValue[bits: 0...5] = UInt32(newValue) }
    }

    /// SIZE [13:8]: bits of a counter, less 1.
    public var size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...13]) }
        set { rawValue[bits: 8...13] = UInt32(newValue) }
    }

    /// RELOC_CTRS [20]: the counters lie in page 1.
    public var relocCtrs: Bool {
        get { rawValue[bit: 20] }
        set { rawValue[bit: 20] = newValue }
    }

    /// MSI [21]: message-signalled interrupts.
    public var msi: Bool {
        get { rawValue[bit: 21] }
        set { rawValue[bit: 21] = newValue }
    }

    /// CAPTURE [22]: counters can be captured.
    public var capture: Bool {
        get { rawValue[bit: 22] }
        set { rawValue[bit: 22] = newValue }
    }

    /// SID_FILTER_TYPE [23]: one filter serves all counters.
    public var sidFilterType: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// MPAM [24]: MPAM.
    public var mpam: Bool {
        get { rawValue[bit: 24] }
        set { rawValue[bit: 24] = newValue }
    }

    /// FILTER_PARTID_PMG [25]: filters by PARTID and PMG.
    public var filterPartIDPMG: Bool {
        get { rawValue[bit: 25] }
        set { rawValue[bit: 25] = newValue }
    }
}

/// SMMU_PMCG_CR (0xE04): switches the group on.
public struct PMCGCr: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// E [0]: the counters count.
    public var e: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_CAPR (0xD88): captures the counters.
public struct PMCGCapr: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// CAPTURE [0]: write 1 to copy every counter to its shadow.
    public var capture: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_SCR (0xDF8): what Secure software allows.
public struct PMCGScr: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// SO [0]: Secure streams are counted.
    public var so: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// NSRA [1]: Non-secure accesses to the registers are allowed.
    public var nsra: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// NSMSI [2]: MSIs are Non-secure.
    public var nsmsi: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// MSI_MPAM_NS [3]: MPAM space of MSIs.
    public var msiMPAMNS: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }

    /// NAO [4]: no all-streams observation.
    public var nao: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// RAO [31]: reads as one where the register exists.
    public var rao: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_PMCG_IRQ_CTRL (0xE50) and IRQ_CTRLACK (0xE54), of one layout: the interrupt.
public struct PMCGIRQCtrl: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// IRQEN [0]: the overflow interrupt is on.
    public var irqen: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_IRQ_STATUS (0xE68): what became of the MSI.
public struct PMCGIRQStatus: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// IRQ_ABT [0]: an MSI aborted.
    public var irqAbt: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}
