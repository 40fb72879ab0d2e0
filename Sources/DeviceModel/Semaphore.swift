// Waking a thread that waits.

import CLinux

/// A counting semaphore.
public final class Semaphore: @unchecked Sendable {
    // Unchecked: a semaphore is made for concurrent use.
    private let storage: UnsafeMutableRawPointer

    public init() {
        guard let storage = smmud_semaphore_create(0) else { preconditionFailure("no memory") }
        self.storage = storage
    }

    deinit { smmud_semaphore_destroy(storage) }

    /// Lets one waiter go on, now or when it comes.
    public func signal() { smmud_semaphore_signal(storage) }

    /// Waits for a signal.
    public func wait() { _ = smmud_semaphore_wait(storage, -1) }

    /// Waits for a signal, but not for ever.
    ///
    /// - Returns: Whether one came.
    public func wait(until deadline: ContinuousClock.Instant) -> Bool {
        let left = max(.zero, ContinuousClock.now.duration(to: deadline)).components
        let (seconds, isTooLong) = left.seconds.multipliedReportingOverflow(by: 1_000_000_000)
        let nanoseconds = left.attoseconds / 1_000_000_000
        let (end, overflow) = smmud_monotonic_nanoseconds().addingReportingOverflow(seconds &+ nanoseconds)
        // Too far away for the clock: that is for ever.
        return smmud_semaphore_wait(storage, isTooLong || overflow ? -1 : end)
    }
}
