// The control socket's server side: bytes in, requests and error answers out.

import ControlProtocol
import SeededRandomness
import Testing

/// What the daemon would send for `input`, one handler for a few methods standing behind it.
private func answers(to input: String, lineByteCountMax: Int = 1 << 20) -> [String] {
    var dispatcher = ControlDispatcher<Void>()
    dispatcher.on(Methods.BusLoad.self) { parameters, _ throws(ControlError) in
        guard parameters.address.value < 0x1000 else {
            throw ControlError.busError(at: parameters.address.value, "nobody answers")
        }
        return .init(value: Hex(parameters.address.value + UInt64(parameters.width ?? 32)))
    }
    dispatcher.on(Methods.Stats.self) { _, _ throws(ControlError) in .init(groups: []) }
    dispatcher.on(Methods.DaemonShutdown.self) { _, _ throws(ControlError) in Nothing() }
    var codec = ControlServerCodec(lineByteCountMax: lineByteCountMax)
    let actions = Array(input.utf8).withUnsafeBytes { codec.receive($0) }
    return actions.compactMap { action in
        switch action {
        case .send(let line): return text(of: line)
        case .handle(let request): return dispatcher.answer(request, ()).map(text(of:))
        }
    }
}

/// A line as text; a line without its newline shows as such.
private func text(of line: [UInt8]) -> String {
    line.last == UInt8(ascii: "\n") ? String(decoding: line.dropLast(), as: UTF8.self) : "no newline"
}

@Suite("Control socket, server side")
struct ControlServerTests {
    @Test(
        "A request is answered with its result and its id",
        arguments: [("7", "7"), (#""a""#, #""a""#), ("null", "null")]
    )
    func answersCarryTheID(id: String, echoed: String) {
        let request =
            #"{"jsonrpc":"2.0","id":\#(id),"method":"bus.load","params":{"address":"0x10","width":64}}"#
        #expect(
            answers(to: request + "\n") == [#"{"id":\#(echoed),"jsonrpc":"2.0","result":{"value":"0x50"}}"#]
        )
    }

    @Test(
        "Numbers may be hex strings, decimal strings or JSON numbers",
        arguments: [#""0x10""#, #""16""#, "16"]
    )
    func numbersHaveThreeSpellings(address: String) {
        let request = #"{"jsonrpc":"2.0","id":1,"method":"bus.load","params":{"address":\#(address)}}"#
        #expect(answers(to: request + "\n") == [#"{"id":1,"jsonrpc":"2.0","result":{"value":"0x30"}}"#])
    }

    @Test("A request without an id is carried out and not answered")
    func notificationsAreNotAnswered() {
        #expect(answers(to: #"{"jsonrpc":"2.0","method":"daemon.shutdown"}"# + "\n").isEmpty)
        #expect(answers(to: #"{"jsonrpc":"2.0","method":"no.such"}"# + "\n").isEmpty)
    }

    @Test(
        "What is no request gets the error that JSON-RPC defines, and the id where it could be read",
        arguments: [
            ("{", "null", -32700), ("nonsense", "null", -32700),
            (#"{"jsonrpc":"2.0","id":1,"#, "null", -32700),
            ("5", "null", -32600), (#""text""#, "null", -32600), ("null", "null", -32600),
            ("[]", "null", -32600), (#" [{"jsonrpc":"2.0","id":1,"method":"stats"}]"#, "null", -32600),
            (#"{"id":3,"method":"stats"}"#, "3", -32600),
            (#"{"jsonrpc":"1.0","id":3,"method":"stats"}"#, "3", -32600),
            (#"{"jsonrpc":"2.0","id":3}"#, "3", -32600),
            (#"{"jsonrpc":"2.0","id":3,"method":5}"#, "3", -32600),
            (#"{"jsonrpc":"2.0","id":{},"method":"stats"}"#, "null", -32600),
            (#"{"jsonrpc":"2.0","id":1.5,"method":"stats"}"#, "null", -32600),
            (#"{"jsonrpc":"2.0","id":3,"method":"no.such"}"#, "3", -32601),
            (#"{"jsonrpc":"2.0","id":3,"method":"bus.load","params":{"address":"0x1000"}}"#, "3", -32002),
        ]
    )
    func errorsHaveTheirNumber(request: String, id: String, code: Int) throws {
        let answer = try #require(answers(to: request + "\n").first)
        #expect(answer.hasPrefix(#"{"error":{"code":\#(code),"#), "\(answer)")
        #expect(answer.hasSuffix(#"},"id":\#(id),"jsonrpc":"2.0"}"#), "\(answer)")
    }

    @Test(
        "A wrong parameter is named, with what is wrong with it",
        arguments: [
            (#"{}"#, "address", "it is missing"),
            (
                #"{"address":"0xg"}"#, "address",
                #"expected a hex string such as "0x1000", or a number, from 0 to 2^64 - 1"#
            ),
            (
                #"{"address":-1}"#, "address",
                #"expected a hex string such as "0x1000", or a number, from 0 to 2^64 - 1"#
            ),
            (#"{"address":1,"width":[]}"#, "width", "it has the wrong type; expected a whole number"),
            (#"{"address":1,"widht":8}"#, "widht", "bus.load has no such parameter; it takes address, width"),
        ]
    )
    func wrongParametersAreNamed(parameters: String, name: String, reason: String) throws {
        let request = #"{"jsonrpc":"2.0","id":1,"method":"bus.load","params":\#(parameters)}"#
        let answer = try #require(answers(to: request + "\n").first)
        let quoted = reason.replacing("\"", with: "\\\"")
        #expect(
            answer == #"{"error":{"code":-32602,"data":{"kind":"invalid-parameters","parameter":"\#(name)"},"#
                + #""message":"parameter \"\#(name)\": \#(quoted)"},"id":1,"jsonrpc":"2.0"}"#
        )
    }

    @Test("Parameters by position are refused, absent ones stand for none")
    func parametersGoByName() throws {
        let byPosition = try #require(
            answers(to: #"{"jsonrpc":"2.0","id":1,"method":"stats","params":[0]}"# + "\n").first
        )
        #expect(byPosition.contains("-32602"))
        #expect(
            answers(to: #"{"jsonrpc":"2.0","id":1,"method":"stats"}"# + "\n")
                == [#"{"id":1,"jsonrpc":"2.0","result":{"groups":[]}}"#]
        )
    }

    @Test("Deep nesting is refused before it is parsed")
    func nestingIsBounded() throws {
        let deep = String(repeating: "[", count: 100_000) + String(repeating: "]", count: 100_000)
        let request = #"{"jsonrpc":"2.0","id":1,"method":"stats","params":\#(deep)}"#
        let answer = try #require(answers(to: request + "\n").first)
        #expect(answer.contains("-32600") && answer.contains("deeper than 32 levels"))
        // Brackets in a string nest nothing.
        let flat =
            #"{"jsonrpc":"2.0","id":1,"method":"stats","params":{"smmu":"\#(String(repeating: "[", count: 100))"}}"#
        #expect(answers(to: flat + "\n").first?.contains("result") == true)
    }

    @Test("A line that is too long gets one error answer and the next line is good again")
    func longLinesAreSkipped() {
        let good = #"{"jsonrpc":"2.0","id":1,"method":"stats"}"#
        let input = good + "\n" + String(repeating: "x", count: 500) + "\n" + good + "\n"
        let lines = answers(to: input, lineByteCountMax: 100)
        #expect(lines.count == 3)
        #expect(lines[0] == lines[2])
        #expect(lines[1].contains("-32007") && lines[1].contains("longer than 100 bytes"))
    }

    @Test("Empty lines and carriage returns are no requests")
    func emptyLinesAreIgnored() {
        let good = #"{"jsonrpc":"2.0","id":1,"method":"stats"}"#
        #expect(answers(to: "\n\r\n  \n" + good + "\r\n").count == 1)
    }

    @Test("However the stream is cut, the same lines come out", arguments: [1, 2, 3, 5, 64])
    func framingDoesNotDependOnCuts(chunk: Int) {
        let stream = Array("one\n\ntwo\r\nfar too long a line\nthree\nrest".utf8)
        var framer = LineFramer(byteCountMax: 8)
        var lines: [LineFramer.Line] = []
        for start in stride(from: 0, to: stream.count, by: chunk) {
            Array(stream[start..<min(start + chunk, stream.count)]).withUnsafeBytes {
                lines += framer.receive($0)
            }
        }
        #expect(
            lines == [
                .complete(Array("one".utf8)), .complete([]), .complete(Array("two".utf8)), .tooLong,
                .complete(Array("three".utf8)),
            ]
        )
    }

    @Test("No line traps the codec or a method's parameters", arguments: [1, 2, 0x5eed] as [UInt64])
    func noLineTraps(seed: UInt64) {
        var random = SplitMix(seed: seed)
        let pieces = [
            "{", "}", "[", "]", ":", ",", "\"", "\\", "null", "1e999", "-0", "18446744073709551616", "\u{0}",
            "0x",
            #""0xffffffffffffffff""#, #""iova""#, #""source":{"device":"a","iova":1}"#,
            #""permissions":"rwxp""#,
            "\\ud800", "hex:", "====",
        ]
        let line =
            #"{"jsonrpc":"2.0","id":1,"method":"x","params":{"device":"a","iova":"0x1","length":4,"data":"AA=="}}"#
        for _ in 0..<1_500 {
            var bytes = Array(line.utf8)
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let place = Int.random(in: 0...bytes.count, using: &random)
                let end = min(bytes.count, place + Int.random(in: 0...3, using: &random))
                if Bool.random(using: &random) {
                    bytes.replaceSubrange(
                        place..<end,
                        with: [UInt8.random(in: .min ... .max, using: &random)]
                    )
                } else {
                    bytes.replaceSubrange(
                        place..<end,
                        with: Array((pieces.randomElement(using: &random) ?? "").utf8)
                    )
                }
            }
            guard let request = try? ControlRequest(line: bytes) else { continue }
            _ = try? request.parameters(as: Methods.IOMMUMap.Parameters.self)
            _ = try? request.parameters(as: Methods.DMAWrite.Parameters.self).requester()
            _ = try? request.parameters(as: Methods.DMACopy.Parameters.self)
        }
    }
}
