// examples/dma_client.py against a small daemon of our own: another language speaks the protocol from its document.

import ControlProtocol
import Glibc
import Testing

@Suite("examples/dma_client.py", .timeLimit(.minutes(20)), .enabled(if: Python.isThere))
struct PythonClientTests {
    @Test("What it writes it reads back, inline and through shared memory")
    func dataComesBack() throws {
        let daemon = try ListeningDaemon()
        defer { daemon.stop() }
        #expect(try Python.run(daemon, ["write", "dma@1000", "0x10000", "some text"]).code == 0)
        #expect(try Python.run(daemon, ["read", "dma@1000", "0x10005", "4"]) == (0, "text"))
        #expect(try Python.run(daemon, ["write", "sid:0:0x42", "0x10000", "SOME", "--shared"]).code == 0)
        #expect(
            try Python.run(daemon, ["read", "sid:0:0x42", "0x10000", "9", "--shared"]) == (0, "SOME text")
        )
    }

    @Test("A fault is told with what came before it, and exits with 3")
    func faultsAreTold() throws {
        let daemon = try ListeningDaemon()
        defer { daemon.stop() }
        #expect(try Python.run(daemon, ["write", "dma@1000", "0x10ffe", "abcd"]).code == 3)
        let read = try Python.run(daemon, ["read", "dma@1000", "0x10ffe", "4"])
        #expect(read == (3, "abfault: event 0x10 at 0x11000 after 2 bytes\n"))
        #expect(try Python.run(daemon, ["read", "nobody", "0", "4"]).code == 1)
    }
}

/// A fake daemon that listens at a path; its memory outlives connections.
private final class ListeningDaemon: Sendable {
    let path: String
    private let socket: CInt

    init() throws {
        let path = "/tmp/smmud-test-\(getpid())-\(UInt32.random(in: 0 ... .max)).sock"
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        let result = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0 && listen(socket, 8) == 0)
        let memory = FakeDMADaemon.Memory()
        (self.path, self.socket) = (path, socket)
        onThread {
            while true {
                let connection = accept(socket, nil, nil)
                guard connection >= 0 else { return }
                var daemon = FakeDMADaemon(socket: connection, memory: memory)
                daemon.run()
            }
        }
    }

    /// Ends the listening thread.
    func stop() {
        shutdown(socket, Int32(SHUT_RDWR))
        close(socket)
        unlink(path)
    }
}

private enum Python {
    static let path = "/usr/bin/env"
    static var isThere: Bool { (try? output(of: ["python3", "-c", "print(1)"]))?.text == "1\n" }

    /// Runs the example against `daemon`: its exit code, and its two outputs as one text.
    static func run(_ daemon: ListeningDaemon, _ arguments: [String]) throws -> (code: Int32, text: String) {
        let package = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
        return try output(
            of: ["python3", package + "/examples/dma_client.py"] + arguments + ["--socket", daemon.path]
        )
    }

    private static func output(of command: [String]) throws -> (code: Int32, text: String) {
        var ends: [CInt] = [-1, -1]
        try #require(pipe(&ends) == 0)
        for end in ends { try #require(fcntl(end, F_SETFD, FD_CLOEXEC) == 0) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO)
        var arguments = ([path] + command).map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        let result = posix_spawn(&process, path, &actions, nil, &arguments, environ)
        close(ends[1])
        defer { close(ends[0]) }
        try #require(result == 0)
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while case let count = read(ends[0], &buffer, buffer.count), count > 0 {
            text += buffer.prefix(count)
        }
        var status: CInt = 0
        waitpid(process, &status, 0)
        return ((status >> 8) & 0xff, String(decoding: text, as: UTF8.self))
    }
}
