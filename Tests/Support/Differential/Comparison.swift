// Whether two outcomes of one case are the same, as far as anybody promises that.

import SMMUv3Spec

/// What differs in a case.
package struct Difference: Sendable {
    package enum Place: Hashable, Sendable {
        /// A DMA, by number.
        case dma(Int)
        /// A batch of commands, by number.
        case commands(Int)
        case errors
        /// Memory, at this address.
        case memory(UInt64)
    }
    package var place: Place
    /// Whether caches may have answered, so that there are two right answers.
    package var isEither = false
    package var model: String
    package var qemu: String
}

extension DMAOutcome {
    /// The outcome without what says which DMA of a page it was.
    func ofPage() -> DMAOutcome {
        var result = self
        result.word &= ~0xFFF
        result.landing = landing.map { $0 & ~0xFFF }
        for index in result.records.indices {
            result.records[index].words[2] &= ~0xFFF
            result.records[index].words[3] &= ~0xFFF
        }
        return result
    }
}

extension DMAOutcome: CustomStringConvertible {
    package var description: String {
        var parts: [String] = []
        if word != 0 { parts.append("read 0x\(hex(word))") }
        if let landing { parts.append("wrote at 0x\(hex(landing))") }
        for record in records {
            let words = (0..<4).map { "0x" + hex(record.words[$0]) }.joined(separator: " ")
            parts.append("\(record.number) (\(words))")
        }
        return parts.isEmpty ? "nothing" : parts.joined(separator: ", ")
    }
}

enum Comparison {
    static func differences(_ run: Case, model: CaseOutcome, qemu: CaseOutcome) -> [Difference] {
        var result: [Difference] = []
        for (index, dma) in run.dmas.enumerated() {
            let (ours, theirs) = (model.dmas[index], qemu.dmas[index])
            switch dma.promise {
            case .equal:
                guard ours != theirs else { continue }
                result.append(Difference(place: .dma(index), model: "\(ours)", qemu: "\(theirs)"))
            case .none: break
            case .either(let before, let after):
                for (name, outcome) in [("model", model), ("QEMU", qemu)] {
                    let permitted = [outcome.dmas[before].ofPage(), outcome.dmas[after].ofPage()]
                    guard !permitted.contains(outcome.dmas[index].ofPage()) else { continue }
                    let note = "\(name): \(outcome.dmas[index]), neither as before nor as after"
                    result.append(
                        Difference(
                            place: .dma(index),
                            isEither: true,
                            model: name == "model" ? note : "\(ours)",
                            qemu: name == "model" ? "\(theirs)" : note
                        )
                    )
                }
            }
        }
        for index in model.commandConsumers.indices
        where model.commandConsumers[index] != qemu.commandConsumers[index] {
            result.append(
                Difference(
                    place: .commands(index),
                    model: "CMDQ_CONS 0x\(hex(model.commandConsumers[index]))",
                    qemu: "CMDQ_CONS 0x\(hex(qemu.commandConsumers[index]))"
                )
            )
        }
        if model.gerror != qemu.gerror {
            result.append(
                Difference(
                    place: .errors,
                    model: "GERROR 0x\(hex(model.gerror))",
                    qemu: "GERROR 0x\(hex(qemu.gerror))"
                )
            )
        }
        return result
    }
}
