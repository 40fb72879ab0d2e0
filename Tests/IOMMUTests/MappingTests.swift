// Maps and unmaps of domains: TLBI commands word by word, and what is reused when.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Mapping in a domain")
struct MappingTests {
    static func start(_ bench: DriverBench, _ kind: IOMMUDomainKind = .unmanaged) throws -> (
        SMMUv3Driver, IOMMUDomain
    ) {
        let driver = try bench.start()
        let domain = try driver.makeDomain(kind)
        _ = bench.smmu.takeCommands()
        return (driver, domain)
    }

    private static func map(_ domain: IOMMUDomain, _ iova: UInt64, _ byteCount: UInt64)
        throws(SMMUDriverError)
    {
        try domain.map(
            IOVirtualAddress(iova),
            to: PhysicalAddress(0x4200_0000),
            byteCount: byteCount,
            permissions: [.read, .write, .cacheable]
        )
    }

    // MARK: TLBI

    @Test func mappingSendsNothing() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x10_0000, 0x3000)
        #expect(bench.smmu.takeCommands().isEmpty)
        #expect(try domain.translate(IOVirtualAddress(0x10_2008))?.physical == PhysicalAddress(0x4200_2008))
        #expect(try domain.walk(IOVirtualAddress(0x10_0000)).count == 4)
        driver.stop()
    }

    @Test func unmappingOnePageIsOneTLBIAndASync() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x10_0000, 0x1000)
        #expect(
            try domain.unmap(IOVirtualAddress(0x10_0000), byteCount: 0x1000)
                == UnmapOutcome(byteCount: 0x1000, stoppedBy: nil)
        )
        // TLBI_NH_VA, ASID 1, NUM 0, SCALE 0; Leaf, TTL 3, TG 1.
        #expect(
            bench.smmu.takeCommands() == [RawCommand(0x0001_0000_0000_0012, 0x10_0000 | 0x701), .sync]
        )
        driver.stop()
    }

    @Test func aRangeIsCutByItsBits() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench)
        // 511 pages, and a table whose 512 go with it: first the table, then 31 pages and 15 times 32.
        try Self.map(domain, 0x100_1000, 1023 << 12)
        _ = try domain.unmap(IOVirtualAddress(0x100_1000), byteCount: 1023 << 12)
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(0x0001_0000_0090_0012, 0x120_0000 | 0x400), .sync,
                RawCommand(0x0001_0000_0001_E012, 0x100_1000 | 0x701),
                RawCommand(0x0001_0000_0050_E012, 0x102_0000 | 0x701), .sync,
            ]
        )
        driver.stop()
    }

    @Test func leavesOfTwoSizesAreWaitedForOneAfterTheOther() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench)
        try domain.map(
            IOVirtualAddress(0x3F_F000),
            to: PhysicalAddress(0x43FF_F000),
            byteCount: 0x20_1000,
            permissions: .readWrite
        )
        _ = try domain.unmap(IOVirtualAddress(0x3F_F000), byteCount: 0x20_1000)
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(0x0001_0000_0000_0012, 0x3F_F000 | 0x701), .sync,
                // 512 pages: SCALE 9; TTL 2.
                RawCommand(0x0001_0000_0090_0012, 0x40_0000 | 0x601), .sync,
            ]
        )
        driver.stop()
    }

    @Test func aTableThatGoesIsInvalidatedWithItsWalk() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x20_0000, 0x1000)
        _ = try domain.unmap(IOVirtualAddress(0x20_0000), byteCount: 0x20_0000)
        // Leaf = 0, TTL 0, SCALE 9.
        #expect(
            bench.smmu.takeCommands() == [RawCommand(0x0001_0000_0090_0012, 0x20_0000 | 0x400), .sync]
        )
        driver.stop()
    }

    @Test func withoutRangesEveryPageIsNamed() throws {
        let bench = DriverBench([0xC: 0])
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x10_0000, 0x3000)
        _ = try domain.unmap(IOVirtualAddress(0x10_0000), byteCount: 0x3000)
        let low: UInt64 = 0x0001_0000_0000_0012
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(low, 0x10_0001), RawCommand(low, 0x10_1001), RawCommand(low, 0x10_2001), .sync,
            ]
        )
        driver.stop()
    }

    @Test func aLongListGoesInBatchesOf64WithOneSync() throws {
        let bench = DriverBench([0xC: 0])
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x10_1000, 150 << 12)
        _ = bench.trace.take()
        _ = try domain.unmap(IOVirtualAddress(0x10_1000), byteCount: 150 << 12)
        let producers = bench.trace.take().compactMap { action in
            if case .write32(0x98, let value) = action { value } else { nil }
        }
        // From 4, where reset left it: 64, 64, then 22 and CMD_SYNC.
        #expect(producers == [68, 132, 155])
        driver.stop()
    }

    @Test func theMMU700SyncsAtTheEndOfEveryBatch() throws {
        let bench = DriverBench([0xC: 0, 0x18: 0x4870_043B])
        let (driver, domain) = try Self.start(bench)
        try Self.map(domain, 0x10_1000, 150 << 12)
        _ = try domain.unmap(IOVirtualAddress(0x10_1000), byteCount: 150 << 12)
        let commands = bench.smmu.takeCommands()
        #expect(commands.indices.filter { commands[$0] == .sync } == [63, 127, 152])
        driver.stop()
    }

    struct Tag: Sendable {
        let tag: TLBTag
        let leaf: Bool
        let byteCount: UInt64
        let page: UInt64
        let expected: [RawCommand]
    }

    static let tags: [Tag] = [
        // 1023 pages: 31 of them at SCALE 0, 31 times 32 at SCALE 5.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib4, usesE2H: false, hasRanges: true),
            leaf: true,
            byteCount: 1023 << 12,
            page: 0x1000,
            expected: [RawCommand(0x0005_0000_0001_E012, 0x701), RawCommand(0x0005_0000_0051_E012, 0x1_F701)]
        ),
        // 16 KiB: TG 2, a block of 32 MiB is 2048 pages and level 2.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib16, usesE2H: false, hasRanges: true),
            leaf: true,
            byteCount: 32 << 20,
            page: 32 << 20,
            expected: [RawCommand(0x0005_0000_00B0_0012, 0xA01)]
        ),
        // 64 KiB: TG 3, one page, level 3.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib64, usesE2H: false, hasRanges: true),
            leaf: true,
            byteCount: 64 << 10,
            page: 64 << 10,
            expected: [RawCommand(0x0005_0000_0000_0012, 0xF01)]
        ),
        // 1 GiB of 4 KiB granules: 2^18 pages, level 1.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib4, usesE2H: false, hasRanges: true),
            leaf: true,
            byteCount: 1 << 30,
            page: 1 << 30,
            expected: [RawCommand(0x0005_0000_0120_0012, 0x501)]
        ),
        // One page without a level would encode as reserved: it becomes two.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib4, usesE2H: false, hasRanges: true),
            leaf: false,
            byteCount: 0x1000,
            page: 0x1000,
            expected: [RawCommand(0x0005_0000_0010_0012, 0x400)]
        ),
        // EL2-E2H: TLBI_EL2_VA, opcode 0x22.
        Tag(
            tag: TLBTag(asid: 5, granule: .kib4, usesE2H: true, hasRanges: false),
            leaf: true,
            byteCount: 0x1000,
            page: 0x1000,
            expected: [RawCommand(0x0005_0000_0000_0022, 0x1)]
        ),
    ]

    @Test("ranges are encoded by granule and level", arguments: tags)
    func rangeEncoding(_ tag: Tag) {
        let commands = tag.tag.commands(0, byteCount: tag.byteCount, pageByteCount: tag.page, leaf: tag.leaf)
        #expect(commands.map { RawCommand($0.words[0], $0.words[1]) } == tag.expected)
    }

    @Test("the ranges of any number of pages cover them and at most one more", arguments: [true, false])
    func rangeCoverage(leaf: Bool) {
        let tag = TLBTag(asid: 1, granule: .kib4, usesE2H: false, hasRanges: true)
        for pages in 1...2100 as ClosedRange<UInt64> {
            let commands = tag.commands(
                0x1000_0000,
                byteCount: pages << 12,
                pageByteCount: 0x1000,
                leaf: leaf
            )
            var next: UInt64 = 0x1000_0000
            for command in commands {
                // NUM [16:12], SCALE [24:20]; the address [63:12] of the second word.
                let count = (((command.words[0] >> 12) & 31) + 1) << ((command.words[0] >> 20) & 31)
                let isReserved = !leaf && command.words[0] & 0x01F1_F000 == 0
                if command.words[1] & ~0xFFF != next || isReserved {
                    Issue.record("\(pages) pages: \(commands)")
                    return
                }
                next += count << 12
            }
            let covered = (next - 0x1000_0000) >> 12
            #expect(covered == pages || !leaf && covered == pages + 1)
        }
    }

    // MARK: IOVAs

    @Test func aDomainChoosesFromTheTopOf4GiBAndKeepsTheOffset() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench, .dma)
        let first = try domain.map(PhysicalAddress(0x4200_0123), byteCount: 0x1000, permissions: .readWrite)
        // Two pages, aligned to two pages.
        #expect(first == IOVirtualAddress(0xFFFF_E123))
        #expect(try domain.translate(first)?.physical == PhysicalAddress(0x4200_0123))
        let second = try domain.map(PhysicalAddress(0x4300_0000), byteCount: 0x3000, permissions: .read)
        #expect(second == IOVirtualAddress(0xFFFF_8000))
        #expect(
            try domain.unmap(IOVirtualAddress(0xFFFF_E000), byteCount: 0x2000).byteCount == 0x2000
        )
        let third = try domain.map(PhysicalAddress(0x4300_0000), byteCount: 0x1000, permissions: .read)
        #expect(third == IOVirtualAddress(0xFFFF_F000))
        driver.stop()
    }

    @Test func aChosenAddressAvoidsWhatWasMappedByHand() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench, .dma)
        try Self.map(domain, 0xFFFF_F000, 0x1000)
        #expect(
            try domain.map(PhysicalAddress(0x4300_0000), byteCount: 0x1000, permissions: .read)
                == IOVirtualAddress(0xFFFF_E000)
        )
        #expect(
            throws: SMMUDriverError.pageTable(.alreadyMapped(IOVirtualAddress(0xFFFF_E000)))
        ) { try Self.map(domain, 0xFFFF_E000, 0x1000) }
        driver.stop()
    }

    @Test func requestsThatCannotBeMetAreRefused() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench, .dma)
        #expect(throws: SMMUDriverError.iovasExhausted(byteCount: 1 << 48)) {
            _ = try domain.map(PhysicalAddress(0), byteCount: 1 << 48, permissions: .read)
        }
        #expect(throws: SMMUDriverError.iovasExhausted(byteCount: .max)) {
            _ = try domain.map(PhysicalAddress(0), byteCount: .max, permissions: .read)
        }
        #expect(throws: SMMUDriverError.iovasExhausted(byteCount: 0)) {
            _ = try domain.map(PhysicalAddress(0), byteCount: 0, permissions: .read)
        }
        #expect(throws: SMMUDriverError.pageTable(.noPermissions([]))) {
            _ = try domain.map(PhysicalAddress(0), byteCount: 1, permissions: [])
        }
        // The IOVA of the refused request is free again.
        #expect(
            try domain.map(PhysicalAddress(0), byteCount: 1, permissions: .read)
                == IOVirtualAddress(0xFFFF_F000)
        )
        #expect(throws: SMMUDriverError.domainDoesNotTranslate(.identity)) {
            _ = try driver.identityDomain.unmap(IOVirtualAddress(0), byteCount: 0x1000)
        }
        #expect(throws: SMMUDriverError.unsupportedGranule(.kib16)) {
            let small = try DriverBench([0x14: 0x14]).start()
            _ = try small.makeDomain(.dma, granule: .kib16)
        }
        driver.stop()
    }

    @Test func anIOVAWhoseInvalidationFailedIsNotUsedAgain() throws {
        let bench = DriverBench()
        let (driver, domain) = try Self.start(bench, .dma)
        let iova = try domain.map(PhysicalAddress(0x4300_0000), byteCount: 0x1000, permissions: .read)
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: 6, consumer: 4)) {
            _ = try domain.unmap(iova, byteCount: 0x1000)
        }
        #expect(
            try domain.map(PhysicalAddress(0x4300_0000), byteCount: 0x1000, permissions: .read) < iova
        )
        #expect(
            driver.messages.last == "CMD_SYNC timeout at 0x00000005 [hwprod 0x00000006, hwcons 0x00000004]"
        )
    }

    @Test("every granule maps and unmaps", arguments: PageTableGranule.allCases)
    func granules(_ granule: PageTableGranule) throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        let domain = try driver.makeDomain(.dma, granule: granule)
        try driver.attach(endpoint, to: domain)
        let context = bench.smmu.word(AttachTests.entry) & 0x00FF_FFFF_FFFF_FFC0
        let tg0: UInt64 = [.kib4: 0, .kib64: 1, .kib16: 2][granule] ?? 3
        #expect(bench.smmu.word(context) == 0x0001_E204_C000_3510 | tg0 << 6)
        let iova = try domain.map(PhysicalAddress(0x4300_0000), byteCount: 1, permissions: .read)
        #expect(iova == IOVirtualAddress(0x1_0000_0000 - granule.byteCount))
        #expect(try domain.unmap(iova, byteCount: granule.byteCount).byteCount == granule.byteCount)
    }

    @Test func aDomainThatGoesIsFlushedBeforeItsMemoryIs() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let used = bench.frames.usedByteCount
        do {
            let domain = try driver.makeDomain(.unmanaged)
            try Self.map(domain, 0x10_0000, 0x3000)
            #expect(bench.frames.usedByteCount == used + 0x4000)
            _ = bench.smmu.takeCommands()
        }
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0001_0000_0000_0011, 0), .sync])
        #expect(bench.frames.usedByteCount == used)
    }
}
