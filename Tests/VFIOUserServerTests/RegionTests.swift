// Accesses to regions over a socket.

import Testing

@Suite("REGION_READ, REGION_WRITE and REGION_WRITE_MULTI over a socket")
struct RegionTests {
    let server: TestServer
    let client: TestClient

    init() throws {
        server = try TestServer()
        client = try server.greeted()
    }

    @Test("What is written is read, in whole and in part, up to the last byte")
    func roundTrip() throws {
        #expect(
            try client.ask(command(10, access(4, 0x21, 5) + [1, 2, 3, 4, 5]))
                == success(10, access(4, 0x21, 5))
        )
        #expect(try client.ask(command(9, access(4, 0x22, 3))) == success(9, access(4, 0x22, 3) + [2, 3, 4]))
        #expect(try client.ask(command(10, access(4, 0xff, 1) + [9])) == success(10, access(4, 0xff, 1)))
        #expect(try client.ask(command(9, access(4, 0xff, 1))) == success(9, access(4, 0xff, 1) + [9]))
        // Mappable regions too.
        #expect(
            try client.ask(command(9, access(0, 0x1000, 2))) == success(9, access(0, 0x1000, 2) + [0, 0])
        )
    }

    @Test("The whole configuration space in one message")
    func configuration() throws {
        let answer = try client.ask(command(9, access(7, 0, 4096)))
        #expect(answer == success(9, access(7, 0, 4096) + server.device.bytes(7, 0..<4096)))
    }

    @Test("test_access_region_zero_count: no bytes succeed with a header alone")
    func zero() throws {
        #expect(try client.ask(command(9, access(7, 0, 0))) == success(9))
        #expect(try client.ask(command(10, access(7, 0, 0))) == success(10))
    }

    @Test("test_access_region: offset and count that overflow, leave the region, are too large or do not fit")
    func bounds() throws {
        for number: UInt16 in [9, 10] {
            let data = { (count: Int) in number == 10 ? [UInt8](repeating: 0, count: count) : [] }
            for bad in [
                access(4, 0xfd, 4) + data(4), access(4, 0x100, 1) + data(1),
                access(4, UInt64.max, 4) + data(4), access(4, UInt64.max - 3, 4) + data(4),
                access(5, 0, 4) + data(4), access(9, 0, 4) + data(4), access(UInt32.max, 0, 4) + data(4),
                Array(access(4, 0, 4).dropLast()), [], access(4, 0, UInt32.max),
            ] {
                #expect(try client.ask(command(number, bad)) == refusal(number, 22))
            }
        }
        #expect(try client.ask(command(9, access(4, 0, 4) + [0])) == refusal(9, 22))
        #expect(try client.ask(command(10, access(4, 0, 4) + [0, 0, 0])) == refusal(10, 22))
        #expect(try client.ask(command(10, access(4, 0, 4) + [0, 0, 0, 0, 0])) == refusal(10, 22))
        #expect(try client.ask(command(10, access(6, 0, 1) + [0])) == refusal(10, 22))
        #expect(try client.isAlive())
    }

    @Test(
        "max_data_xfer_size: one byte less and just as many are taken, one more is not",
        arguments: [-1, 0, 1]
    )
    func largest(_ beyond: Int) throws {
        let count = (1 << 20) + beyond
        let read = try client.ask(command(9, access(3, 0, UInt32(count))))
        let data = [UInt8](repeating: 0xa5, count: count)
        let write = try client.ask(command(10, access(3, 1 << 20, UInt32(count)) + data))
        if beyond > 0 {
            #expect(read == refusal(9, 22))
            #expect(write == refusal(10, 22))
        } else {
            #expect(read.count == 32 + count)
            #expect(
                Array(read.prefix(32)) == header(7, 9, size: 32 + count, flags: 1)
                    + access(3, 0, UInt32(count))
            )
            #expect(write == success(10, access(3, 1 << 20, UInt32(count))))
            #expect(server.device.bytes(3, 1 << 20..<(1 << 20) + count) == data)
        }
        #expect(try client.isAlive())
    }

    @Test("What the device refuses is told by its error")
    func deviceErrors() throws {
        #expect(try client.ask(command(9, access(4, 0xf0, 4))) == refusal(9, 5))
        #expect(try client.ask(command(10, access(4, 0xf0, 1) + [1])) == refusal(10, 5))
        client.send(command(10, access(4, 0xf0, 1) + [1], flags: 0x10))
        #expect(try client.isAlive())
    }

    private func entry(_ region: UInt32, _ offset: UInt64, _ count: UInt32, _ data: UInt64) -> [UInt8] {
        longs(offset) + words(region, count) + longs(data)
    }

    @Test("REGION_WRITE_MULTI: all writes in their order, and how many were done")
    func multiple() throws {
        let writes =
            entry(4, 0x30, 4, 0x0403_0201) + entry(4, 0x32, 1, 9) + entry(4, 0x38, 8, 0x1122_3344_5566_7788)
        #expect(try client.ask(command(15, longs(3) + writes)) == success(15, longs(3)))
        #expect(server.device.bytes(4, 0x30..<0x34) == [1, 2, 9, 4])
        #expect(server.device.bytes(4, 0x38..<0x40) == [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11])
    }

    @Test("REGION_WRITE_MULTI as QEMU sends it: 200 writes that nobody waits for")
    func multiplePosted() throws {
        var writes: [UInt8] = []
        for index in UInt64(0)..<200 { writes += entry(4, index, 1, index) }
        client.send(command(15, longs(200) + writes, flags: 0x10))
        #expect(try client.isAlive())
        #expect(server.device.bytes(4, 0..<200) == (0..<200).map { UInt8($0) })
    }

    @Test("REGION_WRITE_MULTI: it stops at the first that is not permitted or fails")
    func multipleFailing() throws {
        let good = entry(4, 0x10, 1, 0xaa)
        for bad in [
            entry(4, 0x100, 1, 0), entry(6, 0, 1, 0), entry(9, 0, 1, 0), entry(4, 0, 9, 0), entry(4, 0, 0, 0),
            entry(4, 0xf0, 1, 0),
        ] {
            #expect(
                try client.ask(command(15, longs(3) + good + bad + entry(4, 0x11, 1, 0xbb)))
                    == success(15, longs(1))
            )
        }
        #expect(server.device.bytes(4, 0x10..<0x12) == [0xaa, 5])
        for bad in [longs(2) + good, longs(UInt64.max) + good, [1, 2], longs(1) + entry(9, 0, 1, 0)] {
            #expect(try client.ask(command(15, bad)) == refusal(15, 22))
        }
    }

    @Test("REGION_WRITE_MULTI is refused where it was not agreed on")
    func multipleUnagreed() throws {
        let server = try TestServer()
        let client = try server.greeted("{}")
        #expect(try client.ask(command(15, longs(1) + entry(4, 0, 1, 0))) == refusal(15, 22))
    }

    @Test("DEVICE_RESET resets, and takes no payload")
    func reset() throws {
        #expect(try client.ask(command(13)) == success(13))
        #expect(server.device.log == ["attached", "reset"])
        #expect(try client.ask(command(13, [0])) == refusal(13, 22))
        #expect(server.device.log.count == 2)
    }
}
