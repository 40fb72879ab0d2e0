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

    private struct State {
        var groups: [IOMMUGroupKey: IOMMUGroup] = [:]
        var devices: [String: (key: IOMMUGroupKey, endpoint: IOMMUEndpoint)] = [:]
        var nextID = 0
    }
    private let state = Mutex(State())

    /// A core without devices.
    package init(_ parameters: KernelParameters = KernelParameters()) { self.parameters = parameters }

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
    /// - Throws: What is wrong; then nothing of it is known.
    package func addDevice(
        _ name: String,
        driver: SMMUv3Driver,
        key: IOMMUGroupKey,
        streams: [StreamID],
        substreamBits: Int = 0,
        canStall: Bool = false,
        isUntrusted: Bool = false,
        reservedRegions: [ReservedRegion] = []
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
                state.devices[name] = (key, endpoint)
                driver.log.note(.info, "\(name): Adding to iommu group \(group.id)")
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
        }
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
        for group in groups {
            let root = "/sys/kernel/iommu_groups/\(group.id)"
            entries["\(root)/type"] = group.type + "\n"
            entries["\(root)/reserved_regions"] = Self.lines(group.members.flatMap(\.reservedRegions))
            for member in group.members {
                let name = member.name.split(separator: "/").last.map(String.init) ?? member.name
                entries["\(root)/devices/\(name)"] = member.name
                // The kernel names the SMMU by its address.
                let base = hex(group.driver.device.registers.base.rawValue, digits: 16)
                let smmu = "/sys/class/iommu/smmu3.0x\(base)"
                entries["\(smmu)/devices/\(name)"] = member.name
            }
        }
        return entries
    }

    /// `start end type`, the end inclusive; in ascending order, each once.
    private static func lines(_ regions: [ReservedRegion]) -> String {
        var lines = Set(regions).sorted { ($0.range.first, $0.range.last) < ($1.range.first, $1.range.last) }
            .map {
                "0x\(hex($0.range.first, digits: 16)) 0x\(hex($0.range.last, digits: 16)) \($0.kind.rawValue)\n"
            }
        var seen: Set<String> = []
        lines.removeAll { !seen.insert($0).inserted }
        return lines.joined()
    }
}
