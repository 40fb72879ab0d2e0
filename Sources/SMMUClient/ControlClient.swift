// A blocking client of the control socket.

package import ControlProtocol

/// One connection to a daemon's control socket.
///
/// Belongs to one thread at a time.
package final class ControlClient {
    private let socket: UnixSocket
    private var codec = ControlClientCodec()
    private var messages: [ControlClientCodec.Message] = []
    private var notifications: [ControlNotificationLine] = []
    private var received = StreamBuffer(capacity: 64 << 10)

    /// How long a call waits for its answer, in milliseconds; nil is for ever.
    package var timeoutMilliseconds: Int?

    /// Connects to the control socket at `path`.
    package init(path: String) throws(ClientError) { socket = try UnixSocket(connectingTo: path) }

    /// Takes over a socket that is connected already, and closes it in the end.
    package init(adopting descriptor: CInt) { socket = UnixSocket(adopting: descriptor) }

    /// Calls a method and waits for its answer.
    ///
    /// Notifications that come first are kept.
    ///
    /// - Throws: ``ClientError/refused(_:)`` with the daemon's own error, or what became of the connection.
    package func call<Method: ControlMethod>(
        _ method: Method.Type,
        _ parameters: Method.Parameters
    ) throws(ClientError) -> Method.Result {
        let (id, line) = try refusing { () throws(ControlError) in try codec.call(method, parameters) }
        try socket.send(line)
        let answer = try answer(to: id)
        return try refusing { () throws(ControlError) in try answer.result(as: Method.Result.self) }
    }

    /// Waits for the next notification, or takes one that came before.
    ///
    /// - Parameter timeoutMilliseconds: How long to wait; nil is for ever.
    /// - Returns: The notification; nil where the daemon ended the connection.
    /// - Throws: ``ClientError/timedOut``, or what became of the connection.
    package func nextNotification(
        timeoutMilliseconds: Int? = nil
    ) throws(ClientError) -> ControlNotificationLine? {
        while notifications.isEmpty {
            guard let message = try nextMessage(timeoutMilliseconds) else { return nil }
            guard case .notification(let notification) = message else { continue }
            return notification
        }
        return notifications.removeFirst()
    }

    private func answer(to id: RequestID) throws(ClientError) -> ControlAnswerLine {
        while let message = try nextMessage(timeoutMilliseconds) {
            switch message {
            case .notification(let notification): notifications.append(notification)
            // An answer to nobody is about a line that the daemon could not read; we sent only one.
            case .answer(let answer) where answer.id == id || answer.id == .null: return answer
            case .answer: continue
            case .garbage(let text): throw .violation(text)
            }
        }
        throw .disconnected(reason: "the daemon closed it")
    }

    /// The next line from the daemon; nil at the end of the stream.
    private func nextMessage(_ timeoutMilliseconds: Int?) throws(ClientError) -> ControlClientCodec.Message? {
        while messages.isEmpty {
            var descriptors: [CInt] = []
            let count = try socket.receive(
                into: received.freeSpace(),
                descriptors: &descriptors,
                timeoutMilliseconds: timeoutMilliseconds
            )
            for descriptor in descriptors { closeDescriptor(descriptor) }
            guard count > 0 else { return nil }
            received.filled(count)
            messages += codec.receive(received.readable)
            received.consume(count)
        }
        return messages.removeFirst()
    }
}

/// Has an error of the control protocol come out as a client's error.
private func refusing<Value>(_ body: () throws(ControlError) -> Value) throws(ClientError) -> Value {
    do throws(ControlError) { return try body() } catch { throw .refused(error) }
}
