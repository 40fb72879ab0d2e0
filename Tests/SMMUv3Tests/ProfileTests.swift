// What each SMMU that can be had by name says of itself, and the options by name.

import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Profiles and options by name")
struct ProfileTests {
    /// SMMU_IDR0, 1, 2, 3, 5, 6, IIDR, AIDR.
    static func words(_ identification: Identification) -> [UInt32] {
        [
            identification.idr0.rawValue, identification.idr1.rawValue, identification.idr2.rawValue,
            identification.idr3.rawValue, identification.idr5.rawValue, identification.idr6.rawValue,
            identification.iidr.rawValue, identification.aidr.rawValue,
        ]
    }

    @Test(
        "the identification registers of each profile, word by word",
        arguments: [
            // S1P, TTF 2, COHACC, ASID16, CD2L, TTENDIAN 2, STALL_MODEL 1, ST_LEVEL 1.
            (.stage1, [0x0948_101A, 0x058B_0510, 0, 0x0000_1404, 0x0000_0075, 0, 0, 2]),
            // S2P, TTF 3, HTTU 2, MSI, ATS, PRI, ATOS, VMW, VMID16 and mixed endianness; no S1P, Hyp, CD2L.
            (.stage2, [0x0887_B49D, 0x0D8B_5010, 0, 0x0000_57B0, 0x0100_0075, 0, 0, 3]),
            // Both; the window has no room for VATOS and ECMDQ.
            (.full, [0x088F_B69F, 0x0D8B_5510, 0, 0x0000_77B4, 0x0100_0075, 0, 0, 3]),
            (.full52, [0x088F_B69F, 0x0D8B_5510, 0, 0x0000_77B4, 0x0100_04F6, 0, 0, 3]),
            // The words that Intel publishes of the MMU-600 in the Agilex 5, less BTM, SEV and PBHA.
            (
                .mmu600,
                [
                    0x080F_7E3F & ~(1 << 5 | 1 << 14), 0x0E73_9D18, 0, 0x3C & ~(1 << 3), 0x0040_0075, 0,
                    0x4832_243B, 1,
                ]
            ),
            // The same with HTTU 2, 32-bit StreamIDs, FWB, RIL and BBML 1.
            (.mmu700, [0x080F_3E9F, 0x0E73_9D20, 0, 0x0000_0D34, 0x0040_0075, 0, 0x4871_143B, 2]),
            // As QEMU 11.1.3's registers read with each `stage`.
            (.qemu, [0x0D44_101A, 0x0273_0010, 0, 0x0000_1404, 0x0000_0074, 0, 0, 1]),
            (.qemuStage2, [0x0D44_1019, 0x0273_0010, 0, 0x0000_1414, 0x0000_0074, 0, 0, 1]),
            (.qemuNested, [0x0D44_101B, 0x0273_0010, 0, 0x0000_1414, 0x0000_0074, 0, 0, 1]),
        ] as [(IdentificationProfile, [UInt32])]
    )
    func goldenWords(_ profile: IdentificationProfile, _ expected: [UInt32]) {
        let words = Self.words(profile.identification(streamIDBits: 16, isCoherent: true))
        #expect(words == expected)
    }

    @Test("a window with room behind page 1 has the VATOS page and the queues' page in its last two pages")
    func optionalPages() throws {
        let small = IdentificationProfile.full.identification(
            streamIDBits: 16,
            isCoherent: true,
            registerByteCount: 0x3_FFFF
        )
        #expect(small.optionalPages.isEmpty)
        let large = IdentificationProfile.full.identification(
            streamIDBits: 16,
            isCoherent: true,
            registerByteCount: 0x10_0000
        )
        #expect(large.optionalPages.map(\.offset) == [0xE_0000, 0xF_0000])
        // IDR0.VATOS; IDR1.ECMDQ; BA_VATOS 12; LOG2NUMQ 4.
        #expect(large.idr0.rawValue & 1 << 20 != 0)
        #expect(large.idr1.rawValue & 1 << 31 != 0)
        #expect(large.idr2.rawValue == 12)
        #expect(large.idr6.rawValue == 4 << 16)
        // ECMDQ needs coherent accesses.
        let incoherent = IdentificationProfile.full.identification(
            streamIDBits: 16,
            isCoherent: false,
            registerByteCount: 0x10_0000
        )
        #expect(incoherent.optionalPages.map(\.name) == ["vatos"])
    }

    @Test("profiles keep at least the board's StreamIDs, and products at least their own")
    func streamIDs() {
        for profile in IdentificationProfile.allCases {
            let least: UInt8 = profile == .mmu600 ? 24 : profile == .mmu700 ? 32 : 16
            for bits in [16, 20, 28, 32] as [UInt8] {
                let sidsize =
                    profile.identification(streamIDBits: bits, isCoherent: true).idr1.rawValue & 0x3F
                #expect(sidsize == UInt32(max(least, bits)))
            }
        }
    }

    @Test("every profile runs: it boots, and translates by whichever stage it has")
    func everyProfileTranslates() throws {
        for profile in IdentificationProfile.allCases {
            var setup = GuestSetup()
            setup.identification = profile.identification(streamIDBits: 16, isCoherent: true)
            let guest = try TestGuest(setup)
            let page = try guest.page(holding: 0x77)
            if setup.identification.idr0.s1P {
                let tables = try guest.attachTables(3)
                try tables.map(0x1000, to: page)
                #expect(guest.dmaRead(3, 0x1000) == .ok(0x77), "\(profile)")
            }
            if setup.identification.idr0.s2P {
                let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
                try tables.map(0x1000, to: page)
                var ste = STEWords(config: 0b110, s2VMID: 1)
                ste.extra = Stage2Words(ttb: tables.root).words
                try guest.setSTE(4, ste)
                #expect(guest.dmaRead(4, 0x1000) == .ok(0x77), "\(profile)")
            }
        }
    }

    @Test("options are set by name; an unknown name and a wrong value say what there is")
    func options() throws {
        var options = SMMUv3Options()
        for text in [
            "tlb-entries=0", "config-cache-entries=7", "event-log=9", "contiguous=group",
            "invalid-structures=drop", "walk-cache-entries=5",
            "page1-alias=yes", "gbpa-reset=abort", "illegal-accesses=ignore",
        ] {
            try options.set(text)
        }
        #expect(options.tlbEntries == 0)
        #expect(options.configurationCacheEntries == 7)
        #expect(options.walkCacheEntries == 5)
        #expect(options.eventLogCapacity == 9)
        #expect(options.cachesContiguousGroups)
        #expect(!options.cachesInvalidStructures)
        #expect(options.aliasesPage1InPage0)
        #expect(options.abortsAtReset)
        #expect(!options.refusesIllegalAccesses)
        let before = options
        for wrong in [
            "", "=", "tlb", "tlb-entries", "tlb-entries=", "tlb-entries=-1", "contiguous=yes", "=1",
        ] {
            #expect(throws: SMMUOptionError.self) { try options.set(wrong) }
        }
        #expect(options == before)
        #expect(Set(SMMUv3Options.named.map(\.name)).count == SMMUv3Options.named.count)
    }

    @Test("gbpa-reset: what a reset leaves aborts every transaction, without an event")
    func abortsAtReset() throws {
        var setup = GuestSetup()
        setup.boots = false
        setup.options.abortsAtReset = true
        let guest = try TestGuest(setup)
        #expect(try guest.read32(0x44) == 0x0010_1000)
        #expect(guest.dmaRead(1, TestGuest.ram) == .aborted)
        try guest.write32(0x44, 0x8000_1000)
        #expect(guest.dmaRead(1, TestGuest.ram) == .ok(0))
        guest.smmu.reset()
        #expect(try guest.read32(0x44) == 0x0010_1000)
    }

    @Test("illegal-accesses: ignored ones read as zero and write nothing")
    func illegalAccesses() throws {
        var setup = GuestSetup()
        setup.boots = false
        setup.options.refusesIllegalAccesses = false
        let guest = try TestGuest(setup)
        #expect(try guest.smmu.read(at: 0, width: .byte) == 0)
        #expect(try guest.smmu.read(at: 2, width: .word) == 0)
        try guest.smmu.write(0xFFFF, at: 0x88, width: .halfword)
        try guest.smmu.write(0xFFFF, at: 0x84, width: .doubleword)
        #expect(try guest.read64(0x80) == 0)
        #expect(try guest.read32(0x88) == 0)
    }
}
