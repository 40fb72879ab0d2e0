// Everything else that the daemon tells, as tables and lines of text. Each text ends with a newline.

package import ControlProtocol

/// Prints registers, interrupts, mappings, counters and logs.
package enum Reports {
    /// A register to a line, its fields below it.
    package static func registers(_ registers: [RegisterInfo], showsFields: Bool = true) -> String {
        let nameWidth = registers.map { ($0.name ?? "").count }.max() ?? 0
        var text = ""
        for register in registers {
            let name = register.name ?? ""
            let padding = String(repeating: " ", count: nameWidth - name.count)
            text += "\(Format.value(register.offset, bits: 20))  \(name)\(padding)"
            text += "  \(Format.value(register.value, bits: register.width))\n"
            if showsFields { text += fields(register.fields, indent: "           ") }
        }
        return text
    }

    /// A field to a line: its bits, its name, its value and what that means.
    static func fields(_ fields: [FieldInfo], indent: String) -> String {
        var table = TextTable()
        for field in fields {
            let bits = field.high == field.low ? "[\(field.low)]" : "[\(field.high):\(field.low)]"
            table.append(bits, field.name, field.value.description, field.meaning ?? "")
        }
        return table.lines.map { indent + $0 + "\n" }.joined()
    }

    /// An interrupt line to a row.
    package static func interrupts(_ interrupts: [InterruptInfo]) -> String {
        guard !interrupts.isEmpty else { return "no interrupt lines\n" }
        var table = TextTable("LINE>", "DEVICE", "LABEL", "INTERRUPT", "CONTROLLER", "PULSES>", "ASSERTED>")
        for interrupt in interrupts {
            table.append(
                "\(interrupt.line)",
                interrupt.device,
                interrupt.label,
                Format.interrupt(interrupt),
                interrupt.controller,
                "\(interrupt.pulses)",
                interrupt.asserted ? "now" : "\(interrupt.assertions)"
            )
        }
        return table.text
    }

    /// One signal, as `smmuctl irq --follow` prints it.
    package static func signal(_ signal: InterruptNotification) -> String {
        let number =
            signal.intid.map { "INTID \($0)" } ?? "<"
            + signal.specifier.map(\.description).joined(separator: " ") + ">"
        return "line \(signal.line)  \(signal.device) \(signal.label)  \(number) at \(signal.controller)"
            + "  \(signal.signal.rawValue) (\(signal.count))\(lost(signal.dropped))\n"
    }

    /// A mapping to a row.
    package static func mappings(_ mappings: [MappingInfo]) -> String {
        guard !mappings.isEmpty else { return "nothing is mapped\n" }
        var table = TextTable("DEVICE", "SUBSTREAM", "IOVA>", "PHYSICAL>", "LENGTH>", "PERM", "")
        for mapping in mappings {
            table.append(
                mapping.device,
                mapping.substream?.description ?? "-",
                mapping.iova.description,
                mapping.address.description,
                Format.size(mapping.length.value),
                mapping.permissions.description,
                mapping.allocated ? "allocated" : ""
            )
        }
        return table.text
    }

    /// Counters below their owners.
    package static func counters(_ groups: [CounterGroup]) -> String {
        let nameWidth = groups.flatMap(\.counters).map(\.name.count).max() ?? 0
        let valueWidth = groups.flatMap(\.counters).map { String($0.value).count }.max() ?? 0
        var text = ""
        for group in groups {
            text += group.owner + "\n"
            for counter in group.counters {
                let padding = String(repeating: " ", count: nameWidth - counter.name.count)
                let value = String(counter.value)
                text +=
                    "  \(counter.name)\(padding)  " + String(repeating: " ", count: valueWidth - value.count)
                    + value
                text += (counter.meaning.map { "  \($0)" } ?? "") + "\n"
            }
        }
        return text
    }

    /// A driver's lines, with their numbers.
    package static func log(_ lines: [LogLine]) -> String {
        var table = TextTable()
        for line in lines { table.append("\(line.sequence)", line.source, line.text) }
        return table.text
    }

    /// What became of a write or a copy.
    package static func transfer(_ verb: String, _ byteCount: UInt64, _ fault: FaultInfo?) -> String {
        if let fault { return Format.fault(fault) + "\n" }
        return "\(verb) \(Format.size(byteCount))\n"
    }

    /// How many notifications were lost before this one.
    static func lost(_ dropped: Size?) -> String {
        guard let dropped, dropped.value > 0 else { return "" }
        return "  (\(dropped) before it were lost)"
    }
}

/// Prints events of SMMUs.
package enum EventReport {
    /// Events, the oldest first, each with its record and its fields.
    package static func text(_ events: [EventInfo], showsFields: Bool = true) -> String {
        guard !events.isEmpty else { return "no events\n" }
        return events.map { text($0, showsFields: showsFields) }.joined()
    }

    /// One event: a line that says what happened, then the record.
    package static func text(_ event: EventInfo, showsFields: Bool = true, dropped: Size? = nil) -> String {
        var line = "#\(event.sequence)  \(event.smmu)  \(event.name) (\(event.number))"
        if let stream = event.stream { line += "  StreamID \(stream)" }
        if let substream = event.substream { line += "  SubstreamID \(substream)" }
        if let device = event.device { line += "  \(device)" }
        if let address = event.address { line += "  address \(address)" }
        if !event.recorded { line += "  not recorded" + (event.disposition.map { " (\($0))" } ?? "") }
        line += Reports.lost(dropped) + "\n"
        guard showsFields else { return line }
        if let reason = event.reason { line += "    \(Format.printable(reason))\n" }
        line += "    " + event.words.map(Format.word).joined(separator: " ") + "\n"
        return line + Reports.fields(event.fields, indent: "    ")
    }
}

/// Prints translations and how they came about.
package enum TranslationReport {
    /// Where a translation led, in a line.
    package static func text(_ outcome: TranslationOutcome) -> String {
        switch outcome {
        case .fault(let fault): return Format.fault(fault) + "\n"
        case .translation(let translation):
            var parts = ["physical \(translation.address)", translation.regime]
            if let size = translation.pageSize { parts.append("\(Format.size(size.value)) page") }
            if let permissions = translation.permissions { parts.append(permissions.description) }
            if let attributes = translation.attributes { parts.append(attributes) }
            return parts.joined(separator: ", ") + "\n"
        }
    }

    /// Each step with what was fetched and what it means, then where it led.
    package static func text(_ explanation: Methods.Explain.Result) -> String {
        var text = ""
        for (place, step) in explanation.steps.enumerated() {
            text += "\(place + 1). \(step.title)" + (step.address.map { "  at \($0)" } ?? "") + "\n"
            text += words(step)
            text += Reports.fields(step.fields, indent: "     ")
            if let note = step.note { text += "     → \(note)\n" }
        }
        return text + "=  " + Self.text(explanation.outcome)
    }

    /// Four words to a line, each line with the address of its first.
    private static func words(_ step: ExplainStep) -> String {
        stride(from: 0, to: step.words.count, by: 4).map { start in
            let row = step.words[start..<min(start + 4, step.words.count)]
            let address = step.words.count > 4 ? "+\(Format.value(Hex(UInt64(start * 8)), bits: 8))  " : ""
            return "     \(address)" + row.map(Format.word).joined(separator: " ") + "\n"
        }.joined()
    }
}
