// Messages out of a stream, in whatever pieces it comes.

/// Why a connection cannot go on.
package enum VFIOUserViolation: Error, Equatable, Sendable {
    /// A header says that its message is shorter than a header.
    case messageTooShort(byteCount: UInt32)
    /// A header announces more than anybody would send.
    case messageTooLong(byteCount: UInt32, byteCountMax: Int)
    /// Neither a command nor a reply.
    case unknownType(UInt32)
    /// Something else than VERSION came first.
    case notGreeted(VFIOUserCommand)
    /// VERSION came a second time.
    case greetedTwice
    /// The VERSION message makes no sense, or no version is common to both.
    case badVersion
    /// A reply that nobody waits for, or that does not fit its command.
    case unexpectedReply(VFIOUserCommand)
}

extension VFIOUserViolation: CustomStringConvertible {
    package var description: String {
        switch self {
        case .messageTooShort(let byteCount):
            "a message of \(byteCount) bytes: the header alone takes \(VFIOUserHeader.byteCount)"
        case .messageTooLong(let byteCount, let byteCountMax):
            "a message of \(byteCount) bytes: at most \(byteCountMax) are taken"
        case .unknownType(let type): "a message of type \(type): 0 is a command, 1 a reply"
        case .notGreeted(let command): "command \(command.rawValue) came first: VERSION must"
        case .greetedTwice: "VERSION came a second time"
        case .badVersion: "VERSION makes no sense, or names no version that is spoken here (0.x)"
        case .unexpectedReply(let command): "a reply to command \(command.rawValue) that nobody waits for"
        }
    }
}

/// Collects the bytes of one message at a time.
///
/// Whoever reads the stream must not read beyond a header, because descriptors belong to the first byte of a
/// message, and of bytes that were read together nobody can tell which of them brought the descriptors along.
struct MessageFramer: Sendable {
    enum Step: Equatable {
        /// The message is not complete.
        case more
        case message(VFIOUserHeader, payload: [UInt8])
        /// A message that was too long to keep; its payload is gone, and the stream stands behind it.
        case skipped(VFIOUserHeader)
        /// No more can be made of the stream.
        case broken(VFIOUserHeader, VFIOUserViolation)
    }

    private enum State: Sendable {
        case header
        case payload(VFIOUserHeader)
        case skipping(VFIOUserHeader, remaining: Int)
        case broken
    }

    /// The longest message that is kept, in bytes.
    let messageByteCountMax: Int
    /// The longest that is read past, so that the stream stays in step.
    let skippedByteCountMax: Int
    private var state = State.header
    /// Of the header or the payload, as far as they have come.
    private var bytes: [UInt8] = []
    /// How many descriptors came with the message's first byte.
    private(set) var descriptorCount = 0
    /// Whether more came than there was room for.
    private(set) var areDescriptorsLost = false

    init(messageByteCountMax: Int, skippedByteCountMax: Int = 16 << 20) {
        self.messageByteCountMax = messageByteCountMax
        self.skippedByteCountMax = max(skippedByteCountMax, messageByteCountMax)
        bytes.reserveCapacity(64)
    }

    /// How many bytes may be read before ``receive(_:descriptorCount:areDescriptorsLost:)`` must see them.
    var byteCountWanted: Int {
        switch state {
        case .header: VFIOUserHeader.byteCount - bytes.count
        case .payload(let header): header.payloadByteCount - bytes.count
        case .skipping(_, let remaining): min(remaining, 1 << 16)
        case .broken: 0
        }
    }

    /// Whether the next byte is a message's first.
    var isAtMessageStart: Bool {
        if case .header = state { return bytes.isEmpty }
        return false
    }

    mutating func receive(
        _ chunk: UnsafeRawBufferPointer,
        descriptorCount: Int,
        areDescriptorsLost: Bool
    ) -> Step {
        precondition(chunk.count <= byteCountWanted, "read beyond what was wanted")
        if isAtMessageStart {
            self.descriptorCount = descriptorCount
            self.areDescriptorsLost = areDescriptorsLost
        }
        switch state {
        case .header:
            bytes.append(contentsOf: chunk)
            return bytes.count < VFIOUserHeader.byteCount ? .more : takeHeader()
        case .payload(let header):
            bytes.append(contentsOf: chunk)
            return bytes.count < header.payloadByteCount ? .more : takePayload(of: header)
        case .skipping(let header, let remaining):
            guard chunk.count >= remaining else {
                state = .skipping(header, remaining: remaining - chunk.count)
                return .more
            }
            state = .header
            return .skipped(header)
        case .broken: return .more
        }
    }

    private mutating func takeHeader() -> Step {
        guard let header = VFIOUserHeader(bytes) else { return .more }
        bytes.removeAll(keepingCapacity: true)
        guard header.messageByteCount >= VFIOUserHeader.byteCount else {
            return fail(header, .messageTooShort(byteCount: header.messageByteCount))
        }
        guard header.flags.type <= 1 else { return fail(header, .unknownType(header.flags.type)) }
        guard header.messageByteCount <= skippedByteCountMax else {
            return fail(
                header,
                .messageTooLong(byteCount: header.messageByteCount, byteCountMax: messageByteCountMax)
            )
        }
        guard header.messageByteCount <= messageByteCountMax else {
            state = .skipping(header, remaining: header.payloadByteCount)
            return .more
        }
        guard header.payloadByteCount > 0 else { return .message(header, payload: []) }
        state = .payload(header)
        return .more
    }

    private mutating func takePayload(of header: VFIOUserHeader) -> Step {
        state = .header
        let payload = bytes
        // Small messages are the many: let go of a large one's memory, and copy a small one.
        bytes = []
        bytes.reserveCapacity(64)
        return .message(header, payload: payload)
    }

    private mutating func fail(_ header: VFIOUserHeader, _ violation: VFIOUserViolation) -> Step {
        state = .broken
        return .broken(header, violation)
    }
}
