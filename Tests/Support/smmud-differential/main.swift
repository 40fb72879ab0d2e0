// smmud-differential: random configurations in QEMU's SMMUv3 and in the model, and what differs.

import Differential
import Glibc

/// A line on standard error.
func complain(_ text: String) {
    let bytes = Array("smmud-differential: \(text)\n".utf8)
    _ = write(2, bytes, bytes.count)
}

/// What the command line says.
struct Options {
    var seed: UInt64 = 1
    var count = 1000
    var only: Int?
    var isVerbose = false
    var deviationsAlone = false
    var folder = "/tmp"
    var qemu: [String] = []

    static func fail(_ text: String) -> Never {
        complain("\(text)")
        exit(2)
    }

    init(_ words: [String]) {
        var rest = words[...]
        func number<Value: FixedWidthInteger>(_ name: String, _ text: String?) -> Value {
            guard let text, let value = Value(text) else { Self.fail("\(name) wants a number") }
            return value
        }
        while let word = rest.popFirst() {
            switch word {
            case "--seed": seed = number(word, rest.popFirst())
            case "--cases": count = number(word, rest.popFirst())
            case "--case": only = number(word, rest.popFirst())
            case "--verbose": isVerbose = true
            case "--deviations": deviationsAlone = true
            case "--folder": folder = rest.popFirst() ?? folder
            case "--":
                qemu = Array(rest)
                rest = []
            default: Self.fail("\(word): no such option")
            }
        }
        if qemu.isEmpty { Self.fail("QEMU's command is missing, after --") }
    }
}

/// Shows each known deviation of QEMU.
///
/// - Returns: How many did not show.
func showDeviations(_ session: Session, _ options: Options) throws -> Int {
    var missing = 0
    let cases = DeviationCase.all
    for (index, deviation) in cases.enumerated() {
        let verdict = try session.run(deviation.run, batch: -1)
        if options.isVerbose { print(Dump.text(verdict)) }
        let isShown = verdict.deviations.contains(deviation.name) && verdict.differences.isEmpty
        if options.deviationsAlone {
            print("\(isShown ? "shown" : "NOT SHOWN")  \(deviation.name): \(deviation.reason)")
        }
        guard !isShown else { continue }
        missing += 1
        let found = verdict.deviations.isEmpty ? "nothing" : verdict.deviations.joined(separator: ", ")
        print("QEMU does not deviate as it is known to (\(index), \(deviation.name)); found: \(found)")
        for difference in verdict.differences {
            print("    \(difference.place): model  \(difference.model)")
            print("    \(difference.place): QEMU   \(difference.qemu)")
        }
    }
    print("\(cases.count) cases of known deviations, \(missing) in which QEMU does not deviate so")
    return missing
}

/// Runs the cases.
///
/// - Returns: The exit code.
func run(_ options: Options) -> CInt {
    let session = Session(command: options.qemu, folder: options.folder)
    // QEMU must not outlive this.
    defer { session.stop() }
    session.isAlone = options.only != nil
    var report = Report()
    var missing = 0
    do {
        if options.only == nil { missing = try showDeviations(session, options) }
        if options.deviationsAlone { return missing == 0 ? 0 : 1 }
        for index in options.only.map({ $0..<($0 + 1) }) ?? 0..<options.count {
            let run = CaseGenerator.make(seed: options.seed, index: index)
            let verdict = try session.run(run, batch: index / CaseGenerator.batchCount)
            report.add(verdict)
            if options.isVerbose { print(Dump.text(verdict)) }
            for difference in verdict.differences where report.differingCount <= 20 {
                print("seed \(options.seed) case \(index) (\(run.kind)), \(difference.place):")
                print("    model  \(difference.model)")
                print("    QEMU   \(difference.qemu)")
                print("    \(session.referee(difference.place))")
            }
        }
    } catch {
        complain("\(error)")
        return 3
    }
    print(report.text)
    for surprise in session.surprises { print(surprise) }
    return report.differingCount == 0 && missing == 0 ? 0 : 1
}

exit(run(Options(Array(CommandLine.arguments.dropFirst()))))
