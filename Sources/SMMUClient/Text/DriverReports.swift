// What the daemon's own driver tells: groups, domains, commands, logs, strict beside lazy.

package import ControlProtocol

/// Prints what the IOMMU core has.
package enum GroupReport {
    /// A device to a row, below its group.
    package static func text(_ groups: [GroupInfo]) -> String {
        guard !groups.isEmpty else { return "no groups\n" }
        var table = TextTable("GROUP>", "TYPE", "DOMAIN", "DEVICE", "DRIVER", "SMMU")
        for group in groups {
            for (index, device) in group.devices.enumerated() {
                let isFirst = index == 0
                table.append(
                    isFirst ? "\(group.group)" : "",
                    isFirst ? group.type : "",
                    isFirst ? group.domain : "",
                    device.device,
                    device.driver ?? "-",
                    isFirst ? group.smmu : ""
                )
            }
        }
        var text = table.text
        for group in groups {
            for region in group.reservedRegions {
                text += "group \(group.group) reserves \(region.first)-\(region.last) (\(region.kind))\n"
            }
        }
        return text
    }

    /// Files and links as `find` and `cat` would show them.
    package static func sysfs(_ entries: [String: String]) -> String {
        var text = ""
        for (path, content) in entries.sorted(by: { $0.key < $1.key }) {
            if content.hasSuffix("\n") {
                text += content.split(separator: "\n").map { "\(path): \($0)\n" }.joined()
            } else if content.isEmpty {
                text += "\(path):\n"
            } else {
                text += "\(path) -> \(content)\n"
            }
        }
        return text
    }

    /// A device, as it came or was bound.
    package static func text(_ device: DeviceInfo) -> String {
        let driver = device.driver.map { ", driver \($0)" } ?? ", no driver"
        return "\(device.device) (\(device.bus) \(device.kernelName)) is in group \(device.group)\(driver)\n"
    }
}

/// Prints domains.
package enum DomainReport {
    /// A domain to a row.
    package static func text(_ domains: [DomainInfo]) -> String {
        guard !domains.isEmpty else { return "no domains\n" }
        var table = TextTable(
            "DOMAIN",
            "KIND",
            "ASID>",
            "VMID>",
            "PAGE>",
            "ROOT>",
            "MAPPED>",
            "SMMU",
            "DEVICES"
        )
        for domain in domains {
            table.append(
                title(domain),
                domain.kind,
                domain.asid.map { "\($0)" } ?? "-",
                domain.vmid.map { "\($0)" } ?? "-",
                domain.granule.map { Format.size($0.value) } ?? "-",
                domain.root?.description ?? "-",
                domain.granule == nil ? "-" : Format.size(domain.mapped.value),
                domain.smmu,
                domain.devices.isEmpty ? "-" : domain.devices.joined(separator: " ")
            )
        }
        return table.text
    }

    private static func title(_ domain: DomainInfo) -> String {
        if let group = domain.group { return "of group \(group)" }
        if let substream = domain.substream { return "SubstreamID \(substream)" }
        return domain.name ?? "-"
    }
}

/// Prints commands that went to command queues.
package enum CommandReport {
    /// A command to a line.
    package static func text(_ commands: [CommandInfo], showsFields: Bool = true) -> String {
        guard !commands.isEmpty else { return "no commands\n" }
        return commands.map { text($0, showsFields: showsFields) }.joined()
    }

    /// One command: its number, its name, its words, and what is set of its fields.
    package static func text(_ command: CommandInfo, showsFields: Bool = true, dropped: Size? = nil) -> String
    {
        var line = "#\(command.sequence)  \(command.smmu)  \(command.name)"
        if showsFields {
            for field in command.fields where field.value.value != 0 {
                line += " \(field.name)=\(field.value)"
            }
        }
        return line + "  " + command.words.map(Format.word).joined(separator: " ") + Reports.lost(dropped)
            + "\n"
    }

    /// Counts by opcode, below their SMMU.
    package static func counts(_ smmus: [SMMUCommandCounts]) -> String {
        guard !smmus.isEmpty else { return "no SMMU has a driver of the daemon's\n" }
        return smmus.map { smmu in
            var table = TextTable("COUNT>", "COMMAND")
            for command in smmu.commands { table.append("\(command.count)", command.name) }
            table.append("\(smmu.total)", "total")
            return smmu.smmu + "\n" + table.lines.map { "  \($0)\n" }.joined()
        }.joined()
    }

    /// Strict and lazy in two columns.
    package static func text(_ result: Methods.IOMMUCompare.Result) -> String {
        let (strict, lazy) = (result.strict, result.lazy)
        var text =
            "\(Format.count(result.buffers, "buffer")) of \(Format.size(result.length.value)) for \(result.device):"
            + " map, DMA, unmap\n\n"
        var table = TextTable("", "STRICT (\(strict.type))>", "LAZY (\(lazy.type))>")
        for name in names(strict.commands + lazy.commands) {
            table.append(name, count(name, strict.commands), count(name, lazy.commands))
        }
        table.append("commands", "\(strict.total)", "\(lazy.total)")
        for name in names(strict.flush + lazy.flush) {
            table.append("\(name), flush", count(name, strict.flush), count(name, lazy.flush))
        }
        table.append("DMA that hit after unmap", "\(strict.hits)", "\(lazy.hits)")
        table.append("window", window(strict), window(lazy))
        table.append("then", strict.fault ?? "still reached", lazy.fault ?? "still reached")
        text += table.text
        return text
    }

    private static func names(_ counts: [OpcodeCount]) -> [String] {
        Dictionary(counts.map { ($0.opcode.value, $0.name) }) { first, _ in first }
            .sorted { $0.key < $1.key }.map(\.value)
    }

    private static func count(_ name: String, _ counts: [OpcodeCount]) -> String {
        "\(counts.first { $0.name == name }?.count ?? 0)"
    }

    private static func window(_ mode: UnmapModeInfo) -> String {
        guard let window = mode.windowNanoseconds?.value else { return "open" }
        // Nothing hit: what passed is the time of one DMA.
        guard mode.hits > 0 else { return "none" }
        return "\(window / 1_000_000).\(String(1000 + window / 1000 % 1000).dropFirst()) ms"
    }
}

/// Prints drivers' logs as `dmesg` does.
package enum LogReport {
    /// A line with its time.
    package static func text(_ line: LogLine, dropped: Size? = nil) -> String {
        let time = line.microseconds?.value ?? 0
        let seconds = String(time / 1_000_000)
        let padding = String(repeating: " ", count: max(0, 5 - seconds.count))
        let fraction = String(1_000_000 + time % 1_000_000).dropFirst()
        return "[\(padding)\(seconds).\(fraction)] \(line.text)\(Reports.lost(dropped))\n"
    }

    /// Lines, the oldest first.
    package static func text(_ lines: [LogLine]) -> String { lines.map { text($0) }.joined() }
}
