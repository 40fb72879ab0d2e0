// One accepted connection, as the thread that serves it sees it: blocking sends and receives that end when the
// server stops.

import CLinux
import Glibc
import Synchronization

/// A connected socket that a ``SocketServer`` lends to the thread that serves it.
///
/// The server closes it when that thread is done, and ends its waiting when it stops itself.
package final class Connection: Sendable {
    /// Counts the server's connections from 1.
    package let number: UInt64
    /// To lend to system calls.
    package let descriptor: CInt
    private let stop: StopSignal

    package init(number: UInt64, descriptor: CInt, stop: StopSignal) {
        self.number = number
        self.descriptor = descriptor
        self.stop = stop
    }

    /// Whether the server stops: what takes long is to be broken off.
    package var isStopping: Bool { stop.isSet }

    /// Waits for bytes.
    ///
    /// Descriptors that come along are closed by the kernel.
    ///
    /// - Returns: How many came, or 0: the client sends no more, or is gone, or the server stops.
    package func receive(into bytes: UnsafeMutableRawBufferPointer) -> Int {
        while !isStopping {
            let count = recv(descriptor, bytes.baseAddress, bytes.count, 0)
            if count >= 0 { return count }
            guard errno == EINTR else { return 0 }
        }
        return 0
    }

    /// The same, with the descriptors that come along.
    ///
    /// - Parameters:
    ///   - bytes: Where to put the bytes.
    ///   - descriptors: Room for `SMMUD_MAX_FDS` descriptors, which are then the caller's to close.
    /// - Returns: How many bytes and descriptors came; no bytes as for ``receive(into:)``. Descriptors that did
    ///   not all fit are all closed, and none are returned.
    package func receive(
        into bytes: UnsafeMutableRawBufferPointer,
        descriptors: UnsafeMutablePointer<CInt>
    ) -> (byteCount: Int, descriptorCount: Int) {
        guard !isStopping else { return (0, 0) }
        var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        var descriptorCount = 0
        var isTruncated = false
        let count = smmud_recv_fds(
            descriptor,
            &vector,
            1,
            descriptors,
            Int(SMMUD_MAX_FDS),
            &descriptorCount,
            &isTruncated,
            0
        )
        return (max(0, count), descriptorCount)
    }

    /// Sends all of `bytes`, waiting for a client that does not read.
    ///
    /// - Returns: Whether they went out; not, where the client is gone.
    package func send(_ bytes: UnsafeRawBufferPointer) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[sent...])
            let count = Glibc.send(descriptor, rest.baseAddress, rest.count, CInt(MSG_NOSIGNAL))
            if count >= 0 {
                sent += count
            } else if errno != EINTR {
                return false
            }
        }
        return true
    }

    /// Sends bytes with a descriptor that the client gets a duplicate of.
    ///
    /// - Returns: Whether they went out; not, where the client is gone.
    package func send(_ bytes: UnsafeRawBufferPointer, lending lent: CInt) -> Bool {
        var vector = iovec(
            iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress),
            iov_len: bytes.count
        )
        var lent = lent
        let sent = smmud_send_fds(descriptor, &vector, 1, &lent, 1, 0)
        guard sent > 0 else { return false }
        return send(UnsafeRawBufferPointer(rebasing: bytes[sent...]))
    }

    /// Ends both directions: whoever waits for this client waits no longer.
    package func abandon() { shutdown(descriptor, CInt(SHUT_RDWR)) }

    /// Waits until the client, which sends no more, has closed its end too, or the server stops.
    package func waitForHangUp() {
        // POLLHUP needs not be asked for, and comes only when both directions have ended.
        var entries = [
            pollfd(fd: descriptor, events: 0, revents: 0),
            pollfd(fd: stop.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        while poll(&entries, 2, -1) < 0, errno == EINTR {}
    }
}

/// Tells all threads of a server that it stops.
package final class StopSignal: Sendable {
    private let flag = Atomic(false)
    private let event: WakeEvent

    package init(_ event: WakeEvent) { self.event = event }

    /// Readable once the signal is set.
    package var descriptor: CInt { event.descriptor }

    // Relaxed: nothing else is read in its name, and whoever waits for it is woken through the event.
    package var isSet: Bool { flag.load(ordering: .relaxed) }

    /// Waits for it, at most so long.
    package func wait(milliseconds: Int32) { event.wait(milliseconds: milliseconds) }

    package func set() {
        flag.store(true, ordering: .relaxed)
        event.signal()
    }
}
