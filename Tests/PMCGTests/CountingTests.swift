// What is counted, and what is not.

import AddressSpace
import DeviceModel
import PMCG
import Testing

@Suite("What a counter counts")
struct CountingTests {
    @Test("a counter counts its event while CR.E and its CNTEN are set, whatever the rest counts")
    func enables() throws {
        let test = TestGroup()
        try test.start(2, event: 2)
        test.source.happen(.tlbMiss)
        test.source.happen(.transaction)
        #expect(try test.counter(2) == 1)
        try test.write(0xC20, 1 << 2, .doubleword)
        test.group.count(.tlbMiss, StreamID(0), 1)
        #expect(try test.counter(2) == 1, "CNTEN is clear")
        try test.write(0xC00, 1 << 2, .doubleword)
        try test.write(0xE04, 0)
        test.group.count(.tlbMiss, StreamID(0), 1)
        #expect(try test.counter(2) == 1, "CR.E is clear")
        try test.write(0xE04, 1)
        test.source.happen(.tlbMiss, 5, 40)
        #expect(try test.counter(2) == 41)
        for index in UInt64(0)..<8 where index != 2 { #expect(try test.counter(index) == 0) }
    }

    @Test("the SMMU is asked for exactly the events that counters count, and for none when they stop")
    func askedFor() throws {
        let test = TestGroup()
        try test.start(0, event: 1)
        try test.start(1, event: 4)
        try test.start(2, event: 4)
        try test.start(3, event: 0)
        // Neither has this group: an ATS event of an SMMU without ATS, and an event of somebody's own.
        try test.start(4, event: 6)
        try test.start(5, event: 0x80)
        #expect(test.source.history == [0b00010, 0b10010])
        try test.write(0xC20, 0b10, .doubleword)
        #expect(test.source.history.count == 2, "counter 2 still counts it")
        try test.write(0x408, 5 | 1 << 29)
        #expect(test.source.history.last == 0b100010)
        try test.write(0xE04, 0)
        #expect(test.source.history.last == 0)
        try test.write(0xE04, 1)
        test.group.stop()
        #expect(test.source.history.last == 0)
    }

    @Test("events that the group has not are not counted")
    func unknownEvents() throws {
        let test = TestGroup()
        try test.start(0, event: 6)
        try test.start(1, event: 0xFFFF)
        for event in SMMUPerformanceEvent.allCases where event != .clockCycle {
            test.source.happen(event, 0, 100)
        }
        #expect(try test.counter(0) == 0)
        #expect(try test.counter(1) == 0)
    }

    @Test(
        "StreamID filters: exact, a span by its lowest clear bit, one state's streams, all",
        arguments: [
            (false, 0x42, 0x42, true), (false, 0x42, 0x43, false), (false, 0, 0, true), (false, 0, 1, false),
            (false, 0xFFFF, 0xFFFF, true), (false, 0xFFFF, 0xFFFE, false),
            // 0x42 ignores bit 0: what Linux gives as its example.
            (true, 0x42, 0x42, true), (true, 0x42, 0x43, true), (true, 0x42, 0x41, false),
            (true, 0x42, 0x44, false),
            // The specification's three examples, cut to 16 bits.
            (true, 0xF7F7, 0xF7F0, true), (true, 0xF7F7, 0xF7FF, true), (true, 0xF7F7, 0xF7E0, false),
            (true, 0xF7F6, 0xF7F6, true), (true, 0xF7F6, 0xF7F7, true), (true, 0xF7F6, 0xF7F5, false),
            (true, 0xF5FF, 0xF400, true), (true, 0xF5FF, 0xF7FF, true), (true, 0xF5FF, 0xF800, false),
            // All ones but the top bit; all ones; and all ones of the 32 bits that Linux writes.
            (true, 0x7FFF, 0, true), (true, 0x7FFF, 0xFFFF, true), (true, 0xFFFF, 0x1234, true),
            (true, 0xFFFF_FFFF, 0x1234, true),
            // StreamIDs that SIDSIZE has no room for: only a filter that lets everything through.
            (true, 0xFFFF_FFFF, 0x1_0042, true), (false, 0x42, 0x1_0042, false),
            (true, 0x42, 0x1_0042, false),
            (true, 0x7FFF, 0x1_0042, false),
        ] as [(Bool, UInt64, UInt32, Bool)]
    )
    func filters(_ isSpan: Bool, _ pattern: UInt64, _ streamID: UInt32, _ isCounted: Bool) throws {
        for hasGlobalFilter in [false, true] {
            let test = TestGroup { $0.hasGlobalFilter = hasGlobalFilter }
            // With one filter for all, counter 3 has counter 0's.
            try test.start(hasGlobalFilter ? 0 : 3, event: 1, isSpan: isSpan, stream: pattern)
            if hasGlobalFilter {
                try test.write(0x40C, 1)
                try test.write(0xC00, 1 << 3, .doubleword)
            }
            test.source.happen(.transaction, streamID, 3)
            #expect(try test.counter(3) == (isCounted ? 3 : 0))
        }
    }

    @Test("32 bits of StreamID are compared to the last")
    func wideFilters() throws {
        let test = TestGroup { $0.streamIDBits = 32 }
        try test.start(0, event: 1, isSpan: false, stream: 0x8000_0001)
        try test.start(1, event: 1, isSpan: true, stream: 0x7FFF_FFFF)
        try test.start(2, event: 1, isSpan: true, stream: 0xFFFF_0FFF)
        for streamID: UInt32 in [0x8000_0001, 0x0000_0001, 0xFFFF_0000, 0xFFFF_1FFF, 0xFFFF_2000] {
            test.source.happen(.transaction, streamID)
        }
        #expect(try (test.counter(0), test.counter(1), test.counter(2)) == (1, 5, 2))
    }

    @Test("filters do not share: each counter has its own")
    func filterOfEach() throws {
        let test = TestGroup()
        for index in UInt64(0)..<8 { try test.start(index, event: 1, isSpan: false, stream: index) }
        for streamID in UInt32(0)..<8 { test.source.happen(.transaction, streamID, UInt64(streamID) + 1) }
        for index in UInt64(0)..<8 { #expect(try test.counter(index) == index + 1) }
    }

    @Test("threads that count at once lose nothing")
    func concurrency() async throws {
        let test = TestGroup()
        try test.start(0, event: 1)
        try test.start(1, event: 1, isSpan: false, stream: 2)
        let source = test.source
        await withTaskGroup(of: Void.self) { tasks in
            for task in UInt32(0)..<4 {
                tasks.addTask { for _ in 0..<5000 { source.happen(.transaction, task) } }
            }
        }
        #expect(try test.counter(0) == 20_000)
        #expect(try test.counter(1) == 5000)
    }

    // MARK: Clock cycles

    @Test("cycles are nanoseconds, only while they are counted, and know no filter")
    func cycles() throws {
        let test = TestGroup()
        test.timer.advance(by: 500)
        try test.start(0, event: 0, isSpan: false, stream: 0x42)
        test.timer.advance(by: 100)
        #expect(try test.counter(0) == 100)
        #expect(try test.counter(0) == 100, "looking does not count")
        try test.write(0xE04, 0)
        test.timer.advance(by: 1000)
        #expect(try test.counter(0) == 100)
        try test.write(0xE04, 1)
        test.timer.advance(by: 11)
        try test.write(0xC20, 1, .doubleword)
        test.timer.advance(by: 1000)
        #expect(try test.counter(0) == 111)
        #expect(test.source.history.isEmpty, "cycles are no business of the SMMU's")
    }

    @Test("a counter that is written counts on from there; the half that is not written stays")
    func writtenCounters() throws {
        let test = TestGroup()
        try test.start(0, event: 0)
        test.timer.advance(by: 3)
        try test.write(0, 0x1_0000_0000, .doubleword)
        test.timer.advance(by: 2)
        #expect(try test.counter(0) == 0x1_0000_0002)
        try test.write(4, 7)
        #expect(try test.counter(0) == 0x7_0000_0002)
    }
}
