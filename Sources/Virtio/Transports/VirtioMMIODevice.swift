// Virtio over MMIO (section 4.2): the register window of version 2.

package import DeviceModel
import Synchronization
package import SystemPackage

/// A virtio device as a window of registers of 0x200 bytes with a level interrupt, as `virtio,mmio` nodes have it.
///
/// The device's threads end with this, or with ``shutdown()``.
package final class VirtioMMIODevice: RegisterTarget, VirtioTransport {
    package let device: any VirtioDevice
    /// How many bytes the window has.
    package static let windowByteCount: UInt64 = 0x200
    private let core: VirtioCore
    private let input: InterruptLevelInput

    /// Makes the window of a device, and starts its threads.
    ///
    /// - Parameters:
    ///   - line: The node's interrupt.
    ///   - makePort: A new view of memory with the device's identity, for one user.
    /// - Throws: The system's error where there are no more threads or descriptors to be had.
    package init(
        device: any VirtioDevice,
        line: InterruptLine,
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(Errno) {
        self.device = device
        input = InterruptLevelInput(of: line)
        core = try VirtioCore(device)
        try core.start(self, makePort: makePort)
    }

    deinit { core.shutdown() }

    package func shutdown() { core.shutdown() }
    package var lastError: VirtqueueError? { core.lastError }

    /// Resets the device, as the reset of its bus does; when this returns, it issues no more DMA of before.
    package func reset() { core.resetAndWait() }

    /// Offsets of the registers.
    enum Register {
        static let magicValue: UInt64 = 0x000
        static let version: UInt64 = 0x004
        static let deviceID: UInt64 = 0x008
        static let vendorID: UInt64 = 0x00C
        static let deviceFeatures: UInt64 = 0x010
        static let deviceFeaturesSelect: UInt64 = 0x014
        static let driverFeatures: UInt64 = 0x020
        static let driverFeaturesSelect: UInt64 = 0x024
        static let queueSelect: UInt64 = 0x030
        static let queueSizeMax: UInt64 = 0x034
        static let queueSize: UInt64 = 0x038
        static let queueReady: UInt64 = 0x044
        static let queueNotify: UInt64 = 0x050
        static let interruptStatus: UInt64 = 0x060
        static let interruptAcknowledge: UInt64 = 0x064
        static let status: UInt64 = 0x070
        static let queueDescriptorsLow: UInt64 = 0x080
        static let queueDescriptorsHigh: UInt64 = 0x084
        static let queueDriverLow: UInt64 = 0x090
        static let queueDriverHigh: UInt64 = 0x094
        static let queueDeviceLow: UInt64 = 0x0A0
        static let queueDeviceHigh: UInt64 = 0x0A4
        static let sharedMemoryLengthLow: UInt64 = 0x0B0
        static let sharedMemoryBaseHigh: UInt64 = 0x0BC
        static let queueReset: UInt64 = 0x0C0
        static let configurationGeneration: UInt64 = 0x0FC
        static let configuration: UInt64 = 0x100
    }

    // MARK: Reads

    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try Self.check(offset, width)
        guard offset < Register.configuration else {
            return device.configuration.littleEndian(at: Int(offset - Register.configuration), width)
        }
        return UInt64(register(offset))
    }

    /// Registers take aligned accesses of 32 bits; the configuration takes any aligned one.
    private static func check(_ offset: UInt64, _ width: AccessWidth) throws(RegisterAccessError) {
        guard offset < windowByteCount else { throw .noSuchRegister }
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        guard width == .word || offset >= Register.configuration else { throw .unsupportedWidth }
    }

    private func register(_ offset: UInt64) -> UInt32 {
        switch offset {
        // "virt".
        case Register.magicValue: 0x7472_6976
        case Register.version: 2
        case Register.deviceID: UInt32(device.type.rawValue)
        case Register.vendorID: 0x1AF4
        case Register.deviceFeatures: core.deviceFeatures()
        case Register.queueSizeMax: UInt32(core.selectedQueue?.sizeMax ?? 0)
        case Register.queueReady: core.selectedQueue?.isEnabled == true ? 1 : 0
        case Register.interruptStatus: UInt32(core.lookAtInterruptStatus())
        case Register.status: UInt32(core.status().rawValue)
        // There is no shared memory: its length reads as -1, and so does its base.
        case Register.sharedMemoryLengthLow...Register.sharedMemoryBaseHigh: .max
        case Register.queueReset: core.isSelectedQueueResetting ? 1 : 0
        case Register.configurationGeneration: core.state.withLock { $0.generation }
        // The others are for writing only, or reserved.
        default: 0
        }
    }

    // MARK: Writes

    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        try Self.check(offset, width)
        guard offset < Register.configuration else {
            let place = Int(offset - Register.configuration)
            return device.writeConfiguration(value & width.allOnes, at: place, width: width)
        }
        setRegister(UInt32(truncatingIfNeeded: value), offset)
    }

    private func setRegister(_ value: UInt32, _ offset: UInt64) {
        switch offset {
        case Register.deviceFeaturesSelect: core.state.withLock { $0.deviceFeatureSelect = value }
        case Register.driverFeatures: core.setDriverFeatures(value)
        case Register.driverFeaturesSelect: core.state.withLock { $0.driverFeatureSelect = value }
        // No device has queues beyond 16 bits of number: what is beyond selects none.
        case Register.queueSelect:
            core.state.withLock { $0.queueSelect = UInt16(exactly: value) ?? .max }
        case Register.queueSize:
            guard let sizeMax = core.selectedQueue?.sizeMax, value <= sizeMax else { return }
            core.configureSelectedQueue { $0.size = UInt16(truncatingIfNeeded: value) }
        case Register.queueReady:
            if value & 1 != 0 { core.enableSelectedQueue() } else { core.disableSelectedQueue() }
        case Register.queueNotify: core.notify(Int(value))
        case Register.interruptAcknowledge: core.acknowledge(UInt8(truncatingIfNeeded: value))
        case Register.status: core.setStatus(VirtioStatus(rawValue: UInt8(truncatingIfNeeded: value)))
        case Register.queueReset where value == 1: core.resetSelectedQueue()
        default: setAddress(value, offset)
        }
    }

    private func setAddress(_ value: UInt32, _ offset: UInt64) {
        let field: WritableKeyPath<QueueConfiguration, UInt64>
        switch offset & ~4 {
        case Register.queueDescriptorsLow: field = \.descriptors
        case Register.queueDriverLow: field = \.driverArea
        case Register.queueDeviceLow: field = \.deviceArea
        default: return
        }
        let shift: UInt64 = offset & 4 == 0 ? 0 : 32
        core.configureSelectedQueue { queue in
            queue[keyPath: field] = queue[keyPath: field] & ~(0xFFFF_FFFF << shift) | UInt64(value) << shift
        }
    }
}

extension VirtioMMIODevice: VirtioInterruptWire {
    var usesMessages: Bool { false }
    func setLine(_ isAsserted: Bool) { input.set(isAsserted) }
    func send(vector: Int) {}
}
