// Interrupts: from a device's specifier through parents and nexus nodes to an input of a controller.

import DeviceModel

/// An `interrupt-map`, read.
struct InterruptMap {
    struct Entry {
        let address: [UInt32]
        let specifier: [UInt32]
        let parentIndex: Int
        let parentAddress: [UInt32]
        let parentSpecifier: [UInt32]
    }

    let addressCells: Int
    let interruptCells: Int
    let mask: [UInt32]
    let entries: [Entry]
    /// The first entry of each unit address and specifier, both under the mask.
    private let indexByKey: [[UInt32]: Int]

    init(addressCells: Int, interruptCells: Int, mask: [UInt32], entries: [Entry]) {
        self.addressCells = addressCells
        self.interruptCells = interruptCells
        self.mask = mask
        self.entries = entries
        let keys = entries.enumerated().map { (zip($1.address + $1.specifier, mask).map { $0 & $1 }, $0) }
        indexByKey = Dictionary(keys, uniquingKeysWith: { first, _ in first })
    }

    /// The first entry for a unit address and a specifier, both under the mask.
    func entry(address: [UInt32], specifier: [UInt32]) -> Entry? {
        let key = padded(address, to: addressCells) + padded(specifier, to: interruptCells)
        return indexByKey[zip(key, mask).map { $0 & $1 }].map { entries[$0] }
    }

    private func padded(_ cells: [UInt32], to count: Int) -> [UInt32] {
        Array((cells + Array(repeating: 0, count: count)).prefix(count))
    }
}

extension BoardBuilder {
    /// How many cells a specifier may have.
    ///
    /// No binding comes near.
    private static let maximumCells: UInt32 = 16
    /// How long a chain of interrupt parents may be: more than the deepest tree needs.
    private static let maximumHops = 256

    // MARK: - A device's interrupts

    /// The inputs that a node's interrupts go to, in order; empty where it has none.
    ///
    /// - Returns: nil where something is wrong, which is reported.
    mutating func interrupts(_ node: DeviceTreeNode) -> [InterruptIdentity]? {
        // The specification: where a node has both, `interrupts-extended` counts.
        if node.has("interrupts-extended") { return extendedInterrupts(node) }
        guard node.has("interrupts") else { return [] }
        guard let cells = cells(node, "interrupts"), let parent = interruptParent(node),
            let perEntry = interruptCells(parent)
        else { return nil }
        guard perEntry > 0, !cells.isEmpty, cells.count.isMultiple(of: perEntry) else {
            report(
                node,
                "interrupts",
                "has \(count(cells.count, "cell"))",
                "\(parent.path) has #interrupt-cells = <\(perEntry)>, so it is a multiple of \(perEntry)"
            )
            return nil
        }
        return stride(from: 0, to: cells.count, by: perEntry).allOrNil { start in
            resolve(
                Array(cells[start..<start + perEntry]),
                parent,
                node,
                "interrupts",
                entry: start / perEntry
            )
        }
    }

    private mutating func extendedInterrupts(_ node: DeviceTreeNode) -> [InterruptIdentity]? {
        let entries = phandleList(
            node,
            "interrupts-extended",
            cellsProperty: "#interrupt-cells",
            defaultCells: nil,
            "write <&controller cells...> for each interrupt"
        )
        guard let entries else { return nil }
        return entries.indices.allOrNil { index in
            resolve(
                entries[index].specifier,
                entries[index].target,
                node,
                "interrupts-extended",
                entry: index
            )
        }
    }

    /// The same with the names of `interrupt-names`.
    mutating func namedInterrupts(_ node: DeviceTreeNode) -> [NamedInterrupt]? {
        guard let identities = interrupts(node) else { return nil }
        let names = strings(node, "interrupt-names") ?? []
        return identities.enumerated().map { index, identity in
            NamedInterrupt(name: names.indices.contains(index) ? names[index] : nil, identity: identity)
        }
    }

    // MARK: - Parents

    /// The node that defines what a node's `interrupts` mean: what `interrupt-parent` names here or in the
    /// nearest node above that has one, unless a node with `#interrupt-cells` is met first.
    mutating func interruptParent(_ node: DeviceTreeNode) -> DeviceTreeNode? {
        var visited: Set<Int> = []
        var current = node
        while visited.count < Self.maximumHops, visited.insert(current.index).inserted {
            let next: DeviceTreeNode
            if current.has("interrupt-parent") {
                guard let phandle = cell(current, "interrupt-parent"),
                    let target = self.node(
                        phandle: phandle,
                        from: current,
                        "interrupt-parent",
                        "write <&label> of an interrupt controller"
                    )
                else { return nil }
                next = target
            } else if let parent = tree.parent(of: current) {
                next = parent
            } else {
                report(
                    node,
                    "interrupts",
                    "no interrupt-parent here or in any node above",
                    "write interrupt-parent = <&label> of an interrupt controller"
                )
                return nil
            }
            if next.has("#interrupt-cells") { return next }
            current = next
        }
        report(
            node,
            "interrupt-parent",
            "leads in a loop through \(current.path), which has no #interrupt-cells",
            "it leads to an interrupt controller"
        )
        return nil
    }

    private mutating func interruptCells(_ controller: DeviceTreeNode) -> Int? {
        guard let cells = cell(controller, "#interrupt-cells") else { return nil }
        guard cells <= Self.maximumCells else {
            report(controller, "#interrupt-cells", "is <\(cells)>", "it is at most <\(Self.maximumCells)>")
            return nil
        }
        return Int(cells)
    }

    // MARK: - Through nexus nodes to a controller

    /// Follows a specifier through `interrupt-map`s until a controller takes it.
    mutating func resolve(
        _ specifier: [UInt32],
        _ parent: DeviceTreeNode,
        _ node: DeviceTreeNode,
        _ property: String,
        entry: Int,
        unitAddress: [UInt32]? = nil
    ) -> InterruptIdentity? {
        var specifier = specifier
        var controller = parent
        var address = unitAddress ?? node["reg"]?.cells ?? []
        var visited: Set<Int> = []
        while controller.has("interrupt-map") {
            guard visited.insert(controller.index).inserted else {
                report(
                    node,
                    property,
                    "entry \(entry): the interrupt-map of \(controller.path) leads back to itself",
                    "a map leads to an interrupt controller"
                )
                return nil
            }
            guard let map = interruptMap(controller) else { return nil }
            guard let match = map.entry(address: address, specifier: specifier) else {
                report(
                    node,
                    property,
                    "entry \(entry): \(cellList(specifier)) is in no entry of interrupt-map of "
                        + controller.path
                )
                return nil
            }
            controller = tree.nodes[match.parentIndex]
            (specifier, address) = (match.parentSpecifier, match.parentAddress)
        }
        guard controller.has("interrupt-controller") else {
            report(
                node,
                property,
                "entry \(entry): \(controller.path) is no interrupt controller",
                "it needs interrupt-controller, or an interrupt-map"
            )
            return nil
        }
        return identity(specifier, controller, node, property, entry: entry)
    }

    mutating func interruptMap(_ nexus: DeviceTreeNode) -> InterruptMap? {
        if let known = interruptMaps[nexus.index] { return known }
        // A map that is wrong is read again for each user, so that each strict one reports it.
        guard let map = readInterruptMap(nexus) else { return nil }
        interruptMaps[nexus.index] = map
        return map
    }

    private mutating func readInterruptMap(_ nexus: DeviceTreeNode) -> InterruptMap? {
        guard let busCells = busCells(of: nexus), let interruptCells = interruptCells(nexus),
            let cells = cells(nexus, "interrupt-map")
        else { return nil }
        let keyCount = busCells.address + interruptCells
        guard let mask = interruptMapMask(nexus, keyCount) else { return nil }
        var entries: [InterruptMap.Entry] = []
        var rest = cells[...]
        while !rest.isEmpty {
            guard
                let entry = takeInterruptMapEntry(
                    &rest,
                    nexus,
                    addressCells: busCells.address,
                    interruptCells: interruptCells,
                    index: entries.count
                )
            else { return nil }
            entries.append(entry)
        }
        return InterruptMap(
            addressCells: busCells.address,
            interruptCells: interruptCells,
            mask: mask,
            entries: entries
        )
    }

    private mutating func interruptMapMask(_ nexus: DeviceTreeNode, _ keyCount: Int) -> [UInt32]? {
        guard nexus.has("interrupt-map-mask") else { return Array(repeating: .max, count: keyCount) }
        guard let mask = cells(nexus, "interrupt-map-mask") else { return nil }
        guard mask.count == keyCount else {
            report(
                nexus,
                "interrupt-map-mask",
                "has \(count(mask.count, "cell"))",
                "with this node's #address-cells and #interrupt-cells it has \(keyCount)"
            )
            return nil
        }
        return mask
    }

    private mutating func takeInterruptMapEntry(
        _ rest: inout ArraySlice<UInt32>,
        _ nexus: DeviceTreeNode,
        addressCells: Int,
        interruptCells: Int,
        index: Int
    ) -> InterruptMap.Entry? {
        let remedy =
            "an entry is a unit address, a specifier, a phandle, the parent's unit address and specifier"
        func take(_ number: Int) -> [UInt32]? {
            guard rest.count >= number else { return nil }
            defer { rest = rest.dropFirst(number) }
            return Array(rest.prefix(number))
        }
        guard let address = take(addressCells), let specifier = take(interruptCells),
            let phandle = take(1)?.first
        else {
            report(nexus, "interrupt-map", "ends within entry \(index)", remedy)
            return nil
        }
        guard let parent = node(phandle: phandle, from: nexus, "interrupt-map", entry: index, remedy) else {
            return nil
        }
        guard parent.has("#interrupt-cells") else {
            report(nexus, "interrupt-map", "entry \(index): \(parent.path) has no #interrupt-cells", remedy)
            return nil
        }
        // An absent #address-cells counts as 0 here, unlike for `reg`: the specification asks for it, and
        // trees that leave it out mean none.
        let parentAddressCells = parent.has("#address-cells") ? busCells(of: parent)?.address : 0
        guard let parentAddressCells, let parentCells = self.interruptCells(parent) else { return nil }
        guard let parentAddress = take(parentAddressCells), let parentSpecifier = take(parentCells) else {
            report(nexus, "interrupt-map", "ends within entry \(index)", remedy)
            return nil
        }
        return InterruptMap.Entry(
            address: address,
            specifier: specifier,
            parentIndex: parent.index,
            parentAddress: parentAddress,
            parentSpecifier: parentSpecifier
        )
    }
}

extension Sequence {
    /// Maps every element, or nothing if the transformation of one is nil.
    ///
    /// Goes through all of them, so that each problem is reported.
    func allOrNil<Result>(_ transform: (Element) -> Result?) -> [Result]? {
        var results: [Result]? = []
        for element in self {
            let result = transform(element)
            if let result { results?.append(result) } else { results = nil }
        }
        return results
    }
}
