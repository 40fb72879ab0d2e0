// The machine as a tree of text.

package import ControlProtocol

/// Prints a ``BoardInfo``: `smmuctl board` and `smmud --check`.
package enum BoardReport {
    /// The tree, each line with its newline.
    package static func text(_ board: BoardInfo) -> String {
        var root = TextTree(board.model.isEmpty ? "(no model)" : board.model)
        if !board.compatible.isEmpty { root.line += "  (\(board.compatible.joined(separator: ", ")))" }
        root.children += board.smmus.map { smmu($0, board.endpoints) }
        let others = board.endpoints.filter { endpoint in !board.smmus.contains { $0.path == endpoint.smmu } }
        root.append("endpoints with no SMMUv3 before them", endpointLines(others))
        root.children += board.pcieHosts.map(pcieHost)
        root.append("memory", board.memory.map(memory))
        root.append("reserved memory", board.reservedMemory.map(reserved))
        root.append("performance counters", board.pmcgs.flatMap(pmcg))
        root.append("warnings", board.warnings.map { "\($0.path): \($0.message)" })
        return Format.printable(root.text + "\n" + summary(board) + "\n")
    }

    /// The same for programs, over several lines.
    package static func json(_ board: BoardInfo) throws(ControlError) -> String {
        try ControlJSON.prettyText(board)
    }

    /// `2 SMMUs, 5 endpoints, 1 PCIe host, 4 GiB of memory, 1 warning`.
    private static func summary(_ board: BoardInfo) -> String {
        // A tree can claim any sizes; their sum is only told to a person.
        let memory = board.memory.reduce(UInt64(0)) { $0 &+ $1.range.size.value }
        var parts = [
            Format.count(board.smmus.count, "SMMU"), Format.count(board.endpoints.count, "endpoint"),
            Format.count(board.pcieHosts.count, "PCIe host"), "\(Format.size(memory)) of memory",
        ]
        if !board.warnings.isEmpty { parts.append(Format.count(board.warnings.count, "warning")) }
        return parts.joined(separator: ", ")
    }

    private static func smmu(_ smmu: SMMUInfo, _ endpoints: [EndpointInfo]) -> TextTree {
        var line = "SMMU \(smmu.index)  \(smmu.path)"
        if smmu.status != "okay" { line += "  status \(smmu.status)" }
        var table = TextTable()
        table.append("registers", Format.range(smmu.registers))
        if let features = smmu.features { table.append("features", Self.features(features)) }
        table.append("coherent", smmu.coherent ? "yes" : "no")
        if !smmu.quirks.isEmpty { table.append("quirks", smmu.quirks.joined(separator: ", ")) }
        if let parent = smmu.msiParent { table.append("MSIs to", parent) }
        table.append("driver", smmu.driver.rawValue + (smmu.driverMessage.map { ": \($0)" } ?? ""))
        var tree = TextTree(line, lines: table.lines)
        tree.append("interrupts", interruptLines(smmu.interrupts))
        tree.append("endpoints", endpointLines(endpoints.filter { $0.smmu == smmu.path }))
        return tree
    }

    private static func features(_ features: SMMUFeatures) -> String {
        var parts = [features.version.map { "SMMUv\($0)" } ?? "SMMUv3", "StreamID \(features.sidBits) bits"]
        parts.append(features.ssidBits > 0 ? "SubstreamID \(features.ssidBits) bits" : "no SubstreamID")
        parts.append("output \(features.oasBits) bits")
        parts.append("granules " + features.granules.map { "\($0 / 1024)K" }.joined(separator: " "))
        let stages = (features.stage1 ? ["1"] : []) + (features.stage2 ? ["2"] : [])
        if !stages.isEmpty { parts.append("stage " + stages.joined(separator: " and ")) }
        return (parts + features.flags).joined(separator: ", ")
    }

    private static func interruptLines(_ interrupts: [InterruptInfo]) -> [String] {
        var table = TextTable()
        for interrupt in interrupts {
            table.append(
                "line \(interrupt.line)",
                interrupt.label,
                Format.interrupt(interrupt),
                "at \(interrupt.controller)",
                activity(interrupt)
            )
        }
        return table.lines
    }

    private static func activity(_ interrupt: InterruptInfo) -> String {
        var parts: [String] = []
        if interrupt.pulses.value > 0 { parts.append(Format.count(interrupt.pulses.value, "pulse")) }
        if interrupt.assertions.value > 0 {
            parts.append(Format.count(interrupt.assertions.value, "assertion"))
        }
        if interrupt.asserted { parts.append("asserted") }
        return parts.joined(separator: ", ")
    }

    private static func endpointLines(_ endpoints: [EndpointInfo]) -> [String] {
        var table = TextTable()
        for endpoint in endpoints {
            table.append(endpoint.name, streams(endpoint), endpointNotes(endpoint))
        }
        return table.lines
    }

    private static func streams(_ endpoint: EndpointInfo) -> String {
        if let other = endpoint.otherIOMMU { return "behind \(other)" }
        guard endpoint.smmu != nil else { return "no IOMMU" }
        let list = endpoint.streams.map(\.description).joined(separator: " ")
        return "StreamID\(endpoint.streams.count == 1 ? "" : "s") \(list)"
    }

    private static func endpointNotes(_ endpoint: EndpointInfo) -> String {
        var notes: [String] = []
        if let domain = endpoint.domain { notes.append("domain \(domain.rawValue)") }
        if endpoint.substreamBits > 0 { notes.append("SubstreamID \(endpoint.substreamBits) bits") }
        if endpoint.coherent { notes.append("coherent") }
        if endpoint.status != "okay" { notes.append("status \(endpoint.status)") }
        let aliases = endpoint.aliases.filter { $0 != endpoint.name }
        if !aliases.isEmpty { notes.append("or \(aliases.joined(separator: ", "))") }
        return notes.joined(separator: ", ")
    }

    private static func pcieHost(_ host: PCIeHostInfo) -> TextTree {
        var line = "PCIe host  \(host.path)"
        if host.status != "okay" { line += "  status \(host.status)" }
        var table = TextTable()
        let first = Format.value(Hex(UInt64(truncatingIfNeeded: host.firstBus)), bits: 8)
        let last = Format.value(Hex(UInt64(truncatingIfNeeded: host.lastBus)), bits: 8)
        table.append("buses", "\(first)-\(last) of segment \(host.segment)")
        if let ecam = host.ecam { table.append("ECAM", Format.range(ecam)) }
        for window in host.windows {
            let kind = window.kind.rawValue + (window.prefetchable ? " prefetchable" : "")
            table.append("window", "\(Format.range(window.range)) is \(kind) \(window.pciAddress)")
        }
        for entry in host.iommuMap {
            table.append("iommu-map", mapEntry(entry, "StreamIDs", host.iommuMapMask))
        }
        for entry in host.msiMap { table.append("msi-map", mapEntry(entry, "DeviceIDs", host.msiMapMask)) }
        return TextTree(line, lines: table.lines)
    }

    private static func mapEntry(_ entry: PCIeMapInfo, _ what: String, _ mask: Hex) -> String {
        let last = entry.requesterBase.value &+ entry.length.value &- 1
        return "RequesterIDs \(entry.requesterBase)-\(Hex(last))"
            + (mask == 0xffff ? "" : " under mask \(mask)")
            + " are \(what) from \(entry.outputBase) at \(entry.target)"
    }

    private static func memory(_ region: MemoryRegionInfo) -> String {
        "\(Format.range(region.range))  \(region.path)"
            + (region.resident.map { "  \(Format.size($0.value)) resident" } ?? "")
    }

    private static func reserved(_ region: ReservedMemoryInfo) -> String {
        var parts = [region.range.map(Format.range) ?? "no range", region.path]
        if region.noMap { parts.append("no-map") }
        for range in region.iommuAddresses {
            parts.append("IOVAs \(Format.range(range.range)) of \(range.device)")
        }
        return parts.joined(separator: "  ")
    }

    private static func pmcg(_ group: PMCGInfo) -> [String] {
        let pages = group.registers.map(Format.range).joined(separator: " and ")
        let smmu = group.smmu.map { "  of \($0)" } ?? ""
        return ["\(group.path)  \(pages)\(smmu)"] + interruptLines(group.interrupts).map { "  " + $0 }
    }
}

extension TextTree {
    /// Hangs a heading with lines below it, unless there are none.
    fileprivate mutating func append(_ heading: String, _ lines: [String]) {
        if !lines.isEmpty { children.append(TextTree(heading, lines: lines)) }
    }
}
