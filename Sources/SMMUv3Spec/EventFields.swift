// The fields of every event record and of page requests, for people.

extension EventRecord: FieldDecodable {
    /// The fields that mean something with this number, SSV, Stall, S2 and CLASS.
    public var fields: [DecodedField] { Self.layout(for: number).filter(means).decode(words) }

    private func means(_ field: FieldLayout) -> Bool {
        switch field.name {
        case "SubstreamID": return ssv || number == .cBadSubstreamID
        case "STAG": return stall
        case "IPA": return s2
        case "TTRnW": return eventClass == .ttd
        default: return true
        }
    }

    /// The fields that a record of that number has; of a reserved number those that every record has.
    public static func layout(for number: EventNumber) -> [FieldLayout] {
        let who = number == .cBadSubstreamID ? [substream, stream] : [ssvField, substream, stream]
        return [numberField] + who + details(number)
    }

    private static func details(_ number: EventNumber) -> [FieldLayout] {
        switch number {
        case .fUUT: return [reasonField] + access + [input]
        case .fSTEFetch, .fCDFetch, .fVMSFetch: return [reasonField, gpcfField, fetch]
        case .fBadATSTreq: return [input]
        case .fTranslForbidden: return [rnwField, input]
        case .fWalkEABT: return [reasonField, gpcfField] + access + [s2Field, classField, input, fetch]
        case .fTranslation, .fAddrSize, .fAccess: return stallable + [input, ipaField]
        case .fPermission:
            let table = FieldLayout.bit("TTRnW", 108, .flag("table read", "table write"))
            return stallable + [table, input, ipaField]
        case .fTLBConflict: return [reasonField] + access + [s2Field, input, ipaField]
        case .fCFGConflict: return [reasonField]
        case .ePageRequest: return pageRequest
        default: return []
        }
    }

    private static let numberField = FieldLayout.field(
        "Event",
        7,
        0,
        .text { EventNumber(rawValue: UInt8(truncatingIfNeeded: $0)).name ?? "reserved" }
    )
    private static let ssvField = FieldLayout.bit("SSV", 11, .flag("SubstreamID valid", "no SubstreamID"))
    private static let substream = FieldLayout.field("SubstreamID", 31, 12)
    private static let stream = FieldLayout.field("StreamID", 63, 32)
    private static let reasonField = FieldLayout.field("Reason", 79, 64, isOptional: true)
    private static let gpcfField = FieldLayout.bit("GPCF", 80, isOptional: true)
    private static let rnwField = FieldLayout.bit("RnW", 99, .flag("read", "write"))
    private static let access: [FieldLayout] = [
        .bit("PnU", 97, .flag("privileged", "unprivileged")), .bit("InD", 98, .flag("instruction", "data")),
        rnwField,
    ]
    private static let s2Field = FieldLayout.bit("S2", 103, .flag("stage 2", "stage 1"))
    private static let classField = FieldLayout.field(
        "CLASS",
        105,
        104,
        .text { EventClass(rawValue: UInt8(truncatingIfNeeded: $0)).name ?? "reserved" }
    )
    private static let stallable: [FieldLayout] =
        [.field("STAG", 79, 64), .bit("Stall", 95, .flag("stalled", "terminated"))]
        + access + [s2Field, classField]
    private static let input = FieldLayout.address("InputAddr", 191, 128)
    private static let ipaField = FieldLayout.address("IPA", 247, 204)
    private static let fetch = FieldLayout.address("FetchAddr", 247, 195)
    private static let pageRequest: [FieldLayout] = [
        .bit("uX", 97), .bit("uW", 98), .bit("uR", 99), .bit("pX", 101), .bit("pW", 102), .bit("pR", 103),
        .field("Span", 115, 108, .text { "\($0) pages" }), .address("InputAddr", 191, 140),
    ]
}

extension PRIEntry: FieldDecodable {
    /// Every field, by bit number.
    public static let layout: [FieldLayout] = [
        .field("StreamID", 31, 0), .field("SubstreamID", 51, 32), .bit("Priv", 58, .flag("privileged", nil)),
        .bit("X", 59, .flag("execute", nil)), .bit("R", 60, .flag("read", nil)),
        .bit("W", 61, .flag("write", nil)),
        .bit("Last", 62, .flag("last of its group", nil)),
        .bit("SSV", 63, .flag("SubstreamID valid", "no SubstreamID")), .field("PRGIndex", 72, 64),
        .address("PageAddr", 127, 76),
    ]

    /// The fields that mean something with this SSV.
    public var fields: [DecodedField] {
        Self.layout.filter { ssv || $0.name != "SubstreamID" }.decode(words)
    }
}
