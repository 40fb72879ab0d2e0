// What a device tree, or an IORT, says of a board, as far as DMA, interrupts and memory go.

package import AddressSpace
package import DeviceModel

/// A board as its device tree describes it, or an IORT instead or beside it: what a machine is built from.
///
/// What comes from an IORT has paths under `/iort`.
/// Lists are in the order of the file. Paths are full paths of nodes; a person knows each thing by its path.
package struct BoardDescription: Equatable, Sendable {
    /// `model` of the root node.
    package let model: String?
    /// `compatible` of the root node, the most specific first.
    package let compatible: [String]
    /// RAM: every range of every `memory` node.
    ///
    /// Ranges neither overlap each other nor register regions.
    package let memory: [MemoryRegion]
    /// The children of `/reserved-memory`.
    package let reservedMemory: [ReservedMemory]
    /// Every interrupt controller that stands on the bus or is named by an interrupt.
    package let interruptControllers: [InterruptControllerNode]
    /// Every node that takes message-signalled interrupts: GICv3 ITSs, GICv2m frames and others.
    package let msiControllers: [MSIControllerNode]
    /// Every `arm,smmu-v3` node; disabled ones are listed with `isEnabled` false.
    package let smmus: [SMMUv3Node]
    /// Every enabled `arm,smmu-v3-pmcg` node.
    package let pmcgs: [PMCGNode]
    /// Every enabled PCIe host bridge.
    package let pcieHosts: [PCIeHostNode]
    /// Every other enabled node with registers or with `iommus`.
    ///
    /// See ``masters``.
    package let devices: [PlatformDevice]
    /// What is doubtful, but no reason to refuse the tree.
    package let warnings: [DeviceTreeDiagnostic]
    /// The tree itself, for properties that only one model knows of; a root alone where there is none.
    package let tree: FlattenedDeviceTree

    package init(
        model: String? = nil,
        compatible: [String],
        memory: [MemoryRegion],
        reservedMemory: [ReservedMemory],
        interruptControllers: [InterruptControllerNode],
        msiControllers: [MSIControllerNode],
        smmus: [SMMUv3Node],
        pmcgs: [PMCGNode],
        pcieHosts: [PCIeHostNode],
        devices: [PlatformDevice],
        warnings: [DeviceTreeDiagnostic],
        tree: FlattenedDeviceTree
    ) {
        self.model = model
        self.compatible = compatible
        self.memory = memory
        self.reservedMemory = reservedMemory
        self.interruptControllers = interruptControllers
        self.msiControllers = msiControllers
        self.smmus = smmus
        self.pmcgs = pmcgs
        self.pcieHosts = pcieHosts
        self.devices = devices
        self.warnings = warnings
        self.tree = tree
    }

    /// The platform devices with `iommus`: each is an endpoint, whether or not its model is known.
    ///
    /// The other endpoints are the functions behind ``pcieHosts``.
    package var masters: [PlatformDevice] { devices.filter { !$0.iommus.isEmpty } }

    /// The SMMUs to build.
    package var enabledSMMUs: [SMMUv3Node] { smmus.filter(\.isEnabled) }

    /// The SMMU at this path.
    package func smmu(at path: String) -> SMMUv3Node? { smmus.first { $0.path == path } }
}

/// One range of RAM.
package struct MemoryRegion: Equatable, Sendable {
    /// The `memory` node.
    package let path: String
    package let range: AddressRange
    /// `numa-node-id`.
    package let numaNode: UInt32?

    package init(path: String, range: AddressRange, numaNode: UInt32? = nil) {
        self.path = path
        self.range = range
        self.numaNode = numaNode
    }
}

/// A child of `/reserved-memory`.
package struct ReservedMemory: Equatable, Sendable {
    package let path: String
    package let compatible: [String]
    /// `reg`, first range; nil where there is none: either only IOVAs are reserved, or the place is
    /// ``dynamic``.
    package let range: AddressRange?
    /// All of `reg`; mostly one range or none.
    package let ranges: [AddressRange]
    /// Where the system chooses the place itself; nil where `reg` gives it, or nothing does.
    package let dynamic: DynamicReservation?
    /// `no-map`: the system may not map it, nor use it for anything else.
    package let isNoMap: Bool
    /// `reusable`.
    package let isReusable: Bool
    /// `iommu-addresses`: IOVAs that are set apart in the address spaces of single devices.
    package internal(set) var iommuAddresses: [IOMMUAddress]

    package init(
        path: String,
        compatible: [String],
        range: AddressRange? = nil,
        ranges: [AddressRange],
        dynamic: DynamicReservation? = nil,
        isNoMap: Bool,
        isReusable: Bool,
        iommuAddresses: [IOMMUAddress]
    ) {
        self.path = path
        self.compatible = compatible
        self.range = range
        self.ranges = ranges
        self.dynamic = dynamic
        self.isNoMap = isNoMap
        self.isReusable = isReusable
        self.iommuAddresses = iommuAddresses
    }
}

/// `size`, `alignment` and `alloc-ranges` of a reserved memory without `reg`.
package struct DynamicReservation: Equatable, Sendable {
    /// `size` in bytes.
    package let byteCount: UInt64
    /// `alignment` in bytes.
    package let alignment: UInt64?
    /// `alloc-ranges`: where it may be put; empty for anywhere.
    package let allowedRanges: [AddressRange]

    package init(byteCount: UInt64, alignment: UInt64? = nil, allowedRanges: [AddressRange]) {
        self.byteCount = byteCount
        self.alignment = alignment
        self.allowedRanges = allowedRanges
    }
}

/// One entry of `iommu-addresses`.
package struct IOMMUAddress: Equatable, Sendable {
    /// The device whose IOVAs these are.
    package let devicePath: String
    /// The IOVAs.
    package let range: AddressRange

    package init(devicePath: String, range: AddressRange) {
        self.devicePath = devicePath
        self.range = range
    }
}

/// One region of a device's `reg`.
package struct RegisterRegion: Equatable, Sendable {
    /// Its entry of `reg-names`.
    package let name: String?
    /// Where the CPU sees it.
    package let range: AddressRange

    package init(name: String? = nil, range: AddressRange) {
        self.name = name
        self.range = range
    }
}

/// A controller's input with the name that the device gives it.
package struct NamedInterrupt: Equatable, Sendable {
    /// Its entry of `interrupt-names`.
    package let name: String?
    package let identity: InterruptIdentity

    package init(name: String? = nil, identity: InterruptIdentity) {
        self.name = name
        self.identity = identity
    }
}

/// What `msi-parent` says: where a device's messages go, and as whose.
package struct MSIParent: Equatable, Sendable {
    package let controllerPath: String
    /// The cells behind the phandle; for an ITS one, the DeviceID.
    package let specifier: [UInt32]

    package init(controllerPath: String, specifier: [UInt32]) {
        self.controllerPath = controllerPath
        self.specifier = specifier
    }
}
