// Where a virtio function's structures stand (section 4.1.4), and the function that is built of them.

package import PCIFunction

/// Offsets in BAR 0, common configuration fields, and capabilities.
enum VirtioPCILayout {
    /// BAR 0 has a page for each structure.
    static let barByteCount: UInt64 = 0x4000
    static let common: UInt64 = 0x0000
    static let interruptStatus: UInt64 = 0x1000
    static let device: UInt64 = 0x2000
    static let notify: UInt64 = 0x3000
    static let pageByteCount: UInt64 = 0x1000
    /// notify_off_multiplier, in bytes: each queue has an address of its own.
    static let notifyMultiplier: UInt64 = 4

    /// virtio_pci_common_cfg: offsets of its fields.
    enum Common {
        static let deviceFeatureSelect = 0
        static let deviceFeature = 4
        static let driverFeatureSelect = 8
        static let driverFeature = 12
        static let configurationVector = 16
        static let queueCount = 18
        static let deviceStatus = 20
        static let configurationGeneration = 21
        static let queueSelect = 22
        static let queueSize = 24
        static let queueVector = 26
        static let queueEnable = 28
        static let queueNotifyOffset = 30
        static let queueDescriptors = 32
        static let queueDriver = 40
        static let queueDevice = 48
        static let queueNotifyData = 56
        static let queueReset = 58
        /// Up to and with queue_reset.
        static let byteCount = 60
    }

    /// cfg_type.
    enum Kind: UInt8 {
        case common = 1
        case notify = 2
        case interruptStatus = 3
        case device = 4
        case access = 5
    }

    /// struct virtio_pci_cap from its length byte on; `extra` follows it.
    static func capability(_ kind: Kind, offset: UInt64, byteCount: UInt64, extra: [UInt8] = []) -> [UInt8] {
        func word(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
        // cap_len, cfg_type, bar, id, two bytes of padding, offset, length.
        return [UInt8(16 + extra.count), kind.rawValue, 0, 0, 0, 0] + word(offset) + word(byteCount) + extra
    }

    /// The function's description.
    static func description(_ device: any VirtioDevice, _ options: VirtioPCIOptions) -> PCIFunctionDescription
    {
        let type = device.type.rawValue
        let identity = PCIIdentity(
            vendorID: 0x1AF4,
            deviceID: 0x1040 &+ type,
            subsystemVendorID: 0x1AF4,
            subsystemID: 0x1100,
            classCode: classCode(device.type),
            revisionID: 1
        )
        var bars = [PCIBAR(index: 0, byteCount: barByteCount, space: options.barSpace)]
        var capabilities: [PCICapability] = []
        let queueCount = device.queueSizesMax.count
        if options.offersMSIX {
            let tableBAR = options.barSpace == .memory64 ? 2 : 1
            let vectorCount = queueCount + 1
            let tableByteCount = UInt32(vectorCount * 16)
            let pendingByteCount = UInt64((vectorCount + 63) / 64 * 8)
            let byteCount = powerOfTwo(atLeast: max(0x1000, UInt64(tableByteCount) + pendingByteCount))
            bars.append(PCIBAR(index: tableBAR, byteCount: byteCount))
            let layout = PCIMSIXLayout(
                vectorCount: vectorCount,
                tableBAR: tableBAR,
                tableOffset: 0,
                pendingBAR: tableBAR,
                pendingOffset: tableByteCount
            )
            capabilities.append(.msix(layout))
        }
        capabilities += structures(device, queueCount)
        capabilities += [.powerManagement, .express(options.expressKind)] + options.extendedCapabilities
        return PCIFunctionDescription(
            identity: identity,
            bars: bars,
            capabilities: capabilities,
            isMultiFunction: options.isMultiFunction,
            notificationAddresses: (0..<UInt64(queueCount)).map { queue in
                // Without VIRTIO_F_NOTIFICATION_DATA a driver writes the queue's number, of 16 bits, which the address
                // says already.
                PCINotificationAddress(barIndex: 0, offset: notify + queue * notifyMultiplier, byteCount: 2)
            }
        )
    }

    private static func structures(_ device: any VirtioDevice, _ queueCount: Int) -> [PCICapability] {
        let notifyByteCount = UInt64(queueCount) * notifyMultiplier
        var result: [PCICapability] = [
            .vendor(capability(.common, offset: common, byteCount: UInt64(Common.byteCount))),
            .vendor(
                capability(
                    .notify,
                    offset: notify,
                    byteCount: notifyByteCount,
                    extra: [UInt8(notifyMultiplier), 0, 0, 0]
                )
            ),
            .vendor(capability(.interruptStatus, offset: interruptStatus, byteCount: 1)),
        ]
        let configurationByteCount = device.configuration.count
        if configurationByteCount > 0 {
            let byteCount = UInt64(configurationByteCount)
            result.append(.vendor(capability(.device, offset: Self.device, byteCount: byteCount)))
        }
        // VIRTIO_PCI_CAP_PCI_CFG: bar, offset, length and the data are software's to write.
        let access = capability(.access, offset: 0, byteCount: 0, extra: [0, 0, 0, 0])
        let writable: [UInt8] =
            [0, 0, 0xFF, 0, 0, 0] + [UInt8](repeating: 0xFF, count: 4 + 4 + 4)
        result.append(.vendor(access, writable: writable, isLive: true))
        return result
    }

    private static func classCode(_ type: VirtioDeviceType) -> UInt32 {
        switch type {
        // Ethernet controller, SCSI-like mass storage, other communication device, other system peripheral.
        case .network: 0x020000
        case .block: 0x018000
        case .console: 0x078000
        default: 0x088000
        }
    }

    private static func powerOfTwo(atLeast value: UInt64) -> UInt64 {
        var result: UInt64 = 1
        while result < value { result <<= 1 }
        return result
    }
}

/// What of a virtio function can be chosen.
package struct VirtioPCIOptions: Sendable {
    /// Whether the function has an MSI-X table: a vector for configuration changes, and one for each queue.
    package var offersMSIX: Bool
    /// Where BAR 0, the registers, may be put.
    package var barSpace: PCIBAR.Space
    package var expressKind: PCIExpressKind
    /// ATS, PRI, PASID or ACS: what the function shows of them in configuration space.
    package var extendedCapabilities: [PCICapability]
    package var isMultiFunction: Bool

    package init(
        offersMSIX: Bool = true,
        barSpace: PCIBAR.Space = .memory32,
        expressKind: PCIExpressKind = .endpoint,
        extendedCapabilities: [PCICapability] = [],
        isMultiFunction: Bool = false
    ) {
        self.offersMSIX = offersMSIX
        self.barSpace = barSpace
        self.expressKind = expressKind
        self.extendedCapabilities = extendedCapabilities
        self.isMultiFunction = isMultiFunction
    }
}
