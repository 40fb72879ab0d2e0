// The DMA socket without the client library, for what the library does not do.

import CLinux
import ControlProtocol

/// A file of zeroes that can be truncated.
func memfd(_ name: String, _ byteCount: Int) -> CInt {
    // Not the library's own, which is sealed.
    let descriptor = smmud_memfd_create_unsealed(name, UInt64(byteCount))
    precondition(descriptor >= 0, "no memfd")
    return descriptor
}

/// A client that attaches any descriptors to any request.
struct RawDMAClient {
    private let socket: RawSocket
    var descriptor: CInt { socket.descriptor }

    init(_ path: String) throws {
        socket = try RawSocket(path)
        guard try call(.hello(id: 1)).status == .ok else { throw TestFailure("HELLO") }
    }

    func call(_ request: DMARequest, descriptors: [CInt] = []) throws -> DMAResponse {
        socket.send(DMARequestEncoder.message(request), descriptors: descriptors)
        // No payload that is of interest: a header, and a sentence at most.
        var bytes = try socket.receive(DMAProtocol.headerByteCount)
        guard bytes.count >= DMAProtocol.headerByteCount else { throw TestFailure("the daemon hung up") }
        let response = bytes.withUnsafeBytes { DMAResponse(header: $0) }
        bytes += try socket.receive(Int(response.byteCount) - bytes.count)
        return response
    }
}
