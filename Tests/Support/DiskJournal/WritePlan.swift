// Which blocks a writer writes, and when it flushes: known beforehand to whoever has the seed.

/// The writes of one run, in their order.
package struct WritePlan: Sendable {
    /// One write.
    package struct Write: Equatable, Sendable {
        /// Which blocks of 512 bytes.
        package var blocks: Range<UInt64>
        /// Whether a flush follows it.
        package var isFlushed: Bool
    }

    /// All writes are to the blocks below this.
    package static let blockCount: UInt64 = 256
    /// How many blocks one write has at most.
    package static let writeBlockCountMax: UInt64 = 16
    /// How many writes one flush is for, at most.
    package static let flushedWriteCountMax: UInt64 = 8

    package let seed: UInt64
    package let run: UInt32

    package init(seed: UInt64, run: UInt32) {
        self.seed = seed
        self.run = run
    }

    package subscript(write: UInt64) -> Write {
        let word = JournalBlock.mixed(JournalBlock.mixed(seed ^ UInt64(run) << 32) &+ write)
        let count = 1 + word % Self.writeBlockCountMax
        let first = (word >> 16) % (Self.blockCount - count + 1)
        let isLast = write % Self.flushedWriteCountMax == Self.flushedWriteCountMax - 1
        return Write(blocks: first..<(first + count), isFlushed: isLast || word >> 62 == 0)
    }

    /// The bytes of one write.
    package func bytes(of write: UInt64) -> [UInt8] {
        self[write].blocks.flatMap {
            JournalBlock(stamp: WriteStamp(run: run, write: write), number: $0).bytes
        }
    }

    /// The writes that may have been begun where all up to `write` were flushed and no later flush was reported.
    ///
    /// - Parameter write: The last that was flushed; nil where none was.
    package func unflushed(after write: UInt64?) -> ClosedRange<UInt64> {
        let first = write.map { $0 + 1 } ?? 0
        var last = first
        while !self[last].isFlushed { last += 1 }
        return first...last
    }
}
