// Walks of VMSAv8-64 tables: granules, start levels, blocks, ranges, sizes, access flag.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("Walks")
struct WalkTests {
    static let sizes = TestGranule.all.flatMap { granule in
        (16...39 as ClosedRange<UInt64>).map { (granule, $0) }
    }

    @Test(
        "every granule and TxSZ: the first and last page of both halves, and what lies beyond",
        arguments: sizes
    )
    func ranges(_ granule: TestGranule, _ size: UInt64) throws {
        let guest = try TestGuest()
        let lower = GuestTables(guest, granule, size: size)
        let upper = GuestTables(guest, granule, size: size)
        let mask = granule.pageBytes - 1
        let first: UInt64 = 0
        let last: UInt64 = ((1 << (64 - size)) - 1) & ~mask
        let upperFirst: UInt64 = ~((1 << (64 - size)) - 1)
        let upperLast: UInt64 = ~mask
        for (index, address) in [first, last].enumerated() {
            try lower.map(address, to: try guest.page(holding: 10 + UInt64(index), granule.pageBytes))
        }
        for (index, address) in [upperFirst, upperLast].enumerated() {
            try upper.map(address, to: try guest.page(holding: 20 + UInt64(index), granule.pageBytes))
        }
        try guest.attach(
            6,
            CDWords(
                t0SZ: size,
                tg0: granule.tg0,
                t1SZ: size,
                tg1: granule.tg1,
                epd1: false,
                ttb0: lower.root,
                ttb1: upper.root
            )
        )
        #expect(guest.dmaRead(6, first) == .ok(10))
        #expect(guest.dmaRead(6, last) == .ok(11))
        #expect(guest.dmaRead(6, upperFirst) == .ok(20))
        #expect(guest.dmaRead(6, upperLast) == .ok(21))
        #expect(guest.dmaRead(6, last + granule.pageBytes) == .fTranslation, "one page beyond TTB0's range")
        #expect(
            guest.dmaRead(6, upperFirst - granule.pageBytes) == .fTranslation,
            "one page below TTB1's range"
        )
        #expect(guest.dmaRead(6, 1 << 56) == .fTranslation, "top byte")
        #expect(guest.dmaRead(6, 0x00FF_FFFF_FFFF_F000) == .fTranslation, "bit 55 selects TTB1")
        #expect(guest.dmaRead(6, 0xFF7F_FFFF_FFFF_F000) == .fTranslation, "bit 55 selects TTB0")
        let expected = eventWords(
            0x10,
            stream: 6,
            isRead: true,
            eventClass: 2,
            input: last + granule.pageBytes
        )
        #expect(try guest.takeEvents().first == expected)
    }

    static let leaves = TestGranule.all.flatMap { granule in (0...3).map { (granule, $0) } }

    @Test("pages and blocks at each level; where blocks are not possible, F_TRANSLATION", arguments: leaves)
    func blocks(_ granule: TestGranule, _ level: Int) throws {
        guard granule.bits != 16 || level > 0 else { return }
        let guest = try TestGuest()
        let size: UInt64 = 16
        let tables = try guest.attachTables(6, granule, size: size)
        let bits = granule.levelBits(level)
        let address: UInt64 = 1 << bits
        guard address < 1 << 48 else { return }
        // Low bits of the output below the block's size are ignored.
        let base: UInt64 = bits >= 40 ? 0 : (0x1_2345_8000_0000 & 0xFFFF_FFFF_FFFF) & ~((1 << bits) - 1)
        let noise: UInt64 = level == 3 ? 0 : bits > 17 ? 1 << 17 : 0
        try tables.map(address, to: base | noise, level: level)
        let offset: UInt64 = (1 << bits) - 8
        if granule.leafLevels.contains(level) {
            #expect(guest.dmaRead(6, address) == .nobody(base))
            #expect(guest.dmaRead(6, address + offset) == .nobody(base + offset))
        } else {
            #expect(guest.dmaRead(6, address) == .fTranslation)
        }
        // Type 01 at level 3 and types 00 and 10 anywhere are invalid.
        let entry = try tables.entry(address, level: level)
        let types: [UInt64] = level == 3 ? [0b00, 0b01, 0b10] : [0b00, 0b10]
        for type in types {
            try guest.poke(entry, base | Leaf.readWrite | type)
            try guest.sync(Raw.tlbiNSNHAll)
            #expect(guest.dmaRead(6, address) == .fTranslation, "type \(type)")
        }
    }

    @Test(
        "blocks are contiguous in the output, and one translation covers to their end",
        arguments: TestGranule.all
    )
    func blockContents(_ granule: TestGranule) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6, granule)
        let address: UInt64 = 1 << granule.levelBits(2)
        try tables.map(address, to: TestGuest.ram, level: 2)
        let page = try guest.page(holding: 0xB10C)
        #expect(guest.dmaRead(6, address + page - TestGuest.ram) == .ok(0xB10C))
        let transaction = Transaction(
            streamID: StreamID(6),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(address + 0x1234)
        )
        guard case .translated(let translation) = guest.smmu.probe(transaction) else {
            Issue.record("not translated")
            return
        }
        #expect(translation.output.rawValue == TestGuest.ram + 0x1234)
        #expect(translation.byteCount == (1 << granule.levelBits(2)) - 0x1234)
        #expect(UInt64(translation.log2Bytes) == granule.levelBits(2))
        #expect(translation.attributes.mair == 0x44)
        #expect(!translation.isBypassed)
    }

    @Test("the first table is aligned to its own size: lower bits of TTB are treated as zero")
    func tableAlignment() throws {
        let guest = try TestGuest()
        for size in [24, 25, 26, 33, 34, 39] as [UInt64] {
            let tables = try guest.attachTables(6, size: size)
            try tables.map(0x3000, to: try guest.page(holding: size))
            let entries: UInt64 = 1 << (64 - size - tables.granule.levelBits(tables.startLevel))
            var cd = CDWords(t0SZ: size, ttb0: tables.root)
            cd.ttb0 |= (8 * entries - 1) & ~0xF
            try guest.attach(6, cd)
            try guest.sync(Raw.tlbiNSNHAll)
            #expect(guest.dmaRead(6, 0x3000) == .ok(size))
        }
    }

    @Test("next-level tables ignore descriptor bits below the granule and software bits")
    func tableDescriptorNoise() throws {
        let guest = try TestGuest()
        for granule in TestGranule.all {
            let tables = try guest.attachTables(6, granule, size: 16)
            try tables.map(0x10000, to: try guest.page(holding: granule.bits, granule.pageBytes))
            for level in tables.startLevel..<3 {
                let entry = try tables.entry(0x10000, level: level)
                let noise: UInt64 = 0x07FF_0000_0000_0FFC | (granule.pageBytes - 1) & ~0xFFF
                try guest.poke(entry, try guest.peek(entry) | noise)
            }
            try guest.sync(Raw.tlbiNSNHAll)
            #expect(guest.dmaRead(6, 0x10000) == .ok(granule.bits), "\(granule)")
        }
    }

    @Test(
        "IPS limits leaves and tables: F_ADDR_SIZE, and no fetch beyond",
        arguments: [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44)] as [(UInt64, UInt64)]
    )
    func outputSize(_ ips: UInt64, _ bits: UInt64) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6) { $0.ips = ips }
        try tables.map(0x1000, to: 1 << bits - 0x1000)
        try tables.map(0x2000, to: 1 << bits)
        try tables.map(0x3000, to: 1 << 47)
        try tables.map(0x4000_0000, to: 1 << bits, level: 1)
        #expect(guest.dmaRead(6, 0x1000) == .nobody(1 << bits - 0x1000))
        for address in [0x2000, 0x3000, 0x4000_0000] as [UInt64] {
            #expect(guest.dmaRead(6, address) == .fAddrSize)
            let record = eventWords(0x11, stream: 6, isRead: true, eventClass: 2, input: address)
            #expect(try guest.takeEvents() == [record])
        }
        // A table descriptor is checked as a leaf is, before anything is fetched through it.
        let entry = try tables.entry(0x8000_0000, level: 1)
        try guest.poke(entry, 1 << bits | 0b11)
        #expect(guest.dmaRead(6, 0x8000_0000) == .fAddrSize)
        try guest.poke(entry, (1 << bits - 0x1000) | 0b11)
        #expect(guest.dmaRead(6, 0x8000_0000) == .event(0x0B), "within the size: nobody there")
        let fetch: UInt64 = 1 << bits - 0x1000
        #expect(
            try guest.takeEvents().last
                == eventWords(0x0B, stream: 6, isRead: true, eventClass: 1, input: 0x8000_0000, fetch: fetch)
        )
    }

    @Test("the order of faults at a leaf: size, access flag, permission")
    func leafFaultOrder() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6) { $0.ips = 2 }
        // Everything is wrong: beyond IPS, AF 0, privileged read-only.
        try tables.map(0x1000, to: 1 << 40, Leaf.readOnly)
        #expect(guest.dmaWrite(6, 0x1000) == .fAddrSize)
        try tables.map(0x1000, to: 0x1000, Leaf.readOnly)
        #expect(guest.dmaWrite(6, 0x1000) == .fAccess)
        try tables.map(0x1000, to: 0x1000, Leaf.readOnly | Leaf.af)
        #expect(guest.dmaWrite(6, 0x1000) == .fPermission)
        #expect(try guest.takeEvents().map { $0[0] & 0xFF } == [0x11, 0x12, 0x13])
        // An invalid leaf below a table that forbids writes is F_TRANSLATION all the same.
        try tables.unmap(0x1000)
        let table = try tables.entry(0x1000, level: 2)
        try guest.poke(table, try guest.peek(table) | 3 << 61)
        try guest.sync(Raw.tlbiNSNHAll)
        #expect(guest.dmaWrite(6, 0x1000) == .fTranslation)
    }

    @Test("AF = 0 is F_ACCESS, unless AFFD; neither the fault nor the flag is remembered")
    func accessFlag() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        let page = try guest.page(holding: 8)
        try tables.map(0x1000, to: page, Leaf.unprivileged | Leaf.nG)
        #expect(guest.dmaRead(6, 0x1000) == .fAccess)
        #expect(
            try guest.takeEvents() == [
                eventWords(0x12, stream: 6, isRead: true, eventClass: 2, input: 0x1000)
            ]
        )
        try tables.map(0x1000, to: page)
        #expect(guest.dmaRead(6, 0x1000) == .ok(8))
        let relaxed = try guest.attachTables(7, asid: 2) { $0.affd = true }
        try relaxed.map(0x1000, to: page, Leaf.unprivileged | Leaf.nG)
        #expect(guest.dmaRead(7, 0x1000) == .ok(8))
        #expect(try guest.peek(try relaxed.entry(0x1000)) & Leaf.af == 0, "no hardware update")
    }

    @Test("TBI ignores the top byte of its own half alone; records carry the address as it came")
    func topByte() throws {
        for (tbi0, tbi1) in [(false, false), (true, false), (false, true), (true, true)] {
            let guest = try TestGuest()
            let lower = GuestTables(guest)
            let upper = GuestTables(guest)
            try lower.map(0x1000, to: try guest.page(holding: 1))
            try upper.map(0xFFFF_FFFF_FFFF_1000, to: try guest.page(holding: 2))
            try guest.attach(
                6,
                CDWords(epd1: false, tbi0: tbi0, tbi1: tbi1, ttb0: lower.root, ttb1: upper.root)
            )
            #expect(guest.dmaRead(6, 0xAB00_0000_0000_1000) == (tbi0 ? .ok(1) : .fTranslation))
            #expect(guest.dmaRead(6, 0xFF00_0000_0000_1000) == (tbi0 ? .ok(1) : .fTranslation))
            #expect(guest.dmaRead(6, 0x00FF_FFFF_FFFF_1000) == (tbi1 ? .ok(2) : .fTranslation))
            #expect(guest.dmaRead(6, 0xABFF_FFFF_FFFF_1000) == (tbi1 ? .ok(2) : .fTranslation))
            #expect(guest.dmaRead(6, 0x1000) == .ok(1))
            #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_1000) == .ok(2))
            _ = try guest.takeEvents()
            // Bits 54 down to the range are checked in any case.
            #expect(guest.dmaRead(6, 0xAB40_0000_0000_1000) == .fTranslation)
            #expect(
                try guest.takeEvents() == [
                    eventWords(0x10, stream: 6, isRead: true, eventClass: 2, input: 0xAB40_0000_0000_1000)
                ]
            )
        }
    }

    @Test("EPD: the half is not walked, before anything else is looked at")
    func walkDisable() throws {
        let guest = try TestGuest()
        let lower = GuestTables(guest)
        try lower.map(0x1000, to: try guest.page(holding: 1))
        try guest.attach(6, CDWords(epd1: true, ttb0: lower.root))
        #expect(guest.dmaRead(6, 0x1000) == .ok(1))
        #expect(guest.dmaRead(6, 0xFFFF_FFFF_FFFF_1000) == .fTranslation)
        try guest.attach(6, CDWords(t0SZ: 63, tg0: 3, epd0: true, epd1: true, ttb0: 0xF_FFFF_FFFF_FFF0))
        try guest.sync(Raw.tlbiNHAll)
        #expect(guest.dmaRead(6, 0x1000) == .fTranslation)
    }

    @Test("the contiguous bit is a hint: members of a group are translated one by one")
    func contiguousHint() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        for index in 0..<16 as Range<UInt64> {
            // Outputs that are not contiguous, which software must not do and hardware may ignore.
            try tables.map(
                0x10000 + index * 0x1000,
                to: try guest.page(holding: 100 + index),
                Leaf.readWrite | Leaf.contiguous
            )
            _ = guest.allocate(0x1000)
        }
        for index in 0..<16 as Range<UInt64> {
            #expect(guest.dmaRead(6, 0x10000 + index * 0x1000) == .ok(100 + index))
        }
        try tables.unmap(0x13000)
        try guest.sync(Raw.tlbiNHVA(0x13000, asid: 1))
        #expect(guest.dmaRead(6, 0x13000) == .fTranslation)
    }

    @Test("MAIR and SH of the leaf are in the answer")
    func attributes() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6) { $0.mair = 0x8877_6655_4433_2211 }
        for index in 0..<8 as Range<UInt64> {
            try tables.map(
                0x1000 + index * 0x1000,
                to: 0x1000,
                Leaf.readWrite | index << 2 | (index & 3) << 8
            )
            let transaction = Transaction(
                streamID: StreamID(6),
                attributes: .plain,
                kind: .read,
                address: IOVirtualAddress(0x1000 + index * 0x1000)
            )
            guard case .translated(let translation) = guest.smmu.probe(transaction) else {
                Issue.record("not translated")
                continue
            }
            #expect(translation.attributes.mair == UInt8(0x11 * (index + 1)))
            // 0b01 is Reserved and Non-shareable; 0x44 is Non-cacheable, and so Outer Shareable.
            #expect(translation.attributes.shareability == [0, 0, 2, 2, 0, 0, 2, 3][Int(index)])
        }
    }

    @Test("a DMA of many bytes follows each page where it leads, and stops at the first that faults")
    func longTransfers() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        var pages: [UInt64] = []
        for index in 0..<4 as Range<UInt64> {
            let page = try guest.page(holding: 0)
            _ = guest.allocate(0x1000)
            pages.append(page)
            try tables.map(0x10000 + index * 0x1000, to: page)
        }
        let bytes = (0..<0x4000).map { UInt8(truncatingIfNeeded: $0 ^ ($0 >> 8)) }
        let port = guest.port(6)
        try bytes.withUnsafeBytes { try port.write($0, at: IOVirtualAddress(0x10000), .plain) }
        for (index, page) in pages.enumerated() {
            let expected = Array(bytes[(index * 0x1000)..<((index + 1) * 0x1000)])
            #expect(try guest.bus.read(0x1000, at: PhysicalAddress(page)) == expected)
        }
        var back = [UInt8](repeating: 0, count: 0x3001)
        try back.withUnsafeMutableBytes { try port.read(at: IOVirtualAddress(0x10007), into: $0, .plain) }
        #expect(back == Array(bytes[7..<(7 + 0x3001)]))
        try tables.unmap(0x12000)
        try guest.sync(Raw.tlbiNHVA(0x12000, asid: 1))
        let fault = #expect(throws: DMAFault.self) {
            try bytes.withUnsafeBytes { try port.write($0, at: IOVirtualAddress(0x10800), .plain) }
        }
        #expect(
            fault
                == DMAFault(cause: .event(0x10), address: IOVirtualAddress(0x12000), bytesTransferred: 0x1800)
        )
        let records = try guest.takeEvents()
        #expect(records == [eventWords(0x10, stream: 6, isRead: false, eventClass: 2, input: 0x12000)])
        try port.write(UnsafeRawBufferPointer(start: nil, count: 0), at: IOVirtualAddress(0x12000), .plain)
    }

    @Test("a DMA that runs off the end of memory says at which byte")
    func busFaultPosition() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        let end = TestGuest.ram + TestGuest.ramBytes
        try tables.map(0x20_0000, to: TestGuest.ram + TestGuest.ramBytes - 0x20_0000, level: 2)
        try tables.map(0x40_0000, to: end, level: 2)
        let port = guest.port(6)
        let bytes = [UInt8](repeating: 1, count: 0x2000)
        let fault = #expect(throws: DMAFault.self) {
            try bytes.withUnsafeBytes { try port.write($0, at: IOVirtualAddress(0x3F_F000), .plain) }
        }
        #expect(
            fault
                == DMAFault(
                    cause: .bus(.unassigned(PhysicalAddress(end))),
                    address: IOVirtualAddress(0x40_0000),
                    bytesTransferred: 0x1000
                )
        )
        try guest.setSTE(7, .bypass)
        let bypassing = guest.port(7)
        let other = #expect(throws: DMAFault.self) {
            try bytes.withUnsafeBytes { try bypassing.write($0, at: IOVirtualAddress(end - 0x10), .plain) }
        }
        #expect(other?.bytesTransferred == 0x10)
        #expect(other?.address.rawValue == end)
        // Past the top of the address space.
        let top = #expect(throws: DMAFault.self) {
            try bytes.withUnsafeBytes { try bypassing.write($0, at: IOVirtualAddress(.max - 7), .plain) }
        }
        #expect(top?.cause == .event(0x11))
    }

    @Test("tables in memory that a peer has truncated are nobody's, even those words that it still has")
    func truncatedTables() throws {
        var path = Array("/tmp/smmud-test-XXXXXX".utf8CString)
        let file = OwnedDescriptor(adopting: mkstemp(&path))
        unlink(path)
        try #require(ftruncate(file.rawValue, 0x4000) == 0)
        var setup = GuestSetup()
        setup.options.tlbEntries = 0
        let guest = try TestGuest(setup)
        let base: UInt64 = 0x1_0000_0000
        let region = try MemoryRegion.mapping(
            file.duplicate(),
            offset: 0,
            byteCount: 0x4000,
            isWritable: true
        )
        try guest.bus.addRAM(region, at: PhysicalAddress(base), name: "peer")
        // Three levels, for 39 bits.
        try guest.poke(base, (base + 0x1000) | 0b11)
        try guest.poke(base + 0x1000, (base + 0x2000) | 0b11)
        for page in 1...2 as ClosedRange<UInt64> {
            try guest.poke(base + 0x2000 + page * 8, try guest.page(holding: page) | Leaf.readWrite | 0b11)
        }
        try guest.attach(6, CDWords(t0SZ: 25, ttb0: base))
        #expect(guest.dmaRead(6, 0x1000) == .ok(1))
        try #require(ftruncate(file.rawValue, 0x3000) == 0)
        #expect(guest.dmaRead(6, 0x1000) == .ok(1), "nobody has noticed")
        #expect(throws: BusError.self) { try guest.peek(base + 0x3000) }
        for page in 1...2 as ClosedRange<UInt64> { #expect(guest.dmaRead(6, page << 12) == .event(0x0B)) }
    }
}
