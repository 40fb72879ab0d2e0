// How a ring of the DMA socket lies in shared memory: a split virtqueue. docs/dma-ring.md is its specification.

/// Where the three parts of a ring are, and what their words mean.
///
/// The layout is that of a split virtqueue (VIRTIO 1.3, 2.7), little-endian, without feature bits: no indirect
/// descriptors, no event index. Addresses in descriptors are offsets in the buffer that the ring lies in.
public struct DMARingLayout: Equatable, Sendable {
    /// How many descriptors there are, and entries in both rings: a power of two, at least 2.
    public let size: UInt16
    /// Where the descriptor table is, in bytes from the buffer's start; 16 bytes for each descriptor.
    public let descriptors: UInt64
    /// Where the available ring is: flags, index, and 2 bytes for each entry.
    public let available: UInt64
    /// Where the used ring is, at a multiple of 64: flags, index, and 8 bytes for each entry.
    public let used: UInt64
    /// The first byte after the used ring.
    public let end: UInt64

    /// One descriptor in bytes.
    public static var descriptorByteCount: UInt64 { 16 }
    /// The most descriptors that a ring can have.
    public static var sizeMax: UInt64 { 32768 }
    /// What the descriptor table's offset is a multiple of: a cache line.
    public static var alignment: UInt64 { 64 }
    /// How many descriptors a chain may have.
    public static var chainLengthMax: Int { 16 }

    /// Lays a ring out from `offset` on.
    ///
    /// - Throws: A rejection with ``DMAStatus/parameter`` or ``DMAStatus/range`` that says what is wrong.
    public init(size: UInt64, at offset: UInt64) throws(DMARejection) {
        guard size >= 2, size <= Self.sizeMax, size & (size - 1) == 0 else {
            throw DMARejection(
                .parameter,
                "a ring of \(size) descriptors: a power of two from 2 to \(Self.sizeMax) must be asked for"
            )
        }
        guard offset.isMultiple(of: Self.alignment) else {
            throw DMARejection(
                .parameter,
                "offset \(offset): a ring starts at a multiple of \(Self.alignment)"
            )
        }
        // 22 bytes a descriptor and a line between: what is added here is below 2^20.
        guard offset < 1 << 62 else { throw DMARejection(.range, "offset \(offset) is in no buffer") }
        self.size = UInt16(size)
        descriptors = offset
        available = descriptors + Self.descriptorByteCount * size
        used = (available + 4 + 2 * size + 2 + Self.alignment - 1) & ~(Self.alignment - 1)
        end = used + 4 + 8 * size + 2
    }

    /// Where an entry of the available ring is, for an index that counts on and on.
    public func availableEntry(_ index: UInt16) -> UInt64 { available + 4 + 2 * UInt64(index & (size - 1)) }
    /// Where an entry of the used ring is.
    public func usedEntry(_ index: UInt16) -> UInt64 { used + 4 + 8 * UInt64(index & (size - 1)) }
    /// Where a descriptor is.
    public func descriptor(_ index: UInt16) -> UInt64 {
        descriptors + Self.descriptorByteCount * UInt64(index)
    }

    /// In the available ring's flags (offset 0): the client looks for itself, and wants no signal.
    public static var noInterrupt: UInt16 { 1 << 0 }
    /// In the used ring's flags (offset 0): the daemon looks for itself, and wants no signal.
    public static var noNotify: UInt16 { 1 << 0 }
    /// In the used ring's flags: what the ring held made no sense, and the daemon looks at it no more.
    ///
    /// RING_CLOSE's answer says why.
    public static var broken: UInt16 { 1 << 15 }
    /// In a descriptor's flags: another one follows.
    public static var hasNext: UInt16 { 1 << 0 }
    /// In a descriptor's flags: the daemon writes there.
    public static var isWritable: UInt16 { 1 << 1 }
}

/// A descriptor of a ring, as its second half of eight bytes holds it beside the offset.
public struct DMARingDescriptor: Equatable, Sendable {
    /// Where the bytes are in the buffer.
    public var offset: UInt64
    /// How many.
    public var byteCount: UInt32
    public var flags: UInt16
    /// The next one's index, with ``DMARingLayout/hasNext``.
    public var next: UInt16

    public init(offset: UInt64, byteCount: UInt32, flags: UInt16 = 0, next: UInt16 = 0) {
        (self.offset, self.byteCount, self.flags, self.next) = (offset, byteCount, flags, next)
    }

    /// Reads a descriptor from its two little-endian words.
    public init(low: UInt64, high: UInt64) {
        offset = low
        byteCount = UInt32(truncatingIfNeeded: high)
        flags = UInt16(truncatingIfNeeded: high >> 32)
        next = UInt16(truncatingIfNeeded: high >> 48)
    }

    /// Length in bits 31:0, flags in 47:32, next in 63:48.
    public var high: UInt64 { UInt64(byteCount) | UInt64(flags) << 32 | UInt64(next) << 48 }
}
