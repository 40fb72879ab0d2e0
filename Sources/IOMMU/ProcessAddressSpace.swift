// A process's address space as devices share it: areas, a page table, and who has to hear of changes. Linux: mm_struct.

package import AddressSpace
package import DeviceModel
package import IOPageTable
import SMMUv3Spec
import Synchronization

/// What lies behind an area of an address space: a file, say.
package protocol ProcessMemory: AnyObject, Sendable {
    /// Where the page of 4 KiB is that starts `offset` bytes into the area's memory; nil where it is gone (SIGBUS).
    ///
    /// Called with the address space locked: it takes no other lock but leaves.
    func page(at offset: UInt64) -> PhysicalAddress?
}

/// Why an address space refused.
package enum ProcessMemoryError: Error, Equatable, Sendable {
    /// `-EINVAL`: no whole pages, none at all, or beyond the addresses that a process has.
    case invalid(String)
    /// `-EEXIST`: something is mapped there (MAP_FIXED_NOREPLACE).
    case exists(AddressRange)
    /// `-ENOMEM`: there are as many areas as there may be, or no memory for tables.
    case exhausted(String)
    /// `-ESRCH`: the process has ended.
    case ended
    /// Devices may still use what was to be unmapped: the memory must not be used again.
    case notInvalidated(SMMUDriverError)
}

extension ProcessMemoryError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .invalid(let reason): "\(reason) (EINVAL)"
        case .exists(let range): "something is mapped at \(range) (EEXIST)"
        case .exhausted(let reason): "\(reason) (ENOMEM)"
        case .ended: "the process has ended (ESRCH)"
        case .notInvalidated(let error): "devices may still reach it: \(error)"
        }
    }
}

/// A process's virtual addresses: areas whose pages come when a device asks for them.
///
/// Nothing is in the page table until a fault brings it in. What goes, goes from the table and from every SMMU's
/// TLB before ``unmap(_:)`` returns.
///
/// Lock order: `state`, then an SMMU's command queue; what ends it takes the driver's locks without its own.
package final class ProcessAddressSpace: Sendable {
    /// Part of an address space with one backing and one protection.
    ///
    /// Linux: vm_area_struct.
    package struct Area: Sendable {
        package var range: AddressRange
        /// What devices may do; without ``PageFault/Access/privileged``.
        package let access: PageFault.Access
        package let memory: any ProcessMemory
        /// Where in the memory the area starts, in bytes.
        package var offset: UInt64
    }

    /// How many pages devices have had brought in, and were refused.
    package struct Statistics: Hashable, Sendable {
        package internal(set) var broughtIn: UInt64 = 0
        /// Faults on pages that were there already.
        package internal(set) var spurious: UInt64 = 0
        package internal(set) var refused: UInt64 = 0
    }

    private struct State: ~Copyable {
        var table: IOPageTable
        /// In ascending order.
        var areas: [Area] = []
        /// The pages that are in the table.
        var resident: Set<UInt64> = []
        /// Who walks the table.
        var domains: [SVADomain] = []
        /// What devices may still use although it was taken away: it is kept for ever.
        var lost: [any ProcessMemory] = []
        var statistics = Statistics()
        var hasEnded = false
    }

    /// The number in the daemon's list of them.
    package let id: UInt32
    package let configuration: PageTableConfiguration
    /// The page table's address: CD.TTB0.
    package let root: PhysicalAddress
    private let state: Mutex<State>

    /// vm.max_map_count.
    package static let areasMax = 65_530
    static let pageByteCount: UInt64 = 4096

    /// An empty address space of 48 bits with pages of 4 KiB.
    ///
    /// - Parameters:
    ///   - id: For people.
    ///   - physicalAddressBits: How many bits its pages' addresses have at most: every SMMU must drive as many.
    ///   - memory: Where its page table is written.
    ///   - frames: What that is made of.
    package init(
        id: UInt32,
        physicalAddressBits: Int,
        memory: any PhysicalAccess,
        frames: any PhysicalPageAllocator
    ) throws(IOPageTableError) {
        let configuration = try PageTableConfiguration(
            granule: .kib4,
            inputAddressBits: 48,
            outputAddressBits: physicalAddressBits,
            isCoherent: true
        )
        let table = try IOPageTable(configuration: configuration, memory: memory, frames: frames)
        self.id = id
        self.configuration = configuration
        root = table.root
        state = Mutex(State(table: table))
    }

    /// The areas, in ascending order.
    package var areas: [Area] { state.withLock { $0.areas } }
    /// How many pages devices reach now.
    package var residentPageCount: Int { state.withLock { $0.resident.count } }
    package var statistics: Statistics { state.withLock { $0.statistics } }
    package var hasEnded: Bool { state.withLock { $0.hasEnded } }

    // MARK: mmap, munmap

    /// Makes an area; its pages come when they are needed.
    package func map(
        _ range: AddressRange,
        access: PageFault.Access,
        memory: any ProcessMemory,
        offset: UInt64 = 0
    ) throws(ProcessMemoryError) {
        try Self.check(range)
        guard offset.isMultiple(of: Self.pageByteCount),
            !offset.addingReportingOverflow(range.byteCount).overflow
        else { throw .invalid("the offset is no multiple of a page, or leaves 64 bits") }
        let access = access.intersection([.read, .write, .execute])
        guard access.contains(.read) else { throw .invalid("an area can be read at least") }
        try state.withLock { (state) throws(ProcessMemoryError) in
            guard !state.hasEnded else { throw .ended }
            let index = state.areas.firstIndex { $0.range.last >= range.first } ?? state.areas.endIndex
            if index < state.areas.endIndex, state.areas[index].range.overlaps(range) {
                throw .exists(state.areas[index].range)
            }
            guard state.areas.count < Self.areasMax else { throw .exhausted("too many areas") }
            state.areas.insert(Area(range: range, access: access, memory: memory, offset: offset), at: index)
        }
    }

    /// Takes everything away that lies in a range; parts of areas at its ends stay.
    ///
    /// When it returns no device reaches any of it.
    package func unmap(_ range: AddressRange) throws(ProcessMemoryError) {
        try Self.check(range)
        try state.withLock { (state) throws(ProcessMemoryError) in
            guard !state.hasEnded else { throw .ended }
            let touched = state.areas.filter { $0.range.overlaps(range) }
            // Both ends of one area stay: that is one area more.
            let splits = touched.contains { $0.range.first < range.first && $0.range.last > range.last }
            guard !splits || state.areas.count < Self.areasMax else { throw .exhausted("too many areas") }
            state.areas = state.areas.flatMap { Self.parts(of: $0, without: range) }
            do throws(SMMUDriverError) { try Self.clear(range, &state) } catch {
                state.lost += touched.map(\.memory)
                throw .notInvalidated(error)
            }
        }
    }

    private static func check(_ range: AddressRange) throws(ProcessMemoryError) {
        guard range.first.isMultiple(of: pageByteCount), range.byteCount.isMultiple(of: pageByteCount),
            range.last < 1 << 48
        else { throw .invalid("\(range) is no whole pages below 2^48") }
    }

    private static func parts(of area: Area, without range: AddressRange) -> [Area] {
        guard area.range.overlaps(range) else { return [area] }
        var parts: [Area] = []
        if area.range.first < range.first,
            let head = AddressRange(first: area.range.first, last: range.first - 1)
        {
            var part = area
            part.range = head
            parts.append(part)
        }
        if area.range.last > range.last,
            let tail = AddressRange(first: range.last + 1, last: area.range.last)
        {
            var part = area
            part.range = tail
            part.offset += tail.first - area.range.first
            parts.append(part)
        }
        return parts
    }

    /// Takes pages out of the table and out of every TLB.
    private static func clear(_ range: AddressRange, _ state: inout State) throws(SMMUDriverError) {
        let pages = state.resident.filter { range.first <= $0 && $0 <= range.last }.sorted()
        guard let first = pages.first, let last = pages.last else { return }
        var gather = ProcessGather(state.domains)
        var failure: IOPageTableError?
        var start = first
        for (index, page) in pages.enumerated() {
            let next = index + 1 < pages.count ? pages[index + 1] : nil
            guard next != page + pageByteCount else { continue }
            let byteCount = page + pageByteCount - start
            do throws(IOPageTableError) {
                let outcome = try state.table.unmap(
                    IOVirtualAddress(start),
                    byteCount: byteCount,
                    invalidator: &gather
                )
                if outcome.byteCount < byteCount { failure = failure ?? outcome.stoppedBy }
            } catch { failure = failure ?? error }
            start = next ?? start
        }
        state.resident.subtract(pages)
        // Linux invalidates the span of what went, not each page of it.
        if let gone = AddressRange(first: first, last: last + pageByteCount - 1) { gather.add(gone) }
        try gather.finish()
        if let failure { throw .pageTable(failure) }
    }

    // MARK: Faults

    /// Brings the page of an address in, if the area lets the access be.
    ///
    /// Linux: iommu_sva_handle_mm, handle_mm_fault.
    package func handleFault(at address: UInt64, _ access: PageFault.Access) -> PageFaultResponse {
        state.withLock { state in
            let response = Self.handleFault(at: address & ~(Self.pageByteCount - 1), access, &state)
            if response != .success { state.statistics.refused &+= 1 }
            return response
        }
    }

    private static func handleFault(at page: UInt64, _ access: PageFault.Access, _ state: inout State)
        -> PageFaultResponse
    {
        guard !state.hasEnded, let area = state.areas.first(where: { $0.range.contains(page) }),
            access.subtracting(.privileged).isSubset(of: area.access)
        else { return .invalid }
        guard !state.resident.contains(page) else {
            state.statistics.spurious &+= 1
            return .success
        }
        guard let physical = area.memory.page(at: area.offset + (page - area.range.first)) else {
            return .invalid
        }
        var permissions: MappingPermissions = [.read, .cacheable]
        if area.access.contains(.write) { permissions.insert(.write) }
        if !area.access.contains(.execute) { permissions.insert(.noExecute) }
        var gather = ProcessGather(state.domains)
        do {
            try state.table.map(
                IOVirtualAddress(page),
                to: physical,
                byteCount: pageByteCount,
                permissions: permissions,
                invalidator: &gather
            )
        } catch { return .invalid }
        state.resident.insert(page)
        state.statistics.broughtIn &+= 1
        return .success
    }

    // MARK: Who walks it

    /// A domain walks the table from now on.
    ///
    /// Linux: mmu_notifier_register.
    func add(_ domain: SVADomain) throws(SVAError) {
        try state.withLock { (state) throws(SVAError) in
            guard !state.hasEnded else { throw .processEnded }
            state.domains.append(domain)
        }
    }

    /// A domain walks the table no more.
    func remove(_ domain: SVADomain) { state.withLock { $0.domains.removeAll { $0 === domain } } }

    /// The domain that an SMMU has of this process.
    func domain(on device: SMMUv3Device) -> SVADomain? {
        state.withLock { $0.domains.first { $0.device === device } }
    }

    /// The process ends: from now on devices reach nothing of it, and no fault brings anything in.
    ///
    /// Linux: exit_mmap, with mmu_notifier_release before. Devices stay bound until they are unbound. Not from a fault
    /// handler.
    ///
    /// - Throws: ``ProcessMemoryError/notInvalidated(_:)`` where devices may go on to reach the memory.
    package func end() throws(ProcessMemoryError) {
        let domains = state.withLock { state -> [SVADomain] in
            guard !state.hasEnded else { return [] }
            state.hasEnded = true
            return state.domains
        }
        var failure: SMMUDriverError?
        for domain in domains {
            do throws(SMMUDriverError) { try domain.release() } catch { failure = failure ?? error }
        }
        let failed = failure
        state.withLock { state in
            if failed != nil {
                state.table.abandonTables()
                state.lost += state.areas.map(\.memory)
            }
            state.areas = []
            state.resident = []
        }
        if let failed { throw .notInvalidated(failed) }
    }
}
