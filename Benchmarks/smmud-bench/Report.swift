// What came out, for people and for programs, beside the last figures.

import FoundationEssentials
import Glibc

/// The figures of one row as Benchmarks/figures.json keeps them.
struct KeptFigures: Codable {
    let unit: Unit
    let figure: Double
    let floor: Double
    let ratio: Double
    let ratioLowerQuartile: Double
    let ratioUpperQuartile: Double

    init(_ measurement: Measurement) {
        func rounded(_ value: Double) -> Double { (value * 1000).rounded() / 1000 }
        unit = measurement.unit
        figure = rounded(measurement.subjectFigure.median)
        floor = rounded(measurement.floorFigure.median)
        ratio = rounded(measurement.ratio.median)
        ratioLowerQuartile = rounded(measurement.ratio.lowerQuartile)
        ratioUpperQuartile = rounded(measurement.ratio.upperQuartile)
    }
}

/// Figures of earlier runs, by row.
struct FigureFile {
    private let path: String
    private(set) var rows: [String: KeptFigures] = [:]

    /// Reads a file; one that is not there has no rows.
    init(path: String) throws {
        self.path = path
        guard let bytes = FileManager.default.contents(atPath: path) else { return }
        rows = try JSONDecoder().decode([String: KeptFigures].self, from: bytes)
    }

    /// Puts a run's figures in the place of the older ones of the same rows.
    mutating func write(_ measurements: [Measurement]) throws {
        for measurement in measurements { rows[measurement.name] = KeptFigures(measurement) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try (encoder.encode(rows) + Data("\n".utf8)).write(to: URL(filePath: path))
    }
}

/// What the machine was like before the run.
struct HostState: Encodable {
    let processor: String
    let processors: Int
    /// Runnable threads, averaged over the last minute.
    let load: Double

    init() {
        let information = Self.read("/proc/cpuinfo")
        processor =
            information.split(separator: "\n").first { $0.hasPrefix("model name") }
            .flatMap { $0.split(separator: ":").last }.map { String($0.drop { $0 == " " }) } ?? "unknown"
        processors = sysconf(CInt(_SC_NPROCESSORS_ONLN))
        load = Double(Self.read("/proc/loadavg").prefix { $0 != " " }) ?? 0
    }

    private static func read(_ path: String) -> String {
        guard let file = fopen(path, "r") else { return "" }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 8192)
        let count = fread(&bytes, 1, bytes.count, file)
        return String(decoding: bytes[..<count], as: UTF8.self)
    }

    var text: String {
        let busy = load > 0.5 ? ": something else runs here, so times are too long and ratios wide" : ""
        return "\(processor), \(processors) CPUs, load \(threeDigits(load)) before\(busy)"
    }
}

/// A run, for programs.
struct RunReport: Encodable {
    struct Row: Encodable {
        let name: String
        let subject: String
        let floor: String
        let unit: Unit
        let pairs: Int
        let disturbedPairs: Int
        let figure: Spread
        let floorFigure: Spread
        let ratio: Spread
        let aim: String?
        let isReached: Bool?
        /// This ratio by the last one.
        let change: Double?
    }
    let machine: HostState
    let rows: [Row]
    /// Rows that could not be measured, and why.
    let skipped: [String: String]
}

extension RunReport.Row {
    init(_ measurement: Measurement, _ last: KeptFigures?) {
        let aim = aims[measurement.name]
        self.init(
            name: measurement.name,
            subject: measurement.subject,
            floor: measurement.floor,
            unit: measurement.unit,
            pairs: measurement.pairs,
            disturbedPairs: measurement.disturbedPairs,
            figure: measurement.subjectFigure,
            floorFigure: measurement.floorFigure,
            ratio: measurement.ratio,
            aim: aim?.text(measurement.unit),
            isReached: aim?.isReached(by: measurement),
            change: last.map { measurement.ratio.median / $0.ratio }
        )
    }

    static let heading =
        padded("row", 22) + leading("figure", 9) + leading("quartiles", 20) + leading("floor", 9)
        + leading("ratio", 7) + leading("quartiles", 16) + leading("aim", 16) + leading("", 4)
        + leading("change", 9) + "  what / floor"

    /// One line of the table.
    var text: String {
        func range(_ spread: Spread, _ text: (Double) -> String) -> String {
            "\(text(spread.lowerQuartile))...\(text(spread.upperQuartile))"
        }
        return padded(name, 22) + leading(unit.text(figure.median), 9)
            + leading(range(figure, unit.text), 20) + leading(unit.text(floorFigure.median), 9)
            + leading(threeDigits(ratio.median), 7) + leading(range(ratio, threeDigits), 16)
            + leading(aim ?? "", 16) + leading(isReached.map { $0 ? "yes" : "NO" } ?? "", 4)
            + leading(change.map { "\(signed(($0 - 1) * 100)) %" } ?? "", 9) + "  \(subject) / \(floor)"
    }
}

extension Unit {
    func text(_ value: Double) -> String {
        switch self {
        case .bytes: "\(threeDigits(value / 1e6)) MB"
        case .nanoseconds where value < 999.5: "\(threeDigits(value)) ns"
        case .nanoseconds where value < 999_500: "\(threeDigits(value / 1e3)) us"
        case .nanoseconds: "\(threeDigits(value / 1e6)) ms"
        }
    }
}

func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
}

func leading(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(1, width - text.count)) + text
}

private func signed(_ value: Double) -> String { (value < 0 ? "-" : "+") + "\(Int(abs(value).rounded()))" }

/// Three digits, or all of those before the point.
func threeDigits(_ value: Double) -> String {
    let scale: Double = value < 10 ? 100 : value < 100 ? 10 : 1
    let scaled = (value * scale).rounded()
    let whole = Int(scaled / scale)
    guard scale > 1 else { return "\(whole)" }
    let fraction = String(Int(scaled) % Int(scale))
    return "\(whole)." + String(repeating: "0", count: (scale == 100 ? 2 : 1) - fraction.count) + fraction
}
