// Transactions in flight: who is inside one, and how to wait for those to leave without stopping anyone.

public import CLinux
import Synchronization

/// Knows which requesters are between translating an address and having finished with the memory behind it.
///
/// An invalidation is complete when no transaction that used the old translation can still touch memory
/// (IHI 0070, CMD_SYNC). A lock around translate-and-access would serialise all DMA. Instead each requester
/// publishes on a cache line of its own that it is inside, with plain stores, and ``waitForTransactionsInFlight()``
/// waits for those that were inside to leave. It does not wait for transactions that begin meanwhile: they read
/// the invalidated caches.
///
/// Why plain stores suffice: the waiter first invalidates, then calls membarrier(2), which is a full barrier on
/// every thread of the process, then looks at the slots. A requester whose entry the waiter does not see entered
/// after that barrier, and so looks at the caches after it too. Where the kernel has no membarrier, entering
/// takes a fence instead.
public final class TransactionTracker: Sendable {
    /// One requester's place in the tracker.
    ///
    /// Owned by one thread at a time.
    public struct Slot: @unchecked Sendable {
        // Unchecked: the words are accessed atomically, and `words[0]` has one writer, the slot's owner.
        /// [0] a sequence number, odd while inside; [1...] the owner's counters.
        public let words: UnsafeMutablePointer<UInt64>
        public let needsFence: Bool

        init(words: UnsafeMutablePointer<UInt64>, needsFence: Bool) {
            (self.words, self.needsFence) = (words, needsFence)
        }

        /// Marks the start of a transaction: from here on a waiter waits for ``leave()``.
        @inline(__always)  // Two stores: a call would cost more than the work.
        @inlinable public func enter() {
            smmud_store_u64(words, words.pointee &+ 1)
            if needsFence { smmud_fence_seq_cst() } else { smmud_compiler_barrier() }
        }

        /// Marks the end of a transaction: all its accesses to memory happened before.
        @inline(__always)  // One store.
        @inlinable public func leave() {
            smmud_store_u64(words, words.pointee &+ 1)
        }

        /// Adds to the owner's counter `index`, 1 up to ``TransactionTracker/counterCount``.
        @inline(__always)  // A load and a store.
        @inlinable public func count(_ index: Int, _ amount: UInt64 = 1) {
            smmud_store_u64(words + index, words[index] &+ amount)
        }
    }

    /// How many counters beside the sequence number a slot has.
    public static let counterCount = 7

    /// 128 bytes: two cache lines, because the adjacent-line prefetcher pairs them.
    private static let wordsPerSlot = 16
    private static let slotsPerChunk = 32

    private struct Slots {
        var chunks: [UnsafeMutablePointer<UInt64>] = []
        var free: [UnsafeMutablePointer<UInt64>] = []
        var used = 0
        /// Counters of slots that were given back, so that totals never fall.
        var retired = [UInt64](repeating: 0, count: TransactionTracker.counterCount)
    }
    // The pointers inside are only ever handed out, never dereferenced without an atomic access.
    private struct Storage: @unchecked Sendable { var slots = Slots() }
    private let storage = Mutex(Storage())
    private let needsFence: Bool

    public init() {
        needsFence = !smmud_membarrier_register()
    }

    deinit {
        storage.withLock { storage in
            for chunk in storage.slots.chunks { chunk.deallocate() }
        }
    }

    /// Takes a slot for one requester.
    ///
    /// The tracker must outlive it.
    public func acquireSlot() -> Slot {
        storage.withLock { storage in
            if storage.slots.free.isEmpty {
                let count = Self.wordsPerSlot * Self.slotsPerChunk
                let raw = UnsafeMutableRawPointer.allocate(byteCount: count * 8, alignment: 128)
                let chunk = raw.bindMemory(to: UInt64.self, capacity: count)
                chunk.initialize(repeating: 0, count: count)
                storage.slots.chunks.append(chunk)
                for index in 0..<Self.slotsPerChunk {
                    storage.slots.free.append(chunk + index * Self.wordsPerSlot)
                }
            }
            let words = storage.slots.free.removeLast()
            return Slot(words: words, needsFence: needsFence)
        }
    }

    /// Gives a slot back.
    ///
    /// Its owner is not inside a transaction and does not use it again.
    public func releaseSlot(_ slot: Slot) {
        storage.withLock { storage in
            for index in 0..<Self.counterCount {
                storage.slots.retired[index] &+= slot.words[index + 1]
                smmud_store_u64(slot.words + index + 1, 0)
            }
            // The sequence number stays: a waiter that sampled it must see it move on, not start again.
            storage.slots.free.append(slot.words)
        }
    }

    /// The sum of every owner's counter `index`, 1 up to ``counterCount``.
    public func total(_ index: Int) -> UInt64 {
        storage.withLock { storage in
            var sum = storage.slots.retired[index - 1]
            for chunk in storage.slots.chunks {
                for slot in 0..<Self.slotsPerChunk {
                    sum &+= smmud_load_u64(chunk + slot * Self.wordsPerSlot + index)
                }
            }
            return sum
        }
    }

    /// Waits until every transaction that was in flight when this was called has left.
    ///
    /// Call it after having invalidated what those transactions may have used, and not from inside one.
    ///
    /// - Returns: How many transactions it had to wait for.
    @discardableResult
    public func waitForTransactionsInFlight() -> Int {
        let inside = transactionsInFlight()
        for (slot, sequence) in inside {
            var attempts = 0
            while smmud_load_u64(slot.words) == sequence {
                attempts += 1
                smmud_wait_a_little(CInt(truncatingIfNeeded: attempts))
            }
        }
        return inside.count
    }

    /// The same for a caller that may not be held up: it gives up after about a microsecond.
    ///
    /// - Returns: How many transactions it had to wait for; nil where one of them is still in flight.
    public func waitShortlyForTransactionsInFlight() -> Int? {
        let inside = transactionsInFlight()
        // So many attempts of smmud_wait_a_little() leave the processor to nobody.
        var attempts: CInt = 0
        for (slot, sequence) in inside {
            while smmud_load_u64(slot.words) == sequence {
                attempts += 1
                guard attempts < 64 else { return nil }
                smmud_wait_a_little(attempts)
            }
        }
        return inside.count
    }

    /// The slots that are inside, after a barrier on every thread.
    private func transactionsInFlight() -> [(words: InsideSlot, sequence: UInt64)] {
        if needsFence { smmud_fence_seq_cst() } else { smmud_membarrier() }
        return storage.withLock { storage in
            var inside: [(words: InsideSlot, sequence: UInt64)] = []
            for chunk in storage.slots.chunks {
                for slot in 0..<Self.slotsPerChunk {
                    let words = chunk + slot * Self.wordsPerSlot
                    let sequence = smmud_load_u64(words)
                    if sequence & 1 != 0 { inside.append((InsideSlot(words: words), sequence)) }
                }
            }
            return inside
        }
    }

    // SAFETY of @unchecked Sendable: the word is only ever loaded, atomically.
    private struct InsideSlot: @unchecked Sendable { let words: UnsafeMutablePointer<UInt64> }
}
