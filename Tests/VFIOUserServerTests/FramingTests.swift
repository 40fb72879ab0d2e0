// Messages in whatever pieces they come, and messages that are none.

import Glibc
import Testing
import VFIOUserProtocol
import VFIOUserServer

@Suite("The stream over a socket stays in step, or ends")
struct FramingTests {
    private let info = command(4, words(16, 0, 0, 0))
    private let infoReply = success(4, words(16, 3, 9, 5))

    @Test(
        "test_msg_too_small: a message shorter than a header is refused, and the connection ends",
        arguments: [0, 15]
    )
    func tooShort(_ size: Int) throws {
        let server = try TestServer()
        let client = try server.greeted()
        #expect(try client.ask(header(7, 4, size: size)) == refusal(4, 22))
        #expect(client.isAtEnd)
    }

    // The reference library answers at the header and loses step; this server reads past the message.
    @Test("test_msg_too_long differs: a message beyond the limit is refused and read past")
    func tooLong() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let size = (1 << 20) + 33
        let answer = try client.ask(header(7, 10, size: size) + [UInt8](repeating: 0, count: size - 16))
        #expect(answer == refusal(10, 22))
        #expect(try client.isAlive())
    }

    @Test("test_bad_request: a reply that answers nothing ends the connection")
    func reply() throws {
        let server = try TestServer()
        let client = try server.greeted()
        client.send(header(7, 4, size: 16, flags: 1))
        #expect(client.isAtEnd)
        #expect(try server.greeted().isAlive())
    }

    @Test(
        "A type that is neither command nor reply is refused, and the connection ends",
        arguments: [2, 3, 15]
    )
    func type(_ type: UInt32) throws {
        let server = try TestServer()
        let client = try server.greeted()
        #expect(try client.ask(header(7, 4, size: 16, flags: type)) == refusal(4, 22))
        #expect(client.isAtEnd)
    }

    @Test(
        "test_unknown_command: refused with EINVAL, the connection goes on",
        arguments: [0, 14, 19, 0xffff]
    )
    func unknown(_ number: UInt16) throws {
        let server = try TestServer()
        let client = try server.greeted()
        #expect(try client.ask(command(number, [1, 2, 3])) == refusal(number, 22))
        #expect(try client.isAlive())
    }

    @Test("Byte by byte, the same answers come as in one piece")
    func byteByByte() throws {
        let server = try TestServer()
        let client = try server.client()
        for byte in command(1, versionPayload(qemuOffer)) { client.send([byte]) }
        #expect(try client.message().bytes.count > 20)
        for byte in info { client.send([byte]) }
        #expect(try client.message().bytes == infoReply)
        for byte in command(10, access(4, 0x10, 4) + [1, 2, 3, 4]) + command(9, access(4, 0xf, 6)) {
            client.send([byte])
        }
        #expect(try client.message().bytes == success(10, access(4, 0x10, 4)))
        #expect(try client.message().bytes == success(9, access(4, 0xf, 6) + [5, 1, 2, 3, 4, 6]))
    }

    @Test(
        "Pieces of any size, cut anywhere",
        arguments: [2, 3, 5, 7, 13, 15, 16, 17, 31, 33, 35, 36, 37, 47, 100]
    )
    func pieces(_ size: Int) throws {
        let server = try TestServer()
        let client = try server.greeted()
        let stream =
            info + command(13) + command(9, access(4, 0, 2), id: 1)
            + command(10, access(4, 0, 1) + [9], id: 2)
            + command(13, id: 3) + command(9, access(4, 0, 8), id: 4) + info
        for start in stride(from: 0, to: stream.count, by: size) {
            client.send(Array(stream[start..<min(stream.count, start + size)]))
        }
        #expect(try client.message().bytes == infoReply)
        #expect(try client.message().bytes == success(13))
        #expect(try client.message().bytes == success(9, access(4, 0, 2) + [0, 0], id: 1))
        #expect(try client.message().bytes == success(10, access(4, 0, 1), id: 2))
        #expect(try client.message().bytes == success(13, id: 3))
        #expect(try client.message().bytes == success(9, access(4, 0, 8) + [9, 0, 0, 1, 1, 1, 2, 2], id: 4))
        #expect(try client.message().bytes == infoReply)
    }

    @Test("A thousand commands in one write are answered in their order")
    func merged() throws {
        let server = try TestServer()
        let client = try server.greeted()
        var stream: [UInt8] = []
        for id in UInt16(0)..<1000 {
            switch id % 4 {
            case 0: stream += command(9, access(4, 4, 4), id: id)
            case 1: stream += command(13, id: id)
            case 2: stream += command(10, access(4, 0x20, 8) + longs(UInt64(id)), id: id)
            default: stream += command(7, words(16, 0, 2, 0), id: id)
            }
        }
        // What is read here is written there, and both buffers are smaller than all of it may be.
        client.send(stream)
        for id in UInt16(0)..<1000 {
            let answer = try client.message().bytes
            switch id % 4 {
            case 0: #expect(answer == success(9, access(4, 4, 4) + [1, 1, 2, 2], id: id))
            case 1: #expect(answer == success(13, id: id))
            case 2: #expect(answer == success(10, access(4, 0x20, 8), id: id))
            default: #expect(answer == success(7, words(16, 1, 2, 2048), id: id))
            }
        }
        #expect(server.device.bytes(4, 0x20..<0x28) == longs(998))
    }

    @Test("Ids may be 0, and may repeat among commands in flight")
    func ids() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let read = command(9, access(4, 3, 1), id: 0)
        client.send(read + read + read)
        for _ in 0..<3 { #expect(try client.message().bytes == success(9, access(4, 3, 1) + [1], id: 0)) }
    }

    @Test("No_reply: no command is answered, right or wrong, and all are carried out")
    func noReply() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let file = try memoryFile()
        defer { close(file) }
        for number in UInt16(2)...20 where number != 11 && number != 12 {
            client.send(command(number, [], flags: 0x10))
            client.send(command(number, [UInt8](repeating: 0xff, count: 64), flags: 0x10))
        }
        client.send(command(2, map(0x1000, 0x1000), flags: 0x10), descriptors: [file])
        client.send(command(10, access(4, 0x40, 2) + [0xab, 0xcd], flags: 0x10))
        client.send(command(9, access(4, 0x40, 2), flags: 0x10))
        client.send(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msix, 0, 0), flags: 0x10))
        client.send(command(13, flags: 0x10))
        // The answer to a later command says that those before it have been carried out.
        #expect(try client.isAlive())
        #expect(server.mappings.count == 1)
        #expect(server.device.bytes(4, 0x40..<0x42) == [0xab, 0xcd])
        #expect(server.device.log == ["attached", "reset", "interrupts 2 0", "reset"])
        client.send(command(3, unmap(0x1000, 0x1000), flags: 0x10))
        #expect(try client.isAlive())
        #expect(server.mappings.isEmpty)
        #expect(copies(of: file) == 1)
    }

    @Test(
        "Descriptors belong to the message whose first byte they came with, also behind messages that have none"
    )
    func descriptorsBehindOthers() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let events = [try eventfd(), try eventfd()]
        defer { for event in events { close(event) } }
        // Short messages that are read together with the beginning of the next.
        let bind = { (vector: UInt32) in
            command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, vector, 1))
        }
        let unbind = command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 9, 1))
        client.send(command(13) + command(13) + unbind + info)
        client.send(bind(0), descriptors: [events[0]])
        client.send(command(13) + unbind)
        client.send(bind(1), descriptors: [events[1]])
        client.send(info)
        for expected in [
            success(13), success(13), success(8), infoReply, success(8), success(13), success(8), success(8),
            infoReply,
        ] {
            #expect(try client.message().bytes == expected)
        }
        server.device.interrupts?.signal(.msix, vector: 0)
        server.device.interrupts?.signal(.msix, vector: 1)
        server.device.interrupts?.signal(.msix, vector: 1)
        #expect(drain(events[0]) == 1)
        #expect(drain(events[1]) == 2)
    }

    @Test("Descriptors in the middle of a message are closed, and the message is as good as without")
    func descriptorsInTheMiddle() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let file = try memoryFile()
        defer { close(file) }
        for cut in [36, 37, 50, 95] {
            let message = command(10, access(4, 0x10, 64) + [UInt8](repeating: 5, count: 64))
            client.send(Array(message[..<cut]))
            client.send(Array(message[cut...]), descriptors: [file])
            #expect(try client.message().bytes == success(10, access(4, 0x10, 64)))
        }
        // Of bytes at the beginning of a message that lie there together nobody can tell which brought them along.
        for cut in [1, 15, 16, 17, 35] {
            let message = command(10, access(4, 0x50, 4) + [1, 2, 3, 4])
            client.send(Array(message[..<cut]))
            client.send(Array(message[cut...]), descriptors: [file])
            let answer = try client.message().bytes
            #expect(answer == success(10, access(4, 0x50, 4)) || answer == refusal(10, 22))
            #expect(try client.isAlive())
        }
        #expect(copies(of: file) == 1)
        // A DMA_MAP whose descriptor comes too late is one without.
        let message = command(2, map(0, 0x1000))
        client.send(Array(message[..<40]))
        client.send(Array(message[40...]), descriptors: [file])
        #expect(try client.message().bytes == success(2))
        #expect(server.mappings.first?.offset == nil)
        #expect(copies(of: file) == 1)
    }

    @Test("test_rejected_request_fds: a refused message's descriptors are closed")
    func closedWhenRefused() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let file = try memoryFile()
        defer { close(file) }
        let refused: [[UInt8]] =
            [
                command(2, map(0, 0)), command(2, map(0, 0x1000, flags: 0x40)), command(2, [1]),
                command(2, map(UInt64.max, 2)), command(2, map(0, 0x1000, flags: 0xb)), command(3, [0]),
                command(3, unmap(0x9000, 0x1000)), command(8), command(8, interrupts(0, 0, 0, 0)),
                command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msix, 0, 1)),
                command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 0, 1)),
                command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 0, 2)),
                command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 2048, 1)),
                command(9, access(4, 0, 4)), command(10, access(4, 0, 1) + [1]), command(99), command(13),
                info,
                command(5, words(32, 0, 0, 0) + longs(0, 0)), command(6, words(512, 0, 2, 0)),
                command(7, words(16, 0, 0, 0)), command(15, longs(0)), command(16, words(8, 0x10001)),
                command(17, words(8, 8)), command(18, words(8, 0)),
            ]
        for message in refused {
            let answer = try client.ask(message, descriptors: [file])
            #expect(answer.count == 16 && answer[8] == 0x21 && answer[12] != 0, "\(message)")
            #expect(try client.isAlive())
            #expect(copies(of: file) == 1, "\(message)")
        }
    }

    @Test("More descriptors than can be received: the message is refused, all are closed, the stream goes on")
    func tooManyDescriptors() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let file = try memoryFile()
        defer { close(file) }
        sendMany(command(2, map(0, 0x1000)), Array(repeating: file, count: 17), to: client.socket)
        #expect(try client.message().bytes == refusal(2, 22))
        #expect(try client.isAlive())
        #expect(copies(of: file) == 1)
    }
}

/// Sends more descriptors than our own function permits.
private func sendMany(_ bytes: [UInt8], _ descriptors: [CInt], to socket: CInt) {
    let byteCount = descriptors.count * MemoryLayout<CInt>.size
    let headerByteCount = MemoryLayout<cmsghdr>.size
    var control = [UInt8](repeating: 0, count: headerByteCount + (byteCount + 7) / 8 * 8)
    control.withUnsafeMutableBytes { control in
        var header = cmsghdr()
        header.cmsg_len = headerByteCount + byteCount
        header.cmsg_level = SOL_SOCKET
        header.cmsg_type = CInt(SCM_RIGHTS)
        control.storeBytes(of: header, as: cmsghdr.self)
        descriptors.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(rebasing: control[headerByteCount...]).copyMemory(from: bytes)
        }
        var bytes = bytes
        bytes.withUnsafeMutableBytes { bytes in
            var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            withUnsafeMutablePointer(to: &vector) { vector in
                var message = msghdr()
                message.msg_iov = vector
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = control.count
                #expect(sendmsg(socket, &message, 0) == bytes.count)
            }
        }
    }
}
