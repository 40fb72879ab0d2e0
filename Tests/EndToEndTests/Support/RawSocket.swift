// A client without manners: any bytes, any file descriptors, at any time.

import CLinux
import Glibc

/// A connected Unix socket.
final class RawSocket: Sendable {
    let descriptor: CInt

    init(_ path: String) throws {
        descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        guard Self.connect(descriptor, path) == 0 else {
            let reason = String(cString: strerror(errno))
            throw TestFailure("cannot connect to \(path): \(reason)")
        }
    }

    deinit { close(descriptor) }

    private static func connect(_ descriptor: CInt, _ path: String) -> CInt {
        withAddress(of: path) { Glibc.connect(descriptor, $0, $1) }
    }

    /// Leaves a socket file at the path as a daemon does that was killed.
    static func leaveStaleSocket(at path: String) throws {
        let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        guard withAddress(of: path, { bind(descriptor, $0, $1) }) == 0 else { throw TestFailure("bind") }
    }

    private static func withAddress(
        of path: String,
        _ body: (UnsafePointer<sockaddr>, socklen_t) -> CInt
    ) -> CInt {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        return withUnsafePointer(to: address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    /// Sends bytes, with descriptors attached to the first of them.
    ///
    /// - Returns: Whether the other end took them all.
    @discardableResult
    func send(_ bytes: [UInt8], descriptors: [CInt] = []) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes { rest in
                var vector = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: rest.baseAddress),
                    iov_len: rest.count
                )
                let attached = sent == 0 ? descriptors : []
                return smmud_send_fds(descriptor, &vector, 1, attached, attached.count, 0)
            }
            guard count > 0 else { return false }
            sent += count
        }
        return true
    }

    /// Says that no more comes.
    func endSending() { shutdown(descriptor, CInt(SHUT_WR)) }

    /// Waits for bytes, at least one.
    ///
    /// - Returns: What came; nothing at the end of the stream.
    func receive() throws -> [UInt8] {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, ChildProcess.patienceMilliseconds) > 0 else {
            throw TestFailure("nothing came")
        }
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        let count = recv(descriptor, &bytes, bytes.count, 0)
        return Array(bytes[..<max(0, count)])
    }

    /// Waits for so many bytes, or for the end.
    func receive(_ count: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let more = try receive()
            if more.isEmpty { break }
            bytes += more
        }
        return bytes
    }

    /// Everything up to the end of the stream.
    func receiveToEnd() throws -> [UInt8] { try receive(.max) }

    /// The lines up to the end of the stream.
    func linesToEnd() throws -> [String] {
        String(decoding: try receiveToEnd(), as: UTF8.self).split(separator: "\n").map(String.init)
    }
}

/// Runs a body on so many threads at once, and waits for all of them.
///
/// - Returns: What any of them threw.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) -> [any Error] {
    final class Task: @unchecked Sendable {
        // Unchecked: the error is written by one thread and read after it is joined.
        let index: Int
        let body: @Sendable (Int) throws -> Void
        var error: (any Error)?

        init(_ index: Int, _ body: @escaping @Sendable (Int) throws -> Void) {
            self.index = index
            self.body = body
        }
    }
    let tasks = (0..<count).map { Task($0, body) }
    var threads: [pthread_t] = []
    for task in tasks {
        var thread = pthread_t()
        let created = pthread_create(
            &thread,
            nil,
            { argument in
                guard let argument else { return nil }
                let task = Unmanaged<Task>.fromOpaque(argument).takeUnretainedValue()
                do { try task.body(task.index) } catch { task.error = error }
                return nil
            },
            Unmanaged.passUnretained(task).toOpaque()
        )
        if created == 0 { threads.append(thread) } else { task.error = TestFailure("no thread") }
    }
    for thread in threads { pthread_join(thread, nil) }
    return withExtendedLifetime(tasks) { tasks.compactMap(\.error) }
}
