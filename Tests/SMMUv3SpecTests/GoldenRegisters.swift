// Where the fields of the registers are: mask and name as the specification's tables give them.

import SMMUv3Spec

/// SMMU_IDR0 (0x000).
let goldenIDR0: [GoldenField<IDR0>] = [
    .bit("S2P", 0, 0x0000_0000_0000_0001, \.s2P),
    .bit("S1P", 0, 0x0000_0000_0000_0002, \.s1P),
    .number("TTF", 0, 0x0000_0000_0000_000C, \.ttf),
    .bit("COHACC", 0, 0x0000_0000_0000_0010, \.cohacc),
    .bit("BTM", 0, 0x0000_0000_0000_0020, \.btm),
    .number("HTTU", 0, 0x0000_0000_0000_00C0, \.httu),
    .bit("DORMHINT", 0, 0x0000_0000_0000_0100, \.dormhint),
    .bit("Hyp", 0, 0x0000_0000_0000_0200, \.hyp),
    .bit("ATS", 0, 0x0000_0000_0000_0400, \.ats),
    .bit("NS1ATS", 0, 0x0000_0000_0000_0800, \.ns1ATS),
    .bit("ASID16", 0, 0x0000_0000_0000_1000, \.asid16),
    .bit("MSI", 0, 0x0000_0000_0000_2000, \.msi),
    .bit("SEV", 0, 0x0000_0000_0000_4000, \.sev),
    .bit("ATOS", 0, 0x0000_0000_0000_8000, \.atos),
    .bit("PRI", 0, 0x0000_0000_0001_0000, \.pri),
    .bit("VMW", 0, 0x0000_0000_0002_0000, \.vmw),
    .bit("VMID16", 0, 0x0000_0000_0004_0000, \.vmid16),
    .bit("CD2L", 0, 0x0000_0000_0008_0000, \.cd2L),
    .bit("VATOS", 0, 0x0000_0000_0010_0000, \.vatos),
    .number("TTENDIAN", 0, 0x0000_0000_0060_0000, \.ttendian),
    .bit("ATSRECERR", 0, 0x0000_0000_0080_0000, \.atsrecerr),
    .number("STALL_MODEL", 0, 0x0000_0000_0300_0000, \.stallModel),
    .bit("TERM_MODEL", 0, 0x0000_0000_0400_0000, \.termModel),
    .number("ST_LEVEL", 0, 0x0000_0000_1800_0000, \.stLevel),
    .bit("RME_IMPL", 0, 0x0000_0000_4000_0000, \.rmeImpl),
]

/// SMMU_IDR1 (0x004).
let goldenIDR1: [GoldenField<IDR1>] = [
    .number("SIDSIZE", 0, 0x0000_0000_0000_003F, \.sidsize),
    .number("SSIDSIZE", 0, 0x0000_0000_0000_07C0, \.ssidsize),
    .number("PRIQS", 0, 0x0000_0000_0000_F800, \.priqs),
    .number("EVENTQS", 0, 0x0000_0000_001F_0000, \.eventqs),
    .number("CMDQS", 0, 0x0000_0000_03E0_0000, \.cmdqs),
    .bit("ATTR_PERMS_OVR", 0, 0x0000_0000_0400_0000, \.attrPermsOvr),
    .bit("ATTR_TYPES_OVR", 0, 0x0000_0000_0800_0000, \.attrTypesOvr),
    .bit("REL", 0, 0x0000_0000_1000_0000, \.rel),
    .bit("QUEUES_PRESET", 0, 0x0000_0000_2000_0000, \.queuesPreset),
    .bit("TABLES_PRESET", 0, 0x0000_0000_4000_0000, \.tablesPreset),
    .bit("ECMDQ", 0, 0x0000_0000_8000_0000, \.ecmdq),
]

/// SMMU_IDR2 (0x008).
let goldenIDR2: [GoldenField<IDR2>] = [
    .number("BA_VATOS", 0, 0x0000_0000_0000_03FF, \.baVATOS)
]

/// SMMU_IDR3 (0x00C).
let goldenIDR3: [GoldenField<IDR3>] = [
    .bit("HAD", 0, 0x0000_0000_0000_0004, \.had),
    .bit("PTWNNC", 0, 0x0000_0000_0000_4000, \.ptwnnc),
    .bit("PBHA", 0, 0x0000_0000_0000_0008, \.pbha),
    .bit("DPT", 0, 0x0000_0000_0000_8000, \.dpt),
    .bit("XNX", 0, 0x0000_0000_0000_0010, \.xnx),
    .bit("PASIDTT", 0, 0x0000_0000_0001_0000, \.pasidtt),
    .bit("PPS", 0, 0x0000_0000_0000_0020, \.pps),
    .bit("EPAN", 0, 0x0000_0000_0002_0000, \.epan),
    .bit("MPAM", 0, 0x0000_0000_0000_0080, \.mpam),
    .bit("S1PI", 0, 0x0000_0000_0004_0000, \.s1PI),
    .bit("FWB", 0, 0x0000_0000_0000_0100, \.fwb),
    .bit("S2PI", 0, 0x0000_0000_0008_0000, \.s2PI),
    .bit("STT", 0, 0x0000_0000_0000_0200, \.stt),
    .bit("S2PO", 0, 0x0000_0000_0010_0000, \.s2PO),
    .bit("RIL", 0, 0x0000_0000_0000_0400, \.ril),
    .bit("THE", 0, 0x0000_0000_0020_0000, \.the),
    .number("BBML", 0, 0x0000_0000_0000_1800, \.bbml),
    .bit("MTEPERM", 0, 0x0000_0000_0040_0000, \.mteperm),
    .bit("E0PD", 0, 0x0000_0000_0000_2000, \.e0pd),
    .bit("AIE", 0, 0x0000_0000_0080_0000, \.aie),
]

/// SMMU_IDR5 (0x014).
let goldenIDR5: [GoldenField<IDR5>] = [
    .number("OAS", 0, 0x0000_0000_0000_0007, \.oas),
    .bit("GRAN4K", 0, 0x0000_0000_0000_0010, \.gran4K),
    .bit("GRAN16K", 0, 0x0000_0000_0000_0020, \.gran16K),
    .bit("GRAN64K", 0, 0x0000_0000_0000_0040, \.gran64K),
    .bit("DS", 0, 0x0000_0000_0000_0080, \.ds),
    .bit("D128", 0, 0x0000_0000_0000_0100, \.d128),
    .number("VAX", 0, 0x0000_0000_0000_0C00, \.vax),
    .number("STALL_MAX", 0, 0x0000_0000_FFFF_0000, \.stallMax),
]

/// SMMU_IDR6 (0x190).
let goldenIDR6: [GoldenField<IDR6>] = [
    .number("LOG2NUMQ", 0, 0x0000_0000_000F_0000, \.log2NumQ),
    .number("LOG2NUMP", 0, 0x0000_0000_0F00_0000, \.log2NumP),
]

/// SMMU_IIDR (0x018).
let goldenIIDR: [GoldenField<IIDR>] = [
    .number("ProductID", 0, 0x0000_0000_FFF0_0000, \.productID),
    .number("Variant", 0, 0x0000_0000_000F_0000, \.variant),
    .number("Revision", 0, 0x0000_0000_0000_F000, \.revision),
    .number("Implementer", 0, 0x0000_0000_0000_0FFF, \.implementer),
]

/// SMMU_AIDR (0x01C).
let goldenAIDR: [GoldenField<AIDR>] = [
    .number("ArchMajorRev", 0, 0x0000_0000_0000_00F0, \.archMajorRev),
    .number("ArchMinorRev", 0, 0x0000_0000_0000_000F, \.archMinorRev),
]

/// SMMU_CR0 (0x020) and SMMU_CR0ACK (0x024), of one layout.
let goldenCR0: [GoldenField<CR0>] = [
    .bit("SMMUEN", 0, 0x0000_0000_0000_0001, \.smmuen),
    .bit("PRIQEN", 0, 0x0000_0000_0000_0002, \.priqen),
    .bit("EVENTQEN", 0, 0x0000_0000_0000_0004, \.eventqen),
    .bit("CMDQEN", 0, 0x0000_0000_0000_0008, \.cmdqen),
    .bit("ATSCHK", 0, 0x0000_0000_0000_0010, \.atschk),
    .number("VMW", 0, 0x0000_0000_0000_01C0, \.vmw),
    .bit("DPT_WALK_EN", 0, 0x0000_0000_0000_0400, \.dptWalkEn),
]

/// SMMU_CR1 (0x028).
let goldenCR1: [GoldenField<CR1>] = [
    .number("QUEUE_IC", 0, 0x0000_0000_0000_0003, \.queueIC),
    .number("QUEUE_OC", 0, 0x0000_0000_0000_000C, \.queueOC),
    .number("QUEUE_SH", 0, 0x0000_0000_0000_0030, \.queueSH),
    .number("TABLE_IC", 0, 0x0000_0000_0000_00C0, \.tableIC),
    .number("TABLE_OC", 0, 0x0000_0000_0000_0300, \.tableOC),
    .number("TABLE_SH", 0, 0x0000_0000_0000_0C00, \.tableSH),
]

/// SMMU_CR2 (0x02C).
let goldenCR2: [GoldenField<CR2>] = [
    .bit("E2H", 0, 0x0000_0000_0000_0001, \.e2H),
    .bit("RECINVSID", 0, 0x0000_0000_0000_0002, \.recinvsid),
    .bit("PTM", 0, 0x0000_0000_0000_0004, \.ptm),
    .bit("REC_CFG_ATS", 0, 0x0000_0000_0000_0008, \.recCfgATS),
]

/// SMMU_STATUSR (0x040).
let goldenSTATUSR: [GoldenField<STATUSR>] = [
    .bit("DORMANT", 0, 0x0000_0000_0000_0001, \.dormant)
]

/// SMMU_GBPA (0x044).
let goldenGBPA: [GoldenField<GBPA>] = [
    .number("MemAttr", 0, 0x0000_0000_0000_000F, \.memAttr),
    .bit("MTCFG", 0, 0x0000_0000_0000_0010, \.mtCfg),
    .number("ALLOCCFG", 0, 0x0000_0000_0000_0F00, \.allocCfg),
    .number("SHCFG", 0, 0x0000_0000_0000_3000, \.shCfg),
    .number("PRIVCFG", 0, 0x0000_0000_0003_0000, \.privCfg),
    .number("INSTCFG", 0, 0x0000_0000_000C_0000, \.instCfg),
    .bit("ABORT", 0, 0x0000_0000_0010_0000, \.abort),
    .bit("Update", 0, 0x0000_0000_8000_0000, \.update),
]

/// SMMU_AGBPA (0x048).
let goldenAGBPA: [GoldenField<AGBPA>] = [
    .number("IMPDEF", 0, 0x0000_0000_FFFF_FFFF, \.impDef)
]

/// SMMU_IRQ_CTRL (0x050) and SMMU_IRQ_CTRLACK (0x054), of one layout.
let goldenIRQCtrl: [GoldenField<IRQCtrl>] = [
    .bit("GERROR_IRQEN", 0, 0x0000_0000_0000_0001, \.gerrorIRQEn),
    .bit("PRIQ_IRQEN", 0, 0x0000_0000_0000_0002, \.priqIRQEn),
    .bit("EVENTQ_IRQEN", 0, 0x0000_0000_0000_0004, \.eventqIRQEn),
]

/// SMMU_GERROR (0x060) and SMMU_GERRORN (0x064), of one layout.
let goldenGError: [GoldenField<GError>] = [
    .bit("CMDQ_ERR", 0, 0x0000_0000_0000_0001, \.cmdqErr),
    .bit("EVENTQ_ABT_ERR", 0, 0x0000_0000_0000_0004, \.eventqAbtErr),
    .bit("PRIQ_ABT_ERR", 0, 0x0000_0000_0000_0008, \.priqAbtErr),
    .bit("MSI_CMDQ_ABT_ERR", 0, 0x0000_0000_0000_0010, \.msiCmdqAbtErr),
    .bit("MSI_EVENTQ_ABT_ERR", 0, 0x0000_0000_0000_0020, \.msiEventqAbtErr),
    .bit("MSI_PRIQ_ABT_ERR", 0, 0x0000_0000_0000_0040, \.msiPriqAbtErr),
    .bit("MSI_GERROR_ABT_ERR", 0, 0x0000_0000_0000_0080, \.msiGerrorAbtErr),
    .bit("SFM_ERR", 0, 0x0000_0000_0000_0100, \.sfmErr),
    .bit("CMDQP_ERR", 0, 0x0000_0000_0000_0200, \.cmdqpErr),
    .bit("DPT_ERR", 0, 0x0000_0000_0000_0400, \.dptErr),
]

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG0.
let goldenIRQCfg0: [GoldenField<IRQCfg0>] = [
    .address("ADDR", 0, 0x00FF_FFFF_FFFF_FFFC, \.addr)
]

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG1.
let goldenIRQCfg1: [GoldenField<IRQCfg1>] = [
    .number("DATA", 0, 0x0000_0000_FFFF_FFFF, \.data)
]

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG2.
let goldenIRQCfg2: [GoldenField<IRQCfg2>] = [
    .number("MemAttr", 0, 0x0000_0000_0000_000F, \.memAttr),
    .number("SH", 0, 0x0000_0000_0000_0030, \.sh),
    .bit("LO", 0, 0x0000_0000_8000_0000, \.lo),
]

/// SMMU_STRTAB_BASE (0x080).
let goldenStrtabBase: [GoldenField<StrtabBase>] = [
    .address("ADDR", 0, 0x00FF_FFFF_FFFF_FFC0, \.addr),
    .bit("RA", 0, 0x4000_0000_0000_0000, \.ra),
]

/// SMMU_STRTAB_BASE_CFG (0x088).
let goldenStrtabBaseCfg: [GoldenField<StrtabBaseCfg>] = [
    .number("LOG2SIZE", 0, 0x0000_0000_0000_003F, \.log2size),
    .number("SPLIT", 0, 0x0000_0000_0000_07C0, \.split),
    .number("FMT", 0, 0x0000_0000_0003_0000, \.fmt),
]

/// SMMU_{CMDQ,EVENTQ,PRIQ}_BASE (0x090, 0x0A0, 0x0C0).
let goldenQueueBase: [GoldenField<QueueBase>] = [
    .number("LOG2SIZE", 0, 0x0000_0000_0000_001F, \.log2size),
    .address("ADDR", 0, 0x00FF_FFFF_FFFF_FFE0, \.addr),
    .bit("RA/WA", 0, 0x4000_0000_0000_0000, \.hint),
]

/// SMMU_CMDQ_PROD (0x098).
let goldenCmdqProd: [GoldenField<CmdqProd>] = [
    .number("WR", 0, 0x0000_0000_000F_FFFF, \.wr)
]

/// SMMU_CMDQ_CONS (0x09C).
let goldenCmdqCons: [GoldenField<CmdqCons>] = [
    .number("RD", 0, 0x0000_0000_000F_FFFF, \.rd),
    .code("ERR", 0, 0x0000_0000_7F00_0000, \.err),
]

/// SMMU_{EVENTQ,PRIQ}_PROD (0x100A8, 0x100C8).
let goldenOutputQueueProd: [GoldenField<OutputQueueProd>] = [
    .number("WR", 0, 0x0000_0000_000F_FFFF, \.wr),
    .bit("OVFLG", 0, 0x0000_0000_8000_0000, \.ovflg),
]

/// SMMU_{EVENTQ,PRIQ}_CONS (0x100AC, 0x100CC).
let goldenOutputQueueCons: [GoldenField<OutputQueueCons>] = [
    .number("RD", 0, 0x0000_0000_000F_FFFF, \.rd),
    .bit("OVACKFLG", 0, 0x0000_0000_8000_0000, \.ovackflg),
]

/// SMMU_CMDQ_CONTROL_PAGE_BASEn (0x4000 + 32n).
let goldenCmdqControlPageBase: [GoldenField<CmdqControlPageBase>] = [
    .bit("CMDQ_CONTROL_PAGE_PRESET", 0, 0x0000_0000_0000_0001, \.preset),
    .number("CMDQGS", 0, 0x0000_0000_0000_0006, \.cmdqGS),
    .address("ADDR", 0, 0x00FF_FFFF_FFFF_0000, \.addr),
]

/// SMMU_ECMDQ_PROD.
let goldenECMDQProd: [GoldenField<ECMDQProd>] = [
    .number("WR", 0, 0x0000_0000_000F_FFFF, \.wr),
    .bit("ERRACK", 0, 0x0000_0000_0080_0000, \.errack),
    .bit("EN", 0, 0x0000_0000_8000_0000, \.en),
]

/// SMMU_ECMDQ_CONS.
let goldenECMDQCons: [GoldenField<ECMDQCons>] = [
    .number("RD", 0, 0x0000_0000_000F_FFFF, \.rd),
    .bit("ERR", 0, 0x0000_0000_0080_0000, \.err),
    .code("ERR_REASON", 0, 0x0000_0000_0700_0000, \.errReason),
    .bit("ENACK", 0, 0x0000_0000_8000_0000, \.enack),
]

/// SMMU_GATOS_CTRL (0x100).
let goldenGATOSCtrl: [GoldenField<GATOSCtrl>] = [
    .bit("RUN", 0, 0x0000_0000_0000_0001, \.run)
]

/// SMMU_GATOS_SID (0x108).
let goldenGATOSSid: [GoldenField<GATOSSid>] = [
    .stream("STREAMID", 0, 0x0000_0000_FFFF_FFFF, \.streamID),
    .substream("SUBSTREAMID", 0, 0x000F_FFFF_0000_0000, \.substreamID),
    .bit("SSID_VALID", 0, 0x0010_0000_0000_0000, \.ssidValid),
]

/// SMMU_GATOS_ADDR (0x110).
let goldenGATOSAddr: [GoldenField<GATOSAddr>] = [
    .address("ADDR", 0, 0xFFFF_FFFF_FFFF_F000, \.addr),
    .number("TYPE", 0, 0x0000_0000_0000_0C00, \.type),
    .bit("PnU", 0, 0x0000_0000_0000_0200, \.pnu),
    .bit("RnW", 0, 0x0000_0000_0000_0100, \.rnw),
    .bit("InD", 0, 0x0000_0000_0000_0080, \.ind),
    .bit("HTTUI", 0, 0x0000_0000_0000_0040, \.httui),
]

/// SMMU_GATOS_PAR (0x118).
let goldenGATOSPar: [GoldenField<GATOSPar>] = [
    .bit("FAULT", 0, 0x0000_0000_0000_0001, \.fault),
    .number("SH", 0, 0x0000_0000_0000_0300, \.sh),
    .bit("Size", 0, 0x0000_0000_0000_0800, \.size),
    .address("ADDR", 0, 0x00FF_FFFF_FFFF_F000, \.addr),
    .number("ATTR", 0, 0xFF00_0000_0000_0000, \.attr),
    .number("REASON", 0, 0x0000_0000_0000_0006, \.reason),
    .number("FAULTCODE", 0, 0x0000_0000_0000_0FF0, \.faultcode),
]

/// SMMU_VATOS_SEL (0x180).
let goldenVATOSSel: [GoldenField<VATOSSel>] = [
    .number("VMID", 0, 0x0000_0000_0000_FFFF, \.vmid)
]

/// SMMU_PMCG_EVTYPERn (0x400 + 4n).
let goldenPMCGEvtyper: [GoldenField<PMCGEvtyper>] = [
    .number("EVENT", 0, 0x0000_0000_0000_FFFF, \.event),
    .bit("FILTER_PARTID", 0, 0x0000_0000_0001_0000, \.filterPartID),
    .bit("FILTER_PMG", 0, 0x0000_0000_0002_0000, \.filterPMG),
    .number("FILTER_MPAM_SP", 0, 0x0000_0000_000C_0000, \.filterMPAMSP),
    .bit("FILTER_REALM_SID", 0, 0x0000_0000_1000_0000, \.filterRealmSID),
    .bit("FILTER_SID_SPAN", 0, 0x0000_0000_2000_0000, \.filterSIDSpan),
    .bit("FILTER_SEC_SID", 0, 0x0000_0000_4000_0000, \.filterSecSID),
    .bit("OVFCAP", 0, 0x0000_0000_8000_0000, \.ovfcap),
]

/// SMMU_PMCG_SMRn (0xA00 + 4n).
let goldenPMCGSmr: [GoldenField<PMCGSmr>] = [
    .number("STREAMID", 0, 0x0000_0000_FFFF_FFFF, \.streamID),
    .number("PARTID", 0, 0x0000_0000_0000_FFFF, \.partID),
    .number("PMG", 0, 0x0000_0000_00FF_0000, \.pmg),
]

/// SMMU_PMCG_CFGR (0xE00).
let goldenPMCGCfgr: [GoldenField<PMCGCfgr>] = [
    .number("NCTR", 0, 0x0000_0000_0000_003F, \.nctr),
    .number("SIZE", 0, 0x0000_0000_0000_3F00, \.size),
    .bit("RELOC_CTRS", 0, 0x0000_0000_0010_0000, \.relocCtrs),
    .bit("MSI", 0, 0x0000_0000_0020_0000, \.msi),
    .bit("CAPTURE", 0, 0x0000_0000_0040_0000, \.capture),
    .bit("SID_FILTER_TYPE", 0, 0x0000_0000_0080_0000, \.sidFilterType),
    .bit("MPAM", 0, 0x0000_0000_0100_0000, \.mpam),
    .bit("FILTER_PARTID_PMG", 0, 0x0000_0000_0200_0000, \.filterPartIDPMG),
]

/// SMMU_PMCG_CR (0xE04).
let goldenPMCGCr: [GoldenField<PMCGCr>] = [
    .bit("E", 0, 0x0000_0000_0000_0001, \.e)
]

/// SMMU_PMCG_CAPR (0xD88).
let goldenPMCGCapr: [GoldenField<PMCGCapr>] = [
    .bit("CAPTURE", 0, 0x0000_0000_0000_0001, \.capture)
]

/// SMMU_PMCG_SCR (0xDF8).
let goldenPMCGScr: [GoldenField<PMCGScr>] = [
    .bit("SO", 0, 0x0000_0000_0000_0001, \.so),
    .bit("NSRA", 0, 0x0000_0000_0000_0002, \.nsra),
    .bit("NSMSI", 0, 0x0000_0000_0000_0004, \.nsmsi),
    .bit("MSI_MPAM_NS", 0, 0x0000_0000_0000_0008, \.msiMPAMNS),
    .bit("NAO", 0, 0x0000_0000_0000_0010, \.nao),
    .bit("RAO", 0, 0x0000_0000_8000_0000, \.rao),
]

/// SMMU_PMCG_IRQ_CTRL (0xE50) and IRQ_CTRLACK (0xE54), of one layout.
let goldenPMCGIRQCtrl: [GoldenField<PMCGIRQCtrl>] = [
    .bit("IRQEN", 0, 0x0000_0000_0000_0001, \.irqen)
]

/// SMMU_PMCG_IRQ_STATUS (0xE68).
let goldenPMCGIRQStatus: [GoldenField<PMCGIRQStatus>] = [
    .bit("IRQ_ABT", 0, 0x0000_0000_0000_0001, \.irqAbt)
]

/// SMMU_MPAMIDR (0x130).
let goldenMPAMIDR: [GoldenField<MPAMIDR>] = [
    .number("PARTID_MAX", 0, 0x0000_0000_0000_FFFF, \.partIDMax),
    .number("PMG_MAX", 0, 0x0000_0000_00FF_0000, \.pmgMax),
]

/// SMMU_GMPAM (0x138).
let goldenGMPAM: [GoldenField<GMPAM>] = [
    .number("SO_PARTID", 0, 0x0000_0000_0000_FFFF, \.soPartID),
    .number("SO_PMG", 0, 0x0000_0000_00FF_0000, \.soPMG),
    .bit("Update", 0, 0x0000_0000_8000_0000, \.update),
]

/// SMMU_GBPMPAM (0x13C).
let goldenGBPMPAM: [GoldenField<GBPMPAM>] = [
    .number("GBP_PARTID", 0, 0x0000_0000_0000_FFFF, \.gbpPartID),
    .number("GBP_PMG", 0, 0x0000_0000_00FF_0000, \.gbpPMG),
    .bit("Update", 0, 0x0000_0000_8000_0000, \.update),
]
