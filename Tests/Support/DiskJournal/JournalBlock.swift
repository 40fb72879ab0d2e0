// A block of a disk that says which write it is of.

/// A write's place in the order of all writes to a disk: runs of a writer one after the other, then its writes.
package struct WriteStamp: Hashable, Comparable, Sendable {
    /// Which run of a writer.
    package var run: UInt32
    /// Which write of the run, from 0 on.
    package var write: UInt64

    package init(run: UInt32, write: UInt64) {
        self.run = run
        self.write = write
    }

    package static func < (one: Self, other: Self) -> Bool { (one.run, one.write) < (other.run, other.write) }
}

extension WriteStamp: CustomStringConvertible {
    package var description: String { "write \(write) of run \(run)" }
}

/// 512 bytes, every one of which follows from the write and the block's number on the disk.
///
/// 64 little-endian doublewords: a mark, the run, the write, the block's number, and then numbers that follow from
/// these. So bytes of two writes in one block, or of another block, are found out.
package struct JournalBlock: Hashable, Sendable {
    package static let byteCount = 512
    private static let mark: UInt64 = 0x6b63_6f6c_625f_6b64

    package var stamp: WriteStamp
    /// The block's number on the disk, in blocks of 512 bytes.
    package var number: UInt64

    package init(stamp: WriteStamp, number: UInt64) {
        self.stamp = stamp
        self.number = number
    }

    /// What is on the disk.
    package var bytes: [UInt8] {
        var words = [Self.mark, UInt64(stamp.run), stamp.write, number]
        var state = Self.mixed(UInt64(stamp.run) << 32 ^ stamp.write) ^ Self.mixed(~number)
        while words.count < Self.byteCount / 8 {
            state &+= 0x9e37_79b9_7f4a_7c15
            words.append(Self.mixed(state))
        }
        return words.flatMap { word in withUnsafeBytes(of: word.littleEndian) { Array($0) } }
    }

    /// Reads one back; nil where these are not the bytes of one write to one block.
    package init?(_ bytes: some Collection<UInt8>) {
        let bytes = Array(bytes)
        guard bytes.count == Self.byteCount else { return nil }
        let head = bytes.withUnsafeBytes { buffer in
            (0..<4).map {
                UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: 8 * $0, as: UInt64.self))
            }
        }
        guard head[0] == Self.mark, let run = UInt32(exactly: head[1]) else { return nil }
        self.init(stamp: WriteStamp(run: run, write: head[2]), number: head[3])
        guard self.bytes == bytes else { return nil }
    }

    /// SplitMix64's last step: neighbouring words become unlike.
    static func mixed(_ word: UInt64) -> UInt64 {
        var word = word
        word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
        return word ^ (word >> 31)
    }
}

/// FNV-1a of bytes that come in pieces.
package struct Checksum: Sendable {
    package private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    package init() {}

    package mutating func add(_ bytes: some Sequence<UInt8>) {
        for byte in bytes { value = (value ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
    }
}
