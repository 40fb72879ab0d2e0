// Buses and who hears of what happens to devices on them. Linux: struct bus_type and its notifier chain.

package import AddressSpace
import Synchronization

/// One device on a bus, with what firmware says of its DMA.
///
/// Linux: struct device with its iommu_fwspec.
package struct BusDevice: Sendable {
    /// Where it stands.
    package enum Place: Hashable, Sendable {
        case platform
        /// A PCI function, and the requester IDs that ``PCIGrouping`` joins with it, its own among them.
        case pci(segment: UInt32, requesterID: UInt16, group: [UInt16])
    }

    /// A name of its own on the whole machine.
    package let name: String
    /// What the kernel calls it: `0000:00:01.0`, `a000000.dma`.
    package let kernelName: String
    package let place: Place
    /// The driver of the SMMU before it; nil where its DMA goes to plain memory.
    package let iommu: SMMUv3Driver?
    package let streams: [StreamID]
    /// `pasid-num-bits`.
    package let substreamBits: Int
    /// `dma-can-stall`.
    package let canStall: Bool
    /// Below a port that leads outside (`external-facing`).
    package let isUntrusted: Bool
    package let reservedRegions: [ReservedRegion]

    package init(
        name: String,
        kernelName: String,
        place: Place = .platform,
        iommu: SMMUv3Driver?,
        streams: [StreamID],
        substreamBits: Int = 0,
        canStall: Bool = false,
        isUntrusted: Bool = false,
        reservedRegions: [ReservedRegion] = []
    ) {
        self.name = name
        self.kernelName = kernelName
        self.place = place
        self.iommu = iommu
        self.streams = streams
        self.substreamBits = substreamBits
        self.canStall = canStall
        self.isUntrusted = isUntrusted
        self.reservedRegions = reservedRegions
    }

    /// The bus's name before the device's, as `dev_info` prints it.
    var label: String {
        switch place {
        case .platform: "platform \(kernelName)"
        case .pci: "pci \(kernelName)"
        }
    }
}

/// What happened, or is about to; the kernel's BUS_NOTIFY_*.
package enum BusEvent: Sendable, Hashable {
    /// The device is on the bus now.
    case addDevice
    /// The device has gone.
    case removedDevice
    /// A driver is about to be bound to it.
    case bindDriver
    /// A driver is bound.
    case boundDriver
    /// The driver was not bound after all.
    case driverNotBound
    /// The driver is gone.
    case unboundDriver
}

/// Hears of a bus's devices.
package protocol BusNotifier: AnyObject, Sendable {
    /// - Throws: On ``BusEvent/addDevice`` and ``BusEvent/bindDriver``, why it cannot be; what is thrown at other
    ///   events is not heeded.
    func busEvent(_ event: BusEvent, _ device: BusDevice) throws(IOMMUGroupError)
}

/// The platform bus, or PCI.
///
/// Lock order: `state` comes before the locks of those who are notified.
package final class DeviceBus: Sendable {
    /// `platform`, `pci`.
    package let name: String

    private struct Entry {
        let device: BusDevice
        var driver: String?
    }
    private struct State {
        var devices: [String: Entry] = [:]
        var notifiers: [any BusNotifier] = []
    }
    private let state = Mutex(State())

    /// A bus without devices.
    package init(_ name: String) { self.name = name }

    /// Linux: bus_register_notifier; the devices that are there are told of as if they came now.
    ///
    /// - Throws: What the notifier says of one of them; then it is not registered.
    package func register(_ notifier: any BusNotifier) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            let devices = state.devices.values.map(\.device).sorted { $0.name < $1.name }
            for (index, device) in devices.enumerated() {
                do throws(IOMMUGroupError) { try notifier.busEvent(.addDevice, device) } catch {
                    for told in devices[..<index] { Self.tell([notifier], .removedDevice, told) }
                    throw error
                }
            }
            state.notifiers.append(notifier)
        }
    }

    /// Linux: bus_unregister_notifier; to it every device has gone, and every driver before.
    package func unregister(_ notifier: any BusNotifier) {
        state.withLock { state in
            guard state.notifiers.contains(where: { $0 === notifier }) else { return }
            state.notifiers.removeAll { $0 === notifier }
            for entry in state.devices.values.sorted(by: { $0.device.name < $1.device.name }) {
                if entry.driver != nil { Self.tell([notifier], .unboundDriver, entry.device) }
                Self.tell([notifier], .removedDevice, entry.device)
            }
        }
    }

    /// A device comes: found at start, or plugged in.
    ///
    /// - Throws: What a notifier says; then it is not there.
    package func add(_ device: BusDevice) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.devices[device.name] == nil else { throw .busy("\(device.name) is there already") }
            for (index, notifier) in state.notifiers.enumerated() {
                do throws(IOMMUGroupError) { try notifier.busEvent(.addDevice, device) } catch {
                    Self.tell(Array(state.notifiers[..<index]), .removedDevice, device)
                    throw error
                }
            }
            state.devices[device.name] = Entry(device: device)
        }
    }

    /// A device goes, and its driver before.
    ///
    /// - Returns: Whether it was there.
    @discardableResult
    package func remove(_ name: String) -> Bool {
        state.withLock { state in
            guard let entry = state.devices.removeValue(forKey: name) else { return false }
            if entry.driver != nil { Self.tell(state.notifiers, .unboundDriver, entry.device) }
            Self.tell(state.notifiers, .removedDevice, entry.device)
            return true
        }
    }

    /// Binds a driver to a device.
    ///
    /// - Throws: ``IOMMUGroupError/busy(_:)`` where it has one, or what a notifier says; then it has none.
    package func bind(_ name: String, to driver: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard let entry = state.devices[name] else { throw .invalid("\(name) is not on this bus") }
            if let bound = entry.driver { throw .busy("\(name) is bound to \(bound)") }
            for (index, notifier) in state.notifiers.enumerated() {
                do throws(IOMMUGroupError) { try notifier.busEvent(.bindDriver, entry.device) } catch {
                    Self.tell(Array(state.notifiers[..<index]), .driverNotBound, entry.device)
                    throw error
                }
            }
            state.devices[name]?.driver = driver
            Self.tell(state.notifiers, .boundDriver, entry.device)
        }
    }

    /// Takes a device's driver away.
    package func unbind(_ name: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard let entry = state.devices[name], entry.driver != nil else {
                throw .invalid("\(name) is bound to no driver")
            }
            state.devices[name]?.driver = nil
            Self.tell(state.notifiers, .unboundDriver, entry.device)
        }
    }

    /// The driver that a device is bound to.
    package func driver(of name: String) -> String? { state.withLock { $0.devices[name]?.driver } }

    /// Every device, by name.
    package var devices: [BusDevice] {
        state.withLock { $0.devices.values.map(\.device).sorted { $0.name < $1.name } }
    }

    /// Tells of what is so whatever they say.
    private static func tell(_ notifiers: [any BusNotifier], _ event: BusEvent, _ device: BusDevice) {
        for notifier in notifiers {
            do throws(IOMMUGroupError) { try notifier.busEvent(event, device) } catch {
                // Logged by whom it concerns: there is nobody here who could make it good.
                continue
            }
        }
    }
}
