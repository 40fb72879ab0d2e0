// What an invalidation removes from the TLB, and how it finds it: by comparing words, without decoding entries.

import CLinux
import SMMUv3Spec
import Synchronization

/// Some of the regimes.
struct TranslationRegimes: OptionSet, Sendable {
    let rawValue: UInt8

    init(rawValue: UInt8) { self.rawValue = rawValue }

    private init(_ regime: TranslationRegime) { rawValue = 1 &<< regime.rawValue }

    static let nsEL1 = TranslationRegimes(.nsEL1)
    static let nsEL1Stage2 = TranslationRegimes(.nsEL1Stage2)
    static let nsEL2 = TranslationRegimes(.nsEL2)
    static let nsEL2E2H = TranslationRegimes(.nsEL2E2H)
    static let all: TranslationRegimes = [.nsEL1, .nsEL1Stage2, .nsEL2, .nsEL2E2H]

    /// The one.
    @inline(__always)  // Once for each command.
    static func only(_ regime: TranslationRegime) -> TranslationRegimes { TranslationRegimes(regime) }

    /// Whether the regime of this raw value is one of them.
    @inline(__always)  // Once for each entry that is looked at.
    func contains(regime: UInt8) -> Bool { (rawValue &>> regime) & 1 != 0 }
}

/// A ``TranslationCache/Scope`` as entries are compared with it.
private struct TLBPattern {
    private let regimes: TranslationRegimes
    /// What the second word of an entry is under the mask.
    private let value: UInt64
    private let mask: UInt64
    /// The same for global entries, which any ASID names.
    private let globalValue: UInt64
    private let globalMask: UInt64
    /// nil is any address.
    private let addresses: TranslationCache.AddressScope?

    init(_ scope: TranslationCache.Scope, ignoringVMIDBits wildcard: UInt16) {
        let allASIDs: (UInt64, UInt64)
        switch scope {
        case .everything:
            (regimes, addresses) = (.all, nil)
            allASIDs = (1, 1)
        case .regimes(let regimes):
            (self.regimes, addresses) = (regimes, nil)
            allASIDs = (1, 1)
        case .vmid(let regimes, let vmid):
            (self.regimes, addresses) = (regimes, nil)
            allASIDs = TLBEntry.pattern(vmid: vmid, ignoring: wildcard)
        case .addressAllASIDs(let regime, let vmid, let addresses):
            (regimes, self.addresses) = (.only(regime), addresses)
            allASIDs = TLBEntry.pattern(vmid: vmid, ignoring: wildcard)
        case .asid(let regime, let vmid, let asid):
            (regimes, addresses) = (.only(regime), nil)
            (value, mask) = TLBEntry.pattern(vmid: vmid, ignoring: wildcard, asid: asid)
            (globalValue, globalMask) = (value, mask)
            return
        case .address(let regime, let vmid, let asid, let addresses):
            (regimes, self.addresses) = (.only(regime), addresses)
            (value, mask) = TLBEntry.pattern(vmid: vmid, ignoring: wildcard, asid: asid)
            (globalValue, globalMask) = TLBEntry.globalPattern(vmid: vmid, ignoring: wildcard)
            return
        }
        (value, mask) = allASIDs
        (globalValue, globalMask) = allASIDs
    }

    /// Whether an entry goes; not one that holds nothing.
    @inline(__always)  // Once for each entry that is looked at.
    func covers(_ entry: TLBEntry) -> Bool {
        let word = entry.words[1]
        guard word & mask == value || word & globalMask == globalValue,
            regimes.contains(regime: UInt8(truncatingIfNeeded: word &>> 7) & 3)
        else { return false }
        guard let addresses else { return true }
        return entry.isIn(addresses)
    }
}

extension TLBEntry {
    /// What word 1 of valid entries of a VMID is, under a mask.
    ///
    /// - Parameter wildcard: Bits of the VMID that need not match.
    fileprivate static func pattern(vmid: UInt16, ignoring wildcard: UInt16) -> (value: UInt64, mask: UInt64)
    {
        let mask: UInt64 = 1 | UInt64(~wildcard) &<< 27
        return ((1 | UInt64(vmid) &<< 27) & mask, mask)
    }

    /// The same of entries of an ASID, not of global ones.
    fileprivate static func pattern(vmid: UInt16, ignoring wildcard: UInt16, asid: UInt16) -> (
        value: UInt64, mask: UInt64
    ) {
        let (value, mask) = pattern(vmid: vmid, ignoring: wildcard)
        return (value | UInt64(asid) &<< 11, mask | 0xFFFF &<< 11 | 1 &<< 9)
    }

    /// The same of global entries.
    fileprivate static func globalPattern(vmid: UInt16, ignoring wildcard: UInt16) -> (
        value: UInt64, mask: UInt64
    ) {
        let (value, mask) = pattern(vmid: vmid, ignoring: wildcard)
        return (value | 1 &<< 9, mask | 1 &<< 9)
    }

    // MARK: Parts of an entry, under the lock

    /// ``CachedTranslation/log2Bytes``.
    var log2Bytes: Int { Int(truncatingIfNeeded: words[1] &>> 1) & 0x3F }

    var isGlobal: Bool { words[1] & 1 &<< 9 != 0 }

    /// ``CachedTranslation/isPartial``.
    var isPartial: Bool { (words[0] ^ words[1] &>> 1) & 0x3F != 0 }

    /// Whether a TLBI by address names it, as far as addresses go.
    fileprivate func isIn(_ addresses: TranslationCache.AddressScope) -> Bool {
        // Any address of a page or block names all that is kept of it.
        let below: UInt64 = (1 &<< (words[0] & 0x3F)) &- 1
        let first = words[0] & ~0xFFF & ~below
        guard first <= addresses.last, addresses.first <= first | below else { return false }
        return isOf(addresses.granule, addresses.level)
    }

    /// Whether it is of this granule and of a leaf at this level; nil is any.
    fileprivate func isOf(_ granule: Granule?, _ level: UInt8?) -> Bool {
        if let granule, words[2] &>> 10 & 3 != Self.code(granule) { return false }
        if let level, words[2] &>> 8 & 3 != UInt64(level) { return false }
        return true
    }
}

extension TranslationCache {
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
            let removed = state.counters.residentEntries > 0 ? remove(scope, wildcard, from: &state) : 0
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
        let before = state.counters.residentEntries
        // Entries that are parts may lie outside the addresses that a TLBI names.
        if case .address(let regime, let vmid, let asid, let addresses) = scope, wildcard == 0,
            state.partialEntries == 0, isWorthProbing(addresses, state)
        {
            let key = TLBKey(RegimeTag(regime: regime, vmid: vmid, asid: asid, aset: false))
            removeByProbing(addresses, key, from: &state)
            if state.globalEntries > 0 {
                let pattern = TLBPattern(scope, ignoringVMIDBits: wildcard)
                removeGlobal(addresses, key, pattern, from: &state)
            }
        } else {
            removeByScanning(TLBPattern(scope, ignoringVMIDBits: wildcard), from: &state)
        }
        let removed = before - state.counters.residentEntries
        state.counters.invalidatedEntries &+= UInt64(removed)
        return removed
    }

    private func removeByScanning(_ pattern: TLBPattern, from state: inout State) {
        var unseen = state.counters.residentEntries
        for part in state.residentByPart.indices where state.residentByPart[part] > 0 {
            let first = part * Self.partSize
            for index in first..<min(first + Self.partSize, setCount * Self.ways) where entry(index).isValid {
                if pattern.covers(entry(index)) { remove(entry(index), from: &state) }
                unseen -= 1
                if unseen == 0 { return }
            }
        }
    }

    /// Whether probing page by page looks at fewer sets than scanning.
    private func isWorthProbing(_ addresses: AddressScope, _ state: borrowing State) -> Bool {
        let sizes = words[0]
        guard sizes != 0 else { return true }
        let pages = (addresses.last &- addresses.first) &>> UInt64(sizes.trailingZeroBitCount)
        guard pages < 1 << 20 else { return false }
        return (Int(pages) + 2) * sizes.nonzeroBitCount <= state.usedParts * (Self.partSize / Self.ways)
    }

    /// Removes entries of the key's own that hold these addresses.
    private func removeByProbing(_ addresses: AddressScope, _ key: TLBKey, from state: inout State) {
        var sizes = words[0]
        while sizes != 0 {
            let log2Bytes = UInt64(sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            let own = key.own(log2Bytes)
            var page = addresses.first &>> log2Bytes
            let lastPage = addresses.last &>> log2Bytes
            while page <= lastPage {
                let set = set(page, key.mix)
                for way in 0..<Self.ways where (set + way).match(page &<< log2Bytes, own) != 0 {
                    if (set + way).isOf(addresses.granule, addresses.level) {
                        remove(set + way, from: &state)
                    }
                }
                page &+= 1
            }
        }
    }

    /// Removes global entries that hold these addresses, which are of any ASID and ASET.
    private func removeGlobal(
        _ addresses: AddressScope,
        _ key: TLBKey,
        _ pattern: TLBPattern,
        from state: inout State
    ) {
        var sizes = words[0]
        while sizes != 0 {
            let log2Bytes = UInt64(sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            var page = addresses.first &>> log2Bytes
            let lastPage = addresses.last &>> log2Bytes
            while page <= lastPage {
                let set = set(page, key.globalMix)
                for way in 0..<Self.ways where pattern.covers(set + way) { remove(set + way, from: &state) }
                page &+= 1
            }
        }
    }
}
