// What a function is built as: identity, BARs, capabilities.

/// Who a function says it is (PCI Local Bus Specification, configuration header).
package struct PCIIdentity: Equatable, Sendable {
    package var vendorID: UInt16
    package var deviceID: UInt16
    package var subsystemVendorID: UInt16
    package var subsystemID: UInt16
    /// Base class in bits 23:16, sub-class in 15:8, programming interface in 7:0.
    package var classCode: UInt32
    package var revisionID: UInt8

    package init(
        vendorID: UInt16,
        deviceID: UInt16,
        subsystemVendorID: UInt16 = 0,
        subsystemID: UInt16 = 0,
        classCode: UInt32,
        revisionID: UInt8 = 0
    ) {
        self.vendorID = vendorID
        self.deviceID = deviceID
        self.subsystemVendorID = subsystemVendorID
        self.subsystemID = subsystemID
        self.classCode = classCode
        self.revisionID = revisionID
    }
}

/// One base address register; a 64-bit one takes its index and the next.
package struct PCIBAR: Equatable, Sendable {
    package enum Space: Equatable, Sendable {
        case memory32
        case memory64
    }

    /// 0...5.
    package var index: Int
    /// A power of two, at least 16.
    package var byteCount: UInt64
    package var space: Space
    package var isPrefetchable: Bool

    package init(
        index: Int,
        byteCount: UInt64,
        space: Space = .memory32,
        isPrefetchable: Bool = false
    ) {
        precondition(byteCount >= 16 && byteCount & (byteCount - 1) == 0, "a BAR's size is a power of two")
        precondition((0...(space == .memory64 ? 4 : 5)).contains(index), "a type 0 header has 6 BARs")
        precondition(space == .memory64 || byteCount <= 1 << 31, "a 32-bit BAR has at most 2 GiB")
        self.index = index
        self.byteCount = byteCount
        self.space = space
        self.isPrefetchable = isPrefetchable
    }
}

/// Where a write says all by coming, whatever is written: whoever carries the function may have an event signalled for
/// it instead (KVM's ioeventfd), and writes any value then.
///
/// Virtio's notification addresses are such; doorbells that take a value are not.
package struct PCINotificationAddress: Equatable, Sendable {
    package var barIndex: Int
    /// In the BAR, in bytes.
    package var offset: UInt64
    /// How wide the writes are: 1, 2, 4 or 8 bytes.
    ///
    /// Wider and narrower ones are writes as any others.
    package var byteCount: Int

    package init(barIndex: Int, offset: UInt64, byteCount: Int) {
        self.barIndex = barIndex
        self.offset = offset
        self.byteCount = byteCount
    }
}

/// Where a function's MSI-X table and pending bits stand.
package struct PCIMSIXLayout: Equatable, Sendable {
    /// 1...2048.
    package var vectorCount: Int
    package var tableBAR: Int
    /// In bytes, a multiple of 8.
    package var tableOffset: UInt32
    package var pendingBAR: Int
    package var pendingOffset: UInt32

    package init(
        vectorCount: Int,
        tableBAR: Int,
        tableOffset: UInt32,
        pendingBAR: Int,
        pendingOffset: UInt32
    ) {
        self.vectorCount = vectorCount
        self.tableBAR = tableBAR
        self.tableOffset = tableOffset
        self.pendingBAR = pendingBAR
        self.pendingOffset = pendingOffset
    }
}

/// A capability that a function has, in the order of its list.
package enum PCICapability: Equatable, Sendable {
    /// D0 and D3hot, without a reset in between.
    case powerManagement
    /// MSI with 64-bit addresses and mask bits for each vector; 1, 2, 4, 8, 16 or 32 vectors.
    case msi(vectorCount: Int)
    case msix(PCIMSIXLayout)
    /// PCI Express, with function-level reset.
    case express(PCIExpressKind)
    /// A vendor's own (ID 0x09), from its length byte on; `writable` has 1s where software may write.
    ///
    /// Where `isLive`, reads of it are the model's to answer and writes are told it
    /// (``PCIFunctionModel/readLiveCapability(at:byteCount:)``).
    case vendor([UInt8], writable: [UInt8] = [], isLive: Bool = false)
    /// Extended capability 0x000F. The smallest translation unit is set by software.
    case ats(invalidateQueueDepth: UInt8)
    /// Extended capability 0x0013.
    case pri(outstandingRequests: UInt32)
    /// Extended capability 0x001B, 1 to 20 bits of PASID.
    case pasid(bits: UInt8)
    /// Extended capability 0x000D, with those of source validation, request and completion redirect and upstream
    /// forwarding that `bits` (ACS Capability register) names.
    case acs(bits: UInt16)
}

/// Device/Port Type of the PCI Express Capabilities register.
package enum PCIExpressKind: UInt8, Equatable, Sendable {
    case endpoint = 0
    case rootPort = 4
    case rootComplexIntegratedEndpoint = 9
}

/// All that a function of type 0 is built as.
package struct PCIFunctionDescription: Equatable, Sendable {
    package var identity: PCIIdentity
    package var bars: [PCIBAR]
    package var capabilities: [PCICapability]
    /// 0: none; 1 to 4: INTA to INTD.
    package var interruptPin: UInt8
    /// Whether other functions stand beside it in its device (Header Type, bit 7).
    package var isMultiFunction: Bool
    /// Those that matter most first: there may not be events for all.
    package var notificationAddresses: [PCINotificationAddress]

    package init(
        identity: PCIIdentity,
        bars: [PCIBAR] = [],
        capabilities: [PCICapability] = [],
        interruptPin: UInt8 = 1,
        isMultiFunction: Bool = false,
        notificationAddresses: [PCINotificationAddress] = []
    ) {
        self.identity = identity
        self.bars = bars
        self.capabilities = capabilities
        self.interruptPin = interruptPin
        self.isMultiFunction = isMultiFunction
        self.notificationAddresses = notificationAddresses
    }
}
