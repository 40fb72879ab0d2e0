// Virtio over PCI (section 4.1): the registers of a modern function.

package import DeviceModel
package import PCIFunction
import Synchronization
package import SystemPackage

/// A virtio device as a PCIe function, modern only: device ID 0x1040 plus the device type.
///
/// Made with ``make(name:device:options:makePort:)``. The function holds this model; the model's end ends the device's
/// threads, as ``shutdown()`` does.
package final class VirtioPCIFunction: PCIFunctionModel, VirtioTransport {
    private typealias Layout = VirtioPCILayout
    private typealias Common = VirtioPCILayout.Common

    package let device: any VirtioDevice
    private let core: VirtioCore
    private let vectorCount: Int
    private let owner = Mutex(Owner())

    private struct Owner { weak var function: PCIFunction? }

    /// Makes a function of a device, and starts its threads.
    ///
    /// - Parameters:
    ///   - name: What people call the function.
    ///   - makePort: A new view of memory with the function's identity, for one user.
    /// - Throws: The system's error where there are no more threads or descriptors to be had.
    package static func make(
        name: String,
        device: any VirtioDevice,
        options: VirtioPCIOptions = VirtioPCIOptions(),
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(Errno) -> PCIFunction {
        let model = VirtioPCIFunction(device, core: try VirtioCore(device), options)
        let description = VirtioPCILayout.description(device, options)
        let function = PCIFunction(name: name, description, model: model, makePort: makePort)
        model.owner.withLock { $0.function = function }
        // Threads keep neither the function nor this model.
        try model.core.start(model) { [weak function] in function?.makePort() ?? makePort() }
        return function
    }

    /// The same, with all but MSI-X as it usually is.
    package static func make(
        name: String,
        device: any VirtioDevice,
        offersMSIX: Bool,
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(Errno) -> PCIFunction {
        let options = VirtioPCIOptions(offersMSIX: offersMSIX)
        return try make(name: name, device: device, options: options, makePort: makePort)
    }

    private init(_ device: any VirtioDevice, core: VirtioCore, _ options: VirtioPCIOptions) {
        self.device = device
        self.core = core
        vectorCount = options.offersMSIX ? device.queueSizesMax.count + 1 : 0
    }

    deinit { core.shutdown() }

    package func shutdown() { core.shutdown() }
    package var lastError: VirtqueueError? { core.lastError }
    private var function: PCIFunction? { owner.withLock { $0.function } }

    // MARK: BAR 0

    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        guard index == 0, offset < Layout.barByteCount else { throw .noSuchRegister }
        let place = Int(offset % Layout.pageByteCount)
        switch offset - UInt64(place) {
        case Layout.common: return readCommon(place, width)
        case Layout.interruptStatus: return place == 0 ? UInt64(core.takeInterruptStatus()) : 0
        case Layout.device: return device.configuration.littleEndian(at: place, width)
        default: return 0
        }
    }

    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        guard index == 0, offset < Layout.barByteCount else { throw .noSuchRegister }
        let place = Int(offset % Layout.pageByteCount)
        switch offset - UInt64(place) {
        case Layout.common: writeCommon(value & width.allOnes, place, width)
        case Layout.device: device.writeConfiguration(value & width.allOnes, at: place, width: width)
        case Layout.notify: core.notify(place / Int(Layout.notifyMultiplier))
        default: break
        }
    }

    // MARK: Common configuration

    /// Reads any bytes of the structure: software may use each field's own width, and what it reads otherwise are
    /// the same bytes.
    private func readCommon(_ place: Int, _ width: AccessWidth) -> UInt64 {
        var value: UInt64 = 0
        var position = place
        while position < place + width.rawValue {
            guard let (start, byteCount, field) = commonField(at: position) else {
                position += 1
                continue
            }
            let inside = position - start
            let part = (field >> UInt64(8 * inside)) & (UInt64.max >> UInt64(64 - 8 * (byteCount - inside)))
            value |= part << UInt64(8 * (position - place))
            position = start + byteCount
        }
        return value & width.allOnes
    }

    /// The field that holds a byte: where it begins, how many bytes it has, what it reads.
    private func commonField(at place: Int) -> (start: Int, byteCount: Int, value: UInt64)? {
        let queue = core.selectedQueue
        func address(_ value: UInt64?) -> UInt64 { value ?? 0 }
        switch place {
        case 0..<4:
            return (0, 4, UInt64(core.state.withLock { $0.deviceFeatureSelect }))
        case 4..<8: return (4, 4, UInt64(core.deviceFeatures()))
        case 8..<12:
            return (8, 4, UInt64(core.state.withLock { $0.driverFeatureSelect }))
        case 12..<16: return (12, 4, UInt64(core.driverFeatures()))
        case 16..<18:
            return (16, 2, UInt64(core.state.withLock { $0.configurationVector }))
        case 18..<20: return (18, 2, UInt64(core.gates.count))
        case 20: return (20, 1, UInt64(core.status().rawValue))
        case 21: return (21, 1, UInt64(core.state.withLock { $0.generation } & 0xFF))
        case 22..<24: return (22, 2, UInt64(core.state.withLock { $0.queueSelect }))
        case 24..<26: return (24, 2, UInt64(queue?.configuration.size ?? 0))
        case 26..<28: return (26, 2, UInt64(queue?.vector ?? VirtioCore.noVector))
        case 28..<30: return (28, 2, queue?.isEnabled == true ? 1 : 0)
        case 30..<32: return (30, 2, UInt64(core.state.withLock { $0.queueSelect }))
        case 32..<40: return (32, 8, address(queue?.configuration.descriptors))
        case 40..<48: return (40, 8, address(queue?.configuration.driverArea))
        case 48..<56: return (48, 8, address(queue?.configuration.deviceArea))
        case 58..<60: return (58, 2, core.isSelectedQueueResetting ? 1 : 0)
        default: return nil
        }
    }

    /// Takes a write of one field's own width, or of half of a field of 64 bits; others do nothing.
    private func writeCommon(_ value: UInt64, _ place: Int, _ width: AccessWidth) {
        switch (place, width) {
        case (Common.deviceFeatureSelect, .word):
            core.state.withLock { $0.deviceFeatureSelect = UInt32(truncatingIfNeeded: value) }
        case (Common.driverFeatureSelect, .word):
            core.state.withLock { $0.driverFeatureSelect = UInt32(truncatingIfNeeded: value) }
        case (Common.driverFeature, .word): core.setDriverFeatures(UInt32(truncatingIfNeeded: value))
        case (Common.deviceStatus, .byte):
            core.setStatus(VirtioStatus(rawValue: UInt8(truncatingIfNeeded: value)))
        case (_, .halfword): writeHalfword(UInt16(truncatingIfNeeded: value), place)
        case (Common.queueDescriptors..<Common.queueNotifyData, .word),
            (Common.queueDescriptors..<Common.queueNotifyData, .doubleword):
            writeAddress(value, place, width)
        default: break
        }
    }

    private func writeHalfword(_ value: UInt16, _ place: Int) {
        switch place {
        case Common.configurationVector:
            core.state.withLock { $0.configurationVector = vector(value) }
        case Common.queueSelect: core.state.withLock { $0.queueSelect = value }
        case Common.queueSize:
            guard let sizeMax = core.selectedQueue?.sizeMax, value <= sizeMax else { return }
            core.configureSelectedQueue { $0.size = value }
        case Common.queueVector:
            core.state.withLock { state in
                guard Int(state.queueSelect) < state.queues.count else { return }
                state.queues[Int(state.queueSelect)].vector = vector(value)
            }
        // Writing 0 is not for drivers to do; VIRTIO_F_RING_RESET is the way to stop a queue.
        case Common.queueEnable where value == 1: core.enableSelectedQueue()
        case Common.queueReset where value == 1: core.resetSelectedQueue()
        default: break
        }
    }

    /// A vector as it reads back: NO_VECTOR where there is none of that number.
    private func vector(_ value: UInt16) -> UInt16 { Int(value) < vectorCount ? value : VirtioCore.noVector }

    private func writeAddress(_ value: UInt64, _ place: Int, _ width: AccessWidth) {
        let field: WritableKeyPath<QueueConfiguration, UInt64> =
            switch place & ~7 {
            case Common.queueDescriptors: \.descriptors
            case Common.queueDriver: \.driverArea
            default: \.deviceArea
            }
        core.configureSelectedQueue { queue in
            guard width == .word else { return queue[keyPath: field] = value }
            let shift = UInt64(8 * (place & 7))
            queue[keyPath: field] = queue[keyPath: field] & ~(0xFFFF_FFFF << shift) | value << shift
        }
    }

    // MARK: The function

    package func reset() { core.resetAndWait() }

    /// VIRTIO_PCI_CAP_PCI_CFG: offsets of its fields from the capability's start.
    private enum Access {
        static let bar = 4
        static let offset = 8
        static let length = 12
        static let data = 16
    }

    /// The access that the capability is set to, where the data is what `offset` names.
    private func access(at offset: Int, _ function: PCIFunction)
        -> (bar: Int, offset: UInt64, width: AccessWidth)?
    {
        let start = function.vendorCapabilityOffset(device.configuration.isEmpty ? 3 : 4)
        guard offset >= start + Access.data else { return nil }
        let bar = function.readStoredConfiguration(at: start + Access.bar, byteCount: 1)
        let place = function.readStoredConfiguration(at: start + Access.offset, byteCount: 4)
        let length = function.readStoredConfiguration(at: start + Access.length, byteCount: 4)
        guard let width = AccessWidth(rawValue: Int(length)), width != .doubleword else { return nil }
        return (Int(bar), UInt64(place), width)
    }

    package func readLiveCapability(at offset: Int, byteCount: Int) -> UInt32? {
        guard let function, let access = access(at: offset, function) else { return nil }
        let value = try? function.readBAR(access.bar, at: access.offset, width: access.width)
        return UInt32(truncatingIfNeeded: value ?? access.width.allOnes)
    }

    package func liveCapabilityWritten(at offset: Int, byteCount: Int) {
        guard let function, let access = access(at: offset, function) else { return }
        let value = function.readStoredConfiguration(at: offset, byteCount: 4)
        // An access that no register takes does nothing.
        try? function.writeBAR(access.bar, UInt64(value), at: access.offset, width: access.width)
    }
}

extension VirtioPCIFunction: VirtioInterruptWire {
    var usesMessages: Bool { function?.interruptMode == .msix }
    func setLine(_ isAsserted: Bool) { function?.setINTx(isAsserted) }
    func send(vector: Int) { function?.signal(vector: vector) }
}

extension [UInt8] {
    /// A word of these bytes, which are in the order of their addresses; what lies beyond them is 0.
    func littleEndian(at offset: Int, _ width: AccessWidth) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<width.rawValue where indices.contains(offset + index) {
            value |= UInt64(self[offset + index]) << UInt64(8 * index)
        }
        return value
    }
}
