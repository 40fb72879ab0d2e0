// The fields of every command, for people.

extension Command: FieldDecodable {
    public var fields: [DecodedField] { Self.layout(for: opcode).decode(words) }

    /// The fields that a command of that opcode has; of a reserved opcode only the opcode itself.
    public static func layout(for opcode: Opcode) -> [FieldLayout] {
        [Self.opcodeField] + (configuration(opcode) ?? invalidation(opcode) ?? other(opcode) ?? [])
    }

    private static func configuration(_ opcode: Opcode) -> [FieldLayout]? {
        switch opcode {
        case .prefetchConfig: return [ssec, ssv, substream, stream]
        case .prefetchAddr:
            return [ssec, ssv, substream, stream, .field("Size", 68, 64), .field("Stride", 73, 69), address]
        case .cfgiSTE: return [ssec, stream, leafField]
        case .cfgiSTERange: return [ssec, stream, .field("Range", 68, 64, .text(Self.streams))]
        case .cfgiCD: return [ssec, substream, stream, leafField]
        case .cfgiCDAll: return [ssec, stream]
        case .cfgiVMSPIDM: return [ssec, vmidField]
        default: return nil
        }
    }

    private static func invalidation(_ opcode: Opcode) -> [FieldLayout]? {
        switch opcode {
        case .tlbiNHAll, .tlbiS12VMAll, .tlbiSS12VMAll: return [vmidField]
        case .tlbiNHASID: return [vmidField, asidField]
        case .tlbiEL2ASID, .tlbiSEL2ASID: return [asidField]
        case .tlbiNHVA: return rangeLow + [vmidField, asidField] + rangeHigh + [address]
        case .tlbiNHVAA: return rangeLow + [vmidField] + rangeHigh + [address]
        case .tlbiEL2VA, .tlbiSEL2VA: return rangeLow + [asidField] + rangeHigh + [address]
        case .tlbiEL2VAA, .tlbiSEL2VAA, .tlbiEL3VA: return rangeLow + rangeHigh + [address]
        case .tlbiS2IPA, .tlbiSS2IPA: return rangeLow + [vmidField] + rangeHigh + [.address("IPA", 119, 76)]
        default: return nil
        }
    }

    private static func other(_ opcode: Opcode) -> [FieldLayout]? {
        switch opcode {
        case .atcInv:
            return [
                .bit("Global", 9, .flag("every PASID", nil)), ssv, substream, stream,
                .field("Size", 69, 64, .text(Self.span)), address,
            ]
        case .priResp:
            return [
                ssv, substream, stream, .field("PRGIndex", 72, 64),
                .field("Resp", 77, 76, .names(["failure", "invalid request", "success", "reserved"])),
            ]
        case .resume:
            return [
                ssec, .bit("Ac", 12, .flag("retry", "terminate")),
                .bit("Ab", 13, .flag("abort if terminated", "RAZ/WI if terminated")), stream,
                .field("STAG", 79, 64),
            ]
        case .stallTerm: return [ssec, stream]
        case .sync:
            return [
                .field("CS", 13, 12, .text(Self.signal)),
                .field("MSH", 23, 22, .names(["NSH", "reserved, as NSH", "OSH", "ISH"])),
                .field("MSIAttr", 27, 24, .text(Meaning.memoryType)), .field("MSIData", 63, 32),
                .address("MSIAddr", 119, 66), .bit("MSI_NS", 127, isOptional: true),
            ]
        default: return nil
        }
    }

    private static let opcodeField = FieldLayout.field(
        "Opcode",
        7,
        0,
        .text { Opcode(rawValue: UInt8(truncatingIfNeeded: $0)).name ?? "reserved" }
    )
    private static let ssec = FieldLayout.bit("SSec", 10, .flag("Secure stream", nil), isOptional: true)
    private static let ssv = FieldLayout.bit("SSV", 11, .flag("SubstreamID valid", "no SubstreamID"))
    private static let substream = FieldLayout.field("SubstreamID", 31, 12)
    private static let stream = FieldLayout.field("StreamID", 63, 32)
    private static let vmidField = FieldLayout.field("VMID", 47, 32)
    private static let asidField = FieldLayout.field("ASID", 63, 48)
    private static let leafField = FieldLayout.bit("Leaf", 64, .flag("last level only", "all levels"))
    private static let address = FieldLayout.address("Addr", 127, 76)
    private static let rangeLow: [FieldLayout] = [
        .field("NUM", 16, 12, .text { "\($0 + 1)" }), .field("SCALE", 25, 20, .text { "times 2^\($0)" }),
    ]
    private static let rangeHigh: [FieldLayout] = [
        leafField, .bit("TTL128", 71, isOptional: true),
        .field("TTL", 73, 72, .names(["any level", "level 1", "level 2", "level 3"])),
        .field("TG", 75, 74, .names(["no range", "4 KiB", "16 KiB", "64 KiB"])),
    ]

    @Sendable
    private static func streams(_ range: UInt64) -> String? {
        range == 31 ? "everything" : "2^\(range + 1) streams"
    }

    @Sendable
    private static func span(_ size: UInt64) -> String? {
        size < 52 ? "2^\(size) pages" : size == 52 ? "everything" : "reserved"
    }

    @Sendable
    private static func signal(_ value: UInt64) -> String? {
        CompletionSignal(rawValue: UInt8(truncatingIfNeeded: value)).name ?? "reserved"
    }
}
