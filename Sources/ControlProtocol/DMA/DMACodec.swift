// Requests and answers out of streams of bytes, without I/O: the caller owns the bytes, the decoder the rules.

/// Why a request is not carried out: a status from 16 on, and a sentence.
public struct DMARejection: Error, Equatable, Sendable {
    public let status: DMAStatus
    public let message: String

    public init(_ status: DMAStatus, _ message: String) { (self.status, self.message) = (status, message) }

    /// The whole answer, header and sentence.
    package func answer(to request: DMARequest) -> [UInt8] {
        DMAResponseEncoder.message(
            DMAResponse(to: request, status, payloadByteCount: message.utf8.count),
            payload: Array(message.utf8)
        )
    }
}

/// The daemon's side: bytes of one client to requests.
///
/// Holds no bytes itself.
///
/// Call ``next(in:)`` with all bytes that have come and are not consumed, until it wants more.
public struct DMARequestDecoder: Sendable {
    /// What the bytes begin with.
    public enum Step: Equatable, Sendable {
        /// The start of a message that takes so many bytes in all. Call again when they are there.
        case needs(byteCount: Int)
        /// A request whose header makes sense by itself. Its payload is the rest of its ``DMARequest/byteCount``
        /// bytes after the header; they are there.
        case request(DMARequest)
        /// A request that is answered with this rejection and consumed; the connection goes on.
        case rejected(DMARequest, DMARejection)
        /// Bytes that are no message: answer with this rejection and close the connection.
        case broken(DMARequest, DMARejection)
    }

    private let limits: DMALimits
    private var isGreeted = false

    public init(limits: DMALimits = DMALimits()) { self.limits = limits }

    /// Looks at the message that `bytes` begin with.
    ///
    /// The caller consumes the ``DMARequest/byteCount`` bytes of what it gets, after it is done with the payload.
    @inline(__always)
    public mutating func next(in bytes: UnsafeRawBufferPointer) -> Step {
        guard bytes.count >= 4 else { return .needs(byteCount: DMAProtocol.headerByteCount) }
        // The length is looked at as soon as it is there: who sends garbage may wait for an answer to it.
        let length = Int(UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)))
        guard length >= DMAProtocol.headerByteCount, length <= limits.messageByteCountMax else {
            return badLength(length)
        }
        guard bytes.count >= DMAProtocol.headerByteCount else { return .needs(byteCount: length) }
        let request = DMARequest(header: bytes)
        if !isGreeted {
            if let rejection = greetingRejection(request) { return .broken(request, rejection) }
        }
        guard bytes.count >= length else { return .needs(byteCount: length) }
        isGreeted = true
        if let problem = limits.problem(of: request) {
            return .rejected(request, limits.rejection(of: request, for: problem))
        }
        return .request(request)
    }

    @inline(never)
    private func badLength(_ length: Int) -> Step {
        .broken(
            DMARequest(DMAOpcode(rawValue: 0), id: 0),
            DMARejection(
                .malformed,
                "a message of \(length) bytes: it must have \(DMAProtocol.headerByteCount) to "
                    + "\(limits.messageByteCountMax)"
            )
        )
    }

    /// What is wrong with the first message of a connection.
    private func greetingRejection(_ request: DMARequest) -> DMARejection? {
        guard request.opcode == .hello, request.iova == DMAProtocol.magic else {
            return DMARejection(.handshake, "the first message must be HELLO with the magic \"SMMUDDMA\"")
        }
        guard request.count == DMAProtocol.version else {
            return DMARejection(
                .handshake,
                "version \(request.count): this daemon speaks version \(DMAProtocol.version)"
            )
        }
        return nil
    }

}

/// What is wrong with a request that can be seen from its header alone.
///
/// A number, so that looking costs nothing where all is well; ``DMALimits/rejection(of:for:)`` has the words.
public enum DMARequestProblem: Equatable, Sendable {
    case opcode, reserved, instructionWrite, payload, name, inlineByteCount, transferPayload, iova, offset,
        substream
}

extension DMALimits {
    /// What is wrong with a request that can be seen from its header alone, in words.
    public func rejection(of request: DMARequest) -> DMARejection? {
        problem(of: request).map { rejection(of: request, for: $0) }
    }

    /// What is wrong with a request that can be seen from its header alone.
    @inlinable @inline(__always)
    public func problem(of request: DMARequest) -> DMARequestProblem? {
        guard request.opcode.isKnown else { return .opcode }
        guard request.flags.isSubset(of: .all), request.reserved == 0 else { return .reserved }
        switch request.opcode.rawValue {
        case DMAOpcode.read.rawValue: return transferProblem(request, isWrite: false)
        case DMAOpcode.write.rawValue:
            return request.flags.contains(.instruction)
                ? .instructionWrite : transferProblem(request, isWrite: true)
        case DMAOpcode.echo.rawValue:
            return request.payloadByteCount > Int(inlineByteCountMax) ? .inlineByteCount : nil
        case DMAOpcode.open.rawValue where !request.flags.contains(.direct):
            let count = request.payloadByteCount
            return count >= 1 && count <= DMAProtocol.nameByteCountMax ? nil : .name
        default: return request.payloadByteCount == 0 ? nil : .payload
        }
    }

    @inlinable @inline(__always)
    func transferProblem(_ request: DMARequest, isWrite: Bool) -> DMARequestProblem? {
        let isInline = !request.flags.contains(.buffer)
        if isInline, request.count > UInt64(inlineByteCountMax) { return .inlineByteCount }
        guard UInt64(request.payloadByteCount) == (isInline && isWrite ? request.count : 0) else {
            return .transferPayload
        }
        guard request.count == 0 || !request.iova.addingReportingOverflow(request.count - 1).overflow else {
            return .iova
        }
        guard !request.offset.addingReportingOverflow(request.count).overflow else { return .offset }
        guard !request.flags.contains(.substream) || request.substream < 1 << 20 else { return .substream }
        return nil
    }

    /// A problem in words.
    public func rejection(of request: DMARequest, for problem: DMARequestProblem) -> DMARejection {
        switch problem {
        case .opcode: return DMARejection(.unsupported, "there is no opcode \(request.opcode.rawValue)")
        case .reserved:
            return DMARejection(
                .parameter,
                "flags from 0x40 up and the last 8 bytes of the header must be 0"
            )
        case .instructionWrite: return DMARejection(.parameter, "an instruction fetch only reads")
        case .payload: return DMARejection(.parameter, "this request takes no payload")
        case .name:
            return DMARejection(
                .parameter,
                "OPEN needs a name of 1 to \(DMAProtocol.nameByteCountMax) bytes, or DIRECT"
            )
        case .inlineByteCount:
            let count = request.opcode == .echo ? UInt64(request.payloadByteCount) : request.count
            return DMARejection(
                .range,
                "\(count) bytes inline: at most \(inlineByteCountMax), or use an attached buffer"
            )
        case .transferPayload:
            let isInlineWrite = request.opcode == .write && !request.flags.contains(.buffer)
            return DMARejection(
                .parameter,
                "\(request.payloadByteCount) bytes follow the header; \(isInlineWrite ? request.count : 0) must"
            )
        case .iova: return DMARejection(.range, "the IOVAs leave 64 bits")
        case .offset: return DMARejection(.range, "the offsets in the buffer leave 64 bits")
        case .substream: return DMARejection(.parameter, "a SubstreamID has 20 bits")
        }
    }
}

extension DMARequest {
    /// How many bytes follow the header.
    @inlinable @inline(__always)
    public var payloadByteCount: Int { max(0, Int(byteCount) - DMAProtocol.headerByteCount) }

    /// The payload, of the bytes that begin with this message.
    package func payload(in bytes: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(
            rebasing: bytes.dropFirst(DMAProtocol.headerByteCount).prefix(payloadByteCount)
        )
    }
}

extension DMAResponse {
    /// How many bytes follow the header.
    @inlinable @inline(__always)
    public var payloadByteCount: Int { max(0, Int(byteCount) - DMAProtocol.headerByteCount) }

    /// The payload, of the bytes that begin with this message.
    package func payload(in bytes: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(
            rebasing: bytes.dropFirst(DMAProtocol.headerByteCount).prefix(payloadByteCount)
        )
    }
}

/// The client's side: bytes of a daemon to answers.
///
/// Holds no bytes itself.
package struct DMAResponseDecoder: Sendable {
    /// What the bytes begin with.
    package enum Step: Equatable, Sendable {
        /// The start of a message that takes so many bytes in all.
        case needs(byteCount: Int)
        /// An answer. Its payload follows the header; it is there.
        case response(DMAResponse)
        /// Bytes that are no answer.
        case broken
    }

    private let messageByteCountMax: Int

    /// - Parameter messageByteCountMax: The longest answer that is believed, in bytes; 64 MiB unless told.
    package init(messageByteCountMax: Int = 64 << 20) { self.messageByteCountMax = messageByteCountMax }

    /// Looks at the message that `bytes` begin with.
    ///
    /// The caller consumes the ``DMAResponse/byteCount`` bytes of what it gets, after it is done with the
    /// payload.
    package func next(in bytes: UnsafeRawBufferPointer) -> Step {
        guard bytes.count >= DMAProtocol.headerByteCount else {
            return .needs(byteCount: DMAProtocol.headerByteCount)
        }
        let response = DMAResponse(header: bytes)
        let length = Int(response.byteCount)
        guard length >= DMAProtocol.headerByteCount, length <= messageByteCountMax, bytes[5] & 0x80 != 0
        else {
            return .broken
        }
        return bytes.count < length ? .needs(byteCount: length) : .response(response)
    }
}

/// Writes requests: the client's side.
package enum DMARequestEncoder {
    /// A whole message.
    ///
    /// The header's length is set to fit the payload.
    package static func message(_ request: DMARequest, payload: [UInt8] = []) -> [UInt8] {
        var request = request
        request.byteCount = UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount &+ payload.count)
        return [UInt8](unsafeUninitializedCapacity: DMAProtocol.headerByteCount) { bytes, count in
            request.write(to: UnsafeMutableRawBufferPointer(bytes))
            count = DMAProtocol.headerByteCount
        } + payload
    }
}

/// Writes answers: the daemon's side.
///
/// Who wants no copy leaves ``DMAProtocol/headerByteCount`` bytes free before the data that it reads, and
/// writes the header there with ``DMAResponse/write(to:)``.
package enum DMAResponseEncoder {
    /// A whole message.
    ///
    /// The header's length is set to fit the payload.
    package static func message(_ response: DMAResponse, payload: [UInt8] = []) -> [UInt8] {
        var response = response
        response.byteCount = UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount &+ payload.count)
        return [UInt8](unsafeUninitializedCapacity: DMAProtocol.headerByteCount) { bytes, count in
            response.write(to: UnsafeMutableRawBufferPointer(bytes))
            count = DMAProtocol.headerByteCount
        } + payload
    }
}
