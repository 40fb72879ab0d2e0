// Overflow: its status, its interrupt by wire or message, and what it captures.

import AddressSpace
import DeviceModel
import PMCG
import Synchronization
import Testing

@Suite("Overflow, interrupt and capture", .timeLimit(.minutes(20)))
struct OverflowTests {
    @Test(
        "a counter of every size wraps to 0 and sets its OVS, and counts on",
        arguments: PMCGConfiguration.CounterSize.allCases
    )
    func wraps(_ size: PMCGConfiguration.CounterSize) throws {
        let test = TestGroup { $0.counterSize = size }
        let largest = UInt64.max >> UInt64(64 - size.rawValue)
        let place: UInt64 = size == .bits32 ? 4 : 8
        let width: AccessWidth = size == .bits32 ? .word : .doubleword
        try test.start(1, event: 1)
        try test.write(place, largest, width)
        #expect(try test.read(0xC80, .doubleword) == 0)
        test.source.happen(.transaction)
        #expect(try test.read(place, width) == 0)
        #expect(try test.read(0xC80, .doubleword) == 0b10)
        #expect(try test.read(0xCC0, .doubleword) == 0b10)
        test.source.happen(.transaction, 0, 5)
        #expect(try test.read(place, width) == 5)
        try test.write(0xC80, 0b10, .doubleword)
        #expect(try test.read(0xCC0, .doubleword) == 0)
        try test.write(place, largest - 1, width)
        test.source.happen(.transaction, 0, 4)
        #expect(try test.read(place, width) == 2, "it passes 0")
        #expect(try test.read(0xC80, .doubleword) == 0b10)
    }

    @Test("the wire pulses where INTEN and IRQEN are set, also where OVS was set already")
    func interrupt() throws {
        let test = TestGroup()
        try test.start(0, event: 1)
        func overflow() throws {
            try test.write(0, .max, .doubleword)
            test.source.happen(.transaction)
        }
        try overflow()
        #expect(test.wire.count == 0, "neither enable is set")
        try test.write(0xE50, 1)
        #expect(try test.read(0xE54) == 1)
        try overflow()
        #expect(test.wire.count == 0, "INTEN is clear")
        try test.write(0xC40, 1, .doubleword)
        #expect(test.wire.count == 0, "an overflow that was is over")
        try overflow()
        #expect(test.wire.count == 1)
        #expect(try test.read(0xC80, .doubleword) == 1)
        try overflow()
        #expect(test.wire.count == 2)
        try test.write(0xE50, 0)
        #expect(try test.read(0xE54) == 0)
        try overflow()
        #expect(test.wire.count == 2, "IRQEN is clear")
        try test.write(0xE50, 1)
        try test.write(0xC60, 1, .doubleword)
        try overflow()
        #expect(test.wire.count == 2, "INTEN is clear again")
    }

    @Test("counters that overflow with one event interrupt once, those with two events twice")
    func merged() throws {
        let test = TestGroup()
        try test.start(0, event: 1)
        try test.start(1, event: 1)
        try test.start(2, event: 2)
        try test.write(0xC40, 0b111, .doubleword)
        try test.write(0xE50, 1)
        for index in UInt64(0)..<3 { try test.write(8 * index, .max, .doubleword) }
        test.source.happen(.transaction)
        #expect(test.wire.count == 1)
        #expect(try test.read(0xC80, .doubleword) == 0b11)
        test.source.happen(.tlbMiss)
        #expect(test.wire.count == 2)
        #expect(try test.read(0xC80, .doubleword) == 0b111)
    }

    @Test("OVSSET sets the status without an interrupt or a capture")
    func softwareOverflow() throws {
        let test = TestGroup()
        try test.start(0, event: 1 | 1 << 31)
        try test.write(0xC40, 1, .doubleword)
        try test.write(0xE50, 1)
        try test.write(0, 5, .doubleword)
        try test.write(0xCC0, 1, .doubleword)
        #expect(try test.read(0xC80, .doubleword) == 1)
        #expect(test.wire.count == 0)
        #expect(try test.read(0x600, .doubleword) == 0)
    }

    // MARK: Capture

    @Test("CAPR copies every counter to its shadow, and reads as 0")
    func capture() throws {
        let test = TestGroup()
        for index in UInt64(0)..<8 { try test.write(8 * index, index * 0x1_0000_0001, .doubleword) }
        try test.write(0xD88, 0)
        #expect(try test.read(0x608, .doubleword) == 0)
        try test.write(0xD88, 1)
        #expect(try test.read(0xD88) == 0)
        try test.write(8, 99, .doubleword)
        for index in UInt64(0)..<8 {
            #expect(try test.read(0x600 + 8 * index, .doubleword) == index * 0x1_0000_0001)
        }
        try test.write(0x608, 1, .doubleword)
        #expect(try test.read(0x608, .doubleword) == 0x1_0000_0001, "shadows are read-only")
    }

    @Test(
        "an overflow with OVFCAP captures all, the one that overflowed after it has wrapped, cycles included"
    )
    func overflowCapture() throws {
        let test = TestGroup()
        try test.start(0, event: 1 | 1 << 31)
        try test.start(1, event: 2)
        try test.start(2, event: 0)
        try test.write(0, .max - 1, .doubleword)
        test.source.happen(.tlbMiss, 0, 7)
        test.source.happen(.transaction)
        #expect(try test.read(0x608, .doubleword) == 0, "no overflow yet")
        test.timer.advance(by: 50)
        test.source.happen(.transaction, 0, 3)
        test.timer.advance(by: 50)
        test.source.happen(.tlbMiss)
        #expect(try test.read(0x600, .doubleword) == 2)
        #expect(try test.read(0x608, .doubleword) == 7)
        #expect(try test.read(0x610, .doubleword) == 50)
        #expect(try test.counter(1) == 8)
        #expect(try test.counter(2) == 100)
        // Counter 1 has no OVFCAP.
        try test.write(8, .max, .doubleword)
        test.source.happen(.tlbMiss)
        #expect(try test.read(0x608, .doubleword) == 7)
    }

    // MARK: Cycles

    @Test("a counter of cycles interrupts when its time has come, not when somebody looks")
    func cycleInterrupt() throws {
        let test = TestGroup { $0.counterSize = .bits32 }
        try test.write(0x400, 0)
        try test.write(0xC00, 1, .doubleword)
        try test.write(0, 0xFFFF_FF00)
        try test.write(0xE04, 1)
        #expect(test.timer.deadline == nil, "nothing would come of it")
        try test.write(0xC40, 1, .doubleword)
        #expect(test.timer.deadline == nil)
        try test.write(0xE50, 1)
        #expect(test.timer.deadline == 1000 + 0x100)
        test.timer.advance(by: 0xFF)
        #expect(test.wire.count == 0)
        test.timer.advance(by: 1)
        #expect(test.wire.count == 1)
        #expect(test.timer.deadline == 1000 + 0x100 + 0x1_0000_0000, "and the next round")
        #expect(try test.read(0xC80, .doubleword) == 1)
        try test.write(0, 0xFFFF_FFFF)
        #expect(test.timer.deadline == 1000 + 0x101)
        try test.write(0xE04, 0)
        #expect(test.timer.deadline == nil)
        test.timer.advance(by: 1000)
        #expect(test.wire.count == 1)
    }

    @Test("a counter of cycles with OVFCAP captures when its time has come")
    func cycleCapture() throws {
        let test = TestGroup()
        try test.start(0, event: 0 | 1 << 31)
        try test.start(1, event: 1)
        try test.write(0, .max - 9, .doubleword)
        test.source.happen(.transaction, 0, 4)
        test.timer.advance(by: 10)
        test.source.happen(.transaction)
        #expect(try test.read(0x600, .doubleword) == 0)
        #expect(try test.read(0x608, .doubleword) == 4)
    }

    @Test("the host's clock wakes the group by itself")
    func hostTimer() throws {
        let wire = PulseCounter()
        let line = InterruptLine(
            identity: InterruptIdentity(controller: "/intc", specifier: [0]),
            label: "overflow"
        )
        line.connect(wire)
        let group = PMCG(name: "/pmu", source: nil, interrupt: line)
        let page = group.page0
        // 584 years first: they must not be in the way.
        try page.write(1, at: 0xC40, width: .doubleword)
        try page.write(1, at: 0xE50, width: .word)
        try page.write(1, at: 0xC00, width: .doubleword)
        try page.write(1, at: 0xE04, width: .word)
        for round in 1...3 {
            try page.write(UInt64.max - 200_000, at: 0, width: .doubleword)
            wire.arrival.wait()
            #expect(wire.count == round)
            #expect(try page.read(at: 0xC80, width: .doubleword) == 1)
        }
        group.stop()
    }

    @Test("a group that goes while its clock's thread sleeps takes the thread along")
    func endOfTimer() throws {
        weak var weakGroup: PMCG?
        do {
            let group = PMCG(name: "/pmu", source: nil)
            weakGroup = group
            let page = group.page0
            try page.write(1 << 31, at: 0x400, width: .word)
            try page.write(1, at: 0xC00, width: .doubleword)
            try page.write(1, at: 0xE04, width: .word)
            // An hour.
            try page.write(UInt64.max - 3_600_000_000_000, at: 0, width: .doubleword)
        }
        #expect(weakGroup == nil)
    }

    // MARK: Messages

    /// A group whose counter 0 interrupts by message.
    private func messageGroup() throws -> TestGroup {
        let test = TestGroup(hasMSI: true)
        try test.write(0xE58, 0x1_8001_0040, .doubleword)
        try test.write(0xE60, 0x4E)
        try test.write(0xE64, 1)
        try test.start(0, event: 1)
        try test.write(0xC40, 1, .doubleword)
        try test.write(0xE50, 1)
        return test
    }

    private func overflow(_ test: TestGroup) throws {
        try test.write(0, .max, .doubleword)
        test.source.happen(.transaction)
    }

    @Test("a message goes where IRQ_CFG0 says in place of the pulse; with address 0 the wire pulses")
    func message() throws {
        let test = try messageGroup()
        try overflow(test)
        #expect(test.doorbell.received == [.init(data: 0x4E, address: 0x1_8001_0040)])
        #expect(test.wire.count == 0)
        #expect(try test.read(0xE68) == 0)
        try test.write(0xE50, 0)
        try test.write(0xE58, 0, .doubleword)
        try test.write(0xE50, 1)
        try overflow(test)
        #expect(test.doorbell.received.count == 1)
        #expect(test.wire.count == 1)
    }

    @Test("where messages go cannot be changed while IRQEN is set")
    func guardedMessage() throws {
        let test = try messageGroup()
        for offset in stride(from: UInt64(0xE58), to: 0xE68, by: 4) { try test.write(offset, 0xFFFF_FFFF) }
        #expect(try test.read(0xE58, .doubleword) == 0x1_8001_0040)
        #expect(try test.read(0xE60) == 0x4E)
        #expect(try test.read(0xE64) == 1)
        try test.write(0xE50, 0)
        try test.write(0xE60, 0x4F)
        #expect(try test.read(0xE60) == 0x4F)
    }

    @Test("an aborted message sets IRQ_ABT until IRQEN is set again")
    func abortedMessage() throws {
        let test = try messageGroup()
        test.doorbell.fail(.unassigned(PhysicalAddress(0x1_8001_0040)))
        try overflow(test)
        #expect(try test.read(0xE68) == 1)
        test.doorbell.fail(nil)
        try test.write(0xE50, 1)
        #expect(try test.read(0xE68) == 1, "it was set already")
        try test.write(0xE50, 0)
        #expect(try test.read(0xE68) == 1)
        try test.write(0xE50, 1)
        #expect(try test.read(0xE68) == 0)
    }

    @Test("IRQEN that is cleared stays acknowledged as set until the last message has arrived")
    func acknowledgement() throws {
        let test = try messageGroup()
        let page = test.page0
        let seen = Mutex<[UInt64]>([])
        test.doorbell.meanwhile {
            try? page.write(0, at: 0xE50, width: .word)
            // Guarded by the acknowledgement too.
            try? page.write(0x99, at: 0xE60, width: .word)
            for offset: UInt64 in [0xE50, 0xE54, 0xE60] {
                let value = try? page.read(at: offset, width: .word)
                seen.withLock { $0.append(value ?? .max) }
            }
        }
        try overflow(test)
        #expect(seen.withLock { $0 } == [0, 1, 0x4E])
        #expect(try test.read(0xE54) == 0)
    }

    @Test("a message to the group's own registers is a write like any other")
    func messageToItself() throws {
        let test = try messageGroup()
        let page = test.page0
        test.doorbell.meanwhile { try? page.write(0x4E, at: 0xCC0, width: .word) }
        try overflow(test)
        #expect(try test.read(0xC80, .doubleword) == 0x4F)
    }
}
