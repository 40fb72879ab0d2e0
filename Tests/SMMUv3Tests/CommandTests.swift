// The command queue: which commands there are, how errors stop it, how it wraps, when it runs.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Commands")
struct CommandTests {
    /// The opcodes that this profile has; CERROR_ILL for every other.
    static let legal: Set<UInt64> = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46,
    ]

    @Test("every opcode: consumed, or CERROR_ILL at the command", arguments: 0...0xFF as ClosedRange<UInt64>)
    func opcodes(_ opcode: UInt64) throws {
        let guest = try TestGuest()
        let before = try guest.commandCons
        try guest.issue(RawCommand(low: opcode, high: 0))
        if Self.legal.contains(opcode) {
            #expect(try guest.activeErrors == 0)
            #expect(try guest.commandCons == guest.commandProd)
        } else {
            #expect(try guest.activeErrors == 1)
            #expect(try guest.commandError == 1)
            #expect(try guest.commandCons == before)
            #expect(guest.errorLine.count == 1)
        }
    }

    @Test(
        "SSec is illegal in the commands that have it",
        arguments: [0x01, 0x02, 0x03, 0x04, 0x05, 0x06] as [UInt64]
    )
    func secureStreams(_ opcode: UInt64) throws {
        let guest = try TestGuest()
        try guest.issue(RawCommand(low: opcode | 1 << 10))
        #expect(try guest.commandError == 1)
        #expect(try guest.activeErrors == 1)
    }

    @Test(
        "reserved fields are ignored",
        arguments: [
            RawCommand(low: 0x0000_0000_0000_0A46, high: 0),
            RawCommand(low: 0x30 | 0xFFFF_FFFF_FFFF_FF00, high: ~0),
            RawCommand(low: 0x10 | 0xFFFF_FFFF_FFFF_FF00, high: ~0),
            RawCommand(low: 0x11 | 0x0000_FFFF_FFFF_FF00, high: ~0),
            RawCommand(low: 0x03 | 0xFFFF_FFFF_FFFF_FB00, high: ~0),
            RawCommand(low: 0x05 | 0xFFFF_FFFF_FFFF_FB00, high: ~0),
            RawCommand(low: 0x01 | 0xFFFF_FFFF_FFFF_FB00, high: ~0),
            RawCommand(low: 0x02 | 0xFFFF_FFFF_FFFF_FB00, high: ~0),
        ]
    )
    func reservedFields(_ command: RawCommand) throws {
        let guest = try TestGuest()
        try guest.issue(command)
        #expect(try guest.activeErrors == 0)
    }

    @Test("CMD_SYNC: CS 0 and 2 complete silently, 1 pulses the line with CONS past it, 3 is illegal")
    func syncSignals() throws {
        let guest = try TestGuest()
        for cs in [0, 2] as [UInt64] {
            try guest.issue(Raw.sync(cs: cs))
            #expect(guest.syncLine.count == 0)
        }
        // MSI fields are ignored where IDR0.MSI is 0: nothing is written there.
        let address = guest.allocate(64)
        try guest.issue(RawCommand(low: 0x46 | 1 << 12 | 0xF << 24 | 0x1234_5678 << 32, high: address))
        #expect(guest.syncLine.count == 1)
        #expect(try guest.peek(address) == 0)
        #expect(try guest.commandCons == guest.commandProd)
        try guest.issue(Raw.sync(cs: 3))
        #expect(guest.syncLine.count == 1)
        #expect(try guest.commandError == 1)
    }

    @Test("range TLBIs: TG with NUM, SCALE and TTL all zero is illegal; TTL 1 with 16 KiB counts as 0")
    func reservedRanges() throws {
        for asid in [1, nil] as [UInt64?] {
            for (tg, num, scale, ttl, isLegal) in [
                (0, 0, 0, 0, true), (1, 0, 0, 0, false), (2, 0, 0, 0, false), (3, 0, 0, 0, false),
                (2, 0, 0, 1, false), (1, 0, 0, 1, true), (3, 0, 0, 1, true), (1, 0, 0, 3, true),
                (2, 0, 0, 2, true),
                (1, 1, 0, 0, true), (1, 0, 1, 0, true), (2, 1, 0, 1, true), (3, 31, 31, 0, true),
                (0, 31, 31, 3, true),
            ] as [(UInt64, UInt64, UInt64, UInt64, Bool)] {
                let guest = try TestGuest()
                try guest.issue(Raw.tlbiRange(0, asid: asid, num: num, scale: scale, ttl: ttl, tg: tg))
                #expect(
                    try guest.activeErrors == (isLegal ? 0 : 1),
                    "TG \(tg) NUM \(num) SCALE \(scale) TTL \(ttl)"
                )
            }
        }
        // Without IDR3.RIL those fields are reserved.
        var setup = GuestSetup()
        setup.identification.idr3.ril = false
        let guest = try TestGuest(setup)
        try guest.issue(Raw.tlbiRange(0, asid: 1, num: 0, scale: 0, ttl: 0, tg: 1))
        #expect(try guest.activeErrors == 0)
    }

    @Test("CFGI_CD and TLBI_NH_* are illegal without stage 1; the others are not")
    func withoutStage1() throws {
        var setup = GuestSetup()
        setup.identification.idr0.s1P = false
        setup.identification.idr0.s2P = true
        for opcode in [0x05, 0x06, 0x10, 0x11, 0x12, 0x13] as [UInt64] {
            let guest = try TestGuest(setup)
            try guest.issue(RawCommand(low: opcode))
            #expect(try guest.commandError == 1)
        }
        let guest = try TestGuest(setup)
        try guest.issue(Raw.cfgiSTE(0), Raw.tlbiNSNHAll, Raw.cfgiAll)
        #expect(try guest.activeErrors == 0)
    }

    // MARK: Errors

    @Test("CERROR_ILL: stops at the command, runs nothing more, goes on from the rewritten entry")
    func illegalCommandRecovery() throws {
        let guest = try TestGuest()
        let at = guest.commandProd
        try guest.queue(Raw.sync(cs: 1))
        try guest.queue(RawCommand(low: 0xFF))
        try guest.queue(Raw.sync(cs: 1))
        try guest.ring()
        #expect(try guest.commandCons == at + 1, "the one before was consumed")
        #expect(guest.syncLine.count == 1)
        #expect(try guest.read32(0x60) == 1)
        #expect(guest.errorLine.count == 1)
        // More commands and doorbells change nothing.
        try guest.queue(Raw.sync(cs: 1))
        try guest.ring()
        #expect(try guest.commandCons == at + 1)
        #expect(guest.syncLine.count == 1)
        #expect(guest.errorLine.count == 1)
        // As Linux recovers: a CMD_SYNC in its place, then the acknowledge.
        try guest.poke(guest.commandQueue + (at + 1) * 16, [0x2046, 0])
        try guest.write32(0x64, try guest.read32(0x60))
        #expect(try guest.commandCons == guest.commandProd)
        #expect(guest.syncLine.count == 3)
        // And once more: GERROR toggles back.
        try guest.issue(RawCommand(low: 0))
        #expect(try guest.read32(0x60) == 0)
        #expect(try guest.activeErrors == 1)
        #expect(guest.errorLine.count == 2)
        // Acknowledged without a repair it fails again.
        try guest.write32(0x64, 0)
        #expect(try guest.read32(0x60) == 1)
        #expect(guest.errorLine.count == 3)
    }

    @Test("PROD may be moved back to CONS while the error is active")
    func withdrawCommand() throws {
        let guest = try TestGuest()
        try guest.issue(RawCommand(low: 0xFE))
        guest.commandProd = try guest.commandCons
        try guest.ring()
        try guest.write32(0x64, 1)
        #expect(try guest.activeErrors == 0)
        try guest.issue(Raw.sync(cs: 1))
        #expect(guest.syncLine.count == 1)
    }

    @Test("CERROR_ABT: nobody at the queue; it goes on when the queue is there")
    func fetchAbort() throws {
        let guest = try TestGuest()
        try guest.write32(0x20, 0b0101)
        let base = try guest.read64(0x90)
        try guest.write64(0x90, 0x44_0000_0000 | 6)
        try guest.write32(0x20, 0b1101)
        try guest.queue(Raw.sync(cs: 1))
        let at = try guest.commandCons
        try guest.ring()
        #expect(try guest.commandError == 2)
        #expect(try guest.activeErrors == 1)
        #expect(try guest.commandCons == at)
        try guest.write32(0x64, 1)
        #expect(try guest.commandError == 2)
        #expect(try guest.activeErrors == 1)
        #expect(guest.errorLine.count == 2)
        try guest.write32(0x20, 0b0101)
        try guest.write64(0x90, base)
        try guest.write32(0x64, 0)
        try guest.write32(0x20, 0b1101)
        #expect(try guest.commandCons == guest.commandProd)
        #expect(guest.syncLine.count == 1)
    }

    @Test("the global error interrupt only while it is enabled")
    func errorInterruptEnable() throws {
        let guest = try TestGuest()
        try guest.write32(0x50, 0b100)
        try guest.issue(RawCommand(low: 0))
        #expect(try guest.activeErrors == 1)
        #expect(guest.errorLine.count == 0)
        try guest.write32(0x50, 0b101)
        #expect(guest.errorLine.count == 0)
    }

    // MARK: Indices

    @Test("many laps of every size", arguments: [0, 1, 2, 3, 6, 12] as [UInt64])
    func laps(_ log2: UInt64) throws {
        var setup = GuestSetup()
        setup.commandLog2 = log2
        let guest = try TestGuest(setup)
        let start = guest.syncLine.count
        let total = Int(min(5 << log2, 300) + 7)
        for index in 0..<total {
            try guest.issue(Raw.sync(cs: 1))
            #expect(guest.syncLine.count == start + index + 1)
        }
        // A full queue at once.
        for _ in 0..<(1 << min(log2, 6)) as Range<Int> { try guest.queue(Raw.sync(cs: 1)) }
        try guest.ring()
        #expect(guest.syncLine.count == start + total + 1 << min(log2, 6))
        #expect(try guest.commandCons == guest.commandProd)
    }

    @Test("indices that no queue can have are waited out")
    func inconsistentIndices() throws {
        var setup = GuestSetup()
        setup.commandLog2 = 2
        setup.boots = false
        let guest = try TestGuest(setup)
        let queue = guest.allocate(64)
        for index in 0..<4 as Range<UInt64> { try guest.poke(queue + index * 16, [0x1046, 0]) }
        try guest.write64(0x90, queue | 2)
        try guest.write32(0x9C, 2)
        try guest.write32(0x20, 0b1000)
        // CONS 2; PROD 7 (wrap 1, index 3) is 5 ahead of it, and 0 is 6 ahead.
        for prod in [7, 0, 1] as [UInt32] {
            try guest.write32(0x98, prod)
            #expect(try guest.read32(0x9C) == 2)
        }
        // Bits above the wrap flag do not count.
        try guest.write32(0x98, 0xF_FFF4)
        #expect(try guest.read32(0x9C) == 4)
        #expect(guest.syncLine.count == 2)
    }

    @Test("LOG2SIZE above IDR1.CMDQS is capped, and the base is aligned to the queue")
    func cappedSize() throws {
        var setup = GuestSetup()
        setup.identification.idr1.cmdqs = 2
        setup.boots = false
        let guest = try TestGuest(setup)
        let queue = guest.allocate(64)
        for index in 0..<4 as Range<UInt64> { try guest.poke(queue + index * 16, [0x1046, 0]) }
        try guest.write64(0x90, queue | 0x20 | 19)
        try guest.write32(0x20, 0b1000)
        try guest.write32(0x98, 4)
        #expect(try guest.read32(0x9C) == 4)
        try guest.write32(0x98, 7)
        #expect(try guest.read32(0x9C) == 7)
        #expect(guest.syncLine.count == 7)
    }

    // MARK: When it runs

    @Test("commands run with SMMUEN = 0, wait for CMDQEN, and start with it")
    func enables() throws {
        let guest = try TestGuest()
        try guest.write32(0x20, 0b1100)
        try guest.issue(Raw.sync(cs: 1))
        #expect(guest.syncLine.count == 1)
        try guest.write32(0x20, 0b0100)
        try guest.queue(Raw.sync(cs: 1))
        try guest.ring()
        #expect(guest.syncLine.count == 1)
        #expect(try guest.commandCons != guest.commandProd)
        try guest.write32(0x20, 0b1100)
        #expect(guest.syncLine.count == 2)
        #expect(try guest.commandCons == guest.commandProd)
    }

    @Test("a DMA that rings the doorbell of an inline queue does not wait for its own end")
    func doorbellByDMA() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        try tables.map(0x1000, to: TestGuest.window)
        try guest.queue(Raw.sync(cs: 1))
        var prod = UInt32(guest.commandProd)
        let port = guest.port(6)
        try withUnsafeBytes(of: &prod) { try port.write($0, at: IOVirtualAddress(0x1098), .plain) }
        #expect(try guest.commandCons == guest.commandProd)
        #expect(guest.syncLine.count == 1)
        var cons: UInt32 = 0
        try withUnsafeMutableBytes(of: &cons) {
            try port.read(at: IOVirtualAddress(0x109C), into: $0, .plain)
        }
        #expect(UInt64(cons) == guest.commandProd)
        // Half of a 32-bit register: the window refuses, the device sees a bus fault.
        let fault = #expect(throws: DMAFault.self) {
            try withUnsafeBytes(of: &prod) {
                try port.write(
                    UnsafeRawBufferPointer(rebasing: $0[..<2]),
                    at: IOVirtualAddress(0x1098),
                    .plain
                )
            }
        }
        #expect(fault?.cause == .bus(.refused(PhysicalAddress(TestGuest.window + 0x98), .unsupportedWidth)))
    }

    @Test("on a thread of its own: registers answer, the queue drains, CMDQEN off is acknowledged")
    func threadMode() throws {
        var setup = GuestSetup()
        setup.options.commandExecution = .thread
        setup.boots = false
        let guest = try TestGuest(setup)
        guest.commandQueue = guest.allocate(16 << setup.commandLog2)
        try guest.write64(0x90, guest.commandQueue | setup.commandLog2)
        try guest.write32(0x20, 0b1000)
        for _ in 0..<500 { try guest.issue(Raw.tlbiNSNHAll, Raw.cfgiAll, Raw.sync(cs: 1)) }
        while guest.syncLine.count < 500 { sched_yield() }
        try guest.write32(0x20, 0)
        while try guest.read32(0x24) != 0 { sched_yield() }
        let cons = try guest.commandCons
        try guest.queue(Raw.sync(cs: 1))
        try guest.ring()
        #expect(try guest.commandCons == cons)
        try guest.write32(0x20, 0b1000)
        try guest.waitForCommands()
        guest.smmu.stop()
        try guest.queue(Raw.sync(cs: 1))
        try guest.ring()
        #expect(try guest.commandCons != guest.commandProd, "stopped")
    }

    @Test("an SMMU whose last reference goes takes its thread with it")
    func lifetime() throws {
        for _ in 0..<20 {
            var setup = GuestSetup()
            setup.options.commandExecution = .thread
            let guest = try TestGuest(setup)
            weak let smmu = guest.smmu
            try guest.issue(Raw.sync())
            #expect(smmu != nil)
        }
    }
}
