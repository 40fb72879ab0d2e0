// The TLB's entries in sets, and how an address finds its own without a lock.

import CLinux
import SMMUv3Spec

/// The memory of a ``TranslationCache``: a pointer that is good as long as the cache lives.
///
/// For ports: counting references to the cache would cost a hit a tenth of all the rest of it.
// SAFETY of @unchecked Sendable: the words are accessed atomically.
struct TLBTable: @unchecked Sendable {
    /// How many entries one set holds.
    static let ways = 4
    static let headerWords = 16

    /// The header and the entries.
    ///
    /// A line that look-ups read, and that only changes with the kinds of entries there are: [0] a bit for each log2
    /// size that is resident, [1] whether there are global entries. A second line of counters: [8] hits, [9]
    /// misses. Then the entries, whose pages take memory once they are touched.
    let words: UnsafeMutablePointer<UInt64>
    /// How many sets there are, less 1; where there is none no size is ever resident.
    private let setMask: UInt64
    /// log2 of how many there are.
    private let setBits: UInt64

    init(words: UnsafeMutablePointer<UInt64>, setCount: Int) {
        self.words = words
        let count = UInt64(max(1, setCount))
        setMask = count &- 1
        setBits = UInt64(count.trailingZeroBitCount)
    }

    /// The translation of an address as a port wants it.
    ///
    /// Counts nothing: the port does. Nil is no answer, and the port takes the long way.
    @inline(__always)  // Once for each page that a port does not remember.
    func hit(_ address: UInt64, _ key: borrowing TLBKey) -> TLBHit? {
        guard let (entry, word) = find(address, key) else { return nil }
        return entry.hit(matchedAt: word)
    }

    /// The same for an address that follows one of which it is known where its entry was.
    ///
    /// Pages in a row are mostly in the same way of sets in a row.
    @inline(__always)  // Once for each page of a long transaction.
    func hit(_ address: UInt64, _ key: borrowing TLBKey, after place: inout TLBPlace) -> TLBHit? {
        // Of the smallest size: where there are several, that is what a look-up would find first.
        if smmud_load_u64(words).trailingZeroBitCount == Int(truncatingIfNeeded: place.log2Bytes) {
            let page = address &>> place.log2Bytes
            let entry = set(page, key.mix) + place.way
            let word = entry.match(page &<< place.log2Bytes, key.own(place.log2Bytes))
            if word != 0 { return entry.hit(matchedAt: word) }
        }
        return hitElsewhere(address, key, &place)
    }

    @inline(never)  // Keeps the way of pages in a row small.
    private func hitElsewhere(_ address: UInt64, _ key: borrowing TLBKey, _ place: inout TLBPlace) -> TLBHit?
    {
        guard let (entry, word) = find(address, key) else { return nil }
        let index = (entry.words - words - Self.headerWords) / TLBEntry.wordCount
        place = TLBPlace(log2Bytes: word &>> 1 & 0x3F, way: index & (Self.ways &- 1))
        return entry.hit(matchedAt: word)
    }

    /// Has the set of a page of 4 KiB come into the caches, which is wanted soon.
    @inline(__always)  // Once for each page that a port does not remember.
    func prefetch(_ address: UInt64, _ key: borrowing TLBKey) {
        let entry = set(address &>> 12, key.mix)
        smmud_prefetch(entry.words)
        smmud_prefetch(entry.words + 8)
    }

    /// The entry of an address, and its second word as it was when it matched.
    @inline(__always)  // As above.
    func find(_ address: UInt64, _ key: borrowing TLBKey) -> (entry: TLBEntry, word: UInt64)? {
        var sizes = smmud_load_u64(words)
        while sizes != 0 {
            let log2Bytes = UInt64(truncatingIfNeeded: sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            let page = address &>> log2Bytes
            let base = page &<< log2Bytes
            if let found = match(set(page, key.mix), base, key.own(log2Bytes)) { return found }
            guard smmud_load_u64(words + 1) != 0 else { continue }
            if let found = match(set(page, key.globalMix), base, key.global(log2Bytes)) { return found }
        }
        return nil
    }

    /// Compares all entries of a set, and then branches once: which of them it is cannot be predicted.
    @inline(__always)  // As above.
    private func match(_ set: TLBEntry, _ base: UInt64, _ key: (word: UInt64, mask: UInt64)) -> (
        entry: TLBEntry, word: UInt64
    )? {
        var matching = 0
        for way in 0..<Self.ways { matching |= (set + way).differs(from: base, key) == 0 ? 1 &<< way : 0 }
        guard matching != 0 else { return nil }
        let entry = set + matching.trailingZeroBitCount
        // It may have changed meanwhile: what counts is what its words are after this one.
        let word = entry.match(base, key)
        return word != 0 ? (entry, word) : nil
    }

    /// The first entry of the set of a page.
    ///
    /// Pages in a row are in sets in a row: as many as there are entries fit without a conflict. What lies a
    /// power of two apart is spread by the page's upper bits.
    @inline(__always)  // As above.
    func set(_ page: UInt64, _ mix: UInt64) -> TLBEntry {
        let folded = page ^ page &>> setBits ^ page &>> (setBits &* 2) ^ mix
        let index = Int(truncatingIfNeeded: folded & setMask)
        return TLBEntry(words: words + Self.headerWords) + index &* Self.ways
    }
}

/// Where the entry of an address was found.
struct TLBPlace {
    /// log2 of the bytes that it covers.
    var log2Bytes: UInt64 = 12
    var way = 0
}
