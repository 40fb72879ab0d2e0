// smmud-bench: measures what smmud does against the least that could do it, in one run, and prints ratios.

import ArgumentParser
import FoundationEssentials
import Glibc

/// Every row, in the order of the report; each file brings its own.
private var benchmarks: [Benchmark] {
    hostBenchmarks + translationBenchmarks + cacheBenchmarks + invalidationBenchmarks + threadBenchmarks
        + driverBenchmarks + socketBenchmarks + vfioUserBenchmarks + daemonBenchmarks + largeBoardBenchmarks
}

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

    @Flag(help: "JSON instead of the table.")
    var json = false

    @Flag(help: "Print the names and what is measured, and measure nothing.")
    var list = false

    @Option(help: "The file with the last figures; each ratio is compared with the one there.")
    var figures: String?

    @Flag(help: "Take this run's figures as the last ones.")
    var write = false

    @Option(help: "A directory with device trees of real boards.")
    var boards: String?

    @Option(help: "Run the subject of the benchmark of this name so often, and measure nothing.")
    var repetitions: Int?

    func validate() throws {
        guard !write || figures != nil else { throw ValidationError("--write needs --figures FILE") }
    }

    func run() throws {
        if let boards { BoardDirectory.path = boards }
        if let repetitions {
            guard repetitions > 0, let counted = benchmarks.first(where: { $0.name == filter })?.counted
            else {
                throw ValidationError("--repetitions N takes the whole name of one benchmark in --filter")
            }
            return try counted()(repetitions)
        }
        let chosen = benchmarks.filter { filter.map($0.name.contains) ?? true }
        guard !chosen.isEmpty else {
            throw ValidationError(
                "no benchmark is named like \(filter ?? ""); there are: "
                    + benchmarks.map(\.name).joined(separator: ", ")
            )
        }
        if list {
            for benchmark in chosen {
                print(padded(benchmark.name, 22) + "\(benchmark.subject) / \(benchmark.floor)")
            }
            return
        }
        try measure(chosen)
    }

    private func measure(_ chosen: [Benchmark]) throws {
        let machine = HostState()
        var file = try figures.map { try FigureFile(path: $0) }
        if !json {
            print(machine.text)
            print(RunReport.Row.heading)
        }
        var measurements: [Measurement] = []
        var rows: [RunReport.Row] = []
        var skipped: [String: String] = [:]
        for benchmark in chosen {
            do {
                let measurement = try benchmark.measure(quick ? .quick : .full)
                let row = RunReport.Row(measurement, file?.rows[measurement.name])
                measurements.append(measurement)
                rows.append(row)
                if !json { print(row.text) }
            } catch let error as SkippedBenchmark {
                skipped[benchmark.name] = error.reason
                if !json { print(padded(benchmark.name, 22) + "not measured: \(error.reason)") }
            }
            fflush(nil)
        }
        if write { try file?.write(measurements) }
        guard json else {
            let aimed = rows.compactMap(\.isReached)
            print("\(aimed.count(where: { $0 })) of \(aimed.count) aims reached")
            return
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        let report = RunReport(machine: machine, rows: rows, skipped: skipped)
        print(String(decoding: try encoder.encode(report), as: UTF8.self))
    }
}

/// Why a row cannot be measured here; the others can.
struct SkippedBenchmark: Error {
    let reason: String
}
