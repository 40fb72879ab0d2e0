// Every word of both pages: what it reads as, what of a write it takes. The numbers are the specification's
// (IHI 0070, 10.5), not the model's constants.

import AddressSpace
import DeviceModel
import PMCG
import SeededRandomness
import Testing

@Suite("The registers of a counter group")
struct RegisterTests {
    /// The identification registers of every group.
    private static let identification: [UInt64: UInt64] = [
        0xE70: 0x02, 0xFBC: 0x4770_2A56, 0xFCC: 0x56, 0xFF0: 0x0D, 0xFF4: 0x90, 0xFF8: 0x05, 0xFFC: 0xB1,
    ]

    /// Every word of a page that is not 0.
    private func words(of page: PMCGPage) throws -> [UInt64: UInt64] {
        var words: [UInt64: UInt64] = [:]
        for offset in stride(from: UInt64(0), to: 0x1000, by: 4) {
            let value = try page.read(at: offset, width: .word)
            if value != 0 { words[offset] = value }
        }
        return words
    }

    /// What each word of a page holds after it alone was written with ones, in a group of its own.
    private func wordsAfterOnes(_ make: () -> TestGroup, _ page: (TestGroup) -> PMCGPage?) throws
        -> [UInt64: UInt64]
    {
        var words: [UInt64: UInt64] = [:]
        for offset in stride(from: UInt64(0), to: 0x1000, by: 4) {
            let page = try #require(page(make()))
            try page.write(0xFFFF_FFFF, at: offset, width: .word)
            let value = try page.read(at: offset, width: .word)
            if value != 0 { words[offset] = value }
        }
        return words
    }

    @Test("after reset only the identification registers are not 0")
    func resetValues() throws {
        // CFGR: NCTR 7, SIZE 63 (13:8), CAPTURE (22). CEID0: events 0 to 5.
        let expected = Self.identification.merging([0xE00: 0x0040_3F07, 0xE20: 0x3F]) { $1 }
        #expect(try words(of: TestGroup().page0) == expected)
    }

    @Test(
        "CFGR says what the group is built as",
        arguments: [
            (1, .bits32, false, false, false, false, 0x0000_1F00),
            (4, .bits32, true, false, false, false, 0x0010_1F03),
            (8, .bits36, false, true, false, false, 0x0020_2307),
            (16, .bits40, false, false, true, false, 0x0040_270F),
            (32, .bits44, false, false, false, true, 0x0080_2B1F),
            (64, .bits48, true, true, true, true, 0x00F0_2F3F),
            (64, .bits64, false, false, false, false, 0x0000_3F3F),
        ] as [(Int, PMCGConfiguration.CounterSize, Bool, Bool, Bool, Bool, UInt64)]
    )
    func configuration(
        _ count: Int,
        _ size: PMCGConfiguration.CounterSize,
        _ relocates: Bool,
        _ hasMSI: Bool,
        _ hasCapture: Bool,
        _ hasGlobalFilter: Bool,
        _ word: UInt64
    ) throws {
        let test = TestGroup(hasMSI: hasMSI) { configuration in
            configuration.counterCount = count
            configuration.counterSize = size
            configuration.relocatesCounters = relocates
            configuration.hasCapture = hasCapture
            configuration.hasGlobalFilter = hasGlobalFilter
        }
        #expect(try test.read(0xE00) == word)
    }

    @Test("CEID0 has clock cycles and what the SMMU reports, ATS events where it has ATS")
    func commonEvents() throws {
        #expect(try TestGroup(events: everyEvent).read(0xE20, .doubleword) == 0xFF)
        #expect(try TestGroup(events: []).read(0xE20, .doubleword) == 0x01)
        #expect(try TestGroup(events: everyEvent).read(0xE28, .doubleword) == 0)
    }

    @Test("each register takes the bits that it has, and nothing else takes any")
    func writableBits() throws {
        var expected = Self.identification
        for index in UInt64(0)..<8 {
            expected[8 * index] = 0xFFFF_FFFF  // EVCNTRn
            expected[8 * index + 4] = 0xFFFF_FFFF
            expected[0x400 + 4 * index] = 0xA000_FFFF  // EVTYPERn: OVFCAP, FILTER_SID_SPAN, EVENT
            expected[0xA00 + 4 * index] = 0xFFFF  // SMRn, 16 bits of StreamID
        }
        for offset: UInt64 in [0xC00, 0xC40, 0xCC0] { expected[offset] = 0xFF }  // CNTENSET, INTENSET, OVSSET
        expected[0xE00] = 0x0040_3F07
        expected[0xE04] = 1  // CR.E
        expected[0xE20] = 0x3F
        expected[0xE50] = 1  // IRQ_CTRL.IRQEN
        #expect(try wordsAfterOnes({ TestGroup() }, { $0.page0 }) == expected)
    }

    @Test("a group with messages has IRQ_CFG0 to IRQ_CFG2 of 48-bit addresses")
    func messageRegisters() throws {
        let words = try wordsAfterOnes({ TestGroup(hasMSI: true) }, { $0.page0 })
        #expect(words[0xE58] == 0xFFFF_FFFC)
        #expect(words[0xE5C] == 0x0000_FFFF)
        #expect(words[0xE60] == 0xFFFF_FFFF)
        #expect(words[0xE64] == 0x3F)
        #expect(words[0xE68] == nil)
        let wide = try wordsAfterOnes(
            { TestGroup(hasMSI: true) { $0.physicalAddressBits = 56 } },
            { $0.page0 }
        )
        #expect(wide[0xE5C] == 0x00FF_FFFF)
    }

    @Test("without capture there are no shadows, no CAPR and no OVFCAP")
    func withoutCapture() throws {
        let test = TestGroup { $0.hasCapture = false }
        try test.write(0x400, 0xFFFF_FFFF)
        #expect(try test.read(0x400) == 0x2000_FFFF)
        try test.write(0, 7, .doubleword)
        try test.write(0xD88, 1)
        #expect(try test.read(0x600, .doubleword) == 0)
    }

    @Test("with one filter for all only counter 0 has one")
    func globalFilterRegisters() throws {
        let words = try wordsAfterOnes({ TestGroup { $0.hasGlobalFilter = true } }, { $0.page0 })
        #expect(words[0x400] == 0xA000_FFFF)
        #expect(words[0x404] == 0x8000_FFFF)
        #expect(words[0xA00] == 0xFFFF)
        #expect(words[0xA04] == nil)
    }

    @Test("relocated registers are in page 1 alone, all others in page 0 alone")
    func relocation() throws {
        let make = { TestGroup { $0.relocatesCounters = true } }
        let first = try wordsAfterOnes(make, { $0.page0 })
        let second = try wordsAfterOnes(make, { $0.page1 })
        var expected: [UInt64: UInt64] = [0xCC0: 0xFF]
        for offset in stride(from: UInt64(0), to: 64, by: 4) { expected[offset] = 0xFFFF_FFFF }
        #expect(second == expected)
        #expect(first.keys.allSatisfy { expected[$0] == nil })
        #expect(first[0xE00] == 0x0050_3F07)

        let test = make()
        let page1 = try #require(test.page1)
        try page1.write(42, at: 8, width: .doubleword)
        try page1.write(1, at: 0xD88, width: .word)
        #expect(try page1.read(at: 0x608, width: .doubleword) == 42)
        #expect(try test.read(0x608, .doubleword) == 0)
        try page1.write(0b11, at: 0xCC0, width: .doubleword)
        try page1.write(0b01, at: 0xC80, width: .doubleword)
        #expect(try page1.read(at: 0xC80, width: .doubleword) == 0b10)
        #expect(try test.read(0xC80, .doubleword) == 0)
        #expect(TestGroup().page1 == nil)
    }

    @Test("32-bit counters stand 4 bytes apart, 64-bit accesses reach two, and 36-bit ones stand 8 apart")
    func strides() throws {
        let narrow = TestGroup {
            $0.counterSize = .bits32
            $0.counterCount = 3
        }
        try narrow.write(0, 0x2222_2222_1111_1111, .doubleword)
        try narrow.write(8, 0x4444_4444_3333_3333, .doubleword)
        #expect(try narrow.read(0) == 0x1111_1111)
        #expect(try narrow.read(4) == 0x2222_2222)
        #expect(try narrow.read(8, .doubleword) == 0x3333_3333, "there is no fourth counter")
        try narrow.write(0xD88, 1)
        #expect(try narrow.read(0x604) == 0x2222_2222)

        let wide = TestGroup { $0.counterSize = .bits36 }
        try wide.write(8, .max, .doubleword)
        #expect(try wide.read(8, .doubleword) == 0xF_FFFF_FFFF)
        #expect(try wide.read(0, .doubleword) == 0)
    }

    @Test("64-bit registers take their halves one by one")
    func halves() throws {
        let test = TestGroup { $0.counterCount = 64 }
        for (set, clear) in [(0xC00, 0xC20), (0xC40, 0xC60), (0xCC0, 0xC80)] as [(UInt64, UInt64)] {
            try test.write(set, 0x8000_0001)
            try test.write(set + 4, 0x4000_0002)
            for offset in [set, clear] {
                #expect(try test.read(offset, .doubleword) == 0x4000_0002_8000_0001)
                #expect(try test.read(offset + 4) == 0x4000_0002)
            }
            try test.write(clear, 1)
            try test.write(clear + 4, 0x4000_0000)
            #expect(try test.read(set, .doubleword) == 0x0000_0002_8000_0000)
            try test.write(clear, .max, .doubleword)
            #expect(try test.read(set, .doubleword) == 0)
        }
        try test.write(63 * 8, 0x1234_5678)
        try test.write(63 * 8 + 4, 0x9ABC_DEF0)
        #expect(try test.counter(63) == 0x9ABC_DEF0_1234_5678)
    }

    @Test("accesses of 8 and 16 bits and misaligned ones are refused")
    func refusedAccesses() {
        let test = TestGroup()
        for width in [AccessWidth.byte, .halfword] {
            #expect(throws: RegisterAccessError.unsupportedWidth) { try test.read(0xE00, width) }
            #expect(throws: RegisterAccessError.unsupportedWidth) { try test.write(0xE04, 1, width) }
        }
        #expect(throws: RegisterAccessError.misaligned) { try test.read(0xE02, .word) }
        #expect(throws: RegisterAccessError.misaligned) { try test.write(0xE04, 1, .doubleword) }
    }

    @Test("a reset puts everything back and has the SMMU report nothing")
    func reset() throws {
        let test = TestGroup(hasMSI: true)
        let fresh = try words(of: test.page0)
        for offset in stride(from: UInt64(0), to: 0xE04, by: 4) { try test.write(offset, 0xFFFF_FFFF) }
        for index in UInt64(0)..<8 { try test.write(0x400 + 4 * index, 1) }
        for offset in stride(from: UInt64(0xE58), to: 0xE68, by: 4) { try test.write(offset, 0xFFFF_FFFF) }
        try test.write(0xC00, 0xFF)
        try test.write(0xE50, 1)
        try test.write(0xE04, 1)
        #expect(test.source.history == [0b10])
        test.group.reset()
        #expect(try words(of: test.page0) == fresh)
        #expect(test.source.history == [0b10, 0])
    }

    @Test(
        "whatever is written where, reserved bits read as 0 and nothing stops",
        arguments: [1, 2, 3] as [UInt64]
    )
    func anything(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let test = TestGroup(hasMSI: true) { $0.counterCount = 5 }
        for step in 0..<20_000 {
            let offset = random.next() % 0x400 * 4
            let value = random.next() & random.next() | (random.next() % 4 == 0 ? .max : 0)
            if offset % 8 == 0, value & 1 == 0 {
                try test.write(offset, value, .doubleword)
            } else {
                try test.write(offset, value & 0xFFFF_FFFF)
            }
            let event = try #require(SMMUPerformanceEvent(rawValue: UInt16(random.next() % 5 + 1)))
            test.source.happen(event, UInt32(truncatingIfNeeded: random.next()), random.next())
            test.timer.advance(by: random.next() % 1000)
            for (offset, reserved) in [
                (0x400, 0x5FFF_0000), (0xA00, 0xFFFF_0000), (0xC00, 0xFFFF_FFE0), (0xC04, 0xFFFF_FFFF),
                (0xE04, 0xFFFF_FFFE), (0xE50, 0xFFFF_FFFE), (0xE58, 3), (0xE64, 0xFFFF_FFC0),
                (0x028, 0xFFFF_FFFF), (0x414, 0xFFFF_FFFF), (0xA14, 0xFFFF_FFFF),
            ] as [(UInt64, UInt64)] {
                let value = try test.read(offset)
                #expect(
                    value & reserved == 0,
                    "seed \(seed), step \(step), offset \(String(offset, radix: 16))"
                )
            }
        }
    }
}
