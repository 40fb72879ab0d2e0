// A machine of RAM and a message doorbell, for devices that send DMA.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import Synchronization
import SystemBus
import Testing

/// Where messages go.
final class MessageDoorbell: RegisterTarget {
    private let data = Mutex<[UInt32]>([])

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        data.withLock { $0.append(UInt32(truncatingIfNeeded: value)) }
    }

    var received: [UInt32] { data.withLock { $0 } }
}

/// RAM at 0x4000_0000, 1 MiB of it, and a message doorbell at 0x0800_0000.
final class TestMachine: Sendable {
    static let ram: UInt64 = 0x4000_0000
    static let doorbell: UInt64 = 0x0800_0000

    let bus = SystemBus()
    let messages = MessageDoorbell()
    private let tracker = TransactionTracker()

    init() throws {
        let region = try MemoryRegion.anonymous(byteCount: 1 << 20, name: "ram")
        try bus.addRAM(region, at: PhysicalAddress(Self.ram), name: "ram")
        let range = try #require(AddressRange(start: Self.doorbell, byteCount: 4096))
        try bus.addWindow(messages, at: range, name: "messages")
    }

    func makePort() -> any DMAPort { DirectPort(bus: bus, tracker: tracker) }

    func write(_ bytes: [UInt8], at address: UInt64) throws {
        try bus.write(bytes, at: PhysicalAddress(address))
    }
    func read(_ count: Int, at address: UInt64) throws -> [UInt8] {
        try bus.read(count, at: PhysicalAddress(address))
    }
}

/// Waits for a condition, which a device's thread brings about.
func waitUntil(_ what: String, _ condition: () throws -> Bool) throws {
    var start = timespec()
    clock_gettime(CLOCK_MONOTONIC, &start)
    while try !condition() {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        // Far beyond anything that works: a test that hangs tells nobody anything.
        guard now.tv_sec - start.tv_sec < 30 else {
            Issue.record("30 s and still not: \(what)")
            return
        }
        usleep(20)
    }
}
