// The time that counters of clock cycles count, and being woken when one of them overflows.

import Glibc

/// A counter group's clock: one cycle is one nanosecond of a continuous time base.
///
/// A leaf: it is read and set under the group's lock.
package protocol PMCGTimer: AnyObject, Sendable {
    /// The time in nanoseconds; it never goes back.
    var now: UInt64 { get }
    /// Has `wake` called once when the time has come, in place of any earlier wish; nil is never.
    ///
    /// `wake` is called without a lock held, soon after the time and never before it.
    func arm(_ deadline: UInt64?, _ wake: @escaping @Sendable () -> Void)
    /// Calls nobody any more.
    ///
    /// When this returns, nobody is being called either, unless it was `wake` that called this.
    func stop()
}

/// The host's monotonic clock.
///
/// It has a thread only once a counter of cycles is to interrupt within the next years.
package final class HostTimer: PMCGTimer {
    /// Deadlines after this, about 146 years from the start of the clock, are never.
    private static let never: UInt64 = 1 << 62
    private let alarm = Alarm()

    package init() {}

    deinit { alarm.stop() }

    package var now: UInt64 { Alarm.now }

    package func arm(_ deadline: UInt64?, _ wake: @escaping @Sendable () -> Void) {
        alarm.arm(deadline.flatMap { $0 < Self.never ? $0 : nil } ?? .max, wake)
    }

    package func stop() { alarm.stop() }
}

/// A thread that sleeps until a time of the monotonic clock, and what it shares with those who set the time.
///
/// The thread holds on to this, not to the timer, which may go while it sleeps.
//
// SAFETY of @unchecked Sendable: the variables are only ever touched under the mutex, which does not move.
private final class Alarm: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    /// `UInt64.max` is never.
    private var deadline = UInt64.max
    private var wake: (@Sendable () -> Void)?
    private var thread: pthread_t?
    private var isStopped = false

    init() {
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(truncatingIfNeeded: time.tv_sec) &* 1_000_000_000
            &+ UInt64(truncatingIfNeeded: time.tv_nsec)
    }

    private func withLock<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    func arm(_ newDeadline: UInt64, _ newWake: @escaping @Sendable () -> Void) {
        withLock {
            guard !isStopped, deadline != newDeadline else { return }
            deadline = newDeadline
            wake = newWake
            if thread == nil { thread = startThread() }
            pthread_cond_signal(condition)
        }
    }

    func stop() {
        let thread = withLock {
            isStopped = true
            pthread_cond_signal(condition)
            defer { self.thread = nil }
            return self.thread
        }
        guard let thread else { return }
        // The thread itself may hold the last reference to whoever stops.
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            pthread_join(thread, nil)
        }
    }

    /// Nil where the process cannot have another thread: then overflows show when software looks.
    private func startThread() -> pthread_t? {
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(self)
        let status = pthread_create(
            &thread,
            nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Alarm>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            },
            argument.toOpaque()
        )
        guard status == 0 else {
            argument.release()
            return nil
        }
        return thread
    }

    private func run() {
        while let wake = withLock({ waitForDeadline() }) { wake() }
    }

    /// Sleeps with the lock given up; what to call then, nil at the end.
    private func waitForDeadline() -> (@Sendable () -> Void)? {
        while !isStopped {
            if deadline == .max {
                pthread_cond_wait(condition, mutex)
            } else if deadline <= Self.now, let wake {
                deadline = .max
                return wake
            } else {
                var time = timespec()
                time.tv_sec = time_t(truncatingIfNeeded: deadline / 1_000_000_000)
                time.tv_nsec = Int(truncatingIfNeeded: deadline % 1_000_000_000)
                pthread_cond_timedwait(condition, mutex, &time)
            }
        }
        return nil
    }
}
