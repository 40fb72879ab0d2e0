// Memory given back with a lazy unmap: nobody gets it before the flush, and nobody waits for it in vain.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SystemBus
import Testing

@testable import IOMMU

@Suite("Memory behind lazy unmaps")
struct RetiredMemoryTests {
    /// Takes all memory.
    private static func hog(_ frames: PhysicalFrameAllocator) throws -> [PhysicalAddress] {
        var held: [PhysicalAddress] = []
        for order in stride(from: 25, through: 12, by: -1) {
            while let block = try? frames.allocate(byteCount: 1 << UInt64(order), alignment: 1) {
                held.append(block)
            }
        }
        #expect(frames.usedByteCount == frames.byteCount)
        return held
    }

    @Test func aFreedBufferIsReadThroughTheTLBAndItsFramesWait() throws {
        let bench = try DMABench(.dmaFQ)
        let frames = bench.model.frames
        let warm = try bench.device.allocateCoherent(byteCount: 0x1000)
        let used = frames.usedByteCount
        let buffer = try bench.device.allocateCoherent(byteCount: 0x4000)
        try buffer.write([1, 0, 0, 0, 0, 0, 0, 0])
        #expect(bench.port.read(buffer.address.rawValue) == .ok(1))
        try bench.device.freeCoherent(buffer)
        // The window of lazy mode, over memory that nobody else has.
        #expect(bench.port.read(buffer.address.rawValue) == .ok(1))
        #expect(frames.usedByteCount == used + 0x4000)
        let next = try bench.device.allocateCoherent(byteCount: 0x4000)
        #expect(Set(next.pieces).isDisjoint(with: buffer.pieces))
        bench.clock.advance(10_000_000)
        bench.driver.pollTimers()
        #expect(frames.usedByteCount == used + 0x4000)
        #expect(bench.port.read(buffer.address.rawValue) == .translationFault)
        let again = try bench.device.allocateCoherent(byteCount: 0x4000)
        #expect(again.pieces.map(\.physical) == buffer.pieces.map(\.physical))
        for buffer in [warm, next, again] { try bench.device.freeCoherent(buffer) }
    }

    @Test func strictlyTheFramesAreFreeAtOnce() throws {
        let bench = try DMABench(.dma)
        let warm = try bench.device.allocateCoherent(byteCount: 0x1000)
        let used = bench.model.frames.usedByteCount
        let buffer = try bench.device.allocateCoherent(byteCount: 0x4000)
        try bench.device.freeCoherent(buffer)
        #expect(bench.model.frames.usedByteCount == used)
        try bench.device.freeCoherent(warm)
    }

    @Test func whoFindsNoMemoryHasTheQueueFlushedFirst() throws {
        let bench = try DMABench(.dmaFQ)
        let frames = bench.model.frames
        _ = try bench.device.allocateCoherent(byteCount: 0x1000)
        let buffer = try bench.device.allocateCoherent(byteCount: 0x8000)
        #expect(bench.port.read(buffer.address.rawValue) == .ok(0))
        try bench.device.freeCoherent(buffer)
        let held = try Self.hogUntilReclaim(frames, bench)
        // Whoever took the last frames had them after the flush.
        #expect(bench.port.read(buffer.address.rawValue) == .translationFault)
        #expect(frames.usedByteCount == frames.byteCount)
        // The IOVAs wait on for the timer.
        #expect(bench.domain.lazyUnmapCount == 1)
        try bench.domain.flushLazyUnmaps()
        #expect(bench.domain.lazyUnmapCount == 0)
        for block in held { try frames.free(block) }
    }

    private static func hogUntilReclaim(_ frames: PhysicalFrameAllocator, _ bench: DMABench) throws
        -> [PhysicalAddress]
    {
        let held = try hog(frames)
        #expect(throws: PhysicalPageError.exhausted(byteCount: 1, alignment: 1)) {
            _ = try frames.allocate(byteCount: 1, alignment: 1)
        }
        return held
    }

    @Test func aPageTableThatNeedsATableGetsItFromWhatWaitsInItsOwnQueue() throws {
        let bench = try DMABench(.dmaFQ)
        let frames = bench.model.frames
        let kept = try bench.device.allocateCoherent(byteCount: 0x1000)
        let held = try Self.hog(frames)
        // What is retired is all that there is: the map has the domain's lock when it asks for a table.
        for block in held.suffix(4) { try bench.domain.retire([block], to: frames) }
        #expect(bench.domain.lazyUnmapCount == 4)
        try bench.domain.map(
            IOVirtualAddress(0x7000_0000_0000),
            to: PhysicalAddress(ModelBench.buffers),
            byteCount: 0x1000,
            permissions: .read
        )
        #expect(bench.port.read(0x7000_0000_0000) == .ok(0))
        // Another domain's table does as well.
        let other = try bench.driver.makeDomain(.dma)
        #expect(other.root != nil)
        try bench.device.freeCoherent(kept)
        for block in held.dropLast(4) { try frames.free(block) }
    }

    @Test func aFlushThatFailsKeepsTheMemoryUntilOneSucceeds() throws {
        var bench = DriverBench()
        bench.options.clock = SteppingClock()
        let (driver, domain) = try MappingTests.start(bench, .dmaFQ)
        // Four frames of its own.
        let range = try #require(AddressRange(start: 0x43F0_0000, byteCount: 0x4000))
        let frames = PhysicalFrameAllocator(memory: bench.smmu, ranges: [range])
        let device = DMADevice("nic", domain: domain, memory: DMAMemory(frames: frames, access: bench.smmu))
        let buffer = try device.allocateCoherent(byteCount: 0x2000)
        try device.freeCoherent(buffer)
        let held = try (0..<2).map { _ in try frames.allocate(byteCount: 1, alignment: 1) }
        bench.smmu.script { $0.isQueueHung = true }
        #expect(throws: PhysicalPageError.self) { _ = try frames.allocate(byteCount: 1, alignment: 1) }
        #expect(driver.messages.last?.hasPrefix("memory that waits for a flush stays:") == true)
        bench.smmu.script { $0.isQueueHung = false }
        let frame = try frames.allocate(byteCount: 1, alignment: 1)
        #expect(buffer.pieces.map(\.physical).contains(frame))
        for block in held + [frame] { try frames.free(block) }
        driver.stop()
        #expect(frames.usedByteCount == 0)
    }

    @Test("memory comes back when the driver stops, and when the domain goes", arguments: [true, false])
    func ends(_ stops: Bool) throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let before = bench.frames.usedByteCount
        var kept: IOMMUDomain?
        do {
            let domain = try driver.makeDomain(.dmaFQ)
            let device = DMADevice(
                "nic",
                domain: domain,
                memory: DMAMemory(frames: bench.frames, access: bench.smmu)
            )
            let buffer = try device.allocateCoherent(byteCount: 0x8000)
            try device.freeCoherent(buffer)
            #expect(domain.lazyUnmapCount == 1)
            if stops { kept = domain }
        }
        guard stops else {
            #expect(bench.frames.usedByteCount == before)
            driver.stop()
            return
        }
        driver.stop()
        #expect(kept?.lazyUnmapCount == 0)
        // What comes later waits for nobody either.
        let late = try bench.frames.allocate(byteCount: 0x1000, alignment: 0x1000)
        try kept?.retire([late], to: bench.frames)
        #expect(kept?.lazyUnmapCount == 0)
        kept = nil
        #expect(bench.frames.usedByteCount == before)
    }
}
