// How connections end, and what goes wrong on the way.

import Glibc
import Synchronization
import Testing
import VFIOUserClient

@Suite("A connection's life and end")
struct ConnectionTests {
    @Test("Calls of many threads are under way together, and each gets its own answer")
    func manyThreads() throws {
        let count = 16
        try withServer { server in
            var asked: [(UInt16, UInt64)] = []
            for _ in 0..<count {
                let bytes = try server.receive(32).bytes
                asked.append((UInt16(bytes[0]), UInt64(bytes[16])))
            }
            // The last comes first.
            for (id, offset) in asked.reversed() {
                let payload = longs(offset) + words(0, 4) + le(UInt32(offset * 3))
                try server.send(success(9, payload, id: id))
            }
        } client: { client in
            let threads = try (0..<count).map { index in
                try Script {
                    let value = try client.read(UInt32.self, of: .bar(0), at: UInt64(index))
                    guard value == UInt32(index * 3) else { throw ScriptError(description: "\(value)") }
                }
            }
            for thread in threads { thread.finish() }
        }
    }

    @Test(
        "A server that dies ends every call that waits, and every later one",
        arguments: [0, 1, 15, 16, 20, 35]
    )
    func death(_ byteCount: Int) throws {
        try withServer { server in
            for _ in 0..<3 { _ = try server.receive(32) }
            let reply = success(9, longs(0) + words(0, 4) + [1, 2, 3, 4], id: 0)
            try server.send(Array(reply.prefix(byteCount)))
            server.die()
        } client: { client in
            let errors = Mutex<[VFIOUserClientError?]>([])
            let threads = try (0..<3).map { _ in
                try Script {
                    let error = failure { _ = try client.read(4, of: .bar(0), at: 0) }
                    errors.withLock { $0.append(error) }
                }
            }
            for thread in threads { thread.finish() }
            let place = byteCount == 0 ? "" : " in the middle of a message"
            let expected = VFIOUserClientError.disconnected(reason: "the server closed it\(place)")
            #expect(errors.withLock { $0 } == [expected, expected, expected])
            #expect(client.ending == expected)
            #expect(failure { _ = try client.deviceInfo() } == expected)
            #expect(failure { try client.write(UInt8(0), to: .bar(0), at: 0, isPosted: true) } == expected)
            #expect(failure { _ = try client.region(.bar(0)) } == expected)
        }
    }

    @Test(
        "What no stream survives: wrong lengths, types, answers to nothing or to another command",
        arguments: [
            header(0, 4, size: 15, flags: 1), header(0, 4, size: 0, flags: 1),
            header(0, 4, size: 16, flags: 2),
            header(0, 4, size: 0x7fff_ffff, flags: 1), header(0, 4, size: 32 + (1 << 20) + 1, flags: 1),
            success(4, words(16, 0, 9, 5), id: 7), success(9, longs(0) + words(0, 0), id: 0),
            success(1, versionPayload("{}"), id: 0),
        ]
    )
    func brokenStreams(_ bytes: [UInt8]) throws {
        try withServer { server in
            try server.expect(command(4, words(16, 0, 0, 0), id: 0))
            try server.send(bytes)
            try server.expectEnd()
        } client: { client in
            #expect(isDisconnected(failure { _ = try client.deviceInfo() }))
        }
    }

    @Test("A reply that comes byte by byte, and several in one piece")
    func pieces() throws {
        try withServer { server in
            try server.expect(command(4, words(16, 0, 0, 0), id: 0))
            for byte in success(4, words(16, 3, 9, 5), id: 0) { try server.send([byte]) }
            try server.expect(command(9, longs(0) + words(0, 1), id: 1))
            try server.expect(command(9, longs(1) + words(0, 1), id: 2))
            try server.send(
                success(9, longs(1) + words(0, 1) + [6], id: 2)
                    + success(9, longs(0) + words(0, 1) + [5], id: 1)
            )
        } client: { client in
            #expect(try client.deviceInfo().interruptKindCount == 5)
            let reads = try [0, 1].map { try client.startRead(1, of: .bar(0), at: UInt64($0)) }
            let values = try reads.map { try $0.wait() }
            #expect(values == [[5], [6]])
        }
    }

    @Test("A call that times out is given up; its late answer is thrown away, and its descriptors are closed")
    func lateAnswers() throws {
        let pipe = try Pipe()
        final class Flag: Sendable { let value = Atomic(false) }
        let flag = Flag()
        try withServer(options: impatient) { server in
            try server.expect(command(5, words(32, 0, 0, 0) + longs(0, 0), id: 0))
            while !flag.value.load(ordering: .acquiring) { usleep(100) }
            try server.send(
                success(5, words(32, 7, 0, 0) + longs(0x1000, 0), id: 0),
                descriptors: [pipe.writingEnd]
            )
            try server.expect(command(4, words(16, 0, 0, 0), id: 1))
            try server.send(success(4, words(16, 3, 9, 5), id: 1))
        } client: { client in
            let error = failure { _ = try client.region(.bar(0)) }
            #expect(error == .timedOut(command: "DEVICE_GET_REGION_INFO"))
            flag.value.store(true, ordering: .releasing)
            let info = try client.deviceInfo()
            #expect(info.regionCount == 9)
            #expect(pipe.waitUntilClosed())
        }
    }

    @Test("A server that does not read is given up, and so are all calls")
    func fullSocket() throws {
        let (client, server) = try connectedPair()
        let script = try Script {
            let server = FakeServer(server)
            try server.expect(greeting)
            try server.send(success(1, versionPayload(nil), id: 0))
            // Reads nothing more until the client has ended the connection.
            var entry = pollfd(fd: server.socket, events: 0, revents: 0)
            guard poll(&entry, 1, 20_000) == 1 else { throw ScriptError(description: "no end") }
        }
        let user = try VFIOUserClient(adopting: client, options: impatient)
        let bytes = [UInt8](repeating: 1, count: 1 << 20)
        let error = failure {
            for _ in 0..<64 { try user.write(bytes, to: .bar(0), at: 0, isPosted: true) }
        }
        #expect(error == .disconnected(reason: "the server does not read what it is sent"))
        script.finish()
    }

    @Test("Descriptors that nobody asked for are closed, wherever they come")
    func strayDescriptors() throws {
        let pipes = try (0..<3).map { _ in try Pipe() }
        try withServer { server in
            // With an answer that has none; with a command; with bytes that are not a message's first.
            try server.expect(command(4, words(16, 0, 0, 0), id: 0))
            try server.send(success(4, words(16, 3, 9, 5), id: 0), descriptors: [pipes[0].writingEnd])
            try server.expect(command(13, id: 1))
            try server.send(command(11, longs(0, 1), id: 1), descriptors: [pipes[1].writingEnd])
            try server.expect(refusal(11, 14, id: 1))
            let reply = success(13, id: 1)
            try server.send(Array(reply[..<4]))
            try server.send(Array(reply[4...]), descriptors: [pipes[2].writingEnd])
            try server.expect(command(13, id: 2))
            try server.send(success(13, id: 2))
        } client: { client in
            _ = try client.deviceInfo()
            try client.reset()
            try client.reset()
            for pipe in pipes { #expect(pipe.waitUntilClosed()) }
        }
    }

    @Test("More descriptors than this client takes are a wrong answer, and none of them stays open")
    func tooManyDescriptors() throws {
        let pipe = try Pipe()
        try withServer { server in
            try server.expect(command(6, words(16, 0, 0, 0), id: 0))
            // More than one call of ours can send: by hand.
            let reply = success(6, words(16, 0, 0, 0), id: 0)
            let sent = sendMany(server.socket, reply, [CInt](repeating: pipe.writingEnd, count: 17))
            guard sent == reply.count else { throw ScriptError(description: "sent \(sent)") }
            try server.expect(command(13, id: 1))
            try server.send(success(13, id: 1))
        } client: { client in
            #expect(isViolation(failure { _ = try client.ioEvents(of: .bar(0)) }))
            try client.reset()
            #expect(pipe.waitUntilClosed())
        }
    }

    @Test("Closing ends calls that wait, from whichever thread")
    func closing() throws {
        final class Flag: Sendable { let value = Atomic(false) }
        let flag = Flag()
        try withServer { server in
            _ = try server.receive(32)
            flag.value.store(true, ordering: .releasing)
            try server.expectEnd()
        } client: { client in
            let closer = try Script {
                while !flag.value.load(ordering: .acquiring) { usleep(100) }
                client.close()
            }
            let error = failure { _ = try client.deviceInfo() }
            closer.finish()
            #expect(error == .disconnected(reason: "this client closed it"))
        }
    }
}

/// One sendmsg with more descriptors than `smmud_send_fds` takes.
private func sendMany(_ socket: CInt, _ bytes: [UInt8], _ descriptors: [CInt]) -> Int {
    let byteCount = descriptors.count * 4
    let space = (byteCount + 7) / 8 * 8 + 16
    let control = UnsafeMutableRawBufferPointer.allocate(byteCount: space, alignment: 8)
    defer { control.deallocate() }
    control.storeBytes(of: 16 + byteCount, as: Int.self)
    control.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: CInt.self)
    control.storeBytes(of: 1, toByteOffset: 12, as: CInt.self)  // SCM_RIGHTS
    for (index, descriptor) in descriptors.enumerated() {
        control.storeBytes(of: descriptor, toByteOffset: 16 + 4 * index, as: CInt.self)
    }
    var bytes = bytes
    return bytes.withUnsafeMutableBytes { buffer in
        var vector = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        return withUnsafeMutablePointer(to: &vector) { vector in
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 1
            message.msg_control = control.baseAddress
            message.msg_controllen = space
            return sendmsg(socket, &message, CInt(MSG_NOSIGNAL))
        }
    }
}
