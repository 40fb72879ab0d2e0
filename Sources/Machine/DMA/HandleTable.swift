// Handles: small numbers that a client has for what the daemon keeps for it.

/// Values by handle.
///
/// A handle that was given back may be given out again.
struct HandleTable<Value> {
    private var values: [Value?] = []
    private(set) var count = 0
    let countMax: Int

    init(countMax: Int) { self.countMax = countMax }

    /// The value of a handle; nil where there is none.
    ///
    /// Handles start at 1: a field left 0 is none.
    subscript(handle: UInt32) -> Value? {
        guard handle > 0, let index = Int(exactly: handle - 1), index < values.count else { return nil }
        return values[index]
    }

    /// Replaces the value of a handle that is given out.
    mutating func update(_ handle: UInt32, to value: Value) {
        precondition(self[handle] != nil, "no such handle")
        values[Int(handle) - 1] = value
    }

    /// Gives out a handle; nil where there are as many as there may be.
    mutating func insert(_ value: Value) -> UInt32? {
        guard count < countMax else { return nil }
        count += 1
        if let index = values.firstIndex(where: { $0 == nil }) {
            values[index] = value
            return UInt32(index + 1)
        }
        values.append(value)
        return UInt32(values.count)
    }

    /// Takes a handle back.
    mutating func remove(_ handle: UInt32) -> Value? {
        guard let value = self[handle] else { return nil }
        values[Int(handle) - 1] = nil
        count -= 1
        return value
    }
}
