// The reference suite's test_negotiate, over a socket.

import Glibc
import Testing

@Suite("VERSION over a socket")
struct NegotiationTests {
    private func text(_ answer: [UInt8]) -> String {
        String(decoding: answer.dropFirst(20).dropLast(), as: UTF8.self)
    }

    @Test("test_valid_negotiate: a full offer is answered with version 0.0 and our limits, within its length")
    func full() throws {
        let server = try TestServer()
        let client = try server.client()
        let request = command(1, versionPayload(qemuOffer), id: 0x1234)
        let answer = try client.ask(request)
        #expect(Array(answer.prefix(20)) == header(0x1234, 1, size: answer.count, flags: 1) + [0, 0, 0, 0])
        #expect(answer.last == 0)
        #expect(answer.count <= request.count)
        #expect(text(answer).contains(#""max_msg_fds":16"#))
        #expect(text(answer).contains(#""max_data_xfer_size":1048576"#))
        #expect(text(answer).contains(#""write_multiple":true"#))
        #expect(try client.isAlive())
    }

    @Test(
        "test_valid_negotiate_no_json, _empty_json: no text and empty ones are answered with a terminated text",
        arguments: [nil, "{}", #"{"capabilities":{}}"#]
    )
    func sparse(_ json: String?) throws {
        let server = try TestServer()
        let client = try server.client()
        let answer = try client.ask(command(1, versionPayload(json, minor: 1)))
        #expect(Array(answer[16..<20]) == [0, 0, 1, 0])
        #expect(answer.last == 0)
        #expect(text(answer).contains(#""max_msg_fds":16,"max_data_xfer_size":1048576"#))
        #expect(try client.isAlive())
    }

    /// The cases by the reference suite's names, and what is sent after the version.
    static let bad: [(name: String, payload: [UInt8])] = [
        ("short write", [0, 0]),
        ("bad major", versionPayload("{}", major: 1)),
        ("json not terminated", Array(versionPayload("{}").dropLast())),
        ("json missing a brace", versionPayload(#"{"capabilities":{"max_msg_fds":1}"#)),
        ("json missing a quote", versionPayload(#"{"capabilities":{"max_msg_fds:1}}"#)),
        ("capabilities of a wrong type", versionPayload(#"{"capabilities":"abc"}"#)),
        ("max_msg_fds of a wrong type", versionPayload(#"{"capabilities":{"max_msg_fds":"foo"}}"#)),
        ("max_msg_fds too low", versionPayload(#"{"capabilities":{"max_msg_fds":-1}}"#)),
        ("max_msg_fds too high", versionPayload(#"{"capabilities":{"max_msg_fds":1025}}"#)),
        ("migration of a wrong type", versionPayload(#"{"capabilities":{"migration":"abc"}}"#)),
        ("pgsize of a wrong type", versionPayload(#"{"capabilities":{"migration":{"pgsize":"x"}}}"#)),
    ]

    @Test("test_negotiate: nonsense is refused with EINVAL and the connection ends", arguments: bad.indices)
    func refused(_ index: Int) throws {
        let server = try TestServer()
        let client = try server.client()
        #expect(
            try client.ask(command(1, Self.bad[index].payload)) == refusal(1, 22),
            "\(Self.bad[index].name)"
        )
        #expect(client.isAtEnd)
        // The next client is served.
        #expect(try server.greeted().isAlive())
    }

    // The reference library refuses a migration.pgsize that is not its own page size; the specification has no such
    // member any more, so that a client's opinion of it is of no meaning.
    @Test("test_invalid_pgsize differs: an odd page size of the migration that is gone is ignored")
    func pageSize() throws {
        let server = try TestServer()
        #expect(try server.greeted(#"{"capabilities":{"migration":{"pgsize":4095}}}"#).isAlive())
    }

    @Test(
        "test_invalid_command: another first command is refused and the connection ends",
        arguments: [4, 13, 99]
    )
    func otherFirst(_ number: UInt16) throws {
        let server = try TestServer()
        let client = try server.client()
        #expect(try client.ask(command(number, words(16, 0, 0, 0))) == refusal(number, 22))
        #expect(client.isAtEnd)
    }

    @Test("test_too_long: a first message beyond all limits is refused by its header")
    func tooLong() throws {
        let server = try TestServer()
        let client = try server.client()
        #expect(try client.ask(header(7, 1, size: 0x7fff_ffff)) == refusal(1, 22))
        #expect(client.isAtEnd)
    }

    @Test("Descriptors with VERSION are refused, and closed")
    func descriptors() throws {
        let server = try TestServer()
        let client = try server.client()
        let file = try memoryFile()
        defer { close(file) }
        #expect(try client.ask(command(1, versionPayload("{}")), descriptors: [file]) == refusal(1, 22))
        #expect(client.isAtEnd)
        #expect(eventually { copies(of: file) == 1 })
    }

    @Test("A second VERSION ends the connection")
    func twice() throws {
        let server = try TestServer()
        let client = try server.greeted()
        #expect(try client.ask(command(1, versionPayload("{}"))) == refusal(1, 22))
        #expect(client.isAtEnd)
    }
}
