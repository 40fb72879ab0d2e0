// Which pages devices wrote to, as hardware notes it in the leaves (HTTU). Linux: read_and_clear_dirty.

package import AddressSpace
import DeviceModel

extension IOPageTable {
    /// Finds the pages and blocks of a range that were written since they were mapped or last cleared.
    ///
    /// A leaf is dirty when it is mapped: nobody knows what was written before. Whoever begins to track clears first.
    /// - Parameters:
    ///   - iova: The first address, a multiple of the granule.
    ///   - byteCount: A multiple of the granule. Addresses in it at which nothing is mapped are passed over.
    ///   - clears: Whether they are clean from now on. What was cleared is reported to `invalidator`: hardware notes
    ///     no write through a translation that it holds as dirty.
    /// - Returns: The dirty pages and blocks, whole, in ascending order; those next to each other as one range.
    /// - Throws: For a range that is unaligned or out of range, or a table that cannot be read. Without
    ///   ``PageTableConfiguration/tracksDirtyState`` nothing is ever dirty.
    package mutating func readDirty(
        _ iova: IOVirtualAddress,
        byteCount: UInt64,
        clears: Bool,
        invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) -> [AddressRange] {
        try checkRange(iova, nil, byteCount)
        var search = DirtySearch(first: iova.rawValue, last: iova.rawValue &+ (byteCount - 1), clears: clears)
        try collect(root, level: configuration.startLevel, base: 0, &search, &invalidator)
        return search.ranges
    }

    /// What is looked for, and what was found.
    private struct DirtySearch {
        let first: UInt64
        let last: UInt64
        let clears: Bool
        var ranges: [AddressRange] = []

        mutating func add(_ start: UInt64, _ byteCount: UInt64) {
            let end = start &+ (byteCount &- 1)
            if let open = ranges.last, open.last &+ 1 == start,
                let joined = AddressRange(first: open.first, last: end)
            {
                ranges[ranges.count - 1] = joined
            } else if let range = AddressRange(first: start, last: end) {
                ranges.append(range)
            }
        }
    }

    private func collect(
        _ table: PhysicalAddress,
        level: Int,
        base: UInt64,
        _ search: inout DirtySearch,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) {
        let size = configuration.entryByteCount(atLevel: level)
        let end = base &+ (configuration.entryCount(atLevel: level) &* size &- 1)
        let lowest = (max(search.first, base) &- base) / size
        let highest = (min(search.last, end) &- base) / size
        for index in lowest...highest {
            let entry = entryAddress(table, index)
            let descriptor = try load(entry)
            let start = base &+ index &* size
            switch descriptor.kind(atLevel: level, configuration: configuration) {
            case .invalid: continue
            case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
            case .table:
                let next = try follow(descriptor, at: entry)
                try collect(next, level: level + 1, base: start, &search, &invalidator)
            case .leaf:
                guard descriptor.isWritableDirty else { continue }
                search.add(start, size)
                guard search.clears else { continue }
                try clean(descriptor, at: entry)
                invalidator.gather(IOVirtualAddress(start), byteCount: size, pageByteCount: size)
            }
        }
    }

    /// Makes a dirty leaf clean; hardware changes nothing of one that is dirty.
    private func clean(_ descriptor: PageTableDescriptor, at entry: PhysicalAddress) throws(IOPageTableError)
    {
        let found: UInt64
        do {
            found = try memory.compareExchange64(
                expected: descriptor.rawValue,
                desired: descriptor.rawValue | PageTableDescriptor.readOnly,
                at: entry
            )
        } catch { throw .memory(error) }
        guard found == descriptor.rawValue else {
            throw .corrupted(descriptorAddress: entry, descriptor: found)
        }
    }
}
