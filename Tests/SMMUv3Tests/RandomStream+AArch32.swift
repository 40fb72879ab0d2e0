// Random streams with tables of VMSAv8-32.

import SeededRandomness
import Testing

extension RandomStream {
    /// Stage 2 with S2AA64 = 0: IPAs of 25 to 40 bits, in pages of 4 KiB.
    ///
    /// - Parameter isNested: Stage 1's tables need room in the IPA space.
    mutating func makeAArch32Stage2(_ isNested: Bool, _ random: inout SplitMix) throws -> Stage2Words {
        var stage = PlainStage()
        let smallest = isNested ? 32 : 25
        // Levels 1 and 2, with 1 to 13 bits in the first table.
        repeat {
            stage.inputBits = smallest + Int(random.next() % UInt64(41 - smallest))
            stage.startLevel = 1 + Int(random.next() % 2)
        } while !(1...13).contains(stage.inputBits - RandomStage.shift(stage, stage.startLevel))
        stage.outputBits = 40
        stage.isBigEndian = random.next() % 3 == 0
        stage.affd = random.next() % 4 == 0
        let tables = try RandomStage(
            stage,
            PhysicalTables(guest),
            isStage2: true,
            &random,
            output: Self.output
        )
        second = tables
        plain.stage2 = tables.plain
        plain.isStage2AArch32 = true
        plain.s2PTW = random.next() % 2 == 0
        return Stage2Words(
            // Four bits, signed.
            t0SZ: UInt64(bitPattern: Int64(32 - stage.inputBits)) & 0xF,
            sl0: UInt64(2 - stage.startLevel),
            aa64: false,
            endi: stage.isBigEndian,
            affd: stage.affd,
            ptw: plain.s2PTW,
            ttb: tables.plain.base
        )
    }

    /// A CD with AA64 = 0.
    mutating func makeAArch32Context(_ random: inout SplitMix) throws -> CDWords {
        var cd = CDWords(t1SZ: 0, tg1: 0, aa64: false, asid: Self.asid)
        cd.endi = random.next() % 3 == 0
        cd.affd = random.next() % 4 == 0
        cd.wxn = random.next() % 3 == 0
        cd.pan = random.next() % 4 == 0
        var context = PlainContext(wxn: cd.wxn, pan: cd.pan, isAArch32: true)
        context.uwxn = random.next() % 3 == 0
        // UWXN; TBI0 and IPS, which say nothing here.
        cd.extra[0] = bit(context.uwxn, 37)
        cd.tbi0 = random.next() % 2 == 0
        cd.ips = random.next() % 6
        let memory: any TableMemory
        if let second {
            memory = IntermediateTables(guest, second, flaws: 10)
        } else {
            memory = PhysicalTables(guest)
        }
        let isBigEndian = cd.endi
        let affd = cd.affd
        let intermediateBits = second.map { min($0.plain.inputBits, 40) }
        func makeHalf(_ random: inout SplitMix) throws -> (RandomStage, size: UInt64) {
            let size = random.next() % 8
            var stage = PlainStage(inputBits: 32 - Int(size))
            stage.startLevel = stage.inputBits > 30 ? 1 : 2
            stage.outputBits = 40
            stage.isBigEndian = isBigEndian
            stage.affd = affd
            stage.had = random.next() % 4 == 0
            let output: (inout SplitMix) -> UInt64 = { random in
                guard let bits = intermediateBits, random.next() % 10 > 0 else {
                    return Self.output(&random)
                }
                return random.next() & ((1 << UInt64(bits)) - 1)
            }
            return (try RandomStage(stage, memory, isStage2: false, &random, output: output), size)
        }
        let (first, firstSize) = try makeHalf(&random)
        lower = first
        (cd.t0SZ, cd.had0, cd.ttb0) = (firstSize, first.plain.had, first.plain.base)
        context.lower = first.plain
        if random.next() % 2 == 0 {
            let (other, otherSize) = try makeHalf(&random)
            upper = other
            (cd.t1SZ, cd.had1, cd.ttb1) = (otherSize, other.plain.had, other.plain.base)
            cd.epd1 = false
            context.upper = other.plain
        }
        plain.context = context
        return cd
    }
}
