// A completion queue: where entries go, and who waits for room in it.

import AddressSpace
import DeviceModel
import Synchronization

/// A completion queue.
///
/// Lock order: the posting lock is held while an entry is written to memory, so it is taken by queue workers only,
/// never by a register access. The waiters' lock is a leaf.
final class CompletionQueue: Sendable {
    let id: UInt16
    let base: UInt64
    let entryCount: UInt32
    let vector: Int
    /// IEN.
    let interruptsEnabled: Bool
    let shadow = ShadowDoorbell()
    /// Up to where software has read, by its doorbell.
    private let head = Atomic<UInt32>(0)
    /// Up to where entries are posted, for those who do not hold the lock.
    private let postedTail = Atomic<UInt32>(0)
    /// The same, with the entry that is being written: software can have read it before ``postedTail`` tells of it.
    private let writtenTail = Atomic<UInt32>(0)

    private struct Posting {
        var tail: UInt32 = 0
        var phase = true
    }
    private let posting = Mutex(Posting())
    private let waiters = Mutex<[Semaphore]>([])
    private let waiterCount = Atomic<Int>(0)

    init(id: UInt16, base: UInt64, entryCount: UInt32, vector: Int, interruptsEnabled: Bool) {
        self.id = id
        self.base = base
        self.entryCount = entryCount
        self.vector = vector
        self.interruptsEnabled = interruptsEnabled
    }

    /// Whether entries stand in it that software has not said to have read.
    var hasEntries: Bool {
        let head = head.load(ordering: .sequentiallyConsistent)
        return head != postedTail.load(ordering: .sequentiallyConsistent)
            && head != writtenTail.load(ordering: .sequentiallyConsistent)
    }

    var headValue: UInt32 { head.load(ordering: .acquiring) }

    /// The doorbell: software has read up to `value`.
    ///
    /// - Returns: Whether the queue has such an entry.
    func ring(_ value: UInt32) -> Bool {
        guard value < entryCount else { return false }
        head.store(value, ordering: .sequentiallyConsistent)
        // Either this sees the waiter, or the waiter sees the new head.
        if waiterCount.load(ordering: .sequentiallyConsistent) > 0 {
            waiters.withLock { waiters in for waiter in waiters { waiter.signal() } }
        }
        return true
    }

    /// Writes an entry, if there is room.
    ///
    /// - Parameter wantsHead: Whether software should write the register when it has read this entry.
    /// - Returns: Whether there was room.
    func post(_ entry: CompletionEntry, _ port: any DMAPort, wantsHead: Bool) throws(DMAFault) -> Bool {
        var fault: DMAFault?
        let isPosted = posting.withLock { state in
            do throws(DMAFault) {
                guard try hasRoom(after: state.tail, port) else { return false }
                let place = base &+ UInt64(state.tail) &* UInt64(CompletionEntry.byteCount)
                try port.store(entry.result, .doubleword, at: IOVirtualAddress(place))
                let next = state.tail + 1 == entryCount ? 0 : state.tail + 1
                writtenTail.store(next, ordering: .sequentiallyConsistent)
                // The phase tag is in the second half: software that sees it sees the first half as well.
                try port.store(
                    entry.secondHalf(phase: state.phase),
                    .doubleword,
                    at: IOVirtualAddress(place &+ 8)
                )
                state.tail = next
                if next == 0 { state.phase.toggle() }
                postedTail.store(state.tail, ordering: .sequentiallyConsistent)
                if wantsHead, let value = try shadow.arm(headValue, port) { _ = ring(value) }
                return true
            } catch {
                writtenTail.store(state.tail, ordering: .sequentiallyConsistent)
                fault = error
                return false
            }
        }
        if let fault { throw fault }
        return isPosted
    }

    private func hasRoom(after tail: UInt32, _ port: any DMAPort) throws(DMAFault) -> Bool {
        let next = tail + 1 == entryCount ? 0 : tail + 1
        if next != headValue { return true }
        guard let value = try shadow.load(port), value < entryCount else { return false }
        head.store(value, ordering: .sequentiallyConsistent)
        if next != value { return true }
        guard let value = try shadow.arm(value, port), value < entryCount else { return false }
        head.store(value, ordering: .sequentiallyConsistent)
        return next != value
    }

    /// Has `waiter` signalled at each doorbell until ``endWaiting(_:)``.
    func beginWaiting(_ waiter: Semaphore) {
        waiters.withLock { $0.append(waiter) }
        waiterCount.add(1, ordering: .sequentiallyConsistent)
    }

    func endWaiting(_ waiter: Semaphore) {
        waiterCount.subtract(1, ordering: .sequentiallyConsistent)
        waiters.withLock { $0.removeAll { $0 === waiter } }
    }
}
