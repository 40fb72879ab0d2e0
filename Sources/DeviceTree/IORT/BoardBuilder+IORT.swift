// An IORT's nodes as parts of the board: instead of the device tree's, or beside them.

import ACPITables
import AddressSpace
import DeviceModel

/// The parts of a board that an IORT adds to, or changes.
struct BoardParts {
    var reserved: [ReservedMemory]
    var smmus: [SMMUv3Node]
    var pmcgs: [PMCGNode]
    var controllers: [InterruptControllerNode]
    var msiControllers: [MSIControllerNode]
    var hosts: [PCIeHostNode]
    var devices: [PlatformDevice]
}

/// What the nodes of one IORT need to know of each other.
struct IORTContext {
    let table: IORTTable
    /// The controller whose inputs GSIVs are.
    let controller: InterruptControllerNode
    /// ITSs' paths by identifier.
    let itsPaths: [UInt32: String]
    /// The mappings of SMMUs to ITSs, by the SMMUs' offsets.
    var smmuMaps: [Int: IORTIDMap] = [:]
    /// Memory that devices with these StreamIDs go on using.
    var reservations: [Reservation] = []

    struct Reservation {
        let smmuPath: String
        let streams: ClosedRange<UInt32>
        let iova: ReservedIOVA
        /// Which of ``BoardParts/reserved`` it is.
        let region: Int
    }

    /// Where the ITS group at a reference delivers: Linux goes by its first ITS too.
    func itsPath(at reference: UInt32) -> String? {
        guard case .itsGroup(let identifiers) = table.node(at: reference)?.content else { return nil }
        return identifiers.first.flatMap { itsPaths[$0] }
    }
}

extension BoardBuilder {
    /// Adds what the table describes to the board.
    mutating func add(_ table: IORTTable, to parts: inout BoardParts) {
        let controller = iortController(&parts)
        var context = IORTContext(
            table: table,
            controller: controller,
            itsPaths: addITSs(of: table, to: &parts)
        )
        for node in table.nodes {
            iortPaths.insert(node.boardPath)
            guard case .smmuV3(let smmu) = node.content else { continue }
            context.smmuMaps[node.offset] = idMap(of: node, without: ownMapping(of: node, smmu))
            if let built = readSMMU(node, smmu, context, parts.smmus) { parts.smmus.append(built) }
        }
        for node in table.nodes {
            guard case .rmr(let range) = node.content else { continue }
            readReservedRanges(node, range, &context, &parts)
        }
        addFirmwareStreams(of: context, to: &parts)
        var segments: Set<UInt32> = []
        let treeHostCount = parts.hosts.count
        var names = IORTDeviceNames(parts.devices, tree)
        for node in table.nodes {
            switch node.content {
            case .pmcg(let group):
                if let built = readPMCG(node, group, context) { parts.pmcgs.append(built) }
            case .rootComplex(let complex):
                guard segments.insert(complex.segment).inserted else {
                    warn(
                        node,
                        "PCI Segment Number",
                        "\(hex(complex.segment)) is also that of a root complex before it",
                        "Linux takes the first one alone, and so is it here"
                    )
                    continue
                }
                addHost(node, complex, context, &parts, treeHostCount: treeHostCount)
            case .namedComponent(let component): addDevice(node, component, context, &names, &parts)
            default: continue
            }
        }
        warnOfUnusedReservations(context, parts)
    }

    // MARK: - Reporting

    mutating func report(_ node: IORTNode, _ field: String?, _ problem: String, _ remedy: String? = nil) {
        log.report(
            DeviceTreeDiagnostic(
                path: node.label,
                property: field,
                problem: problem,
                remedy: remedy,
                origin: .iort
            )
        )
    }

    mutating func warn(_ node: IORTNode, _ field: String?, _ problem: String, _ remedy: String? = nil) {
        log.warn(
            DeviceTreeDiagnostic(
                path: node.label,
                property: field,
                problem: problem,
                remedy: remedy,
                origin: .iort
            )
        )
    }

    mutating func claim(_ range: AddressRange, _ kind: AddressClaim.Kind, _ node: IORTNode, _ field: String) {
        claims.append(
            AddressClaim(range: range, kind: kind, path: node.label, property: field, origin: .iort)
        )
    }

    // MARK: - Interrupts

    /// The tree's GIC; without one, a GICv3 that has no place of its own.
    private mutating func iortController(_ parts: inout BoardParts) -> InterruptControllerNode {
        if let gic = parts.controllers.first(where: { $0.kind == .gicV3 || $0.kind == .gicV2 }) { return gic }
        let gic = InterruptControllerNode(
            path: "/iort/gic",
            compatible: ["arm,gic-v3"],
            kind: .gicV3,
            interruptCells: 3,
            registers: []
        )
        parts.controllers.append(gic)
        return gic
    }

    /// The GIC's input that a GSIV is; nil where it is none, which is reported.
    ///
    /// A GSIV is an INTID. Linux takes those of an IORT for edges.
    mutating func identity(gsiv: UInt32, _ node: IORTNode, _ field: String, _ context: IORTContext)
        -> InterruptIdentity?
    {
        let gic = context.controller
        let cells: [UInt32]
        switch gsiv {
        case 32...1019: cells = [0, gsiv - 32, 1]
        case 4096...5119 where gic.kind == .gicV3: cells = [2, gsiv - 4096, 1]
        default:
            report(
                node,
                field,
                "is \(gsiv)",
                "it is the INTID of an SPI: 32 to 1019, that is SPI 0 to 987"
                    + (gic.kind == .gicV3 ? ", or 4096 to 5119" : "")
            )
            return nil
        }
        let padding = max(0, gic.interruptCells - cells.count)
        return InterruptIdentity(
            controller: gic.path,
            // A GIC has 3 or 4 cells; what a tree says beyond that was reported there.
            specifier: cells + Array(repeating: 0, count: min(padding, 1)),
            interruptID: gsiv,
            trigger: .edgeRising
        )
    }

    // MARK: - ITSs

    /// ITSs by identifier: number n is the tree's ITS n, counted from 0, where the tree has as many; otherwise one that
    /// has no place of its own.
    private mutating func addITSs(of table: IORTTable, to parts: inout BoardParts) -> [UInt32: String] {
        let known = parts.msiControllers.filter { $0.kind == .its }.map(\.path)
        var paths: [UInt32: String] = [:]
        for node in table.nodes {
            guard case .itsGroup(let identifiers) = node.content else { continue }
            for identifier in identifiers where paths[identifier] == nil {
                if let place = Int(exactly: identifier), place < known.count {
                    paths[identifier] = known[place]
                    continue
                }
                if !known.isEmpty {
                    warn(
                        node,
                        "Identifiers",
                        "has ITS \(identifier), and the tree's are 0 to \(known.count - 1)",
                        "it is shown, and its messages arrive nowhere"
                    )
                }
                let path = IORTNode.itsPath(identifier)
                paths[identifier] = path
                iortPaths.insert(path)
                parts.msiControllers.append(
                    MSIControllerNode(
                        path: path,
                        compatible: ["arm,gic-v3-its"],
                        kind: .its,
                        msiCells: 1,
                        registers: []
                    )
                )
            }
        }
        return paths
    }

    // MARK: - ID mappings

    /// The ranges of a node's mappings; those that overlap are warned of.
    mutating func idMap(of node: IORTNode, without own: Int? = nil) -> IORTIDMap {
        var overlaps: [IORTOverlap] = []
        let mappings = node.mappings.enumerated().filter { $0.offset != own && !$0.element.isSingle }
        if node.type == .smmuV3,
            let index = node.mappings.indices.first(where: { $0 != own && node.mappings[$0].isSingle })
        {
            warn(
                node,
                "ID mapping \(index): Flags",
                "has Single Mapping",
                "in an SMMU only the mapping at Device ID Mapping Index may, where that counts; it is ignored, as in Linux"
            )
        }
        let map = IORTIDMap(mappings.map { ($0.offset, $0.element) }) { overlap in
            if overlaps.count < DiagnosticLog.capacity { overlaps.append(overlap) }
        }
        for overlap in overlaps { warn(node, overlap) }
        return map
    }

    private mutating func warn(_ node: IORTNode, _ overlap: IORTOverlap) {
        switch overlap {
        case .countTooLarge(let mapping, let next, let id):
            warn(
                node,
                "ID mapping \(mapping): ID Count",
                "reaches to \(hex(id)), where ID mapping \(next) begins",
                "it is the number of IDs minus one; that ID is left to ID mapping \(next), as in Linux"
            )
        case .both(let first, let second, let id):
            warn(
                node,
                "ID mappings",
                "\(first) and \(second) both cover ID \(hex(id))",
                "ID mapping \(first) wins"
            )
        }
    }
}
