// A case and its outcomes for people.

import SMMUv3Spec

/// Writes a case out.
package enum Dump {
    package static func text(_ verdict: Verdict) -> String {
        let run = verdict.run
        let table = run.shape.isTwoLevel ? "2-level" : "linear"
        var lines = [
            "seed \(run.seed) case \(run.index): \(run.kind), \(run.granules), QEMU's stage "
                + "\(run.shape.stages.rawValue), \(table) stream table"
        ]
        var (dma, batch) = (0, 0)
        for step in run.steps {
            switch step {
            case .store(let address, let words):
                lines.append(
                    "  store 0x\(hex(address)): " + words.map { "0x" + hex($0) }.joined(separator: " ")
                )
            case .register32(let offset, let value):
                lines.append("  writel +0x\(hex(offset)) 0x\(hex(value))")
            case .register64(let offset, let value):
                lines.append("  writeq +0x\(hex(offset)) 0x\(hex(value))")
            case .commands(let commands):
                lines.append("  commands: " + commands.map { Self.text($0) }.joined(separator: "; "))
                lines.append(
                    "      CMDQ_CONS model 0x\(hex(verdict.model.commandConsumers[batch])), QEMU "
                        + "0x\(hex(verdict.qemu.commandConsumers[batch]))"
                )
                batch += 1
            case .dma(let access):
                lines.append(
                    "  DMA \(dma): StreamID 0x\(hex(Layout.streams[access.requester])) "
                        + "\(access.isWrite ? "writes" : "reads") 0x\(hex(access.address))"
                )
                lines.append("      model  \(verdict.model.dmas[dma])")
                lines.append("      QEMU   \(verdict.qemu.dmas[dma])")
                dma += 1
            }
        }
        return lines.joined(separator: "\n")
    }

    private static func text(_ command: Command) -> String {
        "\(command.opcode) (0x\(hex(command.words[0])) 0x\(hex(command.words[1])))"
    }
}
