// The TLB: translations by what the architecture tags them with, invalidated exactly.

import BitFields
import CLinux
import Glibc
import SMMUv3Spec
import Synchronization

/// A set-associative cache of translations, shared by all streams of one SMMU.
///
/// Entries live until they are invalidated or evicted, as they would in silicon: that is how a missing TLBI
/// shows. Faults are never cached. Each look-up probes one set for every page or block size that is resident, and takes
/// no lock: see ``TLBEntry``.
//
// SAFETY of @unchecked Sendable: the words are accessed atomically, and written under the lock.
final class TranslationCache: @unchecked Sendable {
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

    /// What only fills and invalidations look at.
    private struct State: Sendable {
        /// How many resident entries there are of each log2 size: which sizes a look-up must probe.
        var residentBySize = [Int](repeating: 0, count: 64)
        var globalEntries = 0
        /// Entries that are a part of their first stage's page or block.
        var partialEntries = 0
        var nextVictim = 0
        var counters = Counters()
    }

    /// How many entries one set holds.
    static let ways = TLBTable.ways
    private let setCount: Int
    /// The entries, for those who keep the cache alive by other means.
    let table: TLBTable
    private var words: UnsafeMutablePointer<UInt64> { table.words }
    private let mappedBytes: Int
    /// Held by who changes entries; look-ups take no lock.
    private let state = Mutex(State())
    /// Advanced by every invalidation, of translations and of configuration: what was looked up or walked at an older
    /// generation must not be kept.
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
        mappedBytes = (TLBTable.headerWords + sets * Self.ways * TLBEntry.wordCount) * 8
        let memory = mmap(nil, mappedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let memory, memory != MAP_FAILED else {
            preconditionFailure("no memory for a TLB of \(entryCount) entries")
        }
        // A look-up at random in megabytes of small pages is a miss in the host's TLB, too.
        if mappedBytes >= 2 << 20 { _ = madvise(memory, mappedBytes, MADV_HUGEPAGE) }
        table = TLBTable(words: memory.bindMemory(to: UInt64.self, capacity: mappedBytes / 8), setCount: sets)
        self.generation = generation
    }

    deinit { munmap(words, mappedBytes) }

    var counters: Counters {
        var counters = state.withLock { $0.counters }
        counters.hits = smmud_load_u64(words + 8)
        counters.misses = smmud_load_u64(words + 9)
        return counters
    }

    // MARK: Looking up

    /// The translation of an address, with everything that is known of it.
    func lookUp(_ address: UInt64, tag: RegimeTag) -> CachedTranslation? {
        guard setCount > 0 else { return nil }
        let found = peek(address, tag: tag)
        smmud_add_u64(words + (found == nil ? 9 : 8), 1)
        return found
    }

    /// Looks without counting: for tools.
    func peek(_ address: UInt64, tag: RegimeTag) -> CachedTranslation? {
        guard setCount > 0 else { return nil }
        let key = TLBKey(tag)
        // Without the lock, unless the entry changes each time that it is read.
        for _ in 0..<4 {
            guard let (entry, word) = find(address, key) else { return nil }
            if let translation = entry.translation(matchedAt: word) { return translation }
        }
        return state.withLock { _ in find(address, key)?.entry.current }
    }

    @inline(__always)  // Once for each look-up.
    private func find(_ address: UInt64, _ key: borrowing TLBKey) -> (entry: TLBEntry, word: UInt64)? {
        table.find(address, key)
    }

    private func set(_ page: UInt64, _ mix: UInt64) -> TLBEntry { table.set(page, mix) }

    private func entry(_ index: Int) -> TLBEntry { TLBEntry(words: words + TLBTable.headerWords) + index }

    // MARK: Filling

    /// Keeps a translation, unless something was invalidated since the stamp was taken: then the tables may
    /// have been read before they changed, and keeping it would undo the invalidation.
    func fill(_ entry: CachedTranslation, walkedAt stamp: InvalidationStamp) {
        guard setCount > 0 else { return }
        state.withLock { state in
            // Invalidations advance the generation within this lock: equal here means that none has ended since the
            // walk began, and the next will find this entry.
            guard generation.permitsKeeping(entry, stamp) else {
                state.counters.overtakenFills &+= 1
                return
            }
            insert(entry, into: &state)
        }
    }

    private func insert(_ entry: CachedTranslation, into state: inout State) {
        let key = TLBKey(entry.tag)
        let set = set(entry.inputBase &>> UInt64(entry.log2Bytes), entry.isGlobal ? key.globalMix : key.mix)
        let new = TLBEntry.Words(entry)
        var chosen: TLBEntry?
        for way in 0..<Self.ways {
            let place = set + way
            if !place.isValid {
                if chosen == nil { chosen = place }
            } else if place.isSame(as: new) {
                // Two threads missed on one page: the second fill replaces the first.
                chosen = place
                break
            }
        }
        let place: TLBEntry
        if let chosen {
            place = chosen
        } else {
            place = set + (state.nextVictim & (Self.ways &- 1))
            state.nextVictim &+= 1
            state.counters.evictions &+= 1
        }
        remove(place, from: &state)
        // Before the entry: who finds it must look for entries of its kind.
        state.counters.fills &+= 1
        state.counters.residentEntries += 1
        if entry.isGlobal {
            state.globalEntries += 1
            if state.globalEntries == 1 { smmud_store_u64(words + 1, 1) }
        }
        if entry.isPartial { state.partialEntries += 1 }
        let size = Int(entry.log2Bytes & 63)
        state.residentBySize[size] += 1
        if state.residentBySize[size] == 1 { smmud_store_u64(words, words[0] | 1 &<< UInt64(size)) }
        place.write(new)
    }

    private func remove(_ place: TLBEntry, from state: inout State) {
        guard let entry = place.current else { return }
        place.clear()
        state.counters.residentEntries -= 1
        if entry.isGlobal {
            state.globalEntries -= 1
            if state.globalEntries == 0 { smmud_store_u64(words + 1, 0) }
        }
        if entry.isPartial { state.partialEntries -= 1 }
        let size = Int(entry.log2Bytes & 63)
        state.residentBySize[size] -= 1
        if state.residentBySize[size] == 0 { smmud_store_u64(words, words[0] & ~(1 &<< UInt64(size))) }
    }

    // MARK: Invalidating

    /// Removes what `scope` covers.
    ///
    /// - Parameter wildcard: Bits of the scope's VMID that need not match (SMMU_CR0.VMW).
    /// - Returns: How many entries went.
    @discardableResult
    func invalidate(_ scope: Scope, ignoringVMIDBits wildcard: UInt16 = 0) -> Int {
        guard setCount > 0 else {
            advanceGeneration(scope, wildcard)
            return 0
        }
        return state.withLock { state in
            let removed = remove(scope, wildcard, from: &state)
            // Within the lock, for fills: one that comes before has been found by the removal, and one that comes
            // after finds the generation advanced. And last, for look-ups, which take no lock: what they found
            // before it went has a generation that is not current any more.
            advanceGeneration(scope, wildcard)
            return removed
        }
    }

    private func advanceGeneration(_ scope: Scope, _ wildcard: UInt16) {
        if case .address(let regime, let vmid, let asid, let addresses) = scope, wildcard == 0,
            regime != .nsEL1Stage2
        {
            generation.advanceTranslations(
                first: addresses.first,
                last: addresses.last,
                asid: asid,
                vmid: vmid
            )
        } else {
            // Also by IPA: translations of both stages, by their virtual addresses, depend on it.
            generation.advanceTranslations()
        }
    }

    private func remove(_ scope: Scope, _ wildcard: UInt16, from state: inout State) -> Int {
        guard state.counters.residentEntries > 0 else { return 0 }
        let before = state.counters.residentEntries
        if case .address(let regime, let vmid, let asid, let addresses) = scope,
            wildcard == 0,
            // Entries that are parts may lie outside the addresses that a TLBI names.
            state.partialEntries == 0, isWorthProbing(addresses)
        {
            removeByProbing(regime, vmid: vmid, asid: asid, addresses, from: &state)
        } else {
            removeByScanning(scope, wildcard, from: &state)
        }
        let removed = before - state.counters.residentEntries
        state.counters.invalidatedEntries &+= UInt64(removed)
        return removed
    }

    private func removeByScanning(_ scope: Scope, _ wildcard: UInt16, from state: inout State) {
        var unseen = state.counters.residentEntries
        for index in 0..<(setCount * Self.ways) where entry(index).isValid {
            if let current = entry(index).current, Self.covers(scope, current, wildcard) {
                remove(entry(index), from: &state)
            }
            unseen -= 1
            if unseen == 0 { return }
        }
    }

    /// Whether probing page by page looks at fewer sets than there are.
    private func isWorthProbing(_ addresses: AddressScope) -> Bool {
        let sizes = words[0]
        guard sizes != 0 else { return true }
        let pages = (addresses.last &- addresses.first) &>> UInt64(sizes.trailingZeroBitCount)
        guard pages < 1 << 20 else { return false }
        return (Int(pages) + 2) * sizes.nonzeroBitCount <= setCount
    }

    private func removeByProbing(
        _ regime: TranslationRegime,
        vmid: UInt16,
        asid: UInt16,
        _ addresses: AddressScope,
        from state: inout State
    ) {
        let scope = Scope.address(regime, vmid: vmid, asid: asid, addresses)
        let key = TLBKey(RegimeTag(regime: regime, vmid: vmid, asid: asid, aset: false))
        var sizes = words[0]
        while sizes != 0 {
            let log2Bytes = UInt64(sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            var page = addresses.first &>> log2Bytes
            let lastPage = addresses.last &>> log2Bytes
            while page <= lastPage {
                removeCovered(by: scope, in: set(page, key.mix), from: &state)
                if state.globalEntries > 0 {
                    removeCovered(by: scope, in: set(page, key.globalMix), from: &state)
                }
                page &+= 1
            }
        }
    }

    @inline(__always)  // Most sets that are looked at hold nothing that is meant.
    private func removeCovered(by scope: Scope, in set: TLBEntry, from state: inout State) {
        for way in 0..<Self.ways where (set + way).isValid {
            if let current = (set + way).current, Self.covers(scope, current, 0) {
                remove(set + way, from: &state)
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
