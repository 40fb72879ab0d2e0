// How single mappings come about, by an IOMMU, directly, or by a bounce buffer; and how they are synchronised.

package import AddressSpace
import IOPageTable
import Synchronization

extension DMADevice {
    /// Maps one buffer and puts it into the book.
    func mapOne(
        _ buffer: DMABuffer,
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes,
        _ kind: DMABook.Kind
    ) throws(DMAError) -> IOVirtualAddress {
        var mapping = DMABook.Mapping(kind: kind, byteCount: buffer.byteCount, direction: direction)
        var physical = buffer.physical
        do throws(DMAError) {
            if try mustBounce(buffer, attributes) {
                let bounce = try bounceSlot(for: buffer)
                mapping.bounce = bounce
                physical = bounce.address
            }
            let address = try connect(physical, permissions(direction, attributes), &mapping)
            book.withLock { $0.insert(mapping, at: address) }
            return address
        } catch {
            if !error.leavesTranslations { mapping.bounce?.giveBack() }
            throw refused(error, attributes)
        }
    }

    /// Makes an IOVA for physical memory, or takes the physical address itself.
    private func connect(
        _ physical: PhysicalAddress,
        _ permissions: MappingPermissions,
        _ mapping: inout DMABook.Mapping
    ) throws(DMAError) -> IOVirtualAddress {
        guard let translation else { return IOVirtualAddress(physical.rawValue) }
        let granuleMask = translation.configuration.granule.byteCount - 1
        let offset = physical.rawValue & granuleMask
        let (sum, overflow) = mapping.byteCount.addingReportingOverflow(offset + granuleMask)
        guard !overflow else { throw .noMemory(.iovasExhausted(byteCount: mapping.byteCount)) }
        let size = sum & ~granuleMask
        let iova = try allocateIOVA(size, mask: mask)
        mapping.pieces = [
            DMAPiece(iova: iova, physical: PhysicalAddress(physical.rawValue & ~granuleMask), byteCount: size)
        ]
        mapping.range = try map(mapping.pieces, permissions, iova, size)
        return IOVirtualAddress(iova.rawValue | offset)
    }

    /// Maps pieces in a range of IOVAs that becomes free again where that fails.
    func map(
        _ pieces: [DMAPiece],
        _ permissions: MappingPermissions,
        _ iova: IOVirtualAddress,
        _ byteCount: UInt64
    ) throws(DMAError) -> AddressRange? {
        guard let translation else { return nil }
        do throws(SMMUDriverError) { try translation.map(pieces, permissions) } catch {
            switch error {
            // Somebody mapped there by hand, and frees the range when it is unmapped.
            case .pageTable(.alreadyMapped): break
            case .pageTable: translation.freeIOVA(iova, byteCount)
            // The TLB may still have what was mapped for a moment: the range is lost.
            default: break
            }
            if case .pageTable(.noMemory) = error { throw .noMemory(error) }
            throw .driver(error)
        }
        return AddressRange(start: iova.rawValue, byteCount: byteCount)
    }

    /// iommu_dma_alloc_iova: within mask, bus and aperture, for PCI below 4 GiB first as long as that goes well.
    func allocateIOVA(_ byteCount: UInt64, mask: UInt64) throws(DMAError) -> IOVirtualAddress {
        guard let translation else { throw .noMemory(.iovasExhausted(byteCount: byteCount)) }
        let aperture = UInt64.max &>> UInt64(64 - translation.configuration.inputAddressBits)
        let limit = min(mask, traits.busLimit, aperture)
        let low = IOVAAllocator.lastLowAddress
        if limit > low, triesLowFirst.load(ordering: .relaxed) {
            if let iova = translation.allocateIOVA(byteCount, limit: low, isLastTry: false) { return iova }
            if triesLowFirst.exchange(false, ordering: .relaxed) {
                note(.notice, "Using \(64 - limit.leadingZeroBitCount)-bit DMA addresses")
            }
        }
        guard let iova = translation.allocateIOVA(byteCount, limit: limit, isLastTry: true) else {
            throw .noMemory(.iovasExhausted(byteCount: byteCount))
        }
        return iova
    }

    /// dma_info_to_prot.
    func permissions(_ direction: DMADataDirection, _ attributes: DMAAttributes) -> MappingPermissions {
        var permissions: MappingPermissions =
            switch direction {
            case .bidirectional: .readWrite
            case .toDevice: .read
            case .fromDevice: .write
            }
        if attributes.contains(.mmio) {
            permissions.insert(.device)
        } else if traits.isCoherent {
            permissions.insert(.cacheable)
        }
        if attributes.contains(.privileged) { permissions.insert(.privileged) }
        return permissions
    }

    /// Whether a buffer goes by a bounce buffer.
    ///
    /// Translated: for a device that is not trusted, where the buffer is no whole pages (dev_use_swiotlb). Direct:
    /// where the device cannot drive the address.
    func mustBounce(_ buffer: DMABuffer, _ attributes: DMAAttributes) throws(DMAError) -> Bool {
        if let translation {
            let granuleMask = translation.configuration.granule.byteCount - 1
            guard traits.isUntrusted, !attributes.contains(.mmio),
                (buffer.physical.rawValue | buffer.byteCount) & granuleMask != 0
            else { return false }
            guard bounceBuffers != nil else { throw .bounceBuffersInactive }
            return true
        }
        let last = buffer.physical.rawValue &+ (buffer.byteCount - 1)
        guard last > min(mask, traits.busLimit) else { return false }
        guard bounceBuffers != nil, !attributes.contains(.mmio) else { throw overflow(buffer) }
        return true
    }

    private func overflow(_ buffer: DMABuffer) -> DMAError {
        .addressOverflow(
            buffer.physical,
            byteCount: buffer.byteCount,
            mask: mask,
            busLimit: traits.busLimit == .max ? 0 : traits.busLimit
        )
    }

    private func bounceSlot(for buffer: DMABuffer) throws(DMAError) -> BounceSlot {
        guard let bounceBuffers else { throw .bounceBuffersInactive }
        let granule = translation?.configuration.granule.byteCount ?? 1
        let slot = try bounceBuffers.take(buffer, alignment: granule, offsetMask: minAlignMask)
        if translation == nil, slot.address.rawValue &+ (buffer.byteCount - 1) > min(mask, traits.busLimit) {
            slot.giveBack()
            throw overflow(DMABuffer(slot.address, byteCount: buffer.byteCount))
        }
        return slot
    }
}

// MARK: Synchronising

extension DMADevice {
    /// What the device wrote becomes visible in the buffer.
    ///
    /// Linux: dma_sync_single_range_for_cpu.
    ///
    /// - Parameters:
    ///   - address: What ``map(_:byteCount:_:_:)`` returned.
    ///   - offset: Where in the mapping, in bytes.
    ///   - byteCount: How much of it.
    ///   - direction: That of the mapping.
    /// - Throws: ``DMAError/misuse(_:)`` for what is not mapped so.
    package func syncForCPU(
        _ address: IOVirtualAddress,
        offset: UInt64 = 0,
        byteCount: UInt64,
        _ direction: DMADataDirection
    ) throws(DMAError) {
        let bounce = try synchronised(address, offset, byteCount, direction)
        if direction != .toDevice { try bounce?.copyBack(offset, byteCount) }
    }

    /// What the CPU wrote into the buffer becomes visible to the device.
    ///
    /// Linux: dma_sync_single_range_for_device.
    ///
    /// - Parameters: As for ``syncForCPU(_:offset:byteCount:_:)``.
    /// - Throws: As ``syncForCPU(_:offset:byteCount:_:)``.
    package func syncForDevice(
        _ address: IOVirtualAddress,
        offset: UInt64 = 0,
        byteCount: UInt64,
        _ direction: DMADataDirection
    ) throws(DMAError) {
        let bounce = try synchronised(address, offset, byteCount, direction)
        if direction != .fromDevice { try bounce?.copyOut(offset, byteCount) }
    }

    private func synchronised(
        _ address: IOVirtualAddress,
        _ offset: UInt64,
        _ byteCount: UInt64,
        _ direction: DMADataDirection
    ) throws(DMAError) -> BounceSlot? {
        do throws(DMAError) {
            return try book.withLock { (book) throws(DMAError) in
                try book.find(address, offset, byteCount, direction).bounce
            }
        } catch { throw refused(error, []) }
    }
}
