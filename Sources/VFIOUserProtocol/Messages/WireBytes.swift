// Little-endian words in arrays of bytes: what every message is made of.
//
// The specification says host byte order, and every host that this runs on is little-endian.

extension Array<UInt8> {
    /// The word at a byte offset; nil where it is not all there.
    func word<Word: FixedWidthInteger & UnsignedInteger>(at offset: Int, as _: Word.Type = Word.self) -> Word?
    {
        let width = Word.bitWidth / 8
        guard offset >= 0, count >= width, offset <= count - width else { return nil }
        var word: Word = 0
        for index in 0..<width { word |= Word(self[offset + index]) &<< Word(truncatingIfNeeded: index * 8) }
        return word
    }

    /// Adds a word at the end.
    mutating func append<Word: FixedWidthInteger & UnsignedInteger>(word: Word) {
        for shift in stride(from: 0, to: Word.bitWidth, by: 8) {
            append(UInt8(truncatingIfNeeded: word &>> Word(truncatingIfNeeded: shift)))
        }
    }
}

/// A payload, or the start of one, whose fields stand at fixed offsets.
package protocol VFIOUserFixedPayload: Equatable, Sendable {
    /// How many bytes the fields take.
    static var byteCount: Int { get }

    /// Reads the fields from the start of a payload; nil where it is too short.
    init?(_ payload: [UInt8])

    /// Adds the fields to the end of a message.
    func append(to bytes: inout [UInt8])
}

extension VFIOUserFixedPayload {
    /// The fields as bytes.
    package var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Self.byteCount)
        append(to: &bytes)
        return bytes
    }
}
