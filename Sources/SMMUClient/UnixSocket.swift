// One end of a Unix stream socket: connect, send, receive, with file descriptors beside the bytes.

import CLinux
package import ControlProtocol
import Glibc

/// What can go wrong between a client and the daemon.
package enum ClientError: Error, Equatable, Sendable {
    /// Nobody listens at the path, or it cannot be reached.
    case cannotConnect(path: String, reason: String)
    /// The connection ended, or broke, before the answer.
    case disconnected(reason: String)
    /// No answer came within the time that the client gives.
    case timedOut
    /// What the daemon sent is not what its protocol says.
    case violation(String)
    /// The daemon answered with an error.
    case refused(ControlError)
    /// The daemon answered a DMA request with a status that is no outcome.
    case rejected(status: UInt16, message: String)
    /// This process could not do its part: a mapping, a descriptor.
    case local(String)
}

extension ClientError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .cannotConnect(let path, let reason): "cannot connect to \(path): \(reason)"
        case .disconnected(let reason): "the connection to the daemon ended: \(reason)"
        case .timedOut: "the daemon did not answer in time"
        case .violation(let text): "the daemon sent something unexpected: \(text)"
        case .refused(let error): error.message
        case .rejected(let status, let message): "\(message) (status \(status))"
        case .local(let text): text
        }
    }
}

/// A connected stream socket with one owner.
struct UnixSocket: ~Copyable {
    private let descriptor: CInt

    /// Takes over a socket that is connected already.
    init(adopting descriptor: CInt) { self.descriptor = descriptor }

    /// Connects to the socket at `path`.
    init(connectingTo path: String) throws(ClientError) {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < capacity, !bytes.contains(0) else {
            throw .cannotConnect(path: path, reason: "a socket's path has 1 to \(capacity - 1) bytes")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw .cannotConnect(path: path, reason: errorText(errno)) }
        let result = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            let reason = errorText(errno)
            _ = Glibc.close(descriptor)
            throw .cannotConnect(path: path, reason: reason)
        }
        self.descriptor = descriptor
    }

    deinit { _ = Glibc.close(descriptor) }

    /// Sends all of `bytes`, `descriptors` with the first of them.
    borrowing func send(_ bytes: UnsafeRawBufferPointer, descriptors: [CInt] = []) throws(ClientError) {
        var rest = bytes
        var descriptors = descriptors
        while let base = rest.baseAddress, !rest.isEmpty {
            var vector = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: rest.count)
            let sent = smmud_send_fds(descriptor, &vector, 1, descriptors, descriptors.count, 0)
            guard sent > 0 else { throw .disconnected(reason: errorText(CInt(truncatingIfNeeded: -sent))) }
            descriptors = []
            rest = UnsafeRawBufferPointer(rebasing: rest[sent...])
        }
    }

    /// Sends all of `bytes`, `descriptors` with the first of them.
    borrowing func send(_ bytes: [UInt8], descriptors: [CInt] = []) throws(ClientError) {
        try bytes.withUnsafeBufferPointer { (bytes) throws(ClientError) in
            try send(UnsafeRawBufferPointer(bytes), descriptors: descriptors)
        }
    }

    /// Receives what is there, at least a byte.
    ///
    /// - Parameters:
    ///   - bytes: Where to put it.
    ///   - descriptors: Gets the descriptors that came along; they are then the caller's to close.
    ///   - timeoutMilliseconds: How long to wait; nil is for ever.
    /// - Returns: How many bytes came; 0 at the end of the stream.
    borrowing func receive(
        into bytes: UnsafeMutableRawBufferPointer,
        descriptors: inout [CInt],
        timeoutMilliseconds: Int?
    ) throws(ClientError) -> Int {
        if let timeoutMilliseconds { try wait(timeoutMilliseconds) }
        var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        var isTruncated = false
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
            descriptors += fresh.prefix(count)
            return received
        }
        guard received >= 0 else {
            throw .disconnected(reason: errorText(CInt(truncatingIfNeeded: -received)))
        }
        guard !isTruncated else { throw .violation("more file descriptors than a message may carry") }
        return received
    }

    private borrowing func wait(_ timeoutMilliseconds: Int) throws(ClientError) {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while true {
            let result = poll(&entry, 1, Int32(clamping: timeoutMilliseconds))
            if result > 0 { return }
            if result == 0 { throw .timedOut }
            guard errno == EINTR else { throw .disconnected(reason: errorText(errno)) }
        }
    }
}

/// Closes a descriptor that came along and that nobody wants.
func closeDescriptor(_ descriptor: CInt) { _ = Glibc.close(descriptor) }

/// The system's words for an error number.
func errorText(_ number: CInt) -> String {
    guard let text = strerror(number) else { return "error \(number)" }
    return String(cString: text)
}
