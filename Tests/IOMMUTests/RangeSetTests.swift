// Sets of ranges against sets of numbers, and how little a search looks at.

import SeededRandomness
import Testing

@testable import IOMMU

@Suite("Sets of ranges")
struct RangeSetTests {
    /// The highest aligned start, number by number.
    private static func highestGap(_ numbers: Set<UInt64>, _ count: UInt64, upTo limit: UInt64) -> UInt64? {
        guard limit &+ 1 >= count else { return nil }
        var start = (limit &- count &+ 1) & ~(count.roundedUpToPowerOfTwo &- 1)
        while true {
            if !(start..<start + count).contains(where: { numbers.contains($0) }) { return start }
            guard start > 0 else { return nil }
            start -= count.roundedUpToPowerOfTwo
        }
    }

    @Test("a set says what its numbers say", arguments: 1...4 as ClosedRange<UInt64>)
    func random(_ seed: UInt64) {
        var random = SplitMix(seed: seed)
        var set = RangeSet()
        var numbers: Set<UInt64> = []
        // Short ranges far apart at first, so that there are many chunks; then long ones that join them.
        for step in 0..<1200 {
            let first = UInt64.random(in: 0..<4000, using: &random)
            let longest: UInt64 = step < 900 ? 3 : 600
            let last = first + UInt64.random(in: 0..<longest, using: &random)
            if UInt64.random(in: 0..<3, using: &random) == 0 {
                set.remove(first, last)
                numbers.subtract(first...last)
            } else {
                set.insert(first, last)
                numbers.formUnion(first...last)
            }
            guard step % 20 == 0 else { continue }
            let ranges = set.ranges
            var apart = true
            for index in ranges.indices.dropFirst() where ranges[index].first <= ranges[index - 1].last + 1 {
                apart = false
            }
            #expect(apart, "seed \(seed), step \(step)")
            let found = Set(ranges.flatMap { Array($0.first...$0.last) })
            #expect(found == numbers && set.count == UInt64(numbers.count), "seed \(seed), step \(step)")
            let parts = set.overlapping(first, first + 500).flatMap { Array($0.first...$0.last) }
            #expect(Set(parts) == numbers.filter { (first...first + 500).contains($0) })
            for count in [1, 2, 3, 8, 50] as [UInt64] {
                let limit = UInt64.random(in: 0..<5000, using: &random)
                #expect(
                    set.highestGap(count, upTo: limit) == Self.highestGap(numbers, count, upTo: limit),
                    "seed \(seed), step \(step): \(count) up to \(limit)"
                )
            }
        }
    }

    @Test func theEndsOfAllNumbersAreNoCornersToFallFrom() {
        var set = RangeSet()
        #expect(set.highestGap(1, upTo: .max) == .max)
        set.insert(.max, .max)
        set.insert(0, 0)
        #expect(set.highestGap(1, upTo: .max) == UInt64.max - 1)
        #expect(set.highestGap(1, upTo: 0) == nil)
        set.insert(1, .max - 1)
        #expect(set.ranges.count == 1 && set.highestGap(1, upTo: .max) == nil)
        set.remove(0, .max)
        #expect(set.ranges.isEmpty && set.count == 0)
    }

    @Test func aSearchPassesOverChunksWithoutRoom() {
        var set = RangeSet()
        // Every other number of 40000 is in: 20000 ranges with gaps of one.
        for number in stride(from: UInt64(1), to: 40_000, by: 2) { set.insert(number, number) }
        let before = set.lookCount
        #expect(set.highestGap(1, upTo: 39_999) == 39_998)
        #expect(set.lookCount - before <= 4)
        // There is no room for two but above: each chunk is looked at once.
        let start = set.lookCount
        #expect(set.highestGap(2, upTo: 39_999) == nil)
        #expect(set.lookCount - start < 20_000 / (RangeSet.chunkLimit / 2) + 2)
        set.remove(5001, 5001)
        #expect(set.highestGap(2, upTo: 39_999) == 5000)
        #expect(set.lookCount - start < 2 * 20_000 / (RangeSet.chunkLimit / 2) + RangeSet.chunkLimit)
    }
}
