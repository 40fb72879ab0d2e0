// Sockets and threads for tests: the far end of a client.

import CLinux
import ControlProtocol
import Glibc
import Testing

/// A pair of connected stream sockets.
func connectedPair() throws -> (client: CInt, server: CInt) {
    var ends: [CInt] = [-1, -1]
    let result = socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends)
    try #require(result == 0)
    return (ends[0], ends[1])
}

/// Sends all of `bytes`.
func send(_ bytes: [UInt8], to socket: CInt) {
    bytes.withUnsafeBytes { bytes in
        var rest = bytes
        while !rest.isEmpty {
            let sent = Glibc.send(socket, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
            guard sent > 0 else { return }
            rest = UnsafeRawBufferPointer(rebasing: rest[sent...])
        }
    }
}

/// Receives what is there.
func receive(from socket: CInt) -> [UInt8] {
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    let count = recv(socket, &buffer, buffer.count, 0)
    return Array(buffer.prefix(max(0, count)))
}

/// Runs `body` on a thread of its own: what blocks must not hold up the test's own threads.
func onThread(_ body: @escaping @Sendable () -> Void) {
    final class Box: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let box = Unmanaged.passRetained(Box(body))
    let result = pthread_create(
        &thread,
        nil,
        { argument in
            if let argument { Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body() }
            return nil
        },
        box.toOpaque()
    )
    if result == 0 { pthread_detach(thread) } else { box.release() }
}
