// The block device, driven through registers and rings.

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

/// A started disk with one request at a time.
final class DiskDriver {
    let driver: any TestDriver
    let machine: TestMachine
    let queue: DriverQueue
    let header: UInt64
    let statusAddress: UInt64

    init(_ driver: any TestDriver, _ queue: DriverQueue) {
        self.driver = driver
        machine = driver.machine
        self.queue = queue
        header = machine.allocate(16)
        statusAddress = machine.allocate(1)
    }

    /// virtio_blk_req: le32 type, le32 reserved, le64 sector, data, u8 status. Returns status and used length.
    func request(_ type: UInt32, sector: UInt64, _ data: [DriverBuffer] = [], isIndirect: Bool = false) throws
        -> (status: UInt8, length: UInt32)
    {
        machine.put(little(UInt64(type), 4) + little(0, 4) + little(sector, 8), header)
        machine.store(0xEE, .byte, statusAddress)
        let chain = [.out(header, 16)] + data + [DriverBuffer.into(statusAddress, 1)]
        if isIndirect { queue.addIndirect(chain) } else { queue.add(chain) }
        driver.notify(0)
        let (_, length) = try queue.await()
        return (UInt8(machine.load(.byte, statusAddress)), length)
    }
}

@Suite struct BlockTests {
    let machine: TestMachine
    let file: TestImage

    init() throws {
        machine = try TestMachine()
        file = try TestImage(byteCount: 4 << 20)
    }

    private func disk(
        features: UInt64 = .max,
        isReadOnly: Bool = false,
        serial: String = "disk-1"
    ) throws -> (PCIDriver, DiskDriver) {
        let block = VirtioBlock(image: try file.open(isReadOnly: isReadOnly), serial: serial)
        let driver = try PCIDriver(machine, block)
        let queue = try driver.start(features: features, queues: 1)[0]
        return (driver, DiskDriver(driver, queue))
    }

    @Test func whatIsWrittenIsInTheFileAndIsReadBack() throws {
        let (_, disk) = try disk()
        let out = machine.allocate(4096)
        let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ 5) }
        machine.put(pattern, out)
        // Two pieces, neither of whole blocks.
        let written = try disk.request(1, sector: 3, [.out(out, 1000), .out(out + 1000, 3096)])
        #expect(written == (0, 1))
        #expect(file.content(at: 3 * 512, 4096) == pattern)
        let into = machine.allocate(4096)
        let read = try disk.request(0, sector: 3, [.into(into, 7), .into(into + 7, 4089)])
        #expect(read == (0, 4097))
        #expect(machine.bytes(4096, into) == pattern)
    }
}
