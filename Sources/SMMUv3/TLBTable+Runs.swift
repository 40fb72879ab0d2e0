// Translations of pages in a row, for long transactions: looked at a line of the table at a time.

import CLinux
import SMMUv3Spec

/// What a long transaction needs of the translations of its next pages: those that lie in a row in the output too.
struct TLBRun {
    /// Of the first byte that is wanted.
    let output: UInt64
    let byteCount: UInt64
    /// How much of that is in the first page or block.
    let firstByteCount: UInt64
    /// How many pages and blocks there are.
    let pieceCount: UInt64
    /// What each of them permits.
    let permissions: Permissions
}

extension TLBRun {
    /// One translation, from an address on.
    init(_ hit: TLBHit, _ address: UInt64, _ wanted: UInt64) {
        let mask: UInt64 = (1 &<< UInt64(hit.log2Bytes)) &- 1
        let lead = address & mask
        let count = min(wanted, mask &- lead &+ 1)
        self.init(
            output: hit.outputBase | lead,
            byteCount: count,
            firstByteCount: count,
            pieceCount: 1,
            permissions: hit.permissions
        )
    }
}

extension TLBTable {
    /// How many sets are fetched ahead of the one that is looked at: copies push them out of the first caches.
    private static let setsAhead = 8

    /// The translations of an address and of what follows it.
    ///
    /// Counts nothing. Nil is no answer, and the port takes the long way.
    ///
    /// - Parameter wanted: How many bytes, at least one; the addresses do not wrap.
    @inline(__always)  // By one caller.
    func run(_ address: UInt64, _ wanted: UInt64, _ key: borrowing TLBKey) -> TLBRun? {
        guard let found = first(address, key), isUnchanged(found) else { return nil }
        let log2Bytes = UInt64(truncatingIfNeeded: TLBEntry.log2Bytes(found.tag))
        let mask: UInt64 = (1 &<< log2Bytes) &- 1
        let lead = address & mask
        let first = min(wanted, mask &- lead &+ 1)
        var following: UInt64 = 0
        // Of the smallest size, and its own: with others a look-up of the next page might find another one first.
        if first < wanted, smmud_load_u64(words).trailingZeroBitCount == Int(truncatingIfNeeded: log2Bytes),
            found.tag & TLBEntry.globalBit == 0, TLBEntry.isSignExtended(address &+ wanted &- 1),
            mayBeFollowed(found, log2Bytes)
        {
            following = self.following(
                found,
                address &>> log2Bytes,
                ((wanted &- first &- 1) &>> log2Bytes) &+ 1,
                key.mix
            )
        }
        let hit = TLBEntry.hit(found.output, log2Bytes)
        return TLBRun(
            output: hit.outputBase | lead,
            byteCount: min(wanted, first &+ following &<< log2Bytes),
            firstByteCount: first,
            pieceCount: following &+ 1,
            permissions: hit.permissions
        )
    }

    /// As ``find(_:_:)``, where pages in a row have their entries as a rule: in ways in a row.
    @inline(__always)  // As above.
    private func first(_ address: UInt64, _ key: borrowing TLBKey) -> Found? {
        guard TLBEntry.isSignExtended(address) else { return nil }
        // No size is resident where this is 64; the shift then is by 0, and nothing matches.
        let log2Bytes = UInt64(truncatingIfNeeded: smmud_load_u64(words).trailingZeroBitCount)
        let page = address &>> log2Bytes
        let tag = key.own | TLBEntry.range(page, log2Bytes)
        let set = setIndex(page, key.mix)
        let sequence = smmud_load_u64(self.sequence(set))
        let index = set &* Self.ways &+ Int(truncatingIfNeeded: page) & (Self.ways &- 1)
        let entry = entry(index)
        if smmud_load_u64(entry.hot) == tag {
            let output = smmud_load_u64(entry.hot + 1)
            if TLBEntry.vmid(output) == key.vmid {
                return Found(index: index, tag: tag, output: output, sequence: sequence)
            }
        }
        return findApart(address, key)
    }

    @inline(never)  // Keeps the way of pages in a row small.
    private func findApart(_ address: UInt64, _ key: borrowing TLBKey) -> Found? { find(address, key) }

    /// Whether the page that follows is worth a look: not, where the next entry of the set says that it is elsewhere.
    @inline(__always)  // As above.
    private func mayBeFollowed(_ found: Found, _ log2Bytes: UInt64) -> Bool {
        guard found.index & (Self.ways &- 1) != Self.ways &- 1 else {
            prefetch(Self.setsAhead, after: found.index &>> 2)
            return true
        }
        return smmud_load_u64(entry(found.index).hot + 3) == found.output &+ 1 &<< (log2Bytes &- 12)
    }

    /// How many pages follow one, in its order, with entries that differ from its own in nothing but that.
    ///
    /// - Parameters:
    ///   - page: The input address without the bits of the offset.
    ///   - most: How many are wanted.
    @inline(__always)  // As above.
    private func following(_ found: Found, _ page: UInt64, _ most: UInt64, _ mix: UInt64) -> UInt64 {
        let log2Pages = UInt64(truncatingIfNeeded: TLBEntry.log2Bytes(found.tag)) &- 12
        let outputStep: UInt64 = 1 &<< log2Pages
        let tagStep = outputStep &<< 1
        // Past the last address of all, the next page would differ in more than the address.
        let end = page &+ 1 &+ min(most, TLBEntry.pagesAbove(found.output) &>> log2Pages)
        var next = page &+ 1
        var (tag, output) = (found.tag &+ tagStep, found.output &+ outputStep)
        // The set of the page before.
        var set = setIndex(page, mix)
        while next < end {
            let way = next & UInt64(Self.ways &- 1)
            if way == 0 {
                set = setIndex(after: set, next, mix)
                prefetch(Self.setsAhead, after: set)
            }
            let line = line(set)
            let sequence = smmud_load_u64(self.sequence(set))
            let count = min(UInt64(Self.ways) &- way, end &- next)
            // Four comparisons, and one branch.
            if count == UInt64(Self.ways), isRow(line, tag, tagStep, output, outputStep) {
                guard smmud_load_u64(self.sequence(set)) == sequence & ~1 else { break }
                next &+= count
                tag &+= tagStep &<< 2
                output &+= outputStep &<< 2
                continue
            }
            var seen: UInt64 = 0
            while seen < count {
                let place = line + Int(truncatingIfNeeded: (way &+ seen) &* UInt64(TLBEntry.wordCount))
                guard smmud_load_u64(place) == tag, smmud_load_u64(place + 1) == output else { break }
                seen &+= 1
                tag &+= tagStep
                output &+= outputStep
            }
            guard smmud_load_u64(self.sequence(set)) == sequence & ~1 else { break }
            next &+= seen
            guard seen == count else { break }
        }
        return next &- page &- 1
    }

    /// Whether the entries of a set are of pages in a row, beginning with these hot words.
    @inline(__always)  // As above.
    private func isRow(
        _ line: UnsafeMutablePointer<UInt64>,
        _ tag: UInt64,
        _ tagStep: UInt64,
        _ output: UInt64,
        _ outputStep: UInt64
    ) -> Bool {
        var difference: UInt64 = 0
        for way in 0..<Self.ways {
            let count = UInt64(truncatingIfNeeded: way)
            difference |= smmud_load_u64(line + (way &* TLBEntry.wordCount)) ^ (tag &+ tagStep &* count)
            difference |=
                smmud_load_u64(line + (way &* TLBEntry.wordCount &+ 1)) ^ (output &+ outputStep &* count)
        }
        return difference == 0
    }
}
