// Domains: what an endpoint's transactions meet.

package import AddressSpace
package import IOPageTable
import SMMUv3Spec
import Synchronization

/// What a domain does with transactions; the kernel's names.
package enum IOMMUDomainKind: String, Sendable, Hashable {
    /// All DMA is aborted.
    case blocked
    /// DMA passes untranslated (passthrough).
    case identity
    /// DMA is translated, and the domain chooses the IOVAs; an unmap is invalidated before it returns (strict).
    case dma
    /// As ``dma``, but unmaps of the DMA API are invalidated later, many at once (lazy): DMA_FQ.
    case dmaFQ = "dma-fq"
    /// DMA is translated as the caller maps.
    case unmanaged

    /// Whether there is a page table.
    package var translates: Bool { self == .dma || self == .dmaFQ || self == .unmanaged }
}

/// A set of translations that endpoints of one SMMU share, or one that needs none.
package final class IOMMUDomain: Sendable {
    /// As it was made; ``kind`` says what became of it.
    private let originalKind: IOMMUDomainKind
    let device: SMMUv3Device
    /// The page table and what belongs to it; nil where the kind does not translate.
    let translation: DomainTranslation?
    /// Who brings pages in; see ``setFaultHandler(_:)``.
    let faultHandler = Mutex<(any PageFaultHandler)?>(nil)

    init(
        _ kind: IOMMUDomainKind,
        device: SMMUv3Device,
        granule: PageTableGranule?,
        tracksDirtyState: Bool = false,
        isNestingParent: Bool = false
    ) throws(SMMUDriverError) {
        originalKind = kind
        self.device = device
        translation =
            kind.translates
            ? try DomainTranslation(
                device,
                granule: granule,
                tracksDirtyState: tracksDirtyState,
                isNestingParent: isNestingParent
            ) : nil
        if kind == .dmaFQ { startFlushQueue() }
    }

    /// What the domain does; one of kind ``IOMMUDomainKind/dma`` can become lazy while it is used.
    package var kind: IOMMUDomainKind {
        guard originalKind == .dma, let translation else { return originalKind }
        return translation.isLazy.load(ordering: .sequentiallyConsistent) ? .dmaFQ : .dma
    }

    private func translating() throws(SMMUDriverError) -> DomainTranslation {
        guard let translation else { throw .domainDoesNotTranslate(kind) }
        return translation
    }

    /// The ASID that the domain's translations carry; nil where it does not translate.
    package var asid: UInt16? {
        guard let tag = translation?.tag, tag.vmid == nil else { return nil }
        return tag.asid
    }
    /// The VMID that a stage-2 domain's translations carry; nil for any other.
    package var vmid: UInt16? { translation?.tag.vmid }
    /// The page table's shape; nil where the domain does not translate.
    package var configuration: PageTableConfiguration? { translation?.configuration }
    /// The page table's address, as CD.TTB0 says it; nil where the domain does not translate.
    package var root: PhysicalAddress? { translation?.root }

    /// Maps `byteCount` bytes at `iova`; all three are multiples of the granule.
    ///
    /// - Throws: ``SMMUDriverError/pageTable(_:)``, or ``SMMUDriverError/reservedRange(_:)``; the mappings are
    ///   as before.
    package func map(
        _ iova: IOVirtualAddress,
        to physical: PhysicalAddress,
        byteCount: UInt64,
        permissions: MappingPermissions
    ) throws(SMMUDriverError) {
        let translation = try translating()
        // The address is the caller's choice: it may still wait in the flush queue to become free.
        if translation.lazyUnmapCount > 0 { try translation.flushLazyUnmaps() }
        translation.emptyIOVACache()
        try translation.map(iova, to: physical, byteCount: byteCount, permissions: permissions)
    }

    /// Maps `byteCount` bytes of any alignment where the domain finds room.
    ///
    /// - Parameters:
    ///   - physical: What is mapped.
    ///   - byteCount: How much of it.
    ///   - permissions: What the endpoint may do.
    ///   - limit: The last address that the endpoint can drive: its DMA mask.
    /// - Returns: The IOVA, with the offset into the page that `physical` has.
    /// - Throws: ``SMMUDriverError/iovasExhausted(byteCount:)``, or what ``map(_:to:byteCount:permissions:)`` does.
    package func map(
        _ physical: PhysicalAddress,
        byteCount: UInt64,
        permissions: MappingPermissions,
        limit: UInt64 = .max
    ) throws(SMMUDriverError) -> IOVirtualAddress {
        try translating().map(physical, byteCount: byteCount, permissions: permissions, limit: limit)
    }

    /// Unmaps up to the first address that is not mapped, and waits until no transaction uses what went.
    ///
    /// - Returns: How far it came, and why no further. The memory behind what was unmapped can be used again.
    /// - Throws: ``SMMUDriverError/pageTable(_:)`` for a range that no page table has, and what the command
    ///   queue throws: then the memory behind it must not be used again.
    package func unmap(_ iova: IOVirtualAddress, byteCount: UInt64) throws(SMMUDriverError) -> UnmapOutcome {
        try translating().unmap(iova, byteCount: byteCount)
    }

    /// Where `iova` leads, by the page table; nil where nothing is mapped.
    ///
    /// Linux: iova_to_phys.
    package func translate(_ iova: IOVirtualAddress) throws(SMMUDriverError) -> PageTableTranslation? {
        if kind == .identity {
            return PageTableTranslation(
                physical: PhysicalAddress(iova.rawValue),
                pageByteCount: 1,
                permissions: .readWrite,
                descriptor: 0
            )
        }
        return try translating().translate(iova)
    }

    /// The descriptors on the way to `iova`'s leaf.
    package func walk(_ iova: IOVirtualAddress) throws(SMMUDriverError) -> [PageTableWalkStep] {
        try translating().walk(iova)
    }

    /// Invalidates every cached translation of the domain.
    ///
    /// Linux: flush_iotlb_all.
    package func flushAll() throws(SMMUDriverError) { try translating().flushAll() }

    /// Heeds a region: direct ones are mapped one to one, the others kept free.
    package func apply(_ region: ReservedRegion) throws(SMMUDriverError) { try translating().apply(region) }
}

/// A domain's page table, ASID and IOVAs.
///
/// Lock order: `doorbells`, `state`, a ring of the flush queue, then the command queue. What an unmap cleared is
/// invalidated after the lock is let go; its IOVAs become free only then.
final class DomainTranslation: Sendable {
    struct State: ~Copyable {
        var table: IOPageTable
        var iovas: IOVAAllocator
        /// Where nothing may be mapped.
        var forbidden: [AddressRange] = []
    }

    let tag: TLBTag
    let configuration: PageTableConfiguration
    let root: PhysicalAddress
    let device: SMMUv3Device
    let state: Mutex<State>
    /// Whether unmaps of the DMA API go to ``flushQueue``.
    let isLazy = Atomic(false)
    let flushQueue = FlushQueue()
    /// Free IOVAs of the DMA API.
    let iovaCache = IOVARangeCache()
    let doorbells = Mutex(MSIDoorbells())

    /// Stage 1 where the SMMU has it, unless it is to be a parent of nested domains; stage 2 otherwise.
    ///
    /// Linux: arm_smmu_domain_alloc_paging_flags, arm_smmu_domain_finalise.
    init(
        _ device: SMMUv3Device,
        granule: PageTableGranule?,
        tracksDirtyState: Bool,
        isNestingParent: Bool
    ) throws(SMMUDriverError) {
        let features = device.features
        guard !isNestingParent || features.flags.contains(.nesting) else { throw .noNesting }
        let isStage2 = isNestingParent || !features.flags.contains(.stage1)
        guard !tracksDirtyState || features.flags.contains(.hardwareDirtyState) && !isStage2 else {
            throw .noDirtyTracking
        }
        let granule = try Self.choose(granule ?? device.options.granule, features)
        let numbers = isStage2 ? device.vmids : device.asids
        let bits = isStage2 ? features.vmidBits : features.asidBits
        guard let number = numbers.allocate(bits: bits) else {
            throw isStage2 ? .vmidsExhausted(count: (1 << bits) - 1) : .asidsExhausted(count: (1 << bits) - 1)
        }
        do {
            let configuration = try PageTableConfiguration(
                stage: isStage2 ? .two(forcesWriteBack: false) : .one,
                granule: granule,
                inputAddressBits: isStage2 ? features.outputAddressBits : features.virtualAddressBits,
                outputAddressBits: isStage2 ? features.outputAddressBits : features.inputAddressBits,
                isCoherent: features.flags.contains(.coherent),
                partialUnmap: device.options.partialUnmap,
                tracksDirtyState: tracksDirtyState
            )
            let table = try IOPageTable(
                configuration: configuration,
                memory: device.memory,
                frames: device.frames
            )
            self.configuration = configuration
            root = table.root
            let iovas = IOVAAllocator(
                granuleLog2: granule.log2,
                inputAddressBits: configuration.inputAddressBits,
                prefersLow: device.options.prefersLowIOVAs
            )
            state = Mutex(State(table: table, iovas: iovas))
        } catch {
            numbers.free(number)
            throw .pageTable(error)
        }
        self.device = device
        tag = TLBTag(
            asid: isStage2 ? 0 : number,
            vmid: isStage2 ? number : nil,
            granule: granule,
            usesE2H: device.usesE2H,
            hasRanges: features.flags.contains(.rangeInvalidation)
        )
    }

    /// Nobody is attached any more: what the TLB still holds goes before the tables and the ASID do.
    deinit {
        do throws(SMMUDriverError) {
            try flushAll()
            giveBackRetiredMemory()
            freeNumber()
        } catch {
            if device.isOff(error) {
                giveBackRetiredMemory()
                freeNumber()
                return
            }
            // The SMMU may still walk: tables and number are lost rather than used twice.
            let number = tag.vmid.map { "VMID \($0)" } ?? "ASID \(tag.asid)"
            device.log.note(.error, "\(number) and its tables are lost: \(error)")
            state.withLock { $0.table.abandonTables() }
        }
    }

    private func freeNumber() {
        if let vmid = tag.vmid { device.vmids.free(vmid) } else { device.asids.free(tag.asid) }
    }

    private func giveBackRetiredMemory() {
        for memory in flushQueue.takeAllMemory() { memory.giveBack() }
    }

    /// The granule that was asked for, or the CPU's page of 4 KiB, or the next larger one.
    private static func choose(_ wanted: PageTableGranule?, _ features: SMMUFeatures) throws(SMMUDriverError)
        -> PageTableGranule
    {
        if let wanted {
            guard features.granules.contains(wanted) else { throw .unsupportedGranule(wanted) }
            return wanted
        }
        guard let least = features.granules.min() else { throw .unsupportedGranule(.kib4) }
        return least
    }

    func flushAll() throws(SMMUDriverError) {
        try device.complete([tag.all])
        try device.invalidateATCs(tag.asid)
    }

    // MARK: Map

    func map(
        _ iova: IOVirtualAddress,
        to physical: PhysicalAddress,
        byteCount: UInt64,
        permissions: MappingPermissions
    ) throws(SMMUDriverError) {
        var gather = TLBGather(device, tag)
        let refusal = state.withLock { state -> SMMUDriverError? in
            let range = AddressRange(start: iova.rawValue, byteCount: byteCount)
            if let range, let hole = state.forbidden.first(where: { $0.overlaps(range) }) {
                return .reservedRange(hole)
            }
            do throws(IOPageTableError) {
                try state.table.map(
                    iova,
                    to: physical,
                    byteCount: byteCount,
                    permissions: permissions,
                    invalidator: &gather
                )
            } catch { return .pageTable(error) }
            if let range { state.iovas.claim(range) }
            return nil
        }
        // A map that failed half way has unmapped again what it had mapped.
        try gather.finish()
        if let refusal { throw refusal }
    }

    func map(_ physical: PhysicalAddress, byteCount: UInt64, permissions: MappingPermissions, limit: UInt64)
        throws(SMMUDriverError) -> IOVirtualAddress
    {
        let mask = configuration.granule.byteCount - 1
        let offset = physical.rawValue & mask
        let (sum, overflow) = byteCount.addingReportingOverflow(offset + mask)
        let size = sum & ~mask
        guard byteCount > 0, !overflow else { throw .iovasExhausted(byteCount: byteCount) }
        guard let iova = state.withLock({ $0.iovas.allocate(byteCount: size, limit: limit) }) else {
            throw .iovasExhausted(byteCount: size)
        }
        do {
            try map(
                iova,
                to: PhysicalAddress(physical.rawValue & ~mask),
                byteCount: size,
                permissions: permissions
            )
        } catch {
            release(iova, size)
            throw error
        }
        return IOVirtualAddress(iova.rawValue | offset)
    }

    func release(_ iova: IOVirtualAddress, _ byteCount: UInt64) {
        guard let range = AddressRange(start: iova.rawValue, byteCount: byteCount) else { return }
        state.withLock { $0.iovas.release(range) }
    }

    // MARK: Unmap

    func unmap(_ iova: IOVirtualAddress, byteCount: UInt64) throws(SMMUDriverError) -> UnmapOutcome {
        var gather = TLBGather(device, tag)
        let result: Result<UnmapOutcome, SMMUDriverError>
        do throws(SMMUDriverError) {
            result = .success(try clear(iova, byteCount: byteCount, &gather))
        } catch { result = .failure(error) }
        try gather.finish()
        let outcome = try result.get()
        release(iova, outcome.byteCount)
        return outcome
    }

    /// Takes mappings out of the table; what that makes stale `gather` is told.
    func clear(_ iova: IOVirtualAddress, byteCount: UInt64, _ gather: inout some PageTableInvalidator)
        throws(SMMUDriverError) -> UnmapOutcome
    {
        do {
            return try state.withLock { (state) throws(IOPageTableError) in
                try state.table.unmap(iova, byteCount: byteCount, invalidator: &gather)
            }
        } catch { throw .pageTable(error) }
    }

    // MARK: Look

    func translate(_ iova: IOVirtualAddress) throws(SMMUDriverError) -> PageTableTranslation? {
        do {
            return try state.withLock { (state) throws(IOPageTableError) in try state.table.translate(iova) }
        } catch { throw .pageTable(error) }
    }

    func walk(_ iova: IOVirtualAddress) throws(SMMUDriverError) -> [PageTableWalkStep] {
        do {
            return try state.withLock { (state) throws(IOPageTableError) in try state.table.walk(iova) }
        } catch { throw .pageTable(error) }
    }
}
