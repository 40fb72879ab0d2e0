// GATOS and VATOS: every type, every fault, PAR to the bit.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

extension TestGuest {
    /// What GATOS answers.
    ///
    /// - Parameters:
    ///   - type: TYPE: 1 stage 1, 2 stage 2, 3 both.
    ///   - flags: HTTUI [6], InD [7], RnW [8], PnU [9].
    ///   - base: 0x100 for GATOS, or where the VATOS registers are.
    func translateByRegister(
        _ streamID: UInt64,
        _ address: UInt64,
        type: UInt64,
        substream: UInt64? = nil,
        flags: UInt64 = 1 << 8,
        base: UInt64 = 0x100
    ) throws -> UInt64 {
        let sid = streamID | (substream.map { $0 << 32 | 1 << 52 } ?? 0)
        try smmu.write(sid, at: base + 8, width: .doubleword)
        try smmu.write(address & ~0xFFF | type << 10 | flags, at: base + 16, width: .doubleword)
        try smmu.write(1, at: base, width: .word)
        #expect(try smmu.read(at: base, width: .word) == 0, "RUN")
        return try smmu.read(at: base + 24, width: .doubleword)
    }
}

@Suite("Address translation operations")
struct ATOSTests {
    /// PAR of a fault, by bit number.
    static func fault(_ code: UInt64, reason: UInt64 = 0, ipa: UInt64 = 0) -> UInt64 {
        1 | reason << 1 | code << 4 | ipa
    }

    @Test(
        "stage 1: address, size by the lowest bit, attributes as a MAIR byte; no event, no counter of faults"
    )
    func stage1() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3) { $0.mair = 0x04_FF44 }
        let page = guest.allocate(0x20_0000)
        try tables.map(0x4000, to: page, Leaf.readWrite | 1 << 2 | 3 << 8)  // AttrIndx 1, Inner Shareable.
        try tables.map(0x40_0000, to: page, level: 2, Leaf.readWrite | 2 << 2)  // AttrIndx 2: Device-nGnRE.
        // ATTR 0xFF, SH 3.
        #expect(try guest.translateByRegister(3, 0x4000, type: 1) == 0xFF << 56 | page | 3 << 8)
        // 2 MiB: bit 20 and Size; Device is Outer Shareable.
        #expect(
            try guest.translateByRegister(3, 0x5F_F000, type: 1) == 0x04 << 56 | page | 1 << 20 | 1 << 11 | 2
                << 8
        )
        #expect(try guest.takeEvents() == [])
    }

    @Test("stage 1: each fault's code")
    func stage1Faults() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3) { $0.r = false }
        try tables.map(0x4000, to: guest.allocate(0x1000), Leaf.readWrite | Leaf.readOnly)
        try tables.map(0x5000, to: guest.allocate(0x1000), Leaf.readWrite & ~Leaf.af)
        try tables.map(0x6000, to: guest.allocate(0x1000), Leaf.af)
        #expect(try guest.translateByRegister(3, 0x3000, type: 1) == Self.fault(0x10))
        #expect(try guest.translateByRegister(3, 1 << 40, type: 1) == Self.fault(0x10))
        #expect(try guest.translateByRegister(3, 0x4000, type: 1, flags: 0) == Self.fault(0x13))
        #expect(try guest.translateByRegister(3, 0x5000, type: 1) == Self.fault(0x12))
        #expect(try guest.translateByRegister(3, 0x6000, type: 1) == Self.fault(0x13))
        #expect(try guest.translateByRegister(3, 0x6000, type: 1, flags: 0x300) & 1 == 0, "privileged")
        try tables.guest.poke(try tables.entry(0x7000), 0x7000_0000_0000_0403)
        let table = try tables.entry(0x7000, level: 2)
        try guest.poke(table, 0x7000_0003)
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(
            try guest.translateByRegister(3, 0x7000, type: 1) == Self.fault(0x0B),
            "a table where nobody is"
        )
        #expect(try guest.takeEvents() == [])
        #expect(guest.smmu.statistics.contains { $0.name == "faults" && $0.value == 0 })
    }

    @Test("configuration: INV_REQ before all, then the STE's faults, INV_STAGE, then the CD's")
    func configuration() throws {
        let guest = try TestGuest.full()
        // TYPE 0; a SubstreamID with stage 2 alone.
        #expect(try guest.translateByRegister(0xFFFF, 0, type: 0) == Self.fault(0xFF))
        #expect(try guest.translateByRegister(0xFFFF, 0, type: 2, substream: 1) == Self.fault(0xFF))
        #expect(
            try guest.translateByRegister(0xFFFF, 0, type: 1) == Self.fault(0x02),
            "beyond the stream table"
        )
        #expect(try guest.translateByRegister(9, 0, type: 1) == Self.fault(0x04), "V is 0")
        try guest.setSTE(9, STEWords(config: 0b000))
        #expect(try guest.translateByRegister(9, 0, type: 1) == Self.fault(0xFE))
        try guest.setSTE(9, .bypass)
        for type in 1...3 as ClosedRange<UInt64> {
            #expect(try guest.translateByRegister(9, 0, type: type) == Self.fault(0xFE))
        }
        _ = try guest.attachTables(10)
        for type in [2, 3] as [UInt64] {
            #expect(try guest.translateByRegister(10, 0, type: type) == Self.fault(0xFE))
            #expect(
                try guest.translateByRegister(10, 0, type: 3, substream: 5) == Self.fault(0xFE),
                "INV_STAGE comes before C_BAD_SUBSTREAMID"
            )
        }
        #expect(try guest.translateByRegister(10, 0, type: 1, substream: 5) == Self.fault(0x08))
        // No CD at all, an invalid CD, S1DSS that terminates.
        try guest.setSTE(11, STEWords(s1ContextPtr: 0x7000_0000))
        #expect(try guest.translateByRegister(11, 0, type: 1) == Self.fault(0x09))
        try guest.setSTE(11, STEWords(s1ContextPtr: guest.allocate(64)))
        #expect(try guest.translateByRegister(11, 0, type: 1) == Self.fault(0x0A))
        try guest.setSTE(12, STEWords(s1ContextPtr: guest.allocate(512), s1CDMax: 3))
        #expect(try guest.translateByRegister(12, 0, type: 1) == Self.fault(0x06))
        // S1DSS that bypasses: the address itself, 4 KiB.
        try guest.setSTE(12, STEWords(s1ContextPtr: guest.allocate(512), s1CDMax: 3, s1DSS: 1))
        let bypassed = try guest.translateByRegister(12, 0x1234_5000, type: 1)
        #expect(bypassed & 0x00FF_FFFF_FFFF_F801 == 0x1234_5000)
        #expect(try guest.translateByRegister(12, 1 << 50, type: 1) == Self.fault(0x11))
        #expect(try guest.takeEvents() == [])
    }

    @Test("stages that are not implemented are INV_REQ")
    func unimplementedStages() throws {
        for (s1P, type) in [(true, 2), (true, 3), (false, 1), (false, 3)] as [(Bool, UInt64)] {
            let guest = try TestGuest.full { setup in
                setup.identification = s1P ? .stage1() : .stage2()
                setup.identification.idr0.atos = true
            }
            #expect(try guest.translateByRegister(0, 0, type: type) == Self.fault(0xFF))
        }
    }

    @Test("stage 2: address, attributes with both hints, faults with REASON 3 and no FADDR")
    func stage2() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3) { $0.s = true }
        let page = guest.allocate(0x1000)
        let ipa = nested.ipa(page)
        // MemAttr 0b1111 is Normal WB: ATTR 0xFF; SH of the leaf is 0.
        #expect(try guest.translateByRegister(6, ipa, type: 2) == 0xFF << 56 | page)
        try nested.stage2.map(0x3000_0000, to: page, Leaf2.read | Leaf2.af | 0b0101 << 2 | 3 << 8)
        // Normal iNC-oNC goes out as Outer Shareable.
        #expect(try guest.translateByRegister(6, 0x3000_0000, type: 2) == 0x44 << 56 | page | 2 << 8)
        #expect(
            try guest.translateByRegister(6, 0x3000_0000, type: 2, flags: 0) == Self.fault(0x13, reason: 3)
        )
        #expect(try guest.translateByRegister(6, 0x3000_1000, type: 2) == Self.fault(0x10, reason: 3))
        #expect(try guest.translateByRegister(6, 1 << 41, type: 2) == Self.fault(0x10, reason: 3))
        // Beyond IAS: a fault of stage 1, as for a transaction.
        #expect(try guest.translateByRegister(6, 1 << 48, type: 2) == Self.fault(0x11))
        try guest.poke(try nested.stage2.entry(0x3000_0000, level: 2), 0x7000_0003)
        try guest.sync(Raw.tlbiS12VMAll(7))
        #expect(try guest.translateByRegister(6, 0x3000_0000, type: 2) == Self.fault(0x0B, reason: 3))
        #expect(try guest.takeEvents() == [])
    }

    @Test("both stages: stage-2 faults of the CD, a table and the address, with REASON and FADDR")
    func nested() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        let page = guest.allocate(0x1000)
        try nested.map(0x9000, toPhysical: page, Leaf.readWrite | 1 << 2)  // AttrIndx 1: 0xFF.
        #expect(try guest.translateByRegister(6, 0x9000, type: 3) == 0xFF << 56 | page)
        #expect(try guest.translateByRegister(6, 0x9000, type: 1) == 0xFF << 56 | nested.ipa(page))
        #expect(try guest.translateByRegister(6, 0xA000, type: 3) == Self.fault(0x10))
        let context = nested.ipa(try #require(guest.contexts[6])) & ~0xFFF
        let table = nested.ipa(try nested.stage1.entry(0x9000)) & ~0xFFF
        // Which IPA, its REASON, and what a request about stage 1 alone says of it.
        for (ipa, reason, alone) in [
            (context, 1, Self.fault(0x09)), (table, 2, Self.fault(0x0B)),
            (nested.ipa(page), 3, 0xFF << 56 | nested.ipa(page)),
        ] as [(UInt64, UInt64, UInt64)] {
            let entry = try nested.stage2.entry(ipa)
            let good = try guest.peek(entry)
            for (bad, code) in [(0, 0x10), (good & ~Leaf2.af, 0x12), (good & ~Leaf2.read, 0x13)]
                as [(UInt64, UInt64)]
            {
                try guest.poke(entry, bad)
                try guest.sync(Raw.tlbiS12VMAll(7), Raw.cfgiSTE(6))
                #expect(
                    try guest.translateByRegister(6, 0x9000, type: 3)
                        == Self.fault(code, reason: reason, ipa: ipa)
                )
                #expect(try guest.translateByRegister(6, 0x9000, type: 1) == alone)
            }
            // A stage-2 table where nobody is: REASON, no FADDR.
            try guest.poke(entry, good)
            let above = try nested.stage2.entry(ipa, level: 2)
            let whole = try guest.peek(above)
            guard reason == 3 else { continue }
            try guest.poke(entry, 0x7000_0000 | Leaf2.readWrite | 3)
            try guest.sync(Raw.tlbiS12VMAll(7), Raw.cfgiSTE(6))
            #expect(try guest.translateByRegister(6, 0x9000, type: 3) & 1 == 0, "where it goes nobody looks")
            try guest.poke(entry, good)
            #expect(whole != 0)
        }
        #expect(try guest.takeEvents() == [])
    }

    @Test("the STE's overrides do not apply, and what the request says of privilege and instruction does")
    func overrides() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3)
        let page = guest.allocate(0x1000)
        try tables.map(0x1000, to: page, Leaf.af | 1 << 2)
        // PRIVCFG privileged, INSTCFG data, SHCFG Non-shareable.
        try guest.setSTE(
            3,
            STEWords(s1ContextPtr: try #require(guest.contexts[3]), privCfg: 3, instCfg: 2)
        )
        #expect(guest.dmaRead(3, 0x1000) == .ok(0))
        #expect(try guest.translateByRegister(3, 0x1000, type: 1) == Self.fault(0x13))
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 0x300) == 0xFF << 56 | page)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 0x380) & 1 == 0)
        try guest.poke(try tables.entry(0x1000), page | Leaf.af | Leaf.pxn | 3)
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 0x380) == Self.fault(0x13))
    }

    @Test("HTTU: updates as a transaction would make them; with HTTUI none, and they count as made")
    func hardwareUpdates() throws {
        let guest = try TestGuest.full()
        let tables = try guest.attachTables(3) {
            $0.ha = true; $0.hd = true
        }
        let page = guest.allocate(0x1000)
        let clean = Leaf.unprivileged | Leaf.readOnly | Leaf.nG | 1 << 51
        try tables.map(0x1000, to: page, clean)
        let entry = try tables.entry(0x1000)
        let before = try guest.peek(entry)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 1 << 6) & 1 == 0)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 1 << 6 | 1 << 8) & 1 == 0)
        #expect(try guest.peek(entry) == before)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1) & 1 == 0)
        #expect(try guest.peek(entry) == before | Leaf.af)
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 1 << 6) & 1 == 0)
        #expect(try guest.peek(entry) == before | Leaf.af, "nothing that the TLB keeps is dirtied")
        #expect(try guest.translateByRegister(3, 0x1000, type: 1, flags: 0) & 1 == 0)
        #expect(try guest.peek(entry) == (before | Leaf.af) & ~Leaf.readOnly)
    }

    @Test("registers: RES0 without ATOS, RUN needs SMMUEN, StreamID bits beyond SIDSIZE are RES0")
    func registers() throws {
        var setup = GuestSetup()
        let without = try TestGuest(setup)
        try without.write64(0x108, ~0)
        try without.write64(0x110, ~0)
        try without.write32(0x100, 1)
        for offset in stride(from: 0x100, to: 0x120, by: 4) as StrideTo<UInt64> {
            #expect(try without.read32(offset) == 0)
        }
        setup.identification = .full()
        setup.boots = false
        let guest = try TestGuest(setup)
        try guest.write64(0x108, ~0)
        #expect(try guest.read64(0x108) == 0x001F_FFFF_0000_FFFF)
        try guest.write64(0x110, ~0)
        #expect(try guest.read64(0x110) == 0xFFFF_FFFF_FFFF_FFC0)
        try guest.write32(0x114, 0x1234)
        #expect(try guest.read64(0x110) == 0x0000_1234_FFFF_FFC0)
        try guest.write32(0x100, 1)
        #expect(try guest.read32(0x100) == 0)
        #expect(try guest.read64(0x118) == 0, "nothing has run")
        try guest.write64(0x118, ~0)
        #expect(try guest.read64(0x118) == 0, "PAR is read-only")
    }

    @Test("clearing SMMUEN ends a request that waits: INTERNAL_ERR, and nothing is written while it runs")
    func interrupted() throws {
        var registers = ATOSRegisters()
        let identification = Identification.full()
        _ = registers.write(5, at: 8, isEnabled: true, identification)
        #expect(registers.write(1, at: 0, isEnabled: false, identification) == [])
        #expect(!registers.isRunning)
        #expect(registers.write(1, at: 0, isEnabled: true, identification) == .commandQueue)
        let ticket = registers.ticket
        _ = registers.write(6, at: 8, isEnabled: true, identification)
        #expect(registers.read(8) == 5)
        #expect(registers.read(0) == 1)
        registers.terminate()
        #expect(registers.read(0) == 0)
        #expect(registers.read(24) == UInt32(Self.fault(0xFD)))
        // The answer comes too late.
        registers.finish(GATOSPar(rawValue: 0x1000), ticket)
        #expect(registers.read(24) == UInt32(Self.fault(0xFD)))
    }

    @Test("on a thread: the write returns, and RUN clears when the answer is there")
    func onThread() throws {
        let guest = try TestGuest.full { $0.options.commandExecution = .thread }
        let tables = try guest.attachTables(3)
        let page = guest.allocate(0x1000)
        try tables.map(0x1000, to: page, Leaf.readWrite | 1 << 2)
        try guest.write64(0x108, 3)
        try guest.write64(0x110, 0x1000 | 1 << 10 | 1 << 8)
        try guest.write32(0x100, 1)
        while try guest.read32(0x100) != 0 {}
        #expect(try guest.read64(0x118) == 0xFF << 56 | page)
    }

    @Test("VATOS: stage 1 of streams of the selected VMID alone")
    func virtualInterface() throws {
        let guest = try TestGuest.full { setup in
            setup.identification.addOptionalPages(within: 0x8_0000)
        }
        let base: UInt64 = 0x6_0A00
        let nested = try NestedSetup(guest, vmid: 7)
        let page = guest.allocate(0x1000)
        try nested.map(0x9000, toPhysical: page, Leaf.readWrite | 1 << 2)
        let good = 0xFF << 56 | nested.ipa(page)
        try guest.write32(0x180, 0xFFFF_0008)
        #expect(try guest.read32(0x180) == 8)
        #expect(
            try guest.translateByRegister(6, 0x9000, type: 1, base: base) == Self.fault(0x04),
            "another VMID"
        )
        try guest.write32(0x180, 7)
        #expect(try guest.translateByRegister(6, 0x9000, type: 1, base: base) == good)
        for type in [0, 2, 3] as [UInt64] {
            #expect(try guest.translateByRegister(6, 0x9000, type: type, base: base) == Self.fault(0xFF))
        }
        // No VMID at all is none that matches; stage 2 alone has one, and no stage 1.
        try guest.setSTE(5, .bypass)
        #expect(try guest.translateByRegister(5, 0, type: 1, base: base) == Self.fault(0x04))
        var ste = STEWords(config: 0b110, s2VMID: 7)
        ste.extra = Stage2Words(ttb: nested.stage2.root).words
        try guest.setSTE(5, ste)
        #expect(try guest.translateByRegister(5, 0, type: 1, base: base) == Self.fault(0xFE))
        // GATOS has registers of its own, and hears of none of this.
        #expect(try guest.read64(0x108) == 0)
        #expect(try guest.read64(0x118) == 0)
    }
}
