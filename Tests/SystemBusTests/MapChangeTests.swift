// Adding, removing, and how long what was removed lives.

import AddressSpace
import DeviceModel
import GuestMemory
import Synchronization
import SystemBus
import Testing

/// Whether a target came to the end of its answer.
private final class Answered: Sendable {
    let value = Atomic<Bool>(false)
}

/// A window that reclaims and then takes RAM off the bus.
private final class RemovingTarget: RegisterTarget {
    private let bus: SystemBus
    private let ram: AddressRange

    init(bus: SystemBus, ram: AddressRange) {
        self.bus = bus
        self.ram = ram
    }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        bus.reclaim()
        bus.removeRAM(at: ram)
    }
}

/// A window that takes itself off the bus, as a handler that moves its own window does.
private final class SelfRemovingTarget: RegisterTarget {
    private let bus: SystemBus
    private let range: AddressRange
    let answered = Answered()

    init(bus: SystemBus, range: AddressRange) {
        self.bus = bus
        self.range = range
    }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0x55 }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        bus.removeWindow(at: range)
        bus.reclaim()
        answered.value.store(true, ordering: .sequentiallyConsistent)
    }
}

@Suite("Changes of the map")
struct MapChangeTests {
    let bus = SystemBus()

    @Test("entries are listed in order, with range, name and kind")
    func entriesAreListed() throws {
        try bus.addWindow(ByteTarget(byteCount: 16), at: range(0x9000, 0x900f), name: "uart")
        try bus.addRAM(.anonymous(byteCount: 0x1000, name: "memfd"), at: address(0x4000), name: "memory@4000")
        #expect(
            bus.entries.map { "\($0.range) \($0.name) \($0.kind.rawValue)" } == [
                "0x4000-0x4fff memory@4000 ram", "0x9000-0x900f uart window",
            ]
        )
        #expect(bus.generation == 2)
    }

    @Test("what overlaps is refused with what is there, and nothing changes")
    func conflictsNameWhatIsThere() throws {
        let ram = try MemoryRegion.anonymous(byteCount: 0x1000, name: "ram")
        try bus.addRAM(ram, at: address(0x4000), name: "ram")
        let entries = bus.entries
        for (first, last) in [
            (0x4000, 0x4fff), (0x3000, 0x4000), (0x4fff, 0x6000), (0x4800, 0x4800), (0, .max),
        ]
            as [(UInt64, UInt64)]
        {
            let expected = AddressConflict(
                inserting: try range(first, last),
                existing: try range(0x4000, 0x4fff)
            )
            #expect(throws: expected) {
                try bus.addWindow(ByteTarget(byteCount: 1), at: range(first, last), name: "window")
            }
        }
        let expected = AddressConflict(
            inserting: try range(0x4800, 0x57ff),
            existing: try range(0x4000, 0x4fff)
        )
        #expect(throws: expected) { try bus.addRAM(ram, at: address(0x4800), name: "again") }
        #expect(bus.entries == entries)
        #expect(bus.generation == 1)
        // What touches does not overlap, and one region may stand at two addresses.
        try bus.addRAM(ram, at: address(0x5000), name: "alias")
        try bus.storeRAM64(1, at: address(0x5008))
        #expect(try bus.loadRAM64(at: address(0x4008)) == 1)
    }

    @Test("only the exact range and kind is removed")
    func removingIsExact() throws {
        let ram = try MemoryRegion.anonymous(byteCount: 0x1000, name: "ram")
        try bus.addRAM(ram, at: address(0x4000), name: "ram")
        try bus.addWindow(ByteTarget(byteCount: 16), at: range(0x9000, 0x900f), name: "uart")
        #expect(bus.removeRAM(at: try range(0x4000, 0x4ffe)) == nil)
        #expect(bus.removeRAM(at: try range(0x4001, 0x4fff)) == nil)
        #expect(bus.removeRAM(at: try range(0x9000, 0x900f)) == nil)
        try bus.removeWindow(at: range(0x4000, 0x4fff))
        try bus.removeWindow(at: range(0x8000, 0x800f))
        #expect(bus.entries.count == 2)
        #expect(bus.removeRAM(at: try range(0x4000, 0x4fff)) === ram)
        try bus.removeWindow(at: range(0x9000, 0x900f))
        #expect(bus.entries == [])
        #expect(throws: BusError.unassigned(address(0x4000))) { try bus.loadRAM64(at: address(0x4000)) }
        #expect(throws: BusError.unassigned(address(0x9000))) { try bus.load(.byte, at: address(0x9000)) }
    }

    @Test("a slice is the region and the distance from where it was put")
    func slices() throws {
        let ram = try MemoryRegion.anonymous(byteCount: 0x1000, name: "ram")
        try bus.addRAM(ram, at: address(0x4000), name: "ram")
        let slice = try #require(bus.ramSlice(containing: address(0x4fff)))
        #expect(slice.region === ram)
        #expect(slice.offset == 0xfff)
        #expect(bus.ramSlice(containing: address(0x5000)) == nil)
        #expect(bus.ramSlice(containing: address(0x3fff)) == nil)
    }

    @Test("the slices of a range are what of it is RAM, in the order of addresses, cut at its ends")
    func slicesOfARange() throws {
        let low = try MemoryRegion.anonymous(byteCount: 0x2000, name: "low")
        let high = try MemoryRegion.anonymous(byteCount: 0x1000, name: "high")
        try bus.addRAM(high, at: address(0x9000), name: "high")
        try bus.addRAM(low, at: address(0x4000), name: "low")
        try bus.addWindow(ByteTarget(byteCount: 16), at: range(0x6000, 0x600f), name: "uart")
        let slices = bus.ramSlices(in: try range(0x4800, 0x9007))
        #expect(slices.map(\.range) == [try range(0x4800, 0x5fff), try range(0x9000, 0x9007)])
        #expect(slices.map(\.offset) == [0x800, 0])
        #expect(slices.map { $0.region === low } == [true, false])
        #expect(bus.ramSlices(in: try range(0, .max)).map(\.range.byteCount) == [0x2000, 0x1000])
        #expect(bus.ramSlices(in: try range(0x6000, 0x8fff)).isEmpty)
    }

    @Test("what was removed lives until it is reclaimed, and no longer")
    func removedLivesUntilReclaimed() throws {
        weak var region: MemoryRegion?
        weak var target: ByteTarget?
        do {
            let newRegion = try MemoryRegion.anonymous(byteCount: 0x1000, name: "ram")
            let newTarget = ByteTarget(byteCount: 16)
            (region, target) = (newRegion, newTarget)
            try bus.addRAM(newRegion, at: address(0x4000), name: "ram")
            try bus.addWindow(newTarget, at: range(0x9000, 0x900f), name: "uart")
        }
        _ = bus.removeRAM(at: try range(0x4000, 0x4fff))
        let generation = bus.generation
        try bus.removeWindow(at: range(0x9000, 0x900f))
        #expect(region != nil)
        #expect(target != nil)
        bus.reclaim(through: generation)
        #expect(region == nil)
        #expect(target != nil)
        bus.reclaim(through: bus.generation)
        #expect(target == nil)
    }

    @Test("the end of the bus frees what is on it and what is not yet reclaimed")
    func busFreesEverything() throws {
        weak var onBus: MemoryRegion?
        weak var removed: MemoryRegion?
        do {
            let bus = SystemBus()
            let first = try MemoryRegion.anonymous(byteCount: 0x1000, name: "first")
            let second = try MemoryRegion.anonymous(byteCount: 0x1000, name: "second")
            (onBus, removed) = (first, second)
            try bus.addRAM(first, at: address(0x1000), name: "first")
            try bus.addRAM(second, at: address(0x2000), name: "second")
            _ = bus.removeRAM(at: try range(0x2000, 0x2fff))
        }
        #expect(onBus == nil)
        #expect(removed == nil)
    }

    @Test(
        "a target may take itself off the bus and reclaim while it answers, and lives until it has answered"
    )
    func targetRemovesItself() throws {
        let place = try range(0x9000, 0x900f)
        weak var target: SelfRemovingTarget?
        do {
            let newTarget = SelfRemovingTarget(bus: bus, range: place)
            target = newTarget
            try bus.addWindow(newTarget, at: place, name: "moving")
        }
        // The access that reclaims is itself under way: the target lives until it has answered, and goes then.
        let answered = try #require(target?.answered)
        try bus.store(1, .word, at: address(0x9000))
        let hasAnswered = answered.value.load(ordering: .sequentiallyConsistent)
        #expect(hasAnswered)
        #expect(target == nil)
        #expect(throws: BusError.unassigned(address(0x9000))) { try bus.store(1, .word, at: address(0x9000)) }
    }

    @Test("what is removed after a reclaim was asked for does not go with it")
    func deferredReclaimIsBounded() throws {
        weak var later: MemoryRegion?
        let removing = RemovingTarget(bus: bus, ram: try range(0x4000, 0x4fff))
        try bus.addWindow(removing, at: range(0x9000, 0x900f), name: "removing")
        do {
            let region = try MemoryRegion.anonymous(byteCount: 0x1000, name: "ram")
            later = region
            try bus.addRAM(region, at: address(0x4000), name: "ram")
        }
        // During this access: first a reclaim of everything, then the removal.
        try bus.store(1, .word, at: address(0x9000))
        #expect(bus.entries.map(\.name) == ["removing"])
        #expect(later != nil)
        bus.reclaim()
        #expect(later == nil)
    }
}
