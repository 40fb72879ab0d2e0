// Fields of words: numbering, masks, alignment.

import BitFields
import Testing

@Suite("Fields are numbered as specifications number them")
struct BitFieldsTests {
    @Test("a field is read right-aligned, with both its bits included")
    func reading() {
        let word: UInt32 = 0xABCD_1234
        #expect(word[bits: 0...3] == 0x4)
        #expect(word[bits: 4...15] == 0x123)
        #expect(word[bits: 28...31] == 0xA)
        #expect(word[bits: 0...31] == 0xABCD_1234)
        #expect(word[bit: 2])
        #expect(!word[bit: 0])
        #expect((UInt64(1) << 63)[bit: 63])
    }

    @Test("setting a field leaves the others as they are")
    func writing() {
        var word: UInt64 = .max
        word[bits: 8...15] = 0x5A
        #expect(word == 0xFFFF_FFFF_FFFF_5AFF)
        word[bit: 63] = false
        #expect(word == 0x7FFF_FFFF_FFFF_5AFF)
        word[bit: 63] = true
        word[bits: 0...63] = 7
        #expect(word == 7)
    }

    @Test("a mask has ones in its field alone")
    func masks() {
        #expect(UInt64.mask(12...51) == 0x000F_FFFF_FFFF_F000)
        #expect(UInt32.mask(0...0) == 1)
        #expect(UInt32.mask(0...31) == .max)
        #expect(UInt64.mask(63...63) == 0x8000_0000_0000_0000)
    }

    @Test("alignment to powers of two")
    func alignment() {
        #expect(UInt64(0x3000).isMultiple(ofPowerOfTwo: 0x1000))
        // The predicate that tests one bit gets this one wrong.
        #expect(!UInt64(0x2400).isMultiple(ofPowerOfTwo: 0x1000))
        #expect(UInt64(0x3FFF).roundedDown(toPowerOfTwo: 0x1000) == 0x3000)
        #expect(UInt64.max.roundedDown(toPowerOfTwo: 1) == .max)
    }

    @Test("a value wider than its field is our own mistake, and stops us")
    func wideValues() async {
        await #expect(processExitsWith: .failure) {
            var word: UInt32 = 0
            word[bits: 0...3] = 16
            print(word)
        }
    }
}
