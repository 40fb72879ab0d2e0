// Which DMA_MAPs of one connection stand.

import VFIOUserProtocol
import VFIOUserServer

/// What a client may map and take back: ranges of its device's addresses that never overlap.
struct ClientBook<Value> {
    struct Entry {
        var range: VFIOUserMemoryRange
        var value: Value

        var last: UInt64 { range.address &+ (range.byteCount - 1) }
    }

    /// In ascending order of address.
    private(set) var entries: [Entry] = []

    /// The entries that overlap a range, which has bytes and ends below 2^64.
    private func overlapping(_ address: UInt64, _ byteCount: UInt64) -> Range<Int> {
        let last = address &+ (byteCount - 1)
        let lower = entries.firstIndex { $0.last >= address } ?? entries.endIndex
        let upper = entries[lower...].firstIndex { $0.range.address > last } ?? entries.endIndex
        return lower..<upper
    }

    /// Whether a range may be mapped.
    ///
    /// - Returns: False where the very same stands already and `isSame` says so: there is nothing to do.
    /// - Throws: `EEXIST` where something else is there.
    func admits(_ range: VFIOUserMemoryRange, isSame: (Value) -> Bool) throws(VFIOUserError) -> Bool {
        let found = overlapping(range.address, range.byteCount)
        guard !found.isEmpty else { return true }
        guard found.count == 1, entries[found.lowerBound].range == range,
            isSame(entries[found.lowerBound].value)
        else { throw .exists }
        return false
    }

    /// Notes a range that was found admissible.
    mutating func insert(_ range: VFIOUserMemoryRange, _ value: Value) {
        let index = entries.firstIndex { $0.range.address > range.address } ?? entries.endIndex
        entries.insert(Entry(range: range, value: value), at: index)
    }

    /// Takes out what lies wholly in a range, one entry or more.
    ///
    /// - Throws: `ENOENT` where there is nothing, `EINVAL` where an entry reaches beyond the range; nothing changes.
    mutating func remove(_ address: UInt64, _ byteCount: UInt64) throws(VFIOUserError) -> [Entry] {
        let found = overlapping(address, byteCount)
        let last = address &+ (byteCount - 1)
        guard !found.isEmpty else { throw .noEntry }
        guard entries[found].allSatisfy({ $0.range.address >= address && $0.last <= last }) else {
            throw .invalid
        }
        defer { entries.removeSubrange(found) }
        return Array(entries[found])
    }

    /// Takes out everything.
    mutating func removeAll() -> [Entry] {
        defer { entries = [] }
        return entries
    }
}
