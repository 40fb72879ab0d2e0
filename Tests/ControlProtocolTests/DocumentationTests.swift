// docs/control-protocol.md as a test: its examples are the golden texts of every method.

import ControlProtocol
import FoundationEssentials
import Testing

/// Any JSON, for comparing texts whose keys come in another order.
private enum AnyJSON: Decodable, Equatable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([AnyJSON])
    case object([String: AnyJSON])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let bool = try? container.decode(Bool.self) {
            self = .bool(bool)
        } else if let number = try? container.decode(Double.self) {
            self = .number(number)
        } else if let string = try? container.decode(String.self) {
            self = .string(string)
        } else if let array = try? container.decode([AnyJSON].self) {
            self = .array(array)
        } else {
            self = .object(try container.decode([String: AnyJSON].self))
        }
    }

    init(_ text: [UInt8]) throws { self = try JSONDecoder().decode(Self.self, from: Data(text)) }
}

/// One message of an example.
private struct Message {
    let isRequest: Bool
    /// The message on a line of its own.
    var text: String
    var bytes: [UInt8] { Array(text.utf8) }
}

private struct Documentation {
    let text: String
    /// The examples, in order: each code block is one.
    let examples: [[Message]]

    init() throws {
        // Tests/ControlProtocolTests/DocumentationTests.swift, three steps below the package.
        let path = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
        let file = try #require(FileManager.default.contents(atPath: path + "/docs/control-protocol.md"))
        text = String(decoding: file, as: UTF8.self)
        examples = Self.examples(text)
    }

    private static func examples(_ text: String) -> [[Message]] {
        var examples: [[Message]] = []
        var isInside = false
        for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
            if line.hasPrefix("```") {
                isInside = line == "```jsonrpc"
                if isInside { examples.append([]) }
            } else if isInside, let mark = line.first, mark == "→" || mark == "←" {
                examples[examples.count - 1].append(
                    Message(isRequest: mark == "→", text: String(line.dropFirst()))
                )
            } else if isInside {
                let last = examples[examples.count - 1].count - 1
                examples[examples.count - 1][last].text += String(line)
            }
        }
        return examples
    }
}

/// Reads a request's parameters as the method's type and writes them again.
private func rewritten<Method: ControlMethod>(
    request: ControlRequest,
    of method: Method.Type
) throws -> [UInt8] {
    var codec = ControlClientCodec()
    return try codec.call(method, try request.parameters(as: Method.Parameters.self)).line
}

/// Reads an answer's result as the method's type and writes it again.
private func rewritten<Method: ControlMethod>(
    answer: ControlAnswerLine,
    of method: Method.Type
) throws -> [UInt8] {
    do { return try ControlAnswer.success(try answer.result(as: Method.Result.self), id: answer.id) } catch {
        guard error == answer.error else { throw error }
        return ControlAnswer.failure(error, id: answer.id)
    }
}

@Suite("docs/control-protocol.md")
struct ControlDocumentationTests {
    @Test("Every example is what the types read and write, field by field")
    func examplesAreGolden() throws {
        let examples = try Documentation().examples
        #expect(examples.count >= Methods.all.count)
        for example in examples {
            var method: (any ControlMethod.Type)?
            for message in example {
                if message.isRequest {
                    method = try checkRequest(message)
                } else {
                    try checkAnswer(message, to: try #require(method))
                }
            }
        }
    }

    private func checkRequest(_ message: Message) throws -> any ControlMethod.Type {
        let request = try ControlRequest(line: message.bytes)
        let method = try #require(Methods.all.first { $0.name == request.method }, "\(request.method)")
        if case .object(let object) = try AnyJSON(message.bytes), object["params"] == .object([:]),
            (try? rewritten(request: request, of: method)) == nil
        {
            return method  // The example of a parameter that is missing.
        }
        guard case .object(var expected) = try AnyJSON(message.bytes),
            case .object(let actual) = try AnyJSON(try rewritten(request: request, of: method))
        else {
            Issue.record("no object: \(message.text)")
            return method
        }
        expected["id"] = actual["id"]
        #expect(actual == expected, "\(message.text)")
        return method
    }

    private func checkAnswer(_ message: Message, to method: any ControlMethod.Type) throws {
        var codec = ControlClientCodec()
        let decoded = (message.bytes + [UInt8(ascii: "\n")]).withUnsafeBytes { codec.receive($0) }
        let written: [UInt8]
        switch try #require(decoded.first) {
        case .answer(let answer): written = try rewritten(answer: answer, of: method)
        case .notification(let line):
            if let event = try line.parameters(as: EventNotification.self) {
                written = try ControlAnswer.notification(event)
            } else if let command = try line.parameters(as: CommandNotification.self) {
                written = try ControlAnswer.notification(command)
            } else if let log = try line.parameters(as: LogNotification.self) {
                written = try ControlAnswer.notification(log)
            } else {
                let signal = try line.parameters(as: InterruptNotification.self)
                written = try ControlAnswer.notification(try #require(signal))
            }
        case .garbage(let text):
            Issue.record("\(text)")
            return
        }
        #expect(try AnyJSON(written) == AnyJSON(message.bytes), "\(message.text)")
    }

    @Test("Every method has a heading and an example")
    func everyMethodIsDocumented() throws {
        let documentation = try Documentation()
        let exemplified = Set(
            documentation.examples.compactMap { example in
                example.first.flatMap { try? ControlRequest(line: $0.bytes).method }
            }
        )
        for name in Methods.names {
            #expect(documentation.text.contains("### `\(name)`\n"), "\(name) has no heading")
            #expect(exemplified.contains(name), "\(name) has no example")
        }
    }

    @Test("The table of errors has every code with its kind")
    func errorsAreDocumented() throws {
        let text = try Documentation().text
        let errors: [ControlError] = [
            .parseError(""), .invalidRequest(""), .methodNotFound(""), .invalidParameter(nil, ""),
            .internalError(""),
            .failed(""), .notFound("", ""), .busError(at: 0, ""), .noDriver(""), .exhausted(""),
            .conflict(""),
            .notMapped(at: 0, ""), .limit(""),
        ]
        for error in errors {
            let kind = try #require(error.data?.kind)
            #expect(text.contains("| \(error.code.rawValue) | `\(kind)` |"), "\(kind)")
        }
    }
}
