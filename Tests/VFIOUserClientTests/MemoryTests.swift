// What a server reaches of a client's memory, and when.

import CLinux
import Glibc
import Synchronization
import Testing
import VFIOUserClient

/// Memory that is asked for: notes each access, and answers with the low bytes of addresses.
private final class Handler: VFIOUserMemoryHandler {
    let accesses = Mutex<[String]>([])
    private let error: VFIOUserMemoryError?
    private let during: @Sendable () -> Void

    init(error: VFIOUserMemoryError? = nil, during: @escaping @Sendable () -> Void = {}) {
        self.error = error
        self.during = during
    }

    func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(VFIOUserMemoryError) {
        accesses.withLock { $0.append("read \(address) \(buffer.count)") }
        during()
        if let error { throw error }
        for index in buffer.indices { buffer[index] = UInt8(truncatingIfNeeded: address &+ UInt64(index)) }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at address: UInt64) throws(VFIOUserMemoryError) {
        accesses.withLock { $0.append("write \(address) \(Array(buffer))") }
        during()
        if let error { throw error }
    }
}

/// Answers one DMA_MAP.
private func takeMap(_ server: FakeServer, id: UInt16, descriptorCount: Int = 0) throws {
    let (bytes, descriptors) = try server.receive(48)
    for descriptor in descriptors { close(descriptor) }
    guard bytes[2] == 2, descriptors.count == descriptorCount else {
        throw ScriptError(description: "\(bytes), \(descriptors.count) descriptors")
    }
    try server.send(success(2, id: id))
}

@Suite("The device's view of a client's memory")
struct MemoryTests {
    @Test("Shared memory: DMA_MAP and DMA_UNMAP byte for byte, and the descriptor is of the memory")
    func shared() throws {
        let memory = try VFIOUserSharedMemory(byteCount: 0x4000)
        try memory.store(UInt32(0x5555_aaaa), at: 0x1000)
        try withServer { server in
            let map = words(32, 1) + longs(0x1000, 0x8000_0000, 0x2000)
            let descriptors = try server.expect(command(2, map, id: 0), descriptorCount: 1)
            var word: UInt32 = 0
            pread(descriptors[0], &word, 4, 0x1000)
            close(descriptors[0])
            guard word == 0x5555_aaaa else { throw ScriptError(description: "\(word)") }
            try server.send(success(2, id: 0))
            try server.expect(command(3, words(24, 0) + longs(0x8000_0000, 0x2000), id: 1))
            try server.send(success(3, words(24, 0) + longs(0x8000_0000, 0x2000), id: 1))
        } client: { client in
            try client.map(memory, offset: 0x1000, byteCount: 0x2000, at: 0x8000_0000, access: .read)
            // Overlapping it, and not exactly it: not even sent.
            for (address, byteCount) in [(0x8000_1000, 0x1000), (0x7fff_f000, 0x2000), (0x8000_0000, 0x2000)]
            {
                guard
                    case .invalid? = failure({
                        try client.map(memory, byteCount: UInt64(byteCount), at: UInt64(address))
                    })
                else {
                    Issue.record("mapped twice")
                    continue
                }
            }
            guard case .invalid? = failure({ try client.unmap(address: 0x8000_0000, byteCount: 0x1000) })
            else {
                Issue.record("unmapped half")
                return
            }
            try client.unmap(address: 0x8000_0000, byteCount: 0x2000)
            guard case .invalid? = failure({ try client.unmap(address: 0x8000_0000, byteCount: 0x2000) })
            else {
                Issue.record("unmapped twice")
                return
            }
        }
    }

    @Test("Ranges of no bytes, that leave 64 bits or the memory are not sent")
    func badRanges() throws {
        let memory = try VFIOUserSharedMemory(byteCount: 0x1000)
        try withServer { server in
            try server.expectEnd()
        } client: { client in
            for (offset, byteCount, address) in [
                (0, 0, 0), (0, 0x1001, 0), (0x1000, 1, 0), (UInt64.max, 2, 0),
                (0, 0x1000, UInt64.max - 0xffe),
            ] as [(UInt64, UInt64, UInt64)] {
                guard
                    case .invalid? = failure({
                        try client.map(memory, offset: offset, byteCount: byteCount, at: address)
                    })
                else {
                    Issue.record("mapped \(byteCount) at \(offset) to \(address)")
                    continue
                }
            }
        }
    }

    @Test("A refused mapping is none: it can be tried again, and is not served")
    func refused() throws {
        let handler = Handler()
        try withServer { server in
            _ = try server.receive(48)
            try server.send(refusal(2, 28, id: 0))
            try server.expect(command(13, id: 1))
            try server.send(command(11, longs(0x1000, 4), id: 9))
            try server.expect(refusal(11, 14, id: 9))
            try server.send(success(13, id: 1))
            try takeMap(server, id: 2)
        } client: { client in
            let error = failure { try client.map(handler, byteCount: 0x1000, at: 0x1000) }
            #expect(error == .failed(command: "DMA_MAP", errno: 28))
            try client.reset()
            try client.map(handler, byteCount: 0x1000, at: 0x1000)
            #expect(handler.accesses.withLock { $0 } == [])
        }
    }

    @Test("No more mappings than the server takes, and none by descriptor where it takes no descriptors")
    func mappingLimits() throws {
        let handler = Handler()
        let memory = try VFIOUserSharedMemory(byteCount: 0x1000)
        try withServer(#"{"capabilities":{"max_dma_maps":1,"max_msg_fds":0}}"#) { server in
            try takeMap(server, id: 0)
        } client: { client in
            guard case .unsupported? = failure({ try client.map(memory, byteCount: 0x1000, at: 0) }) else {
                Issue.record("sent a descriptor")
                return
            }
            try client.map(handler, byteCount: 0x1000, at: 0)
            guard case .unsupported? = failure({ try client.map(handler, byteCount: 0x1000, at: 0x1000) })
            else {
                Issue.record("mapped beyond the limit")
                return
            }
        }
    }

    @Test("The server's accesses, between a question and its answer, in every combination of mappings")
    func served() throws {
        let memory = try VFIOUserSharedMemory(byteCount: 0x2000)
        try memory.write([1, 2, 3, 4], at: 0x1ffc)
        let handler = Handler()
        try withServer { server in
            try takeMap(server, id: 0, descriptorCount: 1)
            try takeMap(server, id: 1)
            try server.expect(command(4, words(16, 0, 0, 0), id: 2))
            // A read across both mappings, a write to the handler's, one to the memory, one without an answer.
            try server.send(command(11, longs(0x1_0ffc, 8), id: 5))
            try server.expect(success(11, longs(0x1_0ffc, 8) + [1, 2, 3, 4, 0, 1, 2, 3], id: 5))
            try server.send(command(12, longs(0x1_1010, 2) + [7, 8], id: 5))
            try server.expect(success(12, longs(0x1_1010, 2), id: 5))
            try server.send(command(12, longs(0x1_0ff8, 4) + [9, 9, 9, 9], id: 6, flags: 0x10))
            try server.send(command(11, longs(0x1_0ff8, 4), id: 7))
            try server.expect(success(11, longs(0x1_0ff8, 4) + [9, 9, 9, 9], id: 7))
            // No bytes; unmapped before, behind and partly; both ends of 64 bits.
            try server.send(command(11, longs(0, 0), id: 8))
            try server.expect(success(11, longs(0, 0), id: 8))
            for (address, count) in [
                (0xffff, 1), (0x1_2000, 1), (0x1_1fff, 2), (0xffff_ffff_ffff_ffff, 1), (0, 16),
            ] as [(UInt64, UInt64)] {
                try server.send(command(11, longs(address, count), id: 9))
                try server.expect(refusal(11, 14, id: 9))
            }
            // Wrong messages.
            for bad in [
                command(11, longs(0x1_0000), id: 1), command(11, longs(0x1_0000, 1 << 21), id: 1),
                command(12, longs(0x1_0000, 4) + [1], id: 1), command(11, longs(UInt64.max, 2), id: 1),
                command(13, id: 1), command(99, id: 1),
            ] {
                try server.send(bad)
                try server.expect(header(1, UInt16(bad[2]), size: 16, flags: 0x21, error: 22))
            }
            try server.send(success(4, words(16, 2, 9, 5), id: 2))
        } client: { client in
            try client.map(memory, offset: 0x1000, byteCount: 0x1000, at: 0x1_0000)
            try client.map(handler, byteCount: 0x1000, at: 0x1_1000)
            #expect(try client.deviceInfo().regionCount == 9)
            #expect(try memory.read(4, at: 0x1ff8) == [9, 9, 9, 9])
            // 0x11fff is the handler's, and the byte behind it nobody's: the first was read.
            #expect(
                handler.accesses.withLock { $0 } == ["read 69632 4", "write 69648 [7, 8]", "read 73727 1"]
            )
        }
    }

    @Test("What a device may not do with memory, and what a handler refuses")
    func permissions() throws {
        let memory = try VFIOUserSharedMemory(byteCount: 0x1000)
        try withServer { server in
            for id in [0, 1, 2] as [UInt16] { try takeMap(server, id: id, descriptorCount: id < 2 ? 1 : 0) }
            try server.expect(command(13, id: 3))
            try server.send(command(12, longs(0x1000, 1) + [1], id: 1))
            try server.expect(refusal(12, 1, id: 1))
            try server.send(command(11, longs(0x2000, 1), id: 2))
            try server.expect(refusal(11, 1, id: 2))
            try server.send(command(11, longs(0x3000, 1), id: 3))
            try server.expect(refusal(11, 19, id: 3))
            try server.send(command(12, longs(0x3000, 1) + [1], id: 4))
            try server.expect(refusal(12, 19, id: 4))
            try server.send(success(13, id: 3))
        } client: { client in
            try client.map(memory, byteCount: 0x1000, at: 0x1000, access: .read)
            try client.map(memory, byteCount: 0x1000, at: 0x2000, access: .write)
            try client.map(Handler(error: VFIOUserMemoryError(errno: 19)), byteCount: 0x1000, at: 0x3000)
            try client.reset()
        }
    }

    @Test("A handler that refuses with 0 is EIO on the wire, which no client takes for success")
    func zeroError() throws {
        try withServer { server in
            try takeMap(server, id: 0)
            try server.expect(command(13, id: 1))
            try server.send(command(11, longs(0, 1), id: 1))
            try server.expect(refusal(11, 5, id: 1))
            try server.send(success(13, id: 1))
        } client: { client in
            try client.map(Handler(error: VFIOUserMemoryError(errno: 0)), byteCount: 0x1000, at: 0)
            try client.reset()
        }
    }

    @Test("A handler may use the client while another call waits: nobody waits for himself")
    func handlerUsesClient() throws {
        let box = Mutex<VFIOUserClient?>(nil)
        let values = Mutex<[UInt32]>([])
        let handler = Handler {
            guard let client = box.withLock({ $0 }) else { return }
            let value = try? client.read(UInt32.self, of: .bar(0), at: 4)
            values.withLock { $0.append(value ?? 0) }
        }
        try withServer { server in
            try takeMap(server, id: 0)
            try server.expect(command(13, id: 1))
            try server.send(command(11, longs(0, 1), id: 1))
            try server.expect(command(9, longs(4) + words(0, 4), id: 2))
            try server.send(success(9, longs(4) + words(0, 4) + [1, 2, 3, 4], id: 2))
            try server.expect(success(11, longs(0, 1) + [0], id: 1))
            try server.send(success(13, id: 1))
        } client: { client in
            box.withLock { $0 = client }
            defer { box.withLock { $0 = nil } }
            try client.map(handler, byteCount: 0x1000, at: 0)
            try client.reset()
            #expect(values.withLock { $0 } == [0x0403_0201])
        }
    }

    @Test("When unmapping returns, no handler is being called for the range")
    func unmapWaits() throws {
        final class Shared: Sendable {
            let isInside = Atomic(false)
            let mayLeave = Atomic(false)
            let hasLeft = Atomic(false)
        }
        let shared = Shared()
        let handler = Handler {
            shared.isInside.store(true, ordering: .releasing)
            while !shared.mayLeave.load(ordering: .acquiring) { usleep(100) }
            shared.hasLeft.store(true, ordering: .releasing)
        }
        try withServer { server in
            try takeMap(server, id: 0)
            // A write that wants no answer, and is still being served when DMA_UNMAP is answered.
            try server.send(command(12, longs(0, 1) + [1], id: 1, flags: 0x10))
            try server.expect(command(3, words(24, 0) + longs(0, 0x1000), id: 1))
            while !shared.isInside.load(ordering: .acquiring) { usleep(100) }
            // Once this is refused, whoever waits for DMA_UNMAP's answer has it.
            try server.send(success(3, id: 1) + command(99, id: 2))
            try server.expect(refusal(99, 22, id: 2))
            shared.mayLeave.store(true, ordering: .releasing)
        } client: { client in
            try client.map(handler, byteCount: 0x1000, at: 0)
            try client.unmap(address: 0, byteCount: 0x1000)
            let hasLeft = shared.hasLeft.load(ordering: .acquiring)
            #expect(hasLeft)
        }
    }

    @Test("A twin socket takes the server's commands; the other goes on with the client's")
    func twin() throws {
        let (client, server) = try connectedPair()
        let handler = Handler()
        let script = try Script {
            let server = FakeServer(server)
            let pair = try connectedPair()
            let twin = FakeServer(pair.server)
            try server.expect(greeting)
            let json = #"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#
            try server.send(success(1, versionPayload(json), id: 0), descriptors: [pair.client])
            close(pair.client)
            try takeMap(server, id: 0)
            try server.expect(command(13, id: 1))
            try twin.send(command(11, longs(0x10, 2), id: 0) + command(12, longs(0, 1) + [5], id: 1))
            try twin.expect(success(11, longs(0x10, 2) + [0x10, 0x11], id: 0))
            try twin.expect(success(12, longs(0, 1), id: 1))
            try twin.send(command(4, words(16, 0, 0, 0), id: 2))
            try twin.expect(refusal(4, 22, id: 2))
            try server.send(success(13, id: 1))
            // A reply on it answers nothing that was asked there: the end of both.
            try server.expect(command(13, id: 2))
            try twin.send(success(13, id: 2))
            try server.expectEnd()
            try twin.expectEnd()
        }
        let user = try VFIOUserClient(adopting: client)
        #expect(user.server.hasTwinSocket)
        try user.map(handler, byteCount: 0x1000, at: 0)
        try user.reset()
        #expect(isDisconnected(failure { try user.reset() }))
        script.finish()
        #expect(handler.accesses.withLock { $0 } == ["read 16 2", "write 0 [5]"])
    }

    @Test("More commands than are kept: none is lost, and calls go on")
    func manyCommands() throws {
        let handler = Handler()
        try withServer { server in
            try takeMap(server, id: 0)
            try server.expect(command(13, id: 1))
            for index in 0..<2000 {
                try server.send(command(12, longs(UInt64(index), 1) + [1], id: 1, flags: 0x10))
            }
            try server.send(command(11, longs(7, 1), id: 2))
            try server.expect(success(11, longs(7, 1) + [7], id: 2))
            try server.send(success(13, id: 1))
        } client: { client in
            try client.map(handler, byteCount: 0x1000, at: 0)
            try client.reset()
            let accesses = handler.accesses.withLock { $0 }
            #expect(accesses == (0..<2000).map { "write \($0) [1]" } + ["read 7 1"])
        }
    }

    @Test("A memory of the client's that somebody truncates is an error to the server, and no more")
    func truncatedMemory() throws {
        let file = smmud_memfd_create_unsealed("memory", 0x1000)
        defer { close(file) }
        let memory = try VFIOUserSharedMemory(duplicating: file, offset: 0, byteCount: 0x1000)
        try withServer { server in
            try takeMap(server, id: 0, descriptorCount: 1)
            try server.expect(command(13, id: 1))
            ftruncate(file, 0)
            try server.send(command(11, longs(0, 4), id: 1))
            try server.expect(refusal(11, 14, id: 1))
            try server.send(command(12, longs(0, 1) + [1], id: 2))
            try server.expect(refusal(12, 14, id: 2))
            try server.send(success(13, id: 1))
        } client: { client in
            try client.map(memory, byteCount: 0x1000, at: 0)
            try client.reset()
            #expect(memory.isLost)
        }
    }
}
