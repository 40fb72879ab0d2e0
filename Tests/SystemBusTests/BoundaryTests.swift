// Where entries begin, end and touch, and the two ends of the 64-bit space.

import AddressSpace
import DeviceModel
import GuestMemory
import SystemBus
import Testing

@Suite("Boundaries of the map")
struct BoundaryTests {
    let bus = SystemBus()

    @Test("in an empty map nothing answers anywhere", arguments: [0, 8, 1 << 63, .max - 7] as [UInt64])
    func emptyMap(place: UInt64) {
        let nothing = BusError.unassigned(address(place))
        #expect(throws: nothing) { try bus.loadRAM64(at: address(place)) }
        #expect(throws: nothing) { try bus.loadRAM64x8(at: address(place)) }
        #expect(throws: nothing) { try bus.storeRAM64(1, at: address(place)) }
        #expect(throws: nothing) { try bus.load(.byte, at: address(place)) }
        #expect(throws: nothing) { try bus.store(0, .doubleword, at: address(place)) }
        #expect(throws: nothing) { try bus.bytes(1, at: place) }
        #expect(throws: nothing) { try bus.put([1], at: place) }
        #expect(bus.entries == [])
    }

    @Test("the last bytes of the 64-bit space answer, and nothing wraps to its beginning")
    func topOfTheSpace() throws {
        let top = try MemoryRegion.anonymous(byteCount: 0x1000, name: "top")
        let bottom = try MemoryRegion.anonymous(byteCount: 0x1000, name: "bottom")
        try bus.addRAM(top, at: address(0xffff_ffff_ffff_f000), name: "top")
        try bus.addRAM(bottom, at: address(0), name: "bottom")
        try bus.storeRAM64(0x1122, at: address(.max - 7))
        #expect(try bus.loadRAM64(at: address(.max - 7)) == 0x1122)
        #expect(try bus.loadRAM64x8(at: address(.max - 63)).highHalf.w == 0x1122)
        #expect(throws: BusError.unassigned(address(.max - 55))) {
            try bus.loadRAM64x8(at: address(.max - 55))
        }
        try bus.put([7], at: .max)
        #expect(try bus.bytes(1, at: .max) == [7])
        #expect(try bus.load(.byte, at: address(.max)) == 7)
        #expect(try bus.read(0x1000, at: address(0xffff_ffff_ffff_f000)).last == 7)
        // No name is left for the byte that gets no answer: the last one stands for it.
        #expect(throws: BusError.unassigned(address(.max))) { try bus.bytes(2, at: .max) }
        #expect(throws: BusError.unassigned(address(.max))) {
            try bus.read(0x1001, at: address(.max - 0xfff))
        }
        #expect(throws: BusError.unassigned(address(.max))) {
            try bus.fill(9, byteCount: 9, at: address(.max - 7))
        }
        #expect(throws: BusError.unassigned(address(.max))) { try bus.put([1, 2], at: .max) }
        #expect(try bus.load(.byte, at: address(0)) == 0)
        #expect(bus.hostPointer(at: address(.max), count: 1) == top.base + 0xfff)
        #expect(bus.hostPointer(at: address(.max), count: 2) == nil)
    }

    @Test("RAM that would leave the 64-bit space is refused and leaves the map as it was")
    func ramBeyondTheTop() throws {
        let region = try MemoryRegion.anonymous(byteCount: 0x2000, name: "ram")
        let expected = AddressConflict(
            inserting: try range(0xffff_ffff_ffff_f000, .max),
            existing: try range(.max, .max)
        )
        #expect(throws: expected) { try bus.addRAM(region, at: address(0xffff_ffff_ffff_f000), name: "ram") }
        #expect(bus.entries == [])
        #expect(bus.generation == 0)
    }

    @Test("a window over the whole space, and one of a single byte at its end")
    func hugeAndTinyWindows() throws {
        let target = ByteTarget(byteCount: 16)
        try bus.addWindow(target, at: range(0, .max), name: "all")
        try bus.store(1, .doubleword, at: address(8))
        #expect(throws: BusError.unassigned(address(.max))) { try bus.load(.halfword, at: address(.max)) }
        try bus.removeWindow(at: range(0, .max))
        try bus.addWindow(ByteTarget(byteCount: 1), at: range(.max, .max), name: "last")
        try bus.put([5], at: .max)
        #expect(try bus.bytes(1, at: .max) == [5])
        #expect(throws: BusError.unassigned(address(.max))) { try bus.bytes(2, at: .max) }
    }

    @Test("copies run over adjacent entries of every kind; single accesses do not")
    func adjacentEntries() throws {
        let first = try MemoryRegion.anonymous(byteCount: 0x1000, name: "first")
        let second = try MemoryRegion.anonymous(byteCount: 0x1000, name: "second")
        let window = ByteTarget(byteCount: 8)
        try bus.addRAM(second, at: address(0x2000), name: "second")
        try bus.addRAM(first, at: address(0x1000), name: "first")
        try bus.addWindow(window, at: range(0x3000, 0x3007), name: "window")

        let bytes = (0..<0x200c).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ 1) }
        #expect(throws: BusError.unassigned(address(0x3008))) { try bus.put(bytes, at: 0x1000) }
        #expect(Array(UnsafeRawBufferPointer(start: first.base, count: 0x1000)) == Array(bytes[..<0x1000]))
        #expect(
            Array(UnsafeRawBufferPointer(start: second.base, count: 0x1000)) == Array(bytes[0x1000..<0x2000])
        )
        #expect(window.bytes == Array(bytes[0x2000..<0x2008]))
        #expect(try bus.bytes(0x2000, at: 0x1008) == Array(bytes[8..<0x2008]))
        #expect(try bus.read(0x100, at: address(0x1f80)) == Array(bytes[0xf80..<0x1080]))

        #expect(throws: BusError.unassigned(address(0x1ff8))) { try bus.loadRAM64x2(at: address(0x1ff8)) }
        #expect(throws: BusError.unassigned(address(0x1fe8))) {
            try bus.storeRAM64x4(SIMD4(repeating: 0), at: address(0x1fe8))
        }
        #expect(throws: BusError.unassigned(address(0x1ffc))) {
            try bus.load(.doubleword, at: address(0x1ffc))
        }
        #expect(bus.hostPointer(at: address(0x1fff), count: 2) == nil)
        // RAM alone: refused as a whole, before the RAM that is there changes.
        #expect(throws: BusError.unassigned(address(0x3000))) {
            try bus.fill(0, byteCount: 0x2001, at: address(0x1000))
        }
        #expect(throws: BusError.unassigned(address(0x3000))) { try bus.write([0, 0], at: address(0x2fff)) }
        #expect(try bus.bytes(0x2000, at: 0x1000) == Array(bytes[..<0x2000]))
        try bus.fill(3, byteCount: 2, at: address(0x1fff))
        #expect(try bus.bytes(4, at: 0x1ffe) == [bytes[0xffe], 3, 3, bytes[0x1001]])
    }

    @Test("RAM shared for reading only answers reads and refuses every kind of write")
    func readOnlyRAM() throws {
        let peer = try PeerMemory(fileByteCount: 0x1000, byteCount: 0x1000, isWritable: false)
        try bus.addRAM(peer.region, at: address(0x1000), name: "rom")
        let refused = BusError.readOnly(address(0x1000))
        #expect(throws: refused) { try bus.storeRAM64(1, at: address(0x1000)) }
        #expect(throws: refused) { try bus.storeRAM32(1, at: address(0x1000)) }
        #expect(throws: refused) { try bus.storeRAM64x4(SIMD4(repeating: 1), at: address(0x1000)) }
        #expect(throws: refused) { try bus.store(1, .byte, at: address(0x1000)) }
        #expect(throws: refused) { try bus.put([1], at: 0x1000) }
        #expect(throws: refused) { try bus.write([1], at: address(0x1000)) }
        #expect(throws: refused) { try bus.fill(1, byteCount: 1, at: address(0x1000)) }
        #expect(throws: refused) { try bus.compareExchange64(expected: 1, desired: 2, at: address(0x1000)) }
        #expect(bus.hostPointer(at: address(0x1000), count: 1) == nil)
        #expect(bus.hostPointer(at: address(0x1000), count: 1, for: .read) == peer.region.base)
        #expect(try bus.bytes(8, at: 0x1000) == [UInt8](repeating: 0, count: 8))
        #expect(try bus.loadRAM64(at: address(0x1000)) == 0)
    }

    @Test("memory shared from an odd offset of a file can be copied, and atomic accesses to it are refused")
    func oddHostAddresses() throws {
        let peer = try PeerMemory(fileByteCount: 0x2000, offset: 3, byteCount: 0x1000)
        try bus.addRAM(peer.region, at: address(0x1000), name: "odd")
        try bus.put(Array(1...16), at: 0x1000)
        #expect(try bus.bytes(16, at: 0x1000) == Array(1...16))
        #expect(throws: BusError.refused(address(0x1000), .misaligned)) {
            try bus.loadRAM64(at: address(0x1000))
        }
        #expect(throws: BusError.refused(address(0x1000), .misaligned)) {
            try bus.store(0, .word, at: address(0x1000))
        }
        #expect(try bus.load(.byte, at: address(0x1001)) == 2)
    }
}

@Suite("Memory that a peer truncates")
struct LostMemoryTests {
    let bus = SystemBus()

    /// Three pages, the last two of which are gone; nobody has touched them yet.
    private func makeTruncated() throws -> PeerMemory {
        let peer = try PeerMemory(fileByteCount: 0x3000, byteCount: 0x3000)
        try bus.addRAM(peer.region, at: address(0x1_0000), name: "peer")
        try bus.fill(0x77, byteCount: 0x3000, at: address(0x1_0000))
        try peer.truncate(to: 0x1000)
        return peer
    }

    @Test("every kind of access that finds out says so, and from then on all of the region does")
    func everyAccessFindsOut() throws {
        let attempts: [@Sendable (SystemBus, PhysicalAddress) throws -> Void] = [
            { _ = try $0.loadRAM64(at: $1) }, { _ = try $0.loadRAM64x2(at: $1) },
            { _ = try $0.loadRAM64x8(at: $1) },
            { try $0.storeRAM64(1, at: $1) }, { try $0.storeRAM32(1, at: $1) },
            { try $0.storeRAM64x4(SIMD4(repeating: 1), at: $1) },
            { _ = try $0.bytes(1, at: $1.rawValue) }, { try $0.put([1], at: $1.rawValue) },
            { _ = try $0.bytes(9, at: $1.rawValue) }, { try $0.put([1, 2, 3], at: $1.rawValue) },
            { _ = try $0.load(.word, at: $1) }, { try $0.store(1, .halfword, at: $1) },
            { _ = try $0.read(1, at: $1) }, { try $0.write([1], at: $1) },
            { try $0.fill(1, byteCount: 1, at: $1) },
            { _ = try $0.compareExchange64(expected: 0, desired: 1, at: $1) },
        ]
        for attempt in attempts {
            let peer = try makeTruncated()
            #expect(try bus.load(.byte, at: address(0x1_0fff)) == 0x77)
            #expect(!peer.region.isLost)
            #expect(throws: BusError.lost(address(0x1_2000))) { try attempt(bus, address(0x1_2000)) }
            #expect(peer.region.isLost)
            for other in attempts {
                #expect(throws: BusError.lost(address(0x1_0000))) { try other(bus, address(0x1_0000)) }
            }
            #expect(bus.hostPointer(at: address(0x1_0000), count: 1) == nil)
            #expect(bus.removeRAM(at: try range(0x1_0000, 0x1_2fff)) === peer.region)
            bus.reclaim()
        }
    }

    @Test("a copy that runs into lost memory reports it there, and its neighbours go on")
    func copyOverNeighbours() throws {
        let peer = try makeTruncated()
        let before = try MemoryRegion.anonymous(byteCount: 0x1000, name: "before")
        let after = try MemoryRegion.anonymous(byteCount: 0x1000, name: "after")
        try bus.addRAM(before, at: address(0xf000), name: "before")
        try bus.addRAM(after, at: address(0x1_3000), name: "after")
        let bytes = [UInt8](repeating: 0x99, count: 0x5000)
        #expect(throws: BusError.lost(address(0x1_0000))) { try bus.put(bytes, at: 0xf000) }
        #expect(peer.region.isLost)
        #expect(try bus.bytes(0x1000, at: 0xf000).allSatisfy { $0 == 0x99 })
        #expect(try bus.bytes(0x1000, at: 0x1_3000).allSatisfy { $0 == 0 })
        try bus.put([1, 2, 3], at: 0x1_3000)
        #expect(try bus.bytes(3, at: 0x1_3000) == [1, 2, 3])
        #expect(throws: BusError.lost(address(0x1_0000))) { try bus.bytes(0x2000, at: 0xf000) }
    }
}
