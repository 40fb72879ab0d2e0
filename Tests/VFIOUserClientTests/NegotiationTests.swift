// How a client and a server come to terms.

import Glibc
import HostIO
import Testing
import VFIOUserClient

@Suite("Coming to terms with a server")
struct NegotiationTests {
    @Test("A server that says nothing has the specification's limits")
    func defaults() throws {
        for json in [nil, "{}", #"{"capabilities":{}}"#] {
            try withServer(json) { _ in
            } client: { client in
                #expect(client.server.minorVersion == 0)
                #expect(client.server.descriptorCountMax == 1)
                #expect(client.server.dataByteCountMax == 1 << 20)
                #expect(client.server.mappingCountMax == 65535)
                #expect(client.server.pageSizes == 4096)
                #expect(!client.server.takesMultipleWrites)
                #expect(!client.server.hasTwinSocket)
            }
        }
    }

    @Test("A server's limits are taken, and members that nobody knows are not looked at")
    func limits() throws {
        let json =
            #"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":65536,"migration":{"pgsize":4096},"#
            + #""max_dma_maps":12,"pgsizes":2101248,"write_multiple":true,"x":[1,{"y":null}]}}"#
        try withServer(json) { _ in
        } client: { client in
            #expect(client.server.descriptorCountMax == 8)
            #expect(client.server.dataByteCountMax == 65536)
            #expect(client.server.mappingCountMax == 12)
            #expect(client.server.pageSizes == 0x20_1000)
            #expect(client.server.takesMultipleWrites)
        }
    }

    @Test(
        "No terms: another version, a text that is none, limits that make no sense, a twin socket that is not there",
        arguments: [
            success(1, versionPayload("{}", major: 1), id: 0),
            success(1, versionPayload("{}", minor: 2), id: 0),
            success(1, [0, 0], id: 0), success(1, versionPayload("{}").dropLast() + [], id: 0),
            success(1, versionPayload("{"), id: 0), success(1, versionPayload("[]"), id: 0),
            success(1, versionPayload(#"{"capabilities":{"max_msg_fds":"1"}}"#), id: 0),
            success(1, versionPayload(#"{"capabilities":{"max_msg_fds":-1}}"#), id: 0),
            success(1, versionPayload(#"{"capabilities":{"max_data_xfer_size":0}}"#), id: 0),
            success(1, versionPayload(#"{"capabilities":{"twin_socket":{"supported":true}}}"#), id: 0),
            success(
                1,
                versionPayload(#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#),
                id: 0
            ),
            success(4, versionPayload("{}"), id: 0), success(1, versionPayload("{}"), id: 9),
            command(11, longs(0, 1), id: 0), refusal(1, 22, id: 0),
        ]
    )
    func noTerms(_ reply: [UInt8]) throws {
        let (client, server) = try connectedPair()
        let script = try Script {
            let server = FakeServer(server)
            try server.expect(greeting)
            try server.send(reply)
            try server.expectEnd()
        }
        let error = failure { _ = try VFIOUserClient(adopting: client) }
        script.finish()
        guard case .notAgreed(let reason)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        if reply == refusal(1, 22, id: 0) { #expect(reason == "it answered VERSION: Invalid argument") }
    }

    @Test("A server that ends before it answers, at any byte of its answer")
    func endsEarly() throws {
        let reply = success(1, versionPayload("{}"), id: 0)
        for byteCount in 0..<reply.count {
            let (client, server) = try connectedPair()
            let script = try Script {
                let server = FakeServer(server)
                try server.expect(greeting)
                try server.send(Array(reply.prefix(byteCount)))
            }
            #expect(
                isDisconnected(failure { _ = try VFIOUserClient(adopting: client) }),
                "\(byteCount) bytes"
            )
            script.finish()
        }
    }

    @Test("A server that never answers VERSION is given up")
    func silence() throws {
        let (client, server) = try connectedPair()
        let script = try Script {
            let server = FakeServer(server)
            try server.expect(greeting)
            try server.expectEnd()
        }
        let error = failure { _ = try VFIOUserClient(adopting: client, options: impatient) }
        #expect(error == .timedOut(command: "VERSION"))
        script.finish()
    }

    @Test("Paths at which nobody listens, and that are no paths")
    func badPaths() {
        for path in ["", "/nonexistent/socket", String(repeating: "x", count: 108), "a\0b"] {
            guard case .cannotConnect(let named, _)? = failure({ _ = try VFIOUserClient(path: path) }) else {
                Issue.record("connected to \(path)")
                continue
            }
            #expect(named == path)
        }
    }

    @Test("Connects to a path, and closing it ends the server's connection")
    func path() throws {
        let path = "/tmp/vfu-client-test-\(getpid()).sock"
        unlink(path)
        let listener = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        defer {
            close(listener)
            unlink(path)
        }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let isBound = withUnsafePointer(to: &address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0 && listen(listener, 1) == 0
            }
        }
        try #require(isBound)
        let script = try Script {
            let server = FakeServer(accept(listener, nil, nil))
            try server.expect(greeting)
            try server.send(success(1, versionPayload(nil), id: 0))
            try server.expectEnd()
        }
        let client = try VFIOUserClient(path: path)
        client.close()
        script.finish()
        #expect(client.ending == .disconnected(reason: "this client closed it"))
        #expect(failure { try client.reset() } == .disconnected(reason: "this client closed it"))
    }

    @Test("Limits of its own that make no sense are refused")
    func badOptions() throws {
        for count in [0, -1, 1 << 27] {
            var options = VFIOUserClient.Options()
            options.dataByteCountMax = count
            let (client, server) = try connectedPair()
            defer { close(server) }
            guard case .invalid? = failure({ _ = try VFIOUserClient(adopting: client, options: options) })
            else {
                Issue.record("took \(count)")
                continue
            }
        }
    }
}
