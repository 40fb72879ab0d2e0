// The TLB with two stages: each TLBI removes what the architecture says, and a missing one shows.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

/// Translations of both stages in two VMIDs, all cached and then unmapped in memory.
private struct StaleStages {
    static let ipa: UInt64 = 0x9000_0000
    static let blockIPA: UInt64 = 0x9020_0000
    /// The entries by name: which stream reaches them, and where.
    static let entries: [(name: Character, stream: UInt32, address: UInt64)] = [
        ("A", 1, 0x5000),  // both stages, VMID 7, ASID 1
        ("B", 2, 0x5000),  // both stages, VMID 7, ASID 2
        ("C", 3, 0x5000),  // both stages, VMID 8, ASID 1
        ("G", 1, 0x9000),  // both stages, VMID 7, global
        ("P", 4, ipa),  // stage 2 alone, VMID 7
        ("Q", 5, ipa),  // stage 2 alone, VMID 8
        ("R", 4, blockIPA + 0x1_2000),  // stage 2 alone, VMID 7, a block of 2 MiB
        ("S", 6, 0x5000),  // stage 1 alone, tagged with VMID 7, ASID 3
    ]
    let guest: TestGuest

    init() throws {
        guest = try TestGuest.full()
        let page = try guest.page(holding: 1)
        let block = guest.allocate(0x20_0000)
        for offset in [0x1_2000, 0] as [UInt64] { try guest.poke(block + offset, 1) }
        let first = try NestedSetup(guest, stream: 1, vmid: 7) { _ in
        } cd: {
            $0.asid = 1
        }
        let second = try NestedSetup(guest, stream: 2, vmid: 7) { _ in
        } cd: {
            $0.asid = 2
        }
        let third = try NestedSetup(guest, stream: 3, vmid: 8) { _ in
        } cd: {
            $0.asid = 1
        }
        for nested in [first, second, third] { try nested.map(0x5000, toPhysical: page) }
        try first.map(0x9000, toPhysical: page, Leaf.global)
        let plain = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        try plain.map(Self.ipa, to: page)
        try plain.map(Self.blockIPA, to: block, level: 2)
        for (stream, vmid) in [(4, 7), (5, 8)] as [(UInt64, UInt64)] {
            try guest.setSTE(stream, Stage2Tests.ste(Stage2Words(ttb: plain.root), vmid: vmid))
        }
        let stage1 = GuestTables(guest)
        try stage1.map(0x5000, to: page)
        try guest.attach(6, CDWords(asid: 3, ttb0: stage1.root), STEWords(s2VMID: 7))
        #expect(answering == String(Self.entries.map(\.name)))
        for nested in [first, second, third] { try nested.stage1.unmap(0x5000) }
        try first.stage1.unmap(0x9000)
        try plain.unmap(Self.ipa)
        try plain.unmap(Self.blockIPA, level: 2)
        try stage1.unmap(0x5000)
    }

    /// The names of the entries that still translate.
    var answering: String {
        String(Self.entries.filter { guest.dmaRead($0.stream, $0.address) == .ok(1) }.map(\.name))
    }
}

@Suite("TLB of two stages")
struct Stage2CacheTests {
    private static let ipa = StaleStages.ipa
    private static let blockIPA = StaleStages.blockIPA

    @Test(
        "what each TLBI removes",
        arguments: [
            ([], ""),
            ([Raw.tlbiNHAll(vmid: 7)], "ABGS"),
            ([Raw.tlbiNHASID(vmid: 7, 1)], "A"),
            ([Raw.tlbiNHVA(vmid: 7, 0x5000, asid: 1)], "A"),
            ([Raw.tlbiNHVA(vmid: 7, 0x9000, asid: 2)], "G"),
            ([Raw.tlbiNHVA(vmid: 8, 0x9000, asid: 1)], ""),
            ([Raw.tlbiNHVAA(vmid: 7, 0x5000)], "ABS"),
            ([Raw.tlbiNHVAA(vmid: 8, 0x5000)], "C"),
            ([Raw.tlbiS12VMAll(7)], "ABGPRS"),
            ([Raw.tlbiS12VMAll(8)], "CQ"),
            ([Raw.tlbiS2IPA(vmid: 7, ipa)], "P"),
            ([Raw.tlbiS2IPA(vmid: 8, ipa)], "Q"),
            ([Raw.tlbiS2IPA(vmid: 7, ipa + 0x1000)], ""),
            ([Raw.tlbiS2IPA(vmid: 7, blockIPA + 0x1F_F000)], "R"),
            ([Raw.tlbiS2IPARange(vmid: 7, ipa, num: 0, scale: 0, ttl: 3, tg: 1)], "P"),
            ([Raw.tlbiS2IPARange(vmid: 7, ipa, num: 0, scale: 10, ttl: 0, tg: 1)], "PR"),
            ([Raw.tlbiS2IPARange(vmid: 7, ipa, num: 0, scale: 10, ttl: 2, tg: 1)], "R"),
            ([Raw.tlbiS2IPARange(vmid: 7, ipa, num: 0, scale: 10, ttl: 0, tg: 2)], ""),
            ([Raw.tlbiNSNHAll], "ABCGPQRS"),
            ([Raw.tlbiEL2All], ""),
        ] as [([RawCommand], String)]
    )
    func invalidation(_ commands: [RawCommand], _ removed: String) throws {
        let stale = try StaleStages()
        try stale.guest.issue(commands + [Raw.sync()])
        let left = StaleStages.entries.map(\.name).filter { !removed.contains($0) }
        #expect(stale.answering == String(left))
    }

    @Test(
        "after a change of stage 2 both are needed: TLBI_S2_IPA and, for what both stages gave, TLBI_NH_ALL"
    )
    func bothNeeded() throws {
        for order in [["S2_IPA"], ["NH_ALL"], ["S2_IPA", "NH_ALL"]] {
            let guest = try TestGuest.full()
            let nested = try NestedSetup(guest, block: 3)
            let (old, new) = (try guest.page(holding: 1), try guest.page(holding: 2))
            try nested.map(0x5000, toPhysical: old)
            #expect(guest.dmaRead(6, 0x5000) == .ok(1))
            try nested.stage2.map(nested.ipa(old), to: new)
            for name in order {
                try guest.sync(
                    name == "S2_IPA" ? Raw.tlbiS2IPA(vmid: 7, nested.ipa(old)) : Raw.tlbiNHAll(vmid: 7)
                )
            }
            #expect(guest.dmaRead(6, 0x5000) == .ok(order.count == 2 ? 2 : 1), "\(order)")
            let transaction = Transaction(
                streamID: StreamID(6),
                attributes: .plain,
                kind: .read,
                address: IOVirtualAddress(0x5000)
            )
            let findings = guest.smmu.explain(transaction).staleness
            #expect(findings.isEmpty == (order.count == 2))
            let hasFinding = { (name: String) in findings.contains { $0.contains(name) } }
            #expect(hasFinding("CMD_TLBI_NH_VA for VMID 7") == (order.count == 1))
            #expect(hasFinding("CMD_TLBI_S2_IPA for VMID 7") == (order == ["NH_ALL"]))
        }
    }

    @Test("a TLBI for any address of a stage-1 block removes what is kept of it in pages of stage 2")
    func parts() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3)
        let block = guest.allocate(0x20_0000)
        try guest.poke(block + 0x5000, 5)
        try nested.stage1.map(0x40_0000, to: nested.ipa(block), level: 2, Leaf.readWrite)
        #expect(guest.dmaRead(6, 0x40_5000) == .ok(5))
        #expect(guest.dmaRead(6, 0x40_0000) == .ok(0))
        try nested.stage1.unmap(0x40_0000, level: 2)
        try guest.sync(Raw.tlbiNHVA(vmid: 7, 0x60_0000, asid: 1))
        #expect(guest.dmaRead(6, 0x40_5000) == .ok(5), "another block's TLBI")
        try guest.sync(Raw.tlbiNHVA(vmid: 7, 0x41_F000, asid: 1))
        #expect(guest.dmaRead(6, 0x40_5000) == .fTranslation)
        #expect(guest.dmaRead(6, 0x40_0000) == .fTranslation)
    }

    @Test("streams with one VMID and ASID share what both stages give; another VMID shares nothing")
    func sharing() throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, stream: 1, vmid: 7)
        let page = try guest.page(holding: 1)
        try nested.map(0x5000, toPhysical: page)
        #expect(guest.dmaRead(1, 0x5000) == .ok(1))
        // The same tables for two more streams, then unmapped: who still answers uses stream 1's entry.
        for (stream, vmid) in [(2, 7), (3, 8)] as [(UInt64, UInt64)] {
            let context = try #require(guest.contexts[1])
            var ste = STEWords(config: 0b111, s1ContextPtr: nested.ipa(context), s2VMID: vmid)
            ste.extra = Stage2Words(ttb: nested.stage2.root).words
            try guest.setSTE(stream, ste)
        }
        try nested.stage1.unmap(0x5000)
        #expect(guest.dmaRead(2, 0x5000) == .ok(1))
        #expect(guest.dmaRead(3, 0x5000) == .fTranslation)
    }

    @Test("TLBIs of stage 2 and EL2 are CERROR_ILL without them; CFGI_VMS_PIDM without MPAM")
    func illegalCommands() throws {
        let commands = [
            Raw.tlbiS12VMAll(0), Raw.tlbiS2IPA(vmid: 0, 0), Raw.tlbiEL2All, Raw.tlbiEL2ASID(1),
            Raw.tlbiEL2VA(0, asid: 1), Raw.tlbiEL2VAA(0),
        ]
        for command in commands {
            for identification in [Identification.stage1(), .full()] {
                let guest = try TestGuest(GuestSetup(identification: identification))
                try guest.issue(command)
                let isIllegal = !identification.idr0.s2P
                #expect(try guest.activeErrors == (isIllegal ? 1 : 0))
                #expect(try guest.commandError == (isIllegal ? 1 : 0))
            }
        }
        let guest = try TestGuest.full { $0.identification.idr3.mpam = false }
        try guest.issue(RawCommand(low: 0x07))
        #expect(try guest.commandError == 1)
        let range = try TestGuest.full()
        try range.issue(Raw.tlbiS2IPARange(vmid: 7, 0, num: 0, scale: 0, ttl: 0, tg: 1))
        #expect(try range.commandError == 1, "NUM, SCALE and TTL all zero is reserved")
    }
}
