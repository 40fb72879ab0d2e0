// Threads of the system's, for tests whose bodies spin: the cooperative pool may be smaller than they are many.

import Glibc

/// One thread.
///
/// ``join()`` waits for its end.
package struct OSThread: ~Copyable {
    private final class Body: Sendable {
        let run: @Sendable () -> Void

        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private var thread = pthread_t()

    package init(_ body: @escaping @Sendable () -> Void) {
        let argument = Unmanaged.passRetained(Body(body)).toOpaque()
        let result = pthread_create(
            &thread,
            nil,
            { argument in
                if let argument { Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
                return nil
            },
            argument
        )
        precondition(result == 0, "pthread_create: \(result)")
    }

    package consuming func join() { pthread_join(thread, nil) }
}
