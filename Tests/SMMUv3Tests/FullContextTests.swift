// What the full profile's CDs may say beyond the stage-1 profile's: E0PD, byte order, small and 52-bit tables.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Contexts of the full profile")
struct FullContextTests {
    private func isLegal(_ cd: CDWords, bits: Int = 48, _ change: (inout Identification) -> Void = { _ in })
        -> Bool
    {
        var identification = Identification.full(outputAddressBits: bits)
        change(&identification)
        let stream = identification.decode(STE(words: SIMD8(STEWords().words)), isE2H: false)
        return identification.violation(of: CD(words: SIMD8(cd.words)), in: stream) == nil
    }

    @Test("ILLEGAL CDs: HTTU, byte order, HAFT")
    func legality() {
        #expect(isLegal(CDWords(hd: true, ha: true)))
        #expect(isLegal(CDWords(hd: true)), "HD alone is off")
        #expect(!isLegal(CDWords(ha: true)) { $0.idr0.httu = 0 })
        #expect(!isLegal(CDWords(hd: true, ha: true)) { $0.idr0.httu = 1 })
        #expect(isLegal(CDWords(ha: true)) { $0.idr0.httu = 1 })
        let haft: [UInt64] = [0, 1 << 3, 0, 0, 0, 0, 0, 0]
        #expect(!isLegal(CDWords(extra: haft)) { $0.idr0.httu = 3 })
        #expect(isLegal(CDWords(ha: true, extra: haft)) { $0.idr0.httu = 3 })
        #expect(isLegal(CDWords(extra: haft)))
        #expect(isLegal(CDWords(endi: true)))
        #expect(!isLegal(CDWords(endi: true)) { $0.idr0.ttendian = 2 })
        #expect(!isLegal(CDWords(endi: false)) { $0.idr0.ttendian = 3 })
        #expect(
            isLegal(CDWords(epd0: true, endi: false)) { $0.idr0.ttendian = 3 },
            "no tables, no byte order"
        )
        #expect(isLegal(CDWords(aa64: false)))
        #expect(!isLegal(CDWords(aa64: false)) { $0.idr0.ttf = 2 })
        #expect(isLegal(CDWords(s: true)))
        #expect(!isLegal(CDWords(s: true)) { $0.idr0.stallModel = 1 })
    }

    @Test("T0SZ: 48-bit, 52-bit and small tables, by granule and CD.DS", arguments: [0, 1, 2] as [UInt64])
    func sizes(_ tg0: UInt64) {
        for ds in [false, true] {
            let extra: [UInt64] = [0, 0, bit(ds, 186 - 128), 0, 0, 0, 0, 0]
            for size in 0..<64 as Range<UInt64> {
                let cd = CDWords(t0SZ: size, tg0: tg0, extra: extra)
                let largest: UInt64 = tg0 == 1 ? 47 : 48
                #expect(isLegal(cd) == (16...largest).contains(size))
                #expect(isLegal(cd) { $0.idr3.stt = false } == (16...39).contains(size))
                let smallest: UInt64 = tg0 == 1 || ds ? 12 : 16
                #expect(isLegal(cd, bits: 52) == (smallest...largest).contains(size))
            }
        }
    }

    @Test("TTB0: within IPS, and within 48 bits but for 64 KiB tables or CD.DS")
    func tableBase() {
        let high: UInt64 = 1 << 50
        let ds: [UInt64] = [0, 0, bit(true, 186 - 128), 0, 0, 0, 0, 0]
        #expect(!isLegal(CDWords(ips: 6, ttb0: high), bits: 52))
        #expect(isLegal(CDWords(ips: 6, ttb0: high, extra: ds), bits: 52))
        #expect(isLegal(CDWords(tg0: 1, ips: 6, ttb0: high), bits: 52))
        #expect(!isLegal(CDWords(tg0: 1, ips: 5, ttb0: high), bits: 52))
        #expect(!isLegal(CDWords(tg0: 1, ips: 6, ttb0: high), bits: 48))
    }

    @Test("E0PD0 and E0PD1: unprivileged accesses fault, by a walk and by the TLB")
    func unprivileged() throws {
        let guest = try TestGuest.full()
        let lower = GuestTables(guest)
        let upper = GuestTables(guest)
        try lower.map(0x5000, to: try guest.page(holding: 1))
        try upper.map(0xFFFF_FFFF_FFFF_5000, to: try guest.page(holding: 2))
        for (e0pd0, e0pd1) in [(true, false), (false, true)] {
            let extra: [UInt64] = [0, bit(e0pd0, 2), bit(e0pd1, 2), 0, 0, 0, 0, 0]
            let cd = CDWords(epd1: false, ttb0: lower.root, ttb1: upper.root, extra: extra)
            try guest.attach(6, cd)
            try guest.sync(Raw.tlbiNHAll)
            let privileged = TransactionAttributes(isPrivileged: true)
            for _ in 0..<2 {
                #expect(guest.dmaRead(6, 0x5000, privileged) == .ok(1))
                #expect(guest.dmaRead(6, 0x5000) == (e0pd0 ? .fTranslation : .ok(1)))
                #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_5000, privileged) == .ok(2))
                #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_5000) == (e0pd1 ? .fTranslation : .ok(2)))
            }
        }
        let without = try TestGuest()
        let tables = GuestTables(without)
        try tables.map(0x5000, to: try without.page(holding: 1))
        try without.attach(6, CDWords(ttb0: tables.root, extra: [0, 4, 0, 0, 0, 0, 0, 0]))
        #expect(without.dmaRead(6, 0x5000) == .ok(1), "E0PD is ignored where IDR3 has none")
    }

    @Test("EPAN, where IDR3 has it: PAN refuses what unprivileged code may execute")
    func enhancedPAN() throws {
        for hasEPAN in [false, true] {
            let guest = try TestGuest.full { $0.identification.idr3.epan = hasEPAN }
            let tables = GuestTables(guest)
            // Privileged data, unprivileged execution.
            try tables.map(0x5000, to: try guest.page(holding: 1), Leaf.af | Leaf.nG)
            try tables.map(0x6000, to: try guest.page(holding: 1), Leaf.af | Leaf.nG | Leaf.uxn)
            var cd = CDWords(pan: true, ttb0: tables.root)
            cd.extra[1] = bit(true, 123 - 64)
            try guest.attach(6, cd)
            let privileged = TransactionAttributes(isPrivileged: true)
            #expect(guest.dmaRead(6, 0x5000, privileged) == (hasEPAN ? .fPermission : .ok(1)))
            #expect(guest.dmaRead(6, 0x6000, privileged) == .ok(1))
        }
    }

    @Test("tables of either byte order, in both stages")
    func byteOrder() throws {
        for (first, second) in [(false, true), (true, false), (true, true)] {
            let guest = try TestGuest.full()
            let stage2 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
            stage2.isBigEndian = second
            for offset in stride(from: 0, to: TestGuest.ramBytes, by: 0x20_0000) {
                try stage2.map(NestedSetup.ipaOfRAM + offset, to: TestGuest.ram + offset, level: 2)
            }
            let bias = NestedSetup.bias
            let stage1 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 39, bias: bias)
            stage1.isBigEndian = first
            let page = try guest.page(holding: 88)
            try stage1.map(0x5000, to: page - bias, Leaf.readWrite)
            let context = guest.allocate(64)
            try guest.poke(context, CDWords(endi: first, ttb0: stage1.root - bias).words)
            var ste = STEWords(config: 0b111, s1ContextPtr: context - bias, s2VMID: 7)
            ste.extra = Stage2Words(endi: second, ttb: stage2.root).words
            try guest.setSTE(6, ste)
            #expect(guest.dmaRead(6, 0x5000) == .ok(88), "big-endian: \(first), \(second)")
        }
    }

    /// Leaves at the highest block level that 52-bit addresses bring, and a page, of each granule.
    @Test("52-bit addresses: input and output, tables and blocks", arguments: TestGranule.all)
    func large(_ granule: TestGranule) throws {
        let guest = try TestGuest.full(bits: 52)
        let bits = Int(granule.bits)
        let isDS = bits != 16
        let start = bits == 12 ? -1 : bits == 14 ? 0 : 1
        let tables = StageTables(guest, granule: bits, startLevel: start, inputBits: 52)
        tables.ds = isDS
        tables.has52Bits = !isDS
        let page = guest.allocate(1 << granule.bits)
        try guest.poke(page + 8, 52)
        let high: UInt64 = 0xF_1234_5000_0000
        try tables.map(high, to: page, Leaf.readWrite)
        // Where the output address is is told from where nobody answers.
        let far: UInt64 = 0xB_0000_0000_0000
        let level = bits == 12 ? 0 : 1
        try tables.map(0, to: far, level: level, Leaf.readWrite)
        try tables.map(high + 1 << granule.bits, to: far + 1 << granule.bits, Leaf.readWrite)
        let extra: [UInt64] = [0, 0, bit(isDS, 186 - 128), 0, 0, 0, 0, 0]
        try guest.attach(
            6,
            CDWords(t0SZ: 12, tg0: granule.tg0, ips: 6, ttb0: tables.root, extra: extra)
        )
        #expect(guest.dmaRead(6, high + 8) == .ok(52))
        #expect(guest.dmaRead(6, 0x1_2345_6000) == .nobody(far + 0x1_2345_6000))
        #expect(guest.dmaRead(6, high + 1 << granule.bits) == .nobody(far + 1 << granule.bits))
        // One bit beyond IPS.
        try guest.attach(
            6,
            CDWords(t0SZ: 12, tg0: granule.tg0, ips: 5, ttb0: tables.root, extra: extra)
        )
        try guest.sync(Raw.tlbiNHAll)
        #expect(guest.dmaRead(6, high + 8) == .ok(52))
        #expect(guest.dmaRead(6, 0x1_2345_6000) == .fAddrSize)
    }

    @Test("with CD.DS shareability comes from SH0, not from the leaf")
    func shareability() throws {
        let guest = try TestGuest.full(bits: 52)
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 39)
        tables.ds = true
        try tables.map(0x5000, to: TestGuest.ram, Leaf.readWrite | 1 << 2)
        var cd = CDWords(ips: 6, ttb0: tables.root, extra: [3 << 12, 0, bit(true, 58), 0, 0, 0, 0, 0])
        cd.mair = 0xFF44
        try guest.attach(6, cd)
        let transaction = Transaction(
            streamID: StreamID(6),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(0x5000)
        )
        guard case .translated(let translation) = guest.smmu.probe(transaction) else {
            Issue.record("not translated")
            return
        }
        #expect(translation.attributes == MemoryAttributes(mair: 0xFF, shareability: 3))
    }

    @Test("TLBI ranges with 52-bit addresses: SCALE has six bits, above 39 is 39; 16 KiB has TTL 1")
    func ranges() throws {
        let guest = try TestGuest.full(bits: 52)
        let tables = StageTables(guest, granule: 14, startLevel: 0, inputBits: 52)
        tables.ds = true
        let extra: [UInt64] = [0, 0, bit(true, 58), 0, 0, 0, 0, 0]
        try guest.attach(6, CDWords(t0SZ: 12, tg0: 2, ips: 6, ttb0: tables.root, extra: extra))
        let page = try guest.page(holding: 1, 0x4000)
        let places: [(UInt64, Int)] = [(0x4000, 3), (0x7_0000_0000_0000, 3), (1 << 36, 1)]
        func fill() throws {
            for (address, level) in places {
                try tables.map(address, to: level == 1 ? 0 : page, level: level, Leaf.readWrite)
            }
            for (address, level) in places {
                #expect(guest.dmaRead(6, address) == (level == 1 ? .nobody(0) : .ok(1)))
            }
            for (address, level) in places { try tables.unmap(address, level: level) }
        }
        let left = { places.map { guest.dmaRead(6, $0.0) != .fTranslation } }
        for (scale, num, ttl, expected) in [
            (35, 0, 0, [false, true, false]), (36, 31, 0, [false, false, false]),
            (63, 31, 0, [false, false, false]), (40, 0, 3, [false, false, true]),
            (40, 0, 1, [true, true, false]), (0, 1, 3, [false, true, true]),
        ] as [(UInt64, UInt64, UInt64, [Bool])] {
            try fill()
            try guest.sync(Raw.tlbiRange(0, asid: 1, num: num, scale: scale, ttl: ttl, tg: 2))
            #expect(left() == expected, "SCALE \(scale) NUM \(num) TTL \(ttl)")
            try guest.sync(Raw.tlbiNHAll)
        }
    }

    @Test("contiguous groups, where they are kept: one walk answers for all, one TLBI removes all")
    func contiguous() throws {
        for (granule, level, entries) in [
            (12, 3, 16), (12, 2, 16), (14, 3, 128), (14, 2, 32), (16, 3, 32), (16, 2, 32),
        ] as [(Int, Int, UInt64)] {
            let guest = try TestGuest.full { $0.options.cachesContiguousGroups = true }
            let tables = StageTables(
                guest,
                granule: granule,
                startLevel: granule == 16 ? 1 : 0,
                inputBits: granule == 14 ? 47 + 1 : 48
            )
            let size: UInt64 = 1 << UInt64(tables.shift(level))
            let base = size * entries * 3
            let far: UInt64 = size * entries * 5
            for index in 0..<entries {
                let output = far + index * size
                try tables.map(
                    base + index * size,
                    to: output,
                    level: level,
                    Leaf.readWrite | Leaf.contiguous
                )
            }
            let tg0: UInt64 = granule == 12 ? 0 : granule == 14 ? 2 : 1
            try guest.attach(6, CDWords(t0SZ: 16, tg0: tg0, ttb0: tables.root))
            #expect(guest.dmaRead(6, base + size + 8) == .nobody(far + size + 8))
            let walks = {
                Dictionary(uniqueKeysWithValues: guest.smmu.statistics.map { ($0.name, $0.value) })["walks"]
            }
            let before = walks()
            #expect(guest.dmaRead(6, base + (entries - 1) * size) == .nobody(far + (entries - 1) * size))
            #expect(walks() == before, "the group is one entry")
            for index in 0..<entries { try tables.unmap(base + index * size, level: level) }
            try guest.sync(Raw.tlbiNHVA(base + 2 * size, asid: 1))
            #expect(guest.dmaRead(6, base + size) == .fTranslation)
        }
    }
}
