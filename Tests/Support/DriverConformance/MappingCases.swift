// Pages, blocks, granules and permissions.

import AddressSpace
import IOMMU
import IOPageTable
import SMMUv3Spec

extension ConformanceCase {
    static let mapping = [
        Self("permissions are the mapping's", permissions),
        Self("a privileged mapping refuses a device", privileged),
        Self("pages of 4 KiB, and blocks of 2 MiB and 1 GiB") { try sizes(.kib4, $0) },
        Self("pages of 16 KiB, and blocks of 32 MiB") { try sizes(.kib16, $0) },
        Self("pages of 64 KiB, and blocks of 512 MiB") { try sizes(.kib64, $0) },
        Self("without 4 KiB the next larger granule is used", granuleChoice),
        Self("buffers of any alignment where the domain finds room", streamingMaps),
        Self("DMA agrees with the page table after random maps and unmaps", random),
    ]

    private static func permissions(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x1000, to: BoardLayout.buffers, 0x1000, .read)
        try rig.put(BoardLayout.buffers, 0xC0FFEE)
        try bench.copy(0, from: 0x1000, to: Rig.drain)
        try expectEqual(try rig.word(Rig.drainMemory), 0xC0FFEE, "what a device read")
        try rig.expectAborts(0, 0x1004, BoardLayout.buffers + 4)
        try rig.expectEvents([.fPermission], 0, 0x1004, isRead: false)
        // The same page with more permissions: unmapped and mapped again.
        try rig.unmap(domain, 0x1000)
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
    }

    private static func privileged(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x1000, to: BoardLayout.buffers, 0x1000, [.read, .write, .privileged])
        if bench.deviations.contains(.alwaysPrivileged) {
            try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
        } else {
            try rig.expectFaults(0, 0x1000, BoardLayout.buffers, .fPermission)
        }
    }

    /// Each size is mapped, reached at both ends, unmapped and not reached any more; what is next to it
    /// stays.
    private static func sizes(_ granule: PageTableGranule, _ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain(granule: granule)
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        let sizes = domain.configuration?.pageByteCounts ?? []
        try expect(sizes.count >= 2, "\(granule) has the sizes \(sizes)")
        for size in sizes where size <= 1 << 30 {
            // RAM begins at a multiple of every size; the buffers lie within.
            let physical = size <= 0x20_0000 ? BoardLayout.buffers : BoardLayout.ram
            let offset = BoardLayout.buffers - physical
            let iova: UInt64 = 0x40_0000_0000
            let page = granule.byteCount
            try rig.map(domain, iova, to: physical, size)
            try rig.map(domain, iova + size, to: BoardLayout.buffers + 0x20_0000, page)
            let found = try domain.translate(IOVirtualAddress(iova + offset))
            try expectEqual(found?.pageByteCount, size, "the size of the page that was used")
            let last = min(size, BoardLayout.buffersByteCount / 2) - 4
            try rig.expectReaches(0, iova + offset, physical + offset)
            try rig.expectReaches(0, iova + offset + last, physical + offset + last)
            try rig.expectReaches(0, iova + size, BoardLayout.buffers + 0x20_0000)
            try rig.unmap(domain, iova, size)
            try rig.expectFaults(0, iova + offset, physical + offset, .fTranslation)
            try rig.expectFaults(0, iova + offset + last, physical + offset + last, .fTranslation)
            try rig.expectReaches(0, iova + size, BoardLayout.buffers + 0x20_0000)
            try rig.unmap(domain, iova + size, page)
        }
    }

    private static func granuleChoice(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench, hiding: [RegisterOffset.idr5: 1 << 4])
        let domain = try rig.makeDomain()
        try expectEqual(domain.configuration?.granule, .kib16, "the granule")
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x4000, to: BoardLayout.buffers, 0x4000)
        try rig.expectReaches(0, 0x7FFC, BoardLayout.buffers + 0x3FFC)
        do {
            _ = try rig.makeDomain(granule: .kib4)
            throw ConformanceFailure("a granule that the SMMU does not have was taken")
        } catch let error as SMMUDriverError {
            try expectEqual(error, .unsupportedGranule(.kib4), "the error")
        }
    }

    private static func streamingMaps(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain(.dma)
        try rig.driver.attach(try rig.addEndpoint(1), to: domain)
        for (offset, count) in [(0, 4), (0x7FC, 0x808), (0xFFC, 8), (0x10, 0x2_0000)] as [(UInt64, UInt64)] {
            let physical = BoardLayout.buffers + offset
            let iova = try domain.map(
                PhysicalAddress(physical),
                byteCount: count,
                permissions: .readWrite
            ).rawValue
            try expectEqual(iova & 0xFFF, offset & 0xFFF, "the offset in the page")
            try rig.expectReaches(1, iova, physical)
            try rig.expectReaches(1, iova + count - 4, physical + count - 4)
            let size = (offset & 0xFFF + count + 0xFFF) & ~0xFFF
            try rig.unmap(domain, iova & ~0xFFF, size)
            try rig.expectFaults(1, iova, physical, .fTranslation)
            try rig.expectFaults(1, iova + count - 4, physical + count - 4, .fTranslation)
        }
    }

    private static func random(_ bench: any ConformanceBench) throws {
        var random = Sequence(state: 0x5EED)
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        // Three blocks' worth of addresses, and memory congruent to them within a block.
        let base: UInt64 = 0x8000_0000
        for _ in 0..<60 {
            let first = random.below(3 * 512)
            let isBlock = random.below(4) == 0
            let start = isBlock ? first & ~511 : first
            let count = isBlock ? 512 : min(random.below(40) + 1, 3 * 512 - first)
            let iova = IOVirtualAddress(base + start << 12)
            if random.below(2) == 0 {
                // What is mapped already refuses, and nothing changes.
                try? domain.map(
                    iova,
                    to: PhysicalAddress(BoardLayout.buffers + (start & 511) << 12),
                    byteCount: min(count, 512 - start & 511) << 12,
                    permissions: .readWrite
                )
            } else {
                _ = try domain.unmap(iova, byteCount: count << 12)
            }
            for page in [start, start + count - 1, random.below(3 * 512)] {
                let address = base + page << 12 + random.below(1024) << 2
                if let found = try domain.translate(IOVirtualAddress(address)) {
                    try rig.expectReaches(0, address, found.physical.rawValue)
                } else {
                    try rig.expectFaults(0, address, BoardLayout.buffers, .fTranslation, drain: nil)
                }
            }
        }
    }

    /// Numbers from one seed; the same everywhere.
    private struct Sequence {
        var state: UInt64

        mutating func below(_ bound: UInt64) -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state % bound
        }
    }
}
