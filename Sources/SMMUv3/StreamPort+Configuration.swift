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

    /// The plan of ``configuration``, which is looked up again where something was invalidated meanwhile.
    ///
    /// - Returns: nil where the SMMU is not enabled, and for a translated transaction.
    @inline(__always)  // For each look-up that misses in the port.
    func currentPlan(
        _ address: IOVirtualAddress,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes,
        _ context: UInt64,
        _ generation: UInt64,
        _ accesses: inout LookupAccesses
    ) throws(TranslationFault) -> UnsafePointer<StreamPlan>? {
        if let known, known.generation == generation, known.context == context { return known.plan }
        guard !attributes.isTranslated else { return nil }
        return try lookUpPlan(self.transaction(address, kind, attributes), context, generation, &accesses)
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func lookUpPlan(
        _ transaction: Transaction,
        _ context: UInt64,
        _ generation: UInt64,
        _ accesses: inout LookupAccesses
    ) throws(TranslationFault) -> UnsafePointer<StreamPlan>? {
        let controls = smmu.currentControls()
        guard controls.isEnabled else { return nil }
        if let known, known.context == context, known.generation == 0,
            smmu.isUnchanged(known.plan, streamID, controls, &accesses)
        {
            return known.plan
        }
        let resolved = try smmu.resolveStream(
            transaction,
            controls,
            .cached,
            reusing: configuration,
            &accesses
        )
        // Where nothing is cached it is looked up each time: no generation is 0. Otherwise `generation` was read before
        // `controls.generation`: what is good for the one is good for the other.
        known = (resolved.plan, context, smmu.options.configurationCacheEntries > 0 ? generation : 0)
        if configuration !== resolved { configuration = resolved }
        return resolved.plan
    }

    /// The long way; in `resolved` where the SMMU is enabled and the transaction is not translated.
    func translateInContext(
        _ transaction: Transaction,
        _ resolved: ResolvedStream?,
        _ generation: UInt64,
        _ observer: inout LookupAccesses
    ) throws(TranslationFault) -> Translation {
        guard !transaction.attributes.isTranslated else {
            return try smmu.passTranslated(transaction, &observer)
        }
        guard let resolved else {
            return try smmu.translate(transaction, smmu.currentControls(), .cached, &observer)
        }
        return try smmu.translate(transaction, resolved, generation, .cached, isLong: true, &observer)
    }
}
