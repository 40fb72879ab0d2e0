// The DMA socket's constants: opcodes, flags, statuses and limits. docs/dma-protocol.md is their specification.

/// What both ends of a DMA socket agree on.
package enum DMAProtocol {
    /// Grows when something that worked would no longer.
    package static let version: UInt64 = 1
    /// The bytes `SMMUDDMA` as a little-endian word.
    package static let magic: UInt64 = 0x414d_4444_554d_4d53
    /// Every message opens with a header of this size, in bytes.
    package static let headerByteCount = 64
    /// How long an endpoint's name may be, in bytes of UTF-8.
    package static let nameByteCountMax = 4096
}

/// What a daemon lets one connection have.
///
/// A HELLO is answered with it.
package struct DMALimits: Equatable, Sendable {
    /// How many bytes of data a request or an answer may carry inline.
    package var inlineByteCountMax: UInt32
    /// How many requests a client may send before it reads their answers.
    package var requestsInFlightMax: UInt32
    /// How many buffers may be attached at a time.
    package var buffersMax: UInt32
    /// How many endpoints may be open at a time.
    package var endpointsMax: UInt32

    package init(
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
    package var messageByteCountMax: Int {
        DMAProtocol.headerByteCount + max(Int(inlineByteCountMax), DMAProtocol.nameByteCountMax)
    }
}

/// What a request asks for.
///
/// The peer writes it, so every value can be represented.
package struct DMAOpcode: RawRepresentable, Hashable, Sendable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// Opens the connection: the first request, and the only one of its kind.
    package static let hello = Self(rawValue: 1)
    /// Does nothing, and sends its payload back.
    package static let echo = Self(rawValue: 2)
    /// Looks an endpoint up, by name or by StreamID, and gives it a handle.
    package static let open = Self(rawValue: 3)
    /// Gives an endpoint's handle back.
    package static let close = Self(rawValue: 4)
    /// Reads on behalf of an endpoint.
    package static let read = Self(rawValue: 5)
    /// Writes on behalf of an endpoint.
    package static let write = Self(rawValue: 6)
    /// Shares memory by the file descriptor that comes along, and gives it a handle.
    package static let attachBuffer = Self(rawValue: 7)
    /// Gives a buffer's handle back.
    package static let detachBuffer = Self(rawValue: 8)
    /// Lists the regions of RAM.
    package static let ramInfo = Self(rawValue: 9)
    /// Asks for the file descriptor of a region of RAM.
    package static let ramFile = Self(rawValue: 10)
    /// Serves a ring in an attached buffer; two eventfds come along.
    package static let ringOpen = Self(rawValue: 11)
    /// Ends a ring: when it is answered nobody touches its memory any more.
    package static let ringClose = Self(rawValue: 12)
    /// Makes part of a file an area of the client's address space; the file's descriptor comes along.
    package static let processMap = Self(rawValue: 13)
    /// Takes part of the address space away: when it is answered no device reaches it.
    package static let processUnmap = Self(rawValue: 14)
    /// Has an endpoint work in the client's address space.
    package static let processBind = Self(rawValue: 15)
    /// The reverse.
    package static let processUnbind = Self(rawValue: 16)

    /// Set in an answer's opcode beside the request's.
    package static let answerBit: UInt16 = 0x8000

    /// Whether a daemon of this version knows it.
    package var isKnown: Bool { (Self.hello.rawValue...Self.processUnbind.rawValue).contains(rawValue) }
}

/// What devices may do in an area of a client's address space; the bits are those of `mmap`.
package struct DMAProtection: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let read = Self(rawValue: 1 << 0)
    package static let write = Self(rawValue: 1 << 1)
    package static let execute = Self(rawValue: 1 << 2)

    /// All that this version defines.
    package static let all: Self = [.read, .write, .execute]
}

/// How a request is meant.
package struct DMAFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The transaction has a SubstreamID (SSV = 1); the field `substream` counts.
    package static let substream = Self(rawValue: 1 << 0)
    /// The transaction is privileged (PnU = 1).
    package static let privileged = Self(rawValue: 1 << 1)
    /// The transaction is an instruction fetch (InD = 1); reads only.
    package static let instruction = Self(rawValue: 1 << 2)
    /// The data is in the attached buffer `buffer` from `offset` on, not inline.
    package static let buffer = Self(rawValue: 1 << 3)
    /// `endpoint` is an SMMU's index and `stream` a StreamID of it; not a handle.
    package static let direct = Self(rawValue: 1 << 4)
    /// In OPEN by name: `stream` says which of the device's StreamIDs; its first one otherwise.
    package static let stream = Self(rawValue: 1 << 5)

    /// All that this version defines.
    package static let all: Self = [.substream, .privileged, .instruction, .buffer, .direct, .stream]
}

/// How a request ended.
///
/// Below 16 it was carried out; from 16 on it was not, and the payload is a sentence in UTF-8 that says why.
package struct DMAStatus: RawRepresentable, Hashable, Sendable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package static let ok = Self(rawValue: 0)
    /// The SMMU terminated the transaction; `event` is the number of the reason.
    package static let fault = Self(rawValue: 1)
    /// The SMMU aborted the transaction without an event.
    package static let aborted = Self(rawValue: 2)
    /// The transaction was translated, or bypassed, to an address at which nobody answers.
    package static let busError = Self(rawValue: 3)

    /// The bytes are no message.
    ///
    /// The daemon closes the connection after this.
    package static let malformed = Self(rawValue: 16)
    /// The first message is no HELLO, or one of another version.
    ///
    /// The daemon closes the connection after this.
    package static let handshake = Self(rawValue: 17)
    /// There is no such opcode.
    package static let unsupported = Self(rawValue: 18)
    /// A field has a value that makes no sense there.
    package static let parameter = Self(rawValue: 19)
    /// A length or a range is larger than a limit, than the buffer, or than the address space.
    package static let range = Self(rawValue: 20)
    /// There is no endpoint, SMMU, StreamID, buffer or region of this name or number.
    package static let notFound = Self(rawValue: 21)
    /// No file descriptor came with the request.
    package static let noDescriptor = Self(rawValue: 22)
    /// All endpoints or buffers that a connection may have are taken.
    package static let limit = Self(rawValue: 23)
    /// The daemon could not do it; the machine is not to blame.
    package static let failed = Self(rawValue: 24)

    /// Whether the request was carried out, with a fault or without.
    package var isOutcome: Bool { rawValue < 16 }
    /// Whether the daemon closes the connection after such an answer.
    package var endsConnection: Bool { self == .malformed || self == .handshake }
}
