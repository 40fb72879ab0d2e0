// Whether it is worth looking for work for a while before sleeping.

import CLinux
import Glibc

/// Decides for one thread that waits for work, as messages or requests, whether it polls before it sleeps.
///
/// To be woken costs a thread and its waker more than a short message takes to be answered, most of all on a virtual
/// machine, where a processor that has gone idle is woken by an interrupt of the host's. A client that spins until it
/// is answered sends its next message soon. But who polls in vain takes a processor from others, maybe from the
/// client itself. So a thread polls only where most of its last waits were short enough for it to pay, and stops
/// for a while where it was held up at it: then somebody else wants the processor.
///
/// Times are in nanoseconds on a monotonic clock.
package struct WaitPolling: Sendable {
    /// How long one wait polls at most; 0 is never.
    package let limit: Int64
    /// How many of the last waits were short, in 256ths, with a weight of an eighth for the last one.
    private var shortShare = 0
    /// For how many waits there is no polling.
    private var pausedCount = 0
    /// For how many the next pause is.
    private var nextPause = pauseMin

    private static let weight = 8
    /// Three of eight: a request that unmaps twice is worth it, one that unmaps once is not.
    private static let worthwhileShare = 96
    private static let pauseMin = 4
    private static let pauseMax = 256
    /// No two looks are so far apart unless somebody else had the processor meanwhile, and for long; who is to look for
    /// very long may be held up for longer.
    private var heldUp: Int64 { max(200_000, limit / 1000) }

    package init(limit: Int64) { self.limit = limit }

    /// Whether the next wait should begin with polling.
    package var isWorthwhile: Bool { limit > 0 && pausedCount == 0 && shortShare >= Self.worthwhileShare }

    /// A poll goes on: two looks were at these times, and the first of all at `began`.
    ///
    /// - Returns: Whether to look again.
    package mutating func goesOn(since began: Int64, from last: Int64, to now: Int64) -> Bool {
        if now - last > heldUp {
            pausedCount = nextPause
            nextPause = min(nextPause * 2, Self.pauseMax)
            return false
        }
        return now - began < limit
    }

    /// Between two looks, after so many of them.
    package static func pause(after looks: Int) {
        if looks & 7 == 0 {
            // Whoever else wants this processor gets it: maybe a device's thread, or the client's.
            sched_yield()
        } else {
            for _ in 0..<8 { smmud_cpu_pause() }
        }
    }

    /// A wait has ended with work, after so long, polling or asleep.
    package mutating func ended(after duration: Int64) {
        let isShort = duration <= limit
        shortShare += (isShort ? 256 : 0) / Self.weight - shortShare / Self.weight
        if pausedCount > 0 {
            pausedCount -= 1
        } else if isShort {
            nextPause = max(Self.pauseMin, nextPause - nextPause / 16)
        }
    }
}

/// One thread's waits for work that it finds in memory: it looks before it has itself woken, where that pays.
///
/// While it looks, whoever has work for it need not say so: on a virtual machine the notification costs its
/// sender more than the work itself does.
package struct WorkWait: Sendable {
    private var polling: WaitPolling
    /// When the wait began that has not ended.
    private var began: Int64?

    /// - Parameter limitMicroseconds: How long one wait looks at most; 0 is not at all.
    package init(limitMicroseconds: Int) { polling = WaitPolling(limit: Int64(limitMicroseconds) * 1000) }

    /// There is nothing to do: looks for a while, where that pays.
    ///
    /// - Parameter hasWork: Looks once. It is called often, and has to say yes, or throw, where there will be no more.
    /// - Returns: Whether there is work; where not, it is time to sleep.
    package mutating func looks<Failure: Error>(_ hasWork: () throws(Failure) -> Bool) throws(Failure) -> Bool
    {
        guard polling.limit > 0 else { return false }
        let start = smmud_monotonic_nanoseconds()
        if began == nil { began = start }
        guard polling.isWorthwhile else { return false }
        var now = start
        var last: Int64
        var looks = 0
        repeat {
            if try hasWork() { return true }
            looks += 1
            WaitPolling.pause(after: looks)
            last = now
            now = smmud_monotonic_nanoseconds()
        } while polling.goesOn(since: start, from: last, to: now)
        return false
    }

    /// There is work, found by looking or after a sleep.
    package mutating func found() {
        guard let began else { return }
        self.began = nil
        polling.ended(after: smmud_monotonic_nanoseconds() - began)
    }
}
