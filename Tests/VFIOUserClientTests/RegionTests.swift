// Reads and writes of regions: splitting, posting, pipelining, answers that are wrong.

import Testing
import VFIOUserClient

@Suite("Reads and writes of regions")
struct RegionTests {
    @Test("An integer is read and written in one access, little-endian")
    func integers() throws {
        try withServer { server in
            try server.expect(command(9, longs(0x10) + words(7, 2), id: 0))
            try server.send(success(9, longs(0x10) + words(7, 2) + [0x34, 0x12], id: 0))
            try server.expect(command(10, longs(0x10) + words(7, 4) + [4, 3, 2, 1], id: 1))
            try server.send(success(10, longs(0x10) + words(7, 4), id: 1))
        } client: { client in
            #expect(try client.read(UInt16.self, of: .configuration, at: 0x10) == 0x1234)
            try client.write(UInt32(0x0102_0304), to: .configuration, at: 0x10)
        }
    }

    @Test("Accesses beyond the server's limit go in pieces, all of them sent before the first is answered")
    func splitting() throws {
        try withServer(#"{"capabilities":{"max_data_xfer_size":4}}"#) { server in
            let pieces: [(UInt64, UInt32)] = [(0x100, 4), (0x104, 4), (0x108, 2)]
            for (index, (offset, count)) in pieces.enumerated() {
                try server.expect(command(9, longs(offset) + words(1, count), id: UInt16(index)))
            }
            // In another order.
            for index in [2, 0, 1] {
                let (offset, count) = pieces[index]
                let data = [UInt8](repeating: UInt8(index), count: Int(count))
                try server.send(success(9, longs(offset) + words(1, count) + data, id: UInt16(index)))
            }
            for (index, (offset, count)) in pieces.enumerated() {
                let data = [UInt8](repeating: UInt8(index), count: Int(count))
                try server.expect(command(10, longs(offset) + words(1, count) + data, id: UInt16(index + 3)))
                try server.send(success(10, longs(offset) + words(1, count), id: UInt16(index + 3)))
            }
        } client: { client in
            let bytes = try client.read(10, of: .bar(1), at: 0x100)
            #expect(bytes == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
            try client.write(bytes, to: .bar(1), at: 0x100)
            guard case .invalid? = failure({ _ = try client.startRead(5, of: .bar(1), at: 0) }) else {
                Issue.record("one message for more than a message carries")
                return
            }
        }
    }

    @Test("A piece that fails is the access's failure, and the other pieces' answers do no harm")
    func failingPiece() throws {
        try withServer(#"{"capabilities":{"max_data_xfer_size":4}}"#) { server in
            for _ in 0..<3 { _ = try server.receive(32) }
            try server.send(refusal(9, 22, id: 0))
            for index in [1, 2] as [UInt16] {
                try server.send(success(9, longs(UInt64(index) * 4) + words(0, 4) + [1, 1, 1, 1], id: index))
            }
            try server.expect(command(13, id: 3))
            try server.send(success(13, id: 3))
        } client: { client in
            let error = failure { _ = try client.read(12, of: .bar(0), at: 0) }
            #expect(error == .failed(command: "REGION_READ", errno: 22))
            try client.reset()
        }
    }

    @Test("Posted writes have No_reply and are not waited for")
    func posted() throws {
        try withServer(#"{"capabilities":{"max_data_xfer_size":4}}"#) { server in
            try server.expect(command(10, longs(0) + words(0, 4) + [1, 0, 0, 0], id: 0, flags: 0x10))
            try server.expect(command(10, longs(8) + words(0, 4) + [1, 2, 3, 4], id: 1, flags: 0x10))
            try server.expect(command(10, longs(12) + words(0, 1) + [5], id: 2, flags: 0x10))
            try server.expect(command(13, id: 3))
            try server.send(success(13, id: 3))
        } client: { client in
            try client.write(UInt32(1), to: .bar(0), at: 0, isPosted: true)
            try client.write([1, 2, 3, 4, 5], to: .bar(0), at: 8, isPosted: true)
            try client.reset()
        }
    }

    @Test("Small writes: one message where the server takes them, single ones where not")
    func multiple() throws {
        let writes = [
            VFIOUserClient.SmallWrite(region: .bar(0), offset: 0x10, byteCount: 4, data: 0x0403_0201),
            VFIOUserClient.SmallWrite(region: .bar(2), offset: 0x20, byteCount: 1, data: 0xff),
        ]
        let multiple =
            longs(2, 0x10) + words(0, 4) + [1, 2, 3, 4, 0, 0, 0, 0] + longs(0x20) + words(2, 1)
            + [0xff, 0, 0, 0, 0, 0, 0, 0]
        try withServer(#"{"capabilities":{"write_multiple":true}}"#) { server in
            try server.expect(command(15, multiple, id: 0))
            try server.send(success(15, longs(2), id: 0))
            try server.expect(command(15, multiple, id: 1, flags: 0x10))
            try server.expect(command(15, multiple, id: 2))
            try server.send(success(15, longs(1), id: 2))
            try server.expect(command(15, multiple, id: 3))
            try server.send(success(15, longs(3), id: 3))
        } client: { client in
            try client.write(writes)
            try client.write(writes, isPosted: true)
            #expect(isViolation(failure { try client.write(writes) }))
            #expect(isViolation(failure { try client.write(writes) }))
        }
        try withServer { server in
            try server.expect(command(10, longs(0x10) + words(0, 4) + [1, 2, 3, 4], id: 0))
            try server.expect(command(10, longs(0x20) + words(2, 1) + [0xff], id: 1))
            try server.send(success(10, longs(0x10) + words(0, 4), id: 0))
            try server.send(success(10, longs(0x20) + words(2, 1), id: 1))
        } client: { client in
            try client.write(writes)
            for count in [0, 9] {
                let bad = VFIOUserClient.SmallWrite(region: .bar(0), offset: 0, byteCount: count, data: 0)
                guard case .invalid? = failure({ try client.write([bad]) }) else {
                    Issue.record("a small write of \(count) bytes")
                    continue
                }
            }
        }
    }

    @Test(
        "Wrong answers to a read of 4 bytes",
        arguments: [
            [], longs(0), longs(0) + words(0, 4), longs(0) + words(0, 4) + [1, 2, 3],
            longs(0) + words(0, 4) + [1, 2, 3, 4, 5], longs(0) + words(0, 5) + [1, 2, 3, 4, 5],
            longs(0) + words(0, 3) + [1, 2, 3], longs(1) + words(0, 4) + [1, 2, 3, 4],
            longs(0) + words(1, 4) + [1, 2, 3, 4], longs(0) + words(0, 0xffff_ffff),
        ]
    )
    func badReads(_ payload: [UInt8]) throws {
        try withServer { server in
            _ = try server.receive(32)
            try server.send(success(9, payload, id: 0))
            try server.expect(command(13, id: 1))
            try server.send(success(13, id: 1))
        } client: { client in
            #expect(isViolation(failure { _ = try client.read(4, of: .bar(0), at: 0) }))
            try client.reset()
        }
    }

    @Test(
        "Wrong answers to a write of 4 bytes",
        arguments: [
            [], longs(0), longs(0) + words(0, 3), longs(0) + words(0, 0), longs(4) + words(0, 4),
            longs(0) + words(1, 4),
        ]
    )
    func badWrites(_ payload: [UInt8]) throws {
        try withServer { server in
            _ = try server.receive(36)
            try server.send(success(10, payload, id: 0))
        } client: { client in
            #expect(isViolation(failure { try client.write(UInt32(1), to: .bar(0), at: 0) }))
        }
    }

    @Test("Calls that make no sense are not sent")
    func nonsense() throws {
        try withServer { server in
            try server.expectEnd()
        } client: { client in
            for error in [
                failure { _ = try client.read(-1, of: .bar(0), at: 0) },
                failure { _ = try client.read(2, of: .bar(0), at: UInt64.max) },
                failure { try client.write([1, 2], to: .bar(0), at: UInt64.max) },
            ] {
                guard case .invalid? = error else {
                    Issue.record("\(String(describing: error))")
                    continue
                }
            }
        }
    }
}
