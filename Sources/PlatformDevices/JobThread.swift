// One thread of a device that works its jobs off, and can be told to stop.

import DeviceModel
import Glibc
import HostIO
import Synchronization
import SystemPackage

/// Runs jobs, one after the other, on a thread of its own.
///
/// Lock order: its lock is a leaf; jobs run without it.
final class JobThread: Sendable {
    private struct State {
        var jobs: [Int] = []
        var isBusy = false
        var isTerminating = false
        var waiters: [DeviceModel.Semaphore] = []
        var thread: SystemThread.Handle?
    }
    private let state = Mutex(State())
    private let wake = Semaphore()
    /// Counts cancellations: a job that sees another number than at its start gives up.
    private let epoch = Atomic<UInt64>(0)

    /// Starts the thread.
    ///
    /// - Parameter body: Does one job, and looks at ``isCancelled(since:)`` at each step.
    /// - Throws: `EAGAIN` where the host permits no more threads.
    func start(named name: String, _ body: @escaping @Sendable (_ job: Int, _ epoch: UInt64) -> Void)
        throws(Errno)
    {
        let handle = try SystemThread.start(named: name) { self.run(body) }
        // Nobody waits for its end: it may be the one that lets go of the device last.
        pthread_detach(handle)
    }

    private func run(_ body: (Int, UInt64) -> Void) {
        state.withLock { $0.thread = pthread_self() }
        while true {
            wake.wait()
            let next: (job: Int, epoch: UInt64)? = state.withLock { state in
                guard !state.isTerminating, !state.jobs.isEmpty else { return nil }
                state.isBusy = true
                return (state.jobs.removeFirst(), epoch.load(ordering: .acquiring))
            }
            if let next { body(next.job, next.epoch) }
            let isTerminating = state.withLock { state in
                state.isBusy = false
                for waiter in state.waiters { waiter.signal() }
                state.waiters = []
                return state.isTerminating
            }
            if isTerminating { return }
        }
    }

    /// Adds a job; the caller sees to it that there are no more than it has places for.
    func enqueue(_ job: Int) {
        state.withLock { $0.jobs.append(job) }
        wake.signal()
    }

    func isCancelled(since epoch: UInt64) -> Bool { self.epoch.load(ordering: .acquiring) != epoch }

    /// Drops all jobs and waits for the end of the one that runs, which gives up.
    ///
    /// On the thread itself it does not wait: a job that resets its own device by DMA would wait for itself.
    func cancel() {
        let waiter: DeviceModel.Semaphore? = state.withLock { state in
            epoch.wrappingAdd(1, ordering: .sequentiallyConsistent)
            state.jobs = []
            guard state.isBusy else { return nil }
            if let thread = state.thread, pthread_equal(thread, pthread_self()) != 0 { return nil }
            let waiter = Semaphore()
            state.waiters.append(waiter)
            return waiter
        }
        waiter?.wait()
    }

    /// Ends the thread; does not wait.
    func terminate() {
        epoch.wrappingAdd(1, ordering: .sequentiallyConsistent)
        state.withLock { state in
            state.jobs = []
            state.isTerminating = true
        }
        wake.signal()
    }
}
