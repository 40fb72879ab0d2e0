// A machine of RAM, a message doorbell and one NVMe function: what the tests' driver drives.

import AddressSpace
import BlockStorage
import DeviceModel
import Glibc
import GuestMemory
import NVMe
import PCIFunction
import Synchronization
import SystemBus
import Testing

/// An image file of its own for each test.
final class ImageFile: Sendable {
    let path: String

    init(byteCount: Int) {
        var template = Array("/tmp/smmud-nvme-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        ftruncate(descriptor, off_t(byteCount))
        close(descriptor)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { unlink(path) }

    /// The bytes of the file itself, past the controller.
    func bytes(at offset: Int, count: Int) -> [UInt8] {
        let descriptor = open(path, O_RDONLY)
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: count)
        let got = pread(descriptor, &bytes, count, off_t(offset))
        return Array(bytes.prefix(max(0, got)))
    }

    func truncate(to byteCount: Int) { Glibc.truncate(path, off_t(byteCount)) }

    func fill(_ bytes: [UInt8], at offset: Int) {
        let descriptor = open(path, O_WRONLY)
        defer { close(descriptor) }
        pwrite(descriptor, bytes, bytes.count, off_t(offset))
    }
}

/// Where messages go: remembers the data of each.
final class MessageDoorbell: RegisterTarget {
    private let data = Mutex<[UInt32]>([])

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        data.withLock { $0.append(UInt32(truncatingIfNeeded: value)) }
    }

    var received: [UInt32] { data.withLock { $0 } }
}

/// A carrier that has the function's pin.
final class PinHost: PCIFunctionHost {
    private let level = Mutex(false)
    private let vectors = Mutex<[Int]>([])

    func setINTx(_ isAsserted: Bool, of function: PCIFunction) { level.withLock { $0 = isAsserted } }
    func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {
        vectors.withLock { $0.append(vector) }
    }
    func configurationChanged(of function: PCIFunction) {}

    var isAsserted: Bool { level.withLock { $0 } }
    var signalled: [Int] { vectors.withLock { $0 } }
}

/// How often threads have said that they are about to sleep.
final class RestCount: Sendable {
    let value = Atomic<Int>(0)
}

/// A port that counts it.
private final class RestCountingPort: DMAPort {
    private let port: any DMAPort
    private let rests: RestCount

    init(_ port: any DMAPort, _ rests: RestCount) { (self.port, self.rests) = (port, rests) }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) { try port.read(at: address, into: buffer, attributes) }

    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) { try port.write(buffer, at: address, attributes) }

    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool { try port.lend(ranges, for: direction, attributes, body) }

    func rest() {
        rests.value.add(1, ordering: .sequentiallyConsistent)
        port.rest()
    }
}

/// RAM at 0x4000_0000, a message doorbell at 0x0800_0000, and an NVMe function that an SMMU does not stand before.
final class TestMachine {
    static let ramBase: UInt64 = 0x4000_0000
    static let ramByteCount: UInt64 = 32 << 20
    static let doorbellBase: UInt64 = 0x0800_0000

    let bus = SystemBus()
    let doorbell = MessageDoorbell()
    let host = PinHost()
    let file: ImageFile
    let image: RawImage
    let controller: NVMeController
    let function: PCIFunction

    init(
        imageByteCount: Int = 8 << 20,
        offersMSIX: Bool = true,
        isReadOnly: Bool = false,
        _ parameters: NVMeParameters = NVMeParameters(serialNumber: "test-1"),
        rests: RestCount = RestCount()
    ) throws {
        let region = try MemoryRegion.anonymous(byteCount: Self.ramByteCount, name: "ram")
        try bus.addRAM(region, at: PhysicalAddress(Self.ramBase), name: "ram")
        if let range = AddressRange(start: Self.doorbellBase, byteCount: 4096) {
            try bus.addWindow(doorbell, at: range, name: "messages")
        }
        file = ImageFile(byteCount: imageByteCount)
        image = try RawImage(path: file.path, isReadOnly: isReadOnly)
        controller = try NVMeController(image: image, parameters)
        let tracker = TransactionTracker()
        let bus = bus
        function = controller.makeFunction(name: "nvme0", offersMSIX: offersMSIX) {
            RestCountingPort(DirectPort(bus: bus, tracker: tracker), rests)
        }
        function.connect(host)
        // Memory Space and Bus Master Enable.
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
    }

    // No thread of the controller uses memory that is about to go.
    deinit { function.reset() }

    /// Puts a window of registers on the bus.
    func addWindow(_ target: any RegisterTarget, at base: UInt64, byteCount: UInt64) throws {
        let range = try #require(AddressRange(start: base, byteCount: byteCount))
        try bus.addWindow(target, at: range, name: "window")
    }

    // MARK: Registers

    func read32(_ offset: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: (try? function.readBAR(0, at: offset, width: .word)) ?? 0xFFFF_FFFF)
    }
    func read64(_ offset: UInt64) -> UInt64 {
        UInt64(read32(offset)) | UInt64(read32(offset + 4)) << 32
    }
    func write32(_ value: UInt32, _ offset: UInt64) {
        #expect(throws: Never.self) { try function.writeBAR(0, UInt64(value), at: offset, width: .word) }
    }
    /// As lo_hi_writeq does.
    func write64(_ value: UInt64, _ offset: UInt64) {
        write32(UInt32(truncatingIfNeeded: value), offset)
        write32(UInt32(truncatingIfNeeded: value >> 32), offset + 4)
    }

    // MARK: Memory

    func write(_ bytes: [UInt8], at address: UInt64) {
        #expect(throws: Never.self) { try bus.write(bytes, at: PhysicalAddress(address)) }
    }
    func read(_ count: Int, at address: UInt64) -> [UInt8] {
        (try? bus.read(count, at: PhysicalAddress(address))) ?? []
    }
    /// Whether memory holds these bytes: a comparison that fails without printing them all.
    func holds(_ expected: some Collection<UInt8>, at address: UInt64) -> Bool {
        read(expected.count, at: address).elementsEqual(expected)
    }
    func load64(_ address: UInt64) -> UInt64 {
        (try? bus.load(.doubleword, at: PhysicalAddress(address))) ?? 0
    }
    func store64(_ value: UInt64, _ address: UInt64) {
        #expect(throws: Never.self) { try bus.store(value, .doubleword, at: PhysicalAddress(address)) }
    }
    func load32(_ address: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: (try? bus.load(.word, at: PhysicalAddress(address))) ?? 0)
    }
    func store32(_ value: UInt32, _ address: UInt64) {
        #expect(throws: Never.self) { try bus.store(UInt64(value), .word, at: PhysicalAddress(address)) }
    }

    // MARK: Interrupts

    func findCapability(_ id: UInt8) -> Int? {
        var place = Int(function.readConfiguration(at: 0x34, byteCount: 1))
        while place != 0 {
            if function.readConfiguration(at: place, byteCount: 1) == UInt32(id) { return place }
            place = Int(function.readConfiguration(at: place + 1, byteCount: 1))
        }
        return nil
    }

    /// Vector n sends 0x100 + n.
    func enableMSIX() throws {
        let capability = try #require(findCapability(0x11))
        let count = Int(function.readConfiguration(at: capability + 2, byteCount: 2) & 0x7FF) + 1
        for vector in 0..<count {
            let entry = UInt64(vector) * 16
            try function.writeBAR(4, Self.doorbellBase + 0x40, at: entry, width: .doubleword)
            try function.writeBAR(4, UInt64(0x100 + vector), at: entry + 8, width: .doubleword)
        }
        function.writeConfiguration(0x8000, at: capability + 2, byteCount: 2)
    }

    /// Vector n sends 0x200 + n.
    func enableMSI(log2VectorCount: UInt32) throws {
        let capability = try #require(findCapability(0x05))
        function.writeConfiguration(
            UInt32(Self.doorbellBase) + 0x40,
            at: capability + 4,
            byteCount: 4
        )
        function.writeConfiguration(0x200, at: capability + 12, byteCount: 2)
        function.writeConfiguration(log2VectorCount << 4 | 1, at: capability + 2, byteCount: 2)
    }
}

/// Waits for a condition, which threads of the controller bring about.
func waitUntil(_ what: String, _ condition: () -> Bool) {
    var start = timespec()
    clock_gettime(CLOCK_MONOTONIC, &start)
    while !condition() {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        // Far beyond anything that works: a test that hangs tells nobody anything.
        guard now.tv_sec - start.tv_sec < 30 else {
            Issue.record("30 s and still not: \(what)")
            return
        }
        // Leaves the processor to the threads that are waited for.
        usleep(20)
    }
}
