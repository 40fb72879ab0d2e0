// Sockets and directories of tests.

import Glibc
import Testing

/// A directory that goes with its test.
final class TestDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/smmud-virtio-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        for name in ["here", "there", "wire", "console", "log"] { unlink(path + "/" + name) }
        rmdir(path)
    }
}

/// A stream socket that is connected to a path.
final class TestSocket {
    private let descriptor: CInt

    init(connectingTo path: String) throws {
        descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let result = withUnsafePointer(to: address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0)
    }

    deinit { close(descriptor) }

    func send(_ bytes: [UInt8]) {
        #expect(Glibc.send(descriptor, bytes, bytes.count, CInt(MSG_NOSIGNAL)) == bytes.count)
    }

    /// Waits for so many bytes; fewer are the end of the stream.
    func receive(_ count: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < count {
            var piece = [UInt8](repeating: 0, count: count - bytes.count)
            let found = read(descriptor, &piece, piece.count)
            guard found > 0 else { break }
            bytes += piece[..<found]
        }
        return bytes
    }
}
