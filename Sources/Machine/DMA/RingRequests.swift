// What a ring's chains ask for: the DMA socket's messages, with data that stays where it is.

import AddressSpace
import CLinux
package import ControlProtocol
import DeviceModel

/// Carries out the requests of one ring, on one thread.
///
/// The bytes that a chain has for reading are a request, those for writing take its answer. Data goes between them
/// and the guest's memory and nowhere else. A READ or WRITE that goes well allocates nothing and retains nothing.
package struct RingRequests {
    private let limits: DMALimits
    private let echoByteCountMax: Int
    private let isStopping: @Sendable () -> Bool
    private var requesters: Requesters
    /// What the transfer before said of itself, where it was a quick one.
    private var last = QuickTransfer()

    /// How many bytes a transfer moves before it looks whether the daemon stops.
    private static var pieceByteCount: Int { 4 << 20 }

    package init(_ machine: Machine, _ limits: DMALimits, isStopping: @escaping @Sendable () -> Bool) {
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
    @inline(__always)
    package mutating func serve(_ chain: RingChain) throws(RingBreakage) -> UInt32 {
        if let byteCount = transferAgain(chain) { return byteCount }
        return try serveAnother(chain)
    }

    /// The same of a request that says other things than the one before.
    @inline(never)  // Keeps the quickest path small.
    private mutating func serveAnother(_ chain: RingChain) throws(RingBreakage) -> UInt32 {
        guard chain.readableCount > 0, chain.segments[0].count >= DMAProtocol.headerByteCount,
            let header = chain.segments[0].baseAddress
        else {
            throw RingBreakage(reason: "a chain whose first descriptor does not hold a whole header to read")
        }
        guard chain.readableCount < chain.segmentCount,
            chain.segments[chain.readableCount].count >= DMAProtocol.headerByteCount
        else {
            throw RingBreakage(reason: "a chain whose first descriptor to write has no room for a header")
        }
        let answer = chain.segments[chain.readableCount]
        // The client can write it meanwhile: what is decided upon is a copy.
        var words = RequestWords()
        withUnsafeMutableBytes(of: &words) { smmud_copy_once($0.baseAddress, header, 64) }
        if let byteCount = transferQuickly(words, chain, answer) { return byteCount }
        return serveAny(words, chain, answer)
    }

    /// The same of a request that is not carried out yet.
    @inline(never)  // Keeps the quick path small.
    private mutating func serveAny(
        _ words: RequestWords,
        _ chain: RingChain,
        _ answer: UnsafeMutableRawBufferPointer
    ) -> UInt32 {
        // It may choose another requester.
        last = QuickTransfer()
        let request = words.request
        var response: DMAResponse
        do throws(DMARejection) {
            response = try carryOut(request, chain)
        } catch {
            response = DMAResponse(to: request, error.status)
            var message = error.message
            response.byteCount = message.withUTF8 { text in
                Self.put(UnsafeRawBufferPointer(text), into: chain)
            }
        }
        response.write(to: answer)
        return response.byteCount
    }

    private mutating func carryOut(_ request: DMARequest, _ chain: RingChain) throws(DMARejection)
        -> DMAResponse
    {
        var byteCount = 0
        for index in 0..<chain.readableCount { byteCount &+= chain.segments[index].count }
        guard Int(request.byteCount) == byteCount else {
            throw DMARejection(
                .parameter,
                "a message of \(request.byteCount) bytes in descriptors of \(byteCount)"
            )
        }
        if let problem = limits.problem(of: request) { throw limits.rejection(of: request, for: problem) }
        guard !request.flags.contains(.buffer) else {
            throw DMARejection(.parameter, "a ring's data is where its descriptors are, not in a buffer")
        }
        let isRead = request.opcode == .read
        if isRead || request.opcode == .write { return try transfer(request, isRead: isRead, chain) }
        return try carryOutOther(request, chain)
    }

    @inline(never)  // Keeps the transfers' path small.
    private mutating func carryOutOther(_ request: DMARequest, _ chain: RingChain) throws(DMARejection)
        -> DMAResponse
    {
        switch request.opcode {
        case .echo: return try echo(request, chain)
        case .open:
            let name = Self.payload(chain)
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

    /// The most bytes that ``transferQuickly(_:_:_:)`` moves.
    private static var quickByteCountMax: UInt64 { 64 << 10 }

    /// Carries out a transfer that says what the one before said, but for the address and the identification: nothing
    /// of it has to be looked at again.
    ///
    /// - Returns: How many bytes were written; nil where it is another one, and nothing was done.
    @inline(__always)
    private mutating func transferAgain(_ chain: RingChain) -> UInt32? {
        let (asked, answer) = (chain.segments[0], chain.segments[1])
        // Its counts are no chain's where there was none before.
        guard chain.segmentCount == 2, chain.readableCount == 1, asked.count == last.askedByteCount,
            answer.count >= last.answerByteCount, let header = asked.baseAddress,
            let start = answer.baseAddress
        else { return nil }
        // The client can write it meanwhile: what is decided upon is a copy.
        var words = RequestWords()
        withUnsafeMutableBytes(of: &words) { smmud_copy_once($0.baseAddress, header, 64) }
        guard words.saysTheSame(as: last.words), !words.iova.addingReportingOverflow(last.count &- 1).overflow
        else { return nil }
        let address = IOVirtualAddress(words.iova)
        let headerByteCount = DMAProtocol.headerByteCount
        do throws(DMAFault) {
            if last.isRead {
                let piece = UnsafeMutableRawBufferPointer(
                    start: start + headerByteCount,
                    count: Int(last.count)
                )
                try requesters.read(at: address, into: piece, TransactionAttributes())
            } else {
                let piece = UnsafeRawBufferPointer(start: header + headerByteCount, count: Int(last.count))
                try requesters.write(piece, at: address, TransactionAttributes())
            }
        } catch {
            return Self.put(error, to: words.request, answer)
        }
        words.writeAnswer(byteCount: UInt32(truncatingIfNeeded: last.answerByteCount), to: answer)
        return UInt32(truncatingIfNeeded: last.answerByteCount)
    }

    /// Carries out a READ or WRITE as most are, and writes its answer: one descriptor to read and one to write, the
    /// requester of the request before, no flag that says more, and nothing to refuse.
    ///
    /// - Returns: How many bytes were written; nil where it is another one, and nothing was done.
    @inline(__always)
    private mutating func transferQuickly(
        _ words: RequestWords,
        _ chain: RingChain,
        _ answer: UnsafeMutableRawBufferPointer
    ) -> UInt32? {
        let header = DMAProtocol.headerByteCount
        let asked = chain.segments[0]
        let count = words.count
        let isRead = words.isPlain(.read, byteCount: UInt64(header))
        let data = isRead ? answer : asked
        guard chain.segmentCount == 2, count &- 1 < Self.quickByteCountMax,
            isRead || words.isPlain(.write, byteCount: UInt64(header) &+ count),
            UInt64(asked.count) == words.byteCount, UInt64(data.count - header) >= count,
            !words.iova.addingReportingOverflow(count &- 1).overflow,
            requesters.isSelected(words.endpoint, stream: words.stream, isDirect: words.isDirect),
            let start = data.baseAddress.map({ $0 + header })
        else { return nil }
        let address = IOVirtualAddress(words.iova)
        do throws(DMAFault) {
            if isRead {
                let piece = UnsafeMutableRawBufferPointer(start: start, count: Int(count))
                try requesters.read(at: address, into: piece, TransactionAttributes())
            } else {
                let piece = UnsafeRawBufferPointer(start: start, count: Int(count))
                try requesters.write(piece, at: address, TransactionAttributes())
            }
        } catch {
            return Self.put(error, to: words.request, answer)
        }
        let byteCount = UInt32(truncatingIfNeeded: isRead ? UInt64(header) &+ count : UInt64(header))
        words.writeAnswer(byteCount: byteCount, to: answer)
        last = QuickTransfer(
            words: words,
            askedByteCount: asked.count,
            answerByteCount: Int(byteCount),
            isRead: isRead
        )
        return byteCount
    }

    /// Writes the answer to a READ or WRITE that met with a fault.
    ///
    /// - Returns: The answer's length.
    @inline(never)
    private static func put(
        _ fault: DMAFault,
        to request: DMARequest,
        _ answer: UnsafeMutableRawBufferPointer
    )
        -> UInt32
    {
        var response = DMAResponse(to: request, fault)
        if request.opcode == .read { response.byteCount &+= UInt32(truncatingIfNeeded: response.transferred) }
        response.write(to: answer)
        return response.byteCount
    }

    /// Moves a request's data, segment by segment; the first one begins with a header.
    @inline(__always)
    private mutating func transfer(_ request: DMARequest, isRead: Bool, _ chain: RingChain)
        throws(DMARejection) -> DMAResponse
    {
        let segments = isRead ? chain.readableCount..<chain.segmentCount : 0..<chain.readableCount
        var room = -DMAProtocol.headerByteCount
        for index in segments { room &+= chain.segments[index].count }
        guard request.count <= UInt64(room) else {
            throw DMARejection(.range, "\(request.count) bytes: the chain has room for \(room)")
        }
        try requesters.select(request)
        let attributes = TransactionAttributes(of: request)
        var skipped = DMAProtocol.headerByteCount
        var done: UInt64 = 0
        var fault: DMAFault?
        moving: for index in segments {
            let segment = chain.segments[index]
            var place = skipped
            skipped = 0
            while place < segment.count, done < request.count {
                let count = min(segment.count - place, Int(request.count - done), Self.pieceByteCount)
                let start = segment.baseAddress.map { $0 + place }
                let address = IOVirtualAddress(request.iova &+ done)
                do throws(DMAFault) {
                    if isRead {
                        let piece = UnsafeMutableRawBufferPointer(start: start, count: count)
                        try requesters.read(at: address, into: piece, attributes)
                    } else {
                        let piece = UnsafeRawBufferPointer(start: start, count: count)
                        try requesters.write(piece, at: address, attributes)
                    }
                } catch {
                    fault = error
                    break moving
                }
                done += UInt64(count)
                place += count
                guard done == request.count || count < Self.pieceByteCount || !isStopping() else {
                    throw DMARejection(.failed, "the ring is closed")
                }
            }
        }
        var response =
            fault.map { DMAResponse(to: request, $0, before: done) }
            ?? DMAResponse(to: request, transferred: done)
        if isRead { response.byteCount &+= UInt32(truncatingIfNeeded: response.transferred) }
        return response
    }

    private func echo(_ request: DMARequest, _ chain: RingChain) throws(DMARejection) -> DMAResponse {
        // It is copied on the way, unlike the data of a transfer.
        guard request.payloadByteCount <= echoByteCountMax else {
            throw DMARejection(
                .range,
                "\(request.payloadByteCount) bytes to echo: at most \(echoByteCountMax)"
            )
        }
        var response = DMAResponse(to: request)
        response.byteCount = Self.payload(chain).withUnsafeBytes { Self.put($0, into: chain) }
        return response
    }

    // MARK: Payloads that are small

    /// A copy of what follows the header.
    private static func payload(_ chain: RingChain) -> [UInt8] {
        let readable = UnsafeMutableBufferPointer(start: chain.segments, count: chain.readableCount)
        return Array(readable.joined().dropFirst(DMAProtocol.headerByteCount))
    }

    /// Puts bytes behind the answer's header, as many as there is room for.
    ///
    /// - Returns: The answer's length.
    private static func put(_ bytes: UnsafeRawBufferPointer, into chain: RingChain) -> UInt32 {
        var left = bytes[...]
        var skipped = DMAProtocol.headerByteCount
        for index in chain.readableCount..<chain.segmentCount {
            let space = UnsafeMutableRawBufferPointer(rebasing: chain.segments[index][skipped...])
            skipped = 0
            let part = left.prefix(space.count)
            space.copyBytes(from: part)
            left = left.dropFirst(part.count)
        }
        return UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount + bytes.count - left.count)
    }
}

/// What a transfer said that went the quick way.
private struct QuickTransfer {
    var words = RequestWords()
    /// How many bytes its descriptor to read has, header included; no descriptor's where there was no transfer.
    var askedByteCount = -1
    /// How many its answer has.
    var answerByteCount = 0
    var isRead = false

    var count: UInt64 { words.count }
}

/// A request's header as it was copied: its eight words of eight bytes.
///
/// For what is the same in most READs and WRITEs a word is compared, not taken to pieces.
private struct RequestWords {
    private var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (
        0, 0, 0, 0, 0, 0, 0, 0
    )

    /// All of it, field by field.
    var request: DMARequest { withUnsafeBytes(of: words) { DMARequest(header: $0) } }

    /// Whether it is of this opcode and length, with no flag but ``DMAFlags/direct``, no offset and nothing reserved.
    @inline(__always)
    func isPlain(_ opcode: DMAOpcode, byteCount: UInt64) -> Bool {
        let flags = UInt64(DMAFlags.direct.rawValue) &<< 48
        return words.0.littleEndian & ~flags == byteCount | UInt64(opcode.rawValue) &<< 32
            && words.6 | words.7 == 0
    }

    /// Whether opcode, flags, lengths and requester are the same, and all that is reserved.
    @inline(__always)
    func saysTheSame(as other: RequestWords) -> Bool {
        let (mine, theirs) = (words, other.words)
        return (mine.0 ^ theirs.0) | (mine.2 ^ theirs.2) | (mine.5 ^ theirs.5) | (mine.6 ^ theirs.6)
            | (mine.7 ^ theirs.7) == 0
    }

    var byteCount: UInt64 { words.0.littleEndian & 0xFFFF_FFFF }
    var isDirect: Bool { words.0.littleEndian & UInt64(DMAFlags.direct.rawValue) &<< 48 != 0 }
    var endpoint: UInt32 { UInt32(truncatingIfNeeded: words.2.littleEndian) }
    var stream: UInt32 { UInt32(truncatingIfNeeded: words.2.littleEndian &>> 32) }
    var iova: UInt64 { words.4.littleEndian }
    var count: UInt64 { words.5.littleEndian }

    /// Writes the answer to a READ or WRITE of which all bytes were transferred; what else it has is zero.
    @inline(__always)
    func writeAnswer(byteCount: UInt32, to answer: UnsafeMutableRawBufferPointer) {
        let opcode = words.0.littleEndian &>> 32 & 0xFFFF | UInt64(DMAOpcode.answerBit)
        let first = UInt64(byteCount) | opcode &<< 32
        answer.storeBytes(of: first.littleEndian, as: UInt64.self)
        answer.storeBytes(of: words.1, toByteOffset: 8, as: UInt64.self)
        answer.storeBytes(of: words.5, toByteOffset: 16, as: UInt64.self)
        for offset in stride(from: 24, to: DMAProtocol.headerByteCount, by: 8) {
            answer.storeBytes(of: 0, toByteOffset: offset, as: UInt64.self)
        }
    }
}
