// smmud-driver-conformance: the driver's list of cases on QEMU's SMMUv3, and on the model for comparison.

import Differential
import DriverConformance
import Glibc
import SMMUv3

/// A line on standard error.
func complain(_ text: String) {
    let bytes = Array("smmud-driver-conformance: \(text)\n".utf8)
    _ = write(2, bytes, bytes.count)
}

/// What the command line says.
struct Options {
    var folder = "/tmp"
    var filter = ""
    var qemu: [String] = []

    static func fail(_ text: String) -> Never {
        complain(text)
        exit(2)
    }

    init(_ words: [String]) {
        var rest = words[...]
        while let word = rest.popFirst() {
            switch word {
            case "--folder": folder = rest.popFirst() ?? folder
            case "--case": filter = rest.popFirst() ?? filter
            case "--":
                qemu = Array(rest)
                rest = []
            default: Self.fail("\(word): no such option")
            }
        }
        if qemu.isEmpty { Self.fail("QEMU's command is missing, after --") }
    }
}

/// A machine that can be had again and again.
struct Machine {
    let name: String
    let make: () throws -> any ConformanceBench
}

/// Plays all cases on fresh machines.
///
/// - Returns: How many passed and failed.
func play(_ machine: Machine, _ options: Options) async -> (passed: Int, failed: Int) {
    var (passed, failed) = (0, 0)
    for test in ConformanceCase.all where options.filter.isEmpty || test.name.contains(options.filter) {
        var note = ""
        do {
            let bench = try machine.make()
            if let capability = test.capability, try !capability.isThere(on: bench) {
                note = "  (without \(capability.rawValue): shows that the driver does without)"
            }
            try await test.run(on: bench)
            passed += 1
            print("ok      \(machine.name): \(test.name)\(note)")
        } catch {
            failed += 1
            print("FAILED  \(machine.name): \(test.name)\(note)\n        \(error)")
        }
    }
    return (passed, failed)
}

let options = Options(Array(CommandLine.arguments.dropFirst()))
let machines = [
    Machine(name: "QEMU, stage 1") {
        try QEMUConformanceBench(
            command: options.qemu,
            shape: MachineShape(stages: .stage1),
            folder: options.folder
        )
    },
    Machine(name: "QEMU, both stages") {
        try QEMUConformanceBench(command: options.qemu, shape: MachineShape(), folder: options.folder)
    },
    Machine(name: "model as QEMU's") { try ModelConformanceBench(.qemu(hasStage2: false)) },
    Machine(name: "model with everything") { try ModelConformanceBench(.full(streamIDBits: 16)) },
]
var (passed, failed) = (0, 0)
for machine in machines {
    let outcome = await play(machine, options)
    passed += outcome.passed
    failed += outcome.failed
}
for deviation in Deviation.allCases {
    print("QEMU deviates as it is known to: \(deviation.rawValue); the architecture: \(deviation.reason)")
}
print("\(passed) passed, \(failed) failed")
exit(failed == 0 && passed > 0 ? 0 : 1)
