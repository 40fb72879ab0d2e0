// Fields of words, numbered as specifications number them: closed ranges, high bit included.

extension FixedWidthInteger where Self: UnsignedInteger {
    /// The bit numbered `index`.
    ///
    /// - Parameter index: A bit number below `bitWidth`. Ours to get right, so it is not checked beyond the
    ///   shift's own masking.
    @inlinable
    public subscript(bit index: Int) -> Bool {
        get { (self &>> Self(truncatingIfNeeded: index)) & 1 != 0 }
        set {
            let mask = Self(1) &<< Self(truncatingIfNeeded: index)
            if newValue { self |= mask } else { self &= ~mask }
        }
    }

    /// The field `[low...high]`, right-aligned: `word[bits: 10...6]` is not a range, `word[bits: 6...10]` is.
    ///
    /// Setting a value that is wider than the field traps: only our own code encodes, and a truncated field is
    /// a wrong field. What a guest or a peer wrote is only ever read.
    @inlinable
    public subscript(bits field: ClosedRange<Int>) -> Self {
        get {
            let width = field.upperBound &- field.lowerBound &+ 1
            let mask = Self.max &>> Self(truncatingIfNeeded: Self.bitWidth &- width)
            return (self &>> Self(truncatingIfNeeded: field.lowerBound)) & mask
        }
        set {
            let width = field.upperBound &- field.lowerBound &+ 1
            let mask = Self.max &>> Self(truncatingIfNeeded: Self.bitWidth &- width)
            precondition(newValue & ~mask == 0, "value wider than its field")
            let shift = Self(truncatingIfNeeded: field.lowerBound)
            self = (self & ~(mask &<< shift)) | (newValue &<< shift)
        }
    }

    /// A word with ones in `[low...high]` and zeros elsewhere.
    @inlinable
    public static func mask(_ field: ClosedRange<Int>) -> Self {
        let width = field.upperBound &- field.lowerBound &+ 1
        return (Self.max &>> Self(truncatingIfNeeded: Self.bitWidth &- width))
            &<< Self(truncatingIfNeeded: field.lowerBound)
    }

    /// Whether this is a multiple of `alignment`, which must be a power of two.
    @inlinable
    public func isMultiple(ofPowerOfTwo alignment: Self) -> Bool {
        self & (alignment &- 1) == 0
    }

    /// This value with every bit below `alignment`, a power of two, cleared.
    @inlinable
    public func roundedDown(toPowerOfTwo alignment: Self) -> Self {
        self & ~(alignment &- 1)
    }
}
