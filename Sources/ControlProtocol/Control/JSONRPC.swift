// JSON-RPC 2.0 as the control socket speaks it: requests, answers and notifications, one to a line.

/// What ties an answer to its request.
///
/// The client chooses it.
package enum RequestID: Hashable, Sendable, Codable {
    case number(Int64)
    case string(String)
    case null

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let number = try? container.decode(Int64.self) {
            self = .number(number)
        } else if let string = try? container.decode(String.self) {
            self = .string(string)
        } else {
            throw DecodingError.dataCorruptedError(
                in: container,
                debugDescription: "expected a whole number, a string or null"
            )
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .number(let number): try container.encode(number)
        case .string(let string): try container.encode(string)
        case .null: try container.encodeNil()
        }
    }
}

/// One method of the control socket: its name, what it takes and what it answers.
package protocol ControlMethod: Sendable {
    /// The value of `params`, an object. Its stored properties are the names of the parameters.
    associatedtype Parameters: Codable & Sendable & Equatable
    /// The value of `result`, an object.
    associatedtype Result: Codable & Sendable & Equatable
    /// The value of `method`.
    static var name: String { get }
}

/// One kind of notification that the daemon sends to those who subscribed.
package protocol ControlNotification: Codable, Sendable, Equatable {
    /// The value of `method`; the notification itself is the value of `params`.
    static var name: String { get }
}

/// `{}`: no parameters, or nothing to say beyond that it was done.
package struct Nothing: Codable, Sendable, Equatable {
    package init() {}
}

/// A request whose envelope is good.
///
/// Its parameters are not looked at yet.
package struct ControlRequest: Sendable, Equatable {
    /// Nil where the client sent a notification: it is carried out and not answered.
    package let id: RequestID?
    package let method: String
    private let line: [UInt8]

    /// Reads one line.
    ///
    /// - Throws: The error to answer with, and the id to answer to as far as it could be read.
    package init(line: [UInt8]) throws(Rejection) {
        guard ControlJSON.isNestingBounded(line) else {
            throw Rejection(
                .invalidRequest("arrays and objects nest deeper than \(ControlJSON.nestingDepthMax) levels")
            )
        }
        if line.first(where: { $0 != UInt8(ascii: " ") && $0 != UInt8(ascii: "\t") }) == UInt8(ascii: "[") {
            throw Rejection(
                .invalidRequest("a batch is not supported: send each request on a line of its own")
            )
        }
        let envelope: RequestEnvelope
        do { envelope = try ControlJSON.decode(RequestEnvelope.self, from: line) } catch {
            throw Rejection(.ofEnvelope(error))
        }
        if let error = envelope.error { throw Rejection(error, id: envelope.id ?? .null) }
        id = envelope.id
        method = envelope.method
        self.line = line
    }

    /// The parameters, read as a method's own type.
    ///
    /// - Throws: An invalid-parameters error that names the parameter.
    package func parameters<Parameters: Decodable>(as type: Parameters.Type) throws(ControlError)
        -> Parameters
    {
        do {
            let envelope = try ControlJSON.decode(ParametersEnvelope<Parameters>.self, from: line)
            try envelope.checkNames(method: method)
            return envelope.parameters
        } catch let error as ControlError {
            throw error
        } catch let error as DecodingError {
            let path = error.pathText.map { $0.hasPrefix("params.") ? String($0.dropFirst(7)) : $0 }
            throw .invalidParameter(path == "params" ? nil : path, error.reasonText)
        } catch {
            throw .internalError("\(error)")
        }
    }
}

extension ControlRequest {
    /// Why a line is no request, and to whom to say so.
    package struct Rejection: Error, Equatable, Sendable {
        package let id: RequestID
        package let error: ControlError

        init(_ error: ControlError, id: RequestID = .null) { (self.error, self.id) = (error, id) }

        /// The answer's line, with its newline.
        package var line: [UInt8] { ControlAnswer.failure(error, id: id) }
    }
}

/// Writes what the daemon sends: answers and notifications, each a line with its newline.
package enum ControlAnswer {
    /// The answer to a request that was carried out.
    package static func success(_ result: some Encodable, id: RequestID) throws(ControlError) -> [UInt8] {
        try ControlJSON.line(SuccessEnvelope(id: id, result: result)) + [UInt8(ascii: "\n")]
    }

    /// The answer to a request that was not.
    package static func failure(_ error: ControlError, id: RequestID) -> [UInt8] {
        // An envelope of strings and numbers can always be written; were it not so, this is still an answer.
        let line = try? ControlJSON.line(FailureEnvelope(error: error, id: id))
        return (line ?? Array(#"{"error":{"code":-32603,"message":""},"id":null,"jsonrpc":"2.0"}"#.utf8))
            + [UInt8(ascii: "\n")]
    }

    /// A notification to a subscriber.
    package static func notification<Notification: ControlNotification>(
        _ notification: Notification
    ) throws(ControlError) -> [UInt8] {
        try ControlJSON.line(NotificationEnvelope(method: Notification.name, params: notification))
            + [UInt8(ascii: "\n")]
    }
}

// MARK: Envelopes

/// A request's envelope, read so that its id survives whatever else is wrong with it.
private struct RequestEnvelope: Decodable {
    enum CodingKeys: String, CodingKey { case jsonrpc, id, method, params }
    var id: RequestID?
    var method = ""
    var error: ControlError?

    init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        if container.contains(.id) {
            guard let id = try? container.decode(RequestID.self, forKey: .id) else {
                error = .invalidRequest("\"id\" must be a whole number, a string or null")
                return
            }
            self.id = id
        }
        guard (try? container.decode(String.self, forKey: .jsonrpc)) == "2.0" else {
            error = .invalidRequest("\"jsonrpc\" must be \"2.0\"")
            return
        }
        guard let method = try? container.decode(String.self, forKey: .method) else {
            error = .invalidRequest("\"method\" must be a string")
            return
        }
        self.method = method
    }
}

/// A request's parameters, absent ones standing for `{}`.
private struct ParametersEnvelope<Parameters: Decodable>: Decodable {
    enum CodingKeys: String, CodingKey { case params }
    let parameters: Parameters
    let names: [String]

    init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        guard container.contains(.params) else {
            parameters = try ControlJSON.decode(Parameters.self, from: Array("{}".utf8))
            names = []
            return
        }
        guard let object = try? container.nestedContainer(keyedBy: AnyCodingKey.self, forKey: .params) else {
            throw ControlError.invalidParameter(nil, "\"params\" must be an object: parameters go by name")
        }
        parameters = try container.decode(Parameters.self, forKey: .params)
        names = object.allKeys.map(\.stringValue)
    }

    /// Refuses parameters that the method does not have: a misspelt optional one must not be passed over.
    ///
    /// The names are the stored properties, which every type of parameters keeps under their own names.
    func checkNames(method: String) throws(ControlError) {
        let known = Mirror(reflecting: parameters).children.compactMap(\.label)
        guard let stranger = names.sorted().first(where: { !known.contains($0) }) else { return }
        let list = known.isEmpty ? "no parameters" : known.joined(separator: ", ")
        throw .invalidParameter(stranger, "\(method) has no such parameter; it takes \(list)")
    }
}

private struct SuccessEnvelope<Result: Encodable>: Encodable {
    var jsonrpc = "2.0"
    let id: RequestID
    let result: Result
}

private struct FailureEnvelope: Encodable {
    var jsonrpc = "2.0"
    let error: ControlError
    let id: RequestID
}

private struct NotificationEnvelope<Parameters: Encodable>: Encodable {
    var jsonrpc = "2.0"
    let method: String
    let params: Parameters
}

extension ControlError {
    /// What a line is answered with whose envelope could not be decoded at all.
    fileprivate static func ofEnvelope(_ error: any Error) -> Self {
        switch error {
        case DecodingError.typeMismatch, DecodingError.valueNotFound:
            .invalidRequest("a request must be an object")
        case DecodingError.dataCorrupted(let context):
            .parseError("the line is no JSON: \(context.jsonReason)")
        default: .parseError("the line is no JSON")
        }
    }
}

extension DecodingError.Context {
    /// The parser's own words, where it has any.
    fileprivate var jsonReason: String {
        underlyingError.map { "\($0)" } ?? debugDescription
    }
}
