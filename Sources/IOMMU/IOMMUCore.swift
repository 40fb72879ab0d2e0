// The IOMMU core: devices and their groups, over all SMMUs. Linux: drivers/iommu/iommu.c.

package import AddressSpace
import Synchronization

/// What decides which group a device comes into.
package enum IOMMUGroupKey: Hashable, Sendable {
    /// A platform device: a group of its own.
    ///
    /// Linux: generic_device_group.
    case platform(String)
    /// A PCI function: the segment, and the lowest requester ID of those that ``PCIGrouping`` joins with it.
    case pci(segment: UInt32, leader: UInt16)
}

/// Devices, groups and the policy for default domains.
///
/// Lock order: `state`, then a group's.
package final class IOMMUCore: Sendable {
    package let parameters: KernelParameters

    /// One device that has a group.
    private struct Device {
        let key: IOMMUGroupKey
        let endpoint: IOMMUEndpoint
        /// What the kernel prints before a line about it.
        let label: String
        /// What sysfs calls it.
        let kernelName: String
        /// Segment and requester ID of a PCI function.
        var requester: PCIRequesterNumber?
    }

    /// A PCI function's number on the machine.
    private struct PCIRequesterNumber: Hashable {
        let segment: UInt32
        let requesterID: UInt16
    }

    private struct State {
        var groups: [IOMMUGroupKey: IOMMUGroup] = [:]
        var devices: [String: Device] = [:]
        /// SMMUs that are registered, in that order.
        var drivers: [SMMUv3Driver] = []
        var nextID = 0
    }
    private let state = Mutex(State())
    private let log: (@Sendable (String) -> Void)?

    /// A core without devices.
    ///
    /// - Parameters:
    ///   - parameters: The policy.
    ///   - log: Hears of every line in the kernel's wording; the log of the SMMU's driver where there is none.
    package init(
        _ parameters: KernelParameters = KernelParameters(),
        log: (@Sendable (String) -> Void)? = nil
    ) {
        self.parameters = parameters
        self.log = log
    }

    private func note(_ text: String, _ driver: SMMUv3Driver) {
        if let log { log(text) } else { driver.log.note(.info, text) }
    }

    // MARK: SMMUs

    /// An SMMU is there: sysfs has it from now on, before it has devices.
    ///
    /// Linux: iommu_device_register.
    package func register(_ driver: SMMUv3Driver) {
        state.withLock { state in
            if !state.drivers.contains(where: { $0 === driver }) { state.drivers.append(driver) }
        }
    }

    /// An SMMU goes: every device behind it loses its group.
    ///
    /// Linux: iommu_device_unregister.
    package func unregister(_ driver: SMMUv3Driver) {
        let names = state.withLock { state in
            state.drivers.removeAll { $0 === driver }
            return state.devices.filter { state.groups[$0.value.key]?.driver === driver }.map(\.key)
        }
        for name in names.sorted() {
            do throws(IOMMUGroupError) { try removeDevice(name) } catch {
                driver.log.note(.error, "\(name): not removed: \(error)")
            }
        }
    }

    // MARK: Devices

    /// Brings a device under the IOMMU: the driver probes it, it is grouped and attached to the default domain.
    ///
    /// Linux: iommu_probe_device.
    ///
    /// - Parameters:
    ///   - name: The device's name, one of its own.
    ///   - driver: The driver of its SMMU.
    ///   - key: Its group's.
    ///   - streams: Its StreamIDs.
    ///   - substreamBits: `pasid-num-bits`.
    ///   - canStall: `dma-can-stall`.
    ///   - isUntrusted: Whether it is outside (`external-facing`): its domain is strict whatever the parameters say.
    ///   - reservedRegions: What firmware says of IOVAs.
    ///   - label: What the kernel prints before a line about it (`pci 0000:00:01.0`); the name unless given.
    ///   - kernelName: What sysfs calls it; the last part of the name unless given.
    /// - Throws: What is wrong; then nothing of it is known.
    package func addDevice(
        _ name: String,
        driver: SMMUv3Driver,
        key: IOMMUGroupKey,
        streams: [StreamID],
        substreamBits: Int = 0,
        canStall: Bool = false,
        isUntrusted: Bool = false,
        reservedRegions: [ReservedRegion] = [],
        label: String? = nil,
        kernelName: String? = nil
    ) throws(IOMMUGroupError) -> IOMMUGroup {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.devices[name] == nil else { throw .busy("\(name) has a group already") }
            let known = state.groups[key]
            if let known, known.driver !== driver {
                throw .invalid("\(name) is behind another SMMU than its group")
            }
            let endpoint: IOMMUEndpoint
            do throws(SMMUDriverError) {
                endpoint = try driver.addEndpoint(
                    name,
                    streams: streams,
                    substreamBits: substreamBits,
                    canStall: canStall,
                    reservedRegions: reservedRegions
                )
            } catch { throw .driver(error) }
            do throws(IOMMUGroupError) {
                let group =
                    if let known { known } else {
                        try IOMMUGroup(state.nextID, driver, parameters, isUntrusted: isUntrusted)
                    }
                try group.add(endpoint, isUntrusted: isUntrusted)
                if known == nil {
                    state.groups[key] = group
                    state.nextID += 1
                }
                state.devices[name] = Device(
                    key: key,
                    endpoint: endpoint,
                    label: label ?? name,
                    kernelName: kernelName
                        ?? name.split(separator: "/").last.map(String.init) ?? name
                )
                note("\(label ?? name): Adding to iommu group \(group.id)", driver)
                return group
            } catch {
                do throws(SMMUDriverError) { try driver.removeEndpoint(endpoint) } catch {
                    driver.log.note(.error, "\(name): not removed: \(error)")
                }
                throw error
            }
        }
    }

    /// Takes a device away; its group goes with its last device.
    ///
    /// Linux: iommu_release_device.
    package func removeDevice(_ name: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard let device = state.devices[name], let group = state.groups[device.key] else {
                throw .invalid("\(name) has no group")
            }
            let isEmpty = try group.remove(device.endpoint)
            state.devices[name] = nil
            if isEmpty { state.groups[device.key] = nil }
            note("\(device.label): Removing from iommu group \(group.id)", group.driver)
        }
    }

    /// Brings a device of a bus under the IOMMU; nothing where no SMMU stands before it.
    ///
    /// A PCI function comes into the group that one of those whom the hardware cannot keep apart from it has already.
    /// Linux: iommu_probe_device.
    package func probe(_ device: BusDevice) throws(IOMMUGroupError) {
        guard let driver = device.iommu else { return }
        var key = driver.deviceGroup(of: device)
        var requester: PCIRequesterNumber?
        if case .pci(let segment, let requesterID, let group) = device.place {
            requester = PCIRequesterNumber(segment: segment, requesterID: requesterID)
            let members = Set(group.map { PCIRequesterNumber(segment: segment, requesterID: $0) })
            let known = state.withLock { state in
                state.devices.values.first { $0.requester.map(members.contains) ?? false }?.key
            }
            key = known ?? key
        }
        _ = try addDevice(
            device.name,
            driver: driver,
            key: key,
            streams: device.streams,
            substreamBits: device.substreamBits,
            canStall: device.canStall,
            isUntrusted: device.isUntrusted,
            reservedRegions: device.reservedRegions,
            label: device.label,
            kernelName: device.kernelName
        )
        state.withLock { $0.devices[device.name]?.requester = requester }
    }

    /// The group that a device is in.
    package func group(of name: String) -> IOMMUGroup? {
        state.withLock { state in state.devices[name].flatMap { state.groups[$0.key] } }
    }

    /// Every group, by number.
    package var groups: [IOMMUGroup] {
        state.withLock { $0.groups.values.sorted { $0.id < $1.id } }
    }

    /// What `/sys/kernel/iommu_groups` and `/sys/class/iommu` would show: files with their content, and links with
    /// the name that they lead to, by path.
    package var sysfs: [String: String] {
        var entries: [String: String] = [:]
        let (drivers, devices) = state.withLock { ($0.drivers, $0.devices) }
        for driver in drivers { entries["/sys/class/iommu/\(driver.sysfsName)"] = driver.name }
        for group in groups {
            let root = "/sys/kernel/iommu_groups/\(group.id)"
            entries["\(root)/type"] = group.type + "\n"
            entries["\(root)/reserved_regions"] = Self.lines(group.reservedRegions)
            for member in group.members {
                let name = devices[member.name]?.kernelName ?? member.name
                entries["\(root)/devices/\(name)"] = member.name
                entries["/sys/class/iommu/\(group.driver.sysfsName)/devices/\(name)"] = member.name
            }
        }
        return entries
    }

    /// What sysfs calls a device.
    package func kernelName(of name: String) -> String? { state.withLock { $0.devices[name]?.kernelName } }

    /// `start end type`, the end inclusive.
    private static func lines(_ regions: [ReservedRegion]) -> String {
        regions.map {
            "0x\(hex($0.range.first, digits: 16)) 0x\(hex($0.range.last, digits: 16)) \($0.kind.sysfsName)\n"
        }.joined()
    }
}

extension SMMUv3Driver {
    /// The SMMU in `/sys/class/iommu`: the kernel names it by its address.
    package var sysfsName: String { "smmu3.0x\(hex(device.registers.base.rawValue, digits: 16))" }
}

extension IOMMUCore: BusNotifier {
    /// What happens on a bus, to groups.
    ///
    /// Linux: iommu_bus_notifier, and the calls of dma_configure and dma_cleanup around a driver.
    package func busEvent(_ event: BusEvent, _ device: BusDevice) throws(IOMMUGroupError) {
        switch event {
        case .addDevice: try probe(device)
        case .removedDevice:
            // Without an SMMU, or after the SMMU went, it has none.
            guard let group = group(of: device.name) else { return }
            do throws(IOMMUGroupError) { try removeDevice(device.name) } catch {
                group.driver.log.note(.error, "\(device.label): not removed: \(error)")
                throw error
            }
        case .bindDriver: try group(of: device.name)?.useDefaultDomain()
        case .unboundDriver, .driverNotBound: group(of: device.name)?.unuseDefaultDomain()
        case .boundDriver: break
        }
    }
}
