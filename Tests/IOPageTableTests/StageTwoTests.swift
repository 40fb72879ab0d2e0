// Stage 2: shapes, what an STE says of them, and descriptors worked out by hand.

import AddressSpace
import Testing

@testable import IOPageTable

@Suite("Page tables of stage 2")
struct StageTwoTests {
    /// Granule, ias, oas; the start level, the entries of the first table, and S2T0SZ and S2SL0.
    ///
    /// By the specification's table. What is concatenated begins a level lower than in stage 1.
    static let shapes: [(PageTableGranule, Int, Int, level: Int, entries: UInt64, t0SZ: UInt8, sl0: UInt8)] =
        [
            (.kib4, 48, 48, 0, 512, 16, 2), (.kib4, 44, 44, 0, 32, 20, 2), (.kib4, 40, 44, 0, 2, 24, 2),
            (.kib4, 42, 42, 1, 4096, 22, 1), (.kib4, 40, 40, 1, 1024, 24, 1), (.kib4, 39, 40, 1, 512, 25, 1),
            (.kib4, 32, 32, 1, 4, 32, 1), (.kib4, 30, 36, 2, 512, 34, 0),
            (.kib16, 48, 48, 1, 4096, 16, 2), (.kib16, 47, 48, 1, 2048, 17, 2),
            (.kib16, 40, 40, 2, 0x8000, 24, 1),
            (.kib16, 40, 42, 1, 16, 24, 2), (.kib16, 36, 36, 2, 2048, 28, 1),
            (.kib64, 52, 52, 1, 1024, 12, 2), (.kib64, 48, 48, 1, 64, 16, 2),
            (.kib64, 42, 48, 2, 8192, 22, 1),
            (.kib64, 40, 40, 2, 2048, 24, 1), (.kib64, 29, 32, 3, 8192, 35, 0),
        ]

    @Test("shape and STE fields follow from the sizes", arguments: shapes)
    func shape(
        _ granule: PageTableGranule,
        _ input: Int,
        _ output: Int,
        _ level: Int,
        _ entries: UInt64,
        _ t0SZ: UInt8,
        _ sl0: UInt8
    ) throws {
        let configuration = try PageTableConfiguration(
            stage: .two(forcesWriteBack: false),
            granule: granule,
            inputAddressBits: input,
            outputAddressBits: output,
            isCoherent: true
        )
        #expect(configuration.startLevel == level)
        #expect(configuration.entryCount(atLevel: level) == entries)
        #expect(configuration.topTableByteCount == max(64, entries * 8))
        #expect(configuration.stageTwoControls.s2T0SZ == t0SZ)
        #expect(configuration.stageTwoControls.s2SL0 == sl0)
    }

    @Test func moreThanSixteenTablesAreRefused() {
        // 44 bits from level 1 are 32 tables, and 40 output bits do not let it begin at level 0.
        #expect(throws: IOPageTableError.unsupportedInputSize(bits: 44)) {
            try PageTableConfiguration(
                stage: .two(forcesWriteBack: false),
                granule: .kib4,
                inputAddressBits: 44,
                outputAddressBits: 40,
                isCoherent: true
            )
        }
    }

    @Test func controlsAreWhatTheStreamTableEntryEncodes() throws {
        func controls(_ granule: PageTableGranule, _ bits: Int, isCoherent: Bool, fwb: Bool) throws
            -> StageTwoControls
        {
            try PageTableConfiguration(
                stage: .two(forcesWriteBack: fwb),
                granule: granule,
                inputAddressBits: bits,
                outputAddressBits: bits,
                isCoherent: isCoherent
            ).stageTwoControls
        }
        #expect(
            try controls(.kib4, 44, isCoherent: true, fwb: false)
                == StageTwoControls(
                    s2T0SZ: 20,
                    s2SL0: 2,
                    s2IR0: 1,
                    s2OR0: 1,
                    s2SH0: 3,
                    s2TG: 0,
                    s2PS: 4,
                    s2FWB: false
                )
        )
        #expect(
            try controls(.kib16, 36, isCoherent: false, fwb: true)
                == StageTwoControls(
                    s2T0SZ: 28,
                    s2SL0: 1,
                    s2IR0: 0,
                    s2OR0: 0,
                    s2SH0: 2,
                    s2TG: 2,
                    s2PS: 1,
                    s2FWB: true
                )
        )
        #expect(
            try controls(.kib64, 52, isCoherent: true, fwb: false)
                == StageTwoControls(
                    s2T0SZ: 12,
                    s2SL0: 2,
                    s2IR0: 1,
                    s2OR0: 1,
                    s2SH0: 3,
                    s2TG: 1,
                    s2PS: 6,
                    s2FWB: false
                )
        )
    }

    /// Permissions, and the attribute bits of a page: AF 10, SH 9:8 (3 inner, 2 outer), S2AP 7:6 (bit 0 read,
    /// bit 1 write), MemAttr 5:2 (0xF WB, 0x6 forced WB, 0x5 NC, 0x1 Device-nGnRE), XN 54:53 (2 nobody), type 1:0.
    static let attributes: [(MappingPermissions, fwb: Bool, UInt64)] = [
        ([.read, .write, .cacheable], false, 0x0000_0000_0000_07FF),
        ([.read, .write, .cacheable], true, 0x0000_0000_0000_07DB),
        ([.read, .cacheable], false, 0x0000_0000_0000_077F),
        ([.read], false, 0x0000_0000_0000_0657),
        ([.write], false, 0x0000_0000_0000_0697),
        ([.read, .write, .noExecute, .cacheable], false, 0x0040_0000_0000_07FF),
        ([.write, .noExecute, .device], true, 0x0040_0000_0000_0687),
    ]

    @Test("a page carries the attributes of its permissions", arguments: attributes)
    func pageAttributes(_ permissions: MappingPermissions, _ fwb: Bool, _ expected: UInt64) throws {
        var bench = try PageTableBench(.kib4, stage: .two(forcesWriteBack: fwb))
        try bench.map(0x1000, 0x8_0000_3000, 0x1000, permissions)
        #expect(try bench.leaf(0x1000) == expected | 0x8_0000_3000)
        #expect(try bench.table.translate(IOVirtualAddress(0x1000))?.permissions == permissions)
    }

    @Test("concatenated tables lie side by side, aligned to all of them, and each is used")
    func concatenation() throws {
        var bench = try PageTableBench(.kib4, input: 42, output: 42, stage: .two(forcesWriteBack: false))
        let root = bench.table.root.rawValue
        #expect(root % 0x8000 == 0)
        // The fifth table's entry 3, level 1: address bits [41:39] are 4, bits [38:30] are 3.
        let ipa: UInt64 = 4 << 39 | 3 << 30
        try bench.map(ipa, 0x4000_0000, 0x4000_0000)
        let stores = bench.memory.takeStores()
        #expect(stores.map(\.address) == [root + 4 * 0x1000 + 3 * 8])
        #expect(stores.map(\.value) == [0x4000_0000 | 0x7FD])
        #expect(try bench.physical(ipa + 0x1234) == 0x4000_1234)
        #expect(try bench.unmap(ipa, 0x4000_0000).byteCount == 0x4000_0000)
    }
}
