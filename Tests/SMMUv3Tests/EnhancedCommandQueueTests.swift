// Enhanced command queues: each by itself as SMMU_CMDQ is, and their errors. VMID wildcards.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// One enhanced command queue, as a driver has it.
final class TestECMDQ {
    let guest: TestGuest
    let registers: UInt64
    let entries: UInt64
    let log2: UInt64
    var prod: UInt64 = 0

    init(_ guest: TestGuest, _ number: UInt64, log2: UInt64 = 4) throws {
        self.guest = guest
        self.log2 = log2
        // Sixteen queues in 64 KiB, in the last page of a window of 512 KiB.
        registers = 0x7_0000 + number * 0x1000
        entries = guest.allocate(16 << log2)
        try guest.smmu.write(1 << 62 | entries | log2, at: registers, width: .doubleword)
        try write(8, 1 << 31)
    }

    func read(_ offset: UInt64) throws -> UInt64 { try guest.smmu.read(at: registers + offset, width: .word) }
    func write(_ offset: UInt64, _ value: UInt64) throws {
        try guest.smmu.write(value, at: registers + offset, width: .word)
    }

    func queue(_ command: RawCommand) throws {
        let slot = entries + (prod & ((1 << log2) - 1)) * 16
        try guest.poke(slot, [command.low, command.high])
        prod = (prod + 1) & ((2 << log2) - 1)
    }

    func issue(_ commands: RawCommand...) throws {
        for command in commands {
            try queue(command)
            try write(8, try read(8) & 0x8080_0000 | prod)
        }
    }

    var cons: UInt64 { get throws { try read(12) & 0xF_FFFF } }
}

@Suite("Enhanced command queues")
struct EnhancedCommandQueueTests {
    static func guest(_ execution: SMMUv3Options.CommandExecution = .inline) throws -> TestGuest {
        try TestGuest.full { setup in
            setup.identification.addOptionalPages(within: 0x8_0000)
            setup.options.commandExecution = execution
        }
    }

    @Test(
        "what is there: IDR1.ECMDQ, IDR6, the control page's three registers, and where there is no queue zero"
    )
    func discovery() throws {
        let guest = try Self.guest()
        #expect(try guest.read32(0x4) & 1 << 31 != 0)
        #expect(try guest.read32(0x190) == 0x0004_0000)
        #expect(try guest.read64(0x4000) == 0x7_0003)
        #expect(try guest.read64(0x4008) == 0x1_0000_0001)
        #expect(try guest.read64(0x4020) == 0)
        try guest.write64(0x4000, 0)
        #expect(try guest.read64(0x4000) == 0x7_0003)
        for offset in [0x7_0010, 0x7_0FF8, 0x7_1010] as [UInt64] {
            try guest.smmu.write(~0, at: offset, width: .word)
            #expect(try guest.smmu.read(at: offset, width: .word) == 0)
        }
        let without = try TestGuest.full()
        #expect(try without.read32(0x190) == 0)
        #expect(try without.read64(0x4000) == 0)
        #expect(try without.smmu.read(at: 0x7_0000, width: .word) == 0)
    }

    @Test("registers: writable bits, and who may write what while the queue is on")
    func registers() throws {
        let guest = try Self.guest()
        let base: UInt64 = 0x7_3000
        try guest.smmu.write(~0, at: base, width: .doubleword)
        #expect(try guest.smmu.read(at: base, width: .doubleword) == 0x400F_FFFF_FFFF_FFFF)
        try guest.smmu.write(0x7FFF_FFFF, at: base + 8, width: .word)
        #expect(try guest.smmu.read(at: base + 8, width: .word) == 0x008F_FFFF)
        try guest.smmu.write(0xFFFF_FFFF, at: base + 12, width: .word)
        // RD has no bits above the wrap bit of 2^12 entries.
        #expect(try guest.smmu.read(at: base + 12, width: .word) == 0x0780_1FFF)
        try guest.smmu.write(0, at: base + 8, width: .word)
        try guest.smmu.write(0, at: base + 12, width: .word)
        let queue = try TestECMDQ(guest, 3)
        #expect(try queue.read(12) == 1 << 31, "ENACK follows EN")
        try guest.smmu.write(0, at: base, width: .doubleword)
        try queue.write(12, 5)
        #expect(try guest.smmu.read(at: base, width: .doubleword) == 1 << 62 | queue.entries | 4)
        #expect(try queue.cons == 0)
        try guest.write32(0x20, 0)
        let cr1 = try guest.read32(0x28)
        try guest.write32(0x28, 0)
        #expect(try guest.read32(0x28) == cr1 & 0x3F, "QUEUE_* are in use")
        try queue.write(8, 0)
        #expect(try queue.read(12) == 0, "ENACK follows EN")
        try guest.write32(0x28, 0)
        #expect(try guest.read32(0x28) == 0)
    }

    @Test("the same commands as SMMU_CMDQ's, in laps; each queue by itself")
    func laps() throws {
        let guest = try Self.guest()
        let tables = try guest.attachTables(3)
        let queues = try (0..<16).map { try TestECMDQ(guest, $0, log2: 1) }
        let pages = try (0..<2).map { try guest.page(holding: UInt64($0) + 1) }
        for lap in 0..<10 {
            for (number, queue) in queues.enumerated() {
                try tables.map(0x1000, to: pages[(lap + number) % 2])
                try queue.issue(Raw.tlbiNHVA(0x1000, asid: 1), Raw.sync())
                #expect(try queue.cons == queue.prod)
                #expect(guest.dmaRead(3, 0x1000) == .ok(UInt64((lap + number) % 2) + 1))
            }
        }
        #expect(try guest.activeErrors == 0)
    }

    @Test("CMD_SYNC of a queue: message and wire, CONS past it")
    func sync() throws {
        let guest = try Self.guest()
        let queue = try TestECMDQ(guest, 7)
        let address = guest.allocate(64)
        try queue.issue(RawCommand(low: 0x46 | 1 << 12 | 0xABCD << 32, high: address))
        #expect(try guest.peek(address) == 0xABCD)
        #expect(guest.syncLine.count == 1)
        #expect(try queue.cons == 1)
    }

    @Test("an illegal command stops its queue alone: ERR, ERR_REASON, CMDQP_ERR; ERRACK lets it go on")
    func illegalCommand() throws {
        let guest = try Self.guest()
        let bad = try TestECMDQ(guest, 0)
        let good = try TestECMDQ(guest, 1)
        try bad.issue(Raw.sync(), RawCommand(low: 0xFF), Raw.sync())
        #expect(try bad.read(12) == 1 << 31 | 1 << 24 | 1 << 23 | 1)
        #expect(try guest.activeErrors == 1 << 9)
        #expect(guest.errorLine.count == 1)
        try good.issue(Raw.sync())
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(try good.cons == 1)
        // A second error while CMDQP_ERR is active is told by its queue alone.
        try good.issue(RawCommand(low: 0xFF))
        #expect(try good.read(12) == 1 << 31 | 1 << 24 | 1 << 23 | 1)
        #expect(guest.errorLine.count == 1)
        // The acknowledgement of the global error starts nothing.
        try guest.write32(0x64, try guest.read32(0x60))
        #expect(try guest.activeErrors == 0)
        #expect(try bad.cons == 1)
        try guest.poke(bad.entries + 16, [Raw.sync().low, 0])
        try bad.write(8, 1 << 31 | 1 << 23 | bad.prod)
        #expect(try bad.cons == 3)
        // ERR stays as it is: the next error toggles it back.
        try bad.issue(RawCommand(low: 0xFF))
        #expect(try bad.read(12) == 1 << 31 | 1 << 24 | 3)
        #expect(try guest.activeErrors == 1 << 9)
        #expect(guest.errorLine.count == 2)
    }

    @Test("a fetch that aborts is CERROR_ABT; a queue that an error stops can still be switched off")
    func fetchAbort() throws {
        let guest = try Self.guest()
        let queue = try TestECMDQ(guest, 2)
        try queue.write(8, 0)
        try guest.smmu.write(0x7000_0004, at: queue.registers, width: .doubleword)
        try queue.write(8, 1 << 31 | 1)
        #expect(try queue.read(12) == 1 << 31 | 2 << 24 | 1 << 23)
        try queue.write(8, 1)
        #expect(try queue.read(12) == 2 << 24 | 1 << 23)
        // Consistent again, and on.
        try guest.smmu.write(queue.entries | 4, at: queue.registers, width: .doubleword)
        try guest.poke(queue.entries, [Raw.sync().low, 0])
        try queue.write(8, 1 << 23 | 1)
        try queue.write(8, 1 << 31 | 1 << 23 | 1)
        #expect(try queue.cons == 1)
    }

    @Test("on a thread, from many threads: every queue's commands are executed")
    func threads() throws {
        let guest = try Self.guest(.thread)
        let queues = try (0..<4).map { try TestECMDQ(guest, UInt64($0)) }
        for _ in 0..<50 {
            for queue in queues {
                try queue.issue(Raw.tlbiNSNHAll, Raw.sync())
            }
            for queue in queues {
                while try queue.cons != queue.prod { sched_yield() }
            }
        }
        #expect(try guest.activeErrors == 0)
    }

    @Test("a reset clears every queue")
    func reset() throws {
        let guest = try Self.guest()
        let queue = try TestECMDQ(guest, 5)
        try queue.issue(Raw.sync())
        guest.smmu.reset()
        for offset in stride(from: 0, to: 16, by: 4) as StrideTo<UInt64> {
            #expect(try queue.read(offset) == 0)
        }
    }
}

@Suite("VMID wildcards")
struct VMIDWildcardTests {
    @Test("CR0.VMW: invalidations ignore that many low bits of VMIDs; reserved values none", arguments: 0...7)
    func invalidation(_ vmw: UInt32) throws {
        for command in [
            Raw.tlbiS12VMAll(0x10), Raw.tlbiNHAll(vmid: 0x10), Raw.tlbiNHASID(vmid: 0x10, 1),
            Raw.tlbiNHVA(vmid: 0x10, 0x1000, asid: 1), Raw.tlbiNHVAA(vmid: 0x10, 0x1000),
        ] {
            let guest = try TestGuest.full()
            let old = try guest.page(holding: 1)
            let new = try guest.page(holding: 2)
            let vmids: [UInt64] = [0x10, 0x11, 0x12, 0x14, 0x18, 0x20, 0x1F]
            for (stream, vmid) in vmids.enumerated() {
                let tables = try guest.attachTables(UInt64(stream))
                try guest.setSTE(
                    UInt64(stream),
                    STEWords(s1ContextPtr: try #require(guest.contexts[UInt64(stream)]), s2VMID: vmid)
                )
                try tables.map(0x1000, to: old)
                #expect(guest.dmaRead(UInt32(stream), 0x1000) == .ok(1))
                try tables.map(0x1000, to: new)
            }
            try guest.write32(0x20, 0b1101 | vmw << 6)
            #expect(try guest.read32(0x24) == 0b1101 | vmw << 6)
            try guest.sync(command)
            let ignored: UInt64 = vmw <= 4 ? (1 << UInt64(vmw)) - 1 : 0
            for (stream, vmid) in vmids.enumerated() {
                let isMatched = vmid & ~ignored == 0x10 & ~ignored
                #expect(guest.dmaRead(UInt32(stream), 0x1000) == .ok(isMatched ? 2 : 1), "VMID \(vmid)")
            }
        }
    }

    @Test("without IDR0.VMW the field is RES0")
    func withoutWildcards() throws {
        let guest = try TestGuest()
        try guest.write32(0x20, 0b1101 | 4 << 6)
        #expect(try guest.read32(0x20) == 0b1101)
        #expect(try guest.read32(0x24) == 0b1101)
    }
}
