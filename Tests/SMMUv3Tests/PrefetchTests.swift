// CMD_PREFETCH_CONFIG and CMD_PREFETCH_ADDR fill the caches, and leave nothing else behind.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

extension Raw {
    static func prefetchConfig(_ streamID: UInt64, substream: UInt64? = nil) -> RawCommand {
        RawCommand(low: 0x01 | streamID << 32 | (substream.map { 1 << 11 | $0 << 12 } ?? 0))
    }

    static func prefetchAddress(
        _ streamID: UInt64,
        _ address: UInt64,
        size: UInt64 = 0,
        stride: UInt64 = 0,
        substream: UInt64? = nil
    ) -> RawCommand {
        RawCommand(
            low: 0x02 | streamID << 32 | (substream.map { 1 << 11 | $0 << 12 } ?? 0),
            high: address | stride << 5 | size
        )
    }
}

extension TestGuest {
    func statistic(_ name: String) -> UInt64 {
        smmu.statistics.first { $0.name == name }?.value ?? .max
    }
}

@Suite("Prefetch")
struct PrefetchTests {
    @Test("CMD_PREFETCH_CONFIG: the STE and CD are cached as they were then")
    func configuration() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3)
        try tables.map(0x1000, to: try guest.page(holding: 5))
        try guest.issue(Raw.prefetchConfig(3))
        #expect(guest.statistic("config-resident-stes") == 1)
        #expect(guest.statistic("config-resident-cds") == 1)
        #expect(guest.statistic("tlb-resident") == 0)
        // Without invalidation, what was there is what counts.
        try guest.poke(try guest.steAddress(3), 0)
        try guest.poke(try #require(guest.contexts[3]), 0)
        #expect(guest.dmaRead(3, 0x1000) == .ok(5))
        try guest.sync(Raw.cfgiSTE(3))
        #expect(guest.dmaRead(3, 0x1000) == .event(0x04))
    }

    @Test("CMD_PREFETCH_ADDR: 2^Size addresses, 2^(12+Stride) bytes apart, as the TLB shows")
    func addresses() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3)
        let old = try guest.page(holding: 1)
        let new = try guest.page(holding: 2)
        for page in 0..<64 as Range<UInt64> { try tables.map(page << 12, to: old) }
        // Eight addresses from page 4 on, every second page.
        try guest.issue(Raw.prefetchAddress(3, 0x4000, size: 3, stride: 1))
        #expect(guest.statistic("tlb-resident") == 8)
        for page in 0..<64 as Range<UInt64> { try tables.map(page << 12, to: new) }
        for page in 0..<64 as Range<UInt64> {
            let isCached = page % 2 == 0 && (4..<20).contains(page)
            #expect(guest.dmaRead(3, page << 12) == .ok(isCached ? 1 : 2), "page \(page)")
        }
    }

    @Test("what faults, what is out of range, and what is not configured leaves nothing behind")
    func silence() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3) { $0.s = true }
        try tables.map(0x5000, to: try guest.page(holding: 1))
        try guest.issue(
            Raw.prefetchConfig(0xFFFF_FFFF),
            Raw.prefetchConfig(9),
            Raw.prefetchConfig(3, substream: 7),
            Raw.prefetchAddress(9, 0),
            Raw.prefetchAddress(3, 1 << 50),
            // Over the top of the address space.
            Raw.prefetchAddress(3, 0xFFFF_FFFF_FFFF_F000, size: 31, stride: 31),
            // A hole before the page that is there.
            Raw.prefetchAddress(3, 0x4000, size: 1)
        )
        #expect(try guest.activeErrors == 0)
        #expect(try guest.commandCons == guest.commandProd)
        #expect(try guest.takeEvents() == [])
        #expect(guest.statistic("stalled-now") == 0)
        #expect(guest.statistic("tlb-resident") == 1)
        #expect(guest.statistic("transactions") == 0)
    }

    @Test("an immense span ends, and pushes out no more than half of the TLB")
    func bounded() throws {
        let guest = try TestGuest.full { $0.options.tlbEntries = 64 }
        let tables = try guest.attachTables(3)
        let page = guest.allocate(0x1000)
        for number in 0..<512 as Range<UInt64> { try tables.map(number << 12, to: page) }
        try guest.issue(Raw.prefetchAddress(3, 0, size: 31))
        #expect(guest.statistic("tlb-fills") == 32)
    }

    @Test("access flags are set as a read sets them, dirty states are not")
    func hardwareUpdates() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3) {
            $0.ha = true
            $0.hd = true
        }
        let leaf = Leaf.unprivileged | Leaf.readOnly | Leaf.nG | 1 << 51
        let page = guest.allocate(0x1000)
        try tables.map(0x1000, to: page, leaf)
        try guest.issue(Raw.prefetchAddress(3, 0x1000))
        #expect(try guest.peek(try tables.entry(0x1000)) == page | leaf | Leaf.af | 3)
    }

    @Test("nothing is prefetched while SMMUEN is 0, or where the option says so")
    func switchedOff() throws {
        for isEnabled in [false, true] {
            let guest = try TestGuest.full { $0.options.executesPrefetches = !isEnabled }
            let tables = try guest.attachTables(3)
            try tables.map(0x1000, to: guest.allocate(0x1000))
            if !isEnabled { try guest.write32(0x20, 0b1100) }
            try guest.issue(Raw.prefetchConfig(3), Raw.prefetchAddress(3, 0x1000))
            #expect(guest.statistic("config-resident-stes") == 0)
            #expect(guest.statistic("tlb-resident") == 0)
            #expect(try guest.commandCons == guest.commandProd)
        }
    }
}
