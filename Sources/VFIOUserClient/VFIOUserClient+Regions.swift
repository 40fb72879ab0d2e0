// Reads and writes of the device's regions.

import VFIOUserProtocol

extension VFIOUserClient {
    /// A read that is under way.
    public struct PendingRead: Sendable {
        fileprivate let client: VFIOUserClient
        fileprivate let started: ClientConnection.Started
        fileprivate let byteCount: Int

        /// Waits for the bytes.
        public func wait() throws(VFIOUserClientError) -> [UInt8] {
            let answer = try client.connection.finish(
                started,
                timeoutMilliseconds: client.options.timeoutMilliseconds
            )
            guard case .data(let bytes) = answer.reply else { throw unexpectedReply(.readRegion) }
            guard bytes.count == byteCount else {
                throw .violation(
                    command: VFIOUserCommand.readRegion.name,
                    reason: "\(bytes.count) bytes of \(byteCount)"
                )
            }
            return bytes
        }
    }

    /// A write that is under way.
    public struct PendingWrite: Sendable {
        fileprivate let client: VFIOUserClient
        fileprivate let started: ClientConnection.Started

        /// Waits until it is done.
        public func wait() throws(VFIOUserClientError) {
            _ = try client.connection.finish(started, timeoutMilliseconds: client.options.timeoutMilliseconds)
        }
    }

    /// How many pieces of one access are under way together.
    private static let pieceCountMax = 8

    /// Starts a read of no more than one message carries (``Server/dataByteCountMax`` and the client's own).
    public func startRead(_ byteCount: Int, of region: RegionIndex, at offset: UInt64)
        throws(VFIOUserClientError) -> PendingRead
    {
        guard (0...dataBytesPerMessage).contains(byteCount) else { throw tooLong(byteCount) }
        let access = VFIOUserRegionAccess(
            offset: offset,
            region: region.rawValue,
            count: UInt32(truncatingIfNeeded: byteCount)
        )
        return PendingRead(
            client: self,
            started: try connection.start(.readRegion(access)),
            byteCount: byteCount
        )
    }

    /// Starts a write of no more than one message carries (``Server/dataByteCountMax`` and the client's own).
    public func startWrite(_ bytes: [UInt8], to region: RegionIndex, at offset: UInt64)
        throws(VFIOUserClientError) -> PendingWrite
    {
        guard bytes.count <= dataBytesPerMessage else { throw tooLong(bytes.count) }
        let request = VFIOUserClientRequest.writeRegion(offset: offset, region: region.rawValue, bytes)
        return PendingWrite(client: self, started: try connection.start(request))
    }

    private func tooLong(_ byteCount: Int) -> VFIOUserClientError {
        .invalid("an access of \(byteCount) bytes: one message carries up to \(dataBytesPerMessage)")
    }

    /// Reads bytes of a region, in as many messages as it takes.
    public func read(_ byteCount: Int, of region: RegionIndex, at offset: UInt64) throws(VFIOUserClientError)
        -> [UInt8]
    {
        guard byteCount >= 0, !offset.addingReportingOverflow(UInt64(byteCount)).overflow else {
            throw .invalid("\(byteCount) bytes at \(offset) leave 64 bits")
        }
        guard byteCount > dataBytesPerMessage else {
            return try startRead(byteCount, of: region, at: offset).wait()
        }
        var bytes: [UInt8] = []
        var pending: [PendingRead] = []
        var started = 0
        while bytes.count < byteCount {
            while started < byteCount, pending.count < Self.pieceCountMax {
                let count = min(byteCount - started, dataBytesPerMessage)
                pending.append(try startRead(count, of: region, at: offset + UInt64(started)))
                started += count
            }
            bytes += try pending.removeFirst().wait()
        }
        return bytes
    }

    /// Reads an integer of a region, little-endian, in one access.
    public func read<Word: FixedWidthInteger & UnsignedInteger>(
        _: Word.Type = Word.self,
        of region: RegionIndex,
        at offset: UInt64
    ) throws(VFIOUserClientError) -> Word {
        var word: Word = 0
        for byte in try read(Word.bitWidth / 8, of: region, at: offset).reversed() {
            word = word &<< 8 | Word(truncatingIfNeeded: byte)
        }
        return word
    }

    /// Writes bytes to a region, in as many messages as it takes.
    ///
    /// - Parameter isPosted: Whether not to wait (No_reply): then nobody says whether it was done, and every later
    ///   access comes after it.
    public func write(_ bytes: [UInt8], to region: RegionIndex, at offset: UInt64, isPosted: Bool = false)
        throws(VFIOUserClientError)
    {
        guard !offset.addingReportingOverflow(UInt64(bytes.count)).overflow else {
            throw .invalid("\(bytes.count) bytes at \(offset) leave 64 bits")
        }
        guard bytes.count > dataBytesPerMessage else {
            return try writePiece(bytes, region, offset, isPosted)?.wait() ?? ()
        }
        var pending: [PendingWrite] = []
        for start in stride(from: 0, to: bytes.count, by: dataBytesPerMessage) {
            if pending.count == Self.pieceCountMax { try pending.removeFirst().wait() }
            let piece = Array(bytes[start..<min(start + dataBytesPerMessage, bytes.count)])
            if let write = try writePiece(piece, region, offset + UInt64(start), isPosted) {
                pending.append(write)
            }
        }
        for write in pending { try write.wait() }
    }

    private func writePiece(_ bytes: [UInt8], _ region: RegionIndex, _ offset: UInt64, _ isPosted: Bool)
        throws(VFIOUserClientError) -> PendingWrite?
    {
        guard isPosted else { return try startWrite(bytes, to: region, at: offset) }
        try connection.post(.writeRegion(offset: offset, region: region.rawValue, bytes))
        return nil
    }

    /// Writes an integer to a region, little-endian, in one access.
    public func write<Word: FixedWidthInteger & UnsignedInteger>(
        _ word: Word,
        to region: RegionIndex,
        at offset: UInt64,
        isPosted: Bool = false
    ) throws(VFIOUserClientError) {
        try write(
            withUnsafeBytes(of: word.littleEndian, Array.init),
            to: region,
            at: offset,
            isPosted: isPosted
        )
    }

    // MARK: Many small writes

    /// A write of 1 to 8 bytes.
    public struct SmallWrite: Hashable, Sendable {
        public var region: RegionIndex
        public var offset: UInt64
        /// 1 to 8.
        public var byteCount: Int
        /// The bytes, the first in the lowest 8 bits.
        public var data: UInt64

        public init(region: RegionIndex, offset: UInt64, byteCount: Int, data: UInt64) {
            self.region = region
            self.offset = offset
            self.byteCount = byteCount
            self.data = data
        }
    }

    /// What one REGION_WRITE_MULTI carries; no client sends more.
    private static let smallWriteCountMax = 200

    /// Does small writes in their order: in few messages where the server takes REGION_WRITE_MULTI.
    ///
    /// - Parameter isPosted: Whether not to wait, as in ``write(_:to:at:isPosted:)-([UInt8],_,_,_)``.
    /// - Throws: ``VFIOUserClientError/violation(command:reason:)`` where the server did not do all.
    public func write(_ writes: [SmallWrite], isPosted: Bool = false) throws(VFIOUserClientError) {
        guard writes.allSatisfy({ (1...8).contains($0.byteCount) }) else {
            throw .invalid("a small write has 1 to 8 bytes")
        }
        let perMessage = min(
            Self.smallWriteCountMax,
            (dataBytesPerMessage - 8) / VFIOUserSmallWrite.byteCount
        )
        guard server.takesMultipleWrites, perMessage > 1 else { return try writeEach(writes, isPosted) }
        for start in stride(from: 0, to: writes.count, by: perMessage) {
            let piece = writes[start..<min(start + perMessage, writes.count)].map { write in
                VFIOUserSmallWrite(
                    offset: write.offset,
                    region: write.region.rawValue,
                    count: UInt32(truncatingIfNeeded: write.byteCount),
                    data: write.data
                )
            }
            guard !isPosted else {
                try connection.post(.writeRegions(piece))
                continue
            }
            guard case .wroteRegions(let count) = try call(.writeRegions(piece)).reply else {
                throw unexpectedReply(.writeRegions)
            }
            guard count == UInt64(piece.count) else {
                throw .violation(
                    command: VFIOUserCommand.writeRegions.name,
                    reason: "\(count) writes of \(piece.count) were done"
                )
            }
        }
    }

    private func writeEach(_ writes: [SmallWrite], _ isPosted: Bool) throws(VFIOUserClientError) {
        var pending: [PendingWrite] = []
        for write in writes {
            if pending.count == Self.pieceCountMax { try pending.removeFirst().wait() }
            let bytes = withUnsafeBytes(of: write.data.littleEndian) { Array($0.prefix(write.byteCount)) }
            if let write = try writePiece(bytes, write.region, write.offset, isPosted) {
                pending.append(write)
            }
        }
        for write in pending { try write.wait() }
    }
}
