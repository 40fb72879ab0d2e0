// A listening Unix socket and its file: made for its owner alone, replaced where it is stale, removed in the end.

import Glibc
import Synchronization
package import SystemPackage

/// Why there is no socket at a path.
package enum ListenerError: Error, Equatable {
    /// The path is no path for a socket.
    case badPath(path: String, byteCount: Int, byteCountMax: Int)
    /// Another process serves it.
    case inUse(path: String)
    /// Something else stands there, and is not ours to remove.
    case notASocket(path: String)
    /// Others could reach what is in the directory.
    case openDirectory(path: String)
    /// The system refused.
    case refused(path: String, call: String, Errno)
}

extension ListenerError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .badPath(let path, let byteCount, let byteCountMax):
            "\(path.isEmpty ? "\"\"" : path): a path of \(byteCount) bytes; a Unix socket's has 1 to \(byteCountMax)"
        case .inUse(let path):
            "\(path): another process serves this socket; stop it, or give another path"
        case .notASocket(let path):
            "\(path): there is a file that is no socket; remove it, or give another path"
        case .openDirectory(let path):
            "\(path): the directory belongs to somebody else, or others may write to it; make it yours and 0700"
        case .refused(let path, let call, let error):
            "\(path): \(call): \(error.description)"
        }
    }
}

/// A listening socket at a path.
package final class UnixListener: Sendable {
    package let path: String
    /// Never blocks in accept(2).
    package let descriptor: CInt
    private let file: FileIdentity
    private let isOpen = Mutex(true)

    /// What tells one file from another that took its name.
    private struct FileIdentity: Equatable {
        let device: dev_t
        let inode: ino_t
    }

    /// How many clients may wait to be accepted.
    private static let backlog: CInt = 128

    /// Listens at `path`, whose file can only be connected to by this user.
    ///
    /// A socket file that nobody serves any more is replaced.
    package init(path: String) throws(ListenerError) {
        let address = try Self.address(of: path)
        let lock = try DirectoryLock(of: path)
        defer { withExtendedLifetime(lock) {} }
        let descriptor = socket(AF_UNIX, streamType | CInt(SOCK_NONBLOCK.rawValue), 0)
        guard descriptor >= 0 else { throw .refused(path: path, call: "socket", Errno(rawValue: errno)) }
        do throws(ListenerError) {
            // bind(2) gives the file the socket's own mode: it is never open to others, not even for a moment.
            guard fchmod(descriptor, S_IRUSR | S_IWUSR) == 0 else {
                throw .refused(path: path, call: "fchmod", Errno(rawValue: errno))
            }
            try Self.bind(descriptor, to: address, path)
            guard let file = Self.identity(of: path) else {
                throw .refused(path: path, call: "lstat", Errno(rawValue: errno))
            }
            guard listen(descriptor, Self.backlog) == 0 else {
                let error = Errno(rawValue: errno)
                unlink(path)
                throw .refused(path: path, call: "listen", error)
            }
            self.file = file
        } catch {
            _ = Glibc.close(descriptor)
            throw error
        }
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close() }

    /// Removes the file, if it is still this socket's, and ends listening.
    ///
    /// Nobody may use ``descriptor`` any more.
    package func close() {
        isOpen.withLock { isOpen in
            guard isOpen else { return }
            isOpen = false
            // First the name, so that whoever finds it can connect.
            if Self.identity(of: path) == file { unlink(path) }
            _ = Glibc.close(descriptor)
        }
    }

    // MARK: Binding

    private static func bind(_ descriptor: CInt, to address: sockaddr_un, _ path: String)
        throws(ListenerError)
    {
        for _ in 0..<2 {
            if withSocketAddress(address, { Glibc.bind(descriptor, $0, $1) }) == 0 { return }
            let error = Errno(rawValue: errno)
            guard error == .addressInUse else { throw .refused(path: path, call: "bind", error) }
            try removeStaleSocket(at: path, address)
        }
        throw .inUse(path: path)
    }

    /// Removes the socket file of a process that is no more.
    private static func removeStaleSocket(at path: String, _ address: sockaddr_un) throws(ListenerError) {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            guard errno == ENOENT else {
                throw .refused(path: path, call: "lstat", Errno(rawValue: errno))
            }
            return
        }
        guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path: path) }
        let probe = socket(AF_UNIX, streamType | CInt(SOCK_NONBLOCK.rawValue), 0)
        guard probe >= 0 else { throw .refused(path: path, call: "socket", Errno(rawValue: errno)) }
        defer { _ = Glibc.close(probe) }
        // Anything but a refusal means that somebody listens: EAGAIN, that he is busy.
        guard withSocketAddress(address, { connect(probe, $0, $1) }) != 0, errno == ECONNREFUSED else {
            throw .inUse(path: path)
        }
        guard unlink(path) == 0 || errno == ENOENT else {
            throw .refused(path: path, call: "unlink", Errno(rawValue: errno))
        }
    }

    private static func identity(of path: String) -> FileIdentity? {
        var status = stat()
        guard lstat(path, &status) == 0 else { return nil }
        return FileIdentity(device: status.st_dev, inode: status.st_ino)
    }

    private static func address(of path: String) throws(ListenerError) -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < capacity else {
            throw .badPath(path: path, byteCount: bytes.count, byteCountMax: capacity - 1)
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return address
    }
}

private let streamType = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)

private func withSocketAddress<Result>(
    _ address: sockaddr_un,
    _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
) -> Result {
    withUnsafePointer(to: address) { address in
        address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
}

/// Keeps two daemons that start at once from taking each other's fresh socket for a stale one.
///
/// A lock on the directory, which leaves no file behind.
private struct DirectoryLock: ~Copyable {
    private let descriptor: CInt

    init(of path: String) throws(ListenerError) {
        let directory =
            path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw .refused(path: directory, call: "open", Errno(rawValue: errno)) }
        // Others may lock the directory for reasons of their own and for longer. The lock guards against a race
        // that is unlikely without it; it is no reason not to start.
        var attempts = 0
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK, attempts < 200 {
            _ = poll(nil, 0, 10)
            attempts += 1
        }
    }

    deinit { _ = close(descriptor) }
}

extension UnixListener {
    /// Makes the directory in which the sockets are when nobody says otherwise, for this user alone.
    package static func makeDirectory(_ path: String) throws(ListenerError) {
        guard mkdir(path, S_IRWXU) != 0 else { return }
        guard errno == EEXIST else { throw .refused(path: path, call: "mkdir", Errno(rawValue: errno)) }
        var status = stat()
        guard lstat(path, &status) == 0 else {
            throw .refused(path: path, call: "lstat", Errno(rawValue: errno))
        }
        guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid(),
            status.st_mode & (S_IWGRP | S_IWOTH) == 0
        else { throw .openDirectory(path: path) }
    }
}
