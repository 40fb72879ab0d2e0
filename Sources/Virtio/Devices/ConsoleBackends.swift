// Where a console's bytes go on the host: descriptors, a pseudoterminal, a Unix socket.

import CLinux
package import Glibc
package import HostIO
import Synchronization
package import SystemPackage

/// The host's end of a console.
///
/// All calls return at once. Sending may happen from any thread; the rest is of the console's own thread.
package protocol ConsoleBackend: AnyObject, Sendable {
    /// What to wait for.
    func pollEntries(reading: Bool, writing: Bool) -> [pollfd]
    /// Called each time that the console's thread wakes, before anything else.
    func prepare()
    /// Sends bytes, as many as can be now; nil where nobody is there to take them.
    func send(_ bytes: UnsafeRawBufferPointer) -> Int?
    /// Takes bytes that have arrived; nil or 0 where there are none.
    func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int?
}

/// A console on descriptors: a pseudoterminal, a file, a pipe.
package final class ConsoleDescriptors: ConsoleBackend {
    private let input: CInt
    private let output: CInt
    /// The other side of a pseudoterminal: while it is open, reading the master does not fail for want of one.
    private let companion: CInt
    private let isInputOver = Atomic(false)

    /// Takes descriptors over, and makes them non-blocking; -1 is none.
    package init(input: CInt, output: CInt) {
        (self.input, self.output, companion) = (input, output, -1)
        Self.makeNonBlocking(input)
        Self.makeNonBlocking(output)
    }

    private init(master: CInt, companion: CInt) {
        (input, output, self.companion) = (master, master, companion)
        Self.makeNonBlocking(master)
    }

    deinit {
        if input >= 0 { close(input) }
        if output >= 0, output != input { close(output) }
        if companion >= 0 { close(companion) }
    }

    private static func makeNonBlocking(_ descriptor: CInt) {
        guard descriptor >= 0 else { return }
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
    }

    /// What the console prints goes to the end of a file, which is made if need be; there is no input.
    package static func file(_ path: String) throws(Errno) -> ConsoleDescriptors {
        let descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR)
        guard descriptor >= 0 else { throw Errno(rawValue: errno) }
        return ConsoleDescriptors(input: -1, output: descriptor)
    }

    /// A new pseudoterminal in raw mode; a terminal program opens the path.
    package static func pseudoterminal() throws(Errno) -> (backend: ConsoleDescriptors, path: String) {
        var name = [CChar](repeating: 0, count: 128)
        var companion: CInt = -1
        let master = smmud_open_pseudoterminal(&name, name.count, &companion)
        guard master >= 0 else { throw Errno(rawValue: -master) }
        let path = String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return (ConsoleDescriptors(master: master, companion: companion), path)
    }

    package func pollEntries(reading: Bool, writing: Bool) -> [pollfd] {
        var entries: [pollfd] = []
        if reading, input >= 0, !isInputOver.load(ordering: .relaxed) {
            entries.append(pollfd(fd: input, events: Int16(POLLIN), revents: 0))
        }
        if writing, output >= 0 { entries.append(pollfd(fd: output, events: Int16(POLLOUT), revents: 0)) }
        return entries
    }

    package func prepare() {}

    package func send(_ bytes: UnsafeRawBufferPointer) -> Int? {
        guard output >= 0 else { return nil }
        let count = write(output, bytes.baseAddress, bytes.count)
        if count >= 0 { return count }
        return errno == EAGAIN || errno == EINTR ? 0 : nil
    }

    package func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int? {
        guard input >= 0 else { return nil }
        let count = read(input, buffer.baseAddress, buffer.count)
        // The end, or an error that stays: nothing comes any more, and nothing is waited for.
        if count == 0 || count < 0 && errno != EAGAIN && errno != EINTR {
            isInputOver.store(true, ordering: .relaxed)
        }
        return count > 0 ? count : nil
    }
}

/// A console behind a Unix socket: one client at a time, the next when it has gone.
package final class ConsoleSocket: ConsoleBackend {
    private let listener: UnixListener
    /// The client's descriptor; -1 is none.
    private let client = Mutex<CInt>(-1)

    package init(path: String) throws(ListenerError) { listener = try UnixListener(path: path) }

    deinit {
        client.withLock { if $0 >= 0 { close($0) } }
        listener.close()
    }

    package func pollEntries(reading: Bool, writing: Bool) -> [pollfd] {
        let descriptor = client.withLock { $0 }
        guard descriptor >= 0 else {
            return [pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0)]
        }
        // A client that has gone is seen by reading or writing, not by waiting for neither.
        guard reading || writing else { return [] }
        let events = (reading ? POLLIN : 0) | (writing ? POLLOUT : 0)
        return [pollfd(fd: descriptor, events: Int16(events), revents: 0)]
    }

    package func prepare() {
        client.withLock { client in
            guard client < 0 else { return }
            let accepted = smmud_accept(listener.descriptor)
            guard accepted >= 0 else { return }
            _ = fcntl(accepted, F_SETFL, fcntl(accepted, F_GETFL) | O_NONBLOCK)
            client = accepted
        }
    }

    package func send(_ bytes: UnsafeRawBufferPointer) -> Int? {
        // Under the lock: the descriptor must not be closed, and its number taken by another, meanwhile.
        client.withLock { client in
            guard client >= 0 else { return nil }
            var vector = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress),
                iov_len: bytes.count
            )
            let count = smmud_send_fds(client, &vector, 1, nil, 0, 0)
            if count >= 0 { return Int(count) }
            if Int32(count) == -EAGAIN { return 0 }
            hangUp(&client)
            return nil
        }
    }

    package func receive(_ buffer: UnsafeMutableRawBufferPointer) -> Int? {
        client.withLock { client in
            guard client >= 0 else { return nil }
            let count = read(client, buffer.baseAddress, buffer.count)
            if count > 0 { return count }
            if count == 0 || errno != EAGAIN && errno != EINTR { hangUp(&client) }
            return nil
        }
    }

    private func hangUp(_ client: inout CInt) {
        close(client)
        client = -1
    }
}
