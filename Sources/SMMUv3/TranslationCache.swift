// The TLB: translations by what the architecture tags them with, invalidated exactly.

import BitFields
import SMMUv3Spec
import Synchronization

/// A set-associative cache of translations, shared by all streams of one SMMU.
///
/// Entries live until they are invalidated or evicted, as they would in silicon: that is how a missing TLBI
/// shows. Faults are never cached. Each look-up probes one set for every page or block size that is resident.
final class TranslationCache: Sendable {
    /// Which addresses a TLBI by VA covers.
    struct AddressScope: Equatable, Sendable {
        /// The first address, sign-extended from bit 55; an IPA for stage 2.
        var first: UInt64
        /// The last address, included.
        var last: UInt64
        /// Only entries of this granule (TG != 0); nil is any.
        var granule: Granule?
        /// Only entries of leaves at this level (the TTL hint); nil is any.
        var level: UInt8?
    }

    /// What a TLBI command removes.
    enum Scope: Equatable, Sendable {
        /// Everything: a reset.
        case everything
        /// CMD_TLBI_NSNH_ALL, EL2_ALL: these regimes.
        case regimes([TranslationRegime])
        /// CMD_TLBI_NH_ALL, S12_VMALL: one VMID in these regimes.
        case vmid([TranslationRegime], UInt16)
        /// CMD_TLBI_NH_ASID, EL2_ASID: non-global entries only.
        case asid(TranslationRegime, vmid: UInt16, asid: UInt16)
        /// CMD_TLBI_NH_VA, EL2_VA: entries of this ASID, and global ones whatever their ASID.
        ///
        /// CMD_TLBI_S2_IPA, with ASID 0.
        case address(TranslationRegime, vmid: UInt16, asid: UInt16, AddressScope)
        /// CMD_TLBI_NH_VAA, EL2_VAA.
        case addressAllASIDs(TranslationRegime, vmid: UInt16, AddressScope)
    }

    struct Counters: Sendable {
        var hits: UInt64 = 0
        var misses: UInt64 = 0
        var fills: UInt64 = 0
        /// Fills that an invalidation overtook: used once, not kept.
        var overtakenFills: UInt64 = 0
        var evictions: UInt64 = 0
        var invalidatedEntries: UInt64 = 0
        var residentEntries: Int = 0
    }

    private struct State: Sendable {
        var sets: [CachedTranslation?]
        /// How many resident entries there are of each log2 size: which sizes a look-up must probe.
        var residentBySize = [Int](repeating: 0, count: 64)
        var sizesPresent: [UInt8] = []
        var globalEntries = 0
        /// Entries that are a part of their first stage's page or block.
        var partialEntries = 0
        var nextVictim = 0
        var counters = Counters()
    }

    /// How many entries one set holds.
    static let ways = 4
    private let setCount: Int
    private let state: Mutex<State>
    /// Bumped by every invalidation, of translations and of configuration, before it takes effect: what was
    /// looked up or walked at an older generation must not be kept.
    let generation: InvalidationGeneration

    /// Builds an empty cache.
    ///
    /// - Parameters:
    ///   - entryCount: How many translations to hold; rounded up to a power of two of at least one set. 0 holds none.
    ///   - generation: The SMMU's count of invalidations.
    init(entryCount: Int, generation: InvalidationGeneration) {
        var sets = 0
        if entryCount > 0 {
            sets = 1
            while sets * Self.ways < entryCount { sets *= 2 }
        }
        setCount = sets
        state = Mutex(State(sets: Array(repeating: nil, count: sets * Self.ways)))
        self.generation = generation
    }

    var counters: Counters { state.withLock { $0.counters } }

    // MARK: Looking up

    func lookUp(_ address: UInt64, tag: RegimeTag) -> CachedTranslation? {
        guard setCount > 0 else { return nil }
        return state.withLock { state in
            guard let index = index(of: address, tag: tag, in: state) else {
                state.counters.misses &+= 1
                return nil
            }
            state.counters.hits &+= 1
            return state.sets[index]
        }
    }

    /// Looks without counting: for tools.
    func peek(_ address: UInt64, tag: RegimeTag) -> CachedTranslation? {
        guard setCount > 0 else { return nil }
        return state.withLock { state in index(of: address, tag: tag, in: state).flatMap { state.sets[$0] } }
    }

    private func index(of address: UInt64, tag: RegimeTag, in state: borrowing State) -> Int? {
        for log2Bytes in state.sizesPresent {
            let page = address &>> UInt64(log2Bytes)
            let base = page &<< UInt64(log2Bytes)
            let set = setIndex(page: page, asid: tag.asid, vmid: tag.vmid)
            for way in set..<(set &+ Self.ways) {
                if let entry = state.sets[way], entry.inputBase == base, entry.log2Bytes == log2Bytes,
                    !entry.isGlobal, entry.tag.asid == tag.asid, entry.tag.vmid == tag.vmid,
                    entry.tag.regime == tag.regime
                {
                    return way
                }
            }
            guard state.globalEntries > 0 else { continue }
            let globalSet = setIndex(page: page, asid: 0, vmid: tag.vmid)
            for way in globalSet..<(globalSet &+ Self.ways) {
                if let entry = state.sets[way], entry.inputBase == base, entry.log2Bytes == log2Bytes,
                    entry.isGlobal, entry.tag.aset == tag.aset, entry.tag.vmid == tag.vmid,
                    entry.tag.regime == tag.regime
                {
                    return way
                }
            }
        }
        return nil
    }

    private func setIndex(page: UInt64, asid: UInt16, vmid: UInt16) -> Int {
        var hash = page ^ (UInt64(asid) &<< 40) ^ (UInt64(vmid) &<< 24)
        hash = (hash ^ (hash &>> 29)) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: (hash &>> 32) & UInt64(truncatingIfNeeded: setCount &- 1)) &* Self.ways
    }

    // MARK: Filling

    /// Keeps a translation, unless something was invalidated since `generation` was read: then the tables may
    /// have been read before they changed, and keeping it would undo the invalidation.
    func fill(_ entry: CachedTranslation, walkedAt walkGeneration: UInt64) {
        guard setCount > 0 else { return }
        state.withLock { state in
            // Invalidations bump the generation before they take this lock: equal here means that none has run
            // since the walk began, and one that bumps from now on will find this entry.
            guard generation.current == walkGeneration else {
                state.counters.overtakenFills &+= 1
                return
            }
            insert(entry, into: &state)
        }
    }

    private func insert(_ entry: CachedTranslation, into state: inout State) {
        let page = entry.inputBase &>> UInt64(entry.log2Bytes)
        let set = setIndex(page: page, asid: entry.isGlobal ? 0 : entry.tag.asid, vmid: entry.tag.vmid)
        var chosen: Int?
        for way in set..<(set + Self.ways) {
            guard let old = state.sets[way] else {
                chosen = chosen ?? way
                continue
            }
            // Two threads missed on one page: the second fill replaces the first.
            if old.inputBase == entry.inputBase, old.log2Bytes == entry.log2Bytes,
                old.isGlobal == entry.isGlobal,
                old.tag == entry.tag
            {
                chosen = way
                break
            }
        }
        let way: Int
        if let chosen {
            way = chosen
        } else {
            way = set + state.nextVictim % Self.ways
            state.nextVictim &+= 1
            state.counters.evictions &+= 1
        }
        remove(way, from: &state)
        state.sets[way] = entry
        state.counters.fills &+= 1
        state.counters.residentEntries += 1
        if entry.isGlobal { state.globalEntries += 1 }
        if entry.isPartial { state.partialEntries += 1 }
        state.residentBySize[Int(entry.log2Bytes & 63)] += 1
        if state.residentBySize[Int(entry.log2Bytes & 63)] == 1 { updateSizes(&state) }
    }

    private func remove(_ index: Int, from state: inout State) {
        guard let entry = state.sets[index] else { return }
        state.sets[index] = nil
        state.counters.residentEntries -= 1
        if entry.isGlobal { state.globalEntries -= 1 }
        if entry.isPartial { state.partialEntries -= 1 }
        state.residentBySize[Int(entry.log2Bytes & 63)] -= 1
        if state.residentBySize[Int(entry.log2Bytes & 63)] == 0 { updateSizes(&state) }
    }

    private func updateSizes(_ state: inout State) {
        state.sizesPresent = (0..<64).filter { state.residentBySize[$0] > 0 }.map { UInt8($0) }
    }

    // MARK: Invalidating

    /// Removes what `scope` covers.
    ///
    /// - Parameter wildcard: Bits of the scope's VMID that need not match (SMMU_CR0.VMW).
    /// - Returns: How many entries went.
    @discardableResult
    func invalidate(_ scope: Scope, ignoringVMIDBits wildcard: UInt16 = 0) -> Int {
        generation.advance()
        guard setCount > 0 else { return 0 }
        return state.withLock { state in
            guard state.counters.residentEntries > 0 else { return 0 }
            let before = state.counters.residentEntries
            if case .address(let regime, let vmid, let asid, let addresses) = scope,
                wildcard == 0,
                // Entries that are parts may lie outside the addresses that a TLBI names.
                state.partialEntries == 0, let probes = probeCount(addresses, in: state), probes <= setCount
            {
                removeByProbing(regime, vmid: vmid, asid: asid, addresses, from: &state)
            } else {
                for index in state.sets.indices {
                    if let entry = state.sets[index], Self.covers(scope, entry, wildcard) {
                        remove(index, from: &state)
                    }
                }
            }
            let removed = before - state.counters.residentEntries
            state.counters.invalidatedEntries &+= UInt64(removed)
            return removed
        }
    }

    /// How many sets probing page by page would look at; nil where that is beyond counting.
    private func probeCount(_ addresses: AddressScope, in state: borrowing State) -> Int? {
        guard let smallest = state.sizesPresent.first else { return 0 }
        let pages = (addresses.last &- addresses.first) &>> UInt64(smallest)
        guard pages < 1 << 20 else { return nil }
        return (Int(pages) + 2) * state.sizesPresent.count
    }

    private func removeByProbing(
        _ regime: TranslationRegime,
        vmid: UInt16,
        asid: UInt16,
        _ addresses: AddressScope,
        from state: inout State
    ) {
        let scope = Scope.address(regime, vmid: vmid, asid: asid, addresses)
        for log2Bytes in state.sizesPresent {
            let lastPage = addresses.last &>> UInt64(log2Bytes)
            var page = addresses.first &>> UInt64(log2Bytes)
            while page <= lastPage {
                for set in [
                    setIndex(page: page, asid: asid, vmid: vmid), setIndex(page: page, asid: 0, vmid: vmid),
                ] {
                    for way in set..<(set + Self.ways) {
                        if let entry = state.sets[way], Self.covers(scope, entry, 0) {
                            remove(way, from: &state)
                        }
                    }
                }
                page &+= 1
            }
        }
    }

    private static func covers(_ scope: Scope, _ entry: CachedTranslation, _ wildcard: UInt16) -> Bool {
        func matches(_ vmid: UInt16) -> Bool { (entry.tag.vmid ^ vmid) & ~wildcard == 0 }
        return switch scope {
        case .everything:
            true
        case .regimes(let regimes):
            regimes.contains(entry.tag.regime)
        case .vmid(let regimes, let vmid):
            regimes.contains(entry.tag.regime) && matches(vmid)
        case .asid(let regime, let vmid, let asid):
            entry.tag.regime == regime && matches(vmid) && !entry.isGlobal && entry.tag.asid == asid
        case .address(let regime, let vmid, let asid, let addresses):
            entry.tag.regime == regime && matches(vmid) && (entry.isGlobal || entry.tag.asid == asid)
                && covers(addresses, entry)
        case .addressAllASIDs(let regime, let vmid, let addresses):
            entry.tag.regime == regime && matches(vmid) && covers(addresses, entry)
        }
    }

    private static func covers(_ addresses: AddressScope, _ entry: CachedTranslation) -> Bool {
        if let granule = addresses.granule, granule != entry.granule { return false }
        if let level = addresses.level, level != entry.level { return false }
        // Any address of a page or block names all that is kept of it.
        let below: UInt64 = (1 &<< UInt64(entry.firstStageLog2Bytes)) &- 1
        return entry.inputBase & ~below <= addresses.last && addresses.first <= entry.inputBase | below
    }
}

/// Counts invalidations of every kind.
///
/// What is kept outside a cache's lock carries the generation at which it was found and is of no use at any
/// other.
final class InvalidationGeneration: Sendable {
    private let value = Atomic<UInt64>(1)

    /// Read it before looking up or fetching what is to be kept.
    ///
    /// Pairs with ``advance()``.
    @inline(__always)  // One load on the hit path.
    var current: UInt64 { value.load(ordering: .acquiring) }

    /// Makes everything that was found before worthless.
    ///
    /// Sequentially consistent: the waiter's membarrier that follows, and the lock that the caller takes
    /// next, order it before what they look at.
    func advance() { value.add(1, ordering: .sequentiallyConsistent) }
}
