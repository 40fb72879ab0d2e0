// What the run comes to: counts of everything that was tried.

import SMMUv3Spec

/// Counts, in the order of their names.
package struct Report: Sendable {
    package private(set) var caseCount = 0
    package private(set) var agreedCount = 0
    package private(set) var deviatingCount = 0
    package private(set) var differingCount = 0
    private var dmaCount = 0
    private var movedCount = 0
    private var eitherCount = 0
    private var kinds: [String: Int] = [:]
    private var granules: [String: Int] = [:]
    private var machines: [String: Int] = [:]
    private var events: [String: Int] = [:]
    private var deviations: [String: Int] = [:]
    private var commands: [String: Int] = [:]
    private var commandErrorCount = 0

    package init() {}

    package mutating func add(_ verdict: Verdict) {
        caseCount += 1
        if !verdict.differences.isEmpty {
            differingCount += 1
        } else if !verdict.deviations.isEmpty {
            deviatingCount += 1
        } else {
            agreedCount += 1
        }
        for name in Set(verdict.deviations) { deviations[name, default: 0] += 1 }
        kinds[verdict.run.kind, default: 0] += 1
        if !verdict.run.granules.isEmpty { granules[verdict.run.granules, default: 0] += 1 }
        let table = verdict.run.shape.isTwoLevel ? "2-level" : "linear"
        machines["stage \(verdict.run.shape.stages.rawValue), \(table)", default: 0] += 1
        for (dma, outcome) in zip(verdict.run.dmas, verdict.model.dmas) {
            dmaCount += 1
            if dma.promise != .equal { eitherCount += 1 }
            if outcome.isMoved { movedCount += 1 }
            events[Self.name(outcome), default: 0] += 1
        }
        for case .commands(let batch) in verdict.run.steps {
            for command in batch { commands["\(command.opcode)", default: 0] += 1 }
        }
        commandErrorCount += verdict.model.commandConsumers.filter { $0 >> 24 != 0 }.count
    }

    private static func name(_ outcome: DMAOutcome) -> String {
        guard let record = outcome.records.first else {
            return outcome.isMoved ? "data moved" : "nothing moved, no record"
        }
        guard record.number.rawValue >= 0x0B else { return "\(record.number)" }
        let stage = record.s2 ? "stage 2" : "stage 1"
        let place = ["CD", "TT", "IN", "3"][Int(record.eventClass.rawValue & 3)]
        return "\(record.number), \(stage), CLASS \(place)"
    }

    package var text: String {
        var lines = [
            "\(caseCount) cases: \(agreedCount) agreed, \(deviatingCount) with known deviations of QEMU, "
                + "\(differingCount) with differences that are not known",
            "\(dmaCount) DMAs: \(movedCount) moved data, \(dmaCount - movedCount) did not; "
                + "\(eitherCount) where caches may answer",
        ]
        func table(_ title: String, _ counts: [String: Int]) {
            lines.append("\(title):")
            for (name, count) in counts.sorted(by: {
                $0.value != $1.value ? $0.value > $1.value : $0.key < $1.key
            }) {
                let digits = "\(count)"
                lines.append(
                    String(repeating: " ", count: max(0, 9 - digits.utf8.count)) + digits + "  " + name
                )
            }
        }
        table("machines", machines)
        table("kinds", kinds)
        table("outcomes of DMAs", events)
        table("commands (\(commandErrorCount) errors)", commands)
        table("known deviations of QEMU, by cases", deviations)
        return lines.joined(separator: "\n")
    }

    package var granuleText: String {
        granules.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
    }
}
