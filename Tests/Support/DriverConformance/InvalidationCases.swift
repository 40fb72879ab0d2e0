// What goes out of the TLB, by which command, and when.

import AddressSpace
import IOMMU
import IOPageTable
import SMMUv3Spec

extension ConformanceCase {
    static let invalidation = [
        Self("an unmap is a TLBI by address with its ASID; DMA faults when it returns", byAddress),
        Self("a range goes by ranges, and nothing beside it", byRange),
        Self("without ranges a list of pages goes by batches", byPages),
        Self("a domain that ends takes its ASID's translations with it", byASID),
        Self("lazy: an unmapped page is reached until the timer's flush, and not after", lazyTimer),
        Self("lazy: a full ring flushes by itself", lazyRing),
        Self("the command queue wraps, and wraps again", wraps),
        Self("several producers insert at once; each finds its own commands done", producers),
    ]

    private static func byAddress(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x20_0000, to: BoardLayout.buffers, 0x2000)
        // Both are in the TLB.
        try rig.expectReaches(0, 0x20_0000, BoardLayout.buffers)
        try rig.expectReaches(0, 0x20_1000, BoardLayout.buffers + 0x1000)
        _ = rig.takeCommands()
        try rig.unmap(domain, 0x20_0000)
        let commands = rig.takeCommands()
        try expectEqual(commands.count, 2, "how many commands an unmap takes")
        // TLBI_NH_VA or, with E2H, TLBI_EL2_VA; ASID in [63:48].
        let asid = UInt64(domain.asid ?? 0)
        try expectEqual(commands[0].words[0] & 0xFF, 0x12, "the opcode")
        try expectEqual(commands[0].words[0] >> 48, asid, "the ASID")
        try expectEqual(commands[0].words[1] & ~0xFFE, 0x20_0001, "the address and Leaf")
        try rig.expectFaults(0, 0x20_0000, BoardLayout.buffers, .fTranslation)
        try rig.expectReaches(0, 0x20_1000, BoardLayout.buffers + 0x1000)
    }

    private static func byRange(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        // 200 pages: 3 bits of SCALE and 25 of NUM, or what the driver makes of it.
        try rig.map(domain, 0x30_1000, to: BoardLayout.buffers + 0x1000, 200 << 12)
        let probes: [UInt64] = [0, 1, 7, 8, 100, 197, 198, 199]
        for page in probes {
            try rig.expectReaches(0, 0x30_1000 + page << 12, BoardLayout.buffers + 0x1000 + page << 12)
        }
        _ = rig.takeCommands()
        try rig.unmap(domain, 0x30_2000, 198 << 12)
        let hasRanges = rig.driver.features.flags.contains(.rangeInvalidation)
        try expect(!hasRanges || rig.takeCommands().count < 8, "as many commands as pages")
        for page in probes {
            let physical = BoardLayout.buffers + 0x1000 + page << 12
            if page == 0 || page == 199 {
                try rig.expectReaches(0, 0x30_1000 + page << 12, physical)
            } else {
                try rig.expectFaults(0, 0x30_1000 + page << 12, physical, .fTranslation)
            }
        }
    }

    private static func byPages(_ bench: any ConformanceBench) throws {
        // Without IDR3.RIL.
        let rig = try Rig(bench, hiding: [RegisterOffset.idr3: 1 << 10])
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x30_1000, to: BoardLayout.buffers + 0x1000, 150 << 12)
        for page in [0, 63, 64, 149] as [UInt64] {
            try rig.expectReaches(0, 0x30_1000 + page << 12, BoardLayout.buffers + 0x1000 + page << 12)
        }
        _ = rig.trace.take()
        try rig.unmap(domain, 0x30_1000, 150 << 12)
        let actions = rig.trace.take()
        let producers = actions.count {
            if case .write32(RegisterOffset.cmdqProd, _) = $0 { true } else { false }
        }
        let commands = actions.count { if case .command = $0 { true } else { false } }
        // 64, 64, and 22 with the CMD_SYNC.
        try expectEqual(producers, 3, "how often CMDQ_PROD was written")
        try expectEqual(commands, 151, "how many commands there were")
        for page in [0, 63, 64, 149] as [UInt64] {
            let physical = BoardLayout.buffers + 0x1000 + page << 12
            try rig.expectFaults(0, 0x30_1000 + page << 12, physical, .fTranslation)
        }
    }

    private static func byASID(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(0)
        var asid: UInt16?
        // The same ASID and the same IOVA lead to other memory each time.
        for round in 0..<4 as Range<UInt64> {
            let domain = try rig.makeDomain()
            if round > 0 { try expectEqual(domain.asid, asid, "the ASID") }
            asid = domain.asid
            let physical = BoardLayout.buffers + round << 12
            try rig.map(domain, 0x1000, to: physical)
            try rig.driver.attach(endpoint, to: domain)
            try rig.expectReaches(0, 0x1000, physical)
            try rig.driver.attach(endpoint, to: rig.driver.blockedDomain)
        }
    }

    private static func lazyTimer(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain(.dmaFQ)
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        let iova = try domain.map(
            PhysicalAddress(BoardLayout.buffers),
            byteCount: 0x1000,
            permissions: .readWrite
        )
        try rig.expectReaches(0, iova.rawValue, BoardLayout.buffers)
        _ = rig.takeCommands()
        _ = try domain.unmapDMA(iova, byteCount: 0x1000)
        try expectEqual(rig.takeCommands(), [], "commands of a lazy unmap")
        // The window: the page table has it no more, the TLB still does.
        try expect(try domain.translate(iova) == nil, "the page is still mapped")
        try rig.expectReaches(0, iova.rawValue, BoardLayout.buffers)
        bench.clock.advance(nanoseconds: 9_000_000)
        rig.driver.pollTimers()
        try expectEqual(domain.lazyUnmapCount, 1, "what waits after 9 ms")
        bench.clock.advance(nanoseconds: 2_000_000)
        rig.driver.pollTimers()
        try expectEqual(domain.lazyUnmapCount, 0, "what waits after 11 ms")
        // TLBI by ASID, CMD_SYNC.
        try expectEqual(rig.takeCommands().map { $0.words[0] & 0xFF }, [0x11, 0x46], "the flush's opcodes")
        try rig.expectFaults(0, iova.rawValue, BoardLayout.buffers, .fTranslation)
    }

    private static func lazyRing(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain(.dmaFQ)
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        var first: IOVirtualAddress?
        for index in 0..<256 as Range<UInt64> {
            let iova = try domain.map(
                PhysicalAddress(BoardLayout.buffers),
                byteCount: 0x1000,
                permissions: .readWrite
            )
            if index == 0 {
                first = iova
                try rig.expectReaches(0, iova.rawValue, BoardLayout.buffers)
                _ = rig.takeCommands()
            }
            _ = try domain.unmapDMA(iova, byteCount: 0x1000)
        }
        let opcodes = rig.takeCommands().map { $0.words[0] & 0xFF }
        try expectEqual(opcodes.filter { $0 == 0x11 }.count, 1, "how often the ring flushed")
        guard let first else { throw ConformanceFailure("nothing was mapped") }
        try rig.expectFaults(0, first.rawValue, BoardLayout.buffers, .fTranslation)
    }

    private static func wraps(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.queueLog2Limit = 7 }
        let endpoint = try rig.addEndpoint(0)
        let domain = try rig.makeDomain()
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        var count = 0
        // Several times the 256 values that index and wrap bit have.
        while count < 600 {
            try rig.driver.attach(endpoint, to: domain)
            try rig.driver.attach(endpoint, to: rig.driver.blockedDomain)
            count += rig.takeCommands().count
        }
        try rig.driver.attach(endpoint, to: domain)
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
        try rig.driver.synchronize()
        try expectEqual(
            try rig.register(RegisterOffset.cmdqCons),
            try rig.register(RegisterOffset.cmdqProd),
            "CMDQ_CONS"
        )
    }

    private static func producers(_ bench: any ConformanceBench) async throws {
        let rig = try Rig(bench) { $0.queueLog2Limit = 7 }
        let domains = try BoardLayout.streams.indices.map { requester in
            let domain = try rig.makeDomain()
            try rig.driver.attach(try rig.addEndpoint(requester), to: domain)
            return domain
        }
        _ = rig.takeCommands()
        let rounds = 25
        try await withThrowingTaskGroup(of: Void.self) { group in
            for domain in domains {
                group.addTask {
                    for round in 0..<UInt64(rounds) {
                        try domain.map(
                            IOVirtualAddress(round << 12),
                            to: PhysicalAddress(BoardLayout.buffers),
                            byteCount: 0x1000,
                            permissions: .readWrite
                        )
                        _ = try domain.unmap(IOVirtualAddress(round << 12), byteCount: 0x1000)
                    }
                }
            }
            try await group.waitForAll()
        }
        let commands = rig.takeCommands()
        try expectEqual(commands.count, 2 * rounds * domains.count, "how many commands there were")
        for domain in domains {
            // In its own order, and each with its CMD_SYNC behind it.
            let own = commands.indices.filter { index in
                commands[index].words[0] & 0xFF == 0x12
                    && commands[index].words[0] >> 48 == UInt64(domain.asid ?? 0)
            }
            let pages = own.map { commands[$0].words[1] >> 12 }
            try expectEqual(pages, Array(0..<UInt64(rounds)), "the pages of ASID \(domain.asid ?? 0)")
            try expect(own.allSatisfy { commands[$0 + 1].words[0] & 0xFF == 0x46 }, "a list was torn")
        }
        try expectEqual(
            try rig.register(RegisterOffset.cmdqCons),
            try rig.register(RegisterOffset.cmdqProd),
            "CMDQ_CONS"
        )
        try expectEqual(try rig.takeEvents(), [], "events")
    }
}
