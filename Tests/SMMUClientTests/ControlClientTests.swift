// The control client against a socket whose far end the test holds: answers wait there before they are asked for.

import ControlProtocol
import Glibc
import SMMUClient
import Testing

/// A client, and the far end of its socket with these lines already sent.
///
/// The client's first id is 1.
private func client(reading lines: [String]) throws -> (client: ControlClient, server: CInt) {
    let (clientEnd, serverEnd) = try connectedPair()
    send(lines.flatMap { Array($0.utf8) + [UInt8(ascii: "\n")] }, to: serverEnd)
    let client = ControlClient(adopting: clientEnd)
    client.timeoutMilliseconds = 60_000
    return (client, serverEnd)
}

private let pulse =
    #"{"jsonrpc":"2.0","method":"interrupt","params":{"line":2,"label":"gerror","device":"/smmu","#
    + #""controller":"/intc","specifier":[0,76,1],"intid":108,"signal":"pulse","count":1}}"#

@Suite("Control client", .timeLimit(.minutes(20)))
struct ControlClientTests {
    @Test("A call sends one line and returns the result of its answer")
    func callsAreAnswered() throws {
        let (client, server) = try client(reading: [#"{"jsonrpc":"2.0","id":1,"result":{"value":"0xd"}}"#])
        defer { close(server) }
        let result = try client.call(Methods.BusLoad.self, .init(address: 0x1000, width: 64))
        #expect(result.value == 0xd)
        let sent = String(decoding: receive(from: server), as: UTF8.self)
        #expect(
            sent == #"{"id":1,"jsonrpc":"2.0","method":"bus.load","params":{"address":"0x1000","width":64}}"#
                + "\n"
        )
    }

    @Test("An error answer comes out as the daemon's error")
    func errorsComeOut() throws {
        let line =
            #"{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"nobody","data":{"kind":"bus-error"}}}"#
        let (client, server) = try client(reading: [line])
        defer { close(server) }
        let error = #expect(throws: ClientError.self) {
            try client.call(Methods.BusLoad.self, .init(address: 0))
        }
        guard case .refused(let refusal) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(refusal.code == .busError && refusal.message == "nobody" && refusal.data?.kind == "bus-error")
    }

    @Test("Notifications that come before an answer are kept for later, in order")
    func notificationsAreKept() throws {
        let (client, server) = try client(reading: [
            pulse, #"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            pulse.replacing("\"count\":1", with: "\"count\":2"),
        ])
        _ = try client.call(Methods.InterruptsSubscribe.self, .init(lines: [2]))
        shutdown(server, Int32(SHUT_WR))
        defer { close(server) }
        for count: Size in [1, 2] {
            let line = try #require(try client.nextNotification(timeoutMilliseconds: 60_000))
            #expect(try line.parameters(as: EventNotification.self) == nil)
            let signal = try #require(try line.parameters(as: InterruptNotification.self))
            #expect(signal.count == count && signal.line == 2 && signal.signal == .pulse)
        }
        #expect(try client.nextNotification(timeoutMilliseconds: 60_000) == nil, "the daemon is gone")
    }

    @Test("What is no answer, and an end in the middle, are errors")
    func garbageIsAnError() throws {
        let (garbled, garbledServer) = try client(reading: ["who are you?"])
        defer { close(garbledServer) }
        #expect(throws: ClientError.self) { try garbled.call(Methods.DaemonVersion.self, Nothing()) }
        let (cut, cutServer) = try client(reading: [])
        shutdown(cutServer, Int32(SHUT_WR))
        defer { close(cutServer) }
        #expect(throws: ClientError.disconnected(reason: "the daemon closed it")) {
            try cut.call(Methods.DaemonVersion.self, Nothing())
        }
    }

    @Test("A result of another shape is an error, not a guess")
    func wrongShapesAreErrors() throws {
        let (client, server) = try client(reading: [#"{"jsonrpc":"2.0","id":1,"result":{"wrong":1}}"#])
        defer { close(server) }
        #expect(throws: ClientError.self) { try client.call(Methods.BusLoad.self, .init(address: 0)) }
    }

    @Test("A silent daemon is given up on after the client's time")
    func silenceTimesOut() throws {
        let (client, server) = try client(reading: [])
        defer { close(server) }
        client.timeoutMilliseconds = 1
        #expect(throws: ClientError.timedOut) { try client.call(Methods.DaemonVersion.self, Nothing()) }
    }
}
