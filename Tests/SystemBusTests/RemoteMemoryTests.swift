// Memory that a peer keeps to itself answers as RAM does.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import OSThread
import Synchronization
import SystemBus
import Testing

/// A peer with bytes of its own, which can go away.
private final class Peer: RemoteMemory {
    let bytes: Mutex<[UInt8]>
    let isGone = Atomic(false)

    init(byteCount: Int) { bytes = Mutex((0..<byteCount).map { UInt8(truncatingIfNeeded: $0) }) }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
        guard !isGone.load(ordering: .relaxed) else { return false }
        bytes.withLock { bytes in buffer.copyBytes(from: bytes[Int(offset)..<Int(offset) + buffer.count]) }
        return true
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool {
        guard !isGone.load(ordering: .relaxed) else { return false }
        let new = Array(buffer)
        bytes.withLock { $0.replaceSubrange(Int(offset)..<Int(offset) + new.count, with: new) }
        return true
    }
}

@Suite("Remote memory")
struct RemoteMemoryTests {
    private let bus = SystemBus()
    private let peer = Peer(byteCount: 0x1000)

    init() throws {
        try bus.addRemote(peer, at: range(0x8000, 0x8FFF), isWritable: true, name: "peer")
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "ram"), at: address(0x9000), name: "ram")
    }

    @Test("words are read and written little-endian at the right offsets")
    func words() throws {
        #expect(try bus.loadRAM64(at: address(0x8010)) == 0x1716_1514_1312_1110)
        #expect(try bus.loadRAM64x2(at: address(0x8010))[1] == 0x1F1E_1D1C_1B1A_1918)
        #expect(try bus.loadRAM64x8(at: address(0x8040))[7] == 0x7F7E_7D7C_7B7A_7978)
        try bus.storeRAM64(0x1122_3344_5566_7788, at: address(0x8100))
        try bus.storeRAM32(0xAABB_CCDD, at: address(0x8108))
        try bus.storeRAM64x4(SIMD4(1, 2, 3, 4), at: address(0x8200))
        #expect(try bus.load(.halfword, at: address(0x8102)) == 0x5566)
        #expect(try bus.load(.word, at: address(0x8108)) == 0xAABB_CCDD)
        #expect(try bus.load(.doubleword, at: address(0x8218)) == 4)
    }

    @Test("bytes run from a peer's memory into RAM beside it")
    func adjacent() throws {
        let bytes: [UInt8] = Array(1...32)
        try bus.write(bytes, at: address(0x8FF0))
        #expect(try bus.read(32, at: address(0x8FF0)) == bytes)
        #expect(peer.bytes.withLock { Array($0[0xFF0...]) } == Array(1...16))
    }

    @Test("a fill that runs from a peer's memory into RAM fills both")
    func fill() throws {
        try bus.fill(0x5A, byteCount: 0x1800, at: address(0x8800))
        #expect(try bus.read(0x1000, at: address(0x8800)) == [UInt8](repeating: 0x5A, count: 0x1000))
        #expect(try bus.load(.byte, at: address(0x87FF)) == 0xFF)
    }

    @Test("there is no host memory to lend, and no atomic exchange")
    func whatItIsNot() throws {
        #expect(bus.hostPointer(at: address(0x8000), count: 8) == nil)
        let tracker = TransactionTracker()
        let port = DirectPort(bus: bus, tracker: tracker)
        let wanted = [DMARange(address: IOVirtualAddress(0x8FF0), byteCount: 32)]
        let isLent = try port.lend(wanted, for: .read, .plain) { _ in Issue.record("lent") }
        #expect(!isLent)
        #expect(throws: BusError.refused(address(0x8000), .unsupportedWidth)) {
            try bus.compareExchange64(expected: 0, desired: 1, at: address(0x8000))
        }
        #expect(throws: BusError.refused(address(0x8004), .misaligned)) {
            try bus.loadRAM64(at: address(0x8004))
        }
    }

    @Test("a peer that is gone loses memory; one that lends for reading takes no store")
    func gone() throws {
        try bus.addRemote(Peer(byteCount: 16), at: range(0x100, 0x10F), isWritable: false, name: "rom")
        #expect(throws: BusError.readOnly(address(0x100))) { try bus.storeRAM64(1, at: address(0x100)) }
        #expect(throws: BusError.readOnly(address(0x100))) { try bus.write([1], at: address(0x100)) }
        peer.isGone.store(true, ordering: .relaxed)
        #expect(throws: BusError.lost(address(0x8000))) { try bus.loadRAM64(at: address(0x8000)) }
        #expect(throws: BusError.lost(address(0x8010))) { try bus.write([1, 2], at: address(0x8010)) }
        bus.removeRemote(at: try range(0x8000, 0x8FFF))
        bus.reclaim()
        #expect(throws: BusError.unassigned(address(0x8000))) { try bus.loadRAM64(at: address(0x8000)) }
    }
}

@Suite("Loans of memory")
struct LoanTests {
    @Test("ranges in a row become one segment, others stay in their order")
    func segments() throws {
        let bus = SystemBus()
        let first = try MemoryRegion.anonymous(byteCount: 0x2000, name: "first")
        let second = try MemoryRegion.anonymous(byteCount: 0x1000, name: "second")
        try bus.addRAM(first, at: address(0x4000), name: "first")
        try bus.addRAM(second, at: address(0x6000), name: "second")
        let tracker = TransactionTracker()
        let port = DirectPort(bus: bus, tracker: tracker)
        let ranges = [(0x4100, 0x100), (0x4200, 0x80), (0x5F00, 0x200), (0x4000, 0x10)].map {
            DMARange(address: IOVirtualAddress(UInt64($0.0)), byteCount: $0.1)
        }
        var found: [(Int, Int)] = []
        let isLent = try port.lend(ranges, for: .write, .plain) { segments in
            for segment in segments {
                let base = UInt(bitPattern: segment.iov_base)
                let inFirst = Int(bitPattern: base &- UInt(bitPattern: first.base))
                let inSecond = Int(bitPattern: base &- UInt(bitPattern: second.base))
                found.append(((0..<0x2000).contains(inFirst) ? inFirst : 0x10000 + inSecond, segment.iov_len))
            }
        }
        #expect(isLent)
        #expect(found.map(\.0) == [0x100, 0x1F00, 0x10000, 0])
        #expect(found.map(\.1) == [0x180, 0x100, 0x100, 0x10])
    }

    @Test("a loan holds up whoever waits for transactions in flight, until it ends")
    func loansAreInFlight() throws {
        let bus = SystemBus()
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "ram"), at: address(0), name: "ram")
        let tracker = TransactionTracker()
        let port = DirectPort(bus: bus, tracker: tracker)
        let order = LoanOrder()
        let thread = OSThread {
            order.isLent.wait()
            _ = tracker.waitForTransactionsInFlight()
            order.note("waited")
        }
        let ranges = [DMARange(address: IOVirtualAddress(0), byteCount: 8)]
        _ = try port.lend(ranges, for: .read, .plain) { _ in
            order.isLent.signal()
            // The waiter is somewhere before its end, and must not come to it before this is over.
            for _ in 0..<100 { usleep(100) }
            order.note("loan over")
        }
        thread.join()
        #expect(order.notes == ["loan over", "waited"])
    }
}

private final class LoanOrder: Sendable {
    let isLent = Semaphore()
    private let list = Mutex<[String]>([])
    var notes: [String] { list.withLock { $0 } }
    func note(_ text: String) { list.withLock { $0.append(text) } }
}
