// Sorted, non-overlapping ranges with a value each.

/// A new range cannot go where an older one is.
public struct AddressConflict: Error, Equatable {
    public let inserting: AddressRange
    public let existing: AddressRange

    public init(inserting: AddressRange, existing: AddressRange) {
        self.inserting = inserting
        self.existing = existing
    }
}

/// Values by range of addresses.
///
/// No two ranges overlap; a look-up is a binary search.
public struct AddressMap<Value> {
    public struct Entry {
        public let range: AddressRange
        public let value: Value
    }

    /// In ascending order of address.
    public private(set) var entries: [Entry] = []

    public init() {}

    /// Adds a range.
    ///
    /// - Throws: ``AddressConflict`` with the range that it overlaps; the map is as before.
    public mutating func insert(_ value: Value, at range: AddressRange) throws(AddressConflict) {
        let index = firstIndex(endingAtOrAfter: range.first)
        if index < entries.count, entries[index].range.overlaps(range) {
            throw AddressConflict(inserting: range, existing: entries[index].range)
        }
        entries.insert(Entry(range: range, value: value), at: index)
    }

    /// Removes the entry with exactly this range, if there is one, and returns its value.
    @discardableResult
    public mutating func remove(_ range: AddressRange) -> Value? {
        let index = firstIndex(endingAtOrAfter: range.first)
        guard index < entries.count, entries[index].range == range else { return nil }
        return entries.remove(at: index).value
    }

    /// The entry whose range contains `address`.
    public func entry(containing address: UInt64) -> Entry? {
        let index = firstIndex(endingAtOrAfter: address)
        guard index < entries.count, entries[index].range.contains(address) else { return nil }
        return entries[index]
    }

    /// The index of the first entry whose last byte is at or after `address`.
    private func firstIndex(endingAtOrAfter address: UInt64) -> Int {
        var low = 0
        var high = entries.count
        while low < high {
            let middle = low + (high - low) / 2
            if entries[middle].range.last < address { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

extension AddressMap: Sendable where Value: Sendable {}
extension AddressMap.Entry: Sendable where Value: Sendable {}
