// Hardware updates of the access flag and the dirty state, of both stages, against software that changes the same
// descriptors.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("HTTU")
struct HTTUTests {
    static let dbm: UInt64 = 1 << 51
    /// Writable-clean: read-only with DBM.
    static let clean = Leaf.unprivileged | Leaf.af | Leaf.nG | Leaf.readOnly | dbm

    private func stage1(ha: Bool, hd: Bool, _ flags: UInt64, affd: Bool = false) throws -> (
        guest: TestGuest, entry: UInt64, page: UInt64
    ) {
        let guest = try TestGuest.full()
        let tables = GuestTables(guest)
        let page = try guest.page(holding: 6)
        try tables.map(0x5000, to: page, flags)
        try guest.attach(6, CDWords(affd: affd, hd: hd, ha: ha, ttb0: tables.root))
        return (guest, try tables.entry(0x5000), page)
    }

    @Test("stage 1: HA sets the access flag; without it AF 0 faults, or AFFD lets it pass")
    func accessFlag() throws {
        let flags = Leaf.readWrite & ~Leaf.af
        for (ha, hd, affd) in [
            (true, false, false), (true, true, true), (false, false, true), (false, true, false),
        ] {
            let (guest, entry, page) = try stage1(ha: ha, hd: hd, flags, affd: affd)
            let outcome = guest.dmaRead(6, 0x5000)
            #expect(outcome == (ha || affd ? .ok(6) : .fAccess))
            #expect(try guest.peek(entry) == page | flags | 3 | (ha ? Leaf.af : 0))
        }
    }

    @Test("stage 1: HD makes a writable-clean page dirty at the first write, and at no read")
    func dirtyState() throws {
        let (guest, entry, page) = try stage1(ha: true, hd: true, Self.clean)
        #expect(guest.dmaRead(6, 0x5000) == .ok(6))
        #expect(try guest.peek(entry) == page | Self.clean | 3)
        // The TLB holds it read-only now; the write must walk again.
        #expect(guest.dmaWrite(6, 0x5000, 7) == .ok(0))
        #expect(try guest.peek(entry) == page | Self.clean & ~Leaf.readOnly | 3, "AP[2] is 0, DBM stays")
        #expect(try guest.peek(page) == 7)
        #expect(try guest.takeEvents() == [])
        // Cleaned again by software: the entry that is cached as dirty writes on until it is invalidated.
        try guest.poke(entry, page | Self.clean | 3)
        #expect(guest.dmaWrite(6, 0x5000, 8) == .ok(0))
        #expect(try guest.peek(entry) == page | Self.clean | 3)
        try guest.sync(Raw.tlbiNHVA(0x5000, asid: 1))
        #expect(guest.dmaWrite(6, 0x5000, 9) == .ok(0))
        #expect(try guest.peek(entry) == page | Self.clean & ~Leaf.readOnly | 3)
    }

    @Test("stage 1: AF and dirty state are set together, in one update")
    func both() throws {
        let (guest, entry, page) = try stage1(ha: true, hd: true, Self.clean & ~Leaf.af)
        #expect(guest.dmaWrite(6, 0x5000, 7) == .ok(0))
        #expect(try guest.peek(entry) == page | Self.clean & ~Leaf.readOnly | 3)
    }

    @Test("stage 1: what may not be written for another reason is not made dirty, and not accessed")
    func refused() throws {
        // Without HD, without DBM, and for want of privilege.
        let cases: [(hd: Bool, flags: UInt64)] = [
            (false, Self.clean), (true, Self.clean & ~Self.dbm), (true, Self.clean & ~Leaf.unprivileged),
            (true, Self.clean & ~Leaf.unprivileged & ~Leaf.af),
        ]
        for (hd, flags) in cases {
            let (guest, entry, page) = try stage1(ha: true, hd: hd, flags)
            #expect(guest.dmaWrite(6, 0x5000, 7) == .fPermission)
            #expect(try guest.peek(entry) == page | flags | 3)
            #expect(try guest.peek(page) == 6)
        }
        // APTable takes writes away from everything below.
        let guest = try TestGuest.full()
        let tables = GuestTables(guest)
        let page = try guest.page(holding: 6)
        let entry = try tables.entry(0x5000, tableFlags: 1 << 62)
        try guest.poke(entry, page | Self.clean | 3)
        try guest.attach(6, CDWords(hd: true, ha: true, ttb0: tables.root))
        #expect(guest.dmaWrite(6, 0x5000, 7) == .fPermission)
        #expect(try guest.peek(entry) == page | Self.clean | 3)
    }

    @Test("a writable-clean page counts as writable where that forbids execution")
    func execution() throws {
        for hd in [false, true] {
            let (guest, _, _) = try stage1(ha: true, hd: hd, Self.clean)
            let fetch = TransactionAttributes(isPrivileged: true, isInstruction: true)
            #expect(guest.dmaRead(6, 0x5000, fetch) == (hd ? .fPermission : .ok(6)))
        }
    }

    @Test("probe and explain change nothing")
    func tools() throws {
        let (guest, entry, page) = try stage1(ha: true, hd: true, Self.clean & ~Leaf.af)
        let transaction = Transaction(
            streamID: StreamID(6),
            attributes: .plain,
            kind: .write,
            address: IOVirtualAddress(0x5000)
        )
        let explanation = guest.smmu.explain(transaction)
        guard case .translated(let translation) = explanation.outcome else {
            Issue.record("\(explanation.outcome)")
            return
        }
        #expect(translation.output.rawValue == page)
        #expect(
            explanation.steps.last
                == .note("a transaction would set the access flag and the dirty state of the leaf")
        )
        #expect(try guest.peek(entry) == page | Self.clean & ~Leaf.af | 3)
    }

    @Test("big-endian descriptors are updated in their byte order")
    func byteOrder() throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 39)
        tables.isBigEndian = true
        let page = try guest.page(holding: 6)
        try tables.map(0x5000, to: page, Self.clean & ~Leaf.af)
        try guest.attach(6, CDWords(endi: true, hd: true, ha: true, ttb0: tables.root))
        #expect(guest.dmaWrite(6, 0x5000, 7) == .ok(0))
        #expect(try tables.peek(try tables.entry(0x5000)) == page | Self.clean & ~Leaf.readOnly | 3)
    }

    @Test("stage 2 alone: S2HA sets AF, S2HD sets S2AP[1] at a write")
    func stage2() throws {
        let guest = try TestGuest.full()
        let tables = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        let page = try guest.page(holding: 6)
        let flags = Leaf2.read | Leaf2.normal | Leaf2.dbm
        try tables.map(0x5000, to: page, flags)
        try guest.setSTE(6, Stage2Tests.ste(Stage2Words(hd: true, ha: true, ttb: tables.root)))
        let entry = try tables.entry(0x5000)
        #expect(guest.dmaRead(6, 0x5000) == .ok(6))
        #expect(try guest.peek(entry) == page | flags | Leaf2.af | 3)
        #expect(guest.dmaWrite(6, 0x5000, 7) == .ok(0))
        #expect(try guest.peek(entry) == page | flags | Leaf2.af | Leaf2.write | 3)
    }

    @Test(
        "nested: an update of stage 1 is a write to stage 2: it needs permission, and makes that page dirty"
    )
    func nested() throws {
        for (ha, hd, flags, isPermitted) in [
            (true, true, Leaf2.dbm, true), (true, true, 0, false), (true, false, Leaf2.dbm, false),
        ] as [(Bool, Bool, UInt64, Bool)] {
            let guest = try TestGuest.full()
            let nested = try NestedSetup(guest, block: 3) { words in
                words.ha = ha
                words.hd = hd
            } cd: { cd in
                cd.ha = true
                cd.hd = true
            }
            let page = try guest.page(holding: 6)
            try nested.map(0x5000, toPhysical: page, Self.clean & ~Leaf.af)
            let leaf = try nested.stage1.entry(0x5000)
            let below = try nested.stage2.entry(nested.ipa(leaf) & ~0xFFF)
            let readOnly = try guest.peek(below) & ~(Leaf2.write | Leaf2.af) | flags
            try guest.poke(below, readOnly)
            #expect(guest.dmaWrite(6, 0x5008, 7) == (isPermitted ? .ok(0) : .fPermission))
            #expect(try guest.peek(below) == readOnly | Leaf2.af | (isPermitted ? Leaf2.write : 0))
            let updated = isPermitted ? Self.clean & ~Leaf.readOnly : Self.clean & ~Leaf.af
            #expect(try guest.peek(leaf) == nested.ipa(page) | updated | 3)
            let record = eventWords(
                0x13,
                stream: 6,
                isRead: false,
                eventClass: 1,
                isStage2: true,
                input: 0x5008,
                fetch: nested.ipa(leaf) & ~0xFFF
            )
            #expect(try guest.takeEvents() == (isPermitted ? [] : [record]), "TTRnW is 0")
        }
    }

    @Test("nested: an access that stage 2 refuses updates nothing in stage 1", arguments: [0, 1, 2])
    func refusedBehind(_ reason: Int) throws {
        let guest = try TestGuest.full()
        let nested = try NestedSetup(guest, block: 3) {
            $0.ha = true
        } cd: { cd in
            cd.ha = true
            cd.hd = true
        }
        let page = try guest.page(holding: 6)
        try nested.map(0x5000, toPhysical: page, Self.clean & ~Leaf.af)
        let behind = try nested.stage2.entry(nested.ipa(page))
        let good = try guest.peek(behind)
        try guest.poke(behind, [0, good & ~Leaf2.write, good & ~Leaf2.write & ~Leaf2.af][reason])
        #expect(guest.dmaWrite(6, 0x5000, 7) == (reason == 0 ? .fTranslation : .fPermission))
        let leaf = try nested.stage1.entry(0x5000)
        #expect(try guest.peek(leaf) == nested.ipa(page) | Self.clean & ~Leaf.af | 3)
        if reason == 2 { #expect(try guest.peek(behind) & Leaf2.af == 0, "nor in stage 2") }
        try guest.poke(behind, good)
        try guest.sync(Raw.tlbiS12VMAll(7))
        #expect(guest.dmaWrite(6, 0x5000, 7) == .ok(0))
        #expect(try guest.peek(leaf) == nested.ipa(page) | Self.clean & ~Leaf.readOnly | 3)
    }

    @Test("a descriptor that cannot be written is F_WALK_EABT")
    func readOnlyMemory() throws {
        let guest = try TestGuest.full()
        let tables = GuestTables(guest)
        try tables.map(0x5000, to: try guest.page(holding: 6), Leaf.readWrite & ~Leaf.af)
        try guest.attach(6, CDWords(ha: true, ttb0: tables.root))
        // The guest's RAM once more, read-only: the last table is used from there.
        let rom: UInt64 = 0x1_0000_0000
        let alias = try MemoryRegion.mapping(
            OwnedDescriptor(adopting: dup(guest.memory.fileDescriptor)),
            offset: 0,
            byteCount: TestGuest.ramBytes,
            isWritable: false
        )
        try guest.bus.addRAM(alias, at: PhysicalAddress(rom), name: "rom")
        let leaf = try tables.entry(0x5000) - TestGuest.ram + rom
        try guest.poke(try tables.entry(0x5000, level: 2), leaf & ~0xFFF | 3)
        #expect(guest.dmaRead(6, 0x5008) == .event(0x0B))
        let expected = eventWords(0x0B, stream: 6, isRead: true, eventClass: 1, input: 0x5008, fetch: leaf)
        #expect(try guest.takeEvents() == [expected])
    }

    @Test("a driver's changes of a descriptor and the SMMU's own never undo each other")
    func race() throws {
        let (guest, entry, page) = try stage1(ha: true, hd: true, Self.clean & ~Leaf.af)
        let location = PhysicalAddress(entry)
        let isDone = Flag()
        let smmu = guest.smmu
        // Several devices write all the time; the TLB is emptied under them so that they walk.
        let devices = (0..<3).map { _ in
            TestThread {
                let port = smmu.makePort(for: StreamID(6))
                while !isDone.isSet {
                    _ = port.write64(1, at: 0x5000 + 8)
                    smmu.translationCache.invalidate(.everything)
                }
            }
        }
        var seenDirty = 0
        var software: UInt64 = 0
        let base = page | Self.clean & ~Leaf.af | 3
        var expected = try guest.bus.loadRAM64(at: location)
        while seenDirty < 200 {
            // A counter in the software bits, and the flags cleared, both by compare and exchange as a driver does.
            let next = (software + 1) & 0xF
            let found = try guest.bus.compareExchange64(
                expected: expected,
                desired: base | next << 55,
                at: location
            )
            if found == expected {
                software = next
                if found & Leaf.readOnly == 0 { seenDirty += 1 }
                expected = base | next << 55
            } else {
                // Only hardware came between: it sets flags, and leaves the rest as the driver wrote it.
                #expect(
                    found & ~(Leaf.af | Leaf.readOnly) == (base | software << 55) & ~(Leaf.af | Leaf.readOnly)
                )
                #expect(found & Leaf.af != 0)
                expected = found
            }
        }
        isDone.set()
        for device in devices { device.join() }
    }
}
