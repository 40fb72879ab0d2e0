// The register file: what reads, what takes writes, and when.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Registers")
struct RegisterTests {
    static var unbooted: GuestSetup {
        var setup = GuestSetup()
        setup.boots = false
        return setup
    }

    @Test(
        "reset values",
        arguments: [
            // S1P, TTF AArch64, COHACC, ASID16, CD2L, TTENDIAN little, STALL_MODEL none, ST_LEVEL 2-level.
            (0x000, 0x0000_0002 | 0x8 | 0x10 | 1 << 12 | 1 << 19 | 2 << 21 | 1 << 24 | 1 << 27),
            // SIDSIZE 16, SSIDSIZE 20, EVENTQS 11, CMDQS 12, ATTR_PERMS_OVR.
            (0x004, 16 | 20 << 6 | 11 << 16 | 12 << 21 | 1 << 26),
            (0x008, 0),
            // HAD, RIL, BBML 2.
            (0x00C, 1 << 2 | 1 << 10 | 2 << 11),
            (0x010, 0),
            // OAS 48, three granules.
            (0x014, 5 | 1 << 4 | 1 << 5 | 1 << 6),
            (0x018, 0), (0x01C, 2),
            (0x020, 0), (0x024, 0), (0x040, 0), (0x044, 0x1000), (0x050, 0), (0x054, 0), (0x060, 0),
            (0x064, 0),
            (0xFD0, 0), (0xFE0, 0), (0xFF0, 0x0D), (0xFF4, 0xF0), (0xFF8, 0x05), (0xFFC, 0xB1),
        ] as [(UInt64, UInt32)]
    )
    func resetValues(_ offset: UInt64, _ value: UInt32) throws {
        let guest = try TestGuest(Self.unbooted)
        #expect(try guest.read32(offset) == value)
    }

    @Test("identification without coherency clears COHACC and nothing else")
    func coherency() {
        let coherent = Identification.stage1(isCoherent: true).idr0.rawValue
        #expect(coherent ^ Identification.stage1(isCoherent: false).idr0.rawValue == 0x10)
        #expect(Identification.stage1(streamIDBits: 99).idr1.sidsize == 32)
    }

    @Test(
        "what of all ones a register keeps while everything is off",
        arguments: [
            (0x000, nil), (0x004, nil), (0x014, nil), (0x01C, nil), (0x024, nil), (0x040, nil), (0x054, nil),
            (0x060, nil), (0xFF0, nil), (0x0F8, 0), (0x200, 0), (0xE00, 0), (0x8000, 0), (0x8004, 0),
            (0x028, 0xFFF), (0x02C, 0b110), (0x050, 0b101), (0x064, 0b1_0000_0101),
            (0x080, 0xFFFF_FFC0), (0x084, 0x400F_FFFF), (0x088, 0x3_07FF),
            (0x090, 0xFFFF_FFFF), (0x094, 0x400F_FFFF), (0x098, 0xF_FFFF),
            (0x0A0, 0xFFFF_FFFF), (0x0A4, 0x400F_FFFF), (0x1_00AC, 0x800F_FFFF),
            (0x068, 0), (0x06C, 0), (0x070, 0), (0x074, 0), (0x0B0, 0), (0x0C0, 0), (0x0D0, 0), (0x100, 0),
            (0x0A8, 0), (0x0AC, 0), (0x0C8, 0), (0x0CC, 0), (0x1_00C8, 0), (0x1_00CC, 0), (0x1_0000, 0),
            (0x1_0020, 0), (0x1_FFFC, 0),
        ] as [(UInt64, UInt32?)]
    )
    func writableBits(_ offset: UInt64, _ kept: UInt32?) throws {
        let guest = try TestGuest(Self.unbooted)
        let before = try guest.read32(offset)
        try guest.write32(offset, 0xFFFF_FFFF)
        #expect(try guest.read32(offset) == kept ?? before)
    }

    @Test("queue indices owned by the SMMU read as zero above the wrap bit")
    func smmuOwnedIndices() throws {
        let guest = try TestGuest(Self.unbooted)
        try guest.write64(0x90, 3)
        try guest.write64(0xA0, 4)
        try guest.write32(0x9C, 0xF_FFFF)
        try guest.write32(0x1_00A8, 0x800F_FFFF)
        #expect(try guest.read32(0x9C) == 0xF)
        #expect(try guest.read32(0x1_00A8) == 0x8000_001F)
    }

    @Test("CR0 takes what there is, and CR0ACK follows; PRIQEN, ATSCHK, VMW and reserved bits never appear")
    func controlRegister() throws {
        let guest = try TestGuest(Self.unbooted)
        try guest.write32(0x20, 0xFFFF_FFFF)
        #expect(try guest.read32(0x20) == 0b1101)
        #expect(try guest.read32(0x24) == 0b1101)
        try guest.write32(0x20, 0b0100)
        #expect(try guest.read32(0x24) == 0b0100)
        try guest.write32(0x20, 0)
        #expect(try guest.read32(0x24) == 0)
    }

    @Test(
        "a guarded register ignores writes while its enable is set",
        arguments: [
            // SMMUEN.
            (0x080, 0b0001), (0x084, 0b0001), (0x088, 0b0001), (0x02C, 0b0001),
            // CMDQEN.
            (0x090, 0b1000), (0x094, 0b1000), (0x09C, 0b1000),
            // EVENTQEN.
            (0x0A0, 0b0100), (0x0A4, 0b0100), (0x1_00A8, 0b0100),
        ] as [(UInt64, UInt32)]
    )
    func guards(_ offset: UInt64, _ enable: UInt32) throws {
        let guest = try TestGuest(Self.unbooted)
        // A command queue that is not empty would run: keep it so.
        try guest.write32(offset, 0x40)
        let before = try guest.read32(offset)
        try guest.write32(0x20, 0b1101 & ~enable)
        try guest.write32(offset, 0)
        #expect(try guest.read32(offset) == 0, "the other enables guard nothing of this")
        try guest.write32(offset, 0x40)
        try guest.write32(0x20, enable)
        try guest.write32(offset, 0)
        #expect(try guest.read32(offset) == before)
    }

    @Test("CR1 is guarded by halves: tables by SMMUEN, queues by every queue enable")
    func cr1Guards() throws {
        let guest = try TestGuest(Self.unbooted)
        for (enable, kept) in [(0b0001, 0x03F), (0b0100, 0xFC0), (0b1000, 0xFC0), (0b1101, 0)]
            as [(UInt32, UInt32)]
        {
            try guest.write32(0x20, 0)
            try guest.write32(0x28, 0)
            try guest.write32(0x20, enable)
            try guest.write32(0x28, 0xFFF)
            #expect(try guest.read32(0x28) == kept)
        }
    }

    @Test("GBPA changes only with Update set in the same write, which then reads as zero")
    func bypassAttributes() throws {
        let guest = try TestGuest(Self.unbooted)
        try guest.write32(0x44, 0x0010_1000)
        #expect(try guest.read32(0x44) == 0x1000)
        try guest.write32(0x44, 0xFFFF_FFFF)
        #expect(try guest.read32(0x44) == 0x001F_3F1F)
        try guest.write32(0x44, 0x8000_0000)
        #expect(try guest.read32(0x44) == 0)
    }

    @Test(
        "a switched-off SMMU passes DMA up to OAS, and aborts it all where GBPA says so; no event either way"
    )
    func globalBypass() throws {
        let guest = try TestGuest(Self.unbooted)
        let page = try guest.page(holding: 42)
        #expect(guest.dmaRead(5, page) == .ok(42))
        let substream = TransactionAttributes(substreamID: SubstreamID(7))
        #expect(guest.dmaRead(5, page, substream) == .ok(42))
        #expect(guest.dmaRead(5, 0xFFFF_FFFF_FFF8) == .nobody(0xFFFF_FFFF_FFF8))
        #expect(guest.dmaRead(5, 1 << 48) == .aborted)
        try guest.write32(0x44, 0x8010_1000)
        #expect(guest.dmaRead(5, page) == .aborted)
        #expect(guest.dmaWrite(5, page) == .aborted)
        try guest.write32(0x44, 0x8000_1000)
        #expect(guest.dmaRead(5, page) == .ok(42))
        #expect(guest.smmu.events().isEmpty)
    }

    @Test("64-bit registers are written and read whole and by halves")
    func halves() throws {
        let guest = try TestGuest(Self.unbooted)
        for offset in [0x80, 0x90, 0xA0] as [UInt64] {
            try guest.write64(offset, 0x4001_2345_6789_ABC0)
            #expect(try guest.read64(offset) == 0x4001_2345_6789_ABC0)
            #expect(try guest.read32(offset) == 0x6789_ABC0)
            #expect(try guest.read32(offset + 4) == 0x4001_2345)
            try guest.write32(offset + 4, 0x0000_0012)
            #expect(try guest.read64(offset) == 0x0000_0012_6789_ABC0)
            try guest.write32(offset, 0x0000_0040)
            #expect(try guest.read64(offset) == 0x0000_0012_0000_0040)
        }
    }

    @Test("a 64-bit access to two 32-bit registers reads and writes both")
    func pairs() throws {
        let guest = try TestGuest(Self.unbooted)
        try guest.write64(0x90, 7)
        try guest.write64(0xA0, 7)
        try guest.write64(0x98, 0x0000_0005_0000_0006)
        #expect(try guest.read64(0x98) == 0x0000_0005_0000_0006)
        try guest.write64(0x1_00A8, 0x0000_0003_0000_0004)
        #expect(try guest.read64(0x1_00A8) == 0x0000_0003_0000_0004)
        #expect(try guest.read64(0x0) == UInt64(try guest.read32(4)) << 32 | UInt64(try guest.read32(0)))
    }

    @Test("8- and 16-bit accesses and misaligned ones are refused")
    func refusals() throws {
        let guest = try TestGuest(Self.unbooted)
        for width in [AccessWidth.byte, .halfword] {
            #expect(throws: RegisterAccessError.unsupportedWidth) {
                try guest.smmu.read(at: 0x20, width: width)
            }
            #expect(throws: RegisterAccessError.unsupportedWidth) {
                try guest.smmu.write(1, at: 0x20, width: width)
            }
        }
        #expect(throws: RegisterAccessError.misaligned) { try guest.smmu.read(at: 0x22, width: .word) }
        #expect(throws: RegisterAccessError.misaligned) {
            try guest.smmu.write(1, at: 0x24, width: .doubleword)
        }
        #expect(throws: RegisterAccessError.misaligned) { try guest.smmu.read(at: 0x84, width: .doubleword) }
        #expect(try guest.read32(0x20) == 0)
    }

    @Test("page 0 aliases page 1's queue pointers where the option says so")
    func page1Alias() throws {
        var setup = Self.unbooted
        setup.options.aliasesPage1InPage0 = true
        let guest = try TestGuest(setup)
        try guest.write64(0xA0, 7)
        try guest.write32(0xA8, 0x8000_0011)
        try guest.write32(0xAC, 0x8000_0022)
        #expect(try guest.read32(0xA8) == 0x8000_0011)
        #expect(try guest.read32(0x1_00A8) == 0x8000_0011)
        #expect(try guest.read32(0xAC) == 0x8000_0022)
        #expect(try guest.read32(0x1_00AC) == 0x8000_0022)
        try guest.write32(0x20, 0b0100)
        try guest.write32(0xA8, 0)
        #expect(try guest.read32(0xA8) == 0x8000_0011, "EVENTQEN guards the alias too")
    }

    @Test("reset puts everything back and empties the caches")
    func reset() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(3)
        try tables.map(0x1000, to: try guest.page(holding: 1))
        #expect(guest.dmaRead(3, 0x1000) == .ok(1))
        guest.smmu.reset()
        for offset in [0x20, 0x24, 0x28, 0x2C, 0x50, 0x60, 0x64, 0x88, 0x98, 0x9C, 0x1_00A8, 0x1_00AC]
            as [UInt64]
        {
            #expect(try guest.read32(offset) == 0)
        }
        #expect(try guest.read64(0x80) == 0)
        #expect(try guest.read32(0x44) == 0x1000)
        let resident = guest.smmu.statistics.filter { $0.name.contains("resident") }
        #expect(resident.count == 3)
        #expect(resident.allSatisfy { $0.value == 0 })
        #expect(guest.dmaRead(3, 0x1000) == .nobody(0x1000), "bypassed now")
    }
}
