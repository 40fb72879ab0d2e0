// Ranges up to the last byte of 64 bits, and maps of them.

import AddressSpace
import Testing

@Suite("Ranges of addresses")
struct AddressRangeTests {
    @Test("a range may end at the last byte of 64 bits, and not beyond")
    func limits() {
        #expect(AddressRange(start: .max, byteCount: 1)?.last == .max)
        #expect(AddressRange(start: .max, byteCount: 2) == nil)
        #expect(AddressRange(start: 0, byteCount: 0) == nil)
        #expect(AddressRange(first: 2, last: 1) == nil)
        // 2^64 bytes: a count that 64 bits cannot hold.
        #expect(AddressRange(first: 0, last: .max)?.byteCount == 0)
        #expect(PhysicalAddress(.max).advanced(by: 1) == nil)
        #expect(IOVirtualAddress(1).advanced(by: 2) == IOVirtualAddress(3))
    }

    @Test("neighbours do not overlap; one byte in common does")
    func overlaps() throws {
        let range = try #require(AddressRange(start: 0x1000, byteCount: 0x1000))
        #expect(!range.overlaps(try #require(AddressRange(start: 0x2000, byteCount: 1))))
        #expect(!range.overlaps(try #require(AddressRange(start: 0xFFF, byteCount: 1))))
        #expect(range.overlaps(try #require(AddressRange(start: 0x1FFF, byteCount: 2))))
        #expect(range.contains(0x1FFF))
        #expect(!range.contains(0x2000))
        #expect(range.description == "0x1000-0x1fff")
    }
}

@Suite("Maps of ranges")
struct AddressMapTests {
    @Test("a range that overlaps another is refused with the other named, and changes nothing")
    func conflicts() throws {
        var map = AddressMap<String>()
        let first = try #require(AddressRange(start: 0x1000, byteCount: 0x1000))
        try map.insert("first", at: first)
        let overlapping = try #require(AddressRange(start: 0x1800, byteCount: 0x1000))
        #expect(throws: AddressConflict(inserting: overlapping, existing: first)) {
            try map.insert("second", at: overlapping)
        }
        #expect(map.entries.map(\.value) == ["first"])
        #expect(map.remove(overlapping) == nil, "only exactly this range is removed")
        #expect(map.remove(first) == "first")
        #expect(map.entry(containing: 0x1000) == nil)
    }

    @Test(
        "against a list of every byte: random insertions, look-ups and removals",
        arguments: 1...20 as ClosedRange<UInt64>
    )
    func againstNaiveModel(_ seed: UInt64) throws {
        var state = seed
        func random(_ limit: UInt64) -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % limit
        }
        var map = AddressMap<Int>()
        var bytes = [Int?](repeating: nil, count: 256)
        for value in 0..<200 {
            let start = random(256)
            let range = try #require(AddressRange(start: start, byteCount: 1 + random(256 - start)))
            let covered = Int(range.first)...Int(range.last)
            if random(3) == 0, let entry = map.entry(containing: start) {
                #expect(map.remove(entry.range) == entry.value, "seed \(seed)")
                for byte in bytes.indices where bytes[byte] == entry.value { bytes[byte] = nil }
            } else if (try? map.insert(value, at: range)) != nil {
                #expect(bytes[covered].allSatisfy { $0 == nil }, "seed \(seed)")
                for byte in covered { bytes[byte] = value }
            } else {
                #expect(bytes[covered].contains { $0 != nil }, "seed \(seed)")
            }
            for byte in bytes.indices {
                #expect(map.entry(containing: UInt64(byte))?.value == bytes[byte], "seed \(seed)")
            }
        }
    }
}
