// Interrupt controllers: what their specifiers mean, and chains of them that must end somewhere.

import DeviceModel

extension BoardBuilder {
    private static let gicV2Bindings: Set<String> = [
        "arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic", "arm,cortex-a9-gic", "arm,cortex-a5-gic",
        "arm,pl390", "arm,arm1176jzf-devchip-gic", "arm,arm11mp-gic", "arm,eb11mp-gic", "arm,tc11mp-gic",
        "brcm,brahma-b15-gic", "nvidia,tegra210-agic", "qcom,msm-8660-qgic", "qcom,msm-qgic2",
    ]

    /// What a controller's specifiers mean.
    func controllerKind(_ node: DeviceTreeNode) -> InterruptControllerNode.Kind {
        if node.isCompatible(with: "arm,gic-v3") { return .gicV3 }
        if node.compatible.contains(where: Self.gicV2Bindings.contains) { return .gicV2 }
        // The pins of an mbigen are its children, which have no `compatible` of their own.
        let parent = tree.parent(of: node)
        if parent?.isCompatible(with: "hisilicon,mbigen-v2") == true { return .mbigen }
        return .other
    }

    /// The input of a controller that a specifier names.
    mutating func identity(
        _ specifier: [UInt32],
        _ controller: DeviceTreeNode,
        _ node: DeviceTreeNode,
        _ property: String,
        entry: Int
    ) -> InterruptIdentity? {
        switch controllerKind(controller) {
        case .gicV3: return gicIdentity(specifier, controller, node, property, entry: entry, isV3: true)
        case .gicV2: return gicIdentity(specifier, controller, node, property, entry: entry, isV3: false)
        case .mbigen:
            let trigger = specifier.count == 2 ? Self.trigger(specifier[1]) : nil
            return InterruptIdentity(controller: controller.path, specifier: specifier, trigger: trigger)
        case .other: return InterruptIdentity(controller: controller.path, specifier: specifier)
        }
    }

    /// The interrupt flags that GICs and many other controllers share; nil for 0, which leaves it open.
    private static func trigger(_ flags: UInt32) -> InterruptTrigger? {
        switch flags & 0xf {
        case 1: .edgeRising
        case 2: .edgeFalling
        case 3: .edgeBoth
        case 4: .levelHigh
        case 8: .levelLow
        default: nil
        }
    }

    /// The kinds of a GIC's first cell: how many there are of each, and the INTID of number 0.
    private struct GICKind {
        let name: String
        let numbers: Range<UInt32>
        let firstID: UInt32

        static let v2 = [
            GICKind(name: "SPI", numbers: 0..<988, firstID: 32),
            GICKind(name: "PPI", numbers: 0..<16, firstID: 16),
        ]
        static let v3 =
            v2 + [
                GICKind(name: "extended SPI", numbers: 0..<1024, firstID: 4096),
                GICKind(name: "extended PPI", numbers: 0..<64, firstID: 1056),
            ]
    }

    private mutating func gicIdentity(
        _ specifier: [UInt32],
        _ controller: DeviceTreeNode,
        _ node: DeviceTreeNode,
        _ property: String,
        entry: Int,
        isV3: Bool
    ) -> InterruptIdentity? {
        guard specifier.count >= 3 else {
            report(
                controller,
                "#interrupt-cells",
                "is <\(specifier.count)>",
                isV3 ? "a GICv3 has <3>, or <4> with PPI partitions" : "a GICv2 has <3>"
            )
            return nil
        }
        let kinds = isV3 ? GICKind.v3 : GICKind.v2
        guard let kind = Int(exactly: specifier[0]).flatMap({ kinds.indices.contains($0) ? kinds[$0] : nil })
        else {
            let known = kinds.enumerated().map { "\($0) (\($1.name))" }.joined(separator: ", ")
            report(
                node,
                property,
                "entry \(entry): \(cellList(specifier)): no kind \(specifier[0]) of interrupt",
                "the first cell for \(controller.path) is one of " + known
            )
            return nil
        }
        guard kind.numbers.contains(specifier[1]) else {
            report(
                node,
                property,
                "entry \(entry): \(cellList(specifier)): no \(kind.name) \(specifier[1])",
                "the \(kind.name)s of \(controller.path) are 0 to \(kind.numbers.upperBound - 1)"
            )
            return nil
        }
        return InterruptIdentity(
            controller: controller.path,
            specifier: specifier,
            interruptID: kind.firstID + specifier[1],
            trigger: Self.trigger(specifier[2])
        )
    }

    // MARK: - The controllers themselves

    mutating func readInterruptController(_ node: DeviceTreeNode) -> InterruptControllerNode {
        let kind = controllerKind(node)
        let isGIC = kind == .gicV2 || kind == .gicV3
        return leniently(unless: isGIC) { builder in
            if !node.has("#interrupt-cells") {
                builder.report(
                    node,
                    "#interrupt-cells",
                    "missing",
                    "an interrupt controller says how many cells a specifier has"
                )
            }
            let need = isGIC ? "a GIC needs its register regions" : nil
            let registers =
                isGIC || builder.isOnCPUBus(node) ? builder.registers(node, need: need) ?? [] : []
            if isGIC { builder.claim(registers, .interruptController, node) }
            return InterruptControllerNode(
                path: node.path,
                compatible: node.compatible,
                kind: kind,
                interruptCells: builder.cell(node, "#interrupt-cells").flatMap { Int(exactly: $0) } ?? 0,
                registers: registers,
                msiParent: builder.msiParent(node)
            )
        }
    }

    /// What kind of MSI controller a node is; `other` too where it is none.
    func msiControllerKind(_ node: DeviceTreeNode) -> MSIControllerNode.Kind {
        if node.isCompatible(with: "arm,gic-v3-its") { return .its }
        return node.isCompatible(with: "arm,gic-v2m-frame") ? .gicV2m : .other
    }

    mutating func readMSIController(_ node: DeviceTreeNode) -> MSIControllerNode {
        let kind = msiControllerKind(node)
        let need = kind == .other ? nil : "it needs one register region"
        let registers = leniently(unless: kind != .other) { $0.registers(node, need: need) } ?? []
        if kind != .other { claim(registers, .interruptController, node) }
        return MSIControllerNode(
            path: node.path,
            compatible: node.compatible,
            kind: kind,
            msiCells: cell(node, "#msi-cells").flatMap { Int(exactly: $0) } ?? 0,
            registers: registers
        )
    }

    /// Runs `body` with errors as warnings, unless `isStrict`.
    mutating func leniently<Result>(unless isStrict: Bool, _ body: (inout BoardBuilder) -> Result) -> Result {
        let before = log.isLenient
        log.isLenient = before || !isStrict
        defer { log.isLenient = before }
        return body(&self)
    }

    // MARK: - Chains of controllers

    /// Reports controllers whose own interrupts lead in a circle: none of them would ever reach a CPU.
    mutating func checkInterruptControllers(_ kinds: [NodeKind]) {
        var settled: Set<Int> = []
        for (node, kind) in zip(tree.nodes, kinds) where kind == .interruptController {
            var chain: [Int] = []
            var current: DeviceTreeNode? = node
            while let controller = current, !settled.contains(controller.index) {
                if let start = chain.firstIndex(of: controller.index) {
                    reportLoop(chain[start...].map { tree.nodes[$0] })
                    break
                }
                chain.append(controller.index)
                let parent = interruptDestination(controller)
                current = parent?.index == controller.index ? nil : parent
            }
            settled.formUnion(chain)
        }
    }

    /// The controller that a controller's own interrupts go to; nil where it has none, or where that is
    /// wrong, which is reported elsewhere.
    private func interruptDestination(_ node: DeviceTreeNode) -> DeviceTreeNode? {
        if let phandle = node["interrupts-extended"]?.cells?.first { return tree.node(phandle: phandle) }
        guard node.has("interrupts") || node.has("interrupt-parent") else { return nil }
        // A builder of its own: what it would report, `interrupts` reports where it matters.
        var builder = BoardBuilder(tree: tree)
        return builder.interruptParent(node)
    }

    private mutating func reportLoop(_ loop: [DeviceTreeNode]) {
        guard let first = loop.min(by: { $0.index < $1.index }) else { return }
        let rotated = loop.drop { $0.index != first.index } + loop.prefix { $0.index != first.index }
        report(
            first,
            first.has("interrupts-extended") ? "interrupts-extended" : "interrupt-parent",
            "leads in a loop: " + shortList((rotated + [first]).map(\.path), separator: " -> "),
            "a chain of interrupt controllers ends at one that has no parent or is its own"
        )
    }
}
