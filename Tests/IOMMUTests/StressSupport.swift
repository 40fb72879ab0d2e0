// Devices, and the threads that use them at random, for the stress test.

import AddressSpace
import DeviceModel
import Glibc
import IOPageTable
import SMMUv3
import SeededRandomness
import Synchronization
import SystemBus

@testable import IOMMU

/// The machine's clock, slowed down: on a busy machine no timeout comes before a minute is over.
struct PatientClock: DriverClock {
    private let clock = MonotonicClock()

    func nanoseconds() -> UInt64 { clock.nanoseconds() / 60 }
    func pause(attempt: Int) { clock.pause(attempt: attempt) }
}

/// What all threads of one round share.
final class StressRound: Sendable {
    let seed: UInt64
    let bus: SystemBus
    let frames: PoisonedFrames
    let driver: SMMUv3Driver
    /// How many steps all threads have done.
    let steps = Atomic<Int>(0)
    /// The driver has been told to stop: nothing is translated any more.
    let isStopped = Atomic(false)
    let refusals = Atomic<Int>(0)
    private let failures = Mutex<[String]>([])

    /// Whether the threads use all memory up in the end.
    let isShortOfMemory: Bool

    init(
        seed: UInt64,
        bus: SystemBus,
        frames: PoisonedFrames,
        driver: SMMUv3Driver,
        isShortOfMemory: Bool
    ) {
        self.seed = seed
        self.isShortOfMemory = isShortOfMemory
        self.bus = bus
        self.frames = frames
        self.driver = driver
    }

    func fail(_ text: String) { failures.withLock { $0.append("seed \(seed): \(text)") } }

    var found: [String] { failures.withLock { Array($0.prefix(10)) } }
}

/// A device as its thread drives it: its port is used under a lock, so that nothing is in flight while somebody has all
/// the locks.
final class StressDevice: Sendable {
    /// SAFETY: used under `lock` alone.
    private final class Port: @unchecked Sendable {
        let port: StreamPort

        init(_ port: StreamPort) { self.port = port }
    }

    let index: Int
    let endpoint: IOMMUEndpoint
    let domain: IOMMUDomain
    let dma: DMADevice
    /// Whether no other device is in its domain.
    let isAlone: Bool
    private let port: Port
    private let lock = Mutex(())

    init(
        _ index: Int,
        _ round: StressRound,
        _ model: SMMUv3,
        _ domain: IOMMUDomain,
        isAlone: Bool,
        isUntrusted: Bool,
        pool: BounceBuffers
    ) throws {
        self.index = index
        self.domain = domain
        self.isAlone = isAlone
        let stream = StreamID(UInt32(0x100 + index * 0x100))
        endpoint = try round.driver.addEndpoint("device\(index)", streams: [stream])
        try round.driver.attach(endpoint, to: domain)
        port = Port(model.makePort(for: stream))
        var traits = DMADevice.Traits()
        traits.isUntrusted = isUntrusted
        dma = DMADevice(
            "device\(index)",
            domain: domain,
            memory: DMAMemory(frames: round.frames, access: round.bus, lastAddress: round.frames.lastAddress),
            traits: traits,
            bounceBuffers: pool
        )
    }

    func read(_ iova: UInt64) -> DMAResult { lock.withLock { _ in port.port.read(iova) } }

    func write(_ iova: UInt64, _ value: UInt64) -> DMAResult {
        lock.withLock { _ in port.port.write(iova, value) }
    }

    /// Runs `body` while the device sends nothing.
    func whileQuiet(_ body: () -> Void) { lock.withLock { _ in body() } }
}

/// One thread's life with its device: a number of random steps, and then it gives back all that it has.
struct StressWorker {
    /// Memory that is mapped.
    private struct Held {
        var frames: [PhysicalAddress] = []
        /// Its first and last word, by device address and by physical address.
        var words: [(iova: UInt64, physical: UInt64)] = []
        var isWritable = true
        let unmap: (DMADevice) throws -> Void
        /// Whether what the device writes is seen only after the unmap.
        var isBounced = false
    }

    private let round: StressRound
    private let device: StressDevice
    private var random: SplitMix
    private var held: [Held] = []
    private var counter: UInt64

    init(_ round: StressRound, _ device: StressDevice) {
        self.round = round
        self.device = device
        random = SplitMix(seed: round.seed &* 1000 &+ UInt64(device.index))
        counter = UInt64(device.index + 1) << 48
    }

    mutating func run(steps: Int) {
        for step in 0..<steps {
            do { try self.step() } catch {
                round.fail("device \(device.index), step \(step): \(error)")
            }
            round.steps.wrappingAdd(1, ordering: .relaxed)
        }
        do { try exhaust() } catch { round.fail("device \(device.index), exhaustion: \(error)") }
        while !held.isEmpty {
            do { try release(held.count - 1) } catch { round.fail("device \(device.index), end: \(error)") }
        }
    }

    private mutating func step() throws {
        switch UInt64.random(in: 0..<12, using: &random) {
        case 0, 1: try atMost12 { try $0.mapSingle() }
        case 2: try atMost12 { try $0.mapScattered() }
        case 3: try atMost12 { try $0.allocateCoherent() }
        case 4, 5, 6: if !held.isEmpty { try release(Int.random(in: 0..<held.count, using: &random)) }
        case 7: if let held = held.randomElement(using: &random) { check(held, "again") }
        case 8: missAtRandom()
        case 9: try reattach()
        case 10: misuse()
        default:
            round.driver.pollInterrupts()
            round.driver.pollTimers()
            if UInt64.random(in: 0..<4, using: &random) == 0 { try device.domain.flushLazyUnmaps() }
        }
    }

    /// A refusal for want of memory is no failure: memory is short on purpose.
    private mutating func atMost12(_ body: (inout Self) throws -> Void) throws {
        guard held.count < 12 else { return try release(0) }
        do { try body(&self) } catch let error as DMAError {
            switch error {
            case .noMemory, .bounceBuffersFull: round.refusals.wrappingAdd(1, ordering: .relaxed)
            default: throw error
            }
        } catch PhysicalPageError.exhausted { round.refusals.wrappingAdd(1, ordering: .relaxed) }
    }

    // MARK: Mapping

    private mutating func buffer() throws -> (frame: PhysicalAddress, buffer: DMABuffer) {
        let pages = UInt64.random(in: 1...4, using: &random)
        let frame = try round.frames.allocate(byteCount: pages << 12, alignment: 0x1000)
        if UInt64.random(in: 0..<2, using: &random) == 0 {
            return (frame, DMABuffer(frame, byteCount: pages << 12))
        }
        let offset = UInt64.random(in: 0..<256, using: &random) * 8
        let words = UInt64.random(in: 2...((pages << 12) - offset) / 8, using: &random)
        return (frame, DMABuffer(PhysicalAddress(frame.rawValue + offset), byteCount: words * 8))
    }

    private func isBounced(_ buffer: DMABuffer) -> Bool {
        device.dma.traits.isUntrusted && (buffer.physical.rawValue | buffer.byteCount) & 0xFFF != 0
    }

    private mutating func mapSingle() throws {
        let (frame, buffer) = try buffer()
        let direction = DMADataDirection.allCases.randomElement(using: &random) ?? .bidirectional
        let iova: IOVirtualAddress
        do { iova = try device.dma.map(buffer.physical, byteCount: buffer.byteCount, direction) } catch {
            try round.frames.free(frame)
            throw error
        }
        var held = Held(frames: [frame]) {
            try $0.unmap(iova, byteCount: buffer.byteCount, direction)
        }
        let last = buffer.byteCount - 8
        held.words = [
            (iova.rawValue, buffer.physical.rawValue),
            (iova.rawValue + last, buffer.physical.rawValue + last),
        ]
        held.isWritable = direction != .toDevice
        held.isBounced = isBounced(buffer)
        self.held.append(held)
        check(held, "mapped")
    }

    private mutating func mapScattered() throws {
        var buffers: [(frame: PhysicalAddress, buffer: DMABuffer)] = []
        let mapping: DMAScatterMapping
        do {
            for _ in 0..<Int.random(in: 1...5, using: &random) { buffers.append(try buffer()) }
            mapping = try device.dma.map(buffers.map(\.buffer), .bidirectional)
        } catch {
            for entry in buffers { try round.frames.free(entry.frame) }
            throw error
        }
        var held = Held(frames: buffers.map(\.frame)) { try $0.unmap(mapping) }
        held.isBounced = buffers.contains { isBounced($0.buffer) }
        var segments = mapping.segments[...]
        for entry in buffers {
            guard var segment = segments.popFirst() else { break }
            held.words.append((segment.address.rawValue, entry.buffer.physical.rawValue))
            segment.address.rawValue += entry.buffer.byteCount
            segment.byteCount -= entry.buffer.byteCount
            if segment.byteCount > 0 { segments = [segment] + segments }
        }
        self.held.append(held)
        check(held, "scattered")
    }

    private mutating func allocateCoherent() throws {
        let byteCount = UInt64.random(in: 1...0x5000, using: &random)
        let buffer = try device.dma.allocateCoherent(byteCount: byteCount)
        var held = Held { try $0.freeCoherent(buffer) }
        let last = (byteCount - 1) & ~7
        for offset in [0, last] {
            guard let physical = buffer.physical(at: offset) else { continue }
            held.words.append((buffer.address.rawValue + offset, physical.rawValue))
            expect(device.read(buffer.address.rawValue + offset), .ok(0), "coherent memory is zero")
        }
        self.held.append(held)
        check(held, "coherent")
    }

    /// Takes coherent memory until there is none, in the round where memory is short.
    private mutating func exhaust() throws {
        guard round.isShortOfMemory else { return }
        while true {
            let buffer: DMACoherentBuffer
            do { buffer = try device.dma.allocateCoherent(byteCount: 0x8000) } catch DMAError.noMemory {
                round.refusals.wrappingAdd(1, ordering: .relaxed)
                return
            }
            held.append(Held { try $0.freeCoherent(buffer) })
        }
    }

    // MARK: DMA

    /// With the SMMU off nothing that the device does means anything; nothing is at its addresses then.
    private func expect(_ found: DMAResult, _ expected: DMAResult, _ what: String) {
        guard found != expected, !round.isStopped.load(ordering: .acquiring) else { return }
        round.fail("device \(device.index), \(what): \(found), expected \(expected)")
    }

    /// The device reads what is there, and writes where it may.
    private mutating func check(_ held: Held, _ what: String) {
        for word in held.words {
            let address = PhysicalAddress(word.physical)
            if !held.isBounced {
                counter += 1
                try? round.bus.store(counter, .doubleword, at: address)
                expect(device.read(word.iova), .ok(counter), what)
            }
            counter += 1
            let result = device.write(word.iova, counter)
            expect(result, held.isWritable ? .ok(0) : .permissionFault, what)
            guard case .ok = result, !held.isBounced else { continue }
            if (try? round.bus.load(.doubleword, at: address)) != counter {
                round.fail("device \(device.index), \(what): a write is not in memory")
            }
        }
    }

    /// Addresses below 4 GiB that no allocation comes down to.
    private mutating func missAtRandom() {
        let iova = UInt64.random(in: 0x1_0000...0x2000_0000, using: &random) & ~7
        expect(device.read(iova), .translationFault, "nothing is mapped")
    }

    private func reattach() throws {
        do {
            try round.driver.attach(device.endpoint, to: round.driver.blockedDomain)
            expect(device.read(0x1000), .fault(.aborted), "blocked")
            try round.driver.attach(device.endpoint, to: device.domain)
        } catch SMMUDriverError.stopped {}
    }

    private func misuse() {
        do {
            try device.dma.unmap(IOVirtualAddress(0x1000), byteCount: 0x1000, .toDevice)
            round.fail("device \(device.index): an unmap of nothing was taken")
        } catch {}
    }

    // MARK: Unmapping

    private mutating func release(_ index: Int) throws {
        let gone = held.remove(at: index)
        try gone.unmap(device.dma)
        // A domain that is strict after the unmap was so before.
        let wasStrict = device.domain.kind == .dma
        if device.isAlone {
            for word in gone.words {
                let result = device.write(word.iova, 0xBAD0_BAD0_BAD0_BAD0)
                if wasStrict { expect(result, .translationFault, "unmapped") }
            }
        }
        try device.domain.retire(gone.frames, to: round.frames)
        guard device.isAlone, !wasStrict else { return }
        // Until the flush the device may reach its old memory, which nobody else has.
        for word in gone.words { _ = device.write(word.iova, 0xBAD1_BAD1_BAD1_BAD1) }
    }
}
