// Frames and IOVAs: who gets what, and that nothing is handed out twice.

import AddressSpace
import DeviceModel
import IOPageTable
import SeededRandomness
import Testing

@testable import IOMMU

@Suite("Frames")
struct FrameAllocatorTests {
    private static func range(_ first: UInt64, _ last: UInt64) throws -> AddressRange {
        try #require(AddressRange(first: first, last: last))
    }

    @Test func blocksAreAlignedToTheirSizeAndTheLowestComesFirst() throws {
        let memory = FakeSMMU()
        let frames = PhysicalFrameAllocator(
            memory: memory,
            ranges: [try Self.range(0x4000_1000, 0x400F_FFFF)]
        )
        #expect(frames.byteCount == 0xF_F000)
        #expect(try frames.allocate(byteCount: 1, alignment: 1) == PhysicalAddress(0x4000_1000))
        #expect(try frames.allocate(byteCount: 0x3000, alignment: 1) == PhysicalAddress(0x4000_4000))
        #expect(try frames.allocate(byteCount: 0x1000, alignment: 0x1_0000) == PhysicalAddress(0x4001_0000))
        #expect(try frames.allocate(byteCount: 0x1000, alignment: 1) == PhysicalAddress(0x4000_2000))
        #expect(try frames.allocate(byteCount: 0x1000, alignment: 1) == PhysicalAddress(0x4000_3000))
        #expect(try frames.allocate(byteCount: 0x1000, alignment: 1) == PhysicalAddress(0x4000_8000))
        #expect(frames.usedByteCount == 0x9000)
    }

    @Test func freedBlocksGrowTogetherAgain() throws {
        let frames = PhysicalFrameAllocator(
            memory: FakeSMMU(),
            ranges: [try Self.range(0x4000_0000, 0x400F_FFFF)]
        )
        let blocks = try (0..<256).map { _ in try frames.allocate(byteCount: 0x1000, alignment: 1) }
        #expect(throws: PhysicalPageError.exhausted(byteCount: 1, alignment: 1)) {
            _ = try frames.allocate(byteCount: 1, alignment: 1)
        }
        for block in blocks.reversed() { try frames.free(block) }
        #expect(frames.usedByteCount == 0)
        #expect(try frames.allocate(byteCount: 1 << 20, alignment: 1) == PhysicalAddress(0x4000_0000))
    }

    @Test func whatWasNotHandedOutCannotBeFreed() throws {
        let frames = PhysicalFrameAllocator(
            memory: FakeSMMU(),
            ranges: [try Self.range(0x4000_0000, 0x400F_FFFF)]
        )
        let block = try frames.allocate(byteCount: 0x2000, alignment: 1)
        let inner = PhysicalAddress(block.rawValue + 0x1000)
        #expect(throws: PhysicalPageError.notAllocated(inner)) { try frames.free(inner) }
        try frames.free(block)
        #expect(throws: PhysicalPageError.notAllocated(block)) { try frames.free(block) }
    }

    @Test func memoryIsZeroedEveryTime() throws {
        let memory = FakeSMMU()
        let frames = PhysicalFrameAllocator(
            memory: memory,
            ranges: [try Self.range(0x4000_0000, 0x4000_0FFF)]
        )
        let block = try frames.allocate(byteCount: 0x1000, alignment: 1)
        try memory.store(0xDEAD, .doubleword, at: PhysicalAddress(block.rawValue + 0xFF8))
        try frames.free(block)
        _ = try frames.allocate(byteCount: 0x1000, alignment: 1)
        #expect(memory.word(block.rawValue + 0xFF8) == 0)
    }

    @Test func memoryThatCannotBeClearedIsNotHandedOut() throws {
        let frames = PhysicalFrameAllocator(memory: FakeSMMU(), ranges: [try Self.range(0x1000, 0x1FFF)])
        #expect(throws: PhysicalPageError.memory(.unassigned(PhysicalAddress(0x1000)))) {
            _ = try frames.allocate(byteCount: 1, alignment: 1)
        }
        #expect(frames.usedByteCount == 0)
    }

    @Test func reservedAndPartialFramesAreLeftOut() throws {
        let frames = PhysicalFrameAllocator(
            memory: FakeSMMU(),
            ranges: [
                try Self.range(0x4000_0800, 0x4000_6FFF), try Self.range(0x4000_5000, 0x4000_87FF),
                try Self.range(.max - 0x1FFF, .max),
            ],
            excluding: [try Self.range(0x4000_2FFF, 0x4000_3000), try Self.range(0x4000_7000, 0x4000_7001)]
        )
        // Frames 1, 4, 5, 6 of the first two ranges; the last frame of the address space is left out.
        #expect(frames.byteCount == 0x5000)
        let low = try (0..<4).map { _ in try frames.allocate(byteCount: 0x1000, alignment: 1).rawValue }
        #expect(low == [0x4000_1000, 0x4000_4000, 0x4000_5000, 0x4000_6000])
    }

    @Test("nothing is handed out twice", arguments: 1...5 as ClosedRange<UInt64>)
    func random(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let frames = PhysicalFrameAllocator(
            memory: FakeSMMU(),
            ranges: [try Self.range(0x4000_3000, 0x401F_CFFF)]
        )
        var held: [AddressRange] = []
        for _ in 0..<400 {
            if !held.isEmpty, UInt64.random(in: 0..<5, using: &random) < 2 {
                let range = held.remove(at: Int.random(in: 0..<held.count, using: &random))
                try frames.free(PhysicalAddress(range.first))
            } else {
                let size = UInt64.random(in: 1...0x1_4000, using: &random)
                let alignment = UInt64(1) << UInt64.random(in: 0...16, using: &random)
                guard let block = try? frames.allocate(byteCount: size, alignment: alignment) else {
                    continue
                }
                let range = try #require(AddressRange(start: block.rawValue, byteCount: size))
                #expect(block.rawValue.isMultiple(of: alignment))
                #expect(range.first >= 0x4000_3000 && range.last <= 0x401F_CFFF)
                #expect(!held.contains { $0.overlaps(range) })
                held.append(range)
            }
        }
        for range in held { try frames.free(PhysicalAddress(range.first)) }
        #expect(frames.usedByteCount == 0)
    }
}

@Suite("IOVAs")
struct IOVAAllocatorTests {
    @Test func rangesComeFromTheTopOf4GiBAlignedToTheirSize() {
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48)
        #expect(iovas.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFF_F000))
        #expect(iovas.allocate(byteCount: 0x3000) == IOVirtualAddress(0xFFFF_C000))
        #expect(iovas.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFF_B000))
        #expect(iovas.allocate(byteCount: 0x10_0000) == IOVirtualAddress(0xFFE0_0000))
        #expect(iovas.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFF_A000))
    }

    @Test func whatDoesNotFitBelow4GiBGoesAbove() {
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48)
        #expect(iovas.allocate(byteCount: 1 << 32) == IOVirtualAddress(0xFFFF_0000_0000))
        #expect(iovas.allocate(byteCount: 1 << 32, limit: (1 << 34) - 1) == IOVirtualAddress(3 << 32))
        #expect(iovas.allocate(byteCount: 1 << 32, limit: 0xFFFF_FFFF) == nil)
        var high = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48, prefersLow: false)
        #expect(high.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFF_FFFF_F000))
    }

    @Test func addressZeroAndReservedRangesAreNeverHandedOut() throws {
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48)
        let range = try #require(AddressRange(first: 0x2800, last: 0x3FFF))
        iovas.reserve(range)
        #expect(iovas.allocate(byteCount: 0x1000, limit: 0x4FFF) == IOVirtualAddress(0x4000))
        #expect(iovas.allocate(byteCount: 0x1000, limit: 0x4FFF) == IOVirtualAddress(0x1000))
        #expect(iovas.allocate(byteCount: 0x1000, limit: 0x4FFF) == nil)
        iovas.release(range)
        iovas.release(try #require(AddressRange(first: 0, last: 0xFFF)))
        #expect(iovas.allocate(byteCount: 0x1000, limit: 0x4FFF) == nil)
        #expect(iovas.allocate(byteCount: 0x1000, limit: 0x800) == nil)
    }

    @Test func claimedRangesAreAvoidedAndReleasedPieceByPiece() throws {
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 32)
        iovas.claim(try #require(AddressRange(first: 0xFFFF_0000, last: 0xFFFF_FFFF)))
        #expect(iovas.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFE_F000))
        iovas.release(try #require(AddressRange(first: 0xFFFF_4000, last: 0xFFFF_4FFF)))
        #expect(iovas.allocate(byteCount: 0x1000) == IOVirtualAddress(0xFFFF_4000))
        #expect(!iovas.isFree(try #require(AddressRange(first: 0xFFFE_E000, last: 0xFFFE_F000))))
        #expect(iovas.isFree(try #require(AddressRange(first: 0xFFFE_D000, last: 0xFFFE_EFFF))))
        #expect(iovas.takenByteCount == 0x1_2000)
    }

    @Test func theLastAddressesOfALargeApertureCanBeHadAndNothingBeyond() {
        var iovas = IOVAAllocator(granuleLog2: 16, inputAddressBits: 52, prefersLow: false)
        #expect(iovas.allocate(byteCount: 1 << 51) == IOVirtualAddress(1 << 51))
        #expect(iovas.allocate(byteCount: 1 << 51) == nil)
        #expect(iovas.allocate(byteCount: 1 << 52) == nil)
        #expect(iovas.allocate(byteCount: .max << 16) == nil)
        #expect(iovas.allocate(byteCount: 0) == nil)
    }

    @Test("nothing is handed out twice", arguments: 1...5 as ClosedRange<UInt64>)
    func random(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        var iovas = IOVAAllocator(granuleLog2: 12, inputAddressBits: 48)
        let empty = iovas.takenByteCount
        var held: [AddressRange] = []
        for _ in 0..<600 {
            if !held.isEmpty, UInt64.random(in: 0..<5, using: &random) < 2 {
                iovas.release(held.remove(at: Int.random(in: 0..<held.count, using: &random)))
            } else {
                let pages = UInt64.random(in: 1...40, using: &random)
                guard let iova = iovas.allocate(byteCount: pages << 12, limit: 0x3F_FFFF) else { continue }
                let range = try #require(AddressRange(start: iova.rawValue, byteCount: pages << 12))
                #expect(iova.rawValue >= 0x1000 && range.last <= 0x3F_FFFF)
                #expect(!held.contains { $0.overlaps(range) })
                held.append(range)
            }
        }
        for range in held { iovas.release(range) }
        #expect(iovas.takenByteCount == empty)
    }
}
