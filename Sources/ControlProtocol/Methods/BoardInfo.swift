// The machine as its device tree describes it and as the daemon built it.

extension Methods {
    /// Describes the whole machine.
    package enum MachineDescribe: ControlMethod {
        package static let name = "machine.describe"
        package typealias Parameters = Nothing
        package typealias Result = BoardInfo
    }
}

/// The whole machine.
package struct BoardInfo: Codable, Sendable, Equatable {
    /// The root node's `model`.
    package var model: String
    /// The root node's `compatible`.
    package var compatible: [String]
    /// The file that was loaded.
    package var source: String?
    /// In the order of the tree.
    ///
    /// Their places here are the indices by which they can be named.
    package var smmus: [SMMUInfo]
    package var memory: [MemoryRegionInfo]
    package var reservedMemory: [ReservedMemoryInfo]
    package var pmcgs: [PMCGInfo]
    package var pcieHosts: [PCIeHostInfo]
    package var endpoints: [EndpointInfo]
    /// Every interrupt line that somebody drives.
    ///
    /// Their places here are the line numbers.
    package var interrupts: [InterruptInfo]
    package var warnings: [BoardWarning]

    package init(
        model: String,
        compatible: [String] = [],
        source: String? = nil,
        smmus: [SMMUInfo] = [],
        memory: [MemoryRegionInfo] = [],
        reservedMemory: [ReservedMemoryInfo] = [],
        pmcgs: [PMCGInfo] = [],
        pcieHosts: [PCIeHostInfo] = [],
        endpoints: [EndpointInfo] = [],
        interrupts: [InterruptInfo] = [],
        warnings: [BoardWarning] = []
    ) {
        self.model = model
        self.compatible = compatible
        self.source = source
        self.smmus = smmus
        self.memory = memory
        self.reservedMemory = reservedMemory
        self.pmcgs = pmcgs
        self.pcieHosts = pcieHosts
        self.endpoints = endpoints
        self.interrupts = interrupts
        self.warnings = warnings
    }
}

/// A range of physical addresses.
package struct RangeInfo: Codable, Sendable, Equatable {
    package var base: Hex
    /// In bytes.
    package var size: Hex

    package init(base: Hex, size: Hex) {
        self.base = base
        self.size = size
    }
}

/// An `arm,smmu-v3` node.
package struct SMMUInfo: Codable, Sendable, Equatable {
    /// What the daemon's own driver does with it.
    package enum Driver: String, Codable, Sendable {
        /// The registers are left to a driver outside.
        case none
        /// The driver has it up and runs it.
        case running
        /// The driver tried and gave up; ``SMMUInfo/driverMessage`` says why.
        case failed
    }

    /// Its place in ``BoardInfo/smmus``.
    package var index: Int
    package var path: String
    package var compatible: [String]
    /// `okay`, or what else `status` says: then there is a node and no SMMU.
    package var status: String
    package var registers: RangeInfo
    /// `dma-coherent`.
    package var coherent: Bool
    /// The quirk properties that the node has, by their names.
    package var quirks: [String]
    /// The node that `msi-parent` points at.
    package var msiParent: String?
    package var driver: Driver
    package var driverMessage: String?
    package var features: SMMUFeatures?
    /// Its interrupts, in the order of the node; each is in ``BoardInfo/interrupts`` too.
    package var interrupts: [InterruptInfo]

    package init(
        index: Int,
        path: String,
        compatible: [String] = [],
        status: String = "okay",
        registers: RangeInfo,
        coherent: Bool = false,
        quirks: [String] = [],
        msiParent: String? = nil,
        driver: Driver = .none,
        driverMessage: String? = nil,
        features: SMMUFeatures? = nil,
        interrupts: [InterruptInfo] = []
    ) {
        self.index = index
        self.path = path
        self.compatible = compatible
        self.status = status
        self.registers = registers
        self.coherent = coherent
        self.quirks = quirks
        self.msiParent = msiParent
        self.driver = driver
        self.driverMessage = driverMessage
        self.features = features
        self.interrupts = interrupts
    }
}

/// What an SMMU can do, as its identification registers say.
package struct SMMUFeatures: Codable, Sendable, Equatable {
    /// The architecture's version, from SMMU_AIDR: `3.1`.
    package var version: String?
    /// StreamID bits, SMMU_IDR1.SIDSIZE.
    package var sidBits: Int
    /// SubstreamID bits, SMMU_IDR1.SSIDSIZE; 0 is none.
    package var ssidBits: Int
    /// Output address bits, SMMU_IDR5.OAS.
    package var oasBits: Int
    /// Translation granules, in bytes, ascending.
    package var granules: [Int]
    package var stage1: Bool
    package var stage2: Bool
    /// Everything else by the names of the fields that say so: `MSI`, `ATS`, `PRI`, `COHACC`, `HTTU`.
    package var flags: [String]
    package var idRegisters: [WordInfo]

    package init(
        version: String? = nil,
        sidBits: Int,
        ssidBits: Int,
        oasBits: Int,
        granules: [Int],
        stage1: Bool,
        stage2: Bool,
        flags: [String] = [],
        idRegisters: [WordInfo] = []
    ) {
        self.version = version
        self.sidBits = sidBits
        self.ssidBits = ssidBits
        self.oasBits = oasBits
        self.granules = granules
        self.stage1 = stage1
        self.stage2 = stage2
        self.flags = flags
        self.idRegisters = idRegisters
    }
}

/// A named word.
package struct WordInfo: Codable, Sendable, Equatable {
    /// `SMMU_IDR0`.
    package var name: String
    package var value: Hex

    package init(name: String, value: Hex) {
        self.name = name
        self.value = value
    }
}

/// An interrupt line and what drives it.
package struct InterruptInfo: Codable, Sendable, Equatable {
    /// Its number, by which it can be subscribed to.
    package var line: Int
    /// What the device calls it: `eventq`, `gerror`, `priq`, `cmdq-sync`, `combined`.
    package var label: String
    /// The path of the node that drives it.
    package var device: String
    /// The path of the controller that it goes to.
    package var controller: String
    /// The interrupt specifier's cells.
    package var specifier: [UInt32]
    /// The INTID where the controller is a GIC: 32 + n for SPI n.
    package var intid: UInt32?
    /// `edge-rising`, `edge-falling`, `edge-both`, `level-high` or `level-low`, where the specifier says so.
    package var trigger: String?
    /// Edges so far.
    package var pulses: Size
    /// How often it went active so far.
    package var assertions: Size
    /// Whether a level holds it active now.
    package var asserted: Bool

    package init(
        line: Int,
        label: String,
        device: String,
        controller: String,
        specifier: [UInt32],
        intid: UInt32? = nil,
        trigger: String? = nil,
        pulses: Size = 0,
        assertions: Size = 0,
        asserted: Bool = false
    ) {
        self.line = line
        self.label = label
        self.device = device
        self.controller = controller
        self.specifier = specifier
        self.intid = intid
        self.trigger = trigger
        self.pulses = pulses
        self.assertions = assertions
        self.asserted = asserted
    }
}

/// RAM.
package struct MemoryRegionInfo: Codable, Sendable, Equatable {
    package var path: String
    package var range: RangeInfo
    /// Bytes of it that take up memory of the host, where known.
    package var resident: Size?

    package init(path: String, range: RangeInfo, resident: Size? = nil) {
        self.path = path
        self.range = range
        self.resident = resident
    }
}

/// A child of `/reserved-memory`.
package struct ReservedMemoryInfo: Codable, Sendable, Equatable {
    package var path: String
    /// Nil where the node has no `reg`.
    package var range: RangeInfo?
    /// `no-map`.
    package var noMap: Bool
    /// `iommu-addresses`: what each device has set aside of its I/O addresses.
    package var iommuAddresses: [ReservedIOVAInfo]

    package init(
        path: String,
        range: RangeInfo? = nil,
        noMap: Bool = false,
        iommuAddresses: [ReservedIOVAInfo] = []
    ) {
        self.path = path
        self.range = range
        self.noMap = noMap
        self.iommuAddresses = iommuAddresses
    }
}

/// One tuple of `iommu-addresses`.
package struct ReservedIOVAInfo: Codable, Sendable, Equatable {
    /// The device's path.
    package var device: String
    package var range: RangeInfo

    package init(device: String, range: RangeInfo) {
        self.device = device
        self.range = range
    }
}

/// An `arm,smmu-v3-pmcg` node.
package struct PMCGInfo: Codable, Sendable, Equatable {
    package var path: String
    /// The SMMU that it counts for; nil where it has none that is enabled.
    package var smmu: String?
    /// Page 0, then page 1 where it has one of its own.
    package var registers: [RangeInfo]
    package var status: String
    package var interrupts: [InterruptInfo]

    package init(
        path: String,
        smmu: String? = nil,
        registers: [RangeInfo],
        status: String = "okay",
        interrupts: [InterruptInfo] = []
    ) {
        self.path = path
        self.smmu = smmu
        self.registers = registers
        self.status = status
        self.interrupts = interrupts
    }
}

/// A PCIe host bridge.
package struct PCIeHostInfo: Codable, Sendable, Equatable {
    package var path: String
    package var compatible: [String]
    package var status: String
    /// The configuration space.
    package var ecam: RangeInfo?
    /// `linux,pci-domain`, or its place among the host bridges.
    package var segment: Int
    package var firstBus: Int
    package var lastBus: Int
    package var coherent: Bool
    package var windows: [PCIeWindowInfo]
    package var iommuMap: [PCIeMapInfo]
    package var iommuMapMask: Hex
    package var msiMap: [PCIeMapInfo]
    package var msiMapMask: Hex

    package init(
        path: String,
        compatible: [String] = [],
        status: String = "okay",
        ecam: RangeInfo? = nil,
        segment: Int,
        firstBus: Int,
        lastBus: Int,
        coherent: Bool = false,
        windows: [PCIeWindowInfo] = [],
        iommuMap: [PCIeMapInfo] = [],
        iommuMapMask: Hex = 0xffff,
        msiMap: [PCIeMapInfo] = [],
        msiMapMask: Hex = 0xffff
    ) {
        self.path = path
        self.compatible = compatible
        self.status = status
        self.ecam = ecam
        self.segment = segment
        self.firstBus = firstBus
        self.lastBus = lastBus
        self.coherent = coherent
        self.windows = windows
        self.iommuMap = iommuMap
        self.iommuMapMask = iommuMapMask
        self.msiMap = msiMap
        self.msiMapMask = msiMapMask
    }
}

/// One window of `ranges` of a PCIe host bridge.
package struct PCIeWindowInfo: Codable, Sendable, Equatable {
    package enum Kind: String, Codable, Sendable { case config, io, mem32, mem64 }

    package var kind: Kind
    package var prefetchable: Bool
    /// Where it starts on the PCI bus.
    package var pciAddress: Hex
    /// Where the CPU sees it.
    package var range: RangeInfo

    package init(kind: Kind, prefetchable: Bool = false, pciAddress: Hex, range: RangeInfo) {
        self.kind = kind
        self.prefetchable = prefetchable
        self.pciAddress = pciAddress
        self.range = range
    }
}

/// One tuple of `iommu-map` or `msi-map`.
package struct PCIeMapInfo: Codable, Sendable, Equatable {
    /// The first RequesterID.
    package var requesterBase: Hex
    /// The node that it points at.
    package var target: String
    /// The StreamID or DeviceID of the first RequesterID.
    package var outputBase: Hex
    /// How many RequesterIDs.
    package var length: Hex

    package init(requesterBase: Hex, target: String, outputBase: Hex, length: Hex) {
        self.requesterBase = requesterBase
        self.target = target
        self.outputBase = outputBase
        self.length = length
    }
}

/// A requester: something on whose behalf DMA can be issued.
package struct EndpointInfo: Codable, Sendable, Equatable {
    package enum Kind: String, Codable, Sendable { case platform, pcie }

    /// The node's path, or the host bridge's path with the function's address: `/pcie@40000000/0000:00:01.0`.
    package var name: String
    /// Shorter names that are its own alone: `dma@2b500000`, `0000:00:01.0`.
    package var aliases: [String]
    package var kind: Kind
    package var compatible: [String]
    package var status: String
    /// The path of the SMMUv3 before it; nil where there is none.
    package var smmu: String?
    /// The path of an IOMMU before it that is no SMMUv3.
    package var otherIOMMU: String?
    /// Its StreamIDs at ``smmu``.
    package var streams: [Hex]
    /// SubstreamID bits; 0 is none.
    package var substreamBits: Int
    package var coherent: Bool
    /// The domain that the daemon's driver has it in: `dma`, `identity` or `blocked`.
    package var domain: DomainKind?

    package init(
        name: String,
        aliases: [String] = [],
        kind: Kind,
        compatible: [String] = [],
        status: String = "okay",
        smmu: String? = nil,
        otherIOMMU: String? = nil,
        streams: [Hex] = [],
        substreamBits: Int = 0,
        coherent: Bool = false,
        domain: DomainKind? = nil
    ) {
        self.name = name
        self.aliases = aliases
        self.kind = kind
        self.compatible = compatible
        self.status = status
        self.smmu = smmu
        self.otherIOMMU = otherIOMMU
        self.streams = streams
        self.substreamBits = substreamBits
        self.coherent = coherent
        self.domain = domain
    }
}

/// What the driver lets an endpoint reach.
package enum DomainKind: String, Codable, Sendable, CaseIterable {
    /// What was mapped for it.
    case dma
    /// Physical memory, untranslated.
    case identity
    /// Nothing.
    case blocked
    /// What was mapped in a domain that somebody made.
    case unmanaged
}

/// Something in the tree that is odd and was not refused.
package struct BoardWarning: Codable, Sendable, Equatable {
    /// The node's path.
    package var path: String
    package var message: String

    package init(path: String, message: String) {
        self.path = path
        self.message = message
    }
}
