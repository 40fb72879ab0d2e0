// The physical address map: what is there, and how it changes while others read it.

public import AddressSpace
public import DeviceModel
public import GuestMemory
import Synchronization

/// The machine's physical address space: RAM and register windows.
///
/// Readers never lock. They follow one pointer to an immutable snapshot of the map; a change builds a new snapshot
/// and publishes it. What readers may still hold, the old snapshot and the memory or target that was removed, is
/// kept until ``reclaim(through:)``:
///
/// - The accesses of ``PhysicalAccess`` look after themselves: they count themselves in and out.
/// - The rest (``loadRAM64(at:)`` and its siblings, ``copyOut(at:into:)``, ``copyIn(_:at:)`` and
///   ``hostPointer(at:count:for:)``) writes no shared word. Whoever calls ``reclaim(through:)`` has to know that
///   none of those that began before the change still runs, nor is a pointer in use that they handed out: the
///   SMMU's wait for DMA in flight is what tells. Where nothing is ever reclaimed nothing is ever in danger.
///
/// Lock order: the bus's lock is a leaf. No target is called under it.
//
// SAFETY of @unchecked Sendable: the map and what is retired are behind a Mutex, the pointer is atomic, and the
// snapshots that it points at do not change.
public final class SystemBus: @unchecked Sendable {
    /// What the map holds at a range.
    private enum Content: Sendable {
        case ram(MemoryRegion)
        case window(WindowBox)
        case remote(RemoteBox)
    }

    private struct Occupant: Sendable {
        let name: String
        let content: Content
    }

    /// What a change took out of the map: freed when nobody can be reading it.
    private struct Retired {
        let generation: UInt64
        let snapshot: UnsafeMutablePointer<BusSnapshot>
        /// Held, not read: letting go of it unmaps the memory.
        let occupant: Occupant?
    }

    private struct State {
        var map = AddressMap<Occupant>()
        var retired: [Retired] = []
        var generation: UInt64 = 0
        /// Up to which generation ``reclaim(through:)`` may free.
        var reclaimable: UInt64 = 0
    }

    /// What changes take a lock for.
    ///
    /// An object of its own, so that the lock's word does not share the cache line that every access reads.
    // SAFETY of @unchecked Sendable: all there is is a Mutex.
    private final class Changes: @unchecked Sendable {
        let state = Mutex(State())
    }

    /// The map as it is now, for those who keep the bus alive by other means.
    public let view: BusView
    private let changes = Changes()
    private let readers = CountedReaders()

    /// An address space in which nothing is.
    public init() {
        view = BusView(publishing: Self.makeSnapshot(of: AddressMap()))
    }

    deinit {
        Self.free(view.snapshot)
        view.deallocate()
        changes.state.withLock { state in for retired in state.retired { Self.free(retired.snapshot) } }
    }

    /// The map as it is now, for those for whom the caller of ``reclaim(through:)`` waits.
    @inline(__always)
    var snapshot: UnsafeMutablePointer<BusSnapshot> { view.snapshot }

    /// The map as it is now, and what it names, kept alive until the matching ``leave()``.
    func enter() -> UnsafeMutablePointer<BusSnapshot> {
        readers.line.pointee.count.wrappingAdd(1, ordering: .sequentiallyConsistent)
        // Sequentially consistent, as are the two sides of reclaim(through:): either that sees this reader, or
        // this reader sees the map that it has published.
        return view.published.pointee.load(ordering: .sequentiallyConsistent)
    }

    /// See ``enter()``.
    ///
    /// The last to leave does the reclaiming that could not be done while somebody was inside.
    func leave() {
        let count = readers.line.pointee.count.wrappingSubtract(1, ordering: .sequentiallyConsistent).newValue
        guard count == 0, readers.line.pointee.isReclaimDue.load(ordering: .sequentiallyConsistent) else {
            return
        }
        reclaimWhatIsDue()
    }
}

/// Who is inside a counted access, on a cache line of its own: it is written at each of them.
// SAFETY of @unchecked Sendable: the pointer never changes, and what it points at is atomic.
private final class CountedReaders: @unchecked Sendable {
    struct Line: ~Copyable {
        /// How many accesses are under way.
        let count = Atomic<Int>(0)
        /// Whether the last of them has to reclaim when it leaves.
        let isReclaimDue = Atomic<Bool>(false)
    }

    let line: UnsafeMutablePointer<Line>

    init() {
        // Two cache lines: the prefetcher of adjacent lines pairs them.
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 128)
        line = memory.bindMemory(to: Line.self, capacity: 1)
        line.initialize(to: Line())
    }

    deinit {
        line.deinitialize(count: 1)
        UnsafeMutableRawPointer(line).deallocate()
    }
}

// MARK: Changes

extension SystemBus {
    /// Puts a whole region of RAM at an address.
    ///
    /// - Throws: ``AddressConflict`` with what is there already; nothing changes. A region that would leave the
    ///   64-bit space conflicts with the last byte of it.
    public func addRAM(_ region: MemoryRegion, at address: PhysicalAddress, name: String)
        throws(AddressConflict)
    {
        guard let range = AddressRange(start: address.rawValue, byteCount: region.byteCount) else {
            throw Self.leavesAddressSpace(address)
        }
        try add(Occupant(name: name, content: .ram(region)), at: range)
    }

    /// Puts a window of registers at a range of addresses.
    ///
    /// The bus holds the target. One that holds the bus in turn goes only once it is removed and reclaimed.
    ///
    /// - Throws: ``AddressConflict`` with what is there already; nothing changes.
    public func addWindow(_ target: any RegisterTarget, at range: AddressRange, name: String)
        throws(AddressConflict)
    {
        try add(Occupant(name: name, content: .window(WindowBox(target))), at: range)
    }

    /// Puts memory that a peer keeps to itself at a range of addresses: it answers as RAM does, but for atomic
    /// exchanges, which are refused, and for host pointers, of which there are none.
    ///
    /// - Throws: ``AddressConflict`` with what is there already; nothing changes.
    public func addRemote(
        _ memory: any RemoteMemory,
        at range: AddressRange,
        isWritable: Bool,
        name: String
    ) throws(AddressConflict) {
        let box = RemoteBox(memory, isWritable: isWritable)
        try add(Occupant(name: name, content: .remote(box)), at: range)
    }

    /// Takes a peer's memory with exactly this range out of the map, if there is some.
    ///
    /// Accesses that are under way may still ask for it until the caller has waited for them.
    public func removeRemote(at range: AddressRange) {
        remove(at: range) { if case .remote = $0 { true } else { false } }
    }

    /// Takes RAM out of the map; nil where no RAM has exactly this range.
    ///
    /// Accesses that are under way may still reach it until the caller has waited for them.
    @discardableResult
    public func removeRAM(at range: AddressRange) -> MemoryRegion? {
        let occupant = remove(at: range) { if case .ram = $0 { true } else { false } }
        guard case .ram(let region) = occupant?.content else { return nil }
        return region
    }

    /// Takes the window with exactly this range out of the map, if there is one.
    ///
    /// Accesses that are under way may still reach it until the caller has waited for them.
    public func removeWindow(at range: AddressRange) {
        remove(at: range) { if case .window = $0 { true } else { false } }
    }

    /// How often the map has changed: what to hand to ``reclaim(through:)``.
    public var generation: UInt64 { changes.state.withLock { $0.generation } }

    /// Frees what was removed up to and including the change that made `generation`.
    ///
    /// The caller takes ``generation``, waits until every access that began before has ended (see the type's
    /// description), and then calls this. It never waits itself: while accesses of ``PhysicalAccess`` are under
    /// way nothing is freed, and the last of them does it when it ends.
    public func reclaim(through generation: UInt64) {
        changes.state.withLock { state in
            // What is removed later is not meant, even where it happens before this is carried out.
            state.reclaimable = max(state.reclaimable, min(generation, state.generation))
            readers.line.pointee.isReclaimDue.store(true, ordering: .sequentiallyConsistent)
        }
        reclaimWhatIsDue()
    }

    private func reclaimWhatIsDue() {
        let freed: [Retired] = changes.state.withLock { state in
            // Whoever is not counted by now will find a newer snapshot than any that is retired. Whoever is will
            // find that there is something due when it leaves.
            guard readers.line.pointee.count.load(ordering: .sequentiallyConsistent) == 0 else { return [] }
            readers.line.pointee.isReclaimDue.store(false, ordering: .sequentiallyConsistent)
            let count = state.retired.prefix { $0.generation <= state.reclaimable }.count
            defer { state.retired.removeFirst(count) }
            return Array(state.retired[..<count])
        }
        // After the lock: the last reference to a target may run code of its own.
        for retired in freed { Self.free(retired.snapshot) }
    }

    /// Frees everything that was removed.
    ///
    /// For callers that know that nobody else is using the bus, or has since the last change.
    public func reclaim() { reclaim(through: .max) }

    private func add(_ occupant: Occupant, at range: AddressRange) throws(AddressConflict) {
        let conflict: AddressConflict? = changes.state.withLock { state in
            do throws(AddressConflict) {
                try state.map.insert(occupant, at: range)
            } catch {
                return error
            }
            publish(&state, removing: nil)
            return nil
        }
        if let conflict { throw conflict }
    }

    @discardableResult
    private func remove(at range: AddressRange, where isSought: (Content) -> Bool) -> Occupant? {
        changes.state.withLock { state in
            guard let entry = state.map.entry(containing: range.first), isSought(entry.value.content),
                let occupant = state.map.remove(range)
            else { return nil }
            publish(&state, removing: occupant)
            return occupant
        }
    }

    private func publish(_ state: inout State, removing occupant: Occupant?) {
        state.generation &+= 1
        let old = view.publish(Self.makeSnapshot(of: state.map))
        state.retired.append(Retired(generation: state.generation, snapshot: old, occupant: occupant))
    }

    private static func makeSnapshot(of map: AddressMap<Occupant>) -> UnsafeMutablePointer<BusSnapshot> {
        var ram: [RAMRecord] = []
        var windows: [WindowRecord] = []
        var remotes: [RemoteRecord] = []
        for entry in map.entries {
            switch entry.value.content {
            case .ram(let region):
                let record = RAMRecord(
                    first: entry.range.first,
                    last: entry.range.last,
                    host: region.base,
                    lostFlag: region.lostFlag,
                    isWritable: region.isWritable
                )
                ram.append(record)
            case .window(let box):
                // The map, and after it what is retired, holds the box for as long as this names it.
                windows.append(
                    WindowRecord(first: entry.range.first, last: entry.range.last, box: .passUnretained(box))
                )
            case .remote(let box):
                remotes.append(
                    RemoteRecord(first: entry.range.first, last: entry.range.last, box: .passUnretained(box))
                )
            }
        }
        let snapshot = UnsafeMutablePointer<BusSnapshot>.allocate(capacity: 1)
        snapshot.initialize(to: BusSnapshot(ram: ram, windows: windows, remotes: remotes))
        return snapshot
    }

    private static func free(_ snapshot: UnsafeMutablePointer<BusSnapshot>) {
        snapshot.pointee.deallocate()
        snapshot.deallocate()
    }

    private static func leavesAddressSpace(_ address: PhysicalAddress) -> AddressConflict {
        AddressConflict(
            inserting: AddressRange(upFrom: address.rawValue),
            existing: AddressRange(upFrom: .max)
        )
    }
}

// MARK: Looking at the map

extension SystemBus {
    /// One thing in the map, for people.
    public struct Entry: Hashable, Sendable {
        public enum Kind: String, Hashable, Sendable {
            case ram
            case window
            case remote
        }

        public let range: AddressRange
        public let name: String
        public let kind: Kind
    }

    /// Everything in the map, in ascending order of address.
    public var entries: [Entry] {
        changes.state.withLock { state in
            state.map.entries.map { entry in
                let kind: Entry.Kind =
                    switch entry.value.content {
                    case .ram: .ram
                    case .window: .window
                    case .remote: .remote
                    }
                return Entry(range: entry.range, name: entry.value.name, kind: kind)
            }
        }
    }

    /// The RAM that holds an address, and how far into its region that is.
    public func ramSlice(containing address: PhysicalAddress) -> (region: MemoryRegion, offset: UInt64)? {
        changes.state.withLock { state in
            guard let entry = state.map.entry(containing: address.rawValue),
                case .ram(let region) = entry.value.content
            else { return nil }
            return (region, address.rawValue - entry.range.first)
        }
    }

    /// A part of a range that is RAM, in one region.
    public struct RAMSlice: Sendable {
        public let range: AddressRange
        public let region: MemoryRegion
        /// Where in the region the part begins.
        public let offset: UInt64
    }

    /// All that is RAM of a range of physical addresses, in ascending order.
    public func ramSlices(in range: AddressRange) -> [RAMSlice] {
        changes.state.withLock { state in
            state.map.entries.compactMap { entry in
                guard case .ram(let region) = entry.value.content, entry.range.overlaps(range),
                    let part = AddressRange(
                        first: max(entry.range.first, range.first),
                        last: min(entry.range.last, range.last)
                    )
                else { return nil }
                return RAMSlice(range: part, region: region, offset: part.first - entry.range.first)
            }
        }
    }
}

extension AddressRange {
    /// From an address to the end of the 64-bit space.
    fileprivate init(upFrom first: UInt64) {
        guard let range = AddressRange(first: first, last: .max) else {
            preconditionFailure("no address lies above 2^64 - 1")
        }
        self = range
    }
}
