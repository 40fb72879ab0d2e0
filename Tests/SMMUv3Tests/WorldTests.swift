// StreamWorlds: NS-EL1, NS-EL2, NS-EL2-E2H, their tables, privileges, tags and TLBIs.

import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("StreamWorlds")
struct WorldTests {
    /// A guest whose CR2.E2H is as given, with one stream of STRW 2.
    private func makeGuest(e2H: Bool, _ change: (inout CDWords) -> Void = { _ in }) throws -> (
        TestGuest, GuestTables
    ) {
        let guest = try TestGuest.full()
        try guest.write32(0x20, 0b1100)
        try guest.write32(0x2C, e2H ? 0b111 : 0b110)
        #expect(try guest.read32(0x2C) == (e2H ? 0b111 : 0b110))
        try guest.write32(0x20, 0b1101)
        let tables = GuestTables(guest)
        var cd = CDWords(ttb0: tables.root)
        change(&cd)
        try guest.attach(6, cd, STEWords(strw: 2))
        return (guest, tables)
    }

    @Test("NS-EL2: one half, no unprivileged access, AP[2] and XN alone", arguments: 0..<8 as Range<UInt64>)
    func el2Permissions(_ bits: UInt64) throws {
        let (isReadOnly, isXN, wxn) = (bits & 1 == 1, bits & 2 == 2, bits & 4 == 4)
        let (guest, tables) = try makeGuest(e2H: false) { cd in
            cd.wxn = wxn
            cd.pan = true
            cd.epd0 = true
            cd.epd1 = false
            // TTB1 does not exist: what its fields say is not looked at.
            cd.t1SZ = 0
            cd.tg1 = 0
        }
        let page = try guest.page(holding: 4)
        // AP[1] and PXN say nothing, and APTable[0] and PXNTable neither.
        let flags = Leaf.af | bit(isReadOnly, 7) | bit(isXN, 54) | Leaf.pxn
        try guest.poke(try tables.entry(0x5000, tableFlags: 1 << 61 | 1 << 59), page | flags | 3)
        for isPrivileged in [false, true] {
            #expect(guest.dmaRead(6, 0x5000, .init(isPrivileged: isPrivileged)) == .ok(4))
            let write = guest.dmaWrite(6, 0x5000, 4, .init(isPrivileged: isPrivileged))
            #expect(write == (isReadOnly ? .fPermission : .ok(0)))
            let fetch = guest.dmaRead(6, 0x5000, .init(isPrivileged: isPrivileged, isInstruction: true))
            #expect(fetch == (isXN || wxn && !isReadOnly ? .fPermission : .ok(4)))
        }
        #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_F000) == .fTranslation)
    }

    @Test("NS-EL2: TBI0 drops the top byte of any address")
    func el2TopByte() throws {
        let (guest, tables) = try makeGuest(e2H: false) { $0.tbi0 = true }
        try tables.map(0x5000, to: try guest.page(holding: 4))
        #expect(guest.dmaRead(6, 0xAB00_0000_0000_5000) == .ok(4))
        #expect(guest.dmaRead(6, 0xAB80_0000_0000_5000) == .fTranslation)
    }

    @Test("NS-EL2-E2H: two halves and unprivileged access, as at EL1")
    func e2HPermissions() throws {
        let upper: UInt64 = 0xFFFF_FFFF_FFFF_5000
        let (guest, tables) = try makeGuest(e2H: true)
        let other = GuestTables(guest)
        try tables.map(0x5000, to: try guest.page(holding: 4), Leaf.af | Leaf.nG)
        try other.map(upper, to: try guest.page(holding: 5))
        try guest.attach(
            6,
            CDWords(epd1: false, ttb0: tables.root, ttb1: other.root),
            STEWords(strw: 2)
        )
        #expect(guest.dmaRead(6, 0x5000) == .fPermission)
        #expect(guest.dmaRead(6, 0x5000, .init(isPrivileged: true)) == .ok(4))
        #expect(guest.dmaRead(6, upper) == .ok(5))
    }

    @Test("STRW: reserved values are illegal where it counts, ignored in bypass and with stage 2")
    func legality() {
        func isLegal(_ config: UInt64, _ strw: UInt64, hyp: Bool = true) -> Bool {
            var identification = Identification.full()
            identification.idr0.hyp = hyp
            let ste = STEWords(config: config, strw: strw, extra: Stage2Words().words)
            return identification.violation(of: STE(words: SIMD8(ste.words))) == nil
        }
        #expect((0..<4).map { isLegal(0b101, $0) } == [true, false, true, false])
        for config in [0b100, 0b110, 0b111] as [UInt64] {
            #expect((0..<4).allSatisfy { isLegal(config, $0) }, "Config \(config)")
        }
        #expect((0..<4).allSatisfy { isLegal(0b101, $0, hyp: false) })
        // NS-EL2 has no ASID to be too large.
        var small = Identification.full()
        small.idr0.asid16 = false
        let cd = CD(words: SIMD8(CDWords(asid: 0x100).words))
        for (strw, e2H, isLegal) in [(0, false, false), (2, false, true), (2, true, false)]
            as [(UInt64, Bool, Bool)]
        {
            let ste = STE(words: SIMD8(STEWords(strw: strw).words))
            #expect((small.violation(of: cd, in: small.decode(ste, isE2H: e2H)) == nil) == isLegal)
        }
    }

    @Test("CR2.E2H is RES0 without Hyp")
    func registerWithoutHyp() throws {
        let guest = try TestGuest()
        try guest.write32(0x20, 0b1100)
        try guest.write32(0x2C, 0b111)
        #expect(try guest.read32(0x2C) == 0b110)
    }

    /// Which of three translations still answer: NS-EL1, EL2's non-global and global page.
    private func answering(_ guest: TestGuest) -> String {
        let entries = [("1", 1, 0x5000), ("n", 6, 0x5000), ("g", 6, 0x9000)] as [(String, UInt32, UInt64)]
        return entries.filter { guest.dmaRead($0.1, $0.2) == .ok(4) }.map(\.0).joined()
    }

    @Test(
        "what each TLBI removes of EL1 and EL2",
        arguments: [
            (Raw.tlbiEL2All, "1", "1"),
            // Without E2H there are no ASIDs, and nothing is global.
            (Raw.tlbiEL2ASID(1), "1ng", "1g"),
            (Raw.tlbiEL2ASID(2), "1ng", "1ng"),
            (Raw.tlbiEL2VA(0x5000, asid: 1), "1g", "1g"),
            (Raw.tlbiEL2VA(0x5000, asid: 2), "1g", "1ng"),
            (Raw.tlbiEL2VA(0x9000, asid: 2), "1n", "1n"),
            (Raw.tlbiEL2VAA(0x5000), "1g", "1g"),
            (Raw.tlbiNHAll, "ng", "ng"),
            (Raw.tlbiNSNHAll, "ng", "ng"),
            (Raw.tlbiNHVAA(0x5000), "ng", "ng"),
        ] as [(RawCommand, String, String)]
    )
    func invalidation(_ command: RawCommand, _ leftWithoutE2H: String, _ leftWithE2H: String) throws {
        for e2H in [false, true] {
            let (guest, tables) = try makeGuest(e2H: e2H)
            let page = try guest.page(holding: 4)
            try tables.map(0x5000, to: page)
            try tables.map(0x9000, to: page, Leaf.global)
            let first = try guest.attachTables(1)
            try first.map(0x5000, to: page)
            #expect(answering(guest) == "1ng")
            try tables.unmap(0x5000)
            try tables.unmap(0x9000)
            try first.unmap(0x5000)
            try guest.sync(command)
            #expect(answering(guest) == (e2H ? leftWithE2H : leftWithoutE2H), "E2H \(e2H)")
        }
    }
}
