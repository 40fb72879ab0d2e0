// What must be on a disk, by what its writers reported.

/// What is known of a disk's blocks.
///
/// A file's content does not go back: what was seen once is there, or what was written later.
package struct DiskRecord: Sendable {
    private enum Known: Sendable {
        /// Never written: zeros.
        case zeros
        /// This write, or a later one.
        case atLeast(WriteStamp)
        /// Anything: its writer took the bytes away while they were written.
        case anything
    }

    private let seed: UInt64
    private var known = [Known](repeating: .zeros, count: Int(WritePlan.blockCount))

    /// A disk of zeros, whose writers' plans are of this seed.
    package init(seed: UInt64) { self.seed = seed }

    /// Takes what a run reported, and compares the disk with all that is known.
    ///
    /// - Parameters:
    ///   - bytes: The disk's, from its start on.
    ///   - run: The last run that wrote.
    ///   - flushed: The last of its writes whose flush was acknowledged; nil where none was.
    ///   - tookMemoryAway: Whether the writer may have truncated its memory: blocks that it was writing then can hold
    ///     anything.
    /// - Returns: What is wrong, a line for each block.
    package mutating func check(
        _ bytes: [UInt8],
        run: UInt32,
        flushed: UInt64?,
        tookMemoryAway: Bool = false
    ) -> [String] {
        let plan = WritePlan(seed: seed, run: run)
        if let flushed {
            for write in 0...flushed {
                for number in plan[write].blocks {
                    known[Int(number)] = .atLeast(WriteStamp(run: run, write: write))
                }
            }
        }
        let unflushed = plan.unflushed(after: flushed)
        if tookMemoryAway {
            for number in unflushed.flatMap({ plan[$0].blocks }) { known[Int(number)] = .anything }
        }
        let last = WriteStamp(run: run, write: unflushed.upperBound)
        guard bytes.count >= known.count * JournalBlock.byteCount else { return ["the disk is too short"] }
        return known.indices.compactMap { number in
            let start = number * JournalBlock.byteCount
            return check(number, bytes[start..<(start + JournalBlock.byteCount)], last)
        }
    }

    private mutating func check(_ number: Int, _ bytes: ArraySlice<UInt8>, _ last: WriteStamp) -> String? {
        guard let block = JournalBlock(bytes) else {
            switch known[number] {
            case .anything: return nil
            case .zeros:
                return bytes.allSatisfy { $0 == 0 } ? nil : "block \(number): neither zeros nor one write's"
            case .atLeast(let stamp): return "block \(number): torn, or lost since \(stamp)"
            }
        }
        let stamp = block.stamp
        guard block.number == UInt64(number) else { return "block \(number): holds block \(block.number)" }
        guard WritePlan(seed: seed, run: stamp.run)[stamp.write].blocks.contains(UInt64(number)) else {
            return "block \(number): \(stamp) did not write it"
        }
        guard stamp <= last else { return "block \(number): \(stamp), which had not been begun: \(last)" }
        if case .atLeast(let least) = known[number], stamp < least {
            return "block \(number): \(stamp), older than \(least), which was flushed or seen"
        }
        known[number] = .atLeast(stamp)
        return nil
    }
}
