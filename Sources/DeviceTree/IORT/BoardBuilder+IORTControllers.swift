// SMMUs, counter groups and reserved memory ranges of an IORT.

import ACPITables
import AddressSpace
import DeviceModel

extension BoardBuilder {
    // MARK: - SMMUv3

    /// Which mapping is that of the SMMU's own MSIs; nil where it has none.
    ///
    /// Before revision 5 of the node the index counts unless every interrupt has a GSIV; from then on a flag says so.
    func ownMapping(of node: IORTNode, _ smmu: IORTSMMUv3) -> Int? {
        guard node.revision >= 1 else { return nil }
        let counts = node.revision < 5 ? smmu.gsivs.contains(0) : smmu.isDeviceIDMappingIndexValid
        guard counts, let index = Int(exactly: smmu.deviceIDMappingIndex), index < node.mappings.count else {
            return nil
        }
        return index
    }

    mutating func readSMMU(
        _ node: IORTNode,
        _ smmu: IORTSMMUv3,
        _ context: IORTContext,
        _ known: [SMMUv3Node]
    ) -> SMMUv3Node? {
        let isCavium = smmu.model == .caviumCN99xx
        let byteCount = SMMUv3Node.minimumByteCount(hasPage1: !isCavium)
        guard smmu.base != 0, smmu.base.isMultiple(of: 0x1_0000),
            let range = AddressRange(start: smmu.base, byteCount: byteCount), range.last < 1 << 52
        else {
            report(
                node,
                "Base Address",
                "is \(hex(smmu.base))",
                "the registers stand at a multiple of 64 KiB, not at 0, and within 52 bits"
            )
            return nil
        }
        if let other = known.first(where: { $0.isEnabled && $0.registers.overlaps(range) }) {
            report(
                node,
                "Base Address",
                "\(range) overlaps \(other.registers) of \(other.path)",
                iortPaths.contains(other.path)
                    ? "SMMUs need registers of their own"
                    : "an SMMU comes from the tree or from the IORT: give the tree's node status = \"disabled\""
            )
            return nil
        }
        claim(range, .smmu(hasPage1: !isCavium), node, "Base Address")
        guard let interrupts = interrupts(of: node, smmu, context) else { return nil }
        let msiParent = msiParent(of: node, smmu, context)
        if interrupts.isEmpty, msiParent == nil {
            warn(
                node,
                "Event GSIV",
                "is 0, and there is no mapping for MSIs",
                "events can only be polled for"
            )
        }
        return SMMUv3Node(
            path: node.boardPath,
            compatible: ["arm,smmu-v3"],
            isEnabled: true,
            registers: range,
            interrupts: interrupts,
            msiParent: msiParent,
            isDMACoherent: smmu.isCoherent,
            hasBrokenPrefetchCommand: smmu.model == .hisiliconHi161x,
            hasBrokenPage1RegisterSpace: isCavium,
            httuOverride: smmu.httuOverride
        )
    }

    /// The wired interrupts; nil where one is wrong, which is reported.
    private mutating func interrupts(of node: IORTNode, _ smmu: IORTSMMUv3, _ context: IORTContext)
        -> [SMMUv3Node.Interrupt]?
    {
        var roles: [(role: SMMUv3Node.InterruptRole, field: String, gsiv: UInt32)] = [
            (.eventQueue, "Event GSIV", smmu.eventGSIV),
            (.priQueue, "PRI GSIV", smmu.priGSIV),
            (.globalError, "GERR GSIV", smmu.globalErrorGSIV),
            (.commandSync, "Sync GSIV", smmu.syncGSIV),
        ]
        // As in Linux: only this model has one line for all.
        if smmu.model == .caviumCN99xx, Set(smmu.gsivs).count == 1 {
            roles = [(.combined, "Event GSIV", smmu.eventGSIV)]
        }
        var interrupts: [SMMUv3Node.Interrupt]? = []
        for (role, field, gsiv) in roles where gsiv != 0 {
            guard let identity = identity(gsiv: gsiv, node, field, context) else {
                interrupts = nil
                continue
            }
            interrupts?.append(SMMUv3Node.Interrupt(role: role, identity: identity))
        }
        return interrupts
    }

    private mutating func msiParent(of node: IORTNode, _ smmu: IORTSMMUv3, _ context: IORTContext)
        -> MSIParent?
    {
        guard let own = ownMapping(of: node, smmu) else {
            let isWanted = node.revision >= 5 && smmu.isDeviceIDMappingIndexValid
            let isTooLarge = smmu.deviceIDMappingIndex >= UInt32(node.mappings.count)
            let isOldStyle =
                (1..<5).contains(node.revision) && smmu.gsivs.contains(0) && !node.mappings.isEmpty
            guard isWanted || isOldStyle, isTooLarge else { return nil }
            report(
                node,
                "Device ID Mapping Index",
                "is \(smmu.deviceIDMappingIndex)",
                node.mappings.isEmpty
                    ? "the node has no ID mappings"
                    : "the node's ID mappings are 0 to \(node.mappings.count - 1)"
            )
            return nil
        }
        return ownMSIs(node, own, context)
    }

    /// Where a node's own messages go by the mapping at `index`.
    private mutating func ownMSIs(_ node: IORTNode, _ index: Int, _ context: IORTContext) -> MSIParent? {
        let mapping = node.mappings[index]
        guard mapping.isSingle else {
            warn(
                node,
                "ID mapping \(index): Flags",
                "has no Single Mapping, and it is that of the node's own MSIs",
                "the node has no MSIs, and no other IDs go by this mapping, as in Linux"
            )
            return nil
        }
        guard let path = context.itsPath(at: mapping.outputReference) else { return nil }
        return MSIParent(controllerPath: path, specifier: [mapping.outputBase])
    }

    // MARK: - PMCG

    mutating func readPMCG(_ node: IORTNode, _ group: IORTPMCG, _ context: IORTContext) -> PMCGNode? {
        guard let page0 = page(group.page0, node, "Page 0 Base Address") else { return nil }
        var page1: AddressRange?
        if let base = group.page1, base != group.page0 {
            guard let range = page(base, node, "Page 1 Base Address") else { return nil }
            page1 = range
        }
        var interrupt: InterruptIdentity?
        if group.overflowGSIV != 0 {
            guard let identity = identity(gsiv: group.overflowGSIV, node, "Overflow Interrupt GSIV", context)
            else { return nil }
            interrupt = identity
        }
        let msiParent =
            group.overflowGSIV == 0 && !node.mappings.isEmpty ? ownMSIs(node, 0, context) : nil
        if interrupt == nil, msiParent == nil {
            warn(
                node,
                "Overflow Interrupt GSIV",
                "is 0, and there is no mapping for MSIs",
                "counter overflows can only be polled for"
            )
        }
        let counted = context.table.node(at: group.nodeReference)
        if let counted, counted.type != .smmuV3 {
            warn(
                node,
                "Node Reference",
                "leads to \(counted.label)",
                "only SMMUv3s report events here: the group counts clock cycles alone"
            )
        }
        return PMCGNode(
            path: node.boardPath,
            page0: page0,
            page1: page1,
            interrupt: interrupt,
            msiParent: msiParent,
            smmuPath: counted.flatMap { $0.type == .smmuV3 ? $0.boardPath : nil }
        )
    }

    /// A page of a counter group: 4 KiB.
    private mutating func page(_ base: UInt64, _ node: IORTNode, _ field: String) -> AddressRange? {
        guard base != 0, base.isMultiple(of: 0x1000),
            let range = AddressRange(start: base, byteCount: 0x1000),
            range.last < 1 << 52
        else {
            report(
                node,
                field,
                "is \(hex(base))",
                "a page of a counter group stands at a multiple of 4 KiB, not at 0, and within 52 bits"
            )
            return nil
        }
        claim(range, .pmcg, node, field)
        return range
    }

    // MARK: - Reserved memory ranges

    /// A range is mapped page by page before its device is attached, so it has to end somewhere.
    private static let largestReservedRange: UInt64 = 64 << 30
    /// More than any table has, and little enough to hold.
    private static let reservationsMax = 1024

    mutating func readReservedRanges(
        _ node: IORTNode,
        _ rmr: IORTReservedMemoryRange,
        _ context: inout IORTContext,
        _ parts: inout BoardParts
    ) {
        guard context.table.header.revision >= 5 else {
            return warn(
                node,
                "Type",
                "is an RMR in a table of revision \(context.table.header.revision)",
                "it counts from revision 5 on (DEN0049E.d), as in Linux: the node is ignored"
            )
        }
        guard !node.mappings.isEmpty else {
            return report(
                node,
                "Mapping Count",
                "is 0",
                "an RMR node maps to the StreamIDs of those who use the memory"
            )
        }
        for (index, descriptor) in rmr.descriptors.enumerated() {
            guard let range = reservedRange(descriptor, index, node) else { continue }
            guard parts.reserved.count < Self.reservationsMax else {
                return report(
                    node,
                    field(index),
                    "is one of more than \(Self.reservationsMax)",
                    "real boards have a few"
                )
            }
            let others = parts.reserved.filter { $0.ranges.contains { $0.overlaps(range) } }
            if let other = others.first(where: { iortPaths.contains($0.path) }) {
                warn(
                    node,
                    field(index),
                    "\(range) overlaps \(other.range.map(\.description) ?? "that") of \(other.path)",
                    "each range is given once"
                )
            }
            let path = IORTNode.reservedPath(range.first)
            iortPaths.insert(path)
            let iova = ReservedIOVA(
                range: range,
                kind: rmr.isRemappingPermitted ? .directRelaxable : .direct,
                regionPath: path
            )
            reserve(iova, node, &context, region: parts.reserved.count)
            parts.reserved.append(
                ReservedMemory(
                    path: path,
                    compatible: [],
                    range: range,
                    ranges: [range],
                    isNoMap: false,
                    isReusable: false,
                    iommuAddresses: []
                )
            )
        }
    }

    private mutating func reserve(
        _ iova: ReservedIOVA,
        _ node: IORTNode,
        _ context: inout IORTContext,
        region: Int
    ) {
        for mapping in node.mappings {
            guard let smmu = context.table.node(at: mapping.outputReference), smmu.type == .smmuV3 else {
                continue
            }
            guard context.reservations.count < Self.reservationsMax else {
                return report(
                    node,
                    nil,
                    "the table's RMR nodes have more than \(Self.reservationsMax) pairs of a range and a mapping",
                    "give each range once, and StreamIDs in few mappings"
                )
            }
            let count = mapping.isSingle ? 0 : mapping.countMinusOne
            context.reservations.append(
                IORTContext.Reservation(
                    smmuPath: smmu.boardPath,
                    streams: mapping.outputBase...(mapping.outputBase &+ count),
                    iova: iova,
                    region: region
                )
            )
        }
    }

    /// More devices than can be running before the system does; each takes an entry of the stream table.
    private static let firmwareStreamsMax = 1 << 16

    /// Gives each SMMU the StreamIDs whose devices are running.
    mutating func addFirmwareStreams(of context: IORTContext, to parts: inout BoardParts) {
        for index in parts.smmus.indices {
            let smmu = parts.smmus[index]
            var streams: Set<UInt32> = []
            for reservation in context.reservations where reservation.smmuPath == smmu.path {
                guard streams.count + reservation.streams.count <= Self.firmwareStreamsMax else {
                    log.report(
                        DeviceTreeDiagnostic(
                            path: smmu.path,
                            problem: "RMR nodes name more than \(Self.firmwareStreamsMax) of its StreamIDs",
                            remedy: "name those of devices that use the memory",
                            origin: .iort
                        )
                    )
                    break
                }
                streams.formUnion(reservation.streams)
            }
            parts.smmus[index].firmwareStreams = streams.sorted().map { StreamID($0) }
        }
    }

    /// The range of a descriptor; nil where it is none, which is reported.
    private mutating func reservedRange(
        _ descriptor: IORTReservedMemoryRange.Descriptor,
        _ index: Int,
        _ node: IORTNode
    ) -> AddressRange? {
        let field = field(index)
        guard descriptor.byteCount != 0 else {
            warn(node, field, "0 bytes at \(hex(descriptor.base))", "it is ignored")
            return nil
        }
        guard let range = AddressRange(start: descriptor.base, byteCount: descriptor.byteCount),
            range.last < 1 << 52, descriptor.byteCount <= Self.largestReservedRange
        else {
            report(
                node,
                field,
                "\(hex(descriptor.byteCount)) bytes at \(hex(descriptor.base))",
                "a range ends within 52 bits, and has at most 64 GiB"
            )
            return nil
        }
        guard descriptor.base.isMultiple(of: 0x1_0000), descriptor.byteCount.isMultiple(of: 0x1_0000) else {
            let widened = AddressRange(first: range.first & ~0xFFF, last: range.last | 0xFFF) ?? range
            warn(
                node,
                field,
                "\(range) is no whole number of pages of 64 KiB",
                "\(widened) is taken, pages of 4 KiB, as in Linux"
            )
            return widened
        }
        return range
    }

    private func field(_ index: Int) -> String { "Memory range \(index)" }

    /// Warns of reserved memory whose StreamIDs no device of the table has.
    mutating func warnOfUnusedReservations(_ context: IORTContext, _ parts: BoardParts) {
        for reservation in context.reservations {
            guard parts.reserved[reservation.region].iommuAddresses.isEmpty else { continue }
            log.warn(
                DeviceTreeDiagnostic(
                    path: reservation.iova.regionPath,
                    problem: "no device of the IORT has StreamID \(hex(reservation.streams.lowerBound)) of "
                        + reservation.smmuPath,
                    remedy: "the memory is left alone, and mapped for nobody",
                    origin: .iort
                )
            )
        }
    }
}
