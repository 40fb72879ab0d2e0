// IOMMU groups, domains and the devices on their buses, as the daemon's own driver has them.

extension Methods {
    /// Lists groups, as /sys/kernel/iommu_groups and /sys/class/iommu show them.
    package enum IOMMUGroups: ControlMethod {
        package static let name = "iommu.groups"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            /// By number.
            package var groups: [GroupInfo]
            /// The SMMUs that a driver of ours runs.
            package var smmus: [GroupSMMUInfo]
            /// The same as files with their content, and links with the name that they lead to, by path.
            package var sysfs: [String: String]

            package init(groups: [GroupInfo], smmus: [GroupSMMUInfo], sysfs: [String: String]) {
                self.groups = groups
                self.smmus = smmus
                self.sysfs = sysfs
            }
        }
    }

    /// Reads or changes a group's type, as its file `type` in sysfs does.
    package enum IOMMUGroupType: ControlMethod {
        package static let name = "iommu.group.type"
        package struct Parameters: Codable, Sendable, Equatable {
            /// The group's number.
            package var group: Int
            /// `identity`, `DMA`, `DMA-FQ`, or `auto` for what the parameters choose; it stays unless given.
            package var type: String?

            package init(group: Int, type: String? = nil) {
                self.group = group
                self.type = type
            }
        }
        package typealias Result = GroupInfo
    }

    /// Lists domains.
    package enum IOMMUDomains: ControlMethod {
        package static let name = "iommu.domains"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            package var domains: [DomainInfo]

            package init(domains: [DomainInfo]) { self.domains = domains }
        }
    }

    /// Makes an unmanaged domain: one in which the caller chooses what is mapped where.
    package enum IOMMUDomainMake: ControlMethod {
        package static let name = "iommu.domain.make"
        package struct Parameters: Codable, Sendable, Equatable {
            /// What it is to be called: 1 to 64 bytes, and none of `dma`, `identity` and `blocked`.
            package var name: String
            /// Whose devices can be in it; may be left out on a board with one SMMU.
            package var smmu: SMMUSelector?

            package init(name: String, smmu: SMMUSelector? = nil) {
                self.name = name
                self.smmu = smmu
            }
        }
        package typealias Result = DomainInfo
    }

    /// Frees a domain that ``IOMMUDomainMake`` made, with all that is mapped in it.
    package enum IOMMUDomainFree: ControlMethod {
        package static let name = "iommu.domain.free"
        package struct Parameters: Codable, Sendable, Equatable {
            package var name: String

            package init(name: String) { self.name = name }
        }
        package typealias Result = Nothing
    }

    /// Parameters of what is done to a device on its bus.
    package struct DeviceParameters: Codable, Sendable, Equatable {
        /// An endpoint's name or one of its aliases.
        package var device: String

        package init(device: String) { self.device = device }
    }

    /// A device comes: it is probed, grouped and attached.
    package enum DeviceAdd: ControlMethod {
        package static let name = "device.add"
        package typealias Parameters = DeviceParameters
        package typealias Result = DeviceInfo
    }

    /// A device goes: its driver, its mappings, and its group with its last device.
    package enum DeviceRemove: ControlMethod {
        package static let name = "device.remove"
        package typealias Parameters = DeviceParameters
        package typealias Result = Nothing
    }

    /// A driver is bound to a device: nobody changes its group's domain from now on.
    package enum DeviceBind: ControlMethod {
        package static let name = "device.bind"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases.
            package var device: String
            /// What the driver is called; `smmuctl` unless given.
            package var driver: String?

            package init(device: String, driver: String? = nil) {
                self.device = device
                self.driver = driver
            }
        }
        package typealias Result = DeviceInfo
    }

    /// The driver that ``DeviceBind`` bound goes.
    package enum DeviceUnbind: ControlMethod {
        package static let name = "device.unbind"
        package typealias Parameters = DeviceParameters
        package typealias Result = DeviceInfo
    }
}

/// A group: endpoints that are given away together.
package struct GroupInfo: Codable, Sendable, Equatable {
    /// The number in `/sys/kernel/iommu_groups`.
    package var group: Int
    /// `DMA`, `DMA-FQ`, `identity`.
    package var type: String
    /// The domain that its devices are in now: `dma`, `identity`, `blocked`, or one's own name.
    package var domain: String
    package var devices: [DeviceInfo]
    /// The path of the SMMU before them.
    package var smmu: String
    package var reservedRegions: [ReservedRegionInfo]
    /// Whether a device is outside of the machine's case, so that the type stays `DMA`.
    package var untrusted: Bool

    package init(
        group: Int,
        type: String,
        domain: String,
        devices: [DeviceInfo],
        smmu: String,
        reservedRegions: [ReservedRegionInfo],
        untrusted: Bool
    ) {
        self.group = group
        self.type = type
        self.domain = domain
        self.devices = devices
        self.smmu = smmu
        self.reservedRegions = reservedRegions
        self.untrusted = untrusted
    }
}

/// A device on its bus.
package struct DeviceInfo: Codable, Sendable, Equatable {
    /// The endpoint's name.
    package var device: String
    /// What the kernel would call it: `0000:00:01.0`, `a000000.display`.
    package var kernelName: String
    /// `platform` or `pci`.
    package var bus: String
    /// Its group's number.
    package var group: Int
    /// The driver that it is bound to.
    package var driver: String?

    package init(device: String, kernelName: String, bus: String, group: Int, driver: String? = nil) {
        self.device = device
        self.kernelName = kernelName
        self.bus = bus
        self.group = group
        self.driver = driver
    }
}

/// An SMMU in `/sys/class/iommu`.
package struct GroupSMMUInfo: Codable, Sendable, Equatable {
    /// `smmu3.0x0000000009050000`.
    package var name: String
    /// The SMMU's path in the tree.
    package var smmu: String
    /// What the IOMMU core asks of it before it relies on it: `cache-coherency`, `noexec`, `deferred-flush`.
    package var capabilities: [String]

    package init(name: String, smmu: String, capabilities: [String]) {
        self.name = name
        self.smmu = smmu
        self.capabilities = capabilities
    }
}

/// IOVAs that firmware or the platform has a say in.
package struct ReservedRegionInfo: Codable, Sendable, Equatable {
    package var first: Hex
    /// The last address of the range.
    package var last: Hex
    /// `direct`, `direct-relaxable`, `reserved`, `msi`.
    package var kind: String

    package init(first: Hex, last: Hex, kind: String) {
        self.first = first
        self.last = last
        self.kind = kind
    }
}

/// A domain: translations that devices of one SMMU share.
package struct DomainInfo: Codable, Sendable, Equatable {
    /// The name of its own, of one that somebody made.
    package var name: String?
    /// The group whose default domain it is.
    package var group: Int?
    /// The SubstreamID that it is for, of ``device``.
    package var substream: Hex?
    package var device: String?
    /// `DMA`, `DMA-FQ`, `identity`, `blocked`, `unmanaged`.
    package var kind: String
    /// The SMMU's path.
    package var smmu: String
    package var asid: UInt32?
    package var vmid: UInt32?
    /// The smallest page in bytes, where it translates.
    package var granule: Size?
    /// How many bits an IOVA has.
    package var inputBits: Int?
    /// The table at which walks begin: CD.TTB0.
    package var root: Hex?
    /// The endpoints that are in it now.
    package var devices: [String]
    /// How many mappings there are.
    package var mappings: Size
    /// Their bytes.
    package var mapped: Size
    /// How many unmapped ranges wait for an invalidation (DMA-FQ).
    package var lazyUnmaps: Size?

    package init(
        name: String? = nil,
        group: Int? = nil,
        substream: Hex? = nil,
        device: String? = nil,
        kind: String,
        smmu: String,
        asid: UInt32? = nil,
        vmid: UInt32? = nil,
        granule: Size? = nil,
        inputBits: Int? = nil,
        root: Hex? = nil,
        devices: [String] = [],
        mappings: Size = 0,
        mapped: Size = 0,
        lazyUnmaps: Size? = nil
    ) {
        self.name = name
        self.group = group
        self.substream = substream
        self.device = device
        self.kind = kind
        self.smmu = smmu
        self.asid = asid
        self.vmid = vmid
        self.granule = granule
        self.inputBits = inputBits
        self.root = root
        self.devices = devices
        self.mappings = mappings
        self.mapped = mapped
        self.lazyUnmaps = lazyUnmaps
    }
}
