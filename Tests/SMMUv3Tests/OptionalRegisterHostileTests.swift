// Whatever is written to the optional registers, the SMMU answers: nothing traps, every request ends.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("Hostile use of optional registers")
struct OptionalRegisterHostileTests {
    /// Where the optional registers of a window of 512 KiB are.
    static func offset(_ random: inout SplitMix) -> UInt64 {
        switch random.next() % 6 {
        case 0, 1: 0x100 + random.next() % 8 * 4
        case 2: [0x130, 0x138, 0x13C, 0x180, 0x190][Int(random.next() % 5)]
        case 3: 0x6_0A00 + random.next() % 8 * 4
        case 4: 0x7_0000 + random.next() % 16 * 0x1000 + random.next() % 6 * 4
        default: random.next() & 0x7_FFFC
        }
    }

    @Test("random accesses to every page, over memory that is noise", arguments: HostileTests.seeds)
    func registers(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let guest = try TestGuest.full(bits: seed & 1 == 0 ? 48 : 52) { setup in
            setup.identification.addOptionalPages(within: 0x8_0000)
        }
        let nested = try NestedSetup(guest)
        let tables = try guest.attachTables(3)
        for page in 0..<16 as Range<UInt64> {
            try tables.map(page << 12, to: HostileTests.value(&random) & 0xFFFF_FFFF_F000)
            try nested.map(page << 12, toPhysical: TestGuest.ram + page << 12, random.next())
        }
        // STEs and CDs that are nearly good.
        for stream in [3, 6] as [UInt64] {
            for word in 1..<8 as Range<UInt64> where random.next() % 4 == 0 {
                let place = try guest.steAddress(stream) + word * 8
                try guest.poke(place, try guest.peek(place) ^ 1 << (random.next() % 64))
            }
        }
        try guest.sync(Raw.cfgiAll)
        for _ in 0..<6000 {
            let offset = Self.offset(&random)
            let isWide = offset % 8 == 0 && random.next() & 1 == 0
            let width: AccessWidth = isWide ? .doubleword : .word
            if random.next() % 4 == 0 { _ = try guest.smmu.read(at: offset, width: width) }
            var value = HostileTests.value(&random)
            // Requests that get somewhere.
            if offset == 0x108 || offset == 0x6_0A08 { value = random.next() % 2 == 0 ? 3 : 6 }
            try guest.smmu.write(value, at: offset, width: width)
            if random.next() % 64 == 0 { try guest.write32(0x20, 0b1101 | UInt32(random.next() & 0x1C0)) }
        }
        // Commands run inside the write, and so do requests.
        for control in [0x100, 0x6_0A00] as [UInt64] {
            #expect(try guest.smmu.read(at: control, width: .word) == 0)
        }
        for queue in 0..<16 as Range<UInt64> {
            let prod = try guest.smmu.read(at: 0x7_0008 + queue * 0x1000, width: .word)
            let cons = try guest.smmu.read(at: 0x7_000C + queue * 0x1000, width: .word)
            #expect(prod >> 31 == cons >> 31, "ENACK is EN")
        }
        #expect(try guest.read32(0x24) == (try guest.read32(0x20)))
    }
}
