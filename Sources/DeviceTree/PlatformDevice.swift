// Devices on the bus, and the IOMMUs that their DMA goes through.

package import AddressSpace

/// One entry of `iommus`: an IOMMU and what it knows the device by.
package struct IOMMUReference: Equatable, Sendable {
    package enum Kind: Equatable, Sendable {
        /// An SMMUv3 that is there: DMA with this StreamID is translated by it.
        case smmuv3(StreamID)
        /// An SMMUv3 that is disabled: DMA goes untranslated.
        case disabledSMMUv3(StreamID)
        /// An IOMMU of another kind, with its `compatible`: DMA goes untranslated, as far as we are
        /// concerned.
        case other(String)
    }

    /// The IOMMU.
    package let path: String
    package let kind: Kind
    /// The cells behind the phandle, as the IOMMU's binding defines them.
    package let specifier: [UInt32]

    package init(path: String, kind: Kind, specifier: [UInt32]) {
        self.path = path
        self.kind = kind
        self.specifier = specifier
    }

    /// The StreamID where the DMA is translated by an SMMUv3; nil otherwise.
    package var streamID: StreamID? {
        if case .smmuv3(let streamID) = kind { streamID } else { nil }
    }
}

/// IOVAs of a device's address space that its driver must not allocate.
///
/// From `memory-region` of the device together with `iommu-addresses` of the region: both links are needed. Or from an
/// IORT: an RMR, or what a device cannot drive.
package struct ReservedIOVA: Equatable, Sendable {
    package enum Kind: String, Sendable {
        /// Neither mapped nor allocated.
        case reserved
        /// Mapped to the same physical addresses before the device is attached, for it uses them already.
        case direct
        /// As ``direct``, and software that takes the device over may move the range (an IORT's RMR with remapping
        /// permitted).
        case directRelaxable = "direct-relaxable"
    }

    package let range: AddressRange
    package let kind: Kind
    /// The node under `/reserved-memory`.
    package let regionPath: String

    package init(range: AddressRange, kind: Kind, regionPath: String) {
        self.range = range
        self.kind = kind
        self.regionPath = regionPath
    }
}

/// A device that is neither memory, SMMU, PMCG, PCIe host nor interrupt controller.
package struct PlatformDevice: Equatable, Sendable {
    package let path: String
    package let compatible: [String]
    /// `reg`, where the CPU sees it; empty for a device without registers of its own.
    package let registers: [RegisterRegion]
    package let interrupts: [NamedInterrupt]
    /// `iommus`: every entry; one IOMMU may stand there with several StreamIDs.
    ///
    /// Empty: plain memory.
    package let iommus: [IOMMUReference]
    /// `dma-coherent` here or on a bus above.
    package let isDMACoherent: Bool
    /// `pasid-num-bits`: how many bits of SubstreamID it drives; 0 for none.
    package let pasidBits: UInt32
    /// `dma-can-stall`: it survives that its transactions stall on a fault.
    package let canStall: Bool
    /// `memory-region`: paths of reserved memory that it uses.
    package let memoryRegions: [String]
    /// Which IOVAs are set apart for it.
    package let reservedIOVAs: [ReservedIOVA]
    /// `msi-parent`.
    package let msiParent: MSIParent?

    package init(
        path: String,
        compatible: [String],
        registers: [RegisterRegion],
        interrupts: [NamedInterrupt],
        iommus: [IOMMUReference],
        isDMACoherent: Bool,
        pasidBits: UInt32,
        canStall: Bool,
        memoryRegions: [String],
        reservedIOVAs: [ReservedIOVA],
        msiParent: MSIParent? = nil
    ) {
        self.path = path
        self.compatible = compatible
        self.registers = registers
        self.interrupts = interrupts
        self.iommus = iommus
        self.isDMACoherent = isDMACoherent
        self.pasidBits = pasidBits
        self.canStall = canStall
        self.memoryRegions = memoryRegions
        self.reservedIOVAs = reservedIOVAs
        self.msiParent = msiParent
    }
}
