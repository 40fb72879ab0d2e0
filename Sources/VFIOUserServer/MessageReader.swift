// Messages out of a client's stream with as few system calls as there can be.

import CLinux
import Glibc
import HostIO
import VFIOUserProtocol

/// The bytes that came and were not taken yet, and whose the descriptors are that came along.
///
/// A descriptor belongs to the message whose first byte came with it. Linux lets one receive end with the piece that
/// brought descriptors along, and of bytes that came together nobody can tell which of them that piece began with. So
/// a receive goes beyond a header only as far as the shortest message reaches that may have descriptors: what it then
/// holds besides the beginning of the last message is messages that may not, and the descriptors are the last one's.
struct MessageReader: ~Copyable {
    private let stream: any ClientStream
    private let buffer: UnsafeMutableRawBufferPointer
    private var start = 0
    private var end = 0
    /// The descriptors that came with the last receive that brought some, and which bytes came then.
    private var pending = ReceivedDescriptors()
    private var pendingBytes = 0..<0
    /// Those of the receive that is going on; empty between two.
    private var fresh = ReceivedDescriptors()
    private var polling: WaitPolling
    /// Of the message that begins at `start`, once its header is there.
    var descriptors = ReceivedDescriptors()

    private static var headerByteCount: Int { 16 }
    /// DEVICE_SET_IRQS with one eventfd: 16 bytes and 20.
    private static var speculativeByteCount: Int { 36 }

    /// - Parameters:
    ///   - messageByteCountMax: The longest message that ``message(byteCount:)`` is asked for.
    ///   - pollNanoseconds: How long to look for a message before sleeping, where it pays; 0 is not at all.
    init(_ stream: any ClientStream, messageByteCountMax: Int, pollNanoseconds: Int64 = 0) {
        self.stream = stream
        polling = WaitPolling(limit: pollNanoseconds)
        buffer = .allocate(
            byteCount: max(messageByteCountMax, Self.speculativeByteCount) + Self.speculativeByteCount,
            alignment: 16
        )
    }

    deinit { buffer.deallocate() }

    /// What came and was not taken.
    var available: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: buffer[start..<end]) }

    /// Waits for the next message's header, which stays ``available``.
    ///
    /// - Returns: Nil at the end of the stream.
    mutating func header() -> VFIOUserHeader? {
        while end - start < Self.headerByteCount {
            if start == end, pending.isEmpty {
                // Most often nothing is left of the message before.
                (start, end) = (0, 0)
            } else {
                makeRoomForHeader()
            }
            let limit = start + Self.speculativeByteCount
            let count = wait(for: .init(rebasing: buffer[end..<limit]))
            guard count > 0 else { return nil }
            if !fresh.isEmpty {
                pending.replace(with: &fresh)
                pendingBytes = end..<end + count
            }
            end += count
        }
        guard let header = VFIOUserHeader(at: available) else { return nil }
        if !pending.isEmpty {
            let messageEnd = start + max(Self.headerByteCount, Int(header.messageByteCount))
            claim(isWhole: messageEnd < pendingBytes.upperBound)
        }
        return header
    }

    @inline(never)  // Keeps the way of short messages small.
    private mutating func makeRoomForHeader() {
        // All of what is there is this message's, and so is what came with its first byte.
        if start < end { claim(isWhole: false) }
        compact()
    }

    /// Waits for the first bytes of a message.
    ///
    /// What comes along is in ``fresh``.
    @inline(__always)
    private mutating func wait(for bytes: UnsafeMutableRawBufferPointer) -> Int {
        polling.limit > 0 ? poll(for: bytes) : stream.receive(into: bytes, &fresh)
    }

    /// Waits for the first bytes of a message, first awake, where that pays, and then asleep.
    @inline(never)  // Keeps the way without polling small.
    private mutating func poll(for bytes: UnsafeMutableRawBufferPointer) -> Int {
        let began = smmud_monotonic_nanoseconds()
        var now = began
        if polling.isWorthwhile {
            var last: Int64
            var looks = 0
            repeat {
                if let count = stream.receiveAtOnce(into: bytes, &fresh) {
                    polling.ended(after: now - began)
                    return count
                }
                looks += 1
                WaitPolling.pause(after: looks)
                last = now
                now = smmud_monotonic_nanoseconds()
            } while polling.goesOn(since: began, from: last, to: now)
        }
        let count = stream.receive(into: bytes, &fresh)
        polling.ended(after: smmud_monotonic_nanoseconds() - began)
        return count
    }

    /// Settles whose the pending descriptors are.
    ///
    /// - Parameter isWhole: Whether another message began in the same bytes.
    @inline(never)  // Few messages have descriptors.
    private mutating func claim(isWhole: Bool) {
        guard !pending.isEmpty, !isWhole else { return }
        if pendingBytes.contains(start) {
            descriptors.replace(with: &pending)
        } else {
            // They came in the middle of a message.
            pending.closeAll()
        }
    }

    /// Waits for more of a message.
    ///
    /// - Parameter byteCount: How many bytes of it there shall be, no more than there are room for.
    /// - Returns: Nil at the end of the stream.
    mutating func message(byteCount: Int) -> UnsafeRawBufferPointer? {
        while end - start < byteCount {
            if start + byteCount > buffer.count { compact() }
            guard receive(upTo: start + byteCount) else { return nil }
        }
        return UnsafeRawBufferPointer(rebasing: buffer[start..<start + byteCount])
    }

    /// Waits for at least a byte, and at most as many as these, of a message of which none is there.
    mutating func piece(byteCountMax: Int) -> UnsafeRawBufferPointer? {
        if start == end {
            compact()
            guard receive(upTo: min(byteCountMax, buffer.count)) else { return nil }
        }
        return UnsafeRawBufferPointer(rebasing: buffer[start..<min(end, start + byteCountMax)])
    }

    private mutating func receive(upTo limit: Int) -> Bool {
        // Descriptors in the middle of a message are nobody's.
        var stray = ReceivedDescriptors()
        let count = stream.receive(into: .init(rebasing: buffer[end..<limit]), &stray)
        end += max(0, count)
        return count > 0
    }

    /// Takes bytes away from the front.
    mutating func consume(_ byteCount: Int) { start += byteCount }

    /// Closes what the message that was taken brought along and nobody took.
    mutating func finishMessage() { if !descriptors.isEmpty { descriptors.closeAll() } }

    /// Closes all that came and nobody took.
    mutating func closeDescriptors() {
        descriptors.closeAll()
        pending.closeAll()
    }

    /// Moves what is there to the front of the buffer.
    private mutating func compact() {
        guard start > 0 else { return }
        if start < end, let base = buffer.baseAddress { memmove(base, base + start, end - start) }
        pendingBytes = pendingBytes.lowerBound - start..<pendingBytes.upperBound - start
        end -= start
        start = 0
    }
}
