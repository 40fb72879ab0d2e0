// A client's file behind an area of its address space.

import AddressSpace
import Glibc
import GuestMemory
import IOMMU

/// Part of a client's file that has a place on the bus, and whose pages devices see when they ask for them.
final class ClientFile: ProcessMemory {
    /// Where the first byte is, physical.
    let physical: UInt64
    let byteCount: UInt64
    /// Which file it is, for whoever gave it its place.
    let file: SharedFileRange
    private let descriptor: OwnedDescriptor
    private let offset: UInt64

    /// - Parameters:
    ///   - descriptor: The file, to look at its size.
    ///   - file: Which part of it.
    ///   - physical: Where that part is on the bus.
    init(_ descriptor: consuming OwnedDescriptor, _ file: SharedFileRange, at physical: UInt64) {
        self.descriptor = descriptor
        self.file = file
        self.physical = physical
        offset = file.offset
        byteCount = file.byteCount
    }

    /// The client may have truncated the file since: a page beyond its end is none.
    func page(at offset: UInt64) -> PhysicalAddress? {
        var status = stat()
        guard offset < byteCount, fstat(descriptor.rawValue, &status) == 0,
            self.offset + offset < UInt64(clamping: status.st_size)
        else { return nil }
        return PhysicalAddress(physical + offset)
    }
}
