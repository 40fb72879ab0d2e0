// Clients that break off, lie and send noise. Whatever they do, the daemon serves the next one.

import ControlProtocol
import Glibc
import SMMUClient
import SeededRandomness
import Testing

@Suite(.timeLimit(.minutes(20)))
struct HostileClientTests {
    private let daemon: Daemon

    init() throws { daemon = try Daemon() }

    /// Connects to the DMA socket and opens the connection.
    private func greeted() throws -> RawSocket {
        let socket = try RawSocket(daemon.dmaPath)
        socket.send(DMARequestEncoder.message(.hello(id: 1)))
        guard try socket.receive(64).count == 64 else { throw TestFailure("HELLO") }
        return socket
    }

    private func status(_ answer: [UInt8]) throws -> DMAStatus {
        try #require(answer.count >= 64)
        return answer.withUnsafeBytes { DMAResponse(header: $0).status }
    }

    @Test func aLengthOfTwoToThe63rdIsAnErrorOnAConnectionThatGoesOn() throws {
        let dma = try daemon.dma()
        for opcode in [DMAOpcode.read, .write] {
            let request = DMARequest(
                opcode,
                id: dma.nextID(),
                flags: .direct,
                iova: TestBoard.memory,
                count: 1 << 63
            )
            dma.enqueue(request)
            try dma.flush()
            #expect(try dma.nextAnswer().status == .range)
        }
        #expect(try dma.echo([1]) == [1])
    }

    @Test func aMessageOfAnImpossibleLengthClosesItsConnectionAlone() throws {
        let bystander = try daemon.dma()
        for length in [0, 63, 0x7FFF_FFFF, 0xFFFF_FFFF] as [UInt32] {
            let socket = try greeted()
            socket.send(
                withUnsafeBytes(of: length.littleEndian) { Array($0) } + [UInt8](repeating: 0, count: 60)
            )
            #expect(try status(try socket.receiveToEnd()) == .malformed)
        }
        #expect(try bystander.echo([5]) == [5])
    }

    @Test func whoDoesNotSayHelloIsTurnedAway() throws {
        let socket = try RawSocket(daemon.dmaPath)
        socket.send(DMARequestEncoder.message(DMARequest(.echo, id: 1)))
        #expect(try status(try socket.receiveToEnd()) == .handshake)
        let other = try RawSocket(daemon.dmaPath)
        var hello = DMARequest.hello(id: 1)
        hello.count = 99
        other.send(DMARequestEncoder.message(hello))
        #expect(try status(try other.receiveToEnd()) == .handshake)
        #expect(try daemon.serves())
    }

    @Test func helloComesOnce() throws {
        let socket = try greeted()
        socket.send(DMARequestEncoder.message(.hello(id: 2)))
        #expect(try status(try socket.receive(64)) == .parameter)
    }

    @Test func aClientThatDiesInTheMiddleOfARequestIsForgotten() throws {
        // The header of a write of 4096 bytes, and half of them.
        let half =
            DMARequestEncoder.message(
                DMARequest(
                    .write,
                    id: 2,
                    flags: .direct,
                    iova: TestBoard.memory,
                    count: 4096,
                    payloadByteCount: 4096
                ),
                payload: [UInt8](repeating: 1, count: 4096)
            ).prefix(64 + 2048)
        // A process of its own, killed: no goodbye.
        let script = """
            import os, signal, socket, sys
            s = socket.socket(socket.AF_UNIX)
            s.connect(sys.argv[1])
            s.sendall(bytes.fromhex(sys.argv[2]))
            print("sent", flush=True)
            signal.pause()
            """
        func hex(_ bytes: some Sequence<UInt8>) -> String {
            bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        }
        let greeting = DMARequestEncoder.message(.hello(id: 1))
        let control = Array(#"{"jsonrpc":"2.0","id":1,"met"#.utf8)
        for (path, bytes) in [(daemon.dmaPath, greeting + half), (daemon.controlPath, control)] {
            let client = try ChildProcess("python3", ["-c", script, path, hex(bytes)])
            #expect(try client.nextLine() == "sent")
            client.signal(SIGKILL)
            try client.wait()
        }
        #expect(try daemon.serves())
        // Half a write is none.
        #expect(try daemon.control().readMemory(1, at: TestBoard.memory) == [0])
    }

    @Test func aClientThatGoesWithoutReadingItsAnswersIsForgotten() throws {
        for _ in 0..<20 {
            let socket = try greeted()
            let read = DMARequest(.read, id: 2, flags: .direct, iova: TestBoard.memory, count: 1 << 20)
            for _ in 0..<4 { socket.send(DMARequestEncoder.message(read)) }
        }
        #expect(try daemon.serves())
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func noiseOnTheDMASocketIsSurvived(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        for _ in 0..<20 {
            let socket = try RawSocket(daemon.dmaPath)
            if Bool.random(using: &random) { socket.send(DMARequestEncoder.message(.hello(id: 1))) }
            socket.send(
                (0..<Int.random(in: 1...4096, using: &random)).map { _ in .random(in: 0...255, using: &random)
                }
            )
            socket.endSending()
            _ = try socket.receiveToEnd()
        }
        #expect(try daemon.serves(), "seed \(seed)")
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func wellFormedRequestsWithWildFieldsAreSurvived(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let interesting: [UInt64] = [
            0, 1, 63, 64, 4096, 1 << 20, 1 << 32, 1 << 63, .max, .max - 1, TestBoard.memory,
        ]
        func word(_ random: inout SplitMix) -> UInt64 {
            Bool.random(using: &random) ? interesting.randomElement(using: &random) ?? 0 : random.next()
        }
        let socket = try greeted()
        for id in 0..<500 as Range<UInt64> {
            let payload = [UInt8](repeating: 0x41, count: .random(in: 0...64, using: &random))
            var request = DMARequest(
                DMAOpcode(rawValue: .random(in: 0...12, using: &random)),
                id: id,
                flags: DMAFlags(rawValue: .random(in: 0...0x7F, using: &random)),
                endpoint: UInt32(truncatingIfNeeded: word(&random) & 3),
                stream: UInt32(truncatingIfNeeded: word(&random)),
                substream: UInt32(truncatingIfNeeded: word(&random)),
                buffer: UInt32(truncatingIfNeeded: word(&random) & 3),
                iova: word(&random),
                count: word(&random),
                offset: word(&random)
            )
            if Int.random(in: 0...9, using: &random) == 0 { request.reserved = word(&random) }
            #expect(socket.send(DMARequestEncoder.message(request, payload: payload)), "seed \(seed)")
            let header = try socket.receive(1)
            try #require(header.count >= 64, "seed \(seed), request \(id)")
            let answer = header.withUnsafeBytes { DMAResponse(header: $0) }
            #expect(answer.id == id, "seed \(seed)")
            _ = try socket.receive(Int(answer.byteCount) - header.count)
        }
        #expect(try daemon.serves(), "seed \(seed)")
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func noiseOnTheControlSocketIsSurvived(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let words = [
            "{", "}", "[", "]", "\"", ":", ",", "\n", "\\", "null", "1e999", "\"id\"", "\"jsonrpc\":\"2.0\"",
        ]
        for round in 0..<20 {
            let socket = try RawSocket(daemon.controlPath)
            let bytes: [UInt8]
            if round % 2 == 0 {
                bytes = (0..<Int.random(in: 1...4096, using: &random)).map { _ in
                    .random(in: 0...255, using: &random)
                }
            } else {
                bytes = (0..<500).flatMap { _ in Array((words.randomElement(using: &random) ?? "").utf8) }
            }
            socket.send(bytes)
            socket.endSending()
            _ = try socket.receiveToEnd()
        }
        #expect(try daemon.serves(), "seed \(seed)")
    }

    @Test func moreClientsThanItMayHaveFilesAreLetGoAndLaterOnesServed() throws {
        let daemon = try Daemon(openFilesMax: 40)
        var clients: [RawSocket] = []
        for index in 0..<80 {
            let socket = try RawSocket(index % 2 == 0 ? daemon.controlPath : daemon.dmaPath)
            // Each is served, or let go; none is left waiting.
            socket.send(
                index % 2 == 0
                    ? Array((#"{"jsonrpc":"2.0","id":1,"method":"daemon.version"}"# + "\n").utf8)
                    : DMARequestEncoder.message(.hello(id: 1))
            )
            _ = try socket.receive()
            clients.append(socket)
        }
        clients = []
        var isServed = false
        while !isServed { isServed = (try? daemon.serves()) ?? false }
        let result = try daemon.stop()
        #expect(result.exitCode == 0)
        #expect(result.errors.contains("clients are turned away: Too many open files"))
    }

    @Test func parametersThatNobodyMeantAreErrorsOnAConnectionThatGoesOn() throws {
        let socket = try RawSocket(daemon.controlPath)
        let big = "18446744073709551615"
        let requests = [
            #""memory.read","params":{"address":0,"length":\#(big)}"#,
            #""memory.read","params":{"address":\#(big),"length":16}"#,
            #""memory.fill","params":{"address":\#(TestBoard.memory),"length":\#(big)}"#,
            #""bus.load","params":{"address":\#(big),"width":64}"#,
            #""bus.load","params":{"address":1,"width":-8}"#,
            #""register.read","params":{"register":"\#(big)"}"#,
            #""register.read","params":{"register":"0x1ffff","width":64}"#,
            #""dma.read","params":{"stream":0,"iova":\#(big),"length":\#(big)}"#,
            #""interrupts.subscribe","params":{"lines":[-1,99999999999]}"#,
            #""machine.describe","params":[1]"#,
        ]
        for (id, request) in requests.enumerated() {
            socket.send(
                Array(#"{"jsonrpc":"2.0","id":\#(id),"method":\#(request)}"#.utf8) + [UInt8(ascii: "\n")]
            )
        }
        socket.endSending()
        let answers = try socket.linesToEnd()
        #expect(answers.count == requests.count)
        for answer in answers { #expect(answer.contains("\"error\""), "\(answer)") }
        #expect(try daemon.serves())
    }
}
