// Probe and reset: what is refused, and every access in the documented order.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Probe and reset")
struct ProbeAndResetTests {
    // MARK: Probe

    @Test func identificationBecomesFeaturesAsTheKernelPrintsThem() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        // 2-level stream and CD tables, little-endian, coherent, stage 1, ranges, SVA: bits 0, 1, 2, 8, 9, 15, 17.
        #expect(driver.features.flags.rawValue == 0x2_8307)
        #expect(driver.features.inputAddressBits == 44)
        #expect(driver.features.outputAddressBits == 44)
        #expect(driver.features.granules == [.kib4, .kib16, .kib64])
        #expect(driver.features.asidBits == 16)
        #expect(driver.features.vmidBits == 16)
        #expect(driver.features.streamIDBits == 16)
        #expect(driver.features.substreamIDBits == 0)
        #expect(
            driver.messages == [
                "ias 44-bit, oas 44-bit (features 0x00028307)", "allocated 1024 entries for cmdq",
                "allocated 1024 entries for evtq",
            ]
        )
    }

    struct Refusal: Sendable, CustomTestStringConvertible {
        let offset: UInt64
        let value: UInt32
        let register: String
        let reason: String
        var testDescription: String { reason }
    }

    static let refusals = [
        Refusal(
            offset: 0,
            value: 0x09AC_101A,
            register: "SMMU_IDR0",
            reason: "unknown/unsupported TT endianness!"
        ),
        Refusal(
            offset: 0,
            value: 0x096C_101A,
            register: "SMMU_IDR0",
            reason: "unknown/unsupported TT endianness!"
        ),
        Refusal(offset: 0, value: 0x094C_1018, register: "SMMU_IDR0", reason: "no translation support!"),
        Refusal(
            offset: 0,
            value: 0x094C_1016,
            register: "SMMU_IDR0",
            reason: "AArch64 table format not supported!"
        ),
        Refusal(
            offset: 4,
            value: 0x4273_0010,
            register: "SMMU_IDR1",
            reason: "embedded implementation not supported"
        ),
        Refusal(
            offset: 4,
            value: 0x2273_0010,
            register: "SMMU_IDR1",
            reason: "embedded implementation not supported"
        ),
        Refusal(
            offset: 4,
            value: 0x1273_0010,
            register: "SMMU_IDR1",
            reason: "embedded implementation not supported"
        ),
        Refusal(
            offset: 4,
            value: 0x00D3_0010,
            register: "SMMU_IDR1",
            reason: "command queue size <= 64 entries not supported"
        ),
        Refusal(offset: 0x14, value: 0x4, register: "SMMU_IDR5", reason: "no translation granule"),
    ]

    @Test("hardware that the kernel refuses is refused, by register and value", arguments: refusals)
    func refusal(_ refusal: Refusal) {
        let bench = DriverBench([refusal.offset: refusal.value])
        #expect(
            throws: SMMUDriverError.unsupportedHardware(
                register: refusal.register,
                value: refusal.value,
                reason: refusal.reason
            )
        ) { _ = try bench.start() }
        #expect(bench.frames.usedByteCount == 0)
    }

    @Test func aWindowOfOnePageIsTooSmall() {
        let bench = DriverBench()
        #expect(throws: SMMUDriverError.registerWindowTooSmall(byteCount: 0x1_0000, needed: 0x2_0000)) {
            _ = try bench.start(registerByteCount: 0x1_0000)
        }
        #expect(
            SMMUDriverError.registerWindowTooSmall(byteCount: 0x1_0000, needed: 0x2_0000).description
                == "MMIO region too small: 0x10000 bytes, 0x20000 are needed"
        )
    }

    @Test func whatFirmwareSaysOfCoherencyWins() throws {
        var bench = DriverBench()
        bench.options.isCoherent = false
        let driver = try bench.start()
        #expect(!driver.features.flags.contains(.coherent))
        #expect(driver.messages.first == "IDR0.COHACC overridden by FW configuration (false)")
    }

    @Test func anUnknownOutputSizeIsTruncated() throws {
        let driver = try DriverBench([0x14: 0x77]).start()
        #expect(driver.features.outputAddressBits == 48)
        #expect(driver.messages.first == "unknown output address size. Truncating to 48-bit")
    }

    @Test func erratumOfTheMMU700ForcesASyncIntoFullBatches() throws {
        #expect(try DriverBench([0x18: 0x4870_043B]).start().features.syncsFullBatches)
        #expect(try !DriverBench([0x18: 0x4830_043B]).start().features.syncsFullBatches)
    }

    // MARK: Reset

    @Test func resetIsTheDocumentedSequence() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        #expect(bench.trace.take() == Self.resetTrace)
        driver.stop()
        #expect(bench.trace.take() == [.write32(0x20, 0), .read(0x24, 0)])
    }

    /// The command queue of 16 KiB lies at 0x4000_0000, the event queue of 32 KiB at 0x4000_8000, the level-1
    /// stream table in the frame at 0x4000_4000.
    static let resetTrace: [DriverAction] = [
        // ID registers.
        .read(0x0, 0x094C_101A), .read(0x4, 0x0273_0010), .read(0xC, 0x400), .read(0x14, 0x74),
        .read(0x18, 0),
        // 1, 2: off.
        .read(0x20, 0), .write32(0x20, 0), .read(0x24, 0),
        // 3, 4: CR1 and CR2.
        .write32(0x28, 0xD75), .write32(0x2C, 6),
        // 5: two levels, split 8, 16 bits.
        .write64(0x80, 0x4000_0000_4000_4000), .write32(0x88, 0x1_0210),
        // 6, 7: command queue.
        .write64(0x90, 0x4000_0000_4000_000A), .write32(0x98, 0), .write32(0x9C, 0), .write32(0x20, 0x8),
        .read(0x24, 0x8),
        // 8: CFGI_ALL.
        .command(Command(words: [0x04, 0x1F])), .command(Command(words: [0x0FC0_2046, 0])), .write32(0x98, 2),
        .read(0x9C, 2),
        // 10: TLBI_NSNH_ALL.
        .command(Command(words: [0x30, 0])), .command(Command(words: [0x0FC0_2046, 0])), .write32(0x98, 4),
        .read(0x9C, 4),
        // 11, 12: event queue.
        .write64(0xA0, 0x4000_0000_4000_800A), .write32(0x100A8, 0), .write32(0x100AC, 0),
        .write32(0x20, 0xC),
        .read(0x24, 0xC),
        // 15 to 18: interrupts.
        .write32(0x50, 0), .read(0x54, 0), .write64(0x68, 0), .write64(0xB0, 0), .write32(0x50, 5),
        .read(0x54, 5),
        // 20: on.
        .write32(0x20, 0xD), .read(0x24, 0xD),
    ]

    @Test func anSMMUThatWasLeftOnAbortsWhileItIsReset() throws {
        let bench = DriverBench()
        bench.smmu.setRegister(0x20, 0xD)
        bench.smmu.setRegister(0x44, 0x1000)
        let driver = try bench.start()
        let actions = bench.trace.take()
        #expect(
            Array(actions[5..<11]) == [
                .read(0x20, 0xD), .read(0x44, 0x1000), .write32(0x44, 0x8010_1000), .read(0x44, 0x10_1000),
                .write32(0x20, 0), .read(0x24, 0),
            ]
        )
        #expect(driver.messages.contains("SMMU currently enabled! Resetting..."))
    }

    @Test func anSMMUWithHypInvalidatesEL2AsWell() throws {
        let bench = DriverBench([0: 0x094C_121B])
        _ = try bench.start()
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(0x04, 0x1F), .sync, RawCommand(0x20, 0), .sync, RawCommand(0x30, 0), .sync,
            ]
        )
    }

    @Test func aLinearStreamTableIsFullOfAbortingEntries() throws {
        // SIDSIZE 6: one level although two could be had.
        let bench = DriverBench([4: 0x0273_0006])
        _ = try bench.start()
        #expect(bench.smmu.register(0x88) == 6)
        #expect(bench.smmu.register(0x80) == 0x4000_4000)
        #expect(bench.smmu.register(0x84) == 0x4000_0000)
        for stream in [0, 1, 63] as [UInt64] {
            #expect(bench.smmu.words(0x4000_4000 + stream * 64) == [1, 0, 0, 0, 0, 0, 0, 0])
        }
        #expect(bench.smmu.words(0x4000_4000 + 64 * 64)[0] == 0)
    }

    @Test func streamsBypassWhereThatIsNotDisabled() throws {
        // ATTR_TYPES_OVR: SHCFG is set to 'use incoming'.
        var bench = DriverBench([4: 0x0A73_0006])
        bench.options.disablesBypass = false
        _ = try bench.start()
        #expect(bench.smmu.words(0x4000_4000 + 5 * 64) == [0x9, 1 << 44, 0, 0, 0, 0, 0, 0])
    }

    @Test func streamsOfFirmwareBypassFromTheStart() throws {
        var bench = DriverBench()
        bench.options.firmwareStreams = [StreamID(0x203)]
        _ = try bench.start()
        // Level 1, index 2: Span 9, and the level-2 table of 16 KiB.
        #expect(bench.smmu.word(0x4000_4010) == 0x4001_0009)
        #expect(bench.smmu.word(0x4001_0000 + 3 * 64) == 0x9)
        #expect(bench.smmu.word(0x4001_0000 + 4 * 64) == 0x1)
    }

    @Test func aTableThatCannotCoverAllStreamIDsIsToldOf() throws {
        let driver = try DriverBench([4: 0x0273_0020]).start()
        #expect(driver.messages.contains("2-level strtab only covers 25/32 bits of SID"))
        #expect(throws: SMMUDriverError.streamOutOfRange(StreamID(1 << 25), count: 1 << 25)) {
            _ = try driver.addEndpoint("far", streams: [StreamID(1 << 25)])
        }
    }

    @Test func queuesAreHalvedUntilTheyFit() throws {
        var bench = DriverBench()
        let frames = PhysicalFrameAllocator(
            memory: bench.smmu,
            ranges: [try #require(AddressRange(start: 0x4000_0000, byteCount: 0x7000))]
        )
        bench.options.queueLog2Limit = 12
        let driver = try SMMUv3Driver(
            access: bench.smmu,
            registerBase: PhysicalAddress(FakeSMMU.registerBase),
            registerByteCount: 0x2_0000,
            frames: frames,
            interrupts: .named(eventq: nil, gerror: nil),
            options: bench.options
        )
        #expect(
            driver.messages.contains("allocated 1024 entries for cmdq")
                && driver.messages.contains("allocated 256 entries for evtq")
        )
        #expect(driver.messages.contains("no evtq irq - events will not be reported!"))
        #expect(driver.messages.contains("no gerr irq - errors will not be reported!"))
    }

    // MARK: A hung SMMU

    @Test func aCR0ThatIsNotAcknowledgedEndsTheStart() throws {
        let bench = DriverBench()
        bench.smmu.setRegister(0x24, 1)
        bench.smmu.script { $0.ignoresCR0 = true }
        #expect(throws: SMMUDriverError.registerTimeout(register: "SMMU_CR0ACK", expected: 0, found: 1)) {
            _ = try bench.start()
        }
    }

    @Test func aCommandQueueThatDoesNotMoveEndsTheStartAndGivesItsMemoryBack() throws {
        let bench = DriverBench()
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: 2, consumer: 0)) {
            _ = try bench.start()
        }
        #expect(bench.smmu.register(0x20) == 0)
        #expect(bench.frames.usedByteCount == 0)
    }

    @Test func interruptsThatCannotBeEnabledAreAWarning() throws {
        let bench = DriverBench()
        bench.smmu.script { $0.ignoresIRQCtrl = true }
        #expect(try bench.start().messages.contains("failed to enable irqs"))
    }

    @Test func aRegisterThatNobodyAnswersIsAnError() throws {
        let bench = DriverBench()
        let base = PhysicalAddress(0x10_0000)
        #expect(throws: SMMUDriverError.bus(.unassigned(base))) {
            _ = try SMMUv3Driver(
                access: bench.smmu,
                registerBase: base,
                registerByteCount: 0x2_0000,
                frames: bench.frames,
                interrupts: .named(eventq: nil, gerror: nil),
                options: bench.options
            )
        }
    }

    // MARK: Stop

    @Test func stoppingSwitchesOffAndEverythingIsGivenBack() throws {
        let bench = DriverBench()
        do {
            let driver = try bench.start()
            let endpoint = try driver.addEndpoint("nic", streams: [StreamID(8)])
            let domain = try driver.makeDomain(.dma)
            try driver.attach(endpoint, to: domain)
            _ = try domain.map(PhysicalAddress(0x4200_0000), byteCount: 0x1000, permissions: .readWrite)
            driver.stop()
            #expect(bench.smmu.register(0x20) == 0)
            #expect(throws: SMMUDriverError.stopped) { try driver.synchronize() }
            #expect(throws: SMMUDriverError.stopped) { _ = try driver.makeDomain(.dma) }
        }
        #expect(bench.frames.usedByteCount == 0)
        #expect(bench.options.asids.usedCount == 0)
    }

    @Test func memoryOfAnSMMUThatCannotBeSwitchedOffIsNeverUsedAgain() throws {
        let bench = DriverBench()
        let used: UInt64
        do {
            let driver = try bench.start()
            let endpoint = try driver.addEndpoint("nic", streams: [StreamID(8)])
            let domain = try driver.makeDomain(.dma)
            try driver.attach(endpoint, to: domain)
            _ = try domain.map(PhysicalAddress(0x4200_0000), byteCount: 0x1000, permissions: .readWrite)
            used = bench.frames.usedByteCount
            bench.smmu.script { $0.ignoresCR0 = true }
            driver.stop()
        }
        #expect(bench.frames.usedByteCount == used)
    }
}
