// What a port asks for where it does not know: the TLB, a quick walk, and whether its configuration still holds.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// What a port keeps of a translation.
struct QuickTranslation {
    var output: UInt64
    /// How many bytes from there on it covers.
    var byteCount: UInt64
    /// What the page permits, for each kind of access as the device drives it.
    var permissions: Permissions
    /// Whether it goes by the invalidations of its region; see ``InvalidationGeneration``.
    var isOfRegion: Bool
}

/// Where a stream's STE is, and by which L1STD.
struct EntryLocation {
    /// What ``levelOneAddress`` is of a linear stream table: no address of a word.
    static let noLevelOne = UInt64.max

    /// Of the STE.
    var address: UInt64
    /// Of the L1STD, and what that was.
    var levelOneAddress = EntryLocation.noLevelOne
    var levelOneWord: UInt64 = 0
}

extension SMMUv3 {
    /// Translates for a port that knows its configuration, as ``translate(_:_:_:_:_:)`` does.
    ///
    /// - Returns: nil where that has to say what becomes of it.
    @inline(__always)  // By one caller, for each look-up that a port does not answer.
    func translateQuickly(
        _ address: UInt64,
        _ driven: EffectiveAccess,
        _ plan: UnsafePointer<StreamPlan>,
        _ generation: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) -> QuickTranslation? {
        let hasOverrides = plan.pointee.privCfg | plan.pointee.instCfg != 0
        let access =
            hasOverrides
            ? driven.overridden(privCfg: plan.pointee.privCfg, instCfg: plan.pointee.instCfg) : driven
        let found =
            plan.pointee.translatesStage1
            ? translateStage1Quickly(address, access, plan, generation, &accesses)
            : translateStage2Quickly(address, access, plan, generation, &accesses)
        guard var found else { return nil }
        if hasOverrides {
            found.permissions = incomingPermissions(
                found.permissions,
                privCfg: plan.pointee.privCfg,
                instCfg: plan.pointee.instCfg
            )
        }
        return found
    }

    @inline(__always)  // By one caller.
    private func translateStage1Quickly(
        _ input: UInt64,
        _ access: EffectiveAccess,
        _ plan: UnsafePointer<StreamPlan>,
        _ generation: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) -> QuickTranslation? {
        let address = plan.pointee.canonical(input)
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        // Without a plan the address may be another half's.
        guard half.pointee.isUsable, !half.pointee.refusesUnprivileged || access.isPrivileged else {
            return nil
        }
        var walk = makeQuickWalk(plan, .cached, generation)
        if walk.looksInTLB, let hit = translationCache.lookUp(address, tag: plan.pointee.tag) {
            guard hit.permissions.contains(access.required) else { return nil }
            let below = ~(UInt64.max &<< UInt64(hit.log2Bytes))
            return QuickTranslation(
                output: hit.outputBase | (address & below),
                byteCount: below &- (address & below) &+ 1,
                permissions: hit.permissions,
                isOfRegion: hit.isOfRegion
            )
        }
        let isDone = walkQuickly(address, access.required, &walk)
        walk.report(isDone, to: &accesses, counters)
        guard isDone else { return nil }
        if walk.fillsTLB { translationCache.fill(&walk, of: address, walkedAt: generation) }
        let below = ~(UInt64.max &<< walk.log2Bytes)
        return QuickTranslation(
            output: walk.output,
            byteCount: below &- (address & below) &+ 1,
            permissions: walk.permissions,
            isOfRegion: walk.isOfRegion
        )
    }

    /// The same where stage 2 is alone.
    @inline(never)  // Keeps the way of stage 1 small.
    private func translateStage2Quickly(
        _ address: UInt64,
        _ access: EffectiveAccess,
        _ plan: UnsafePointer<StreamPlan>,
        _ generation: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) -> QuickTranslation? {
        // IAS is the limit whether or not stage 1 is configured.
        guard plan.pointee.translatesStage2, address &>> UInt64(identification.inputAddressBits) == 0 else {
            return nil
        }
        var walk = makeQuickWalk(plan, .cached, generation)
        let isDone = stage2(address, access.required, isInput: true, &walk)
        walk.report(isDone, to: &accesses, counters)
        guard isDone else { return nil }
        let below = ~(UInt64.max &<< walk.second.log2Bytes)
        return QuickTranslation(
            output: walk.second.output,
            byteCount: below &- (address & below) &+ 1,
            permissions: walk.second.permissions,
            // A TLBI by IPA is for all regions.
            isOfRegion: true
        )
    }

    /// Where a stream's STE is, if that, the CD and an L1STD are all that its configuration depends on.
    ///
    /// - Returns: nil where the configuration has to be looked up as if it were new, as always where it is cached.
    func entryLocation(
        _ plan: UnsafePointer<StreamPlan>,
        _ streamID: StreamID,
        _ controls: TranslationControls
    ) -> EntryLocation? {
        let log2Count = min(controls.tableConfiguration.log2size, identification.idr1.sidsize)
        guard options.configurationCacheEntries == 0, plan.pointee.isOfTwoStructures,
            plan.pointee.isE2H == controls.isE2H,
            UInt64(streamID.rawValue) < 1 << UInt64(log2Count)
        else { return nil }
        guard let l1Address = levelOneAddress(streamID, controls) else {
            return EntryLocation(address: linearEntryAddress(streamID, controls))
        }
        // It may be another than the one that led to the plan: then so is the STE, and that is compared.
        var reader = busView.makeDescriptorReader()
        guard let word = reader.load(l1Address),
            let address = controls.entryAddress(streamID, by: L1STD(word: word))
        else { return nil }
        return EntryLocation(address: address, levelOneAddress: l1Address, levelOneWord: word)
    }

    /// Whether a configuration is still what memory says, where nothing of it is cached.
    ///
    /// - Parameters:
    ///   - entry: Where the STE is: of ``entryLocation(_:_:_:)``, by registers that have not changed since.
    ///   - generation: Before anything of it is read.
    /// - Returns: false where it has to be looked up as if it were new.
    func isUnchanged(
        _ plan: UnsafePointer<StreamPlan>,
        _ entry: EntryLocation,
        _ generation: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) -> Bool {
        var walk = makeQuickWalk(plan, .cached, generation)
        let isDone = isUnchanged(entry, &walk)
        walk.report(isDone, to: &accesses, counters)
        if isDone { accesses.fetchedStructures(walk.structures) }
        return isDone
    }

    /// The same within the look-up that needs it: what it takes is ``QuickWalk/structures``, and the rest of it is
    /// among the walks and descriptors.
    ///
    /// What the caches know of it by then is not counted as kept: whoever looks up the configuration as if it were new
    /// counts it.
    @inline(never)  // Once for each look-up without a cache.
    func isUnchanged(_ entry: EntryLocation, _ walk: inout QuickWalk) -> Bool {
        let plan = walk.plan
        if entry.levelOneAddress != EntryLocation.noLevelOne {
            guard walk.reader.load(entry.levelOneAddress) == entry.levelOneWord else { return false }
            walk.structures = 1
        }
        guard walk.reader.isEqual(entry.address, to: plan.pointee.ste) else { return false }
        walk.structures &+= 1
        if plan.pointee.translatesStage1 {
            var location = plan.pointee.contextAddress
            if plan.pointee.translatesStage2 {
                guard stage2(location, .unprivilegedRead, isInput: false, &walk) else { return false }
                location = walk.second.output
            }
            guard walk.reader.isEqual(location, to: plan.pointee.cd) else { return false }
            walk.structures &+= 1
            (walk.walksBefore, walk.descriptorsBefore) = (walk.walks, walk.descriptors)
            (walk.walksKept, walk.descriptorsKept) = (0, 0)
        }
        return true
    }

    /// Where a CD or L1CD is behind stage 2; nil where ``translateStage2(_:_:_:)`` has to say.
    func locateQuickly(
        _ ipa: UInt64,
        _ plan: UnsafePointer<StreamPlan>,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) -> UInt64? {
        guard !type(of: observer).hearsOfStructures else { return nil }
        var walk = makeQuickWalk(plan, lookup.policy, lookup.generation)
        let isDone = stage2(ipa, .unprivilegedRead, isInput: false, &walk)
        walk.report(isDone, to: &observer, counters)
        return isDone ? walk.second.output : nil
    }
}
