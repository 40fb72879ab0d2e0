// Probe, reset, stop, and a second driver on the same SMMU.

import AddressSpace
import DeviceModel
import IOMMU
import SMMUv3Spec

extension ConformanceBench {
    /// A register as it is.
    func register(_ offset: UInt64) throws -> UInt32 {
        UInt32(
            truncatingIfNeeded: try access.load(.word, at: PhysicalAddress(BoardLayout.registers + offset))
        )
    }
}

extension ConformanceCase {
    static let lifecycle = [
        Self("probe finds what the identification registers say", probe),
        Self("reset leaves both queues and the SMMU on, without an error", reset),
        Self("stop switches it off; DMA then is what GBPA says", stop),
        Self("a linear stream table where there are no two levels", linearTable),
        Self("streams that firmware left running bypass from the start", firmwareStreams),
        Self("a second driver takes over an SMMU that was left on", restart),
        Self("a driver starts on an SMMU that another one stopped", startAfterStop),
        Self("CMD_SYNC is waited for by CMDQ_CONS", consumerPolling),
        Self("CMD_SYNC is completed by a message into its own entry", about: .msi, messagePolling),
    ]

    private static func probe(_ bench: any ConformanceBench) throws {
        let idr0 = try bench.register(RegisterOffset.idr0)
        let idr1 = try bench.register(RegisterOffset.idr1)
        let idr5 = try bench.register(RegisterOffset.idr5)
        let features = try Rig(bench).driver.features
        try expectEqual(features.flags.contains(.stage1), idr0 & 2 != 0, "stage 1")
        try expectEqual(features.flags.contains(.stage2), idr0 & 1 != 0, "stage 2")
        try expectEqual(features.flags.contains(.msi), idr0 >> 13 & 1 == 1, "MSI")
        try expectEqual(features.flags.contains(.twoLevelStreamTable), idr0 >> 27 & 3 == 1, "two levels")
        try expectEqual(features.flags.contains(.twoLevelCDTable), idr0 >> 19 & 1 == 1, "two levels of CDs")
        try expectEqual(features.asidBits, idr0 >> 12 & 1 == 1 ? 16 : 8, "bits of ASIDs")
        try expectEqual(features.streamIDBits, Int(idr1 & 0x3F), "bits of StreamIDs")
        try expectEqual(features.substreamIDBits, Int(idr1 >> 6 & 0x1F), "bits of SubstreamIDs")
        try expectEqual(features.commandQueueLog2, Int(idr1 >> 21 & 0x1F), "log2 of commands")
        try expectEqual(features.eventQueueLog2, Int(idr1 >> 16 & 0x1F), "log2 of events")
        try expectEqual(features.granules.count, (idr5 >> 4 & 7).nonzeroBitCount, "granules")
        try expectEqual(features.outputAddressBits, [32, 36, 40, 42, 44, 48, 52, 48][Int(idr5 & 7)], "OAS")
    }

    /// SMMUEN, EVENTQEN and CMDQEN; PRIQEN and ATSCHK where there are page requests and ATS.
    private static func enabled(_ rig: Rig) -> UInt32 {
        let flags = rig.driver.features.flags
        return 0xD | (flags.contains(.pageRequests) ? 0x2 : 0)
            | (flags.contains(.translationRequests) ? 0x10 : 0)
    }

    private static func reset(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let hasPageRequests = rig.driver.features.flags.contains(.pageRequests)
        try expectEqual(try rig.register(RegisterOffset.cr0), enabled(rig), "CR0")
        try expectEqual(try rig.register(RegisterOffset.cr0ack), enabled(rig), "CR0ACK")
        try expectEqual(try rig.register(RegisterOffset.irqCtrlack), hasPageRequests ? 7 : 5, "IRQ_CTRLACK")
        try expectEqual(try rig.register(RegisterOffset.strtabBaseCfg), 0x1_0210, "STRTAB_BASE_CFG")
        // CFGI_ALL, TLBI_EL2_ALL where there is Hyp, TLBI_NSNH_ALL, each with a CMD_SYNC.
        let count: UInt32 = rig.driver.features.flags.contains(.hypervisor) ? 6 : 4
        try expectEqual(try rig.register(RegisterOffset.cmdqProd), count, "CMDQ_PROD")
        try expectEqual(try rig.register(RegisterOffset.cmdqCons), count, "CMDQ_CONS")
        try expectEqual(
            try rig.register(RegisterOffset.gerror),
            try rig.register(RegisterOffset.gerrorn),
            "GERROR"
        )
        try expectEqual(try rig.takeEvents(), [], "events")
    }

    private static func stop(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(0)
        try rig.driver.attach(endpoint, to: rig.driver.blockedDomain)
        try rig.expectAbortsSilently(0, BoardLayout.buffers, BoardLayout.buffers)
        rig.driver.stop()
        try expectEqual(try rig.register(RegisterOffset.cr0ack), 0, "CR0ACK")
        let written = try bench.write(0, at: BoardLayout.buffers)
        try expectEqual(try rig.word(BoardLayout.buffers), written, "memory after DMA past the SMMU")
        do {
            try rig.driver.synchronize()
            throw ConformanceFailure("a driver that was stopped sends commands")
        } catch let error as SMMUDriverError {
            try expectEqual(error, .stopped, "the error")
        }
    }

    private static func linearTable(_ bench: any ConformanceBench) throws {
        // Without IDR0.ST_LEVEL: 2^16 STEs of 64 bytes.
        let rig = try Rig(bench, hiding: [RegisterOffset.idr0: 3 << 27])
        try expectEqual(try rig.register(RegisterOffset.strtabBaseCfg), 0x10, "STRTAB_BASE_CFG")
        // Every stream has an entry, which aborts.
        for requester in BoardLayout.streams.indices {
            try rig.expectAbortsSilently(requester, BoardLayout.buffers, BoardLayout.buffers)
        }
        for requester in BoardLayout.streams.indices {
            let domain = try rig.makeDomain()
            let physical = BoardLayout.buffers + UInt64(requester) << 12
            try rig.map(domain, 0x1000, to: physical)
            try rig.driver.attach(try rig.addEndpoint(requester), to: domain)
            try rig.expectReaches(requester, 0x1000, physical)
            try rig.unmap(domain, 0x1000)
            try rig.expectFaults(requester, 0x1000, physical, .fTranslation)
        }
    }

    private static func firmwareStreams(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.firmwareStreams = [StreamID(BoardLayout.streams[1])] }
        let written = try bench.write(1, at: BoardLayout.buffers)
        try expectEqual(try rig.word(BoardLayout.buffers), written, "memory after DMA of firmware's stream")
        // Its neighbours in the same level-2 table abort.
        try rig.expectAbortsSilently(0, BoardLayout.buffers, BoardLayout.buffers)
        try rig.driver.attach(try rig.addEndpoint(1), to: rig.driver.blockedDomain)
    }

    private static func restart(_ bench: any ConformanceBench) throws {
        let first = try Rig(bench)
        let old = try first.makeDomain()
        try first.map(old, 0x1000, to: BoardLayout.buffers)
        try first.driver.attach(try first.addEndpoint(0), to: old)
        try first.expectReaches(0, 0x1000, BoardLayout.buffers)
        // A kernel that crashed, and one that does not know of it: memory of its own, the SMMU still on.
        let second = try Rig(
            bench,
            frames: PhysicalFrameAllocator(
                memory: bench.access,
                ranges: [try Rig.range(BoardLayout.buffers + 0x20_0000, 0x10_0000)]
            )
        )
        try expect(
            second.messages.contains("SMMU currently enabled! Resetting..."),
            "the log says nothing of the SMMU that was on"
        )
        try expectEqual(try second.register(RegisterOffset.cr0ack), enabled(second), "CR0ACK")
        // Nothing that was cached is left: the stream has no entry any more.
        try second.expectAborts(0, 0x1000, BoardLayout.buffers)
        try second.expectEvents([.cBadStreamID], 0, 0x1000, isRead: false)
        let domain = try second.makeDomain()
        try second.map(domain, 0x1000, to: BoardLayout.buffers + 0x1000)
        try second.driver.attach(try second.addEndpoint(0), to: domain)
        try second.expectReaches(0, 0x1000, BoardLayout.buffers + 0x1000)
        try expectEqual(old.asid, domain.asid, "the ASID, which the second driver uses again")
        second.driver.stop()
        // GBPA.ABORT is what the second driver left.
        try second.expectAborts(0, BoardLayout.buffers, BoardLayout.buffers)
    }

    private static func startAfterStop(_ bench: any ConformanceBench) throws {
        for round in 0..<3 as Range<UInt64> {
            let rig = try Rig(bench)
            try expect(!rig.messages.contains("SMMU currently enabled! Resetting..."), "the SMMU is on")
            let domain = try rig.makeDomain()
            let physical = BoardLayout.buffers + round << 12
            try rig.map(domain, 0x1000, to: physical)
            try rig.driver.attach(try rig.addEndpoint(0), to: domain)
            try rig.expectReaches(0, 0x1000, physical)
            rig.driver.stop()
        }
    }

    private static func consumerPolling(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.disablesMSIPolling = true }
        _ = rig.trace.take()
        try rig.driver.synchronize()
        let actions = rig.trace.take()
        // CS = SEV, and CMDQ_CONS read.
        try expectEqual(
            actions.first,
            .command(Command(words: [0x0FC0_2046, 0])),
            "what was done first"
        )
        try expect(
            actions.contains { if case .read(RegisterOffset.cmdqCons, _) = $0 { true } else { false } },
            "CMDQ_CONS was not read"
        )
        try expectEqual(
            try rig.register(RegisterOffset.cmdqCons),
            try rig.register(RegisterOffset.cmdqProd),
            "CMDQ_CONS"
        )
    }

    private static func messagePolling(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        _ = rig.trace.take()
        try rig.driver.synchronize()
        let actions = rig.trace.take()
        let readsConsumer = actions.contains { action in
            if case .read(RegisterOffset.cmdqCons, _) = action { true } else { false }
        }
        guard case .command(let sync) = actions.first else { throw ConformanceFailure("no command") }
        guard try Capability.msi.isThere(on: bench) else {
            // The driver does not ask for a message that would never come.
            try expectEqual(sync.words[0], 0x0FC0_2046, "CMD_SYNC")
            try expect(readsConsumer, "CMDQ_CONS was not read")
            return
        }
        // CS = IRQ, MSIData 0, MSIAddr the entry itself: its first 4 bytes are zero now.
        try expectEqual(sync.words[0], 0x0FC0_1046, "CMD_SYNC")
        try expectEqual(try rig.word(sync.words[1]), 0, "the entry's first word")
        try expect(!readsConsumer, "CMDQ_CONS was read")
    }
}
