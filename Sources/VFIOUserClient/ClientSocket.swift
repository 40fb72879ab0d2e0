// One connected socket: whole messages out, bytes and descriptors in.

import CLinux
import Glibc
import Synchronization

/// A connected stream socket that many threads send on and one receives from.
///
/// The lock is a leaf, and is held while a message is sent: messages are not mixed.
final class ClientSocket: Sendable {
    private let descriptor: CInt
    private let sending = Mutex(())

    /// Takes over a socket that is connected.
    ///
    /// - Parameter sendTimeoutMilliseconds: How long a server may let its socket stay full before it is given up.
    init(adopting descriptor: CInt, sendTimeoutMilliseconds: Int?) {
        self.descriptor = descriptor
        Self.setSendTimeout(sendTimeoutMilliseconds, of: descriptor)
    }

    deinit { _ = close(descriptor) }

    /// Connects to the server that listens at `path`.
    static func connect(to path: String, timeoutMilliseconds: Int?) throws(VFIOUserClientError)
        -> ClientSocket
    {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < capacity, !bytes.contains(0) else {
            throw .cannotConnect(path: path, reason: "a socket's path has 1 to \(capacity - 1) bytes")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw .cannotConnect(path: path, reason: errorText(errno)) }
        // A server that serves one client leaves the next in its backlog: connecting waits no longer than sending.
        let result = ClientSocket(adopting: descriptor, sendTimeoutMilliseconds: timeoutMilliseconds)
        let status = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard status == 0 else {
            let reason = errno == EAGAIN ? "the server accepts no client" : errorText(errno)
            throw .cannotConnect(path: path, reason: reason)
        }
        return result
    }

    private static func setSendTimeout(_ milliseconds: Int?, of descriptor: CInt) {
        guard let milliseconds else { return }
        let clamped = max(1, min(milliseconds, 1 << 30))
        var time = timeval(tv_sec: clamped / 1000, tv_usec: suseconds_t(clamped % 1000 * 1000))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    /// Sends a whole message, with descriptors beside its first byte; they stay the caller's.
    ///
    /// - Returns: Nil, or why it did not go out. Then part of it may have, and no more can be sent.
    func send(_ message: [UInt8], descriptors: [CInt] = []) -> String? {
        sending.withLock { _ in
            message.withUnsafeBytes { bytes in
                var rest = bytes
                var descriptors = descriptors
                while let base = rest.baseAddress, !rest.isEmpty {
                    var vector = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: rest.count)
                    let sent = smmud_send_fds(descriptor, &vector, 1, descriptors, descriptors.count, 0)
                    guard sent > 0 else {
                        return sent == -Int(EAGAIN)
                            ? "the server does not read what it is sent"
                            : errorText(CInt(truncatingIfNeeded: -sent))
                    }
                    descriptors = []
                    rest = UnsafeRawBufferPointer(rebasing: rest[sent...])
                }
                return nil
            }
        }
    }

    /// What ``receive(into:takesDescriptors:)`` brought.
    enum Received {
        /// So many bytes, at least one, and what came along.
        case bytes(Int, ReceivedDescriptors?, areDescriptorsLost: Bool)
        /// The stream ended, for this reason.
        case end(String?)
    }

    /// Waits for bytes.
    ///
    /// - Parameter takesDescriptors: Whether they are a message's first. Where not, no descriptors belong to them,
    ///   and the kernel closes those that come.
    func receive(into bytes: UnsafeMutableRawBufferPointer, takesDescriptors: Bool) -> Received {
        guard takesDescriptors else {
            while true {
                let count = recv(descriptor, bytes.baseAddress, bytes.count, 0)
                if count > 0 { return .bytes(count, nil, areDescriptorsLost: false) }
                guard count < 0, errno == EINTR else { return .end(count == 0 ? nil : errorText(errno)) }
            }
        }
        var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        var isTruncated = false
        var descriptors: ReceivedDescriptors?
        let received = withUnsafeTemporaryAllocation(of: CInt.self, capacity: Int(SMMUD_MAX_FDS)) { fresh in
            var count = 0
            let received = smmud_recv_fds(
                descriptor,
                &vector,
                1,
                fresh.baseAddress,
                fresh.count,
                &count,
                &isTruncated,
                0
            )
            if count > 0 { descriptors = ReceivedDescriptors(adopting: Array(fresh.prefix(count))) }
            return received
        }
        if received > 0 { return .bytes(received, descriptors, areDescriptorsLost: isTruncated) }
        return .end(received == 0 ? nil : errorText(CInt(truncatingIfNeeded: -received)))
    }

    /// Ends both directions: whoever sends or receives waits no longer.
    func abandon() { shutdown(descriptor, CInt(SHUT_RDWR)) }
}

/// Descriptors that came with a message: those that nobody takes are closed.
final class ReceivedDescriptors: Sendable {
    private let numbers: Mutex<[CInt?]>

    init(adopting numbers: [CInt]) { self.numbers = Mutex(numbers.map { $0 }) }

    deinit {
        for case let number? in numbers.withLock({ $0 }) { _ = close(number) }
    }

    /// How many came.
    var count: Int { numbers.withLock { $0.count } }

    /// Gives one away, which is then the caller's to close; nil where there is none of this number any more.
    func take(_ index: Int) -> CInt? {
        numbers.withLock { numbers in
            guard numbers.indices.contains(index) else { return nil }
            defer { numbers[index] = nil }
            return numbers[index]
        }
    }
}
