// How numbers and bytes are spelled in JSON: words as hex strings, counts as numbers, bytes as base64.

import FoundationEssentials

/// A number as a person or a script writes it: decimal or `0x` hexadecimal, `_` between digits allowed.
package enum NumberText {
    /// The value of `text`, or nil where it is no unsigned number of at most 64 bits.
    ///
    /// With `allowsSizeSuffix`, a last letter K, M, G or T (also KiB, MiB, …) multiplies a decimal number by
    /// 2^10, 2^20, 2^30 or 2^40.
    package static func value(of text: some StringProtocol, allowsSizeSuffix: Bool = false) -> UInt64? {
        var digits = text.lowercased()
        if digits.hasPrefix("0x") {
            digits.removeFirst(2)
            return plainValue(of: digits, radix: 16)
        }
        let scale = allowsSizeSuffix ? removeSizeSuffix(from: &digits) : 0
        guard let value = plainValue(of: digits, radix: 10) else { return nil }
        guard value <= UInt64.max &>> UInt64(scale) else { return nil }
        return value &<< UInt64(scale)
    }

    private static func plainValue(of digits: String, radix: Int) -> UInt64? {
        // `UInt64("+5")` is 5; a sign is not ours to accept.
        guard let first = digits.first, first.isHexDigit else { return nil }
        return UInt64(digits.filter { $0 != "_" }, radix: radix)
    }

    /// Takes a size suffix off the end; the answer is its power of two.
    private static func removeSizeSuffix(from text: inout String) -> Int {
        for (letter, scale) in [("k", 10), ("m", 20), ("g", 30), ("t", 40)] {
            for suffix in [letter + "ib", letter] where text.hasSuffix(suffix) {
                text.removeLast(suffix.count)
                return scale
            }
        }
        return 0
    }
}

/// An address, a register's word, a StreamID, a SubstreamID or an event number: `"0x2b400000"` in JSON.
///
/// Read from a hex string, a decimal string or a JSON number.
package struct Hex: Hashable, Sendable, Codable, ExpressibleByIntegerLiteral, CustomStringConvertible {
    package var value: UInt64

    package init(_ value: some FixedWidthInteger & UnsignedInteger) { self.value = UInt64(value) }
    package init(integerLiteral value: UInt64) { self.value = value }

    package init(from decoder: any Decoder) throws {
        value = try decodeNumber(from: decoder, expected: "a hex string such as \"0x1000\", or a number")
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }

    /// `0x` and lower-case digits, no leading zeros.
    package var description: String { "0x" + String(value, radix: 16) }
}

/// A length, an alignment or a count: a number in JSON.
///
/// Read from a JSON number, a hex string or a decimal string.
package struct Size: Hashable, Sendable, Codable, ExpressibleByIntegerLiteral, CustomStringConvertible {
    package var value: UInt64

    package init(_ value: some FixedWidthInteger & UnsignedInteger) { self.value = UInt64(value) }
    package init(integerLiteral value: UInt64) { self.value = value }

    package init(from decoder: any Decoder) throws {
        value = try decodeNumber(from: decoder, expected: "a number, or a hex string such as \"0x1000\"")
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(value)
    }

    package var description: String { String(value) }
}

private func decodeNumber(from decoder: any Decoder, expected: String) throws -> UInt64 {
    let container = try decoder.singleValueContainer()
    if let text = try? container.decode(String.self) {
        if let value = NumberText.value(of: text) { return value }
    } else if let value = try? container.decode(UInt64.self) {
        return value
    }
    throw DecodingError.dataCorruptedError(
        in: container,
        debugDescription: "expected \(expected), from 0 to 2^64 - 1"
    )
}

/// Bytes: a base64 string in JSON.
///
/// Read from base64, or from `hex:` and pairs of hex digits, blanks between them allowed: the colon is outside
/// base64's alphabet, so the two cannot be taken for one another.
package struct ByteString: Hashable, Sendable, Codable {
    package var bytes: [UInt8]

    package init(_ bytes: [UInt8]) { self.bytes = bytes }

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let text = try container.decode(String.self)
        let decoded: [UInt8]?
        if text.hasPrefix("hex:") {
            decoded = Self.bytes(hexDigits: text.dropFirst(4))
        } else {
            decoded = Data(base64Encoded: text).map { [UInt8]($0) }
        }
        guard let decoded else {
            throw DecodingError.dataCorruptedError(
                in: container,
                debugDescription: "expected base64, or \"hex:\" and pairs of hex digits"
            )
        }
        bytes = decoded
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(Data(bytes).base64EncodedString())
    }

    /// The bytes of pairs of hex digits with blanks anywhere between pairs, or nil.
    package static func bytes(hexDigits text: some StringProtocol) -> [UInt8]? {
        var bytes: [UInt8] = []
        var high: UInt8?
        for character in text.utf8 {
            if character == UInt8(ascii: " ") || character == UInt8(ascii: "\n"), high == nil { continue }
            guard let digit = hexDigit(character) else { return nil }
            if let upper = high {
                bytes.append(upper << 4 | digit)
                high = nil
            } else {
                high = digit
            }
        }
        return high == nil ? bytes : nil
    }

    private static func hexDigit(_ character: UInt8) -> UInt8? {
        switch character {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): character - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): character - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
