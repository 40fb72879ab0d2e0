// A descriptor that becomes readable when somebody says so: how a thread that polls is woken.

import CLinux
import Glibc
package import SystemPackage

/// An eventfd.
///
/// Readable from the first ``signal()`` on, until it is ``reset()``.
package final class WakeEvent: Sendable {
    /// To poll for `POLLIN`.
    package let descriptor: CInt

    /// - Throws: The system's error: `EMFILE` where the process may open no more.
    package init() throws(Errno) {
        let descriptor = smmud_eventfd()
        guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
        self.descriptor = descriptor
    }

    deinit { _ = close(descriptor) }

    /// Makes it readable.
    package func signal() {
        // Fails only where the counter is full, and then it is readable.
        var one: UInt64 = 1
        _ = write(descriptor, &one, MemoryLayout<UInt64>.size)
    }

    /// Makes it unreadable until the next signal.
    package func reset() {
        var count: UInt64 = 0
        _ = read(descriptor, &count, MemoryLayout<UInt64>.size)
    }

    /// Waits until it is readable, at most so long; nil is for ever.
    package func wait(milliseconds: Int32?) {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        // An interrupted wait is a short one, and every caller looks for itself at what it waits for.
        _ = poll(&entry, 1, milliseconds ?? -1)
    }
}
