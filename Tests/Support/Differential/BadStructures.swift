// Cases whose stream table, STE or CD is no good.

import AddressSpace
import SMMUv3Spec
import SeededRandomness

extension CaseGenerator {
    /// What can be wrong, and with which configurations.
    private enum Wrong: CaseIterable {
        case steInvalid, steStalls, steNoStall, steGranule, steSize, steLevel, steBase, steEndian
        case cdInvalid, cdAborts, cdStalls, cdFormat, cdEndian, cdUpdates, cdSize, cdGranule, cdBase,
            cdNowhere
        case cdBothDisabled, contextNowhere
        case streamBeyond, tableNowhere, spanZero, spanReserved, spanLarge, secondNowhere
        // What QEMU is known to do otherwise.
        case steUpdates, steSubstreams, steShort, contextBeyond, streamUnrecorded, spanSmall

        static let peculiar: [Wrong] = [
            .steUpdates, .steSubstreams, .steShort, .contextBeyond, .streamUnrecorded, .spanSmall,
        ]

        func fits(_ stream: Stream, _ table: StreamTable) -> Bool {
            let config = stream.ste.config
            switch self {
            case .steInvalid, .steSubstreams, .streamBeyond, .streamUnrecorded, .tableNowhere: return true
            case .steNoStall, .contextNowhere, .contextBeyond: return config.translatesStage1
            case .cdInvalid, .cdAborts, .cdStalls, .cdFormat, .cdEndian, .cdUpdates, .cdSize, .cdGranule,
                .cdBase,
                .cdNowhere, .cdBothDisabled:
                return config.translatesStage1
            case .steStalls, .steGranule, .steSize, .steLevel, .steBase, .steEndian, .steUpdates, .steShort:
                return config.translatesStage2
            case .spanZero, .spanReserved, .spanLarge, .spanSmall, .secondNowhere: return table.isTwoLevel
            }
        }
    }

    static func badStructure(_ result: inout Case, _ builder: CaseBuilder, _ config: StreamConfig) -> Bool {
        let requester = Int(builder.random.below(3))
        guard var stream = builder.makeStream(requester, config, Flaws(descriptor: 0, permission: 0)) else {
            return false
        }
        let address = builder.makeAddress(stream, regions(&builder.random), Flaws(descriptor: 0))
        var table = StreamTable(builder, isTwoLevel: result.shape.isTwoLevel)
        let good = stream
        var wrong = builder.random.pick(Wrong.allCases)
        let isPeculiar = builder.random.chance(10)
        while !wrong.fits(stream, table) || Wrong.peculiar.contains(wrong) != isPeculiar {
            wrong = builder.random.pick(Wrong.allCases)
        }
        spoil(&stream, wrong, &builder.random)
        result.kind = "bad structure"
        spoil(&table, wrong, &builder.random)
        table.place(&stream, builder)
        spoil(table, stream, wrong, builder)
        table.boot(builder)
        for _ in 0..<2 { builder.access(requester, address, isWrite: builder.random.chance(50)) }
        // Repaired, and told so: then it works.
        guard builder.random.chance(30), stream.ste != good.ste || stream.cd != good.cd else { return true }
        builder.poke(stream.steAddress, good.ste.words)
        if good.contextAddress != 0 { builder.poke(good.contextAddress, good.cd.words) }
        builder.issue(repair(good, builder), .sync())
        for _ in 0..<2 { builder.access(requester, address, isWrite: builder.random.chance(50)) }
        return true
    }

    /// A command that reaches the STE and the CD of a stream.
    private static func repair(_ stream: Stream, _ builder: CaseBuilder) -> Command {
        switch builder.random.below(3) {
        case 0: .cfgiSTE(stream.streamID, leaf: builder.random.chance(50))
        case 1: .cfgiSTERange(stream.streamID, range: UInt8(builder.random.below(12)))
        default: .cfgiAll()
        }
    }

    private static func spoil(_ stream: inout Stream, _ wrong: Wrong, _ random: inout SplitMix) {
        switch wrong {
        case .steInvalid: stream.ste.v = false
        case .steStalls: stream.ste.s2S = true
        case .steNoStall: stream.ste.s1STALLD = true
        case .steGranule: stream.ste.s2TG = 3
        case .steSize: stream.ste.s2T0SZ = UInt8(random.pick([random.below(20), 40 + random.below(24)]))
        case .steLevel: stream.ste.s2SL0 = 3
        case .steBase: stream.ste.s2TTB |= 1 << (44 + random.below(4))
        case .steEndian: stream.ste.s2ENDI = true
        case .steUpdates:
            stream.ste.s2HA = random.chance(70)
            stream.ste.s2HD = !stream.ste.s2HA || random.chance(50)
        case .steShort: (stream.ste.s2TG, stream.ste.s2SL0, stream.ste.s2T0SZ) = (0, 2, 35)
        case .steSubstreams: stream.ste.s1CDMax = 1 + UInt8(random.below(20))
        case .contextNowhere: stream.ste.s1ContextPtr = Layout.nowhere
        case .contextBeyond: stream.ste.s1ContextPtr |= 1 << (44 + random.below(8))
        default: spoilContext(&stream.cd, wrong, &random)
        }
    }

    private static func spoilContext(_ cd: inout CD, _ wrong: Wrong, _ random: inout SplitMix) {
        let isLower = cd.epd1 || !cd.epd0 && random.chance(50)
        switch wrong {
        case .cdInvalid: cd.v = false
        case .cdAborts: cd.a = false
        case .cdStalls: cd.s = true
        case .cdFormat: cd.aa64 = false
        case .cdEndian: cd.endi = true
        case .cdUpdates:
            cd.ha = random.chance(70)
            cd.hd = !cd.ha || random.chance(50)
        case .cdSize:
            let size = UInt8(random.pick([random.below(16), 40 + random.below(24)]))
            if isLower { cd.t0SZ = size } else { cd.t1SZ = size }
        case .cdGranule: if isLower { cd.tg0 = 3 } else { cd.tg1 = 0 }
        case .cdBase:
            let bit: UInt64 = 1 << (44 + random.below(4))
            if isLower { cd.ttb0 |= bit } else { cd.ttb1 |= bit }
        case .cdNowhere:
            // A base that is within every output address size.
            if isLower { cd.ttb0 = 0x8000_0000 } else { cd.ttb1 = 0x8000_0000 }
        case .cdBothDisabled: (cd.epd0, cd.epd1) = (true, true)
        default: break
        }
    }

    private static func spoil(_ table: inout StreamTable, _ wrong: Wrong, _ random: inout SplitMix) {
        switch wrong {
        case .streamBeyond, .streamUnrecorded:
            // StreamID 8 needs four bits.
            table.log2Size = table.isTwoLevel ? table.log2Size : 3
            if wrong == .streamUnrecorded { table.cr2 = 0 }
        case .tableNowhere: table.base = Layout.nowhere
        default: break
        }
    }

    /// What is wrong with the first level.
    private static func spoil(_ table: StreamTable, _ stream: Stream, _ wrong: Wrong, _ builder: CaseBuilder)
    {
        guard table.isTwoLevel, table.base != Layout.nowhere else { return }
        let entry = table.firstLevel(UInt64(stream.streamID.rawValue))
        let pointer = builder.peek(entry) & ~0x1F
        switch wrong {
        case .spanZero, .streamBeyond, .streamUnrecorded: builder.poke(entry, pointer)
        case .spanReserved: builder.poke(entry, pointer | 12 + builder.random.below(20))
        case .spanLarge: builder.poke(entry, pointer | min(31, table.split + 2 + builder.random.below(4)))
        case .spanSmall:
            // As many as there are below the stream: it is the first that is not in it.
            let within = UInt64(stream.streamID.rawValue) & ((1 << table.split) - 1)
            var span: UInt64 = 1
            while 1 << span <= within { span += 1 }
            builder.poke(entry, pointer | span)
        case .secondNowhere: builder.poke(entry, Layout.nowhere | 11 & table.split + 1)
        default: break
        }
    }
}
