// An endpoint under the machine's own driver: its group, and the domains of its SubstreamIDs.

import AddressSpace
import ControlProtocol
import DeviceTree
import IOMMU
import Synchronization

/// One endpoint of a group.
///
/// Lock order: `substreams`, then its group's state, then a domain's book.
final class ManagedEndpoint: Sendable {
    let endpoint: Endpoint
    let group: ManagedGroup
    let iommuEndpoint: IOMMUEndpoint
    private let driver: SMMUv3Driver
    private let frames: PhysicalFrameAllocator
    private let substreams = Mutex<[UInt32: ManagedDomain]>([:])
    private let isRemoved = Atomic(false)
    let coherent: CoherentMemory

    /// An endpoint that the core has put into its group.
    ///
    /// - Parameters:
    ///   - coherent: Its coherent memory.
    ///   - foreign: Hears of all that is mapped without a SubstreamID, for a device of another program.
    init(
        _ endpoint: Endpoint,
        _ iommuEndpoint: IOMMUEndpoint,
        in group: ManagedGroup,
        _ frames: PhysicalFrameAllocator,
        _ coherent: CoherentMemory,
        _ foreign: ForeignMemory? = nil
    ) {
        self.coherent = coherent
        self.endpoint = endpoint
        self.iommuEndpoint = iommuEndpoint
        self.group = group
        self.frames = frames
        driver = group.group.driver
        guard let foreign else { return }
        group.add(
            ManagedDomain.Follower(
                device: endpoint.name,
                memory: foreign,
                directRegions: endpoint.reservedIOVAs.filter { $0.kind != .reserved }.map(\.range)
            )
        )
    }

    /// The device has gone: nothing is mapped for it any more.
    func wasRemoved() {
        isRemoved.store(true, ordering: .sequentiallyConsistent)
        group.removeFollower(of: endpoint.name)
        coherent.freeAll()
        substreams.withLock { $0 = [:] }
    }

    var kind: DomainKind {
        switch group.current.domain.kind {
        case .dma, .dmaFQ: .dma
        case .identity: .identity
        case .blocked: .blocked
        default: .unmanaged
        }
    }

    /// The domains of its SubstreamIDs, in their order.
    var substreamDomains: [ManagedDomain] {
        substreams.withLock { $0.sorted { $0.key < $1.key }.map(\.value) }
    }

    // MARK: Mapping

    /// The domain in which to map: the one that the device is in, or that of a SubstreamID.
    ///
    /// - Throws: Where that translates nothing, or the device has gone.
    func mappingDomain(of substream: UInt32?) throws(ControlError) -> ManagedDomain {
        guard !isRemoved.load(ordering: .sequentiallyConsistent) else {
            throw .noDriver("\(endpoint.name) was removed; smmuctl device add brings it back")
        }
        if let substream { return try substreamDomain(substream) }
        let current = group.current
        guard current.domain.kind.translates else {
            throw .conflict(
                "\(endpoint.name) is in the \(current.domain.kind.rawValue) domain; attach it to \"dma\" to map for it"
            )
        }
        return current
    }

    private func substreamDomain(_ substream: UInt32) throws(ControlError) -> ManagedDomain {
        try substreams.withLock { (substreams) throws(ControlError) in
            if let known = substreams[substream] { return known }
            do throws(SMMUDriverError) {
                let domain = try driver.makeDomain(.unmanaged)
                try driver.attach(iommuEndpoint, substream: SubstreamID(substream), to: domain)
                let new = ManagedDomain(
                    domain,
                    of: driver,
                    .substream(substream, device: endpoint.name),
                    frames
                )
                substreams[substream] = new
                return new
            } catch {
                throw ControlError(error)
            }
        }
    }

    /// Maps memory, which is allocated where none is given.
    func map(_ parameters: Methods.IOMMUMap.Parameters) throws(ControlError) -> MappingInfo {
        let substream = try Self.substream(parameters.substream)
        let domain = try mappingDomain(of: substream)
        let mapping = try domain.map(
            ManagedDomain.Request(
                device: endpoint.name,
                iova: parameters.iova?.value,
                physical: parameters.address?.value,
                byteCount: parameters.length.value,
                permissions: parameters.permissions ?? .readWrite,
                isCoherent: endpoint.isCoherent
            )
        )
        return info(mapping, substream)
    }

    /// Allocates coherent memory, in the default domain.
    func allocate(_ parameters: Methods.IOMMUAllocate.Parameters) throws(ControlError) -> CoherentBufferInfo {
        let domain = group.defaultDomain
        guard !isRemoved.load(ordering: .sequentiallyConsistent), group.current === domain else {
            throw .conflict("\(endpoint.name) is not in its group's default domain; attach it to \"dma\"")
        }
        return try coherent.allocate(
            parameters.length.value,
            mask: parameters.mask?.value ?? 0xFFFF_FFFF,
            in: domain.domain
        ).info(endpoint.name)
    }

    /// Unmaps as the DMA API does: with `iommu.strict=0` it is invalidated later.
    func unmap(_ parameters: Methods.IOMMUUnmap.Parameters) throws(ControlError) -> UInt64 {
        let substream = try Self.substream(parameters.substream)
        let domain: ManagedDomain?
        if let substream {
            domain = substreams.withLock { $0[substream] }
        } else {
            // Mappings outlive it that the device is elsewhere for a while.
            let current = group.current
            domain = current.domain.kind.translates ? current : group.defaultDomain
        }
        guard let domain else {
            throw .notMapped(
                at: parameters.iova.value,
                "nothing is mapped for \(endpoint.name) with SubstreamID \(Hex(substream ?? 0))"
            )
        }
        return try domain.unmap(
            at: parameters.iova.value,
            parameters.length?.value,
            of: endpoint.name,
            isLazy: true
        )
    }

    // MARK: Telling

    /// What the device sees: in its domain, or else in its default one, and for its SubstreamIDs.
    var mappings: [MappingInfo] {
        let current = group.current
        let domain = current.domain.kind.translates ? current : group.defaultDomain
        let own = domain.mappings.map { info($0, nil) } + coherent.buffers.flatMap(infos)
        let others = substreams.withLock { $0.sorted { $0.key < $1.key } }
        return own + others.flatMap { entry in entry.value.mappings.map { info($0, entry.key) } }
    }

    private func info(_ mapping: ManagedDomain.Mapping, _ substream: UInt32?) -> MappingInfo {
        MappingInfo(
            device: endpoint.name,
            iova: Hex(mapping.iova),
            address: Hex(mapping.physical),
            length: Size(mapping.byteCount),
            permissions: mapping.permissions,
            substream: substream.map { Hex($0) },
            allocated: mapping.allocation != nil
        )
    }

    private func infos(_ buffer: DMACoherentBuffer) -> [MappingInfo] {
        var next = buffer.address.rawValue
        return buffer.pieces.map { piece in
            defer { next &+= piece.byteCount }
            return MappingInfo(
                device: endpoint.name,
                iova: Hex(next),
                address: Hex(piece.physical.rawValue),
                length: Size(piece.byteCount),
                permissions: .readWrite,
                allocated: true
            )
        }
    }

    private static func substream(_ value: Hex?) throws(ControlError) -> UInt32? {
        guard let value else { return nil }
        guard let substream = UInt32(exactly: value.value), substream < 1 << 20 else {
            throw .invalidParameter("substream", "a SubstreamID has 20 bits; \(value) has more")
        }
        return substream
    }
}
