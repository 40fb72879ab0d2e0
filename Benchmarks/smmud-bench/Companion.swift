// A second thread for benchmarks, which sleeps while it is not wanted: single-thread samples have the machine alone.

import CLinux
import DeviceModel
import Glibc
import Synchronization

/// A thread that runs what it is given, when it is given.
final class Companion {
    /// What both threads see.
    ///
    /// Unchecked: `work` is written before the wake-up and read after it.
    private final class Shared: @unchecked Sendable {
        let wakeUp = Semaphore()
        var work: (@Sendable () -> Void)?
        let isReady = Atomic(false)
        let mayGo = Atomic(false)
        let hasBegun = Atomic(false)
        let isDone = Atomic(false)
        let isStopping = Atomic(false)

        func run() {
            while true {
                wakeUp.wait()
                guard let work else { return }
                isReady.store(true, ordering: .releasing)
                while !mayGo.load(ordering: .acquiring) { smmud_cpu_pause() }
                work()
                isDone.store(true, ordering: .releasing)
            }
        }
    }

    private let shared = Shared()
    private var thread = pthread_t()

    init() {
        pthread_create(
            &thread,
            nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Shared>.fromOpaque(context).takeRetainedValue().run()
                return nil
            },
            Unmanaged.passRetained(shared).toOpaque()
        )
    }

    deinit {
        shared.work = nil
        shared.wakeUp.signal()
        pthread_join(thread, nil)
    }

    /// Wakes the thread and waits until it stands at the line; it starts at ``Shared/mayGo``.
    private func wake(_ theirs: @escaping @Sendable () -> Void) {
        shared.work = theirs
        shared.isReady.store(false, ordering: .relaxed)
        shared.mayGo.store(false, ordering: .relaxed)
        shared.hasBegun.store(false, ordering: .relaxed)
        shared.isDone.store(false, ordering: .relaxed)
        shared.isStopping.store(false, ordering: .relaxed)
        shared.wakeUp.signal()
        while !shared.isReady.load(ordering: .acquiring) { smmud_cpu_pause() }
    }

    private func waitForEnd() {
        while !shared.isDone.load(ordering: .acquiring) { smmud_cpu_pause() }
    }

    /// Runs both at once.
    ///
    /// - Returns: Nanoseconds until both had ended.
    func together(_ theirs: @escaping @Sendable () -> Void, mine: () throws -> Void) rethrows -> Double {
        wake(theirs)
        let start = nanosecondsNow()
        shared.mayGo.store(true, ordering: .releasing)
        try mine()
        waitForEnd()
        return Double(nanosecondsNow() &- start)
    }

    /// Runs `theirs` again and again while `mine` runs once.
    ///
    /// - Returns: Nanoseconds that `mine` took.
    func meanwhile(_ theirs: @escaping @Sendable () -> Void, mine: () throws -> Void) rethrows -> Double {
        let shared = shared
        wake {
            repeat {
                theirs()
                shared.hasBegun.store(true, ordering: .relaxed)
            } while !shared.isStopping.load(ordering: .relaxed)
        }
        shared.mayGo.store(true, ordering: .releasing)
        while !shared.hasBegun.load(ordering: .relaxed) { smmud_cpu_pause() }
        let start = nanosecondsNow()
        defer {
            shared.isStopping.store(true, ordering: .relaxed)
            waitForEnd()
        }
        try mine()
        return Double(nanosecondsNow() &- start)
    }
}
