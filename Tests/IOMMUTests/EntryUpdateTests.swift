// The steps of changing an STE or a CD, and what the SMMU could read at any moment between them.

import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Entry updates")
struct EntryUpdateTests {
    static let stage1 = STE(words: [0x4001_000B, 0xD6, 0, 0, 0, 0, 0, 0])
    static let bypass = STE(words: [0x9, 1 << 44, 0, 0, 0, 0, 0, 0])
    static let abort = STE(words: [0x1, 0, 0, 0, 0, 0, 0, 0])
    /// Config 6, S2VMID 7, VTCR, AA64, PTW, R; S2TTB.
    static let stage2 = STE(words: [0xD, 1 << 44, 0x0449_0000_0000_0007, 0x5000_0000, 0, 0, 0, 0])

    private static func steps(_ update: EntryUpdate) -> [[Int: UInt64]] {
        update.steps.map { step in Dictionary(uniqueKeysWithValues: step.map { ($0.index, $0.value) }) }
    }

    @Test func equalEntriesTakeNoStep() {
        #expect(EntryUpdate(from: Self.stage1, to: Self.stage1).steps.isEmpty)
        #expect(EntryUpdate(from: CD(), to: CD()).steps.isEmpty)
    }

    @Test func bypassToStage1SwitchesOverInOneStore() {
        #expect(
            Self.steps(EntryUpdate(from: Self.bypass, to: Self.stage1)) == [
                // S1 fields in word 1; SHCFG stays as long as bypass is in force.
                [1: 1 << 44 | 0xD6], [0: 0x4001_000B], [1: 0xD6],
            ]
        )
    }

    @Test func stage1ToAbortSwitchesOverFirst() {
        #expect(
            Self.steps(EntryUpdate(from: Self.stage1, to: Self.abort)) == [[0: 1], [1: 0]]
        )
    }

    @Test func onlyWordZeroDiffers() {
        var target = Self.stage1
        target.words[0] = 0x4002_000B
        #expect(Self.steps(EntryUpdate(from: Self.stage1, to: target)) == [[0: 0x4002_000B]])
    }

    @Test func stage1ToStage2IsInvalidInBetween() {
        #expect(
            Self.steps(EntryUpdate(from: Self.stage1, to: Self.stage2)) == [
                [0: 0], [1: 1 << 44, 2: 0x0449_0000_0000_0007, 3: 0x5000_0000], [0: 0xD],
            ]
        )
    }

    @Test func unusedBitsOfAForeignEntryBecomeZero() {
        var dirty = Self.abort
        dirty.words[2] = 0xFFFF
        dirty.words[7] = 1
        #expect(Self.steps(EntryUpdate(from: dirty, to: Self.abort)) == [[2: 0, 7: 0]])
    }

    @Test func aFirstContextBecomesValidInItsLastStore() {
        let target = CD(words: [0x0001_E204_C000_3510, 0x4000_0000, 0, 0xF404_FF44, 0, 0, 0, 0])
        #expect(
            Self.steps(EntryUpdate(from: CD(), to: target)) == [
                [1: 0x4000_0000, 3: 0xF404_FF44], [0: 0x0001_E204_C000_3510],
            ]
        )
        #expect(
            Self.steps(EntryUpdate(from: target, to: CD())) == [[0: 0], [1: 0, 3: 0]]
        )
        // EPD0: nothing of TTB0 is looked at, so it can go away first.
        var quiet = target
        quiet.words[0] = 0x0001_E204_C000_4000
        quiet.words[1] = 0
        #expect(
            Self.steps(EntryUpdate(from: target, to: quiet)) == [[0: 0x0001_E204_C000_4000], [1: 0]]
        )
    }

    @Test func whateverTheSMMUReadsIsTheOldEntryTheNewOneOrInvalid() {
        let images = [Self.stage1, Self.bypass, Self.abort, Self.stage2, STE()]
        for old in images {
            for new in images {
                var words = old.words
                for step in EntryUpdate(from: old, to: new).steps {
                    // The stores of one step become visible in any order; each alone must be harmless.
                    for write in step {
                        words[write.index] = write.value
                        let entry = STE(words: words)
                        let seen = words & EntryUpdate.usedBits(entry)
                        let isOld = seen == old.words & EntryUpdate.usedBits(old)
                        let isNew = seen == new.words & EntryUpdate.usedBits(new)
                        #expect(isOld || isNew || !entry.v, "from \(old.words) to \(new.words): \(words)")
                    }
                }
                #expect(words == new.words)
            }
        }
    }
}
