// From bytes to nodes: one after the other, each within its length.

/// Reads the nodes of a table whose own length is checked.
struct IORTReader {
    let table: TableBytes
    var log: IORTLog
    private var tableRevision: UInt8 = 0

    /// The header that all nodes begin with.
    static let nodeHeaderByteCount = 16

    init(table: TableBytes, log: IORTLog) {
        self.table = table
        self.log = log
    }

    /// The nodes, as far as one is found after the other.
    mutating func readNodes(count: UInt32, offset: UInt32, revision: UInt8) -> [IORTNode] {
        tableRevision = revision
        guard count > 0 else {
            log.warn(
                IORTDiagnostic(field: "Node Count", problem: "is 0", remedy: "the table describes nothing")
            )
            return []
        }
        guard let first = Int(exactly: offset), first >= IORTTable.headerByteCount, first < table.count else {
            log.report(
                IORTDiagnostic(
                    field: "Node Offset",
                    problem: "is \(hex(offset))",
                    remedy:
                        "the first node is behind the header of \(hex(IORTTable.headerByteCount)) bytes, and in the "
                        + "table's \(hex(table.count))"
                )
            )
            return []
        }
        var nodes: [IORTNode] = []
        var start = first
        // A node takes 16 bytes at least, so this ends with the table, whatever the count says.
        for index in 0..<count {
            guard let node = readNode(at: start, index: index, of: count) else { break }
            nodes.append(node)
            start += node.byteCount
        }
        if tableRevision >= 3 { checkIdentifiers(nodes) }
        return nodes
    }

    private mutating func readNode(at offset: Int, index: UInt32, of count: UInt32) -> IORTNode? {
        guard table.count - offset >= Self.nodeHeaderByteCount else {
            log.report(
                IORTDiagnostic(
                    field: "Node Count",
                    problem: "is \(count), and the table ends after \(index) nodes, at \(hex(table.count))",
                    remedy: "either it or the nodes' lengths are wrong"
                )
            )
            return nil
        }
        let type = IORTNodeType(rawValue: table.byte(at: offset))
        let length = Int(table.uint16(at: offset + 1))
        let revision = table.byte(at: offset + 3)
        let node = NodeBytes(table: table, offset: offset, length: length, revision: revision, type: type)
        guard length >= Self.nodeHeaderByteCount, length <= table.count - offset else {
            let left = table.count - offset
            report(
                node,
                "Length",
                "is \(hex(length))",
                "a node has \(hex(Self.nodeHeaderByteCount)) bytes at least, and here \(hex(left)) are left of the table"
            )
            return nil
        }
        let minimum = Self.minimumByteCount(of: type, revision: revision)
        guard length >= minimum else {
            report(
                node,
                "Length",
                "is \(hex(length))",
                "a node of this type and revision \(revision) has at least \(hex(minimum)) bytes"
            )
            return nil
        }
        let mappings = readMappings(node, behind: minimum)
        return IORTNode(
            offset: offset,
            type: type,
            byteCount: length,
            revision: revision,
            identifier: node.uint32(at: 4),
            mappings: mappings,
            content: readContent(node)
        )
    }

    /// What a node has at least, without its arrays.
    private static func minimumByteCount(of type: IORTNodeType, revision: UInt8) -> Int {
        switch type {
        case .itsGroup: 0x14
        // A name has at least its end.
        case .namedComponent: 0x1E
        case .rootComplex: revision == 0 ? 0x20 : 0x24
        case .smmu: 0x4C
        case .smmuV3: revision == 0 ? 0x3C : 0x44
        case .pmcg: revision == 0 ? 0x20 : 0x28
        case .rmr: 0x1C
        default: nodeHeaderByteCount
        }
    }

    // MARK: - Mappings

    private mutating func readMappings(_ node: NodeBytes, behind minimum: Int) -> [IORTMapping] {
        let count = node.uint32(at: 8)
        let offset = node.uint32(at: 12)
        // What a type that is not known means by its mappings, nobody knows either.
        guard count > 0, node.type.rawValue <= IORTNodeType.rmr.rawValue else { return [] }
        guard node.type != .itsGroup else {
            report(node, "Mapping Count", "is \(count)", "an ITS group is where IDs end: it has no mappings")
            return []
        }
        guard
            checkArray(
                node,
                ("Mapping Count", count),
                ("Mapping Offset", offset),
                elementByteCount: IORTMapping.byteCount,
                behind: minimum
            )
        else { return [] }
        return (0..<Int(truncatingIfNeeded: count)).map { index in
            let start = Int(truncatingIfNeeded: offset) + index * IORTMapping.byteCount
            return IORTMapping(
                inputBase: node.uint32(at: start),
                countMinusOne: node.uint32(at: start + 4),
                outputBase: node.uint32(at: start + 8),
                outputReference: node.uint32(at: start + 12),
                flags: node.uint32(at: start + 16)
            )
        }
    }

    /// Whether an array lies in its node, behind what the node has in any case; what is wrong is reported.
    private mutating func checkArray(
        _ node: NodeBytes,
        _ count: (name: String, value: UInt32),
        _ offset: (name: String, value: UInt32),
        elementByteCount: Int,
        behind minimum: Int
    ) -> Bool {
        guard UInt64(offset.value) >= UInt64(minimum), UInt64(offset.value) < UInt64(node.length) else {
            report(
                node,
                offset.name,
                "is \(hex(offset.value))",
                "with \(count.name) \(count.value) it lies between \(hex(minimum)) and the node's Length, \(hex(node.length))"
            )
            return false
        }
        let room = (UInt64(node.length) - UInt64(offset.value)) / UInt64(elementByteCount)
        guard UInt64(count.value) <= room else {
            report(
                node,
                count.name,
                "is \(count.value)",
                "from \(hex(offset.value)) on (\(offset.name)) a node of \(hex(node.length)) bytes has room for \(room)"
            )
            return false
        }
        return true
    }

    // MARK: - Content

    private mutating func readContent(_ node: NodeBytes) -> IORTNode.Content {
        switch node.type {
        case .itsGroup: readITSGroup(node)
        case .namedComponent: readNamedComponent(node)
        case .rootComplex:
            .rootComplex(
                IORTRootComplex(
                    memoryAccess: readMemoryAccess(node, at: 16),
                    atsAttribute: node.uint32(at: 24),
                    segment: node.uint32(at: 28),
                    addressSizeLimit: node.revision == 0 ? nil : node.byte(at: 32),
                    pasidCapabilities: node.revision < 4 ? 0 : node.uint16(at: 33)
                )
            )
        case .smmu: .smmu(base: node.uint64(at: 16))
        case .smmuV3: readSMMUv3(node)
        case .pmcg:
            .pmcg(
                IORTPMCG(
                    page0: node.uint64(at: 16),
                    overflowGSIV: node.uint32(at: 24),
                    nodeReference: node.uint32(at: 28),
                    page1: node.revision == 0 || node.uint64(at: 32) == 0 ? nil : node.uint64(at: 32)
                )
            )
        case .rmr: readReservedMemoryRange(node)
        default: readUnknown(node)
        }
    }

    private mutating func readUnknown(_ node: NodeBytes) -> IORTNode.Content {
        warn(node, "Type", "is \(node.type.rawValue)", "known are 0 to 6; the node is ignored")
        return .unknown
    }

    private mutating func readMemoryAccess(_ node: NodeBytes, at offset: Int) -> IORTMemoryAccess {
        let access = IORTMemoryAccess(
            cacheCoherency: node.uint32(at: offset),
            hints: node.byte(at: offset + 4),
            flags: node.byte(at: offset + 7)
        )
        if access.cacheCoherency > 1 {
            report(
                node,
                "Cache Coherency",
                "is \(hex(access.cacheCoherency))",
                "it is 1 for coherent, or 0"
            )
        }
        return access
    }

    private mutating func readITSGroup(_ node: NodeBytes) -> IORTNode.Content {
        let count = node.uint32(at: 16)
        let room = UInt64(node.length - 20) / 4
        guard count > 0, UInt64(count) <= room else {
            report(
                node,
                "ItsCount",
                "is \(count)",
                "a group has an ITS or more, and this node of \(hex(node.length)) bytes has room for \(room)"
            )
            return .itsGroup(identifiers: [])
        }
        return .itsGroup(
            identifiers: (0..<Int(truncatingIfNeeded: count)).map { node.uint32(at: 20 + 4 * $0) }
        )
    }

    private mutating func readNamedComponent(_ node: NodeBytes) -> IORTNode.Content {
        let access = readMemoryAccess(node, at: 20)
        let offset = node.uint32(at: 12)
        let mappingCount = node.uint32(at: 8)
        let end = mappingCount > 0 ? min(Int(exactly: offset) ?? node.length, node.length) : node.length
        let room = node.slice(at: 29, count: end - 29)
        let name = room.prefix { $0 != 0 }
        if name.count == room.count || name.first != UInt8(ascii: "\\")
            || !name.allSatisfy({ (0x21..<0x7f).contains($0) })
        {
            report(
                node,
                "Device Name",
                "is \"\(printable(name.prefix(64)))\"",
                "it is the object's full path in the ACPI namespace, with a zero at its end: \"\\_SB_.DMA0\""
            )
        }
        return .namedComponent(
            IORTNamedComponent(
                flags: node.uint32(at: 16),
                memoryAccess: access,
                addressSizeLimit: node.byte(at: 28),
                objectName: printable(name)
            )
        )
    }

    private mutating func readSMMUv3(_ node: NodeBytes) -> IORTNode.Content {
        let smmu = IORTSMMUv3(
            base: node.uint64(at: 16),
            flags: node.uint32(at: 24),
            vatosAddress: node.uint64(at: 32),
            model: IORTSMMUv3.Model(rawValue: node.uint32(at: 40)),
            eventGSIV: node.uint32(at: 44),
            priGSIV: node.uint32(at: 48),
            globalErrorGSIV: node.uint32(at: 52),
            syncGSIV: node.uint32(at: 56),
            proximityDomain: node.revision == 0 ? 0 : node.uint32(at: 60),
            deviceIDMappingIndex: node.revision == 0 ? 0 : node.uint32(at: 64)
        )
        if smmu.model.rawValue > 2 {
            warn(
                node,
                "Model",
                "is \(hex(smmu.model.rawValue))",
                "known are 0 to 2; it is taken as 0, generic"
            )
        }
        if smmu.httuOverride == 3 {
            report(
                node,
                "HTTU Override",
                "is 3",
                "it is 0 for none, 1 for the Access flag, 2 for dirty state too"
            )
        }
        return .smmuV3(smmu)
    }

    private mutating func readReservedMemoryRange(_ node: NodeBytes) -> IORTNode.Content {
        let count = node.uint32(at: 20)
        let offset = node.uint32(at: 24)
        let isGood =
            count > 0
            && checkArray(
                node,
                ("Number of memory range descriptors", count),
                ("Memory range descriptor offset", offset),
                elementByteCount: IORTReservedMemoryRange.Descriptor.byteCount,
                behind: 0x1C
            )
        if count == 0 {
            warn(node, "Number of memory range descriptors", "is 0", "the node reserves nothing")
        }
        let descriptors = (0..<(isGood ? Int(truncatingIfNeeded: count) : 0)).map { index in
            let start =
                Int(truncatingIfNeeded: offset) + index * IORTReservedMemoryRange.Descriptor.byteCount
            return IORTReservedMemoryRange.Descriptor(
                base: node.uint64(at: start),
                byteCount: node.uint64(at: start + 8)
            )
        }
        return .rmr(IORTReservedMemoryRange(flags: node.uint32(at: 16), descriptors: descriptors))
    }

    // MARK: - Identifiers and reports

    private mutating func checkIdentifiers(_ nodes: [IORTNode]) {
        var owners: [UInt32: IORTNode] = [:]
        for node in nodes {
            if let other = owners[node.identifier] {
                log.warn(
                    IORTDiagnostic(
                        node: node.label,
                        field: "Identifier",
                        problem: "is \(node.identifier), as that of \(other.label)",
                        remedy:
                            "from revision 3 of the table on each node has its own; nothing here depends on it"
                    )
                )
            } else {
                owners[node.identifier] = node
            }
        }
    }

    private mutating func report(_ node: NodeBytes, _ field: String, _ problem: String, _ remedy: String) {
        log.report(IORTDiagnostic(node: node.label, field: field, problem: problem, remedy: remedy))
    }

    private mutating func warn(_ node: NodeBytes, _ field: String, _ problem: String, _ remedy: String) {
        log.warn(IORTDiagnostic(node: node.label, field: field, problem: problem, remedy: remedy))
    }
}

/// One node's bytes, by offsets from its start: nothing behind its end is read.
struct NodeBytes {
    let table: TableBytes
    let offset: Int
    let length: Int
    let revision: UInt8
    let type: IORTNodeType

    var label: String { "IORT node \(hex(offset)) (\(type.name))" }

    func byte(at place: Int) -> UInt8 { place < length ? table.byte(at: offset + place) : 0 }
    func uint16(at place: Int) -> UInt16 { place + 2 <= length ? table.uint16(at: offset + place) : 0 }
    func uint32(at place: Int) -> UInt32 { place + 4 <= length ? table.uint32(at: offset + place) : 0 }
    func uint64(at place: Int) -> UInt64 { place + 8 <= length ? table.uint64(at: offset + place) : 0 }

    func slice(at place: Int, count: Int) -> ArraySlice<UInt8> {
        table.slice(at: offset + place, count: min(count, length - place))
    }
}
