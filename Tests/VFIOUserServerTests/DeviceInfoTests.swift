// The reference suite's questions about the device, over a socket.

import CLinux
import Glibc
import Testing

@Suite("Questions about the device over a socket")
struct DeviceInfoTests {
    let server: TestServer
    let client: TestClient

    init() throws {
        server = try TestServer()
        client = try server.greeted()
    }

    @Test("test_device_get_info: short, argsz too small, argsz larger than needed")
    func deviceInfo() throws {
        #expect(try client.ask(command(4, words(16, 0, 0))) == refusal(4, 22))
        #expect(try client.ask(command(4, words(8, 0, 0, 0))) == refusal(4, 22))
        #expect(try client.ask(command(4, words(32, 0, 0, 0))) == success(4, words(16, 3, 9, 5)))
        // SPDK's client sends more than the struct.
        let long = command(4, words(16, 0, 0, 0) + [UInt8](repeating: 0xee, count: 4048))
        #expect(try client.ask(long) == success(4, words(16, 3, 9, 5)))
    }

    @Test("test_device_get_irq_info: short, argsz too small, bad index; counts and flags")
    func interruptInfo() throws {
        #expect(try client.ask(command(7, words(16, 0, 0))) == refusal(7, 22))
        #expect(try client.ask(command(7, words(8, 0, 0, 0))) == refusal(7, 22))
        #expect(try client.ask(command(7, words(16, 0, 5, 0))) == refusal(7, 22))
        #expect(try client.ask(command(7, words(16, 0, IRQ.request, 0))) == success(7, words(16, 1, 4, 1)))
        #expect(try client.ask(command(7, words(16, 0, IRQ.error, 0))) == success(7, words(16, 1, 3, 1)))
        #expect(try client.ask(command(7, words(64, 0, IRQ.msix, 0))) == success(7, words(16, 1, 2, 2048)))
        // INTx is maskable, and masks itself; the reference library says neither.
        #expect(try client.ask(command(7, words(16, 0, IRQ.intx, 0))) == success(7, words(16, 7, 0, 1)))
        #expect(try client.ask(command(7, words(16, 0, IRQ.msi, 0))) == success(7, words(16, 0, 1, 0)))
    }

    private func info(_ argsz: UInt32, _ index: UInt32) -> [UInt8] {
        command(5, words(argsz, 0, index, 0) + longs(0, 0))
    }

    @Test("test_device_get_region_info: short, argsz too small, bad index")
    func badRegionInfo() throws {
        #expect(try client.ask(command(5, words(32, 0, 0, 0) + longs(0))) == refusal(5, 22))
        #expect(try client.ask(info(8, 0)) == refusal(5, 22))
        #expect(try client.ask(info(32, 9)) == refusal(5, 22))
        #expect(try client.ask(info(32, UInt32.max)) == refusal(5, 22))
    }

    @Test("test_device_get_region_info: argsz larger than needed gives 32 bytes")
    func largerArgsz() throws {
        #expect(try client.ask(info(64, 7)) == success(5, words(32, 3, 7, 0) + longs(0x1000, 0)))
    }

    @Test(
        "test_device_get_region_info_zero_size: absent regions succeed with size 0, no flags, no capabilities"
    )
    func absent() throws {
        for index: UInt32 in [5, 8] {
            #expect(try client.ask(info(32, index)) == success(5, words(32, 0, index, 0) + longs(0, 0)))
        }
        #expect(try client.ask(info(32, 6)) == success(5, words(32, 1, 6, 0) + longs(0x800, 0)))
    }

    @Test(
        "test_device_get_region_info_caps: first how much room, without descriptor; then all with exactly one"
    )
    func sparse() throws {
        let short = try {
            client.send(info(32, 0)); return try client.message()
        }()
        #expect(short.bytes == success(5, words(80, 7, 0, 0) + longs(0x8000, 0x10000)))
        #expect(short.descriptors.isEmpty)
        client.send(info(80, 0))
        let full = try client.message()
        let expected =
            words(80, 15, 0, 32) + longs(0x8000, 0x10000) + hex("0100 0100 00000000 02000000 00000000")
            + longs(0x1000, 0x1000, 0x4000, 0x2000)
        #expect(full.bytes == success(5, expected))
        #expect(full.descriptors.count == 1)
        for descriptor in full.descriptors {
            var (theirs, ours) = (stat(), stat())
            #expect(fstat(descriptor, &theirs) == 0 && fstat(server.device.file, &ours) == 0)
            #expect(theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev)
            close(descriptor)
        }
        #expect(copies(of: server.device.file) == 1)
    }

    @Test("A wholly mappable region gives its descriptor at once")
    func whole() throws {
        client.send(info(32, 1))
        let answer = try client.message()
        #expect(answer.bytes == success(5, words(32, 7, 1, 0) + longs(0x1000, 0)))
        #expect(answer.descriptors.count == 1)
        for descriptor in answer.descriptors { close(descriptor) }
    }

    private func ioDescriptors(_ argsz: UInt32, _ flags: UInt32, _ index: UInt32, _ count: UInt32) -> [UInt8]
    {
        command(6, words(argsz, flags, index, count))
    }

    @Test("test_device_get_region_io_fds: flags, count, argsz, index")
    func badIODescriptors() throws {
        for bad in [
            ioDescriptors(512, 1, 2, 0), ioDescriptors(512, 0, 2, 1), ioDescriptors(15, 0, 2, 0),
            ioDescriptors((1 << 20) + 1, 0, 2, 0), ioDescriptors(512, 0, 512, 0), ioDescriptors(512, 0, 5, 0),
            command(6, words(512, 0, 2)),
        ] {
            #expect(try client.ask(bad) == refusal(6, 22))
        }
    }

    @Test("test_device_get_region_io_fds: a region without any has none; without room, how much it takes")
    func noIODescriptors() throws {
        #expect(try client.ask(ioDescriptors(512, 0, 7, 0)) == success(6, words(16, 0, 7, 0)))
        #expect(try client.ask(ioDescriptors(512, 0, 1, 0)) == success(6, words(16, 0, 1, 0)))
        // The specification's entries have 40 bytes; the reference library's have 48.
        #expect(try client.ask(ioDescriptors(16, 0, 2, 0)) == success(6, words(16 + 8 * 40, 0, 2, 0)))
        #expect(try client.ask(ioDescriptors(16 + 8 * 40 - 1, 0, 2, 0)) == success(6, words(336, 0, 2, 0)))
    }

    @Test("test_device_get_region_io_fds: eventfds that are connected; entries that share one name the same")
    func connectedIODescriptors() throws {
        client.send(ioDescriptors(512, 0, 2, 0))
        let answer = try client.message()
        var entries: [UInt8] = []
        for index in UInt64(0)..<6 {
            entries += longs(index * 8, 4) + words(UInt32(index), 0, 1, 0) + longs(0x1122_3340 + index)
        }
        entries += longs(0x80, 2) + words(0, 0, 1, 0) + longs(0x5566)
        entries += longs(0x88, 0) + words(6, 0, 0, 0) + longs(0)
        #expect(answer.bytes == success(6, words(336, 0, 2, 8) + entries))
        try #require(answer.descriptors.count == 7)
        defer { for descriptor in answer.descriptors { close(descriptor) } }
        for index in [0, 3, 6] { smmud_signal_eventfd(answer.descriptors[index]) }
        let expected: Set = ["write 0 4", "write 128 2", "write 24 4", "write 136 4"]
        #expect(eventually { expected.isSubset(of: server.device.log) })
        #expect(server.device.bytes(2, 24..<28) == [0x43, 0x33, 0x22, 0x11])
        #expect(server.device.bytes(2, 128..<130) == [0x66, 0x55])
        // Again, without anybody having read the eventfd.
        smmud_signal_eventfd(answer.descriptors[3])
        #expect(eventually { server.device.log.filter { $0 == "write 24 4" }.count == 2 })
        // The same ones the next time, and none of them do anything once the client is gone.
        client.send(ioDescriptors(512, 0, 2, 0))
        let again = try client.message()
        #expect(again.descriptors.count == 7)
        for descriptor in again.descriptors { close(descriptor) }
        client.close()
        #expect(eventually { server.device.log.last == "detached" })
        let count = server.device.log.count
        smmud_signal_eventfd(answer.descriptors[3])
        let next = try server.greeted()
        #expect(try next.isAlive())
        #expect(server.device.log.count == count + 1)
        next.close()
        #expect(copies(of: answer.descriptors[3]) == 1)
    }

    @Test("No more ioeventfds than the client can receive, and only their entries")
    func fewDescriptors() throws {
        let server = try TestServer()
        let client = try server.greeted(#"{"capabilities":{"max_msg_fds":2}}"#)
        client.send(ioDescriptors(512, 0, 2, 0))
        let answer = try client.message()
        #expect(Array(answer.bytes[16..<32]) == words(16 + 3 * 40, 0, 2, 3))
        #expect(answer.descriptors.count == 2)
        for descriptor in answer.descriptors { close(descriptor) }
    }

    @Test("test_feature arguments: nonsense is EINVAL")
    func badFeatures() throws {
        for bad in [[], words(8), words(7, 0x1_0001), words(8, 1), words(8, 0x3_0001), words(8, 0x8_0001)] {
            #expect(try client.ask(command(16, bad)) == refusal(16, 22))
        }
    }

    // The reference library says EINVAL of features that it does not have; the kernel's ENOTTY tells more.
    @Test(
        "test_feature differs: what is not there is ENOTTY",
        arguments: [0x1_0001, 0x4_0001, 0x5_0002, 0x2_0006]
    )
    func features(_ flags: UInt32) throws {
        #expect(try client.ask(command(16, words(64, flags) + longs(0))) == refusal(16, 25))
    }

    @Test("test_migration: without migration its data is not supported", arguments: [17, 18])
    func migration(_ number: UInt16) throws {
        #expect(try client.ask(command(number, words(8, 16))) == refusal(number, 95))
        #expect(try client.ask(command(number, words(8))) == refusal(number, 22))
    }
}
