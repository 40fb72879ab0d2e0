// The registers of a performance monitor counter group (PMCG).

import BitFields

/// SMMU_PMCG_EVTYPERn (0x400 + 4n): what a counter counts.
package struct PMCGEvtyper: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// EVENT [15:0]: the event.
    package var event: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// FILTER_PARTID [16]: filter by PARTID.
    package var filterPartID: Bool {
        get { rawValue[bit: 16] }
        set { rawValue[bit: 16] = newValue }
    }

    /// FILTER_PMG [17]: filter by PMG.
    package var filterPMG: Bool {
        get { rawValue[bit: 17] }
        set { rawValue[bit: 17] = newValue }
    }

    /// FILTER_MPAM_SP [19:18]: MPAM space of the filter.
    package var filterMPAMSP: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 18...19]) }
        set { rawValue[bits: 18...19] = UInt32(newValue) }
    }

    /// FILTER_REALM_SID [28]: the filter names Realm StreamIDs.
    package var filterRealmSID: Bool {
        get { rawValue[bit: 28] }
        set { rawValue[bit: 28] = newValue }
    }

    /// FILTER_SID_SPAN [29]: SMRn holds a span of StreamIDs.
    package var filterSIDSpan: Bool {
        get { rawValue[bit: 29] }
        set { rawValue[bit: 29] = newValue }
    }

    /// FILTER_SEC_SID [30]: the filter names Secure StreamIDs.
    package var filterSecSID: Bool {
        get { rawValue[bit: 30] }
        set { rawValue[bit: 30] = newValue }
    }

    /// OVFCAP [31]: an overflow captures every counter.
    package var ovfcap: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_PMCG_SMRn (0xA00 + 4n): the filter of a counter.
package struct PMCGSmr: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// STREAMID [31:0]: the StreamID, or the span of StreamIDs.
    package var streamID: UInt32 {
        get { rawValue[bits: 0...31] }
        set { rawValue[bits: 0...31] = newValue }
    }

    /// PARTID [15:0]: with FILTER_PARTID: the PARTID.
    package var partID: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// PMG [23:16]: with FILTER_PMG: the PMG.
    package var pmg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...23]) }
        set { rawValue[bits: 16...23] = UInt32(newValue) }
    }
}

/// SMMU_PMCG_CFGR (0xE00): what the group has.
package struct PMCGCfgr: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// NCTR [5:0]: the number of counters, less 1.
    package var nctr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...5]) }
        set { rawValue[bits: 0...5] = UInt32(newValue) }
    }

    /// SIZE [13:8]: bits of a counter, less 1.
    package var size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...13]) }
        set { rawValue[bits: 8...13] = UInt32(newValue) }
    }

    /// RELOC_CTRS [20]: the counters lie in page 1.
    package var relocCtrs: Bool {
        get { rawValue[bit: 20] }
        set { rawValue[bit: 20] = newValue }
    }

    /// MSI [21]: message-signalled interrupts.
    package var msi: Bool {
        get { rawValue[bit: 21] }
        set { rawValue[bit: 21] = newValue }
    }

    /// CAPTURE [22]: counters can be captured.
    package var capture: Bool {
        get { rawValue[bit: 22] }
        set { rawValue[bit: 22] = newValue }
    }

    /// SID_FILTER_TYPE [23]: one filter serves all counters.
    package var sidFilterType: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// MPAM [24]: MPAM.
    package var mpam: Bool {
        get { rawValue[bit: 24] }
        set { rawValue[bit: 24] = newValue }
    }

    /// FILTER_PARTID_PMG [25]: filters by PARTID and PMG.
    package var filterPartIDPMG: Bool {
        get { rawValue[bit: 25] }
        set { rawValue[bit: 25] = newValue }
    }
}

/// SMMU_PMCG_CR (0xE04): switches the group on.
package struct PMCGCr: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// E [0]: the counters count.
    package var e: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_CAPR (0xD88): captures the counters.
package struct PMCGCapr: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// CAPTURE [0]: write 1 to copy every counter to its shadow.
    package var capture: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_SCR (0xDF8): what Secure software allows.
package struct PMCGScr: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// SO [0]: Secure streams are counted.
    package var so: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// NSRA [1]: Non-secure accesses to the registers are allowed.
    package var nsra: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// NSMSI [2]: MSIs are Non-secure.
    package var nsmsi: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// MSI_MPAM_NS [3]: MPAM space of MSIs.
    package var msiMPAMNS: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }

    /// NAO [4]: no all-streams observation.
    package var nao: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// RAO [31]: reads as one where the register exists.
    package var rao: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_PMCG_IRQ_CTRL (0xE50) and IRQ_CTRLACK (0xE54), of one layout: the interrupt.
package struct PMCGIRQCtrl: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// IRQEN [0]: the overflow interrupt is on.
    package var irqen: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_PMCG_IRQ_STATUS (0xE68): what became of the MSI.
package struct PMCGIRQStatus: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// IRQ_ABT [0]: an MSI aborted.
    package var irqAbt: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}
