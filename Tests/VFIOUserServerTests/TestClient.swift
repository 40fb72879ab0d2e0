// A client of a few lines, which sends whatever a test wants.

import CLinux
import Glibc
import HostIO
import Testing

/// Something did not come within a time that is longer than any machine needs.
struct Nothing: Error {}

/// One connection to a server.
final class TestClient {
    let socket: CInt
    private var isOpen = true

    init(adopting socket: CInt) {
        self.socket = socket
        // Only for tests that fail: they end.
        var patience = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
    }

    convenience init(path: String) throws {
        let socket = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        try #require(socket >= 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0)
        self.init(adopting: socket)
    }

    deinit { close() }

    func close() {
        if isOpen { Glibc.close(socket) }
        isOpen = false
    }

    func send(_ bytes: [UInt8], descriptors: [CInt] = []) {
        bytes.withUnsafeBytes { bytes in
            var sent = 0
            while sent < bytes.count {
                var vector = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress)?.advanced(by: sent),
                    iov_len: bytes.count - sent
                )
                let count = smmud_send_fds(
                    socket,
                    &vector,
                    1,
                    sent == 0 ? descriptors : [],
                    sent == 0 ? descriptors.count : 0,
                    0
                )
                guard count > 0 else { return }
                sent += count
            }
        }
    }

    /// Exactly so many bytes; fewer where the stream ends before.
    func receive(_ byteCount: Int) -> (bytes: [UInt8], descriptors: [CInt]) {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        var received = 0
        var descriptors: [CInt] = []
        while received < byteCount {
            var numbers = [CInt](repeating: -1, count: Int(SMMUD_MAX_FDS))
            var count = 0
            var isTruncated = false
            let result = bytes.withUnsafeMutableBytes { bytes in
                var vector = iovec(
                    iov_base: bytes.baseAddress?.advanced(by: received),
                    iov_len: byteCount - received
                )
                return smmud_recv_fds(socket, &vector, 1, &numbers, numbers.count, &count, &isTruncated, 0)
            }
            descriptors += numbers.prefix(count)
            guard result > 0 else { break }
            received += result
        }
        return (Array(bytes.prefix(received)), descriptors)
    }

    /// One message.
    func message() throws -> (bytes: [UInt8], descriptors: [CInt]) {
        let (head, descriptors) = receive(16)
        guard head.count == 16 else { throw Nothing() }
        let size = Int(head[4]) | Int(head[5]) << 8 | Int(head[6]) << 16 | Int(head[7]) << 24
        let (rest, stray) = receive(max(0, size - 16))
        #expect(stray.isEmpty, "descriptors come with a message's first byte")
        return (head + rest, descriptors)
    }

    /// The answer to a message.
    func ask(_ bytes: [UInt8], descriptors: [CInt] = []) throws -> [UInt8] {
        send(bytes, descriptors: descriptors)
        let answer = try message()
        #expect(answer.descriptors.isEmpty)
        for descriptor in answer.descriptors { Glibc.close(descriptor) }
        return answer.bytes
    }

    /// Whether the server has ended the connection: nothing more comes.
    var isAtEnd: Bool {
        var byte: UInt8 = 0
        return recv(socket, &byte, 1, 0) == 0
    }

    func greet(_ json: String? = qemuOffer) throws {
        let answer = try ask(command(1, versionPayload(json)))
        try #require(answer.count > 20 && answer[8] == 1)
    }

    /// Asks something harmless: an answer says that all before it has been carried out, and that nothing is left in
    /// the stream.
    func isAlive() throws -> Bool {
        try ask(command(4, words(16, 0, 0, 0), id: 0x7777)) == success(4, words(16, 3, 9, 5), id: 0x7777)
    }
}

// MARK: Descriptors

/// A file of its own in memory, of so many bytes.
func memoryFile(_ byteCount: UInt64 = 4096) throws -> CInt {
    let descriptor = smmud_memfd_create_unsealed("test", byteCount)
    try #require(descriptor >= 0)
    return descriptor
}

func eventfd() throws -> CInt {
    let descriptor = smmud_eventfd()
    try #require(descriptor >= 0)
    return descriptor
}

/// The counter, which is 0 afterwards.
func drain(_ eventfd: CInt) -> UInt64 {
    var count: UInt64 = 0
    return read(eventfd, &count, 8) == 8 ? count : 0
}

/// Waits until an eventfd is signalled, and gives its counter.
func awaitSignal(_ eventfd: CInt) throws -> UInt64 {
    var entry = pollfd(fd: eventfd, events: Int16(POLLIN), revents: 0)
    guard poll(&entry, 1, 20_000) == 1 else { throw Nothing() }
    return drain(eventfd)
}

/// How many descriptors of this process are of the same file.
func copies(of descriptor: CInt) -> Int {
    guard let directory = opendir("/proc/self/fd") else { return -1 }
    defer { closedir(directory) }
    let wanted = identity(descriptor)
    var count = 0
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        if let number = CInt(name), identity(number) == wanted { count += 1 }
    }
    return count
}

/// What tells a file from all others: its inode, and an eventfd's number, as all eventfds have one inode.
private func identity(_ descriptor: CInt) -> String {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { return "" }
    let file = open("/proc/self/fdinfo/\(descriptor)", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return "" }
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 1024)
    let count = read(file, &bytes, bytes.count)
    let lines = String(decoding: bytes.prefix(max(0, count)), as: UTF8.self).split(separator: "\n")
    let number = lines.first { $0.hasPrefix("eventfd-id:") } ?? ""
    return "\(status.st_dev) \(status.st_ino) \(number)"
}

/// Waits for what another thread brings about.
func eventually(_ condition: () -> Bool) -> Bool {
    for _ in 0..<20_000 {
        if condition() { return true }
        usleep(1000)
    }
    return false
}

/// Runs `body` while `background` runs on a thread of its own, and waits for both.
func withBackground(_ background: @escaping @Sendable () -> Void, _ body: () -> Void) throws {
    let thread = try SystemThread.start(named: "background", background)
    body()
    SystemThread.join(thread)
}
