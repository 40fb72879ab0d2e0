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
///
/// A membarrier is a system call and interrupts other processors, so idle requesters must not cost one. Those that a
/// wait finds idle are taken off the list of the active: it stores into their slots that they are, and after its
/// membarrier looks whether they are idle still. A requester that finds itself off the list as it enters puts itself
/// on it again, under the lock, and executes a fence. Where the list is empty there is nobody to wait for: a wait
/// executes a fence, too, before it looks, so either it finds the requester on the list, or the requester finds what
/// was invalidated.
///
/// A slot says for which thread it is active. Entered by another, it is put on the list anew, with a fence. So a wait
/// need not look for those that were last entered by the thread that waits, and are not inside: nothing that this
/// thread has done is hidden from it.
///
/// A thread that is about to sleep takes its requesters off the list itself (``rest()``).
///
/// Nor must those that are busy be interrupted, which costs them more than thousands of transactions. Each executes a
/// fence after every sixteenth transaction, and counts it. A waiter that sees two more than at its beginning
/// knows that the second came after the invalidation: what began before that fence is over, and what begins after
/// it looks at the caches as they are now. Only where somebody does not get that far within about a microsecond
/// (idle, in a long transaction, or without a processor) does the waiter call membarrier(2).
public final class TransactionTracker: Sendable {
    /// One requester's place in the tracker.
    ///
    /// Owned by one thread at a time.
    public struct Slot: @unchecked Sendable {
        // Unchecked: the words are accessed atomically, and `words[0]` has one writer, the slot's owner.
        /// The slot's words.
        ///
        /// [0] a sequence number, odd while inside; [1...10] the owner's counters; [11] the thread for which
        /// the slot is certainly on the list of the active, or 0; [12] whether it is, which belongs to the lock;
        /// [13] how many fences the owner has executed.
        public let words: UnsafeMutablePointer<UInt64>
        public let needsFence: Bool
        /// The tracker outlives its slots.
        @usableFromInline let tracker: Unmanaged<TransactionTracker>

        init(words: UnsafeMutablePointer<UInt64>, needsFence: Bool, tracker: Unmanaged<TransactionTracker>) {
            (self.words, self.needsFence, self.tracker) = (words, needsFence, tracker)
        }

        /// Marks the start of a transaction: from here on a waiter waits for ``leave()``.
        @inline(__always)  // Two stores: a call would cost more than the work.
        @inlinable public func enter() {
            smmud_store_u64(words, words.pointee &+ 1)
            if needsFence { smmud_fence_seq_cst() } else { smmud_compiler_barrier() }
            // After the store above for whoever waits: the barrier of the wait sees to it.
            if smmud_load_u64(words + TransactionTracker.activeThread) != smmud_thread() { becomeActive() }
        }

        /// Puts the slot on the list of those that waiters look at.
        @inline(never)  // Keeps the hit path small.
        @usableFromInline func becomeActive() {
            tracker._withUnsafeGuaranteedRef { $0.activate(self) }
        }

        /// Marks the end of a transaction: all its accesses to memory happened before.
        @inline(__always)  // One store.
        @inlinable public func leave() {
            let sequence = words.pointee &+ 1
            smmud_store_u64(words, sequence)
            if sequence & TransactionTracker.fencePeriodMask == 0 { fence() }
        }

        /// Between two transactions.
        @inline(never)  // Keeps the hit path small.
        @usableFromInline func fence() {
            smmud_fence_seq_cst()
            smmud_store_u64(words + TransactionTracker.fences, words[TransactionTracker.fences] &+ 1)
        }

        /// Adds to the owner's counter `index`, 1 up to ``TransactionTracker/counterCount``.
        @inline(__always)  // A load and a store.
        @inlinable public func count(_ index: Int, _ amount: UInt64 = 1) {
            smmud_store_u64(words + index, words[index] &+ amount)
        }
    }

    /// How many counters beside the sequence number a slot has.
    public static let counterCount = 10
    // Indices of a slot's words; see there.
    @usableFromInline static let activeThread = 11
    private static let isListed = 12
    @usableFromInline static let fences = 13
    /// Sixteen transactions, of which each adds 2 to the sequence number.
    @usableFromInline static let fencePeriodMask: UInt64 = 31

    /// 128 bytes: two cache lines, because the adjacent-line prefetcher pairs them.
    private static let wordsPerSlot = 16
    private static let slotsPerChunk = 32

    /// A slot that may be inside a transaction, as the last wait saw it.
    ///
    /// Apart from the slot: its lines are the owner's to write.
    private struct ActiveSlot {
        let words: UnsafeMutablePointer<UInt64>
        var sequence: UInt64
        /// How many fences its owner had executed.
        var fences: UInt64
        /// The wait that told it that it is not active.
        var clearedBy: UInt64 = 0
        /// No wait has seen it since it was idle.
        var isNew = true
    }

    private struct Slots {
        var chunks: [UnsafeMutablePointer<UInt64>] = []
        var free: [UnsafeMutablePointer<UInt64>] = []
        /// The slots that may be inside a transaction.
        var active: [ActiveSlot] = []
        /// Waits that have begun.
        var waits: UInt64 = 0
        /// Counters of slots that were given back, so that totals never fall.
        var retired = [UInt64](repeating: 0, count: TransactionTracker.counterCount)

        /// Looks at an active slot's sequence number, and tells the owner that it is not active where it is between
        /// two transactions, and was at the same place when last looked at.
        ///
        /// - Parameter isIdleIfEven: Where it was last does not matter.
        /// - Returns: Whether it was told.
        @discardableResult
        mutating func noteSequence(ofActive index: Int, isIdleIfEven: Bool = false) -> Bool {
            let words = active[index].words
            let sequence = smmud_load_u64(words)
            let isIdle = sequence & 1 == 0 && (isIdleIfEven || sequence == active[index].sequence)
            active[index].sequence = sequence
            if isIdle {
                // By a wait that begins now: those that have begun may have had their barrier.
                waits &+= 1
                active[index].clearedBy = waits
                smmud_store_u64(words + TransactionTracker.activeThread, 0)
            }
            return isIdle
        }

        /// What ``TransactionTracker/soleActive`` is.
        var soleActive: UInt64 {
            active.count < 2 ? UInt64(UInt(bitPattern: active.first?.words)) : TransactionTracker.several
        }
    }
    // The pointers inside are only ever handed out, never dereferenced without an atomic access.
    private struct Storage: @unchecked Sendable { var slots = Slots() }
    private let storage = Mutex(Storage())
    /// Where the one slot is that is on the list of the active; 0 where there is none, ``several`` where there are
    /// more: written under the lock.
    private let soleActive = Atomic<UInt64>(0)
    private static let several: UInt64 = 1
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
            return Slot(words: words, needsFence: needsFence, tracker: .passUnretained(self))
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

    /// Whether a wait would have nobody to look at, and so is over: no requester has been active for long, or the one
    /// that has is the calling thread's.
    ///
    /// To be asked as ``waitForTransactionsInFlight()`` is to be called. False is no answer.
    public var isIdle: Bool {
        // After the invalidation; pairs with activate().
        smmud_fence_seq_cst()
        // Acquiring: what a slot's words were before it was put on the list does not count.
        let active = soleActive.load(ordering: .acquiring)
        guard active != 0 else { return true }
        // Chunks are never given back.
        guard active != Self.several, let words = UnsafeMutablePointer<UInt64>(bitPattern: UInt(active))
        else {
            return false
        }
        return Self.isOwn(words)
    }

    /// Whether a slot is active for the calling thread, and not inside a transaction.
    ///
    /// After the invalidation and a fence: who enters it by another thread looks after its own fence at what was
    /// invalidated.
    @inline(__always)  // Once for each CMD_SYNC.
    private static func isOwn(_ words: UnsafeMutablePointer<UInt64>) -> Bool {
        smmud_load_u64(words + activeThread) == smmud_thread() && smmud_load_u64(words) & 1 == 0
    }

    /// Takes the calling thread's requesters off the list of the active: it is about to sleep, and inside none.
    ///
    /// What they did is over. Each finds that it is off the list when it enters next, and looks at the caches after
    /// the fence that follows.
    public func rest() {
        // Who is on the list for this thread was put there by it: it need not look further where nobody is.
        guard soleActive.load(ordering: .relaxed) != 0 else { return }
        storage.withLock { storage in
            var index = 0
            while index < storage.slots.active.count {
                let words = storage.slots.active[index].words
                guard Self.isOwn(words) else {
                    index += 1
                    continue
                }
                smmud_store_u64(words + Self.activeThread, 0)
                remove(at: index, from: &storage.slots)
            }
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

    /// The slots that are inside, after a barrier on every thread, or after every thread has come past one.
    private func transactionsInFlight() -> [(words: InsideSlot, sequence: UInt64)] {
        guard var wait = beginWait() else { return [] }
        if needsFence {
            smmud_fence_seq_cst()
        } else {
            if wait.areAllBusy, haveAllFenced(&wait.number) { return [] }
            smmud_membarrier()
        }
        return slotsInside(at: wait.number)
    }

    /// Whether every active owner comes past two fences within some microseconds.
    ///
    /// Looks seldom, and at the line that owners write seldom: each look takes it away from its owner. Only where an
    /// owner does not come past one does it look, twice, at the line that they write at each transaction.
    ///
    /// - Parameter number: The number of the wait: another where somebody was told that it is not active, because
    ///   waits that have begun meanwhile may have had their barrier.
    private func haveAllFenced(_ number: inout UInt64) -> Bool {
        for round in 0..<10 {
            for _ in 0..<(round == 0 ? 24 : 16) { smmud_cpu_pause() }
            let answer: Bool? = storage.withLock { storage in
                var (isDone, mustAsk) = (true, false)
                for index in storage.slots.active.indices {
                    let slot = storage.slots.active[index]
                    if Self.isOwn(slot.words) { continue }
                    let passed = smmud_load_u64(slot.words + Self.fences) &- slot.fences
                    if passed < 2 { isDone = false }
                    guard passed == 0 else { continue }
                    // Who has not come past one by now is in a long transaction, or has none.
                    if round == 4 { return false }
                    if round < 2, storage.slots.noteSequence(ofActive: index) { mustAsk = true }
                }
                if mustAsk {
                    number = storage.slots.waits
                    return false
                }
                return isDone ? true : nil
            }
            if let answer { return answer }
        }
        return false
    }

    /// A slot's owner has entered and found that it may be off the list.
    fileprivate func activate(_ slot: Slot) {
        storage.withLock { storage in
            smmud_store_u64(slot.words + Self.activeThread, smmud_thread())
            guard slot.words[Self.isListed] == 0 else { return }
            slot.words[Self.isListed] = 1
            storage.slots.active.append(
                ActiveSlot(
                    words: slot.words,
                    sequence: smmud_load_u64(slot.words),
                    fences: smmud_load_u64(slot.words + Self.fences)
                )
            )
            soleActive.store(storage.slots.soleActive, ordering: .sequentiallyConsistent)
        }
        // Before the transaction looks at anything that may be invalidated; pairs with ``isIdle``.
        smmud_fence_seq_cst()
    }

    /// Tells those that are idle that they are not active.
    ///
    /// - Returns: The number of the wait, and whether everybody who is active has come past a fence since the wait
    ///   before; nil where nobody is active, so nobody is inside.
    private func beginWait() -> (number: UInt64, areAllBusy: Bool)? {
        // After the invalidation, before the fences are counted.
        guard !isIdle else { return nil }
        return storage.withLock { storage in
            removeOwnIdle(&storage.slots)
            var (areAllBusy, areAllOwn) = (true, true)
            for index in storage.slots.active.indices {
                let slot = storage.slots.active[index]
                if Self.isOwn(slot.words) { continue }
                areAllOwn = false
                let fences = smmud_load_u64(slot.words + Self.fences)
                storage.slots.active[index].fences = fences
                storage.slots.active[index].isNew = false
                // One that was idle before will be again, soon: those few transactions that there were are over, often.
                if slot.isNew || fences == slot.fences {
                    areAllBusy = false
                    storage.slots.noteSequence(ofActive: index, isIdleIfEven: true)
                }
            }
            guard !areAllOwn else { return nil }
            storage.slots.waits &+= 1
            return (storage.slots.waits, areAllBusy)
        }
    }

    /// Takes those of the calling thread off the list that have done nothing since the wait before: none need be told.
    private func removeOwnIdle(_ slots: inout Slots) {
        var index = 0
        while index < slots.active.count {
            let slot = slots.active[index]
            let sequence = smmud_load_u64(slot.words)
            guard Self.isOwn(slot.words), sequence == slot.sequence else {
                if Self.isOwn(slot.words) { slots.active[index].sequence = sequence }
                index += 1
                continue
            }
            smmud_store_u64(slot.words + Self.activeThread, 0)
            remove(at: index, from: &slots)
        }
    }

    private func remove(at index: Int, from slots: inout Slots) {
        slots.active[index].words[Self.isListed] = 0
        slots.active.swapAt(index, slots.active.count - 1)
        slots.active.removeLast()
        soleActive.store(slots.soleActive, ordering: .sequentiallyConsistent)
    }

    /// Who is inside, after the barrier; takes those off the list that were told before it and are idle still.
    private func slotsInside(at wait: UInt64) -> [(words: InsideSlot, sequence: UInt64)] {
        storage.withLock { storage in
            var inside: [(words: InsideSlot, sequence: UInt64)] = []
            var index = 0
            while index < storage.slots.active.count {
                let slot = storage.slots.active[index]
                let sequence = smmud_load_u64(slot.words)
                if sequence & 1 != 0 { inside.append((InsideSlot(words: slot.words), sequence)) }
                // Whom a later wait has told may not have heard: no barrier was between.
                if smmud_load_u64(slot.words + Self.activeThread) == 0, slot.clearedBy <= wait {
                    if sequence == slot.sequence, sequence & 1 == 0 {
                        remove(at: index, from: &storage.slots)
                        continue
                    }
                    // It stays on the list; its owner, whichever thread that is, says so again when it enters.
                }
                index += 1
            }
            return inside
        }
    }

    // SAFETY of @unchecked Sendable: the word is only ever loaded, atomically.
    private struct InsideSlot: @unchecked Sendable { let words: UnsafeMutablePointer<UInt64> }
}
