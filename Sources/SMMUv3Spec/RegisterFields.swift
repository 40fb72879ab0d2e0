// The fields of every register, for people.

extension IDR0 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("S2P", 0),
        .bit("S1P", 1),
        .field("TTF", 3, 2, .names(["reserved", "LPAE", "VMSAv8-64", "LPAE and VMSAv8-64"])),
        .bit("COHACC", 4),
        .bit("BTM", 5),
        .field(
            "HTTU",
            7,
            6,
            .names(["none", "Access flag", "Access flag and dirty state", "also table descriptors"])
        ),
        .bit("DORMHINT", 8),
        .bit("Hyp", 9),
        .bit("ATS", 10),
        .bit("NS1ATS", 11, .flag("no split-stage ATS", nil)),
        .bit("ASID16", 12),
        .bit("MSI", 13),
        .bit("SEV", 14),
        .bit("ATOS", 15),
        .bit("PRI", 16),
        .bit("VMW", 17),
        .bit("VMID16", 18),
        .bit("CD2L", 19),
        .bit("VATOS", 20),
        .field("TTENDIAN", 22, 21, .names(["mixed", "reserved", "little-endian", "big-endian"])),
        .bit("ATSRECERR", 23),
        .field(
            "STALL_MODEL",
            25,
            24,
            .names(["stall and terminate", "terminate only", "stall only", "reserved"])
        ),
        .bit("TERM_MODEL", 26, .flag("always abort", "CD.A chooses")),
        .field("ST_LEVEL", 28, 27, .names(["linear", "linear and 2-level", "reserved", "reserved"])),
        .bit("RME_IMPL", 30),
    ]
}

extension IDR1 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("SIDSIZE", 5, 0, .text { "\($0)-bit StreamIDs" }),
        .field("SSIDSIZE", 10, 6, .text { "\($0)-bit SubstreamIDs" }),
        .field("PRIQS", 15, 11, .text { "2^\($0) entries" }),
        .field("EVENTQS", 20, 16, .text { "2^\($0) entries" }),
        .field("CMDQS", 25, 21, .text { "2^\($0) entries" }),
        .bit("ATTR_PERMS_OVR", 26),
        .bit("ATTR_TYPES_OVR", 27),
        .bit("REL", 28),
        .bit("QUEUES_PRESET", 29),
        .bit("TABLES_PRESET", 30),
        .bit("ECMDQ", 31),
    ]
}

extension IDR2 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("BA_VATOS", 9, 0, .text { "VATOS page at 0x" + String(0x2_0000 + $0 * 0x1_0000, radix: 16) })
    ]
}

extension IDR3 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("HAD", 2),
        .bit("PBHA", 3),
        .bit("XNX", 4),
        .bit("PPS", 5),
        .bit("MPAM", 7),
        .bit("FWB", 8),
        .bit("STT", 9),
        .bit("RIL", 10),
        .field("BBML", 12, 11, .names(["level 0", "level 1", "level 2", "reserved"])),
        .bit("E0PD", 13),
        .bit("PTWNNC", 14),
        .bit("DPT", 15),
        .bit("PASIDTT", 16),
        .bit("EPAN", 17),
        .bit("S1PI", 18),
        .bit("S2PI", 19),
        .bit("S2PO", 20),
        .bit("THE", 21),
        .bit("MTEPERM", 22),
        .bit("AIE", 23),
    ]
}

extension IDR5 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("OAS", 2, 0, .text(Meaning.addressSize)),
        .bit("GRAN4K", 4),
        .bit("GRAN16K", 5),
        .bit("GRAN64K", 6),
        .bit("DS", 7),
        .bit("D128", 8),
        .field(
            "VAX",
            11,
            10,
            .names([
                "48-bit virtual addresses", "52-bit virtual addresses", "56-bit virtual addresses",
                "reserved",
            ])
        ),
        .field("STALL_MAX", 31, 16, .text { "\($0) stalls" }),
    ]
}

extension IDR6 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("LOG2NUMQ", 19, 16, .text { "\(UInt64(1) << $0) queues a page" }),
        .field("LOG2NUMP", 27, 24, .text { "\(UInt64(1) << $0) pages" }),
    ]
}

extension IIDR {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("Implementer", 11, 0, .text { $0 == 0x43B ? "Arm" : nil }),
        .field("Revision", 15, 12),
        .field("Variant", 19, 16),
        .field("ProductID", 31, 20, .text { $0 == 0x483 ? "MMU-600" : $0 == 0x487 ? "MMU-700" : nil }),
    ]
}

extension AIDR {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("ArchMinorRev", 3, 0, .text { $0 <= 4 ? "SMMUv3.\($0)" : "reserved" }),
        .field("ArchMajorRev", 7, 4, .text { $0 == 0 ? "SMMUv3" : "reserved" }),
    ]
}

extension CR0 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("SMMUEN", 0, .flag("on", "off")),
        .bit("PRIQEN", 1, .flag("on", "off")),
        .bit("EVENTQEN", 2, .flag("on", "off")),
        .bit("CMDQEN", 3, .flag("on", "off")),
        .bit("ATSCHK", 4, .flag("translated traffic is checked", "translated traffic passes")),
        .field("VMW", 8, 6, .text { (1...4).contains($0) ? "ignores \($0) VMID bits" : "exact VMID" }),
        .bit("DPT_WALK_EN", 10, isOptional: true),
    ]
}

extension CR1 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("QUEUE_IC", 1, 0, .names(["NC", "WB", "WT", "reserved, as NC"])),
        .field("QUEUE_OC", 3, 2, .names(["NC", "WB", "WT", "reserved, as NC"])),
        .field("QUEUE_SH", 5, 4, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .field("TABLE_IC", 7, 6, .names(["NC", "WB", "WT", "reserved, as NC"])),
        .field("TABLE_OC", 9, 8, .names(["NC", "WB", "WT", "reserved, as NC"])),
        .field("TABLE_SH", 11, 10, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
    ]
}

extension CR2 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("E2H", 0, .flag("EL2-E2H", "EL2")),
        .bit("RECINVSID", 1, .flag("recorded", "not recorded")),
        .bit("PTM", 2, .flag("broadcasts ignored", "broadcasts obeyed")),
        .bit("REC_CFG_ATS", 3, .flag("recorded", "not recorded")),
    ]
}

extension STATUSR {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("DORMANT", 0)
    ]
}

extension GBPA {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("MemAttr", 3, 0, .text(Meaning.memoryType)),
        .bit("MTCFG", 4, .flag("MemAttr", "incoming")),
        .field("ALLOCCFG", 11, 8, .text(Meaning.allocationHints)),
        .field("SHCFG", 13, 12, .names(["NSH", "incoming", "OSH", "ISH"])),
        .field("PRIVCFG", 17, 16, .names(["incoming", "incoming", "unprivileged", "privileged"])),
        .field("INSTCFG", 19, 18, .names(["incoming", "incoming", "data", "instruction"])),
        .bit("ABORT", 20, .flag("abort", "bypass")),
        .bit("Update", 31, .flag("being taken", nil), isOptional: true),
    ]
}

extension AGBPA {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("IMPDEF", 31, 0)
    ]
}

extension IRQCtrl {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("GERROR_IRQEN", 0, .flag("on", "off")),
        .bit("PRIQ_IRQEN", 1, .flag("on", "off")),
        .bit("EVENTQ_IRQEN", 2, .flag("on", "off")),
    ]
}

extension GError {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("CMDQ_ERR", 0),
        .bit("EVENTQ_ABT_ERR", 2),
        .bit("PRIQ_ABT_ERR", 3),
        .bit("MSI_CMDQ_ABT_ERR", 4),
        .bit("MSI_EVENTQ_ABT_ERR", 5),
        .bit("MSI_PRIQ_ABT_ERR", 6),
        .bit("MSI_GERROR_ABT_ERR", 7),
        .bit("SFM_ERR", 8),
        .bit("CMDQP_ERR", 9),
        .bit("DPT_ERR", 10),
    ]
}

extension IRQCfg0 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .address("ADDR", 55, 2)
    ]
}

extension IRQCfg1 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("DATA", 31, 0)
    ]
}

extension IRQCfg2 {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("MemAttr", 3, 0, .text(Meaning.memoryType)),
        .field("SH", 5, 4, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .bit("LO", 31, .flag("at each Last", "when not empty"), isOptional: true),
    ]
}

extension StrtabBase {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .address("ADDR", 55, 6),
        .bit("RA", 62),
    ]
}

extension StrtabBaseCfg {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("LOG2SIZE", 5, 0, .text { "2^\($0) streams" }),
        .field(
            "SPLIT",
            10,
            6,
            .text { [6, 8, 10].contains($0) ? "2^\($0) STEs a table" : "reserved, as 6" }
        ),
        .field("FMT", 17, 16, .names(["linear", "2-level", "reserved, as linear", "reserved, as linear"])),
    ]
}

extension QueueBase {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("LOG2SIZE", 4, 0, .text { "2^\($0) entries" }),
        .address("ADDR", 55, 5),
        .bit("RA/WA", 62, .flag("allocate", nil)),
    ]
}

extension CmdqProd {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("WR", 19, 0)
    ]
}

extension CmdqCons {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("RD", 19, 0),
        .field("ERR", 30, 24, .text(Meaning.commandError)),
    ]
}

extension OutputQueueProd {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("WR", 19, 0),
        .bit("OVFLG", 31),
    ]
}

extension OutputQueueCons {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("RD", 19, 0),
        .bit("OVACKFLG", 31),
    ]
}

extension CmdqControlPageBase {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("CMDQ_CONTROL_PAGE_PRESET", 0),
        .field("CMDQGS", 2, 1, .text { $0 == 1 ? "64 KiB" : "reserved" }),
        .address("ADDR", 55, 16),
    ]
}

extension ECMDQProd {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("WR", 19, 0),
        .bit("ERRACK", 23),
        .bit("EN", 31, .flag("on", "off")),
    ]
}

extension ECMDQCons {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("RD", 19, 0),
        .bit("ERR", 23),
        .field("ERR_REASON", 26, 24, .text(Meaning.commandError)),
        .bit("ENACK", 31, .flag("on", "off")),
    ]
}

extension GATOSCtrl {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("RUN", 0, .flag("running", "idle"))
    ]
}

extension GATOSSid {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("STREAMID", 31, 0),
        .field("SUBSTREAMID", 51, 32),
        .bit("SSID_VALID", 52),
    ]
}

extension GATOSAddr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("HTTUI", 6, .flag("no updates", nil)),
        .bit("InD", 7, .flag("instruction", "data")),
        .bit("RnW", 8, .flag("read", "write")),
        .bit("PnU", 9, .flag("privileged", "unprivileged")),
        .field("TYPE", 11, 10, .names(["reserved", "stage 1", "stage 2", "stage 1 + stage 2"])),
        .address("ADDR", 63, 12),
    ]
}

extension GATOSPar {
    /// The fields of a translation, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("FAULT", 0, .flag("failed", "translated")),
        .field("SH", 9, 8, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .bit("Size", 11, .flag("larger, see ADDR", "4 KiB")),
        .address("ADDR", 55, 12),
        .field("ATTR", 63, 56, .text { Meaning.memoryAttribute(UInt8(truncatingIfNeeded: $0)) }),
    ]

    /// The fields of a failure, by bit number.
    public static let faultLayout: [FieldLayout] = [
        .bit("FAULT", 0, .flag("failed", "translated")),
        .field(
            "REASON",
            2,
            1,
            .names([
                "stage 1 or configuration", "stage 2 of the CD", "stage 2 of a table", "stage 2 of the input",
            ])
        ),
        .field("FAULTCODE", 11, 4, .text(Meaning.faultCode)),
        .address("FADDR", 55, 12),
        .field("IMPDEF", 63, 60, isOptional: true),
    ]

    public var fields: [DecodedField] { (fault ? Self.faultLayout : Self.layout).decode(rawValue) }
}

extension VATOSSel {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("VMID", 15, 0)
    ]
}

extension PMCGEvtyper {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("EVENT", 15, 0, .text(Meaning.counterEvent)),
        .bit("FILTER_PARTID", 16),
        .bit("FILTER_PMG", 17),
        .field("FILTER_MPAM_SP", 19, 18),
        .bit("FILTER_REALM_SID", 28),
        .bit("FILTER_SID_SPAN", 29, .flag("span", "exact")),
        .bit("FILTER_SEC_SID", 30),
        .bit("OVFCAP", 31),
    ]
}

extension PMCGSmr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("STREAMID", 31, 0)
    ]
}

extension PMCGCfgr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("NCTR", 5, 0, .text { "\($0 + 1) counters" }),
        .field("SIZE", 13, 8, .text { "\($0 + 1) bits" }),
        .bit("RELOC_CTRS", 20),
        .bit("MSI", 21),
        .bit("CAPTURE", 22),
        .bit("SID_FILTER_TYPE", 23),
        .bit("MPAM", 24),
        .bit("FILTER_PARTID_PMG", 25),
    ]
}

extension PMCGCr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("E", 0, .flag("on", "off"))
    ]
}

extension PMCGCapr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("CAPTURE", 0)
    ]
}

extension PMCGScr {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("SO", 0),
        .bit("NSRA", 1),
        .bit("NSMSI", 2),
        .bit("MSI_MPAM_NS", 3),
        .bit("NAO", 4),
        .bit("RAO", 31),
    ]
}

extension PMCGIRQCtrl {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("IRQEN", 0, .flag("on", "off"))
    ]
}

extension PMCGIRQStatus {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("IRQ_ABT", 0)
    ]
}

extension MPAMIDR {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("PARTID_MAX", 15, 0),
        .field("PMG_MAX", 23, 16),
    ]
}

extension GMPAM {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("SO_PARTID", 15, 0),
        .field("SO_PMG", 23, 16),
        .bit("Update", 31, isOptional: true),
    ]
}

extension GBPMPAM {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("GBP_PARTID", 15, 0),
        .field("GBP_PMG", 23, 16),
        .bit("Update", 31, isOptional: true),
    ]
}
