// IDs on their way through an IORT: RequesterIDs and StreamIDs to StreamIDs and DeviceIDs, mapping by mapping.

import ACPITables

/// IDs that one mapping takes, without those that another one takes before it.
struct IORTIDRange: Equatable {
    var first: UInt32
    var last: UInt32
    /// What ``first`` turns into.
    var output: UInt32
    /// The node that it leads to, by its offset.
    let target: UInt32
    /// Which mapping of its node it comes from.
    let mapping: Int

    /// What an ID of the range turns into.
    func output(for id: UInt32) -> UInt32 { output &+ (id &- first) }

    /// The part from `low` to `high`; nil where there is none.
    func clipped(_ low: UInt32, _ high: UInt32) -> Self? {
        let (first, last) = (max(first, low), min(last, high))
        guard first <= last else { return nil }
        return Self(first: first, last: last, output: output(for: first), target: target, mapping: mapping)
    }
}

/// The mappings of a node as ranges that do not overlap, in the order of their IDs.
struct IORTIDMap: Equatable {
    let ranges: [IORTIDRange]

    static let empty = Self(ranges: [])

    /// The range that has this ID.
    func range(of id: UInt32) -> IORTIDRange? {
        let index = firstIndex(endingAtOrAfter: id)
        guard index < ranges.count, ranges[index].first <= id else { return nil }
        return ranges[index]
    }

    /// What it has of the IDs from `low` to `high`.
    func clipped(_ low: UInt32, _ high: UInt32) -> [IORTIDRange] {
        ranges[firstIndex(endingAtOrAfter: low)...].prefix { $0.first <= high }
            .compactMap { $0.clipped(low, high) }
    }

    private func firstIndex(endingAtOrAfter id: UInt32) -> Int {
        var (low, high) = (0, ranges.count)
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].last < id { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

/// What is doubtful about mappings that touch or overlap.
enum IORTOverlap: Equatable {
    /// The last ID of `mapping` is the first one of `next`, to which it is left: firmware wrote the number of IDs where
    /// the number minus one belongs.
    case countTooLarge(mapping: Int, next: Int, id: UInt32)
    /// Both have this ID, and `first` keeps it.
    case both(first: Int, second: Int, id: UInt32)
}

extension IORTIDMap {
    /// A mapping on its way to ranges.
    private struct Whole {
        let range: IORTIDRange
        /// Whether it has more than one ID.
        let isLong: Bool
    }

    /// Resolves mappings as Linux does: an ID is the first one's that has it; but where it is the last ID of that
    /// one, and a later one begins with it, it is the later one's.
    ///
    /// - Parameters:
    ///   - mappings: Mappings with their indices, none of them single; the table's checks keep them within 32 bits.
    ///   - note: Hears of overlaps.
    init(_ mappings: [(index: Int, mapping: IORTMapping)], note: (IORTOverlap) -> Void) {
        let whole = mappings.map { index, mapping in
            let range = IORTIDRange(
                first: mapping.inputBase,
                last: mapping.inputBase &+ mapping.countMinusOne,
                output: mapping.outputBase,
                target: mapping.outputReference,
                mapping: index
            )
            return Whole(range: range, isLong: mapping.countMinusOne > 0)
        }
        let sorted = whole.sorted { ($0.range.first, $0.range.mapping) < ($1.range.first, $1.range.mapping) }
        let isDisjoint = zip(sorted, sorted.dropFirst()).allSatisfy { $0.range.last < $1.range.first }
        ranges = isDisjoint ? sorted.map(\.range) : Self.resolved(sorted, note: note)
    }

    /// Goes through the IDs from low to high with those mappings at hand that have them.
    private static func resolved(_ sorted: [Whole], note: (IORTOverlap) -> Void) -> [IORTIDRange] {
        var result: [IORTIDRange] = []
        var open: [Whole] = []
        // Between two edges all IDs have the same mappings, and the last ID of each stands alone.
        var edges: Set<UInt64> = []
        for whole in sorted {
            let last = UInt64(whole.range.last)
            edges.formUnion([UInt64(whole.range.first), last, last + 1])
        }
        let ordered = edges.sorted()
        var waiting = sorted[...]
        for (start, end) in zip(ordered, ordered.dropFirst()) {
            open.removeAll { UInt64($0.range.last) < start }
            while let next = waiting.first, UInt64(next.range.first) <= start {
                for other in open { note(overlap(of: other, next)) }
                open.append(waiting.removeFirst())
            }
            let (low, high) = (UInt32(truncatingIfNeeded: start), UInt32(truncatingIfNeeded: end - 1))
            guard let winner = winner(of: open, from: low)?.clipped(low, high) else { continue }
            if let before = result.last, before.mapping == winner.mapping, before.last &+ 1 == winner.first {
                result[result.count - 1].last = winner.last
            } else {
                result.append(winner)
            }
        }
        return result
    }

    private static func winner(of open: [Whole], from id: UInt32) -> IORTIDRange? {
        guard let first = open.min(by: { $0.range.mapping < $1.range.mapping }) else { return nil }
        guard first.isLong, first.range.last == id else { return first.range }
        let later = open.filter { $0.range.first == id && $0.range.mapping != first.range.mapping }
        return later.min { $0.range.mapping < $1.range.mapping }?.range ?? first.range
    }

    /// What two mappings are to each other of which the second begins within the first.
    private static func overlap(of one: Whole, _ next: Whole) -> IORTOverlap {
        let (first, second) = (one.range.mapping, next.range.mapping)
        if one.isLong, one.range.last == next.range.first {
            return .countTooLarge(mapping: first, next: second, id: next.range.first)
        }
        return .both(first: min(first, second), second: max(first, second), id: next.range.first)
    }
}
