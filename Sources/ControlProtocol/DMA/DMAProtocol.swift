// The DMA socket's constants: opcodes, flags, statuses and limits. docs/dma-protocol.md is their specification.
//
// Public, and constants computed: then they are constants in other modules too, where a stored one is a call.

/// What both ends of a DMA socket agree on.
public enum DMAProtocol {
    /// Grows when something that worked would no longer.
    public static var version: UInt64 { 1 }
    /// The bytes `SMMUDDMA` as a little-endian word.
    public static var magic: UInt64 { 0x414d_4444_554d_4d53 }
    /// Every message opens with a header of this size, in bytes.
    public static var headerByteCount: Int { 64 }
    /// How long an endpoint's name may be, in bytes of UTF-8.
    public static var nameByteCountMax: Int { 4096 }
}

/// What a daemon lets one connection have.
///
/// A HELLO is answered with it.
public struct DMALimits: Equatable, Sendable {
    /// How many bytes of data a request or an answer may carry inline.
    public var inlineByteCountMax: UInt32
    /// How many requests a client may send before it reads their answers.
    public var requestsInFlightMax: UInt32
    /// How many buffers may be attached at a time.
    public var buffersMax: UInt32
    /// How many endpoints may be open at a time.
    public var endpointsMax: UInt32

    public init(
        inlineByteCountMax: UInt32 = 1 << 20,
        requestsInFlightMax: UInt32 = 64,
        buffersMax: UInt32 = 64,
        endpointsMax: UInt32 = 1024
    ) {
        self.inlineByteCountMax = inlineByteCountMax
        self.requestsInFlightMax = requestsInFlightMax
        self.buffersMax = buffersMax
        self.endpointsMax = endpointsMax
    }

    /// The longest message, header and all.
    public var messageByteCountMax: Int {
        DMAProtocol.headerByteCount + max(Int(inlineByteCountMax), DMAProtocol.nameByteCountMax)
    }
}

/// What a request asks for.
///
/// The peer writes it, so every value can be represented.
public struct DMAOpcode: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// Opens the connection: the first request, and the only one of its kind.
    public static var hello: Self { Self(rawValue: 1) }
    /// Does nothing, and sends its payload back.
    public static var echo: Self { Self(rawValue: 2) }
    /// Looks an endpoint up, by name or by StreamID, and gives it a handle.
    public static var open: Self { Self(rawValue: 3) }
    /// Gives an endpoint's handle back.
    public static var close: Self { Self(rawValue: 4) }
    /// Reads on behalf of an endpoint.
    public static var read: Self { Self(rawValue: 5) }
    /// Writes on behalf of an endpoint.
    public static var write: Self { Self(rawValue: 6) }
    /// Shares memory by the file descriptor that comes along, and gives it a handle.
    public static var attachBuffer: Self { Self(rawValue: 7) }
    /// Gives a buffer's handle back.
    public static var detachBuffer: Self { Self(rawValue: 8) }
    /// Lists the regions of RAM.
    public static var ramInfo: Self { Self(rawValue: 9) }
    /// Asks for the file descriptor of a region of RAM.
    public static var ramFile: Self { Self(rawValue: 10) }
    /// Serves a ring in an attached buffer; two eventfds come along.
    public static var ringOpen: Self { Self(rawValue: 11) }
    /// Ends a ring: when it is answered nobody touches its memory any more.
    public static var ringClose: Self { Self(rawValue: 12) }
    /// Makes part of a file an area of the client's address space; the file's descriptor comes along.
    public static var processMap: Self { Self(rawValue: 13) }
    /// Takes part of the address space away: when it is answered no device reaches it.
    public static var processUnmap: Self { Self(rawValue: 14) }
    /// Has an endpoint work in the client's address space.
    public static var processBind: Self { Self(rawValue: 15) }
    /// The reverse.
    public static var processUnbind: Self { Self(rawValue: 16) }

    /// Set in an answer's opcode beside the request's.
    public static var answerBit: UInt16 { 0x8000 }

    /// Whether a daemon of this version knows it: from HELLO to PROCESS_UNBIND.
    public var isKnown: Bool { rawValue >= 1 && rawValue <= 16 }
}

/// What devices may do in an area of a client's address space; the bits are those of `mmap`.
public struct DMAProtection: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static var read: Self { Self(rawValue: 1 << 0) }
    public static var write: Self { Self(rawValue: 1 << 1) }
    public static var execute: Self { Self(rawValue: 1 << 2) }

    /// All that this version defines.
    public static let all: Self = [.read, .write, .execute]
}

/// How a request is meant.
public struct DMAFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The transaction has a SubstreamID (SSV = 1); the field `substream` counts.
    public static var substream: Self { Self(rawValue: 1 << 0) }
    /// The transaction is privileged (PnU = 1).
    public static var privileged: Self { Self(rawValue: 1 << 1) }
    /// The transaction is an instruction fetch (InD = 1); reads only.
    public static var instruction: Self { Self(rawValue: 1 << 2) }
    /// The data is in the attached buffer `buffer` from `offset` on, not inline.
    public static var buffer: Self { Self(rawValue: 1 << 3) }
    /// `endpoint` is an SMMU's index and `stream` a StreamID of it; not a handle.
    public static var direct: Self { Self(rawValue: 1 << 4) }
    /// In OPEN by name: `stream` says which of the device's StreamIDs; its first one otherwise.
    public static var stream: Self { Self(rawValue: 1 << 5) }

    /// All that this version defines.
    public static var all: Self { Self(rawValue: 0b11_1111) }

    // Not left to the standard library's generic ones: each request asks several times.

    /// Whether all of `other`'s flags are set.
    @inline(__always)
    public func contains(_ other: Self) -> Bool { rawValue & other.rawValue == other.rawValue }
    /// Whether no flags but `other`'s are set.
    @inline(__always)
    public func isSubset(of other: Self) -> Bool { rawValue & ~other.rawValue == 0 }
}

/// How a request ended.
///
/// Below 16 it was carried out; from 16 on it was not, and the payload is a sentence in UTF-8 that says why.
public struct DMAStatus: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static var ok: Self { Self(rawValue: 0) }
    /// The SMMU terminated the transaction; `event` is the number of the reason.
    public static var fault: Self { Self(rawValue: 1) }
    /// The SMMU aborted the transaction without an event.
    public static var aborted: Self { Self(rawValue: 2) }
    /// The transaction was translated, or bypassed, to an address at which nobody answers.
    public static var busError: Self { Self(rawValue: 3) }

    /// The bytes are no message.
    ///
    /// The daemon closes the connection after this.
    public static var malformed: Self { Self(rawValue: 16) }
    /// The first message is no HELLO, or one of another version.
    ///
    /// The daemon closes the connection after this.
    public static var handshake: Self { Self(rawValue: 17) }
    /// There is no such opcode.
    public static var unsupported: Self { Self(rawValue: 18) }
    /// A field has a value that makes no sense there.
    public static var parameter: Self { Self(rawValue: 19) }
    /// A length or a range is larger than a limit, than the buffer, or than the address space.
    public static var range: Self { Self(rawValue: 20) }
    /// There is no endpoint, SMMU, StreamID, buffer or region of this name or number.
    public static var notFound: Self { Self(rawValue: 21) }
    /// No file descriptor came with the request.
    public static var noDescriptor: Self { Self(rawValue: 22) }
    /// All endpoints or buffers that a connection may have are taken.
    public static var limit: Self { Self(rawValue: 23) }
    /// The daemon could not do it; the machine is not to blame.
    public static var failed: Self { Self(rawValue: 24) }

    /// Whether the request was carried out, with a fault or without.
    public var isOutcome: Bool { rawValue < 16 }
    /// Whether the daemon closes the connection after such an answer.
    public var endsConnection: Bool { self == .malformed || self == .handshake }
}
