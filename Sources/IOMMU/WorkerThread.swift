// A thread that sleeps until it is kicked, runs its body once for any number of kicks, and sleeps again.

import Glibc
import Synchronization

/// A POSIX semaphore with a place of its own in memory.
///
/// Posting is a leaf: it takes no lock and waits for nobody.
//
// SAFETY of @unchecked Sendable: the pointer is set once, and semaphores are made for many threads.
@safe
private final class Semaphore: @unchecked Sendable {
    private let storage: UnsafeMutablePointer<sem_t>

    init() {
        unsafe storage = .allocate(capacity: 1)
        unsafe storage.initialize(to: sem_t())
        let status = unsafe sem_init(storage, 0, 0)
        precondition(status == 0, "sem_init fails for wrong arguments only")
    }

    func post() { _ = unsafe sem_post(storage) }

    func wait() {
        // A signal handler's return is the one reason to wake up early.
        while unsafe sem_wait(storage) != 0, errno == EINTR {}
    }

    // SAFETY: whoever waits or posts holds a reference, so nobody does any more.
    deinit {
        unsafe sem_destroy(storage)
        unsafe storage.deallocate()
    }
}

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
        if !loop.isKicked.exchange(true, ordering: .acquiringAndReleasing) { loop.semaphore.post() }
    }

    /// Ends the thread after the body that runs now.
    ///
    /// To be called once.
    func stop() {
        loop.isStopping.store(true, ordering: .releasing)
        loop.semaphore.post()
        // The body may hold the last reference to the thread's owner, whose end is why we are here.
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            _ = pthread_join(thread, nil)
        }
    }
}
