// What a port remembers is of the transactions that it was found for, and of the memory that was there.

import AddressSpace
import DeviceModel
import GuestMemory
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("What a port remembers")
struct PortMemoryTests {
    @Test("a page that only some may use is judged for each transaction, whoever was there before")
    func attributesInTurn() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        let page = try guest.page(holding: 7)
        let privileged = TransactionAttributes(isPrivileged: true)
        let fetch = TransactionAttributes(isInstruction: true)
        // AP 00 with UXN: privileged data only.
        try tables.map(0x1000, to: page, Leaf.af | Leaf.nG | 1 << 54)
        // AP 11: everybody reads and fetches, nobody writes.
        try tables.map(0x2000, to: page, Leaf.af | Leaf.nG | 0b11 << 6)
        for _ in 0..<3 {
            #expect(guest.dmaRead(6, 0x1000, privileged) == .ok(7))
            #expect(guest.dmaRead(6, 0x1000) == .fPermission)
            #expect(guest.dmaRead(6, 0x1000, fetch) == .fPermission)
            #expect(guest.dmaWrite(6, 0x1000, 7) == .fPermission)
            #expect(guest.dmaWrite(6, 0x1000, 7, privileged) == .ok(0))
            #expect(guest.dmaRead(6, 0x2000) == .ok(7))
            #expect(guest.dmaWrite(6, 0x2000, 8) == .fPermission)
            #expect(guest.dmaRead(6, 0x2000, fetch) == .ok(7))
            #expect(guest.dmaWrite(6, 0x2000, 8, privileged) == .fPermission)
        }
        #expect(try guest.peek(page) == 7)
    }

    @Test("RAM that was taken away, and other RAM in its place", arguments: [0, 64])
    func replacedMemory(_ tlbEntries: Int) throws {
        var setup = GuestSetup()
        setup.options.tlbEntries = tlbEntries
        let guest = try TestGuest(setup)
        let tables = try guest.attachTables(6)
        let base: UInt64 = 0xA000_0000
        let range = try #require(AddressRange(start: base, byteCount: 0x4000))
        for page in 0..<4 as Range<UInt64> {
            try tables.map(0x1_0000 + page << 12, to: base + page << 12)
        }
        for round in 1...4 as ClosedRange<UInt64> {
            let memory = try MemoryRegion.anonymous(byteCount: 0x4000, name: "round \(round)")
            try guest.bus.addRAM(memory, at: PhysicalAddress(base), name: "round \(round)")
            for page in 0..<4 as Range<UInt64> { try guest.poke(base + page << 12, round << 8 | page) }
            // Another page first in each round: its memory is what the port found last for another.
            for step in 0..<4 as Range<UInt64> {
                let page = (step + round) & 3
                for _ in 0..<2 {
                    #expect(guest.dmaRead(6, 0x1_0000 + page << 12) == .ok(round << 8 | page))
                }
            }
            #expect(guest.bus.removeRAM(at: range) != nil)
            let page = (round + 3) & 3
            #expect(guest.dmaRead(6, 0x1_0000 + page << 12) == .nobody(base + page << 12))
        }
    }

    @Test("the attributes of a transaction are one word, laid out as it says")
    func attributeBits() {
        #expect(TransactionAttributes.plain.bits == 0)
        #expect(TransactionAttributes(substreamID: SubstreamID(0)).bits == 0x1_0000_0000)
        #expect(TransactionAttributes(substreamID: SubstreamID(0xF_FFFF)).bits == 0x1_000F_FFFF)
        #expect(TransactionAttributes(isTranslated: true).bits == 0x2_0000_0000)
        #expect(TransactionAttributes(isPrivileged: true).bits == 0x4_0000_0000)
        #expect(TransactionAttributes(isInstruction: true).bits == 0x8_0000_0000)
        #expect(TransactionAttributes(isMessage: true).bits == 0x10_0000_0000)
        var attributes = TransactionAttributes(
            substreamID: SubstreamID(5),
            isPrivileged: true,
            isInstruction: true,
            isTranslated: true,
            isMessage: true
        )
        #expect(attributes.bits == 0x1F_0000_0005)
        #expect(attributes.substreamID == SubstreamID(5))
        attributes.substreamID = nil
        #expect(attributes.bits == 0x1E_0000_0000)
        #expect(attributes.substreamID == nil)
        attributes.isPrivileged = false
        #expect(!attributes.isPrivileged && attributes.isInstruction && attributes.isTranslated)
        #expect(attributes.bits == 0x1A_0000_0000)
    }
}
