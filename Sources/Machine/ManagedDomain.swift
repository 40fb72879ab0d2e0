// A domain of the machine's own driver: what is mapped in it, by whom, and who follows that.

import AddressSpace
import ControlProtocol
import IOMMU
import IOPageTable
import Synchronization

/// One domain and the book of its mappings, whichever devices are in it.
///
/// Lock order: its book, then the core's and the driver's own locks. An unmap waits for DMA in flight with the book
/// held: only requests for this domain wait behind it.
final class ManagedDomain: Sendable {
    /// What it is there for.
    enum Purpose: Hashable, Sendable {
        /// The DMA API of a group's devices.
        case group(Int)
        /// Whoever made it by this name.
        case named(String)
        /// One SubstreamID of a device.
        case substream(UInt32, device: String)
        /// All groups alike: identity and blocked.
        case everyone
    }

    /// What is asked for.
    struct Request: Sendable {
        /// For which endpoint, by name.
        var device: String
        /// Where the device is to see it; the domain chooses where nil.
        var iova: UInt64?
        /// What is mapped; memory is allocated where nil.
        var physical: UInt64?
        var byteCount: UInt64
        var permissions: ControlProtocol.Permissions
        var isCoherent: Bool
        /// Whether the very same mapping may be there already, of another of its group: then it has one user more.
        var isShared = false
    }

    /// One mapping, or what a partial unmap left of it.
    struct Mapping: Sendable {
        var device: String
        var iova: UInt64
        var physical: UInt64
        var byteCount: UInt64
        var permissions: ControlProtocol.Permissions
        /// The block of RAM that was allocated for it, by address; freed when its last part is unmapped.
        var allocation: UInt64?
        var userCount = 1

        var last: UInt64 { iova &+ (byteCount - 1) }
    }

    /// A device of another program that is lent what is mapped.
    struct Follower: Sendable {
        let device: String
        let memory: ForeignMemory
        let directRegions: [AddressRange]
    }

    private struct Book {
        /// In ascending order of IOVA.
        var mappings: [Mapping] = []
        /// Called with the book held.
        var followers: [Follower] = []
    }

    let domain: IOMMUDomain
    let driver: SMMUv3Driver
    let purpose: Purpose
    private let frames: PhysicalFrameAllocator
    private let book = Mutex(Book())

    init(
        _ domain: IOMMUDomain,
        of driver: SMMUv3Driver,
        _ purpose: Purpose,
        _ frames: PhysicalFrameAllocator
    ) {
        self.domain = domain
        self.driver = driver
        self.purpose = purpose
        self.frames = frames
    }

    // The page table goes with the domain, after its translations were invalidated; then nothing reaches the memory.
    deinit {
        let allocations = book.withLock { Set($0.mappings.compactMap(\.allocation)) }
        guard !allocations.isEmpty, (try? domain.flushAll()) != nil else { return }
        for allocation in allocations { try? frames.free(PhysicalAddress(allocation)) }
    }

    /// The smallest page in bytes.
    var page: UInt64 { domain.configuration?.granule.byteCount ?? 4096 }

    var mappings: [Mapping] { book.withLock { $0.mappings } }

    // MARK: Mapping

    /// Maps memory, which is allocated where none is given.
    func map(_ request: Request) throws(ControlError) -> Mapping {
        try book.withLock { (book) throws(ControlError) in
            let (padded, overflow) = request.byteCount.addingReportingOverflow(page - 1)
            guard request.byteCount > 0, !overflow else {
                throw .invalidParameter(
                    "length",
                    "it is 1 or more, and does not leave 64 bits when rounded up"
                )
            }
            let byteCount = padded & ~(page - 1)
            if let index = sharedIndex(request, byteCount, book) {
                book.mappings[index].userCount += 1
                return book.mappings[index]
            }
            let (physical, allocation) = try backing(request.physical, byteCount)
            do throws(ControlError) {
                let mapping = Mapping(
                    device: request.device,
                    iova: try map(request, physical, byteCount),
                    physical: physical,
                    byteCount: byteCount,
                    permissions: request.permissions,
                    allocation: allocation
                )
                insert(mapping, into: &book)
                for follower in book.followers { tell(mapping, follower) }
                return mapping
            } catch {
                if let allocation { try? frames.free(PhysicalAddress(allocation)) }
                throw error
            }
        }
    }

    private func sharedIndex(_ request: Request, _ byteCount: UInt64, _ book: Book) -> Int? {
        guard request.isShared else { return nil }
        return book.mappings.firstIndex {
            $0.iova == request.iova && $0.physical == request.physical && $0.byteCount == byteCount
                && $0.permissions == request.permissions && $0.allocation == nil
        }
    }

    private func backing(_ given: UInt64?, _ byteCount: UInt64) throws(ControlError)
        -> (physical: UInt64, allocation: UInt64?)
    {
        if let given {
            guard given & (page - 1) == 0 else {
                throw .invalidParameter(
                    "address",
                    "\(Hex(given)) is no multiple of the page of \(page) bytes"
                )
            }
            return (given, nil)
        }
        do {
            let address = try frames.allocate(byteCount: byteCount, alignment: page)
            return (address.rawValue, address.rawValue)
        } catch {
            throw ControlError(error)
        }
    }

    private func map(_ request: Request, _ physical: UInt64, _ byteCount: UInt64) throws(ControlError)
        -> UInt64
    {
        var flags: MappingPermissions = []
        if request.permissions.read || request.permissions.execute { flags.insert(.read) }
        if request.permissions.write { flags.insert(.write) }
        if !request.permissions.execute { flags.insert(.noExecute) }
        if request.permissions.privileged { flags.insert(.privileged) }
        if request.isCoherent { flags.insert(.cacheable) }
        let address = PhysicalAddress(physical)
        do throws(SMMUDriverError) {
            guard let iova = request.iova else {
                return try domain.map(address, byteCount: byteCount, permissions: flags).rawValue
            }
            try domain.map(IOVirtualAddress(iova), to: address, byteCount: byteCount, permissions: flags)
            return iova
        } catch {
            throw ControlError(error)
        }
    }

    private func insert(_ mapping: Mapping, into book: inout Book) {
        let index = book.mappings.firstIndex { $0.iova > mapping.iova } ?? book.mappings.endIndex
        book.mappings.insert(mapping, at: index)
    }

    // MARK: Unmapping

    /// Unmaps; when it returns nothing of the range is reached any more, unless `isLazy`.
    ///
    /// - Parameters:
    ///   - iova: Where it starts.
    ///   - byteCount: How much; the mapping that starts there where nil.
    ///   - device: For the message where nothing is there.
    ///   - isLazy: Whether it is an unmap of the DMA API, which `iommu.strict=0` has invalidated later. Who lends
    ///     memory and takes it back cannot wait for that.
    ///   - isShared: Whether it goes only with the last of those who mapped it alike.
    func unmap(
        at iova: UInt64,
        _ byteCount: UInt64?,
        of device: String,
        isLazy: Bool = false,
        isShared: Bool = false
    ) throws(ControlError) -> UInt64 {
        try book.withLock { (book) throws(ControlError) in
            let index = book.mappings.firstIndex { $0.iova == iova }
            guard let byteCount = byteCount ?? index.map({ book.mappings[$0].byteCount }) else {
                throw .notMapped(at: iova, "no mapping of \(device) starts at \(Hex(iova))")
            }
            guard let range = AddressRange(start: iova, byteCount: byteCount) else {
                throw .invalidParameter("length", "the range is empty or leaves 64 bits")
            }
            guard book.mappings.contains(where: { $0.iova <= range.last && iova <= $0.last }) else {
                throw .notMapped(at: iova, "nothing is mapped for \(device) at \(range)")
            }
            if isShared, let index, book.mappings[index].userCount > 1 {
                book.mappings[index].userCount -= 1
                return byteCount
            }
            let unmapped = try unmap(range, book, isLazy: isLazy)
            forget(AddressRange(start: iova, byteCount: unmapped), &book)
            return unmapped
        }
    }

    /// Unmaps in the domain, and then has devices of other programs let go of it, before anything can be put at the
    /// addresses or into the memory again.
    private func unmap(_ range: AddressRange, _ book: Book, isLazy: Bool) throws(ControlError) -> UInt64 {
        do throws(SMMUDriverError) {
            let iova = IOVirtualAddress(range.first)
            let outcome =
                isLazy
                ? try domain.unmapDMA(iova, byteCount: range.byteCount)
                : try domain.unmap(iova, byteCount: range.byteCount)
            if outcome.byteCount == 0, let error = outcome.stoppedBy { throw .pageTable(error) }
            if let gone = AddressRange(start: range.first, byteCount: outcome.byteCount) {
                for follower in book.followers { follower.memory.unmapped(gone) }
            }
            return outcome.byteCount
        } catch {
            // Where commands failed the table may have let go of any of it; a range it never had it refused.
            if case .pageTable = error {
            } else {
                for follower in book.followers { follower.memory.unmapped(range) }
            }
            throw ControlError(error)
        }
    }

    /// Takes a range out of the book, and frees what was allocated for mappings of which nothing is left.
    private func forget(_ range: AddressRange?, _ book: inout Book) {
        guard let range else { return }
        var touched: Set<UInt64> = []
        var kept: [Mapping] = []
        for mapping in book.mappings {
            guard mapping.iova <= range.last, range.first <= mapping.last else {
                kept.append(mapping)
                continue
            }
            if let allocation = mapping.allocation { touched.insert(allocation) }
            if mapping.iova < range.first {
                var head = mapping
                head.byteCount = range.first - mapping.iova
                kept.append(head)
            }
            if mapping.last > range.last {
                var tail = mapping
                tail.iova = range.last + 1
                tail.physical = mapping.physical &+ (tail.iova - mapping.iova)
                tail.byteCount = mapping.last - range.last
                kept.append(tail)
            }
        }
        book.mappings = kept
        let gone = touched.filter { allocation in !kept.contains { $0.allocation == allocation } }
        guard !gone.isEmpty else { return }
        // Where that fails devices may still reach the memory: it is lost.
        try? domain.retire(gone.sorted().map { PhysicalAddress($0) }, to: frames)
    }

    // MARK: Devices of other programs

    /// A device is in the domain from now on, as hardware has it.
    func add(_ follower: Follower) {
        book.withLock { book in
            book.followers.append(follower)
            switch domain.kind {
            case .identity: follower.memory.bypassed()
            case .blocked: break
            default:
                tellDirectRegions(follower)
                for mapping in book.mappings { tell(mapping, follower) }
            }
        }
    }

    /// A device has left the domain, as hardware has it.
    func remove(_ follower: Follower) {
        book.withLock { $0.followers.removeAll { $0.device == follower.device } }
        follower.memory.unmappedAll()
    }

    /// What a device's plain accesses can use of a mapping: nothing that needs privilege.
    private func tell(_ mapping: Mapping, _ follower: Follower) {
        guard !mapping.permissions.privileged,
            let range = AddressRange(start: mapping.iova, byteCount: mapping.byteCount)
        else { return }
        follower.memory.mapped(
            ForeignMemory.Translation(
                range: range,
                physical: mapping.physical,
                isWritable: mapping.permissions.write
            )
        )
    }

    /// The driver has mapped these one to one, whole pages of them.
    private func tellDirectRegions(_ follower: Follower) {
        for region in follower.directRegions {
            let first = region.first & ~(page - 1)
            guard let range = AddressRange(first: first, last: region.last | (page - 1)) else { continue }
            follower.memory.mapped(
                ForeignMemory.Translation(range: range, physical: first, isWritable: true)
            )
        }
    }
}

extension ControlError {
    /// What a driver says, as an answer.
    init(_ error: SMMUDriverError) {
        switch error {
        case .pageTable(.alreadyMapped(let iova)):
            self = .conflict(at: iova.rawValue, "\(iova) is mapped already")
        case .pageTable(.notMapped(let iova)):
            self = .notMapped(at: iova.rawValue, "nothing is mapped at \(iova)")
        case .pageTable(.noMemory(let reason)), .noMemory(_, let reason):
            self.init(reason)
        case .iovasExhausted, .asidsExhausted, .vmidsExhausted:
            self = .exhausted("\(error)")
        case .reservedRange(let range):
            self = .conflict(at: range.first, "\(error)")
        default:
            self = .failed("\(error)")
        }
    }

    /// What the allocator of frames says, as an answer.
    init(_ error: PhysicalPageError) {
        switch error {
        case .exhausted(let byteCount, _):
            self = .exhausted("no free RAM of \(byteCount) bytes in one piece is left")
        case .invalidRequest(_, let alignment):
            self = .invalidParameter("alignment", "\(alignment) is no power of two")
        default: self = .failed("\(error)")
        }
    }

    /// What the IOMMU core says, as an answer.
    init(_ error: IOMMUGroupError) {
        switch error {
        case .busy, .notPermitted: self = .conflict("\(error)")
        case .invalid: self = .failed("\(error)")
        case .driver(let error): self.init(error)
        }
    }
}
