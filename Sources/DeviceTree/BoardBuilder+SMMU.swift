// SMMUv3 and PMCG nodes.

import AddressSpace
import DeviceModel

extension BoardBuilder {
    // MARK: - SMMU

    mutating func readSMMU(_ node: DeviceTreeNode) -> SMMUv3Node? {
        let isEnabled = tree.isEnabled(node)
        // What is disabled may be unfinished: it is shown as far as it can be read.
        return leniently(unless: isEnabled) { $0.readSMMU(node, isEnabled: isEnabled) }
    }

    private mutating func readSMMU(_ node: DeviceTreeNode, isEnabled: Bool) -> SMMUv3Node? {
        let hasBrokenPage1 = node.has("cavium,cn9900-broken-page1-regspace")
        let range = smmuRegisters(node, hasPage1: !hasBrokenPage1, isEnabled: isEnabled)
        checkIOMMUCells(node)
        let interrupts = smmuInterrupts(node)
        let msiParent = self.msiParent(node)
        guard let range, let interrupts else { return nil }
        if isEnabled, interrupts.isEmpty, msiParent == nil {
            warn(node, "interrupts", "missing, and no msi-parent", "events can only be polled for")
        }
        return SMMUv3Node(
            path: node.path,
            compatible: node.compatible,
            isEnabled: isEnabled,
            registers: range,
            interrupts: interrupts,
            msiParent: msiParent,
            isDMACoherent: isDMACoherent(node),
            hasBrokenPrefetchCommand: node.has("hisilicon,broken-prefetch-cmd"),
            hasBrokenPage1RegisterSpace: hasBrokenPage1
        )
    }

    private mutating func smmuRegisters(_ node: DeviceTreeNode, hasPage1: Bool, isEnabled: Bool)
        -> AddressRange?
    {
        let minimum = SMMUv3Node.minimumByteCount(hasPage1: hasPage1)
        let need = "an arm,smmu-v3 node needs one register region of at least \(hex(minimum)) bytes"
        guard let regions = registers(node, need: need), let range = regions.first?.range else { return nil }
        guard range.byteCount == 0 || range.byteCount >= minimum else {
            report(node, "reg", "\(range) has only \(hex(range.byteCount)) bytes", need)
            return nil
        }
        if regions.count > 1 {
            warn(node, "reg", "has \(regions.count) regions", "only the first one is used")
        }
        if isEnabled { claim(Array(regions.prefix(1)), .smmu(hasPage1: hasPage1), node) }
        return range
    }

    private mutating func checkIOMMUCells(_ node: DeviceTreeNode) {
        let remedy = "an arm,smmu-v3 node has #iommu-cells = <1>: the StreamID"
        guard node.has("#iommu-cells") else { return report(node, "#iommu-cells", "missing", remedy) }
        guard let cells = cell(node, "#iommu-cells"), cells != 1 else { return }
        report(node, "#iommu-cells", "is <\(cells)>", remedy)
    }

    /// The wired interrupts with their roles: by name, or in the binding's order where they have none.
    private mutating func smmuInterrupts(_ node: DeviceTreeNode) -> [SMMUv3Node.Interrupt]? {
        guard let identities = interrupts(node) else { return nil }
        guard node.has("interrupt-names") else { return unnamedInterrupts(node, identities) }
        guard let names = strings(node, "interrupt-names") else { return nil }
        let remedy =
            "use \"combined\" alone, or \"eventq\", \"gerror\", \"priq\" and \"cmdq-sync\", "
            + "a name for each interrupt"
        guard names.count == identities.count else {
            report(
                node,
                "interrupt-names",
                "\(count(names.count, "name")) for \(count(identities.count, "interrupt"))",
                remedy
            )
            return nil
        }
        var interrupts: [SMMUv3Node.Interrupt] = []
        for (name, identity) in zip(names, identities) {
            guard let role = SMMUv3Node.InterruptRole(rawValue: name) else {
                report(node, "interrupt-names", "\"\(name)\" is unknown", remedy)
                return nil
            }
            guard !interrupts.contains(where: { $0.role == role }) else {
                report(node, "interrupt-names", "\"\(name)\" is given twice", remedy)
                return nil
            }
            interrupts.append(SMMUv3Node.Interrupt(role: role, identity: identity))
        }
        guard interrupts.count == 1 || !interrupts.contains(where: { $0.role == .combined }) else {
            report(node, "interrupt-names", "\"combined\" is not alone", remedy)
            return nil
        }
        return interrupts
    }

    private mutating func unnamedInterrupts(_ node: DeviceTreeNode, _ identities: [InterruptIdentity])
        -> [SMMUv3Node.Interrupt]?
    {
        let roles: [SMMUv3Node.InterruptRole] =
            identities.count == 1 ? [.combined] : [.eventQueue, .globalError, .priQueue, .commandSync]
        guard identities.count <= roles.count else {
            report(
                node,
                node.has("interrupts-extended") ? "interrupts-extended" : "interrupts",
                "has \(identities.count) entries",
                "an SMMUv3 has one interrupt (combined) or up to four"
            )
            return nil
        }
        return zip(roles, identities).map { SMMUv3Node.Interrupt(role: $0, identity: $1) }
    }

    // MARK: - MSI

    /// The first entry of `msi-parent`; nil where there is none or it is wrong, which is reported.
    ///
    /// `isCellOptional` is for PCIe hosts, whose DeviceIDs are their RequesterIDs: trees leave the cell out.
    mutating func msiParent(_ node: DeviceTreeNode, isCellOptional: Bool = false) -> MSIParent? {
        let remedy = "write <&its DeviceID>"
        if isCellOptional, let phandle = node["msi-parent"]?.cell {
            return self.node(phandle: phandle, from: node, "msi-parent", entry: 0, remedy).map {
                MSIParent(controllerPath: $0.path, specifier: [])
            }
        }
        let entries = phandleList(node, "msi-parent", cellsProperty: "#msi-cells", defaultCells: 0, remedy)
        guard let entries else { return nil }
        for (target, _) in entries where !target.has("msi-controller") {
            report(
                node,
                "msi-parent",
                "\(target.path) is no MSI controller",
                "it needs msi-controller; " + remedy
            )
            return nil
        }
        return entries.first.map { MSIParent(controllerPath: $0.target.path, specifier: $0.specifier) }
    }

    // MARK: - PMCG

    mutating func readPMCG(_ node: DeviceTreeNode, _ smmus: [SMMUv3Node]) -> PMCGNode? {
        let need = "an arm,smmu-v3-pmcg node needs page 0, at least 0x1000 bytes, and page 1 if it has one"
        guard let regions = registers(node, need: need), let page0 = regions.first?.range else { return nil }
        for region in regions where (1..<0x1000).contains(region.range.byteCount) {
            report(node, "reg", "\(region.range) has only \(hex(region.range.byteCount)) bytes", need)
            return nil
        }
        claim(regions, .pmcg, node)
        guard let interrupts = interrupts(node) else { return nil }
        let msiParent = self.msiParent(node)
        guard let smmuPath = monitoredSMMU(node, page0, smmus) else { return nil }
        if interrupts.isEmpty, msiParent == nil {
            warn(node, "interrupts", "missing, and no msi-parent", "counter overflows can only be polled for")
        }
        return PMCGNode(
            path: node.path,
            page0: page0,
            page1: regions.count > 1 ? regions[1].range : nil,
            interrupt: interrupts.first,
            msiParent: msiParent,
            smmuPath: smmuPath.path
        )
    }

    /// A path, or that there is none.
    private struct MonitoredSMMU { let path: String? }

    /// The SMMU that a counter group counts for; nil where `smmud,smmu` is wrong, which is reported.
    ///
    /// The binding has no property for it, so there is one of our own. Without it we go by addresses: groups
    /// stand in the region of their SMMU, or behind it. A disabled SMMU counts here: its group is not another's.
    private mutating func monitoredSMMU(
        _ node: DeviceTreeNode,
        _ range: AddressRange,
        _ smmus: [SMMUv3Node]
    ) -> MonitoredSMMU? {
        let property = "smmud,smmu"
        guard node.has(property) else {
            if let around = smmus.first(where: { $0.registers.contains(range) }) {
                return MonitoredSMMU(path: around.path)
            }
            let before = smmus.filter { $0.registers.first <= range.first }
            let nearest = before.max { $0.registers.first < $1.registers.first } ?? smmus.first
            return MonitoredSMMU(path: nearest?.path)
        }
        let remedy = "write <&smmu>, the SMMUv3 that it counts for"
        guard let phandle = cell(node, property),
            let target = self.node(phandle: phandle, from: node, property, remedy)
        else { return nil }
        guard smmus.contains(where: { $0.path == target.path }) else {
            report(node, property, "\(target.path) is no SMMUv3", remedy)
            return nil
        }
        return MonitoredSMMU(path: target.path)
    }
}
