// Where a client lets a device's interrupts go.

import CLinux
import Glibc
import Testing
import VFIOUserClient

@Suite("Binding interrupts")
struct InterruptTests {
    /// Receives SET_IRQS that bind or unbind, and says through which of the descriptors what arrives.
    private static func expect(
        _ server: FakeServer,
        flags: UInt32 = 0x24,
        index: UInt32 = 2,
        start: UInt32,
        count: UInt32,
        descriptorCount: Int,
        id: UInt16
    ) throws {
        let descriptors = try server.expect(
            command(8, words(20, flags, index, start, count), id: id),
            descriptorCount: descriptorCount
        )
        for (place, descriptor) in descriptors.enumerated() {
            var signals = UInt64(start) + UInt64(place) + 1
            write(descriptor, &signals, 8)
            close(descriptor)
        }
        try server.send(success(8, id: id))
    }

    @Test(
        "Events are sent in runs of as many as the server takes, in their order",
        arguments: [
            (#"{}"#, 1), (#"{"capabilities":{"max_msg_fds":8}}"#, 8),
            (#"{"capabilities":{"max_msg_fds":1000}}"#, 16),
        ]
    )
    func splitting(_ json: String, _ limit: Int) throws {
        let events = try (0..<20).map { _ in try VFIOUserEvent() }
        try withServer(json) { server in
            for (number, first) in stride(from: 0, to: 20, by: limit).enumerated() {
                let count = min(limit, 20 - first)
                try Self.expect(
                    server,
                    start: UInt32(first),
                    count: UInt32(count),
                    descriptorCount: count,
                    id: UInt16(number)
                )
            }
        } client: { client in
            try client.bind(events, to: .msix)
            for (index, event) in events.enumerated() { #expect(event.take() == UInt64(index + 1)) }
        }
    }

    @Test("Vectors without an event are let go of, in messages of their own")
    func gaps() throws {
        let events = try (0..<3).map { _ in try VFIOUserEvent() }
        try withServer(#"{"capabilities":{"max_msg_fds":8}}"#) { server in
            try Self.expect(server, start: 4, count: 2, descriptorCount: 2, id: 0)
            try Self.expect(server, start: 6, count: 3, descriptorCount: 0, id: 1)
            try Self.expect(server, start: 9, count: 1, descriptorCount: 1, id: 2)
        } client: { client in
            try client.bind([events[0], events[1], nil, nil, nil, events[2]], to: .msix, from: 4)
            #expect(events.map { $0.take() } == [5, 6, 10])
        }
    }

    @Test("Disabling, masking, unmasking, triggering, an event that unmasks")
    func actions() throws {
        let event = try VFIOUserEvent()
        try withServer { server in
            for (id, payload) in [
                words(20, 0x21, 2, 0, 0), words(20, 0x9, 0, 0, 1), words(20, 0x11, 0, 0, 1),
                words(20, 0x21, 2, 3, 4), words(23, 0x22, 2, 5, 3) + [1, 0, 1],
            ].enumerated() {
                try server.expect(command(8, payload, id: UInt16(id)))
                try server.send(success(8, id: UInt16(id)))
            }
            try Self.expect(server, flags: 0x14, index: 0, start: 0, count: 1, descriptorCount: 1, id: 5)
        } client: { client in
            try client.disable(.msix)
            try client.perform(.mask, .intx, vectors: 0..<1)
            try client.perform(.unmask, .intx, vectors: 0..<1)
            try client.perform(.trigger, .msix, vectors: 3..<7)
            try client.perform(.trigger, .msix, from: 5, where: [true, false, true])
            try client.bind([event], to: .intx, action: .unmask)
            #expect(event.take() == 1)
        }
    }

    @Test("A message that is refused is an error, and no further one is sent")
    func refused() throws {
        let events = try (0..<3).map { _ in try VFIOUserEvent() }
        try withServer { server in
            _ = try server.receive(36).descriptors.map { close($0) }
            try server.send(refusal(8, 22, id: 0))
            try server.expect(command(13, id: 1))
            try server.send(success(13, id: 1))
        } client: { client in
            let error = failure { try client.bind(events, to: .msi) }
            #expect(error == .failed(command: "DEVICE_SET_IRQS", errno: 22))
            try client.reset()
        }
    }

    @Test("No descriptors to a server that takes none; letting go still works")
    func noDescriptors() throws {
        let event = try VFIOUserEvent()
        try withServer(#"{"capabilities":{"max_msg_fds":0}}"#) { server in
            try Self.expect(server, start: 0, count: 1, descriptorCount: 0, id: 0)
        } client: { client in
            guard case .unsupported? = failure({ try client.bind([event], to: .msix) }) else {
                Issue.record("sent a descriptor")
                return
            }
            try client.bind([nil], to: .msix)
        }
    }

    @Test("An event counts its signals and is waited for")
    func events() throws {
        let event = try VFIOUserEvent()
        #expect(!event.wait(milliseconds: 0))
        #expect(event.take() == 0)
        event.signal()
        event.signal()
        #expect(event.wait(milliseconds: 1000))
        #expect(event.take() == 2)
    }
}
