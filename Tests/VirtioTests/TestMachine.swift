// RAM, ports and waiting, for devices that are driven as a driver would.

import AddressSpace
import CLinux
import DeviceModel
import Glibc
import GuestMemory
import Synchronization
import SystemBus
import Testing

/// A bus with 16 MiB of RAM at 1 GiB, and an allocator of it.
final class TestMachine: Sendable {
    static let ramBase: UInt64 = 0x4000_0000
    static let ramByteCount: UInt64 = 16 << 20
    /// Where nothing is.
    static let nowhere: UInt64 = 0x9_0000_0000

    let bus = SystemBus()
    let tracker = TransactionTracker()
    private let next = Mutex(TestMachine.ramBase)

    init() throws {
        let region = try MemoryRegion.anonymous(byteCount: Self.ramByteCount, name: "ram")
        try bus.addRAM(region, at: PhysicalAddress(Self.ramBase), name: "ram")
    }

    /// Zeroed RAM that nobody else has.
    func allocate(_ byteCount: Int, alignment: UInt64 = 4096) -> UInt64 {
        next.withLock { next in
            let start = (next + alignment - 1) & ~(alignment - 1)
            next = start + UInt64(byteCount)
            precondition(next <= Self.ramBase + Self.ramByteCount, "the test's RAM is full")
            return start
        }
    }

    var makePort: @Sendable () -> any DMAPort {
        { [bus, tracker] in DirectPort(bus: bus, tracker: tracker) }
    }

    func load(_ width: AccessWidth, _ address: UInt64) -> UInt64 {
        (try? bus.load(width, at: PhysicalAddress(address))) ?? .max
    }

    func store(_ value: UInt64, _ width: AccessWidth, _ address: UInt64) {
        do { try bus.store(value, width, at: PhysicalAddress(address)) } catch {
            Issue.record("store at \(address): \(error)")
        }
    }

    func bytes(_ count: Int, _ address: UInt64) -> [UInt8] {
        (try? bus.read(count, at: PhysicalAddress(address))) ?? []
    }

    func put(_ bytes: [UInt8], _ address: UInt64) {
        do { try bus.write(bytes, at: PhysicalAddress(address)) } catch {
            Issue.record("write at \(address): \(error)")
        }
    }
}

/// Waits until something is so; false after 20 seconds.
func eventually(_ condition: () -> Bool) -> Bool {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    let deadline = now.tv_sec + 20
    var attempt: CInt = 0
    while !condition() {
        smmud_wait_a_little(attempt)
        attempt += 1
        clock_gettime(CLOCK_MONOTONIC, &now)
        if now.tv_sec >= deadline { return condition() }
    }
    return true
}

/// Little-endian bytes of a number.
func little(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
}

/// A port that waits inside a transaction to one page until it is let go, and that has no memory to lend.
final class SlowPort: DMAPort {
    /// What a test and the port share.
    final class Valve: Sendable {
        let page: UInt64
        let isHeld = Atomic(false)
        let isWaiting = Atomic(false)
        let accesses = Atomic<Int>(0)
        /// How often the port's thread was about to sleep.
        let rests = Atomic<Int>(0)

        init(page: UInt64) { self.page = page }
    }

    private let port: any DMAPort
    private let valve: Valve

    init(_ port: any DMAPort, _ valve: Valve) {
        self.port = port
        self.valve = valve
    }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        hold(address)
        try port.read(at: address, into: buffer, attributes)
    }

    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        hold(address)
        try port.write(buffer, at: address, attributes)
    }

    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool { false }

    func rest() {
        valve.rests.add(1, ordering: .sequentiallyConsistent)
        port.rest()
    }

    private func hold(_ address: IOVirtualAddress) {
        valve.accesses.add(1, ordering: .sequentiallyConsistent)
        guard address.rawValue & ~0xFFF == valve.page else { return }
        var attempt: CInt = 0
        while valve.isHeld.load(ordering: .sequentiallyConsistent) {
            valve.isWaiting.store(true, ordering: .sequentiallyConsistent)
            smmud_wait_a_little(attempt)
            attempt += 1
        }
    }
}
