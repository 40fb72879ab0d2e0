// AArch32 LPAE tables of both stages: ranges, levels, permissions, sizes.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// LPAE tables of 32-bit addresses, written by bit number.
final class LPAETables {
    let guest: TestGuest
    /// log2 of the addresses that the tables cover.
    let bits: UInt64
    let root: UInt64

    init(_ guest: TestGuest, bits: UInt64) {
        self.guest = guest
        self.bits = bits
        // Above 1 GiB the first level has an entry for each GiB; up to that the second is the first.
        root = guest.allocate(max(64, bits > 30 ? 8 << (bits - 30) : 8 << (bits - 21)))
    }

    func entry(_ address: UInt64, level: Int = 3) throws -> UInt64 {
        let address = address & ((1 << bits) - 1)
        var table = root
        var current = bits > 30 ? 1 : 2
        while true {
            let index = current == 1 ? address >> 30 : address >> (current == 2 ? 21 : 12)
            let entry = table + (current == 1 || (current == 2 && bits <= 30) ? index : index & 511) * 8
            guard current < level else { return entry }
            if try guest.peek(entry) & 1 == 0 { try guest.poke(entry, guest.allocate(0x1000) | 3) }
            table = try guest.peek(entry) & 0xFF_FFFF_F000
            current += 1
        }
    }

    func map(_ address: UInt64, to output: UInt64, level: Int = 3, _ flags: UInt64 = Leaf.readWrite) throws {
        try guest.poke(try entry(address, level: level), output | flags | (level == 3 ? 3 : 1))
    }
}

@Suite("AArch32 LPAE tables")
struct AArch32Tests {
    /// A stream whose halves have these sizes, without a second one where `upper` is nil.
    static func attach(
        _ guest: TestGuest,
        _ stream: UInt64 = 3,
        t0SZ: UInt64 = 0,
        t1SZ: UInt64 = 0,
        lower: LPAETables?,
        upper: LPAETables?,
        strw: UInt64 = 0,
        _ change: (inout CDWords) -> Void = { _ in }
    ) throws {
        var cd = CDWords(
            t0SZ: t0SZ,
            epd0: lower == nil,
            t1SZ: t1SZ,
            tg1: 0,
            epd1: upper == nil,
            ips: 0,
            aa64: false
        )
        cd.ttb0 = lower?.root ?? 0
        cd.ttb1 = upper?.root ?? 0
        change(&cd)
        try guest.attach(stream, cd, STEWords(strw: strw))
    }

    @Test("pages of 4 KiB, blocks of 2 MiB and 1 GiB; addresses have 32 bits")
    func blocks() throws {
        let guest = try TestGuest.full()
        let tables = LPAETables(guest, bits: 32)
        try Self.attach(guest, lower: tables, upper: nil)
        let page = try guest.page(holding: 0x11)
        try tables.map(0xFFFF_F000, to: page)
        try tables.map(0x1234_5000, to: page)
        try tables.map(0x4000_0000, to: 0x8000_0000, level: 1)
        try tables.map(0x2000_0000, to: 0x8000_0000, level: 2)
        #expect(guest.dmaRead(3, 0xFFFF_F000) == .ok(0x11))
        #expect(guest.dmaRead(3, 0x1234_5000) == .ok(0x11))
        #expect(guest.dmaRead(3, 0x4000_0000 + page - 0x8000_0000) == .ok(0x11))
        #expect(
            guest.dmaRead(3, 0x2000_0000 + (page & 0x1F_FFFF))
                == .ok(try guest.peek(0x8000_0000 | page & 0x1F_FFFF))
        )
        #expect(guest.dmaRead(3, 0x1_1234_5000) == .fTranslation)
        #expect(guest.dmaRead(3, 0xFF00_0000_1234_5000) == .fTranslation, "no top byte is ignored")
        #expect(
            try guest.takeEvents()
                == [0x1_1234_5000, 0xFF00_0000_1234_5000].map {
                    eventWords(0x10, stream: 3, isRead: true, eventClass: 2, input: $0)
                }
        )
    }

    @Test(
        "T0SZ and T1SZ share out the addresses, every pair of them",
        arguments: 0...7 as ClosedRange<UInt64>
    )
    func ranges(_ t0SZ: UInt64) throws {
        for t1SZ in 0...7 as ClosedRange<UInt64> {
            let guest = try TestGuest.full()
            let lower = LPAETables(guest, bits: 32 - t0SZ)
            let upper = LPAETables(guest, bits: 32 - t1SZ)
            try Self.attach(guest, t0SZ: t0SZ, t1SZ: t1SZ, lower: lower, upper: upper)
            let lowerPage = try guest.page(holding: 0x10)
            let upperPage = try guest.page(holding: 0x20)
            // The specification's words: the lower 2^(32 - T0SZ) addresses are TTB0's, the upper 2^(32 - T1SZ)
            // TTB1's; a size of 0 takes what the other leaves.
            let lowerEnd: UInt64 =
                t0SZ == 0 ? t1SZ == 0 ? 1 << 32 : (1 << 32) - (1 << (32 - t1SZ)) : 1 << (32 - t0SZ)
            let upperStart: UInt64 = t1SZ == 0 ? lowerEnd : (1 << 32) - (1 << (32 - t1SZ))
            for address in Set([0, lowerEnd - 0x1000, lowerEnd, upperStart - 0x1000, upperStart, 0xFFFF_F000])
            {
                guard address < 1 << 32 else { continue }
                if address < lowerEnd {
                    try lower.map(address, to: lowerPage)
                    #expect(guest.dmaRead(3, address) == .ok(0x10), "\(t0SZ) \(t1SZ) \(address)")
                } else if address >= upperStart {
                    try upper.map(address, to: upperPage)
                    #expect(guest.dmaRead(3, address) == .ok(0x20), "\(t0SZ) \(t1SZ) \(address)")
                } else {
                    #expect(guest.dmaRead(3, address) == .fTranslation, "\(t0SZ) \(t1SZ) \(address)")
                }
            }
        }
    }

    @Test("outputs have 40 bits, whatever IPS says: F_ADDR_SIZE of tables and leaves")
    func outputSize() throws {
        let guest = try TestGuest.full()
        let tables = LPAETables(guest, bits: 32)
        try Self.attach(guest, lower: tables, upper: nil)
        try tables.map(0x1000, to: 0xFF_0000_0000)
        try tables.map(0x2000, to: 1 << 40)
        #expect(guest.dmaRead(3, 0x1000) == .nobody(0xFF_0000_0000))
        #expect(guest.dmaRead(3, 0x2000) == .fAddrSize)
        try guest.poke(try tables.entry(0x4000_0000, level: 1), 1 << 47 | 3)
        #expect(guest.dmaRead(3, 0x4000_0000) == .fAddrSize)
    }

    @Test("an output beyond OAS is cut off where stage 1 is alone")
    func smallOutput() throws {
        let guest = try TestGuest.full(bits: 36)
        let tables = LPAETables(guest, bits: 32)
        try Self.attach(guest, lower: tables, upper: nil)
        let page = try guest.page(holding: 5)
        try tables.map(0x1000, to: page | 1 << 38)
        #expect(guest.dmaRead(3, 0x1000) == .ok(5))
    }

    @Test("permissions: AP, XN for both privileges, PXN, WXN, UWXN, PAN; execution needs read")
    func permissions() throws {
        let pages:
            [(flags: UInt64, wxn: Bool, uwxn: Bool, pan: Bool, privileged: String, unprivileged: String)] = [
                (0, false, false, false, "rwx", ""), (Leaf.unprivileged, false, false, false, "rwx", "rwx"),
                (Leaf.readOnly, false, false, false, "rx", ""),
                (Leaf.readOnly | Leaf.unprivileged, false, false, false, "rx", "rx"),
                // Bit 54 is XN, of both; bit 53 is PXN.
                (Leaf.unprivileged | 1 << 54, false, false, false, "rw", "rw"),
                (Leaf.unprivileged | 1 << 53, false, false, false, "rw", "rwx"),
                (Leaf.unprivileged, true, false, false, "rw", "rw"), (0, true, false, false, "rw", ""),
                (Leaf.readOnly | Leaf.unprivileged, true, true, false, "rx", "rx"),
                (Leaf.unprivileged, false, true, false, "rw", "rwx"), (0, false, true, false, "rwx", ""),
                (Leaf.unprivileged, false, false, true, "x", "rwx"), (0, false, false, true, "rwx", ""),
            ]
        for (flags, wxn, uwxn, pan, privileged, unprivileged) in pages {
            let guest = try TestGuest.full()
            let tables = LPAETables(guest, bits: 32)
            try Self.attach(guest, lower: tables, upper: nil) {
                $0.wxn = wxn
                $0.pan = pan
                // UWXN [37].
                $0.extra[0] = bit(uwxn, 37)
            }
            try tables.map(0x1000, to: try guest.page(holding: 1), flags | Leaf.af)
            for (isPrivileged, expected) in [(true, privileged), (false, unprivileged)] {
                var permitted = ""
                if case .ok = guest.dmaRead(3, 0x1000, TransactionAttributes(isPrivileged: isPrivileged)) {
                    permitted += "r"
                }
                if case .ok = guest.dmaWrite(3, 0x1000, 1, TransactionAttributes(isPrivileged: isPrivileged))
                {
                    permitted += "w"
                }
                let fetch = TransactionAttributes(isPrivileged: isPrivileged, isInstruction: true)
                if case .ok = guest.dmaRead(3, 0x1000, fetch) { permitted += "x" }
                #expect(permitted == expected, "flags 0x\(String(flags, radix: 16)) \(wxn) \(uwxn) \(pan)")
            }
        }
    }

    @Test("hierarchical: APTable, XNTable, PXNTable; HAD switches them off")
    func hierarchy() throws {
        for had in [false, true] {
            let guest = try TestGuest.full()
            let tables = LPAETables(guest, bits: 32)
            try Self.attach(guest, lower: tables, upper: nil) { $0.had0 = had }
            try tables.map(0x1000, to: try guest.page(holding: 1))
            let table = try tables.entry(0x1000, level: 2)
            try guest.poke(table, try guest.peek(table) | 1 << 62)  // APTable[1]: no writes.
            #expect(guest.dmaWrite(3, 0x1000) == (had ? .ok(0) : .fPermission))
            try guest.poke(table, try guest.peek(table) & ~(1 << 62) | 1 << 60)  // XNTable.
            try guest.sync(Raw.tlbiNSNHAll)
            let fetch = TransactionAttributes(isPrivileged: true, isInstruction: true)
            let isFetched = guest.dmaRead(3, 0x1000, fetch) != .fPermission
            #expect(isFetched == had)
        }
    }

    @Test("HA, HD, IPS, TG and E0PD are IGNORED; an access flag of 0 faults, or not with AFFD")
    func ignoredFields() throws {
        let guest = try TestGuest.full()
        let tables = LPAETables(guest, bits: 32)
        try Self.attach(guest, lower: tables, upper: nil) {
            $0.ha = true
            $0.hd = true
            $0.tg0 = 0b11
            $0.ips = 7
            $0.tbi0 = true
            $0.extra[1] = 1 << 2
        }
        let page = try guest.page(holding: 9)
        try tables.map(0x1000, to: page)
        try tables.map(0x2000, to: page, Leaf.unprivileged)
        #expect(guest.dmaRead(3, 0x1000) == .ok(9))
        #expect(guest.dmaRead(3, 0x2000) == .fAccess)
        #expect(try guest.peek(try tables.entry(0x2000)) == page | Leaf.unprivileged | 3)
        try Self.attach(guest, 4, lower: tables, upper: nil) {
            $0.affd = true
            $0.asid = 2
        }
        #expect(guest.dmaRead(4, 0x2000) == .ok(9))
    }

    @Test("what selects the format: ILLEGAL without TTF[0], in NS-EL2-E2H, and AA64 above an LPAE stage 2")
    func legality() throws {
        let old = try TestGuest.full { $0.identification.idr0.ttf = 0b10 }
        let tables = LPAETables(old, bits: 32)
        try Self.attach(old, lower: tables, upper: nil)
        #expect(old.dmaRead(3, 0) == .event(0x0A))
        var ste = STEWords(config: 0b110)
        ste.extra = Stage2Words(t0SZ: 0, aa64: false, ttb: old.allocate(0x4000)).words
        try old.setSTE(5, ste)
        #expect(old.dmaRead(5, 0) == .event(0x04))
        for (isE2H, outcome) in [(true, DMAOutcome.event(0x0A)), (false, .ok(7))] {
            let guest = try TestGuest.full()
            try guest.write32(0x20, 0b1100)
            try guest.write32(0x2C, isE2H ? 0b111 : 0b110)
            try guest.write32(0x20, 0b1101)
            let tables = LPAETables(guest, bits: 32)
            try Self.attach(guest, lower: tables, upper: nil, strw: 0b10)
            try tables.map(0x1000, to: try guest.page(holding: 7), Leaf.af)
            #expect(guest.dmaRead(3, 0x1000) == outcome)
        }
        let only32 = try TestGuest.full { $0.identification.idr0.ttf = 0b01 }
        _ = try only32.attachTables(3)
        #expect(only32.dmaRead(3, 0) == .event(0x0A))
    }

    @Test("stage 2: every S2T0SZ with both start levels, a page at the bottom and one at the top")
    func stage2Shapes() throws {
        for sl0 in 0...3 as ClosedRange<UInt64> {
            for t0SZ in -8...7 {
                let guest = try TestGuest.full()
                let bits = 32 - t0SZ
                let level = 2 - Int(min(sl0, 1))
                // At least one bit for the first table, and at most 16 tables of 512.
                let isLegal = sl0 <= 1 && (level == 1 ? 31...43 : 22...34).contains(bits)
                let tables = StageTables(
                    guest,
                    granule: 12,
                    startLevel: level,
                    inputBits: max(bits, level == 1 ? 31 : 22)
                )
                var ste = STEWords(config: 0b110, s2VMID: 3)
                // Four signed bits; TG and PS, which are not looked at, say other things.
                ste.extra =
                    Stage2Words(
                        t0SZ: UInt64(bitPattern: Int64(t0SZ)) & 0xF,
                        sl0: sl0,
                        tg: 1,
                        ps: 0,
                        aa64: false,
                        ttb: tables.root
                    ).words
                try guest.setSTE(5, ste)
                guard isLegal else {
                    #expect(guest.dmaRead(5, 0) == .event(0x04), "SL0 \(sl0) T0SZ \(t0SZ)")
                    continue
                }
                let page = try guest.page(holding: 0x42)
                let top = (1 << UInt64(bits)) - 0x1000 as UInt64
                for address in [0, top] {
                    try tables.map(address, to: page)
                    #expect(guest.dmaRead(5, address) == .ok(0x42), "SL0 \(sl0) T0SZ \(t0SZ)")
                }
                #expect(guest.dmaRead(5, top + 0x1000) == .fTranslation)
            }
        }
    }

    @Test("stage 2: no execute-only pages, 40-bit outputs, and fields that are ILLEGAL with it")
    func stage2Rules() throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 32)
        func attach(_ change: (inout Stage2Words) -> Void) throws {
            var words = Stage2Words(t0SZ: 0, aa64: false, ttb: tables.root)
            change(&words)
            var ste = STEWords(config: 0b110, s2VMID: 3)
            ste.extra = words.words
            try guest.setSTE(5, ste)
        }
        try attach { _ in }
        let page = guest.allocate(0x1000)
        let fetch = TransactionAttributes(isInstruction: true)
        try tables.map(0x1000, to: page, Leaf2.af | Leaf2.normal)
        try tables.map(0x2000, to: page)
        try tables.map(0x3000, to: 1 << 40)
        #expect(guest.dmaRead(5, 0x1000, fetch) == .fPermission)
        #expect(guest.dmaRead(5, 0x2000, fetch) == .ok(0))
        #expect(guest.dmaRead(5, 0x3000) == .fAddrSize)
        for change in [{ $0.ha = true }, { $0.hd = true }, { $0.fwb = true }, { $0.ttb = 1 << 40 }]
            as [(inout Stage2Words) -> Void]
        {
            try attach(change)
            #expect(guest.dmaRead(5, 0x2000) == .event(0x04))
        }
    }

    @Test("nested: an LPAE stage 1 above either stage 2, whose IPAs have 40 bits even where OAS has 36")
    func nested() throws {
        for isStage2LPAE in [false, true] {
            let guest = try TestGuest.full(bits: 36)
            // RAM is shown at the top of 40 bits of IPA.
            let offset: UInt64 = 0xFF_0000_0000
            let stage2 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
            for block in stride(from: 0, to: TestGuest.ramBytes, by: 0x20_0000) {
                try stage2.map(offset + TestGuest.ram + block, to: TestGuest.ram + block, level: 2)
            }
            var words = Stage2Words(t0SZ: isStage2LPAE ? 0x8 : 24, ttb: stage2.root)
            words.aa64 = !isStage2LPAE
            let root = guest.allocate(0x1000)
            let second = guest.allocate(0x1000)
            let third = guest.allocate(0x1000)
            let page = try guest.page(holding: 0x99)
            try guest.poke(root, (offset + second) | 3)
            try guest.poke(second, (offset + third) | 3)
            try guest.poke(third + 8, (offset + page) | Leaf.readWrite | 3)
            let context = guest.allocate(64)
            try guest.poke(context, CDWords(t0SZ: 0, ips: 0, aa64: false, ttb0: offset + root).words)
            var ste = STEWords(config: 0b111, s1ContextPtr: offset + context, s2VMID: 3)
            ste.extra = words.words
            try guest.setSTE(5, ste)
            #expect(guest.dmaRead(5, 0x1000) == .ok(0x99))
            // AA64 above it is ILLEGAL where stage 2 is LPAE.
            guard isStage2LPAE else { continue }
            try guest.poke(context, CDWords(ttb0: offset + root).words)
            try guest.sync(Raw.cfgiSTE(5))
            #expect(guest.dmaRead(5, 0x1000) == .event(0x0A))
        }
    }

    @Test("TLBI by address and range removes what LPAE tables gave; global pages stay for TLBI by ASID")
    func invalidation() throws {
        let guest = try TestGuest.full()
        let tables = LPAETables(guest, bits: 32)
        try Self.attach(guest, lower: tables, upper: nil)
        let old = try guest.page(holding: 1)
        let new = try guest.page(holding: 2)
        for command in [
            Raw.tlbiNHVA(0xFFFF_F000, asid: 1), Raw.tlbiNHVAA(0xFFFF_F000),
            Raw.tlbiRange(0xFFFF_E000, asid: 1, num: 1, scale: 0, ttl: 3, tg: 1), Raw.tlbiNHAll,
        ] {
            try tables.map(0xFFFF_F000, to: old)
            try guest.sync(Raw.tlbiNSNHAll)
            #expect(guest.dmaRead(3, 0xFFFF_F000) == .ok(1))
            try tables.map(0xFFFF_F000, to: new)
            #expect(guest.dmaRead(3, 0xFFFF_F000) == .ok(1))
            try guest.sync(command)
            #expect(guest.dmaRead(3, 0xFFFF_F000) == .ok(2))
        }
        try tables.map(0x1000, to: old, Leaf.global)
        #expect(guest.dmaRead(3, 0x1000) == .ok(1))
        try tables.map(0x1000, to: new, Leaf.global)
        try guest.sync(Raw.tlbiNHASID(1))
        #expect(guest.dmaRead(3, 0x1000) == .ok(1))
    }
}
