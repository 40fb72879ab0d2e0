// Lazy unmapping: ranges wait here until one invalidation serves them all. Linux: iova_fq in dma-iommu.

import AddressSpace
import Glibc
import Synchronization

/// The ranges that were unmapped from a domain and not yet invalidated.
///
/// Each thread uses one of several rings, so that threads that unmap at once seldom meet. What is in a ring is out of
/// the page table, but the TLB may still have it, so its IOVAs are handed out again only after a flush that began
/// after the range was put in. Lock order: a ring, then what `flush` and `release` take.
final class FlushQueue: Sendable {
    /// IOVA_DEFAULT_FQ_SIZE: one slot stays unused, as a full ring must differ from an empty one.
    static let ringSlots = 256
    /// IOVA_DEFAULT_FQ_TIMEOUT, 10 ms: how long the first range in an empty queue waits at most.
    static let timeoutNanoseconds: UInt64 = 10_000_000
    private static let ringCount = 16

    private struct Entry {
        let range: AddressRange
        /// How many flushes had begun when it was put in.
        let counter: UInt64
    }

    /// Oldest first.
    private struct Ring: Sendable {
        var entries: [Entry] = []
    }

    private final class GuardedRing: Sendable {
        let ring = Mutex(Ring())
    }

    private let rings: [GuardedRing]
    private let flushesStarted = Atomic<UInt64>(0)
    private let flushesFinished = Atomic<UInt64>(0)
    /// One at a time: a flush that ends says that all which began before it have ended.
    private let flushing = Mutex(())
    private let isArmed = Atomic(false)

    init() { rings = (0..<Self.ringCount).map { _ in GuardedRing() } }

    /// Puts a range in, after a flush if there is no room.
    ///
    /// - Returns: Whether the timer is to be started: it does not run.
    /// - Throws: What `flush` does; then the range is not in the queue.
    func add(
        _ range: AddressRange,
        flush: () throws(SMMUDriverError) -> Void,
        release: (AddressRange) -> Void
    ) throws(SMMUDriverError) -> Bool {
        try rings[Self.ownIndex].ring.withLock { (ring) throws(SMMUDriverError) in
            free(&ring, release)
            if ring.entries.count == Self.ringSlots - 1 {
                try runFlush(flush)
                free(&ring, release)
            }
            ring.entries.append(
                Entry(range: range, counter: flushesStarted.load(ordering: .sequentiallyConsistent))
            )
        }
        return !isArmed.exchange(true, ordering: .sequentiallyConsistent)
    }

    /// The timer has run down, or somebody cannot wait for it: flushes, and frees what that served.
    ///
    /// - Throws: What `flush` does; then every range stays.
    func expire(
        flush: () throws(SMMUDriverError) -> Void,
        release: (AddressRange) -> Void
    ) throws(SMMUDriverError) {
        // Before the flush: what is put in while it runs starts the timer again.
        isArmed.store(false, ordering: .sequentiallyConsistent)
        try runFlush(flush)
        for guarded in rings { guarded.ring.withLock { free(&$0, release) } }
    }

    /// How many ranges wait.
    var count: Int { rings.reduce(0) { $0 + $1.ring.withLock { $0.entries.count } } }

    private func runFlush(_ flush: () throws(SMMUDriverError) -> Void) throws(SMMUDriverError) {
        try flushing.withLock { (_) throws(SMMUDriverError) in
            let started = flushesStarted.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
            try flush()
            // A flush that failed is made good by the next one: that invalidates everything too.
            flushesFinished.store(started, ordering: .sequentiallyConsistent)
        }
    }

    private func free(_ ring: inout Ring, _ release: (AddressRange) -> Void) {
        let finished = flushesFinished.load(ordering: .sequentiallyConsistent)
        let done = ring.entries.prefix { $0.counter < finished }
        for entry in done { release(entry.range) }
        ring.entries.removeFirst(done.count)
    }

    /// The calling thread's ring: the same one each time.
    private static var ownIndex: Int {
        Int(truncatingIfNeeded: (UInt64(pthread_self()) &>> 12) % UInt64(ringCount))
    }
}

/// One SMMU's flush queues whose timers run.
///
/// With interrupt threads it has a thread of its own, made when it is first needed; inline, ``expire()`` is called
/// by hand. Its lock is a leaf.
final class FlushTimer: Sendable {
    private struct Armed {
        let due: UInt64
        weak var translation: DomainTranslation?
    }

    private struct State {
        var armed: [Armed] = []
        var thread: WorkerThread?
        var isStopped = false
    }

    private let state = Mutex(State())
    private let clock: any DriverClock
    private let log: DriverLog
    private let usesThread: Bool

    init(clock: any DriverClock, log: DriverLog, usesThread: Bool) {
        self.clock = clock
        self.log = log
        self.usesThread = usesThread
    }

    /// Starts a queue's timer.
    func arm(_ translation: DomainTranslation) {
        let thread = state.withLock { state -> WorkerThread? in
            guard !state.isStopped else { return nil }
            state.armed.append(
                Armed(
                    due: clock.nanoseconds() &+ FlushQueue.timeoutNanoseconds,
                    translation: translation
                )
            )
            guard usesThread else { return nil }
            if let thread = state.thread { return thread }
            let thread = WorkerThread { [weak self] in self?.sleepAndExpire() }
            state.thread = thread
            return thread
        }
        thread?.kick()
    }

    /// Flushes every queue whose time has come.
    func expire() {
        let now = clock.nanoseconds()
        let due = state.withLock { state in
            let due = state.armed.filter { $0.due <= now }
            state.armed.removeAll { $0.due <= now }
            return due.compactMap(\.translation)
        }
        for translation in due {
            do throws(SMMUDriverError) { try translation.flushLazyUnmaps() } catch {
                log.note(.error, "flush queue: \(error)")
            }
        }
    }

    private func sleepAndExpire() {
        while let due = state.withLock({ $0.isStopped ? nil : $0.armed.map(\.due).min() }) {
            let now = clock.nanoseconds()
            if due > now { usleep(UInt32(min(10_000, (due - now) / 1000 + 1))) }
            expire()
        }
    }

    /// Ends the thread; nothing is flushed by time any more.
    func stop() {
        let thread = state.withLock { state in
            state.isStopped = true
            state.armed = []
            defer { state.thread = nil }
            return state.thread
        }
        thread?.stop()
    }
}
