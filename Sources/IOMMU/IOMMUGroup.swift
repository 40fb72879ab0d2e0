// Groups: the endpoints that can only be given away together. Linux: iommu_group.

import AddressSpace
import Synchronization

/// Why the IOMMU core refused; with the kernel's error number.
package enum IOMMUGroupError: Error, Equatable, Sendable {
    /// `-EBUSY`: somebody uses the group in another way.
    case busy(String)
    /// `-EPERM`: not while drivers are bound, or for someone who does not own the group.
    case notPermitted(String)
    /// `-EINVAL`: no such type, or a device that does not fit into the group.
    case invalid(String)
    /// The SMMU's driver refused.
    case driver(SMMUDriverError)
}

extension IOMMUGroupError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .busy(let reason): "\(reason) (EBUSY)"
        case .notPermitted(let reason): "\(reason) (EPERM)"
        case .invalid(let reason): "\(reason) (EINVAL)"
        case .driver(let error): "\(error)"
        }
    }
}

/// What may be written to a group's `type` in sysfs.
package enum IOMMUGroupTypeRequest: String, Sendable, CaseIterable {
    case identity
    case dma = "DMA"
    case dmaFQ = "DMA-FQ"
    /// What the parameters choose.
    case auto
}

/// Endpoints of one SMMU that share a domain, as hardware cannot keep them apart.
///
/// Lock order: `state`, then the driver's.
package final class IOMMUGroup: Sendable {
    /// The number in `/sys/kernel/iommu_groups`.
    package let id: Int
    package let driver: SMMUv3Driver
    private let parameters: KernelParameters

    private struct State {
        var members: [IOMMUEndpoint] = []
        var hasUntrusted = false
        var defaultDomain: IOMMUDomain
        var domain: IOMMUDomain
        /// How many drivers are bound, or 1 for an owner.
        ///
        /// Linux: owner_cnt.
        var userCount = 0
        /// Who drives the group from user space (VFIO).
        var owner: String?
    }
    private let state: Mutex<State>

    /// A group without members, whose default domain is chosen.
    init(_ id: Int, _ driver: SMMUv3Driver, _ parameters: KernelParameters, isUntrusted: Bool)
        throws(IOMMUGroupError)
    {
        self.id = id
        self.driver = driver
        self.parameters = parameters
        let kind = isUntrusted ? .dma : parameters.defaultDomainKind
        let domain = try Self.makeDomain(kind, driver)
        state = Mutex(State(hasUntrusted: isUntrusted, defaultDomain: domain, domain: domain))
    }

    private static func makeDomain(_ kind: IOMMUDomainKind, _ driver: SMMUv3Driver) throws(IOMMUGroupError)
        -> IOMMUDomain
    {
        do { return try driver.makeDomain(kind) } catch { throw .driver(error) }
    }

    package var members: [IOMMUEndpoint] { state.withLock { $0.members } }
    /// What the members are attached to now.
    package var domain: IOMMUDomain { state.withLock { $0.domain } }
    package var defaultDomain: IOMMUDomain { state.withLock { $0.defaultDomain } }
    package var owner: String? { state.withLock { $0.owner } }
    /// How many drivers are bound to members, or 1 for an owner.
    package var userCount: Int { state.withLock { $0.userCount } }
    /// Whether a member is outside of the machine's own case, so that the type stays DMA.
    package var hasUntrusted: Bool { state.withLock { $0.hasUntrusted } }
    /// What firmware and the platform say of IOVAs, of every member; in ascending order, each once.
    ///
    /// Linux: iommu_get_group_resv_regions.
    package var reservedRegions: [ReservedRegion] {
        var regions: [ReservedRegion] = []
        for region in members.flatMap({ driver.reservedRegions(of: $0) }) {
            let isKnown = regions.contains { $0.range == region.range && $0.kind == region.kind }
            if !isKnown { regions.append(region) }
        }
        return regions.sorted { ($0.range.first, $0.range.last) < ($1.range.first, $1.range.last) }
    }

    // MARK: Members

    /// Takes an endpoint in and attaches it to the group's domain; it stays out where that fails.
    func add(_ endpoint: IOMMUEndpoint, isUntrusted: Bool) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            if isUntrusted, state.defaultDomain.kind != .dma {
                throw .invalid("\(endpoint.name) is untrusted, and group \(id) is not of type DMA")
            }
            do throws(SMMUDriverError) { try driver.attach(endpoint, to: state.domain) } catch {
                throw .driver(error)
            }
            state.members.append(endpoint)
            state.hasUntrusted = state.hasUntrusted || isUntrusted
        }
    }

    /// Lets an endpoint go; the driver is told.
    ///
    /// - Returns: Whether it was the last.
    func remove(_ endpoint: IOMMUEndpoint) throws(IOMMUGroupError) -> Bool {
        try state.withLock { (state) throws(IOMMUGroupError) in
            do throws(SMMUDriverError) { try driver.removeEndpoint(endpoint) } catch { throw .driver(error) }
            state.members.removeAll { $0 === endpoint }
            return state.members.isEmpty
        }
    }

    // MARK: Users

    /// A device driver binds to a member and uses the DMA API.
    ///
    /// Linux: iommu_device_use_default_domain.
    package func useDefaultDomain() throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.owner == nil, state.domain === state.defaultDomain else {
                throw .busy("group \(id) is not in its default domain")
            }
            state.userCount += 1
        }
    }

    /// The driver unbinds.
    ///
    /// Linux: iommu_device_unuse_default_domain.
    package func unuseDefaultDomain() {
        state.withLock { if $0.owner == nil, $0.userCount > 0 { $0.userCount -= 1 } }
    }

    /// Somebody takes the group over for user space; until a domain is attached all its DMA is aborted.
    ///
    /// Linux: iommu_group_claim_dma_owner.
    package func claim(by owner: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.userCount == 0 else { throw .notPermitted("group \(id) is in use") }
            try set(driver.blockedDomain, &state)
            state.owner = owner
            state.userCount = 1
        }
    }

    /// The owner lets go; the group is in its default domain again.
    ///
    /// Linux: iommu_group_release_dma_owner.
    package func release(by owner: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.owner == owner else { throw .notPermitted("\(owner) does not own group \(id)") }
            try set(state.defaultDomain, &state)
            state.owner = nil
            state.userCount = 0
        }
    }

    /// The owner puts the whole group into a domain of its own.
    ///
    /// Linux: iommu_attach_group.
    package func attach(_ domain: IOMMUDomain, by owner: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.owner == owner else { throw .notPermitted("\(owner) does not own group \(id)") }
            guard state.domain === driver.blockedDomain || state.domain === domain else {
                throw .busy("group \(id) is attached to another domain")
            }
            try set(domain, &state)
        }
    }

    /// The owner's domain goes; the group's DMA is aborted.
    ///
    /// Linux: iommu_detach_group.
    package func detach(by owner: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.owner == owner else { throw .notPermitted("\(owner) does not own group \(id)") }
            try set(driver.blockedDomain, &state)
        }
    }

    /// The owner, who becomes it by this, puts the whole group into a domain of any kind, from whatever it is in.
    ///
    /// Unlike ``claim(by:)`` and ``attach(_:by:)`` no DMA is aborted in between.
    /// Linux: iommu_attach_device of a kernel driver, iommu_replace_group_handle.
    /// - Throws: ``IOMMUGroupError/notPermitted(_:)`` while drivers are bound or somebody else owns the group, or what
    ///   the driver throws; then all is as before.
    package func replaceDomain(with domain: IOMMUDomain, by owner: String) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            guard state.userCount == 0 || state.owner == owner else {
                throw .notPermitted("group \(id) is in use")
            }
            try set(domain, &state)
            state.owner = owner
            state.userCount = 1
        }
    }

    /// Attaches all members; if one fails those before it go back.
    private func set(_ domain: IOMMUDomain, _ state: inout State) throws(IOMMUGroupError) {
        for (index, member) in state.members.enumerated() {
            do throws(SMMUDriverError) { try driver.attach(member, to: domain) } catch {
                for done in state.members[..<index] {
                    do throws(SMMUDriverError) { try driver.attach(done, to: state.domain) } catch {
                        driver.log.note(
                            .error,
                            "\(done.name): not attached to its old domain again: \(error)"
                        )
                    }
                }
                throw .driver(error)
            }
        }
        state.domain = domain
    }

    // MARK: Type

    /// The default domain's kind, as sysfs has it: `DMA`, `DMA-FQ`, `identity`.
    package var type: String {
        switch defaultDomain.kind {
        case .dma: "DMA"
        case .dmaFQ: "DMA-FQ"
        case .identity: "identity"
        case .blocked: "blocked"
        case .unmanaged: "unmanaged"
        }
    }

    /// Changes the default domain, as a write to the group's `type` in sysfs does.
    ///
    /// From DMA to DMA-FQ at any time; otherwise only while no driver is bound and nobody owns the group.
    /// - Throws: ``IOMMUGroupError/notPermitted(_:)`` while somebody uses it, ``IOMMUGroupError/invalid(_:)`` for what
    ///   an untrusted device must not have, or what the driver throws; then all is as before.
    package func setType(_ request: IOMMUGroupTypeRequest) throws(IOMMUGroupError) {
        try state.withLock { (state) throws(IOMMUGroupError) in
            let kind: IOMMUDomainKind =
                switch request {
                case .identity: .identity
                case .dma: .dma
                case .dmaFQ: .dmaFQ
                case .auto: state.hasUntrusted ? .dma : parameters.defaultDomainKind
                }
            if state.hasUntrusted, kind != .dma {
                throw .invalid("group \(id) has an untrusted device: its type is DMA")
            }
            if request == .dmaFQ, state.defaultDomain.kind == .dma {
                state.defaultDomain.startFlushQueue()
                return
            }
            guard state.userCount == 0, !state.members.isEmpty else {
                throw .notPermitted("group \(id) has no device, or somebody uses it")
            }
            guard state.defaultDomain.kind != kind else { return }
            let domain = try Self.makeDomain(kind, driver)
            try set(domain, &state)
            state.defaultDomain = domain
        }
    }
}
