// Random tables of every shape: the model against the plain reading of the specification, and its caches against
// the model without caches.

import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("Random tables")
struct RandomTranslationTests {
    /// Every kind of answer that the random tables must have led to: event, stage 2, CLASS; event 0 is an address.
    private struct Kind: Hashable {
        var event: UInt64
        var isStage2 = false
        var eventClass: UInt64 = 2

        init(event: UInt64, isStage2: Bool = false, eventClass: UInt64 = 2) {
            self.event = event
            self.isStage2 = isStage2
            self.eventClass = eventClass
        }

        init(_ answer: RandomStream.Answer) {
            guard case .record(let words) = answer else {
                self.init(event: 0)
                return
            }
            self.init(
                event: words[0] & 0xFF,
                isStage2: words[1] >> 39 & 1 == 1,
                eventClass: words[1] >> 40 & 3
            )
        }

        static func all(_ config: UInt64) -> Set<Kind> {
            let faults: [UInt64] = [0x10, 0x11, 0x12, 0x13]
            var result: Set = [Kind(event: 0)]
            if config & 1 != 0 {
                result.formUnion(faults.map { Kind(event: $0) })
                result.insert(Kind(event: 0x0B, eventClass: 1))
            }
            if config & 2 != 0 {
                result.formUnion(faults.map { Kind(event: $0, isStage2: true) })
                result.insert(Kind(event: 0x0B, isStage2: true))
            }
            if config & 3 == 3 {
                result.formUnion(
                    [0x10, 0x12, 0x13].map { Kind(event: $0, isStage2: true, eventClass: 1) }
                )
            }
            return result
        }
    }

    /// Each STE.Config with each world that it can have.
    struct Shape: Sendable, CustomTestStringConvertible {
        var config: UInt64
        var world = RandomWorld.el1

        var testDescription: String { "Config 0b\(String(config, radix: 2)), \(world.name)" }

        static let all =
            [0b101, 0b110, 0b111].map { Shape(config: $0) }
            + [0b101, 0b110, 0b111].map { Shape(config: $0, world: .aarch32) }
            + [RandomWorld.el2, .e2h].map { Shape(config: 0b101, world: $0) }
    }

    @Test(
        "every answer, record and all, is what a plain reading of the specification gives",
        arguments: Shape.all
    )
    func plainReading(_ shape: Shape) throws {
        let config = shape.config
        var kinds: Set<Kind> = []
        for seed in 1...60 as ClosedRange<UInt64> {
            var random = SplitMix(seed: seed &* 1000 &+ config)
            let stream = try RandomStream(config: config, world: shape.world, &random)
            let bits = stream.guest.smmu.identification.outputAddressBits
            for address in stream.addresses {
                for access in RandomStream.accesses {
                    let expected = stream.expected(address, access, bits: bits)
                    let answer = stream.answer(address, access, .uncached)
                    kinds.insert(Kind(answer))
                    guard answer == expected else {
                        let place = "seed \(seed) address \(String(address, radix: 16)) \(access)"
                        Issue.record("\(place): \(answer), not \(expected)")
                        return
                    }
                }
            }
        }
        #expect(Kind.all(config).subtracting(kinds) == [], "random tables lead everywhere")
    }

    @Test(
        "after any change and the invalidation that it needs, caches answer as memory does",
        arguments: Shape.all,
        Array(1...8 as ClosedRange<UInt64>)
    )
    func caches(_ shape: Shape, _ seed: UInt64) throws {
        var random = SplitMix(seed: seed &* 7919 &+ shape.config)
        let stream = try RandomStream(config: shape.config, world: shape.world, &random)
        for round in 0..<16 {
            for address in stream.addresses {
                for access in RandomStream.accesses {
                    let cached = stream.answer(address, access, .cached)
                    let memory = stream.answer(address, access, .uncached)
                    guard cached == memory else {
                        let place = "seed \(seed) round \(round) address \(String(address, radix: 16))"
                        Issue.record("\(place) \(access): \(cached), memory says \(memory)")
                        return
                    }
                }
            }
            try change(stream, &random)
            try #require(try stream.guest.activeErrors == 0, "a command that is illegal")
        }
    }

    /// Changes one descriptor and invalidates what it takes.
    private func change(_ stream: RandomStream, _ random: inout SplitMix) throws {
        let (vmid, asid) = (RandomStream.vmid, RandomStream.asid)
        let halves = [stream.lower, stream.upper].compactMap(\.self)
        guard let second = stream.second, halves.isEmpty || random.next() % 2 == 0 else {
            guard let half = halves.randomElement(using: &random),
                let address = stream.addresses.randomElement(using: &random)
            else { return }
            let offset = address & ((1 << UInt64(half.plain.inputBits)) - 1)
            guard let victim = try half.path(offset).randomElement(using: &random) else { return }
            // There may be no room for a table any more: then nothing is mapped.
            try half.store(victim.entry, (try? half.randomDescriptor(victim.level, &random)) ?? 0)
            let wasLeaf = victim.level == 3 || victim.word & 3 == 1
            let va = stream.inputAddress(offset, half)
            if stream.world.strw != 0 {
                return try invalidateAtEL2(stream, half, va, wasLeaf ? victim.level : nil, &random)
            }
            switch random.next() % 6 {
            case 4 where wasLeaf, 5 where wasLeaf:
                try stream.guest.sync(range(0x12 + random.next() % 2, va, victim.level, half, &random))
            case 0 where wasLeaf: try stream.guest.sync(Raw.tlbiNHVA(vmid: vmid, va, asid: asid))
            case 1 where wasLeaf: try stream.guest.sync(Raw.tlbiNHVAA(vmid: vmid, va))
            case 2: try stream.guest.sync(Raw.tlbiNHAll(vmid: vmid))
            // Global entries stay where only the ASID is named.
            default: try stream.guest.sync(Raw.tlbiNHASID(vmid: vmid, asid), Raw.tlbiNHAll(vmid: vmid))
            }
            return
        }
        let addresses = stream.addresses.map { $0 & ((1 << UInt64(second.plain.inputBits)) - 1) }
        guard let ipa = addresses.randomElement(using: &random),
            let victim = try second.path(ipa).randomElement(using: &random)
        else { return }
        try second.store(victim.entry, try second.randomDescriptor(victim.level, &random))
        let wasLeaf = victim.level == 3 || victim.word & 3 == 1
        if wasLeaf, random.next() % 2 == 0 {
            let command =
                random.next() % 2 == 0
                ? Raw.tlbiS2IPA(vmid: vmid, ipa) : range(0x2A, ipa, victim.level, second, &random)
            try stream.guest.sync(command, Raw.tlbiNHAll(vmid: vmid))
        } else {
            try stream.guest.sync(Raw.tlbiS12VMAll(vmid))
        }
        // The CD may lie elsewhere now.
        try stream.guest.sync(Raw.cfgiCDAll(RandomStream.id))
    }

    /// The TLBIs of NS-EL2, which has no ASIDs, and of NS-EL2-E2H.
    ///
    /// - Parameter leafLevel: nil where the descriptor was none of a leaf.
    private func invalidateAtEL2(
        _ stream: RandomStream,
        _ half: RandomStage,
        _ va: UInt64,
        _ leafLevel: Int?,
        _ random: inout SplitMix
    ) throws {
        let asid = RandomStream.asid
        switch (random.next() % 5, leafLevel) {
        case (0, .some): try stream.guest.sync(Raw.tlbiEL2VA(va, asid: asid))
        case (1, .some): try stream.guest.sync(Raw.tlbiEL2VAA(va))
        case (2, let level?), (3, let level?):
            try stream.guest.sync(range(0x22 + random.next() % 2, va, level, half, &random))
        default: try stream.guest.sync(Raw.tlbiEL2ASID(asid), Raw.tlbiEL2All)
        }
    }

    /// A TLBI by a range that a leaf is in, with the leaf's level or without.
    private func range(
        _ opcode: UInt64,
        _ address: UInt64,
        _ level: Int,
        _ stage: RandomStage,
        _ random: inout SplitMix
    ) -> RawCommand {
        let granule = stage.plain.granule
        let bits = UInt64(stage.shift(level))
        // Levels that TTL cannot say: 0 and above, and 1 of 16 KiB without DS.
        let hasTTL = level >= (granule == 14 && !stage.plain.ds ? 2 : 1) && random.next() % 2 == 0
        // In units of the leaf, some of which come before it.
        let scale = min(bits - UInt64(granule), 31)
        let first = address & ~((1 << bits) - 1)
        let before = first >> bits >= 4 && bits - UInt64(granule) == scale ? random.next() % 4 : 0
        var num = before + random.next() % 4
        if !hasTTL, scale == 0, num == 0 { num = 1 }
        let vmid = opcode & 0xF0 == 0x20 && opcode != 0x2A ? 0 : RandomStream.vmid
        let tag = vmid << 32 | (opcode == 0x12 || opcode == 0x22 ? RandomStream.asid << 48 : 0)
        let tg = UInt64(granule - 10) / 2
        let ttl = hasTTL ? UInt64(level) : 0
        return RawCommand(
            low: opcode | num << 12 | scale << 20 | tag,
            high: (first - before << bits) & ~0xFFF | tg << 10 | ttl << 8 | 1
        )
    }
}
