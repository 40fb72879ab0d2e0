// What a ring's chains ask for: the DMA socket's messages, with data that stays where it is.

import AddressSpace
import ControlProtocol
import DeviceModel
import Machine

/// Carries out the requests of one ring, on one thread.
///
/// The bytes that a chain has for reading are a request, those for writing take its answer. Data goes between them
/// and the guest's memory and nowhere else.
struct RingRequests {
    typealias Segments = UnsafeMutableBufferPointer<UnsafeMutableRawBufferPointer>.SubSequence

    private let limits: DMALimits
    private let echoByteCountMax: Int
    private let isStopping: @Sendable () -> Bool
    private var requesters: Requesters

    /// How many bytes a transfer moves before it looks whether the daemon stops.
    private static let pieceByteCount = 4 << 20

    init(_ machine: Machine, _ limits: DMALimits, isStopping: @escaping @Sendable () -> Bool) {
        // Data lies in the ring's own buffer: a chain's room is its limit, and what an answer's length can say.
        self.limits = DMALimits(
            inlineByteCountMax: .max - UInt32(DMAProtocol.headerByteCount),
            endpointsMax: limits.endpointsMax
        )
        echoByteCountMax = Int(limits.inlineByteCountMax)
        self.isStopping = isStopping
        requesters = Requesters(machine: machine, countMax: Int(limits.endpointsMax))
    }

    /// Carries out the request of a chain, and writes its answer.
    ///
    /// - Returns: How many bytes were written.
    /// - Throws: Where there is no place for a request or its answer.
    mutating func serve(_ readable: Segments, _ writable: Segments) throws(RingBreakage) -> UInt32 {
        guard let header = readable.first, header.count >= DMAProtocol.headerByteCount else {
            throw RingBreakage(reason: "a chain whose first descriptor does not hold a whole header to read")
        }
        guard let answer = writable.first, answer.count >= DMAProtocol.headerByteCount else {
            throw RingBreakage(reason: "a chain whose first descriptor to write has no room for a header")
        }
        // The client can write it meanwhile: what is decided upon is a copy.
        let request = withUnsafeTemporaryAllocation(
            byteCount: DMAProtocol.headerByteCount,
            alignment: 8
        ) { copy in
            copy.copyMemory(
                from: UnsafeRawBufferPointer(rebasing: header[..<DMAProtocol.headerByteCount])
            )
            return DMARequest(header: UnsafeRawBufferPointer(copy))
        }
        var response: DMAResponse
        do throws(DMARejection) {
            response = try carryOut(request, readable, writable)
        } catch {
            response = DMAResponse(to: request, error.status)
            var message = error.message
            response.byteCount = message.withUTF8 { text in
                Self.put(UnsafeRawBufferPointer(text), into: writable)
            }
        }
        response.write(to: answer)
        return response.byteCount
    }

    private mutating func carryOut(_ request: DMARequest, _ readable: Segments, _ writable: Segments)
        throws(DMARejection) -> DMAResponse
    {
        let byteCount = readable.reduce(0) { $0 + $1.count }
        guard Int(request.byteCount) == byteCount else {
            throw DMARejection(
                .parameter,
                "a message of \(request.byteCount) bytes in descriptors of \(byteCount)"
            )
        }
        if let rejection = limits.rejection(of: request) { throw rejection }
        guard !request.flags.contains(.buffer) else {
            throw DMARejection(.parameter, "a ring's data is where its descriptors are, not in a buffer")
        }
        switch request.opcode {
        case .read: return try read(request, into: writable)
        case .write: return try write(request, from: readable)
        case .echo: return try echo(request, readable, writable)
        case .open:
            let name = Self.payload(readable)
            let outcome = name.withUnsafeBytes { name in
                Result { () throws(DMARejection) in try requesters.open(request, name: name) }
            }
            return try outcome.get()
        case .close: return try requesters.close(request)
        default:
            throw DMARejection(.unsupported, "opcode \(request.opcode.rawValue) goes over the socket alone")
        }
    }

    // MARK: Transfers

    private mutating func read(_ request: DMARequest, into writable: Segments) throws(DMARejection)
        -> DMAResponse
    {
        let port = try requesters.port(for: request)
        let attributes = TransactionAttributes(of: request)
        var response = try transfer(request, writable) { (piece, address) throws(DMAFault) in
            try port.read(at: address, into: piece, attributes)
        }
        response.byteCount &+= UInt32(truncatingIfNeeded: response.transferred)
        return response
    }

    private mutating func write(_ request: DMARequest, from readable: Segments) throws(DMARejection)
        -> DMAResponse
    {
        let port = try requesters.port(for: request)
        let attributes = TransactionAttributes(of: request)
        return try transfer(request, readable) { (piece, address) throws(DMAFault) in
            try port.write(UnsafeRawBufferPointer(piece), at: address, attributes)
        }
    }

    /// Moves a request's data, segment by segment; each first one begins with a header.
    private func transfer(
        _ request: DMARequest,
        _ segments: Segments,
        _ move: (UnsafeMutableRawBufferPointer, IOVirtualAddress) throws(DMAFault) -> Void
    ) throws(DMARejection) -> DMAResponse {
        let room = segments.reduce(-DMAProtocol.headerByteCount) { $0 + $1.count }
        guard request.count <= UInt64(room) else {
            throw DMARejection(.range, "\(request.count) bytes: the chain has room for \(room)")
        }
        var skipped = DMAProtocol.headerByteCount
        var done: UInt64 = 0
        for segment in segments {
            var rest = UnsafeMutableRawBufferPointer(rebasing: segment[skipped...])
            skipped = 0
            while rest.count > 0, done < request.count {
                let count = min(rest.count, Int(request.count - done), Self.pieceByteCount)
                let piece = UnsafeMutableRawBufferPointer(rebasing: rest[..<count])
                do throws(DMAFault) {
                    try move(piece, IOVirtualAddress(request.iova &+ done))
                } catch {
                    return DMAResponse(to: request, error, before: done)
                }
                done += UInt64(count)
                rest = UnsafeMutableRawBufferPointer(rebasing: rest[count...])
                guard done == request.count || count < Self.pieceByteCount || !isStopping() else {
                    throw DMARejection(.failed, "the ring is closed")
                }
            }
        }
        return DMAResponse(to: request, transferred: done)
    }

    private func echo(_ request: DMARequest, _ readable: Segments, _ writable: Segments)
        throws(DMARejection) -> DMAResponse
    {
        // It is copied on the way, unlike the data of a transfer.
        guard request.payloadByteCount <= echoByteCountMax else {
            throw DMARejection(
                .range,
                "\(request.payloadByteCount) bytes to echo: at most \(echoByteCountMax)"
            )
        }
        var response = DMAResponse(to: request)
        response.byteCount = Self.payload(readable).withUnsafeBytes { Self.put($0, into: writable) }
        return response
    }

    // MARK: Payloads that are small

    /// A copy of what follows the header.
    private static func payload(_ readable: Segments) -> [UInt8] {
        Array(readable.joined().dropFirst(DMAProtocol.headerByteCount))
    }

    /// Puts bytes behind the answer's header, as many as there is room for.
    ///
    /// - Returns: The answer's length.
    private static func put(_ bytes: UnsafeRawBufferPointer, into writable: Segments) -> UInt32 {
        var left = bytes[...]
        var skipped = DMAProtocol.headerByteCount
        for segment in writable {
            let space = UnsafeMutableRawBufferPointer(rebasing: segment[skipped...])
            skipped = 0
            let part = left.prefix(space.count)
            space.copyBytes(from: part)
            left = left.dropFirst(part.count)
        }
        return UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount + bytes.count - left.count)
    }
}
