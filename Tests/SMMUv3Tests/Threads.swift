// Threads for the tests that need real ones.

import Glibc
import Synchronization

/// Runs a body on a thread of its own.
final class TestThread {
    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
    private var thread = pthread_t()

    init(_ body: @escaping @Sendable () -> Void) {
        let context = Unmanaged.passRetained(Body(body)).toOpaque()
        let error = pthread_create(
            &thread,
            nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
                return nil
            },
            context
        )
        precondition(error == 0, "no thread")
    }

    func join() { pthread_join(thread, nil) }
}

/// A flag between threads.
final class Flag: Sendable {
    private let value = Atomic(false)
    var isSet: Bool { value.load(ordering: .sequentiallyConsistent) }
    func set() { value.store(true, ordering: .sequentiallyConsistent) }
    func wait() { while !isSet { sched_yield() } }
}

/// A number between threads.
final class Count: Sendable {
    private let value = Atomic(0)
    var current: Int { value.load(ordering: .sequentiallyConsistent) }
    func increment() { value.add(1, ordering: .sequentiallyConsistent) }
    /// Waits until it is at least `target`.
    func wait(for target: Int) { while current < target { sched_yield() } }
}

/// Waits for what another thread does; a minute at most, so that a test that waits in vain fails and holds no
/// thread of the pool for ever.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    let deadline = ContinuousClock.now.advanced(by: .seconds(60))
    while try !condition() {
        if ContinuousClock.now > deadline { return false }
        sched_yield()
    }
    return true
}
