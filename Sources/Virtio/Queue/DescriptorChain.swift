// One buffer of a driver's, read out of a ring into values.

import AddressSpace
package import DeviceModel

/// The descriptors of one chain: first those that the device reads, then those that it writes.
///
/// Made to be used again for the next chain, so that a chain of the usual length allocates nothing.
package struct DescriptorChain: Sendable {
    /// What names the chain to the driver: the head's index, or the buffer ID of a packed ring.
    private(set) var id: UInt16 = 0
    /// How many places it takes in a packed ring.
    var ringCount: UInt16 = 0
    package private(set) var readable: [DMARange] = []
    package private(set) var writable: [DMARange] = []
    /// In bytes; at most 2^32 altogether.
    package private(set) var readableByteCount = 0
    package private(set) var writableByteCount = 0

    package init() {}

    mutating func begin(id: UInt16) {
        self.id = id
        ringCount = 0
        readable.removeAll(keepingCapacity: true)
        writable.removeAll(keepingCapacity: true)
        readableByteCount = 0
        writableByteCount = 0
    }

    mutating func identify(as id: UInt16) { self.id = id }

    mutating func append(_ descriptor: VirtqueueDescriptor) throws(VirtqueueError) {
        let count = Int(descriptor.length)
        guard readableByteCount + writableByteCount + count <= 1 << 32 else {
            throw .malformed("a chain of more than 2^32 bytes")
        }
        guard !descriptor.address.addingReportingOverflow(UInt64(count)).overflow else {
            throw .malformed("a buffer that leaves the address space")
        }
        let range = DMARange(address: IOVirtualAddress(descriptor.address), byteCount: count)
        if descriptor.flags.contains(.write) {
            writableByteCount += count
            if count > 0 { writable.append(range) }
        } else {
            guard writable.isEmpty else { throw .malformed("a readable descriptor after a writable one") }
            readableByteCount += count
            if count > 0 { readable.append(range) }
        }
    }
}

extension Array<DMARange> {
    /// Appends to `result` the part of these bytes that begins at `offset` and has `count` bytes, or as many as are
    /// there.
    func slice(from offset: Int, count: Int, into result: inout [DMARange]) {
        var skip = offset
        var left = count
        for range in self where left > 0 {
            guard skip < range.byteCount else {
                skip -= range.byteCount
                continue
            }
            let piece = Swift.min(range.byteCount - skip, left)
            // The chain has checked that its ranges do not leave 64 bits.
            let start = IOVirtualAddress(range.address.rawValue &+ UInt64(skip))
            result.append(DMARange(address: start, byteCount: piece))
            left -= piece
            skip = 0
        }
    }
}

extension DMAPort {
    /// Reads bytes of a buffer that lies in several pieces, from `offset` on.
    ///
    /// - Returns: How many there were: fewer than asked for where the buffer ends.
    func gather(_ ranges: [DMARange], from offset: Int = 0, into buffer: UnsafeMutableRawBufferPointer)
        throws(DMAFault) -> Int
    {
        var skip = offset
        var done = 0
        for range in ranges where done < buffer.count {
            guard skip < range.byteCount else {
                skip -= range.byteCount
                continue
            }
            let piece = min(range.byteCount - skip, buffer.count - done)
            let target = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + piece])
            let start = IOVirtualAddress(range.address.rawValue &+ UInt64(skip))
            try read(at: start, into: target, .plain)
            done += piece
            skip = 0
        }
        return done
    }

    /// Writes bytes to a buffer that lies in several pieces, from `offset` on.
    ///
    /// - Returns: How many went: fewer where the buffer ends.
    func scatter(_ bytes: UnsafeRawBufferPointer, to ranges: [DMARange], from offset: Int = 0)
        throws(DMAFault) -> Int
    {
        var skip = offset
        var done = 0
        for range in ranges where done < bytes.count {
            guard skip < range.byteCount else {
                skip -= range.byteCount
                continue
            }
            let piece = min(range.byteCount - skip, bytes.count - done)
            let source = UnsafeRawBufferPointer(rebasing: bytes[done..<done + piece])
            let start = IOVirtualAddress(range.address.rawValue &+ UInt64(skip))
            try write(source, at: start, .plain)
            done += piece
            skip = 0
        }
        return done
    }
}
