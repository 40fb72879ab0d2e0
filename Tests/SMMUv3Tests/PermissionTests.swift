// Permissions against a truth table of its own: AP, hierarchical attributes, execute-never, WXN, PAN, overrides.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Testing

@testable import SMMUv3

@Suite("Permissions")
struct PermissionTests {
    /// One way to access.
    struct Access: Hashable, Sendable, CaseIterable {
        var isPrivileged: Bool
        /// "r", "w" or "x".
        var kind: Character

        static let allCases = [true, false].flatMap { privileged in
            (["r", "w", "x"] as [Character]).map { Access(isPrivileged: privileged, kind: $0) }
        }

        var attributes: TransactionAttributes {
            TransactionAttributes(isPrivileged: isPrivileged, isInstruction: kind == "x")
        }
    }

    /// What AP[2:1] permits as VMSAv8-64 tabulates it: ("rw" or "r" or "") for privileged and unprivileged.
    static let table: [(privileged: String, unprivileged: String)] = [
        ("rw", ""), ("rw", "rw"), ("r", ""), ("r", "r"),
    ]

    /// The permissions of a page, worked out from the specification's table and rules in words.
    static func isPermitted(
        _ access: Access,
        ap: Int,
        apTable: Int = 0,
        pxn: Bool = false,
        uxn: Bool = false,
        wxn: Bool = false,
        pan: Bool = false
    ) -> Bool {
        // APTable: 01 removes unprivileged access, 10 all writes.
        var row = table[ap]
        if apTable & 1 != 0 { row.unprivileged = "" }
        if apTable & 2 != 0 {
            row.privileged = row.privileged.replacing("w", with: "")
            row.unprivileged = row.unprivileged.replacing("w", with: "")
        }
        let data = access.isPrivileged ? row.privileged : row.unprivileged
        if access.kind != "x" {
            if access.isPrivileged, pan, !row.unprivileged.isEmpty { return false }
            return data.contains(access.kind)
        }
        if wxn, data.contains("w") { return false }
        guard access.isPrivileged else { return !uxn }
        return !pxn && !row.unprivileged.contains("w")
    }

    static func perform(_ access: Access, _ guest: TestGuest, _ address: UInt64, stream: UInt32 = 6)
        -> DMAOutcome
    {
        access.kind == "w"
            ? guest.dmaWrite(stream, address, 0, access.attributes)
            : guest.dmaRead(stream, address, access.attributes)
    }

    @Test(
        "every AP, PXN, UXN, WXN, PAN, privilege and kind of access, from the tables and from the TLB",
        arguments: [false, true],
        [false, true]
    )
    func leaves(_ wxn: Bool, _ pan: Bool) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6) { cd in
            cd.wxn = wxn
            cd.pan = pan
        }
        let page = try guest.page(holding: 0)
        for combination in 0..<16 {
            let ap = combination & 3
            let pxn = combination & 4 != 0
            let uxn = combination & 8 != 0
            let address = 0x10000 + UInt64(combination) * 0x1000
            let flags = UInt64(ap) << 6 | bit(pxn, 53) | bit(uxn, 54) | Leaf.af | Leaf.nG
            try tables.map(address, to: page, flags)
            for round in ["miss", "hit"] {
                for access in Access.allCases {
                    if round == "miss" { try guest.issue(Raw.tlbiNHAll) }
                    let permitted = Self.isPermitted(access, ap: ap, pxn: pxn, uxn: uxn, wxn: wxn, pan: pan)
                    let outcome = Self.perform(access, guest, address)
                    #expect(
                        outcome == (permitted ? .ok(0) : .fPermission),
                        "AP \(ap) PXN \(pxn) UXN \(uxn) \(access) \(round)"
                    )
                    let record = eventWords(
                        0x13,
                        stream: 6,
                        isRead: access.kind != "w",
                        isPrivileged: access.isPrivileged,
                        isInstruction: access.kind == "x",
                        eventClass: 2,
                        input: address
                    )
                    #expect(try guest.takeEvents() == (permitted ? [] : [record]))
                }
            }
        }
    }

    @Test(
        "APTable, PXNTable and UXNTable accumulate over the levels, and HAD switches them off",
        arguments: 0..<16,
        [false, true]
    )
    func hierarchy(_ upper: Int, _ had: Bool) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6, size: 16) { $0.had0 = had }
        let page = try guest.page(holding: 0)
        // Levels 0 and 2 carry attributes; level 1 does not.
        for lower in [0, 1, 2, 4, 8, 15] {
            for ap in 0..<4 {
                let address = UInt64(lower) << 30 | UInt64(ap) << 12
                try tables.map(address, to: page, UInt64(ap) << 6 | Leaf.af | Leaf.nG)
                for (level, attributes) in [(0, upper), (2, lower)] {
                    let entry = try tables.entry(address, level: level)
                    let high =
                        UInt64(attributes & 3) << 61 | bit(attributes & 4 != 0, 59)
                        | bit(attributes & 8 != 0, 60)
                    try guest.poke(entry, try guest.peek(entry) & ~(0xF << 59) | high)
                }
                let combined = had ? 0 : upper | lower
                for access in Access.allCases {
                    for _ in 0..<2 {
                        let permitted = Self.isPermitted(
                            access,
                            ap: ap,
                            apTable: combined & 3,
                            pxn: combined & 4 != 0,
                            uxn: combined & 8 != 0
                        )
                        let outcome = Self.perform(access, guest, address)
                        #expect(
                            outcome == (permitted ? .ok(0) : .fPermission),
                            "tables \(upper) and \(lower), AP \(ap), \(access)"
                        )
                    }
                }
                try guest.issue(Raw.tlbiNHAll)
            }
        }
    }

    @Test("HAD1 belongs to TTB1 alone")
    func upperHalfHAD() throws {
        let guest = try TestGuest()
        for (had0, had1) in [(true, false), (false, true)] {
            let lower = GuestTables(guest)
            let upper = GuestTables(guest)
            let page = try guest.page(holding: 4)
            for (tables, address) in [(lower, 0x1000), (upper, 0xFFFF_FFFF_FFFF_1000)]
                as [(GuestTables, UInt64)]
            {
                try tables.map(address, to: page)
                let entry = try tables.entry(address, level: 1)
                try guest.poke(entry, try guest.peek(entry) | 1 << 61)
            }
            try guest.attach(
                6,
                CDWords(epd1: false, had0: had0, ttb0: lower.root, had1: had1, ttb1: upper.root)
            )
            try guest.sync(Raw.tlbiNHAll)
            #expect(guest.dmaRead(6, 0x1000) == (had0 ? .ok(4) : .fPermission))
            #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_1000) == (had1 ? .ok(4) : .fPermission))
        }
    }

    @Test("a read, then a write to a page whose table forbids writes: the hit knows it too")
    func tablePermissionInTheTLB() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        let page = try guest.page(holding: 0xCAFE)
        try tables.map(0x1000, to: page)
        let entry = try tables.entry(0x1000, level: 2)
        try guest.poke(entry, try guest.peek(entry) | 2 << 61)
        #expect(guest.dmaRead(6, 0x1000) == .ok(0xCAFE))
        #expect(guest.dmaWrite(6, 0x1000) == .fPermission)
        #expect(try guest.peek(page) == 0xCAFE)
    }

    @Test(
        "PRIVCFG and INSTCFG replace what the device drives, in the check and in the record",
        arguments: 0..<16
    )
    func overrides(_ configuration: Int) throws {
        let guest = try TestGuest()
        let tables = GuestTables(guest)
        let privCfg = UInt64(configuration & 3)
        let instCfg = UInt64(configuration >> 2)
        let context = try guest.attach(6, CDWords(ttb0: tables.root))
        try guest.setSTE(6, STEWords(s1ContextPtr: context, privCfg: privCfg, instCfg: instCfg))
        let page = try guest.page(holding: 0)
        // Pages that tell the kinds apart: privileged data only; privileged execute only; unprivileged anything.
        let pages: [(ap: Int, pxn: Bool, uxn: Bool)] = [
            (0, true, true), (0, false, true), (2, true, true), (1, true, false),
        ]
        for (index, kind) in pages.enumerated() {
            let address = 0x10000 + UInt64(index) * 0x1000
            try tables.map(
                address,
                to: page,
                UInt64(kind.ap) << 6 | bit(kind.pxn, 53) | bit(kind.uxn, 54) | Leaf.af | Leaf.nG
            )
            for access in Access.allCases {
                var effective = access
                if privCfg == 2 { effective.isPrivileged = false }
                if privCfg == 3 { effective.isPrivileged = true }
                if access.kind != "w", instCfg == 2 { effective.kind = "r" }
                if access.kind != "w", instCfg == 3 { effective.kind = "x" }
                let permitted = Self.isPermitted(effective, ap: kind.ap, pxn: kind.pxn, uxn: kind.uxn)
                for _ in 0..<2 {
                    #expect(
                        Self.perform(access, guest, address) == (permitted ? .ok(0) : .fPermission),
                        "\(access) as \(effective)"
                    )
                    let record = eventWords(
                        0x13,
                        stream: 6,
                        isRead: effective.kind != "w",
                        isPrivileged: effective.isPrivileged,
                        isInstruction: effective.kind == "x",
                        eventClass: 2,
                        input: address
                    )
                    #expect(try guest.takeEvents() == (permitted ? [] : [record]))
                }
            }
        }
    }

    @Test("without ATTR_PERMS_OVR the overrides do nothing")
    func overridesNotImplemented() throws {
        var setup = GuestSetup()
        setup.identification.idr1.attrPermsOvr = false
        let guest = try TestGuest(setup)
        let tables = GuestTables(guest)
        let context = try guest.attach(6, CDWords(ttb0: tables.root))
        try guest.setSTE(6, STEWords(s1ContextPtr: context, privCfg: 3, instCfg: 3))
        try tables.map(0x1000, to: try guest.page(holding: 1), Leaf.af)
        #expect(guest.dmaRead(6, 0x1000) == .fPermission, "still unprivileged")
    }

    @Test("a write is data whatever the device says")
    func instructionWrites() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        try tables.map(0x1000, to: try guest.page(holding: 0), Leaf.readWrite | Leaf.uxn | Leaf.pxn)
        #expect(guest.dmaWrite(6, 0x1000, 0, TransactionAttributes(isInstruction: true)) == .ok(0))
        #expect(guest.dmaWrite(6, 0x2000, 0, TransactionAttributes(isInstruction: true)) == .fTranslation)
        #expect(
            try guest.takeEvents() == [
                eventWords(0x10, stream: 6, isRead: false, eventClass: 2, input: 0x2000)
            ]
        )
    }
}
