// A seeded run of changes and accesses, each compared with a model that looks at every byte by itself.

import AddressSpace
import DeviceModel
import GuestMemory
import SeededRandomness
import SystemBus
import Testing

/// The map as a list, searched from the front, a byte at a time.
private struct NaiveMap {
    struct Entry {
        let range: AddressRange
        let isRAM: Bool
        var bytes: [UInt8]
    }

    var entries: [Entry] = []

    func index(of place: UInt64) -> Int? { entries.firstIndex { $0.range.contains(place) } }

    /// The entry that answers one access of `count` bytes, and where in it.
    func locate(_ count: UInt64, at place: UInt64, alignment: UInt64, ramOnly: Bool) throws(BusError)
        -> (entry: Int, offset: Int)
    {
        guard let index = index(of: place), entries[index].isRAM || !ramOnly else {
            throw .unassigned(address(place))
        }
        let offset = place - entries[index].range.first
        guard offset + count <= UInt64(entries[index].bytes.count) else { throw .unassigned(address(place)) }
        // The region begins at a page of the host's, so there the offset decides.
        if entries[index].isRAM, place % alignment != 0 || offset % alignment != 0 {
            throw .refused(address(place), .misaligned)
        }
        return (index, Int(offset))
    }

    func load(_ count: Int, at place: UInt64, ramOnly: Bool) throws(BusError) -> UInt64 {
        let (entry, offset) = try locate(UInt64(count), at: place, alignment: UInt64(count), ramOnly: ramOnly)
        return (0..<count).reduce(0) { $0 | UInt64(entries[entry].bytes[offset + $1]) << UInt64($1 * 8) }
    }

    mutating func store(_ value: UInt64, _ count: Int, at place: UInt64, ramOnly: Bool) throws(BusError) {
        let (entry, offset) = try locate(UInt64(count), at: place, alignment: UInt64(count), ramOnly: ramOnly)
        for index in 0..<count {
            entries[entry].bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
        }
    }

    /// The places of `count` bytes, up to the first that has none.
    func places(_ count: Int, at start: UInt64, ramOnly: Bool) -> (found: [(Int, Int)], failure: BusError?) {
        var found: [(Int, Int)] = []
        for step in 0..<count {
            let (place, overflow) = start.addingReportingOverflow(UInt64(step))
            guard !overflow else { return (found, .unassigned(address(.max))) }
            guard let index = index(of: place), entries[index].isRAM || !ramOnly else {
                return (found, .unassigned(address(place)))
            }
            found.append((index, Int(place - entries[index].range.first)))
        }
        return (found, nil)
    }
}

/// What came of an access: a value or why not.
private func outcome<Value>(_ body: () throws(BusError) -> Value) -> Result<Value, BusError> {
    do throws(BusError) { return .success(try body()) } catch { return .failure(error) }
}

private struct RandomRun {
    let bus = SystemBus()
    var model = NaiveMap()
    var regions: [UInt64: MemoryRegion] = [:]
    var random: SplitMix

    /// Both ends of the space, a page somewhere, and one beyond 32 bits.
    static let zones: [UInt64] = [0, 0x8000_0f80, 0x12_3456_7000, .max - 255]

    mutating func place() -> UInt64 {
        let zone = Self.zones[Int.random(in: 0..<Self.zones.count, using: &random)]
        return zone + UInt64.random(in: 0...255, using: &random) & (Bool.random(using: &random) ? .max : ~7)
    }

    mutating func add() throws {
        let byteCount = Int.random(in: 1...120, using: &random)
        let first = place()
        let isRAM = Bool.random(using: &random)
        let conflict: Bool
        if let wanted = AddressRange(start: first, byteCount: UInt64(byteCount)) {
            conflict = model.entries.contains { $0.range.overlaps(wanted) }
        } else {
            conflict = true
            guard isRAM else { return }
        }
        do {
            if isRAM {
                let region = try MemoryRegion.anonymous(byteCount: UInt64(byteCount), name: "ram")
                try bus.addRAM(region, at: address(first), name: "ram")
            } else {
                let range = try #require(AddressRange(start: first, byteCount: UInt64(byteCount)))
                try bus.addWindow(ByteTarget(byteCount: byteCount), at: range, name: "window")
            }
            #expect(!conflict)
            let range = try #require(AddressRange(start: first, byteCount: UInt64(byteCount)))
            model.entries.append(
                .init(range: range, isRAM: isRAM, bytes: [UInt8](repeating: 0, count: byteCount))
            )
        } catch let error as AddressConflict {
            #expect(conflict, "\(error)")
        }
    }

    mutating func remove() {
        guard let index = model.entries.indices.randomElement(using: &random) else { return }
        let entry = model.entries.remove(at: index)
        if entry.isRAM {
            #expect(bus.removeRAM(at: entry.range) != nil)
        } else {
            bus.removeWindow(at: entry.range)
        }
        if Bool.random(using: &random) { bus.reclaim() }
    }

    mutating func accessOnce() {
        let start = place()
        let value = random.next()
        let width = AccessWidth.allCases[Int.random(in: 0..<4, using: &random)]
        switch Int.random(in: 0..<6, using: &random) {
        case 0:
            let expected = outcome { () throws(BusError) in
                try model.load(width.rawValue, at: start, ramOnly: false)
            }
            #expect(outcome { () throws(BusError) in try bus.load(width, at: address(start)) } == expected)
        case 1:
            let expected = outcome { () throws(BusError) -> UInt64 in
                try model.store(value, width.rawValue, at: start, ramOnly: false)
                return 0
            }
            let got = outcome { () throws(BusError) -> UInt64 in
                try bus.store(value, width, at: address(start))
                return 0
            }
            #expect(got == expected)
        case 2:
            let expected = outcome { () throws(BusError) in try model.load(8, at: start, ramOnly: true) }
            #expect(outcome { () throws(BusError) in try bus.loadRAM64(at: address(start)) } == expected)
        case 3:
            let expected = outcome { () throws(BusError) -> UInt64 in
                try model.store(value, 8, at: start, ramOnly: true)
                return 0
            }
            let got = outcome { () throws(BusError) -> UInt64 in
                try bus.storeRAM64(value, at: address(start))
                return 0
            }
            #expect(got == expected)
        case 4:
            let isInRAM = model.places(width.rawValue, at: start, ramOnly: true).found
            let isOneEntry = isInRAM.count == width.rawValue && Set(isInRAM.map(\.0)).count == 1
            #expect((bus.hostPointer(at: address(start), count: width.rawValue) != nil) == isOneEntry)
        default:
            copy(at: start)
        }
    }

    private mutating func copy(at start: UInt64) {
        let count = Int.random(in: 0...200, using: &random)
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
        let ramOnly = Bool.random(using: &random)
        let (found, failure) = model.places(count, at: start, ramOnly: ramOnly)
        if Bool.random(using: &random) {
            let expected: Result<[UInt8], BusError> =
                failure.map { .failure($0) } ?? .success(found.map { model.entries[$0.0].bytes[$0.1] })
            let got = outcome { () throws(BusError) -> [UInt8] in
                ramOnly ? try bus.read(count, at: address(start)) : try bus.bytes(count, at: start)
            }
            #expect(got == expected)
        } else {
            let got = outcome { () throws(BusError) -> UInt64 in
                if ramOnly { try bus.write(bytes, at: address(start)) } else { try bus.put(bytes, at: start) }
                return 0
            }
            #expect(got == (failure.map { .failure($0) } ?? .success(0)))
            // RAM alone is written as a whole or not at all; a DMA's copy up to where it ends.
            guard failure == nil || !ramOnly else { return }
            for (byte, (entry, offset)) in zip(bytes, found) { model.entries[entry].bytes[offset] = byte }
        }
    }

    func compareEverything() {
        let listed = model.entries.sorted { $0.range.first < $1.range.first }
        #expect(bus.entries.map(\.range) == listed.map(\.range))
        #expect(bus.entries.map { $0.kind == .ram } == listed.map(\.isRAM))
        for entry in listed {
            let got = outcome { () throws(BusError) in try bus.bytes(entry.bytes.count, at: entry.range.first)
            }
            #expect(got == .success(entry.bytes))
        }
    }
}

@Suite("Random maps against a naive model")
struct RandomMapTests {
    @Test("every access has the model's outcome, in every map", arguments: 1...6 as ClosedRange<UInt64>)
    func busEqualsTheModel(seed: UInt64) throws {
        var run = RandomRun(random: SplitMix(seed: seed))
        for _ in 0..<50 {
            for _ in 0..<Int.random(in: 0...4, using: &run.random) { try run.add() }
            for _ in 0..<Int.random(in: 0...2, using: &run.random) { run.remove() }
            for _ in 0..<60 { run.accessOnce() }
            run.compareEverything()
        }
    }
}
