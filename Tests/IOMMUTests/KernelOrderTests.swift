// Golden traces: what Linux 6.18's arm-smmu-v3 does to registers and memory, byte by byte, written down by
// hand from its functions (named beside each part), and compared with every access that the driver makes.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("The kernel's order")
struct KernelOrderTests {
    /// arm_smmu_cmdq_build_cmd, CMDQ_OP_CMD_SYNC without MSI: opcode 0x46, CS = SEV in [13:12], MSH = ISH in
    /// [23:22], MSIATTR = OIWB in [27:24].
    static let sync = "cmd 4620c00f00000000 0000000000000000"

    /// arm_smmu_cmdq_issue_cmdlist for commands with a CMD_SYNC: entries, CMDQ_PROD, and CMDQ_CONS until it
    /// is there.
    static func issued(_ commands: [String], from position: UInt32, log2Count: UInt32 = 10) -> [String] {
        let end = hex(
            (position + UInt32(commands.count) + 1) & ((2 << log2Count) - 1),
            digits: 8
        )
        return commands + [sync, "w32 098 \(end)", "r32 09c \(end)"]
    }

    // MARK: Probe and reset

    /// arm_smmu_device_hw_probe: IDR0, IDR1, IDR3, IDR5; arm_smmu_device_iidr_probe: IIDR.
    static let probe = [
        "r32 000 094c101a", "r32 004 02730010", "r32 00c 00000400", "r32 014 00000074", "r32 018 00000000",
    ]

    /// arm_smmu_device_reset from CR1 to the event queue, for two levels of 8 bits each.
    static let tablesAndQueues =
        [
            // CR1: TABLE_SH and QUEUE_SH = 3, all four of IC and OC = 1. CR2: PTM, RECINVSID.
            "w32 028 00000d75", "w32 02c 00000006",
            // arm_smmu_write_strtab: RA in bit 62; FMT = 1, SPLIT = 8, LOG2SIZE = 16.
            "w64 080 4000000040004000", "w32 088 00010210",
            // q_base: RWA in bit 62, 2^10 entries.
            "w64 090 400000004000000a", "w32 098 00000000", "w32 09c 00000000",
            // arm_smmu_write_reg_sync: CMDQEN.
            "w32 020 00000008", "r32 024 00000008",
        ]
        // CMDQ_OP_CFGI_ALL: RANGE = 31 in [68:64].
        + issued(["cmd 0400000000000000 1f00000000000000"], from: 0)
        // CMDQ_OP_TLBI_NSNH_ALL.
        + issued(["cmd 3000000000000000 0000000000000000"], from: 2)
        + [
            // Page 1: EVTQ_PROD and EVTQ_CONS.
            "w64 0a0 400000004000800a", "w32 100a8 00000000", "w32 100ac 00000000",
            "w32 020 0000000c", "r32 024 0000000c",
        ]

    /// arm_smmu_setup_irqs with arm_smmu_setup_msis, and SMMUEN.
    static let interruptsAndEnable = [
        "w32 050 00000000", "r32 054 00000000",
        "w64 068 0000000000000000", "w64 0b0 0000000000000000",
        // EVTQ_IRQEN, GERROR_IRQEN.
        "w32 050 00000005", "r32 054 00000005",
        "w32 020 0000000d", "r32 024 0000000d",
    ]

    @Test func probeAndReset() throws {
        let bench = WireBench()
        let driver = try bench.start()
        let off = ["r32 020 00000000", "w32 020 00000000", "r32 024 00000000"]
        #expect(bench.wire.take() == Self.probe + off + Self.tablesAndQueues + Self.interruptsAndEnable)
        driver.stop()
    }

    @Test func resetOfAnSMMUThatIsOn() throws {
        let bench = WireBench()
        bench.smmu.setRegister(0x20, 0xD)
        bench.smmu.setRegister(0x24, 0xD)
        bench.smmu.setRegister(0x44, 0x1000)
        let driver = try bench.start()
        let off = [
            "r32 020 0000000d",
            // arm_smmu_update_gbpa(GBPA_ABORT, 0): one read until Update is clear, ABORT in bit 20, Update in
            // bit 31.
            "r32 044 00001000", "w32 044 80101000", "r32 044 00101000",
            // arm_smmu_device_disable.
            "w32 020 00000000", "r32 024 00000000",
        ]
        #expect(bench.wire.take() == Self.probe + off + Self.tablesAndQueues + Self.interruptsAndEnable)
        driver.stop()
    }

    /// arm_smmu_setup_msis, arm_smmu_write_msi_msg: addresses cleared, then address in bits 51:2, data, and
    /// Device-nGnRE for each, in the order of arm_smmu_msi_index.
    @Test func messagesAreWrittenAfterTheirAddressesAreCleared() throws {
        // IDR0 with MSI [13], as it is otherwise.
        let bench = WireBench([0: 0x094C_301A])
        func message(_ address: UInt64, _ data: UInt32, _ label: String) -> MessageInterrupt {
            MessageInterrupt(
                doorbell: PhysicalAddress(address),
                data: data,
                line: InterruptLine(
                    identity: InterruptIdentity(controller: "/its", specifier: [data]),
                    label: label
                )
            )
        }
        let driver = try bench.start(
            .messages(
                eventq: message(0x0808_0040, 0x2001, "eventq"),
                gerror: message(0x0808_0044, 0x2002, "gerror")
            )
        )
        let all = bench.wire.take()
        #expect(
            Array(all.suffix(14)) == [
                "w32 050 00000000", "r32 054 00000000",
                "w64 068 0000000000000000", "w64 0b0 0000000000000000",
                "w64 0b0 0000000008080040", "w32 0b8 00002001", "w32 0bc 00000001",
                "w64 068 0000000008080044", "w32 070 00002002", "w32 074 00000001",
                "w32 050 00000005", "r32 054 00000005",
                "w32 020 0000000d", "r32 024 0000000d",
            ]
        )
        driver.stop()
    }

    @Test func aCombinedLineHasNoMessageAddressesToClear() throws {
        let bench = WireBench()
        let line = InterruptLine(
            identity: InterruptIdentity(controller: "/intc", specifier: [0]),
            label: "combined"
        )
        let driver = try bench.start(.combined(line))
        let all = bench.wire.take()
        #expect(
            Array(all.suffix(6)) == [
                "w32 050 00000000", "r32 054 00000000", "w32 050 00000005", "r32 054 00000005",
                "w32 020 0000000d", "r32 024 0000000d",
            ]
        )
        driver.stop()
    }

    @Test func hypAddsTheInvalidationOfEL2() throws {
        let bench = WireBench([0: 0x094C_121A])
        let driver = try bench.start()
        let all = bench.wire.take()
        let first = try #require(all.firstIndex { $0.hasPrefix("cmd 04") })
        let invalidations =
            Self.issued(["cmd 0400000000000000 1f00000000000000"], from: 0)
            // CMDQ_OP_TLBI_EL2_ALL comes before CMDQ_OP_TLBI_NSNH_ALL.
            + Self.issued(["cmd 2000000000000000 0000000000000000"], from: 2)
            + Self.issued(["cmd 3000000000000000 0000000000000000"], from: 4)
        #expect(Array(all[first..<first + invalidations.count]) == invalidations)
        driver.stop()
    }

    @Test func withMSIsEachSyncNamesItsOwnEntry() throws {
        let bench = WireBench([0: 0x094C_301A])
        let driver = try bench.start()
        let all = bench.wire.take()
        let first = try #require(all.firstIndex { $0.hasPrefix("cmd 04") })
        // CS = IRQ; MSIADDR in [115:66]. __arm_smmu_cmdq_poll_until_msi reads memory, not CMDQ_CONS.
        #expect(
            Array(all[first..<first + 6]) == [
                "cmd 0400000000000000 1f00000000000000", "cmd 4610c00f00000000 1000004000000000",
                "w32 098 00000002",
                "cmd 3000000000000000 0000000000000000", "cmd 4610c00f00000000 3000004000000000",
                "w32 098 00000004",
            ]
        )
        driver.stop()
    }

    @Test func aLinearTableIsFMT0() throws {
        // SIDSIZE 6.
        let bench = WireBench([4: 0x0273_0006])
        let driver = try bench.start()
        let all = bench.wire.take()
        let base = try #require(all.firstIndex { $0.hasPrefix("w64 080") })
        #expect(Array(all[base...base + 1]) == ["w64 080 4000000040004000", "w32 088 00000006"])
        driver.stop()
    }

    @Test func removeIsCR0AndItsAcknowledgement() throws {
        let bench = WireBench()
        let driver = try bench.start()
        _ = bench.wire.take()
        driver.stop()
        // arm_smmu_device_disable.
        #expect(bench.wire.take() == ["w32 020 00000000", "r32 024 00000000"])
    }

    // MARK: Devices

    /// The STE of stream 0x103, in the first level-2 table.
    static let entry: UInt64 = 0x4001_00C0
    // CMDQ_OP_CFGI_STE, CMDQ_OP_CFGI_CD: SID in [63:32], LEAF in [64]. CMDQ_OP_PREFETCH_CFG: SID.
    static let cfgiSTE = "cmd 0300000003010000 0100000000000000"
    static let cfgiCD = "cmd 0500000003010000 0100000000000000"
    static let prefetch = "cmd 0100000003010000 0000000000000000"

    /// A driver with one endpoint, past its reset.
    private static func startWithEndpoint(_ bench: WireBench) throws -> (SMMUv3Driver, IOMMUEndpoint) {
        let driver = try bench.start()
        _ = bench.wire.take()
        return (driver, try driver.addEndpoint("nic", streams: [StreamID(0x103)]))
    }

    /// 8 bytes of memory.
    private static func store(_ address: UInt64, _ value: UInt64) -> String {
        "m64 \(hex(address)) \(hex(value, digits: 16))"
    }

    @Test func aDeviceThatIsProbedIsOneStoreToLevel1() throws {
        let bench = WireBench()
        let (driver, _) = try Self.startWithEndpoint(bench)
        // arm_smmu_write_strtab_l1_desc: SPAN = STRTAB_SPLIT + 1, L2PTR. The table below it was filled
        // before.
        #expect(bench.wire.take() == [Self.store(0x4000_4008, 0x4001_0009)])
        driver.stop()
    }

    @Test func attachToATranslatingDomain() throws {
        let bench = WireBench()
        let (driver, endpoint) = try Self.startWithEndpoint(bench)
        let domain = try driver.makeDomain(.unmanaged)
        _ = bench.wire.take()
        try driver.attach(endpoint, to: domain)
        let root = try #require(domain.root).rawValue
        let context = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        #expect(bench.wire.take() == Self.attachTrace(context, root))
        driver.stop()
    }

    /// arm_smmu_attach_dev, stage 1, from an aborting STE.
    private static func attachTrace(_ context: UInt64, _ root: UInt64) -> [String] {
        // arm_smmu_write_cd_entry of arm_smmu_make_s1_cd into a CD of zeros: all but word 0, then word 0.
        // T0SZ 16, IRGN = ORGN = 1, SH = 3, EPD1, V; IPS 44 bits, AA64, R, A, ASET, ASID 1. MAIR of
        // io-pgtable-arm.
        [store(context + 8, root), store(context + 24, 0xF404_FF44)] + issued([cfgiCD], from: 4)
            + [store(context, 0x0001_E204_C000_3510)] + issued([cfgiCD], from: 6)
            // arm_smmu_write_ste of arm_smmu_make_cdtable_ste: S1DSS = SSID0, S1CIR = S1COR = WBRA, S1CSH =
            // ISH; then V and Config = S1_TRANS with the table's address.
            + [store(entry + 8, 0xD6)] + issued([cfgiSTE], from: 8)
            + [store(entry, context | 0xB)] + issued([cfgiSTE], from: 10)
            // CMDQ_OP_PREFETCH_CFG, without CMD_SYNC.
            + [prefetch, "w32 098 0000000d"]
    }

    @Test func fromOneDomainToAnother() throws {
        let bench = WireBench()
        let (driver, endpoint) = try Self.startWithEndpoint(bench)
        let (first, second) = (try driver.makeDomain(.unmanaged), try driver.makeDomain(.unmanaged))
        try driver.attach(endpoint, to: first)
        let context = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        _ = bench.wire.take()
        try driver.attach(endpoint, to: second)
        let root = try #require(second.root).rawValue
        #expect(
            bench.wire.take()
                // arm_smmu_write_entry: words 0 (ASID) and 1 (TTB0) differ, so V = 0 comes first.
                == [Self.store(context, 0)] + Self.issued([Self.cfgiCD], from: 13)
                + [Self.store(context + 8, root)] + Self.issued([Self.cfgiCD], from: 15)
                + [Self.store(context, 0x0002_E204_C000_3510)] + Self.issued([Self.cfgiCD], from: 17)
                // The STE is as before, and prefetched all the same.
                + [Self.prefetch, "w32 098 00000014"]
        )
        driver.stop()
    }

    @Test func toABlockedDomain() throws {
        let bench = WireBench()
        let (driver, endpoint) = try Self.startWithEndpoint(bench)
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        let context = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        _ = bench.wire.take()
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(bench.wire.take() == Self.blockTrace(context, from: 13))
        #expect(domain.asid == 1)
        driver.stop()
    }

    /// arm_smmu_attach_dev_ste with arm_smmu_make_abort_ste, from stage 1.
    private static func blockTrace(_ context: UInt64, from position: UInt32) -> [String] {
        // Word 0 switches, then what nobody looks at any more becomes zero.
        [store(entry, 1)] + issued([cfgiSTE], from: position)
            + [store(entry + 8, 0)] + issued([cfgiSTE], from: position + 2)
            + [prefetch, "w32 098 \(hex(position + 5, digits: 8))"]
            // arm_smmu_clear_cd.
            + [store(context, 0)] + issued([cfgiCD], from: position + 5)
            + [store(context + 8, 0), store(context + 24, 0)] + issued([cfgiCD], from: position + 7)
    }

    @Test func toAnIdentityDomain() throws {
        let bench = WireBench()
        let (driver, endpoint) = try Self.startWithEndpoint(bench)
        _ = bench.wire.take()
        try driver.attach(endpoint, to: driver.identityDomain)
        // arm_smmu_make_bypass_ste without ATTR_TYPES_OVR: one word.
        #expect(
            bench.wire.take()
                == [Self.store(Self.entry, 9)] + Self.issued([Self.cfgiSTE], from: 4)
                + [Self.prefetch, "w32 098 00000007"]
        )
        driver.stop()
    }

    @Test func aDeviceThatIsReleasedIsBlocked() throws {
        let bench = WireBench()
        let (driver, endpoint) = try Self.startWithEndpoint(bench)
        try driver.attach(endpoint, to: try driver.makeDomain(.unmanaged))
        let context = bench.smmu.word(Self.entry) & 0x00FF_FFFF_FFFF_FFC0
        _ = bench.wire.take()
        try driver.removeEndpoint(endpoint)
        // arm_smmu_release_device: the domain goes with its last device, after its streams are blocked.
        let all = bench.wire.take()
        let blocked = Self.blockTrace(context, from: 13)
        #expect(Array(all.prefix(blocked.count)) == blocked)
        // arm_smmu_domain_free, io_pgtable_tlb_flush_all: CMDQ_OP_TLBI_NH_ASID, ASID in [63:48].
        #expect(
            Array(all.dropFirst(blocked.count))
                == Self.issued(["cmd 1100000000000100 0000000000000000"], from: 22)
        )
        driver.stop()
    }

    // MARK: Mapping

    @Test func mapIsTablesFromTheTopAndThenTheLeafWithoutACommand() throws {
        let bench = WireBench()
        let driver = try bench.start()
        let domain = try driver.makeDomain(.unmanaged)
        _ = bench.wire.take()
        try domain.map(
            IOVirtualAddress(0x10_0000),
            to: PhysicalAddress(0x4200_0000),
            byteCount: 0x1000,
            permissions: [.read, .write, .cacheable]
        )
        let root = try #require(domain.root).rawValue
        let tables = try domain.walk(IOVirtualAddress(0x10_0000)).map(\.descriptor).dropLast()
            .map { $0 & 0x0000_FFFF_FFFF_F000 }
        #expect(
            bench.wire.take() == [
                // arm_lpae_install_table: PTE_TYPE_TABLE, at indices 0, 0 and 0.
                "x64 \(hex(root)) \(hex(tables[0] | 3, digits: 16))",
                "x64 \(hex(tables[0])) \(hex(tables[1] | 3, digits: 16))",
                "x64 \(hex(tables[1])) \(hex(tables[2] | 3, digits: 16))",
                // arm_lpae_init_pte at index 0x100: nG, AF, SH = IS, AP[1], AttrIndx 1, page.
                Self.store(tables[2] + 0x800, 0x4200_0F47),
            ]
        )
        driver.stop()
    }

    @Test func unmapIsTheLeafThenTLBIByAddress() throws {
        let bench = WireBench()
        let driver = try bench.start()
        let domain = try driver.makeDomain(.unmanaged)
        try domain.map(
            IOVirtualAddress(0x10_0000),
            to: PhysicalAddress(0x4200_0000),
            byteCount: 0x3000,
            permissions: .readWrite
        )
        let leaf = try #require(try domain.walk(IOVirtualAddress(0x10_0000)).dropLast().last).descriptor
        let table = leaf & 0x0000_FFFF_FFFF_F000
        _ = bench.wire.take()
        _ = try domain.unmap(IOVirtualAddress(0x10_0000), byteCount: 0x3000)
        #expect(
            bench.wire.take()
                == (0..<3).map { Self.store(table + 0x800 + $0 * 8, 0) }
                // __arm_smmu_tlb_inv_range with RIL: NUM = 2 in [16:12], ASID 1; LEAF, TTL = 3, TG = 1, the
                // address.
                + Self.issued(["cmd 1220000000000100 0107100000000000"], from: 4)
        )
        driver.stop()
    }

    @Test func aTableThatGoesIsInvalidatedBeforeItIsFreed() throws {
        let bench = WireBench()
        let driver = try bench.start()
        let domain = try driver.makeDomain(.unmanaged)
        try domain.map(
            IOVirtualAddress(0x20_0000),
            to: PhysicalAddress(0x4200_1000),
            byteCount: 0x20_0000,
            permissions: .readWrite
        )
        let steps = try domain.walk(IOVirtualAddress(0x20_0000))
        let middle = steps[1].descriptor & 0x0000_FFFF_FFFF_F000
        _ = bench.wire.take()
        _ = try domain.unmap(IOVirtualAddress(0x20_0000), byteCount: 0x20_0000)
        #expect(
            bench.wire.take()
                // __arm_lpae_clear_pte at index 1 of level 2, then io_pgtable_tlb_flush_walk: 512 pages,
                // SCALE = 9 in [24:20], no LEAF, TTL 0.
                == [Self.store(middle + 8, 0)]
                + Self.issued(["cmd 1200900000000100 0004200000000000"], from: 4)
        )
        driver.stop()
    }

    @Test func aDomainThatEndsIsInvalidatedByItsASID() throws {
        let bench = WireBench()
        let driver = try bench.start()
        do {
            let domain = try driver.makeDomain(.unmanaged)
            #expect(domain.asid == 1)
            _ = bench.wire.take()
        }
        #expect(bench.wire.take() == Self.issued(["cmd 1100000000000100 0000000000000000"], from: 4))
        driver.stop()
    }

    // MARK: Interrupts

    @Test func eventsAreReadUpToTheProducerEachWithItsConsumer() throws {
        let bench = WireBench()
        let driver = try bench.start()
        for _ in 0..<2 { bench.smmu.post(InterruptTests.record) }
        _ = bench.wire.take()
        driver.pollInterrupts()
        #expect(
            bench.wire.take() == [
                // arm_smmu_gerror_handler finds nothing.
                "r32 060 00000000", "r32 064 00000000",
                // arm_smmu_evtq_thread: queue_sync_prod_in, queue_remove_raw twice, and once more whether
                // that was all.
                "r32 100a8 00000002", "w32 100ac 00000001", "w32 100ac 00000002", "r32 100a8 00000002",
            ]
        )
        driver.stop()
    }

    @Test func anIllegalCommandIsReplacedAndThenAcknowledged() throws {
        let bench = WireBench()
        let driver = try bench.start()
        bench.smmu.script { $0.illegalOpcodes = [0x30] }
        _ = bench.wire.take()
        try driver.device.complete([.tlbiNSNHAll()])
        #expect(
            bench.wire.take() == [
                "cmd 3000000000000000 0000000000000000", Self.sync, "w32 098 00000006", "r32 09c 01000004",
                // arm_smmu_gerror_handler: CMDQ_ERR; __arm_smmu_cmdq_skip_err reads CMDQ_CONS and stores a
                // CMD_SYNC at the place that it names.
                "r32 060 00000001", "r32 064 00000000", "r32 09c 01000004", Self.sync,
                // GERRORN as GERROR was.
                "w32 064 00000001", "r32 09c 00000006",
            ]
        )
        driver.stop()
    }
}
