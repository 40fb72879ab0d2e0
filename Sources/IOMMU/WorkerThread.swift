// A thread that sleeps until it is kicked, runs its body once for any number of kicks, and sleeps again.

import DeviceModel
import Glibc
import Synchronization

/// One of the driver's interrupt threads.
final class WorkerThread: Sendable {
    /// What the thread itself holds on to: not its owner, which may go while it sleeps.
    private final class Loop: Sendable {
        let semaphore = Semaphore()
        let isKicked = Atomic(false)
        let isStopping = Atomic(false)
        let body: @Sendable () -> Void

        init(_ body: @escaping @Sendable () -> Void) { self.body = body }

        func run() {
            while true {
                semaphore.wait()
                if isStopping.load(ordering: .acquiring) { return }
                // Cleared before the body looks: a kick from now on makes it look again.
                if isKicked.exchange(false, ordering: .acquiringAndReleasing) { body() }
            }
        }
    }

    private let loop: Loop
    private let thread: pthread_t

    /// Starts a thread.
    init(_ body: @escaping @Sendable () -> Void) {
        let loop = Loop(body)
        self.loop = loop
        var thread = pthread_t()
        // SAFETY: the reference that is passed is the one that the thread takes over.
        let argument = unsafe Unmanaged.passRetained(loop).toOpaque()
        let status = unsafe pthread_create(
            &thread,
            nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                unsafe Unmanaged<Loop>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            },
            argument
        )
        precondition(status == 0, "the process cannot have another thread")
        self.thread = thread
    }

    /// Makes the body run soon.
    ///
    /// Takes no lock, so it can be called under any.
    func kick() {
        if !loop.isKicked.exchange(true, ordering: .acquiringAndReleasing) { loop.semaphore.signal() }
    }

    /// Ends the thread after the body that runs now.
    ///
    /// To be called once.
    func stop() {
        loop.isStopping.store(true, ordering: .releasing)
        loop.semaphore.signal()
        // The body may hold the last reference to the thread's owner, whose end is why we are here.
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            _ = pthread_join(thread, nil)
        }
    }
}
