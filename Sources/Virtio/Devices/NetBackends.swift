// Where frames go on the host: a TAP interface, Unix sockets, or another device of this process.

import CLinux
package import Glibc
import Synchronization
package import SystemPackage

/// What became of a frame.
package enum NetSendOutcome: Hashable, Sendable {
    case sent
    case dropped
    /// The frame is to be sent again once the descriptor of ``NetBackend/pollEntries(reading:writing:)`` is ready.
    case later
}

/// The host's end of a network device.
///
/// All calls return at once. One thread receives, another sends.
package protocol NetBackend: AnyObject, Sendable {
    /// What to wait for.
    func pollEntries(reading: Bool, writing: Bool) -> [pollfd]
    /// Called each time that a thread wakes, before anything else.
    func prepare()
    func send(_ frame: UnsafeRawBufferPointer) -> NetSendOutcome
    /// Takes a frame that has arrived: how many bytes of it fitted; nil where there is none.
    func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int?
}

/// A descriptor that takes and gives one frame with each call: a TAP interface or a socket of packets.
package final class NetPackets: NetBackend {
    private let descriptor: CInt
    private let isSocket: Bool
    /// Where frames go to; nil is where the socket is connected to.
    private let remote: sockaddr_un?
    /// The file of our own socket, which is removed in the end.
    private let localPath: String?
    /// The other side has gone for good: nothing comes, nothing is waited for.
    private let isOver = Atomic(false)

    private init(_ descriptor: CInt, isSocket: Bool, remote: sockaddr_un? = nil, localPath: String? = nil) {
        self.descriptor = descriptor
        self.isSocket = isSocket
        self.remote = remote
        self.localPath = localPath
    }

    deinit {
        close(descriptor)
        if let localPath { unlink(localPath) }
    }

    // MARK: Kinds

    /// A TAP interface of this name, which is made if there is none and the user may.
    package static func tap(_ name: String) throws(Errno) -> NetPackets {
        let descriptor = smmud_open_tap(name)
        guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
        return NetPackets(descriptor, isSocket: false)
    }

    /// The two ends of a cable between two devices of this process.
    package static func loop() throws(Errno) -> (NetPackets, NetPackets) {
        var ends: [CInt] = [-1, -1]
        let kind = CInt(SOCK_SEQPACKET.rawValue) | CInt(SOCK_CLOEXEC.rawValue) | CInt(SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { throw Errno(rawValue: errno) }
        for end in ends { enlargeBuffer(end) }
        return (NetPackets(ends[0], isSocket: true), NetPackets(ends[1], isSocket: true))
    }

    /// Takes over a socket whose messages are frames.
    package static func socket(_ descriptor: CInt) -> NetPackets {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
        return NetPackets(descriptor, isSocket: true)
    }

    /// A datagram socket at `path` that sends to the one at `remotePath`, which may come and go.
    ///
    /// - Throws: `EADDRINUSE` where something is at `path` that is no socket, or somebody listens there.
    package static func datagram(path: String, remotePath: String) throws(Errno) -> NetPackets {
        guard let local = unixAddress(path), let remote = unixAddress(remotePath) else {
            throw .invalidArgument
        }
        let kind = CInt(SOCK_DGRAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue) | CInt(SOCK_NONBLOCK.rawValue)
        let descriptor = Glibc.socket(AF_UNIX, kind, 0)
        guard descriptor >= 0 else { throw Errno(rawValue: errno) }
        // bind(2) gives the file the socket's own mode: it is for this user alone.
        guard fchmod(descriptor, S_IRUSR | S_IWUSR) == 0, bindReplacingStale(descriptor, local, path) else {
            let error = Errno(rawValue: errno)
            close(descriptor)
            throw error
        }
        enlargeBuffer(descriptor)
        return NetPackets(descriptor, isSocket: true, remote: remote, localPath: path)
    }

    /// Binds, and where there is a socket's file already to which nobody listens, in its place.
    private static func bindReplacingStale(_ descriptor: CInt, _ address: sockaddr_un, _ path: String) -> Bool
    {
        if withUnixAddress(address, { bind(descriptor, $0, $1) }) == 0 { return true }
        var status = stat()
        guard errno == EADDRINUSE, lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else {
            return false
        }
        let probe = Glibc.socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        defer { close(probe) }
        guard probe >= 0, withUnixAddress(address, { connect(probe, $0, $1) }) != 0, errno == ECONNREFUSED
        else {
            errno = EADDRINUSE
            return false
        }
        unlink(path)
        return withUnixAddress(address) { bind(descriptor, $0, $1) } == 0
    }

    /// Asks for room for bursts; the system gives what it permits.
    private static func enlargeBuffer(_ descriptor: CInt) {
        var byteCount: CInt = 4 << 20
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &byteCount, socklen_t(MemoryLayout<CInt>.size))
    }

    // MARK: Frames

    package func pollEntries(reading: Bool, writing: Bool) -> [pollfd] {
        guard reading, !isOver.load(ordering: .relaxed) else { return [] }
        return [pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)]
    }

    package func prepare() {}

    package func send(_ frame: UnsafeRawBufferPointer) -> NetSendOutcome {
        let count: Int
        if let remote {
            count = withUnixAddress(remote) {
                sendto(descriptor, frame.baseAddress, frame.count, CInt(MSG_NOSIGNAL), $0, $1)
            }
        } else if isSocket {
            count = Glibc.send(descriptor, frame.baseAddress, frame.count, CInt(MSG_NOSIGNAL))
        } else {
            count = write(descriptor, frame.baseAddress, frame.count)
        }
        return count == frame.count ? .sent : .dropped
    }

    package func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int? {
        let count = read(descriptor, buffer.baseAddress, buffer.count)
        if count > 0 { return count }
        if count == 0 {
            // An empty datagram is a frame of nothing; on a cable that nobody holds any more it is the end.
            if isSocket, remote == nil { isOver.store(true, ordering: .relaxed) }
            return isSocket && remote == nil ? nil : 0
        }
        if errno != EAGAIN && errno != EINTR { isOver.store(true, ordering: .relaxed) }
        return nil
    }
}

/// The address of a Unix socket; nil where the path is too long or empty.
func unixAddress(_ path: String) -> sockaddr_un? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard !bytes.isEmpty, bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return address
}

func withUnixAddress<Value>(_ address: sockaddr_un, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Value)
    -> Value
{
    withUnsafePointer(to: address) { address in
        address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
}
