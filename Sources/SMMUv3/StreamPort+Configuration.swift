// What a port knows of its configuration, and how it finds it again.

import AddressSpace
import DeviceModel
import SMMUv3Spec

extension StreamPort {
    func transaction(
        _ address: IOVirtualAddress,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes
    ) -> Transaction {
        Transaction(
            streamID: streamID,
            attributes: attributes.isTranslated ? TransactionAttributes(isTranslated: true) : attributes,
            kind: kind,
            address: address
        )
    }

    /// The plan of the configuration, which is looked up again where something of that was invalidated meanwhile.
    ///
    /// - Returns: nil where the SMMU is not enabled, and for a translated transaction.
    @inline(__always)  // For each look-up that misses in the TLB.
    func currentPlan(
        _ address: IOVirtualAddress,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes,
        _ context: UInt64,
        _ stamp: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) throws(TranslationFault) -> UnsafePointer<StreamPlan>? {
        if known.pointee.isGood(context, stamp) { return known.pointee.plan }
        guard !attributes.isTranslated else { return nil }
        return try lookUpPlan(self.transaction(address, kind, attributes), context, stamp, &accesses)
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func lookUpPlan(
        _ transaction: Transaction,
        _ context: UInt64,
        _ stamp: InvalidationStamp,
        _ accesses: inout LookupAccesses
    ) throws(TranslationFault) -> UnsafePointer<StreamPlan>? {
        // Where the STE is says what the registers were; they are read again where any of them has changed.
        if known.pointee.context == context, known.pointee.generation == 0, let plan = known.pointee.plan,
            known.pointee.entryGeneration == stamp.configuration, let entry = known.pointee.entry,
            smmu.isUnchanged(plan, entry, stamp, &accesses)
        {
            return plan
        }
        let controls = smmu.currentControls()
        guard controls.isEnabled else { return nil }
        let resolved = try smmu.resolveStream(
            transaction,
            controls,
            .cached,
            reusing: known.pointee.resolved,
            &accesses
        )
        known.pointee.plan = resolved.plan
        known.pointee.entry = smmu.entryLocation(resolved.plan, streamID, controls)
        known.pointee.entryGeneration = controls.generation.configuration
        known.pointee.context = context
        // Where nothing is cached it is looked up each time: no count is 0. Otherwise the stamp was taken before
        // `controls.generation`: what is good for the one is good for the other.
        known.pointee.generation = smmu.options.configurationCacheEntries > 0 ? stamp.configuration : 0
        if known.pointee.resolved !== resolved { known.pointee.resolved = resolved }
        return resolved.plan
    }

    /// The long way; in `resolved` where the SMMU is enabled and the transaction is not translated.
    func translateInContext(
        _ transaction: Transaction,
        _ resolved: ResolvedStream?,
        _ stamp: InvalidationStamp,
        _ observer: inout LookupAccesses
    ) throws(TranslationFault) -> Translation {
        guard !transaction.attributes.isTranslated else {
            return try smmu.passTranslated(transaction, &observer)
        }
        guard let resolved else {
            return try smmu.translate(transaction, smmu.currentControls(), .cached, &observer)
        }
        return try smmu.translate(transaction, resolved, stamp, .cached, isLong: true, &observer)
    }
}
