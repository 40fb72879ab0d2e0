// What is wrong in a structure block that libfdt does not survive.

extension FlattenedDeviceTree {
    /// Whether a property of the structure block says that it is longer than what is left of the blob.
    ///
    /// libfdt 1.6 adds such a length to a 32-bit offset: one of 2^32 - 12 leads back to the property itself, and its
    /// own check never ends. Whatever else is wrong is left to that check, which this stops before.
    ///
    /// - Parameter bytes: A blob of version 16 or 17 with a whole header.
    static func hasEndlessProperty(_ bytes: [UInt8]) -> Bool {
        func word(_ offset: Int) -> Int? {
            guard offset >= 0, offset <= bytes.count - 4 else { return nil }
            return bytes[offset..<offset + 4].reduce(0) { $0 << 8 | Int($1) }
        }
        guard let start = word(8) else { return false }
        // Tokens are aligned to where the block starts.
        var offset = 0
        while let token = word(start + offset) {
            offset += 4
            switch token {
            case 1:
                // FDT_BEGIN_NODE, and its name.
                guard let end = bytes[min(start + offset, bytes.count)...].firstIndex(of: 0) else {
                    return false
                }
                offset = (end + 1 - start + 3) & ~3
            case 3:
                // FDT_PROP: the value's length, where the name is, the value.
                guard let count = word(start + offset) else { return false }
                guard count <= bytes.count - start - offset else { return true }
                offset = (offset + 8 + count + 3) & ~3
            case 2, 4:
                // FDT_END_NODE, FDT_NOP.
                break
            default:
                return false
            }
        }
        return false
    }
}
