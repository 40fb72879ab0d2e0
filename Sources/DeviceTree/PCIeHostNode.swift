// PCIe host bridges, their windows and the maps from requesters to StreamIDs and DeviceIDs.

package import AddressSpace
package import DeviceModel

/// One window of a host bridge: CPU addresses that turn into PCI addresses.
package struct PCIWindow: Equatable, Sendable {
    /// The `ss` bits of `phys.hi`.
    package enum Space: String, Sendable {
        case configuration
        case io
        case memory32
        case memory64
    }

    package let space: Space
    package let isPrefetchable: Bool
    /// Where it starts on the PCI side.
    package let pciAddress: UInt64
    /// Where the CPU sees it.
    package let cpuRange: AddressRange

    package init(space: Space, isPrefetchable: Bool, pciAddress: UInt64, cpuRange: AddressRange) {
        self.space = space
        self.isPrefetchable = isPrefetchable
        self.pciAddress = pciAddress
        self.cpuRange = cpuRange
    }
}

/// One entry of `dma-ranges` of a host bridge: PCI addresses of a device that turn into addresses of memory.
package struct PCIInboundWindow: Equatable, Sendable {
    package let pciRange: AddressRange
    package let cpuAddress: UInt64

    package init(pciRange: AddressRange, cpuAddress: UInt64) {
        self.pciRange = pciRange
        self.cpuAddress = cpuAddress
    }
}

/// One entry of `iommu-map` or `msi-map`: a range of RequesterIDs and what they turn into.
package struct RequesterMapEntry: Equatable, Sendable {
    /// The first RequesterID.
    package let requesterBase: UInt32
    /// The IOMMU or MSI controller.
    package let targetPath: String
    /// What it is, for `iommu-map`; its StreamID is the one of ``requesterBase``.
    ///
    /// Nil for `msi-map`.
    package let iommuKind: IOMMUReference.Kind?
    /// What ``requesterBase`` turns into: a StreamID or a DeviceID.
    package let outputBase: UInt32
    /// How many RequesterIDs.
    package let length: UInt32

    package init(
        requesterBase: UInt32,
        targetPath: String,
        iommuKind: IOMMUReference.Kind? = nil,
        outputBase: UInt32,
        length: UInt32
    ) {
        self.requesterBase = requesterBase
        self.targetPath = targetPath
        self.iommuKind = iommuKind
        self.outputBase = outputBase
        self.length = length
    }

    /// What a RequesterID turns into, if this entry covers it.
    package func output(for requesterID: UInt32) -> UInt32? {
        guard requesterID >= requesterBase, requesterID - requesterBase < length else { return nil }
        return outputBase &+ (requesterID - requesterBase)
    }
}

/// A node below a host bridge: a function that the tree has something to say of.
package struct PCIChildNode: Equatable, Sendable {
    package let path: String
    package let compatible: [String]
    /// Device and function: device in bits 7:3, function in bits 2:0.
    package let deviceFunction: UInt8
    /// The RequesterID, bus in bits 15:8; nil behind a bridge whose bus number is given nowhere.
    package let requesterID: UInt16?
    /// The path of the bridge or host above it.
    package let parentPath: String
    /// Its own properties, for whoever knows its binding.
    package let properties: [DeviceTreeProperty]
    /// Which IOVAs are set apart for it.
    package let reservedIOVAs: [ReservedIOVA]

    package init(
        path: String,
        compatible: [String],
        deviceFunction: UInt8,
        requesterID: UInt16? = nil,
        parentPath: String,
        properties: [DeviceTreeProperty],
        reservedIOVAs: [ReservedIOVA]
    ) {
        self.path = path
        self.compatible = compatible
        self.deviceFunction = deviceFunction
        self.requesterID = requesterID
        self.parentPath = parentPath
        self.properties = properties
        self.reservedIOVAs = reservedIOVAs
    }
}

/// An interrupt pin behind a host bridge.
package struct PCIInterruptRoute: Equatable, Sendable {
    /// The RequesterID under ``requesterMask``.
    package let requesterID: UInt16
    package let requesterMask: UInt16
    /// 1 for INTA to 4 for INTD; under ``pinMask``.
    package let pin: UInt32
    package let pinMask: UInt32
    package let identity: InterruptIdentity

    package init(
        requesterID: UInt16,
        requesterMask: UInt16,
        pin: UInt32,
        pinMask: UInt32,
        identity: InterruptIdentity
    ) {
        self.requesterID = requesterID
        self.requesterMask = requesterMask
        self.pin = pin
        self.pinMask = pinMask
        self.identity = identity
    }
}

/// IOVAs that are set apart for some functions of a host.
package struct RequesterReservation: Equatable, Sendable {
    package let requesters: ClosedRange<UInt16>
    package let iova: ReservedIOVA

    package init(requesters: ClosedRange<UInt16>, iova: ReservedIOVA) {
        self.requesters = requesters
        self.iova = iova
    }
}

/// A PCIe host bridge: a source of endpoints, one for each function behind it.
package struct PCIeHostNode: Equatable, Sendable {
    package let path: String
    package let compatible: [String]
    /// All of `reg`.
    package let registers: [RegisterRegion]
    /// The ECAM window: 1 MiB for each bus of ``busRange``, the first bus first.
    ///
    /// Nil where the binding has none (DesignWare hosts have a configuration window that the driver moves).
    package let ecam: AddressRange?
    /// `bus-range`, shortened to what the ECAM window holds.
    package let busRange: ClosedRange<UInt8>
    /// `ranges`.
    package let windows: [PCIWindow]
    /// `dma-ranges`; nil where it is absent: no limit.
    package let inboundWindows: [PCIInboundWindow]?
    /// `iommu-map`, including entries to IOMMUs of other kinds.
    ///
    /// A RequesterID that no entry covers has no IOMMU.
    package let iommuMap: [RequesterMapEntry]
    /// `iommu-map-mask`.
    package let iommuMapMask: UInt32
    /// `msi-map`.
    package let msiMap: [RequesterMapEntry]
    /// `msi-map-mask`.
    package let msiMapMask: UInt32
    /// `msi-parent`: its DeviceIDs are the RequesterIDs.
    ///
    /// Of meaning where there is no `msi-map`.
    package let msiParent: MSIParent?
    /// The host's own interrupts.
    package let interrupts: [NamedInterrupt]
    /// `interrupt-map`: where the pins INTA to INTD go.
    package let interruptRoutes: [PCIInterruptRoute]
    /// Nodes below it, at any depth.
    package let children: [PCIChildNode]
    /// `dma-coherent` here or on a bus above.
    package let isDMACoherent: Bool
    /// `ats-supported`: it passes ATS on.
    package let supportsATS: Bool
    /// `linux,pci-domain`, or the segment of an IORT's root complex.
    package let domain: UInt32?
    /// IOVAs that an IORT sets apart for functions by their RequesterIDs.
    package let functionReservations: [RequesterReservation]

    package init(
        path: String,
        compatible: [String],
        registers: [RegisterRegion],
        ecam: AddressRange? = nil,
        busRange: ClosedRange<UInt8>,
        windows: [PCIWindow],
        inboundWindows: [PCIInboundWindow]? = nil,
        iommuMap: [RequesterMapEntry],
        iommuMapMask: UInt32,
        msiMap: [RequesterMapEntry],
        msiMapMask: UInt32,
        msiParent: MSIParent? = nil,
        interrupts: [NamedInterrupt],
        interruptRoutes: [PCIInterruptRoute],
        children: [PCIChildNode],
        isDMACoherent: Bool,
        supportsATS: Bool,
        domain: UInt32? = nil,
        functionReservations: [RequesterReservation] = []
    ) {
        self.path = path
        self.compatible = compatible
        self.registers = registers
        self.ecam = ecam
        self.busRange = busRange
        self.windows = windows
        self.inboundWindows = inboundWindows
        self.iommuMap = iommuMap
        self.iommuMapMask = iommuMapMask
        self.msiMap = msiMap
        self.msiMapMask = msiMapMask
        self.msiParent = msiParent
        self.interrupts = interrupts
        self.interruptRoutes = interruptRoutes
        self.children = children
        self.isDMACoherent = isDMACoherent
        self.supportsATS = supportsATS
        self.domain = domain
        self.functionReservations = functionReservations
    }

    /// The IOVAs that an IORT sets apart for a function.
    package func reservedIOVAs(forRequester requesterID: UInt16) -> [ReservedIOVA] {
        functionReservations.filter { $0.requesters.contains(requesterID) }.map(\.iova)
    }

    /// The IOMMU of a function and its StreamID there; nil where the tree gives it none.
    package func iommu(forRequester requesterID: UInt16) -> IOMMUReference? {
        let masked = UInt32(requesterID) & iommuMapMask
        for entry in iommuMap {
            guard let output = entry.output(for: masked), let kind = entry.iommuKind else { continue }
            let streamID = StreamID(output)
            let own: IOMMUReference.Kind =
                switch kind {
                case .smmuv3: .smmuv3(streamID)
                case .disabledSMMUv3: .disabledSMMUv3(streamID)
                case .other: kind
                }
            return IOMMUReference(path: entry.targetPath, kind: own, specifier: [output])
        }
        return nil
    }

    /// The MSI controller of a function and its DeviceID there; nil where the tree gives it none.
    package func msiController(forRequester requesterID: UInt16) -> (path: String, deviceID: UInt32)? {
        let masked = UInt32(requesterID) & msiMapMask
        for entry in msiMap {
            if let output = entry.output(for: masked) { return (entry.targetPath, output) }
        }
        guard msiMap.isEmpty, let msiParent else { return nil }
        return (msiParent.controllerPath, UInt32(requesterID))
    }

    /// Where a pin of a function directly on the host's first bus goes.
    package func interrupt(forRequester requesterID: UInt16, pin: UInt32) -> InterruptIdentity? {
        interruptRoutes.first {
            requesterID & $0.requesterMask == $0.requesterID && pin & $0.pinMask == $0.pin
        }?.identity
    }
}
