// What the nodes of an IORT are called on the board: paths like those of a device tree, under /iort.

import ACPITables

extension IORTNode {
    /// The node's path: `/iort/smmuv3@9050000`; the one of a named component is its name's parts,
    /// `/iort/_SB_/DMA0`.
    var boardPath: String {
        switch content {
        case .smmuV3(let smmu): "/iort/smmuv3@" + Self.digits(smmu.base)
        case .smmu(let base): "/iort/smmu@" + Self.digits(base)
        case .pmcg(let group): "/iort/pmcg@" + Self.digits(group.page0)
        case .rootComplex(let complex): "/iort/pcie@" + Self.digits(complex.segment)
        case .namedComponent(let component):
            "/iort/" + Self.segments(of: component.objectName).joined(separator: "/")
        case .itsGroup, .rmr, .unknown: "/iort/node@" + Self.digits(offset)
        }
    }

    /// The path of an ITS by its identifier.
    static func itsPath(_ identifier: UInt32) -> String { "/iort/its@" + digits(identifier) }

    /// The path of a reserved memory range.
    static func reservedPath(_ base: UInt64) -> String { "/iort/rmr@" + digits(base) }

    private static func digits(_ value: some BinaryInteger) -> String { String(value, radix: 16) }

    /// `\_SB_.PCI0.DMA0` in its parts.
    static func segments(of objectName: String) -> [String] {
        let parts = objectName.split { $0 == "\\" || $0 == "." || $0 == "/" }.map(String.init)
        return parts.isEmpty ? ["\\"] : parts
    }

    /// The last part of a name, as a tree's node might be called: without padding, in small letters.
    static func plainName(of objectName: String) -> String {
        var name = (segments(of: objectName).last ?? "")[...]
        while name.last == "_" { name.removeLast() }
        return name.lowercased()
    }
}

/// Finds the tree's devices by the names of an IORT.
struct IORTDeviceNames {
    /// Devices whose `smmud,acpi-path` is that name.
    private var byProperty: [String: Int] = [:]
    /// Devices without one, by their nodes' names without unit address, in small letters; nil where several have it.
    private var byNodeName: [String: Int?] = [:]
    /// Paths that a named component has.
    private var taken: Set<String> = []

    init(_ devices: [PlatformDevice], _ tree: FlattenedDeviceTree) {
        for (index, device) in devices.enumerated() {
            guard let node = tree.node(at: device.path) else { continue }
            if let name = node.string("smmud,acpi-path") {
                byProperty[name] = byProperty[name] ?? index
                continue
            }
            let name = node.name.prefix { $0 != "@" }.lowercased()
            byNodeName[name] = byNodeName[name] == nil ? .some(index) : .some(nil)
        }
    }

    /// The tree's device with this name: the one whose `smmud,acpi-path` says so, or else the only one whose node's
    /// name, without its unit address, is the name's last part.
    func device(named objectName: String) -> Int? {
        byProperty[objectName] ?? byNodeName[IORTNode.plainName(of: objectName)] ?? nil
    }

    /// Notes that a named component has this path; false where one has it already.
    mutating func take(_ path: String) -> Bool { taken.insert(path).inserted }
}
