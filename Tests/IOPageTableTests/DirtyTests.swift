// Dirty state in leaves: DBM and AP[2], word by word, and what is found and cleared.

import AddressSpace
import DeviceModel
import Testing

@testable import IOPageTable

@Suite("Dirty state")
struct DirtyTests {
    private static func bench(_ policy: PartialUnmapPolicy = .refuse) throws -> PageTableBench {
        try PageTableBench(.kib4, partialUnmap: policy, tracksDirtyState: true)
    }

    private static func range(_ first: UInt64, _ byteCount: UInt64) throws -> AddressRange {
        try #require(AddressRange(start: first, byteCount: byteCount))
    }

    private static func read(_ bench: inout PageTableBench, _ iova: UInt64, _ byteCount: UInt64, clears: Bool)
        throws(IOPageTableError) -> [AddressRange]
    {
        try bench.table.readDirty(
            IOVirtualAddress(iova),
            byteCount: byteCount,
            clears: clears,
            invalidator: &bench.log
        )
    }

    @Test func whatCanBeWrittenHasDBMAndBeginsDirty() throws {
        var bench = try Self.bench()
        try bench.map(0x1000, 0x3000, 0x1000)
        // Bit 51; AP[2] is clear.
        #expect(try bench.leaf(0x1000) == 0x0008_0000_0000_3F47)
        try bench.map(0x2000, 0x3000, 0x1000, [.read, .cacheable])
        #expect(try bench.leaf(0x2000) == 0x3FC7)
        var plain = try PageTableBench(.kib4)
        try plain.map(0x1000, 0x3000, 0x1000)
        #expect(try plain.leaf(0x1000) == 0x3F47)
        // Stage 2 has none.
        var second = try PageTableBench(
            .kib4,
            input: 40,
            output: 40,
            stage: .two(forcesWriteBack: false),
            tracksDirtyState: true
        )
        try second.map(0x1000, 0x3000, 0x1000)
        #expect(try second.leaf(0x1000).map { $0 & 1 << 51 } == 0)
    }

    @Test func dirtyPagesAreFoundInOrderAndBecomeClean() throws {
        var bench = try Self.bench()
        try bench.map(0x1000, 0x10_1000, 0x3000)
        try bench.map(0x6000, 0x10_6000, 0x1000)
        try bench.map(0x7000, 0x10_7000, 0x1000, .read)
        try bench.map(0x20_0000, 0x20_0000, 0x20_0000)
        let all = try [
            Self.range(0x1000, 0x3000), Self.range(0x6000, 0x1000), Self.range(0x20_0000, 0x20_0000),
        ]
        bench.log.entries = []
        #expect(try Self.read(&bench, 0, 0x100_0000, clears: false) == all)
        #expect(bench.log.entries.isEmpty)
        #expect(try Self.read(&bench, 0, 0x100_0000, clears: true) == all)
        #expect(
            bench.log.entries == [
                .leaves(0x1000, byteCount: 0x1000, pageByteCount: 0x1000),
                .leaves(0x2000, byteCount: 0x1000, pageByteCount: 0x1000),
                .leaves(0x3000, byteCount: 0x1000, pageByteCount: 0x1000),
                .leaves(0x6000, byteCount: 0x1000, pageByteCount: 0x1000),
                .leaves(0x20_0000, byteCount: 0x20_0000, pageByteCount: 0x20_0000),
            ]
        )
        // Clean: AP[2] and DBM.
        #expect(try bench.leaf(0x1000) == 0x0008_0000_0010_1FC7)
        #expect(try bench.leaf(0x20_0000) == 0x0008_0000_0020_0FC5)
        #expect(
            try bench.table.translate(IOVirtualAddress(0x1000))?.permissions == [.read, .write, .cacheable]
        )
        #expect(try Self.read(&bench, 0, 0x100_0000, clears: true) == [])
    }

    @Test func onlyTheRangeIsLookedAtAndWholeBlocksAreNamed() throws {
        var bench = try Self.bench()
        try bench.map(0x1000, 0x10_1000, 0x3000)
        try bench.map(0x20_0000, 0x20_0000, 0x20_0000)
        #expect(try Self.read(&bench, 0x2000, 0x1000, clears: true) == [Self.range(0x2000, 0x1000)])
        #expect(
            try Self.read(&bench, 0x1000, 0x3000, clears: false) == [
                Self.range(0x1000, 0x1000), Self.range(0x3000, 0x1000),
            ]
        )
        #expect(try Self.read(&bench, 0x20_1000, 0x1000, clears: false) == [Self.range(0x20_0000, 0x20_0000)])
        #expect(try Self.read(&bench, 0xFFFF_FFFF_F000, 0x1000, clears: true) == [])
        #expect(throws: IOPageTableError.self) { _ = try Self.read(&bench, 0x800, 0x1000, clears: true) }
        #expect(throws: IOPageTableError.self) { _ = try Self.read(&bench, 1 << 48, 0x1000, clears: true) }
    }

    @Test func aSplitBlocksPagesAreAsDirtyAsItWas() throws {
        for isDirty in [true, false] {
            var bench = try Self.bench(.split)
            try bench.map(0x20_0000, 0x20_0000, 0x20_0000)
            if !isDirty { _ = try Self.read(&bench, 0x20_0000, 0x20_0000, clears: true) }
            #expect(try bench.unmap(0x20_0000, 0x1000).byteCount == 0x1000)
            let left = try Self.read(&bench, 0x20_0000, 0x20_0000, clears: false)
            #expect(try left == (isDirty ? [Self.range(0x20_1000, 0x1F_F000)] : []))
        }
    }

    /// Memory in which hardware makes a clean leaf dirty just before the first exchange that expects it clean.
    private final class RacingRAM: PhysicalAccess {
        let memory = SparseRAM()

        func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress)
            throws(BusError) -> UInt64
        {
            if expected & (1 << 51 | 1 << 7) == 1 << 51 | 1 << 7 { memory[address.rawValue] &= ~(1 << 7) }
            return try memory.compareExchange64(expected: expected, desired: desired, at: address)
        }

        func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
            try memory.load(width, at: address)
        }
        func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
            try memory.store(value, width, at: address)
        }
        func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
            try memory.read(byteCount, at: address)
        }
        func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
            try memory.write(bytes, at: address)
        }
        func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
            try memory.fill(byte, byteCount: byteCount, at: address)
        }
    }

    @Test func aBlockThatBecomesDirtyWhileItIsSplitStaysDirty() throws {
        let racing = RacingRAM()
        var log = InvalidationLog()
        let configuration = try PageTableConfiguration(
            granule: .kib4,
            inputAddressBits: 48,
            outputAddressBits: 48,
            isCoherent: true,
            partialUnmap: .split,
            tracksDirtyState: true
        )
        var table = try IOPageTable(
            configuration: configuration,
            memory: racing,
            frames: TestFrames(memory: racing.memory)
        )
        let start = IOVirtualAddress(0x20_0000)
        try table.map(
            start,
            to: PhysicalAddress(0x20_0000),
            byteCount: 0x20_0000,
            permissions: .readWrite,
            invalidator: &log
        )
        _ = try table.readDirty(start, byteCount: 0x20_0000, clears: true, invalidator: &log)
        let outcome = try table.unmap(start, byteCount: 0x1000, invalidator: &log)
        #expect(outcome == UnmapOutcome(byteCount: 0x1000, stoppedBy: nil))
        let dirty = try table.readDirty(start, byteCount: 0x20_0000, clears: false, invalidator: &log)
        #expect(try dirty == [Self.range(0x20_1000, 0x1F_F000)])
    }
}
