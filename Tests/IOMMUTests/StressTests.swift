// Many devices at once, strict and lazy, with faults and restarts: nothing leaks, and no DMA lands in free memory.

import AddressSpace
import DeviceModel
import IOPageTable
import OSThread
import SMMUv3
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

@Suite("DMA under stress")
struct StressTests {
    struct Run: Sendable, CustomTestStringConvertible {
        let seed: UInt64
        let execution: SMMUv3Options.CommandExecution
        /// How much memory there is for everything.
        let byteCount: UInt64
        var testDescription: String { "seed \(seed), \(execution), \(byteCount >> 10) KiB" }
    }

    static let runs = [
        Run(seed: 1, execution: .thread, byteCount: 8 << 20),
        Run(seed: 2, execution: .inline, byteCount: 8 << 20),
        // So little that it runs out: what waits for a flush has to be asked for.
        Run(seed: 3, execution: .thread, byteCount: 1 << 20),
    ]

    private static let deviceCount = 6
    private static let stepCount = 120

    @Test("devices map, write and unmap on threads, the driver restarts, nothing is lost", arguments: runs)
    func stress(_ run: Run) throws {
        let bench = try ModelBench(execution: run.execution)
        let range = try #require(AddressRange(start: ModelBench.buffers, byteCount: run.byteCount))
        let frames = try PoisonedFrames(bench.bus, range)
        let memory = DMAMemory(frames: frames, access: bench.bus, lastAddress: frames.lastAddress)
        let pool = try BounceBuffers(memory, byteCount: 256 << 10)
        let asids = ASIDAllocator()
        let baseline = frames.usedByteCount
        var refusals = 0
        for number in 0..<4 as Range<UInt64> {
            let driver = try Self.start(bench, frames, asids)
            let round = StressRound(
                seed: run.seed * 100 + number,
                bus: bench.bus,
                frames: frames,
                driver: driver,
                isShortOfMemory: run.byteCount < 4 << 20
            )
            do {
                let devices = try Self.devices(round, bench.smmu, pool)
                // In every second round the driver stops while everybody is busy.
                Self.work(round, devices, stopsHalfWay: number % 2 == 1)
                refusals += round.refusals.load(ordering: .relaxed)
                for device in devices {
                    try device.domain.flushLazyUnmaps()
                    device.domain.emptyIOVACache()
                    #expect(device.dma.mappingCount == 0)
                    // Page 0.
                    #expect(device.domain.iovaStatistics?.takenByteCount == 0x1000)
                    #expect(device.domain.lazyUnmapCount == 0)
                    if number % 2 == 0 { try driver.removeEndpoint(device.endpoint) }
                }
                driver.stop()
            }
            #expect(round.found == [])
            #expect(pool.usedSlotCount == 0)
        }
        #expect(asids.usedCount == 0)
        #expect(frames.usedByteCount == baseline)
        frames.sweep()
        #expect(frames.findings.prefix(5) == [])
        // Each thread in each round, at the least.
        if run.byteCount < 4 << 20 { #expect(refusals >= 4 * Self.deviceCount) }
    }

    private static func start(_ bench: ModelBench, _ frames: PoisonedFrames, _ asids: ASIDAllocator) throws
        -> SMMUv3Driver
    {
        var options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.interruptHandling = bench.smmu.options.commandExecution == .inline ? .inline : .threads
        options.clock = PatientClock()
        options.asids = asids
        options.queueLog2Limit = 8
        return try SMMUv3Driver(
            access: bench.bus,
            registerBase: ModelBench.window,
            registerByteCount: 0x2_0000,
            frames: frames,
            interrupts: .named(eventq: bench.eventq, gerror: bench.gerror),
            options: options
        )
    }

    /// Strict, lazy, two that share a domain, and one of each kind whose device is not trusted.
    private static func devices(_ round: StressRound, _ model: SMMUv3, _ pool: BounceBuffers) throws
        -> [StressDevice]
    {
        let shared = try round.driver.makeDomain(.dmaFQ)
        return try (0..<deviceCount).map { index in
            let isShared = index < 2
            let kind = index % 2 == 0 ? IOMMUDomainKind.dma : .dmaFQ
            return try StressDevice(
                index,
                round,
                model,
                isShared ? shared : try round.driver.makeDomain(kind),
                isAlone: !isShared,
                isUntrusted: index >= 4,
                pool: pool
            )
        }
    }

    private static func work(_ round: StressRound, _ devices: [StressDevice], stopsHalfWay: Bool) {
        var threads: [Joined] = []
        for device in devices {
            threads.append(
                Joined(
                    OSThread {
                        var worker = StressWorker(round, device)
                        worker.run(steps: stepCount)
                    }
                )
            )
        }
        if stopsHalfWay {
            let clock = PatientClock()
            while round.steps.load(ordering: .relaxed) < devices.count * stepCount / 2 {
                clock.pause(attempt: 110)
            }
            stop(round, devices[...])
        } else {
            // One domain becomes lazy while it is in use.
            devices[2].domain.startFlushQueue()
        }
        for thread in threads { thread.join() }
    }

    /// Stops the driver while no device has anything in flight, as who restarts it has to see to.
    private static func stop(_ round: StressRound, _ quiet: ArraySlice<StressDevice>) {
        guard let next = quiet.first else {
            round.isStopped.store(true, ordering: .releasing)
            return round.driver.stop()
        }
        next.whileQuiet { stop(round, quiet.dropFirst()) }
    }

    /// A thread in an array, which takes no noncopyable ones.
    private final class Joined {
        private var thread: OSThread?

        init(_ thread: consuming OSThread) { self.thread = consume thread }

        func join() { thread.take()?.join() }
    }
}
