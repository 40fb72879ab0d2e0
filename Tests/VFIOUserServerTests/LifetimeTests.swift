// How connections begin and end, and what is left of them.

import Glibc
import HostIO
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

@Suite("Clients come and go")
struct LifetimeTests {
    @Test(
        "test_disconnect: when a client leaves, its memory and its eventfds go, and the device's state stays"
    )
    func disconnect() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let (file, event, resample) = (try memoryFile(), try eventfd(), try eventfd())
        defer { for descriptor in [file, event, resample] { close(descriptor) } }
        #expect(try client.ask(command(2, map(0, 0x1000)), descriptors: [file]) == success(2))
        let bind = command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 0, 1))
        #expect(try client.ask(bind, descriptors: [event]) == success(8))
        let unmask = command(8, interrupts(IRQ.eventfd | IRQ.unmask, IRQ.intx, 0, 1))
        #expect(try client.ask(unmask, descriptors: [resample]) == success(8))
        #expect(try client.ask(command(10, access(4, 0x60, 1) + [0x77])) == success(10, access(4, 0x60, 1)))
        #expect([file, event, resample].map(copies) == [2, 2, 2])
        client.close()
        #expect(eventually { server.device.log.last == "detached" })
        #expect([file, event, resample].map(copies) == [1, 1, 1])
        #expect(server.mappings.isEmpty)
        let next = try server.greeted()
        #expect(try next.ask(command(9, access(4, 0x60, 1))) == success(9, access(4, 0x60, 1) + [0x77]))
        server.device.interrupts?.signal(.msix, vector: 0)
        #expect(drain(event) == 0)
    }

    @Test(
        "A client that dies in the middle of a message, anywhere, is followed by the next",
        arguments: [0, 1, 15, 16, 17, 31, 47]
    )
    func midMessage(_ cut: Int) throws {
        let server = try TestServer()
        let file = try memoryFile()
        defer { close(file) }
        for isGreeted in [false, true] {
            let client = isGreeted ? try server.greeted() : try server.client()
            let message = isGreeted ? command(2, map(0, 0x1000)) : command(1, versionPayload(qemuOffer))
            if cut > 0 { client.send(Array(message[..<cut]), descriptors: [file]) }
            client.close()
        }
        #expect(try server.greeted().isAlive())
        #expect(copies(of: file) == 1)
    }

    @Test("A client that asks and does not wait for the answers is followed by the next")
    func unreadAnswers() throws {
        let server = try TestServer()
        let client = try server.greeted()
        for _ in 0..<64 { client.send(command(9, access(3, 0, 1 << 10))) }
        client.send(command(9, access(3, 0, 1 << 20)))
        client.close()
        #expect(try server.greeted().isAlive())
    }

    @Test("A second client waits until the first is gone")
    func second() throws {
        let server = try TestServer()
        let first = try server.greeted()
        let second = try server.client()
        second.send(command(1, versionPayload(qemuOffer)))
        // The first is served as if there were no other.
        for _ in 0..<10 { #expect(try first.isAlive()) }
        var byte: UInt8 = 0
        #expect(recv(second.socket, &byte, 1, CInt(MSG_DONTWAIT)) == -1)
        first.close()
        #expect(try second.message().bytes.count > 20)
        #expect(try second.isAlive())
    }

    @Test("A hundred connections, each with memory and interrupts, leave nothing behind")
    func reconnects() throws {
        let server = try TestServer()
        let (file, event) = (try memoryFile(), try eventfd())
        defer {
            close(file)
            close(event)
        }
        for round in 0..<100 {
            let client = try server.greeted()
            #expect(try client.ask(command(2, map(0, 0x1000)), descriptors: [file]) == success(2))
            let bind = command(8, interrupts(IRQ.eventfd | IRQ.trigger, IRQ.msix, 0, 2))
            #expect(try client.ask(bind, descriptors: [event, event]) == success(8))
            // Every other one leaves without waiting for anything.
            if round % 2 == 0 { client.send(command(9, access(3, 0, 4))) }
        }
        #expect(try server.greeted().isAlive())
        #expect(copies(of: file) == 1)
        #expect(copies(of: event) == 1)
    }

    @Test("Stopping ends a connection, and nothing is left: no file, no thread, no descriptor")
    func stop() throws {
        let server = try TestServer()
        let (file, event) = (try memoryFile(), try eventfd())
        defer {
            close(file)
            close(event)
        }
        let client = try server.greeted(
            #"{"capabilities":{"max_msg_fds":8}}"#
        )
        #expect(try client.ask(command(2, map(0, 0x1000)), descriptors: [file]) == success(2))
        let unmask = command(8, interrupts(IRQ.eventfd | IRQ.unmask, IRQ.intx, 0, 1))
        #expect(try client.ask(unmask, descriptors: [event]) == success(8))
        server.server.stop()
        #expect(client.isAtEnd)
        #expect(server.device.log.last == "detached")
        #expect([file, event].map(copies) == [1, 1])
        #expect(access(server.path, F_OK) == -1)
        // Again does nothing.
        server.server.stop()
    }

    @Test("Stopping does not wait for a client that reads nothing, nor for one that has sent half a message")
    func stopUnread() throws {
        let server = try TestServer()
        let client = try server.greeted()
        var patience = timeval(tv_sec: 0, tv_usec: 100_000)
        setsockopt(client.socket, SOL_SOCKET, SO_SNDTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
        for _ in 0..<8 { client.send(command(9, access(3, 0, 1 << 20))) }
        server.server.stop()
        let other = try TestServer()
        let half = try other.greeted()
        half.send(header(7, 10, size: 100))
        other.server.stop()
        #expect(half.isAtEnd)
    }

    @Test("A region's reply to a client that has gone is no harm")
    func goneBeforeReply() throws {
        let server = try TestServer()
        let client = try server.greeted()
        let socket = client.socket
        server.device.onWrite.withLock { $0 = { _ in shutdown(socket, CInt(SHUT_RDWR)) } }
        client.send(command(10, access(4, 0, 1) + [1]))
        #expect(client.isAtEnd)
        server.device.onWrite.withLock { $0 = nil }
        #expect(try server.greeted().isAlive())
    }
}
