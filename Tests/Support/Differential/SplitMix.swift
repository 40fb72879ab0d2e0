// The source of every random choice: one number gives one sequence, on any machine.

import SeededRandomness

extension SplitMix {
    /// True in so many of a hundred.
    mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }

    /// 0..<bound.
    mutating func below(_ bound: UInt64) -> UInt64 { next() % bound }

    /// One of them.
    mutating func pick<Value>(_ values: [Value]) -> Value { values[Int(next() % UInt64(values.count))] }

    /// A number that has `count` bits.
    mutating func bits(_ count: Int) -> UInt64 { count >= 64 ? next() : next() & ((1 << UInt64(count)) - 1) }
}
