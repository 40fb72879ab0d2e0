// RAM and reserved memory.

import AddressSpace

extension BoardBuilder {
    /// The widest physical address of an SMMUv3 (SMMU_IDR5.OAS = 0b110).
    private static let widestPhysicalAddress: UInt64 = (1 << 52) - 1
    /// RAM comes in whole pages of the smallest size that a walk knows.
    private static let pageSize: UInt64 = 0x1000

    // MARK: - RAM

    mutating func readMemory(_ kinds: [NodeKind]) -> [MemoryRegion] {
        var regions: [MemoryRegion] = []
        for (node, kind) in zip(tree.nodes, kinds) where kind == .memory { regions += readMemory(node) }
        for (node, kind) in zip(tree.nodes, kinds) where kind != .memory && kind != .ignored {
            checkIsNoMemory(node)
        }
        return regions
    }

    mutating func warnOfNoRAM() {
        warn(
            tree.root,
            nil,
            "no RAM",
            "boards whose firmware fills it in need a node memory@... with device_type = "
                + "\"memory\" and a reg"
        )
    }

    /// RAM that no tree has.
    mutating func addRAM(_ ranges: [AddressRange]) -> [MemoryRegion] {
        ranges.compactMap { range in
            let isGood =
                range.last <= Self.widestPhysicalAddress && range.first.isMultiple(of: Self.pageSize)
                && range.byteCount.isMultiple(of: Self.pageSize)
            guard isGood else {
                log.report(
                    DeviceTreeDiagnostic(
                        path: "--ram",
                        problem: "\(range)",
                        remedy: "RAM starts and ends on 4 KiB, and within 52 bits",
                        origin: .request
                    )
                )
                return nil
            }
            claims.append(
                AddressClaim(range: range, kind: .ram, path: "--ram", property: "\(range)", origin: .request)
            )
            return MemoryRegion(path: "/memory@" + String(range.first, radix: 16), range: range)
        }
    }

    private mutating func readMemory(_ node: DeviceTreeNode) -> [MemoryRegion] {
        guard node.has("reg") else {
            report(node, "reg", "missing", "a memory node needs a range of RAM")
            return []
        }
        guard let bus = tree.parent(of: node), let cells = busCells(of: bus),
            let entries = regEntries(node, bus, cells)
        else { return [] }
        let numaNode = cell(node, "numa-node-id")
        return entries.compactMap { address, size in
            guard size != 0 else {
                warn(
                    node,
                    "reg",
                    "a range of 0 bytes at \(hex(address.value))",
                    "firmware may mean to fill it in"
                )
                return nil
            }
            guard let range = ramRange(address, size, node) else { return nil }
            claim([RegisterRegion(name: nil, range: range)], .ram, node)
            return MemoryRegion(path: node.path, range: range, numaNode: numaNode)
        }
    }

    private mutating func ramRange(_ address: BusAddress, _ size: UInt64, _ node: DeviceTreeNode)
        -> AddressRange?
    {
        guard let range = AddressRange(start: address.value, byteCount: size),
            range.last <= Self.widestPhysicalAddress
        else {
            report(
                node,
                "reg",
                "\(hex(size)) bytes at \(hex(address.value)) do not fit",
                "physical addresses have at most 52 bits"
            )
            return nil
        }
        guard let translated = translate(range, address.space, node, "reg", through: "ranges") else {
            return nil
        }
        guard translated.first.isMultiple(of: Self.pageSize), size.isMultiple(of: Self.pageSize) else {
            report(node, "reg", "\(translated) is no whole number of pages", "RAM starts and ends on 4 KiB")
            return nil
        }
        return translated
    }

    /// A node that looks like RAM and is not, for the want of one property.
    private mutating func checkIsNoMemory(_ node: DeviceTreeNode) {
        guard node.parentIndex == 0, node.name == "memory" || node.name.hasPrefix("memory@") else { return }
        warn(
            node,
            "device_type",
            node.has("device_type") ? "is not \"memory\"" : "missing",
            "without device_type = \"memory\" it is no RAM"
        )
    }

    // MARK: - Reserved memory

    mutating func readReservedMemory() -> [ReservedMemory] {
        guard let parent = tree.node(at: "/reserved-memory"), tree.isEnabled(parent) else { return [] }
        return tree.children(of: parent).filter { tree.isEnabled($0) }.compactMap { readReservedMemory($0) }
    }

    private mutating func readReservedMemory(_ node: DeviceTreeNode) -> ReservedMemory? {
        guard let regions = registers(node, need: nil) else { return nil }
        let hasOnlyAddresses = regions.isEmpty && !node.has("size")
        let addresses = readIOMMUAddresses(node)
        if hasOnlyAddresses, !node.has("iommu-addresses") {
            report(
                node,
                "reg",
                "missing",
                "reserved memory needs a reg, a size, or iommu-addresses where only IOVAs are set apart"
            )
            return nil
        }
        let dynamic = regions.isEmpty && node.has("size") ? readDynamicReservation(node) : nil
        return ReservedMemory(
            path: node.path,
            compatible: node.compatible,
            range: regions.first?.range,
            ranges: regions.map(\.range),
            dynamic: dynamic,
            isNoMap: node.has("no-map"),
            isReusable: node.has("reusable"),
            iommuAddresses: addresses
        )
    }

    private mutating func readDynamicReservation(_ node: DeviceTreeNode) -> DynamicReservation? {
        guard let parent = tree.parent(of: node), let busCells = busCells(of: parent),
            let size = number(node, "size", cells: busCells.size)
        else { return nil }
        let alignment = number(node, "alignment", cells: busCells.size)
        var rest = (cells(node, "alloc-ranges") ?? [])[...]
        let perEntry = busCells.address + busCells.size
        guard perEntry > 0, rest.count.isMultiple(of: perEntry) else {
            report(
                node,
                "alloc-ranges",
                "has \(count(rest.count, "cell"))",
                "it is a multiple of \(perEntry), like reg"
            )
            return nil
        }
        var allowed: [AddressRange] = []
        while !rest.isEmpty {
            let address = takeAddress(&rest, busCells.address)
            let size = takeSize(&rest, busCells.size)
            if let range = AddressRange(start: address.value, byteCount: size) { allowed.append(range) }
        }
        return DynamicReservation(byteCount: size, alignment: alignment, allowedRanges: allowed)
    }

    /// A number of as many cells as its bus gives sizes; nil where it is absent, or wrong, which is reported.
    private mutating func number(_ node: DeviceTreeNode, _ name: String, cells cellCount: Int) -> UInt64? {
        guard let cells = cells(node, name) else { return nil }
        guard cells.count == cellCount, cellCount > 0 else {
            report(
                node,
                name,
                "has \(count(cells.count, "cell"))",
                "it has as many as #size-cells of \(tree.parent(of: node)?.path ?? "/") says: \(cellCount)"
            )
            return nil
        }
        var rest = cells[...]
        return takeSize(&rest, cellCount)
    }

    // MARK: - iommu-addresses

    private mutating func readIOMMUAddresses(_ node: DeviceTreeNode) -> [IOMMUAddress] {
        let name = "iommu-addresses"
        guard let cells = cells(node, name) else { return [] }
        var rest = cells[...]
        var addresses: [IOMMUAddress] = []
        var entry = 0
        while let phandle = rest.popFirst() {
            let remedy = "write <&device address size> with the cells of the device's bus"
            guard let device = self.node(phandle: phandle, from: node, name, entry: entry, remedy),
                let bus = tree.parent(of: device), let busCells = busCells(of: bus)
            else { return addresses }
            guard rest.count >= busCells.address + busCells.size else {
                report(
                    node,
                    name,
                    "ends within entry \(entry)",
                    "an entry for \(device.path) is its phandle, "
                        + "\(count(busCells.address, "cell")) of address and "
                        + "\(busCells.size) of size, as \(bus.path) says"
                )
                return addresses
            }
            let address = takeAddress(&rest, busCells.address)
            let size = takeSize(&rest, busCells.size)
            if let range = iova(address, size, device, node, entry: entry) {
                addresses.append(IOMMUAddress(devicePath: device.path, range: range))
            }
            entry += 1
        }
        return addresses
    }

    private mutating func iova(
        _ address: BusAddress,
        _ size: UInt64,
        _ device: DeviceTreeNode,
        _ node: DeviceTreeNode,
        entry: Int
    ) -> AddressRange? {
        guard size != 0 else {
            warn(node, "iommu-addresses", "entry \(entry): 0 bytes for \(device.path)", "it is ignored")
            return nil
        }
        guard let range = AddressRange(start: address.value, byteCount: size) else {
            report(
                node,
                "iommu-addresses",
                "entry \(entry): \(hex(size)) bytes at \(hex(address.value))",
                "a range ends within 64 bits"
            )
            return nil
        }
        // The device's bus may move addresses on their way to the IOMMU.
        return translate(range, address.space, device, "iommu-addresses", through: "dma-ranges")
    }

    /// The IOVAs that are set apart for a device: of each region that its `memory-region` names, the entries
    /// that name the device in turn.
    mutating func reservedIOVAs(
        of node: DeviceTreeNode,
        regions: [String],
        _ reserved: [ReservedMemory]
    ) -> [ReservedIOVA] {
        reserved.filter { regions.contains($0.path) }.flatMap { region in
            region.iommuAddresses.filter { $0.devicePath == node.path }.map { address in
                let isDirect = region.range == address.range
                if let range = region.range, !isDirect {
                    warn(
                        node,
                        "memory-region",
                        "\(region.path) is at \(range), and its iommu-addresses say \(address.range)",
                        "it is mapped directly only where both are the same; here the IOVAs are "
                            + "only set apart"
                    )
                }
                return ReservedIOVA(
                    range: address.range,
                    kind: isDirect ? .direct : .reserved,
                    regionPath: region.path
                )
            }
        }
    }

    /// What `memory-region` names.
    mutating func memoryRegions(of node: DeviceTreeNode) -> [String]? {
        guard let phandles = cells(node, "memory-region") else { return node.has("memory-region") ? nil : [] }
        return phandles.indices.allOrNil { index in
            self.node(
                phandle: phandles[index],
                from: node,
                "memory-region",
                entry: index,
                "write <&label> of a child of /reserved-memory"
            )?.path
        }
    }

    /// Warns of `iommu-addresses` for a device that does not name the region: Linux ignores them.
    mutating func checkReservedMemoryLinks(_ reserved: [ReservedMemory]) {
        for region in reserved {
            for devicePath in Set(region.iommuAddresses.map(\.devicePath)).sorted() {
                guard let node = tree.node(at: region.path), let device = tree.node(at: devicePath) else {
                    continue
                }
                let names = (device["memory-region"]?.cells ?? []).compactMap { tree.node(phandle: $0)?.path }
                guard !names.contains(region.path), tree.isEnabled(device) else { continue }
                warn(
                    node,
                    "iommu-addresses",
                    "names \(devicePath), which does not name it in turn",
                    "add it to memory-region of \(devicePath), or the IOVAs are not set apart"
                )
            }
        }
    }
}
