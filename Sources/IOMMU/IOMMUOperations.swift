// What the IOMMU core asks of an SMMU's driver, under the kernel's names. Linux: struct iommu_ops, arm_smmu_ops.

package import AddressSpace
import IOPageTable

/// What an IOMMU may be able to do.
///
/// Linux: enum iommu_cap.
package enum IOMMUCapability: Sendable, CaseIterable {
    /// IOMMU_CAP_CACHE_COHERENCY: DMA can be made to snoop the CPU's caches.
    case cacheCoherency
    /// IOMMU_CAP_NOEXEC: mappings can forbid instruction fetches.
    case noExecute
    /// IOMMU_CAP_PRE_BOOT_PROTECTION: firmware had it protect memory before.
    case preBootProtection
    /// IOMMU_CAP_DEFERRED_FLUSH: unmaps can be lazy.
    case deferredFlush
    /// IOMMU_CAP_DIRTY_TRACKING: page tables tell what was written.
    case dirtyTracking
}

extension SMMUv3Driver {
    /// Linux: capable (arm_smmu_capable).
    package func capable(_ capability: IOMMUCapability) -> Bool {
        switch capability {
        case .cacheCoherency: features.flags.contains(.coherent)
        case .noExecute, .deferredFlush: true
        case .dirtyTracking: features.flags.contains(.hardwareDirtyState)
        case .preBootProtection: false
        }
    }

    /// The StreamID that an `iommus` entry of firmware names.
    ///
    /// Linux: of_xlate (arm_smmu_of_xlate). `#iommu-cells` of an SMMUv3 is 1.
    /// - Throws: ``IOMMUGroupError/invalid(_:)`` for a specifier of another length.
    package func translateSpecifier(_ cells: [UInt32]) throws(IOMMUGroupError) -> StreamID {
        guard cells.count == 1 else {
            throw .invalid("\(name): an iommus entry has 1 cell, not \(cells.count)")
        }
        return StreamID(cells[0])
    }

    /// Takes a device in: its StreamIDs are checked, and the stream table reaches them.
    ///
    /// Linux: probe_device (arm_smmu_probe_device).
    package func probeDevice(_ device: BusDevice) throws(SMMUDriverError) -> IOMMUEndpoint {
        try addEndpoint(
            device.name,
            streams: device.streams,
            substreamBits: device.substreamBits,
            canStall: device.canStall,
            reservedRegions: device.reservedRegions
        )
    }

    /// Lets a device go.
    ///
    /// Linux: release_device (arm_smmu_release_device).
    package func releaseDevice(_ endpoint: IOMMUEndpoint) throws(SMMUDriverError) {
        try removeEndpoint(endpoint)
    }

    /// The group that a device comes into if nobody of it has one yet.
    ///
    /// Linux: device_group (arm_smmu_device_group: pci_device_group, generic_device_group).
    package func deviceGroup(of device: BusDevice) -> IOMMUGroupKey {
        switch device.place {
        case .platform: .platform(device.name)
        case .pci(let segment, let requesterID, let group):
            .pci(segment: segment, leader: group.min() ?? requesterID)
        }
    }

    /// What is reserved of a device's IOVAs: where MSIs go, and what firmware says.
    ///
    /// Linux: get_resv_regions (arm_smmu_get_resv_regions).
    package func reservedRegions(of endpoint: IOMMUEndpoint) -> [ReservedRegion] {
        (ReservedRegion.softwareMSI.map { [$0] } ?? []) + endpoint.reservedRegions
    }
}

/// What a domain can be asked.
///
/// Linux: enum iommu_attr with domain_get_attr; what the kernel moved into the domain's structure since is here too.
package enum IOMMUDomainAttribute: Sendable, Hashable {
    /// DOMAIN_ATTR_GEOMETRY: the IOVAs that can be mapped, none outside of them.
    case geometry(first: UInt64, last: UInt64)
    /// pgsize_bitmap: one bit for each page or block size.
    case pageSizes(UInt64)
    /// DOMAIN_ATTR_DMA_USE_FLUSH_QUEUE: whether unmaps of the DMA API are lazy.
    case usesFlushQueue(Bool)
    /// DOMAIN_ATTR_NESTING: whether a guest's stage 1 can stand before it.
    case nesting(Bool)
}

extension IOMMUDomain {
    /// Every attribute, of a domain that translates; none of others.
    ///
    /// Linux: domain_get_attr.
    package var attributes: [IOMMUDomainAttribute] {
        guard let configuration else { return [] }
        let log2 = configuration.granule.log2
        // Each level resolves log2 - 3 bits; blocks are at the levels above the last as the granule permits.
        var sizes: UInt64 = 1 << UInt64(log2)
        sizes |= 1 << UInt64(log2 + (log2 - 3))
        if log2 == 12 { sizes |= 1 << UInt64(log2 + 2 * (log2 - 3)) }
        return [
            .geometry(first: 0, last: (1 << UInt64(configuration.inputAddressBits)) - 1),
            .pageSizes(sizes),
            .usesFlushQueue(kind == .dmaFQ),
            .nesting(false),
        ]
    }

    /// Sets what can be set: ``IOMMUDomainAttribute/usesFlushQueue(_:)`` to true, of a domain for the DMA API.
    ///
    /// Linux: domain_set_attr.
    /// - Throws: ``IOMMUGroupError/invalid(_:)`` for anything else (-EINVAL, -ENODEV).
    package func set(_ attribute: IOMMUDomainAttribute) throws(IOMMUGroupError) {
        guard case .usesFlushQueue(true) = attribute, kind == .dma || kind == .dmaFQ else {
            throw .invalid("a domain of kind \(kind.rawValue) cannot be made so")
        }
        startFlushQueue()
    }
}
