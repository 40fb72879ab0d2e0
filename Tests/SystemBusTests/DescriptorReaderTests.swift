// The reader of a walk's descriptors: the words that single loads give, and nil where those fail.

import AddressSpace
import DeviceModel
import GuestMemory
import SystemBus
import Testing

@Suite("Reader of descriptors")
struct DescriptorReaderTests {
    private func isEqual(_ reader: inout DescriptorReader, _ place: UInt64, _ words: SIMD8<UInt64>) -> Bool {
        withUnsafeTemporaryAllocation(of: UInt64.self, capacity: 8) { buffer in
            for index in 0..<8 { buffer.initializeElement(at: index, to: words[index]) }
            return buffer.baseAddress.map { reader.isEqual(place, to: $0) } ?? false
        }
    }

    @Test("every word is what a single load gives, in whatever order regions are read")
    func sameWords() throws {
        let bus = SystemBus()
        // A linear congruential generator: always the same words.
        var state: UInt64 = 17
        func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state &>> 32 | state &<< 32
        }
        let ranges: [(first: UInt64, byteCount: UInt64)] = [
            (0x1000, 0x1000), (0x2000, 0x2000), (0x8000_0000, 0x1000), (0xFFFF_FFFF_FFFF_F000, 0x1000),
        ]
        for (index, range) in ranges.enumerated() {
            let region = try MemoryRegion.anonymous(byteCount: range.byteCount, name: "ram\(index)")
            try bus.addRAM(region, at: address(range.first), name: "ram\(index)")
            for offset in stride(from: 0, to: range.byteCount, by: 8) {
                try bus.storeRAM64(next(), at: address(range.first + offset))
            }
        }
        var reader = bus.makeDescriptorReader()
        for _ in 0..<4000 {
            // Around the edges of what there is, too.
            let range = ranges[Int(next() % UInt64(ranges.count))]
            let word: UInt64 = next() % (range.byteCount / 8 + 16)
            let place = range.first &- 0x40 &+ word &* 8
            // Where the last word was, or nothing.
            let nearby = reader.wordNearby(in: place &- 16, at: 16)
            let loaded = reader.load(place)
            #expect(loaded == (try? bus.loadRAM64(at: address(place))))
            #expect(nearby == nil || nearby == loaded)
            if loaded != nil { #expect(reader.wordNearby(in: place &- 16, at: 16) == loaded) }
            // Eight words over two regions are for the caller to fetch one by one.
            let expected = try? bus.loadRAM64x8(at: address(place))
            let isSame = isEqual(&reader, place, expected ?? SIMD8())
            #expect(isSame == (expected != nil), "\(String(place, radix: 16))")
            guard var other = expected else { continue }
            other[Int(next() % 8)] ^= 1 << (next() % 64)
            let isSameAsAnother = isEqual(&reader, place, other)
            #expect(!isSameAsAnother, "\(String(place, radix: 16))")
        }
    }

    @Test("nothing there: an empty bus, and a region of fewer bytes than a word")
    func nothing() throws {
        let bus = SystemBus()
        var reader = bus.makeDescriptorReader()
        for place in [0, 8, UInt64.max - 7] { #expect(reader.load(place) == nil) }
        let isSame = isEqual(&reader, 0, SIMD8())
        #expect(!isSame)
    }

    @Test(
        "memory that a peer has truncated, and memory at an odd place in the host, are left to single loads"
    )
    func lostAndMisaligned() throws {
        let bus = SystemBus()
        let peer = try PeerMemory(fileByteCount: 0x2000, byteCount: 0x2000)
        try bus.addRAM(peer.region, at: address(0x1_0000), name: "peer")
        try bus.storeRAM64(5, at: address(0x1_0000))
        var reader = bus.makeDescriptorReader()
        #expect(reader.load(0x1_0000) == 5)
        try peer.truncate(to: 0x1000)
        // Reads as zero at first, and from then on the region counts as lost.
        #expect(reader.load(0x1_1000) == nil)
        #expect(reader.load(0x1_0000) == nil)
        let isSame = isEqual(&reader, 0x1_0000, SIMD8(5, 0, 0, 0, 0, 0, 0, 0))
        #expect(!isSame)
        let odd = try PeerMemory(fileByteCount: 0x2000, offset: 4, byteCount: 0x1000)
        try bus.addRAM(odd.region, at: address(0x4_0000), name: "odd")
        var other = bus.makeDescriptorReader()
        #expect(other.load(0x4_0000) == nil)
        #expect(throws: BusError.self) { try bus.loadRAM64(at: address(0x4_0000)) }
    }

    @Test("words that were lost before they were read are known for it at the end, whatever was read since")
    func lostDuringAWalk() throws {
        for hasOtherRAM in [false, true] {
            let bus = SystemBus()
            let peer = try PeerMemory(fileByteCount: 0x2000, byteCount: 0x2000)
            try bus.addRAM(peer.region, at: address(0x1_0000), name: "peer")
            let other = try MemoryRegion.anonymous(byteCount: 0x1000, name: "other")
            try bus.addRAM(other, at: address(0x8_0000), name: "other")
            var reader = bus.makeDescriptorReader()
            let before = reader.word(at: 0x1_1000)
            #expect(before == 0 && reader.isIntact)
            try peer.truncate(to: 0x1000)
            let after = reader.word(at: 0x1_1000)
            #expect(after == 0, "what is gone reads as zero")
            if hasOtherRAM {
                let other = reader.word(at: 0x8_0000)
                #expect(other == nil, "or what is intact would hide it")
            } else {
                #expect(!reader.isIntact)
            }
        }
    }
}
