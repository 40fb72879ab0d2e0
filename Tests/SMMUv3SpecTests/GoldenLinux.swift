// Where the Linux driver's header puts the fields that it uses: macro, word and mask.
//
// The header was read apart from the specification, so that a slip in one shows against the other. It cuts
// address fields at bit 51, as SMMUv3.3 does; those whose fields go on to bit 55 here are left out.

import SMMUv3Spec

/// The stream table entry.
let linuxSTE: [GoldenField<STE>] = [
    .bit("STRTAB_STE_0_V", 0, 0x0000_0000_0000_0001, \.v),
    .code("STRTAB_STE_0_CFG", 0, 0x0000_0000_0000_000E, \.config),
    .number("STRTAB_STE_0_S1FMT", 0, 0x0000_0000_0000_0030, \.s1Fmt),
    .number("STRTAB_STE_0_S1CDMAX", 0, 0xF800_0000_0000_0000, \.s1CDMax),
    .number("STRTAB_STE_1_S1DSS", 1, 0x0000_0000_0000_0003, \.s1DSS),
    .number("STRTAB_STE_1_S1CIR", 1, 0x0000_0000_0000_000C, \.s1CIR),
    .number("STRTAB_STE_1_S1COR", 1, 0x0000_0000_0000_0030, \.s1COR),
    .number("STRTAB_STE_1_S1CSH", 1, 0x0000_0000_0000_00C0, \.s1CSH),
    .bit("STRTAB_STE_1_MEV", 1, 0x0000_0000_0008_0000, \.mev),
    .bit("STRTAB_STE_1_S2FWB", 1, 0x0000_0000_0200_0000, \.s2FWB),
    .bit("STRTAB_STE_1_S1STALLD", 1, 0x0000_0000_0800_0000, \.s1STALLD),
    .number("STRTAB_STE_1_EATS", 1, 0x0000_0000_3000_0000, \.eats),
    .number("STRTAB_STE_1_STRW", 1, 0x0000_0000_C000_0000, \.strw),
    .number("STRTAB_STE_1_SHCFG", 1, 0x0000_3000_0000_0000, \.shCfg),
    .number("STRTAB_STE_2_S2VMID", 2, 0x0000_0000_0000_FFFF, \.s2VMID),
    .number("STRTAB_STE_2_VTCR_S2T0SZ", 2, 0x0000_003F_0000_0000, \.s2T0SZ),
    .number("STRTAB_STE_2_VTCR_S2SL0", 2, 0x0000_00C0_0000_0000, \.s2SL0),
    .number("STRTAB_STE_2_VTCR_S2IR0", 2, 0x0000_0300_0000_0000, \.s2IR0),
    .number("STRTAB_STE_2_VTCR_S2OR0", 2, 0x0000_0C00_0000_0000, \.s2OR0),
    .number("STRTAB_STE_2_VTCR_S2SH0", 2, 0x0000_3000_0000_0000, \.s2SH0),
    .number("STRTAB_STE_2_VTCR_S2TG", 2, 0x0000_C000_0000_0000, \.s2TG),
    .number("STRTAB_STE_2_VTCR_S2PS", 2, 0x0007_0000_0000_0000, \.s2PS),
    .bit("STRTAB_STE_2_S2AA64", 2, 0x0008_0000_0000_0000, \.s2AA64),
    .bit("STRTAB_STE_2_S2ENDI", 2, 0x0010_0000_0000_0000, \.s2ENDI),
    .bit("STRTAB_STE_2_S2PTW", 2, 0x0040_0000_0000_0000, \.s2PTW),
    .bit("STRTAB_STE_2_S2S", 2, 0x0200_0000_0000_0000, \.s2S),
    .bit("STRTAB_STE_2_S2R", 2, 0x0400_0000_0000_0000, \.s2R),
    .address("STRTAB_STE_3_S2TTB_MASK", 3, 0x000F_FFFF_FFFF_FFF0, \.s2TTB),
]

/// The context descriptor.
let linuxCD: [GoldenField<CD>] = [
    .number("CTXDESC_CD_0_TCR_T0SZ", 0, 0x0000_0000_0000_003F, \.t0SZ),
    .number("CTXDESC_CD_0_TCR_TG0", 0, 0x0000_0000_0000_00C0, \.tg0),
    .number("CTXDESC_CD_0_TCR_IRGN0", 0, 0x0000_0000_0000_0300, \.ir0),
    .number("CTXDESC_CD_0_TCR_ORGN0", 0, 0x0000_0000_0000_0C00, \.or0),
    .number("CTXDESC_CD_0_TCR_SH0", 0, 0x0000_0000_0000_3000, \.sh0),
    .bit("CTXDESC_CD_0_TCR_EPD0", 0, 0x0000_0000_0000_4000, \.epd0),
    .bit("CTXDESC_CD_0_ENDI", 0, 0x0000_0000_0000_8000, \.endi),
    .bit("CTXDESC_CD_0_TCR_EPD1", 0, 0x0000_0000_4000_0000, \.epd1),
    .bit("CTXDESC_CD_0_V", 0, 0x0000_0000_8000_0000, \.v),
    .number("CTXDESC_CD_0_TCR_IPS", 0, 0x0000_0007_0000_0000, \.ips),
    .bit("CTXDESC_CD_0_TCR_TBI0", 0, 0x0000_0040_0000_0000, \.tbi0),
    .bit("CTXDESC_CD_0_AA64", 0, 0x0000_0200_0000_0000, \.aa64),
    .bit("CTXDESC_CD_0_TCR_HD", 0, 0x0000_0400_0000_0000, \.hd),
    .bit("CTXDESC_CD_0_TCR_HA", 0, 0x0000_0800_0000_0000, \.ha),
    .bit("CTXDESC_CD_0_S", 0, 0x0000_1000_0000_0000, \.s),
    .bit("CTXDESC_CD_0_R", 0, 0x0000_2000_0000_0000, \.r),
    .bit("CTXDESC_CD_0_A", 0, 0x0000_4000_0000_0000, \.a),
    .bit("CTXDESC_CD_0_ASET", 0, 0x0000_8000_0000_0000, \.aset),
    .number("CTXDESC_CD_0_ASID", 0, 0xFFFF_0000_0000_0000, \.asid),
    .address("CTXDESC_CD_1_TTB0_MASK", 1, 0x000F_FFFF_FFFF_FFF0, \.ttb0),
]

/// Commands.
let linuxCommand: [GoldenField<Command>] = [
    .code("CMDQ_0_OP", 0, 0x0000_0000_0000_00FF, \.opcode),
    .bit("CMDQ_0_SSV", 0, 0x0000_0000_0000_0800, \.ssv),
    .number("CMDQ_PREFETCH_1_SIZE", 1, 0x0000_0000_0000_001F, \.prefetchSize),
    .substream("CMDQ_CFGI_0_SSID", 0, 0x0000_0000_FFFF_F000, \.substreamID),
    .stream("CMDQ_CFGI_0_SID", 0, 0xFFFF_FFFF_0000_0000, \.streamID),
    .bit("CMDQ_CFGI_1_LEAF", 1, 0x0000_0000_0000_0001, \.leaf),
    .number("CMDQ_CFGI_1_RANGE", 1, 0x0000_0000_0000_001F, \.range),
    .number("CMDQ_TLBI_0_NUM", 0, 0x0000_0000_0001_F000, \.num),
    .number("CMDQ_TLBI_0_SCALE", 0, 0x0000_0000_01F0_0000, \.scale),
    .number("CMDQ_TLBI_0_VMID", 0, 0x0000_FFFF_0000_0000, \.vmid),
    .number("CMDQ_TLBI_0_ASID", 0, 0xFFFF_0000_0000_0000, \.asid),
    .number("CMDQ_TLBI_1_TTL", 1, 0x0000_0000_0000_0300, \.ttl),
    .number("CMDQ_TLBI_1_TG", 1, 0x0000_0000_0000_0C00, \.tg),
    .address("CMDQ_TLBI_1_VA_MASK", 1, 0xFFFF_FFFF_FFFF_F000, \.address),
    .bit("CMDQ_ATC_0_GLOBAL", 0, 0x0000_0000_0000_0200, \.global),
    .number("CMDQ_ATC_1_SIZE", 1, 0x0000_0000_0000_003F, \.atcSize),
    .number("CMDQ_PRI_1_GRPID", 1, 0x0000_0000_0000_01FF, \.prgIndex),
    .number("CMDQ_PRI_1_RESP", 1, 0x0000_0000_0000_3000, \.priResp),
    .number("CMDQ_RESUME_1_STAG", 1, 0x0000_0000_0000_FFFF, \.stag),
    .number("CMDQ_SYNC_0_CS", 0, 0x0000_0000_0000_3000, \.cs),
    .number("CMDQ_SYNC_0_MSH", 0, 0x0000_0000_00C0_0000, \.msh),
    .number("CMDQ_SYNC_0_MSIATTR", 0, 0x0000_0000_0F00_0000, \.msiAttr),
    .number("CMDQ_SYNC_0_MSIDATA", 0, 0xFFFF_FFFF_0000_0000, \.msiData),
]

/// Event records.
let linuxEvent: [GoldenField<EventRecord>] = [
    .code("EVTQ_0_ID", 0, 0x0000_0000_0000_00FF, \.number),
    .bit("EVTQ_0_SSV", 0, 0x0000_0000_0000_0800, \.ssv),
    .substream("EVTQ_0_SSID", 0, 0x0000_0000_FFFF_F000, \.substreamID),
    .stream("EVTQ_0_SID", 0, 0xFFFF_FFFF_0000_0000, \.streamID),
    .number("EVTQ_1_STAG", 1, 0x0000_0000_0000_FFFF, \.stag),
    .bit("EVTQ_1_STALL", 1, 0x0000_0000_8000_0000, \.stall),
    .bit("EVTQ_1_PnU", 1, 0x0000_0002_0000_0000, \.pnu),
    .bit("EVTQ_1_InD", 1, 0x0000_0004_0000_0000, \.ind),
    .bit("EVTQ_1_RnW", 1, 0x0000_0008_0000_0000, \.rnw),
    .bit("EVTQ_1_S2", 1, 0x0000_0080_0000_0000, \.s2),
    .code("EVTQ_1_CLASS", 1, 0x0000_0300_0000_0000, \.eventClass),
    .bit("EVTQ_1_TT_READ", 1, 0x0000_1000_0000_0000, \.ttRnW),
    .number("EVTQ_2_ADDR", 2, 0xFFFF_FFFF_FFFF_FFFF, \.inputAddress),
]

/// Page requests.
let linuxPRIEntry: [GoldenField<PRIEntry>] = [
    .stream("PRIQ_0_SID", 0, 0x0000_0000_FFFF_FFFF, \.streamID),
    .substream("PRIQ_0_SSID", 0, 0x000F_FFFF_0000_0000, \.substreamID),
    .bit("PRIQ_0_PERM_PRIV", 0, 0x0400_0000_0000_0000, \.priv),
    .bit("PRIQ_0_PERM_EXEC", 0, 0x0800_0000_0000_0000, \.x),
    .bit("PRIQ_0_PERM_READ", 0, 0x1000_0000_0000_0000, \.r),
    .bit("PRIQ_0_PERM_WRITE", 0, 0x2000_0000_0000_0000, \.w),
    .bit("PRIQ_0_PRG_LAST", 0, 0x4000_0000_0000_0000, \.last),
    .bit("PRIQ_0_SSID_V", 0, 0x8000_0000_0000_0000, \.ssv),
    .number("PRIQ_1_PRG_IDX", 1, 0x0000_0000_0000_01FF, \.prgIndex),
    .address("PRIQ_1_ADDR_MASK", 1, 0xFFFF_FFFF_FFFF_F000, \.pageAddress),
]

/// IDR0 as the driver names its fields.
let linuxIDR0: [GoldenField<IDR0>] = [
    .number("IDR0_ST_LVL", 0, 0x0000_0000_1800_0000, \.stLevel),
    .number("IDR0_STALL_MODEL", 0, 0x0000_0000_0300_0000, \.stallModel),
    .number("IDR0_TTENDIAN", 0, 0x0000_0000_0060_0000, \.ttendian),
    .bit("IDR0_CD2L", 0, 0x0000_0000_0008_0000, \.cd2L),
    .bit("IDR0_VMID16", 0, 0x0000_0000_0004_0000, \.vmid16),
    .bit("IDR0_PRI", 0, 0x0000_0000_0001_0000, \.pri),
    .bit("IDR0_SEV", 0, 0x0000_0000_0000_4000, \.sev),
    .bit("IDR0_MSI", 0, 0x0000_0000_0000_2000, \.msi),
    .bit("IDR0_ASID16", 0, 0x0000_0000_0000_1000, \.asid16),
    .bit("IDR0_ATS", 0, 0x0000_0000_0000_0400, \.ats),
    .bit("IDR0_HYP", 0, 0x0000_0000_0000_0200, \.hyp),
    .number("IDR0_HTTU", 0, 0x0000_0000_0000_00C0, \.httu),
    .bit("IDR0_COHACC", 0, 0x0000_0000_0000_0010, \.cohacc),
    .number("IDR0_TTF", 0, 0x0000_0000_0000_000C, \.ttf),
    .bit("IDR0_S1P", 0, 0x0000_0000_0000_0002, \.s1P),
    .bit("IDR0_S2P", 0, 0x0000_0000_0000_0001, \.s2P),
]

/// IDR1 as the driver names its fields.
let linuxIDR1: [GoldenField<IDR1>] = [
    .bit("IDR1_TABLES_PRESET", 0, 0x0000_0000_4000_0000, \.tablesPreset),
    .bit("IDR1_QUEUES_PRESET", 0, 0x0000_0000_2000_0000, \.queuesPreset),
    .bit("IDR1_REL", 0, 0x0000_0000_1000_0000, \.rel),
    .bit("IDR1_ATTR_TYPES_OVR", 0, 0x0000_0000_0800_0000, \.attrTypesOvr),
    .number("IDR1_CMDQS", 0, 0x0000_0000_03E0_0000, \.cmdqs),
    .number("IDR1_EVTQS", 0, 0x0000_0000_001F_0000, \.eventqs),
    .number("IDR1_PRIQS", 0, 0x0000_0000_0000_F800, \.priqs),
    .number("IDR1_SSIDSIZE", 0, 0x0000_0000_0000_07C0, \.ssidsize),
    .number("IDR1_SIDSIZE", 0, 0x0000_0000_0000_003F, \.sidsize),
]

/// IDR3 as the driver names its fields.
let linuxIDR3: [GoldenField<IDR3>] = [
    .bit("IDR3_FWB", 0, 0x0000_0000_0000_0100, \.fwb),
    .bit("IDR3_RIL", 0, 0x0000_0000_0000_0400, \.ril),
]

/// IDR5 as the driver names its fields.
let linuxIDR5: [GoldenField<IDR5>] = [
    .number("IDR5_STALL_MAX", 0, 0x0000_0000_FFFF_0000, \.stallMax),
    .bit("IDR5_GRAN64K", 0, 0x0000_0000_0000_0040, \.gran64K),
    .bit("IDR5_GRAN16K", 0, 0x0000_0000_0000_0020, \.gran16K),
    .bit("IDR5_GRAN4K", 0, 0x0000_0000_0000_0010, \.gran4K),
    .number("IDR5_OAS", 0, 0x0000_0000_0000_0007, \.oas),
    .number("IDR5_VAX", 0, 0x0000_0000_0000_0C00, \.vax),
]

/// IIDR as the driver names its fields.
let linuxIIDR: [GoldenField<IIDR>] = [
    .number("IIDR_PRODUCTID", 0, 0x0000_0000_FFF0_0000, \.productID),
    .number("IIDR_VARIANT", 0, 0x0000_0000_000F_0000, \.variant),
    .number("IIDR_REVISION", 0, 0x0000_0000_0000_F000, \.revision),
    .number("IIDR_IMPLEMENTER", 0, 0x0000_0000_0000_0FFF, \.implementer),
]

/// CR0 as the driver names its fields.
let linuxCR0: [GoldenField<CR0>] = [
    .bit("CR0_ATSCHK", 0, 0x0000_0000_0000_0010, \.atschk),
    .bit("CR0_CMDQEN", 0, 0x0000_0000_0000_0008, \.cmdqen),
    .bit("CR0_EVTQEN", 0, 0x0000_0000_0000_0004, \.eventqen),
    .bit("CR0_PRIQEN", 0, 0x0000_0000_0000_0002, \.priqen),
    .bit("CR0_SMMUEN", 0, 0x0000_0000_0000_0001, \.smmuen),
]

/// CR1 as the driver names its fields.
let linuxCR1: [GoldenField<CR1>] = [
    .number("CR1_TABLE_SH", 0, 0x0000_0000_0000_0C00, \.tableSH),
    .number("CR1_TABLE_OC", 0, 0x0000_0000_0000_0300, \.tableOC),
    .number("CR1_TABLE_IC", 0, 0x0000_0000_0000_00C0, \.tableIC),
    .number("CR1_QUEUE_SH", 0, 0x0000_0000_0000_0030, \.queueSH),
    .number("CR1_QUEUE_OC", 0, 0x0000_0000_0000_000C, \.queueOC),
    .number("CR1_QUEUE_IC", 0, 0x0000_0000_0000_0003, \.queueIC),
]

/// CR2 as the driver names its fields.
let linuxCR2: [GoldenField<CR2>] = [
    .bit("CR2_PTM", 0, 0x0000_0000_0000_0004, \.ptm),
    .bit("CR2_RECINVSID", 0, 0x0000_0000_0000_0002, \.recinvsid),
    .bit("CR2_E2H", 0, 0x0000_0000_0000_0001, \.e2H),
]

/// GBPA as the driver names its fields.
let linuxGBPA: [GoldenField<GBPA>] = [
    .bit("GBPA_UPDATE", 0, 0x0000_0000_8000_0000, \.update),
    .bit("GBPA_ABORT", 0, 0x0000_0000_0010_0000, \.abort),
]

/// IRQCtrl as the driver names its fields.
let linuxIRQCtrl: [GoldenField<IRQCtrl>] = [
    .bit("IRQ_CTRL_EVTQ_IRQEN", 0, 0x0000_0000_0000_0004, \.eventqIRQEn),
    .bit("IRQ_CTRL_PRIQ_IRQEN", 0, 0x0000_0000_0000_0002, \.priqIRQEn),
    .bit("IRQ_CTRL_GERROR_IRQEN", 0, 0x0000_0000_0000_0001, \.gerrorIRQEn),
]

/// GError as the driver names its fields.
let linuxGError: [GoldenField<GError>] = [
    .bit("GERROR_SFM_ERR", 0, 0x0000_0000_0000_0100, \.sfmErr),
    .bit("GERROR_MSI_GERROR_ABT_ERR", 0, 0x0000_0000_0000_0080, \.msiGerrorAbtErr),
    .bit("GERROR_MSI_PRIQ_ABT_ERR", 0, 0x0000_0000_0000_0040, \.msiPriqAbtErr),
    .bit("GERROR_MSI_EVTQ_ABT_ERR", 0, 0x0000_0000_0000_0020, \.msiEventqAbtErr),
    .bit("GERROR_MSI_CMDQ_ABT_ERR", 0, 0x0000_0000_0000_0010, \.msiCmdqAbtErr),
    .bit("GERROR_PRIQ_ABT_ERR", 0, 0x0000_0000_0000_0008, \.priqAbtErr),
    .bit("GERROR_EVTQ_ABT_ERR", 0, 0x0000_0000_0000_0004, \.eventqAbtErr),
    .bit("GERROR_CMDQ_ERR", 0, 0x0000_0000_0000_0001, \.cmdqErr),
]

/// StrtabBaseCfg as the driver names its fields.
let linuxStrtabBaseCfg: [GoldenField<StrtabBaseCfg>] = [
    .number("STRTAB_BASE_CFG_FMT", 0, 0x0000_0000_0003_0000, \.fmt),
    .number("STRTAB_BASE_CFG_SPLIT", 0, 0x0000_0000_0000_07C0, \.split),
    .number("STRTAB_BASE_CFG_LOG2SIZE", 0, 0x0000_0000_0000_003F, \.log2size),
]

/// QueueBase as the driver names its fields.
let linuxQueueBase: [GoldenField<QueueBase>] = [
    .bit("Q_BASE_RWA", 0, 0x4000_0000_0000_0000, \.hint),
    .number("Q_BASE_LOG2SIZE", 0, 0x0000_0000_0000_001F, \.log2size),
]

/// CmdqCons as the driver names its fields.
let linuxCmdqCons: [GoldenField<CmdqCons>] = [
    .code("CMDQ_CONS_ERR", 0, 0x0000_0000_7F00_0000, \.err)
]
