// The TLB's entries in sets, and how an address finds its own without a lock.

import CLinux
import SMMUv3Spec

/// The memory of a ``TranslationCache``: pointers that are good as long as the cache lives.
///
/// For ports: counting references to the cache would cost a hit a tenth of all the rest of it.
///
/// One thread at a time writes, under the cache's lock. Of what it replaces, a reader may see one word as it was and
/// the next as it is; so the sets share counters, odd while an entry is being replaced, which a reader reads before the
/// words and after them.
// SAFETY of @unchecked Sendable: the words are accessed atomically.
struct TLBTable: @unchecked Sendable {
    /// How many entries one set holds.
    static let ways = 4
    private static let headerWords = 16
    /// How many words the hot part of a set has: a line.
    private static let setWords = ways * TLBEntry.wordCount
    /// As many as stay in the host's first caches.
    private static let mostSequences = 1024

    /// The header.
    ///
    /// A line that look-ups read, and that only changes with the kinds of entries there are: [0] a bit for each log2
    /// size that is resident, [1] whether there are global entries. A second line of counters: [8] hits, [9]
    /// misses. Then the counters of changes, and the entries, whose pages take memory once they are touched.
    let words: UnsafeMutablePointer<UInt64>
    private let sequences: UnsafeMutablePointer<UInt64>
    private let sequenceMask: Int
    private let hot: UnsafeMutablePointer<UInt64>
    private let cold: UnsafeMutablePointer<UInt64>
    /// How many sets there are, less 1; where there is none no size is ever resident.
    private let setMask: UInt64
    /// log2 of how many there are.
    private let setBits: UInt64
    /// 64 less that.
    private let mixShift: UInt64

    /// - Parameters:
    ///   - words: ``byteCount(_:)`` bytes of zeros, aligned to a line.
    ///   - setCount: A power of two, or 0.
    init(words: UnsafeMutablePointer<UInt64>, setCount: Int) {
        self.words = words
        let count = max(1, setCount)
        setMask = UInt64(count &- 1)
        setBits = UInt64(count.trailingZeroBitCount)
        mixShift = 64 &- setBits
        sequences = words + Self.headerWords
        sequenceMask = Self.sequenceCount(setCount) &- 1
        hot = sequences + Self.sequenceCount(setCount)
        cold = hot + setCount * Self.setWords
    }

    /// At least a line, so that the entries begin with one.
    private static func sequenceCount(_ setCount: Int) -> Int { min(max(setCount, 8), mostSequences) }

    /// How many bytes a table takes.
    static func byteCount(_ setCount: Int) -> Int {
        (headerWords + sequenceCount(setCount) + 2 * setCount * setWords) * 8
    }

    /// An entry as a look-up has found it.
    struct Found {
        let index: Int
        let tag: UInt64
        /// The second hot word.
        let output: UInt64
        /// The counter of changes before.
        let sequence: UInt64
    }

    // MARK: Looking up

    /// The translation of an address as a port wants it, if it is one of a page of 4 KiB and not global.
    ///
    /// That is what most are, and what a look-up looks for first. Counts nothing: the port does.
    @inline(__always)  // Once for each page that a port does not remember.
    func hitPage(_ address: UInt64, _ key: borrowing TLBKey) -> TLBHit? {
        let page = address &>> 12
        guard TLBEntry.isSignExtended(address),
            let found = match(setIndex(page, key.mix), key.own | TLBEntry.range(page, 12), key.vmid),
            isUnchanged(found)
        else { return nil }
        return TLBEntry.hit(found.output, 12)
    }

    /// Whether there is nothing else than what ``hitPage(_:_:)`` finds.
    @inline(__always)  // Once for each miss.
    var hasPagesAlone: Bool { smmud_load_u64(words) == 1 &<< 12 && smmud_load_u64(words + 1) == 0 }

    /// The same of any size.
    ///
    /// Nil is no answer, and the port takes the long way.
    func hit(_ address: UInt64, _ key: borrowing TLBKey) -> TLBHit? {
        guard let found = find(address, key), isUnchanged(found) else { return nil }
        return TLBEntry.hit(found.output, UInt64(truncatingIfNeeded: TLBEntry.log2Bytes(found.tag)))
    }

    /// Has the set of a page of 4 KiB come into the caches, which is wanted soon.
    @inline(__always)  // Once for each set of a long transaction.
    func prefetch(_ address: UInt64, _ key: borrowing TLBKey) {
        smmud_prefetch(line(setIndex(address &>> 12, key.mix)))
    }

    /// The entry of an address; what it says is good if it ``isUnchanged(_:)``.
    @inline(__always)  // As above.
    func find(_ address: UInt64, _ key: borrowing TLBKey) -> Found? {
        guard TLBEntry.isSignExtended(address) else { return nil }
        var sizes = smmud_load_u64(words)
        while sizes != 0 {
            let log2Bytes = UInt64(truncatingIfNeeded: sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            let page = address &>> log2Bytes
            let range = TLBEntry.range(page, log2Bytes)
            if let found = match(setIndex(page, key.mix), key.own | range, key.vmid) { return found }
            guard smmud_load_u64(words + 1) != 0 else { continue }
            if let found = match(setIndex(page, key.globalMix), key.global | range, key.vmid) { return found }
        }
        return nil
    }

    /// Compares all entries of a set, and then branches once: which of them it is cannot be predicted.
    @inline(__always)  // As above.
    private func match(_ set: Int, _ tag: UInt64, _ vmid: UInt64) -> Found? {
        let sequence = smmud_load_u64(self.sequence(set))
        let line = line(set)
        var matching = 0
        for way in 0..<Self.ways {
            matching |= smmud_load_u64(line + (way &* TLBEntry.wordCount)) == tag ? 1 &<< way : 0
        }
        // More than one where VMIDs have the same address.
        while matching != 0 {
            let way = matching.trailingZeroBitCount
            let output = smmud_load_u64(line + (way &* TLBEntry.wordCount &+ 1))
            if TLBEntry.vmid(output) == vmid {
                return Found(index: set &* Self.ways &+ way, tag: tag, output: output, sequence: sequence)
            }
            matching &= matching &- 1
        }
        return nil
    }

    /// Whether nothing was replaced, from before its words were read until now, that could be it.
    @inline(__always)  // As above.
    func isUnchanged(_ found: Found) -> Bool {
        // An odd one differs: it is greater by then.
        smmud_load_u64(sequence(found.index &>> 2)) == found.sequence & ~1
    }

    /// All of an entry that was found; nil where it has changed since.
    func translation(_ found: Found) -> CachedTranslation? {
        let translation = entry(found.index).translation(found.tag)
        return isUnchanged(found) ? translation : nil
    }

    // MARK: Places

    /// The number of the set of a page.
    ///
    /// Four pages in a row share a set, and so one line of the host's; the next four are in the next: as many as there
    /// are entries fit without a conflict. What lies a power of two apart is spread by the page's upper bits, and
    /// address spaces that use the same pages begin in different places, evenly apart.
    @inline(__always)  // As above.
    func setIndex(_ page: UInt64, _ mix: UInt64) -> Int {
        let group = page &>> 2
        let folded = group &+ group &>> setBits &+ group &>> (setBits &* 2)
        return Int(truncatingIfNeeded: (folded &+ mix &>> mixShift) & setMask)
    }

    /// The set of the four pages that follow those of a set.
    ///
    /// - Parameter page: The first of these four.
    @inline(__always)  // As above.
    func setIndex(after set: Int, _ page: UInt64, _ mix: UInt64) -> Int {
        guard (page &>> 2) & setMask != 0 else { return setIndex(page, mix) }
        return (set &+ 1) & Int(truncatingIfNeeded: setMask)
    }

    /// The first hot word of a set.
    @inline(__always)  // As above.
    func line(_ set: Int) -> UnsafeMutablePointer<UInt64> { hot + (set &* Self.setWords) }

    /// Has a set come into the caches that is so many after this one.
    @inline(__always)  // As above.
    func prefetch(_ count: Int, after set: Int) {
        smmud_prefetch(line((set &+ count) & Int(truncatingIfNeeded: setMask)))
    }

    @inline(__always)  // Once for each fill or removal.
    func entry(_ index: Int) -> TLBEntry { TLBEntry(hot: hot, cold: cold) + index }

    @inline(__always)  // As above.
    func sequence(_ set: Int) -> UnsafeMutablePointer<UInt64> { sequences + (set & sequenceMask) }

    // MARK: Under the lock

    /// Replaces what an entry holds.
    ///
    /// Each store is after those before it, for whoever loads in order.
    @inline(__always)  // Once for each fill.
    func write(_ new: TLBEntry.Words, at index: Int) {
        let sequence = sequence(index &>> 2)
        smmud_store_u64(sequence, sequence.pointee &+ 1)
        entry(index).store(new)
        smmud_store_u64(sequence, sequence.pointee &+ 1)
    }
}
