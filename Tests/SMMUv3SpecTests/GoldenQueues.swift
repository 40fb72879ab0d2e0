// Where the fields of commands, events and page requests are: word, mask and name as the specification's
// tables and the drivers' headers give them.

import SMMUv3Spec

/// Every field of every command.
let goldenCommand: [GoldenField<Command>] = [
    .code("Opcode", 0, 0x0000_0000_0000_00FF, \.opcode),
    .bit("SSec", 0, 0x0000_0000_0000_0400, \.ssec),
    .bit("SSV", 0, 0x0000_0000_0000_0800, \.ssv),
    .substream("SubstreamID", 0, 0x0000_0000_FFFF_F000, \.substreamID),
    .stream("StreamID", 0, 0xFFFF_FFFF_0000_0000, \.streamID),
    .number("Size", 1, 0x0000_0000_0000_001F, \.prefetchSize),
    .number("Stride", 1, 0x0000_0000_0000_03E0, \.prefetchStride),
    .address("Addr", 1, 0xFFFF_FFFF_FFFF_F000, \.address),
    .bit("Leaf", 1, 0x0000_0000_0000_0001, \.leaf),
    .number("Range", 1, 0x0000_0000_0000_001F, \.range),
    .number("VMID", 0, 0x0000_FFFF_0000_0000, \.vmid),
    .number("ASID", 0, 0xFFFF_0000_0000_0000, \.asid),
    .number("NUM", 0, 0x0000_0000_0001_F000, \.num),
    .number("SCALE", 0, 0x0000_0000_01F0_0000, \.scale),
    .bit("TTL128", 1, 0x0000_0000_0000_0080, \.ttl128),
    .number("TTL", 1, 0x0000_0000_0000_0300, \.ttl),
    .number("TG", 1, 0x0000_0000_0000_0C00, \.tg),
    .address("IPA", 1, 0x00FF_FFFF_FFFF_F000, \.ipa),
    .bit("Global", 0, 0x0000_0000_0000_0200, \.global),
    .number("Size", 1, 0x0000_0000_0000_003F, \.atcSize),
    .number("PRGIndex", 1, 0x0000_0000_0000_01FF, \.prgIndex),
    .number("Resp", 1, 0x0000_0000_0000_3000, \.priResp),
    .bit("Ac", 0, 0x0000_0000_0000_1000, \.ac),
    .bit("Ab", 0, 0x0000_0000_0000_2000, \.ab),
    .number("STAG", 1, 0x0000_0000_0000_FFFF, \.stag),
    .number("CS", 0, 0x0000_0000_0000_3000, \.cs),
    .number("MSH", 0, 0x0000_0000_00C0_0000, \.msh),
    .number("MSIAttr", 0, 0x0000_0000_0F00_0000, \.msiAttr),
    .number("MSIData", 0, 0xFFFF_FFFF_0000_0000, \.msiData),
    .address("MSIAddr", 1, 0x00FF_FFFF_FFFF_FFFC, \.msiAddress),
    .bit("MSI_NS", 1, 0x8000_0000_0000_0000, \.msiNS),
    .number("SCALE", 0, 0x0000_0000_03F0_0000, \.scaleDS),
]

/// Which field each command has: opcode, name, and word, mask and name of each field.
let goldenCommandLayouts: [(UInt8, String, [(Int, UInt64, String)])] = [
    (
        0x01, "CMD_PREFETCH_CONFIG",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0x0000_0000_0000_0800, "SSV"),
            (0, 0x0000_0000_FFFF_F000, "SubstreamID"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
        ]
    ),
    (
        0x02, "CMD_PREFETCH_ADDR",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0x0000_0000_0000_0800, "SSV"),
            (0, 0x0000_0000_FFFF_F000, "SubstreamID"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_001F, "Size"),
            (1, 0x0000_0000_0000_03E0, "Stride"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x03, "CMD_CFGI_STE",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
        ]
    ),
    (
        0x04, "CMD_CFGI_STE_RANGE",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_001F, "Range"),
        ]
    ),
    (
        0x05, "CMD_CFGI_CD",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0x0000_0000_FFFF_F000, "SubstreamID"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
        ]
    ),
    (
        0x06, "CMD_CFGI_CD_ALL",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
        ]
    ),
    (
        0x07, "CMD_CFGI_VMS_PIDM",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
        ]
    ),
    (
        0x10, "CMD_TLBI_NH_ALL",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
        ]
    ),
    (
        0x11, "CMD_TLBI_NH_ASID",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
        ]
    ),
    (
        0x12, "CMD_TLBI_NH_VA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x13, "CMD_TLBI_NH_VAA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x18, "CMD_TLBI_EL3_ALL",
        [
            (0, 0xFF, "Opcode")
        ]
    ),
    (
        0x1A, "CMD_TLBI_EL3_VA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x20, "CMD_TLBI_EL2_ALL",
        [
            (0, 0xFF, "Opcode")
        ]
    ),
    (
        0x21, "CMD_TLBI_EL2_ASID",
        [
            (0, 0xFF, "Opcode"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
        ]
    ),
    (
        0x22, "CMD_TLBI_EL2_VA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x23, "CMD_TLBI_EL2_VAA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x28, "CMD_TLBI_S12_VMALL",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
        ]
    ),
    (
        0x2A, "CMD_TLBI_S2_IPA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0x00FF_FFFF_FFFF_F000, "IPA"),
        ]
    ),
    (
        0x30, "CMD_TLBI_NSNH_ALL",
        [
            (0, 0xFF, "Opcode")
        ]
    ),
    (
        0x40, "CMD_ATC_INV",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0200, "Global"),
            (0, 0x0000_0000_0000_0800, "SSV"),
            (0, 0x0000_0000_FFFF_F000, "SubstreamID"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_003F, "Size"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x41, "CMD_PRI_RESP",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0800, "SSV"),
            (0, 0x0000_0000_FFFF_F000, "SubstreamID"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_01FF, "PRGIndex"),
            (1, 0x0000_0000_0000_3000, "Resp"),
        ]
    ),
    (
        0x44, "CMD_RESUME",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0x0000_0000_0000_1000, "Ac"),
            (0, 0x0000_0000_0000_2000, "Ab"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
            (1, 0x0000_0000_0000_FFFF, "STAG"),
        ]
    ),
    (
        0x45, "CMD_STALL_TERM",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_0400, "SSec"),
            (0, 0xFFFF_FFFF_0000_0000, "StreamID"),
        ]
    ),
    (
        0x46, "CMD_SYNC",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0000_3000, "CS"),
            (0, 0x0000_0000_00C0_0000, "MSH"),
            (0, 0x0000_0000_0F00_0000, "MSIAttr"),
            (0, 0xFFFF_FFFF_0000_0000, "MSIData"),
            (1, 0x00FF_FFFF_FFFF_FFFC, "MSIAddr"),
            (1, 0x8000_0000_0000_0000, "MSI_NS"),
        ]
    ),
    (
        0x50, "CMD_TLBI_S_EL2_ALL",
        [
            (0, 0xFF, "Opcode")
        ]
    ),
    (
        0x51, "CMD_TLBI_S_EL2_ASID",
        [
            (0, 0xFF, "Opcode"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
        ]
    ),
    (
        0x52, "CMD_TLBI_S_EL2_VA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0xFFFF_0000_0000_0000, "ASID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x53, "CMD_TLBI_S_EL2_VAA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0xFFFF_FFFF_FFFF_F000, "Addr"),
        ]
    ),
    (
        0x58, "CMD_TLBI_S_S12_VMALL",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
        ]
    ),
    (
        0x5A, "CMD_TLBI_S_S2_IPA",
        [
            (0, 0xFF, "Opcode"),
            (0, 0x0000_0000_0001_F000, "NUM"),
            (0, 0x0000_0000_03F0_0000, "SCALE"),
            (0, 0x0000_FFFF_0000_0000, "VMID"),
            (1, 0x0000_0000_0000_0001, "Leaf"),
            (1, 0x0000_0000_0000_0080, "TTL128"),
            (1, 0x0000_0000_0000_0300, "TTL"),
            (1, 0x0000_0000_0000_0C00, "TG"),
            (1, 0x00FF_FFFF_FFFF_F000, "IPA"),
        ]
    ),
    (
        0x60, "CMD_TLBI_SNH_ALL",
        [
            (0, 0xFF, "Opcode")
        ]
    ),
]

/// Every field of every event record.
let goldenEvent: [GoldenField<EventRecord>] = [
    .code("Event", 0, 0x0000_0000_0000_00FF, \.number),
    .bit("SSV", 0, 0x0000_0000_0000_0800, \.ssv),
    .substream("SubstreamID", 0, 0x0000_0000_FFFF_F000, \.substreamID),
    .stream("StreamID", 0, 0xFFFF_FFFF_0000_0000, \.streamID),
    .number("STAG", 1, 0x0000_0000_0000_FFFF, \.stag),
    .number("Reason", 1, 0x0000_0000_0000_FFFF, \.reason),
    .bit("GPCF", 1, 0x0000_0000_0001_0000, \.gpcf),
    .bit("Stall", 1, 0x0000_0000_8000_0000, \.stall),
    .bit("PnU", 1, 0x0000_0002_0000_0000, \.pnu),
    .bit("InD", 1, 0x0000_0004_0000_0000, \.ind),
    .bit("RnW", 1, 0x0000_0008_0000_0000, \.rnw),
    .bit("S2", 1, 0x0000_0080_0000_0000, \.s2),
    .code("CLASS", 1, 0x0000_0300_0000_0000, \.eventClass),
    .bit("TTRnW", 1, 0x0000_1000_0000_0000, \.ttRnW),
    .number("InputAddr", 2, 0xFFFF_FFFF_FFFF_FFFF, \.inputAddress),
    .address("IPA", 3, 0x00FF_FFFF_FFFF_F000, \.ipa),
    .address("FetchAddr", 3, 0x00FF_FFFF_FFFF_FFF8, \.fetchAddress),
    .number("Span", 1, 0x000F_F000_0000_0000, \.span),
    .bit("pR", 1, 0x0000_0080_0000_0000, \.pR),
    .bit("pW", 1, 0x0000_0040_0000_0000, \.pW),
    .bit("pX", 1, 0x0000_0020_0000_0000, \.pX),
    .bit("uR", 1, 0x0000_0008_0000_0000, \.uR),
    .bit("uW", 1, 0x0000_0004_0000_0000, \.uW),
    .bit("uX", 1, 0x0000_0002_0000_0000, \.uX),
    .address("InputAddr", 2, 0xFFFF_FFFF_FFFF_F000, \.pageAddress),
]

/// PRI queue entry.
let goldenPRIEntry: [GoldenField<PRIEntry>] = [
    .stream("StreamID", 0, 0x0000_0000_FFFF_FFFF, \.streamID),
    .substream("SubstreamID", 0, 0x000F_FFFF_0000_0000, \.substreamID),
    .bit("Priv", 0, 0x0400_0000_0000_0000, \.priv),
    .bit("X", 0, 0x0800_0000_0000_0000, \.x),
    .bit("R", 0, 0x1000_0000_0000_0000, \.r),
    .bit("W", 0, 0x2000_0000_0000_0000, \.w),
    .bit("Last", 0, 0x4000_0000_0000_0000, \.last),
    .bit("SSV", 0, 0x8000_0000_0000_0000, \.ssv),
    .number("PRGIndex", 1, 0x0000_0000_0000_01FF, \.prgIndex),
    .address("PageAddr", 1, 0xFFFF_FFFF_FFFF_F000, \.pageAddress),
]
