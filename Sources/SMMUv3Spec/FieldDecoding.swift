// How words are taken apart for people: named fields with their bits, value and meaning.

import BitFields

/// One field of a register, structure, command, event or descriptor, with what it holds.
public struct DecodedField: Hashable, Sendable {
    /// The name as the specification spells it, such as `S1ContextPtr`.
    public let name: String
    /// The highest bit, counted across the whole structure: bit 0 of the second 64-bit word is 64.
    public let high: Int
    /// The lowest bit.
    public let low: Int
    /// What the field holds: right-aligned, but of an address field the address.
    public let value: UInt64
    /// What that stands for, in short words such as `4 KiB`; nil where there is nothing to say.
    public let meaning: String?

    public init(name: String, high: Int, low: Int, value: UInt64, meaning: String?) {
        self.name = name
        self.high = high
        self.low = low
        self.value = value
        self.meaning = meaning
    }
}

extension DecodedField: CustomStringConvertible {
    /// Such as `Config [3:1] = 0x5 (stage 1)`.
    public var description: String {
        let bits = high == low ? "[\(high)]" : "[\(high):\(low)]"
        let value = "0x" + String(value, radix: 16)
        return "\(name) \(bits) = \(value)" + (meaning.map { " (\($0))" } ?? "")
    }
}

/// A word or structure that can be shown field by field.
public protocol FieldDecodable {
    /// The fields that mean something in what this holds, by bit number.
    var fields: [DecodedField] { get }
}

/// Where a field is and how its values read.
public struct FieldLayout: Sendable {
    /// The name as the specification spells it.
    public let name: String
    /// The highest bit, counted across the whole structure.
    public let high: Int
    /// The lowest bit.
    public let low: Int
    /// Whether the field holds bits high to low of an address, left where they are.
    public let isAddress: Bool
    /// Whether it belongs to an extension, so that it is only worth showing where it is not zero.
    public let isOptional: Bool
    let meaning: Meaning

    /// A field of one bit.
    static func bit(_ name: String, _ index: Int, _ meaning: Meaning = .none, isOptional: Bool = false)
        -> Self
    {
        Self(name: name, high: index, low: index, isAddress: false, isOptional: isOptional, meaning: meaning)
    }

    /// A number or an encoding.
    static func field(
        _ name: String,
        _ high: Int,
        _ low: Int,
        _ meaning: Meaning = .none,
        isOptional: Bool = false
    ) -> Self {
        Self(name: name, high: high, low: low, isAddress: false, isOptional: isOptional, meaning: meaning)
    }

    /// Bits high to low of an address, left where they are in their 64-bit word.
    static func address(_ name: String, _ high: Int, _ low: Int, isOptional: Bool = false) -> Self {
        Self(name: name, high: high, low: low, isAddress: true, isOptional: isOptional, meaning: .none)
    }

    /// The field of `word`, which is the 64-bit word of the structure that it lies in.
    fileprivate func decode(_ word: UInt64) -> DecodedField? {
        let bits = (low & 63)...(high & 63)
        let value = isAddress ? word[address: bits] : word[bits: bits]
        guard value != 0 || !isOptional else { return nil }
        return DecodedField(name: name, high: high, low: low, value: value, meaning: meaning.text(for: value))
    }
}

extension [FieldLayout] {
    /// These fields of a word.
    func decode(_ word: UInt64) -> [DecodedField] { compactMap { $0.decode(word) } }

    /// These fields of a structure.
    func decode<Words: SIMD>(_ words: Words) -> [DecodedField] where Words.Scalar == UInt64 {
        compactMap { $0.decode(words[$0.low >> 6]) }
    }
}

extension RegisterWord {
    /// Every field; those of extensions only where not zero.
    public var fields: [DecodedField] { Self.layout.decode(UInt64(truncatingIfNeeded: rawValue)) }
}
