// The two headers of the DMA socket, field by field at fixed offsets.

/// A request's header.
///
/// docs/dma-protocol.md has its table of bytes.
public struct DMARequest: Equatable, Sendable {
    /// The whole message in bytes, this header included.
    public var byteCount: UInt32
    public var opcode: DMAOpcode
    public var flags: DMAFlags
    /// Comes back in the answer.
    public var id: UInt64
    /// A handle from OPEN; an SMMU's index with ``DMAFlags/direct``; a region's index in RAM_FD.
    public var endpoint: UInt32
    /// A StreamID, with ``DMAFlags/direct`` or ``DMAFlags/stream``; a ``DMAProtection`` in PROCESS_MAP.
    public var stream: UInt32
    /// A SubstreamID, with ``DMAFlags/substream``.
    public var substream: UInt32
    /// A handle from ATTACH_BUFFER, with ``DMAFlags/buffer``.
    public var buffer: UInt32
    /// The address as the device drives it.
    public var iova: UInt64
    /// How many bytes to read or write, or to share; the version in HELLO.
    public var count: UInt64
    /// Where in the buffer the data is; where in the file the buffer starts.
    public var offset: UInt64
    /// Zero in this version.
    public var reserved: UInt64

    @inlinable @inline(__always)
    public init(
        _ opcode: DMAOpcode,
        id: UInt64,
        flags: DMAFlags = [],
        endpoint: UInt32 = 0,
        stream: UInt32 = 0,
        substream: UInt32 = 0,
        buffer: UInt32 = 0,
        iova: UInt64 = 0,
        count: UInt64 = 0,
        offset: UInt64 = 0,
        payloadByteCount: Int = 0
    ) {
        self.byteCount = UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount &+ payloadByteCount)
        self.opcode = opcode
        self.flags = flags
        self.id = id
        self.endpoint = endpoint
        self.stream = stream
        self.substream = substream
        self.buffer = buffer
        self.iova = iova
        self.count = count
        self.offset = offset
        self.reserved = 0
    }

    /// Opens a connection with this version.
    public static func hello(id: UInt64) -> Self {
        Self(.hello, id: id, iova: DMAProtocol.magic, count: DMAProtocol.version)
    }

    /// Reads a header.
    ///
    /// - Precondition: `bytes` has at least ``DMAProtocol/headerByteCount`` bytes; any alignment.
    @inlinable @inline(__always)
    public init(header bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count >= DMAProtocol.headerByteCount, "no whole header")
        byteCount = bytes.word32(at: 0)
        opcode = DMAOpcode(rawValue: bytes.word16(at: 4))
        flags = DMAFlags(rawValue: bytes.word16(at: 6))
        id = bytes.word64(at: 8)
        endpoint = bytes.word32(at: 16)
        stream = bytes.word32(at: 20)
        substream = bytes.word32(at: 24)
        buffer = bytes.word32(at: 28)
        iova = bytes.word64(at: 32)
        count = bytes.word64(at: 40)
        offset = bytes.word64(at: 48)
        reserved = bytes.word64(at: 56)
    }

    /// Writes the header.
    ///
    /// - Precondition: `bytes` has room for ``DMAProtocol/headerByteCount`` bytes; any alignment.
    @inlinable @inline(__always)
    public func write(to bytes: UnsafeMutableRawBufferPointer) {
        precondition(bytes.count >= DMAProtocol.headerByteCount, "no room for a header")
        bytes.store(byteCount, at: 0)
        bytes.store(opcode.rawValue, at: 4)
        bytes.store(flags.rawValue, at: 6)
        bytes.store(id, at: 8)
        bytes.store(endpoint, at: 16)
        bytes.store(stream, at: 20)
        bytes.store(substream, at: 24)
        bytes.store(buffer, at: 28)
        bytes.store(iova, at: 32)
        bytes.store(count, at: 40)
        bytes.store(offset, at: 48)
        bytes.store(reserved, at: 56)
    }
}

/// An answer's header.
///
/// docs/dma-protocol.md has its table of bytes.
public struct DMAResponse: Equatable, Sendable {
    /// The whole message in bytes, this header included.
    public var byteCount: UInt32
    /// The request's.
    public var opcode: DMAOpcode
    public var status: DMAStatus
    /// The request's; 0 where it could not be read.
    public var id: UInt64
    /// How many bytes were read or written.
    public var transferred: UInt64
    /// The first byte that was not, where the status is a fault; the magic in HELLO.
    public var address: UInt64
    /// The event number, where the status is ``DMAStatus/fault``.
    public var event: UInt32
    /// The handle that was given; the version in HELLO.
    public var handle: UInt32
    /// What the values are depends on the opcode.
    public var value0: UInt64
    public var value1: UInt64
    public var value2: UInt64

    @inlinable @inline(__always)
    public init(
        to request: DMARequest,
        _ status: DMAStatus = .ok,
        transferred: UInt64 = 0,
        address: UInt64 = 0,
        event: UInt32 = 0,
        handle: UInt32 = 0,
        value0: UInt64 = 0,
        value1: UInt64 = 0,
        value2: UInt64 = 0,
        payloadByteCount: Int = 0
    ) {
        self.byteCount = UInt32(truncatingIfNeeded: DMAProtocol.headerByteCount &+ payloadByteCount)
        self.opcode = request.opcode
        self.status = status
        self.id = request.id
        self.transferred = transferred
        self.address = address
        self.event = event
        self.handle = handle
        self.value0 = value0
        self.value1 = value1
        self.value2 = value2
    }

    /// Reads a header.
    ///
    /// - Precondition: `bytes` has at least ``DMAProtocol/headerByteCount`` bytes; any alignment.
    @inlinable @inline(__always)
    public init(header bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count >= DMAProtocol.headerByteCount, "no whole header")
        byteCount = bytes.word32(at: 0)
        opcode = DMAOpcode(rawValue: bytes.word16(at: 4) & ~DMAOpcode.answerBit)
        status = DMAStatus(rawValue: bytes.word16(at: 6))
        id = bytes.word64(at: 8)
        transferred = bytes.word64(at: 16)
        address = bytes.word64(at: 24)
        event = bytes.word32(at: 32)
        handle = bytes.word32(at: 36)
        value0 = bytes.word64(at: 40)
        value1 = bytes.word64(at: 48)
        value2 = bytes.word64(at: 56)
    }

    /// Writes the header.
    ///
    /// - Precondition: `bytes` has room for ``DMAProtocol/headerByteCount`` bytes; any alignment.
    @inlinable @inline(__always)
    public func write(to bytes: UnsafeMutableRawBufferPointer) {
        precondition(bytes.count >= DMAProtocol.headerByteCount, "no room for a header")
        bytes.store(byteCount, at: 0)
        bytes.store(opcode.rawValue | DMAOpcode.answerBit, at: 4)
        bytes.store(status.rawValue, at: 6)
        bytes.store(id, at: 8)
        bytes.store(transferred, at: 16)
        bytes.store(address, at: 24)
        bytes.store(event, at: 32)
        bytes.store(handle, at: 36)
        bytes.store(value0, at: 40)
        bytes.store(value1, at: 48)
        bytes.store(value2, at: 56)
    }
}

extension DMAResponse {
    /// The answer to HELLO.
    public static func hello(to request: DMARequest, _ limits: DMALimits) -> Self {
        Self(
            to: request,
            address: DMAProtocol.magic,
            handle: UInt32(truncatingIfNeeded: DMAProtocol.version),
            value0: UInt64(limits.inlineByteCountMax),
            value1: UInt64(limits.requestsInFlightMax),
            value2: UInt64(limits.buffersMax) | UInt64(limits.endpointsMax) << 32
        )
    }

    /// The limits that an answer to HELLO states.
    public var limits: DMALimits {
        DMALimits(
            inlineByteCountMax: UInt32(clamping: value0),
            requestsInFlightMax: UInt32(clamping: value1),
            buffersMax: UInt32(truncatingIfNeeded: value2),
            endpointsMax: UInt32(truncatingIfNeeded: value2 >> 32)
        )
    }
}

/// A region of RAM, as an entry of RAM_INFO's answer.
package struct DMAMemoryRegion: Equatable, Sendable {
    /// One entry's size, in bytes.
    package static let byteCount = 32

    /// Physical.
    package var base: UInt64
    /// In bytes.
    package var length: UInt64
    /// Where it starts in its file.
    package var fileOffset: UInt64
    /// By which RAM_FD asks for its file.
    package var index: UInt32

    package init(base: UInt64, length: UInt64, fileOffset: UInt64, index: UInt32) {
        self.base = base
        self.length = length
        self.fileOffset = fileOffset
        self.index = index
    }

    /// The regions of an answer's payload; bytes after the last whole entry are passed over.
    package static func regions(in payload: UnsafeRawBufferPointer) -> [Self] {
        (0..<payload.count / byteCount).map { place in
            let entry = UnsafeRawBufferPointer(
                rebasing: payload[(place * byteCount)..<((place + 1) * byteCount)]
            )
            return Self(
                base: entry.word64(at: 0),
                length: entry.word64(at: 8),
                fileOffset: entry.word64(at: 16),
                index: entry.word32(at: 24)
            )
        }
    }

    /// An answer's payload with these regions.
    package static func payload(of regions: [Self]) -> [UInt8] {
        var payload = [UInt8](repeating: 0, count: regions.count * byteCount)
        payload.withUnsafeMutableBytes { bytes in
            for (place, region) in regions.enumerated() {
                bytes.store(region.base, at: place * byteCount)
                bytes.store(region.length, at: place * byteCount + 8)
                bytes.store(region.fileOffset, at: place * byteCount + 16)
                bytes.store(region.index, at: place * byteCount + 24)
            }
        }
        return payload
    }
}

extension UnsafeRawBufferPointer {
    @inlinable @inline(__always)
    func word16(at offset: Int) -> UInt16 {
        UInt16(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }
    @inlinable @inline(__always)
    func word32(at offset: Int) -> UInt32 {
        UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
    @inlinable @inline(__always)
    func word64(at offset: Int) -> UInt64 {
        UInt64(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }
}

extension UnsafeMutableRawBufferPointer {
    @inlinable @inline(__always)
    func store(_ value: some FixedWidthInteger & BitwiseCopyable, at offset: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: offset, as: type(of: value))
    }
}
