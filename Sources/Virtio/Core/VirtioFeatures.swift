// Feature bits, device types and device status, by the specification's numbers.

/// Feature bits (Virtual I/O Device specification 1.3, 2.2), bit n being feature n.
package struct VirtioFeatures: OptionSet, Hashable, Sendable {
    package var rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The feature of this number.
    package init(bit: Int) { rawValue = 1 << UInt64(bit) }

    /// VIRTIO_F_INDIRECT_DESC, feature 28.
    package static let indirectDescriptors = Self(bit: 28)
    /// VIRTIO_F_EVENT_IDX, feature 29.
    package static let eventIndex = Self(bit: 29)
    /// VIRTIO_F_VERSION_1, feature 32.
    package static let version1 = Self(bit: 32)
    /// VIRTIO_F_ACCESS_PLATFORM, feature 33: addresses are what the platform's IOMMU translates.
    package static let accessPlatform = Self(bit: 33)
    /// VIRTIO_F_RING_PACKED, feature 34.
    package static let packedRing = Self(bit: 34)
    /// VIRTIO_F_RING_RESET, feature 40.
    package static let queueReset = Self(bit: 40)

    /// Without these no driver is let in: a device behind an SMMU that a driver gave physical addresses would
    /// fault at every access.
    static let required: Self = [.version1, .accessPlatform]
    /// What every device of this module offers beside its own.
    static let transport: Self = [
        .indirectDescriptors, .eventIndex, .version1, .accessPlatform, .packedRing, .queueReset,
    ]
}

/// Device types (section 5).
package struct VirtioDeviceType: RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt16

    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package static let network = Self(rawValue: 1)
    package static let block = Self(rawValue: 2)
    package static let console = Self(rawValue: 3)
    package static let entropy = Self(rawValue: 4)
}

/// The device status field (section 2.1), 8 bits.
package struct VirtioStatus: OptionSet, Hashable, Sendable {
    package var rawValue: UInt8

    package init(rawValue: UInt8) { self.rawValue = rawValue }

    package static let acknowledge = Self(rawValue: 1)
    package static let driver = Self(rawValue: 2)
    package static let driverOK = Self(rawValue: 4)
    package static let featuresOK = Self(rawValue: 8)
    /// DEVICE_NEEDS_RESET: something went wrong from which the device cannot recover by itself.
    package static let needsReset = Self(rawValue: 64)
    package static let failed = Self(rawValue: 128)
}
