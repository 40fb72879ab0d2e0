// How mappings are taken away, and what has to be invalidated for it.

package import AddressSpace

/// How far an unmap came.
package struct UnmapOutcome: Equatable, Sendable {
    /// How many bytes, from the first on, are no longer mapped.
    package let byteCount: UInt64
    /// Why it stopped before the end; nil where it did not.
    package let stoppedBy: IOPageTableError?

    package init(byteCount: UInt64, stoppedBy: IOPageTableError?) {
        self.byteCount = byteCount
        self.stoppedBy = stoppedBy
    }
}

extension IOPageTable {
    /// Unmaps `byteCount` bytes at `iova`, up to the first address at which nothing is mapped.
    ///
    /// What was unmapped has been reported to `invalidator` in any case. A table that the range covers whole is
    /// freed, whatever it holds.
    /// - Throws: Only for a range that is unaligned or out of range; then nothing has changed.
    package mutating func unmap(
        _ iova: IOVirtualAddress,
        byteCount: UInt64,
        invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) -> UnmapOutcome {
        try checkRange(iova, nil, byteCount)
        var done: UInt64 = 0
        while done < byteCount {
            let next = iova.rawValue &+ done
            let run = Run(
                iova: next,
                choice: configuration.pageChoice(iova: next, physical: next, byteCount: byteCount &- done)
            )
            do throws(IOPageTableError) {
                done &+= try unmap(run, &invalidator)
            } catch {
                return UnmapOutcome(byteCount: done, stoppedBy: error)
            }
        }
        return UnmapOutcome(byteCount: done, stoppedBy: nil)
    }

    /// Unmaps the run as far as its table and its mappings reach.
    ///
    /// - Returns: How many bytes that are, never zero.
    private mutating func unmap(_ run: Run, _ invalidator: inout some PageTableInvalidator)
        throws(IOPageTableError) -> UInt64
    {
        let level = configuration.level(ofPages: run.pageByteCount)
        let table = try tableForUnmapping(run.iova, level: level, &invalidator)
        let first = configuration.index(of: run.iova, atLevel: level)
        let count = min(run.count, configuration.entryCount(atLevel: level) &- first)
        var cleared: UInt64 = 0
        var leaves: Run?
        do throws(IOPageTableError) {
            while cleared < count {
                let iova = run.iova &+ cleared &* run.pageByteCount
                let entry = entryAddress(table, first &+ cleared)
                if try clear(entry, level: level, iova: iova, unreported: &leaves, &invalidator) {
                    leaves = Run(
                        iova: leaves?.iova ?? iova,
                        choice: (run.pageByteCount, (leaves?.count ?? 0) &+ 1)
                    )
                }
                cleared &+= 1
            }
        } catch {
            // What was cleared counts; the next round meets the same obstacle as its first entry.
            if cleared == 0 { throw error }
        }
        if let leaves { report(leaves, &invalidator) }
        return cleared &* run.pageByteCount
    }

    /// Clears one entry; a table there goes with all that it holds, after the leaves that were cleared before it
    /// have been reported.
    ///
    /// - Returns: Whether it was a leaf, which is still to be reported.
    private mutating func clear(
        _ entry: PhysicalAddress,
        level: Int,
        iova: UInt64,
        unreported leaves: inout Run?,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) -> Bool {
        let descriptor = try load(entry)
        switch descriptor.kind(atLevel: level, configuration: configuration) {
        case .leaf:
            try store(PageTableDescriptor(rawValue: 0), at: entry)
            return true
        case .table:
            let table = try follow(descriptor, at: entry)
            if let finished = leaves.take() { report(finished, &invalidator) }
            try unlink(entry, table: table, level: level, iova: iova, &invalidator)
            return false
        case .invalid: throw .notMapped(IOVirtualAddress(iova))
        case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
        }
    }

    private func report(_ leaves: Run, _ invalidator: inout some PageTableInvalidator) {
        invalidator.gather(
            IOVirtualAddress(leaves.iova),
            byteCount: leaves.count &* leaves.pageByteCount,
            pageByteCount: leaves.pageByteCount
        )
    }

    /// The table of `level` for `iova`; a block in the way is split where that is allowed.
    private mutating func tableForUnmapping(
        _ iova: UInt64,
        level: Int,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) -> PhysicalAddress {
        var table = root
        var current = configuration.startLevel
        while current < level {
            let entry = entryAddress(table, configuration.index(of: iova, atLevel: current))
            let descriptor = try load(entry)
            switch descriptor.kind(atLevel: current, configuration: configuration) {
            case .invalid: throw .notMapped(IOVirtualAddress(iova))
            case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
            case .table: table = try follow(descriptor, at: entry)
            case .leaf:
                let size = configuration.entryByteCount(atLevel: current)
                guard configuration.partialUnmap == .split else {
                    throw .partOfBlock(IOVirtualAddress(iova), blockByteCount: size)
                }
                table = try split(descriptor, at: entry, level: current)
                invalidator.gather(
                    IOVirtualAddress(iova & ~(size &- 1)),
                    byteCount: size,
                    pageByteCount: size
                )
            }
            current += 1
        }
        return table
    }

    /// Puts a table with the same translations in the place of the block at `entry`.
    ///
    /// Old and new say the same, but the block has to be invalidated as a block: an invalidation of the pages
    /// that go may name their level (TTL), and then a cached block need not heed it.
    private mutating func split(_ block: PageTableDescriptor, at entry: PhysicalAddress, level: Int)
        throws(IOPageTableError) -> PhysicalAddress
    {
        let table = try allocateTable()
        do throws(IOPageTableError) {
            try fill(table, from: block, level: level)
            do throws(IOPageTableError) { try link(table, at: entry, replacing: block) } catch {
                // Hardware may have made the block dirty meanwhile; that is all that it changes, and once.
                let dirty = PageTableDescriptor(rawValue: block.rawValue & ~PageTableDescriptor.readOnly)
                guard dirty != block, case .corrupted(_, dirty.rawValue) = error else { throw error }
                try fill(table, from: dirty, level: level)
                try link(table, at: entry, replacing: dirty)
            }
        } catch {
            freeTable(table)
            throw error
        }
        return table
    }

    private func fill(_ table: PhysicalAddress, from block: PageTableDescriptor, level: Int)
        throws(IOPageTableError)
    {
        let base = block.outputAddress(configuration).rawValue
        let size = configuration.entryByteCount(atLevel: level + 1)
        for index in 0..<configuration.entryCount(atLevel: level + 1) {
            let leaf = block.leaf(
                at: PhysicalAddress(base &+ index &* size),
                level: level + 1,
                configuration: configuration
            )
            try store(leaf, at: entryAddress(table, index))
        }
    }
}
