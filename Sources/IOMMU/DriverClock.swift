// How the driver waits: for registers, for room in the command queue, for CMD_SYNC.

import Glibc

/// Time as the driver sees it.
///
/// A test, or a run that must repeat bit for bit, brings its own.
package protocol DriverClock: Sendable {
    /// Nanoseconds since some fixed moment; never goes back.
    func nanoseconds() -> UInt64
    /// Lets time pass between two looks at the hardware.
    ///
    /// - Parameter attempt: How often it was called in this wait before.
    func pause(attempt: Int)
}

/// The machine's own clock: looks again at once at first, then lets other threads run, then sleeps.
package struct MonotonicClock: DriverClock {
    private let start = ContinuousClock.now

    package init() {}

    package func nanoseconds() -> UInt64 {
        let elapsed = (ContinuousClock.now - start).components
        return UInt64(max(0, elapsed.seconds)) &* 1_000_000_000 &+ UInt64(elapsed.attoseconds / 1_000_000_000)
    }

    package func pause(attempt: Int) {
        switch attempt {
        case ..<10: break
        case ..<100: sched_yield()
        // Twice as long each time, up to a millisecond.
        default: usleep(UInt32(min(1000, 1 << min(10, attempt - 100))))
        }
    }
}

/// One wait with an end.
struct Deadline {
    private let clock: any DriverClock
    private let end: UInt64
    private var attempt = 0

    /// ARM_SMMU_POLL_TIMEOUT_US.
    static let pollNanoseconds: UInt64 = 1_000_000_000

    init(_ clock: any DriverClock, nanoseconds: UInt64 = pollNanoseconds) {
        self.clock = clock
        end = clock.nanoseconds() &+ nanoseconds
    }

    /// Lets time pass.
    ///
    /// - Returns: False once the time is over; the caller looks a last time and gives up.
    mutating func wait() -> Bool {
        guard clock.nanoseconds() < end else { return false }
        clock.pause(attempt: attempt)
        attempt += 1
        return true
    }
}
