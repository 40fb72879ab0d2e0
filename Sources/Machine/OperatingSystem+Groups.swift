// What the control socket does with groups, domains and devices of the machine's own driver.

import ControlProtocol
import IOMMU
import Synchronization

extension OperatingSystem {
    // MARK: Domains

    /// Makes an unmanaged domain that devices of one SMMU can share.
    func makeDomain(_ name: String, ofSMMU index: Int) throws(ControlError) -> ManagedDomain {
        guard DomainName(rawValue: name).kind == nil, !name.isEmpty, name.utf8.count <= 64 else {
            throw .invalidParameter(
                "name",
                "a domain's name has 1 to 64 bytes, and is none of dma, identity and blocked"
            )
        }
        return try registry.withLock { (registry) throws(ControlError) in
            guard registry.domains[name] == nil else {
                throw .conflict("there is a domain \"\(name)\" already")
            }
            guard registry.domains.count < 4096 else { throw .limit("4096 domains are enough") }
            let driver = try driver(index, for: "the domain")
            do throws(SMMUDriverError) {
                let domain = ManagedDomain(
                    try driver.makeDomain(.unmanaged),
                    of: driver,
                    .named(name),
                    frames
                )
                registry.domains[name] = NamedDomain(domain: domain, smmuIndex: index)
                return domain
            } catch { throw ControlError(error) }
        }
    }

    /// Frees an unmanaged domain with all that is mapped in it.
    func freeDomain(_ name: String) throws(ControlError) {
        try registry.withLock { (registry) throws(ControlError) in
            guard let named = registry.domains[name] else { throw Self.noDomain(name) }
            if let group = registry.groups.values.first(where: { $0.current === named.domain }) {
                throw .conflict("group \(group.group.id) is attached to the domain \"\(name)\" (EBUSY)")
            }
            registry.domains[name] = nil
        }
    }

    private static func noDomain(_ name: String) -> ControlError {
        .notFound(
            name,
            "there is no domain \"\(name)\"; dma, identity and blocked are always there, iommu.domain.make makes others"
        )
    }

    /// Puts an endpoint's group into a domain.
    ///
    /// - Returns: The group's members.
    func attach(_ endpoint: Endpoint, to name: DomainName) throws(ControlError) -> [String] {
        try registry.withLock { (registry) throws(ControlError) in
            let group = try managed(endpoint, &registry).group
            switch name.kind {
            case .dma?:
                if group.defaultDomain.domain.kind.translates {
                    try group.returnToDefault()
                } else {
                    try group.setType(.dma, takesBack: true)
                }
            case .identity? where group.defaultDomain.domain.kind == .identity: try group.returnToDefault()
            case .identity?: try group.attach(to: try fixed(endpoint).identity)
            case .blocked?: try group.attach(to: try fixed(endpoint).blocked)
            default:
                guard let named = registry.domains[name.rawValue] else { throw Self.noDomain(name.rawValue) }
                guard named.smmuIndex == endpoint.smmuIndex else {
                    throw .conflict(
                        "the domain \"\(name.rawValue)\" is another SMMU's than \(endpoint.name)'s (EINVAL)"
                    )
                }
                try group.attach(to: named.domain)
            }
            return group.memberNames
        }
    }

    private func fixed(_ endpoint: Endpoint) throws(ControlError) -> (
        identity: ManagedDomain, blocked: ManagedDomain
    ) {
        guard let index = endpoint.smmuIndex, let domains = fixedDomains[index] else {
            throw .noDriver("no SMMU that runs stands before \(endpoint.name)")
        }
        return domains
    }

    // MARK: Groups

    func group(_ id: Int) throws(ControlError) -> ManagedGroup {
        guard let group = registry.withLock({ $0.groups[id] }) else {
            throw .notFound(String(id), "there is no IOMMU group \(id); see iommu.groups")
        }
        return group
    }

    /// Changes a group's type as a write to sysfs does.
    func setType(of id: Int, to text: String) throws(ControlError) -> ManagedGroup {
        guard let request = IOMMUGroupTypeRequest(rawValue: text) else {
            let known = IOMMUGroupTypeRequest.allCases.map(\.rawValue).joined(separator: ", ")
            throw .invalidParameter("type", "\"\(text)\" is none of \(known) (EINVAL)")
        }
        return try registry.withLock { (registry) throws(ControlError) in
            guard let group = registry.groups[id] else {
                throw .notFound(String(id), "there is no IOMMU group \(id); see iommu.groups")
            }
            let isUsed = registry.endpoints.values.contains { $0.group === group && !$0.coherent.isEmpty }
            let isLive = request == .dmaFQ && group.group.defaultDomain.kind == .dma
            guard isLive || !isUsed else {
                throw ControlError(.busy("coherent memory is allocated in group \(id)"))
            }
            try group.setType(request)
            return group
        }
    }

    // MARK: Devices

    /// A device is plugged in, or found again.
    func addDevice(_ endpoint: Endpoint) throws(ControlError) -> ManagedEndpoint {
        try registry.withLock { (registry) throws(ControlError) in
            guard registry.endpoints[endpoint.name] == nil else {
                throw .conflict("\(endpoint.name) is there already")
            }
            let managed = try add(endpoint, &registry)
            registry.removed.remove(endpoint.name)
            return managed
        }
    }

    /// A device is unplugged: its driver goes, its stream is blocked, and its group goes with its last device.
    func removeDevice(_ endpoint: Endpoint) throws(ControlError) {
        try registry.withLock { (registry) throws(ControlError) in
            guard let managed = registry.endpoints[endpoint.name] else {
                throw .notFound(endpoint.name, "\(endpoint.name) is not on its bus")
            }
            bus(of: endpoint).remove(endpoint.name)
            guard core.group(of: endpoint.name) == nil else {
                // Hardware may still reach what is mapped: it stays.
                throw .failed("\(endpoint.name) could not be released; see driver.log")
            }
            // The SMMU has it blocked by now: nobody reaches by DMA what is taken back here.
            managed.wasRemoved()
            registry.endpoints[endpoint.name] = nil
            registry.removed.insert(endpoint.name)
            if managed.group.group.members.isEmpty { registry.groups[managed.group.group.id] = nil }
        }
    }

    /// Binds a driver to a device, which then uses the DMA API.
    func bind(_ endpoint: Endpoint, to driver: String) throws(ControlError) {
        _ = try managed(endpoint)
        do throws(IOMMUGroupError) { try bus(of: endpoint).bind(endpoint.name, to: driver) } catch {
            throw ControlError(error)
        }
    }

    /// Takes a device's driver away.
    func unbind(_ endpoint: Endpoint) throws(ControlError) {
        do throws(IOMMUGroupError) { try bus(of: endpoint).unbind(endpoint.name) } catch {
            throw ControlError(error)
        }
    }
}
