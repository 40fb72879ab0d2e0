// All that a server says of its device: what it answers questions from and checks accesses against.

/// A device as a client sees it.
package struct VFIOUserDeviceDescription: Equatable, Sendable {
    package var flags: VFIOUserDeviceFlags
    /// By index; a region that is not there has no bytes.
    package var regions: [VFIOUserRegionDescription]
    /// By index; a kind of interrupt that is not there has no vectors.
    package var interrupts: [VFIOUserInterruptDescription]

    package init(
        flags: VFIOUserDeviceFlags,
        regions: [VFIOUserRegionDescription],
        interrupts: [VFIOUserInterruptDescription]
    ) {
        self.flags = flags
        self.regions = regions
        self.interrupts = interrupts
    }

    /// A PCI function: nine regions and five kinds of interrupts, those that are not named being absent.
    package static func pci(
        canReset: Bool = true,
        regions: [VFIOUserRegionIndex: VFIOUserRegionDescription],
        interrupts: [VFIOUserInterruptIndex: VFIOUserInterruptDescription]
    ) -> Self {
        Self(
            flags: canReset ? [.pci, .reset] : .pci,
            regions: (0..<VFIOUserRegionIndex.pciCount).map {
                regions[VFIOUserRegionIndex(rawValue: UInt32($0))] ?? .absent
            },
            interrupts: (0..<VFIOUserInterruptIndex.pciCount).map {
                interrupts[VFIOUserInterruptIndex(rawValue: UInt32($0))] ?? .absent
            }
        )
    }
}

/// One region of a device.
package struct VFIOUserRegionDescription: Equatable, Sendable {
    /// How a client maps the region, or parts of it.
    package struct Mapping: Equatable, Sendable {
        /// Where in the descriptor's file the region begins.
        package var fileOffset: UInt64
        /// Which parts; none listed is the whole region.
        package var areas: [VFIOUserMappableArea]

        package init(fileOffset: UInt64 = 0, areas: [VFIOUserMappableArea] = []) {
            self.fileOffset = fileOffset
            self.areas = areas
        }
    }

    /// In bytes.
    package var size: UInt64
    package var isReadable: Bool
    package var isWritable: Bool
    /// Nil where it cannot be mapped.
    package var mapping: Mapping?
    /// Capabilities beside the mappable areas.
    package var capabilities: [VFIOUserRegionCapability]
    /// Offsets at which writes can be eventfds.
    package var ioEvents: [VFIOUserIOEvent]

    package init(
        size: UInt64,
        isReadable: Bool = true,
        isWritable: Bool = true,
        mapping: Mapping? = nil,
        capabilities: [VFIOUserRegionCapability] = [],
        ioEvents: [VFIOUserIOEvent] = []
    ) {
        self.size = size
        self.isReadable = isReadable
        self.isWritable = isWritable
        self.mapping = mapping
        self.capabilities = capabilities
        self.ioEvents = ioEvents
    }

    /// No region.
    package static let absent = Self(size: 0, isReadable: false, isWritable: false)

    /// What a client is told of ``VFIOUserRegionInfo/flags``, without capabilities.
    var flags: VFIOUserRegionFlags {
        guard size > 0 else { return [] }
        var flags: VFIOUserRegionFlags = []
        if isReadable { flags.insert(.read) }
        if isWritable { flags.insert(.write) }
        if mapping != nil { flags.insert(.mmap) }
        return flags
    }

    /// The chain of capabilities.
    var capabilityBytes: [UInt8] {
        guard size > 0 else { return [] }
        var all = capabilities
        if let areas = mapping?.areas, !areas.isEmpty { all.insert(.sparseMapping(areas), at: 0) }
        return VFIOUserRegionCapability.chain(all)
    }
}

/// One kind of interrupt of a device.
package struct VFIOUserInterruptDescription: Equatable, Sendable {
    /// How many vectors.
    package var count: UInt32
    package var flags: VFIOUserInterruptFlags

    package init(count: UInt32, flags: VFIOUserInterruptFlags = .eventfd) {
        self.count = count
        self.flags = flags
    }

    /// A level interrupt that is masked at each signal until the client unmasks it.
    package static let intx = Self(count: 1, flags: [.eventfd, .maskable, .automasked])
    /// No interrupt.
    package static let absent = Self(count: 0, flags: [])
}
