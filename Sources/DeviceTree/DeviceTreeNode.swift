// Nodes and properties of a device tree, as values that need no libfdt.

/// A property: a name and bytes, which its binding gives a meaning.
package struct DeviceTreeProperty: Equatable, Sendable {
    package let name: String
    package let value: [UInt8]

    package init(name: String, value: [UInt8]) {
        self.name = name
        self.value = value
    }

    /// The value as big-endian 32-bit cells; nil where its length is no multiple of 4 bytes.
    package var cells: [UInt32]? {
        guard value.count.isMultiple(of: 4) else { return nil }
        return stride(from: 0, to: value.count, by: 4).map { start in
            value[start..<start + 4].reduce(0) { $0 << 8 | UInt32($1) }
        }
    }

    /// The value as one cell; nil where it is not just that.
    package var cell: UInt32? {
        guard value.count == 4 else { return nil }
        return value.reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// The value as a list of NUL-terminated strings; nil where the last one has no end.
    package var strings: [String]? {
        guard value.last == 0 else { return value.isEmpty ? [] : nil }
        return value.dropLast().split(separator: 0, omittingEmptySubsequences: false).map(printable)
    }
}

/// A node of a device tree.
package struct DeviceTreeNode: Equatable, Sendable {
    /// Where it stands in ``FlattenedDeviceTree/nodes``.
    package let index: Int
    /// Its parent's index; nil for the root.
    package let parentIndex: Int?
    /// Its name with the unit address: `iommu@9050000`; empty for the root.
    package let name: String
    /// Its full path: `/soc/iommu@9050000`; `/` for the root.
    package let path: String
    /// Its properties in the order of the file.
    package let properties: [DeviceTreeProperty]
    /// Its children's indices in the order of the file.
    package internal(set) var childIndices: [Int] = []
    private let indexByName: [String: Int]

    init(index: Int, parentIndex: Int?, name: String, path: String, properties: [DeviceTreeProperty]) {
        self.index = index
        self.parentIndex = parentIndex
        self.name = name
        self.path = path
        self.properties = properties
        indexByName = Dictionary(
            properties.enumerated().map { ($1.name, $0) },
            uniquingKeysWith: { first, _ in first }
        )
    }

    /// The property with this name.
    package subscript(name: String) -> DeviceTreeProperty? { indexByName[name].map { properties[$0] } }

    /// Whether it has this property, whatever its value: how device trees say yes.
    package func has(_ name: String) -> Bool { indexByName[name] != nil }

    /// The first string of a property; nil where there is none.
    package func string(_ name: String) -> String? { self[name]?.strings?.first }

    /// The strings of `compatible`, the most specific first.
    package var compatible: [String] { self["compatible"]?.strings ?? [] }

    /// Whether `compatible` names this binding.
    package func isCompatible(with binding: String) -> Bool { compatible.contains(binding) }
}

/// Text of a file as it may be shown on a terminal: what is not printable ASCII becomes `?`.
func printable(_ bytes: some Sequence<UInt8>) -> String {
    String(decoding: bytes.map { (0x20..<0x7f).contains($0) ? $0 : UInt8(ascii: "?") }, as: UTF8.self)
}
