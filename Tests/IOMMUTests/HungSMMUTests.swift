// An SMMU that does not answer, or that writes nonsense: each wait has an end, an error and the kernel's
// message, and afterwards the driver goes on or another one starts.

import AddressSpace
import DeviceModel
import Glibc
import IOPageTable
import SMMUv3Spec
import SeededRandomness
import Synchronization
import Testing

@testable import IOMMU

/// Time that passes slowly: 200,000 polls of a second.
private final class FineClock: DriverClock {
    private let now = Atomic<UInt64>(0)

    func nanoseconds() -> UInt64 { now.load(ordering: .relaxed) }
    func pause(attempt: Int) { now.wrappingAdd(5_000, ordering: .relaxed) }
}

/// No time passes: a wait ends for another reason than its own length.
private struct StoppedClock: DriverClock {
    func nanoseconds() -> UInt64 { 1 }
    func pause(attempt: Int) { sched_yield() }
}

@Suite("A hung SMMU")
struct HungSMMUTests {
    // MARK: Probe

    @Test("what probe refuses it says in the kernel's words", arguments: ProbeAndResetTests.refusals)
    func refusals(_ refusal: ProbeAndResetTests.Refusal) {
        let bench = WireBench([refusal.offset: refusal.value])
        #expect(throws: SMMUDriverError.self) { _ = try bench.start() }
        // Two levels of granules that are not there the kernel finds out later, without a word of its own.
        #expect(bench.messages.all.last == refusal.reason)
        // No register was written.
        #expect(bench.wire.take().allSatisfy { $0.hasPrefix("r32 0") })
    }

    @Test(
        "a register window that is too small is told with where it is",
        arguments: [0x1000, 0x1_0000, 0x1_FFFF] as [UInt64]
    )
    func smallWindow(_ byteCount: UInt64) {
        let bench = WireBench()
        #expect(throws: SMMUDriverError.registerWindowTooSmall(byteCount: byteCount, needed: 0x2_0000)) {
            _ = try bench.start(registerByteCount: byteCount)
        }
        let last = hex(FakeSMMU.registerBase + byteCount - 1, digits: 8)
        #expect(bench.messages.all == ["MMIO region too small ([mem 0x09050000-0x\(last)])"])
        #expect(bench.wire.take() == [])
    }

    @Test func withPage1InPage0AWindowOfOnePageIsEnough() throws {
        var bench = WireBench()
        bench.options.hasBrokenPage1 = true
        #expect(throws: SMMUDriverError.registerWindowTooSmall(byteCount: 0xFFFF, needed: 0x1_0000)) {
            _ = try bench.start(registerByteCount: 0xFFFF)
        }
        let driver = try bench.start(registerByteCount: 0x1_0000)
        // EVENTQ_PROD and EVENTQ_CONS.
        #expect(bench.wire.take().contains("w32 0a8 00000000"))
        driver.stop()
    }

    @Test("whatever the identification registers say, the driver starts or says why not", arguments: 1...4)
    func identifications(_ seed: Int) {
        var random = SplitMix(seed: UInt64(seed))
        var starts = 0
        for _ in 0..<40 {
            var words: [UInt64: UInt32] = [:]
            for offset in [0x0, 0x4, 0xC, 0x14, 0x18] as [UInt64] {
                words[offset] = UInt32(truncatingIfNeeded: random.next())
            }
            // Tables of up to 2^10 streams: the fake's memory is slow.
            words[4] = (words[4] ?? 0) & ~0x3F | UInt32(truncatingIfNeeded: random.next() % 11)
            // Half of them have what most refusals look at as it should be.
            if random.next() & 1 == 0 {
                let idr0 = (words[0] ?? 0) & 0xFF9F_FFF3
                words[0] = idr0 | 0x0040_000A
                let idr1 = (words[4] ?? 0) & 0x8C1F_FFFF
                words[4] = idr1 | 0x0140_0000
            }
            let bench = WireBench(words)
            do throws(SMMUDriverError) {
                let driver = try bench.start()
                starts += 1
                let domain = try driver.makeDomain(.dma)
                try driver.attach(try driver.addEndpoint("nic", streams: [StreamID(1)]), to: domain)
                let iova = try domain.map(PhysicalAddress(0x4200_0000), byteCount: 0x1000, permissions: .read)
                _ = try domain.unmap(iova, byteCount: 0x1000)
                driver.stop()
            } catch {
                // An answer too.
            }
        }
        #expect(starts > 0, "seed \(seed)")
    }

    // MARK: Reset

    struct Stuck: Sendable, CustomTestStringConvertible {
        let offset: UInt64
        let bits: UInt32
        let message: String
        var testDescription: String { message }
    }

    static let stuckAcknowledgements = [
        Stuck(offset: 0x24, bits: 1 << 3, message: "failed to enable command queue"),
        Stuck(offset: 0x24, bits: 1 << 2, message: "failed to enable event queue"),
        Stuck(offset: 0x24, bits: 1 << 0, message: "failed to enable SMMU interface"),
    ]

    @Test(
        "a bit of CR0ACK that never comes ends the start after one second",
        arguments: stuckAcknowledgements
    )
    func stuckCR0(_ stuck: Stuck) throws {
        let bench = WireBench()
        bench.wire.stickLow(stuck.offset, stuck.bits)
        let began = bench.options.clock.nanoseconds()
        #expect(throws: SMMUDriverError.self) { _ = try bench.start() }
        let took = bench.options.clock.nanoseconds() - began
        #expect(1_000_000_000...1_010_000_000 ~= took)
        #expect(bench.messages.all.contains(stuck.message))
        // arm_smmu_device_probe switches it off again, and its memory is free.
        #expect(bench.wire.take().suffix(2) == ["w32 020 00000000", "r32 024 00000000"])
        #expect(bench.frames.usedByteCount == 0)
        // It answers again: the next start succeeds.
        bench.wire.stickLow(stuck.offset, 0)
        let driver = try bench.start()
        try driver.synchronize()
        driver.stop()
    }

    @Test func aCR0ThatIsNotClearedIsToldAndEndsTheStart() {
        let bench = WireBench()
        bench.smmu.setRegister(0x24, 1)
        bench.smmu.script { $0.ignoresCR0 = true }
        #expect(throws: SMMUDriverError.registerTimeout(register: "SMMU_CR0ACK", expected: 0, found: 1)) {
            _ = try bench.start()
        }
        #expect(bench.messages.all.contains("failed to clear cr0"))
    }

    @Test func interruptsThatCannotBeDisabledEndTheStart() {
        let bench = WireBench()
        bench.smmu.setRegister(0x54, 5)
        bench.smmu.script { $0.ignoresIRQCtrl = true }
        #expect(throws: SMMUDriverError.registerTimeout(register: "SMMU_IRQ_CTRLACK", expected: 0, found: 5))
        {
            _ = try bench.start()
        }
        #expect(bench.messages.all.contains("failed to disable irqs"))
    }

    @Test func aGBPAThatNeverFinishesIsToldAndTheStartGoesOn() throws {
        let bench = WireBench()
        bench.smmu.setRegister(0x20, 1)
        bench.smmu.script { $0.ignoresGBPA = true }
        let driver = try bench.start()
        #expect(bench.messages.all.contains("GBPA not responding to update"))
        #expect(bench.smmu.register(0x24) == 0xD)
        driver.stop()
        // Update is set still: the kernel does not even write, and says nothing.
        bench.smmu.setRegister(0x20, 1)
        _ = bench.wire.take()
        let count = bench.messages.all.count
        let second = try bench.start()
        #expect(!bench.messages.all.dropFirst(count).contains("GBPA not responding to update"))
        #expect(!bench.wire.take().contains { $0.hasPrefix("w32 044") })
        second.stop()
    }

    // MARK: Commands

    @Test func aSyncThatIsNeverConsumedIsAnErrorInTheKernelsWordsAndTheDriverGoesOn() throws {
        let bench = WireBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(8)])
        let domain = try driver.makeDomain(.dma)
        try driver.attach(endpoint, to: domain)
        let iova = try domain.map(PhysicalAddress(0x4200_0000), byteCount: 0x1000, permissions: .readWrite)
        let place = bench.smmu.register(0x98)
        bench.smmu.script { $0.isQueueHung = true }
        let began = bench.options.clock.nanoseconds()
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: place + 2, consumer: place)) {
            _ = try domain.unmap(iova, byteCount: 0x1000)
        }
        #expect(1_000_000_000...1_010_000_000 ~= bench.options.clock.nanoseconds() - began)
        // The entry of the CMD_SYNC, which follows the TLBI.
        let at = { (position: UInt32) in hex(position, digits: 8) }
        #expect(
            bench.messages.all.last
                == "CMD_SYNC timeout at 0x\(at(place + 1)) [hwprod 0x\(at(place + 2)), hwcons 0x\(at(place))]"
        )
        // The IOVA does not come back as long as nobody knows that it is invalidated.
        let next = try domain.map(PhysicalAddress(0x4200_1000), byteCount: 0x1000, permissions: .readWrite)
        #expect(next != iova)
        #expect(throws: SMMUDriverError.self) { try driver.attach(endpoint, to: driver.blockedDomain) }
        // The SMMU goes on where it stopped, and so does the driver.
        bench.smmu.script { $0.isQueueHung = false }
        bench.smmu.runCommands()
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(try domain.unmap(next, byteCount: 0x1000).byteCount == 0x1000)
        driver.stop()
    }

    @Test func withMSIsTheSameWaitEndsToo() throws {
        let bench = WireBench([0: 0x094C_301A])
        let driver = try bench.start()
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.commandQueueTimeout(producer: 5, consumer: 4)) {
            try driver.synchronize()
        }
        #expect(
            bench.messages.all.last
                == "CMD_SYNC timeout at 0x00000004 [hwprod 0x00000005, hwcons 0x00000004]"
        )
        bench.smmu.script { $0.isQueueHung = false }
        bench.smmu.runCommands()
        try driver.synchronize()
        driver.stop()
    }

    @Test func anotherDriverStartsOnAnSMMUWhoseQueueHung() throws {
        let bench = WireBench()
        let first = try bench.start()
        let endpoint = try first.addEndpoint("nic", streams: [StreamID(8)])
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.self) { try first.attach(endpoint, to: first.identityDomain) }
        first.stop()
        #expect(bench.smmu.register(0x24) == 0)
        bench.smmu.script { $0.isQueueHung = false }
        let second = try bench.start()
        #expect(!bench.messages.all.contains("SMMU currently enabled! Resetting..."))
        let again = try second.addEndpoint("nic", streams: [StreamID(8)])
        try second.attach(again, to: second.identityDomain)
        second.stop()
    }

    @Test("a wait during which the driver is stopped ends at once")
    func stopEndsWaits() async throws {
        var bench = WireBench()
        bench.options.clock = StoppedClock()
        let driver = try bench.start()
        bench.smmu.script { $0.isQueueHung = true }
        let place = bench.smmu.register(0x98)
        let waiter = Task { () -> SMMUDriverError? in
            do throws(SMMUDriverError) {
                try driver.synchronize()
                return nil
            } catch { return error }
        }
        // As soon as its CMD_SYNC is in the queue.
        while bench.smmu.register(0x98) == place { await Task.yield() }
        driver.stop()
        #expect(await waiter.value == .stopped)
    }

    /// A closure that was read out of a Mutex grew by a layer with each poll, until letting go of it took all the
    /// stack.
    @Test("what is called while waiting does not grow with the polls")
    func manyPolls() throws {
        var bench = DriverBench()
        bench.options.clock = FineClock()
        bench.options.trace = nil
        let driver = try bench.start()
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: SMMUDriverError.self) { try driver.synchronize() }
        driver.stop()
    }

    // MARK: Global errors

    private static func stop(_ bench: WireBench, error: UInt32, at consumer: UInt32) {
        bench.smmu.script { $0.isQueueHung = true }
        bench.smmu.setRegister(0x9C, error << 24 | consumer)
    }

    @Test(
        "what a command error does by its code",
        arguments: [(0, false), (1, true), (2, false), (3, false), (5, true), (0x7F, true)]
            as [(UInt32, Bool)]
    )
    func commandErrors(_ code: UInt32, _ isReplaced: Bool) throws {
        let names: [UInt32: String] = [
            0: "No error", 1: "Illegal command", 2: "Abort on command fetch", 3: "ATC invalidate timeout",
        ]
        let bench = WireBench()
        let driver = try bench.start()
        Self.stop(bench, error: code, at: 4)
        try driver.device.commands.issue([.tlbiNHASID(vmid: 0, asid: 9)], thenSync: false)
        _ = bench.wire.take()
        bench.smmu.raise(1)
        driver.pollInterrupts()
        let cons = hex(code << 24 | 4, digits: 8)
        #expect(bench.messages.all.contains("CMDQ error (cons 0x\(cons)): \(names[code] ?? "Unknown")"))
        #expect(bench.messages.all.contains("retrying command fetch") == (code == 2))
        #expect(bench.messages.all.contains("skipping command in error state:") == isReplaced)
        #expect(bench.wire.take().contains(KernelOrderTests.sync) == isReplaced)
        #expect(bench.smmu.register(0x64) == 1)
    }

    @Test func serviceFailureModeEndsInErrorsAndAnotherDriverStarts() throws {
        let bench = WireBench()
        let first = try bench.start()
        let domain = try first.makeDomain(.dma)
        try first.attach(try first.addEndpoint("nic", streams: [StreamID(8)]), to: domain)
        let iova = try domain.map(PhysicalAddress(0x4200_0000), byteCount: 0x1000, permissions: .readWrite)
        bench.smmu.raise(1 << 8)
        first.pollInterrupts()
        #expect(bench.messages.all.contains("device has entered Service Failure Mode!"))
        #expect(bench.smmu.register(0x24) == 0)
        #expect(bench.smmu.register(0x64) == 1 << 8)
        // Nothing is consumed any more: an error after its time, not a wait without end.
        #expect(throws: SMMUDriverError.self) { _ = try domain.unmap(iova, byteCount: 0x1000) }
        first.stop()
        let second = try bench.start()
        try second.synchronize()
        second.stop()
    }

    // MARK: Garbage

    @Test("random event records are logged, whatever they are", arguments: 1...4)
    func garbageEvents(_ seed: Int) throws {
        var random = SplitMix(seed: UInt64(seed))
        let bench = WireBench()
        let driver = try bench.start()
        _ = bench.smmu.takeCommands()
        var resumes = 0
        for _ in 0..<200 {
            var record = (0..<4).map { _ in random.next() }
            // One in four is a fault of the kinds that can stall.
            if random.next() & 3 == 0 { record[0] = record[0] & ~0xFF | 0x10 | random.next() & 3 }
            if 0x10...0x13 ~= record[0] & 0xFF, record[1] >> 31 & 1 == 1 { resumes += 1 }
            bench.smmu.post(record)
            driver.pollInterrupts()
            #expect(driver.events().last?.record.words == SIMD4(record))
            #expect(
                bench.messages.all.suffix(5).first == "event 0x\(hex(record[0] & 0xFF, digits: 2)) received:"
            )
        }
        try driver.synchronize()
        // Those that say that they stall are ended, and nothing else is sent.
        let commands = bench.smmu.takeCommands()
        #expect(commands.count { $0.low & 0xFF == 0x44 } == resumes)
        #expect(commands.count == resumes + 1)
        driver.stop()
    }

    @Test("whatever EVENTQ_PROD says, reading ends", arguments: 1...4)
    func garbageProducers(_ seed: Int) throws {
        var random = SplitMix(seed: UInt64(seed))
        let bench = WireBench()
        let driver = try bench.start()
        for _ in 0..<200 {
            bench.smmu.setRegister(0x100A8, UInt32(truncatingIfNeeded: random.next()))
            let before = driver.log.eventCount
            driver.pollInterrupts()
            #expect(driver.log.eventCount - before <= 1024)
        }
        driver.stop()
    }

    @Test("whatever GERROR says, it is acknowledged", arguments: 1...4)
    func garbageErrors(_ seed: Int) throws {
        var random = SplitMix(seed: UInt64(seed))
        let bench = WireBench()
        let driver = try bench.start()
        for _ in 0..<100 {
            bench.smmu.setRegister(0x60, UInt32(truncatingIfNeeded: random.next()))
            bench.smmu.setRegister(0x9C, UInt32(truncatingIfNeeded: random.next()))
            // Bits that no error has are left alone.
            let active = bench.smmu.register(0x60) ^ bench.smmu.register(0x64)
            driver.pollInterrupts()
            #expect((bench.smmu.register(0x64) == bench.smmu.register(0x60)) == (active & 0x1FD != 0))
        }
    }
}
