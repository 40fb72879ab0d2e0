// Bits of structures, numbered as the specification numbers them: across all of a structure's 64-bit words.

import BitFields

/// A register as a typed word: any value can be held and read, reserved bits included.
public protocol RegisterWord: FieldDecodable, Hashable, Sendable {
    /// `UInt32` or `UInt64`, as wide as the register.
    associatedtype RawValue: FixedWidthInteger & UnsignedInteger & Sendable

    /// The register's bits.
    var rawValue: RawValue { get set }

    /// Every field, by bit number.
    static var layout: [FieldLayout] { get }

    init(rawValue: RawValue)
}

extension RegisterWord {
    /// All zero.
    public init() { self.init(rawValue: 0) }
}

extension UInt64 {
    /// The address field `[low...high]`, with its bits left where they are.
    ///
    /// The field holds bits high to low of the address. Setting drops what lies outside the field.
    subscript(address field: ClosedRange<Int>) -> UInt64 {
        get { self & UInt64.mask(field) }
        set {
            let mask = UInt64.mask(field)
            self = (self & ~mask) | (newValue & mask)
        }
    }
}

extension SIMD where Scalar == UInt64 {
    /// The bit numbered `index`, bit 0 of word 1 being number 64.
    subscript(bit index: Int) -> Bool {
        get { self[index >> 6][bit: index & 63] }
        set { self[index >> 6][bit: index & 63] = newValue }
    }

    /// The field `[low...high]`, right-aligned; it must lie within one word.
    ///
    /// Setting a value that is wider than the field traps, as in `BitFields`: only our own code encodes.
    subscript(bits field: ClosedRange<Int>) -> UInt64 {
        get { self[field.lowerBound >> 6][bits: field.withinWord] }
        set { self[field.lowerBound >> 6][bits: field.withinWord] = newValue }
    }

    /// The address field `[low...high]`, with its bits left where they are in their word.
    subscript(address field: ClosedRange<Int>) -> UInt64 {
        get { self[field.lowerBound >> 6][address: field.withinWord] }
        set { self[field.lowerBound >> 6][address: field.withinWord] = newValue }
    }
}

extension ClosedRange<Int> {
    /// This range of a structure's bits as a range of its word's bits.
    fileprivate var withinWord: ClosedRange<Int> { (lowerBound & 63)...(upperBound & 63) }
}
