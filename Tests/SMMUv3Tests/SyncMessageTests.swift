// A CMD_SYNC's message, by the short way within the write of SMMU_CMDQ_PROD and by the long one: they are alike.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("A CMD_SYNC's message, by either way", .serialized)
struct SyncMessageTests {
    enum Way: CaseIterable {
        case short
        /// SMMU_CR0.VMW is not 0, with which nothing is executed within the write.
        case long

        var cr0: UInt32 { self == .short ? 0b1101 : 0b1101 | 1 << 6 }
    }

    private static func statistic(_ name: String, _ guest: TestGuest) -> UInt64 {
        guest.smmu.statistics.first { $0.name == name }?.value ?? 0
    }

    /// A file that may be mapped, of so many bytes.
    private static func file(_ byteCount: Int) throws -> OwnedDescriptor {
        var path = Array("/tmp/smmud-test-XXXXXX".utf8CString)
        let file = OwnedDescriptor(adopting: mkstemp(&path))
        unlink(path)
        try #require(ftruncate(file.rawValue, off_t(byteCount)) == 0)
        return file
    }

    private static let queue: UInt64 = 0x4000_0000

    /// A guest whose command queue, of 16 entries, is at the beginning of RAM of its own.
    private static func guest(_ way: Way, _ memory: MemoryRegion, _ commands: RawCommand...) throws
        -> TestGuest
    {
        var setup = MessageTests.setup
        setup.options.commandExecution = .inline
        let guest = try TestGuest(setup)
        try guest.write32(0x20, 0b0101)
        try guest.bus.addRAM(memory, at: PhysicalAddress(queue), name: "queue")
        if memory.isWritable {
            for (index, command) in commands.enumerated() {
                try guest.poke(queue + 16 * UInt64(index), [command.low, command.high])
            }
        }
        try guest.write64(0x90, queue | 4)
        try guest.write32(0x9C, 0)
        try guest.write32(0x98, 0)
        try guest.write32(0x20, way.cr0)
        return guest
    }

    @Test(
        "commands and messages of one write take effect in their order, and each counts",
        arguments: Way.allCases
    )
    func order(_ way: Way) throws {
        let guest = try TestGuest(MessageTests.setup)
        try guest.write32(0x20, way.cr0)
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 7)
        let words = guest.allocate(64)
        for address in [0x1000, 0x2000, 0x3000] as [UInt64] {
            try tables.map(address, to: page)
            #expect(guest.dmaRead(1, address) == .ok(7))
            try tables.unmap(address)
        }
        let names = ["CMD_TLBI_NH_VA", "CMD_SYNC", "syncs", "commands"]
        let before = names.map { Self.statistic($0, guest) }
        let pulses = guest.syncLine.count
        try guest.queue(Raw.tlbiNHVA(0x1000, asid: 1))
        try guest.queue(MessageTests.sync(words, 0x11))
        // One page, as Linux has it where there are ranges: NUM and SCALE are 0, TTL is 3.
        try guest.queue(Raw.tlbiRange(0x2000, asid: 1, num: 0, scale: 0, ttl: 3, tg: 1))
        // SIG_SEV without the event is as SIG_NONE, whatever its address is.
        try guest.queue(RawCommand(low: 0x0FC0_2046 | 0x22 << 32, high: words + 4))
        try guest.queue(MessageTests.sync(words + 8, 0x33))
        try guest.ring()
        #expect(try guest.commandCons == guest.commandProd)
        #expect(try guest.peek(words) == 0x11)
        #expect(try guest.peek(words + 8) == 0x33)
        #expect(guest.syncLine.count == pulses + 2)
        #expect(zip(names, before).map { Self.statistic($0, guest) &- $1 } == [2, 3, 3, 5])
        #expect(guest.dmaRead(1, 0x1000) == .fTranslation)
        #expect(guest.dmaRead(1, 0x2000) == .fTranslation)
        #expect(guest.dmaRead(1, 0x3000) == .ok(7))
        #expect(try guest.activeErrors == 0)
    }

    @Test(
        "a range removes its pages and no others, few or many",
        arguments: Way.allCases,
        [1, 2, 31, 32, 64]
    )
    func ranges(_ way: Way, _ count: UInt64) throws {
        let guest = try TestGuest(MessageTests.setup)
        try guest.write32(0x20, way.cr0)
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 7)
        let addresses = (0..<80).map { 0x10_0000 + UInt64($0) << 12 }
        for address in addresses {
            try tables.map(address, to: page)
            #expect(guest.dmaRead(1, address) == .ok(7))
            try tables.unmap(address)
        }
        let first: UInt64 = 8
        // Up to 31 pages as they are, more as units of 32.
        let (units, scale): (UInt64, UInt64) = count < 32 ? (count, 0) : (count / 32, 5)
        try guest.queue(
            Raw.tlbiRange(addresses[Int(first)], asid: 1, num: units - 1, scale: scale, ttl: 3, tg: 1)
        )
        try guest.queue(MessageTests.sync(guest.allocate(64), 1))
        try guest.ring()
        #expect(try guest.commandCons == guest.commandProd)
        for (index, address) in addresses.enumerated() {
            let isGone = first..<first + count ~= UInt64(index)
            #expect(guest.dmaRead(1, address) == (isGone ? .fTranslation : .ok(7)), "page \(index)")
        }
    }

    @Test("the first and the last word of the queue's RAM, and those beside it", arguments: Way.allCases)
    func bounds(_ way: Way) throws {
        let end = Self.queue + 0x1000
        let guest = try Self.guest(
            way,
            try .anonymous(byteCount: 0x1000, name: "queue"),
            MessageTests.sync(end - 4, 0x0A),
            // Its own first word, as Linux has it.
            MessageTests.sync(Self.queue + 0x10, 0),
            MessageTests.sync(Self.queue, 0x0B),
            MessageTests.sync(end, 0x0C),
            MessageTests.sync(Self.queue - 4, 0x0D)
        )
        try guest.write32(0x98, 3)
        #expect(try guest.commandCons == 3)
        #expect(try guest.peek(end - 8) == 0x0A << 32)
        #expect(try guest.peek(Self.queue + 0x10) & 0xFFFF_FFFF == 0)
        #expect(try guest.peek(Self.queue) & 0xFFFF_FFFF == 0x0B)
        #expect(try guest.activeErrors == 0)
        for prod in [4, 5] as [UInt32] {
            try guest.write32(0x98, prod)
            #expect(try guest.commandCons == UInt64(prod))
            #expect(try guest.activeErrors == 1 << 4)
            try guest.write32(0x64, try guest.read32(0x60))
        }
        #expect(guest.errorLine.count == 2)
        #expect(guest.syncLine.count == 5)
        // Other RAM behind it is another's, and takes it.
        try guest.bus.addRAM(
            try .anonymous(byteCount: 0x1000, name: "next"),
            at: PhysicalAddress(end),
            name: "next"
        )
        try guest.poke(Self.queue + 5 * 16, [MessageTests.sync(end, 0x0E).low, end])
        try guest.write32(0x98, 6)
        #expect(try guest.peek(end) == 0x0E)
        #expect(try guest.activeErrors == 0)
    }

    @Test(
        "to RAM that is not to be written: MSI_CMDQ_ABT_ERR, consumed all the same",
        arguments: Way.allCases
    )
    func readOnly(_ way: Way) throws {
        let file = try Self.file(0x1000)
        var words: [UInt64] = []
        for command in [MessageTests.sync(Self.queue + 0x800, 5), Raw.sync()] {
            words += [command.low, command.high]
        }
        try #require(words.withUnsafeBytes { pwrite(file.rawValue, $0.baseAddress, $0.count, 0) } == 32)
        let memory = try MemoryRegion.mapping(
            file.duplicate(),
            offset: 0,
            byteCount: 0x1000,
            isWritable: false
        )
        let guest = try Self.guest(way, memory)
        try guest.write32(0x98, 2)
        #expect(try guest.commandCons == 2)
        #expect(try guest.commandError == 0)
        #expect(try guest.activeErrors == 1 << 4)
        #expect(guest.errorLine.count == 1)
        #expect(guest.syncLine.count == 1)
        #expect(try guest.peek(Self.queue + 0x800) == 0)
    }

    @Test(
        "to memory that a peer has truncated: MSI_CMDQ_ABT_ERR and its message, then CERROR_ABT, for all of it is lost",
        arguments: Way.allCases
    )
    func lost(_ way: Way) throws {
        let file = try Self.file(0x2000)
        let memory = try MemoryRegion.mapping(
            file.duplicate(),
            offset: 0,
            byteCount: 0x2000,
            isWritable: true
        )
        let guest = try Self.guest(way, memory, MessageTests.sync(Self.queue + 0x1000, 5), Raw.sync())
        let doorbell = try MessageTests.ring(guest)
        try MessageTests.program(guest, 0x68, MessageTests.doorbell, 0xE0)
        try #require(ftruncate(file.rawValue, 0x1000) == 0)
        try guest.write32(0x98, 1)
        #expect(try guest.commandCons == 1)
        #expect(try guest.activeErrors == 1 << 4)
        #expect(guest.errorLine.count == 1)
        #expect(guest.syncLine.count == 1)
        #expect(doorbell.messages == [.init(offset: 0, data: 0xE0, width: .word)])
        try guest.write32(0x98, 2)
        #expect(try guest.commandCons == 1)
        #expect(try guest.commandError == 2)
    }

    @Test("is not written before a transaction in flight has ended, nor is CONS moved")
    func waits() throws {
        var setup = MessageTests.setup
        setup.options.commandExecution = .thread
        let guest = try TestGuest(setup)
        let gate = try InFlightTests.addGate(guest)
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: InFlightTests.gateAddress)
        let word = guest.allocate(64)
        let smmu = guest.smmu
        let blocked = TestThread { _ = smmu.makePort(for: StreamID(5)).read64(at: 0x1000) }
        gate.entered.wait(for: 1)
        try tables.unmap(0x1000)
        let at = guest.commandProd
        try guest.queue(Raw.tlbiNHVA(0x1000, asid: 1))
        try guest.queue(MessageTests.sync(word, 0x55))
        while !smmu.commandProcessor.isIdle { sched_yield() }
        try smmu.lendingTime { try guest.ring() }
        while try guest.commandCons == at { sched_yield() }
        for _ in 0..<200 {
            #expect(try guest.peek(word) == 0)
            #expect(try guest.commandCons == at + 1)
            sched_yield()
        }
        #expect(gate.finished.current == 0)
        gate.opened.set()
        while try guest.peek(word) == 0 { sched_yield() }
        #expect(gate.finished.current == 1)
        #expect(try guest.commandCons == at + 2, "who sees the message sees CONS past the CMD_SYNC")
        blocked.join()
    }
}
