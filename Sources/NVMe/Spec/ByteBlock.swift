// Data structures as bytes, little-endian.

/// A block of bytes that is zeros but for what is set; offsets are ours, and right.
struct ByteBlock {
    private(set) var bytes: [UInt8]

    init(byteCount: Int) { bytes = Array(repeating: 0, count: byteCount) }

    mutating func set(_ value: UInt64, at offset: Int, byteCount: Int) {
        for index in 0..<byteCount {
            // Counters of 16 bytes are set to values of 8.
            bytes[offset + index] = index < 8 ? UInt8(truncatingIfNeeded: value &>> UInt64(8 * index)) : 0
        }
    }

    /// ASCII, padded with `padding`.
    mutating func set(_ text: String, at offset: Int, byteCount: Int, padding: UInt8) {
        let utf8 = Array(text.utf8.prefix(byteCount))
        for index in 0..<byteCount { bytes[offset + index] = index < utf8.count ? utf8[index] : padding }
    }

    mutating func set(_ values: [UInt8], at offset: Int) {
        bytes.replaceSubrange(offset..<offset + values.count, with: values)
    }
}
