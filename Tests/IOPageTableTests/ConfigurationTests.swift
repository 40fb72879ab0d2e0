// Shapes of page tables, against the architecture's level tables and the kernel's choices.

import Testing

@testable import IOPageTable

@Suite("Page table configuration")
struct ConfigurationTests {
    /// Granule, ias, then the start level of the architecture's table for T0SZ = 64 - ias, and the entries of
    /// the top table.
    static let shapes: [(PageTableGranule, Int, level: Int, entries: UInt64)] = [
        (.kib4, 48, 0, 512), (.kib4, 40, 0, 2), (.kib4, 39, 1, 512), (.kib4, 32, 1, 4), (.kib4, 30, 2, 512),
        (.kib4, 25, 2, 16), (.kib16, 48, 0, 2), (.kib16, 47, 1, 2048), (.kib16, 37, 1, 2),
        (.kib16, 36, 2, 2048), (.kib16, 25, 3, 2048), (.kib64, 52, 1, 1024), (.kib64, 48, 1, 64),
        (.kib64, 42, 2, 8192), (.kib64, 32, 2, 8), (.kib64, 29, 3, 8192),
    ]

    @Test("the start level and the top table follow from the input size", arguments: shapes)
    func startLevel(_ granule: PageTableGranule, _ bits: Int, _ level: Int, _ entries: UInt64) throws {
        let configuration = try PageTableConfiguration(
            granule: granule,
            inputAddressBits: bits,
            outputAddressBits: 48,
            isCoherent: true
        )
        #expect(configuration.startLevel == level)
        #expect(configuration.entryCount(atLevel: level) == entries)
        #expect(configuration.topTableByteCount == max(64, entries * 8))
    }

    @Test func pageSizesAreThoseOfTheGranuleThatFitUnderTheTopTable() throws {
        func sizes(_ granule: PageTableGranule, _ input: Int, _ output: Int) throws -> [UInt64] {
            try PageTableConfiguration(
                granule: granule,
                inputAddressBits: input,
                outputAddressBits: output,
                isCoherent: true
            ).pageByteCounts
        }
        #expect(try sizes(.kib4, 48, 48) == [4 << 10, 2 << 20, 1 << 30])
        #expect(try sizes(.kib4, 30, 48) == [4 << 10, 2 << 20])
        #expect(try sizes(.kib16, 48, 48) == [16 << 10, 32 << 20])
        #expect(try sizes(.kib16, 25, 48) == [16 << 10])
        #expect(try sizes(.kib64, 48, 48) == [64 << 10, 512 << 20])
        #expect(try sizes(.kib64, 52, 52) == [64 << 10, 512 << 20, 4 << 40])
    }

    @Test func sizesAbove48BitsNeed64KiBPages() throws {
        let small = try PageTableConfiguration(
            granule: .kib4,
            inputAddressBits: 52,
            outputAddressBits: 52,
            isCoherent: true
        )
        #expect(small.inputAddressBits == 48)
        #expect(small.outputAddressBits == 48)
        let large = try PageTableConfiguration(
            granule: .kib64,
            inputAddressBits: 52,
            outputAddressBits: 52,
            isCoherent: true
        )
        #expect(large.inputAddressBits == 52)
        #expect(large.outputAddressBits == 52)
    }

    @Test func sizesThatNoDescriptorCanSayAreRefused() {
        #expect(throws: IOPageTableError.unsupportedInputSize(bits: 24)) {
            try PageTableConfiguration(
                granule: .kib4,
                inputAddressBits: 24,
                outputAddressBits: 48,
                isCoherent: true
            )
        }
        #expect(throws: IOPageTableError.unsupportedOutputSize(bits: 39)) {
            try PageTableConfiguration(
                granule: .kib4,
                inputAddressBits: 48,
                outputAddressBits: 39,
                isCoherent: true
            )
        }
    }

    @Test func controlsAreWhatTheContextDescriptorEncodes() throws {
        let coherent = try PageTableConfiguration(
            granule: .kib4,
            inputAddressBits: 48,
            outputAddressBits: 44,
            isCoherent: true
        ).controls
        #expect(
            coherent
                == StageOneControls(
                    t0sz: 16,
                    tg0: 0,
                    ir0: 1,
                    or0: 1,
                    sh0: 3,
                    ips: 4,
                    mair: 0x0000_0000_F404_FF44
                )
        )
        let incoherent = try PageTableConfiguration(
            granule: .kib16,
            inputAddressBits: 36,
            outputAddressBits: 32,
            isCoherent: false
        ).controls
        #expect(
            incoherent
                == StageOneControls(t0sz: 28, tg0: 2, ir0: 0, or0: 0, sh0: 2, ips: 0, mair: 0xF404_FF44)
        )
        let large = try PageTableConfiguration(
            granule: .kib64,
            inputAddressBits: 52,
            outputAddressBits: 52,
            isCoherent: true
        ).controls
        #expect(
            large == StageOneControls(t0sz: 12, tg0: 1, ir0: 1, or0: 1, sh0: 3, ips: 6, mair: 0xF404_FF44)
        )
    }

    @Test func pagesAreChosenAsTheKernelChoosesThem() throws {
        let configuration = try PageTableConfiguration(
            granule: .kib4,
            inputAddressBits: 48,
            outputAddressBits: 48,
            isCoherent: true
        )
        func choice(_ iova: UInt64, _ physical: UInt64, _ byteCount: UInt64) -> [UInt64] {
            let choice = configuration.pageChoice(iova: iova, physical: physical, byteCount: byteCount)
            return [choice.pageByteCount, choice.count]
        }
        // Small pages up to the first boundary at which a 2 MiB block can start.
        #expect(choice(0x1F_F000, 0x3F_F000, 0x20_1000) == [0x1000, 1])
        #expect(choice(0x20_0000, 0x40_0000, 0x20_0000) == [0x20_0000, 1])
        // The addresses differ within 2 MiB: no block will ever fit, so all in one run.
        #expect(choice(0x1F_F000, 0x40_0000, 0x40_0000) == [0x1000, 0x400])
        // A block fits nowhere before the end.
        #expect(choice(0x1000, 0x1000, 0x20_0000) == [0x1000, 0x200])
        // 2 MiB blocks up to the first 1 GiB boundary.
        #expect(choice(0x3FE0_0000, 0x7FE0_0000, 0x4020_0000) == [0x20_0000, 1])
        #expect(choice(0, 0, 0x4000_0000) == [0x4000_0000, 1])
    }
}
