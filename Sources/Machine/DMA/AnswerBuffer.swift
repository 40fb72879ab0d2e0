// Answers of one DMA connection that wait to be sent together.

import ControlProtocol

/// Bytes to send: filled at the end, sent all at once, and used again.
struct AnswerBuffer: ~Copyable {
    private var storage: UnsafeMutableRawBufferPointer
    private(set) var byteCount = 0

    /// From this size on the answers are to be sent before the next request is looked at.
    static let flushByteCount = 256 << 10

    init() { storage = .allocate(byteCount: Self.flushByteCount, alignment: 64) }

    deinit { storage.deallocate() }

    /// What is to be sent; good until the buffer changes.
    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: storage[..<byteCount]) }

    /// Room for the payload of an answer that is completed with ``append(_:payloadByteCount:)``.
    ///
    /// The answer's header comes before it, so that data is put where it is sent from. Good until the buffer
    /// changes.
    mutating func payloadSpace(_ payloadByteCount: Int) -> UnsafeMutableRawBufferPointer {
        let needed = byteCount + DMAProtocol.headerByteCount + payloadByteCount
        if needed > storage.count {
            let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: needed, alignment: 64)
            larger.copyMemory(from: bytes)
            storage.deallocate()
            storage = larger
        }
        return UnsafeMutableRawBufferPointer(
            rebasing: storage[(byteCount + DMAProtocol.headerByteCount)..<needed]
        )
    }

    /// Adds an answer whose payload stands in ``payloadSpace(_:)`` already.
    mutating func append(_ response: DMAResponse, payloadByteCount: Int = 0) {
        // Makes sure of the room where there was no payload to ask for it.
        if payloadByteCount == 0 { _ = payloadSpace(0) }
        var response = response
        let count = DMAProtocol.headerByteCount + payloadByteCount
        response.byteCount = UInt32(truncatingIfNeeded: count)
        response.write(to: UnsafeMutableRawBufferPointer(rebasing: storage[byteCount..<(byteCount + count)]))
        byteCount += count
    }

    /// Adds an answer with a copy of a payload.
    mutating func append(_ response: DMAResponse, payload: UnsafeRawBufferPointer) {
        payloadSpace(payload.count).copyMemory(from: payload)
        append(response, payloadByteCount: payload.count)
    }

    mutating func append(_ rejection: DMARejection, to request: DMARequest) {
        let payload = Array(rejection.message.utf8)
        payload.withUnsafeBytes { append(DMAResponse(to: request, rejection.status), payload: $0) }
    }

    /// Forgets what was sent.
    mutating func removeAll() { byteCount = 0 }
}
