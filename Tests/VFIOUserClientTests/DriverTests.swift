// Disks of ours driven through vfio-user by a program without a guest: the example's drivers.

import BlockStorage
import DeviceModel
import Glibc
import NVMe
import PCIFunction
import Testing
import VFIOUserClient
import VFIOUserDrivers
import Virtio

/// Which disk.
enum DiskKind: String, CaseIterable, Sendable {
    case virtio
    case nvme
}

/// A disk of 4 MiB in a file, at a socket.
private final class DiskServer {
    static let byteCount = 4 << 20
    let server: FunctionServer
    private let file: String

    init(_ kind: DiskKind, offersMSIX: Bool = true, queues: Int = 1) throws {
        var name = Array("/tmp/vfu-disk-XXXXXX".utf8CString)
        let descriptor = mkstemp(&name)
        try #require(descriptor >= 0)
        file = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        ftruncate(descriptor, off_t(Self.byteCount))
        close(descriptor)
        let image = try RawImage(path: file)
        server = try FunctionServer { memory in
            switch kind {
            case .virtio:
                try VirtioPCIFunction.make(
                    name: "disk",
                    device: VirtioBlock(image: image, queueCount: queues, serial: "disk"),
                    offersMSIX: offersMSIX
                ) { LentPort(memory) }
            case .nvme:
                try NVMeController(image: image, NVMeParameters(serialNumber: "disk"))
                    .makeFunction(name: "disk", offersMSIX: offersMSIX) { LentPort(memory) }
            }
        }
    }

    deinit {
        server.stop()
        unlink(file)
    }

    /// What the file holds.
    func stored(_ byteCount: Int, at offset: Int) -> [UInt8] {
        let descriptor = open(file, O_RDONLY)
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: byteCount)
        pread(descriptor, &bytes, byteCount, off_t(offset))
        return bytes
    }
}

private func openDisk(_ kind: DiskKind, _ path: String, _ sharing: DriverMemory.Sharing) throws
    -> any BlockDevice
{
    let client = try VFIOUserClient(path: path)
    return switch kind {
    case .virtio: try VirtioBlockDriver(client, sharing)
    case .nvme: try NVMeDriver(client, sharing)
    }
}

/// The memory that a re-exported device sees: what the client at the other end lends.
private final class Passed: ForeignDMA {
    private let memory: LentMemory
    init(_ memory: LentMemory) { self.memory = memory }
    func makePort() -> any DMAPort { LentPort(memory) }
    func follow(_: any ForeignDMAFollower) {}
    func unfollow(_: any ForeignDMAFollower) {}
}

@Suite("Disks driven through vfio-user without a guest")
struct DriverTests {
    /// Bytes that a block's number and a seed determine.
    private static func pattern(_ byteCount: Int, _ seed: UInt8) -> [UInt8] {
        (0..<byteCount).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 / 512) &+ seed }
    }

    private static func check(_ disk: any BlockDevice, _ stored: (Int, Int) -> [UInt8]) throws {
        #expect(disk.blockCount * UInt64(disk.blockByteCount) == UInt64(DiskServer.byteCount))
        // One block, a page, across pages with a list, the most that goes at once, the last block.
        let last = disk.blockCount - 1
        for (number, (blockCount, block)) in [
            (1, 0), (8, 3), (41, 100), (disk.transferByteCountMax / disk.blockByteCount, 1000), (1, last),
        ].enumerated() as EnumeratedSequence<[(Int, UInt64)]> {
            let bytes = pattern(blockCount * disk.blockByteCount, UInt8(number))
            try disk.write(bytes, at: block)
            #expect(try disk.read(bytes.count, at: block) == bytes)
            // What the driver reads could be its own buffer: the file is the judge.
            #expect(stored(bytes.count, Int(block) * disk.blockByteCount) == bytes)
        }
        try disk.flush()
        // Beyond the end the device refuses, and goes on.
        do throws(DriverError) {
            _ = try disk.read(disk.blockByteCount * 2, at: last)
            Issue.record("read beyond the end")
        } catch {
            guard case .refused = error else {
                Issue.record("\(error)")
                return
            }
        }
        #expect(
            try disk.read(disk.blockByteCount, at: 50)
                == stored(disk.blockByteCount, 50 * disk.blockByteCount)
        )
        #expect(disk.interruptCount > 0)
    }

    @Test(
        "Blocks are written and read, by shared memory and by message",
        arguments: DiskKind.allCases,
        [DriverMemory.Sharing.byDescriptor, .byMessage]
    )
    func disks(_ kind: DiskKind, _ sharing: DriverMemory.Sharing) throws {
        let disk = try DiskServer(kind)
        let driver = try openDisk(kind, disk.server.path, sharing)
        #expect(disk.server.memory.mapped.map(\.byDescriptor) == [sharing == .byDescriptor])
        try Self.check(driver) { disk.stored($0, at: $1) }
    }

    @Test(
        "The same where the device is told of requests by an eventfd alone",
        arguments: [DriverMemory.Sharing.byDescriptor, .byMessage]
    )
    func eventfds(_ sharing: DriverMemory.Sharing) throws {
        let disk = try DiskServer(.virtio)
        let client = try VFIOUserClient(path: disk.server.path)
        let driver = try VirtioBlockDriver(client, sharing, usesEvents: true)
        try Self.check(driver) { disk.stored($0, at: $1) }
        // Two signals can be one to whoever watches.
        let model = try #require(disk.server.function.model as? VirtioPCIFunction)
        #expect(driver.eventCount > 10)
        #expect((1...driver.eventCount).contains(model.device.statistics["notifications"]))
    }

    @Test(
        "Each queue of a virtio function has an eventfd, up to what a message carries; NVMe's doorbells have none"
    )
    func offeredEvents() throws {
        for (queues, count) in [(1, 1), (4, 4), (64, 16)] {
            let disk = try DiskServer(.virtio, queues: queues)
            let client = try VFIOUserClient(path: disk.server.path)
            let events = try client.ioEvents(of: .bar(0))
            // The notification structure's offset, and its multiplier of 4.
            #expect(events.map(\.offset) == (0..<UInt64(count)).map { 0x3000 + 4 * $0 })
            #expect(events.allSatisfy { $0.byteCount == 2 && !$0.isIORegion && $0.flags == 0 })
            #expect(Set(events.compactMap { $0.event?.descriptor }).count == count)
            #expect(try client.ioEvents(of: .bar(1)).isEmpty)
        }
        let disk = try DiskServer(.nvme)
        #expect(try VFIOUserClient(path: disk.server.path).ioEvents(of: .bar(0)).isEmpty)
    }

    @Test("The same with interrupts by the pin", arguments: DiskKind.allCases)
    func pin(_ kind: DiskKind) throws {
        let disk = try DiskServer(kind, offersMSIX: false)
        let driver = try openDisk(kind, disk.server.path, .byDescriptor)
        try Self.check(driver) { disk.stored($0, at: $1) }
    }

    @Test(
        "The same through a foreign device that is offered again: two sockets, one after the other",
        arguments: DiskKind.allCases,
        [true, false]
    )
    func offeredAgain(_ kind: DiskKind, _ offersMSIX: Bool) throws {
        let disk = try DiskServer(kind, offersMSIX: offersMSIX)
        let again = try FunctionServer { memory in
            try ForeignDevice.attach(
                VFIOUserClient(path: disk.server.path),
                name: "again",
                dma: Passed(memory)
            )
        }
        defer { (again.function.model as? ForeignDevice)?.detach() }
        let driver = try openDisk(kind, again.path, .byDescriptor)
        try Self.check(driver) { disk.stored($0, at: $1) }
    }

    @Test(
        "A second client finds the disk as the first left it, and no memory of the first",
        arguments: DiskKind.allCases
    )
    func reconnect(_ kind: DiskKind) throws {
        let disk = try DiskServer(kind)
        do {
            let first = try openDisk(kind, disk.server.path, .byDescriptor)
            try first.write(Self.pattern(512, 9), at: 7)
        }
        let second = try openDisk(kind, disk.server.path, .byMessage)
        #expect(try second.read(512, at: 7) == Self.pattern(512, 9))
        #expect(disk.server.memory.mapped.map(\.byDescriptor) == [false])
    }

    @Test("A driver refuses what it does not drive")
    func unsuitable() throws {
        let disk = try DiskServer(.virtio)
        guard case .unsuitable? = driverFailure({ _ = try openDisk(.nvme, disk.server.path, .byDescriptor) })
        else {
            Issue.record("drove a virtio disk as NVMe")
            return
        }
    }

    private func driverFailure(_ body: () throws -> Void) -> DriverError? {
        do { try body() } catch { return error as? DriverError }
        return nil
    }
}
