// What cannot be so on a board, although the IORT's bytes are in order: one message each, with the node's offset.

import AddressSpace
import DeviceTree
import IORTFixtures
import SeededRandomness
import Testing

/// Changes of iort/everything.hex, and what is to be said of them.
struct BrokenIORT: CustomTestStringConvertible, Sendable {
    let changes: [IORTChange]
    let message: String

    init(_ message: String, _ changes: IORTChange...) {
        self.message = message
        self.changes = changes
    }

    var testDescription: String { message }

    static let errors: [BrokenIORT] = [
        BrokenIORT(
            "IORT node 0x4c (SMMUv3): Base Address: is 0x2b408000; the registers stand at a multiple of 64 KiB, not at 0, "
                + "and within 52 bits",
            IORTChange(0x5C, 0x2B40_8000)
        ),
        BrokenIORT(
            "IORT node 0x110 (SMMUv3): Base Address: is 0x0; the registers stand at a multiple of 64 KiB, not at 0, and "
                + "within 52 bits",
            IORTChange(0x120, 0)
        ),
        BrokenIORT(
            "IORT node 0x110 (SMMUv3): Base Address: is 0xfffffffffff0000; the registers stand at a multiple of 64 KiB, "
                + "not at 0, and within 52 bits",
            IORTChange(0x120, 0x0FFF_FFFF_FFFF_0000, byteCount: 8)
        ),
        BrokenIORT(
            "IORT node 0xb8 (SMMUv3): Base Address: 0x2b410000-0x2b42ffff overlaps 0x2b400000-0x2b41ffff of "
                + "/iort/smmuv3@2b400000; SMMUs need registers of their own",
            IORTChange(0xC8, 0x2B41_0000)
        ),
        BrokenIORT(
            "IORT node 0x4c (SMMUv3): Event GSIV: is 27; it is the INTID of an SPI: 32 to 1019, that is SPI 0 to 987, or "
                + "4096 to 5119",
            IORTChange(0x78, 27)
        ),
        BrokenIORT(
            "IORT node 0x4c (SMMUv3): Sync GSIV: is 1020; it is the INTID of an SPI: 32 to 1019, that is SPI 0 to 987, or "
                + "4096 to 5119",
            IORTChange(0x84, 1020)
        ),
        BrokenIORT(
            "IORT node 0x4c (SMMUv3): Device ID Mapping Index: is 2; the node's ID mappings are 0 to 1",
            IORTChange(0x8C, 2),
            IORTChange(0xB4, 0)
        ),
        BrokenIORT(
            "IORT node 0x154 (PMCG): Page 0 Base Address: is 0x2b420800; a page of a counter group stands at a multiple of "
                + "4 KiB, not at 0, and within 52 bits",
            IORTChange(0x164, 0x2B42_0800)
        ),
        BrokenIORT(
            "IORT node 0x154 (PMCG): Page 0 Base Address: 0x2b410000-0x2b410fff overlaps 0x2b400000-0x2b41ffff, which is a "
                + "register region of IORT node 0x4c (SMMUv3); RAM and register regions each need addresses of "
                + "their own",
            IORTChange(0x164, 0x2B41_0000)
        ),
        BrokenIORT(
            "IORT node 0x154 (PMCG): Overflow Interrupt GSIV: is 5120; it is the INTID of an SPI: 32 to 1019, that is SPI 0 "
                + "to 987, or 4096 to 5119",
            IORTChange(0x16C, 5120)
        ),
        BrokenIORT(
            "IORT node 0x208 (root complex): PCI Segment Number: is 0x10000; a segment has 16 bits",
            IORTChange(0x224, 0x10000)
        ),
        BrokenIORT(
            "IORT node 0x1b8 (root complex): ID mappings: one of 2 has Single Mapping; it gives all functions of the root "
                + "complex one ID, so it stands alone",
            IORTChange(0x1F0, 1)
        ),
        BrokenIORT(
            "IORT node 0x1b8 (root complex): Memory Size Limit: is 65; it is the number of address bits, 1 to 64",
            IORTChange(0x1D8, 65, byteCount: 1)
        ),
        BrokenIORT(
            "IORT node 0x23c (named component): Node Flags: has a Substream width of 21; a SubstreamID has at most 20 bits",
            IORTChange(0x24C, 0x2B)
        ),
        BrokenIORT(
            "IORT node 0x2c8 (RMR): Mapping Count: is 0; an RMR node maps to the StreamIDs of those who use the memory",
            IORTChange(0x2D0, 0)
        ),
        BrokenIORT(
            "IORT node 0x2c8 (RMR): Memory range 0: 0x100000 bytes at 0xffffffff88300000; a range ends within 52 bits, and "
                + "has at most 64 GiB",
            IORTChange(0x2FC, 0xFFFF_FFFF)
        ),
        BrokenIORT(
            "IORT node 0x2c8 (RMR): Memory range 0: 0x2000100000 bytes at 0x88300000; a range ends within 52 bits, and has "
                + "at most 64 GiB",
            IORTChange(0x304, 0x20)
        ),
        BrokenIORT(
            "IORT node 0x110 (SMMUv3): Base Address: 0x80000000-0x8000ffff overlaps 0x80000000-0xbfffffff, which is RAM of "
                + "--ram; RAM and register regions each need addresses of their own",
            IORTChange(0x120, 0x8000_0000)
        ),
    ]

    static let warnings: [BrokenIORT] = [
        BrokenIORT(
            "IORT node 0x208 (root complex): PCI Segment Number: 0x0 is also that of a root complex before it; Linux takes "
                + "the first one alone, and so is it here",
            IORTChange(0x224, 0)
        ),
        BrokenIORT(
            "IORT node 0x1b8 (root complex): ID mappings: 0 and 1 both cover ID 0x80; ID mapping 0 wins",
            IORTChange(0x1F4, 0x80)
        ),
        BrokenIORT(
            "IORT node 0x1b8 (root complex): ID mapping 0: ID Count: reaches to 0x100, where ID mapping 1 begins; it is the "
                + "number of IDs minus one; that ID is left to ID mapping 1, as in Linux",
            IORTChange(0x1E4, 0x100)
        ),
        BrokenIORT(
            "IORT node 0x208 (root complex): ID mapping 0: covers IDs up to 0x1ffff; RequesterIDs have 16 bits: those above "
                + "are ignored",
            IORTChange(0x22C, 0x1_FFFF)
        ),
        BrokenIORT(
            "IORT node 0x28c (named component): Device Name: \"\\_SB_.DMA0\" is also that of a node before it; Linux takes "
                + "the first one alone, and so is it here",
            IORTChange(0x2AF, 0x3041_4D44)
        ),
        BrokenIORT(
            "IORT node 0x28c (named component): ID mapping 0: Flags: has no Single Mapping; the device gets no ID from it, "
                + "as in Linux: a range is for a bus whose devices have IDs",
            IORTChange(0x2C4, 0)
        ),
        BrokenIORT(
            "IORT node 0x28c (named component): Memory Size Limit: is 0; it is the number of address bits, 1 to 64; it is "
                + "taken for 64",
            IORTChange(0x2A8, 0, byteCount: 1)
        ),
        BrokenIORT(
            "IORT node 0xb8 (SMMUv3): ID mapping 0: Flags: has no Single Mapping, and it is that of the node's own MSIs; "
                + "the node has no MSIs, and no other IDs go by this mapping, as in Linux",
            IORTChange(0x10C, 0)
        ),
        BrokenIORT(
            "IORT node 0x110 (SMMUv3): Event GSIV: is 0, and there is no mapping for MSIs; events can only be polled for",
            IORTChange(0x13C, 0),
            IORTChange(0x140, 0),
            IORTChange(0x144, 0),
            IORTChange(0x148, 0)
        ),
        BrokenIORT(
            "IORT node 0x154 (PMCG): Overflow Interrupt GSIV: is 0, and there is no mapping for MSIs; counter overflows can "
                + "only be polled for",
            IORTChange(0x16C, 0)
        ),
        BrokenIORT(
            "IORT node 0x154 (PMCG): Node Reference: leads to IORT node 0x1b8 (root complex); only SMMUv3s report events "
                + "here: the group counts clock cycles alone",
            IORTChange(0x170, 0x1B8)
        ),
        BrokenIORT(
            "IORT node 0x30c (RMR): Memory range 0: 0x89000800-0x890107ff is no whole number of pages of 64 KiB; "
                + "0x89000000-0x89010fff is taken, pages of 4 KiB, as in Linux",
            IORTChange(0x33C, 0x8900_0800)
        ),
        BrokenIORT(
            "IORT node 0x30c (RMR): Memory range 0: 0 bytes at 0x89000000; it is ignored",
            IORTChange(0x344, 0)
        ),
        BrokenIORT(
            "IORT node 0x30c (RMR): Memory range 0: 0x88380000-0x8838ffff overlaps 0x88300000-0x883fffff of "
                + "/iort/rmr@88300000; each range is given once",
            IORTChange(0x33C, 0x8838_0000)
        ),
        BrokenIORT(
            "/iort/rmr@88300000: no device of the IORT has StreamID 0x44 of /iort/smmuv3@2b600000; the memory is left alone, "
                + "and mapped for nobody",
            IORTChange(0x2EC, 0x44)
        ),
        BrokenIORT(
            "/iort/_SB_/DMA0: iommus: gives StreamID 0x42 of /iort/smmuv3@2b600000 twice",
            IORTChange(0x280, 0x42)
        ),
    ]
}

@Suite("IORTs that cannot be so")
struct BrokenIORTTests {
    @Test("Each mistake gets its message, and no other", arguments: BrokenIORT.errors)
    func error(_ broken: BrokenIORT) throws {
        let table = try IORTFixture("everything").with(broken.changes)
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(table)
            Issue.record("it was taken")
        } catch {
            #expect(error.diagnostics.map(\.description) == [broken.message])
            #expect(error.diagnostics.map(\.origin) == [.iort])
        }
    }

    @Test("What is doubtful is said, and the board built all the same", arguments: BrokenIORT.warnings)
    func warning(_ broken: BrokenIORT) throws {
        let board = try BoardDescription.load(IORTFixture("everything").with(broken.changes))
        #expect(board.warnings.map(\.description) == [broken.message])
        #expect(board.warnings.map(\.origin) == [.iort])
    }

    @Test("RMRs of a table before revision 5 do not count, as in Linux")
    func oldReservedRanges() throws {
        let board = try BoardDescription.load(
            IORTFixture("everything").with(IORTChange(8, 3, byteCount: 1))
        )
        #expect(board.reservedMemory.isEmpty)
        #expect(
            board.warnings.map(\.description)
                == ["0x2c8", "0x30c"].map {
                    "IORT node \($0) (RMR): Type: is an RMR in a table of revision 3; it counts from revision 5 on "
                        + "(DEN0049E.d), as in Linux: the node is ignored"
                }
        )
    }

    @Test("What is wrong with the bytes is said with the table's own words")
    func bytes() throws {
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(tree: nil, iort: [0xD0, 0x0D, 0xFE, 0xED])
            Issue.record("it was taken")
        } catch {
            #expect(
                error.diagnostics == [
                    DeviceTreeDiagnostic(
                        path: nil,
                        problem: "not an IORT but a device tree blob",
                        remedy: "give it as BOARD.dtb, without --iort",
                        origin: .iort
                    )
                ]
            )
        }
    }

    @Test("RAM that is no whole number of pages is refused")
    func ram() throws {
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(
                tree: nil,
                iort: (try? IORTFixture("altra").bytes) ?? [],
                ram: [range(0x1234, 0x1000)]
            )
            Issue.record("it was taken")
        } catch {
            #expect(
                error.description
                    == "--ram: 0x1234-0x2233; RAM starts and ends on 4 KiB, and within 52 bits"
            )
        }
    }

    @Test("Overlapping mappings give each ID to the first that has it, like Linux's search, ID by ID")
    func overlaps() throws {
        // The seed is what a failure prints.
        for seed in UInt64(1)...40 {
            var random = SplitMix(seed: seed)
            func next(_ limit: UInt64) -> UInt64 { random.next() % limit }
            let count = Int(next(6)) + 2
            let mappings = (0..<count).map { index in
                RandomMapping(
                    input: UInt32(next(40)),
                    count: UInt32(next(20)),
                    output: UInt32(index + 1) << 16
                )
            }
            let board = try BoardDescription.load(try table(of: mappings))
            let host = try #require(board.pcieHosts.first)
            for requester in UInt16(0)..<70 {
                let expected = linuxOutput(for: UInt32(requester), mappings)
                let found = host.iommu(forRequester: requester)?.streamID?.rawValue
                #expect(found == expected, "seed \(seed), RequesterID \(requester), \(mappings)")
            }
        }
    }

    @Test("Ranges and mappings of RMRs multiply, so both are bounded")
    func manyReservedRanges() throws {
        var bytes = Array(try IORTFixture("everything").bytes.prefix(0x30))
        func word(_ value: UInt32) {
            for shift in [0, 8, 16, 24] as [UInt32] { bytes.append(UInt8(value >> shift & 0xFF)) }
        }
        bytes += [4, 60, 0, 0]
        for value in [0, 0, 0, 0x1000_0000, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0] as [UInt32] { word(value) }
        let length = 28 + 20 * (40 + 30)
        bytes += [6, UInt8(length & 0xFF), UInt8(length >> 8), 3]
        for value in [1, 40, 28, 0, 30, 28 + 20 * 40] as [UInt32] { word(value) }
        for stream in 0..<UInt32(40) { for value in [0, 0, stream, 0x30, 0] { word(value) } }
        for index in 0..<UInt32(30) {
            for value in [0x8000_0000 + index << 16, 0, 0x1_0000, 0, 0] { word(value) }
        }
        let table = IORTFixture(bytes).with(IORTChange(4, UInt64(bytes.count)), IORTChange(36, 2))
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(table)
            Issue.record("it was taken")
        } catch {
            #expect(
                error.description
                    == "IORT node 0x6c (RMR): the table's RMR nodes have more than 1024 pairs of a range and a "
                    + "mapping; give each range once, and StreamIDs in few mappings"
            )
        }
    }

    struct RandomMapping {
        let input: UInt32
        let count: UInt32
        let output: UInt32
    }

    /// What iort_node_map_id's search comes to: first match wins, but a match at the end of a range is only kept
    /// until a range begins with that ID.
    private func linuxOutput(for id: UInt32, _ mappings: [RandomMapping]) -> UInt32? {
        var kept: UInt32?
        for mapping in mappings where id >= mapping.input && id <= mapping.input + mapping.count {
            if kept != nil, id != mapping.input { continue }
            let output = mapping.output + (id - mapping.input)
            guard mapping.count > 0, id == mapping.input + mapping.count else { return output }
            kept = output
        }
        return kept
    }

    /// A table with an SMMUv3 and a root complex with these mappings to it.
    private func table(of mappings: [RandomMapping]) throws -> IORTFixture {
        var bytes = Array(try IORTFixture("everything").bytes.prefix(0x30))
        func word(_ value: UInt32) {
            for shift in [0, 8, 16, 24] { bytes.append(UInt8(value >> UInt32(shift) & 0xFF)) }
        }
        // SMMUv3 of revision 0 at 0x30: 60 bytes, at 0x1000_0000, with an event interrupt.
        bytes += [4, 60, 0, 0]
        for value in [0, 0, 0, 0x1000_0000, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0] as [UInt32] { word(value) }
        let length = 32 + 20 * mappings.count
        bytes += [2, UInt8(length), 0, 0]
        for value in [1, UInt32(mappings.count), 32, 1, 0x0300_0000, 0, 0] as [UInt32] { word(value) }
        for mapping in mappings {
            for value in [mapping.input, mapping.count, mapping.output, 0x30, 0] { word(value) }
        }
        return IORTFixture(bytes).with(IORTChange(4, UInt64(bytes.count)), IORTChange(36, 2))
    }
}
