// Descriptors: one owner each, and none lost on the way through a socket.

import CLinux
import Glibc
import GuestMemory
import SystemPackage
import Testing

/// Two connected Unix stream sockets, closed at the end.
struct SocketPair: ~Copyable {
    let left: OwnedDescriptor
    let right: OwnedDescriptor

    init() throws {
        var ends: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0)
        left = OwnedDescriptor(adopting: ends[0])
        right = OwnedDescriptor(adopting: ends[1])
    }
}

/// A pipe whose reading end tells when every copy of the writing end is closed.
struct LeakDetector: ~Copyable {
    private let reading: OwnedDescriptor
    let writing: CInt

    init() throws {
        var ends: [CInt] = [-1, -1]
        try #require(pipe(&ends) == 0)
        reading = OwnedDescriptor(adopting: ends[0])
        writing = ends[1]
        _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
    }

    /// Closes our own writing end; afterwards the pipe has ended unless somebody else has one.
    consuming func isEveryCopyClosed() -> Bool {
        close(writing)
        var byte: UInt8 = 0
        return read(reading.rawValue, &byte, 1) == 0
    }
}

private func send(_ bytes: [UInt8], _ fds: [CInt], to socket: CInt) -> Int {
    bytes.withUnsafeBytes { buffer in
        var part = iovec(
            iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress),
            iov_len: buffer.count
        )
        return smmud_send_fds(socket, &part, 1, fds, fds.count, 0)
    }
}

private struct Received: Equatable {
    var result: Int
    var bytes: [UInt8]
    var fds: [CInt]
    var isTruncated: Bool
}

private func receive(_ byteCount: Int, maxFDs: Int, from socket: CInt, flags: CInt = 0) -> Received {
    var bytes = [UInt8](repeating: 0, count: byteCount)
    var fds = [CInt](repeating: -1, count: max(maxFDs, 1))
    var fdCount = 0
    var isTruncated = false
    let result = bytes.withUnsafeMutableBytes { buffer in
        var part = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        return smmud_recv_fds(socket, &part, 1, &fds, maxFDs, &fdCount, &isTruncated, flags)
    }
    return Received(
        result: result,
        bytes: Array(bytes.prefix(max(result, 0))),
        fds: Array(fds.prefix(fdCount)),
        isTruncated: isTruncated
    )
}

@Suite("Descriptors over a socket")
struct DescriptorPassingTests {
    @Test("memory arrives by descriptor, close-on-exec, and is the sender's memory")
    func memoryArrives() throws {
        let pair = try SocketPair()
        let region = try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
        #expect(send([1, 2, 3], [region.fileDescriptor], to: pair.left.rawValue) == 3)
        let received = receive(16, maxFDs: 4, from: pair.right.rawValue)
        #expect(received.bytes == [1, 2, 3])
        #expect(!received.isTruncated)
        let fd = try #require(received.fds.first)
        #expect(received.fds.count == 1)
        #expect(fd != region.fileDescriptor)
        #expect(fcntl(fd, F_GETFD) & FD_CLOEXEC != 0)
        let theirs = try MemoryRegion.mapping(
            OwnedDescriptor(adopting: fd),
            offset: 0,
            byteCount: 4096,
            isWritable: true
        )
        smmud_store_u64(region.base + 8, 0x1234)
        #expect(smmud_load_u64(theirs.base + 8) == 0x1234)
    }

    @Test("sixteen descriptors go in one message, in order; seventeen are refused")
    func sixteenIsTheLimit() throws {
        let pair = try SocketPair()
        let regions = try (1...17).map {
            try MemoryRegion.anonymous(byteCount: UInt64($0) * 4096, name: "ram")
        }
        let fds = regions.map(\.fileDescriptor)
        #expect(send([7], fds, to: pair.left.rawValue) == -Int(EINVAL))
        #expect(send([7], Array(fds.prefix(16)), to: pair.left.rawValue) == 1)
        let received = receive(1, maxFDs: 16, from: pair.right.rawValue)
        #expect(received.fds.count == 16)
        for (index, fd) in received.fds.enumerated() {
            var status = stat()
            #expect(fstat(fd, &status) == 0)
            #expect(status.st_size == (index + 1) * 4096)
            close(fd)
        }
    }

    @Test(
        "more descriptors than the receiver has room for: none is delivered and none leaks",
        arguments: [0, 1, 2]
    )
    func tooManyForTheReceiver(capacity: Int) throws {
        let pair = try SocketPair()
        let detector = try LeakDetector()
        let fds = [CInt](repeating: detector.writing, count: 3)
        #expect(send([1, 2], fds, to: pair.left.rawValue) == 2)
        let received = receive(2, maxFDs: capacity, from: pair.right.rawValue)
        #expect(received == Received(result: 2, bytes: [1, 2], fds: [], isTruncated: true))
        let isEveryCopyClosed = detector.isEveryCopyClosed()
        #expect(isEveryCopyClosed)
        // The connection goes on.
        #expect(send([3], [], to: pair.left.rawValue) == 1)
        let next = receive(2, maxFDs: 1, from: pair.right.rawValue)
        #expect(next == Received(result: 1, bytes: [3], fds: [], isTruncated: false))
    }

    @Test("more descriptors than one message holds here (MSG_CTRUNC): none is delivered and none leaks")
    func truncatedByTheKernel() throws {
        let pair = try SocketPair()
        let detector = try LeakDetector()
        try sendMany(40, of: detector.writing, over: pair.left.rawValue)
        let received = receive(8, maxFDs: 16, from: pair.right.rawValue)
        #expect(received == Received(result: 1, bytes: [0xee], fds: [], isTruncated: true))
        let isEveryCopyClosed = detector.isEveryCopyClosed()
        #expect(isEveryCopyClosed)
    }

    /// Sends a byte and more descriptors than our own shim would: a stranger's message.
    private func sendMany(_ count: Int, of fd: CInt, over socket: CInt) throws {
        let headerByteCount = MemoryLayout<cmsghdr>.size
        let control = UnsafeMutableRawPointer.allocate(byteCount: headerByteCount + count * 4, alignment: 8)
        defer { control.deallocate() }
        var header = cmsghdr()
        header.cmsg_len = headerByteCount + count * 4
        header.cmsg_level = SOL_SOCKET
        header.cmsg_type = 1  // SCM_RIGHTS
        control.storeBytes(of: header, as: cmsghdr.self)
        for index in 0..<count {
            control.storeBytes(of: fd, toByteOffset: headerByteCount + index * 4, as: CInt.self)
        }
        var byte: UInt8 = 0xee
        let sent = withUnsafeMutablePointer(to: &byte) { byte in
            var part = iovec(iov_base: byte, iov_len: 1)
            return withUnsafeMutablePointer(to: &part) { part in
                var message = msghdr()
                message.msg_iov = part
                message.msg_iovlen = 1
                message.msg_control = control
                message.msg_controllen = headerByteCount + count * 4
                return sendmsg(socket, &message, 0)
            }
        }
        try #require(sent == 1)
    }

    @Test("descriptors without a byte to carry them are refused instead of lost")
    func descriptorsNeedAByte() throws {
        let pair = try SocketPair()
        #expect(send([], [pair.left.rawValue], to: pair.left.rawValue) == -Int(EINVAL))
    }

    @Test("a peer that has gone is an error and no signal; the end of the stream is 0 bytes")
    func gonePeer() throws {
        var ends: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0)
        defer { close(ends[0]) }
        close(ends[1])
        #expect(send([1], [], to: ends[0]) == -Int(EPIPE))
        #expect(receive(1, maxFDs: 1, from: ends[0]).result == 0)
    }

    @Test("nothing to receive is EAGAIN where the caller does not want to wait")
    func nothingToReceive() throws {
        let pair = try SocketPair()
        let received = receive(1, maxFDs: 1, from: pair.right.rawValue, flags: CInt(MSG_DONTWAIT))
        #expect(received.result == -Int(EAGAIN))
    }
}

@Suite("Owned descriptors")
struct OwnedDescriptorTests {
    @Test("the end of the owner closes the descriptor; its duplicate stays open")
    func ownerCloses() throws {
        let detector = try LeakDetector()
        do {
            let first = try OwnedDescriptor(adopting: detector.writing).duplicate()
            #expect(fcntl(first.rawValue, F_GETFD) & FD_CLOEXEC != 0)
            #expect(fcntl(first.rawValue, F_GETFD) >= 0)
        }
        let isEveryCopyClosed = detector.isEveryCopyClosed()
        #expect(isEveryCopyClosed)
    }

    @Test("a descriptor that is given away stays open")
    func releaseGivesAway() throws {
        let copy = OwnedDescriptor(adopting: dup(0)).release()
        #expect(fcntl(copy, F_GETFD) >= 0)
        #expect(close(copy) == 0)
    }

    @Test("duplicating what is not open is EBADF")
    func duplicateOfNothing() {
        #expect(throws: Errno.badFileDescriptor) { _ = try OwnedDescriptor(adopting: -1).duplicate() }
    }
}
