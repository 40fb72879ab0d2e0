// PCIe host bridges.

import AddressSpace
import DeviceModel

extension BoardBuilder {
    mutating func readPCIeHost(_ node: DeviceTreeNode, _ reserved: [ReservedMemory]) -> PCIeHostNode? {
        checkPCICells(node)
        let registers = self.registers(node, need: "a PCIe host bridge needs its configuration window")
        let busRange = self.busRange(node)
        let windows = outboundWindows(node)
        let inbound = inboundWindows(node)
        let iommuMap = requesterMap(node, "iommu-map")
        let msiMap = requesterMap(node, "msi-map")
        let msiParent = self.msiParent(node, isCellOptional: true)
        let interrupts = namedInterrupts(node)
        let routes = interruptRoutes(node)
        guard let registers, let busRange, let windows, let iommuMap, let msiMap, let interrupts else {
            return nil
        }
        let ecam = self.ecam(node, registers)
        claimWindows(node, ecam == nil ? .device : .pcieHost, registers, windows)
        return PCIeHostNode(
            path: node.path,
            compatible: node.compatible,
            registers: registers,
            ecam: ecam,
            busRange: shortened(busRange, to: ecam, node),
            windows: windows,
            inboundWindows: inbound,
            iommuMap: iommuMap.entries,
            iommuMapMask: iommuMap.mask,
            msiMap: msiMap.entries,
            msiMapMask: msiMap.mask,
            msiParent: msiParent,
            interrupts: interrupts,
            interruptRoutes: routes,
            children: children(of: node, firstBus: busRange.lowerBound, reserved),
            isDMACoherent: isDMACoherent(node),
            supportsATS: node.has("ats-supported"),
            domain: cell(node, "linux,pci-domain")
        )
    }

    private mutating func checkPCICells(_ node: DeviceTreeNode) {
        for (name, right) in [("#address-cells", UInt32(3)), ("#size-cells", 2)]
        where node[name]?.cell != right {
            report(
                node,
                name,
                node[name].map { $0.cell.map { "is <\($0)>" } ?? "is not one cell" } ?? "missing",
                "a PCIe host bridge has \(name) = <\(right)>"
            )
        }
    }

    // MARK: - Configuration window and buses

    /// The ECAM window, where the binding has one.
    private func ecam(_ node: DeviceTreeNode, _ registers: [RegisterRegion]) -> AddressRange? {
        guard node.compatible.contains(where: { $0.hasSuffix("-ecam") || $0.contains("-ecam-") }) else {
            return nil
        }
        return (registers.first { $0.name == "config" || $0.name == "ecam" } ?? registers.first)?.range
    }

    /// `bus-range`, all buses where it is absent; nil where it is wrong, which is reported.
    private mutating func busRange(_ node: DeviceTreeNode) -> ClosedRange<UInt8>? {
        guard node.has("bus-range") else { return 0...255 }
        guard let cells = cells(node, "bus-range") else { return nil }
        guard cells.count == 2, let first = UInt8(exactly: cells[0]), let last = UInt8(exactly: cells[1]),
            first <= last
        else {
            report(node, "bus-range", "is \(cellList(cells))", "it is <first last>, both from 0 to 255")
            return nil
        }
        return first...last
    }

    /// Leaves the buses that the ECAM window has room for, as Linux does.
    private mutating func shortened(
        _ buses: ClosedRange<UInt8>,
        to ecam: AddressRange?,
        _ node: DeviceTreeNode
    )
        -> ClosedRange<UInt8>
    {
        guard let ecam, ecam.byteCount != 0 else { return buses }
        let room = ecam.byteCount >> 20
        guard room < UInt64(buses.count) else { return buses }
        guard room > 0 else {
            report(node, "reg", "\(ecam) has no room for one bus", "ECAM takes 1 MiB for each bus")
            return buses
        }
        let last = buses.lowerBound + UInt8(truncatingIfNeeded: room - 1)
        warn(
            node,
            "reg",
            "\(ecam) has room for \(room) of the \(buses.count) buses of bus-range",
            "buses above \(hex(last)) are left out"
        )
        return buses.lowerBound...last
    }

    // MARK: - Windows

    private mutating func outboundWindows(_ node: DeviceTreeNode) -> [PCIWindow]? {
        guard node.has("ranges") else {
            warn(node, "ranges", "missing", "no BAR of a function can be reached")
            return []
        }
        guard let parent = tree.parent(of: node), let entries = windows(of: node, in: parent, "ranges") else {
            return nil
        }
        return entries.allOrNil { entry in
            guard let range = entry.parentRange,
                let cpuRange = translate(range, entry.parentAddress.space, node, "ranges", through: "ranges")
            else { return nil }
            return PCIWindow(
                space: Self.pciSpace(entry.childSpace),
                isPrefetchable: entry.childSpace & 0x4000_0000 != 0,
                pciAddress: entry.child.first,
                cpuRange: cpuRange
            )
        }
    }

    private static func pciSpace(_ high: UInt32) -> PCIWindow.Space {
        switch high & pciSpaceMask {
        case 0: .configuration
        case 0x0100_0000: .io
        case 0x0200_0000: .memory32
        default: .memory64
        }
    }

    private mutating func inboundWindows(_ node: DeviceTreeNode) -> [PCIInboundWindow]? {
        guard node.has("dma-ranges"), let parent = tree.parent(of: node) else { return nil }
        return windows(of: node, in: parent, "dma-ranges")?.map {
            PCIInboundWindow(pciRange: $0.child, cpuAddress: $0.parentAddress.value)
        }
    }

    private mutating func claimWindows(
        _ node: DeviceTreeNode,
        _ kind: AddressClaim.Kind,
        _ registers: [RegisterRegion],
        _ windows: [PCIWindow]
    ) {
        claim(registers, kind, node)
        let regions = windows.map { RegisterRegion(name: nil, range: $0.cpuRange) }
        claim(regions, kind, node, property: "ranges")
    }

    // MARK: - Requester maps

    /// `iommu-map` or `msi-map` and its mask; nil where they are wrong, which is reported.
    private mutating func requesterMap(_ node: DeviceTreeNode, _ name: String)
        -> (entries: [RequesterMapEntry], mask: UInt32)?
    {
        let mask = node.has(name + "-mask") ? cell(node, name + "-mask") : .max
        guard let mask, let cells = cells(node, name) else {
            return node.has(name) ? nil : ([], mask ?? .max)
        }
        guard cells.count.isMultiple(of: 4), !cells.isEmpty else {
            report(
                node,
                name,
                "has \(count(cells.count, "cell"))",
                "an entry has 4: "
                    + (name == "iommu-map"
                        ? "<rid-base &smmu stream-base length>" : "<rid-base &its device-base length>")
            )
            return nil
        }
        let entries = stride(from: 0, to: cells.count, by: 4).allOrNil { start in
            requesterMapEntry(Array(cells[start..<start + 4]), node, name, entry: start / 4, mask: mask)
        }
        guard let entries else { return nil }
        checkRequesters(entries, node, name)
        return (entries, mask)
    }

    private mutating func requesterMapEntry(
        _ cells: [UInt32],
        _ node: DeviceTreeNode,
        _ name: String,
        entry: Int,
        mask: UInt32
    ) -> RequesterMapEntry? {
        let (base, output, length) = (cells[0], cells[2], cells[3])
        let isIOMMU = name == "iommu-map"
        let remedy = "write <rid-base \(isIOMMU ? "&smmu stream-base" : "&its device-base") length>"
        guard let target = self.node(phandle: cells[1], from: node, name, entry: entry, remedy) else {
            return nil
        }
        guard target.has(isIOMMU ? "#iommu-cells" : "msi-controller") else {
            report(
                node,
                name,
                "entry \(entry): \(target.path) is no \(isIOMMU ? "IOMMU" : "MSI controller")",
                "it needs \(isIOMMU ? "#iommu-cells" : "msi-controller"); " + remedy
            )
            return nil
        }
        guard length > 0, base.addingReportingOverflow(length - 1).overflow == false,
            output.addingReportingOverflow(length - 1).overflow == false
        else {
            report(
                node,
                name,
                "entry \(entry): \(cellList(cells)) has a length of \(hex(length))",
                "it covers at least one RequesterID and ends within 32 bits"
            )
            return nil
        }
        guard base & ~mask == 0 else {
            report(
                node,
                name,
                "entry \(entry): rid-base \(hex(base)) has bits that \(name)-mask \(hex(mask)) takes away",
                "no RequesterID could ever match"
            )
            return nil
        }
        let kind = isIOMMU ? iommuKind(target, streamID: output) : nil
        if case .disabledSMMUv3 = kind {
            warn(node, name, "\(target.path) is disabled", "DMA of these functions goes untranslated")
        }
        return RequesterMapEntry(
            requesterBase: base,
            targetPath: target.path,
            iommuKind: kind,
            outputBase: output,
            length: length
        )
    }

    /// Warns of RequesterIDs that two entries cover: the first one wins.
    private mutating func checkRequesters(
        _ entries: [RequesterMapEntry],
        _ node: DeviceTreeNode,
        _ name: String
    ) {
        let sorted = entries.enumerated().sorted {
            ($0.element.requesterBase, $0.offset) < ($1.element.requesterBase, $1.offset)
        }
        for (left, right) in zip(sorted, sorted.dropFirst())
        where right.element.requesterBase - left.element.requesterBase < left.element.length {
            let (first, second) = (min(left.offset, right.offset), max(left.offset, right.offset))
            warn(
                node,
                name,
                "entries \(first) and \(second) both cover RequesterID \(hex(right.element.requesterBase))",
                "entry \(first) wins"
            )
        }
    }

    // MARK: - Pins

    /// `interrupt-map` of the host, each entry followed to its controller.
    private mutating func interruptRoutes(_ node: DeviceTreeNode) -> [PCIInterruptRoute] {
        guard node.has("interrupt-map"), let map = interruptMap(node), map.addressCells == 3,
            map.interruptCells == 1
        else { return [] }
        return map.entries.enumerated().compactMap { index, entry in
            let identity = resolve(
                entry.parentSpecifier,
                tree.nodes[entry.parentIndex],
                node,
                "interrupt-map",
                entry: index,
                unitAddress: entry.parentAddress
            )
            guard let identity else { return nil }
            return PCIInterruptRoute(
                requesterID: UInt16(truncatingIfNeeded: entry.address[0] >> 8 & map.mask[0] >> 8),
                requesterMask: UInt16(truncatingIfNeeded: map.mask[0] >> 8),
                pin: entry.specifier[0] & map.mask[3],
                pinMask: map.mask[3],
                identity: identity
            )
        }
    }

    // MARK: - Children

    /// The nodes below a host, at any depth, that stand for functions; in the order of the file.
    private mutating func children(of host: DeviceTreeNode, firstBus: UInt8, _ reserved: [ReservedMemory])
        -> [PCIChildNode]
    {
        var children: [PCIChildNode] = []
        var pending: [(node: DeviceTreeNode, parent: DeviceTreeNode, bus: UInt8?)] = []
        func push(_ parent: DeviceTreeNode, bus: UInt8?) {
            let nodes = tree.children(of: parent).filter { tree.isEnabled($0) && $0.has("reg") }
            pending += nodes.reversed().map { ($0, parent, bus) }
        }
        push(host, bus: firstBus)
        while let (node, parent, bus) = pending.popLast() {
            guard let child = pciChild(node, parent, bus: bus, reserved) else { continue }
            children.append(child)
            // A bridge says which bus is behind it, or nobody knows before it is enumerated.
            guard isPCIBus(node) else { continue }
            push(node, bus: node["bus-range"]?.cells?.first.flatMap { UInt8(exactly: $0) })
        }
        return children
    }

    private mutating func pciChild(
        _ node: DeviceTreeNode,
        _ parent: DeviceTreeNode,
        bus: UInt8?,
        _ reserved: [ReservedMemory]
    ) -> PCIChildNode? {
        guard let cells = cells(node, "reg") else { return nil }
        guard cells.count >= 5, cells.count.isMultiple(of: 5) else {
            report(
                node,
                "reg",
                "has \(count(cells.count, "cell"))",
                "a PCI function's reg has 5 for each entry; the first is device << 11 | function << 8"
            )
            return nil
        }
        if node.has("iommus") {
            warn(
                node,
                "iommus",
                "has no effect on a PCI function",
                "the host's iommu-map gives it its StreamID"
            )
        }
        let deviceFunction = UInt8(truncatingIfNeeded: cells[0] >> 8)
        let requesterID = bus.map { UInt16($0) << 8 | UInt16(deviceFunction) }
        let regions = memoryRegions(of: node) ?? []
        return PCIChildNode(
            path: node.path,
            compatible: node.compatible,
            deviceFunction: deviceFunction,
            requesterID: requesterID,
            parentPath: parent.path,
            properties: node.properties,
            reservedIOVAs: reservedIOVAs(of: node, regions: regions, reserved)
        )
    }
}
