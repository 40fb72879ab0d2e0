// Where the registers lie: byte offsets from page 0, of an SMMU and of a performance monitor counter group.

/// Byte offsets of the Non-secure registers from the base of page 0; page 1 lies 0x10000 above it.
public enum RegisterOffset {
    /// Bytes from page 0 to page 1.
    public static let page1: UInt64 = 0x1_0000
    /// Bytes of page 0 and page 1 together, the least window an SMMU has.
    public static let windowByteCount: UInt64 = 0x2_0000

    /// SMMU_IDR0, 32 bits: what the SMMU can do.
    public static let idr0: UInt64 = 0x000
    /// SMMU_IDR1, 32 bits: sizes and presets.
    public static let idr1: UInt64 = 0x004
    /// SMMU_IDR2, 32 bits: where the VATOS page lies.
    public static let idr2: UInt64 = 0x008
    /// SMMU_IDR3, 32 bits: more that the SMMU can do.
    public static let idr3: UInt64 = 0x00C
    /// SMMU_IDR4, 32 bits: IMPLEMENTATION DEFINED.
    public static let idr4: UInt64 = 0x010
    /// SMMU_IDR5, 32 bits: address sizes, granules and the number of stalls.
    public static let idr5: UInt64 = 0x014
    /// SMMU_IIDR, 32 bits: who made it.
    public static let iidr: UInt64 = 0x018
    /// SMMU_AIDR, 32 bits: architecture version.
    public static let aidr: UInt64 = 0x01C
    /// SMMU_CR0, 32 bits: what is switched on.
    public static let cr0: UInt64 = 0x020
    /// SMMU_CR0ACK, 32 bits: what of CR0 has taken effect.
    public static let cr0ack: UInt64 = 0x024
    /// SMMU_CR1, 32 bits: attributes of table and queue accesses.
    public static let cr1: UInt64 = 0x028
    /// SMMU_CR2, 32 bits: modes of translation.
    public static let cr2: UInt64 = 0x02C
    /// SMMU_S2PII, 64 bits: stage-2 base permissions.
    public static let s2pii: UInt64 = 0x030
    /// SMMU_STATUSR, 32 bits: whether the SMMU sleeps.
    public static let statusr: UInt64 = 0x040
    /// SMMU_GBPA, 32 bits: what bypassing traffic gets.
    public static let gbpa: UInt64 = 0x044
    /// SMMU_AGBPA, 32 bits: more of GBPA.
    public static let agbpa: UInt64 = 0x048
    /// SMMU_IRQ_CTRL, 32 bits: which interrupts are on.
    public static let irqCtrl: UInt64 = 0x050
    /// SMMU_IRQ_CTRLACK, 32 bits: what of IRQ_CTRL has taken effect.
    public static let irqCtrlack: UInt64 = 0x054
    /// SMMU_GERROR, 32 bits: global errors.
    public static let gerror: UInt64 = 0x060
    /// SMMU_GERRORN, 32 bits: acknowledged global errors.
    public static let gerrorn: UInt64 = 0x064
    /// SMMU_GERROR_IRQ_CFG0, 64 bits: address of the global error MSI.
    public static let gerrorIrqCfg0: UInt64 = 0x068
    /// SMMU_GERROR_IRQ_CFG1, 32 bits: data of the global error MSI.
    public static let gerrorIrqCfg1: UInt64 = 0x070
    /// SMMU_GERROR_IRQ_CFG2, 32 bits: attributes of the global error MSI.
    public static let gerrorIrqCfg2: UInt64 = 0x074
    /// SMMU_STRTAB_BASE, 64 bits: address of the stream table.
    public static let strtabBase: UInt64 = 0x080
    /// SMMU_STRTAB_BASE_CFG, 32 bits: shape of the stream table.
    public static let strtabBaseCfg: UInt64 = 0x088
    /// SMMU_CMDQ_BASE, 64 bits: address and size of the command queue.
    public static let cmdqBase: UInt64 = 0x090
    /// SMMU_CMDQ_PROD, 32 bits: how far commands are written.
    public static let cmdqProd: UInt64 = 0x098
    /// SMMU_CMDQ_CONS, 32 bits: how far commands are consumed, and why they stopped.
    public static let cmdqCons: UInt64 = 0x09C
    /// SMMU_EVENTQ_BASE, 64 bits: address and size of the event queue.
    public static let eventqBase: UInt64 = 0x0A0
    /// SMMU_EVENTQ_IRQ_CFG0, 64 bits: address of the event queue MSI.
    public static let eventqIrqCfg0: UInt64 = 0x0B0
    /// SMMU_EVENTQ_IRQ_CFG1, 32 bits: data of the event queue MSI.
    public static let eventqIrqCfg1: UInt64 = 0x0B8
    /// SMMU_EVENTQ_IRQ_CFG2, 32 bits: attributes of the event queue MSI.
    public static let eventqIrqCfg2: UInt64 = 0x0BC
    /// SMMU_PRIQ_BASE, 64 bits: address and size of the PRI queue.
    public static let priqBase: UInt64 = 0x0C0
    /// SMMU_PRIQ_IRQ_CFG0, 64 bits: address of the PRI queue MSI.
    public static let priqIrqCfg0: UInt64 = 0x0D0
    /// SMMU_PRIQ_IRQ_CFG1, 32 bits: data of the PRI queue MSI.
    public static let priqIrqCfg1: UInt64 = 0x0D8
    /// SMMU_PRIQ_IRQ_CFG2, 32 bits: attributes of the PRI queue MSI, and when it is sent.
    public static let priqIrqCfg2: UInt64 = 0x0DC
    /// SMMU_GATOS_CTRL, 32 bits: starts an address translation.
    public static let gatosCtrl: UInt64 = 0x100
    /// SMMU_GATOS_SID, 64 bits: whose address to translate.
    public static let gatosSid: UInt64 = 0x108
    /// SMMU_GATOS_ADDR, 64 bits: address to translate.
    public static let gatosAddr: UInt64 = 0x110
    /// SMMU_GATOS_PAR, 64 bits: result of the translation.
    public static let gatosPar: UInt64 = 0x118
    /// SMMU_MPAMIDR, 32 bits: MPAM sizes.
    public static let mpamidr: UInt64 = 0x130
    /// SMMU_GMPAM, 32 bits: MPAM of the SMMU's own accesses.
    public static let gmpam: UInt64 = 0x138
    /// SMMU_GBPMPAM, 32 bits: MPAM of bypassing traffic.
    public static let gbpmpam: UInt64 = 0x13C
    /// SMMU_VATOS_SEL, 32 bits: whose addresses the VATOS page translates.
    public static let vatosSel: UInt64 = 0x180
    /// SMMU_IDR6, 32 bits: enhanced command queues.
    public static let idr6: UInt64 = 0x190
    /// SMMU_DPT_BASE, 64 bits: address of the device permission table.
    public static let dptBase: UInt64 = 0x200
    /// SMMU_DPT_BASE_CFG, 32 bits: shape of the device permission table.
    public static let dptBaseCfg: UInt64 = 0x208
    /// SMMU_DPT_CFG_FAR, 64 bits: fault of the device permission table.
    public static let dptCfgFar: UInt64 = 0x210
    /// SMMU_PIDR4, 32 bits: part, maker and revision.
    public static let pidr4: UInt64 = 0xFD0
    /// SMMU_PIDR5, 32 bits: reserved part of the identification.
    public static let pidr5: UInt64 = 0xFD4
    /// SMMU_PIDR6, 32 bits: reserved part of the identification.
    public static let pidr6: UInt64 = 0xFD8
    /// SMMU_PIDR7, 32 bits: reserved part of the identification.
    public static let pidr7: UInt64 = 0xFDC
    /// SMMU_PIDR0, 32 bits: part, maker and revision.
    public static let pidr0: UInt64 = 0xFE0
    /// SMMU_PIDR1, 32 bits: part, maker and revision.
    public static let pidr1: UInt64 = 0xFE4
    /// SMMU_PIDR2, 32 bits: part, maker and revision.
    public static let pidr2: UInt64 = 0xFE8
    /// SMMU_PIDR3, 32 bits: part, maker and revision.
    public static let pidr3: UInt64 = 0xFEC
    /// SMMU_CIDR0, 32 bits: component class.
    public static let cidr0: UInt64 = 0xFF0
    /// SMMU_CIDR1, 32 bits: component class.
    public static let cidr1: UInt64 = 0xFF4
    /// SMMU_CIDR2, 32 bits: component class.
    public static let cidr2: UInt64 = 0xFF8
    /// SMMU_CIDR3, 32 bits: component class.
    public static let cidr3: UInt64 = 0xFFC

    // Page 1.

    /// SMMU_EVENTQ_PROD, 32 bits: how far events are written.
    public static let eventqProd: UInt64 = 0x1_00A8
    /// SMMU_EVENTQ_CONS, 32 bits: how far events are read.
    public static let eventqCons: UInt64 = 0x1_00AC
    /// SMMU_PRIQ_PROD, 32 bits: how far page requests are written.
    public static let priqProd: UInt64 = 0x1_00C8
    /// SMMU_PRIQ_CONS, 32 bits: how far page requests are read.
    public static let priqCons: UInt64 = 0x1_00CC

    /// SMMU_CMDQ_CONTROL_PAGE_BASEn, 64 bits: where control page `page` (0 to 255) of enhanced queues lies.
    public static func cmdqControlPageBase(_ page: Int) -> UInt64 {
        0x4000 + 32 * UInt64(truncatingIfNeeded: page & 0xFF)
    }

    /// SMMU_CMDQ_CONTROL_PAGE_CFGn, 32 bits: reads 1.
    public static func cmdqControlPageCfg(_ page: Int) -> UInt64 { cmdqControlPageBase(page) + 8 }

    /// SMMU_CMDQ_CONTROL_PAGE_STATUSn, 32 bits: reads 1.
    public static func cmdqControlPageStatus(_ page: Int) -> UInt64 { cmdqControlPageBase(page) + 12 }
}

/// Byte offsets of an enhanced command queue's registers from its place in the control page.
public enum ECMDQRegisterOffset {
    /// ECMDQ_BASE, 64 bits, as SMMU_CMDQ_BASE.
    public static let base: UInt64 = 0x0
    /// ECMDQ_PROD, 32 bits.
    public static let prod: UInt64 = 0x8
    /// ECMDQ_CONS, 32 bits.
    public static let cons: UInt64 = 0xC
}

/// Byte offsets of the VATOS registers from the base of the VATOS page; they are as GATOS's.
public enum VATOSRegisterOffset {
    /// SMMU_VATOS_CTRL, 32 bits.
    public static let ctrl: UInt64 = 0xA00
    /// SMMU_VATOS_SID, 64 bits.
    public static let sid: UInt64 = 0xA08
    /// SMMU_VATOS_ADDR, 64 bits.
    public static let addr: UInt64 = 0xA10
    /// SMMU_VATOS_PAR, 64 bits.
    public static let par: UInt64 = 0xA18
}

/// Byte offsets of the Secure registers from the base of page 0; all RAZ/WI where there is no Secure state.
public enum SecureRegisterOffset {
    /// SMMU_S_IDR0, 32 bits: what Secure software can use.
    public static let sIDR0: UInt64 = 0x8000
    /// SMMU_S_IDR1, 32 bits: Secure sizes.
    public static let sIDR1: UInt64 = 0x8004
    /// SMMU_S_IDR2, 32 bits: where the Secure VATOS page lies.
    public static let sIDR2: UInt64 = 0x8008
    /// SMMU_S_IDR3, 32 bits: more that Secure software can use.
    public static let sIDR3: UInt64 = 0x800C
    /// SMMU_S_IDR4, 32 bits: IMPLEMENTATION DEFINED.
    public static let sIDR4: UInt64 = 0x8010
    /// SMMU_S_CR0, 32 bits: CR0.
    public static let sCR0: UInt64 = 0x8020
    /// SMMU_S_CR0ACK, 32 bits: CR0ACK.
    public static let sCR0ack: UInt64 = 0x8024
    /// SMMU_S_CR1, 32 bits: CR1.
    public static let sCR1: UInt64 = 0x8028
    /// SMMU_S_CR2, 32 bits: CR2.
    public static let sCR2: UInt64 = 0x802C
    /// SMMU_S_INIT, 32 bits: invalidates every cache.
    public static let sInit: UInt64 = 0x803C
    /// SMMU_S_GBPA, 32 bits: GBPA.
    public static let sGBPA: UInt64 = 0x8044
    /// SMMU_S_IRQ_CTRL, 32 bits: IRQ_CTRL.
    public static let sIrqCtrl: UInt64 = 0x8050
    /// SMMU_S_IRQ_CTRLACK, 32 bits: IRQ_CTRLACK.
    public static let sIrqCtrlack: UInt64 = 0x8054
    /// SMMU_S_GERROR, 32 bits: GERROR.
    public static let sGerror: UInt64 = 0x8060
    /// SMMU_S_GERRORN, 32 bits: GERRORN.
    public static let sGerrorn: UInt64 = 0x8064
    /// SMMU_S_STRTAB_BASE, 64 bits: STRTAB_BASE.
    public static let sStrtabBase: UInt64 = 0x8080
    /// SMMU_S_STRTAB_BASE_CFG, 32 bits: STRTAB_BASE_CFG.
    public static let sStrtabBaseCfg: UInt64 = 0x8088
    /// SMMU_S_CMDQ_BASE, 64 bits: CMDQ_BASE.
    public static let sCmdqBase: UInt64 = 0x8090
    /// SMMU_S_CMDQ_PROD, 32 bits: CMDQ_PROD.
    public static let sCmdqProd: UInt64 = 0x8098
    /// SMMU_S_CMDQ_CONS, 32 bits: CMDQ_CONS.
    public static let sCmdqCons: UInt64 = 0x809C
    /// SMMU_S_EVENTQ_BASE, 64 bits: EVENTQ_BASE.
    public static let sEventqBase: UInt64 = 0x80A0
    /// SMMU_S_EVENTQ_PROD, 32 bits: EVENTQ_PROD.
    public static let sEventqProd: UInt64 = 0x80A8
    /// SMMU_S_EVENTQ_CONS, 32 bits: EVENTQ_CONS.
    public static let sEventqCons: UInt64 = 0x80AC
}

/// Byte offsets of a performance monitor counter group's registers from its page 0.
public enum PMCGRegisterOffset {
    /// SMMU_PMCG_EVCNTR0, 32 bits: first counter; stride 4 or 8 bytes.
    public static let evcntr: UInt64 = 0x000
    /// SMMU_PMCG_EVTYPER0, 32 bits: what the first counter counts.
    public static let evtyper: UInt64 = 0x400
    /// SMMU_PMCG_SVR0, 32 bits: shadow of the first counter.
    public static let svr: UInt64 = 0x600
    /// SMMU_PMCG_SMR0, 32 bits: filter of the first counter.
    public static let smr: UInt64 = 0xA00
    /// SMMU_PMCG_CNTENSET0, 64 bits: which counters count.
    public static let cntenset0: UInt64 = 0xC00
    /// SMMU_PMCG_CNTENCLR0, 64 bits: which counters count.
    public static let cntenclr0: UInt64 = 0xC20
    /// SMMU_PMCG_INTENSET0, 64 bits: which counters interrupt.
    public static let intenset0: UInt64 = 0xC40
    /// SMMU_PMCG_INTENCLR0, 64 bits: which counters interrupt.
    public static let intenclr0: UInt64 = 0xC60
    /// SMMU_PMCG_OVSCLR0, 64 bits: which counters overflowed.
    public static let ovsclr0: UInt64 = 0xC80
    /// SMMU_PMCG_OVSSET0, 64 bits: which counters overflowed.
    public static let ovsset0: UInt64 = 0xCC0
    /// SMMU_PMCG_CAPR, 32 bits: captures the counters.
    public static let capr: UInt64 = 0xD88
    /// SMMU_PMCG_SCR, 32 bits: what Secure software allows.
    public static let scr: UInt64 = 0xDF8
    /// SMMU_PMCG_CFGR, 32 bits: what the group has.
    public static let cfgr: UInt64 = 0xE00
    /// SMMU_PMCG_CR, 32 bits: switches the group on.
    public static let cr: UInt64 = 0xE04
    /// SMMU_PMCG_IIDR, 32 bits: who made it.
    public static let iidr: UInt64 = 0xE08
    /// SMMU_PMCG_CEID0, 64 bits: which of events 0 to 63 there are.
    public static let ceid0: UInt64 = 0xE20
    /// SMMU_PMCG_CEID1, 64 bits: which of events 64 to 127 there are.
    public static let ceid1: UInt64 = 0xE28
    /// SMMU_PMCG_ROOTCR, 32 bits: what Root software allows.
    public static let rootcr: UInt64 = 0xE48
    /// SMMU_PMCG_IRQ_CTRL, 32 bits: the overflow interrupt.
    public static let irqCtrl: UInt64 = 0xE50
    /// SMMU_PMCG_IRQ_CTRLACK, 32 bits: what of IRQ_CTRL has taken effect.
    public static let irqCtrlack: UInt64 = 0xE54
    /// SMMU_PMCG_IRQ_CFG0, 64 bits: address of the MSI.
    public static let irqCfg0: UInt64 = 0xE58
    /// SMMU_PMCG_IRQ_CFG1, 32 bits: data of the MSI.
    public static let irqCfg1: UInt64 = 0xE60
    /// SMMU_PMCG_IRQ_CFG2, 32 bits: attributes of the MSI.
    public static let irqCfg2: UInt64 = 0xE64
    /// SMMU_PMCG_IRQ_STATUS, 32 bits: whether the MSI aborted.
    public static let irqStatus: UInt64 = 0xE68
    /// SMMU_PMCG_GMPAM, 32 bits: MPAM of the MSI.
    public static let gmpam: UInt64 = 0xE6C
    /// SMMU_PMCG_AIDR, 32 bits: architecture version.
    public static let aidr: UInt64 = 0xE70
    /// SMMU_PMCG_MPAMIDR, 32 bits: MPAM sizes.
    public static let mpamidr: UInt64 = 0xE74
    /// SMMU_PMCG_S_MPAMIDR, 32 bits: Secure MPAM sizes.
    public static let sMPAMIDR: UInt64 = 0xE78
    /// SMMU_PMCG_PMDEVARCH, 32 bits: CoreSight architecture, 0x47702A56.
    public static let pmdevarch: UInt64 = 0xFBC
    /// SMMU_PMCG_PMDEVTYPE, 32 bits: CoreSight type, 0x56.
    public static let pmdevtype: UInt64 = 0xFCC
    /// SMMU_PMCG_PIDR4, 32 bits: part, maker and revision.
    public static let pidr4: UInt64 = 0xFD0
    /// SMMU_PMCG_PIDR5, 32 bits: reserved part of the identification.
    public static let pidr5: UInt64 = 0xFD4
    /// SMMU_PMCG_PIDR6, 32 bits: reserved part of the identification.
    public static let pidr6: UInt64 = 0xFD8
    /// SMMU_PMCG_PIDR7, 32 bits: reserved part of the identification.
    public static let pidr7: UInt64 = 0xFDC
    /// SMMU_PMCG_PIDR0, 32 bits: part, maker and revision.
    public static let pidr0: UInt64 = 0xFE0
    /// SMMU_PMCG_PIDR1, 32 bits: part, maker and revision.
    public static let pidr1: UInt64 = 0xFE4
    /// SMMU_PMCG_PIDR2, 32 bits: part, maker and revision.
    public static let pidr2: UInt64 = 0xFE8
    /// SMMU_PMCG_PIDR3, 32 bits: part, maker and revision.
    public static let pidr3: UInt64 = 0xFEC
    /// SMMU_PMCG_CIDR0, 32 bits: component class.
    public static let cidr0: UInt64 = 0xFF0
    /// SMMU_PMCG_CIDR1, 32 bits: component class.
    public static let cidr1: UInt64 = 0xFF4
    /// SMMU_PMCG_CIDR2, 32 bits: component class.
    public static let cidr2: UInt64 = 0xFF8
    /// SMMU_PMCG_CIDR3, 32 bits: component class.
    public static let cidr3: UInt64 = 0xFFC

    /// SMMU_PMCG_EVCNTRn: the counter `index`, `stride` (4 or 8) bytes apart.
    public static func evcntr(_ index: Int, stride: UInt64) -> UInt64 {
        evcntr + stride * UInt64(truncatingIfNeeded: index & 0x3F)
    }

    /// SMMU_PMCG_SVRn: the shadow of the counter `index`, `stride` (4 or 8) bytes apart.
    public static func svr(_ index: Int, stride: UInt64) -> UInt64 {
        svr + stride * UInt64(truncatingIfNeeded: index & 0x3F)
    }

    /// SMMU_PMCG_EVTYPERn: what the counter `index` counts.
    public static func evtyper(_ index: Int) -> UInt64 {
        evtyper + 4 * UInt64(truncatingIfNeeded: index & 0x3F)
    }

    /// SMMU_PMCG_SMRn: the filter of the counter `index`.
    public static func smr(_ index: Int) -> UInt64 { smr + 4 * UInt64(truncatingIfNeeded: index & 0x3F) }
}

/// What a performance monitor counter counts: EVTYPERn.EVENT.
public struct PMCGEvent: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16

    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// Clock cycles; no filter applies.
    public static let clockCycle = Self(rawValue: 0)
    /// Transactions and requests.
    public static let transaction = Self(rawValue: 1)
    /// TLB misses by transactions and translation requests.
    public static let tlbMiss = Self(rawValue: 2)
    /// Configuration cache misses by transactions and translation requests.
    public static let configurationCacheMiss = Self(rawValue: 3)
    /// External accesses of table walks.
    public static let tableWalkAccess = Self(rawValue: 4)
    /// External accesses to configuration structures.
    public static let configurationAccess = Self(rawValue: 5)
    /// ATS translation requests.
    public static let atsTranslationRequest = Self(rawValue: 6)
    /// ATS-translated transactions that passed.
    public static let atsTranslatedTransaction = Self(rawValue: 7)
}
