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
        case regimes(TranslationRegimes)
        /// CMD_TLBI_NH_ALL, S12_VMALL: one VMID in these regimes.
        case vmid(TranslationRegimes, UInt16)
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
    struct State: Sendable {
        /// How many resident entries there are of each log2 size: which sizes a look-up must probe.
        var residentBySize = InlineArray<64, Int>(repeating: 0)
        /// How many parts of the table have entries.
        var usedParts = 0
        var globalEntries = 0
        /// Entries that are a part of their first stage's page or block.
        var partialEntries = 0
        var counters = Counters()
    }

    /// How many entries one set holds.
    static let ways = TLBTable.ways
    let setCount: Int
    /// The entries, for those who keep the cache alive by other means.
    let table: TLBTable
    var words: UnsafeMutablePointer<UInt64> { table.words }
    private let mapping: UnsafeMutableRawBufferPointer
    /// How many entries are resident in each part of the table; under the lock.
    let residentByPart: UnsafeMutablePointer<Int>
    let partCount: Int
    private static let hugePageBytes = 2 << 20
    /// How many entries are a part of the table, whose resident entries are counted: what is empty is not scanned.
    static let partSize = 256
    /// Held by who changes entries; look-ups take no lock.
    let state = Mutex(State())
    /// Advanced by every invalidation, of translations and of configuration: what was looked up or walked at an older
    /// generation must not be kept.
    let generation: InvalidationGeneration
    /// Its counts.
    private let counts: InvalidationCounts

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
        let byteCount = TLBTable.byteCount(sets)
        // In small pages, a look-up at random in megabytes is a miss in the host's TLB, too.
        let isLarge = byteCount >= Self.hugePageBytes
        let mapped = UnsafeMutableRawBufferPointer(
            start: mmap(
                nil,
                isLarge ? byteCount + Self.hugePageBytes : byteCount,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS,
                -1,
                0
            ),
            count: isLarge ? byteCount + Self.hugePageBytes : byteCount
        )
        guard var memory = mapped.baseAddress, memory != MAP_FAILED else {
            preconditionFailure("no memory for a TLB of \(entryCount) entries")
        }
        if isLarge {
            memory = memory.alignedUp(toMultipleOf: Self.hugePageBytes)
            // Where the kernel has none, it is as before.
            _ = madvise(memory, byteCount, MADV_HUGEPAGE)
        }
        mapping = mapped
        table = TLBTable(words: memory.bindMemory(to: UInt64.self, capacity: byteCount / 8), setCount: sets)
        self.generation = generation
        counts = generation.counts
        partCount = (sets * Self.ways - 1) / Self.partSize + 1
        residentByPart = .allocate(capacity: partCount)
        residentByPart.initialize(repeating: 0, count: partCount)
    }

    deinit {
        munmap(mapping.baseAddress, mapping.count)
        residentByPart.deallocate()
    }

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
        // Without the lock, unless it changes each time that it is read.
        for _ in 0..<4 {
            guard let found = table.find(address, key) else { return nil }
            if let translation = table.translation(found) { return translation }
        }
        return state.withLock { _ in table.find(address, key).flatMap { entry($0.index).current } }
    }

    func entry(_ index: Int) -> TLBEntry { table.entry(index) }

    // MARK: Filling

    /// Keeps a translation, unless something was invalidated since the stamp was taken: then the tables may
    /// have been read before they changed, and keeping it would undo the invalidation.
    func fill(_ entry: borrowing CachedTranslation, walkedAt stamp: InvalidationStamp) {
        guard setCount > 0, TLBEntry.canHold(entry) else { return }
        let page = entry.inputBase &>> UInt64(entry.log2Bytes)
        keep(
            TLBEntry.Words(entry),
            table.setIndex(page, TLBKey.mix(entry.tag, isGlobal: entry.isGlobal)) &* Self.ways,
            Int(truncatingIfNeeded: page) & (Self.ways &- 1),
            isOfRegion: entry.isOfRegion,
            walkedAt: stamp
        )
    }

    /// As ``insert(_:_:_:into:)``, unless something was invalidated since.
    @inline(__always)  // By two callers.
    func keep(
        _ new: TLBEntry.Words,
        _ set: Int,
        _ best: Int,
        isOfRegion: Bool,
        walkedAt stamp: InvalidationStamp
    ) {
        state.withLock { state in
            // Invalidations advance the generation within this lock: equal here means that none has ended since the
            // walk began, and the next will find this entry.
            if counts.permitsKeeping(isOfRegion: isOfRegion, stamp) {
                insert(new, set, best, into: &state)
            } else {
                state.counters.overtakenFills &+= 1
            }
        }
    }

    /// - Parameters:
    ///   - set: The first entry of its set.
    ///   - best: Where in there it is best. Pages in a row are in ways in a row, where it can be: a long
    ///     transaction looks there first.
    @inline(__always)  // By two callers.
    private func insert(_ new: TLBEntry.Words, _ set: Int, _ best: Int, into state: inout State) {
        let first = self.entry(set)
        var (free, same) = (0, 0)
        for way in 0..<Self.ways {
            free |= (first + way).isValid ? 0 : 1 &<< way
            same |= (first + way).isSame(as: new) ? 1 &<< way : 0
        }
        var way = best
        if same != 0 {
            // Two threads missed on one page: the second fill replaces the first.
            way = same.trailingZeroBitCount
        } else if free == 0 {
            // Of pages that have all the same way in mind, another goes now and then.
            way = (way &+ Int(truncatingIfNeeded: state.counters.evictions &>> 6)) & (Self.ways &- 1)
            state.counters.evictions &+= 1
        } else if free &>> way & 1 == 0 {
            way = free.trailingZeroBitCount
        }
        let place = first + way
        state.counters.fills &+= 1
        if !place.isOfKind(new) {
            remove(set &+ way, from: &state)
            // Before the entry: who finds it must look for entries of its kind.
            account(for: new, at: set &+ way, in: &state)
        }
        table.write(new, at: set &+ way)
    }

    @inline(__always)  // By one caller.
    private func account(for new: TLBEntry.Words, at index: Int, in state: inout State) {
        state.counters.residentEntries &+= 1
        let part = index / Self.partSize
        residentByPart[part] &+= 1
        if residentByPart[part] == 1 { state.usedParts &+= 1 }
        if new.isGlobal {
            state.globalEntries &+= 1
            if state.globalEntries == 1 { smmud_store_u64(words + 1, 1) }
        }
        if new.isPartial { state.partialEntries &+= 1 }
        let size = TLBEntry.log2Bytes(new.tag)
        state.residentBySize[size] &+= 1
        if state.residentBySize[size] == 1 { smmud_store_u64(words, words[0] | 1 &<< UInt64(size)) }
    }

    @inline(__always)  // Once for each entry that goes.
    func remove(_ index: Int, from state: inout State) {
        let place = entry(index)
        guard place.isValid else { return }
        let (size, isGlobal, isPartial) = (TLBEntry.log2Bytes(place.hot[0]), place.isGlobal, place.isPartial)
        place.clear()
        state.counters.residentEntries &-= 1
        let part = index / Self.partSize
        residentByPart[part] &-= 1
        if residentByPart[part] == 0 { state.usedParts &-= 1 }
        if isGlobal {
            state.globalEntries &-= 1
            if state.globalEntries == 0 { smmud_store_u64(words + 1, 0) }
        }
        if isPartial { state.partialEntries &-= 1 }
        state.residentBySize[size] &-= 1
        if state.residentBySize[size] == 0 { smmud_store_u64(words, words[0] & ~(1 &<< UInt64(size))) }
    }
}
