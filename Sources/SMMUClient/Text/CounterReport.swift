// What performance counters counted, as a table.

import ControlProtocol

/// What all counter groups counted in one go.
package struct CountingResult: Codable, Equatable, Sendable {
    /// How long was counted.
    package var seconds: Double
    package var groups: [CounterGroupReading]

    package init(seconds: Double, groups: [CounterGroupReading]) {
        self.seconds = seconds
        self.groups = groups
    }
}

/// Prints what performance counters counted.
package enum CounterReport {
    /// A table for each group, in the manner of `perf stat`.
    package static func text(_ result: CountingResult) -> String {
        var text = ""
        for group in result.groups {
            var table = TextTable("COUNT>", "EVENT", "")
            for counter in group.counters {
                table.append("\(counter.count)", counter.name, remark(counter, group))
            }
            text += heading(group) + "\n" + table.lines.map { "  " + $0 + "\n" }.joined()
        }
        return text + "\(milliseconds(result.seconds)) s\n"
    }

    private static func heading(_ group: CounterGroupReading) -> String {
        var parts = [group.path]
        if let smmu = group.smmu { parts.append("of \(smmu)") }
        if let stream = group.stream {
            parts.append((group.span == true ? "StreamIDs like " : "StreamID ") + stream.description)
        }
        return parts.joined(separator: "  ")
    }

    private static func remark(_ counter: CounterReading, _ group: CounterGroupReading) -> String {
        if counter.overflowed { return "wrapped: too small" }
        guard ["tlb_miss", "config_cache_miss"].contains(counter.name),
            let transactions = group.counters.first(where: { $0.name == "transaction" }),
            transactions.count > 0, !transactions.overflowed
        else { return "" }
        let tenths = (Double(counter.count) / Double(transactions.count) * 1000).rounded()
        // Counters of one moment, so at most 1000, but others wrote them.
        guard tenths < 1e9 else { return "" }
        return "\(Int(tenths) / 10).\(Int(tenths) % 10)% of transactions"
    }

    /// `1.003`.
    private static func milliseconds(_ seconds: Double) -> String {
        let milliseconds = UInt64(max(0, min(seconds, 1e12)) * 1000)
        let fraction = String(milliseconds % 1000)
        return "\(milliseconds / 1000)." + String(repeating: "0", count: 3 - fraction.count) + fraction
    }
}
