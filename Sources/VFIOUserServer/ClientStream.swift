// The bytes and descriptors of one connection, in and out: a socket, or whatever stands for one.

import CLinux
import Glibc
package import HostIO
import Synchronization

/// A stream with one client.
///
/// One thread receives; any thread sends, and what one sends is never torn apart by what another does.
package protocol ClientStream: AnyObject, Sendable {
    /// Waits for bytes.
    ///
    /// - Returns: How many came; 0 at the end.
    func receive(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors) -> Int
    /// Takes bytes that are there already.
    ///
    /// - Returns: As for ``receive(into:_:)``; nil where it would wait.
    func receiveAtOnce(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors)
        -> Int?
    /// Sends all of `bytes`, with descriptors that the client gets duplicates of attached to the first of them.
    ///
    /// - Returns: Whether they went out. Where not, nothing more will, unless nothing went before the deadline.
    func send(_ bytes: UnsafeRawBufferPointer, lending descriptors: [CInt], until deadline: Deadline) -> Bool
    /// Ends both directions: nobody waits for this client any longer.
    func abandon()
}

/// Descriptors that came with a message; those that nobody takes are closed.
package struct ReceivedDescriptors: ~Copyable {
    private(set) var numbers: [CInt] = []
    /// Whether there were more than could be received, which were all closed.
    private(set) var areLost = false

    package init() {}

    package init(adopting numbers: [CInt], areLost: Bool = false) {
        self.numbers = numbers
        self.areLost = areLost
    }

    var isEmpty: Bool { numbers.isEmpty && !areLost }
    var count: Int { numbers.count }

    /// Takes the first, to be closed by the caller.
    mutating func takeFirst() -> CInt? { numbers.isEmpty ? nil : numbers.removeFirst() }

    /// Takes what another holds, in place of what this one does.
    package mutating func replace(with other: inout ReceivedDescriptors) {
        closeAll()
        swap(&numbers, &other.numbers)
        swap(&areLost, &other.areLost)
    }

    /// Notes what came; nothing is held before.
    mutating func hold(_ received: UnsafeBufferPointer<CInt>, areLost: Bool) {
        closeAll()
        numbers.append(contentsOf: received)
        self.areLost = areLost
    }

    mutating func closeAll() {
        for number in numbers { close(number) }
        numbers.removeAll(keepingCapacity: true)
        areLost = false
    }

    deinit { for number in numbers { close(number) } }
}

/// A connected socket, which is closed with it.
final class ClientSocket: ClientStream {
    private let descriptor: CInt
    /// Who sends: a lock that can be waited for with an end.
    private let turn = TimedSemaphore(value: 1)

    /// Takes over a connected socket.
    init(adopting descriptor: CInt) { self.descriptor = descriptor }

    deinit {
        // What is unread when a Unix socket is closed becomes an error at the other end, which is to read the last
        // answer first.
        shutdown(descriptor, CInt(SHUT_RDWR))
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 1) { bytes in
            while recv(descriptor, bytes.baseAddress, bytes.count, CInt(MSG_DONTWAIT)) > 0 {}
        }
        close(descriptor)
    }

    func receive(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors) -> Int {
        max(0, receive(into: bytes, &descriptors, flags: 0))
    }

    func receiveAtOnce(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors)
        -> Int?
    {
        let count = receive(into: bytes, &descriptors, flags: CInt(MSG_DONTWAIT))
        return count == -Int(EAGAIN) ? nil : max(0, count)
    }

    /// Returns how many bytes came, or a negated error.
    private func receive(
        into bytes: UnsafeMutableRawBufferPointer,
        _ descriptors: inout ReceivedDescriptors,
        flags: CInt
    ) -> Int {
        var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        var count = 0
        var isTruncated = false
        return withUnsafeTemporaryAllocation(of: CInt.self, capacity: Int(SMMUD_MAX_FDS)) { numbers in
            let byteCount = smmud_recv_fds(
                descriptor,
                &vector,
                1,
                numbers.baseAddress,
                numbers.count,
                &count,
                &isTruncated,
                flags
            )
            if count > 0 || isTruncated {
                descriptors.hold(UnsafeBufferPointer(rebasing: numbers[..<count]), areLost: isTruncated)
            }
            return byteCount
        }
    }

    func send(_ bytes: UnsafeRawBufferPointer, lending descriptors: [CInt], until deadline: Deadline) -> Bool
    {
        guard turn.wait(until: deadline) else { return false }
        defer { turn.signal() }
        // Most messages are short and have no descriptors.
        if descriptors.isEmpty, deadline.nanoseconds < 0 {
            let count = Glibc.send(descriptor, bytes.baseAddress, bytes.count, CInt(MSG_NOSIGNAL))
            if count == bytes.count { return true }
            if count > 0 { return sendRest(of: bytes, after: count, [], until: deadline) }
        }
        return sendRest(of: bytes, after: 0, descriptors, until: deadline)
    }

    /// Sends what was not sent yet, whose turn it is.
    @inline(never)  // Keeps the way of short messages small.
    private func sendRest(
        of bytes: UnsafeRawBufferPointer,
        after count: Int,
        _ descriptors: [CInt],
        until deadline: Deadline
    ) -> Bool {
        var sent = count
        while sent < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[sent...])
            let count = sendOnce(rest, sent == 0 ? descriptors : [], waits: deadline.nanoseconds < 0)
            if count >= 0 {
                sent += count
                continue
            }
            guard count == -Int(EAGAIN), waitForRoom(until: deadline) else {
                // Half a message is the end of the stream.
                if sent > 0 || count != -Int(EAGAIN) { abandon() }
                return false
            }
        }
        return true
    }

    /// Returns how many bytes went, or a negated error.
    private func sendOnce(_ bytes: UnsafeRawBufferPointer, _ descriptors: [CInt], waits: Bool) -> Int {
        let flags = waits ? 0 : CInt(MSG_DONTWAIT)
        guard descriptors.isEmpty else {
            var vector = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress),
                iov_len: bytes.count
            )
            return smmud_send_fds(descriptor, &vector, 1, descriptors, descriptors.count, flags)
        }
        while true {
            let count = Glibc.send(descriptor, bytes.baseAddress, bytes.count, flags | CInt(MSG_NOSIGNAL))
            if count >= 0 { return count }
            guard errno == EINTR else { return -Int(errno) }
        }
    }

    private func waitForRoom(until deadline: Deadline) -> Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        while true {
            let milliseconds = deadline.millisecondsLeft
            let count = poll(&entry, 1, milliseconds)
            if count > 0 { return true }
            guard count < 0, errno == EINTR else { return false }
        }
    }

    func abandon() { shutdown(descriptor, CInt(SHUT_RDWR)) }
}
