// Runs cases on both sides, and says what came of them.

import SMMUv3
import SMMUv3Spec

/// What became of one case.
package struct Verdict: Sendable {
    package var run: Case
    package var model: CaseOutcome
    package var qemu: CaseOutcome
    /// Known deviations of QEMU, for each difference that is one.
    package var deviations: [String] = []
    /// Differences that nobody knows.
    package var differences: [Difference] = []
}

/// QEMU and the model, started when they are needed.
package final class Session {
    private let command: [String]
    private let folder: String
    private var shape: MachineShape?
    private var batch = -1
    private var qemu: QEMURunner?
    private var model: ModelRunner?
    private var scenes: [Int: Scene] = [:]
    private var caseCount = 0
    /// Whether memory is compared after each case.
    package var isAlone = false
    private(set) package var qemuCount = 0
    /// Identification registers that are not as ``SMMUv3/Identification/qemu(hasStage1:hasStage2:)`` has them.
    private(set) package var surprises: [String] = []

    /// - Parameters:
    ///   - command: QEMU, with what it takes to start it.
    ///   - folder: Where its socket and its memory may be.
    package init(command: [String], folder: String) {
        self.command = command
        self.folder = folder
    }

    /// Ends QEMU and the model.
    package func stop() {
        model?.stop()
        (qemu, model) = (nil, nil)
    }

    /// A fresh QEMU and a fresh model, unless those of this batch are there.
    private func prepare(_ shape: MachineShape, _ batch: Int) throws -> (QEMURunner, ModelRunner) {
        if let qemu, let model, self.shape == shape, self.batch == batch { return (qemu, model) }
        model?.stop()
        (qemu, model) = (nil, nil)
        let fresh = try QEMURunner(command: command, shape: shape, folder: folder)
        let expected = Identification.qemu(
            hasStage1: shape.stages != .stage2,
            hasStage2: shape.stages != .stage1
        )
        if fresh.identification != expected {
            let note = "QEMU's SMMU of stage \(shape.stages.rawValue) has \(fresh.identification)"
            if !surprises.contains(note) { surprises.append(note) }
        }
        let other = try ModelRunner(fresh.identification)
        (qemu, model, self.shape, self.batch) = (fresh, other, shape, batch)
        qemuCount += 1
        return (fresh, other)
    }

    /// - Parameter batch: Cases of one batch share a QEMU.
    package func run(_ run: Case, batch: Int) throws -> Verdict {
        let (qemu, model) = try prepare(run.shape, batch)
        let ours = try model.run(run)
        let theirs: CaseOutcome
        do {
            theirs = try qemu.run(run)
        } catch {
            self.qemu = nil
            throw error
        }
        var verdict = Verdict(run: run, model: ours, qemu: theirs)
        let differences = Comparison.differences(run, model: ours, qemu: theirs)
        if !differences.isEmpty {
            model.ram.clean(run, ours)
            try judge(run, model)
        }
        for difference in differences {
            let names = Deviations.names(difference, verdict, scenes)
            if names.isEmpty {
                verdict.differences.append(difference)
            } else {
                verdict.deviations += names
            }
        }
        qemu.ram.clean(run, theirs)
        model.ram.clean(run, ours)
        // What went where nobody looked shows here, at the end of a batch.
        caseCount += 1
        if caseCount % CaseGenerator.batchCount == 0 || isAlone,
            let place = qemu.ram.firstDifference(from: model.ram, start: Layout.streamTable)
        {
            verdict.differences.append(
                Difference(
                    place: .memory(place),
                    model:
                        "0x\(hex(model.ram.load64(place) ?? 0)), in this case or one before it in its batch",
                    qemu: "0x\(hex(qemu.ram.load64(place) ?? 0))"
                )
            )
            qemu.forget()
            model.forget()
        }
        return verdict
    }

    /// Plays a case once more, and lets the referee see each DMA with memory as it finds it.
    private func judge(_ run: Case, _ model: ModelRunner) throws {
        scenes = [:]
        model.beforeDMA = { [unowned self, unowned model] index, dma in
            scenes[index] = Scene(ram: model.ram, run: run, dma: dma, index: index)
        }
        let again = try model.run(run)
        model.ram.clean(run, again)
        model.beforeDMA = nil
    }

    /// What the referee says of a DMA of the last case that had a difference.
    package func referee(_ place: Difference.Place) -> String {
        guard case .dma(let index) = place else { return "" }
        return scenes[index]?.referee?.text ?? "no referee"
    }
}
