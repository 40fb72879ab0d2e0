// The source of every random choice: one number gives one sequence, on any machine.

/// SplitMix64.
struct SplitMix: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ (word >> 30)) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ (word >> 27)) &* 0x94D0_49BB_1331_11EB
        return word ^ (word >> 31)
    }

    /// True in so many of a hundred.
    mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }

    /// 0..<bound.
    mutating func below(_ bound: UInt64) -> UInt64 { next() % bound }

    /// One of them.
    mutating func pick<Value>(_ values: [Value]) -> Value { values[Int(next() % UInt64(values.count))] }

    /// A number that has `count` bits.
    mutating func bits(_ count: Int) -> UInt64 { count >= 64 ? next() : next() & ((1 << UInt64(count)) - 1) }
}
