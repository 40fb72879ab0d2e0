// Which numbers are in a set, as ranges, and where between them there is room.

/// Ranges of numbers, ascending, none touching another, in chunks that know the largest gap within them.
///
/// A change costs one chunk and the list of chunks; a search looks into those chunks alone in which there is room.
struct RangeSet: Sendable {
    typealias Range = (first: UInt64, last: UInt64)

    /// A chunk that grows beyond this is cut in two.
    static let chunkLimit = 128

    private struct Chunk {
        /// Never empty.
        var ranges: [Range]
        /// The most numbers in a row between two of the ranges.
        private(set) var largestGap: UInt64 = 0

        init(_ ranges: [Range]) {
            self.ranges = ranges
            measure()
        }

        var first: UInt64 { ranges[0].first }
        var last: UInt64 { ranges[ranges.count - 1].last }

        mutating func measure() {
            largestGap = 0
            for index in ranges.indices.dropFirst() {
                largestGap = max(largestGap, ranges[index].first &- ranges[index - 1].last &- 1)
            }
        }
    }

    private struct Position {
        var chunk: Int
        var index: Int
    }

    private var chunks: [Chunk] = []
    /// How many numbers there are.
    private(set) var count: UInt64 = 0
    /// How many ranges and chunks searches for room have looked at.
    private(set) var lookCount = 0

    /// All ranges, ascending.
    var ranges: [Range] { chunks.flatMap(\.ranges) }

    // MARK: Changes

    /// Puts numbers in; some may be there already.
    mutating func insert(_ first: UInt64, _ last: UInt64) {
        var merged = (first: first, last: last)
        let touching = takeOut(from: first == 0 ? 0 : first - 1, through: last == .max ? last : last + 1)
        if let lowest = touching.ranges.first { merged.first = min(merged.first, lowest.first) }
        if let highest = touching.ranges.last { merged.last = max(merged.last, highest.last) }
        put([merged], at: touching.position)
    }

    /// Takes numbers out; some may not be there.
    mutating func remove(_ first: UInt64, _ last: UInt64) {
        let touching = takeOut(from: first, through: last)
        var kept: [Range] = []
        if let lowest = touching.ranges.first, lowest.first < first { kept.append((lowest.first, first - 1)) }
        if let highest = touching.ranges.last, highest.last > last { kept.append((last + 1, highest.last)) }
        put(kept, at: touching.position)
    }

    /// The parts of this set that lie in the range.
    func overlapping(_ first: UInt64, _ last: UInt64) -> [Range] {
        var parts: [Range] = []
        var position = position(endingAtOrAfter: first)
        while let range = range(at: position), range.first <= last {
            parts.append((max(first, range.first), min(last, range.last)))
            position = next(after: position)
        }
        return parts
    }

    /// Takes the ranges that the numbers touch out whole, and says where they were.
    private mutating func takeOut(from first: UInt64, through last: UInt64) -> (
        position: Position, ranges: [Range]
    ) {
        var position = position(endingAtOrAfter: first)
        var taken: [Range] = []
        while position.chunk < chunks.count {
            let ranges = chunks[position.chunk].ranges
            let end = ranges[position.index...].firstIndex { $0.first > last } ?? ranges.count
            guard end > position.index else { break }
            taken += ranges[position.index..<end]
            if position.index == 0, end == ranges.count {
                chunks.remove(at: position.chunk)
                continue
            }
            chunks[position.chunk].ranges.removeSubrange(position.index..<end)
            chunks[position.chunk].measure()
            guard end == ranges.count else { break }
            position = Position(chunk: position.chunk + 1, index: 0)
        }
        for range in taken { count &-= range.last &- range.first &+ 1 }
        return (position, taken)
    }

    /// Puts ranges in before the one at `position`.
    private mutating func put(_ ranges: [Range], at position: Position) {
        guard !ranges.isEmpty else { return }
        for range in ranges { count &+= range.last &- range.first &+ 1 }
        var position = position
        if position.index == 0, position.chunk > 0 {
            // At the end of the chunk before: so chunks fill up where ranges come in order.
            position = Position(chunk: position.chunk - 1, index: chunks[position.chunk - 1].ranges.count)
        }
        guard position.chunk < chunks.count else {
            chunks.append(Chunk(ranges))
            return
        }
        chunks[position.chunk].ranges.insert(contentsOf: ranges, at: position.index)
        let all = chunks[position.chunk].ranges
        guard all.count > Self.chunkLimit else {
            chunks[position.chunk].measure()
            return
        }
        let middle = all.count / 2
        chunks.replaceSubrange(
            position.chunk...position.chunk,
            with: [Chunk(Array(all[..<middle])), Chunk(Array(all[middle...]))]
        )
    }

    // MARK: Looking

    /// The highest start, aligned to `count` rounded up to a power of two, of `count` numbers outside this set.
    mutating func highestGap(_ count: UInt64, upTo limit: UInt64) -> UInt64? {
        let alignment = count.roundedUpToPowerOfTwo
        var last = limit
        for chunk in chunks.reversed() where chunk.first <= last {
            lookCount += 1
            // Above the chunk, or the part of it that ends at the limit.
            if chunk.last < last, let start = Self.start(count, alignment, chunk.last + 1, last) {
                return start
            }
            if chunk.largestGap >= count {
                for range in chunk.ranges.reversed() where range.first <= last {
                    lookCount += 1
                    if range.last < last, let start = Self.start(count, alignment, range.last + 1, last) {
                        return start
                    }
                    guard range.first > 0 else { return nil }
                    last = range.first - 1
                }
            }
            guard chunk.first > 0 else { return nil }
            last = chunk.first - 1
        }
        return Self.start(count, alignment, 0, last)
    }

    private static func start(_ count: UInt64, _ alignment: UInt64, _ first: UInt64, _ last: UInt64)
        -> UInt64?
    {
        guard alignment > 0, last >= first, last &- first >= count &- 1 else { return nil }
        let start = (last &- count &+ 1) & ~(alignment &- 1)
        return start >= first ? start : nil
    }

    /// Where the first range is that ends at or after `number`.
    private func position(endingAtOrAfter number: UInt64) -> Position {
        let chunk = Self.partition(chunks.count) { chunks[$0].last < number }
        guard chunk < chunks.count else { return Position(chunk: chunk, index: 0) }
        let ranges = chunks[chunk].ranges
        return Position(chunk: chunk, index: Self.partition(ranges.count) { ranges[$0].last < number })
    }

    private func range(at position: Position) -> Range? {
        position.chunk < chunks.count ? chunks[position.chunk].ranges[position.index] : nil
    }

    private func next(after position: Position) -> Position {
        position.index + 1 < chunks[position.chunk].ranges.count
            ? Position(chunk: position.chunk, index: position.index + 1)
            : Position(chunk: position.chunk + 1, index: 0)
    }

    /// For how many of the first `count` indices the condition holds: for all below some index, and none above.
    private static func partition(_ count: Int, _ isBefore: (Int) -> Bool) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = low + (high - low) / 2
            if isBefore(middle) { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
