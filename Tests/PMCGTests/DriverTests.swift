// A driver as Linux's is one, from what its source does: probe, reset, start, read, interrupt, stop.

import AddressSpace
import DeviceModel
import PMCG
import Testing

/// The accesses that drivers/perf/arm_smmuv3_pmu.c makes, in its order, and its arithmetic.
///
/// Offsets are written out once more: two authors of one layout check each other.
private final class LinuxDriver {
    private let page0: PMCGPage
    private let relocated: PMCGPage
    let counterCount: UInt64
    let counterMask: UInt64
    let isFilterGlobal: Bool
    let supportedEvents: UInt64
    private var previous: [UInt64]
    private var totals: [UInt64]

    init(_ group: PMCG) throws {
        page0 = group.page0
        let cfgr = try page0.read(at: 0xE00, width: .word)
        relocated = cfgr & (1 << 20) == 0 ? page0 : try #require(group.page1)
        supportedEvents = try page0.read(at: 0xE20, width: .doubleword)
        _ = try page0.read(at: 0xE28, width: .doubleword)
        counterCount = (cfgr & 0x3F) + 1
        isFilterGlobal = cfgr & (1 << 23) != 0
        counterMask = UInt64.max >> (63 - (cfgr >> 8 & 0x3F))
        previous = Array(repeating: 0, count: Int(counterCount))
        totals = previous
        // Reset.
        try disable()
        let present = UInt64.max >> (64 - counterCount)
        try page0.write(present, at: 0xC20, width: .doubleword)
        try page0.write(present, at: 0xC60, width: .doubleword)
        try relocated.write(present, at: 0xC80, width: .doubleword)
        // Interrupt: no message unless the group has them.
        try page0.write(0, at: 0xE58, width: .doubleword)
        _ = try page0.read(at: 0xE08, width: .word)
    }

    func enable() throws {
        try page0.write(1, at: 0xE50, width: .word)
        try page0.write(1, at: 0xE04, width: .word)
    }

    func disable() throws {
        try page0.write(0, at: 0xE04, width: .word)
        try page0.write(0, at: 0xE50, width: .word)
    }

    private func place(_ index: UInt64) -> (UInt64, AccessWidth) {
        counterMask & (1 << 32) != 0 ? (index * 8, .doubleword) : (index * 4, .word)
    }

    private func setPeriod(_ index: UInt64) throws {
        let (offset, width) = place(index)
        let value = counterMask >> 1
        try relocated.write(value, at: offset, width: width)
        previous[Int(index)] = value
    }

    func update(_ index: UInt64) throws -> UInt64 {
        let (offset, width) = place(index)
        let now = try relocated.read(at: offset, width: width)
        totals[Int(index)] += (now &- previous[Int(index)]) & counterMask
        previous[Int(index)] = now
        return totals[Int(index)]
    }

    /// Adds an event with its filter and starts it; without a filter it takes every StreamID.
    func add(_ index: UInt64, _ event: UInt64, filter: (stream: UInt64, isSpan: Bool)? = nil) throws {
        if isFilterGlobal, index > 0 {
            try page0.write(event, at: 0x400 + 4 * index, width: .word)
        } else {
            let isSpan = filter?.isSpan ?? true
            try page0.write(event | (isSpan ? 1 << 29 : 0), at: 0x400 + 4 * index, width: .word)
            try page0.write(filter?.stream ?? 0xFFFF_FFFF, at: 0xA00 + 4 * index, width: .word)
        }
        totals[Int(index)] = 0
        try page0.write(1 << index, at: 0xC40, width: .doubleword)
        try setPeriod(index)
        try page0.write(1 << index, at: 0xC00, width: .doubleword)
    }

    func remove(_ index: UInt64) throws -> UInt64 {
        try page0.write(1 << index, at: 0xC20, width: .doubleword)
        let total = try update(index)
        try page0.write(1 << index, at: 0xC60, width: .doubleword)
        return total
    }

    /// The interrupt handler; false where nothing had overflowed.
    func handleInterrupt() throws -> Bool {
        let overflows = try relocated.read(at: 0xCC0, width: .doubleword)
        guard overflows != 0 else { return false }
        try relocated.write(overflows, at: 0xC80, width: .doubleword)
        for index in 0..<counterCount where overflows & (1 << index) != 0 {
            _ = try update(index)
            try setPeriod(index)
        }
        return true
    }
}

@Suite("Linux's driver")
struct DriverTests {
    @Test(
        "finds what the group has, and counts with and without a filter",
        arguments: [false, true],
        [PMCGConfiguration.CounterSize.bits32, .bits48, .bits64]
    )
    func perfStat(_ relocates: Bool, _ size: PMCGConfiguration.CounterSize) throws {
        let test = TestGroup {
            $0.relocatesCounters = relocates
            $0.counterSize = size
        }
        // Whatever was left from before.
        try test.start(7, event: 1)
        let driver = try LinuxDriver(test.group)
        #expect(driver.counterCount == 8)
        #expect(driver.counterMask == .max >> UInt64(64 - size.rawValue))
        #expect(!driver.isFilterGlobal)
        #expect(driver.supportedEvents == 0x3F)
        #expect(test.source.history.last == 0, "the reset has stopped what was counted")

        try driver.add(0, 1)
        try driver.add(1, 1, filter: (0x42, true))
        try driver.add(2, 2, filter: (0x43, false))
        try driver.add(3, 0)
        try driver.enable()
        test.source.happen(.transaction, 0x41, 10)
        test.source.happen(.transaction, 0x42, 20)
        test.source.happen(.transaction, 0x43, 30)
        test.source.happen(.tlbMiss, 0x42, 1)
        test.source.happen(.tlbMiss, 0x43, 2)
        test.timer.advance(by: 12345)
        try driver.disable()
        test.source.happen(.transaction, 0x42, 1000)
        test.timer.advance(by: 1000)
        #expect(try driver.remove(0) == 60)
        #expect(try driver.remove(1) == 50)
        #expect(try driver.remove(2) == 2)
        #expect(try driver.remove(3) == 12345)
        #expect(try test.read(0xC00, .doubleword) == 0)
        #expect(try test.read(0xC40, .doubleword) == 0)
    }

    @Test("its interrupt handler keeps a count that is larger than the counter")
    func overflow() throws {
        let test = TestGroup { $0.counterSize = .bits32 }
        let driver = try LinuxDriver(test.group)
        #expect(try !driver.handleInterrupt())
        try driver.add(0, 4)
        try driver.enable()
        let step: UInt64 = 0x3000_0000
        var interrupts = 0
        for _ in 0..<16 {
            test.source.happen(.tableWalkAccess, 0, step)
            while interrupts < test.wire.count {
                interrupts += 1
                #expect(try driver.handleInterrupt())
            }
        }
        try driver.disable()
        #expect(try driver.remove(0) == 16 * step)
        // From half, 0x80000001 counts reach 0: three steps, and half is set again. 16 steps are 5 times that.
        #expect(interrupts == 5)
    }

    @Test("one filter for all: the first event's filter is that of the others")
    func globalFilter() throws {
        let test = TestGroup { $0.hasGlobalFilter = true }
        let driver = try LinuxDriver(test.group)
        #expect(driver.isFilterGlobal)
        try driver.add(0, 1, filter: (0x10, false))
        try driver.add(1, 5)
        try driver.enable()
        for streamID: UInt32 in [0x10, 0x11] {
            test.source.happen(.transaction, streamID, 3)
            test.source.happen(.configurationAccess, streamID, 5)
        }
        #expect(try driver.update(0) == 3)
        #expect(try driver.update(1) == 5)
    }
}
