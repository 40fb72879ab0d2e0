// The configuration cache: STEs and CDs as they were when they were fetched.

import AddressSpace
import SMMUv3Spec
import Synchronization

/// STEs by StreamID and CDs by StreamID and SubstreamID, kept until they are invalidated or evicted.
///
/// Level-1 descriptors are not kept, so the Leaf parameter of CMD_CFGI_STE and CMD_CFGI_CD changes nothing here.
final class ConfigurationCache: Sendable {
    struct ContextKey: Hashable, Sendable {
        var streamID: StreamID
        /// The index into the CD table.
        var index: UInt32
    }

    struct Counters: Sendable {
        var hits: UInt64 = 0
        var misses: UInt64 = 0
        var evictions: UInt64 = 0
        var invalidatedEntries: UInt64 = 0
        var residentSTEs = 0
        var residentCDs = 0
    }

    private struct State: Sendable {
        var streams: BoundedStore<StreamID, STE>
        var contexts: BoundedStore<ContextKey, CD>
        /// VMS.PARTID_MAP by VMID.
        var partIDMaps: BoundedStore<UInt16, PartIDMap>
        var counters = Counters()
    }
    private let state: Mutex<State>
    private let capacity: Int
    let generation: InvalidationGeneration

    /// Builds an empty cache.
    ///
    /// - Parameters:
    ///   - capacity: How many STEs, and how many CDs, to hold; 0 holds none.
    ///   - generation: The SMMU's count of invalidations.
    init(capacity: Int, generation: InvalidationGeneration) {
        self.capacity = capacity
        self.generation = generation
        state = Mutex(
            State(
                streams: BoundedStore(capacity: capacity),
                contexts: BoundedStore(capacity: capacity),
                partIDMaps: BoundedStore(capacity: capacity)
            )
        )
    }

    var counters: Counters {
        state.withLock { state in
            var counters = state.counters
            counters.residentSTEs = state.streams.count
            counters.residentCDs = state.contexts.count
            return counters
        }
    }

    func stream(_ streamID: StreamID) -> STE? {
        guard capacity > 0 else { return nil }
        return state.withLock { state in
            let found = state.streams[streamID]
            if found == nil { state.counters.misses &+= 1 } else { state.counters.hits &+= 1 }
            return found
        }
    }

    func context(_ key: ContextKey) -> CD? {
        guard capacity > 0 else { return nil }
        return state.withLock { state in
            let found = state.contexts[key]
            if found == nil { state.counters.misses &+= 1 } else { state.counters.hits &+= 1 }
            return found
        }
    }

    /// Looks without counting: for tools.
    func peek(_ streamID: StreamID) -> STE? { state.withLock { $0.streams[streamID] } }

    /// Looks without counting: for tools.
    func peek(_ key: ContextKey) -> CD? { state.withLock { $0.contexts[key] } }

    /// Keeps an STE unless configuration was invalidated since the stamp was taken; see ``TranslationCache``.
    func fill(_ streamID: StreamID, _ ste: STE, fetchedAt stamp: InvalidationStamp) {
        guard capacity > 0 else { return }
        state.withLock { state in
            guard generation.isCurrentConfiguration(stamp) else { return }
            if state.streams.insert(ste, for: streamID) { state.counters.evictions &+= 1 }
        }
    }

    /// Keeps a CD unless configuration was invalidated since the stamp was taken.
    func fill(_ key: ContextKey, _ cd: CD, fetchedAt stamp: InvalidationStamp) {
        guard capacity > 0 else { return }
        state.withLock { state in
            guard generation.isCurrentConfiguration(stamp) else { return }
            if state.contexts.insert(cd, for: key) { state.counters.evictions &+= 1 }
        }
    }

    func partIDMap(_ vmid: UInt16) -> PartIDMap? {
        guard capacity > 0 else { return nil }
        return state.withLock { $0.partIDMaps[vmid] }
    }

    /// Keeps a PARTID_MAP unless configuration was invalidated since the stamp was taken.
    func fill(partIDMapOf vmid: UInt16, _ map: PartIDMap, fetchedAt stamp: InvalidationStamp) {
        guard capacity > 0 else { return }
        state.withLock { state in
            guard generation.isCurrentConfiguration(stamp) else { return }
            if state.partIDMaps.insert(map, for: vmid) { state.counters.evictions &+= 1 }
        }
    }

    // MARK: Invalidating

    /// CMD_CFGI_VMS_PIDM; nil is CMD_CFGI_ALL: the PARTID_MAPs of every VMID.
    func invalidatePartIDMaps(of vmid: UInt16?) {
        state.withLock { state in
            // Last, and within the lock; see ``TranslationCache``.
            defer { generation.advance() }
            guard let vmid else {
                _ = state.partIDMaps.removeAll { _ in true }
                return
            }
            _ = state.partIDMaps.remove(vmid)
        }
    }

    /// CMD_CFGI_STE_RANGE, CMD_CFGI_STE, CMD_CFGI_ALL: the STEs of these streams and every CD reached through them.
    func invalidate(streams: ClosedRange<UInt32>) {
        state.withLock { state in
            // Last, and within the lock; see ``TranslationCache``.
            defer { generation.advance() }
            var removed = 0
            if streams.count == 1 {
                if state.streams.remove(StreamID(streams.lowerBound)) { removed += 1 }
            } else {
                removed += state.streams.removeAll { streams.contains($0.rawValue) }
            }
            if state.contexts.count > 0 {
                removed += state.contexts.removeAll { streams.contains($0.streamID.rawValue) }
            }
            state.counters.invalidatedEntries &+= UInt64(removed)
        }
    }

    /// CMD_CFGI_CD: one CD.
    func invalidate(_ key: ContextKey) {
        state.withLock { state in
            // Last, and within the lock; see ``TranslationCache``.
            defer { generation.advance() }
            if state.contexts.remove(key) { state.counters.invalidatedEntries &+= 1 }
        }
    }

    /// CMD_CFGI_CD_ALL: every CD of one stream.
    func invalidateContexts(of streamID: StreamID) {
        state.withLock { state in
            // Last, and within the lock; see ``TranslationCache``.
            defer { generation.advance() }
            let removed = state.contexts.removeAll { $0.streamID == streamID }
            state.counters.invalidatedEntries &+= UInt64(removed)
        }
    }
}
