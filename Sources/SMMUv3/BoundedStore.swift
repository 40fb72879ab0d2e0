// Values by key, at most so many, the oldest going first.

/// A dictionary with a limit.
///
/// What goes is decided by the order of insertion alone, so that a run repeats.
struct BoundedStore<Key: Hashable & Sendable, Value: Sendable>: Sendable {
    private var slots: [(key: Key, value: Value)?] = []
    private var indices: [Key: Int] = [:]
    /// Slots that were emptied: they are filled before anything has to go.
    private var vacancies: [Int] = []
    private var cursor = 0
    let capacity: Int

    init(capacity: Int) { self.capacity = capacity }

    var count: Int { indices.count }

    subscript(_ key: Key) -> Value? {
        guard let index = indices[key] else { return nil }
        return slots[index]?.value
    }

    /// Inserts or replaces.
    ///
    /// - Returns: Whether another key's value had to go.
    mutating func insert(_ value: Value, for key: Key) -> Bool {
        guard capacity > 0 else { return false }
        if let index = indices[key] {
            slots[index] = (key, value)
            return false
        }
        if let index = vacancies.popLast() {
            slots[index] = (key, value)
            indices[key] = index
            return false
        }
        if slots.count < capacity {
            slots.append((key, value))
            indices[key] = slots.count - 1
            return false
        }
        let index = cursor
        cursor = (cursor + 1) % capacity
        if let old = slots[index] { indices[old.key] = nil }
        slots[index] = (key, value)
        indices[key] = index
        return true
    }

    /// Removes one key.
    ///
    /// - Returns: Whether it was there.
    mutating func remove(_ key: Key) -> Bool {
        guard let index = indices.removeValue(forKey: key) else { return false }
        slots[index] = nil
        vacancies.append(index)
        return true
    }

    /// Removes every key that `isCovered` names.
    ///
    /// - Returns: How many there were.
    mutating func removeAll(where isCovered: (Key) -> Bool) -> Int {
        var removed = 0
        for index in slots.indices {
            if let slot = slots[index], isCovered(slot.key) {
                indices[slot.key] = nil
                slots[index] = nil
                vacancies.append(index)
                removed += 1
            }
        }
        return removed
    }
}
