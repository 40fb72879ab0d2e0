// The control socket as a client meets it.

import ControlProtocol
import Glibc
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct ControlSocketTests {
    private let daemon: Daemon

    init() throws { daemon = try Daemon() }

    @Test func itSaysWhatItIs() throws {
        let version = try daemon.control().call(Methods.DaemonVersion.self, Nothing())
        #expect(version.name == "smmud")
        #expect(version.controlProtocol == 1)
        #expect(version.dmaProtocol == 1)
        #expect(version.processID == Int(daemon.process.processID))
        #expect(version.dmaSocket == daemon.dmaPath)
    }

    @Test func itDescribesTheMachine() throws {
        let board = try daemon.control().call(Methods.MachineDescribe.self, Nothing())
        #expect(board.model == "end to end")
        #expect(board.source == daemon.directory.file("board.dtb"))
        #expect(board.smmus.map(\.path) == [TestBoard.smmu])
        #expect(board.smmus.first?.driver == SMMUInfo.Driver.none)
        #expect(board.endpoints.map(\.name) == [TestBoard.device])
        #expect(board.endpoints.first?.streams == [Hex(UInt32(0x42)), Hex(UInt32(0x43))])
        #expect(board.interrupts.map(\.label) == ["eventq", "gerror", "cmdq-sync"])
    }

    @Test func linesThatAreNoRequestAreAnsweredAndTheNextIsServed() throws {
        let socket = try RawSocket(daemon.controlPath)
        let lines = [
            "not JSON", "{}", "[]", #"{"jsonrpc":"2.0","id":7,"method":"no.such"}"#, "",
            #"{"jsonrpc":"2.0","id":8,"method":"daemon.version","params":{"x":1}}"#,
            #"{"jsonrpc":"2.0","id":"last","method":"daemon.version"}"#,
        ]
        socket.send(Array((lines.joined(separator: "\n") + "\n").utf8))
        // A client that has said all it has to say still gets its answers.
        socket.endSending()
        let answers = try socket.linesToEnd()
        try #require(answers.count == 6)
        for (answer, code) in zip(answers, [-32700, -32600, -32600, -32601, -32602]) {
            #expect(answer.contains("\"code\":\(code)"), "\(answer)")
        }
        #expect(answers[3].contains("\"id\":7"))
        #expect(answers[5].contains("\"id\":\"last\"") && answers[5].contains("\"name\":\"smmud\""))
    }

    @Test func aLineThatIsTooLongIsSkipped() throws {
        let socket = try RawSocket(daemon.controlPath)
        let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 20)
        for _ in 0..<17 { #expect(socket.send(piece)) }
        socket.send(Array("\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.version\"}\n".utf8))
        socket.endSending()
        let answers = try socket.linesToEnd()
        try #require(answers.count == 2)
        #expect(answers[0].contains("\"code\":-32007"))
        #expect(answers[1].contains("\"id\":1"))
    }

    @Test func aRequestWithoutAnIDIsCarriedOutAndNotAnswered() throws {
        let socket = try RawSocket(daemon.controlPath)
        let store =
            #"{"jsonrpc":"2.0","method":"bus.store","params":{"address":"0x80000000","value":"0x1234"}}"#
            + "\n"
        socket.send(Array(store.utf8))
        socket.endSending()
        #expect(try socket.linesToEnd() == [])
        #expect(try daemon.control().load(32, at: TestBoard.memory) == 0x1234)
    }

    @Test func twoClientsSeeOneMachine() throws {
        let first = try daemon.control()
        let second = try daemon.control()
        try first.store(0x1122_3344_5566_7788, 64, at: TestBoard.memory + 8)
        #expect(
            try second.readMemory(8, at: TestBoard.memory + 8) == [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
            ]
        )
        try second.writeMemory([0xAA], at: TestBoard.memory + 8)
        #expect(try first.load(64, at: TestBoard.memory + 8) == 0x1122_3344_5566_77AA)
    }

    @Test func aThousandRequestsThatCameAtOnceAreAnsweredInOrder() throws {
        let socket = try RawSocket(daemon.controlPath)
        let requests = (0..<1000).map { #"{"jsonrpc":"2.0","id":\#($0),"method":"daemon.version"}"# + "\n" }
        // The daemon sends only as fast as we read; so somebody else has to send.
        let errors = onThreads(2) { index in
            if index == 0 {
                socket.send(requests.flatMap { Array($0.utf8) })
                socket.endSending()
            } else {
                let answers = try socket.linesToEnd()
                for (index, answer) in answers.enumerated() where !answer.contains("\"id\":\(index),") {
                    throw TestFailure("answer \(index) is \(answer)")
                }
                guard answers.count == 1000 else { throw TestFailure("\(answers.count) answers") }
            }
        }
        #expect(errors.isEmpty, "\(errors)")
    }

    @Test func aClientThatDoesNotReadHoldsUpNobodyElse() throws {
        let rude = try RawSocket(daemon.controlPath)
        let request = Array((#"{"jsonrpc":"2.0","id":1,"method":"register.list"}"# + "\n").utf8)
        // Until its answers fill the socket, the daemon stops reading, and our own side is full.
        while send(rude.descriptor, request, request.count, CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT))
            == request.count
        {}
        #expect(try daemon.serves())
    }

    @Test func clientsBeyondTheLimitAreToldAndLaterOnesServed() throws {
        var clients: [ControlClient] = []
        // Connected and served, not only waiting to be.
        for _ in 0..<128 {
            let client = try daemon.control()
            _ = try client.call(Methods.DaemonVersion.self, Nothing())
            clients.append(client)
        }
        let refusal = try RawSocket(daemon.controlPath).linesToEnd()
        #expect(refusal.count == 1)
        #expect(refusal.first?.contains("\"code\":-32007") == true)
        clients = []
        // The daemon sees them go in its own time.
        var isServed = false
        while !isServed { isServed = (try? daemon.serves()) ?? false }
        #expect(isServed)
    }
}
