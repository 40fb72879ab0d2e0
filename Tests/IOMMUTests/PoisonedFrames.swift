// Memory that tells when somebody writes to it while it is free.

import AddressSpace
import DeviceModel
import Glibc
import IOPageTable
import Synchronization
import SystemBus

@testable import IOMMU

/// A frame allocator whose free memory is full of a pattern, and that looks whether it still is whenever it hands
/// some out.
final class PoisonedFrames: ReclaimingPageAllocator {
    /// Fills the pattern in and looks for it; the allocator under test clears through it what it hands out.
    private final class Checker: PhysicalAccess {
        static let poison: UInt8 = 0xDB

        let bus: SystemBus
        let findings = Mutex<[String]>([])

        init(_ bus: SystemBus) { self.bus = bus }

        func check(_ byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
            let bytes = try bus.read(Int(byteCount), at: address)
            let expected = [UInt8](repeating: Self.poison, count: bytes.count)
            guard memcmp(bytes, expected, bytes.count) != 0 else { return }
            let index = bytes.firstIndex { $0 != Self.poison } ?? 0
            findings.withLock {
                $0.append(
                    "free memory at \(address)+0x\(hex(index)) was written: \(bytes[index...].prefix(16))"
                )
            }
        }

        func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
            if byte == 0 { try check(byteCount, at: address) }
            try bus.fill(byte, byteCount: byteCount, at: address)
        }

        func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
            try bus.load(width, at: address)
        }
        func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
            try bus.store(value, width, at: address)
        }
        func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
            try bus.read(byteCount, at: address)
        }
        func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
            try bus.write(bytes, at: address)
        }
        func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress)
            throws(BusError) -> UInt64
        {
            try bus.compareExchange64(expected: expected, desired: desired, at: address)
        }
    }

    private let checker: Checker
    private let frames: PhysicalFrameAllocator
    private let sizes = Mutex<[PhysicalAddress: UInt64]>([:])

    init(_ bus: SystemBus, _ range: AddressRange) throws(BusError) {
        checker = Checker(bus)
        try checker.bus.fill(Checker.poison, byteCount: range.byteCount, at: PhysicalAddress(range.first))
        frames = PhysicalFrameAllocator(memory: checker, ranges: [range])
    }

    var usedByteCount: UInt64 { frames.usedByteCount }
    var lastAddress: UInt64 { frames.lastAddress }

    /// What was written to free memory so far.
    var findings: [String] { checker.findings.withLock { $0 } }

    /// Looks at all that is free, and leaves it free.
    func sweep() {
        var held: [PhysicalAddress] = []
        while let frame = try? allocate(byteCount: 0x1000, alignment: 0x1000) { held.append(frame) }
        for frame in held { try? free(frame) }
    }

    func allocate(byteCount: UInt64, alignment: UInt64) throws(PhysicalPageError) -> PhysicalAddress {
        let address = try frames.allocate(byteCount: byteCount, alignment: alignment)
        sizes.withLock { $0[address] = max(0x1000, byteCount.roundedUpToPowerOfTwo) }
        return address
    }

    func free(_ address: PhysicalAddress) throws(PhysicalPageError) {
        guard let size = sizes.withLock({ $0.removeValue(forKey: address) }) else {
            checker.findings.withLock { $0.append("\(address) was freed, and is not in use") }
            throw .notAllocated(address)
        }
        do { try checker.bus.fill(Checker.poison, byteCount: size, at: address) } catch {
            throw .memory(error)
        }
        try frames.free(address)
    }

    func add(_ reclaimer: any PhysicalFrameReclaimer) { frames.add(reclaimer) }
}
