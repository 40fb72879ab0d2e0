// Waking a thread that waits.

import Glibc

/// A counting semaphore.
package final class Semaphore: @unchecked Sendable {
    // Unchecked: sem_t is made for concurrent use.
    private let storage: UnsafeMutablePointer<sem_t>

    package init() {
        storage = .allocate(capacity: 1)
        sem_init(storage, 0, 0)
    }

    deinit {
        sem_destroy(storage)
        storage.deallocate()
    }

    /// Lets one waiter go on, now or when it comes.
    package func signal() { sem_post(storage) }

    /// Waits for a signal.
    package func wait() {
        while sem_wait(storage) != 0 {
            // EINTR: a signal handler ran. Nothing else can fail.
        }
    }
}
