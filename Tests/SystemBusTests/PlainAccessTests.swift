// The bus's plain cases: each kind of access to RAM, to a window and to nothing.

import AddressSpace
import DeviceModel
import GuestMemory
import SystemBus
import Testing

@Suite("Accesses to RAM")
struct RAMAccessTests {
    let bus = SystemBus()
    let region: MemoryRegion

    init() throws {
        region = try .anonymous(byteCount: 0x1_0000, name: "ram")
        try bus.addRAM(region, at: address(0x4000_0000), name: "ram")
    }

    @Test("a word stored is little-endian in memory, at its place in the region")
    func storedWordsAreLittleEndian() throws {
        try bus.storeRAM64(0x0807_0605_0403_0201, at: address(0x4000_0108))
        try bus.storeRAM32(0x0c0b_0a09, at: address(0x4000_0110))
        let bytes = UnsafeRawBufferPointer(start: region.base + 0x108, count: 12)
        #expect(Array(bytes) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        #expect(try bus.loadRAM64(at: address(0x4000_0108)) == 0x0807_0605_0403_0201)
        #expect(try bus.read(3, at: address(0x4000_0107)) == [0, 1, 2])
    }

    @Test("wide loads and stores hold the word at the lowest address in the first element")
    func wideAccessesKeepTheOrder() throws {
        try bus.storeRAM64x4(SIMD4(1, 2, 3, 4), at: address(0x4000_0000))
        try bus.storeRAM64x4(SIMD4(5, 6, 7, 8), at: address(0x4000_0020))
        #expect(try bus.loadRAM64x8(at: address(0x4000_0000)) == SIMD8(1, 2, 3, 4, 5, 6, 7, 8))
        #expect(try bus.loadRAM64x2(at: address(0x4000_0018)) == SIMD2(4, 5))
        #expect(region.base.load(fromByteOffset: 0x38, as: UInt64.self) == 8)
    }

    @Test("a load and a store of each width touch exactly their bytes", arguments: AccessWidth.allCases)
    func eachWidthTouchesItsBytes(width: AccessWidth) throws {
        try bus.fill(0xff, byteCount: 24, at: address(0x4000_0000))
        // Bits beyond the width are not the bus's to keep.
        try bus.store(0x8877_6655_4433_2211, width, at: address(0x4000_0008))
        let stored: [UInt8] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]
        let kept = [UInt8](repeating: 0xff, count: 16 - width.rawValue)
        #expect(try bus.read(16, at: address(0x4000_0008)) == stored.prefix(width.rawValue) + kept)
        #expect(try bus.load(width, at: address(0x4000_0008)) == 0x8877_6655_4433_2211 & width.allOnes)
        #expect(try bus.read(8, at: address(0x4000_0000)) == [UInt8](repeating: 0xff, count: 8))
    }

    @Test("a misaligned access is refused and changes nothing", arguments: [1, 2, 3, 4, 5, 6, 7] as [UInt64])
    func misalignedAccessesAreRefused(offset: UInt64) throws {
        let place = address(0x4000_0000 + offset)
        let refused = BusError.refused(place, .misaligned)
        #expect(throws: refused) { try bus.loadRAM64(at: place) }
        #expect(throws: refused) { try bus.loadRAM64x2(at: place) }
        #expect(throws: refused) { try bus.loadRAM64x8(at: place) }
        #expect(throws: refused) { try bus.storeRAM64(1, at: place) }
        #expect(throws: refused) { try bus.storeRAM64x4(SIMD4(repeating: 1), at: place) }
        #expect(throws: refused) { try bus.compareExchange64(expected: 0, desired: 1, at: place) }
        for width in AccessWidth.allCases where offset % UInt64(width.rawValue) != 0 {
            #expect(throws: refused) { try bus.load(width, at: place) }
            #expect(throws: refused) { try bus.store(1, width, at: place) }
        }
        if offset % 4 != 0 { #expect(throws: refused) { try bus.storeRAM32(1, at: place) } }
        #expect(try bus.read(64, at: address(0x4000_0000)).allSatisfy { $0 == 0 })
    }

    @Test("an exchange takes place where the word is what was expected, and tells what it was")
    func compareExchange() throws {
        let place = address(0x4000_0040)
        try bus.storeRAM64(5, at: place)
        #expect(try bus.compareExchange64(expected: 4, desired: 9, at: place) == 5)
        #expect(try bus.loadRAM64(at: place) == 5)
        #expect(try bus.compareExchange64(expected: 5, desired: 9, at: place) == 5)
        #expect(try bus.loadRAM64(at: place) == 9)
    }

    @Test("bytes are copied in and out at any address, each length up to two words", arguments: 0...17)
    func copiesOfEachLength(count: Int) throws {
        let bytes = (0..<count).map { UInt8($0 + 1) }
        for shift in 0..<9 as Range<UInt64> {
            try bus.fill(0, byteCount: 64, at: address(0x4000_0000))
            try bus.put(bytes, at: 0x4000_0010 + shift)
            let expected = [UInt8](repeating: 0, count: 16 + Int(shift)) + bytes
            let all = try bus.bytes(64, at: 0x4000_0000)
            #expect(all == expected + [UInt8](repeating: 0, count: 64 - expected.count))
            #expect(try bus.bytes(count, at: 0x4000_0010 + shift) == bytes)
            #expect(try bus.read(count, at: address(0x4000_0010 + shift)) == bytes)
        }
    }

    @Test("a host pointer is the region's own, for bytes in one piece only")
    func hostPointers() throws {
        #expect(bus.hostPointer(at: address(0x4000_0000), count: 0x1_0000) == region.base)
        #expect(bus.hostPointer(at: address(0x4000_ffff), count: 1) == region.base + 0xffff)
        #expect(bus.hostPointer(at: address(0x4000_ffff), count: 0) == region.base + 0xffff)
        for (start, count) in [
            (0x4000_ffff, 2), (0x4000_0000, 0x1_0001), (0x4001_0000, 1), (0x3fff_ffff, 2), (0x4000_0000, -1),
            (0x4000_0000, Int.max), (0x4000_0000, Int.min), (UInt64.max, 1), (0, 0),
        ] as [(UInt64, Int)] {
            #expect(bus.hostPointer(at: address(start), count: count) == nil)
        }
    }

    @Test("a count of nothing or less reads nothing; one beyond what is there allocates nothing")
    func strangeCounts() throws {
        #expect(try bus.read(0, at: address(0)) == [])
        #expect(try bus.read(-1, at: address(0)) == [])
        #expect(try bus.read(.min, at: address(0x4000_0000)) == [])
        let end = BusError.unassigned(address(0x4001_0000))
        #expect(throws: end) { try bus.read(.max, at: address(0x4000_0000)) }
        #expect(throws: end) { try bus.fill(1, byteCount: .max, at: address(0x4000_0000)) }
        #expect(try bus.read(0x1_0000, at: address(0x4000_0000)).allSatisfy { $0 == 0 })
        try bus.write([], at: address(0))
        try bus.fill(1, byteCount: 0, at: address(0))
        try bus.put([], at: 0)
        #expect(try bus.bytes(0, at: 0) == [])
    }
}

@Suite("Accesses to register windows")
struct WindowAccessTests {
    let bus = SystemBus()
    let target = ByteTarget(byteCount: 0x100)

    init() throws {
        try bus.addWindow(target, at: range(0x0905_0000, 0x0905_00ff), name: "smmu")
    }

    @Test("the target sees offsets, the width as it is, and the value in the low bits")
    func targetSeesTheAccess() throws {
        for width in AccessWidth.allCases {
            try bus.store(.max, width, at: address(0x0905_0020))
            #expect(target.seen.last == .write(0x20, width, width.allOnes))
            #expect(try bus.load(width, at: address(0x0905_0020)) == width.allOnes)
            #expect(target.seen.last == .read(0x20, width))
        }
    }

    @Test("what the target refuses is refused at the access's address")
    func refusalsCarryTheAddress() throws {
        let unwilling = ByteTarget(byteCount: 8, refusing: .noSuchRegister)
        try bus.addWindow(unwilling, at: range(0x1000, 0x1007), name: "unwilling")
        let refused = BusError.refused(address(0x1004), .noSuchRegister)
        #expect(throws: refused) { try bus.load(.word, at: address(0x1004)) }
        #expect(throws: refused) { try bus.store(0, .word, at: address(0x1004)) }
        #expect(throws: refused) { try bus.bytes(4, at: 0x1004) }
        #expect(throws: refused) { try bus.put([1, 2, 3, 4], at: 0x1004) }
    }

    @Test("an access that leaves the window goes nowhere")
    func accessMustFit() throws {
        let before = target.seen
        for (start, width) in [(0x0905_00fc, .doubleword), (0x0905_00ff, .halfword), (0x0905_0100, .byte)]
            as [(UInt64, AccessWidth)]
        {
            #expect(throws: BusError.unassigned(address(start))) { try bus.load(width, at: address(start)) }
            #expect(throws: BusError.unassigned(address(start))) {
                try bus.store(0, width, at: address(start))
            }
        }
        #expect(target.seen == before)
    }

    @Test("a copy is split into the widest aligned accesses, in ascending order, little-endian")
    func copiesAreSplit() throws {
        // 0x...03: a byte, then a doubleword's worth from 4 on: a word, doublewords, and the rest down again.
        try bus.put(Array(1...24), at: 0x0905_0003)
        #expect(
            target.seen == [
                .write(0x03, .byte, 0x01), .write(0x04, .word, 0x0504_0302),
                .write(0x08, .doubleword, 0x0d0c_0b0a_0908_0706),
                .write(0x10, .doubleword, 0x1514_1312_1110_0f0e),
                .write(0x18, .halfword, 0x1716), .write(0x1a, .byte, 0x18),
            ]
        )
        #expect(try bus.bytes(24, at: 0x0905_0003) == Array(1...24))
        #expect(
            target.seen.suffix(6) == [
                .read(0x03, .byte), .read(0x04, .word), .read(0x08, .doubleword), .read(0x10, .doubleword),
                .read(0x18, .halfword), .read(0x1a, .byte),
            ]
        )
    }

    @Test("a copy stays inside a window that ends at no word's end, and reports the byte after it")
    func copiesStopAtTheEnd() throws {
        let odd = ByteTarget(byteCount: 5)
        try bus.addWindow(odd, at: range(0x1000, 0x1004), name: "odd")
        #expect(throws: BusError.unassigned(address(0x1005))) { try bus.put([1, 2, 3, 4, 5, 6], at: 0x1000) }
        #expect(odd.seen == [.write(0, .word, 0x0403_0201), .write(4, .byte, 5)])
    }

    @Test("the accesses that are for RAM alone find nothing in a window")
    func windowIsNoRAM() throws {
        let place = address(0x0905_0000)
        let nothing = BusError.unassigned(place)
        #expect(throws: nothing) { try bus.loadRAM64(at: place) }
        #expect(throws: nothing) { try bus.loadRAM64x2(at: place) }
        #expect(throws: nothing) { try bus.loadRAM64x8(at: place) }
        #expect(throws: nothing) { try bus.storeRAM64(0, at: place) }
        #expect(throws: nothing) { try bus.storeRAM32(0, at: place) }
        #expect(throws: nothing) { try bus.storeRAM64x4(SIMD4(repeating: 0), at: place) }
        #expect(throws: nothing) { try bus.read(1, at: place) }
        #expect(throws: nothing) { try bus.write([1], at: place) }
        #expect(throws: nothing) { try bus.fill(1, byteCount: 1, at: place) }
        #expect(throws: nothing) { try bus.compareExchange64(expected: 0, desired: 1, at: place) }
        #expect(bus.hostPointer(at: place, count: 1) == nil)
        #expect(bus.ramSlice(containing: place) == nil)
        #expect(target.seen == [])
    }
}
