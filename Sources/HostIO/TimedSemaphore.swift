// Waiting for another thread, but not for ever.

import CLinux

/// A moment on the clock that nobody sets.
package struct Deadline: Sendable {
    /// On the monotonic clock; negative is never.
    package let nanoseconds: Int64

    /// So long from now.
    package init(milliseconds: Int64) {
        let now = smmud_monotonic_nanoseconds()
        let (span, tooLong) = max(0, milliseconds).multipliedReportingOverflow(by: 1_000_000)
        let (end, overflow) = now.addingReportingOverflow(span)
        nanoseconds = tooLong || overflow ? -1 : end
    }

    private init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    package static let never = Deadline(nanoseconds: -1)

    /// How long it is until then, rounded up, as poll(2) takes it: -1 is for ever.
    package var millisecondsLeft: Int32 {
        guard nanoseconds >= 0 else { return -1 }
        let left = max(0, nanoseconds - smmud_monotonic_nanoseconds())
        return Int32(clamping: (left + 999_999) / 1_000_000)
    }
}

/// A counting semaphore whose waiters can give up.
package final class TimedSemaphore: @unchecked Sendable {
    // Unchecked: a semaphore is made for concurrent use.
    private let storage: UnsafeMutableRawPointer

    package init(value: UInt32 = 0) {
        guard let storage = smmud_semaphore_create(value) else { preconditionFailure("no memory") }
        self.storage = storage
    }

    deinit { smmud_semaphore_destroy(storage) }

    /// Lets one waiter go on, now or when it comes.
    package func signal() { smmud_semaphore_signal(storage) }

    /// Waits for a signal.
    ///
    /// - Returns: Whether one came before the deadline.
    package func wait(until deadline: Deadline = .never) -> Bool {
        smmud_semaphore_wait(storage, deadline.nanoseconds)
    }
}
