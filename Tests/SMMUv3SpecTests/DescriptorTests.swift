// Translation table descriptors, granules and address sizes.

import SMMUv3Spec
import SeededRandomness
import Testing

@Suite("Descriptors")
struct DescriptorTests {
    /// Bits from the architecture's descriptor formats; `io-pgtable-arm.c` has the same where it uses them.
    static let golden: [GoldenField<Descriptor>] = [
        .number("type", 0, 0x3, \.type),
        .bit("valid", 0, 0x1, \.isValid),
        .bit("table", 0, 0x2, \.isTableOrPage),
        .number("AttrIndx[2:0]", 0, 0x1C, \.attrIndx),
        .bit("NS", 0, 0x20, \.ns),
        .number("AP[2:1]", 0, 0xC0, \.ap),
        .number("SH", 0, 0x300, \.sh),
        .bit("AF", 0, 0x400, \.af),
        .bit("nG", 0, 0x800, \.nG),
        .bit("nT", 0, 0x1_0000, \.nT),
        .bit("GP", 0, 0x0004_0000_0000_0000, \.gp),
        .bit("DBM", 0, 0x0008_0000_0000_0000, \.dbm),
        .bit("Contiguous", 0, 0x0010_0000_0000_0000, \.contiguous),
        .bit("PXN", 0, 0x0020_0000_0000_0000, \.pxn),
        .bit("UXN", 0, 0x0040_0000_0000_0000, \.uxn),
        .number("software", 0, 0x0780_0000_0000_0000, \.software),
        .number("PBHA", 0, 0x7800_0000_0000_0000, \.pbha),
        .bit("AttrIndx[3]", 0, 0x0800_0000_0000_0000, \.attrIndx3),
        .bit("PXNTable", 0, 0x0800_0000_0000_0000, \.pxnTable),
        .bit("UXNTable", 0, 0x1000_0000_0000_0000, \.uxnTable),
        .number("APTable", 0, 0x6000_0000_0000_0000, \.apTable),
        .bit("NSTable", 0, 0x8000_0000_0000_0000, \.nsTable),
        .number("MemAttr", 0, 0x3C, \.s2MemAttr),
        .number("S2AP", 0, 0xC0, \.s2AP),
        .number("XN", 0, 0x0060_0000_0000_0000, \.s2XN),
        .bit("NS (stage 2)", 0, 0x0080_0000_0000_0000, \.s2NS),
        .bit("AMEC", 0, 0x8000_0000_0000_0000, \.s2AMEC),
    ]

    @Test("each field is where the architecture says")
    func fieldsMatchTheArchitecture() { check(Self.golden) }

    @Test("a page that Linux maps read-write for a coherent device, at 0x1_2345_6000")
    func pageOfTheDriver() {
        // nG, AF, SH IS, AP unprivileged, AttrIndx 1, page.
        let page = Descriptor(rawValue: 0x0000_0001_2345_6F47)
        #expect(page.isValid)
        #expect(page.isTableOrPage)
        #expect(page.attrIndx == 1)
        #expect(page.ap == 0b01)
        #expect(page.sh == 3)
        #expect(page.af)
        #expect(page.nG)
        #expect(
            page.outputAddress(granule: .kib4, level: 3, has52BitOutput: false, ds: false) == 0x1_2345_6000
        )
        #expect(
            page.fields(stage: .stage1, level: 3, granule: .kib4).map(\.description) == [
                "Type [1:0] = 0x3 (page)", "AttrIndx [4:2] = 0x1 (MAIR attribute 1)",
                "AP [7:6] = 0x1 (read-write)", "SH [9:8] = 0x3 (ISH)", "AF [10] = 0x1 (accessed)",
                "nG [11] = 0x1 (this ASID)", "OutputAddress [47:12] = 0x123456000", "PXN [53] = 0x0",
                "UXN [54] = 0x0",
            ]
        )
    }

    @Test("a stage-2 block that Linux maps read-write, write-back")
    func stage2BlockOfTheDriver() {
        // AF, SH IS, S2AP read and write, MemAttr OIWB, block.
        let block = Descriptor(rawValue: 0x8020_07FD)
        #expect(
            block.outputAddress(granule: .kib4, level: 2, has52BitOutput: false, ds: false) == 0x8020_0000
        )
        #expect(
            block.fields(stage: .stage2, level: 2, granule: .kib4).map(\.description) == [
                "Type [1:0] = 0x1 (block)", "MemAttr [5:2] = 0xf (Normal WB)",
                "S2AP [7:6] = 0x3 (read-write)",
                "SH [9:8] = 0x3 (ISH)", "AF [10] = 0x1 (accessed)", "OutputAddress [47:21] = 0x80200000",
                "XN [54:53] = 0x0 (execute)",
            ]
        )
    }

    /// Granule, level, 52-bit output, DS, and the address that a descriptor of all ones gives.
    static let outputs: [(Granule, Int, Bool, Bool, UInt64)] = [
        (.kib4, 3, false, false, 0x0000_FFFF_FFFF_F000), (.kib4, 2, false, false, 0x0000_FFFF_FFE0_0000),
        (.kib4, 1, false, false, 0x0000_FFFF_C000_0000), (.kib16, 3, false, false, 0x0000_FFFF_FFFF_C000),
        (.kib16, 2, false, false, 0x0000_FFFF_FE00_0000), (.kib64, 3, false, false, 0x0000_FFFF_FFFF_0000),
        (.kib64, 2, false, false, 0x0000_FFFF_E000_0000), (.kib64, 3, true, false, 0x000F_FFFF_FFFF_0000),
        (.kib64, 2, true, false, 0x000F_FFFF_E000_0000), (.kib64, 1, true, false, 0x000F_FC00_0000_0000),
        (.kib4, 3, true, true, 0x000F_FFFF_FFFF_F000), (.kib4, 0, true, true, 0x000F_FF80_0000_0000),
        (.kib16, 1, true, true, 0x000F_FFF0_0000_0000), (.kib4, 3, true, false, 0x0000_FFFF_FFFF_F000),
        (.kib64, 3, true, true, 0x000F_FFFF_FFFF_0000),
    ]

    @Test("output addresses by granule and level", arguments: outputs)
    func outputAddresses(_ granule: Granule, _ level: Int, _ wide: Bool, _ ds: Bool, _ address: UInt64) {
        let all = Descriptor(rawValue: .max)
        #expect(all.outputAddress(granule: granule, level: level, has52BitOutput: wide, ds: ds) == address)
        #expect(Descriptor().outputAddress(granule: granule, level: level, has52BitOutput: wide, ds: ds) == 0)
    }

    @Test("the high bits of a 52-bit address come from where the granule puts them")
    func highAddressBits() {
        // OA[51:48] in bits 15:12.
        let page64 = Descriptor(rawValue: 0x0000_8000_0001_A003)
        #expect(
            page64.outputAddress(granule: .kib64, level: 3, has52BitOutput: true, ds: false)
                == 0x000A_8000_0001_0000
        )
        // OA[51:50] in bits 9:8.
        let page4 = Descriptor(rawValue: 0x0002_0000_0000_1203)
        #expect(
            page4.outputAddress(granule: .kib4, level: 3, has52BitOutput: true, ds: true)
                == 0x000A_0000_0000_1000
        )
        #expect(
            page4.nextTableAddress(granule: .kib4, has52BitOutput: true, ds: true) == 0x000A_0000_0000_1000
        )
    }

    @Test("next-level table addresses by granule")
    func nextTableAddresses() {
        let all = Descriptor(rawValue: .max)
        #expect(
            all.nextTableAddress(granule: .kib4, has52BitOutput: false, ds: false) == 0x0000_FFFF_FFFF_F000
        )
        #expect(
            all.nextTableAddress(granule: .kib16, has52BitOutput: false, ds: false) == 0x0000_FFFF_FFFF_C000
        )
        #expect(
            all.nextTableAddress(granule: .kib64, has52BitOutput: false, ds: false) == 0x0000_FFFF_FFFF_0000
        )
        #expect(
            all.nextTableAddress(granule: .kib64, has52BitOutput: true, ds: false) == 0x000F_FFFF_FFFF_0000
        )
        #expect(
            all.nextTableAddress(granule: .kib16, has52BitOutput: true, ds: true) == 0x000F_FFFF_FFFF_C000
        )
    }

    @Test("tables show what they impose on what lies below; what is invalid shows its type alone")
    func tablesAndInvalids() {
        let table = Descriptor(rawValue: 0xE000_0000_8000_3003 | 0x1800_0000_0000_0000)
        #expect(
            table.fields(stage: .stage1, level: 1, granule: .kib4).map(\.description) == [
                "Type [1:0] = 0x3 (table)", "NextTable [47:12] = 0x80003000",
                "PXNTable [59] = 0x1 (PXN below)",
                "UXNTable [60] = 0x1 (UXN below)", "APTable [62:61] = 0x3 (only privileged reads)",
                "NSTable [63] = 0x1",
            ]
        )
        #expect(table.fields(stage: .stage2, level: 1, granule: .kib4).map(\.name) == ["Type", "NextTable"])
        let zero = Descriptor(rawValue: 0xFFFF_FFFF_FFFF_FFFE)
        #expect(zero.fields(stage: .stage1, level: 3, granule: .kib4).map(\.meaning) == ["invalid"])
        let reserved = Descriptor(rawValue: 0xFFFF_FFFF_FFFF_FFFD)
        #expect(reserved.fields(stage: .stage2, level: 3, granule: .kib4).map(\.meaning) == ["reserved"])
    }

    @Test("no descriptor stops the decoder, and its fields come in order", arguments: Granule.allCases)
    func decodingNeverTraps(_ granule: Granule) {
        let seed: UInt64 = 0xDE5C
        var random = SplitMix(seed: seed)
        for round in 0..<400 {
            let descriptor = Descriptor(rawValue: random.nextWord())
            let fields = descriptor.fields(
                stage: round & 1 == 0 ? .stage1 : .stage2,
                level: round % 5 - 1,
                granule: granule,
                has52BitOutput: round & 8 != 0,
                ds: round & 16 != 0
            )
            let lows = fields.map(\.low)
            #expect(lows == lows.sorted(), "\(descriptor.rawValue), seed \(seed)")
        }
    }
}

@Suite("Granules and address sizes")
struct GranuleTests {
    @Test("sizes of pages and levels")
    func sizes() {
        #expect(Granule.allCases.map(\.log2Bytes) == [12, 14, 16])
        #expect(Granule.allCases.map(\.stride) == [9, 11, 13])
        #expect(Granule.allCases.map(\.byteCount) == [4096, 16384, 65536])
        #expect((-1...3).map { Granule.kib4.log2Bytes(ofLevel: $0) } == [48, 39, 30, 21, 12])
        #expect((1...3).map { Granule.kib64.log2Bytes(ofLevel: $0) } == [42, 29, 16])
    }

    @Test("TG0, TG1, S2TG and TG of a TLBI each encode the granule their own way")
    func encodings() {
        #expect((UInt8(0)...4).map(Granule.init(tg0:)) == [.kib4, .kib64, .kib16, nil, nil])
        #expect((UInt8(0)...4).map(Granule.init(tg1:)) == [nil, .kib16, .kib4, .kib64, nil])
        #expect((UInt8(0)...4).map(Granule.init(s2TG:)) == [.kib4, .kib64, .kib16, nil, nil])
        #expect((UInt8(0)...4).map(Granule.init(tlbiTG:)) == [nil, .kib4, .kib16, .kib64, nil])
        #expect(Granule.allCases.map(\.tg0) == [0, 2, 1])
        #expect(Granule.allCases.map(\.s2TG) == [0, 2, 1])
        #expect(Granule.allCases.map(\.tg1) == [2, 1, 3])
        #expect(Granule.allCases.map(\.tlbiTG) == [1, 2, 3])
    }

    @Test("address sizes by version of the architecture")
    func addressSizes() {
        #expect((UInt8(0)...7).map { AddressSize.bits(encoding: $0) } == [32, 36, 40, 42, 44, 48, 52, 56])
        #expect((UInt8(5)...7).map { AddressSize.bits(encoding: $0, largest: 52) } == [48, 52, 52])
        #expect((UInt8(5)...7).map { AddressSize.bits(encoding: $0, largest: 48) } == [48, 48, 48])
        #expect(AddressSize.encoding(bits: 48) == 5)
        #expect(AddressSize.encoding(bits: 47) == nil)
    }

    @Test("memory attributes read as the architecture names them")
    func memoryAttributes() {
        var cd = CD()
        cd.v = true
        // nGnRnE, GRE, reserved, NC; then WT transient, WB transient, WT, mixed.
        cd.mair = 0xF4BB_7733_4401_0C00
        let meanings = cd.fields.filter { $0.name.hasPrefix("MAIR") }.map(\.meaning)
        #expect(
            meanings == [
                "Device-nGnRnE, Device-GRE, reserved, NC",
                "WT RA WA transient, WB RA WA transient, WT RA WA, inner NC, outer WB RA WA",
            ]
        )
    }
}
