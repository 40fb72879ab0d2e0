// The registers by name, for tools and traces.

/// One register: where it is and what it is.
public struct RegisterInfo: Hashable, Sendable {
    /// The name as the specification spells it, such as `SMMU_CR0`.
    public let name: String
    /// Bytes from page 0.
    public let offset: UInt64
    /// 4 or 8.
    public let byteCount: Int
    /// Who may do what, such as `RW while SMMUEN is 0`.
    public let access: String
    /// What it is, in a short phrase.
    public let summary: String

    init(_ name: String, _ offset: UInt64, _ byteCount: Int, _ access: String, _ summary: String) {
        self.name = name
        self.offset = offset
        self.byteCount = byteCount
        self.access = access
        self.summary = summary
    }
}

/// The Non-secure registers of an SMMU.
public enum RegisterMap {
    /// Every register of page 0 and page 1, by offset.
    public static let all: [RegisterInfo] = [
        RegisterInfo("SMMU_IDR0", RegisterOffset.idr0, 4, "RO", "what the SMMU can do"),
        RegisterInfo("SMMU_IDR1", RegisterOffset.idr1, 4, "RO", "sizes and presets"),
        RegisterInfo("SMMU_IDR2", RegisterOffset.idr2, 4, "RO", "where the VATOS page lies"),
        RegisterInfo("SMMU_IDR3", RegisterOffset.idr3, 4, "RO", "more that the SMMU can do"),
        RegisterInfo("SMMU_IDR4", RegisterOffset.idr4, 4, "RO", "IMPLEMENTATION DEFINED"),
        RegisterInfo(
            "SMMU_IDR5",
            RegisterOffset.idr5,
            4,
            "RO",
            "address sizes, granules and the number of stalls"
        ),
        RegisterInfo("SMMU_IIDR", RegisterOffset.iidr, 4, "RO", "who made it"),
        RegisterInfo("SMMU_AIDR", RegisterOffset.aidr, 4, "RO", "architecture version"),
        RegisterInfo("SMMU_CR0", RegisterOffset.cr0, 4, "RW", "what is switched on"),
        RegisterInfo("SMMU_CR0ACK", RegisterOffset.cr0ack, 4, "RO", "what of CR0 has taken effect"),
        RegisterInfo(
            "SMMU_CR1",
            RegisterOffset.cr1,
            4,
            "RW, tables while SMMUEN is 0, queues while all queues are off",
            "attributes of table and queue accesses"
        ),
        RegisterInfo("SMMU_CR2", RegisterOffset.cr2, 4, "RW while SMMUEN is 0", "modes of translation"),
        RegisterInfo("SMMU_S2PII", RegisterOffset.s2pii, 8, "RW, with IDR3.S2PI", "stage-2 base permissions"),
        RegisterInfo("SMMU_STATUSR", RegisterOffset.statusr, 4, "RO", "whether the SMMU sleeps"),
        RegisterInfo("SMMU_GBPA", RegisterOffset.gbpa, 4, "RW, with Update", "what bypassing traffic gets"),
        RegisterInfo("SMMU_AGBPA", RegisterOffset.agbpa, 4, "IMPLEMENTATION DEFINED", "more of GBPA"),
        RegisterInfo("SMMU_IRQ_CTRL", RegisterOffset.irqCtrl, 4, "RW", "which interrupts are on"),
        RegisterInfo(
            "SMMU_IRQ_CTRLACK",
            RegisterOffset.irqCtrlack,
            4,
            "RO",
            "what of IRQ_CTRL has taken effect"
        ),
        RegisterInfo("SMMU_GERROR", RegisterOffset.gerror, 4, "RO", "global errors"),
        RegisterInfo("SMMU_GERRORN", RegisterOffset.gerrorn, 4, "RW", "acknowledged global errors"),
        RegisterInfo(
            "SMMU_GERROR_IRQ_CFG0",
            RegisterOffset.gerrorIrqCfg0,
            8,
            "RW while GERROR_IRQEN is 0",
            "address of the global error MSI"
        ),
        RegisterInfo(
            "SMMU_GERROR_IRQ_CFG1",
            RegisterOffset.gerrorIrqCfg1,
            4,
            "RW while GERROR_IRQEN is 0",
            "data of the global error MSI"
        ),
        RegisterInfo(
            "SMMU_GERROR_IRQ_CFG2",
            RegisterOffset.gerrorIrqCfg2,
            4,
            "RW while GERROR_IRQEN is 0",
            "attributes of the global error MSI"
        ),
        RegisterInfo(
            "SMMU_STRTAB_BASE",
            RegisterOffset.strtabBase,
            8,
            "RW while SMMUEN is 0",
            "address of the stream table"
        ),
        RegisterInfo(
            "SMMU_STRTAB_BASE_CFG",
            RegisterOffset.strtabBaseCfg,
            4,
            "RW while SMMUEN is 0",
            "shape of the stream table"
        ),
        RegisterInfo(
            "SMMU_CMDQ_BASE",
            RegisterOffset.cmdqBase,
            8,
            "RW while CMDQEN is 0",
            "address and size of the command queue"
        ),
        RegisterInfo("SMMU_CMDQ_PROD", RegisterOffset.cmdqProd, 4, "RW", "how far commands are written"),
        RegisterInfo(
            "SMMU_CMDQ_CONS",
            RegisterOffset.cmdqCons,
            4,
            "RW while CMDQEN is 0",
            "how far commands are consumed, and why they stopped"
        ),
        RegisterInfo(
            "SMMU_EVENTQ_BASE",
            RegisterOffset.eventqBase,
            8,
            "RW while EVENTQEN is 0",
            "address and size of the event queue"
        ),
        RegisterInfo(
            "SMMU_EVENTQ_IRQ_CFG0",
            RegisterOffset.eventqIrqCfg0,
            8,
            "RW while EVENTQ_IRQEN is 0",
            "address of the event queue MSI"
        ),
        RegisterInfo(
            "SMMU_EVENTQ_IRQ_CFG1",
            RegisterOffset.eventqIrqCfg1,
            4,
            "RW while EVENTQ_IRQEN is 0",
            "data of the event queue MSI"
        ),
        RegisterInfo(
            "SMMU_EVENTQ_IRQ_CFG2",
            RegisterOffset.eventqIrqCfg2,
            4,
            "RW while EVENTQ_IRQEN is 0",
            "attributes of the event queue MSI"
        ),
        RegisterInfo(
            "SMMU_PRIQ_BASE",
            RegisterOffset.priqBase,
            8,
            "RW while PRIQEN is 0",
            "address and size of the PRI queue"
        ),
        RegisterInfo(
            "SMMU_PRIQ_IRQ_CFG0",
            RegisterOffset.priqIrqCfg0,
            8,
            "RW while PRIQ_IRQEN is 0",
            "address of the PRI queue MSI"
        ),
        RegisterInfo(
            "SMMU_PRIQ_IRQ_CFG1",
            RegisterOffset.priqIrqCfg1,
            4,
            "RW while PRIQ_IRQEN is 0",
            "data of the PRI queue MSI"
        ),
        RegisterInfo(
            "SMMU_PRIQ_IRQ_CFG2",
            RegisterOffset.priqIrqCfg2,
            4,
            "RW while PRIQ_IRQEN is 0",
            "attributes of the PRI queue MSI, and when it is sent"
        ),
        RegisterInfo(
            "SMMU_GATOS_CTRL",
            RegisterOffset.gatosCtrl,
            4,
            "RW while RUN is 0",
            "starts an address translation"
        ),
        RegisterInfo(
            "SMMU_GATOS_SID",
            RegisterOffset.gatosSid,
            8,
            "RW while RUN is 0",
            "whose address to translate"
        ),
        RegisterInfo(
            "SMMU_GATOS_ADDR",
            RegisterOffset.gatosAddr,
            8,
            "RW while RUN is 0",
            "address to translate"
        ),
        RegisterInfo("SMMU_GATOS_PAR", RegisterOffset.gatosPar, 8, "RO", "result of the translation"),
        RegisterInfo("SMMU_MPAMIDR", RegisterOffset.mpamidr, 4, "RO", "MPAM sizes"),
        RegisterInfo(
            "SMMU_GMPAM",
            RegisterOffset.gmpam,
            4,
            "RW, with Update",
            "MPAM of the SMMU's own accesses"
        ),
        RegisterInfo(
            "SMMU_GBPMPAM",
            RegisterOffset.gbpmpam,
            4,
            "RW, with Update",
            "MPAM of bypassing traffic"
        ),
        RegisterInfo(
            "SMMU_VATOS_SEL",
            RegisterOffset.vatosSel,
            4,
            "RW, with IDR0.VATOS",
            "whose addresses the VATOS page translates"
        ),
        RegisterInfo("SMMU_IDR6", RegisterOffset.idr6, 4, "RO", "enhanced command queues"),
        RegisterInfo(
            "SMMU_DPT_BASE",
            RegisterOffset.dptBase,
            8,
            "RW, with IDR3.DPT",
            "address of the device permission table"
        ),
        RegisterInfo(
            "SMMU_DPT_BASE_CFG",
            RegisterOffset.dptBaseCfg,
            4,
            "RW, with IDR3.DPT",
            "shape of the device permission table"
        ),
        RegisterInfo(
            "SMMU_DPT_CFG_FAR",
            RegisterOffset.dptCfgFar,
            8,
            "RW, with IDR3.DPT",
            "fault of the device permission table"
        ),
        RegisterInfo("SMMU_PIDR4", RegisterOffset.pidr4, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PIDR5", RegisterOffset.pidr5, 4, "RO", "reserved part of the identification"),
        RegisterInfo("SMMU_PIDR6", RegisterOffset.pidr6, 4, "RO", "reserved part of the identification"),
        RegisterInfo("SMMU_PIDR7", RegisterOffset.pidr7, 4, "RO", "reserved part of the identification"),
        RegisterInfo("SMMU_PIDR0", RegisterOffset.pidr0, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PIDR1", RegisterOffset.pidr1, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PIDR2", RegisterOffset.pidr2, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PIDR3", RegisterOffset.pidr3, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_CIDR0", RegisterOffset.cidr0, 4, "RO", "component class"),
        RegisterInfo("SMMU_CIDR1", RegisterOffset.cidr1, 4, "RO", "component class"),
        RegisterInfo("SMMU_CIDR2", RegisterOffset.cidr2, 4, "RO", "component class"),
        RegisterInfo("SMMU_CIDR3", RegisterOffset.cidr3, 4, "RO", "component class"),
        RegisterInfo(
            "SMMU_EVENTQ_PROD",
            RegisterOffset.eventqProd,
            4,
            "RW while EVENTQEN is 0",
            "how far events are written"
        ),
        RegisterInfo("SMMU_EVENTQ_CONS", RegisterOffset.eventqCons, 4, "RW", "how far events are read"),
        RegisterInfo(
            "SMMU_PRIQ_PROD",
            RegisterOffset.priqProd,
            4,
            "RW while PRIQEN is 0",
            "how far page requests are written"
        ),
        RegisterInfo("SMMU_PRIQ_CONS", RegisterOffset.priqCons, 4, "RW", "how far page requests are read"),
    ]

    /// The register of that name, whatever the case, with or without `SMMU_`; nil where there is none.
    public static func register(named name: String) -> RegisterInfo? {
        all.register(named: name, prefix: "SMMU_")
    }

    /// The register that has a byte at `offset`; nil where there is none.
    public static func register(at offset: UInt64) -> RegisterInfo? { all.register(at: offset) }
}

/// The registers of a performance monitor counter group; of those there are many of, the first.
public enum PMCGRegisterMap {
    /// Every register of page 0, by offset.
    public static let all: [RegisterInfo] = [
        RegisterInfo(
            "SMMU_PMCG_EVCNTR0",
            PMCGRegisterOffset.evcntr,
            4,
            "RW",
            "first counter; stride 4 or 8 bytes"
        ),
        RegisterInfo(
            "SMMU_PMCG_EVTYPER0",
            PMCGRegisterOffset.evtyper,
            4,
            "RW",
            "what the first counter counts"
        ),
        RegisterInfo("SMMU_PMCG_SVR0", PMCGRegisterOffset.svr, 4, "RO", "shadow of the first counter"),
        RegisterInfo("SMMU_PMCG_SMR0", PMCGRegisterOffset.smr, 4, "RW", "filter of the first counter"),
        RegisterInfo(
            "SMMU_PMCG_CNTENSET0",
            PMCGRegisterOffset.cntenset0,
            8,
            "RW, write 1 to set",
            "which counters count"
        ),
        RegisterInfo(
            "SMMU_PMCG_CNTENCLR0",
            PMCGRegisterOffset.cntenclr0,
            8,
            "RW, write 1 to clear",
            "which counters count"
        ),
        RegisterInfo(
            "SMMU_PMCG_INTENSET0",
            PMCGRegisterOffset.intenset0,
            8,
            "RW, write 1 to set",
            "which counters interrupt"
        ),
        RegisterInfo(
            "SMMU_PMCG_INTENCLR0",
            PMCGRegisterOffset.intenclr0,
            8,
            "RW, write 1 to clear",
            "which counters interrupt"
        ),
        RegisterInfo(
            "SMMU_PMCG_OVSCLR0",
            PMCGRegisterOffset.ovsclr0,
            8,
            "RW, write 1 to clear",
            "which counters overflowed"
        ),
        RegisterInfo(
            "SMMU_PMCG_OVSSET0",
            PMCGRegisterOffset.ovsset0,
            8,
            "RW, write 1 to set",
            "which counters overflowed"
        ),
        RegisterInfo("SMMU_PMCG_CAPR", PMCGRegisterOffset.capr, 4, "WO", "captures the counters"),
        RegisterInfo("SMMU_PMCG_SCR", PMCGRegisterOffset.scr, 4, "Secure", "what Secure software allows"),
        RegisterInfo("SMMU_PMCG_CFGR", PMCGRegisterOffset.cfgr, 4, "RO", "what the group has"),
        RegisterInfo("SMMU_PMCG_CR", PMCGRegisterOffset.cr, 4, "RW", "switches the group on"),
        RegisterInfo("SMMU_PMCG_IIDR", PMCGRegisterOffset.iidr, 4, "RO", "who made it"),
        RegisterInfo(
            "SMMU_PMCG_CEID0",
            PMCGRegisterOffset.ceid0,
            8,
            "RO",
            "which of events 0 to 63 there are"
        ),
        RegisterInfo(
            "SMMU_PMCG_CEID1",
            PMCGRegisterOffset.ceid1,
            8,
            "RO",
            "which of events 64 to 127 there are"
        ),
        RegisterInfo("SMMU_PMCG_ROOTCR", PMCGRegisterOffset.rootcr, 4, "Root", "what Root software allows"),
        RegisterInfo("SMMU_PMCG_IRQ_CTRL", PMCGRegisterOffset.irqCtrl, 4, "RW", "the overflow interrupt"),
        RegisterInfo(
            "SMMU_PMCG_IRQ_CTRLACK",
            PMCGRegisterOffset.irqCtrlack,
            4,
            "RO",
            "what of IRQ_CTRL has taken effect"
        ),
        RegisterInfo(
            "SMMU_PMCG_IRQ_CFG0",
            PMCGRegisterOffset.irqCfg0,
            8,
            "RW while IRQEN is 0",
            "address of the MSI"
        ),
        RegisterInfo(
            "SMMU_PMCG_IRQ_CFG1",
            PMCGRegisterOffset.irqCfg1,
            4,
            "RW while IRQEN is 0",
            "data of the MSI"
        ),
        RegisterInfo(
            "SMMU_PMCG_IRQ_CFG2",
            PMCGRegisterOffset.irqCfg2,
            4,
            "RW while IRQEN is 0",
            "attributes of the MSI"
        ),
        RegisterInfo(
            "SMMU_PMCG_IRQ_STATUS",
            PMCGRegisterOffset.irqStatus,
            4,
            "RO",
            "whether the MSI aborted"
        ),
        RegisterInfo("SMMU_PMCG_GMPAM", PMCGRegisterOffset.gmpam, 4, "RW", "MPAM of the MSI"),
        RegisterInfo("SMMU_PMCG_AIDR", PMCGRegisterOffset.aidr, 4, "RO", "architecture version"),
        RegisterInfo("SMMU_PMCG_MPAMIDR", PMCGRegisterOffset.mpamidr, 4, "RO", "MPAM sizes"),
        RegisterInfo("SMMU_PMCG_S_MPAMIDR", PMCGRegisterOffset.sMPAMIDR, 4, "Secure", "Secure MPAM sizes"),
        RegisterInfo(
            "SMMU_PMCG_PMDEVARCH",
            PMCGRegisterOffset.pmdevarch,
            4,
            "RO",
            "CoreSight architecture, 0x47702A56"
        ),
        RegisterInfo("SMMU_PMCG_PMDEVTYPE", PMCGRegisterOffset.pmdevtype, 4, "RO", "CoreSight type, 0x56"),
        RegisterInfo("SMMU_PMCG_PIDR4", PMCGRegisterOffset.pidr4, 4, "RO", "part, maker and revision"),
        RegisterInfo(
            "SMMU_PMCG_PIDR5",
            PMCGRegisterOffset.pidr5,
            4,
            "RO",
            "reserved part of the identification"
        ),
        RegisterInfo(
            "SMMU_PMCG_PIDR6",
            PMCGRegisterOffset.pidr6,
            4,
            "RO",
            "reserved part of the identification"
        ),
        RegisterInfo(
            "SMMU_PMCG_PIDR7",
            PMCGRegisterOffset.pidr7,
            4,
            "RO",
            "reserved part of the identification"
        ),
        RegisterInfo("SMMU_PMCG_PIDR0", PMCGRegisterOffset.pidr0, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PMCG_PIDR1", PMCGRegisterOffset.pidr1, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PMCG_PIDR2", PMCGRegisterOffset.pidr2, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PMCG_PIDR3", PMCGRegisterOffset.pidr3, 4, "RO", "part, maker and revision"),
        RegisterInfo("SMMU_PMCG_CIDR0", PMCGRegisterOffset.cidr0, 4, "RO", "component class"),
        RegisterInfo("SMMU_PMCG_CIDR1", PMCGRegisterOffset.cidr1, 4, "RO", "component class"),
        RegisterInfo("SMMU_PMCG_CIDR2", PMCGRegisterOffset.cidr2, 4, "RO", "component class"),
        RegisterInfo("SMMU_PMCG_CIDR3", PMCGRegisterOffset.cidr3, 4, "RO", "component class"),
    ]

    /// The register of that name, whatever the case, with or without `SMMU_PMCG_`; nil where there is none.
    public static func register(named name: String) -> RegisterInfo? {
        all.register(named: name, prefix: "SMMU_PMCG_")
    }

    /// The register that has a byte at `offset`; nil where there is none.
    public static func register(at offset: UInt64) -> RegisterInfo? { all.register(at: offset) }
}

extension [RegisterInfo] {
    fileprivate func register(named name: String, prefix: String) -> RegisterInfo? {
        let wanted = name.uppercased()
        return first { $0.name == wanted || $0.name == prefix + wanted }
    }

    fileprivate func register(at offset: UInt64) -> RegisterInfo? {
        first { $0.offset <= offset && offset - $0.offset < UInt64($0.byteCount) }
    }
}
