// The bus's plain cases: each kind of access to RAM, to a window and to nothing.

import AddressSpace
import DeviceModel
import GuestMemory
import SystemBus
import Testing

@Suite("Accesses to RAM, windows and nothing")
struct PlainAccessTests {
    let bus = SystemBus()
    let region: MemoryRegion
    let base = PhysicalAddress(0x4000_0000)

    init() throws {
        region = try .anonymous(byteCount: 0x1_0000, name: "ram")
        try bus.addRAM(region, at: base, name: "ram")
    }

    @Test("a word stored is little-endian in memory, at its place in the region")
    func storedWordsAreLittleEndian() throws {
        try bus.storeRAM64(0x0807_0605_0403_0201, at: PhysicalAddress(0x4000_0108))
        try bus.storeRAM32(0x0c0b_0a09, at: PhysicalAddress(0x4000_0110))
        let bytes = UnsafeRawBufferPointer(start: region.base + 0x108, count: 12)
        #expect(Array(bytes) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        #expect(try bus.loadRAM64(at: PhysicalAddress(0x4000_0108)) == 0x0807_0605_0403_0201)
        #expect(try bus.read(3, at: PhysicalAddress(0x4000_0107)) == [0, 1, 2])
    }

    @Test("wide loads and stores hold the word at the lowest address in the first element")
    func wideAccessesKeepTheOrder() throws {
        try bus.storeRAM64x4(SIMD4(1, 2, 3, 4), at: base)
        try bus.storeRAM64x4(SIMD4(5, 6, 7, 8), at: PhysicalAddress(0x4000_0020))
        #expect(try bus.loadRAM64x8(at: base) == SIMD8(1, 2, 3, 4, 5, 6, 7, 8))
        #expect(try bus.loadRAM64x2(at: PhysicalAddress(0x4000_0018)) == SIMD2(4, 5))
        #expect(region.base.load(fromByteOffset: 0x38, as: UInt64.self) == 8)
    }
}
