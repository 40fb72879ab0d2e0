// A disk and its driver, one request at a time.

import BlockStorage
import DeviceModel
import Glibc
import Testing
import Virtio

/// A disk image of its own for each test.
final class TestImage {
    let path: String

    init(byteCount: Int) throws {
        var template = Array("/tmp/smmud-virtio-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        try #require(descriptor >= 0)
        #expect(ftruncate(descriptor, off_t(byteCount)) == 0)
        close(descriptor)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { unlink(path) }

    func open(isReadOnly: Bool = false) throws -> RawImage {
        try RawImage(path: path, isReadOnly: isReadOnly)
    }

    /// What the file holds, read past the device.
    func content(at offset: Int, _ count: Int) -> [UInt8] {
        let descriptor = Glibc.open(path, O_RDONLY)
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0xEE, count: count)
        let found = pread(descriptor, &bytes, count, off_t(offset))
        return found == count ? bytes : []
    }
}

/// What became of a request.
struct Outcome: Equatable {
    /// 0 OK, 1 IOERR, 2 UNSUPP.
    var status: UInt8
    /// The used element's length.
    var length: UInt32

    init(_ status: UInt8, _ length: UInt32) {
        self.status = status
        self.length = length
    }
}

/// One queue of a started disk.
final class DiskDriver {
    let driver: any TestDriver
    let machine: TestMachine
    let queue: DriverQueue
    let index: Int
    let header: UInt64
    let statusAddress: UInt64

    init(_ driver: any TestDriver, _ queue: DriverQueue, index: Int = 0) {
        self.driver = driver
        machine = driver.machine
        self.queue = queue
        self.index = index
        header = machine.allocate(16)
        statusAddress = machine.allocate(1)
    }

    /// Makes a request available.
    ///
    /// virtio_blk_req: le32 type, le32 reserved, le64 sector, data, u8 status.
    func add(_ type: UInt32, sector: UInt64, _ data: [DriverBuffer] = [], isIndirect: Bool = false) {
        machine.put(little(UInt64(type), 4) + little(0, 4) + little(sector, 8), header)
        machine.store(0xEE, .byte, statusAddress)
        let chain = [.out(header, 16)] + data + [DriverBuffer.into(statusAddress, 1)]
        if isIndirect { queue.addIndirect(chain) } else { queue.add(chain) }
    }

    /// Makes a request, and waits for what becomes of it.
    func request(_ type: UInt32, sector: UInt64, _ data: [DriverBuffer] = [], isIndirect: Bool = false) throws
        -> Outcome
    {
        add(type, sector: sector, data, isIndirect: isIndirect)
        if queue.wantsNotification(added: 1) { driver.notify(index) }
        let (_, length) = try queue.await()
        return Outcome(UInt8(machine.load(.byte, statusAddress)), length)
    }
}

/// A file, a function over it, and its first queue.
final class TestDisk {
    let machine: TestMachine
    let file: TestImage
    let block: VirtioBlock
    let driver: PCIDriver
    let queues: [DriverQueue]
    let disk: DiskDriver

    init(
        features: UInt64 = .max,
        queueCount: Int = 1,
        ringSize: Int = 16,
        isReadOnly: Bool = false,
        offersMSIX: Bool = false,
        isPacked: Bool = false,
        pollMicroseconds: Int = 0,
        wrap: (@Sendable (any DMAPort) -> any DMAPort)? = nil
    ) throws {
        machine = try TestMachine()
        file = try TestImage(byteCount: 4 << 20)
        let image = try file.open(isReadOnly: isReadOnly)
        block = VirtioBlock(
            image: image,
            queueCount: queueCount,
            serial: "serial-0123456789-and-more",
            pollMicroseconds: pollMicroseconds
        )
        let makePort = machine.makePort
        driver = try PCIDriver(machine, block, offersMSIX: offersMSIX) {
            let port = makePort()
            return wrap?(port) ?? port
        }
        queues = try driver.start(features: features, queues: queueCount, size: ringSize, isPacked: isPacked)
        disk = DiskDriver(driver, queues[0])
    }

    /// DEVICE_NEEDS_RESET.
    var needsReset: Bool { driver.status & 64 != 0 }
}
