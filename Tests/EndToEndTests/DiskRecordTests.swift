// What finds out damaged disks finds out damaged disks.

import DiskJournal
import Testing

struct DiskRecordTests {
    private let seed: UInt64 = 5
    private let plan = WritePlan(seed: 5, run: 1)

    /// A disk after the writes 0 to `last` of run 1.
    private func disk(upTo last: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(WritePlan.blockCount) * 512)
        for write in 0...last { put(write, &bytes) }
        return bytes
    }

    private func put(_ write: UInt64, _ bytes: inout [UInt8]) {
        let start = Int(plan[write].blocks.lowerBound) * 512
        let data = plan.bytes(of: write)
        bytes.replaceSubrange(start..<(start + data.count), with: data)
    }

    private func complaints(_ bytes: [UInt8], flushed: UInt64?) -> [String] {
        var record = DiskRecord(seed: seed)
        return record.check(bytes, run: 1, flushed: flushed)
    }

    @Test func aDiskThatHoldsWhatWasFlushedIsGood() {
        #expect(complaints(disk(upTo: 40), flushed: 40) == [])
        #expect(complaints([UInt8](repeating: 0, count: Int(WritePlan.blockCount) * 512), flushed: nil) == [])
        // What was not flushed can be there too.
        #expect(complaints(disk(upTo: plan.unflushed(after: 40).upperBound), flushed: 40) == [])
    }

    @Test func oneLostBlockOfAFlushedWriteIsFound() {
        var bytes = disk(upTo: 40)
        let number = Int(plan[40].blocks.lowerBound)
        bytes.replaceSubrange((number * 512)..<(number * 512 + 512), with: [UInt8](repeating: 0, count: 512))
        #expect(complaints(bytes, flushed: 40).count == 1)
    }

    @Test func anOlderWriteWhereANewerWasFlushedIsFound() throws {
        // The first write that lies over the first blocks of an earlier one.
        let later = try #require(
            (1...200).first { write in
                (0..<UInt64(write)).contains { plan[$0].blocks.overlaps(plan[UInt64(write)].blocks) }
            }
        )
        let earlier = try #require(
            (0..<UInt64(later)).first { plan[$0].blocks.overlaps(plan[UInt64(later)].blocks) }
        )
        var bytes = disk(upTo: UInt64(later))
        #expect(complaints(bytes, flushed: UInt64(later)) == [])
        put(earlier, &bytes)
        let shared = plan[earlier].blocks.clamped(to: plan[UInt64(later)].blocks)
        #expect(complaints(bytes, flushed: UInt64(later)).count == shared.count)
    }

    @Test func aTornBlockIsFoundWhereverItIsTorn() {
        var bytes = disk(upTo: 3)
        let start = Int(plan[3].blocks.lowerBound) * 512
        let other = JournalBlock(stamp: WriteStamp(run: 1, write: 2), number: UInt64(start / 512)).bytes
        for cut in [8, 256, 504] {
            bytes.replaceSubrange((start + cut)..<(start + 512), with: other[cut...])
            #expect(complaints(bytes, flushed: 3).count == 1, "torn at byte \(cut)")
            put(3, &bytes)
        }
    }

    @Test func aBlockAtTheWrongPlaceAndOneOfTheFutureAreFound() {
        var bytes = disk(upTo: 3)
        let number = Int(plan[3].blocks.lowerBound)
        let wrong = JournalBlock(stamp: WriteStamp(run: 1, write: 3), number: UInt64(number ^ 1)).bytes
        bytes.replaceSubrange((number * 512)..<(number * 512 + 512), with: wrong)
        #expect(complaints(bytes, flushed: 3).count == 1)
        let last = plan.unflushed(after: 3).upperBound
        let future = disk(upTo: last + 1)
        #expect(complaints(future, flushed: 3).count == plan[last + 1].blocks.count)
    }

    @Test func whatWasSeenOnceMayNotGoBack() {
        var record = DiskRecord(seed: seed)
        let last = plan.unflushed(after: nil).upperBound
        #expect(record.check(disk(upTo: last), run: 1, flushed: nil) == [])
        #expect(
            record.check([UInt8](repeating: 0, count: Int(WritePlan.blockCount) * 512), run: 1, flushed: nil)
                != []
        )
    }
}
