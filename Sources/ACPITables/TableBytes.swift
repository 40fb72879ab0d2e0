// A table's bytes: little-endian words at any alignment, and zeros where the table has ended.

/// The bytes of an ACPI table.
struct TableBytes {
    private let bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }

    var count: Int { bytes.count }

    func byte(at offset: Int) -> UInt8 {
        guard offset >= 0, offset < bytes.count else { return 0 }
        return bytes[bytes.startIndex + offset]
    }

    /// Tables have words at odd places: a node's length follows its one byte of type.
    private func word<Word: FixedWidthInteger & UnsignedInteger>(at offset: Int) -> Word {
        var value: Word = 0
        for index in 0..<(Word.bitWidth / 8) {
            value |= Word(byte(at: offset + index)) &<< Word(truncatingIfNeeded: 8 * index)
        }
        return value
    }

    func uint16(at offset: Int) -> UInt16 { word(at: offset) }
    func uint32(at offset: Int) -> UInt32 { word(at: offset) }
    func uint64(at offset: Int) -> UInt64 { word(at: offset) }

    /// The bytes from `offset` on, `count` of them or as many as there are.
    func slice(at offset: Int, count: Int) -> ArraySlice<UInt8> {
        guard offset >= 0, offset < bytes.count, count > 0 else { return [] }
        return bytes.dropFirst(offset).prefix(count)
    }

    /// The sum of all bytes modulo 256: 0 for a table whose checksum is right.
    var sum: UInt8 { bytes.reduce(0, &+) }
}
