// Frames over a stream socket, each behind its length, as QEMU's stream netdev has them.

import CLinux
package import Glibc
package import HostIO
import Synchronization
package import SystemPackage

/// A network back end on a Unix stream socket: 4 bytes of length, big-endian, then the frame.
package final class NetStream: NetBackend {
    private enum Role {
        case server(UnixListener)
        case client(sockaddr_un)
    }
    private let role: Role
    /// Readable when there is a new peer: the thread that receives has to wait for it.
    private let arrival: WakeEvent

    private struct Peer {
        var descriptor: CInt = -1
        /// Bytes of frames that have come, from ``inputStart`` on.
        var input: [UInt8] = []
        /// What is left of a frame of which a part has gone.
        var output: [UInt8] = []
    }
    private let peer = Mutex(Peer())

    /// The longest frame that is taken for one: beyond it the peer does not speak this.
    private static let frameByteCountMax = 1 << 17

    /// Listens at `path` for a peer, one at a time.
    package init(listeningAt path: String) throws(ListenerError) {
        do throws(Errno) {
            arrival = try WakeEvent()
        } catch {
            throw .refused(path: path, call: "eventfd", error)
        }
        role = .server(try UnixListener(path: path))
    }

    /// Connects to `path`, and again when the peer has gone, whenever there is a frame to send.
    package init(connectingTo path: String) throws(Errno) {
        guard let address = unixAddress(path) else { throw .invalidArgument }
        arrival = try WakeEvent()
        role = .client(address)
    }

    deinit {
        peer.withLock { if $0.descriptor >= 0 { close($0.descriptor) } }
        if case .server(let listener) = role { listener.close() }
    }

    package func pollEntries(reading: Bool, writing: Bool) -> [pollfd] {
        let (descriptor, hasOutput) = peer.withLock { ($0.descriptor, !$0.output.isEmpty) }
        var entries: [pollfd] = []
        if reading { entries.append(pollfd(fd: arrival.descriptor, events: Int16(POLLIN), revents: 0)) }
        guard descriptor >= 0 else {
            if case .server(let listener) = role, reading {
                entries.append(pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0))
            }
            return entries
        }
        let isWriting = writing || hasOutput
        guard reading || isWriting else { return entries }
        let events = (reading ? POLLIN : 0) | (isWriting ? POLLOUT : 0)
        entries.append(pollfd(fd: descriptor, events: Int16(events), revents: 0))
        return entries
    }

    package func prepare() {
        let isNew: Bool = peer.withLock { peer in
            guard peer.descriptor < 0 else {
                _ = push(&peer)
                return false
            }
            peer.descriptor = meet()
            return peer.descriptor >= 0
        }
        if isNew { arrival.signal() }
    }

    /// A new peer's descriptor, or a negative number.
    private func meet() -> CInt {
        switch role {
        case .server(let listener):
            let accepted = smmud_accept(listener.descriptor)
            guard accepted >= 0 else { return -1 }
            _ = fcntl(accepted, F_SETFL, fcntl(accepted, F_GETFL) | O_NONBLOCK)
            return accepted
        case .client(let address):
            let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue) | CInt(SOCK_NONBLOCK.rawValue)
            let descriptor = socket(AF_UNIX, kind, 0)
            guard descriptor >= 0 else { return -1 }
            guard withUnixAddress(address, { connect(descriptor, $0, $1) }) == 0 else {
                close(descriptor)
                return -1
            }
            return descriptor
        }
    }

    private func hangUp(_ peer: inout Peer) {
        close(peer.descriptor)
        peer = Peer()
    }

    // MARK: Frames

    package func send(_ frame: UnsafeRawBufferPointer) -> NetSendOutcome {
        peer.withLock { peer in
            guard peer.descriptor >= 0 else { return .dropped }
            guard push(&peer) else { return peer.descriptor >= 0 ? .later : .dropped }
            let length = UInt32(frame.count)
            peer.output = (0..<4).map { UInt8(truncatingIfNeeded: length >> (24 - 8 * UInt32($0))) }
            peer.output.append(contentsOf: frame)
            // What does not go now goes when the peer takes more: whoever waits for this wakes then.
            _ = push(&peer)
            return .sent
        }
    }

    /// Sends what is left of former frames; false where the peer takes no more, or has gone.
    private func push(_ peer: inout Peer) -> Bool {
        while !peer.output.isEmpty {
            let count = peer.output.withUnsafeMutableBytes { bytes in
                var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                return smmud_send_fds(peer.descriptor, &vector, 1, nil, 0, 0)
            }
            guard count >= 0 else {
                if Int32(count) != -EAGAIN { hangUp(&peer) }
                return false
            }
            peer.output.removeFirst(count)
        }
        return true
    }

    package func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int? {
        arrival.reset()
        return peer.withLock { peer in
            while peer.descriptor >= 0 {
                if let count = takeFrame(&peer, buffer) { return count }
                guard peer.descriptor >= 0, fill(&peer) else { return nil }
            }
            return nil
        }
    }

    /// Takes a frame that is there as a whole.
    private func takeFrame(_ peer: inout Peer, _ buffer: UnsafeMutableRawBufferPointer) -> Int? {
        guard peer.input.count >= 4 else { return nil }
        let length = peer.input[..<4].reduce(0) { $0 << 8 | Int($1) }
        guard length <= Self.frameByteCountMax else {
            hangUp(&peer)
            return nil
        }
        guard peer.input.count >= 4 + length else { return nil }
        let count = min(length, buffer.count)
        for index in 0..<count { buffer[index] = peer.input[4 + index] }
        peer.input.removeFirst(4 + length)
        return count
    }

    /// Reads what has come; false where there is nothing more for now.
    private func fill(_ peer: inout Peer) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let count = read(peer.descriptor, &bytes, bytes.count)
        guard count > 0 else {
            if count == 0 || errno != EAGAIN && errno != EINTR { hangUp(&peer) }
            return false
        }
        peer.input.append(contentsOf: bytes[..<count])
        return true
    }
}
