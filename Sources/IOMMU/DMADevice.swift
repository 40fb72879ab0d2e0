// The DMA API of one device: masks, and single mappings. Linux: dma_map_ops, dma-iommu, dma-direct.

package import AddressSpace
import IOPageTable
import Synchronization

/// What a device's driver asks for memory that its device is to reach.
///
/// Behind it is a domain that translates (dma-iommu), or none: then DMA addresses are physical ones (dma-direct).
/// What is mapped is kept in a book, as with CONFIG_DMA_API_DEBUG, so that a mistake of a driver's is refused and
/// nothing is freed twice. Any thread may call any of it. Lock order: none is held while the domain, the frame
/// allocator or the bounce buffers are called.
package final class DMADevice: Sendable {
    /// What a device is, beside where its DMA goes.
    package struct Traits: Sendable {
        /// `dma-coherent`: its mappings are cacheable.
        package var isCoherent = true
        /// Not built in (`external-facing` ports): it sees whole pages of its own, never parts of others'.
        package var isUntrusted = false
        /// Addresses below 4 GiB are tried first, whatever the mask, until they run out.
        package var isPCI = false
        /// The last address that the bus before it can carry (`dma-ranges`).
        package var busLimit = UInt64.max

        package init() {}
    }

    struct Settings {
        /// What dma_set_mask and dma_set_coherent_mask set; devices begin with 32 bits.
        var mask: UInt64 = 0xFFFF_FFFF
        var coherentMask: UInt64 = 0xFFFF_FFFF
        var maxSegmentByteCount: UInt64 = 0x1_0000
        var segmentBoundaryMask: UInt64 = 0xFFFF_FFFF
        var minAlignMask: UInt64 = 0
    }

    package let name: String
    package let traits: Traits
    /// The domain that the device is attached to; nil without an SMMU.
    package let domain: IOMMUDomain?
    package let memory: DMAMemory
    /// The pool for what the device must not, or cannot, reach itself.
    package let bounceBuffers: BounceBuffers?

    let translation: DomainTranslation?
    let settings = Mutex(Settings())
    let book = Mutex(DMABook())
    let triesLowFirst: Atomic<Bool>
    private let log: (@Sendable (LogLevel, String) -> Void)?

    /// The DMA API for a device that is, or will be, attached to `domain`.
    ///
    /// - Parameters:
    ///   - name: As the log has it.
    ///   - domain: Its default domain; nil and an identity domain are direct. A domain that blocks is direct too, and
    ///     the SMMU aborts what comes.
    ///   - memory: Where coherent memory comes from.
    ///   - traits: What the device is.
    ///   - bounceBuffers: One pool for all devices; nil where there is none (`swiotlb=noforce`).
    ///   - log: Hears what the kernel would log, the device's name before it.
    package init(
        _ name: String,
        domain: IOMMUDomain?,
        memory: DMAMemory,
        traits: Traits = Traits(),
        bounceBuffers: BounceBuffers? = nil,
        log: (@Sendable (LogLevel, String) -> Void)? = nil
    ) {
        self.name = name
        self.domain = domain
        self.memory = memory
        self.traits = traits
        self.bounceBuffers = bounceBuffers
        self.log = log
        translation = domain?.translation
        triesLowFirst = Atomic(traits.isPCI && (translation?.device.options.prefersLowIOVAs ?? true))
    }

    /// Whether DMA addresses are IOVAs; otherwise they are physical addresses.
    package var isTranslated: Bool { translation != nil }

    func note(_ level: LogLevel, _ text: String) { log?(level, "\(name): \(text)") }

    /// Tells the log of a refusal, and passes it on.
    func refused(_ error: DMAError, _ attributes: DMAAttributes, level: LogLevel = .warning) -> DMAError {
        if !attributes.contains(.noWarn) { note(level, "\(error)") }
        return error
    }

    // MARK: Masks

    /// The last address that streaming mappings may have; all ones in a row.
    package var mask: UInt64 { settings.withLock { $0.mask } }
    /// The last address that coherent memory may have.
    package var coherentMask: UInt64 { settings.withLock { $0.coherentMask } }

    /// Linux: dma_set_mask.
    ///
    /// - Throws: ``DMAError/maskNotSupported(mask:needed:)``, EIO: the mask stays as it was.
    package func setMask(_ mask: UInt64) throws(DMAError) {
        try checkMask(mask)
        settings.withLock { $0.mask = mask }
    }

    /// Linux: dma_set_coherent_mask.
    ///
    /// - Throws: As ``setMask(_:)``.
    package func setCoherentMask(_ mask: UInt64) throws(DMAError) {
        try checkMask(mask)
        settings.withLock { $0.coherentMask = mask }
    }

    /// Linux: dma_set_mask_and_coherent.
    ///
    /// - Throws: As ``setMask(_:)``; then both stay.
    package func setMaskAndCoherentMask(_ mask: UInt64) throws(DMAError) {
        try checkMask(mask)
        settings.withLock {
            $0.mask = mask
            $0.coherentMask = mask
        }
    }

    /// dma_supported: an SMMU maps into any mask, and 32 bits must do everywhere.
    private func checkMask(_ mask: UInt64) throws(DMAError) {
        guard translation == nil, mask < 0xFFFF_FFFF else { return }
        let needed = min(0xFFFF_FFFF, memory.lastAddress)
        guard mask >= needed else { throw .maskNotSupported(mask: mask, needed: needed) }
    }

    /// dma_set_max_seg_size: how many bytes a segment of a mapped scatterlist has at most; 64 KiB at first.
    package var maxSegmentByteCount: UInt64 {
        get { settings.withLock { $0.maxSegmentByteCount } }
        set { settings.withLock { $0.maxSegmentByteCount = newValue } }
    }

    /// dma_set_seg_boundary: no segment crosses a multiple of this plus one; 2^32 - 1 at first.
    package var segmentBoundaryMask: UInt64 { settings.withLock { $0.segmentBoundaryMask } }

    /// Linux: dma_set_seg_boundary.
    ///
    /// - Throws: ``DMAError/invalid(_:)`` where the mask is not all ones in a row.
    package func setSegmentBoundaryMask(_ mask: UInt64) throws(DMAError) {
        guard mask & (mask &+ 1) == 0 else {
            throw .invalid("segment boundary mask 0x\(hex(mask)) is not all ones in a row (EINVAL)")
        }
        settings.withLock { $0.segmentBoundaryMask = mask }
    }

    /// dma_set_min_align_mask: the address bits that a bounce buffer keeps, as an NVMe controller needs them.
    package var minAlignMask: UInt64 { settings.withLock { $0.minAlignMask } }

    /// Linux: dma_set_min_align_mask.
    ///
    /// - Throws: ``DMAError/invalid(_:)`` where the mask is not all ones in a row of less than a page.
    package func setMinAlignMask(_ mask: UInt64) throws(DMAError) {
        guard mask & (mask &+ 1) == 0, mask <= 0xFFF else {
            throw .invalid(
                "alignment mask 0x\(hex(mask)) is not all ones in a row of 12 bits at most (EINVAL)"
            )
        }
        settings.withLock { $0.minAlignMask = mask }
    }

    /// dma_max_mapping_size: what one mapping can have; a bounce buffer has an end.
    package var maxMappingByteCount: UInt64 {
        guard let bounceBuffers, traits.isUntrusted || translation == nil && mask < memory.lastAddress else {
            return .max
        }
        return bounceBuffers.maxMappingByteCount
    }

    /// dma_opt_mapping_size: up to this the threads' caches of IOVAs help.
    package var optimalMappingByteCount: UInt64 {
        guard let translation else { return maxMappingByteCount }
        return translation.configuration.granule.byteCount << UInt64(IOVARangeCache.orderCount - 1)
    }

    /// How many mappings and coherent buffers there are.
    package var mappingCount: Int { book.withLock { $0.count } }

    /// The driver lets go of the device: what it left mapped is told to the log, and stays.
    ///
    /// Linux: dma_debug_device_change.
    /// - Returns: How many mappings and coherent buffers that are.
    @discardableResult
    package func driverUnbinds() -> Int {
        let (count, complaint) = book.withLock { ($0.count, $0.complaintAboutLeaks) }
        if let complaint { note(.error, complaint) }
        return count
    }

    // MARK: Single mappings

    /// Maps memory for DMA.
    ///
    /// Linux: dma_map_page, dma_map_single; with ``DMAAttributes/mmio`` dma_map_resource.
    ///
    /// - Parameters:
    ///   - physical: Where it is, at any alignment.
    ///   - byteCount: Not zero.
    ///   - direction: What the device may do with it.
    ///   - attributes: Wishes beside.
    /// - Returns: The address to tell the device.
    /// - Throws: What the kernel's DMA_MAPPING_ERROR stands for; nothing is mapped then.
    package func map(
        _ physical: PhysicalAddress,
        byteCount: UInt64,
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes = []
    ) throws(DMAError) -> IOVirtualAddress {
        let buffer = DMABuffer(physical, byteCount: byteCount)
        guard byteCount > 0, physical.advanced(by: byteCount - 1) != nil else {
            throw .invalid(
                "a mapping of \(byteCount) bytes at \(physical) is empty or leaves 64 bits (EINVAL)"
            )
        }
        let kind: DMABook.Kind = attributes.contains(.mmio) ? .resource : .single
        return try mapOne(buffer, direction, attributes, kind)
    }

    /// Ends a mapping.
    ///
    /// Linux: dma_unmap_page, dma_unmap_single.
    ///
    /// In a strict domain the device reaches the memory no more when this returns. In a lazy one it may until the next
    /// flush, as in Linux: the memory is its owner's again at once. A bounce buffer is copied back, and is not used
    /// again before the flush.
    /// - Parameters: As for ``map(_:byteCount:_:_:)``, and what it returned.
    /// - Throws: ``DMAError/misuse(_:)`` for what was not mapped so, and nothing changes; ``DMAError/driver(_:)`` where
    ///   the command queue failed, and then the memory must not be used again.
    package func unmap(
        _ address: IOVirtualAddress,
        byteCount: UInt64,
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes = []
    ) throws(DMAError) {
        let kind: DMABook.Kind = attributes.contains(.mmio) ? .resource : .single
        let mapping: DMABook.Mapping
        do throws(DMAError) {
            mapping = try book.withLock { (book) throws(DMAError) in
                try book.take(address, kind, byteCount: byteCount, direction)
            }
        } catch { throw refused(error, attributes) }
        try end(mapping, attributes)
    }

    /// Takes a mapping away that has left the book.
    ///
    /// A bounce buffer is copied when the device has lost it, so that what was looked at is what stays.
    func end(_ mapping: DMABook.Mapping, _ attributes: DMAAttributes) throws(DMAError) {
        try release(mapping)
        guard let bounce = mapping.bounce else { return }
        var copyError: DMAError?
        if !attributes.contains(.skipCPUSync), mapping.direction != .toDevice {
            do throws(DMAError) { try bounce.copyBack(0, mapping.byteCount) } catch { copyError = error }
        }
        do throws(SMMUDriverError) { try retire(bounce) } catch { throw .driver(error) }
        if let copyError { throw copyError }
    }

    /// Gives a bounce buffer's slots back when the device cannot reach them any more.
    private func retire(_ bounce: BounceSlot) throws(SMMUDriverError) {
        guard let translation, translation.isLazy.load(ordering: .sequentiallyConsistent) else {
            return bounce.giveBack()
        }
        try translation.retire(DeferredRelease(memory: bounce))
    }

    /// Unmaps, and gives back IOVAs and coherent memory when the device cannot reach them any more.
    private func release(_ mapping: DMABook.Mapping) throws(DMAError) {
        guard let translation, let range = mapping.range else {
            mapping.frames?.giveBack()
            return
        }
        let unmapped: UInt64
        do throws(SMMUDriverError) {
            unmapped = try translation.unmap(mapping.pieces, freeing: range, mapping.frames)
        } catch { throw .driver(error) }
        let expected = mapping.pieces.reduce(0) { $0 &+ $1.byteCount }
        if unmapped != expected {
            note(.warning, "unmapped 0x\(hex(unmapped)) of 0x\(hex(expected)) bytes at \(range)")
        }
    }
}
