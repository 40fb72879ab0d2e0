// Maps and unmaps: what they refuse, what they report, what they free.

import AddressSpace
import DeviceModel
import Testing

@testable import IOPageTable

@Suite("Mapping and unmapping")
struct MappingTests {
    // MARK: Refusals

    @Test func unalignedAndEmptyRequestsAreRefused() throws {
        var bench = try PageTableBench(.kib4)
        for (iova, physical, byteCount) in [(0x800, 0, 0x1000), (0, 0x800, 0x1000), (0, 0, 0x800), (0, 0, 0)]
            as [(UInt64, UInt64, UInt64)]
        {
            #expect(
                throws: IOPageTableError.unaligned(
                    iova: IOVirtualAddress(iova),
                    physical: PhysicalAddress(physical),
                    byteCount: byteCount,
                    granule: 0x1000
                )
            ) { try bench.map(iova, physical, byteCount) }
        }
        #expect(
            throws: IOPageTableError.unaligned(
                iova: IOVirtualAddress(0x800),
                physical: nil,
                byteCount: 0x1000,
                granule: 0x1000
            )
        ) { _ = try bench.unmap(0x800, 0x1000) }
    }

    @Test func addressesBeyondTheSizesAreRefused() throws {
        var bench = try PageTableBench(.kib4, input: 39, output: 40)
        let beyond: UInt64 = 1 << 39
        for (iova, byteCount) in [
            (beyond, 0x1000), (beyond - 0x1000, 0x2000), (~0xFFF, 0x1000), (~0xFFF, 0x2000),
        ]
            as [(UInt64, UInt64)]
        {
            let error = IOPageTableError.iovaOutOfRange(
                iova: IOVirtualAddress(iova),
                byteCount: byteCount,
                bits: 39
            )
            #expect(throws: error) { try bench.map(iova, 0, byteCount) }
            #expect(throws: error) { _ = try bench.unmap(iova, byteCount) }
        }
        #expect(
            throws: IOPageTableError.physicalOutOfRange(
                physical: PhysicalAddress((1 << 40) - 0x1000),
                byteCount: 0x2000,
                bits: 40
            )
        ) { try bench.map(0, (1 << 40) - 0x1000, 0x2000) }
        try bench.map(beyond - 0x1000, (1 << 40) - 0x1000, 0x1000)
        #expect(try bench.physical(beyond - 1) == (1 << 40) - 1)
        #expect(try bench.physical(beyond) == nil)
    }

    @Test func aMappingNeedsReadOrWrite() throws {
        var bench = try PageTableBench(.kib4)
        #expect(throws: IOPageTableError.noPermissions([.cacheable])) {
            try bench.map(0, 0, 0x1000, [.cacheable])
        }
    }

    @Test func overlapIsRefusedAtEverySizeAndChangesNothing() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_3000, 0x9000_0000, 0x1000)
        try bench.map(0x4000_0000, 0x1_0000_0000, 0x4000_0000)
        // The same page; a block over the page's table; a page inside the block; a run that reaches the page.
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x20_3000))) {
            try bench.map(0x20_3000, 0, 0x1000)
        }
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x20_3000))) {
            try bench.map(0x20_0000, 0, 0x20_0000)
        }
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x4000_5000))) {
            try bench.map(0x4000_5000, 0, 0x1000)
        }
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x20_3000))) {
            try bench.map(0x20_0000, 0, 0x5000)
        }
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x20_3000))) {
            try bench.map(0x1F_F000, 0x8000_0000, 0x6000)
        }
        #expect(try bench.physical(0x1F_F000) == nil)
        #expect(try bench.physical(0x20_0000) == nil)
        #expect(try bench.physical(0x20_3000) == 0x9000_0000)
        #expect(try bench.physical(0x7FFF_FFFF) == 0x1_3FFF_FFFF)
    }

    @Test func whatAFailedMapHadMappedIsReportedForInvalidation() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_0000, 0x9000_0000, 0x1000)
        #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(0x20_0000))) {
            try bench.map(0x1F_E000, 0x8000_0000, 0x3000)
        }
        #expect(bench.log.entries == [.leaves(0x1F_E000, byteCount: 0x2000, pageByteCount: 0x1000)])
    }

    @Test func aTableThatCannotBeHadLeavesTheMappingsAsTheyWere() throws {
        var bench = try PageTableBench(.kib4, frameLimit: 5)
        try bench.map(0, 0x8000_0000, 0x1000)
        #expect(
            throws: IOPageTableError.noMemory(.exhausted(byteCount: 0x1000, alignment: 0x1000))
        ) { try bench.map(0x1F_F000, 0x9000_0000, 0x20_2000 + 0x20_0000 - 0x1000) }
        #expect(try bench.physical(0) == 0x8000_0000)
        #expect(try bench.physical(0x1F_F000) == nil)
        #expect(try bench.physical(0x20_0000) == nil)
    }

    // MARK: Unmapping

    @Test func leavesAreReportedAsRunsOfOneSize() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x1F_E000, 0x9FFF_E000, 0x20_3000)
        #expect(
            try bench.unmap(0x1F_E000, 0x20_3000) == UnmapOutcome(byteCount: 0x20_3000, stoppedBy: nil)
        )
        #expect(
            bench.log.entries == [
                .leaves(0x1F_E000, byteCount: 0x2000, pageByteCount: 0x1000),
                .leaves(0x20_0000, byteCount: 0x20_0000, pageByteCount: 0x20_0000),
                .leaves(0x40_0000, byteCount: 0x1000, pageByteCount: 0x1000),
            ]
        )
    }

    @Test func unmapStopsAtTheFirstHole() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x1000, 0x9000_0000, 0x2000)
        try bench.map(0x4000, 0x9000_0000, 0x1000)
        #expect(
            try bench.unmap(0x1000, 0x5000)
                == UnmapOutcome(byteCount: 0x2000, stoppedBy: .notMapped(IOVirtualAddress(0x3000)))
        )
        #expect(bench.log.entries == [.leaves(0x1000, byteCount: 0x2000, pageByteCount: 0x1000)])
        #expect(try bench.physical(0x4000) == 0x9000_0000)
        #expect(
            try bench.unmap(0x1_0000_0000, 0x1000)
                == UnmapOutcome(byteCount: 0, stoppedBy: .notMapped(IOVirtualAddress(0x1_0000_0000)))
        )
    }

    @Test func aTableIsFlushedBeforeItIsFreed() throws {
        var bench = try PageTableBench(.kib4)
        // Two tables below one level-1 entry: 0x4000_2000 holds level 2, the last two level 3.
        try bench.map(0x4000_0000, 0x9000_0000, 0x1000)
        try bench.map(0x4020_0000, 0x9000_0000, 0x1000)
        #expect(bench.table.tableCount == 5)
        #expect(try bench.unmap(0x4000_0000, 0x4000_0000).byteCount == 0x4000_0000)
        #expect(
            bench.log.entries == [
                .walk(0x4000_0000, byteCount: 0x4000_0000, granule: 0x1000, freedBefore: 0)
            ]
        )
        #expect(bench.frames.freed == [0x4000_2000, 0x4000_3000, 0x4000_4000])
        #expect(bench.table.tableCount == 2)
    }

    @Test func aTableThatCouldNotBeFlushedIsKeptUntilTheEnd() throws {
        let frames: TestFrames
        do {
            var bench = try PageTableBench(.kib4)
            frames = bench.frames
            try bench.map(0x20_0000, 0x9000_0000, 0x1000)
            bench.log.canFlush = false
            #expect(try bench.unmap(0x20_0000, 0x20_0000).byteCount == 0x20_0000)
            #expect(frames.freed.isEmpty)
        }
        #expect(frames.liveCount == 0)
    }

    @Test func aBlockTakesThePlaceOfAnEmptyTable() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_0000, 0x9000_0000, 0x1000)
        _ = try bench.unmap(0x20_0000, 0x1000)
        bench.log.entries = []
        try bench.map(0x20_0000, 0xA000_0000, 0x20_0000)
        #expect(
            bench.log.entries == [.walk(0x20_0000, byteCount: 0x20_0000, granule: 0x1000, freedBefore: 0)]
        )
        #expect(try bench.leaf(0x20_0000) == 0xA000_0F45)
    }

    // MARK: Part of a block

    @Test func unmappingPartOfABlockIsRefused() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x20_0000, 0x9020_0000, 0x20_0000)
        #expect(
            try bench.unmap(0x20_1000, 0x1000)
                == UnmapOutcome(
                    byteCount: 0,
                    stoppedBy: .partOfBlock(IOVirtualAddress(0x20_1000), blockByteCount: 0x20_0000)
                )
        )
        #expect(try bench.physical(0x20_1000) == 0x9020_1000)
        #expect(bench.log.entries.isEmpty)
    }

    @Test func unmappingPartOfABlockSplitsItWhereThatIsAsked() throws {
        var bench = try PageTableBench(.kib4, partialUnmap: .split)
        try bench.map(0x4000_0000, 0x1_0000_0000, 0x4000_0000, [.read, .cacheable])
        #expect(try bench.unmap(0x4020_1000, 0x1000) == UnmapOutcome(byteCount: 0x1000, stoppedBy: nil))
        // Each block as a block, for a cached one need not heed an invalidation of pages.
        #expect(
            bench.log.entries == [
                .leaves(0x4000_0000, byteCount: 0x4000_0000, pageByteCount: 0x4000_0000),
                .leaves(0x4020_0000, byteCount: 0x20_0000, pageByteCount: 0x20_0000),
                .leaves(0x4020_1000, byteCount: 0x1000, pageByteCount: 0x1000),
            ]
        )
        // 2 MiB blocks but for the second, of which the second page is gone.
        #expect(try bench.leaf(0x4000_0000) == 0x1_0000_0FC5)
        #expect(try bench.leaf(0x7FE0_0000) == 0x1_3FE0_0FC5)
        #expect(try bench.leaf(0x4020_0000) == 0x1_0020_0FC7)
        #expect(try bench.leaf(0x4020_1000) == nil)
        #expect(try bench.leaf(0x403F_F000) == 0x1_003F_FFC7)
    }

    // MARK: Foreign writers

    @Test func aTableDescriptorThatLeadsElsewhereIsNotFollowed() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x1000, 0x9000_0000, 0x1000)
        bench.memory[0x4000_0000] = 0xDEAD_0003
        let error = IOPageTableError.corrupted(
            descriptorAddress: PhysicalAddress(0x4000_0000),
            descriptor: 0xDEAD_0003
        )
        #expect(throws: error) { try bench.map(0x2000, 0, 0x1000) }
        #expect(throws: error) { try bench.physical(0x1000) }
        #expect(try bench.unmap(0x1000, 0x1000) == UnmapOutcome(byteCount: 0, stoppedBy: error))
    }

    @Test func aReservedDescriptorIsNamed() throws {
        var bench = try PageTableBench(.kib4)
        try bench.map(0x1000, 0x9000_0000, 0x1000)
        bench.memory[0x4000_3010] = 0x9000_0001  // Level 3 has no blocks.
        #expect(
            throws: IOPageTableError.corrupted(
                descriptorAddress: PhysicalAddress(0x4000_3010),
                descriptor: 0x9000_0001
            )
        ) { try bench.map(0x2000, 0, 0x1000) }
    }

    @Test func everyTableIsGivenBack() throws {
        let frames: TestFrames
        do {
            var bench = try PageTableBench(.kib16)
            frames = bench.frames
            try bench.map(0, 0x8000_0000, 0x4000)
            try bench.map(0x1_0000_0000, 0x8000_0000, 0x4000)
            #expect(frames.liveCount == bench.table.tableCount)
        }
        #expect(frames.liveCount == 0)
    }
}
