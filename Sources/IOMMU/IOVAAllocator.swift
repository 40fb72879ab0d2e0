// Which IOVAs of a domain are taken, and where the next mapping goes.

package import AddressSpace

/// Hands out IOVAs of one domain as the kernel's allocator does: from the top down, each range aligned to its size
/// rounded up to a power of two, below 4 GiB first.
///
/// It counts in granules (page frame numbers, pfn). Neighbouring ranges are kept as one, so that a look-up stays
/// short where much is allocated in one go; where they are many, ``RangeSet`` passes over those between which nothing
/// fits. Linux has a red-black tree, and goes from range to range.
package struct IOVAAllocator {
    private let granuleLog2: UInt64
    /// The last pfn of the aperture.
    private let lastPFN: UInt64
    /// Whether addresses below 4 GiB are tried first; `iommu.forcedac` turns it off.
    private let prefersLow: Bool
    /// Taken pfns, ascending and apart; the reserved ones are among them.
    private var taken = RangeSet()
    /// What can never be allocated.
    private var reserved = RangeSet()
    /// The least number of pages that was not found at a limit of 4 GiB or above; what is smaller may be there.
    private var leastFailedLowCount = UInt64.max
    /// How often the taken ranges were searched.
    private(set) var searchCount = 0

    /// The last address that 32 bits hold.
    static let lastLowAddress: UInt64 = 0xFFFF_FFFF

    private var lastLowPFN: UInt64 { Self.lastLowAddress &>> granuleLog2 }

    /// An allocator in which only pfn 0 is taken: address 0 is never handed out.
    ///
    /// - Parameters:
    ///   - granuleLog2: log2 of the smallest page.
    ///   - inputAddressBits: The size of the aperture.
    ///   - prefersLow: Whether addresses below 4 GiB are tried first.
    package init(granuleLog2: Int, inputAddressBits: Int, prefersLow: Bool = true) {
        self.granuleLog2 = UInt64(granuleLog2)
        lastPFN = UInt64.max &>> UInt64(64 - inputAddressBits + granuleLog2)
        self.prefersLow = prefersLow
        taken.insert(0, 0)
        reserved.insert(0, 0)
    }

    /// Takes a free range, below 4 GiB first unless that is turned off.
    ///
    /// - Parameters:
    ///   - byteCount: A multiple of the granule.
    ///   - limit: The last address that the device can drive: its DMA mask.
    /// - Returns: The first address; nil where no such range is free.
    package mutating func allocate(byteCount: UInt64, limit: UInt64 = .max) -> IOVirtualAddress? {
        if prefersLow, limit > Self.lastLowAddress,
            let low = allocateHighest(byteCount: byteCount, limit: Self.lastLowAddress)
        {
            return low
        }
        return allocateHighest(byteCount: byteCount, limit: limit)
    }

    /// Takes the highest free range that ends at or below `limit`.
    ///
    /// Linux: alloc_iova. A size that was not free below 4 GiB is not looked for there again, and nor is a larger
    /// one, until something below becomes free (max32_alloc_size).
    mutating func allocateHighest(byteCount: UInt64, limit: UInt64) -> IOVirtualAddress? {
        let count = byteCount &>> granuleLog2
        guard count > 0, let last = lastPFN(upTo: limit), count &- 1 <= last else { return nil }
        if last <= lastLowPFN, count >= leastFailedLowCount { return nil }
        searchCount &+= 1
        guard let pfn = taken.highestGap(count, upTo: last) else {
            if last >= min(lastLowPFN, lastPFN) { leastFailedLowCount = min(leastFailedLowCount, count) }
            return nil
        }
        taken.insert(pfn, pfn &+ count &- 1)
        return IOVirtualAddress(pfn &<< granuleLog2)
    }

    /// The last pfn whose page ends at or below `limit`; nil where that is none.
    private func lastPFN(upTo limit: UInt64) -> UInt64? {
        guard limit != .max else { return lastPFN }
        let count = (limit &+ 1) &>> granuleLog2
        return count > 0 ? min(lastPFN, count &- 1) : nil
    }

    /// Marks a range that someone mapped at an address of their choice; it may be taken already.
    package mutating func claim(_ range: AddressRange) {
        guard let pfns = pfns(of: range) else { return }
        taken.insert(pfns.first, pfns.last)
    }

    /// Keeps a range from ever being handed out.
    package mutating func reserve(_ range: AddressRange) {
        guard let pfns = pfns(of: range) else { return }
        taken.insert(pfns.first, pfns.last)
        reserved.insert(pfns.first, pfns.last)
    }

    /// Makes a range free again, but for what is reserved in it.
    package mutating func release(_ range: AddressRange) {
        guard let pfns = pfns(of: range) else { return }
        taken.remove(pfns.first, pfns.last)
        if pfns.first <= lastLowPFN { leastFailedLowCount = .max }
        for piece in reserved.overlapping(pfns.first, pfns.last) { taken.insert(piece.first, piece.last) }
    }

    /// Whether every address of the range is free.
    package func isFree(_ range: AddressRange) -> Bool {
        guard let pfns = pfns(of: range) else { return false }
        return taken.overlapping(pfns.first, pfns.last).isEmpty
    }

    /// How many bytes are taken, the reserved ones included.
    package var takenByteCount: UInt64 { taken.count &<< granuleLog2 }

    /// The pfns that the range touches; nil beyond the aperture.
    private func pfns(of range: AddressRange) -> (first: UInt64, last: UInt64)? {
        let first = range.first &>> granuleLog2
        guard first <= lastPFN else { return nil }
        return (first, min(range.last &>> granuleLog2, lastPFN))
    }
}
