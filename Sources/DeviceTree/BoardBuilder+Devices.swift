// Platform devices and the IOMMUs in front of them.

import AddressSpace

extension BoardBuilder {
    /// A device with registers or `iommus`; nil where it has neither that we can use.
    mutating func readDevice(_ node: DeviceTreeNode, _ reserved: [ReservedMemory]) -> PlatformDevice? {
        // Where no SMMU is involved, nothing of ours depends on the node: a real board's tree has many a
        // device that only its own driver understands.
        let isMaster = node.has("iommus")
        guard isMaster || isOnCPUBus(node) else { return nil }
        return leniently(unless: isMaster) { $0.readDevice(node, reserved, isMaster: isMaster) }
    }

    private mutating func readDevice(_ node: DeviceTreeNode, _ reserved: [ReservedMemory], isMaster: Bool)
        -> PlatformDevice?
    {
        let iommus = readIOMMUs(node)
        let regions = memoryRegions(of: node)
        let registers =
            isMaster && !isOnCPUBus(node) && isOnAddressedBus(node)
            ? [] : self.registers(node, need: nil)
        let interrupts = namedInterrupts(node)
        let msiParent = self.msiParent(node)
        let pasidBits = cell(node, "pasid-num-bits") ?? 0
        if pasidBits > 20 {
            report(node, "pasid-num-bits", "is <\(pasidBits)>", "a SubstreamID has at most 20 bits")
        }
        guard let iommus, let regions, let registers, let interrupts else { return nil }
        claim(registers, iommus.contains { $0.streamID != nil } ? .master : .device, node)
        return PlatformDevice(
            path: node.path,
            compatible: node.compatible,
            registers: registers,
            interrupts: interrupts,
            iommus: iommus,
            isDMACoherent: isDMACoherent(node),
            pasidBits: pasidBits,
            canStall: node.has("dma-can-stall"),
            memoryRegions: regions,
            reservedIOVAs: reservedIOVAs(of: node, regions: regions, reserved),
            msiParent: msiParent
        )
    }

    /// Whether every bus above has `ranges`, so that the CPU reaches the node's `reg`.
    func isOnCPUBus(_ node: DeviceTreeNode) -> Bool {
        var next = tree.parent(of: node)
        while let bus = next, bus.parentIndex != nil {
            guard bus.has("ranges") else { return false }
            next = tree.parent(of: bus)
        }
        return next != nil
    }

    /// Whether the node's bus numbers its children (I2C, SPI, MDIO) instead of giving them memory.
    private func isOnAddressedBus(_ node: DeviceTreeNode) -> Bool {
        guard let bus = tree.parent(of: node) else { return false }
        return bus["#size-cells"]?.cell == 0
    }

    // MARK: - iommus

    /// The entries of `iommus`; nil where they are wrong, which is reported.
    private mutating func readIOMMUs(_ node: DeviceTreeNode) -> [IOMMUReference]? {
        let entries = phandleList(
            node,
            "iommus",
            cellsProperty: "#iommu-cells",
            defaultCells: nil,
            "write <&smmu StreamID> for each StreamID"
        )
        guard let entries else { return nil }
        return entries.map { target, specifier in
            let kind = iommuKind(target, streamID: specifier.first ?? 0)
            if case .disabledSMMUv3 = kind {
                warn(node, "iommus", "\(target.path) is disabled", "DMA of this device goes untranslated")
            }
            return IOMMUReference(path: target.path, kind: kind, specifier: specifier)
        }
    }

    /// What kind of IOMMU a node is, for a device with this StreamID there.
    func iommuKind(_ target: DeviceTreeNode, streamID: UInt32) -> IOMMUReference.Kind {
        guard target.isCompatible(with: "arm,smmu-v3") else {
            return .other(target.compatible.first ?? target.name)
        }
        let streamID = StreamID(streamID)
        return tree.isEnabled(target) ? .smmuv3(streamID) : .disabledSMMUv3(streamID)
    }
}
