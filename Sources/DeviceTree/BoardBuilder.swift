// From a tree of nodes to a board: walks the tree once per kind of node and collects what is wrong.

import ACPITables
import AddressSpace

/// Turns nodes into the values of a ``BoardDescription``.
///
/// What is wrong goes to the log, and the walk goes on.
struct BoardBuilder {
    let tree: FlattenedDeviceTree
    var log = DiagnosticLog()
    /// `interrupt-map`s that have been read, by the index of their node.
    var interruptMaps: [Int: InterruptMap] = [:]
    /// Where the SMMUs' and others' claims on the physical address space are noted.
    var claims: [AddressClaim] = []

    /// Paths that things of an IORT have.
    var iortPaths: Set<String> = []

    init(tree: FlattenedDeviceTree) { self.tree = tree }

    /// - Parameters:
    ///   - iort: An IORT that describes SMMUs and their devices instead of the tree, or beside it.
    ///   - ram: RAM that somebody asks for, beside the tree's.
    mutating func build(iort: IORTTable? = nil, ram: [AddressRange] = []) -> BoardDescription {
        checkIsBoard()
        let kinds = tree.nodes.map(kind)
        checkInterruptControllers(kinds)
        checkSpelling()
        let memory = readMemory(kinds) + addRAM(ram)
        if memory.isEmpty { warnOfNoRAM() }
        let reserved = readReservedMemory()
        let smmus = nodes(.smmu, in: kinds).compactMap { readSMMU($0) }
        var parts = BoardParts(
            reserved: reserved,
            smmus: smmus,
            pmcgs: nodes(.pmcg, in: kinds).compactMap { readPMCG($0, smmus) },
            controllers: nodes(.interruptController, in: kinds).map { readInterruptController($0) },
            msiControllers: tree.nodes.filter { isMSIController($0) }.map { readMSIController($0) },
            hosts: nodes(.pcieHost, in: kinds).compactMap { readPCIeHost($0, reserved) },
            devices: nodes(.device, in: kinds).compactMap { readDevice($0, reserved) }
        )
        if let iort { add(iort, to: &parts) }
        if !parts.smmus.contains(where: \.isEnabled) {
            warn(
                tree.root,
                nil,
                iort == nil
                    ? "no arm,smmu-v3 node that is enabled" : "no SMMUv3, in the tree or in the IORT",
                "all DMA goes untranslated"
            )
        }
        checkReservedMemoryLinks(reserved)
        checkClaims()
        checkStreams(devices: parts.devices, hosts: parts.hosts)
        return BoardDescription(
            model: tree.root.string("model") ?? iort.map { "\($0.header.oemID) \($0.header.oemTableID)" },
            compatible: tree.root.compatible,
            memory: memory,
            reservedMemory: parts.reserved,
            interruptControllers: parts.controllers,
            msiControllers: parts.msiControllers,
            smmus: parts.smmus,
            pmcgs: parts.pmcgs,
            pcieHosts: parts.hosts,
            devices: parts.devices,
            warnings: log.warnings,
            tree: tree
        )
    }

    // MARK: - Kinds of node

    enum NodeKind {
        case memory, reserved, cpu, smmu, pmcg, interruptController, msiController, pcieHost, pciChild,
            device, ignored
    }

    private func nodes(_ kind: NodeKind, in kinds: [NodeKind]) -> [DeviceTreeNode] {
        zip(tree.nodes, kinds).filter { $0.1 == kind }.map(\.0)
    }

    /// What a node is to us.
    ///
    /// Disabled SMMUs count, for they are shown; other disabled nodes are ignored.
    private func kind(of node: DeviceTreeNode) -> NodeKind {
        if node.isCompatible(with: "arm,smmu-v3") { return .smmu }
        guard tree.isEnabled(node), let parent = tree.parent(of: node) else { return .ignored }
        if parent.path == "/reserved-memory" { return .reserved }
        if node.string("device_type") == "memory" { return .memory }
        if isBelow(node, "/cpus") { return .cpu }
        if node.isCompatible(with: "arm,smmu-v3-pmcg") { return .pmcg }
        if isBelowPCI(node) {
            // A host's legacy interrupt controller stands below it without being a function of it.
            return node.has("interrupt-controller") && !node.has("reg") ? .interruptController : .pciChild
        }
        if isPCIBus(node) { return .pcieHost }
        if node.has("interrupt-controller") { return .interruptController }
        if msiControllerKind(node) != .other { return .msiController }
        if node.has("iommus") || node.has("reg") { return .device }
        return .ignored
    }

    private func isBelow(_ node: DeviceTreeNode, _ path: String) -> Bool {
        node.path == path || node.path.hasPrefix(path + "/")
    }

    /// Whether a node is a PCI bus: a host, or a bridge below one.
    func isPCIBus(_ node: DeviceTreeNode) -> Bool { node.string("device_type") == "pci" }

    private func isBelowPCI(_ node: DeviceTreeNode) -> Bool {
        var next = tree.parent(of: node)
        while let current = next {
            if isPCIBus(current) { return true }
            next = tree.parent(of: current)
        }
        return false
    }

    private func isMSIController(_ node: DeviceTreeNode) -> Bool {
        node.has("msi-controller") && tree.isEnabled(node)
    }

    /// Device tree blobs carry other things than boards: overlays, and images for boot loaders.
    private mutating func checkIsBoard() {
        if tree.node(at: "/__fixups__") != nil || tree.node(at: "/fragment@0/__overlay__") != nil {
            report(
                tree.root,
                nil,
                "a device tree overlay, not a board",
                "apply it to its board first: fdtoverlay -i board.dtb -o whole.dtb overlay.dtbo"
            )
        }
        if tree.node(at: "/images") != nil, tree.node(at: "/configurations") != nil {
            report(
                tree.root,
                nil,
                "a FIT image, not a board",
                "take the board's blob out of it: dumpimage -T flat_dt -p NUMBER -o board.dtb image"
            )
        }
    }

    /// Finds words that look right and mean something else.
    private mutating func checkSpelling() {
        for node in tree.nodes {
            for binding in node.compatible where binding != "arm,smmu-v3" {
                guard binding.lowercased().filter({ $0 != "-" && $0 != "_" }) == "arm,smmuv3" else {
                    continue
                }
                report(node, "compatible", "\"\(binding)\" is unknown", "an SMMUv3 is \"arm,smmu-v3\"")
            }
            guard let status = node["status"] else { continue }
            let word = status.strings?.first ?? ""
            guard !["okay", "ok", "disabled", "reserved", "fail"].contains(word), !word.hasPrefix("fail-")
            else {
                continue
            }
            warn(
                node,
                "status",
                "\"\(word)\" is unknown",
                "it counts as disabled; write \"okay\" or leave it out"
            )
        }
    }

    // MARK: - Reporting

    /// Notes an error.
    mutating func report(
        _ node: DeviceTreeNode,
        _ property: String?,
        _ problem: String,
        _ remedy: String? = nil
    ) {
        log.report(
            DeviceTreeDiagnostic(path: node.path, property: property, problem: problem, remedy: remedy)
        )
    }

    /// Notes a warning.
    mutating func warn(
        _ node: DeviceTreeNode,
        _ property: String?,
        _ problem: String,
        _ remedy: String? = nil
    ) {
        log.warn(DeviceTreeDiagnostic(path: node.path, property: property, problem: problem, remedy: remedy))
    }

    // MARK: - Plain properties

    /// A property of one cell; nil where it is absent, or where it is something else, which is reported.
    mutating func cell(_ node: DeviceTreeNode, _ name: String) -> UInt32? {
        guard let property = node[name] else { return nil }
        guard let cell = property.cell else {
            report(node, name, "has \(count(property.value.count, "byte"))", "it is one cell of 4 bytes")
            return nil
        }
        return cell
    }

    /// A property of whole cells; nil where it is absent, or where it is something else, which is reported.
    mutating func cells(_ node: DeviceTreeNode, _ name: String) -> [UInt32]? {
        guard let property = node[name] else { return nil }
        guard let cells = property.cells else {
            report(
                node,
                name,
                "has \(count(property.value.count, "byte"))",
                "it is a list of cells of 4 bytes each"
            )
            return nil
        }
        return cells
    }

    /// A property that is a list of strings; nil where it is absent, or where it is something else, which is
    /// reported.
    mutating func strings(_ node: DeviceTreeNode, _ name: String) -> [String]? {
        guard let property = node[name] else { return nil }
        guard let strings = property.strings else {
            report(node, name, "has no NUL at its end", "it is a list of strings")
            return nil
        }
        return strings
    }

    /// The node with this phandle; nil where there is none, which is reported.
    mutating func node(
        phandle: UInt32,
        from node: DeviceTreeNode,
        _ property: String,
        entry: Int? = nil,
        _ remedy: String
    ) -> DeviceTreeNode? {
        if let target = tree.node(phandle: phandle) { return target }
        let place = entry.map { "entry \($0): " } ?? ""
        report(node, property, place + "no node has the phandle \(hex(phandle))", remedy)
        return nil
    }

    /// Whether DMA of a node is coherent with the caches: the first of `dma-coherent` and `dma-noncoherent`
    /// that is met on the way up decides, as in Linux.
    func isDMACoherent(_ node: DeviceTreeNode) -> Bool {
        var next: DeviceTreeNode? = node
        while let current = next {
            if current.has("dma-coherent") { return true }
            if current.has("dma-noncoherent") { return false }
            next = tree.parent(of: current)
        }
        return false
    }

    /// A list of phandles, each with as many cells behind it as `cellsProperty` of its target says.
    ///
    /// Where a target does not say, it is `defaultCells`; where that is nil, it must. The remedy says what
    /// the property should look like. Empty where the property is absent, nil where it is wrong, which is
    /// reported.
    mutating func phandleList(
        _ node: DeviceTreeNode,
        _ name: String,
        cellsProperty: String,
        defaultCells: UInt32?,
        _ remedy: String
    ) -> [(target: DeviceTreeNode, specifier: [UInt32])]? {
        guard let cells = cells(node, name) else { return node.has(name) ? nil : [] }
        var entries: [(target: DeviceTreeNode, specifier: [UInt32])] = []
        var rest = cells[...]
        while let phandle = rest.popFirst() {
            let entry = entries.count
            guard let target = self.node(phandle: phandle, from: node, name, entry: entry, remedy) else {
                return nil
            }
            guard let wanted = cellsBehind(target, cellsProperty, defaultCells) else {
                if !target.has(cellsProperty) {
                    report(node, name, "entry \(entry): \(target.path) has no \(cellsProperty)", remedy)
                }
                return nil
            }
            guard wanted <= rest.count else {
                report(
                    node,
                    name,
                    "entry \(entry): \(count(rest.count, "cell")) behind the phandle of \(target.path), "
                        + "which has \(cellsProperty) = <\(wanted)>",
                    remedy
                )
                return nil
            }
            entries.append((target, Array(rest.prefix(Int(wanted)))))
            rest = rest.dropFirst(Int(wanted))
        }
        return entries
    }

    /// How many cells stand behind a phandle of `target`.
    private mutating func cellsBehind(_ target: DeviceTreeNode, _ name: String, _ absent: UInt32?) -> UInt32?
    {
        // Where an SMMU says otherwise, that is reported there, once; its masters are read as they should be.
        if name == "#iommu-cells", target.isCompatible(with: "arm,smmu-v3") { return 1 }
        return target.has(name) ? cell(target, name) : absent
    }
}
