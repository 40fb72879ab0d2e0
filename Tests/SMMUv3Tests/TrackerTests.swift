// The tracker of transactions in flight: whom a waiter waits for, and whom it does not.

import Glibc
import SystemBus
import Testing

@Suite("Transactions in flight")
struct TrackerTests {
    @Test("nobody inside: nothing to wait for")
    func idle() {
        let tracker = TransactionTracker()
        #expect(tracker.waitForTransactionsInFlight() == 0)
        let slots = (0..<100).map { _ in tracker.acquireSlot() }
        #expect(tracker.waitForTransactionsInFlight() == 0)
        for slot in slots {
            slot.enter()
            slot.leave()
        }
        #expect(tracker.waitForTransactionsInFlight() == 0)
        for slot in slots { tracker.releaseSlot(slot) }
        #expect(tracker.waitForTransactionsInFlight() == 0)
    }

    @Test("slots are apart: no two requesters share a cache line pair")
    func slotDistance() {
        let tracker = TransactionTracker()
        let slots = (0..<65).map { _ in tracker.acquireSlot() }
        let addresses = slots.map { UInt(bitPattern: $0.words) }
        #expect(Set(addresses).count == 65)
        #expect(addresses.allSatisfy { $0 % 128 == 0 })
        for slot in slots { tracker.releaseSlot(slot) }
    }

    @Test("counters add up over slots, and stay when a slot is given back and used again")
    func counters() {
        let tracker = TransactionTracker()
        let first = tracker.acquireSlot()
        let second = tracker.acquireSlot()
        first.count(1)
        first.count(1, 9)
        second.count(1, 5)
        second.count(TransactionTracker.counterCount, 3)
        #expect(tracker.total(1) == 15)
        #expect(tracker.total(TransactionTracker.counterCount) == 3)
        tracker.releaseSlot(first)
        #expect(tracker.total(1) == 15)
        let third = tracker.acquireSlot()
        third.count(1)
        #expect(tracker.total(1) == 16)
        #expect(tracker.total(2) == 0)
        tracker.releaseSlot(second)
        tracker.releaseSlot(third)
        #expect(tracker.total(1) == 16)
    }

    @Test("a waiter waits for those that are inside, and for no one that comes later")
    func waiting() {
        let tracker = TransactionTracker()
        let inside = tracker.acquireSlot()
        let later = tracker.acquireSlot()
        inside.enter()
        let waited = Count()
        let begun = Flag()
        let waiter = TestThread {
            begun.set()
            // `later` is one of them where it is met inside. None at all, where this thread had no turn until the
            // end; that one in flight counts as one is InFlightTests.syncWaits's to show.
            #expect((0...2).contains(tracker.waitForTransactionsInFlight()))
            waited.increment()
        }
        begun.wait()
        // Another requester comes and goes, and comes again, while the waiter waits.
        for _ in 0..<1000 {
            #expect(waited.current == 0)
            later.enter()
            later.leave()
            sched_yield()
        }
        later.enter()
        // Whether the waiter saw `later` inside depends on when it looked: it must have looked before.
        inside.leave()
        later.leave()
        waiter.join()
        #expect(waited.current == 1)
        tracker.releaseSlot(inside)
        tracker.releaseSlot(later)
    }

    @Test("a requester that leaves and enters again does not hold the waiter up")
    func reentry() {
        let tracker = TransactionTracker()
        let stop = Flag()
        let running = Flag()
        let busy = TestThread {
            let slot = tracker.acquireSlot()
            while !stop.isSet {
                slot.enter()
                running.set()
                slot.leave()
            }
            tracker.releaseSlot(slot)
        }
        running.wait()
        for _ in 0..<2000 { tracker.waitForTransactionsInFlight() }
        stop.set()
        busy.join()
    }

    @Test("a slot given back while somebody waits, and taken by another, ends the wait")
    func slotReuse() {
        let tracker = TransactionTracker()
        for _ in 0..<50 {
            let slot = tracker.acquireSlot()
            slot.enter()
            let started = Flag()
            let waiter = TestThread {
                started.set()
                tracker.waitForTransactionsInFlight()
            }
            started.wait()
            slot.leave()
            tracker.releaseSlot(slot)
            let other = tracker.acquireSlot()
            other.enter()
            // `other` may be the same slot: the waiter sees another sequence number and goes, or never saw this one.
            let second = TestThread { other.leave() }
            waiter.join()
            second.join()
            tracker.releaseSlot(other)
        }
    }

    @Test("what a requester wrote inside is visible to the waiter, and it never starts on what was withdrawn")
    func publication() {
        // A message of two words: the requester copies `source` to `target` while it is offered; the waiter
        // withdraws the offer, waits, and from then on owns `target`.
        // SAFETY of @unchecked Sendable: the words are accessed atomically, or by who owns them.
        final class Shared: @unchecked Sendable {
            let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 64)
            init() { words.initialize(repeating: 0, count: 64) }
            deinit { words.deallocate() }
        }
        let shared = Shared()
        let tracker = TransactionTracker()
        let stop = Flag()
        let offered = Count()
        let withdrawn = Count()
        let copies = Count()
        let requesters = (0..<2).map { index in
            TestThread {
                let slot = tracker.acquireSlot()
                while !stop.isSet {
                    slot.enter()
                    if offered.current > withdrawn.current {
                        shared.words[index * 16] = 1
                        shared.words[index * 16 + 8] = 1
                        copies.increment()
                    }
                    slot.leave()
                }
                tracker.releaseSlot(slot)
            }
        }
        for _ in 0..<500 {
            let before = copies.current
            offered.increment()
            copies.wait(for: before + 1)
            withdrawn.increment()
            tracker.waitForTransactionsInFlight()
            for index in 0..<2 {
                shared.words[index * 16] = 0
                shared.words[index * 16 + 8] = 0
            }
            sched_yield()
            for index in 0..<2 {
                #expect(shared.words[index * 16] == 0)
                #expect(shared.words[index * 16 + 8] == 0)
            }
        }
        stop.set()
        for requester in requesters { requester.join() }
    }
}

@Suite("Requesters that are idle")
struct IdleRequesterTests {
    @Test("a tracker is idle until somebody enters, and again after a wait that found nobody inside")
    func idle() {
        let tracker = TransactionTracker()
        #expect(tracker.isIdle)
        let slots = (0..<3).map { _ in tracker.acquireSlot() }
        #expect(tracker.isIdle)
        // Few transactions, and enough for two fences of each: either way one wait is enough where they are over.
        for count in [1, 40] {
            TestThread {
                for slot in slots {
                    for _ in 0..<count {
                        slot.enter()
                        #expect(!tracker.isIdle)
                        slot.leave()
                    }
                }
            }
            .join()
            #expect(!tracker.isIdle, "nobody has looked yet")
            #expect(tracker.waitForTransactionsInFlight() == 0)
            #expect(tracker.isIdle)
        }
        for slot in slots { tracker.releaseSlot(slot) }
    }

    @Test("a thread that is about to sleep leaves nobody to wait for, and enters again as the first time")
    func rest() {
        let tracker = TransactionTracker()
        let slots = (0..<4).map { _ in tracker.acquireSlot() }
        slots[3].enter()
        for _ in 0..<3 {
            TestThread {
                for slot in slots[..<2] {
                    slot.enter()
                    slot.leave()
                }
                slots[2].enter()
                tracker.rest()
            }
            .join()
            #expect(!tracker.isIdle, "one is inside, and one is another thread's")
            TestThread {
                slots[2].leave()
                slots[2].enter()
                slots[2].leave()
                tracker.rest()
            }
            .join()
            #expect(tracker.waitShortlyForTransactionsInFlight() == nil, "the last one is inside")
            TestThread {
                slots[0].enter()
                slots[0].leave()
            }
            .join()
            slots[3].leave()
            tracker.rest()
            #expect(!tracker.isIdle, "the other thread did not say that it sleeps")
            TestThread {
                slots[0].enter()
                slots[0].leave()
                tracker.rest()
            }
            .join()
            #expect(tracker.isIdle)
            slots[3].enter()
            #expect(!tracker.isIdle)
        }
        slots[3].leave()
        for slot in slots { tracker.releaseSlot(slot) }
    }

    @Test("one that is inside keeps its place, and one that comes back has it again")
    func inside() {
        let tracker = TransactionTracker()
        let slot = tracker.acquireSlot()
        for _ in 0..<100 {
            slot.enter()
            #expect(tracker.waitShortlyForTransactionsInFlight() == nil)
            #expect(!tracker.isIdle)
            slot.leave()
            tracker.waitForTransactionsInFlight()
            #expect(tracker.isIdle)
        }
        tracker.releaseSlot(slot)
    }

    @Test("a thread need not wait for what it has done itself, until another uses its place")
    func ownThread() {
        let tracker = TransactionTracker()
        let slots = (0..<2).map { _ in tracker.acquireSlot() }
        let slot = slots[0]
        for _ in 0..<3 {
            slot.enter()
            #expect(!tracker.isIdle, "inside")
            slot.leave()
            #expect(tracker.isIdle)
            TestThread {
                slot.enter()
                slot.leave()
            }
            .join()
            #expect(!tracker.isIdle, "the other thread's, of which this one knows nothing")
            slot.enter()
            slot.leave()
            #expect(tracker.isIdle)
        }
        // Two: of the first nothing new is seen by the second wait, and it is off the list.
        slots[1].enter()
        slots[1].leave()
        #expect(!tracker.isIdle)
        #expect(tracker.waitForTransactionsInFlight() == 0)
        for _ in 0..<2 {
            slots[1].enter()
            slots[1].leave()
            #expect(tracker.waitForTransactionsInFlight() == 0)
        }
        #expect(tracker.isIdle)
        TestThread {
            slot.enter()
            #expect(!tracker.isIdle)
            slot.leave()
        }
        .join()
        #expect(!tracker.isIdle)
        for slot in slots { tracker.releaseSlot(slot) }
    }

    @Test("who finds nobody active has what it withdrew for itself, though others come back all the time")
    func withdrawal() {
        // SAFETY of @unchecked Sendable: the words are accessed atomically, or by who owns them.
        final class Shared: @unchecked Sendable {
            let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 16)
            init() { words.initialize(repeating: 0, count: 16) }
            deinit { words.deallocate() }
        }
        let shared = Shared()
        let tracker = TransactionTracker()
        let (stop, offered, withdrawn, copies) = (Flag(), Count(), Count(), Count())
        let requester = TestThread {
            let slot = tracker.acquireSlot()
            while !stop.isSet {
                slot.enter()
                if offered.current > withdrawn.current {
                    shared.words[0] = 1
                    copies.increment()
                }
                slot.leave()
                sched_yield()
            }
            tracker.releaseSlot(slot)
        }
        for _ in 0..<2000 {
            let before = copies.current
            offered.increment()
            copies.wait(for: before + 1)
            withdrawn.increment()
            if !tracker.isIdle { tracker.waitForTransactionsInFlight() }
            shared.words[0] = 0
            sched_yield()
            #expect(shared.words[0] == 0)
        }
        stop.set()
        requester.join()
    }
}
