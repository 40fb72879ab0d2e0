// Several threads at once: no torn word, no access to what has gone, no lost exchange.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import OSThread
import Synchronization
import SystemBus
import Testing

/// Counts that threads wait for.
private final class Progress: Sendable {
    let isDone = Atomic<Bool>(false)
    let violations = Atomic<Int>(0)
    let answered = Atomic<Int>(0)
    let unanswered = Atomic<Int>(0)

    func note(_ isRight: Bool) {
        if !isRight { violations.add(1, ordering: .relaxed) }
    }

    func expectNoViolations() {
        let count = violations.load(ordering: .sequentiallyConsistent)
        #expect(count == 0)
    }

    var isFinished: Bool { isDone.load(ordering: .acquiring) }
}

/// A window that knows whether it still exists.
private final class LivingTarget: RegisterTarget {
    private let life = Atomic<UInt64>(0x11fe)

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        life.load(ordering: .relaxed)
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {}

    deinit { life.store(0xdead, ordering: .relaxed) }
}

/// What was taken off the bus, without keeping it.
private struct Removed {
    weak var region: MemoryRegion?
    weak var target: LivingTarget?

    var isFreed: Bool { region == nil && target == nil }
}

@Suite("Threads on the bus")
struct ConcurrencyTests {
    /// How one writer stores a word and one reader loads it.
    enum Path: CaseIterable {
        case hot, wide, counted, copied
    }

    private static func store(_ value: UInt64, _ path: Path, on bus: SystemBus) throws(BusError) {
        switch path {
        case .hot: try bus.storeRAM64(value, at: address(0x1008))
        case .wide: try bus.storeRAM64x4(SIMD4(repeating: value), at: address(0x1008))
        case .counted: try bus.store(value, .doubleword, at: address(0x1008))
        case .copied:
            var value = value
            let failure: BusError? = withUnsafeBytes(of: &value) { bytes in
                do throws(BusError) {
                    try bus.copyIn(bytes, at: address(0x1008))
                    return nil
                } catch {
                    return error
                }
            }
            if let failure { throw failure }
        }
    }

    private static func load(_ path: Path, on bus: SystemBus) throws(BusError) -> UInt64 {
        switch path {
        case .hot: return try bus.loadRAM64(at: address(0x1008))
        case .wide: return try bus.loadRAM64x8(at: address(0x1000))[1]
        case .counted: return try bus.load(.doubleword, at: address(0x1008))
        case .copied:
            var value: UInt64 = 0
            let failure: BusError? = withUnsafeMutableBytes(of: &value) { bytes in
                do throws(BusError) {
                    try bus.copyOut(at: address(0x1008), into: bytes)
                    return nil
                } catch {
                    return error
                }
            }
            if let failure { throw failure }
            return value
        }
    }

    @Test(
        "an aligned word is never seen half old, half new",
        arguments: zip(Path.allCases, [.copied, .hot, .wide, .counted] as [Path])
    )
    func wordsAreNeverTorn(storing: Path, loading: Path) throws {
        let bus = SystemBus()
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "ram"), at: address(0x1000), name: "ram")
        let progress = Progress()
        let writer = OSThread {
            var value: UInt64 = 0
            while !progress.isFinished {
                value = ~value
                do { try Self.store(value, storing, on: bus) } catch { progress.note(false) }
            }
        }
        var seen = [false, false]
        var loads = 0
        while loads < 20_000 || seen != [true, true] {
            let value = try Self.load(loading, on: bus)
            progress.note(value == 0 || value == .max)
            seen[value == 0 ? 0 : 1] = true
            loads += 1
            if seen != [true, true] { sched_yield() }
        }
        progress.isDone.store(true, ordering: .releasing)
        writer.join()
        progress.expectNoViolations()
    }

    @Test("what was stored before a word is seen by whoever sees the word")
    func storesPublish() throws {
        let bus = SystemBus()
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "ram"), at: address(0x1000), name: "ram")
        let progress = Progress()
        let writer = OSThread {
            var round: UInt64 = 0
            while !progress.isFinished {
                round += 1
                do throws(BusError) {
                    try bus.storeRAM64x4(SIMD4(repeating: round), at: address(0x1100))
                    try bus.storeRAM64(round, at: address(0x1000))
                } catch {
                    progress.note(false)
                }
            }
        }
        var loads = 0
        var last: UInt64 = 0
        while loads < 20_000 || last < 100 {
            last = try bus.loadRAM64(at: address(0x1000))
            // The writer goes on meanwhile: newer is right, older is not.
            let published = try bus.loadRAM64x8(at: address(0x1100)).lowHalf
            progress.note(published.min() >= last)
            loads += 1
            if last < 100 { sched_yield() }
        }
        progress.isDone.store(true, ordering: .releasing)
        writer.join()
        progress.expectNoViolations()
    }

    @Test("exchanges of two threads lose none of their increments")
    func exchangesAreAtomic() throws {
        let bus = SystemBus()
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "ram"), at: address(0x1000), name: "ram")
        let increments = 20_000
        let body: @Sendable () -> Void = {
            for _ in 0..<increments {
                var held: UInt64 = 0
                while true {
                    guard
                        let now = try? bus.compareExchange64(
                            expected: held,
                            desired: held + 1,
                            at: address(0x1040)
                        )
                    else { return }
                    if now == held { break }
                    held = now
                }
            }
        }
        let first = OSThread(body)
        let second = OSThread(body)
        first.join()
        second.join()
        #expect(try bus.loadRAM64(at: address(0x1040)) == UInt64(2 * increments))
    }

    @Test("RAM and windows come and go under readers, who see the whole of them or nothing")
    func mapChangesUnderReaders() throws {
        let bus = SystemBus()
        let tracker = TransactionTracker()
        let progress = Progress()
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "steady"), at: address(0x1000), name: "steady")
        try bus.storeRAM64(0x57ead1, at: address(0x1000))

        let counted = OSThread { Self.readCounted(bus, progress) }
        let hot = OSThread { Self.readHot(bus, tracker, progress) }
        var rounds: UInt64 = 0
        var removed: [Removed] = []
        // Until both readers have met both states, however the system schedules them.
        while rounds < 300 || progress.answered.load(ordering: .relaxed) < 100
            || progress.unanswered.load(ordering: .relaxed) < 100
        {
            rounds += 1
            removed.append(try flap(bus, tracker, round: rounds))
            // Freed while the readers run: by the last of the counted ones, if not by ourselves.
            while removed.count > 50 {
                removed.removeAll(where: \.isFreed)
                sched_yield()
            }
        }
        progress.isDone.store(true, ordering: .releasing)
        counted.join()
        hot.join()
        progress.expectNoViolations()
        #expect(removed.count { !$0.isFreed } == 0)
    }

    /// Puts a region and a window on the bus, takes them off again, and lets go of them when nobody is inside.
    private func flap(_ bus: SystemBus, _ tracker: TransactionTracker, round: UInt64) throws -> Removed {
        let ram = try range(0x8000, 0x8fff)
        let window = try range(0x9000, 0x900f)
        let region = try MemoryRegion.anonymous(byteCount: 0x1000, name: "flapping")
        for index in 0..<8 { region.base.storeBytes(of: round, toByteOffset: index * 8, as: UInt64.self) }
        let target = LivingTarget()
        try bus.addRAM(region, at: address(ram.first), name: "flapping")
        try bus.addWindow(target, at: window, name: "flapping")
        // Present for a while even where there are more threads than processors.
        sched_yield()
        bus.removeRAM(at: ram)
        bus.removeWindow(at: window)
        let generation = bus.generation
        tracker.waitForTransactionsInFlight()
        bus.reclaim(through: generation)
        return Removed(region: region, target: target)
    }

    private static func readCounted(_ bus: SystemBus, _ progress: Progress) {
        while !progress.isFinished {
            progress.note((try? bus.load(.doubleword, at: address(0x1000))) == 0x57ead1)
            do throws(BusError) {
                let bytes = try bus.read(64, at: address(0x8000))
                progress.note((8..<64).allSatisfy { bytes[$0] == bytes[$0 % 8] })
                progress.answered.add(1, ordering: .relaxed)
            } catch {
                progress.note(error == .unassigned(address(0x8000)))
                progress.unanswered.add(1, ordering: .relaxed)
            }
            do throws(BusError) {
                progress.note(try bus.load(.word, at: address(0x9000)) == 0x11fe)
            } catch {
                progress.note(error == .unassigned(address(0x9000)))
            }
        }
    }

    private static func readHot(_ bus: SystemBus, _ tracker: TransactionTracker, _ progress: Progress) {
        let slot = tracker.acquireSlot()
        defer { tracker.releaseSlot(slot) }
        while !progress.isFinished {
            slot.enter()
            defer { slot.leave() }
            progress.note((try? bus.loadRAM64(at: address(0x1000))) == 0x57ead1)
            do throws(BusError) {
                let words = try bus.loadRAM64x8(at: address(0x8000))
                progress.note(words == SIMD8(repeating: words[0]) && words[0] != 0)
            } catch {
                progress.note(error == .unassigned(address(0x8000)))
            }
            // What is lent stays mapped until we leave, removed or not.
            if let pointer = bus.hostPointer(at: address(0x8000), count: 64) {
                progress.note(
                    pointer.load(as: UInt64.self) == pointer.load(fromByteOffset: 56, as: UInt64.self)
                )
            }
        }
    }
}
