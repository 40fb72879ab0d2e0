// The differential run without QEMU: its cases, its referee, and its list of deviations.

import AddressSpace
import SMMUv3
import SMMUv3Spec
import Testing

@testable import Differential

@Suite("Differential runs")
struct DifferentialTests {
    @Test("a seed and a number give one case, another number another case")
    func cases() {
        for index in 0..<60 {
            let first = CaseGenerator.make(seed: 9, index: index)
            let again = CaseGenerator.make(seed: 9, index: index)
            #expect(first.steps == again.steps)
            #expect(first.steps != CaseGenerator.make(seed: 9, index: index + 1).steps)
            #expect(first.steps != CaseGenerator.make(seed: 10, index: index).steps)
        }
    }

    @Test("the cases are of every kind, and lead to every event that this SMMU has")
    func coverage() throws {
        var kinds: Set<String> = []
        var events: Set<UInt8> = []
        for batch in 0..<10 {
            let model = try Self.makeModel(CaseGenerator.shape(batch: batch))
            defer { model.stop() }
            for index in 0..<CaseGenerator.batchCount {
                let run = CaseGenerator.make(seed: 1, index: batch * CaseGenerator.batchCount + index)
                let outcome = try model.run(run)
                model.ram.clean(run, outcome)
                kinds.insert(run.kind)
                events.formUnion(outcome.dmas.flatMap(\.records).map(\.number.rawValue))
            }
        }
        let wanted: Set<String> = [
            "stage 1", "stage 2", "nested", "bypass", "abort", "SMMU off", "bad structure", "commands",
            "invalidated: stage 1 leaf", "invalidated: stage 1 table", "invalidated: stage 2 leaf",
            "invalidated: stage 2 table", "invalidated: STE", "invalidated: CD",
            "not invalidated: stage 1 leaf",
            "not invalidated: stage 2 leaf", "not invalidated: STE",
        ]
        #expect(wanted.subtracting(kinds) == [])
        #expect(events == [0x02, 0x03, 0x04, 0x09, 0x0A, 0x0B, 0x10, 0x11, 0x12, 0x13])
    }

    @Test("the model answers every DMA as the referee reads the architecture", arguments: 0..<10)
    func referee(batch: Int) throws {
        let model = try Self.makeModel(CaseGenerator.shape(batch: batch))
        defer { model.stop() }
        var judged = 0
        for index in 0..<CaseGenerator.batchCount {
            let run = CaseGenerator.make(seed: 5, index: batch * CaseGenerator.batchCount + index)
            // Where a structure is no good the referee does not know all that can be.
            guard run.kind != "bad structure" else { continue }
            var expected: [Int: DMAOutcome] = [:]
            model.beforeDMA = { [unowned model] index, dma in
                guard dma.promise == .equal else { return }
                let scene = Scene(ram: model.ram, run: run, dma: dma, index: index)
                guard let ste = scene.ste, Self.isKnown(ste, run.shape) else { return }
                expected[index] = scene.referee?.architecture
            }
            let outcome = try model.run(run)
            model.ram.clean(run, outcome)
            for (dma, answer) in expected {
                judged += 1
                #expect(outcome.dmas[dma] == answer, "seed 5 case \(run.index) (\(run.kind)) DMA \(dma)")
            }
        }
        #expect(judged > 50)
    }

    @Test(
        "where TTB0 is counts for QEMU before the other half of a wrong CD does, and for the architecture never"
    )
    func orderWithinContexts() throws {
        let model = try Self.makeModel(MachineShape())
        defer { model.stop() }
        let fixture = Fixture(.nested)
        fixture.cd.ttb0 = Fixture.unmapped
        (fixture.cd.epd1, fixture.cd.t1SZ, fixture.cd.tg1) = (false, 60, 2)
        fixture.boot()
        fixture.write()
        var referee: Referee?
        let run = fixture.finished("order")
        model.beforeDMA = { [unowned model] index, dma in
            referee = Scene(ram: model.ram, run: run, dma: dma, index: index).referee
        }
        let outcome = try model.run(run)
        var badContext = EventRecord()
        badContext.words[0] = 0x08_0000_000A
        #expect(outcome.dmas == [DMAOutcome(records: [badContext])])
        // F_TRANSLATION of stage 2, CLASS TT, with RnW 1 whatever the transaction is.
        var unmapped = EventRecord()
        unmapped.words[0] = 0x08_0000_0010
        unmapped.words[1] = 1 << 35 | 1 << 39 | 1 << 40
        unmapped.words[2] = Fixture.address
        unmapped.words[3] = Fixture.unmapped
        let names = try #require(referee).names(
            model: outcome.dmas[0],
            qemu: DMAOutcome(records: [unmapped])
        )
        #expect(names.contains("nested-root-translated-with-cd"))
    }

    @Test("a case finds nothing in the queues' memory of what a case before it left there")
    func queueMemory() throws {
        let model = try Self.makeModel(MachineShape(stages: .stage1))
        defer { model.stop() }
        func fixture() -> Fixture {
            let fixture = Fixture(.stage1)
            fixture.leaf(0, Layout.scratch | 0xF43)
            fixture.boot()
            return fixture
        }
        let first = fixture()
        first.write()
        _ = try model.run(first.finished("writes"))
        #expect(model.ram.load32(Layout.scratch) == Layout.writtenWord(0))
        let second = fixture()
        second.read()
        let outcome = try model.run(second.finished("reads"))
        #expect(outcome.dmas == [DMAOutcome()])
    }

    @Test("QEMU's profile is what QEMU 11.1.3's registers read")
    func profile() {
        let both = Identification.qemu()
        #expect(both.idr0.rawValue == 0x0D44_101B)
        #expect(both.idr1.rawValue == 0x0273_0010)
        #expect(both.idr3.rawValue == 0x1414)
        #expect(both.idr5.rawValue == 0x74)
        #expect(both.iidr.rawValue == 0)
        #expect(both.aidr.rawValue == 1)
        let first = Identification.qemu(hasStage2: false)
        #expect(first.idr0.rawValue == 0x0D44_101A)
        #expect(first.idr3.rawValue == 0x1404)
        let second = Identification.qemu(hasStage1: false)
        #expect(second.idr0.rawValue == 0x0D44_1019)
        #expect(second.idr3.rawValue == 0x1414)
    }

    @Test("each known deviation of QEMU has a case that shows it")
    func deviations() {
        #expect(Set(DeviationCase.all.map(\.name)) == Deviations.names)
    }

    private static func makeModel(_ shape: MachineShape) throws -> ModelRunner {
        try ModelRunner(.qemu(hasStage1: shape.stages != .stage2, hasStage2: shape.stages != .stage1))
    }

    /// Whether the SMMU has the stages that an STE wants, and takes its STE.
    private static func isKnown(_ ste: STE, _ shape: MachineShape) -> Bool {
        switch shape.stages {
        case .stage1: ste.config == .stage1
        case .stage2: ste.config == .stage2
        case .nested: true
        }
    }
}
