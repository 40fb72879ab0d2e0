// What field values stand for, in short words.

/// How the values of one field read.
enum Meaning: Sendable {
    /// The number says it all.
    case none
    /// A name for each value; those beyond are reserved.
    case names([String])
    /// Of one bit: a name for 1, and one for 0 if there is something to say.
    case flag(String, String?)
    /// Any other.
    case text(@Sendable (UInt64) -> String?)

    /// The words for `value`.
    func text(for value: UInt64) -> String? {
        switch self {
        case .none: return nil
        case .names(let names): return value < UInt64(names.count) ? names[Int(value)] : "reserved"
        case .flag(let set, let clear): return value == 0 ? clear : set
        case .text(let text): return text(value)
        }
    }
}

extension Meaning {
    /// IDR5.OAS, CD.IPS, STE.S2PS.
    @Sendable
    static func addressSize(_ value: UInt64) -> String? {
        "\(AddressSize.bits(encoding: UInt8(truncatingIfNeeded: value))) bits"
    }

    /// MemAttr[3:0] as stage 2 has it without FWB: STE.MemAttr, GBPA.MemAttr, MSI attributes.
    @Sendable
    static func memoryType(_ value: UInt64) -> String? {
        let inner = ["Device", "NC", "WT", "WB"][Int(value & 0b11)]
        switch value & 0b1111 {
        case 0b0000...0b0011: return device(UInt8(truncatingIfNeeded: value))
        case 0b0100, 0b1000, 0b1100: return "reserved"
        case let all where all >> 2 == all & 0b11: return "Normal \(inner)"
        default:
            let outer = ["Device", "NC", "WT", "WB"][Int((value >> 2) & 0b11)]
            return "Normal inner \(inner), outer \(outer)"
        }
    }

    /// MemAttr[3:0] of a stage-2 descriptor where STE.S2FWB is set.
    @Sendable
    static func memoryTypeForcedWriteBack(_ value: UInt64) -> String? {
        switch value & 0b111 {
        case 0b000...0b011: return device(UInt8(truncatingIfNeeded: value))
        case 0b101: return "Normal NC"
        case 0b110: return "Normal WB"
        case 0b111: return "stage 1's"
        default: return "reserved"
        }
    }

    /// ALLOCCFG: `0b0xxx` incoming, `0b1RWT`.
    @Sendable
    static func allocationHints(_ value: UInt64) -> String? {
        guard value & 0b1000 != 0 else { return "incoming" }
        let read = value & 0b0100 != 0 ? "RA" : "no-RA"
        let write = value & 0b0010 != 0 ? "WA" : "no-WA"
        return "\(read) \(write)" + (value & 0b0001 != 0 ? " transient" : "")
    }

    /// MAIR0 or MAIR1: four attributes, the lowest byte first.
    @Sendable
    static func memoryAttributes(_ value: UInt64) -> String? {
        (0..<4).map { memoryAttribute(UInt8(truncatingIfNeeded: value >> ($0 * 8))) }.joined(separator: ", ")
    }

    /// One byte of MAIR.
    static func memoryAttribute(_ byte: UInt8) -> String {
        let (outer, inner) = (byte >> 4, byte & 0b1111)
        guard outer != 0 else { return byte & 0b11 == 0 ? device(byte >> 2) : "reserved" }
        let (outerName, innerName) = (cacheability(outer), cacheability(inner))
        return outerName == innerName ? outerName : "inner \(innerName), outer \(outerName)"
    }

    /// CMDQ_CONS.ERR and ECMDQ_CONS.ERR_REASON.
    @Sendable
    static func commandError(_ value: UInt64) -> String? {
        CommandError(rawValue: UInt8(truncatingIfNeeded: value)).name ?? "reserved"
    }

    /// GATOS_PAR.FAULTCODE.
    @Sendable
    static func faultCode(_ value: UInt64) -> String? {
        switch value {
        case 0xFF: return "INV_REQ"
        case 0xFE: return "INV_STAGE"
        case 0xFD: return "INTERNAL_ERR"
        default: return EventNumber(rawValue: UInt8(truncatingIfNeeded: value)).name ?? "reserved"
        }
    }

    /// SMMU_PMCG_EVTYPERn.EVENT.
    @Sendable
    static func counterEvent(_ value: UInt64) -> String? {
        let names = [
            "clock cycle", "transaction", "TLB miss", "configuration cache miss", "table walk access",
            "configuration structure access", "ATS translation request", "ATS translated transaction",
        ]
        return value < UInt64(names.count)
            ? names[Int(value)] : value >= 0x80 ? "IMPLEMENTATION DEFINED" : "reserved"
    }

    private static func device(_ type: UInt8) -> String {
        "Device-" + ["nGnRnE", "nGnRE", "nGRE", "GRE"][Int(type & 0b11)]
    }

    private static func cacheability(_ nibble: UInt8) -> String {
        let hints = nibble & 0b11
        guard nibble != 0b0100 else { return "NC" }
        // 0b0000 is reserved here and behaves as 0b0011.
        let allocates = nibble == 0 ? 0b11 : hints
        let name = nibble & 0b0100 != 0 ? "WB" : "WT"
        let transient = nibble & 0b1000 == 0 ? " transient" : ""
        return name + (allocates & 0b10 != 0 ? " RA" : "") + (allocates & 0b01 != 0 ? " WA" : "") + transient
    }
}
