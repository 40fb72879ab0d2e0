// A command that waits for its answer.

import Glibc
import VFIOUserProtocol

/// What a thread waits for: set once, by whoever reads the socket or ends the connection.
final class PendingCall: @unchecked Sendable {
    // SAFETY of @unchecked Sendable: the pointers are to what pthreads makes for concurrent use, and `answer` is
    // only ever touched under `mutex`.
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>
    private var answer: Result<Answer, VFIOUserClientError>?

    /// A reply that has been checked against its command.
    struct Answer: Sendable {
        var reply: VFIOUserClientReply
        var descriptors: ReceivedDescriptors?
    }

    init() {
        mutex = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        condition = .allocate(capacity: 1)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        // Somebody who sets the clock must not make calls time out.
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        condition.deallocate()
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    /// Says what the waiter gets; only the first word counts.
    func complete(_ result: Result<Answer, VFIOUserClientError>) {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        guard answer == nil else { return }
        answer = result
        pthread_cond_signal(condition)
    }

    /// Waits for the answer; nil where none came in time.
    func wait(milliseconds: Int?) -> Result<Answer, VFIOUserClientError>? {
        let deadline = milliseconds.map(Self.deadline(after:))
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while answer == nil {
            guard var until = deadline else {
                pthread_cond_wait(condition, mutex)
                continue
            }
            if pthread_cond_timedwait(condition, mutex, &until) == ETIMEDOUT { break }
        }
        return answer
    }

    private static func deadline(after milliseconds: Int) -> timespec {
        var deadline = timespec()
        clock_gettime(CLOCK_MONOTONIC, &deadline)
        let clamped = max(0, min(milliseconds, 1 << 40))
        deadline.tv_sec += clamped / 1000
        deadline.tv_nsec += clamped % 1000 * 1_000_000
        if deadline.tv_nsec >= 1_000_000_000 {
            deadline.tv_sec += 1
            deadline.tv_nsec -= 1_000_000_000
        }
        return deadline
    }
}
