// PCIe address translation services as a device and its translation agent speak of them.

public import AddressSpace

/// A translation request (ATS) for the translation of one address.
public struct ATSTranslationRequest: Hashable, Sendable {
    /// The untranslated address.
    public var address: IOVirtualAddress
    /// The PASID; nil is a request without one.
    public var substreamID: SubstreamID?
    /// NW: the device wants no write permission, and the page does not become dirty.
    public var noWrite: Bool
    /// Execute Requested; of no meaning without a PASID.
    public var isExecute: Bool
    /// Privileged Mode Requested; of no meaning without a PASID.
    public var isPrivileged: Bool

    public init(
        address: IOVirtualAddress,
        substreamID: SubstreamID? = nil,
        noWrite: Bool = false,
        isExecute: Bool = false,
        isPrivileged: Bool = false
    ) {
        self.address = address
        self.substreamID = substreamID
        self.noWrite = noWrite
        self.isExecute = isExecute
        self.isPrivileged = isPrivileged
    }
}

/// What a translation completion says of an address: its data entry.
public struct ATSTranslation: Hashable, Sendable {
    /// The translated address of the range's first byte.
    ///
    /// A device cannot tell whether it is a physical address or, with split-stage ATS, an IPA.
    public var output: UInt64
    /// log2 of the range's bytes; the range is aligned to its size on both sides.
    public var log2Bytes: UInt8
    /// R and W.
    public var canRead: Bool
    public var canWrite: Bool
    /// Exe; 0 where no execute permission was asked for.
    public var canExecute: Bool
    /// Priv: for which privilege the permissions are.
    public var isPrivileged: Bool
    /// U: the range is to be accessed by untranslated requests alone.
    public var isUntranslatedOnly = false
    /// N: the range is accessed without snooping.
    public var isNonSnooped = false
    /// Global: the translation is the same for every PASID of the function.
    public var isGlobal = false

    public init(
        output: UInt64,
        log2Bytes: UInt8,
        canRead: Bool,
        canWrite: Bool,
        canExecute: Bool = false,
        isPrivileged: Bool = false
    ) {
        self.output = output
        self.log2Bytes = log2Bytes
        self.canRead = canRead
        self.canWrite = canWrite
        self.canExecute = canExecute
        self.isPrivileged = isPrivileged
    }

    /// Neither R nor W: nothing is permitted, and there is no translated address.
    public static func denied(log2Bytes: UInt8, isPrivileged: Bool = false) -> ATSTranslation {
        ATSTranslation(
            output: 0,
            log2Bytes: log2Bytes,
            canRead: false,
            canWrite: false,
            isPrivileged: isPrivileged
        )
    }

    /// R and W are both 0.
    public var isDenied: Bool { !canRead && !canWrite }
}

/// A translation completion.
public enum ATSTranslationAnswer: Hashable, Sendable {
    case success(ATSTranslation)
    /// Unsupported Request: this function has no ATS here.
    case unsupportedRequest
    /// Completer Abort: the configuration of the stream is wrong.
    case completerAbort
}

/// An invalidate request (ATS).
public struct ATCInvalidation: Hashable, Sendable {
    /// The PASID; nil reaches every entry of the range, whatever PASID it was asked for with.
    public var substreamID: SubstreamID?
    /// Global Invalidate: entries of every PASID; of no meaning without a PASID.
    public var isGlobal: Bool
    /// The first and the last untranslated address.
    public var range: ClosedRange<UInt64>

    public init(substreamID: SubstreamID? = nil, isGlobal: Bool = false, range: ClosedRange<UInt64>) {
        self.substreamID = substreamID
        self.isGlobal = isGlobal
        self.range = range
    }

    /// Everything that a function holds.
    public static let everything = ATCInvalidation(range: 0...UInt64.max)
}

/// A page request message (PRI).
public struct PageRequest: Hashable, Sendable {
    /// The page; its low 12 bits are dropped.
    public var address: IOVirtualAddress
    public var substreamID: SubstreamID?
    /// Page Request Group Index, 9 bits.
    public var group: UInt16
    /// L: the last of its group, which a response is wanted for.
    public var isLast: Bool
    public var wantsRead: Bool
    public var wantsWrite: Bool
    /// Of no meaning without a PASID.
    public var wantsExecute: Bool
    /// Of no meaning without a PASID.
    public var isPrivileged: Bool

    public init(
        address: IOVirtualAddress,
        substreamID: SubstreamID? = nil,
        group: UInt16,
        isLast: Bool = true,
        wantsRead: Bool,
        wantsWrite: Bool,
        wantsExecute: Bool = false,
        isPrivileged: Bool = false
    ) {
        self.address = address
        self.substreamID = substreamID
        self.group = group
        self.isLast = isLast
        self.wantsRead = wantsRead
        self.wantsWrite = wantsWrite
        self.wantsExecute = wantsExecute
        self.isPrivileged = isPrivileged
    }

    /// Last without R and W, with a PASID: the function has stopped using the PASID, and waits for no response.
    public var isStopMarker: Bool { substreamID != nil && isLast && !wantsRead && !wantsWrite }
}

/// A page request group response message (PRI).
public struct PageRequestGroupResponse: Hashable, Sendable {
    /// Response Code, 4 bits.
    public struct Code: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// The pages are there now.
        public static let success = Code(rawValue: 0b0000)
        /// At least one page of the group cannot be had.
        public static let invalidRequest = Code(rawValue: 0b0001)
        /// Page requests of this function are served no more.
        public static let responseFailure = Code(rawValue: 0b1111)
    }

    public var group: UInt16
    public var substreamID: SubstreamID?
    public var code: Code

    public init(group: UInt16, substreamID: SubstreamID?, code: Code) {
        self.group = group
        self.substreamID = substreamID
        self.code = code
    }
}

/// What a translation agent sends to a function of itself.
///
/// Called by commands and page requests, with none of the agent's locks held. It does not wait: not for DMA, and
/// not for software.
public protocol ATSEndpoint: AnyObject, Sendable {
    /// Drops what the request names, then calls `completion`, from any thread.
    ///
    /// DMA that uses a dropped translation need not have ended: it is inside of a bracket of its port's
    /// (``ATSPort/beginTransaction()``), which the agent waits for. A function that asked for a translation before
    /// this must not keep what is answered after it.
    func invalidate(_ request: ATCInvalidation, completion: @escaping @Sendable () -> Void)
    /// A page request group is answered.
    func receive(_ response: PageRequestGroupResponse)
}

/// A port whose translation agent speaks ATS.
///
/// Translated transactions are those with ``TransactionAttributes/isTranslated``.
public protocol ATSPort: DMAPort {
    /// Asks for a translation. Not inside of a bracket.
    func translate(_ request: ATSTranslationRequest) -> ATSTranslationAnswer
    /// Sends a page request; its response comes to the function's ``ATSEndpoint``, maybe before this returns.
    func sendPageRequest(_ request: PageRequest)
    /// From here until ``endTransaction()`` this port is inside of one transaction, for those who wait for DMA in
    /// flight: the function looks a translation up and uses it.
    ///
    /// Without it an invalidation could come between the two. Short, and not nested.
    func beginTransaction()
    func endTransaction()
}
