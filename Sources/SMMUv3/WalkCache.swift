// The walk cache: where tables are, so that a walk need not begin at the first.

import BitFields
import CLinux
import Glibc
import SMMUv3Spec
import Synchronization

/// Addresses of translation tables, by what they translate: the results of the upper steps of walks.
///
/// An entry says of one table descriptor what it pointed at when it was read, with the hierarchical attributes of it
/// and of those above it. Like the TLB's, entries live until they are invalidated or replaced, so that a driver that
/// changes a table descriptor and forgets the CMD_TLBI shows. They are tagged with world, VMID, ASID and ASET; the
/// architecture has no global ones above the last level. Where stage 2 translates stage 1's tables, an entry holds
/// where the table is behind both stages; CMD_TLBI_S2_IPA leaves it, as it leaves the TLB's entries of both stages.
///
/// A look-up takes no lock and writes nothing: each entry is a sequence lock of its own. What an invalidation has
/// overtaken is not kept, see ``InvalidationGeneration``.
// SAFETY of @unchecked Sendable: all words are accessed atomically, and written under the lock.
final class WalkCache: @unchecked Sendable {
    /// A table from which a walk may go on.
    struct Table: Equatable {
        /// The table's address: a physical one.
        var address: UInt64
        /// log2 of what the table covers.
        var log2Bytes: UInt64
        /// The hierarchical attributes above it, where a descriptor has them.
        var hierarchical: UInt64
    }

    /// Whose tables they are: a word that entries are compared by.
    struct Tag: Equatable, Sendable {
        fileprivate let word: UInt64
        fileprivate let hash: UInt64

        /// - Parameter isNested: Whether stage 2 translates the tables' addresses.
        init(_ tag: RegimeTag, isNested: Bool) {
            self.init(tag.regime, vmid: tag.vmid, asid: tag.asid, aset: tag.aset, isNested: isNested)
        }

        /// Nobody's.
        static let none = Tag(word: 0, hash: 0)

        private init(word: UInt64, hash: UInt64) { (self.word, self.hash) = (word, hash) }

        fileprivate init(
            _ regime: TranslationRegime,
            vmid: UInt16,
            asid: UInt16,
            aset: Bool,
            isNested: Bool
        ) {
            word =
                1 &<< 63 | UInt64(asid) &<< 32 | UInt64(vmid) &<< 16 | (aset ? 0x200 : 0)
                | (isNested ? 0x100 : 0) | UInt64(regime.rawValue)
            hash = word &* 0x9E37_79B9_7F4A_7C15
        }
    }

    /// The parts of a tag that an invalidation looks at.
    private struct Owner {
        let word: UInt64
        var isResident: Bool { word &>> 63 != 0 }
        var regime: UInt8 { UInt8(truncatingIfNeeded: word) }
        var vmid: UInt16 { UInt16(truncatingIfNeeded: word &>> 16) }
        var asid: UInt16 { UInt16(truncatingIfNeeded: word &>> 32) }
    }

    /// Where the words of an entry are.
    private enum Word {
        /// Odd while somebody writes the others.
        static let sequence = 0
        /// The first address that the table covers, and log2 of how many in the low bits.
        static let key = 1
        static let tag = 2
        /// The table's address, and the hierarchical attributes in the low bits.
        static let table = 3
        static let count = 4
    }

    /// Two entries make a set, which is a cache line.
    private static let ways = 2
    private let setCount: UInt64
    private let words: UnsafeMutablePointer<UInt64>
    private let generation: InvalidationGeneration
    /// Held by who changes entries; look-ups take no lock.
    private let writing = Mutex(())
    /// Bit n: there may be tables that cover 2^n bytes.
    private let sizesPresent: UnsafeMutablePointer<UInt64>

    /// Builds an empty cache.
    ///
    /// - Parameters:
    ///   - entryCount: How many tables to hold; rounded up to a power of two. 0 holds none.
    ///   - generation: The SMMU's count of invalidations.
    init(entryCount: Int, generation: InvalidationGeneration) {
        var sets = 0
        if entryCount > 0 {
            sets = 1
            while sets * Self.ways < entryCount { sets *= 2 }
        }
        setCount = UInt64(sets)
        self.generation = generation
        let lineBytes = 64
        // Zeroed, and not touched: a machine with many SMMUs has what it uses.
        guard let memory = calloc((sets + 2) * lineBytes, 1) else {
            preconditionFailure("no memory for a walk cache of \(entryCount) entries")
        }
        allocation = memory
        let start = (UInt(bitPattern: memory) + 63) & ~63
        sizesPresent = memory.advanced(by: Int(start - UInt(bitPattern: memory))).assumingMemoryBound(
            to: UInt64.self
        )
        words = sizesPresent + 8
    }

    private let allocation: UnsafeMutableRawPointer

    deinit { free(allocation) }

    /// Whether it can hold anything.
    @inline(__always)  // Once for each walk.
    var isEnabled: Bool { setCount != 0 }

    // MARK: Looking up

    /// The table that is furthest on the way to `address`.
    ///
    /// - Parameters:
    ///   - smallest: log2 of what a table of the last level covers.
    ///   - stride: How many address bits one level resolves.
    ///   - largest: log2 of what a table of the second level covers; the first needs no look-up.
    func lookUp(_ address: UInt64, _ tag: Tag, smallest: UInt64, stride: UInt64, largest: UInt64) -> Table? {
        guard isEnabled else { return nil }
        var size = smallest
        while size <= largest {
            if let table = lookUp(address, tag, smallest: size) { return table }
            size &+= stride
        }
        return nil
    }

    /// The table on the way to `address` that covers 2^`smallest` bytes.
    @inline(__always)  // By one caller.
    private func lookUp(_ address: UInt64, _ tag: Tag, smallest: UInt64) -> Table? {
        let key = address & (UInt64.max &<< smallest) | smallest
        let set = entries(key, tag)
        guard let word = table(at: set, key, tag.word) ?? table(at: set + Word.count, key, tag.word) else {
            return nil
        }
        return Table(address: word & ~0xFFF, log2Bytes: smallest, hierarchical: (word & 0xF) &<< 59)
    }

    /// A table of pages of 4 KiB on the way to `address`.
    ///
    /// Only where the cache ``isEnabled``.
    ///
    /// - Returns: Its address, and the hierarchical attributes above it, the bits beside which do not count.
    @inline(__always)  // Once for each walk.
    func lastTable4KiB(_ address: UInt64, _ tag: Tag) -> (address: UInt64, hierarchical: UInt64)? {
        let key = address & ~0x1F_FFFF | 21
        let set = entries(key, tag)
        guard let word = table(at: set, key, tag.word) ?? table(at: set + Word.count, key, tag.word) else {
            return nil
        }
        return (word & ~0xFFF, word &<< 59)
    }

    @inline(__always)  // As above.
    private func entries(_ key: UInt64, _ tag: Tag) -> UnsafeMutablePointer<UInt64> {
        let hash = (key ^ tag.hash) &* 0x9E37_79B9_7F4A_7C15
        let set = (hash &>> 40) & (setCount &- 1)
        return words + Int(truncatingIfNeeded: set &* UInt64(Self.ways * Word.count))
    }

    /// What an entry holds where it is the one that is sought.
    @inline(__always)  // As above.
    private func table(at entry: UnsafeMutablePointer<UInt64>, _ key: UInt64, _ tag: UInt64) -> UInt64? {
        let sequence = smmud_load_u64(entry + Word.sequence)
        guard smmud_load_u64(entry + Word.key) == key, smmud_load_u64(entry + Word.tag) == tag else {
            return nil
        }
        let table = smmud_load_u64(entry + Word.table)
        // Odd, or another by now: somebody has written meanwhile. An odd one is greater then.
        guard smmud_load_u64(entry + Word.sequence) == sequence & ~1 else { return nil }
        return table
    }

    // MARK: Filling

    /// Keeps a table, unless something was invalidated since the stamp was taken.
    @inline(never)  // Once for each table that was not known.
    func insert(_ table: Table, for address: UInt64, _ tag: Tag, walkedAt stamp: InvalidationStamp) {
        guard isEnabled else { return }
        let key = address & (UInt64.max &<< table.log2Bytes) | table.log2Bytes
        writing.withLock { _ in
            // Invalidations advance the generation within this lock, after they have removed what they cover: what a
            // walk found by an entry that went is not kept, nor is what it read before.
            guard generation.permitsKeepingTables(stamp) else { return }
            let present = smmud_load_u64(sizesPresent)
            if present & (1 &<< table.log2Bytes) == 0 {
                smmud_store_u64(sizesPresent, present | 1 &<< table.log2Bytes)
            }
            let entry = victim(in: entries(key, tag), key, tag.word)
            let sequence = smmud_load_u64(entry)
            smmud_store_u64(entry, sequence &+ 1)
            smmud_store_u64(entry + Word.key, key)
            smmud_store_u64(entry + Word.tag, tag.word)
            smmud_store_u64(entry + Word.table, table.address & ~0xFFF | (table.hierarchical &>> 59) & 0xF)
            smmud_store_u64(entry, sequence &+ 2)
        }
    }

    /// The entry of a set that is to make room: one with the same key, one that is empty, or either in turn.
    private func victim(in set: UnsafeMutablePointer<UInt64>, _ key: UInt64, _ tag: UInt64)
        -> UnsafeMutablePointer<UInt64>
    {
        let other = set + Word.count
        func holds(_ entry: UnsafeMutablePointer<UInt64>) -> Bool {
            smmud_load_u64(entry + Word.key) == key && smmud_load_u64(entry + Word.tag) == tag
        }
        if holds(set) { return set }
        if holds(other) { return other }
        guard smmud_load_u64(set + Word.tag) != 0 else { return set }
        guard smmud_load_u64(other + Word.tag) != 0 else { return other }
        return (smmud_load_u64(set) &+ smmud_load_u64(other)) & 2 == 0 ? set : other
    }

    // MARK: Invalidating

    /// Removes what a TLBI covers; one with Leaf == 1 covers no table, and need not come here.
    ///
    /// Before the TLB's invalidation. TTL hints are not looked at: they are about leaves.
    ///
    /// - Parameter wildcard: Bits of the scope's VMID that need not match (SMMU_CR0.VMW).
    func invalidate(_ scope: TranslationCache.Scope, ignoringVMIDBits wildcard: UInt16 = 0) {
        guard isEnabled else { return }
        writing.withLock { _ in
            remove(scope, wildcard)
            generation.advanceTables()
        }
    }

    private func remove(_ scope: TranslationCache.Scope, _ wildcard: UInt16) {
        let present = smmud_load_u64(sizesPresent)
        guard present != 0 else { return }
        if case .address(let regime, let vmid, let asid, let addresses) = scope, wildcard == 0,
            probeCount(addresses, present) <= setCount
        {
            // By command neither ASET nor what stage 2 has to do with it matters; stage 2's own tables have neither.
            for variant in 0..<(regime == .nsEL1Stage2 ? 1 : regime == .nsEL1 ? 4 : 2) {
                let tag = Tag(
                    regime,
                    vmid: vmid,
                    asid: asid,
                    aset: variant & 1 != 0,
                    isNested: variant & 2 != 0
                )
                removeByProbing(addresses, tag, scope, present)
            }
            return
        }
        for index in 0..<(Int(setCount) * Self.ways) {
            remove(at: words + index * Word.count, where: scope, wildcard)
        }
    }

    /// How many sets probing would look at, or many.
    private func probeCount(_ addresses: TranslationCache.AddressScope, _ present: UInt64) -> UInt64 {
        let smallest = UInt64(present.trailingZeroBitCount)
        let tables = (addresses.last &- addresses.first) &>> smallest
        return (min(tables, 1 &<< 20) &+ 2) &* UInt64(present.nonzeroBitCount)
    }

    private func removeByProbing(
        _ addresses: TranslationCache.AddressScope,
        _ tag: Tag,
        _ scope: TranslationCache.Scope,
        _ present: UInt64
    ) {
        var sizes = present
        while sizes != 0 {
            let size = UInt64(sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            let last = addresses.last &>> size
            var block = addresses.first &>> size
            while true {
                let set = entries(block &<< size | size, tag)
                remove(at: set, where: scope, 0)
                remove(at: set + Word.count, where: scope, 0)
                guard block < last else { break }
                block &+= 1
            }
        }
    }

    /// Empties an entry where `scope` covers it.
    private func remove(
        at entry: UnsafeMutablePointer<UInt64>,
        where scope: TranslationCache.Scope,
        _ wildcard: UInt16
    ) {
        let owner = Owner(word: smmud_load_u64(entry + Word.tag))
        guard owner.isResident, Self.covers(scope, owner, smmud_load_u64(entry + Word.key), wildcard) else {
            return
        }
        let sequence = smmud_load_u64(entry)
        smmud_store_u64(entry, sequence &+ 1)
        smmud_store_u64(entry + Word.tag, 0)
        smmud_store_u64(entry, sequence &+ 2)
    }

    private static func covers(
        _ scope: TranslationCache.Scope,
        _ owner: Owner,
        _ key: UInt64,
        _ wildcard: UInt16
    ) -> Bool {
        func matches(_ vmid: UInt16) -> Bool { (owner.vmid ^ vmid) & ~wildcard == 0 }
        return switch scope {
        case .everything:
            true
        case .regimes(let regimes):
            regimes.contains(regime: owner.regime)
        case .vmid(let regimes, let vmid):
            matches(vmid) && regimes.contains(regime: owner.regime)
        case .asid(let regime, let vmid, let asid):
            owner.regime == regime.rawValue && matches(vmid) && owner.asid == asid
        case .address(let regime, let vmid, let asid, let addresses):
            owner.regime == regime.rawValue && matches(vmid) && owner.asid == asid && covers(addresses, key)
        case .addressAllASIDs(let regime, let vmid, let addresses):
            owner.regime == regime.rawValue && matches(vmid) && covers(addresses, key)
        }
    }

    /// Whether any address that a table covers is meant.
    private static func covers(_ addresses: TranslationCache.AddressScope, _ key: UInt64) -> Bool {
        let size = key & 0x3F
        if let granule = addresses.granule {
            // A table covers a page and a whole number of strides.
            guard (Int(size) - granule.log2Bytes) % granule.stride == 0 else { return false }
        }
        let below: UInt64 = (1 &<< size) &- 1
        return key & ~below <= addresses.last && addresses.first <= key | below
    }

    /// How many tables are kept: for people.
    var residentCount: Int {
        (0..<Int(setCount) * Self.ways).reduce(0) { count, index in
            count + (smmud_load_u64(words + index * Word.count + Word.tag) != 0 ? 1 : 0)
        }
    }
}
