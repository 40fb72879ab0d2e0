// The SMMU's own messages (MSIs): CMD_SYNC's, the event queue's and the global error's.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

/// A doorbell that notes what is written to it.
final class Doorbell: RegisterTarget {
    struct Message: Equatable {
        var offset: UInt64
        var data: UInt64
        var width: AccessWidth
    }
    private let noted = Mutex<[Message]>([])
    var messages: [Message] { noted.withLock { $0 } }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        noted.withLock { $0.append(Message(offset: offset, data: value, width: width)) }
    }
}

@Suite("The SMMU's messages")
struct MessageTests {
    static let doorbell: UInt64 = 0x0A00_0000
    /// Nobody is there.
    static let nowhere: UInt64 = 0x44_0000_0000

    static var setup: GuestSetup {
        var setup = GuestSetup()
        setup.identification = .full()
        return setup
    }

    static func ring(_ guest: TestGuest) throws -> Doorbell {
        let doorbell = Doorbell()
        let range = try #require(AddressRange(start: Self.doorbell, byteCount: 0x1000))
        try guest.bus.addWindow(doorbell, at: range, name: "doorbell")
        return doorbell
    }

    /// CMD_SYNC, SIG_IRQ, MSH inner, MSIAttr write-back: bits 13:12, 23:22, 27:24, 63:32; the address in word 1.
    static func sync(_ address: UInt64, _ data: UInt64) -> RawCommand {
        RawCommand(low: 0x0FC0_1046 | data << 32, high: address)
    }

    @Test(
        "CMD_SYNC writes MSIData at MSIAddr, 32 bits and no more, to memory or a doorbell; the wire pulses too"
    )
    func syncMessage() throws {
        let guest = try TestGuest(Self.setup)
        let doorbell = try Self.ring(guest)
        let word = guest.allocate(64)
        try guest.poke(word, 0xAAAA_AAAA_BBBB_BBBB)
        try guest.issue(Self.sync(word + 4, 0x1234_5678))
        #expect(try guest.peek(word) == 0x1234_5678_BBBB_BBBB)
        #expect(guest.syncLine.count == 1)
        try guest.issue(Self.sync(Self.doorbell + 0x40, 0xFFFF_0009))
        #expect(doorbell.messages == [.init(offset: 0x40, data: 0xFFFF_0009, width: .word)])
        #expect(guest.syncLine.count == 2)
        // No address, no message; SIG_NONE and SIG_SEV have none.
        try guest.issue(Self.sync(0, 7))
        #expect(guest.syncLine.count == 3)
        try guest.issue(
            RawCommand(low: 0x0FC0_0046 | 5 << 32, high: word),
            RawCommand(low: 0x0FC0_2046 | 5 << 32, high: word)
        )
        #expect(try guest.peek(word) == 0x1234_5678_BBBB_BBBB)
        #expect(guest.syncLine.count == 3)
        #expect(try guest.activeErrors == 0)
    }

    @Test("a combined line has no edge for a CMD_SYNC that its message tells of, and one without a message")
    func combinedLine() throws {
        var setup = Self.setup
        setup.hasCombinedLineOnly = true
        let guest = try TestGuest(setup)
        let word = guest.allocate(64)
        try guest.issue(Self.sync(word, 0x77))
        #expect(try guest.peek(word) == 0x77)
        #expect(guest.combinedLine.count == 0)
        try guest.issue(Self.sync(0, 0x77))
        #expect(guest.combinedLine.count == 1)
    }

    @Test(
        "Linux waits for its CMD_SYNC by its own first word becoming zero",
        arguments: [SMMUv3Options.CommandExecution.inline, .thread]
    )
    func linuxPolling(_ execution: SMMUv3Options.CommandExecution) throws {
        var setup = Self.setup
        setup.options.commandExecution = execution
        setup.commandLog2 = 2
        let guest = try TestGuest(setup)
        // Several laps.
        for _ in 0..<11 {
            let entry = guest.commandQueue + (guest.commandProd & 3) * 16
            try guest.queue(Self.sync(entry, 0))
            #expect(try guest.peek(entry) & 0xFFFF_FFFF == 0x0FC0_1046)
            let prod = guest.commandProd
            try guest.ring()
            while try guest.peek(entry) & 0xFFFF_FFFF != 0 { sched_yield() }
            #expect(try guest.commandCons == prod, "who sees the message sees CONS past the CMD_SYNC")
        }
        #expect(try guest.activeErrors == 0)
    }

    @Test("CMD_SYNC's message to nobody: consumed all the same, MSI_CMDQ_ABT_ERR once and its interrupt")
    func syncAbort() throws {
        let guest = try TestGuest(Self.setup)
        try guest.issue(Self.sync(Self.nowhere, 1))
        #expect(try guest.commandCons == guest.commandProd)
        #expect(try guest.read32(0x60) == 1 << 4)
        #expect(guest.errorLine.count == 1)
        #expect(guest.syncLine.count == 1)
        // Active already: no toggle, no interrupt. The queue goes on.
        try guest.issue(Self.sync(Self.nowhere, 1), Self.sync(guest.allocate(64), 1))
        #expect(try guest.read32(0x60) == 1 << 4)
        #expect(guest.errorLine.count == 1)
        try guest.write32(0x64, 1 << 4)
        #expect(try guest.activeErrors == 0)
        try guest.issue(Self.sync(Self.nowhere, 1))
        #expect(try guest.read32(0x60) == 0, "toggled back")
        #expect(guest.errorLine.count == 2)
    }

    @Test("MSIAddr above the output size is truncated to it")
    func truncation() throws {
        let guest = try TestGuest(Self.setup)
        let word = guest.allocate(64)
        try guest.issue(Self.sync(1 << 50 | word, 0x77))
        #expect(try guest.peek(word) == 0x77)
        #expect(try guest.activeErrors == 0)
    }

    @Test(
        "IRQ_CFG0, 1 and 2 keep their bits, and take writes only while their enable is 0",
        arguments: [(0x68, 0b001), (0xB0, 0b100)] as [(UInt64, UInt32)]
    )
    func registers(_ base: UInt64, _ enable: UInt32) throws {
        var setup = Self.setup
        setup.boots = false
        let guest = try TestGuest(setup)
        try guest.write64(base, ~0)
        try guest.write64(base + 8, ~0)
        #expect(try guest.read64(base) == 0x000F_FFFF_FFFF_FFFC)
        #expect(try guest.read64(base + 8) == 0x0000_003F_FFFF_FFFF)
        // The other enable guards nothing of this.
        try guest.write32(0x50, 0b101 & ~enable)
        try guest.write64(base, 0x1_2345_6788)
        try guest.write32(base + 8, 5)
        try guest.write32(0x50, enable)
        #expect(try guest.read32(0x54) == enable)
        try guest.write64(base, 0)
        try guest.write64(base + 8, 0)
        #expect(try guest.read64(base) == 0x1_2345_6788)
        #expect(try guest.read64(base + 8) == 0x0000_003F_0000_0005)
        // GERRORN has the bits of the messages, and no others more.
        try guest.write32(0x64, ~0)
        #expect(try guest.read32(0x64) == 0b1_1111_1101)
    }

    /// Programs a message as Linux does: off, address, data and attributes, on.
    static func program(_ guest: TestGuest, _ base: UInt64, _ address: UInt64, _ data: UInt32) throws {
        try guest.write32(0x50, 0)
        try guest.write64(base, address)
        try guest.write32(base + 8, data)
        try guest.write32(base + 12, 1)
        try guest.write32(0x50, 0b101)
    }

    @Test("the event queue's message: empty to non-empty alone, with the record and PROD there before it")
    func eventMessage() throws {
        let guest = try TestGuest(Self.setup)
        let doorbell = try Self.ring(guest)
        try Self.program(guest, 0xB0, Self.doorbell + 0x40, 0x55)
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        #expect(guest.dmaRead(0x1001, 0) == .event(0x02))
        #expect(doorbell.messages == [.init(offset: 0x40, data: 0x55, width: .word)])
        #expect(guest.eventLine.count == 1)
        #expect(try guest.takeEvents().count == 2)
        try guest.write32(0x50, 0b001)
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        #expect(doorbell.messages.count == 1, "disabled")
        #expect(guest.errorLine.count == 0)
    }

    @Test("messages that nobody takes: MSI_EVENTQ_ABT_ERR interrupts, MSI_GERROR_ABT_ERR does not")
    func aborts() throws {
        let guest = try TestGuest(Self.setup)
        try Self.program(guest, 0xB0, Self.nowhere, 1)
        try Self.program(guest, 0x68, Self.nowhere + 0x1000, 2)
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        #expect(try guest.takeEvents().count == 1, "the record is there")
        // Bit 5, whose interrupt's own message aborts: bit 7.
        #expect(try guest.read32(0x60) == 0b1010_0000)
        #expect(guest.errorLine.count == 1)
        #expect(guest.dmaRead(0x1000, 0) == .event(0x02))
        #expect(try guest.read32(0x60) == 0b1010_0000, "active already")
        #expect(guest.errorLine.count == 1)
        try guest.write32(0x64, 0b1010_0000)
        #expect(try guest.read32(0x54) == 0b101)
        try guest.write32(0x50, 0)
        #expect(try guest.read32(0x54) == 0, "nothing is under way")
    }

    @Test("the global error's message comes with each error that becomes active")
    func errorMessage() throws {
        let guest = try TestGuest(Self.setup)
        let doorbell = try Self.ring(guest)
        try Self.program(guest, 0x68, Self.doorbell, 0xE0)
        try guest.issue(RawCommand(low: 0xFF))
        #expect(try guest.activeErrors == 1)
        #expect(doorbell.messages == [.init(offset: 0, data: 0xE0, width: .word)])
        try guest.write32(0x64, 1)
        #expect(doorbell.messages.count == 2, "the command fails again")
    }

    @Test("a message to the SMMU's own registers: written like any other, and nobody waits for himself")
    func ownRegisters() throws {
        let guest = try TestGuest(Self.setup)
        // The error acknowledges itself; the command fails once more and stays so: 1 is no longer GERROR's value.
        try Self.program(guest, 0x68, TestGuest.window + 0x64, 1)
        try guest.issue(RawCommand(low: 0xFF))
        #expect(try guest.read32(0x64) == 1)
        #expect(try guest.read32(0x60) == 0)
        #expect(guest.errorLine.count == 2)
    }

    @Test("IRQ_CTRLACK keeps an enable until the message that is under way has ended")
    func acknowledgement() throws {
        let guest = try TestGuest(Self.setup)
        let gate = Gate()
        try guest.bus.addWindow(
            gate,
            at: try #require(AddressRange(start: Self.doorbell, byteCount: 0x1000)),
            name: "gate"
        )
        try Self.program(guest, 0xB0, Self.doorbell, 1)
        let smmu = guest.smmu
        let sender = TestThread { _ = smmu.makePort(for: StreamID(0x1000)).read64(at: 0) }
        gate.entered.wait(for: 1)
        try guest.write32(0x50, 0)
        for _ in 0..<50 {
            #expect(try guest.read32(0x50) == 0)
            #expect(try guest.read32(0x54) == 0b100)
            try guest.write64(0xB0, 0)
            #expect(try guest.read64(0xB0) == Self.doorbell, "guarded still")
        }
        gate.opened.set()
        sender.join()
        #expect(try guest.read32(0x54) == 0)
        try guest.write64(0xB0, 0)
        #expect(try guest.read64(0xB0) == 0)
    }

    @Test(
        "SEV: with IDR0.SEV SIG_SEV pulses the event, and so does room in a full queue; without it nothing does"
    )
    func processorEvent() throws {
        for hasEvent in [true, false] {
            var identification = Identification.full()
            #expect(!identification.idr0.sev)
            identification.idr0.sev = hasEvent
            let sink = RecordingSink()
            let guest = try TestGuest(GuestSetup(identification: identification, boots: false))
            let line = InterruptLine(
                identity: InterruptIdentity(controller: "/cpus", specifier: []),
                label: "event"
            )
            line.connect(sink)
            let smmu = SMMUv3(
                name: "/smmu@1",
                identification: identification,
                options: TestGuest.inlineOptions,
                bus: guest.bus,
                interrupts: .init(processorEvent: line)
            )
            let queue = guest.allocate(64)
            try guest.poke(queue, [0x2046, 0, 0x0046, 0, 0x0046, 0, 0x0046, 0])
            try smmu.write(queue | 2, at: 0x90, width: .doubleword)
            try smmu.write(0b1000, at: 0x20, width: .word)
            try smmu.write(1, at: 0x98, width: .word)
            #expect(sink.count == (hasEvent ? 1 : 0), "SIG_SEV")
            try smmu.write(3, at: 0x98, width: .word)
            #expect(sink.count == (hasEvent ? 1 : 0), "SIG_NONE, and the queue was not full")
            // Full: 3 to 7, which passes the SIG_SEV again.
            try smmu.write(7, at: 0x98, width: .word)
            #expect(try smmu.read(at: 0x9C, width: .word) == 7)
            #expect(sink.count == (hasEvent ? 3 : 0))
        }
    }

    @Test(
        "the option processor-events sets IDR0.SEV, and each event is counted; without it SIG_SEV is SIG_NONE"
    )
    func processorEventOption() throws {
        for sends in [true, false] {
            var options = TestGuest.inlineOptions
            try options.set("processor-events=\(sends ? "yes" : "no")")
            let guest = try TestGuest(GuestSetup(identification: .full(), options: options))
            #expect(try guest.read32(0x0) >> 14 & 1 == (sends ? 1 : 0))
            try guest.issue(RawCommand(low: 0x2046, high: 0), RawCommand(low: 0x46, high: 0))
            #expect(try guest.activeErrors == 0)
            #expect(try guest.commandCons == guest.commandProd, "both are consumed")
            let count = guest.smmu.statistics.first { $0.name == "processor-events" }?.value
            #expect(count == (sends ? 1 : 0))
        }
    }
}
