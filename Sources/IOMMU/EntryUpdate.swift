// How an STE or a CD changes while the SMMU may read it: which words in which order, with an invalidation after each
// step.

import BitFields
import SMMUv3Spec

/// The steps from one entry to another.
///
/// The SMMU reads an entry word by word and at any time. Bits that it does not look at in the present configuration
/// can change freely. Where only one word of the others differs, that one 64-bit store switches over, and no
/// transaction sees a mixture; otherwise the entry is invalid in between.
struct EntryUpdate {
    /// One word to be written.
    struct Write: Equatable {
        let index: Int
        let value: UInt64
    }

    /// The words to be written before each invalidation.
    let steps: [[Write]]

    /// The steps for a stream table entry.
    init(from current: STE, to target: STE) {
        let (currentUsed, targetUsed) = (Self.usedBits(current), Self.usedBits(target))
        // Only where both look at them; else they change with what is not looked at.
        let harmless = Self.harmlessBits(current, target) & currentUsed & targetUsed
        self.init(current.words, currentUsed & ~harmless, target.words, targetUsed)
    }

    /// The steps for a context descriptor.
    init(from current: CD, to target: CD) {
        self.init(current.words, Self.usedBits(current), target.words, Self.usedBits(target))
    }

    private init(
        _ current: SIMD8<UInt64>,
        _ currentUsed: SIMD8<UInt64>,
        _ target: SIMD8<UInt64>,
        _ targetUsed: SIMD8<UInt64>
    ) {
        var entry = current
        var steps: [[Write]] = []
        func set(_ words: SIMD8<UInt64>, _ range: Range<Int>) {
            let writes = range.filter { entry[$0] != words[$0] }.map { Write(index: $0, value: words[$0]) }
            for write in writes { entry[write.index] = write.value }
            if !writes.isEmpty { steps.append(writes) }
        }
        // What can change while nobody looks at it.
        var unused = (current & currentUsed) | (target & ~currentUsed)
        let critical = (0..<8).filter { (unused[$0] ^ target[$0]) & targetUsed[$0] != 0 }
        if critical.count == 1 {
            // The critical word changes whole in the second step.
            unused[critical[0]] = current[critical[0]]
            set(unused, 0..<8)
            set(target, critical[0]..<critical[0] + 1)
        } else if critical.count > 1 {
            // V lies in word 0.
            unused[0] = 0
            set(unused, 0..<1)
            set(target, 1..<8)
            set(target, 0..<1)
        }
        // What the new configuration does not look at becomes zero.
        set(target, 0..<8)
        self.steps = steps
    }
}

// MARK: What the SMMU looks at

extension EntryUpdate {
    /// The bits of an STE that may change at any moment, although the SMMU looks at them.
    ///
    /// MEV says how many of equal events are told, and software has to bear fewer in any case. EATS between 0b00 and
    /// 0b01 changes only while ATS is off in the endpoint, so nobody asks. Not where either entry says 0b10, nor with
    /// S2S, which is ILLEGAL together with 0b01.
    static func harmlessBits(_ current: STE, _ target: STE) -> SIMD8<UInt64> {
        var result = STE()
        result.mev = true
        let mayStall = current.s2S || target.s2S
        if !mayStall, current.eats & 0b10 == 0, target.eats & 0b10 == 0 { result.eats = 0b01 }
        return result.words
    }

    /// The bits of an STE that its own V and Config make the SMMU look at, of those that this driver writes.
    static func usedBits(_ entry: STE) -> SIMD8<UInt64> {
        var used = STE()
        used.v = true
        guard entry.v else { return used.words }
        used.config = StreamConfig(rawValue: 0b111)
        if entry.config.abortsSilently { return used.words }
        if entry.config.translatesStage1 {
            used.words[0] |= .mask(4...5) | .mask(6...55) | .mask(59...63)  // S1Fmt, S1ContextPtr, S1CDMax
            // S1DSS, S1CIR, S1COR, S1CSH; PPAR, S1STALLD, EATS, STRW.
            used.words[1] |= .mask(0...7) | .mask(18...18) | .mask(27...31)
            used.words[2] |= .mask(0...15)  // S2VMID
            // SHCFG counts for what bypasses stage 1.
            if entry.s1DSS == 1 { used.shCfg = 0b11 }
        }
        if entry.config.translatesStage2 {
            used.eats = 0b11
            used.shCfg = 0b11
            used.s2FWB = true
            used.words[2] |= .mask(0...15) | .mask(32...58)  // S2VMID; S2T0SZ to S2R.
            used.words[3] |= .mask(2...51)  // S2SL0[2], S2DS, S2TTB
        }
        if entry.config.translatesStage1 || entry.config.translatesStage2 { used.mev = true }
        if entry.config == .bypass { used.shCfg = 0b11 }
        return used.words
    }

    /// The bits of a CD that the SMMU looks at.
    static func usedBits(_ entry: CD) -> SIMD8<UInt64> {
        guard entry.v else {
            var used = CD()
            used.v = true
            return used.words
        }
        var used = SIMD8<UInt64>(repeating: .max)
        if entry.epd0 {
            used[0] &= ~.mask(0...13)  // T0SZ, TG0, IR0, OR0, SH0
            used[1] &= ~.mask(4...51)  // TTB0
        }
        return used
    }
}
