// An endpoint under the machine's own driver: its domains and what is mapped in them.

import AddressSpace
import ControlProtocol
import DeviceTree
import IOMMU
import IOPageTable
import Synchronization

/// One endpoint, its domains, and the book of its mappings.
///
/// Lock order: this endpoint's book, then the driver's own locks. An unmap waits for the endpoint's DMA in flight
/// with the book held: only requests for this endpoint wait behind it.
final class ManagedEndpoint: Sendable {
    /// One mapping, or what a partial unmap left of it.
    private struct Mapping {
        var iova: UInt64
        var physical: UInt64
        var byteCount: UInt64
        var permissions: ControlProtocol.Permissions
        var substream: UInt32?
        /// The block of RAM that was allocated for it, by address; freed when its last part is unmapped.
        var allocation: UInt64?

        var last: UInt64 { iova &+ (byteCount - 1) }
    }

    private struct Book {
        var kind = DomainKind.dma
        var substreams: [UInt32: IOMMUDomain] = [:]
        /// In ascending order of SubstreamID and IOVA.
        var mappings: [Mapping] = []
    }

    let endpoint: Endpoint
    private let driver: SMMUv3Driver
    private let iommuEndpoint: IOMMUEndpoint
    private let domain: IOMMUDomain
    private let frames: PhysicalFrameAllocator
    /// Hears of all that is mapped without a SubstreamID, for a device of another program; called with the book held.
    private let foreign: ForeignMemory?
    private let book = Mutex(Book())

    /// Makes the endpoint known to the driver and attaches it to a domain of its own.
    init(
        _ endpoint: Endpoint,
        _ driver: SMMUv3Driver,
        _ frames: PhysicalFrameAllocator,
        _ parameters: KernelParameters,
        _ foreign: ForeignMemory? = nil
    ) throws(ControlError) {
        self.endpoint = endpoint
        self.driver = driver
        self.frames = frames
        self.foreign = foreign
        do throws(SMMUDriverError) {
            iommuEndpoint = try driver.addEndpoint(
                endpoint.name,
                streams: endpoint.streams,
                substreamBits: Int(endpoint.substreamBits),
                canStall: endpoint.canStall,
                reservedRegions: endpoint.reservedIOVAs.map { reserved in
                    ReservedRegion(Self.kind(reserved.kind), reserved.range)
                }
            )
            domain = try driver.makeDomain(parameters.strict ? .dma : .dmaFQ)
            if parameters.passthrough {
                try driver.attach(iommuEndpoint, to: driver.identityDomain)
            } else {
                try driver.attach(iommuEndpoint, to: domain)
            }
        } catch {
            throw Self.controlError(error)
        }
        if parameters.passthrough {
            book.withLock { $0.kind = .identity }
            foreign?.bypassed()
        } else {
            tellDirectRegions()
        }
    }

    private static func kind(_ kind: ReservedIOVA.Kind) -> ReservedRegion.Kind {
        switch kind {
        case .reserved: .reserved
        case .direct: .direct
        case .directRelaxable: .directRelaxable
        }
    }

    var kind: DomainKind { book.withLock { $0.kind } }

    // MARK: Attaching

    func attach(to kind: DomainKind) throws(ControlError) {
        try book.withLock { (book) throws(ControlError) in
            do throws(SMMUDriverError) {
                switch kind {
                case .dma: try driver.attach(iommuEndpoint, to: domain)
                case .identity: try driver.attach(iommuEndpoint, to: driver.identityDomain)
                case .blocked: try driver.attach(iommuEndpoint, to: driver.blockedDomain)
                }
            } catch {
                // What is still reached after a change that failed half way nobody knows.
                foreign?.unmappedAll()
                throw Self.controlError(error)
            }
            guard kind != book.kind else { return }
            book.kind = kind
            foreign?.unmappedAll()
            switch kind {
            case .dma:
                tellDirectRegions()
                for mapping in book.mappings { tell(mapping) }
            case .identity: foreign?.bypassed()
            case .blocked: break
            }
        }
    }

    private func domain(for substream: UInt32?, _ book: inout Book) throws(ControlError) -> IOMMUDomain {
        guard let substream else {
            guard book.kind == .dma else {
                throw .conflict(
                    "\(endpoint.name) is in the \(book.kind.rawValue) domain; attach it to \"dma\" to map for it"
                )
            }
            return domain
        }
        if let known = book.substreams[substream] { return known }
        do throws(SMMUDriverError) {
            let new = try driver.makeDomain(.unmanaged)
            try driver.attach(iommuEndpoint, substream: SubstreamID(substream), to: new)
            book.substreams[substream] = new
            return new
        } catch {
            throw Self.controlError(error)
        }
    }

    // MARK: Mapping

    /// Maps memory, which is allocated where none is given.
    func map(_ parameters: Methods.IOMMUMap.Parameters) throws(ControlError) -> MappingInfo {
        let substream = try Self.substream(parameters.substream)
        return try book.withLock { (book) throws(ControlError) in
            let domain = try domain(for: substream, &book)
            let page = domain.configuration?.granule.byteCount ?? 4096
            let (padded, overflow) = parameters.length.value.addingReportingOverflow(page - 1)
            guard parameters.length.value > 0, !overflow else {
                throw .invalidParameter(
                    "length",
                    "it is 1 or more, and does not leave 64 bits when rounded up"
                )
            }
            let byteCount = padded & ~(page - 1)
            let permissions = parameters.permissions ?? .readWrite
            let (physical, allocation) = try backing(parameters.address?.value, byteCount, page)
            do throws(ControlError) {
                let iova = try map(parameters.iova?.value, physical, byteCount, permissions, in: domain)
                let mapping = Mapping(
                    iova: iova,
                    physical: physical,
                    byteCount: byteCount,
                    permissions: permissions,
                    substream: substream,
                    allocation: allocation
                )
                insert(mapping, into: &book)
                tell(mapping)
                return info(mapping)
            } catch {
                if let allocation { try? frames.free(PhysicalAddress(allocation)) }
                throw error
            }
        }
    }

    private func backing(_ given: UInt64?, _ byteCount: UInt64, _ page: UInt64) throws(ControlError)
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
            throw Self.controlError(error)
        }
    }

    private func map(
        _ iova: UInt64?,
        _ physical: UInt64,
        _ byteCount: UInt64,
        _ permissions: ControlProtocol.Permissions,
        in domain: IOMMUDomain
    ) throws(ControlError) -> UInt64 {
        var flags: MappingPermissions = []
        if permissions.read || permissions.execute { flags.insert(.read) }
        if permissions.write { flags.insert(.write) }
        if !permissions.execute { flags.insert(.noExecute) }
        if permissions.privileged { flags.insert(.privileged) }
        if endpoint.isCoherent { flags.insert(.cacheable) }
        do throws(SMMUDriverError) {
            if let iova {
                try domain.map(
                    IOVirtualAddress(iova),
                    to: PhysicalAddress(physical),
                    byteCount: byteCount,
                    permissions: flags
                )
                return iova
            }
            return try domain.map(PhysicalAddress(physical), byteCount: byteCount, permissions: flags)
                .rawValue
        } catch {
            throw Self.controlError(error)
        }
    }

    private func insert(_ mapping: Mapping, into book: inout Book) {
        let index = book.mappings.firstIndex { Self.isOrdered(mapping, before: $0) } ?? book.mappings.endIndex
        book.mappings.insert(mapping, at: index)
    }

    private static func isOrdered(_ first: Mapping, before second: Mapping) -> Bool {
        (first.substream.map { Int64($0) } ?? -1, first.iova) < (
            second.substream.map { Int64($0) } ?? -1, second.iova
        )
    }

    // MARK: Unmapping

    /// Unmaps; when it returns nothing of the range is reached any more, unless `isLazy`.
    ///
    /// - Parameters:
    ///   - parameters: The range.
    ///   - isLazy: Whether it is an unmap of the DMA API, which `iommu.strict=0` has invalidated later. Who lends
    ///     memory and takes it back cannot wait for that.
    func unmap(_ parameters: Methods.IOMMUUnmap.Parameters, isLazy: Bool = false) throws(ControlError)
        -> UInt64
    {
        let substream = try Self.substream(parameters.substream)
        let iova = parameters.iova.value
        return try book.withLock { (book) throws(ControlError) in
            let own = book.mappings.first { $0.substream == substream && $0.iova == iova }
            guard let byteCount = parameters.length?.value ?? own?.byteCount else {
                throw .notMapped(at: iova, "no mapping of \(endpoint.name) starts at \(parameters.iova)")
            }
            guard let range = AddressRange(start: iova, byteCount: byteCount) else {
                throw .invalidParameter("length", "the range is empty or leaves 64 bits")
            }
            let isKnown = book.mappings.contains {
                $0.substream == substream && $0.iova <= range.last && iova <= $0.last
            }
            guard isKnown else {
                throw .notMapped(at: iova, "nothing is mapped for \(endpoint.name) at \(range)")
            }
            let domain = substream.flatMap { book.substreams[$0] } ?? self.domain
            let unmapped = try unmap(range, substream, in: domain, isLazy: isLazy)
            forget(AddressRange(start: iova, byteCount: unmapped), substream, &book)
            return unmapped
        }
    }

    /// Unmaps in the domain, and then has a device of another program let go of it, before anything can be put at the
    /// addresses or into the memory again.
    private func unmap(_ range: AddressRange, _ substream: UInt32?, in domain: IOMMUDomain, isLazy: Bool)
        throws(ControlError) -> UInt64
    {
        let foreign = substream == nil ? self.foreign : nil
        do throws(SMMUDriverError) {
            let iova = IOVirtualAddress(range.first)
            let outcome =
                isLazy
                ? try domain.unmapDMA(iova, byteCount: range.byteCount)
                : try domain.unmap(iova, byteCount: range.byteCount)
            if outcome.byteCount == 0, let error = outcome.stoppedBy { throw .pageTable(error) }
            if let gone = AddressRange(start: range.first, byteCount: outcome.byteCount) {
                foreign?.unmapped(gone)
            }
            return outcome.byteCount
        } catch {
            // Where commands failed the table may have let go of any of it; a range it never had it refused.
            if case .pageTable = error {} else { foreign?.unmapped(range) }
            throw Self.controlError(error)
        }
    }

    // MARK: Devices of other programs

    /// What a device's plain accesses can use of a mapping: nothing of other SubstreamIDs, or that needs privilege.
    private func tell(_ mapping: Mapping) {
        guard let foreign, mapping.substream == nil, !mapping.permissions.privileged,
            let range = AddressRange(start: mapping.iova, byteCount: mapping.byteCount)
        else { return }
        foreign.mapped(
            ForeignMemory.Translation(
                range: range,
                physical: mapping.physical,
                isWritable: mapping.permissions.write
            )
        )
    }

    /// The driver has mapped these one to one, whole pages of them.
    private func tellDirectRegions() {
        guard let foreign else { return }
        let page = domain.configuration?.granule.byteCount ?? 4096
        for region in endpoint.reservedIOVAs where region.kind != .reserved {
            let first = region.range.first & ~(page - 1)
            guard let range = AddressRange(first: first, last: region.range.last | (page - 1)) else {
                continue
            }
            foreign.mapped(ForeignMemory.Translation(range: range, physical: first, isWritable: true))
        }
    }

    /// Takes a range out of the book, and frees what was allocated for mappings of which nothing is left.
    private func forget(_ range: AddressRange?, _ substream: UInt32?, _ book: inout Book) {
        guard let range else { return }
        var touched: Set<UInt64> = []
        var kept: [Mapping] = []
        for mapping in book.mappings {
            guard mapping.substream == substream, mapping.iova <= range.last, range.first <= mapping.last
            else {
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
        for allocation in touched where !kept.contains(where: { $0.allocation == allocation }) {
            try? frames.free(PhysicalAddress(allocation))
        }
    }

    // MARK: Telling

    var mappings: [MappingInfo] { book.withLock { $0.mappings.map(info) } }

    private func info(_ mapping: Mapping) -> MappingInfo {
        MappingInfo(
            device: endpoint.name,
            iova: Hex(mapping.iova),
            address: Hex(mapping.physical),
            length: Size(mapping.byteCount),
            permissions: mapping.permissions,
            substream: mapping.substream.map { Hex($0) },
            allocated: mapping.allocation != nil
        )
    }

    private static func substream(_ value: Hex?) throws(ControlError) -> UInt32? {
        guard let value else { return nil }
        guard let substream = UInt32(exactly: value.value), substream < 1 << 20 else {
            throw .invalidParameter("substream", "a SubstreamID has 20 bits; \(value) has more")
        }
        return substream
    }

    static func controlError(_ error: SMMUDriverError) -> ControlError {
        switch error {
        case .pageTable(.alreadyMapped(let iova)):
            .conflict(at: iova.rawValue, "\(iova) is mapped already")
        case .pageTable(.notMapped(let iova)):
            .notMapped(at: iova.rawValue, "nothing is mapped at \(iova)")
        case .pageTable(.noMemory(let reason)), .noMemory(_, let reason):
            controlError(reason)
        case .iovasExhausted, .asidsExhausted:
            .exhausted("\(error)")
        case .reservedRange(let range):
            .conflict(at: range.first, "\(error)")
        default:
            .failed("\(error)")
        }
    }

    static func controlError(_ error: PhysicalPageError) -> ControlError {
        switch error {
        case .exhausted(let byteCount, _):
            .exhausted("no free RAM of \(byteCount) bytes in one piece is left")
        case .invalidRequest(_, let alignment):
            .invalidParameter("alignment", "\(alignment) is no power of two")
        default: .failed("\(error)")
        }
    }
}
