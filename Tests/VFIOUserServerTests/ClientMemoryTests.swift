// DMA_READ and DMA_WRITE with the test as the client.

import DeviceModel
import Glibc
import HostIO
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// What a device thread does while the test is the client.
private final class Background: Sendable {
    private final class Result: Sendable { let value = Mutex<Bool?>(nil) }
    private let result: Result
    private let handle: SystemThread.Handle

    init(_ body: @escaping @Sendable () -> Bool) throws {
        let result = Result()
        self.result = result
        handle = try SystemThread.start(named: "device") {
            let value = body()
            result.value.withLock { $0 = value }
        }
    }

    /// Waits for its end.
    func end() -> Bool? {
        SystemThread.join(handle)
        return result.value.withLock { $0 }
    }
}

@Suite("DMA_READ and DMA_WRITE over a socket")
struct ClientMemoryTests {
    private func remote(_ server: TestServer) throws -> any RemoteMemory {
        try #require(server.mappings.first?.remote)
    }

    /// A client that has lent 1 MiB at 0x10_0000 without a descriptor.
    private func lend(
        _ json: String? = qemuOffer,
        flags: UInt32 = 3,
        timeout: Int = 20_000
    ) throws -> (TestServer, TestClient, any RemoteMemory) {
        let server = try TestServer { $0.dmaTimeoutMilliseconds = timeout }
        let client = try server.greeted(json)
        try #require(try client.ask(command(2, map(0x10_0000, 0x10_0000, flags: flags))) == success(2))
        return (server, client, try remote(server))
    }

    private func read(_ remote: any RemoteMemory, _ offset: UInt64, _ bytes: Bytes) throws -> Background {
        try Background {
            bytes.value.withLock { bytes in bytes.withUnsafeMutableBytes { remote.read(at: offset, into: $0) }
            }
        }
    }

    private func write(_ remote: any RemoteMemory, _ offset: UInt64, _ bytes: [UInt8]) throws -> Background {
        try Background { bytes.withUnsafeBytes { remote.write($0, at: offset) } }
    }

    private final class Bytes: Sendable {
        let value: Mutex<[UInt8]>
        init(_ count: Int) { value = Mutex([UInt8](repeating: 0, count: count)) }
        var all: [UInt8] { value.withLock { $0 } }
    }

    @Test("test_dma_read, _write: the messages have the specification's bytes, with a count of 64 bits")
    func golden() throws {
        let (server, client, remote) = try lend()
        let bytes = Bytes(4)
        let reading = try read(remote, 0x20, bytes)
        // Id 0, command 11, 32 bytes, a command; address and count.
        #expect(
            try client.message().bytes
                == hex("0000 0b00 20000000 00000000 00000000  2000100000000000 0400000000000000")
        )
        client.send(hex("0000 0b00 24000000 01000000 00000000  2000100000000000 0400000000000000 01020304"))
        #expect(reading.end() == true)
        #expect(bytes.all == [1, 2, 3, 4])
        let writing = try write(remote, 0xf_fffe, [0xaa, 0xbb])
        #expect(
            try client.message().bytes
                == hex("0100 0c00 22000000 00000000 00000000  feff1f0000000000 0200000000000000 aabb")
        )
        client.send(hex("0100 0c00 20000000 01000000 00000000  feff1f0000000000 0200000000000000"))
        #expect(writing.end() == true)
        #expect(try client.isAlive())
        withExtendedLifetime(server) {}
    }

    @Test("A client's commands are served while a DMA waits for its answer")
    func interleaved() throws {
        let (server, client, remote) = try lend()
        let writing = try write(remote, 0, [1])
        let question = try client.message().bytes
        #expect(try client.isAlive())
        #expect(try client.ask(command(9, access(4, 3, 1))) == success(9, access(4, 3, 1) + [1]))
        client.send(success(12, longs(0x10_0000, 1), id: UInt16(question[0])))
        #expect(writing.end() == true)
        withExtendedLifetime(server) {}
    }

    @Test(
        "test_sgl_read_write: transfers are split at the client's limit and at 64 KiB, and not before",
        arguments: [
            (4096, 2 * 4096 + 42, [4096, 4096, 42]), (4096, 4096, [4096]), (4096, 4097, [4096, 1]),
            (4096, 4095, [4095]), (1 << 20, 65536, [65536]), (1 << 20, 65537, [65536, 1]), (1, 3, [1, 1, 1]),
        ]
    )
    func split(_ limit: Int, _ count: Int, _ pieces: [Int]) throws {
        let (server, client, remote) = try lend(#"{"capabilities":{"max_data_xfer_size":\#(limit)}}"#)
        let data = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let writing = try write(remote, 0x100, data)
        var place = 0
        for piece in pieces {
            let (message, _) = try client.message()
            let range = longs(0x10_0100 + UInt64(place), UInt64(piece))
            #expect(Array(message[16...]) == range + data[place..<place + piece])
            client.send(success(12, range, id: UInt16(message[0])))
            place += piece
        }
        #expect(writing.end() == true)
        let bytes = Bytes(count)
        let reading = try read(remote, 0x100, bytes)
        place = 0
        for piece in pieces {
            let (message, _) = try client.message()
            let range = longs(0x10_0100 + UInt64(place), UInt64(piece))
            #expect(Array(message[16...]) == range)
            client.send(success(11, range + data[place..<place + piece], id: UInt16(message[0])))
            place += piece
        }
        #expect(reading.end() == true)
        #expect(bytes.all == data)
        withExtendedLifetime(server) {}
    }

    @Test(
        "test_sgl_read_write_error: the client's error, too few bytes and an old client's layout are failures"
    )
    func failures() throws {
        let (server, client, remote) = try lend()
        let range = longs(0x10_0000, 8)
        let answers: [(UInt16) -> [UInt8]] = [
            { refusal(11, 5, id: $0) }, { refusal(11, 0, id: $0) },
            { success(11, longs(0x10_0000, 4) + [1, 2, 3, 4], id: $0) },
            { success(11, range, id: $0) }, { success(11, [], id: $0) },
            { success(11, range + range + [1], id: $0) },
            { success(11, longs(0x10_0008, 8) + [UInt8](repeating: 0, count: 8), id: $0) },
        ]
        for answer in answers {
            let reading = try read(remote, 0, Bytes(8))
            client.send(answer(UInt16(try client.message().bytes[0])))
            #expect(reading.end() == false)
        }
        let writing = try write(remote, 0, [UInt8](repeating: 1, count: 8))
        client.send(success(12, id: UInt16(try client.message().bytes[0])))
        #expect(writing.end() == false)
        #expect(try client.isAlive())
        withExtendedLifetime(server) {}
    }

    @Test("What is not in the range, or not permitted, is never asked for")
    func bounds() throws {
        let (server, client, remote) = try lend(flags: 1)
        for (offset, count) in [(UInt64(0xf_ffff), 2), (0x10_0000, 1), (UInt64.max, 1), (UInt64.max - 3, 4)] {
            #expect(try read(remote, offset, Bytes(count)).end() == false)
        }
        #expect(try write(remote, 0, [1]).end() == false)
        #expect(try read(remote, 0x10_0000, Bytes(0)).end() == true)
        #expect(try client.isAlive())
        withExtendedLifetime(server) {}
    }

    @Test("An answer that does not come in time is no answer, and comes too late afterwards")
    func timeout() throws {
        let (server, client, remote) = try lend(timeout: 50)
        let reading = try read(remote, 0, Bytes(1))
        let question = try client.message().bytes
        #expect(reading.end() == false)
        // Nobody is kept waiting again by a client that answers nothing.
        #expect(try read(remote, 0, Bytes(1)).end() == false)
        client.send(success(11, longs(0x10_0000, 1) + [9], id: UInt16(question[0])))
        #expect(try client.isAlive())
        let bytes = Bytes(1)
        let again = try read(remote, 0, bytes)
        let second = try client.message().bytes
        #expect(second[0] != question[0])
        client.send(success(11, longs(0x10_0000, 1) + [8], id: UInt16(second[0])))
        #expect(again.end() == true)
        #expect(bytes.all == [8])
        withExtendedLifetime(server) {}
    }

    @Test("A question from the thread that serves the client is refused at once")
    func ownThread() throws {
        let (server, client, remote) = try lend()
        final class Box: Sendable { let answers = Mutex<[Bool]>([]) }
        let box = Box()
        server.device.onWrite.withLock { action in
            action = { _ in
                var byte: UInt8 = 0
                let wasRead = withUnsafeMutableBytes(of: &byte) { remote.read(at: 0, into: $0) }
                let wasWritten = withUnsafeBytes(of: byte) { remote.write($0, at: 0) }
                box.answers.withLock { $0 += [wasRead, wasWritten] }
            }
        }
        #expect(try client.ask(command(10, access(4, 0, 1) + [1])) == success(10, access(4, 0, 1)))
        #expect(box.answers.withLock { $0 } == [false, false])
        #expect(try client.isAlive())
    }

    @Test("An answer to what nobody asked ends the connection")
    func unexpected() throws {
        let (server, client, _) = try lend()
        client.send(success(11, longs(0, 0), id: 5))
        #expect(client.isAtEnd)
        #expect(try server.greeted().isAlive())
    }

    @Test(
        "DMA_UNMAP, DMA_UNMAP of all, DEVICE_RESET and a register that stops DMA break off what waits",
        arguments: 0..<4
    )
    func brokenOff(_ way: Int) throws {
        let (server, client, remote) = try lend()
        let message = [
            command(3, unmap(0x10_0000, 0x10_0000)), command(3, unmap(0, 0, flags: 2)), command(13),
            command(10, access(4, 0xe0, 1) + [1]),
        ][way]
        let writing = try write(remote, 0, [1])
        let question = try client.message().bytes
        // As a device does that waits for those who use the memory.
        let join: @Sendable () -> Void = { _ = writing.end() }
        switch way {
        case 0, 1: server.memories.all.withLock { $0.last }?.onUnmap.withLock { $0 = join }
        case 2: server.device.onReset.withLock { $0 = join }
        default: server.device.onWrite.withLock { $0 = { _ in join() } }
        }
        let answer = try client.ask(message)
        #expect(answer[8] == 1)
        server.memories.all.withLock { $0.last }?.onUnmap.withLock { $0 = nil }
        // The answer that comes late is no violation.
        client.send(success(12, longs(0x10_0000, 1), id: UInt16(question[0])))
        #expect(try client.isAlive())
        if way < 2 { #expect(try read(remote, 0, Bytes(1)).end() == false) }
    }

    @Test("Giving everything back includes memory at the end of 64 bits")
    func endOfAddresses() throws {
        let server = try TestServer { $0.dmaTimeoutMilliseconds = 20_000 }
        let client = try server.greeted()
        try #require(try client.ask(command(2, map(0xffff_ffff_ffff_f000, 0x1000))) == success(2))
        let remote = try remote(server)
        let writing = try write(remote, 0xfff, [1])
        #expect(try client.message().bytes.dropFirst(16).prefix(8) == longs(UInt64.max)[...])
        #expect(try client.ask(command(3, unmap(0, 0, flags: 2))) == success(3, unmap(0, 0, flags: 2)))
        #expect(writing.end() == false)
    }

    @Test("A DMA_UNMAP that fails leaves the memory as it was")
    func failedUnmap() throws {
        let (server, client, remote) = try lend()
        #expect(try client.ask(command(3, unmap(0, 0x18_0000))) == refusal(3, 22))
        let writing = try write(remote, 0, [1])
        client.send(success(12, longs(0x10_0000, 1), id: UInt16(try client.message().bytes[0])))
        #expect(writing.end() == true)
        withExtendedLifetime(server) {}
    }

    @Test("The client's end is an answer to all who wait")
    func disconnect() throws {
        let (server, client, remote) = try lend()
        let waiting = try (0..<3).map { try write(remote, UInt64($0), [1]) }
        for _ in 0..<3 { _ = try client.message() }
        client.close()
        for thread in waiting { #expect(thread.end() == false) }
        #expect(try read(remote, 0, Bytes(1)).end() == false)
        #expect(try server.greeted().isAlive())
    }

    @Test("A client that does not read holds a DMA up no longer than the time-out")
    func unread() throws {
        let (server, client, remote) = try lend(timeout: 200)
        // More than any socket's buffer.
        let writing = try write(remote, 0, [UInt8](repeating: 1, count: 0x10_0000))
        #expect(writing.end() == false)
        withExtendedLifetime((server, client)) {}
    }

    @Test("With a twin socket our commands and their answers go there, and nothing of theirs on the other")
    func twinSocket() throws {
        let server = try TestServer { $0.dmaTimeoutMilliseconds = 20_000 }
        let client = try server.client()
        let json =
            #"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true},"max_data_xfer_size":4096}}"#
        client.send(command(1, versionPayload(json)))
        let greeting = try client.message()
        #expect(
            String(decoding: greeting.bytes, as: UTF8.self).contains(
                #""twin_socket":{"supported":true,"fd_index":0}"#
            )
        )
        try #require(greeting.descriptors.count == 1)
        let twin = TestClient(adopting: greeting.descriptors[0])
        #expect(try client.ask(command(2, map(0x10_0000, 0x10_0000))) == success(2))
        let remote = try remote(server)
        let writing = try write(remote, 0, [1, 2])
        let question = try twin.message().bytes
        #expect(question == command(12, longs(0x10_0000, 2) + [1, 2], id: 0))
        #expect(try client.isAlive())
        twin.send(success(12, longs(0x10_0000, 2), id: 0))
        #expect(writing.end() == true)
        let bytes = Bytes(8192)
        let reading = try read(remote, 0, bytes)
        for _ in 0..<2 {
            let question = try twin.message().bytes
            twin.send(
                success(
                    11,
                    Array(question[16..<32]) + [UInt8](repeating: 3, count: 4096),
                    id: UInt16(question[0])
                )
            )
        }
        #expect(reading.end() == true)
        #expect(bytes.all == [UInt8](repeating: 3, count: 8192))
        // A client that closes it has no more memory of that kind, and everything else.
        let last = try write(remote, 0, [1])
        _ = try twin.message()
        twin.close()
        #expect(last.end() == false)
        #expect(try client.isAlive())
    }

    @Test("What is no answer on a twin socket ends the connection")
    func badTwin() throws {
        let server = try TestServer()
        let client = try server.client()
        client.send(command(1, versionPayload(#"{"capabilities":{"twin_socket":{"supported":true}}}"#)))
        let greeting = try client.message()
        try #require(greeting.descriptors.count == 1)
        let twin = TestClient(adopting: greeting.descriptors[0])
        twin.send(command(4, words(16, 0, 0, 0)))
        #expect(client.isAtEnd)
        #expect(twin.isAtEnd)
        #expect(try server.greeted().isAlive())
    }
}
