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
    /// What the first word of an entry is under the mask.
    private let value: UInt64
    private let mask: UInt64
    /// The same for global entries, which any ASID names.
    private let globalValue: UInt64
    private let globalMask: UInt64
    private let vmid: UInt64
    /// Bits of the VMID that have to match.
    private let vmidMask: UInt64
    /// nil is any address.
    private let addresses: TranslationCache.AddressScope?

    init(_ scope: TranslationCache.Scope, ignoringVMIDBits wildcard: UInt16) {
        let vmid: UInt16?
        var asid: UInt16?
        var namesGlobal = true
        switch scope {
        case .everything: (regimes, vmid, addresses) = (.all, nil, nil)
        case .regimes(let regimes): (self.regimes, vmid, addresses) = (regimes, nil, nil)
        case .vmid(let regimes, let named): (self.regimes, vmid, addresses) = (regimes, named, nil)
        case .addressAllASIDs(let regime, let named, let addresses):
            (regimes, vmid, self.addresses) = (.only(regime), named, addresses)
        case .asid(let regime, let named, let namedASID):
            (regimes, vmid, addresses) = (.only(regime), named, nil)
            (asid, namesGlobal) = (namedASID, false)
        case .address(let regime, let named, let namedASID, let addresses):
            (regimes, vmid, self.addresses) = (.only(regime), named, addresses)
            asid = namedASID
        }
        vmidMask = vmid == nil ? 0 : UInt64(~wildcard)
        self.vmid = UInt64(vmid ?? 0) & vmidMask
        // Of one regime alone, that is compared with the rest.
        let only = UInt64(truncatingIfNeeded: regimes.rawValue.trailingZeroBitCount) & 3
        let isOne = regimes.rawValue.nonzeroBitCount == 1
        let (regimeValue, regimeMask): (UInt64, UInt64) = isOne ? (only &<< 59, 3 &<< 59) : (0, 0)
        value = UInt64(asid ?? 0) &<< 42 | regimeValue
        mask = (asid == nil ? 0 : 0xFFFF &<< 42 | TLBEntry.globalBit) | regimeMask
        globalValue = namesGlobal ? TLBEntry.globalBit | regimeValue : value
        globalMask = namesGlobal ? TLBEntry.globalBit | regimeMask : mask
    }

    /// Whether an entry goes; not one that holds nothing.
    @inline(__always)  // Once for each entry that is looked at.
    func covers(_ entry: TLBEntry) -> Bool {
        let tag = entry.hot[0]
        // What most entries are told apart by, first.
        guard tag & mask == value || tag & globalMask == globalValue, tag != 0,
            regimes.contains(regime: UInt8(truncatingIfNeeded: tag &>> 59) & 3),
            TLBEntry.vmid(entry.hot[1]) & vmidMask == vmid
        else { return false }
        guard let addresses else { return true }
        return entry.isIn(addresses)
    }
}

extension TLBEntry.Words {
    @inline(__always)  // Once for each fill.
    var isGlobal: Bool { tag & TLBEntry.globalBit != 0 }

    @inline(__always)  // Likewise.
    var isPartial: Bool { output & TLBEntry.partialBit != 0 }
}

extension TLBEntry {
    // MARK: Parts of an entry, under the lock

    @inline(__always)  // Once for each entry that goes.
    var isGlobal: Bool { hot[0] & Self.globalBit != 0 }

    /// ``CachedTranslation/isPartial``.
    @inline(__always)  // Likewise.
    var isPartial: Bool { hot[1] & Self.partialBit != 0 }

    /// Whether it holds something that is counted as what these words hold.
    @inline(__always)  // Once for each fill.
    func isOfKind(_ other: Words) -> Bool {
        isValid && Self.log2Bytes(hot[0]) == Self.log2Bytes(other.tag)
            && (hot[0] ^ other.tag) & Self.globalBit == 0 && (hot[1] ^ other.output) & Self.partialBit == 0
    }

    /// Whether a TLBI by address names it, as far as addresses go.
    fileprivate func isIn(_ addresses: TranslationCache.AddressScope) -> Bool {
        // Any address of a page or block names all that is kept of it.
        let size = isPartial ? cold[1] & 0x3F : UInt64(truncatingIfNeeded: Self.log2Bytes(hot[0]))
        let below: UInt64 = (1 &<< size) &- 1
        let first = Self.first(hot[0]) & ~below
        guard first <= addresses.last, addresses.first <= first | below else { return false }
        return isOf(addresses.granule, addresses.level)
    }

    /// Whether it is of this granule and of a leaf at this level; nil is any.
    @inline(__always)  // Once for each entry that a TLBI by address finds.
    fileprivate func isOf(_ granule: Granule?, _ level: UInt8?) -> Bool {
        if let granule, cold[1] &>> 14 & 3 != Self.code(granule) { return false }
        if let level, cold[1] &>> 12 & 3 != UInt64(level) { return false }
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
        if case .address(let regime, let vmid, let asid, let addresses) = scope, wildcard == 0 {
            return invalidate(addresses, RegimeTag(regime: regime, vmid: vmid, asid: asid, aset: false))
        }
        return state.withLock { state in
            let removed = removeByScanning(TLBPattern(scope, ignoringVMIDBits: wildcard), from: &state)
            // Within the lock, for fills: one that comes before has been found by the removal, and one that comes
            // after finds the generation advanced. And last, for look-ups, which take no lock: what they found
            // before it went has a generation that is not current any more.
            generation.advanceTranslations()
            return removed
        }
    }

    /// The same by address.
    @inline(__always)  // What most CMD_TLBI_* are.
    private func invalidate(_ addresses: AddressScope, _ tag: RegimeTag) -> Int {
        state.withLock { state in
            let removed = state.counters.residentEntries > 0 ? remove(addresses, tag, from: &state) : 0
            // Within the lock and last, as above.
            if tag.regime == .nsEL1Stage2 {
                // Translations of both stages, by their virtual addresses, depend on it.
                generation.advanceTranslations()
            } else {
                generation.advanceTranslations(
                    first: addresses.first,
                    last: addresses.last,
                    asid: tag.asid,
                    vmid: tag.vmid
                )
            }
            return removed
        }
    }

    @inline(__always)  // As above.
    private func remove(_ addresses: AddressScope, _ tag: RegimeTag, from state: inout State) -> Int {
        let before = state.counters.residentEntries
        // Entries that are parts may lie outside the addresses that a TLBI names.
        guard state.partialEntries == 0, isWorthProbing(addresses, state) else {
            return removeByScanning(Self.pattern(addresses, tag), from: &state)
        }
        let key = TLBKey(tag)
        removeByProbing(addresses, key, from: &state)
        if state.globalEntries > 0 {
            removeGlobal(addresses, key, Self.pattern(addresses, tag), from: &state)
        }
        let removed = before - state.counters.residentEntries
        state.counters.invalidatedEntries &+= UInt64(removed)
        return removed
    }

    private static func pattern(_ addresses: AddressScope, _ tag: RegimeTag) -> TLBPattern {
        TLBPattern(.address(tag.regime, vmid: tag.vmid, asid: tag.asid, addresses), ignoringVMIDBits: 0)
    }

    private func removeByScanning(_ pattern: TLBPattern, from state: inout State) -> Int {
        let before = state.counters.residentEntries
        for part in 0..<partCount where residentByPart[part] > 0 {
            let first = part &* Self.partSize
            let end = min(first &+ Self.partSize, setCount &* Self.ways)
            var entry = entry(first)
            for index in first..<end {
                if pattern.covers(entry) { remove(index, from: &state) }
                entry = entry + 1
            }
        }
        let removed = before - state.counters.residentEntries
        state.counters.invalidatedEntries &+= UInt64(removed)
        return removed
    }

    /// Whether probing page by page looks at fewer sets than scanning.
    private func isWorthProbing(_ addresses: AddressScope, _ state: borrowing State) -> Bool {
        let sizes = words[0]
        guard sizes != 0 else { return true }
        guard TLBEntry.isSignExtended(addresses.first), TLBEntry.isSignExtended(addresses.last) else {
            return false
        }
        let pages = (addresses.last &- addresses.first) &>> UInt64(sizes.trailingZeroBitCount)
        guard pages < 1 << 20 else { return false }
        return (Int(pages) + 2) * sizes.nonzeroBitCount <= state.usedParts * (Self.partSize / Self.ways)
    }

    /// Removes entries of the key's own that hold these addresses.
    @inline(__always)  // As above.
    private func removeByProbing(_ addresses: AddressScope, _ key: TLBKey, from state: inout State) {
        var sizes = words[0]
        while sizes != 0 {
            let log2Bytes = UInt64(sizes.trailingZeroBitCount)
            sizes &= sizes &- 1
            var page = addresses.first &>> log2Bytes
            let lastPage = addresses.last &>> log2Bytes
            while page <= lastPage {
                let tag = key.own | TLBEntry.range(page, log2Bytes)
                let set = table.setIndex(page, key.mix) &* Self.ways
                for way in 0..<Self.ways where entry(set &+ way).hot[0] == tag {
                    let found = entry(set &+ way)
                    if TLBEntry.vmid(found.hot[1]) == key.vmid,
                        found.isOf(addresses.granule, addresses.level)
                    {
                        remove(set &+ way, from: &state)
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
                let set = table.setIndex(page, key.globalMix) &* Self.ways
                for way in 0..<Self.ways where pattern.covers(entry(set &+ way)) {
                    remove(set &+ way, from: &state)
                }
                page &+= 1
            }
        }
    }
}
