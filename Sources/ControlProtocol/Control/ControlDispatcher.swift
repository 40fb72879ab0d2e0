// The daemon's side of the control socket, without the socket: bytes to requests, requests to answers.

/// Bytes from one client to requests.
///
/// One for each connection.
package struct ControlServerCodec: Sendable {
    /// What the daemon is to do next.
    package enum Action: Equatable, Sendable {
        /// Carry this request out and send its answer.
        case handle(ControlRequest)
        /// Send this line: what came was no request.
        case send([UInt8])
    }

    private var framer: LineFramer

    /// - Parameter lineByteCountMax: How long a request may be; 16 MiB unless told.
    package init(lineByteCountMax: Int = 16 << 20) { framer = LineFramer(byteCountMax: lineByteCountMax) }

    /// Takes the next bytes from the client.
    ///
    /// - Returns: What they ask for, in order. Answers go out in the same order.
    package mutating func receive(_ bytes: UnsafeRawBufferPointer) -> [Action] {
        var actions: [Action] = []
        for line in framer.receive(bytes) {
            switch line {
            case .tooLong:
                let error = ControlError.limit("a line is longer than \(framer.byteCountMax) bytes")
                actions.append(.send(ControlAnswer.failure(error, id: .null)))
            case .complete(let line) where line.allSatisfy({ $0 == UInt8(ascii: " ") }):
                continue
            case .complete(let line):
                do throws(ControlRequest.Rejection) {
                    actions.append(.handle(try ControlRequest(line: line)))
                } catch {
                    actions.append(.send(error.line))
                }
            }
        }
        return actions
    }
}

/// Which function answers which method.
///
/// Made once, then shared by all connections.
///
/// - `Context` is what a handler needs beside its parameters: the connection, for one that subscribes.
package struct ControlDispatcher<Context>: Sendable {
    private typealias Handler = @Sendable (ControlRequest, Context) -> [UInt8]?
    private var handlers: [String: Handler] = [:]

    package init() {}

    /// Has `handler` answer a method.
    ///
    /// The last one given for a method is the one that counts.
    package mutating func on<Method: ControlMethod>(
        _ method: Method.Type,
        _ handler: @escaping @Sendable (Method.Parameters, Context) throws(ControlError) -> Method.Result
    ) {
        handlers[Method.name] = { request, context in
            Self.answer(to: request, of: method, context, by: handler)
        }
    }

    private static func answer<Method: ControlMethod>(
        to request: ControlRequest,
        of method: Method.Type,
        _ context: Context,
        by handler: (Method.Parameters, Context) throws(ControlError) -> Method.Result
    ) -> [UInt8]? {
        do throws(ControlError) {
            let result = try handler(try request.parameters(as: Method.Parameters.self), context)
            guard let id = request.id else { return nil }
            return try ControlAnswer.success(result, id: id)
        } catch {
            return request.id.map { ControlAnswer.failure(error, id: $0) }
        }
    }

    /// Carries a request out.
    ///
    /// - Returns: The answer's line with its newline; nil where the client wants none.
    package func answer(_ request: ControlRequest, _ context: Context) -> [UInt8]? {
        if let handler = handlers[request.method] { return handler(request, context) }
        return request.id.map { ControlAnswer.failure(.methodNotFound(request.method), id: $0) }
    }

    /// The methods that are answered, in alphabetical order.
    package var methodNames: [String] { handlers.keys.sorted() }
}
