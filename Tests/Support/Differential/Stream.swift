// A stream: its STE, its CD and its tables, as software sets them up.

import AddressSpace
import SMMUv3Spec

/// One stream's configuration while a case is built.
struct Stream {
    let requester: Int
    var ste = STE()
    var cd = CD()
    var lower: StageTables?
    var upper: StageTables?
    var second: StageTables?
    /// Where its STE is.
    var steAddress: UInt64 = 0
    /// Where its CD is: in memory.
    var contextAddress: UInt64 = 0

    var streamID: StreamID { StreamID(Layout.streams[requester]) }
    var vmid: UInt16 { ste.config.translatesStage2 || ste.config.translatesStage1 ? ste.s2VMID : 0 }
}

extension CaseBuilder {
    /// A stream with tables of one or two stages; nil where memory did not suffice.
    func makeStream(_ requester: Int, _ config: StreamConfig, _ flaws: Flaws) -> Stream? {
        var stream = Stream(requester: requester)
        stream.ste.v = true
        stream.ste.config = config
        stream.ste.s2VMID = UInt16(truncatingIfNeeded: random.bits(16))
        makeIgnoredBits(&stream.ste)
        if config.translatesStage2 {
            guard makeStage2(&stream, flaws) else { return nil }
        }
        if config.translatesStage1 {
            guard makeStage1(&stream, flaws) else { return nil }
        }
        return stream
    }

    /// Fields that say nothing of where data goes, and those that this SMMU does not have.
    private func makeIgnoredBits(_ ste: inout STE) {
        ste.s1DSS = UInt8(random.bits(2))
        ste.s1CIR = UInt8(random.bits(2))
        ste.s1COR = UInt8(random.bits(2))
        ste.s1CSH = UInt8(random.bits(2))
        ste.shCfg = UInt8(random.bits(2))
        ste.strw = random.chance(10) ? UInt8(random.bits(2)) : 0
        ste.cont = random.chance(10) ? UInt8(random.bits(4)) : 0
        ste.swReserved = UInt8(random.bits(4))
        ste.s1Fmt = UInt8(random.bits(2))
        if random.chance(10) {
            ste.privCfg = UInt8(random.bits(2))
            ste.instCfg = UInt8(random.bits(2))
            ste.memAttr = UInt8(random.bits(4))
            ste.mtCfg = random.chance(50)
        }
    }

    // MARK: Stage 2

    private static let startLevels: [Int: [UInt8: Int]] = [
        12: [0: 2, 1: 1, 2: 0], 14: [0: 3, 1: 2, 2: 1], 16: [0: 3, 1: 2, 2: 1],
    ]

    private func makeStage2(_ stream: inout Stream, _ flaws: Flaws) -> Bool {
        let granule = random.pick([12, 14, 16])
        let isConcatenated = random.chance(flaws.peculiar)
        var shape = StageShape(granule: granule, inputBits: 0, startLevel: 0, outputBits: 44)
        var sl0: UInt8 = 0
        repeat {
            // IAS is 44 bits. Stage 1's tables need room.
            shape.inputBits = 25 + Int(random.below(20))
            sl0 = UInt8(random.below(3))
            shape.startLevel = Self.startLevels[granule]?[sl0] ?? 0
        } while shape.startBits < 1 || shape.startBits > granule - 3 + 4
            || shape.isConcatenated != isConcatenated
        let sizes: [(UInt8, Int)] = [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 44)]
        // QEMU wants no more IPA bits than PA bits.
        let permitted = sizes.filter { $0.1 >= shape.inputBits || random.chance(flaws.peculiar / 4) }
        let (ps, bits) = random.pick(permitted)
        shape.outputBits = bits
        stream.ste.s2T0SZ = UInt8(64 - shape.inputBits)
        stream.ste.s2SL0 = sl0
        stream.ste.s2TG = granule == 12 ? 0 : granule == 14 ? 2 : 1
        stream.ste.s2PS = ps
        stream.ste.s2AA64 = true
        stream.ste.s2AFFD = random.chance(15)
        stream.ste.s2R = random.chance(90)
        stream.ste.s2PTW = random.chance(flaws.peculiar / 2)
        stream.ste.s2IR0 = UInt8(random.bits(2))
        stream.ste.s2OR0 = UInt8(random.bits(2))
        stream.ste.s2SH0 = UInt8(random.bits(2))
        guard let tables = StageTables(self, shape, isStage2: true, flaws: flaws) else { return false }
        stream.second = tables
        // Bits below the alignment of the first table say nothing.
        stream.ste.s2TTB = tables.base | lowBits(shape.startBytes)
        return true
    }

    /// Bits of a base below its own size, which are treated as zero.
    private func lowBits(_ size: UInt64) -> UInt64 {
        random.chance(10) ? random.next() & (size - 1) & ~0xF : 0
    }

    // MARK: Stage 1

    private func makeStage1(_ stream: inout Stream, _ flaws: Flaws) -> Bool {
        let isScattered = stream.second != nil && random.chance(flaws.peculiar / 2)
        var cd = CD()
        cd.v = true
        cd.aa64 = true
        cd.a = true
        cd.r = random.chance(90)
        cd.affd = random.chance(15)
        cd.wxn = random.chance(20)
        cd.pan = false
        cd.aset = random.chance(30)
        cd.asid = UInt16(truncatingIfNeeded: random.bits(16))
        cd.tbi0 = random.chance(30)
        cd.tbi1 = random.chance(flaws.peculiar) ? random.chance(50) : cd.tbi0
        cd.had0 = random.chance(15)
        cd.had1 = random.chance(15)
        (cd.ir0, cd.or0, cd.sh0) = (UInt8(random.bits(2)), UInt8(random.bits(2)), UInt8(random.bits(2)))
        (cd.ir1, cd.or1, cd.sh1) = (UInt8(random.bits(2)), UInt8(random.bits(2)), UInt8(random.bits(2)))
        (cd.mair0, cd.mair1) = (UInt32(random.bits(32)), UInt32(random.bits(32)))
        let ipa = stream.second?.shape.inputBits ?? 0
        let sizes: [(UInt8, Int)] = [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 44)]
        // Tables and their outputs have to fit.
        let (ips, bits) = random.pick(sizes.filter { $0.1 >= ipa || random.chance(10) })
        cd.ips = ips
        let halves = random.pick([0b01, 0b01, 0b11, 0b11, 0b10])
        func make() -> StageTables? {
            let granule = random.pick([12, 14, 16])
            let inputBits = 25 + Int(random.below(24))
            let shape = StageShape.stage1(granule: granule, inputBits: inputBits, outputBits: bits)
            return StageTables(
                self,
                shape,
                isStage2: false,
                second: stream.second,
                flaws: flaws,
                isScattered: isScattered
            )
        }
        cd.epd0 = halves & 1 == 0
        cd.epd1 = halves & 2 == 0
        if halves & 1 != 0 {
            guard let tables = make() else { return false }
            stream.lower = tables
            cd.t0SZ = UInt8(64 - tables.shape.inputBits)
            cd.tg0 = [12: 0, 14: 2, 16: 1][tables.shape.granule] ?? 0
            cd.ttb0 = tables.base | (isScattered ? 0 : lowBits(tables.shape.startBytes))
        } else if random.chance(50) {
            // Not looked at.
            cd.t0SZ = UInt8(random.bits(6))
            cd.tg0 = UInt8(random.bits(2))
            cd.ttb0 = random.bits(44) & ~0xF
        }
        if halves & 2 != 0 {
            guard let tables = make() else { return false }
            stream.upper = tables
            cd.t1SZ = UInt8(64 - tables.shape.inputBits)
            cd.tg1 = [12: 2, 14: 1, 16: 3][tables.shape.granule] ?? 2
            cd.ttb1 = tables.base | (isScattered ? 0 : lowBits(tables.shape.startBytes))
        } else if random.chance(50) {
            cd.t1SZ = UInt8(random.bits(6))
            cd.tg1 = UInt8(random.bits(2))
            cd.ttb1 = random.bits(44) & ~0xF
        }
        stream.cd = cd
        guard let tables = stream.lower ?? stream.upper, let context = tables.makeContext() else {
            return false
        }
        stream.ste.s1ContextPtr = context.address
        stream.contextAddress = context.physical
        return true
    }

    // MARK: Addresses

    /// A random address of a stream, mapped where it is to be mapped.
    func makeAddress(_ stream: Stream, _ regions: [UInt64], _ flaws: Flaws) -> UInt64 {
        let low = StageTables.randomData(&random) & 0x3FFF_FFFF | random.below(16) << 12
        let address = random.pick(regions) << 30 | low
        guard let tables = stream.lower ?? stream.upper else {
            guard let second = stream.second else { return Layout.ram | low }
            return makeAddress(second, address, isUpper: false, tbi: false, flaws)
        }
        let useUpper = stream.upper != nil && (stream.lower == nil || random.chance(50))
        let half = useUpper ? stream.upper ?? tables : tables
        let tbi = useUpper ? stream.cd.tbi1 : stream.cd.tbi0
        return makeAddress(half, address, isUpper: useUpper, tbi: tbi, flaws)
    }

    private func makeAddress(
        _ tables: StageTables,
        _ wanted: UInt64,
        isUpper: Bool,
        tbi: Bool,
        _ flaws: Flaws
    ) -> UInt64 {
        let bits = UInt64(tables.shape.inputBits)
        let mask: UInt64 = (1 << bits) - 1
        let offset = wanted & mask
        tables.mapData(offset)
        var address = isUpper ? offset | ~mask : offset
        if tbi, random.chance(40) { address ^= random.bits(8) << 56 }
        // Beyond the input size, or of the other half, or with a top byte that counts.
        if random.chance(flaws.descriptor / 2) { address ^= 1 << (bits + random.below(64 - bits)) }
        return address
    }
}
