// The far end of a client's socket: a script of bytes on a thread of its own.

import CLinux
import Glibc
import HostIO
import Synchronization
import Testing
import VFIOUserClient

/// What a script may throw.
struct ScriptError: Error, CustomStringConvertible {
    var description: String
}

/// One end of a socket, with reads that give up in the end.
final class FakeServer: Sendable {
    let socket: CInt

    init(_ socket: CInt) {
        self.socket = socket
        // A script that waits for what does not come fails, instead of never ending.
        var time = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { _ = close(socket) }

    /// Receives so many bytes, and the descriptors that come with the first.
    func receive(_ byteCount: Int) throws -> (bytes: [UInt8], descriptors: [CInt]) {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        var descriptors: [CInt] = []
        var got = 0
        while got < byteCount {
            let count = bytes.withUnsafeMutableBytes { buffer in
                var vector = iovec(iov_base: buffer.baseAddress.map { $0 + got }, iov_len: byteCount - got)
                var isTruncated = false
                var fresh = [CInt](repeating: -1, count: 16)
                var freshCount = 0
                let count = smmud_recv_fds(
                    socket,
                    &vector,
                    1,
                    &fresh,
                    fresh.count,
                    &freshCount,
                    &isTruncated,
                    0
                )
                // With a message's first byte, or they count as too many.
                descriptors += fresh.prefix(freshCount)
                return count
            }
            guard count > 0 else {
                throw ScriptError(description: "\(got) bytes of \(byteCount) came, then \(count)")
            }
            got += count
        }
        return (bytes, descriptors)
    }

    /// Receives exactly these bytes, with so many descriptors, which are the caller's to close.
    @discardableResult
    func expect(_ expected: [UInt8], descriptorCount: Int = 0, line: Int = #line) throws -> [CInt] {
        let (bytes, descriptors) = try receive(expected.count)
        guard bytes == expected else {
            throw ScriptError(
                description: "line \(line): \(bytes.prefix(256)) is not \(expected.prefix(256))"
            )
        }
        guard descriptors.count == descriptorCount else {
            throw ScriptError(description: "line \(line): \(descriptors.count) descriptors")
        }
        return descriptors
    }

    /// Waits for the client to close its end, with nothing more to say.
    func expectEnd() throws {
        var byte: UInt8 = 0
        guard recv(socket, &byte, 1, 0) <= 0 else {
            throw ScriptError(description: "byte \(byte) at the end")
        }
    }

    func send(_ bytes: [UInt8], descriptors: [CInt] = []) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { buffer in
                var vector = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress.map { $0 + sent }),
                    iov_len: bytes.count - sent
                )
                let lent = sent == 0 ? descriptors : []
                return smmud_send_fds(socket, &vector, 1, lent, lent.count, 0)
            }
            guard count > 0 else { throw ScriptError(description: "send: \(count)") }
            sent += count
        }
    }

    /// Ends the connection, as the end of the process would.
    func die() { shutdown(socket, CInt(SHUT_RDWR)) }
}

/// A script on a thread of its own.
final class Script: Sendable {
    private let thread: Mutex<pthread_t?> = Mutex(nil)
    private let failure = Mutex<String?>(nil)

    init(_ body: @escaping @Sendable () throws -> Void) throws {
        let handle = try SystemThread.start(named: "script") { [self] in
            do { try body() } catch { failure.withLock { $0 = "\(error)" } }
        }
        thread.withLock { $0 = handle }
    }

    /// Waits for its end, and tells of what it found wrong.
    func finish(sourceLocation: SourceLocation = #_sourceLocation) {
        if let handle = thread.withLock({ $0.take() }) { SystemThread.join(handle) }
        let failure = failure.withLock { $0 }
        #expect(failure == nil, sourceLocation: sourceLocation)
    }
}

/// A pair of connected stream sockets.
func connectedPair() throws -> (client: CInt, server: CInt) {
    var ends: [CInt] = [-1, -1]
    let result = socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0, &ends)
    try #require(result == 0)
    return (ends[0], ends[1])
}

/// Runs `body` with a client whose server follows `script`, after the greeting.
///
/// - Parameter json: What the server says of itself.
func withServer(
    _ json: String? = "{}",
    options: VFIOUserClient.Options = VFIOUserClient.Options(),
    greets: Bool = true,
    _ script: @escaping @Sendable (FakeServer) throws -> Void,
    sourceLocation: SourceLocation = #_sourceLocation,
    client body: (VFIOUserClient) throws -> Void
) throws {
    let (client, server) = try connectedPair()
    let running = try Script {
        let server = FakeServer(server)
        if greets {
            try server.expect(greeting)
            try server.send(success(1, versionPayload(json), id: 0))
        }
        try script(server)
    }
    defer { running.finish(sourceLocation: sourceLocation) }
    try body(VFIOUserClient(adopting: client, options: options))
}

/// Options of a client that soon gives up.
var impatient: VFIOUserClient.Options {
    var options = VFIOUserClient.Options()
    options.timeoutMilliseconds = 100
    return options
}

/// A pipe, to see that a copy of its writing end is closed.
struct Pipe {
    let readingEnd: CInt
    let writingEnd: CInt

    init() throws {
        var ends: [CInt] = [-1, -1]
        try #require(pipe(&ends) == 0)
        (readingEnd, writingEnd) = (ends[0], ends[1])
    }

    /// Closes this process's own writing end, and waits until nobody else has one.
    func waitUntilClosed() -> Bool {
        _ = close(writingEnd)
        defer { _ = close(readingEnd) }
        var entry = pollfd(fd: readingEnd, events: Int16(POLLIN), revents: 0)
        return poll(&entry, 1, 20_000) == 1 && entry.revents & Int16(POLLHUP) != 0
    }
}

/// Whether an error says that the connection has ended.
func isDisconnected(_ error: VFIOUserClientError?) -> Bool {
    if case .disconnected? = error { return true }
    return false
}

/// Whether an error says that an answer is wrong.
func isViolation(_ error: VFIOUserClientError?) -> Bool {
    if case .violation? = error { return true }
    return false
}

/// What a call throws, which must be ``VFIOUserClientError``.
func failure(_ body: () throws -> Void) -> VFIOUserClientError? {
    do {
        try body()
        return nil
    } catch {
        return error as? VFIOUserClientError
    }
}
