// iommu.groups, iommu.domains and device.*: the IOMMU core as the control socket shows and drives it.

import AddressSpace
import ControlProtocol
import DeviceTree
import IOMMU
import IOPageTable
import Synchronization

extension ControlService {
    static func addGroupMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.IOMMUGroups.self) { _, session throws(ControlError) in
            try session.service.groups()
        }
        dispatcher.on(Methods.IOMMUGroupType.self) { parameters, session throws(ControlError) in
            let system = try session.service.machine.system()
            let group =
                if let type = parameters.type {
                    try system.setType(of: parameters.group, to: type)
                } else {
                    try system.group(parameters.group)
                }
            return session.service.groupInfo(group, system)
        }
        dispatcher.on(Methods.IOMMUDomains.self) { _, session throws(ControlError) in
            Methods.IOMMUDomains.Result(domains: try session.service.domains())
        }
        dispatcher.on(Methods.IOMMUDomainMake.self) { parameters, session throws(ControlError) in
            let service = session.service
            let system = try service.machine.system()
            let domain = try system.makeDomain(
                parameters.name,
                ofSMMU: try service.smmuIndex(parameters.smmu)
            )
            return service.domainInfo(domain, system.allGroups)
        }
        dispatcher.on(Methods.IOMMUDomainFree.self) { parameters, session throws(ControlError) in
            try session.service.machine.system().freeDomain(parameters.name)
            return Nothing()
        }
        dispatcher.on(Methods.IOMMUCompare.self) { parameters, session throws(ControlError) in
            let service = session.service
            return try UnmapComparison.run(
                parameters,
                for: try service.endpoint(parameters.device),
                on: service.machine
            )
        }
        addDeviceMethods(to: &dispatcher)
    }

    private static func addDeviceMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.DeviceAdd.self) { parameters, session throws(ControlError) in
            let service = session.service
            let system = try service.machine.system()
            return service.deviceInfo(
                try system.addDevice(try service.endpoint(parameters.device)),
                system
            )
        }
        dispatcher.on(Methods.DeviceRemove.self) { parameters, session throws(ControlError) in
            let service = session.service
            try service.machine.system().removeDevice(try service.endpoint(parameters.device))
            return Nothing()
        }
        dispatcher.on(Methods.DeviceBind.self) { parameters, session throws(ControlError) in
            let service = session.service
            let system = try service.machine.system()
            let endpoint = try service.endpoint(parameters.device)
            try system.bind(endpoint, to: parameters.driver ?? "smmuctl")
            return service.deviceInfo(try system.managed(endpoint), system)
        }
        dispatcher.on(Methods.DeviceUnbind.self) { parameters, session throws(ControlError) in
            let service = session.service
            let system = try service.machine.system()
            let endpoint = try service.endpoint(parameters.device)
            try system.unbind(endpoint)
            return service.deviceInfo(try system.managed(endpoint), system)
        }
    }

    // MARK: Groups

    private func groups() throws(ControlError) -> Methods.IOMMUGroups.Result {
        let system = try machine.system()
        var smmus: [GroupSMMUInfo] = []
        for index in machine.smmus.indices {
            guard case .running(let driver) = system.driverState(index) else { continue }
            smmus.append(
                GroupSMMUInfo(
                    name: driver.sysfsName,
                    smmu: machine.smmus[index].node.path,
                    capabilities: IOMMUCapability.allCases.filter(driver.capable).map(\.text)
                )
            )
        }
        return Methods.IOMMUGroups.Result(
            groups: system.allGroups.map { groupInfo($0, system) },
            smmus: smmus,
            sysfs: system.core.sysfs
        )
    }

    private func groupInfo(_ group: ManagedGroup, _ system: OperatingSystem) -> GroupInfo {
        let members = Set(group.memberNames)
        let devices = system.allKnown.filter { members.contains($0.endpoint.name) }
        return GroupInfo(
            group: group.group.id,
            type: group.group.type,
            domain: group.current.selector,
            devices: devices.map { deviceInfo($0, system) },
            smmu: path(of: group.group.driver),
            reservedRegions: group.group.reservedRegions.map { region in
                ReservedRegionInfo(
                    first: Hex(region.range.first),
                    last: Hex(region.range.last),
                    kind: region.kind.sysfsName
                )
            },
            untrusted: group.group.hasUntrusted
        )
    }

    private func deviceInfo(_ managed: ManagedEndpoint, _ system: OperatingSystem) -> DeviceInfo {
        let name = managed.endpoint.name
        let bus = system.bus(of: managed.endpoint)
        return DeviceInfo(
            device: name,
            kernelName: system.core.kernelName(of: name) ?? name,
            bus: bus.name,
            group: managed.group.group.id,
            driver: bus.driver(of: name)
        )
    }

    private func path(of driver: SMMUv3Driver) -> String {
        let index = machine.smmus.indices.first { index in
            if case .running(let other)? = machine.operatingSystem.value?.driverState(index) {
                other === driver
            } else {
                false
            }
        }
        return index.map { machine.smmus[$0].node.path } ?? driver.name
    }

    // MARK: Domains

    private func domains() throws(ControlError) -> [DomainInfo] {
        let system = try machine.system()
        let groups = system.allGroups
        var domains = groups.map(\.defaultDomain)
        // Who is neither in its group's own nor in a named one is in one that all share.
        for group in groups where group.current.purpose == .everyone {
            if !domains.contains(where: { $0 === group.current }) { domains.append(group.current) }
        }
        domains += system.namedDomains
        domains += system.allKnown.flatMap(\.substreamDomains)
        return domains.map { domainInfo($0, groups) }
    }

    private func domainInfo(_ managed: ManagedDomain, _ groups: [ManagedGroup]) -> DomainInfo {
        let domain = managed.domain
        var info = DomainInfo(kind: domain.kind.sysfsName, smmu: path(of: managed.driver))
        switch managed.purpose {
        case .group(let id): info.group = id
        case .named(let name): info.name = name
        case .substream(let substream, let device):
            info.substream = Hex(substream)
            info.device = device
            info.devices = [device]
        case .everyone: info.name = domain.kind.rawValue
        }
        info.asid = domain.asid.map { UInt32($0) }
        info.vmid = domain.vmid.map { UInt32($0) }
        info.granule = domain.configuration.map { Size($0.granule.byteCount) }
        info.inputBits = domain.configuration.map { $0.inputAddressBits }
        info.root = domain.root.map { Hex($0.rawValue) }
        info.devices += groups.filter { $0.current === managed }.flatMap(\.memberNames)
        let mappings = managed.mappings
        info.mappings = Size(UInt64(mappings.count))
        var byteCount = mappings.reduce(0) { $0 &+ $1.byteCount }
        if case .group(let id) = managed.purpose {
            // Coherent memory is the endpoints' own.
            for endpoint in machine.operatingSystem.value?.allKnown ?? [] where endpoint.group.group.id == id
            {
                byteCount &+= endpoint.coherent.byteCount
                info.mappings.value += UInt64(endpoint.coherent.buffers.count)
            }
        }
        info.mapped = Size(byteCount)
        if domain.kind == .dmaFQ { info.lazyUnmaps = Size(UInt64(domain.lazyUnmapCount)) }
        return info
    }
}

extension OperatingSystem {
    /// Every group, by number.
    var allGroups: [ManagedGroup] {
        registry.withLock { registry in registry.groups.sorted { $0.key < $1.key }.map(\.value) }
    }

    /// Every unmanaged domain that was made by a name, by that.
    var namedDomains: [ManagedDomain] {
        registry.withLock { registry in registry.domains.sorted { $0.key < $1.key }.map(\.value.domain) }
    }
}

extension ManagedDomain {
    /// By what name a device is put into it.
    var selector: String {
        switch purpose {
        case .group: domain.kind == .identity ? DomainKind.identity.rawValue : DomainKind.dma.rawValue
        case .named(let name): name
        case .everyone: domain.kind.rawValue
        case .substream: domain.kind.rawValue
        }
    }
}

extension IOMMUDomainKind {
    /// As a group's `type` in sysfs says it.
    var sysfsName: String {
        switch self {
        case .dma: "DMA"
        case .dmaFQ: "DMA-FQ"
        default: rawValue
        }
    }
}

extension IOMMUCapability {
    /// The kernel's name without its beginning, as a word.
    var text: String {
        switch self {
        case .cacheCoherency: "cache-coherency"
        case .noExecute: "noexec"
        case .preBootProtection: "pre-boot-protection"
        case .deferredFlush: "deferred-flush"
        case .dirtyTracking: "dirty-tracking"
        }
    }
}
