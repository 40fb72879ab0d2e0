// smmud-bench: measures what smmud does against the least that could do it, in one run, and prints ratios.

import ArgumentParser
import FoundationEssentials
import Glibc

@main
struct SMMUDBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "smmud-bench",
        abstract: "Measures smmud against floors measured in the same run.",
        discussion: """
            Each benchmark interleaves samples of its subject with samples of its floor, the least that could do the \
            job. The ratio is the median over the pairs, the range after it the quartiles. Quote ratios, with the \
            command; times are of one machine at one moment.
            """
    )

    @Option(help: "Only the benchmarks whose names contain this.")
    var filter: String?

    @Flag(help: "Fewer and shorter samples: to see that everything runs.")
    var quick = false

    @Flag(help: "One JSON array instead of the table.")
    var json = false

    @Option(help: "Run the subject of the benchmark of this name so often, and measure nothing.")
    var repetitions: Int?

    func run() throws {
        if let repetitions {
            guard repetitions > 0, let one = benchmarks.first(where: { $0.name == filter }) else {
                throw ValidationError("--repetitions N takes the whole name of one benchmark in --filter")
            }
            return try one.prepare().subject(repetitions)
        }
        let chosen = benchmarks.filter { filter.map($0.name.contains) ?? true }
        guard !chosen.isEmpty else {
            throw ValidationError(
                "no benchmark is named like \(filter ?? ""); there are: "
                    + benchmarks.map(\.name).joined(separator: ", ")
            )
        }
        var measurements: [Measurement] = []
        if !json { print(Row.heading) }
        for benchmark in chosen {
            let measurement = try benchmark.measure(quick ? .quick : .full)
            if !json {
                print(Row(measurement).text)
                fflush(nil)
            }
            measurements.append(measurement)
        }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            print(String(decoding: try encoder.encode(measurements), as: UTF8.self))
        }
    }

    private var benchmarks: [Benchmark] { translationBenchmarks + walkBenchmarks + socketBenchmarks + vfioUserBenchmarks }
}

/// One line of the table.
private struct Row {
    let text: String

    static let heading =
        padded("benchmark", 21) + padded("subject", 45) + padded("floor", 28)
        + leading("subject", 11) + leading("floor", 11) + leading("ratio", 8) + "   quartiles"

    init(_ measurement: Measurement) {
        text =
            padded(measurement.name, 21) + padded(measurement.subject, 45) + padded(measurement.floor, 28)
            + leading(time(measurement.subjectNanoseconds), 11)
            + leading(time(measurement.floorNanoseconds), 11) + leading(rounded(measurement.ratio), 8)
            + "   \(rounded(measurement.ratioLowerQuartile))...\(rounded(measurement.ratioUpperQuartile))"
    }
}

private func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
}

private func leading(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(1, width - text.count)) + text
}

/// Three digits.
private func rounded(_ value: Double) -> String {
    let scale: Double = value < 10 ? 100 : value < 100 ? 10 : 1
    let scaled = (value * scale).rounded()
    let whole = Int(scaled / scale)
    guard scale > 1 else { return "\(whole)" }
    let fraction = String(Int(scaled) % Int(scale))
    return "\(whole)." + String(repeating: "0", count: (scale == 100 ? 2 : 1) - fraction.count) + fraction
}

private func time(_ nanoseconds: Double) -> String {
    nanoseconds < 1000
        ? "\(rounded(nanoseconds)) ns"
        : nanoseconds < 1_000_000
            ? "\(rounded(nanoseconds / 1000)) us" : "\(rounded(nanoseconds / 1_000_000)) ms"
}
