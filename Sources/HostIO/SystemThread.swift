// Threads of our own for I/O that blocks: Swift's tasks share few threads, which must not be held up.

package import CLinux
import Glibc
package import SystemPackage

/// Starts and joins threads.
package enum SystemThread {
    /// What pthreads calls a thread.
    ///
    /// To be given to ``join(_:)`` exactly once.
    package typealias Handle = pthread_t

    /// Starts a thread.
    ///
    /// - Parameters:
    ///   - name: For debuggers; its first 15 bytes count.
    ///   - body: What it does.
    /// - Throws: `EAGAIN` where the host permits no more threads.
    package static func start(named name: String, _ body: @escaping @Sendable () -> Void) throws(Errno)
        -> Handle
    {
        let start = Unmanaged.passRetained(Start(name: name, body: body))
        var handle = pthread_t()
        let error = pthread_create(
            &handle,
            nil,
            { argument in
                guard let argument else { return nil }
                let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                smmud_name_thread(start.name)
                start.body()
                return nil
            },
            start.toOpaque()
        )
        guard error == 0 else {
            start.release()
            throw Errno(rawValue: error)
        }
        return handle
    }

    /// Waits for a thread's end.
    package static func join(_ handle: Handle) { pthread_join(handle, nil) }

    /// Does what blocks on a thread of its own while the task waits.
    package static func run(named name: String, _ body: @escaping @Sendable () -> Void) async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            do throws(Errno) {
                let handle = try start(named: name) {
                    body()
                    continuation.resume()
                }
                pthread_detach(handle)
            } catch {
                // Without a thread to spare it is better to hold this one up than not to do it.
                body()
                continuation.resume()
            }
        }
    }

    private final class Start: Sendable {
        let name: String
        let body: @Sendable () -> Void

        init(name: String, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }
}
