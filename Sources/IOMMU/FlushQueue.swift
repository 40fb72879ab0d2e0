// Lazy unmapping: ranges wait here until one invalidation serves them all. Linux: iova_fq in dma-iommu.

import AddressSpace
import Glibc
import Synchronization

/// What waits for a flush: a range of IOVAs, memory, or both.
struct DeferredRelease: Sendable {
    /// The IOVAs that become free; nil where only memory waits.
    var iovas: AddressRange?
    /// Whether the range is one whole allocation of the DMA API, which the caches of free IOVAs take.
    var isWhole = false
    /// Memory that devices may still reach until then.
    var memory: (any RetiredMemory)?
}

/// The ranges that were unmapped from a domain and not yet invalidated, and the memory that goes with them.
///
/// Each thread uses one of several rings, so that threads that unmap at once seldom meet. What is in a ring is out of
/// the page table, but the TLB may still have it, so its IOVAs are handed out again, and its memory is given back, only
/// after a flush that began after it was put in. Lock order: a ring, then what `flush` takes; `release` is called with
/// no lock of the queue's held, so that a domain's lock may be held where memory is wanted back
/// (``reclaim(flush:)``).
final class FlushQueue: Sendable {
    /// IOVA_DEFAULT_FQ_SIZE: one slot stays unused, as a full ring must differ from an empty one.
    static let ringSlots = 256
    /// IOVA_DEFAULT_FQ_TIMEOUT, 10 ms: how long the first range in an empty queue waits at most.
    static let timeoutNanoseconds: UInt64 = 10_000_000

    private struct Entry {
        var content: DeferredRelease
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

    init() { rings = (0..<ThreadSlot.count).map { _ in GuardedRing() } }

    /// Puts something in, after a flush if there is no room.
    ///
    /// - Returns: Whether the timer is to be started: it does not run.
    /// - Throws: What `flush` does; then it is not in the queue.
    func add(
        _ content: DeferredRelease,
        flush: () throws(SMMUDriverError) -> Void,
        release: (DeferredRelease) -> Void
    ) throws(SMMUDriverError) -> Bool {
        var done: [Entry] = []
        defer { for entry in done { release(entry.content) } }
        try rings[ThreadSlot.own].ring.withLock { (ring) throws(SMMUDriverError) in
            done = takeDone(&ring)
            if ring.entries.count == Self.ringSlots - 1 {
                try runFlush(flush)
                done += takeDone(&ring)
            }
            ring.entries.append(
                Entry(content: content, counter: flushesStarted.load(ordering: .sequentiallyConsistent))
            )
        }
        return !isArmed.exchange(true, ordering: .sequentiallyConsistent)
    }

    /// The timer has run down, or somebody cannot wait for it: flushes, and frees what that served.
    ///
    /// - Throws: What `flush` does; then everything stays.
    func expire(
        flush: () throws(SMMUDriverError) -> Void,
        release: (DeferredRelease) -> Void
    ) throws(SMMUDriverError) {
        // Before the flush: what is put in while it runs starts the timer again.
        isArmed.store(false, ordering: .sequentiallyConsistent)
        try runFlush(flush)
        for guarded in rings {
            for entry in guarded.ring.withLock({ takeDone(&$0) }) { release(entry.content) }
        }
    }

    /// Flushes because memory has run out: what was retired before goes back.
    ///
    /// IOVAs wait on.
    ///
    /// The caller may hold any lock of a domain's or of the driver's but the command queue's.
    /// - Returns: Whether there was any.
    func reclaim(flush: () throws(SMMUDriverError) -> Void) throws(SMMUDriverError) -> Bool {
        guard holdsMemory else { return false }
        try runFlush(flush)
        let finished = flushesFinished.load(ordering: .sequentiallyConsistent)
        var retired: [any RetiredMemory] = []
        for guarded in rings {
            guarded.ring.withLock { ring in
                for index in ring.entries.indices where ring.entries[index].counter < finished {
                    if let memory = ring.entries[index].content.memory.take() { retired.append(memory) }
                }
            }
        }
        for memory in retired { memory.giveBack() }
        return !retired.isEmpty
    }

    /// How many entries wait.
    var count: Int { rings.reduce(0) { $0 + $1.ring.withLock { $0.entries.count } } }

    private var holdsMemory: Bool {
        rings.contains { $0.ring.withLock { $0.entries.contains { $0.content.memory != nil } } }
    }

    /// Nobody uses the queue any more, and the hardware has forgotten everything: takes out all the memory.
    func takeAllMemory() -> [any RetiredMemory] {
        rings.flatMap { guarded in
            guarded.ring.withLock { ring in
                defer { ring.entries = [] }
                return ring.entries.compactMap(\.content.memory)
            }
        }
    }

    private func runFlush(_ flush: () throws(SMMUDriverError) -> Void) throws(SMMUDriverError) {
        try flushing.withLock { (_) throws(SMMUDriverError) in
            let started = flushesStarted.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
            try flush()
            // A flush that failed is made good by the next one: that invalidates everything too.
            flushesFinished.store(started, ordering: .sequentiallyConsistent)
        }
    }

    /// Takes out what a flush has served; entries' counters ascend.
    private func takeDone(_ ring: inout Ring) -> [Entry] {
        let finished = flushesFinished.load(ordering: .sequentiallyConsistent)
        let done = Array(ring.entries.prefix { $0.counter < finished })
        ring.entries.removeFirst(done.count)
        return done
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
    ///
    /// - Returns: False where the driver has been stopped: nobody flushes any more.
    func arm(_ translation: DomainTranslation) -> Bool {
        let (thread, isRunning) = state.withLock { state -> (WorkerThread?, Bool) in
            guard !state.isStopped else { return (nil, false) }
            state.armed.append(
                Armed(
                    due: clock.nanoseconds() &+ FlushQueue.timeoutNanoseconds,
                    translation: translation
                )
            )
            guard usesThread else { return (nil, true) }
            if let thread = state.thread { return (thread, true) }
            let thread = WorkerThread { [weak self] in self?.sleepAndExpire() }
            state.thread = thread
            return (thread, true)
        }
        thread?.kick()
        return isRunning
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
    ///
    /// What waits goes at once: the SMMU is off and caches nothing, or it could not be switched off, and then
    /// everything stays.
    func stop() {
        let (thread, waiting) = state.withLock { state in
            state.isStopped = true
            defer {
                state.thread = nil
                state.armed = []
            }
            return (state.thread, state.armed.compactMap(\.translation))
        }
        thread?.stop()
        for translation in waiting { try? translation.flushLazyUnmaps() }
    }
}
