// Events, their interrupt, global errors and recovery.

import AddressSpace
import DeviceModel
import IOMMU
import SMMUv3Spec

extension ConformanceCase {
    static let errors = [
        Self("a fault interrupts, and the driver reads its record and logs it as the kernel does", event),
        Self("many faults come one after the other, across the event queue's end", manyEvents),
        Self("an event queue that is full loses records, and the driver says so and goes on", fullEventQueue),
        Self(
            "a command that does not exist: GERROR, its place taken by CMD_SYNC, and the queue goes on",
            badCommand
        ),
    ]

    private static func event(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        try rig.driver.attach(try rig.addEndpoint(0), to: try rig.makeDomain())
        let before = bench.eventQueueLine.counts.pulses
        _ = try bench.write(0, at: 0x1234_5678)
        try bench.deliverInterrupts()
        try expectEqual(bench.eventQueueLine.counts.pulses, before + 1, "how often the line pulsed")
        try rig.expectEvents([.fTranslation], 0, 0x1234_5678, isRead: false)
        let lines = rig.messages.suffix(5)
        try expectEqual(lines.first, "event 0x10 received:", "the log's line")
        // StreamID, number; address.
        try expectEqual(lines.dropFirst().first, "\t0x0000000800000010", "the record's first word")
        try expectEqual(lines.dropFirst(3).first, "\t0x0000000012345678", "the record's third word")
        try expectEqual(
            try rig.register(RegisterOffset.eventqCons),
            try rig.register(RegisterOffset.eventqProd),
            "EVENTQ_CONS"
        )
    }

    private static func manyEvents(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.queueLog2Limit = 7 }
        try rig.driver.attach(try rig.addEndpoint(0), to: try rig.makeDomain())
        var next: UInt64 = 0
        // 3 times 100 records in a queue of 128.
        for _ in 0..<3 {
            for index in 0..<100 as Range<UInt64> { _ = try bench.write(0, at: (next + index) << 12) }
            let events = try rig.takeEvents()
            try expectEqual(events.map(\.inputAddress), (next..<next + 100).map { $0 << 12 }, "the addresses")
            next += 100
        }
        try expectEqual(try rig.register(RegisterOffset.gerror), 0, "GERROR")
    }

    private static func fullEventQueue(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.queueLog2Limit = 7 }
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        for index in 0..<140 as Range<UInt64> { _ = try bench.write(0, at: index << 12) }
        try expectEqual(try rig.takeEvents().map(\.inputAddress), (0..<128).map { $0 << 12 }, "the addresses")
        let line =
            bench.deviations.contains(.fullEventQueueIsAnAbort)
            ? "EVTQ write aborted -- events may have been lost" : "EVTQ overflow detected -- events lost"
        try expect(rig.messages.contains(line), "the log does not say \(line)")
        try expectEqual(
            try rig.register(RegisterOffset.gerror),
            try rig.register(RegisterOffset.gerrorn),
            "GERROR"
        )
        // And on.
        try rig.map(domain, 0x80_0000, to: BoardLayout.buffers)
        try rig.expectReaches(0, 0x80_0000, BoardLayout.buffers)
        try rig.expectFaults(0, 0x90_0000, BoardLayout.buffers, .fTranslation)
    }

    private static func badCommand(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench) { $0.disablesMSIPolling = true }
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
        let place = try rig.register(RegisterOffset.cmdqProd)
        // The TLBI of this unmap: what it would have invalidated stays in the TLB.
        rig.access.spoilNextCommand(0x12)
        try rig.unmap(domain, 0x1000)
        let lines = rig.messages.suffix(5)
        let hex = String(0x0100_0000 | place, radix: 16)
        let cons = String(repeating: "0", count: 8 - hex.count) + hex
        try expectEqual(
            Array(lines.prefix(3)),
            [
                "unexpected global error reported (0x00000001), this could be serious",
                "CMDQ error (cons 0x\(cons)): Illegal command", "skipping command in error state:",
            ],
            "the log"
        )
        try expect(lines.dropFirst(3).first?.hasSuffix("ff") ?? false, "the log's command is \(lines)")
        try expect(bench.globalErrorLine.counts.pulses == 1, "GERROR did not interrupt once")
        try expectEqual(try rig.register(RegisterOffset.gerror), 1, "GERROR")
        try expectEqual(try rig.register(RegisterOffset.gerrorn), 1, "GERRORN")
        // The place holds a CMD_SYNC now, and what comes is consumed.
        let base = try bench.access.load(
            .doubleword,
            at: PhysicalAddress(BoardLayout.registers + RegisterOffset.cmdqBase)
        )
        let slot = base & 0x000F_FFFF_FFFF_F000 + UInt64(place & 0xFF) * 16
        try expectEqual(try rig.word(slot), 0x0FC0_2046, "the command in that place")
        try domain.flushAll()
        try rig.expectFaults(0, 0x1000, BoardLayout.buffers, .fTranslation)
        rig.access.spoilNextCommand(0x12)
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.unmap(domain, 0x1000)
        try expectEqual(bench.globalErrorLine.counts.pulses, 2, "how often GERROR interrupted")
    }
}
