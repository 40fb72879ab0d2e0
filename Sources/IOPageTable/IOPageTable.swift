// A page table of either stage in physical memory: its tables, who owns them, and how mappings are made.

package import AddressSpace
package import DeviceModel

/// What went wrong with a page table.
package enum IOPageTableError: Error, Equatable, Sendable {
    /// The input address size gives no T0SZ that an SMMU takes, or a stage-2 table of more than 16 concatenated.
    case unsupportedInputSize(bits: Int)
    /// The output address size is none that CD.IPS or STE.S2PS can say.
    case unsupportedOutputSize(bits: Int)
    /// An address or the size is no multiple of the granule, or the size is zero.
    case unaligned(iova: IOVirtualAddress, physical: PhysicalAddress?, byteCount: UInt64, granule: UInt64)
    /// The IOVAs leave the input size.
    case iovaOutOfRange(iova: IOVirtualAddress, byteCount: UInt64, bits: Int)
    /// The physical addresses leave the output size.
    case physicalOutOfRange(physical: PhysicalAddress, byteCount: UInt64, bits: Int)
    /// A mapping needs at least one of read and write.
    case noPermissions(MappingPermissions)
    /// Something is mapped at this address already.
    case alreadyMapped(IOVirtualAddress)
    /// Nothing is mapped at this address.
    case notMapped(IOVirtualAddress)
    /// The address lies in a block that is larger than what was to be unmapped.
    case partOfBlock(IOVirtualAddress, blockByteCount: UInt64)
    /// No memory for another table.
    case noMemory(PhysicalPageError)
    /// The bus did not answer for a table.
    case memory(BusError)
    /// A descriptor in our tables is none that we wrote: its address and what it holds.
    case corrupted(descriptorAddress: PhysicalAddress, descriptor: UInt64)
}

/// What a page table needs of its user: that stale translations go away.
///
/// Linux: `iommu_flush_ops`.
package protocol PageTableInvalidator {
    /// Leaves of one size were cleared, or replaced by a table.
    ///
    /// What they translated may be cached until the user invalidates it (Leaf = 1), and until then the memory
    /// behind them may still be accessed.
    mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64)

    /// A table was unlinked and is about to be freed: invalidates the range, table entries included (Leaf = 0),
    /// and waits until that is done.
    ///
    /// - Returns: False where it could not be done. The tables are then kept until the page table goes.
    mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool
}

/// A VMSAv8-64 table of either stage in physical memory, as Linux's io-pgtable-arm builds it.
///
/// It has one user at a time, which the ownership makes sure of. Every descriptor is one aligned 64-bit store,
/// and a table is filled before it is linked: hardware may walk at any moment.
package struct IOPageTable: ~Copyable {
    package let configuration: PageTableConfiguration
    /// The top table's address, for CD.TTB0 or STE.S2TTB; in stage 2 that of the first of those concatenated.
    package let root: PhysicalAddress

    let memory: any PhysicalAccess
    private let frames: any PhysicalPageAllocator
    /// Every table below the top one.
    ///
    /// What a descriptor says is believed only if it leads to one of these: the tables lie in memory that
    /// others can write.
    private var tables: Set<PhysicalAddress> = []
    private var isAbandoned = false

    /// Builds an empty table.
    package init(
        configuration: PageTableConfiguration,
        memory: any PhysicalAccess,
        frames: any PhysicalPageAllocator
    ) throws(IOPageTableError) {
        root = try Self.allocate(configuration.topTableByteCount, from: frames, configuration)
        self.configuration = configuration
        self.memory = memory
        self.frames = frames
    }

    /// Gives all tables back.
    ///
    /// The user has invalidated everything and waited for it.
    deinit {
        guard !isAbandoned else { return }
        // Each was allocated once by us; an allocator that refuses it has no use for the news.
        for table in tables { try? frames.free(table) }
        try? frames.free(root)
    }

    /// Keeps all tables from ever being given back: hardware may still read them, nobody could stop it.
    package mutating func abandonTables() { isAbandoned = true }

    /// How many tables there are, the top one included.
    package var tableCount: Int { tables.count + 1 }
}

// MARK: Map

extension IOPageTable {
    /// Maps `byteCount` bytes at `iova` to `physical`, with the largest pages that fit.
    ///
    /// Where it throws, what it had mapped is unmapped again through `invalidator`, and the mappings are as
    /// before.
    package mutating func map(
        _ iova: IOVirtualAddress,
        to physical: PhysicalAddress,
        byteCount: UInt64,
        permissions: MappingPermissions,
        invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) {
        try checkMapping(iova, physical, byteCount, permissions)
        var done: UInt64 = 0
        do throws(IOPageTableError) {
            while done < byteCount {
                let run = Run(
                    iova: iova.rawValue &+ done,
                    physical: physical.rawValue &+ done,
                    choice: configuration.pageChoice(
                        iova: iova.rawValue &+ done,
                        physical: physical.rawValue &+ done,
                        byteCount: byteCount &- done
                    )
                )
                done &+= try map(run, permissions, &invalidator)
            }
        } catch {
            if done > 0 { _ = try? unmap(iova, byteCount: done, invalidator: &invalidator) }
            throw error
        }
    }

    /// Pages of one size, next to each other.
    struct Run {
        let iova: UInt64
        var physical: UInt64 = 0
        let pageByteCount: UInt64
        let count: UInt64

        init(iova: UInt64, physical: UInt64 = 0, choice: (pageByteCount: UInt64, count: UInt64)) {
            self.iova = iova
            self.physical = physical
            pageByteCount = choice.pageByteCount
            count = choice.count
        }
    }

    private func checkMapping(
        _ iova: IOVirtualAddress,
        _ physical: PhysicalAddress,
        _ byteCount: UInt64,
        _ permissions: MappingPermissions
    ) throws(IOPageTableError) {
        guard !permissions.isDisjoint(with: .readWrite) else { throw .noPermissions(permissions) }
        try checkRange(iova, physical, byteCount)
        let output = UInt64(configuration.outputAddressBits)
        guard let last = physical.advanced(by: byteCount - 1), last.rawValue &>> output == 0 else {
            throw .physicalOutOfRange(physical: physical, byteCount: byteCount, bits: Int(output))
        }
    }

    /// Checks alignment and that the IOVAs lie within the input size.
    func checkRange(_ iova: IOVirtualAddress, _ physical: PhysicalAddress?, _ byteCount: UInt64)
        throws(IOPageTableError)
    {
        let granule = configuration.granule.byteCount
        let merged = iova.rawValue | (physical?.rawValue ?? 0) | byteCount
        guard byteCount > 0, merged & (granule - 1) == 0 else {
            throw .unaligned(iova: iova, physical: physical, byteCount: byteCount, granule: granule)
        }
        let bits = configuration.inputAddressBits
        guard let last = iova.advanced(by: byteCount - 1), last.rawValue &>> UInt64(bits) == 0 else {
            throw .iovaOutOfRange(iova: iova, byteCount: byteCount, bits: bits)
        }
    }

    /// Maps the run as far as its table reaches.
    ///
    /// - Returns: How many bytes that are.
    private mutating func map(
        _ run: Run,
        _ permissions: MappingPermissions,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) -> UInt64 {
        let level = configuration.level(ofPages: run.pageByteCount)
        let table = try tableForMapping(run.iova, level: level)
        let first = configuration.index(of: run.iova, atLevel: level)
        let count = min(run.count, configuration.entryCount(atLevel: level) &- first)
        for offset in 0..<count {
            let iova = IOVirtualAddress(run.iova &+ offset &* run.pageByteCount)
            try makeRoom(
                in: entryAddress(table, first &+ offset),
                level: level,
                iova: iova,
                &invalidator
            )
        }
        for offset in 0..<count {
            let leaf = PageTableDescriptor(
                leaf: PhysicalAddress(run.physical &+ offset &* run.pageByteCount),
                level: level,
                permissions: permissions,
                configuration: configuration
            )
            try store(leaf, at: entryAddress(table, first &+ offset))
        }
        return count &* run.pageByteCount
    }

    /// Sees to it that a leaf can be written at `entry`: an empty table that is in the way goes.
    private mutating func makeRoom(
        in entry: PhysicalAddress,
        level: Int,
        iova: IOVirtualAddress,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) {
        let descriptor = try load(entry)
        switch descriptor.kind(atLevel: level, configuration: configuration) {
        case .invalid: return
        case .leaf: throw .alreadyMapped(iova)
        case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
        case .table:
            let table = try follow(descriptor, at: entry)
            if let mapped = try firstMapping(in: table, level: level + 1, base: iova.rawValue) {
                throw .alreadyMapped(mapped)
            }
            try unlink(entry, table: table, level: level, iova: iova.rawValue, &invalidator)
        }
    }

    /// The table of `level` for `iova`, which is built together with those above it where there is none.
    private mutating func tableForMapping(_ iova: UInt64, level: Int) throws(IOPageTableError)
        -> PhysicalAddress
    {
        var table = root
        var current = configuration.startLevel
        while current < level {
            let entry = entryAddress(table, configuration.index(of: iova, atLevel: current))
            let descriptor = try load(entry)
            switch descriptor.kind(atLevel: current, configuration: configuration) {
            case .invalid: table = try install(at: entry, replacing: descriptor)
            case .table: table = try follow(descriptor, at: entry)
            case .leaf: throw .alreadyMapped(IOVirtualAddress(iova))
            case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
            }
            current += 1
        }
        return table
    }

    /// Links a new, empty table at `entry`.
    private mutating func install(at entry: PhysicalAddress, replacing old: PageTableDescriptor)
        throws(IOPageTableError) -> PhysicalAddress
    {
        let table = try allocateTable()
        do throws(IOPageTableError) {
            try link(table, at: entry, replacing: old)
        } catch {
            freeTable(table)
            throw error
        }
        return table
    }
}

// MARK: Tables

extension IOPageTable {
    /// The address of entry `index` of `table`.
    ///
    /// A table lies within the physical address space whole.
    func entryAddress(_ table: PhysicalAddress, _ index: UInt64) -> PhysicalAddress {
        PhysicalAddress(table.rawValue &+ index &* 8)
    }

    func load(_ address: PhysicalAddress) throws(IOPageTableError) -> PageTableDescriptor {
        do { return PageTableDescriptor(rawValue: try memory.load(.doubleword, at: address)) } catch {
            throw .memory(error)
        }
    }

    func store(_ descriptor: PageTableDescriptor, at address: PhysicalAddress) throws(IOPageTableError) {
        do { try memory.store(descriptor.rawValue, .doubleword, at: address) } catch { throw .memory(error) }
    }

    /// The table that the descriptor at `entry` names.
    func follow(_ descriptor: PageTableDescriptor, at entry: PhysicalAddress) throws(IOPageTableError)
        -> PhysicalAddress
    {
        let table = descriptor.outputAddress(configuration)
        guard tables.contains(table) else {
            throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
        }
        return table
    }

    mutating func allocateTable() throws(IOPageTableError) -> PhysicalAddress {
        let table = try Self.allocate(configuration.granule.byteCount, from: frames, configuration)
        tables.insert(table)
        return table
    }

    /// Memory for a table that the walker can reach.
    private static func allocate(
        _ byteCount: UInt64,
        from frames: any PhysicalPageAllocator,
        _ configuration: PageTableConfiguration
    ) throws(IOPageTableError) -> PhysicalAddress {
        let address: PhysicalAddress
        do { address = try frames.allocate(byteCount: byteCount, alignment: byteCount) } catch {
            throw .noMemory(error)
        }
        let bits = configuration.outputAddressBits
        guard (address.rawValue &+ (byteCount - 1)) &>> UInt64(bits) == 0 else {
            try? frames.free(address)
            throw .physicalOutOfRange(physical: address, byteCount: byteCount, bits: bits)
        }
        return address
    }

    mutating func freeTable(_ table: PhysicalAddress) {
        guard tables.remove(table) != nil else { return }
        try? frames.free(table)
    }

    /// Replaces the descriptor at `entry` by one for `table`, unless someone changed it in between.
    func link(_ table: PhysicalAddress, at entry: PhysicalAddress, replacing old: PageTableDescriptor)
        throws(IOPageTableError)
    {
        let new = PageTableDescriptor(table: table, configuration: configuration)
        let found: UInt64
        do {
            found = try memory.compareExchange64(expected: old.rawValue, desired: new.rawValue, at: entry)
        } catch { throw .memory(error) }
        guard found == old.rawValue else { throw .corrupted(descriptorAddress: entry, descriptor: found) }
        if !configuration.isCoherent {
            try store(PageTableDescriptor(rawValue: new.rawValue | PageTableDescriptor.synced), at: entry)
        }
    }

    /// Clears the table descriptor at `entry`, makes caches forget it, and frees the table with all below it.
    mutating func unlink(
        _ entry: PhysicalAddress,
        table: PhysicalAddress,
        level: Int,
        iova: UInt64,
        _ invalidator: inout some PageTableInvalidator
    ) throws(IOPageTableError) {
        let below = tablesBelow(table, level: level + 1)
        try store(PageTableDescriptor(rawValue: 0), at: entry)
        let isFlushed = invalidator.flushWalk(
            IOVirtualAddress(iova),
            byteCount: configuration.entryByteCount(atLevel: level),
            granule: configuration.granule.byteCount
        )
        guard isFlushed else { return }
        for table in below { freeTable(table) }
    }

    /// `table` and the tables that can be reached from it.
    ///
    /// What cannot be read stays until the whole goes.
    private func tablesBelow(_ table: PhysicalAddress, level: Int) -> [PhysicalAddress] {
        var found = [table]
        guard level < 3 else { return found }
        for index in 0..<configuration.entryCount(atLevel: level) {
            let entry = entryAddress(table, index)
            guard let descriptor = try? load(entry),
                descriptor.kind(atLevel: level, configuration: configuration) == .table,
                let next = try? follow(descriptor, at: entry)
            else { continue }
            found += tablesBelow(next, level: level + 1)
        }
        return found
    }

    /// The lowest mapped address in `table`, whose first entry is for `base`.
    private func firstMapping(in table: PhysicalAddress, level: Int, base: UInt64) throws(IOPageTableError)
        -> IOVirtualAddress?
    {
        for index in 0..<configuration.entryCount(atLevel: level) {
            let entry = entryAddress(table, index)
            let descriptor = try load(entry)
            let iova = base &+ index &* configuration.entryByteCount(atLevel: level)
            switch descriptor.kind(atLevel: level, configuration: configuration) {
            case .invalid: continue
            case .leaf: return IOVirtualAddress(iova)
            case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
            case .table:
                let next = try follow(descriptor, at: entry)
                if let mapped = try firstMapping(in: next, level: level + 1, base: iova) { return mapped }
            }
        }
        return nil
    }
}
