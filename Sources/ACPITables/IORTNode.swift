// The nodes of an IORT as typed values. Nothing here decides anything.

/// The Type of a node (DEN0049, table of node types).
package struct IORTNodeType: RawRepresentable, Hashable, Sendable {
    package let rawValue: UInt8

    package init(rawValue: UInt8) { self.rawValue = rawValue }

    package static let itsGroup = Self(rawValue: 0)
    package static let namedComponent = Self(rawValue: 1)
    package static let rootComplex = Self(rawValue: 2)
    /// An SMMUv1 or SMMUv2.
    package static let smmu = Self(rawValue: 3)
    package static let smmuV3 = Self(rawValue: 4)
    /// A performance monitor counter group.
    package static let pmcg = Self(rawValue: 5)
    /// Reserved memory ranges.
    package static let rmr = Self(rawValue: 6)

    /// The name in messages.
    package var name: String {
        switch self {
        case .itsGroup: "ITS group"
        case .namedComponent: "named component"
        case .rootComplex: "root complex"
        case .smmu: "SMMUv1 or v2"
        case .smmuV3: "SMMUv3"
        case .pmcg: "PMCG"
        case .rmr: "RMR"
        default: "type \(rawValue)"
        }
    }
}

/// One node.
package struct IORTNode: Equatable, Sendable {
    /// Where it starts, in bytes from the start of the table: what references name it by.
    package let offset: Int
    package let type: IORTNodeType
    /// Length in bytes.
    package let byteCount: Int
    /// Revision of the node's format.
    package let revision: UInt8
    /// Identifier; reserved before revision 3 of the table.
    package let identifier: UInt32
    /// The ID mappings in the order of the table.
    package let mappings: [IORTMapping]
    package let content: Content

    package enum Content: Equatable, Sendable {
        case itsGroup(identifiers: [UInt32])
        case namedComponent(IORTNamedComponent)
        case rootComplex(IORTRootComplex)
        /// Base Address of an SMMUv1 or v2, of which we build nothing.
        case smmu(base: UInt64)
        case smmuV3(IORTSMMUv3)
        case pmcg(IORTPMCG)
        case rmr(IORTReservedMemoryRange)
        /// A type that we do not know.
        case unknown
    }

    /// `IORT node 0x48 (SMMUv3)`: what messages call it.
    package var label: String { "IORT node \(hex(offset)) (\(type.name))" }
}

/// One ID mapping: 20 bytes.
package struct IORTMapping: Equatable, Sendable {
    package static let byteCount = 20

    /// Input base: the first ID that comes in; without meaning where ``isSingle``.
    package let inputBase: UInt32
    /// Number of IDs minus one.
    ///
    /// Some firmware writes the number itself; Linux and we allow for it where two mappings touch.
    package let countMinusOne: UInt32
    /// Output base: the ID that ``inputBase`` turns into.
    package let outputBase: UInt32
    /// Output Reference: the node that takes it, by its offset in the table.
    package let outputReference: UInt32
    package let flags: UInt32

    package init(
        inputBase: UInt32,
        countMinusOne: UInt32,
        outputBase: UInt32,
        outputReference: UInt32,
        flags: UInt32
    ) {
        self.inputBase = inputBase
        self.countMinusOne = countMinusOne
        self.outputBase = outputBase
        self.outputReference = outputReference
        self.flags = flags
    }

    /// Single mapping (flags bit 0): one ID, whatever comes in.
    package var isSingle: Bool { flags & 1 != 0 }
}

/// Memory access properties: 8 bytes.
package struct IORTMemoryAccess: Equatable, Sendable {
    /// CCA: 1 where accesses are coherent with the CPU caches, 0 where not.
    package let cacheCoherency: UInt32
    /// Allocation hints.
    package let hints: UInt8
    /// Memory access flags: CPM (bit 0), DACS (bit 1), CANWBS (bit 2).
    package let flags: UInt8

    package var isCoherent: Bool { cacheCoherency & 1 != 0 }
}

/// A device that the ACPI namespace knows by name.
package struct IORTNamedComponent: Equatable, Sendable {
    /// Node flags: stall supported (bit 0), Substream width (bits 5:1).
    package let flags: UInt32
    package let memoryAccess: IORTMemoryAccess
    /// Device memory address size limit: how many bits of address the device drives.
    package let addressSizeLimit: UInt8
    /// Device object name: the full path in the namespace, `\_SB_.DMA0`.
    package let objectName: String

    /// Whether its transactions may stall on a fault.
    package var canStall: Bool { flags & 1 != 0 }
    /// How many bits of SubstreamID it drives.
    package var substreamBits: UInt32 { (flags >> 1) & 0x1F }
}

/// A PCIe root complex.
package struct IORTRootComplex: Equatable, Sendable {
    package let memoryAccess: IORTMemoryAccess
    /// ATS attribute: ATS (bit 0), PRI (bit 1), PASID forwarding (bit 2).
    package let atsAttribute: UInt32
    /// PCI Segment number.
    package let segment: UInt32
    /// Memory address size limit in bits; nil before revision 1 of the node.
    package let addressSizeLimit: UInt8?
    /// PASID capabilities (bits 4:0: the maximum width); 0 before revision 4 of the node.
    package let pasidCapabilities: UInt16

    /// Whether it passes ATS on.
    package var supportsATS: Bool { atsAttribute & 1 != 0 }
}

/// An SMMUv3.
package struct IORTSMMUv3: Equatable, Sendable {
    /// Model.
    package struct Model: RawRepresentable, Hashable, Sendable {
        package let rawValue: UInt32

        package init(rawValue: UInt32) { self.rawValue = rawValue }

        package static let generic = Self(rawValue: 0)
        /// HiSilicon Hi161x: software may not issue CMD_PREFETCH.
        package static let hisiliconHi161x = Self(rawValue: 1)
        /// Cavium CN99xx: page 1 is missing, one interrupt for all.
        package static let caviumCN99xx = Self(rawValue: 2)
    }

    package let base: UInt64
    /// COHACC override (bit 0), HTTU override (bits 2:1), proximity domain valid (bit 3), DeviceID valid (bit 4).
    package let flags: UInt32
    /// VATOS address; 0 where there is none.
    package let vatosAddress: UInt64
    package let model: Model
    /// GSIV of the event queue's interrupt; 0 where it is none, as for the others.
    package let eventGSIV: UInt32
    package let priGSIV: UInt32
    package let globalErrorGSIV: UInt32
    package let syncGSIV: UInt32
    package let proximityDomain: UInt32
    /// DeviceID mapping index: which of the mappings is that of the SMMU's own MSIs.
    package let deviceIDMappingIndex: UInt32

    /// Whether its own accesses are coherent: the override says so for IDR0.COHACC, whatever that reads as.
    package var isCoherent: Bool { flags & 1 != 0 }
    /// HTTU override: 0 none, 1 the Access flag, 2 dirty state too.
    package var httuOverride: UInt8 { UInt8(truncatingIfNeeded: (flags >> 1) & 3) }
    /// Whether ``proximityDomain`` counts.
    package var isProximityDomainValid: Bool { flags & 1 << 3 != 0 }
    /// Whether ``deviceIDMappingIndex`` counts, from revision 5 of the node on.
    package var isDeviceIDMappingIndexValid: Bool { flags & 1 << 4 != 0 }
    /// The four GSIVs in the order of the table.
    package var gsivs: [UInt32] { [eventGSIV, priGSIV, globalErrorGSIV, syncGSIV] }
}

/// A performance monitor counter group.
package struct IORTPMCG: Equatable, Sendable {
    /// Page 0 base address.
    package let page0: UInt64
    /// Overflow interrupt GSIV; 0 where it is none.
    package let overflowGSIV: UInt32
    /// Node reference: the node whose events are counted, by its offset in the table.
    package let nodeReference: UInt32
    /// Page 1 base address; nil before revision 1 of the node, or where it is 0.
    package let page1: UInt64?
}

/// Memory that devices use before the operating system runs, and go on to use.
package struct IORTReservedMemoryRange: Equatable, Sendable {
    /// One memory range descriptor: 20 bytes.
    package struct Descriptor: Equatable, Sendable {
        package static let byteCount = 20

        package let base: UInt64
        package let byteCount: UInt64
    }

    /// Remapping permitted (bit 0), access privileged (bit 1), access attributes (bits 9:2).
    package let flags: UInt32
    package let descriptors: [Descriptor]

    /// Whether software may move the range elsewhere.
    package var isRemappingPermitted: Bool { flags & 1 != 0 }
    package var isPrivileged: Bool { flags & 2 != 0 }
    /// Access attributes: 0 to 3 are device memory, 4 is Non-cacheable, 5 is Write-Back.
    package var accessAttributes: UInt32 { (flags >> 2) & 0xFF }
}
