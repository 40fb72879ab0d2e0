// How rings lie in memory: descriptors, flags and offsets (sections 2.7 and 2.8).

import AddressSpace

/// Descriptor flags (VIRTQ_DESC_F_*), 16 bits; the last two are those of packed rings.
struct DescriptorFlags: OptionSet, Hashable, Sendable {
    var rawValue: UInt16

    /// VIRTQ_DESC_F_NEXT: the chain goes on.
    static let next = Self(rawValue: 1)
    /// VIRTQ_DESC_F_WRITE: the device writes the buffer; otherwise it reads it.
    static let write = Self(rawValue: 2)
    /// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
    static let indirect = Self(rawValue: 4)
    /// VIRTQ_DESC_F_AVAIL, bit 7.
    static let available = Self(rawValue: 1 << 7)
    /// VIRTQ_DESC_F_USED, bit 15.
    static let used = Self(rawValue: 1 << 15)
}

/// One descriptor, 16 bytes, read once.
///
/// A split ring's is address (8), length (4), flags (2), next (2); a packed ring's address (8), length (4), buffer
/// ID (2), flags (2).
struct VirtqueueDescriptor: Hashable, Sendable {
    var address: UInt64
    /// In bytes.
    var length: UInt32
    var flags: DescriptorFlags
    /// Split: which descriptor is next; packed: the buffer ID.
    var nextOrID: UInt16

    static let byteCount = 16

    /// - Parameters:
    ///   - first: Bytes 7:0, little-endian.
    ///   - second: Bytes 15:8.
    init(split first: UInt64, _ second: UInt64) {
        address = first
        length = UInt32(truncatingIfNeeded: second)
        flags = DescriptorFlags(rawValue: UInt16(truncatingIfNeeded: second &>> 32))
        nextOrID = UInt16(truncatingIfNeeded: second &>> 48)
    }

    init(packed first: UInt64, _ second: UInt64) {
        address = first
        length = UInt32(truncatingIfNeeded: second)
        nextOrID = UInt16(truncatingIfNeeded: second &>> 32)
        flags = DescriptorFlags(rawValue: UInt16(truncatingIfNeeded: second &>> 48))
    }
}

/// Where a queue is, as the driver set it up.
struct QueueConfiguration: Equatable, Sendable {
    /// How many descriptors.
    var size: UInt16
    /// The descriptor table, or the packed descriptor ring.
    var descriptors: UInt64
    /// The available ring, or the driver's event suppression structure.
    var driverArea: UInt64
    /// The used ring, or the device's event suppression structure.
    var deviceArea: UInt64

    /// What is wrong with it; nil is nothing.
    func defect(isPacked: Bool) -> String? {
        guard size > 0, size <= 32768 else { return "queue size \(size) is not 1 to 32768" }
        guard isPacked || size & (size &- 1) == 0 else { return "queue size \(size) is no power of two" }
        guard descriptors.isMultiple(of: 16), driverArea.isMultiple(of: isPacked ? 4 : 2),
            deviceArea.isMultiple(of: 4)
        else { return "a part of the queue is not aligned" }
        // The longest part is the descriptors: nothing of a queue may leave 64 bits.
        let span = UInt64(size) * 16 + 16
        for start in [descriptors, driverArea, deviceArea] where start.addingReportingOverflow(span).overflow
        {
            return "a part of the queue leaves the address space"
        }
        return nil
    }
}
