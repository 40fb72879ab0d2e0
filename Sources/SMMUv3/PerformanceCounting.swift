// What the SMMU tells performance monitors, and how little that costs while none listens.

import AddressSpace
package import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// The counter groups that count this SMMU's events.
///
/// Each event is reported to them when it happens, so a counter is exact and its overflow is noticed at once. Every
/// transaction looks at one word that says whether anybody counts; that word changes only when software programs
/// a counter.
///
/// Lock order: a monitor may hold its own lock when it asks to be told; it is told without a lock held here.
final class PerformanceCounting: Sendable {
    private struct Listener: Sendable {
        let monitor: any SMMUPerformanceMonitor
        let events: SMMUPerformanceEvents
    }
    private let listeners = Mutex<[Listener]>([])
    /// The union of what the listeners want.
    ///
    /// Relaxed: whoever programs a counter and then has a device do something has told that device so in a way
    /// that orders this store before its loads.
    private let counted = Atomic<UInt64>(0)

    /// Whether transactions are counted, all or those that devices translated themselves.
    @inline(__always)  // One load for each look-up that misses in a port.
    var countsTransactions: Bool { counted.load(ordering: .relaxed) & 0b1000_0010 != 0 }

    /// Whether anybody counts anything.
    @inline(__always)  // One load for each look-up that misses in a port.
    var countsAnything: Bool { counted.load(ordering: .relaxed) != 0 }

    func setEvents(_ events: SMMUPerformanceEvents, for monitor: any SMMUPerformanceMonitor) {
        listeners.withLock { listeners in
            listeners.removeAll { $0.monitor === monitor }
            if !events.isEmpty { listeners.append(Listener(monitor: monitor, events: events)) }
            let union = listeners.reduce(into: SMMUPerformanceEvents()) { $0.formUnion($1.events) }
            counted.store(union.rawValue, ordering: .relaxed)
        }
    }

    /// Reports an event to everybody who counts it.
    @inline(never)  // Keeps the hit path small.
    func record(_ event: SMMUPerformanceEvent, _ streamID: StreamID, _ amount: UInt64 = 1) {
        let current = listeners.withLock { $0 }
        for listener in current where listener.events.contains(event.set) {
            listener.monitor.count(event, streamID, amount)
        }
    }

    /// Reports transactions.
    func recordTransactions(_ streamID: StreamID, areTranslated: Bool, _ amount: UInt64 = 1) {
        record(.transaction, streamID, amount)
        if areTranslated { record(.atsTranslatedTransaction, streamID, amount) }
    }

    /// Reports what a look-up fetched.
    ///
    /// A transaction that fetches at least one descriptor is one TLB miss, and one that fetches at least one
    /// structure one configuration cache miss (IHI 0070, 10.3).
    func record(_ accesses: LookupAccesses, _ streamID: StreamID) {
        guard counted.load(ordering: .relaxed) != 0 else { return }
        if accesses.configuration > 0 {
            record(.configurationCacheMiss, streamID)
            record(.configurationAccess, streamID, accesses.configuration)
        }
        if accesses.translationTable > 0 {
            record(.tlbMiss, streamID)
            record(.tableWalkAccess, streamID, accesses.translationTable)
        }
    }
}

/// How often one transaction's look-up went to memory.
struct LookupAccesses: LookupObserver {
    private(set) var configuration: UInt64 = 0
    private(set) var translationTable: UInt64 = 0
    /// For the statistics, which count what was there.
    private(set) var walks: UInt64 = 0
    private(set) var descriptors: UInt64 = 0
    private(set) var structures: UInt64 = 0

    @inline(__always)  // Decides what is compiled.
    static var hearsOfStructures: Bool { false }

    mutating func accessing(_ kind: LookupAccess) {
        switch kind {
        case .configuration: configuration &+= 1
        case .translationTable: translationTable &+= 1
        }
    }

    @inline(__always)  // Once for each walk.
    mutating func accessedTables(_ count: UInt64) { translationTable &+= count }

    @inline(__always)  // Likewise: the port counts by itself, where nobody else writes.
    mutating func walked(_ walks: UInt64, fetching descriptors: UInt64, _ counters: Counters) {
        self.walks &+= walks
        self.descriptors &+= descriptors
    }

    /// So many structures have been read, all of which were there.
    @inline(__always)  // Likewise.
    mutating func fetchedStructures(_ count: UInt64) {
        configuration &+= count
        structures &+= count
    }

    @inline(__always)  // Likewise.
    mutating func fetchedConfiguration(_ counters: Counters) { structures &+= 1 }

    @inline(__always)  // Must vanish from the path of a transaction.
    mutating func fetched(_ structure: @autoclosure () -> FetchedStructure) {}
    @inline(__always)  // Must vanish from the path of a transaction.
    mutating func note(_ text: @autoclosure () -> String) {}
}

extension StreamPort {
    /// Counts and reports what one transaction's look-up fetched.
    @inline(__always)  // Once for each look-up that misses in the port.
    func record(_ accesses: LookupAccesses) {
        slot.count(Counter.walks, accesses.walks)
        slot.count(Counter.descriptors, accesses.descriptors)
        slot.count(Counter.structures, accesses.structures)
        if smmu.performance.countsAnything { smmu.performance.record(accesses, streamID) }
    }
}

extension SMMUv3: SMMUPerformanceSource {
    package var performanceEvents: SMMUPerformanceEvents {
        let always: SMMUPerformanceEvents = [
            .transaction, .tlbMiss, .configurationCacheMiss, .tableWalkAccess, .configurationAccess,
        ]
        guard identification.idr0.ats else { return always }
        return always.union([.atsTranslationRequest, .atsTranslatedTransaction])
    }

    package func report(_ events: SMMUPerformanceEvents, to monitor: any SMMUPerformanceMonitor) {
        performance.setEvents(events, for: monitor)
        // Ports do not look at each hit whether somebody counts: they keep nothing that they would hit.
        if performance.countsTransactions { invalidationGeneration.advanceTranslations() }
    }
}
