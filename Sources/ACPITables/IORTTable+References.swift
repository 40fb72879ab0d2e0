// References: where mappings and counter groups may lead.

extension IORTTable {
    /// The types that an ID mapping of a node may lead to.
    private static func targets(of type: IORTNodeType) -> [IORTNodeType] {
        switch type {
        case .namedComponent, .rootComplex: [.smmuV3, .smmu, .itsGroup]
        case .smmuV3, .smmu, .pmcg: [.itsGroup]
        case .rmr: [.smmuV3, .smmu]
        default: []
        }
    }

    /// Whether a node of this type may have a mapping with the flag Single mapping.
    ///
    /// Root complexes may in Linux.
    private static func mayHaveSingleMapping(_ type: IORTNodeType) -> Bool {
        [.namedComponent, .rootComplex, .smmuV3, .pmcg, .rmr].contains(type)
    }

    static func checkReferences(
        of node: IORTNode,
        _ nodes: [IORTNode],
        _ indices: [Int: Int],
        _ log: inout IORTLog
    ) {
        for (index, mapping) in node.mappings.enumerated() {
            checkRange(of: mapping, index, node, &log)
            let field = "ID mapping \(index): Output Reference"
            guard let target = target(mapping.outputReference, of: node, field, nodes, indices, &log) else {
                continue
            }
            let allowed = targets(of: node.type)
            guard !allowed.contains(target.type) else { continue }
            let names = allowed.map { "\($0.name) nodes" }
            log.report(
                IORTDiagnostic(
                    node: node.label,
                    field: field,
                    problem: target.offset == node.offset
                        ? "leads to the node itself" : "leads to \(target.label)",
                    remedy: "IDs of \(article(node.type.name)) go to " + names.joined(separator: ", ")
                )
            )
        }
        guard case .pmcg(let group) = node.content else { return }
        let counted = target(group.nodeReference, of: node, "Node Reference", nodes, indices, &log)
        guard let counted else { return }
        guard [.smmuV3, .smmu, .rootComplex, .namedComponent, .itsGroup].contains(counted.type) else {
            log.report(
                IORTDiagnostic(
                    node: node.label,
                    field: "Node Reference",
                    problem: "leads to \(counted.label)",
                    remedy: "a PMCG counts for an SMMU, a root complex, a named component or an ITS group"
                )
            )
            return
        }
    }

    /// The node at an offset; nil where none starts there, which is reported.
    private static func target(
        _ reference: UInt32,
        of node: IORTNode,
        _ field: String,
        _ nodes: [IORTNode],
        _ indices: [Int: Int],
        _ log: inout IORTLog
    ) -> IORTNode? {
        if let offset = Int(exactly: reference), let index = indices[offset] { return nodes[index] }
        let starts = nodes.prefix(8).map { hex($0.offset) }.joined(separator: ", ")
        log.report(
            IORTDiagnostic(
                node: node.label,
                field: field,
                problem: "is \(hex(reference)), where no node starts",
                remedy: "it is a node's offset in the table: " + starts + (nodes.count > 8 ? ", ..." : "")
            )
        )
        return nil
    }

    private static func checkRange(
        of mapping: IORTMapping,
        _ index: Int,
        _ node: IORTNode,
        _ log: inout IORTLog
    ) {
        if mapping.isSingle {
            guard !mayHaveSingleMapping(node.type) else { return }
            return log.report(
                IORTDiagnostic(
                    node: node.label,
                    field: "ID mapping \(index): Flags",
                    problem: "has Single Mapping",
                    remedy: "\(article(node.type.name)) has ranges of IDs"
                )
            )
        }
        for (name, base) in [("Input base", mapping.inputBase), ("Output Base", mapping.outputBase)]
        where base.addingReportingOverflow(mapping.countMinusOne).overflow {
            log.report(
                IORTDiagnostic(
                    node: node.label,
                    field: "ID mapping \(index): ID Count",
                    problem: "\(hex(mapping.countMinusOne)) IDs and one more from \(name) \(hex(base)) on",
                    remedy: "IDs have 32 bits"
                )
            )
        }
    }

    private static func article(_ noun: String) -> String {
        (noun.hasPrefix("S") || noun.hasPrefix("ITS") || noun.hasPrefix("RMR") ? "an " : "a ") + noun
    }
}
