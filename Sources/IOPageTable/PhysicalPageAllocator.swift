// Where tables, queues and other structures that hardware reads get their memory.

package import AddressSpace
package import DeviceModel

/// Physical memory could not be had, or could not be given back.
package enum PhysicalPageError: Error, Equatable, Sendable {
    /// No free block of this size and alignment is left.
    case exhausted(byteCount: UInt64, alignment: UInt64)
    /// The size is zero or the alignment is no power of two.
    case invalidRequest(byteCount: UInt64, alignment: UInt64)
    /// Nothing that starts here is allocated: it never was, or was freed before.
    case notAllocated(PhysicalAddress)
    /// The memory that was found could not be cleared.
    case memory(BusError)
}

/// Hands out physical memory that hardware is going to read.
///
/// Calls come from any thread.
package protocol PhysicalPageAllocator: AnyObject, Sendable {
    /// Allocates zeroed, physically contiguous memory.
    ///
    /// - Parameters:
    ///   - byteCount: At least this many bytes.
    ///   - alignment: A power of two of which the address is a multiple.
    /// - Returns: Where it begins.
    /// - Throws: ``PhysicalPageError`` where there is none left.
    func allocate(byteCount: UInt64, alignment: UInt64) throws(PhysicalPageError) -> PhysicalAddress

    /// Gives back what ``allocate(byteCount:alignment:)`` returned. Hardware must not reach it any more.
    func free(_ address: PhysicalAddress) throws(PhysicalPageError)
}
