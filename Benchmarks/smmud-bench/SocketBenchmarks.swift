// A round trip to a running daemon's DMA socket, against one to a thread that answers as many bytes at once.

import ControlProtocol
import Glibc

/// Where a running daemon takes DMA, and on whose behalf.
struct DaemonEndpoint: Sendable {
    var socketPath: String
    var device: String
    /// An address that is mapped for it.
    var address: UInt64
}

/// Why there is nothing to measure.
struct SocketBenchmarkError: Error, CustomStringConvertible {
    let description: String
}

func socketBenchmarks(_ endpoint: DaemonEndpoint) -> [Benchmark] {
    [
        roundTrip(
            "socket-echo",
            "ECHO of 0 B by the daemon",
            endpoint,
            answerByteCount: DMAProtocol.headerByteCount
        ) { _ in DMARequest(.echo, id: 3) },
        roundTrip(
            "socket-dma-64B",
            "read of 64 B over the DMA socket",
            endpoint,
            answerByteCount: DMAProtocol.headerByteCount + 64
        ) { handle in
            var request = DMARequest(.read, id: 3)
            request.endpoint = handle
            request.iova = endpoint.address
            request.count = 64
            return request
        },
        roundTrip(
            "socket-dma-64KiB",
            "read of 64 KiB over the DMA socket",
            endpoint,
            answerByteCount: DMAProtocol.headerByteCount + 0x1_0000
        ) { handle in
            var request = DMARequest(.read, id: 3)
            request.endpoint = handle
            request.iova = endpoint.address
            request.count = 0x1_0000
            return request
        },
    ]
}

private func roundTrip(
    _ name: String,
    _ subject: String,
    _ endpoint: DaemonEndpoint,
    answerByteCount: Int,
    _ request: @escaping @Sendable (UInt32) -> DMARequest
) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "bare socket, as many bytes",
        prepare: {
            let (daemon, handle) = try connect(endpoint)
            let echo = try startPeer(answerByteCount: answerByteCount)
            let message = DMARequestEncoder.message(request(handle))
            let answer = UnsafeMutableRawBufferPointer.allocate(byteCount: answerByteCount, alignment: 64)
            try exchange(daemon, message, answer)
            guard answer.loadUnaligned(fromByteOffset: 6, as: UInt16.self) == DMAStatus.ok.rawValue else {
                throw SocketBenchmarkError(
                    description: "the daemon refuses what is to be measured: is \(endpoint.device) mapped?"
                )
            }
            return (
                { count in for _ in 0..<count { try exchange(daemon, message, answer) } },
                { count in for _ in 0..<count { try exchange(echo, message, answer) } }
            )
        }
    )
}

/// Says HELLO and opens the endpoint.
private func connect(_ endpoint: DaemonEndpoint) throws -> (socket: CInt, handle: UInt32) {
    let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard endpoint.socketPath.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else {
        throw SocketBenchmarkError(description: "\(endpoint.socketPath) is too long for a socket")
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: endpoint.socketPath.utf8) }
    let status = withUnsafePointer(to: address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    guard status == 0 else {
        throw SocketBenchmarkError(description: "no daemon at \(endpoint.socketPath)")
    }
    let answer = UnsafeMutableRawBufferPointer.allocate(byteCount: DMAProtocol.headerByteCount, alignment: 64)
    defer { answer.deallocate() }
    var hello = DMARequest(.hello, id: 1)
    hello.iova = DMAProtocol.magic
    hello.count = DMAProtocol.version
    try exchange(descriptor, DMARequestEncoder.message(hello), answer)
    let open = DMARequestEncoder.message(DMARequest(.open, id: 2), payload: Array(endpoint.device.utf8))
    try exchange(descriptor, open, answer)
    let response = DMAResponse(header: UnsafeRawBufferPointer(answer))
    guard response.status == .ok else {
        throw SocketBenchmarkError(description: "the daemon has no endpoint \(endpoint.device)")
    }
    return (descriptor, response.handle)
}

/// Sends a request and receives an answer of a known size.
private func exchange(_ socket: CInt, _ message: [UInt8], _ answer: UnsafeMutableRawBufferPointer) throws {
    guard send(socket, message, message.count, 0) == message.count else {
        throw SocketBenchmarkError(description: "the socket takes nothing")
    }
    var received = 0
    while received < answer.count {
        let count = recv(socket, answer.baseAddress.map { $0 + received }, answer.count - received, 0)
        guard count > 0 else { throw SocketBenchmarkError(description: "the daemon closed the connection") }
        received += count
    }
}

/// A thread that answers each 64 bytes with as many bytes as the daemon would, and does nothing beside.
private func startPeer(answerByteCount: Int) throws -> CInt {
    var pair: [CInt] = [0, 0]
    guard socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &pair) == 0 else {
        throw SocketBenchmarkError(description: "no pair of sockets")
    }
    final class Peer: Sendable {
        let socket: CInt
        let answerByteCount: Int

        init(_ socket: CInt, _ answerByteCount: Int) {
            self.socket = socket
            self.answerByteCount = answerByteCount
        }

        func run() {
            let answer = [UInt8](repeating: 0, count: answerByteCount)
            var request = [UInt8](repeating: 0, count: DMAProtocol.headerByteCount)
            while recv(socket, &request, request.count, CInt(MSG_WAITALL)) == request.count {
                guard send(socket, answer, answer.count, 0) == answer.count else { return }
            }
        }
    }
    var thread = pthread_t()
    let context = Unmanaged.passRetained(Peer(pair[1], answerByteCount))
    pthread_create(
        &thread,
        nil,
        { context in
            if let context { Unmanaged<Peer>.fromOpaque(context).takeRetainedValue().run() }
            return nil
        },
        context.toOpaque()
    )
    pthread_detach(thread)
    return pair[0]
}
