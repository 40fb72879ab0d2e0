// The fields of the stream table's and the CD table's structures, for people.

extension STE: FieldDecodable {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("V", 0, .flag("valid", "invalid")),
        .field("Config", 3, 1, .text { StreamConfig(rawValue: UInt8(truncatingIfNeeded: $0)).description }),
        .field(
            "S1Fmt",
            5,
            4,
            .names(["linear", "2-level, 4 KiB tables", "2-level, 64 KiB tables", "reserved, as linear"])
        ),
        .address("S1ContextPtr", 55, 6),
        .field("S1CDMax", 63, 59, .text { $0 == 0 ? "no substreams" : "\(UInt64(1) << $0) CDs" }),
        .field(
            "S1DSS",
            65,
            64,
            .names(["terminate", "bypass stage 1", "use CD 0", "reserved, as terminate"])
        ),
        .field("S1CIR", 67, 66, .names(["NC", "WB RA", "WT RA", "WB no-RA"])),
        .field("S1COR", 69, 68, .names(["NC", "WB RA", "WT RA", "WB no-RA"])),
        .field("S1CSH", 71, 70, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .bit("S2HWU59", 72, isOptional: true),
        .bit("S2HWU60", 73, isOptional: true),
        .bit("S2HWU61", 74, isOptional: true),
        .bit("S2HWU62", 75, isOptional: true),
        .bit("DRE", 76, isOptional: true),
        .field("CONT", 80, 77, isOptional: true),
        .bit("DCP", 81, isOptional: true),
        .bit("PPAR", 82, isOptional: true),
        .bit("MEV", 83, isOptional: true),
        .field("SW_RESERVED", 87, 84, isOptional: true),
        .bit("S1PIE", 88, isOptional: true),
        .bit("S2FWB", 89, .flag("forced write-back MemAttr", nil), isOptional: true),
        .bit("S1MPAM", 90, isOptional: true),
        .bit("S1STALLD", 91, .flag("stage 1 never stalls", "stage 1 may stall")),
        .field("EATS", 93, 92, .names(["ATS off", "full ATS", "split-stage ATS", "full ATS with DPT"])),
        .field("STRW", 95, 94, .names(["EL1", "reserved", "EL2", "reserved"])),
        .field("MemAttr", 99, 96, .text(Meaning.memoryType)),
        .bit("MTCFG", 100, .flag("MemAttr", "incoming")),
        .field("ALLOCCFG", 104, 101, .text(Meaning.allocationHints)),
        .field("SHCFG", 109, 108, .names(["NSH", "incoming", "OSH", "ISH"])),
        .field(
            "NSCFG",
            111,
            110,
            .names(["incoming", "reserved", "Secure", "Non-secure"]),
            isOptional: true
        ),
        .field("PRIVCFG", 113, 112, .names(["incoming", "incoming", "unprivileged", "privileged"])),
        .field("INSTCFG", 115, 114, .names(["incoming", "incoming", "data", "instruction"])),
        .field("IMPDEF", 127, 116, isOptional: true),
        .field("S2VMID", 143, 128),
        .field("IMPDEF", 159, 144, isOptional: true),
        .field("S2T0SZ", 165, 160, .text { "\(64 - $0)-bit IPA" }),
        .field("S2SL0", 167, 166),
        .field("S2IR0", 169, 168, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("S2OR0", 171, 170, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("S2SH0", 173, 172, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .field("S2TG", 175, 174, .names(["4 KiB", "64 KiB", "16 KiB", "reserved"])),
        .field("S2PS", 178, 176, .text(Meaning.addressSize)),
        .bit("S2AA64", 179, .flag("VMSAv8-64", "LPAE")),
        .bit("S2ENDI", 180, .flag("big-endian", "little-endian")),
        .bit("S2AFFD", 181, .flag("a clear Access flag is ignored", "a clear Access flag faults")),
        .bit("S2PTW", 182, .flag("walks to Device fault", "walks to Device allowed")),
        .bit("S2HD", 183, .flag("on", "off")),
        .bit("S2HA", 184, .flag("on", "off")),
        .bit("S2S", 185, .flag("stall", "terminate")),
        .bit("S2R", 186, .flag("recorded", "not recorded")),
        .bit("S2HAFT", 187, isOptional: true),
        .bit("S2PIE", 188, isOptional: true),
        .bit("S2POE", 189, isOptional: true),
        .field("DPT_VMATCH", 191, 190, isOptional: true),
        .bit("S2NSW", 192, isOptional: true),
        .bit("S2NSA", 193, isOptional: true),
        .bit("S2SL0_2", 194, isOptional: true),
        .bit("S2DS", 195, .flag("52-bit addresses", nil), isOptional: true),
        .address("S2TTB", 243, 196),
        .field("S2SKL", 254, 253, isOptional: true),
        .field("IMPDEF", 271, 256, isOptional: true),
        .field("PARTID", 287, 272, isOptional: true),
        .field("S_S2T0SZ", 293, 288, isOptional: true),
        .field("S_S2SL0", 295, 294, isOptional: true),
        .field("S_S2TG", 303, 302, isOptional: true),
        .field("MECID", 319, 304, isOptional: true),
        .field("PMG", 327, 320, isOptional: true),
        .bit("MPAM_NS", 328, isOptional: true),
        .bit("AssuredOnly", 329, isOptional: true),
        .bit("TL0", 330, isOptional: true),
        .bit("TL1", 331, isOptional: true),
        .address("VMSPtr", 375, 332, isOptional: true),
        .bit("S2SW", 384, isOptional: true),
        .bit("S2SA", 385, isOptional: true),
        .bit("S_S2SL0_2", 386, isOptional: true),
        .address("S_S2TTB", 439, 388, isOptional: true),
        .field("S_S2SKL", 446, 445, isOptional: true),
        .field("S2POI", 511, 448, isOptional: true),
    ]

    /// The fields that the hardware looks at with this V and Config; those of extensions only where not zero.
    public var fields: [DecodedField] { Self.layout.filter(isLookedAt).decode(words) }

    private func isLookedAt(_ field: FieldLayout) -> Bool {
        guard v, !config.abortsSilently else { return field.high <= 3 }
        switch field.name {
        case "V", "Config": return true
        case "S1Fmt", "S1DSS": return config.translatesStage1 && s1CDMax != 0
        case "MemAttr": return mtCfg
        case "EATS": return config != .bypass
        case "STRW": return config == .stage1
        case "S2VMID": return config != .bypass
        case "S2PTW": return config == .nested
        case "VMSPtr": return config == .nested && s1MPAM
        default: break
        }
        if field.name.hasPrefix("S1") { return config.translatesStage1 }
        if field.name.hasPrefix("S2") || field.name.hasPrefix("S_S2") { return config.translatesStage2 }
        return true
    }
}

extension CD: FieldDecodable {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("T0SZ", 5, 0, .text { "\(64 - $0)-bit addresses" }),
        .field("TG0", 7, 6, .names(["4 KiB", "64 KiB", "16 KiB", "reserved"])),
        .field("IR0", 9, 8, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("OR0", 11, 10, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("SH0", 13, 12, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .bit("EPD0", 14, .flag("no walks", "walks")),
        .bit("ENDI", 15, .flag("big-endian", "little-endian")),
        .field("T1SZ", 21, 16, .text { "\(64 - $0)-bit addresses" }),
        .field("TG1", 23, 22, .names(["reserved", "16 KiB", "4 KiB", "64 KiB"])),
        .field("IR1", 25, 24, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("OR1", 27, 26, .names(["NC", "WB RA WA", "WT RA", "WB RA no-WA"])),
        .field("SH1", 29, 28, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
        .bit("EPD1", 30, .flag("no walks", "walks")),
        .bit("V", 31, .flag("valid", "invalid")),
        .field("IPS", 34, 32, .text(Meaning.addressSize)),
        .bit("AFFD", 35, .flag("a clear Access flag is ignored", "a clear Access flag faults")),
        .bit("WXN", 36, .flag("writable is execute-never", nil), isOptional: true),
        .bit("UWXN", 37, isOptional: true),
        .bit("TBI0", 38, .flag("top byte ignored", "top byte checked")),
        .bit("TBI1", 39, .flag("top byte ignored", "top byte checked")),
        .bit("PAN", 40, isOptional: true),
        .bit("AA64", 41, .flag("VMSAv8-64", "LPAE")),
        .bit("HD", 42, .flag("on", "off")),
        .bit("HA", 43, .flag("on", "off")),
        .bit("S", 44, .flag("stall", "terminate")),
        .bit("R", 45, .flag("recorded", "not recorded")),
        .bit("A", 46, .flag("abort", "RAZ/WI")),
        .bit("ASET", 47, .flag("non-shared set", "shared set")),
        .field("ASID", 63, 48),
        .bit("NSCFG0", 64, isOptional: true),
        .bit("HAD0", 65, isOptional: true),
        .bit("E0PD0", 66, isOptional: true),
        .bit("HAFT", 67, isOptional: true),
        .address("TTB0", 115, 68),
        .bit("PnCH", 122, isOptional: true),
        .bit("EPAN", 123, isOptional: true),
        .bit("HWU059", 124, isOptional: true),
        .bit("HWU060", 125, isOptional: true),
        .bit("HWU061", 126, isOptional: true),
        .bit("HWU062", 127, isOptional: true),
        .bit("NSCFG1", 128, isOptional: true),
        .bit("HAD1", 129, isOptional: true),
        .bit("E0PD1", 130, isOptional: true),
        .bit("AIE", 131, isOptional: true),
        .address("TTB1", 179, 132),
        .bit("DS", 186, .flag("52-bit addresses", nil), isOptional: true),
        .bit("PIE", 187, isOptional: true),
        .bit("HWU159", 188, isOptional: true),
        .bit("HWU160", 189, isOptional: true),
        .bit("HWU161", 190, isOptional: true),
        .bit("HWU162", 191, isOptional: true),
        .field("MAIR0", 223, 192, .text(Meaning.memoryAttributes)),
        .field("MAIR1", 255, 224, .text(Meaning.memoryAttributes)),
        .field("AMAIR0", 287, 256, isOptional: true),
        .field("AMAIR1", 319, 288, isOptional: true),
        .field("IMPDEF", 351, 320, isOptional: true),
        .field("PARTID", 367, 352, isOptional: true),
        .field("PMG", 375, 368, isOptional: true),
        .field("PIIU", 431, 384, isOptional: true),
        .field("PIIP", 495, 448, isOptional: true),
    ]

    /// The fields that the hardware looks at with this V, EPD0, EPD1; those of extensions only where not
    /// zero.
    public var fields: [DecodedField] { Self.layout.filter(isLookedAt).decode(words) }

    private func isLookedAt(_ field: FieldLayout) -> Bool {
        guard v else { return field.name == "V" }
        switch field.name {
        case "T0SZ", "TG0", "IR0", "OR0", "SH0", "TTB0": return !epd0
        case "T1SZ", "TG1", "IR1", "OR1", "SH1", "TTB1": return !epd1
        default: return true
        }
    }
}

extension L1STD: FieldDecodable {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field(
            "Span",
            4,
            0,
            .text {
                $0 == 0 ? "invalid" : $0 <= 11 ? "\(UInt64(1) << ($0 - 1)) STEs" : "reserved, as invalid"
            }
        ),
        .address("L2Ptr", 55, 6),
    ]

    public var fields: [DecodedField] { Self.layout.filter { span != 0 || $0.name == "Span" }.decode(word) }
}

extension L1CD: FieldDecodable {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .bit("V", 0, .flag("valid", "invalid")),
        .address("L2Ptr", 55, 12),
    ]

    public var fields: [DecodedField] { Self.layout.filter { v || $0.name == "V" }.decode(word) }
}
