// Events, global errors and recovery of the command queue, inline and on threads.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization
import Testing

@testable import IOMMU

@Suite("Interrupts")
struct InterruptTests {
    /// F_TRANSLATION of stream 0x103: read, CLASS = IN, at 0x1000_2000.
    static let record: [UInt64] = [0x0000_0103_0000_0010, 0x0000_0208_0000_0000, 0x1000_2000, 0]

    /// Lets the driver's threads run until something is so.
    private static func wait(until condition: () -> Bool) -> Bool {
        var deadline = Deadline(MonotonicClock(), nanoseconds: 20_000_000_000)
        while !condition() {
            if !deadline.wait() { return condition() }
        }
        return true
    }

    // MARK: Events

    @Test func anEventIsLoggedAsTheKernelPrintsItAndKept() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        bench.smmu.post(Self.record)
        #expect(driver.events().isEmpty)
        #expect(driver.pollInterrupts())
        #expect(
            driver.messages.suffix(5) == [
                "event 0x10 received:", "\t0x0000010300000010", "\t0x0000020800000000",
                "\t0x0000000010002000",
                "\t0x0000000000000000",
            ]
        )
        let event = try #require(driver.events().first)
        #expect(event.sequence == 0)
        #expect(event.record.number == .fTranslation)
        #expect(event.record.streamID == StreamID(0x103))
        #expect(event.record.inputAddress == 0x1000_2000)
        #expect(bench.smmu.register(0x100AC) == 1)
        #expect(driver.events(since: 1).isEmpty)
        #expect(!driver.pollInterrupts())
    }

    @Test func anOverflowIsToldOfAndAcknowledged() throws {
        var bench = DriverBench()
        bench.options.queueLog2Limit = 7
        let driver = try bench.start()
        for _ in 0..<130 { bench.smmu.post(Self.record) }
        driver.pollInterrupts()
        #expect(driver.events().count == 128)
        #expect(driver.messages.contains("EVTQ overflow detected -- events lost"))
        // RD 0 with the wrap bit, and OVACKFLG.
        #expect(bench.smmu.register(0x100AC) == 0x8000_0080)
        bench.smmu.post(Self.record)
        driver.pollInterrupts()
        #expect(driver.events().count == 129)
        #expect(driver.messages.count(where: { $0.hasPrefix("EVTQ overflow") }) == 1)
    }

    @Test func theNewestEventsAreKept() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        for index in 0..<1500 as Range<UInt64> {
            bench.smmu.post([Self.record[0], Self.record[1], index << 12, 0])
            driver.pollInterrupts()
        }
        #expect(driver.events().count == 1024)
        #expect(driver.events().first?.sequence == 476)
        #expect(driver.events(since: 1499).map(\.record.inputAddress) == [1499 << 12])
        #expect(driver.log.eventCount == 1500)
    }

    @Test func aProducerBeyondTheQueueIsNotFollowed() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        bench.smmu.setRegister(0x100A8, 0x7FF)
        #expect(!driver.pollInterrupts())
        #expect(driver.messages.last == "EVTQ producer 0x7ff is beyond the queue")
    }

    @Test func aStalledTransactionThatNobodyHandlesIsAborted() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        bench.smmu.post([Self.record[0], Self.record[1] | 1 << 31 | 0x2A, Self.record[2], 0])
        driver.pollInterrupts()
        // CMD_RESUME with Ab, STAG 0x2A.
        #expect(bench.smmu.takeCommands() == [RawCommand(0x0000_0103_0000_2044, 0x2A)])
    }

    @Test func aThreadTakesEventsWhenTheLinePulses() throws {
        var bench = DriverBench()
        bench.options.interruptHandling = .threads
        bench.options.clock = MonotonicClock()
        let driver = try bench.start()
        for _ in 0..<300 { bench.smmu.post(Self.record) }
        #expect(Self.wait { driver.log.eventCount == 300 })
        driver.stop()
        bench.smmu.post(Self.record)
        #expect(driver.log.eventCount == 300)
    }

    @Test func aCombinedLineServesBoth() throws {
        let bench = DriverBench()
        let line = InterruptLine(
            identity: InterruptIdentity(controller: "/intc", specifier: [0, 74, 1]),
            label: "combined"
        )
        let driver = try SMMUv3Driver(
            access: bench.smmu,
            registerBase: PhysicalAddress(FakeSMMU.registerBase),
            registerByteCount: 0x2_0000,
            frames: bench.frames,
            interrupts: .combined(line),
            options: bench.options
        )
        // A combined line has no MSI registers to clear.
        #expect(!bench.trace.take().contains(.write64(0x68, 0)))
        let wasPending = driver.interrupts.pendingErrors.load(ordering: .relaxed)
        line.pulse()
        let hasErrors = driver.interrupts.pendingErrors.load(ordering: .relaxed)
        let hasEvents = driver.interrupts.pendingEvents.load(ordering: .relaxed)
        #expect([wasPending, hasErrors, hasEvents] == [false, true, true])
        driver.stop()
    }

    // MARK: Errors

    @Test func anIllegalCommandIsReplacedBySyncAndTheQueueGoesOn() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        bench.smmu.script { $0.illegalOpcodes = [0x01] }
        _ = bench.smmu.takeCommands()
        try driver.attach(endpoint, to: driver.identityDomain)
        try driver.synchronize()
        // CMD_PREFETCH_CONFIG has become a CMD_SYNC.
        #expect(
            bench.smmu.takeCommands() == [AttachTests.cfgiSTE, .sync, .sync, .sync]
        )
        #expect(
            driver.messages.suffix(5) == [
                "unexpected global error reported (0x00000001), this could be serious",
                "CMDQ error (cons 0x01000006): Illegal command", "skipping command in error state:",
                "\t0x0000010300000001", "\t0x0000000000000000",
            ]
        )
        #expect(bench.smmu.register(0x64) == bench.smmu.register(0x60))
    }

    @Test func aThreadRecoversTheQueueWhileOthersWait() throws {
        var bench = DriverBench()
        bench.options.interruptHandling = .threads
        bench.options.clock = MonotonicClock()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        bench.smmu.script { $0.illegalOpcodes = [0x01] }
        for _ in 0..<20 {
            try driver.attach(endpoint, to: driver.identityDomain)
            try driver.attach(endpoint, to: driver.blockedDomain)
            try driver.synchronize()
        }
        #expect(driver.messages.count(where: { $0 == "skipping command in error state:" }) == 40)
    }

    @Test func otherErrorsAreToldAndAcknowledged() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        // MSI_GERROR, MSI_PRIQ, MSI_EVENTQ, MSI_CMDQ, PRIQ and EVENTQ aborts.
        bench.smmu.raise(0xFC)
        #expect(driver.pollInterrupts())
        #expect(
            driver.messages.suffix(7) == [
                "unexpected global error reported (0x000000fc), this could be serious",
                "GERROR MSI write aborted",
                "PRIQ MSI write aborted", "EVTQ MSI write aborted", "CMDQ MSI write aborted",
                "PRIQ write aborted -- events may have been lost",
                "EVTQ write aborted -- events may have been lost",
            ]
        )
        #expect(bench.smmu.register(0x64) == 0xFC)
        #expect(!driver.pollInterrupts())
    }

    @Test func serviceFailureModeSwitchesTheSMMUOff() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        bench.smmu.raise(0x100)
        driver.pollInterrupts()
        #expect(driver.messages.contains("device has entered Service Failure Mode!"))
        #expect(bench.smmu.register(0x20) == 0)
    }

    // MARK: Workers

    @Test func aWorkerRunsForEveryKickThatItHasNotSeen() {
        let runs = Atomic(0)
        let allRuns = { runs.load(ordering: .acquiring) }
        let worker = WorkerThread { runs.add(1, ordering: .acquiringAndReleasing) }
        for count in 1...50 {
            worker.kick()
            #expect(Self.wait { allRuns() >= count })
        }
        worker.stop()
    }
}
