// Faults that wait for a page: from events and page requests to handlers, and the commands that answer them.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization
import Testing

@testable import IOMMU

/// Notes what it is asked for, and answers as it is told.
final class ScriptedHandler: PageFaultHandler {
    private let asked = Mutex<[PageFault]>([])
    private let answer: @Sendable (PageFault) -> PageFaultResponse

    init(_ answer: @escaping @Sendable (PageFault) -> PageFaultResponse = { _ in .success }) {
        self.answer = answer
    }

    var faults: [PageFault] { asked.withLock { $0 } }

    func handle(_ fault: PageFault) -> PageFaultResponse {
        asked.withLock { $0.append(fault) }
        return answer(fault)
    }
}

/// A function's registers, and what was written to them.
final class FakeServices: PageServices {
    private let written = Mutex<[String]>([])
    let hasATS = true
    let hasPRI = true
    let responsesNeedPASID = true

    /// What was written since the last call.
    func take() -> [String] {
        written.withLock { written in
            defer { written = [] }
            return written
        }
    }

    private func note(_ text: String) { written.withLock { $0.append(text) } }

    func setATS(log2PageBytes: Int?) { note(log2PageBytes.map { "ATS \($0)" } ?? "ATS off") }
    func setPRI(outstandingRequests: Int?) { note(outstandingRequests.map { "PRI \($0)" } ?? "PRI off") }
    func setPASID(_ isEnabled: Bool) { note(isEnabled ? "PASID" : "PASID off") }
}

extension FakeSMMU {
    /// Appends an entry to the PRI queue as hardware does; a full queue loses it and flips OVFLG.
    func request(_ low: UInt64, _ high: UInt64) throws {
        let log2 = register(0xC0) & 0x1F
        let mask = (UInt32(2) << log2) - 1
        let producer = register(0x100C8)
        let consumer = register(0x100CC)
        let isOverflowing = (producer ^ consumer) >> 31 != 0
        if isOverflowing || (producer ^ consumer) & mask == 1 << log2 {
            if !isOverflowing { setRegister(0x100C8, producer ^ 1 << 31) }
            return
        }
        let base = (UInt64(register(0xC0)) | UInt64(register(0xC4)) << 32) & 0x000F_FFFF_FFFF_FFE0
        let slot = (base & ~((UInt64(16) << UInt64(log2)) - 1)) + UInt64(producer & (mask >> 1)) * 16
        try store(low, .doubleword, at: PhysicalAddress(slot))
        try store(high, .doubleword, at: PhysicalAddress(slot + 8))
        setRegister(0x100C8, producer & 1 << 31 | (producer + 1) & mask)
    }
}

@Suite("Page faults")
struct PageFaultTests {
    /// Stalls, PRI and ATS; 8 bits of SubstreamID, 2^7 page requests.
    static let identification: [UInt64: UInt32] = [0x0: 0x084D_141A, 0x4: 0x0273_3A10]
    static let stream = StreamID(0x103)
    /// F_TRANSLATION of stream 0x103, SubstreamID 5, STAG 0x2A, a write to 0x1000_2008.
    static let stalledWrite: [UInt64] = [0x0000_0103_0000_5810, 0x0000_0200_8000_002A, 0x1000_2008, 0]

    private static func bench(_ options: (inout SMMUv3DriverOptions) -> Void = { _ in }) -> DriverBench {
        var bench = DriverBench(identification)
        options(&bench.options)
        return bench
    }

    /// An endpoint whose SubstreamID 5 is in a domain with a handler.
    private static func attach(_ driver: SMMUv3Driver, _ handler: ScriptedHandler) throws -> IOMMUEndpoint {
        let endpoint = try driver.addEndpoint(
            "dma",
            streams: [stream],
            substreamBits: 8,
            canStall: true,
            services: FakeServices()
        )
        try driver.enable(.pageFaults, for: endpoint)
        let domain = try driver.makeDomain(.unmanaged)
        domain.setFaultHandler(handler)
        try driver.attach(endpoint, substream: SubstreamID(5), to: domain)
        return endpoint
    }

    // MARK: Stalls

    @Test(
        "a stalled transaction waits for its handler, and is tried again or aborted",
        arguments: [true, false]
    )
    func stall(_ isGranted: Bool) throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let handler = ScriptedHandler { _ in isGranted ? .success : .invalid }
        _ = try Self.attach(driver, handler)
        _ = bench.smmu.takeCommands()
        bench.smmu.post(Self.stalledWrite)
        #expect(driver.pollInterrupts())
        let expected = PageFault(
            .stall,
            stream: Self.stream,
            substream: SubstreamID(5),
            group: 0x2A,
            address: 0x1000_2008,
            access: .write
        )
        #expect(handler.faults == [expected])
        // CMD_RESUME: Ac is bit 12, Ab bit 13.
        let word: UInt64 = isGranted ? 0x0000_0103_0000_1044 : 0x0000_0103_0000_2044
        #expect(bench.smmu.takeCommands() == [RawCommand(word, 0x2A)])
        // What is handled is nothing to tell.
        #expect(driver.events().isEmpty)
        let statistics = driver.pageFaultStatistics
        #expect(statistics.reported == 1 && statistics.succeeded == (isGranted ? 1 : 0))
        #expect(statistics.refused == (isGranted ? 0 : 1) && statistics.unhandled == 0)
    }

    @Test func whatAFaultSaysOfAnAccessIsWhatTheRecordSays() {
        // RnW is bit 99, InD bit 98, PnU bit 97.
        let cases: [(word: UInt64, access: PageFault.Access)] = [
            (0x0000_0200_8000_0001, .write), (0x0000_020A_8000_0001, [.read, .privileged]),
            (0x0000_020C_8000_0001, [.read, .execute]),
        ]
        for (word, access) in cases {
            let record = EventRecord(words: SIMD4(Self.stalledWrite[0], word, Self.stalledWrite[2], 0))
            #expect(PageFault(record).access == access)
        }
    }

    @Test func aFaultThatNobodyHandlesIsToldInTheKernelsWordsAndAborted() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let endpoint = try Self.attach(driver, ScriptedHandler())
        try driver.disable(.pageFaults, for: endpoint)
        _ = bench.smmu.takeCommands()
        bench.smmu.post(Self.stalledWrite)
        driver.pollInterrupts()
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0000_0103_0000_2044, 0x2A)])
        #expect(driver.messages.suffix(5).first == "event 0x10 received:")
        // Another SubstreamID, on which nothing is attached.
        try driver.enable(.pageFaults, for: endpoint)
        bench.smmu.post([0x0000_0103_0000_6810] + Self.stalledWrite[1...])
        driver.pollInterrupts()
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0000_0103_0000_2044, 0x2A)])
        #expect(driver.pageFaultStatistics.unhandled == 2)
    }

    // MARK: Page requests

    /// An entry of stream 0x103, SubstreamID 5.
    private static func entry(_ flags: UInt64) -> UInt64 { 0x0000_0005_0000_0103 | flags }
    private static let ssv: UInt64 = 1 << 63
    private static let last: UInt64 = 1 << 62
    private static let write: UInt64 = 1 << 61
    private static let read: UInt64 = 1 << 60

    @Test func pageRequestsAreGatheredUntilTheLastOfTheirGroup() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let handler = ScriptedHandler()
        _ = try Self.attach(driver, handler)
        _ = bench.smmu.takeCommands()
        try bench.smmu.request(Self.entry(Self.ssv | Self.read), 0x1_0000 | 3)
        try bench.smmu.request(Self.entry(Self.ssv | Self.read), 0x7_0000 | 4)
        try bench.smmu.request(Self.entry(Self.ssv | Self.write), 0x1_1000 | 3)
        driver.pollInterrupts()
        #expect(handler.faults.isEmpty)
        #expect(bench.smmu.takeCommands().isEmpty)
        try bench.smmu.request(Self.entry(Self.ssv | Self.write | Self.last), 0x1_2000 | 3)
        driver.pollInterrupts()
        #expect(handler.faults.map(\.address) == [0x1_0000, 0x1_1000, 0x1_2000])
        #expect(handler.faults.map(\.access) == [.read, .write, .write])
        // CMD_PRI_RESP: SSV is bit 11, Resp bits 77:76, 2 is success.
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0000_0103_0000_5841, 0x2003)])
        #expect(bench.smmu.register(0x100CC) == 4)
        // The other group is still open.
        try bench.smmu.request(Self.entry(Self.ssv | Self.read | Self.last), 0x7_1000 | 4)
        driver.pollInterrupts()
        #expect(handler.faults.suffix(2).map(\.address) == [0x7_0000, 0x7_1000])
    }

    @Test func aRefusedPageEndsItsGroup() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let handler = ScriptedHandler { $0.address == 0x1_0000 ? .invalid : .success }
        _ = try Self.attach(driver, handler)
        _ = bench.smmu.takeCommands()
        try bench.smmu.request(Self.entry(Self.ssv | Self.read), 0x1_0000 | 3)
        try bench.smmu.request(Self.entry(Self.ssv | Self.read | Self.last), 0x1_1000 | 3)
        driver.pollInterrupts()
        #expect(handler.faults.map(\.address) == [0x1_0000])
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0000_0103_0000_5841, 0x1003)])
    }

    @Test func aPageRequestThatNobodyHandlesIsToldInTheKernelsWordsAndDenied() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        try bench.smmu.request(Self.entry(Self.ssv | Self.read), 0x1_0000 | 3)
        try bench.smmu.request(Self.entry(Self.ssv | Self.write | Self.last), 0x1_2000 | 3)
        // A stop marker, and a request without a PASID.
        try bench.smmu.request(Self.entry(Self.ssv | Self.last), 0)
        try bench.smmu.request(0x0000_0104 | Self.read | Self.write | Self.last, 0x5000 | 7)
        driver.pollInterrupts()
        #expect(
            driver.messages.suffix(6) == [
                "unexpected PRI request received:",
                "\tsid 0x00000103.0x00005: [3] unprivileged R access at iova 0x0000000000010000",
                "unexpected PRI request received:",
                "\tsid 0x00000103.0x00005: [3L] unprivileged W access at iova 0x0000000000012000",
                "unexpected PRI request received:",
                "\tsid 0x00000104.0x00000: [7L] unprivileged RW access at iova 0x0000000000005000",
            ]
        )
        #expect(
            bench.smmu.takeCommands() == [
                RawCommand(0x0000_0103_0000_5841, 3), RawCommand(0x0000_0104_0000_0041, 7),
            ]
        )
    }

    @Test func anOverflowOfThePRIQueueDropsWhatIsIncomplete() throws {
        let bench = Self.bench { $0.queueLog2Limit = 7 }
        let driver = try bench.start()
        let handler = ScriptedHandler()
        _ = try Self.attach(driver, handler)
        _ = bench.smmu.takeCommands()
        for index in 0..<130 as Range<UInt64> {
            try bench.smmu.request(Self.entry(Self.ssv | Self.read), index << 12 | 3)
        }
        driver.pollInterrupts()
        #expect(driver.messages.contains("PRIQ overflow detected -- requests lost"))
        #expect(driver.pageFaultStatistics.discarded == 128)
        // RD 0 with the wrap bit, and OVACKFLG: the SMMU writes again.
        #expect(bench.smmu.register(0x100CC) == 0x8000_0080)
        #expect(handler.faults.isEmpty && bench.smmu.takeCommands().isEmpty)
        try bench.smmu.request(Self.entry(Self.ssv | Self.read | Self.last), 0x9000 | 3)
        driver.pollInterrupts()
        #expect(handler.faults.map(\.address) == [0x9000])
    }

    @Test func anEndlessGroupFillsNoMemory() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        _ = try Self.attach(driver, ScriptedHandler())
        for round in 0..<80 as Range<UInt64> {
            for index in 0..<64 as Range<UInt64> {
                try bench.smmu.request(Self.entry(Self.ssv | Self.read), (round << 6 | index) << 12 | 3)
            }
            driver.pollInterrupts()
        }
        #expect(driver.pageFaultStatistics.reported == 80 * 64)
        #expect(driver.pageFaultStatistics.discarded == UInt64(80 * 64 - PageFaultQueue.limit))
    }

    // MARK: Endpoints

    @Test func aDeviceThatIsRemovedHasItsFaultsRefused() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let handler = ScriptedHandler()
        let endpoint = try Self.attach(driver, handler)
        // Taken in, not handled yet: there is no thread.
        #expect(driver.pageFaults.report(PageFault(EventRecord(words: SIMD4(Self.stalledWrite)))))
        _ = bench.smmu.takeCommands()
        try driver.removeEndpoint(endpoint)
        #expect(handler.faults.isEmpty)
        #expect(bench.smmu.takeCommands().first == RawCommand(0x0000_0103_0000_2044, 0x2A))
        #expect(!driver.pageFaults.report(PageFault(EventRecord(words: SIMD4(Self.stalledWrite)))))
    }

    @Test func featuresAreRefusedAsTheKernelRefusesThem() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        let plain = try driver.addEndpoint("plain", streams: [StreamID(1)], substreamBits: 4)
        #expect(throws: SVAError.invalid("plain has neither stalls nor page requests")) {
            try driver.enable(.pageFaults, for: plain)
        }
        let single = try driver.addEndpoint("single", streams: [StreamID(2)], canStall: true)
        #expect(throws: SVAError.invalid("single has no SubstreamIDs")) {
            try driver.enable(.sharedAddresses, for: single)
        }
        let endpoint = try driver.addEndpoint("dma", streams: [StreamID(3)], substreamBits: 4, canStall: true)
        #expect(throws: SVAError.invalid("dma has its page faults not enabled")) {
            try driver.enable(.sharedAddresses, for: endpoint)
        }
        try driver.enable(.pageFaults, for: endpoint)
        #expect(throws: SVAError.busy("iopf of dma is enabled already")) {
            try driver.enable(.pageFaults, for: endpoint)
        }
        try driver.enable(.sharedAddresses, for: endpoint)
        #expect(throws: SVAError.busy("dma has sva enabled, which needs its page faults")) {
            try driver.disable(.pageFaults, for: endpoint)
        }
        try driver.disable(.sharedAddresses, for: endpoint)
        try driver.disable(.pageFaults, for: endpoint)
        #expect(throws: SVAError.invalid("iopf of dma is not enabled")) {
            try driver.disable(.pageFaults, for: endpoint)
        }
        // A device without faults has SVA all the same: somebody pins its pages.
        try driver.enable(.sharedAddresses, for: plain)
    }

    @Test func resetEnablesThePRIQueueAfterTheEventQueueAndThenTheATSCheck() throws {
        let bench = Self.bench()
        let driver = try bench.start()
        #expect(driver.messages.contains("allocated 1024 entries for evtq"))
        #expect(driver.messages.contains("allocated 128 entries for priq"))
        #expect(driver.messages.contains("no priq irq - PRI will be broken"))
        let writes: [UInt64: [UInt64]] = bench.trace.take().reduce(into: [:]) { writes, action in
            switch action {
            case .write32(let offset, let value): writes[offset, default: []].append(UInt64(value))
            case .write64(let offset, let value): writes[offset, default: []].append(value)
            default: break
            }
        }
        // CR0: off, CMDQEN, EVENTQEN, PRIQEN, ATSCHK, SMMUEN.
        #expect(writes[0x20] == [0, 0x8, 0xC, 0xE, 0x1E, 0x1F])
        // PRIQ_BASE: WA is bit 62.
        #expect(writes[0xC0]?.first.map { $0 & 0x4000_0000_0000_001F } == 0x4000_0000_0000_0007)
        #expect(writes[0x100C8] == [0] && writes[0x100CC] == [0] && writes[0xD0] == [0])
        // IRQ_CTRL: gerror, PRI queue, event queue.
        #expect(writes[0x50] == [0, 0x7])
    }
}
