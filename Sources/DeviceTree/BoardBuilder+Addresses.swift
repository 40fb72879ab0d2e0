// Addresses: cells of a bus, `reg`, and the way up through every parent's `ranges`.

import AddressSpace

/// How many cells addresses and sizes of a node's children take.
struct BusCells: Equatable, CustomStringConvertible {
    let address: Int
    let size: Int
    /// Whether the node leaves one of them to the default.
    let isDefault: Bool

    var description: String {
        "#address-cells = <\(address)> and #size-cells = <\(size)>"
            + (isDefault ? " (in part by default)" : "")
    }
}

/// An address on some bus.
///
/// PCI addresses have a first cell that says in which space they lie.
struct BusAddress: Equatable {
    var space: UInt32 = 0
    var value: UInt64
}

extension BoardBuilder {
    /// Bits of `phys.hi` that say which PCI space an address lies in.
    static let pciSpaceMask: UInt32 = 0x0300_0000

    /// `#address-cells` and `#size-cells` of a node, for its children; nil where they are unusable, which is
    /// reported.
    ///
    /// The specification's defaults are 2 and 1.
    mutating func busCells(of bus: DeviceTreeNode) -> BusCells? {
        guard let address = cellCount(bus, "#address-cells", 2, limit: 3),
            let size = cellCount(bus, "#size-cells", 1, limit: 2)
        else { return nil }
        return BusCells(
            address: address,
            size: size,
            isDefault: !bus.has("#address-cells") || !bus.has("#size-cells")
        )
    }

    private mutating func cellCount(_ bus: DeviceTreeNode, _ name: String, _ absent: Int, limit: UInt32)
        -> Int?
    {
        guard bus.has(name) else { return absent }
        guard let cells = cell(bus, name) else { return nil }
        guard cells <= limit else {
            report(bus, name, "is <\(cells)>", "it is at most <\(limit)>")
            return nil
        }
        return Int(cells)
    }

    /// Takes an address off the front of some cells.
    func takeAddress(_ cells: inout ArraySlice<UInt32>, _ cellCount: Int) -> BusAddress {
        var address = BusAddress(value: 0)
        if cellCount == 3 { address.space = cells.popFirst() ?? 0 }
        for _ in 0..<min(cellCount, 2) { address.value = address.value << 32 | UInt64(cells.popFirst() ?? 0) }
        return address
    }

    /// Takes a size off the front of some cells.
    func takeSize(_ cells: inout ArraySlice<UInt32>, _ cellCount: Int) -> UInt64 {
        takeAddress(&cells, min(cellCount, 2)).value
    }

    /// The regions of `reg`, where the CPU sees them.
    ///
    /// - Parameters:
    ///   - node: The node.
    ///   - need: What it needs, for the message where `reg` is missing; nil where it may be missing.
    /// - Returns: The regions; nil where something is wrong, which is reported.
    mutating func registers(_ node: DeviceTreeNode, need: String?) -> [RegisterRegion]? {
        guard node.has("reg") else {
            guard let need else { return [] }
            report(node, "reg", "missing", need)
            return nil
        }
        guard let bus = tree.parent(of: node), let busCells = busCells(of: bus),
            let entries = regEntries(node, bus, busCells)
        else { return nil }
        let names = strings(node, "reg-names") ?? []
        var regions: [RegisterRegion] = []
        for (index, entry) in entries.enumerated() {
            guard let range = AddressRange(start: entry.address.value, byteCount: entry.size) else {
                report(
                    node,
                    "reg",
                    "entry \(index): \(hex(entry.size)) bytes at \(hex(entry.address.value))",
                    entry.size == 0 ? "a region is not empty" : "a region ends within 64 bits"
                )
                return nil
            }
            guard let translated = translate(range, entry.address.space, node, "reg", through: "ranges")
            else {
                return nil
            }
            let name = names.indices.contains(index) ? names[index] : nil
            regions.append(RegisterRegion(name: name, range: translated))
        }
        return regions
    }

    /// `reg` in entries of the bus, not yet translated.
    mutating func regEntries(_ node: DeviceTreeNode, _ bus: DeviceTreeNode, _ busCells: BusCells)
        -> [(address: BusAddress, size: UInt64)]?
    {
        let perEntry = busCells.address + busCells.size
        guard let cells = cells(node, "reg") else { return nil }
        guard perEntry > 0, !cells.isEmpty, cells.count.isMultiple(of: perEntry) else {
            report(
                node,
                "reg",
                "has \(count(cells.count, "cell"))",
                "\(bus.path) has \(busCells), so it is a multiple of \(perEntry)"
            )
            return nil
        }
        var rest = cells[...]
        var entries: [(address: BusAddress, size: UInt64)] = []
        while !rest.isEmpty {
            let address = takeAddress(&rest, busCells.address)
            entries.append((address, takeSize(&rest, busCells.size)))
        }
        return entries
    }

    /// Translates a range of a node's bus to CPU addresses, through `ranges` of every bus on the way up; or
    /// IOVAs through `dma-ranges`, where a bus without the property changes nothing.
    mutating func translate(
        _ range: AddressRange,
        _ space: UInt32,
        _ node: DeviceTreeNode,
        _ property: String,
        through rangesName: String
    ) -> AddressRange? {
        var range = range
        var space = space
        var next = tree.parent(of: node)
        while let bus = next, let parent = tree.parent(of: bus) {
            defer { next = parent }
            guard let rangesProperty = bus[rangesName] else {
                if rangesName == "dma-ranges" { continue }
                report(
                    node,
                    property,
                    "\(range) cannot be reached: \(bus.path) has no ranges",
                    "give \(bus.path) an empty ranges property if its addresses are its parent's"
                )
                return nil
            }
            guard !rangesProperty.value.isEmpty else { continue }
            guard let windows = self.windows(of: bus, in: parent, rangesName) else { return nil }
            guard let window = windows.first(where: { $0.contains(range, space) }),
                let moved = window.parent(of: range)
            else {
                report(
                    node,
                    property,
                    "\(range) lies in no entry of \(rangesName) of \(bus.path)",
                    windows.isEmpty
                        ? nil : "these are " + shortList(windows.map(\.description), separator: ", ")
                )
                return nil
            }
            (range, space) = (moved, window.parentAddress.space)
        }
        return range
    }

    /// The entries of `ranges` or `dma-ranges`; nil where they are malformed, which is reported.
    mutating func windows(of bus: DeviceTreeNode, in parent: DeviceTreeNode, _ name: String) -> [BusWindow]? {
        guard let own = busCells(of: bus), let above = busCells(of: parent), let cells = cells(bus, name)
        else {
            return nil
        }
        let perEntry = own.address + above.address + own.size
        guard perEntry > 0, cells.count.isMultiple(of: perEntry) else {
            report(
                bus,
                name,
                "has \(count(cells.count, "cell"))",
                "with \(own) here and #address-cells = <\(above.address)> in \(parent.path) it is a "
                    + "multiple of \(perEntry)"
            )
            return nil
        }
        var rest = cells[...]
        var windows: [BusWindow] = []
        while !rest.isEmpty {
            let child = takeAddress(&rest, own.address)
            let parentAddress = takeAddress(&rest, above.address)
            let size = takeSize(&rest, own.size)
            guard let range = AddressRange(start: child.value, byteCount: size),
                AddressRange(start: parentAddress.value, byteCount: size) != nil
            else {
                report(
                    bus,
                    name,
                    "entry \(windows.count): \(hex(size)) bytes from \(hex(child.value)) to "
                        + "\(hex(parentAddress.value))",
                    "a window is not empty and ends within 64 bits"
                )
                return nil
            }
            windows.append(BusWindow(child: range, childSpace: child.space, parentAddress: parentAddress))
        }
        return windows
    }
}

/// One entry of `ranges`.
struct BusWindow: Equatable, CustomStringConvertible {
    let child: AddressRange
    let childSpace: UInt32
    let parentAddress: BusAddress

    func contains(_ range: AddressRange, _ space: UInt32) -> Bool {
        let mask = BoardBuilder.pciSpaceMask
        return child.contains(range) && childSpace & mask == space & mask
    }

    /// Where a range that lies within ``child`` is on the parent's side.
    func parent(of range: AddressRange) -> AddressRange? {
        AddressRange(
            start: parentAddress.value &+ (range.first &- child.first),
            byteCount: range.byteCount
        )
    }

    /// Where the whole window is on the parent's side.
    var parentRange: AddressRange? { parent(of: child) }

    var description: String { child.description }
}
