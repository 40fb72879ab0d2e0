// The client's side of the control socket, without the socket: calls to bytes, bytes to answers.

/// Numbers the requests of one connection and reads what comes back.
package struct ControlClientCodec: Sendable {
    /// One line from the daemon.
    package enum Message: Equatable, Sendable {
        case answer(ControlAnswerLine)
        case notification(ControlNotificationLine)
        /// The daemon sent what is no answer and no notification; the text says what is wrong with it.
        case garbage(String)
    }

    private var framer: LineFramer
    private var lastID: Int64 = 0

    /// - Parameter lineByteCountMax: How long an answer may be; 64 MiB unless told.
    package init(lineByteCountMax: Int = 64 << 20) { framer = LineFramer(byteCountMax: lineByteCountMax) }

    /// The line to send for a call, with its newline, and the id by which its answer is known.
    package mutating func call<Method: ControlMethod>(
        _ method: Method.Type,
        _ parameters: Method.Parameters
    ) throws(ControlError) -> (id: RequestID, line: [UInt8]) {
        lastID &+= 1
        let id = RequestID.number(lastID)
        let envelope = CallEnvelope(id: id, method: Method.name, params: parameters)
        return (id, try ControlJSON.line(envelope) + [UInt8(ascii: "\n")])
    }

    /// Takes the next bytes from the daemon.
    package mutating func receive(_ bytes: UnsafeRawBufferPointer) -> [Message] {
        framer.receive(bytes).map { line in
            switch line {
            case .tooLong: .garbage("a line is longer than \(framer.byteCountMax) bytes")
            case .complete(let line): Self.message(of: line)
            }
        }
    }

    private static func message(of line: [UInt8]) -> Message {
        guard ControlJSON.isNestingBounded(line),
            let envelope = try? ControlJSON.decode(AnyAnswerEnvelope.self, from: line)
        else { return .garbage("a line is no JSON-RPC: \(String(decoding: line.prefix(80), as: UTF8.self))") }
        if let method = envelope.method {
            return .notification(ControlNotificationLine(method: method, line: line))
        }
        return .answer(ControlAnswerLine(id: envelope.id ?? .null, error: envelope.error, line: line))
    }
}

/// An answer whose result is not looked at yet.
package struct ControlAnswerLine: Equatable, Sendable {
    package let id: RequestID
    /// The error that it carries in place of a result.
    package let error: ControlError?
    fileprivate let line: [UInt8]

    fileprivate init(id: RequestID, error: ControlError?, line: [UInt8]) {
        (self.id, self.error, self.line) = (id, error, line)
    }

    /// The result, read as a method's own type.
    ///
    /// - Throws: The error that the answer carries, or an internal error where the result is of another shape.
    package func result<Result: Decodable>(as type: Result.Type) throws(ControlError) -> Result {
        if let error { throw error }
        do { return try ControlJSON.decode(ResultEnvelope<Result>.self, from: line).result } catch {
            throw .internalError("the answer has another shape than expected: \(error)")
        }
    }
}

/// A notification whose parameters are not looked at yet.
package struct ControlNotificationLine: Equatable, Sendable {
    package let method: String
    fileprivate let line: [UInt8]

    fileprivate init(method: String, line: [UInt8]) { (self.method, self.line) = (method, line) }

    /// The notification, read as its own type; nil where it is of another kind.
    ///
    /// - Throws: An internal error where it has this name and another shape.
    package func parameters<Notification: ControlNotification>(
        as type: Notification.Type
    ) throws(ControlError) -> Notification? {
        guard method == Notification.name else { return nil }
        do {
            return try ControlJSON.decode(NotificationParameters<Notification>.self, from: line).params
        } catch {
            throw .internalError("the notification has another shape than expected: \(error)")
        }
    }
}

private struct CallEnvelope<Parameters: Encodable>: Encodable {
    var jsonrpc = "2.0"
    let id: RequestID
    let method: String
    let params: Parameters
}

private struct AnyAnswerEnvelope: Decodable {
    let id: RequestID?
    let method: String?
    let error: ControlError?
}

private struct ResultEnvelope<Result: Decodable>: Decodable { let result: Result }
private struct NotificationParameters<Parameters: Decodable>: Decodable { let params: Parameters }
