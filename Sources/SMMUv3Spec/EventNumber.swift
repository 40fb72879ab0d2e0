// The event queue's event numbers.

/// Event number [7:0] of an event record: any byte can be held, the architecture's have names.
public struct EventNumber: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// An unsupported transaction.
    public static let fUUT = Self(rawValue: 0x01)
    /// The stream table does not reach the StreamID.
    public static let cBadStreamID = Self(rawValue: 0x02)
    /// The fetch of an STE or L1STD aborted.
    public static let fSTEFetch = Self(rawValue: 0x03)
    /// The STE is invalid.
    public static let cBadSTE = Self(rawValue: 0x04)
    /// An ATS translation request that may not come.
    public static let fBadATSTreq = Self(rawValue: 0x05)
    /// STE.S1DSS disallows the substream.
    public static let fStreamDisabled = Self(rawValue: 0x06)
    /// An ATS-translated transaction that may not come.
    public static let fTranslForbidden = Self(rawValue: 0x07)
    /// The CD table does not reach the SubstreamID.
    public static let cBadSubstreamID = Self(rawValue: 0x08)
    /// The fetch of a CD or L1CD aborted.
    public static let fCDFetch = Self(rawValue: 0x09)
    /// The CD is invalid.
    public static let cBadCD = Self(rawValue: 0x0A)
    /// The fetch of a translation table descriptor aborted.
    public static let fWalkEABT = Self(rawValue: 0x0B)
    /// No translation.
    public static let fTranslation = Self(rawValue: 0x10)
    /// An address is too big for its stage.
    public static let fAddrSize = Self(rawValue: 0x11)
    /// The Access flag is clear.
    public static let fAccess = Self(rawValue: 0x12)
    /// The access is not permitted.
    public static let fPermission = Self(rawValue: 0x13)
    /// Two TLB entries match.
    public static let fTLBConflict = Self(rawValue: 0x20)
    /// Two configuration cache entries match.
    public static let fCFGConflict = Self(rawValue: 0x21)
    /// Hint: a device will want a page.
    public static let ePageRequest = Self(rawValue: 0x24)
    /// The fetch of a VMS aborted.
    public static let fVMSFetch = Self(rawValue: 0x25)

    /// The specification's name, such as `F_TRANSLATION`; nil where the value is reserved.
    public var name: String? { Self.names[self] }

    /// Whether this is one of the four faults that a stage's fault configuration can stall or silence.
    public var isTranslationRelated: Bool { (0x10...0x13).contains(rawValue) }

    private static let names: [EventNumber: String] = [
        .fUUT: "F_UUT",
        .cBadStreamID: "C_BAD_STREAMID",
        .fSTEFetch: "F_STE_FETCH",
        .cBadSTE: "C_BAD_STE",
        .fBadATSTreq: "F_BAD_ATS_TREQ",
        .fStreamDisabled: "F_STREAM_DISABLED",
        .fTranslForbidden: "F_TRANSL_FORBIDDEN",
        .cBadSubstreamID: "C_BAD_SUBSTREAMID",
        .fCDFetch: "F_CD_FETCH",
        .cBadCD: "C_BAD_CD",
        .fWalkEABT: "F_WALK_EABT",
        .fTranslation: "F_TRANSLATION",
        .fAddrSize: "F_ADDR_SIZE",
        .fAccess: "F_ACCESS",
        .fPermission: "F_PERMISSION",
        .fTLBConflict: "F_TLB_CONFLICT",
        .fCFGConflict: "F_CFG_CONFLICT",
        .ePageRequest: "E_PAGE_REQUEST",
        .fVMSFetch: "F_VMS_FETCH",
    ]

    /// Every event number that the architecture names, in numerical order.
    public static let all: [EventNumber] = names.keys.sorted { $0.rawValue < $1.rawValue }
}

extension EventNumber: CustomStringConvertible {
    public var description: String { name ?? "event 0x" + String(rawValue, radix: 16) }
}
