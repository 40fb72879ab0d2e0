// Each mistake in an IORT gets its message, with the node's offset, and no other.

import ACPITables
import IORTFixtures
import Testing

/// A table with a mistake, and what is to be said of it.
struct BrokenTable: CustomTestStringConvertible, Sendable {
    let changes: [IORTChange]
    let message: String

    init(_ message: String, _ changes: IORTChange...) {
        self.message = message
        self.changes = changes
    }

    var testDescription: String { message }

    /// Changes of iort/everything.hex.
    static let all: [BrokenTable] = [
        // The table.
        BrokenTable(
            "Table Length: is 0x20; the header alone has 0x30 bytes",
            IORTChange(4, 0x20)
        ),
        BrokenTable(
            "the IORT is truncated: the file has 924 bytes; its header says 1024 (Table Length)",
            IORTChange(4, 1024)
        ),
        BrokenTable(
            "Node Offset: is 0x2c; the first node is behind the header of 0x30 bytes, and in the table's 0x39c",
            IORTChange(40, 0x2C)
        ),
        BrokenTable(
            "Node Offset: is 0xffffffff; the first node is behind the header of 0x30 bytes, and in the table's 0x39c",
            IORTChange(40, 0xFFFF_FFFF)
        ),
        BrokenTable(
            "Node Count: is 4294967295, and the table ends after 13 nodes, at 0x39c; either it or the nodes' lengths are "
                + "wrong",
            IORTChange(36, 0xFFFF_FFFF)
        ),
        // Nodes.
        BrokenTable(
            "IORT node 0x30 (ITS group): Length: is 0x0; a node has 0x10 bytes at least, and here 0x36c are left of the "
                + "table",
            IORTChange(0x31, 0, byteCount: 2)
        ),
        BrokenTable(
            "IORT node 0x350 (SMMUv1 or v2): Length: is 0x4d; a node has 0x10 bytes at least, and here 0x4c are left of "
                + "the table",
            IORTChange(0x351, 0x4D, byteCount: 2)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): Length: is 0x43; a node of this type and revision 5 has at least 0x44 bytes",
            IORTChange(0x4D, 0x43, byteCount: 2)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): Mapping Offset: is 0x40; with Mapping Count 2 it lies between 0x44 and the node's "
                + "Length, 0x6c",
            IORTChange(0x58, 0x40)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): Mapping Offset: is 0x0; with Mapping Count 2 it lies between 0x44 and the node's "
                + "Length, 0x6c",
            IORTChange(0x58, 0)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): Mapping Count: is 3; from 0x44 on (Mapping Offset) a node of 0x6c bytes has room "
                + "for 2",
            IORTChange(0x54, 3)
        ),
        BrokenTable(
            "IORT node 0x30 (ITS group): Mapping Count: is 1; an ITS group is where IDs end: it has no mappings",
            IORTChange(0x38, 1)
        ),
        BrokenTable(
            "IORT node 0x30 (ITS group): ItsCount: is 3; a group has an ITS or more, and this node of 0x1c bytes has room "
                + "for 2",
            IORTChange(0x40, 3)
        ),
        BrokenTable(
            "IORT node 0x30 (ITS group): ItsCount: is 0; a group has an ITS or more, and this node of 0x1c bytes has room "
                + "for 2",
            IORTChange(0x40, 0)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): HTTU Override: is 3; it is 0 for none, 1 for the Access flag, 2 for dirty state too",
            IORTChange(0x64, 0x1F)
        ),
        BrokenTable(
            "IORT node 0x23c (named component): Device Name: is \"/_SB_.DMA0\"; it is the object's full path in the ACPI "
                + "namespace, with a zero at its end: \"\\_SB_.DMA0\"",
            IORTChange(0x259, 0x2F, byteCount: 1)
        ),
        BrokenTable(
            "IORT node 0x23c (named component): Device Name: is \"\\_SB_.DMA00\"; it is the object's full path in the ACPI "
                + "namespace, with a zero at its end: \"\\_SB_.DMA0\"",
            IORTChange(0x263, 0x30, byteCount: 1)
        ),
        BrokenTable(
            "IORT node 0x1b8 (root complex): Cache Coherency: is 0x2; it is 1 for coherent, or 0",
            IORTChange(0x1C8, 2)
        ),
        BrokenTable(
            "IORT node 0x2c8 (RMR): Number of memory range descriptors: is 2; from 0x30 on (Memory range descriptor "
                + "offset) a node of 0x44 bytes has room for 1",
            IORTChange(0x2DC, 2)
        ),
        BrokenTable(
            "IORT node 0x2c8 (RMR): Memory range descriptor offset: is 0x10; with Number of memory range descriptors 1 it "
                + "lies between 0x1c and the node's Length, 0x44",
            IORTChange(0x2E0, 0x10)
        ),
        // References.
        BrokenTable(
            "IORT node 0x208 (root complex): ID mapping 0: Output Reference: is 0x0, where no node starts; it is a node's "
                + "offset in the table: 0x30, 0x4c, 0xb8, 0x110, 0x154, 0x17c, 0x1b8, 0x208, ...",
            IORTChange(0x234, 0)
        ),
        BrokenTable(
            "IORT node 0x208 (root complex): ID mapping 0: Output Reference: leads to the node itself; IDs of a root "
                + "complex go to SMMUv3 nodes, SMMUv1 or v2 nodes, ITS group nodes",
            IORTChange(0x234, 0x208)
        ),
        BrokenTable(
            "IORT node 0x208 (root complex): ID mapping 0: Output Reference: leads to IORT node 0x154 (PMCG); IDs of a "
                + "root complex go to SMMUv3 nodes, SMMUv1 or v2 nodes, ITS group nodes",
            IORTChange(0x234, 0x154)
        ),
        BrokenTable(
            "IORT node 0x4c (SMMUv3): ID mapping 0: Output Reference: leads to IORT node 0xb8 (SMMUv3); IDs of an SMMUv3 "
                + "go to ITS group nodes",
            IORTChange(0x9C, 0xB8)
        ),
        BrokenTable(
            "IORT node 0x2c8 (RMR): ID mapping 0: Output Reference: leads to IORT node 0x30 (ITS group); IDs of an RMR "
                + "go to SMMUv3 nodes, SMMUv1 or v2 nodes",
            IORTChange(0x2F0, 0x30)
        ),
        BrokenTable(
            "IORT node 0x154 (PMCG): Node Reference: is 0x4d, where no node starts; it is a node's offset in the table: "
                + "0x30, 0x4c, 0xb8, 0x110, 0x154, 0x17c, 0x1b8, 0x208, ...",
            IORTChange(0x170, 0x4D)
        ),
        BrokenTable(
            "IORT node 0x154 (PMCG): Node Reference: leads to IORT node 0x17c (PMCG); a PMCG counts for an SMMU, a root "
                + "complex, a named component or an ITS group",
            IORTChange(0x170, 0x17C)
        ),
        BrokenTable(
            "IORT node 0x208 (root complex): ID mapping 0: ID Count: 0xffffffff IDs and one more from Output Base 0x20000 "
                + "on; IDs have 32 bits",
            IORTChange(0x22C, 0xFFFF_FFFF)
        ),
        BrokenTable(
            "IORT node 0x208 (root complex): ID mapping 0: ID Count: 0xffff IDs and one more from Input base 0xffffff00 "
                + "on; IDs have 32 bits",
            IORTChange(0x228, 0xFFFF_FF00)
        ),
    ]
}

@Suite("Broken IORTs")
struct BrokenTableTests {
    private func messages(_ bytes: [UInt8]) -> [String] {
        do throws(IORTErrors) {
            _ = try IORTTable(bytes)
            return []
        } catch {
            return error.diagnostics.map(\.description)
        }
    }

    private func warnings(_ table: IORTFixture) throws -> [String] {
        try IORTTable(table.bytes).warnings.map(\.description)
    }

    @Test("Each mistake gets its message, and no other", arguments: BrokenTable.all)
    func message(_ broken: BrokenTable) throws {
        let table = try IORTFixture("everything").with(broken.changes)
        #expect(messages(table.bytes) == [broken.message])
    }

    @Test("A checksum that is wrong is said with the one that would be right")
    func checksum() throws {
        var table = try IORTFixture("qemu-virt")
        table.bytes[9] = 0x56
        #expect(
            messages(table.bytes) == [
                "Checksum: is 0x56, and the bytes add up to 0x1; all bytes of a table add up to 0: 0x55 would be right, "
                    + "if it is not damaged"
            ]
        )
    }

    @Test("Single Mapping is not for SMMUv1 and v2, whose IDs are ranges")
    func singleMapping() throws {
        // The last node grows by a mapping to the ITS group.
        var table = try IORTFixture("everything")
        table.bytes += [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 1, 0, 0, 0]
        let grown = table.with(
            IORTChange(4, UInt64(table.bytes.count)),
            IORTChange(0x351, 0x60, byteCount: 2),
            IORTChange(0x358, 1),
            IORTChange(0x35C, 0x4C)
        )
        #expect(
            messages(grown.bytes) == [
                "IORT node 0x350 (SMMUv1 or v2): ID mapping 0: Flags: has Single Mapping; an SMMUv1 or v2 has ranges of IDs"
            ]
        )
    }

    @Test("What is doubtful is said, and the table read all the same")
    func doubtful() throws {
        let table = try IORTFixture("everything")
        #expect(
            try warnings(table.with(IORTChange(8, 4, byteCount: 1))) == [
                "Revision: is 4; 0, 3, 5, 6 and 7 are in use; it is read as far as it is like them"
            ]
        )
        #expect(
            try warnings(table.with(IORTChange(8, 8, byteCount: 1))) == [
                "Revision: is 8; known are 0 to 7; it is read as far as it is like them"
            ]
        )
        #expect(
            try warnings(table.with(IORTChange(36, 0))) == ["Node Count: is 0; the table describes nothing"]
        )
        #expect(
            try warnings(table.without(0x350)) == [
                "IORT node 0x350 (type 238): Type: is 238; known are 0 to 6; the node is ignored"
            ]
        )
        #expect(
            try warnings(table.without(0x208)) == [
                "IORT node 0x208 (type 238): Type: is 238; known are 0 to 6; the node is ignored"
            ],
            "its mappings too"
        )
        #expect(
            try warnings(table.with(IORTChange(0xE0, 9))) == [
                "IORT node 0xb8 (SMMUv3): Model: is 0x9; known are 0 to 2; it is taken as 0, generic"
            ]
        )
        #expect(
            try warnings(table.with(IORTChange(0x50, 0))) == [
                "IORT node 0x4c (SMMUv3): Identifier: is 0, as that of IORT node 0x30 (ITS group); from revision 3 of the "
                    + "table on each node has its own; nothing here depends on it"
            ]
        )
        let longer = IORTFixture(table.bytes + [1, 2, 3])
        #expect(
            try warnings(longer) == [
                "Table Length: is 924, and the file has 927 bytes; what follows the table is ignored"
            ]
        )
    }

    @Test(
        "A foreign file is named for what it is",
        arguments: [
            ([], "an empty file; give the table's bytes as firmware has them"),
            ([0xD0, 0x0D, 0xFE, 0xED], "a device tree blob; give it as BOARD.dtb, without --iort"),
            (
                Array("/*\n * Disassembly of iort.dat\n */\n[000h 0000 4] Signature : \"IORT\"\n".utf8),
                "iasl's text of a table; compile it first: iasl iort.dsl writes iort.aml"
            ),
            (
                Array("IORT @ 0x0000000000000000\n    0000: 49 4F 52 54\n".utf8),
                "acpidump's text; take the table out of it first: acpixtract -sIORT writes iort.dat"
            ),
            (
                Array("MCFG".utf8) + [36, 0, 0, 0] + [UInt8](repeating: 0, count: 28),
                "the ACPI table MCFG; give the table's bytes as firmware has them"
            ),
            (
                [0, 1, 2, 0xAB, 9],
                "something that starts with 00 01 02 ab; give the table's bytes as firmware has them"
            ),
        ] as [([UInt8], String)]
    )
    func foreign(_ bytes: [UInt8], _ expected: String) {
        #expect(messages(bytes).first?.hasPrefix("not an IORT but " + expected) == true, "\(messages(bytes))")
    }

    @Test("A table that is cut anywhere, or larger than any, is refused in one line")
    func cut() throws {
        let whole = try IORTFixture("everything").bytes
        for count in 0..<whole.count { #expect(messages(Array(whole.prefix(count))).count == 1) }
        let large = Array("IORT".utf8) + [UInt8](repeating: 0, count: 256 << 10)
        #expect(messages(large) == ["the IORT is too large; it has at most 262144 bytes (256 KiB)"])
    }

    @Test("Any byte changed to anything gives a table or an error, never a trap")
    func everyByte() throws {
        let table = try IORTFixture("everything")
        for offset in table.bytes.indices {
            for value in [0, 1, 0x7F, 0x80, 0xFF] as [UInt64] {
                let bytes = table.with(IORTChange(offset, value, byteCount: 1)).bytes
                #expect(messages(bytes).allSatisfy { !$0.isEmpty })
            }
        }
    }
}
