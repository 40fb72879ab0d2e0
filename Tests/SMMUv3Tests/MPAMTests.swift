// MPAM: whose PARTID and PMG a transaction has, and the virtual machine's map of them.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("MPAM")
struct MPAMTests {
    /// What goes out with a read, or the event that it ends in; through the caches, as a transaction.
    static func identity(_ guest: TestGuest, _ stream: UInt32, _ address: UInt64) throws -> [UInt16] {
        let transaction = Transaction(
            streamID: StreamID(stream),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(address)
        )
        var observer = NoObserver()
        let translation = try guest.smmu.translate(
            transaction,
            guest.smmu.currentControls(),
            .cached,
            &observer
        )
        return [translation.mpam.partID, UInt16(translation.mpam.pmg)]
    }

    /// An STE's PARTID [287:272], PMG [327:320], S1MPAM [90] and VMSPtr [375:332], by bit number.
    static func words(partID: UInt64, pmg: UInt64, s1MPAM: Bool = false, vms: UInt64 = 0) -> [UInt64] {
        [0, bit(s1MPAM, 90 - 64), 0, 0, field(partID, 272 - 256), field(pmg, 0) | vms, 0, 0]
    }

    /// A CD's PARTID [367:352] and PMG [375:368].
    static func context(partID: UInt64, pmg: UInt64) -> [UInt64] {
        [0, 0, 0, 0, 0, field(partID, 32) | field(pmg, 48), 0, 0]
    }

    /// A nested stream 6 with a CD that says PARTID 0x25, which is entry 5, and PMG 1; page 0x1000 is mapped.
    static func nested(_ guest: TestGuest, vms: UInt64, s1MPAM: Bool = true) throws -> NestedSetup {
        let nested = try NestedSetup(guest, cd: { $0.extra = Self.context(partID: 0x25, pmg: 1) })
        let address = try guest.steAddress(6)
        for (index, word) in words(partID: 9, pmg: 2, s1MPAM: s1MPAM, vms: vms).enumerated() where word != 0 {
            let place = address + UInt64(index) * 8
            try guest.poke(place, try guest.peek(place) | word)
        }
        try guest.sync(Raw.cfgiSTE(6))
        try nested.map(0x1000, toPhysical: guest.allocate(0x1000))
        return nested
    }

    @Test("GBPMPAM while SMMUEN is 0; the STE's; the CD's with S1MPAM; too large ones are 0")
    func sources() throws {
        let guest = try TestGuest.full()
        var bypass = STEWords.bypass
        bypass.extra = Self.words(partID: 0xFE, pmg: 3, s1MPAM: true)
        try guest.setSTE(1, bypass)
        #expect(try Self.identity(guest, 1, 0x1000) == [0xFE, 3])
        bypass.extra = Self.words(partID: 0x100, pmg: 4)
        try guest.setSTE(1, bypass)
        #expect(try Self.identity(guest, 1, 0x1000) == [0, 0])
        for s1MPAM in [false, true] {
            let tables = GuestTables(guest)
            try tables.map(0x1000, to: guest.allocate(0x1000))
            var cd = CDWords(t0SZ: 25, ttb0: tables.root)
            cd.extra = Self.context(partID: 0x77, pmg: 1)
            var ste = STEWords()
            ste.extra = Self.words(partID: 8, pmg: 2, s1MPAM: s1MPAM)
            try guest.attach(2, cd, ste)
            try guest.sync(Raw.tlbiNSNHAll)
            for _ in 0..<2 {
                #expect(try Self.identity(guest, 2, 0x1000) == (s1MPAM ? [0x77, 1] : [8, 2]))
            }
        }
        let nested = try Self.nested(guest, vms: 0, s1MPAM: false)
        #expect(try Self.identity(guest, 6, 0x1000) == [9, 2])
        _ = nested
        try guest.write32(0x13C, 0x8002_0041)
        try guest.write32(0x20, 0b1100)
        #expect(try Self.identity(guest, 6, 0x1000) == [0x41, 2])
    }

    @Test("both stages with S1MPAM: the CD's PARTID by five bits through VMS.PARTID_MAP, its PMG as it is")
    func virtualPartitions() throws {
        let guest = try TestGuest.full()
        let vms = guest.allocate(0x1000)
        // 32 entries of 16 bits: entry n is 0x40 + n.
        for word in 0..<8 as Range<UInt64> {
            let entries = (0..<4 as Range<UInt64>).map { (0x40 + word * 4 + $0) << ($0 * 16) }
            try guest.poke(vms + word * 8, entries.reduce(0, |))
        }
        _ = try Self.nested(guest, vms: vms)
        #expect(try Self.identity(guest, 6, 0x1000) == [0x45, 1])
        #expect(guest.dmaRead(6, 0x1000) == .ok(0))
        // Above PARTID_MAX.
        try guest.poke(vms + 8, 0x0100 << 16)
        try guest.sync(RawCommand(low: 0x07 | 7 << 32))
        #expect(try Self.identity(guest, 6, 0x1000) == [0, 1])
    }

    @Test("PARTID_MAP is kept by VMID until CFGI_VMS_PIDM of that VMID, or CFGI_ALL")
    func invalidation() throws {
        for (command, isForgotten) in [
            (RawCommand(low: 0x07 | 7 << 32), true), (RawCommand(low: 0x07 | 8 << 32), false),
            (Raw.cfgiAll, true),
            (Raw.cfgiSTE(6), false), (Raw.tlbiS12VMAll(7), false),
        ] {
            let guest = try TestGuest.full()
            let vms = guest.allocate(0x1000)
            try guest.poke(vms + 8, 0x11 << 16)
            _ = try Self.nested(guest, vms: vms)
            #expect(try Self.identity(guest, 6, 0x1000) == [0x11, 1])
            try guest.poke(vms + 8, 0x22 << 16)
            #expect(try Self.identity(guest, 6, 0x1000) == [0x11, 1])
            try guest.sync(command)
            #expect(try Self.identity(guest, 6, 0x1000) == [isForgotten ? 0x22 : 0x11, 1])
        }
    }

    @Test("an aborted fetch of the VMS is F_VMS_FETCH, which aborts; without S1MPAM nobody looks there")
    func fetchAborts() throws {
        let guest = try TestGuest.full()
        _ = try Self.nested(guest, vms: 0x7000_0000)
        #expect(guest.dmaRead(6, 0x1008) == .event(0x25))
        #expect(try guest.takeEvents() == [eventWords(0x25, stream: 6, fetch: 0x7000_0000)])
        // A request by register is told the same.
        #expect(try guest.translateByRegister(6, 0x1000, type: 3) == ATOSTests.fault(0x25))
        let other = try TestGuest.full()
        _ = try Self.nested(other, vms: 0x7000_0000, s1MPAM: false)
        #expect(other.dmaRead(6, 0x1008) == .ok(0))
    }

    @Test("VMSPtr beyond OAS is ILLEGAL with S1MPAM where both stages translate")
    func legality() throws {
        let guest = try TestGuest.full(bits: 44)
        _ = try Self.nested(guest, vms: 1 << 44)
        #expect(guest.dmaRead(6, 0x1008) == .event(0x04))
        let other = try TestGuest.full(bits: 44)
        _ = try Self.nested(other, vms: 1 << 44, s1MPAM: false)
        #expect(other.dmaRead(6, 0x1008) == .ok(0))
    }

    @Test(
        "MPAMIDR; GMPAM and GBPMPAM take writes with Update, as wide as the largest values; RES0 without MPAM"
    )
    func registers() throws {
        let guest = try TestGuest.full()
        #expect(try guest.read32(0x130) == 0x0003_00FF)
        for offset in [0x138, 0x13C] as [UInt64] {
            try guest.write32(offset, 0x0001_0001)
            #expect(try guest.read32(offset) == 0)
            try guest.write32(offset, 0xFFFF_FFFF)
            #expect(try guest.read32(offset) == 0x0003_00FF)
        }
        let without = try TestGuest()
        for offset in [0x130, 0x138, 0x13C] as [UInt64] {
            try without.write32(offset, 0xFFFF_FFFF)
            #expect(try without.read32(offset) == 0)
        }
        try without.issue(RawCommand(low: 0x07))
        #expect(try without.commandError == 1)
    }
}
