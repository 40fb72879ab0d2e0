// A submission queue as its doorbell and its worker share it.

import DeviceModel
import Synchronization

/// A submission queue.
///
/// Whoever writes the doorbell and the worker meet in atomics and a semaphore: a register access never waits.
final class SubmissionQueue: Sendable {
    let id: UInt16
    let base: UInt64
    let entryCount: UInt32
    let completionQueue: CompletionQueue
    let shadow = ShadowDoorbell()
    let counters = QueueCounters()
    /// What the worker sleeps on.
    let wake = Semaphore()
    private let tail = Atomic<UInt32>(0)
    private let isIdle = Atomic(false)
    private let stopFlag = Atomic(false)

    init(id: UInt16, base: UInt64, entryCount: UInt32, completionQueue: CompletionQueue) {
        self.id = id
        self.base = base
        self.entryCount = entryCount
        self.completionQueue = completionQueue
    }

    var isStopping: Bool { stopFlag.load(ordering: .acquiring) }
    var tailValue: UInt32 { tail.load(ordering: .sequentiallyConsistent) }

    /// The doorbell: commands stand up to before `value`.
    ///
    /// - Returns: Whether the queue has such an entry.
    func ring(_ value: UInt32) -> Bool {
        guard value < entryCount else { return false }
        tail.store(value, ordering: .sequentiallyConsistent)
        // Either this sees the worker idle, or the worker sees the new tail before it sleeps.
        if isIdle.exchange(false, ordering: .sequentiallyConsistent) { wake.signal() }
        return true
    }

    /// Keeps what a doorbell in memory said: the register may have been written last long ago.
    func note(tail value: UInt32) { tail.store(value, ordering: .sequentiallyConsistent) }

    /// Says that the worker is about to sleep; it looks at the tail after this.
    func prepareToSleep() { isIdle.store(true, ordering: .sequentiallyConsistent) }

    /// Says that it does not sleep.
    func awake() { isIdle.store(false, ordering: .sequentiallyConsistent) }

    /// Has the worker end: it issues no more DMA than what is under way.
    func stop() {
        stopFlag.store(true, ordering: .releasing)
        wake.signal()
    }
}

/// What a submission queue has done.
final class QueueCounters: Sendable {
    let commands = Atomic<UInt64>(0)
    let bytes = Atomic<UInt64>(0)
    let errors = Atomic<UInt64>(0)
}
