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
