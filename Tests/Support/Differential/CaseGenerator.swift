// Random cases: which there are, and how often.

import AddressSpace
import SMMUv3Spec
import SeededRandomness

/// Makes cases from seeds.
package enum CaseGenerator {
    /// The shape of the machine that runs a batch of cases: most have both stages.
    package static func shape(batch: Int) -> MachineShape {
        let stages: MachineShape.Stages = [.nested, .nested, .stage1, .nested, .stage2][batch % 5]
        return MachineShape(stages: stages, isTwoLevel: batch / 5 % 2 == 0)
    }

    /// How many cases a batch has.
    package static let batchCount = 50

    /// Case number `index` of a seed.
    package static func make(seed: UInt64, index: Int) -> Case {
        var mixer = SplitMix(seed: seed &* 0x1_0001 &+ UInt64(truncatingIfNeeded: index))
        var shape = shape(batch: index / batchCount)
        // An attempt ends early where memory did not suffice; the next is another case.
        while true {
            let builder = CaseBuilder(SplitMix(seed: mixer.next()))
            var result = Case(seed: seed, index: index, shape: shape)
            if fill(&result, builder) {
                result.steps = builder.steps
                return result
            }
            shape = result.shape
        }
    }

    private static func fill(_ result: inout Case, _ builder: CaseBuilder) -> Bool {
        let dice = builder.random.below(100)
        let configs: [StreamConfig] =
            switch result.shape.stages {
            case .stage1: builder.random.chance(5) ? [.stage2, .nested] : [.stage1]
            case .stage2: builder.random.chance(5) ? [.stage1, .nested] : [.stage2]
            case .nested: [.stage1, .stage1, .stage2, .stage2, .nested, .nested]
            }
        let config = builder.random.pick(configs)
        switch dice {
        case 0..<60: return translation(&result, builder, config)
        case 60..<78: return invalidation(&result, builder, config)
        case 78..<92: return badStructure(&result, builder, config)
        case 92..<97: return bypass(&result, builder)
        default: return commands(&result, builder)
        }
    }

    // MARK: Kinds

    static func name(_ config: StreamConfig) -> String {
        switch config {
        case .stage1: "stage 1"
        case .stage2: "stage 2"
        case .nested: "nested"
        case .bypass: "bypass"
        default: "abort"
        }
    }

    private static func granules(_ stream: Stream) -> String {
        func size(_ tables: StageTables?) -> String? {
            tables.map { "\(1 << ($0.shape.granule - 10))K" }
        }
        let first = [size(stream.lower), size(stream.upper)].compactMap(\.self).joined(separator: "+")
        return [first, size(stream.second) ?? ""].filter { !$0.isEmpty }.joined(separator: "/")
    }

    static func flaws(_ random: inout SplitMix) -> Flaws {
        switch random.below(10) {
        case 0..<4: Flaws(descriptor: 0, permission: 0)
        case 4..<9: Flaws(descriptor: 10, permission: 10)
        default: Flaws(descriptor: 10, permission: 10, peculiar: 20)
        }
    }

    static func regions(_ random: inout SplitMix) -> [UInt64] { (0..<3).map { _ in random.bits(18) } }

    private static func translation(_ result: inout Case, _ builder: CaseBuilder, _ config: StreamConfig)
        -> Bool
    {
        let flaws = flaws(&builder.random)
        let requester = Int(builder.random.below(3))
        guard let stream = builder.makeStream(requester, config, flaws) else { return false }
        result.kind = name(config)
        result.granules = granules(stream)
        let regions = regions(&builder.random)
        let addresses = (0..<6).map { _ in builder.makeAddress(stream, regions, flaws) }
        var table = StreamTable(builder, isTwoLevel: result.shape.isTwoLevel)
        table.place(stream, builder)
        table.boot(builder)
        for address in addresses {
            // Some twice: what caches hold has to be as good.
            for _ in 0..<(1 + builder.random.below(3)) {
                builder.access(requester, address, isWrite: builder.random.chance(50))
            }
        }
        return true
    }

    private static func bypass(_ result: inout Case, _ builder: CaseBuilder) -> Bool {
        let requester = Int(builder.random.below(3))
        let isEnabled = builder.random.chance(60)
        var table = StreamTable(builder, isTwoLevel: result.shape.isTwoLevel)
        if isEnabled {
            var stream = Stream(requester: requester)
            stream.ste.words = SIMD8(
                builder.random.next(),
                builder.random.next(),
                builder.random.next(),
                builder.random.next(),
                0,
                0,
                0,
                0
            )
            stream.ste.v = true
            stream.ste.config = StreamConfig(rawValue: UInt8(builder.random.pick([0, 1, 2, 3, 4, 4, 4])))
            table.place(stream, builder)
            result.kind = name(stream.ste.config)
        } else {
            result.kind = "SMMU off"
        }
        table.boot(builder, isEnabled: isEnabled)
        if !isEnabled {
            // ABORT, and UPDATE, without which the write says nothing.
            let abort: UInt32 = builder.random.chance(50) ? 1 << 20 : 0
            builder.write32(RegisterOffset.gbpa, 1 << 31 | abort)
        }
        for _ in 0..<4 {
            let page = StageTables.randomData(&builder.random) | builder.random.below(16) << 12
            // QEMU hands on what is beyond the output address size: another's word for it is not to be had.
            builder.access(requester, page, isWrite: builder.random.chance(50))
        }
        return true
    }
}
