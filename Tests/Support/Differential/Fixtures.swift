// Each known deviation of QEMU, provoked.

import AddressSpace
import SMMUv3Spec

/// A known deviation, and the case that shows it.
package struct DeviationCase: Sendable {
    package let name: String
    /// What QEMU does, and what the architecture says instead.
    package let reason: String
    package let run: Case

    init(_ name: String, _ reason: String, _ config: StreamConfig, _ build: (Fixture) -> Void) {
        self.name = name
        self.reason = reason
        let fixture = Fixture(config)
        build(fixture)
        run = fixture.finished(name)
    }

    /// All of them: ``Deviations`` has the same names.
    package static var all: [DeviationCase] { structures + walks + nested + caches + commands }

    private static var commands: [DeviationCase] {
        CaseGenerator.accepted.map { command in
            DeviationCase(
                "command-accepted",
                "no CERROR_ILL for \(command.opcode) though it is illegal here (IHI 0070, 4.1 to 4.7)",
                .stage1
            ) {
                $0.boot()
                $0.builder.issue(command, .sync())
            }
        }
    }

    private static var structures: [DeviationCase] {
        [
            DeviationCase("bad-streamid-recorded", "C_BAD_STREAMID is recorded with CR2.RECINVSID 0", .stage1)
            {
                $0.table.log2Size = 3
                $0.table.cr2 = 0
                $0.boot()
                $0.read()
            },
            DeviationCase("l1std-span-doubled", "an L1STD serves 2^Span STEs; it has 2^(Span-1)", .stage1) {
                $0.shape.isTwoLevel = true
                $0.span = 4
                $0.boot()
                $0.read()
            },
            DeviationCase("s1cdmax-refused", "C_BAD_STE for S1CDMax, IGNORED without SubstreamIDs", .stage1) {
                $0.ste.s1CDMax = 2
                $0.boot()
                $0.read()
            },
            DeviationCase("s2-updates-accepted", "S2HA and S2HD are ILLEGAL without HTTU", .stage2) {
                $0.ste.s2HA = true
                $0.boot()
                $0.read(Layout.data)
            },
            DeviationCase("context-beyond-oas", "S1ContextPtr beyond OAS is C_BAD_STE from v3.1 on", .stage1)
            {
                $0.ste.s1ContextPtr |= 1 << 44
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "cd-fetch-address",
                "F_CD_FETCH has FetchAddr in dword 2; it belongs in dword 3",
                .stage1
            ) {
                $0.ste.s1ContextPtr = Layout.nowhere
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "s2-size-beyond-ps",
                "C_BAD_STE where IPAs have more bits than S2PS; IAS limits them",
                .stage2
            ) {
                $0.ste.s2PS = 0
                $0.boot()
                $0.read(Layout.data)
            },
            DeviationCase("s2t0sz-too-large-accepted", "S2T0SZ too large for S2SL0 is ILLEGAL", .stage2) {
                ($0.ste.s2SL0, $0.ste.s2T0SZ) = (2, 35)
                $0.boot()
                $0.read(Layout.data & 0xFFF_FFFF)
            },
        ]
    }

    private static var walks: [DeviationCase] {
        [
            DeviationCase(
                "stage2-first-table-alone",
                "concatenated tables: the first is walked where the second says that nothing is mapped",
                .stage2
            ) {
                $0.ste.s2T0SZ = 24
                $0.boot()
                $0.read(1 << 39 | Layout.data)
            },
            DeviationCase("table-address-size-unchecked", "a table beyond IPS is F_ADDR_SIZE", .stage1) {
                $0.cd.ips = 0
                $0.builder.poke(Fixture.root, 1 << 33 | 3)
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "leaf-address-size-last",
                "a leaf's address size is checked before its permissions",
                .stage1
            ) {
                $0.cd.ips = 0
                $0.leaf(0, 1 << 33 | 0xF43 | 1 << 7)
                $0.boot()
                $0.write()
            },
            DeviationCase(
                "blocks-at-every-level",
                "0b01 is no block at level 0 of the 4 KiB granule",
                .stage1
            ) {
                $0.cd.t0SZ = 16
                $0.builder.poke(Fixture.root, 0xF41)
                $0.boot()
                $0.read(Layout.data)
            },
            DeviationCase("tbi0-for-both-halves", "TBI1 decides for the upper half", .stage1) {
                ($0.cd.epd1, $0.cd.t1SZ, $0.cd.tg1, $0.cd.ttb1) = (false, 25, 2, Fixture.root)
                $0.cd.tbi0 = true
                $0.boot()
                $0.read(0x12FF_FF80_0000_0000 | Fixture.address)
            },
            DeviationCase("aptable-at-once", "APTable is checked at the leaf, which is invalid", .stage1) {
                $0.builder.poke(Fixture.root, Fixture.middle | 3 | 1 << 62)
                $0.leaf(0, 0)
                $0.boot()
                $0.write()
            },
            DeviationCase(
                "always-privileged",
                "PCIe without PASID is unprivileged: AP[1] 0 refuses it",
                .stage1
            ) {
                $0.leaf(0, Layout.data | 0xF03)
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "beyond-ias-as-stage1",
                "stage 2 beyond IAS: F_ADDR_SIZE of stage 1, recorded",
                .stage2
            ) {
                $0.boot()
                $0.read(1 << 45)
            },
            DeviationCase("ipa-low-bits", "IPA is [51:12] of the address; the rest is RES0", .stage2) {
                $0.boot()
                $0.read(Fixture.unmapped)
                $0.read(Fixture.unmapped)
            },
        ]
    }

    private static var nested: [DeviationCase] {
        [
            DeviationCase("structure-fault-reads", "RnW is the input transaction's", .nested) {
                $0.ste.s1ContextPtr = Fixture.unmapped
                $0.boot()
                $0.write()
            },
            DeviationCase(
                "nested-table-base-translated",
                "each descriptor's IPA goes through stage 2, not where its table begins",
                .nested
            ) {
                // One table of 64 KiB, of which stage 2 puts one page elsewhere.
                let table = Layout.tables + 0x4_0000
                ($0.cd.t0SZ, $0.cd.tg0, $0.cd.ttb0) = (35, 1, table)
                $0.splitTables()
                $0.page2(table + 0x8000, (table + 0x2_0000) | 0x7FF)
                $0.builder.poke(table + 0x2_0000, Layout.data | 0xF43)
                $0.boot()
                $0.read(0x1000 << 16)
            },
            DeviationCase("nested-table-fault-as-stage1", "a stage-2 fault on a table has S2 1", .nested) {
                $0.builder.poke(Fixture.root, Fixture.unmapped | 3)
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "nested-root-translated-with-cd",
                "the other half's table has no part in a translation",
                .nested
            ) {
                ($0.cd.epd1, $0.cd.t1SZ, $0.cd.tg1, $0.cd.ttb1) = (false, 25, 2, Fixture.unmapped)
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "nested-root-translated-with-cd",
                "a CD that is wrong in its other half is C_BAD_CD, wherever TTB0 is",
                .nested
            ) {
                $0.cd.ttb0 = Fixture.unmapped
                ($0.cd.epd1, $0.cd.t1SZ, $0.cd.tg1) = (false, 60, 2)
                $0.boot()
                $0.read()
            },
            DeviationCase(
                "nested-table-abort-tells-ipa",
                "FetchAddr is the descriptor's that could not be fetched, not the IPA of the table it is for",
                .nested
            ) {
                // Stage 2 has a table where no RAM is, for the GiB in which stage 1 has one.
                $0.builder.poke(Fixture.root, 0x1_4020_0000 | 3)
                $0.builder.poke(Fixture.root2 + 5 * 8, Layout.nowhere | 3)
                $0.boot()
                $0.read()
            },
            DeviationCase("ttrnw-zero", "TTRnW is 1 where a descriptor's fetch is refused", .nested) {
                $0.splitTables()
                $0.page2(Fixture.root, Fixture.root | 0x7BF)
                $0.boot()
                $0.read()
            },
            DeviationCase("s2ptw-ignored", "S2PTW: no table walk through Device memory", .nested) {
                $0.ste.s2PTW = true
                $0.splitTables()
                $0.page2(Fixture.middle, Fixture.middle | 0x7C3)
                $0.boot()
                $0.read()
            },
        ]
    }

    private static var caches: [DeviationCase] {
        [
            DeviationCase("stage2-hit-unrecorded", "a hit that refuses is F_PERMISSION too", .stage2) {
                $0.splitData()
                $0.page2(Layout.data, Layout.data | 0x77F)
                $0.boot()
                $0.read(Layout.data)
                $0.write(Layout.data)
            },
            DeviationCase("aptable-not-cached", "APTable refuses writes of a cached page", .stage1) {
                $0.builder.poke(Fixture.root, Fixture.middle | 3 | 1 << 62)
                $0.boot()
                $0.read()
                $0.write()
            },
            DeviationCase(
                "nested-hit-as-stage2-without-ipa",
                "F_PERMISSION says whose it is, and the IPA",
                .nested
            ) {
                $0.splitData()
                $0.page2(Layout.data, Layout.data | 0x77F)
                $0.boot()
                $0.read()
                $0.write()
            },
            DeviationCase("nested-permissions-not-cached", "stage 2 refuses reads of a cached page", .nested)
            {
                $0.splitData()
                $0.page2(Layout.data, Layout.data | 0x7BF)
                $0.boot()
                $0.write()
                $0.read()
            },
            DeviationCase("tlbi-compares-top-byte", "an ignored top byte has no part in a TLBI", .stage1) {
                $0.cd.tbi0 = true
                $0.boot()
                let tagged = 0x11 << 56 | Fixture.address
                $0.read(tagged)
                $0.leaf(0, 0)
                $0.builder.issue(.tlbiNHVA(vmid: 7, asid: 3, address: Fixture.address, leaf: true), .sync())
                $0.read(tagged)
            },
            DeviationCase(
                "nested-block-invalidated-in-part",
                "an address of a stage-1 block reaches all that was cached of it",
                .nested
            ) {
                $0.splitData()
                $0.builder.poke(Fixture.middle + 4 * 8, Layout.data | 0xF41)
                $0.boot()
                $0.read(Fixture.address)
                $0.read(Fixture.address + 0x1000)
                $0.builder.poke(Fixture.middle + 4 * 8, 0)
                $0.builder.issue(.tlbiNHVA(vmid: 7, asid: 3, address: Fixture.address, leaf: true), .sync())
                $0.read(Fixture.address)
                $0.read(Fixture.address + 0x1000)
            },
        ]
    }
}
