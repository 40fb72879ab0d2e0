// Which PCI functions cannot be told apart, or can reach each other without the SMMU. Linux: pci_device_group.

/// What of a PCI function decides on its group.
package struct PCITopologyNode: Sendable {
    /// The Access Control Services of a port or function (PCIe, ACS Control Register).
    package struct AccessControl: OptionSet, Sendable, Hashable {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }

        /// ACS Source Validation.
        package static let sourceValidation = AccessControl(rawValue: 1 << 0)
        /// ACS P2P Request Redirect.
        package static let requestRedirect = AccessControl(rawValue: 1 << 2)
        /// ACS P2P Completion Redirect.
        package static let completionRedirect = AccessControl(rawValue: 1 << 3)
        /// ACS Upstream Forwarding.
        package static let upstreamForwarding = AccessControl(rawValue: 1 << 4)
        /// What keeps a function apart: REQ_ACS_FLAGS.
        package static let isolating: AccessControl = [
            .sourceValidation, .requestRedirect, .completionRedirect, .upstreamForwarding,
        ]
    }

    /// What the function is; ports of type 1 have a bus below.
    package enum Kind: Sendable {
        /// An endpoint, or a root complex integrated one.
        case endpoint
        /// A root port.
        case rootPort
        /// A switch's upstream port.
        case upstreamPort
        /// A switch's downstream port.
        case downstreamPort
        /// A bridge to conventional PCI: what is below has the bridge's requester ID.
        case conventionalBridge
    }

    package let kind: Kind
    /// Bus in bits 15:8, device in 7:3, function in 2:0.
    package let requesterID: UInt16
    /// The port above, by its requester ID; nil on a root bus.
    package let parent: UInt16?
    package let isMultiFunction: Bool
    /// The services that it has (ACS Capability Register); nil where it lacks the capability.
    package let accessCapability: AccessControl?
    /// The services that are enabled (ACS Control Register).
    package let accessControl: AccessControl
    /// Other requester IDs in whose name the function sends (quirks).
    package let aliases: [UInt16]

    package init(
        _ kind: Kind,
        at requesterID: UInt16,
        below parent: UInt16? = nil,
        isMultiFunction: Bool = false,
        accessCapability: AccessControl? = nil,
        accessControl: AccessControl = [],
        aliases: [UInt16] = []
    ) {
        self.kind = kind
        self.requesterID = requesterID
        self.parent = parent
        self.isMultiFunction = isMultiFunction
        self.accessCapability = accessCapability
        self.accessControl = accessControl
        self.aliases = aliases
    }

    /// Whether it keeps what it carries apart.
    ///
    /// Linux: pci_acs_enabled with REQ_ACS_FLAGS.
    fileprivate var isolates: Bool {
        switch kind {
        case .rootPort, .downstreamPort: hasServices
        case .conventionalBridge: false
        // Its only way past the SMMU is to functions of its own device.
        case .endpoint, .upstreamPort: !isMultiFunction || hasServices
        }
    }

    /// Whether every isolating service is on that it has; one that it lacks is not asked for.
    private var hasServices: Bool {
        guard let accessCapability else { return false }
        return accessControl.isSuperset(of: AccessControl.isolating.intersection(accessCapability))
    }
}

/// One segment's functions, and which share a group.
package struct PCIGrouping: Sendable {
    private var nodes: [UInt16: PCITopologyNode] = [:]

    package init(_ nodes: [PCITopologyNode]) {
        for node in nodes { self.nodes[node.requesterID] = node }
    }

    /// The requester IDs of the group that the function belongs to, ascending; nil for an unknown function.
    ///
    /// Whom a function is joined with is worked out for each by itself; groups are what is joined, directly or not.
    package func group(of requesterID: UInt16) -> [UInt16]? {
        guard nodes[requesterID] != nil else { return nil }
        let edges = nodes.keys.map { ($0, joined($0)) }
        var members: Set<UInt16> = [requesterID]
        var isGrowing = true
        while isGrowing {
            let before = members.count
            for (one, others) in edges where members.contains(one) || !members.isDisjoint(with: others) {
                members.insert(one)
                members.formUnion(others)
            }
            isGrowing = members.count > before
        }
        return members.sorted()
    }

    /// With whom a function shares its group by its own properties.
    private func joined(_ id: UInt16) -> Set<UInt16> {
        guard let node = nodes[id] else { return [] }
        var joined: Set<UInt16> = []
        // Requester IDs that it uses, and bridges in whose name it speaks.
        joined.formUnion(node.aliases.filter { nodes[$0] != nil })
        var top = node
        for port in pathUp(from: node) where port.kind == .conventionalBridge {
            joined.insert(port.requesterID)
            top = port
        }
        // Up to the last port that does not isolate: all below it can reach each other.
        let path = pathUp(from: top)
        if let last = path.lastIndex(where: { !$0.isolates }) {
            joined.formUnion(path[...last].map(\.requesterID))
        }
        // Functions of one device, unless each is kept apart.
        if node.isMultiFunction, !node.isolates {
            for other in nodes.values
            where other.requesterID & ~7 == id & ~7 && other.parent == node.parent && !other.isolates {
                joined.insert(other.requesterID)
            }
        }
        return joined
    }

    /// The ports above, the nearest first; each at most once, whatever the nodes say.
    private func pathUp(from node: PCITopologyNode) -> [PCITopologyNode] {
        var path: [PCITopologyNode] = []
        var seen: Set<UInt16> = [node.requesterID]
        var next = node.parent
        while let id = next, let port = nodes[id], seen.insert(id).inserted {
            path.append(port)
            next = port.parent
        }
        return path
    }
}
