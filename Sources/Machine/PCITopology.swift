// The PCI topology of a host, as the IOMMU core groups functions by it.

import DeviceTree
import IOMMU
import PCIFunction

/// Configuration space, as a CPU reads it.
protocol PCIConfiguration: Sendable {
    func readConfiguration(at offset: Int, byteCount: Int) -> UInt32
    func writeConfiguration(_ value: UInt32, at offset: Int, byteCount: Int)
}

/// A function's own; what its model would have to be asked for is not looked at.
struct FunctionConfiguration: PCIConfiguration {
    let function: PCIFunction

    func readConfiguration(at offset: Int, byteCount: Int) -> UInt32 {
        function.readStoredConfiguration(at: offset, byteCount: byteCount)
    }

    func writeConfiguration(_ value: UInt32, at offset: Int, byteCount: Int) {
        function.writeConfiguration(value, at: offset, byteCount: byteCount)
    }
}

extension PCIRootPort: PCIConfiguration {}

extension PCIConfiguration {
    /// Where the ACS extended capability (0x000D) is; nil where there is none.
    private var accessControlOffset: Int? {
        var offset = 0x100
        // As many as fit: a chain that a device makes into a ring ends too.
        for _ in 0..<((4096 - 0x100) / 8) {
            let header = readConfiguration(at: offset, byteCount: 4)
            guard header != 0, header != .max else { return nil }
            if header & 0xFFFF == 0x000D { return offset }
            offset = Int(header >> 20)
            guard offset >= 0x100, offset & 3 == 0 else { return nil }
        }
        return nil
    }

    /// What it can keep apart, and what of it is enabled; nil without the capability.
    var accessControl: (capability: UInt16, control: UInt16)? {
        accessControlOffset.map { offset in
            (
                UInt16(truncatingIfNeeded: readConfiguration(at: offset + 4, byteCount: 2)),
                UInt16(truncatingIfNeeded: readConfiguration(at: offset + 6, byteCount: 2))
            )
        }
    }

    /// Enables all of what keeps functions apart that there is.
    ///
    /// Linux: pci_enable_acs, which the IOMMU core asks for before devices are found.
    func enableAccessControl() {
        guard let offset = accessControlOffset, let (capability, control) = accessControl else { return }
        let wanted = UInt16(PCITopologyNode.AccessControl.isolating.rawValue) & capability
        writeConfiguration(UInt32(control | wanted), at: offset + 6, byteCount: 2)
    }

    /// Header Type, bit 7.
    var isMultiFunction: Bool { readConfiguration(at: 0x0E, byteCount: 1) & 0x80 != 0 }
}

/// Everything below one host bridge, by requester IDs as the device tree gives them.
struct PCITopology {
    /// What stands somewhere, where there is a model of it.
    typealias Models = [UInt16: any PCIConfiguration]

    private let host: PCIeHostNode
    private let grouping: PCIGrouping
    private let untrustedPorts: Set<String>

    /// - Parameters:
    ///   - host: The host bridge.
    ///   - requesterIDs: Those of the functions that are known.
    ///   - models: Functions and ports with a model.
    init(_ host: PCIeHostNode, requesterIDs: Set<UInt16>, models: Models) {
        self.host = host
        var nodes: [PCITopologyNode] = []
        let parents = Set(host.children.map(\.parentPath))
        let paths = Dictionary(host.children.map { ($0.path, $0) }) { first, _ in first }
        for child in host.children where parents.contains(child.path) {
            guard let requesterID = child.requesterID else { continue }
            nodes.append(
                Self.node(
                    Self.kind(of: child, paths),
                    requesterID,
                    below: paths[child.parentPath]?.requesterID,
                    requesterIDs,
                    models
                )
            )
        }
        let bridges = Set(nodes.map(\.requesterID))
        for requesterID in requesterIDs.sorted() where !bridges.contains(requesterID) {
            let child = host.children.first { $0.requesterID == requesterID }
            nodes.append(
                Self.node(
                    .endpoint,
                    requesterID,
                    below: child.flatMap { paths[$0.parentPath]?.requesterID },
                    requesterIDs,
                    models
                )
            )
        }
        grouping = PCIGrouping(nodes)
        untrustedPorts = Set(
            host.children.filter { $0.properties.contains { $0.name == "external-facing" } }.map(\.path)
        )
    }

    /// A bridge on the host's own bus is a root port; below it a switch has its upstream port, and downstream ports
    /// below that.
    private static func kind(of child: PCIChildNode, _ paths: [String: PCIChildNode]) -> PCITopologyNode.Kind
    {
        if child.compatible.contains("pci-bridge") { return .conventionalBridge }
        var depth = 0
        var path = child.parentPath
        while let parent = paths[path], depth <= paths.count {
            depth += 1
            path = parent.parentPath
        }
        return depth == 0 ? .rootPort : depth % 2 == 1 ? .upstreamPort : .downstreamPort
    }

    private static func node(
        _ kind: PCITopologyNode.Kind,
        _ requesterID: UInt16,
        below parent: UInt16?,
        _ requesterIDs: Set<UInt16>,
        _ models: Models
    ) -> PCITopologyNode {
        let model = models[requesterID]
        let access = model?.accessControl
        func services(_ bits: UInt16) -> PCITopologyNode.AccessControl {
            PCITopologyNode.AccessControl(rawValue: UInt8(truncatingIfNeeded: bits))
        }
        let hasSibling = requesterIDs.contains { $0 != requesterID && $0 & ~7 == requesterID & ~7 }
        return PCITopologyNode(
            kind,
            at: requesterID,
            below: parent,
            isMultiFunction: hasSibling || model?.isMultiFunction ?? false,
            accessCapability: access.map { services($0.capability) },
            accessControl: services(access?.control ?? 0)
        )
    }

    /// The requester IDs that share a group with this one, its own among them.
    func group(of requesterID: UInt16) -> [UInt16] { grouping.group(of: requesterID) ?? [requesterID] }

    /// Whether it is below a port with `external-facing`: what is plugged in there nobody vouches for.
    func isUntrusted(_ requesterID: UInt16) -> Bool {
        var path = host.children.first { $0.requesterID == requesterID }?.parentPath
        var left = host.children.count
        while let port = path, left >= 0 {
            if untrustedPorts.contains(port) { return true }
            path = host.children.first { $0.path == port }?.parentPath
            left -= 1
        }
        return false
    }
}
