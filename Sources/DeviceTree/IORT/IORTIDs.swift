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
    /// Resolves ranges as Linux does: an ID is the first mapping's that has it, but one at the end of a mapping is the
    /// mapping's that begins with it.
    ///
    /// - Parameters:
    ///   - mappings: Mappings with their indices, none of them single; the table's checks keep them within 32 bits.
    ///   - note: Hears of overlaps.
    init(_ mappings: [(index: Int, mapping: IORTMapping)], note: (IORTOverlap) -> Void) {
        var starts: [UInt32: [Int]] = [:]
        for (index, mapping) in mappings { starts[mapping.inputBase, default: []].append(index) }
        let whole = mappings.map { index, mapping in
            var last = mapping.inputBase &+ mapping.countMinusOne
            if mapping.countMinusOne > 0, let next = starts[last]?.first(where: { $0 != index }) {
                note(.countTooLarge(mapping: index, next: next, id: last))
                last -= 1
            }
            return IORTIDRange(
                first: mapping.inputBase,
                last: last,
                output: mapping.outputBase,
                target: mapping.outputReference,
                mapping: index
            )
        }
        let sorted = whole.sorted { ($0.first, $0.mapping) < ($1.first, $1.mapping) }
        let isDisjoint = zip(sorted, sorted.dropFirst()).allSatisfy { $0.last < $1.first }
        ranges = isDisjoint ? sorted : Self.resolved(sorted, note: note)
    }

    /// Goes through the IDs from low to high with those ranges at hand that have them; the lowest index wins.
    private static func resolved(_ sorted: [IORTIDRange], note: (IORTOverlap) -> Void) -> [IORTIDRange] {
        var result: [IORTIDRange] = []
        var open: [IORTIDRange] = []
        var edges = Set(sorted.map { UInt64($0.first) })
        edges.formUnion(sorted.map { UInt64($0.last) + 1 })
        let ordered = edges.sorted()
        var waiting = sorted[...]
        for (start, end) in zip(ordered, ordered.dropFirst()) {
            open.removeAll { UInt64($0.last) < start }
            while let next = waiting.first, UInt64(next.first) <= start {
                for other in open {
                    let (first, second) = (min(other.mapping, next.mapping), max(other.mapping, next.mapping))
                    note(.both(first: first, second: second, id: next.first))
                }
                open.append(waiting.removeFirst())
            }
            let (low, high) = (UInt32(truncatingIfNeeded: start), UInt32(truncatingIfNeeded: end - 1))
            guard let winner = open.min(by: { $0.mapping < $1.mapping })?.clipped(low, high) else { continue }
            if let before = result.last, before.mapping == winner.mapping, before.last &+ 1 == winner.first {
                result[result.count - 1].last = winner.last
            } else {
                result.append(winner)
            }
        }
        return result
    }
}
