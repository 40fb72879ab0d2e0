// From a transaction to an address: configuration, TLB, walk, permission, in the architecture's order.

package import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec

/// Where a transaction may go.
package struct Translation: Equatable, Sendable {
    /// The physical address of the transaction's first byte.
    package var output: PhysicalAddress
    /// How many bytes from there on this translation covers.
    package var byteCount: UInt64
    /// Whether it passed untranslated: SMMUEN == 0, STE.Config 0b100, or stage 1 skipped.
    package var isBypassed: Bool
    /// log2 of the page or block; 64 for a bypass.
    package var log2Bytes: UInt8
    /// The MAIR byte that the leaf selected; nil for a bypass.
    package var memoryAttribute: UInt8?
    /// SH[1:0] of the leaf; nil for a bypass.
    package var shareability: UInt8?
    /// Whether the TLB answered.
    package var isFromTLB: Bool
    /// What the page permits, for each kind of access as the device drives it, overrides applied.
    var incomingPermissions: Permissions
}

extension SMMUv3 {
    /// Translates one address.
    ///
    /// Records nothing: the caller does, because tools do not.
    func translate(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let address = transaction.address.rawValue
        guard controls.isEnabled else {
            observer.note("SMMU_CR0.SMMUEN is 0")
            if controls.bypassAborts { throw .silentAbort("SMMU_GBPA.ABORT is 1") }
            guard address < identification.outputAddressLimit else {
                throw .silentAbort(
                    "the address is beyond the \(identification.outputAddressBits)-bit output size"
                )
            }
            return bypass(address)
        }
        let resolved = try resolveStream(transaction, controls, policy, &observer)
        return try translate(transaction, resolved, controls.generation, policy, &observer)
    }

    /// The configuration of a stream and SubstreamID, checked: what does not depend on address, direction or
    /// privilege.
    ///
    /// For an SMMU that is enabled. The result is good for as long as nothing is invalidated after
    /// `controls.generation`.
    func resolveStream(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> ResolvedStream {
        let ste = try fetchSTE(transaction, controls, policy, &observer)
        let stream = try configuration(of: ste, transaction)
        let outcome = try resolve(stream, transaction, controls, policy, &observer)
        return ResolvedStream(stream: stream, outcome: outcome)
    }

    /// Translates one address in a configuration.
    ///
    /// - Parameter generation: The invalidation generation before `resolved` was looked up.
    func translate(
        _ transaction: Transaction,
        _ resolved: ResolvedStream,
        _ generation: UInt64,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let stream = resolved.stream
        let access = EffectiveAccess(transaction).overridden(by: stream)
        switch resolved.outcome {
        case .bypass:
            guard transaction.address.rawValue < identification.outputAddressLimit else {
                throw bypassAddressSizeFault(transaction, access)
            }
            observer.note("stage 1 is bypassed: the address passes as it is")
            return bypass(transaction.address.rawValue)
        case .stage1(let context):
            let tag = RegimeTag(
                world: stream.world,
                vmid: stream.vmid,
                asid: context.asid,
                aset: context.aset
            )
            let input = WalkInput(transaction: transaction, access: access, context: context, tag: tag)
            return try translateStage1(input, stream, generation, policy, &observer)
        }
    }

    private func translateStage1(
        _ input: WalkInput,
        _ stream: StreamConfiguration,
        _ generation: UInt64,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let address = input.context.canonical(input.transaction.address.rawValue)
        let entry: CachedTranslation
        var isFromTLB = false
        if policy == .cached, let hit = translationCache.lookUp(address, tag: input.tag) {
            entry = hit
            isFromTLB = true
        } else {
            entry = try walkStage1(input, &observer)
            if policy == .cached { translationCache.fill(entry, walkedAt: generation) }
        }
        guard entry.permissions.contains(input.access.required) else {
            throw translationFault(.fPermission, input, "the page does not permit \(describe(input.access))")
        }
        let mask: UInt64 = (1 &<< UInt64(entry.log2Bytes)) &- 1
        return Translation(
            output: PhysicalAddress(entry.output(for: address)),
            byteCount: mask &- (address & mask) &+ 1,
            isBypassed: false,
            log2Bytes: entry.log2Bytes,
            memoryAttribute: entry.memoryAttribute,
            shareability: entry.shareability,
            isFromTLB: isFromTLB,
            incomingPermissions: incomingPermissions(entry.permissions, stream)
        )
    }

    private func bypass(_ address: UInt64) -> Translation {
        Translation(
            output: PhysicalAddress(address),
            byteCount: identification.outputAddressLimit &- address,
            isBypassed: true,
            log2Bytes: 64,
            memoryAttribute: nil,
            shareability: nil,
            isFromTLB: false,
            incomingPermissions: .all
        )
    }

    /// An input address beyond OAS in bypass: a stage-1 F_ADDR_SIZE that always aborts and is always recorded.
    private func bypassAddressSizeFault(_ transaction: Transaction, _ access: EffectiveAccess)
        -> TranslationFault
    {
        .abort(
            .translationRelated(
                .fAddrSize,
                streamID: transaction.streamID,
                substreamID: transaction.attributes.substreamID,
                pnu: access.isPrivileged,
                ind: access.isInstruction,
                rnw: !access.isWrite,
                s2: false,
                eventClass: .in,
                inputAddress: transaction.address.rawValue,
                ipa: 0
            ),
            "the address is beyond the \(identification.outputAddressBits)-bit output size"
        )
    }

    /// Permissions by what the device drives rather than by what the overrides make of it.
    private func incomingPermissions(_ permissions: Permissions, _ stream: StreamConfiguration) -> Permissions
    {
        guard stream.privCfg != 0 || stream.instCfg != 0 else { return permissions }
        var result = Permissions()
        for isPrivileged in [false, true] {
            for (isWrite, isInstruction) in [(false, false), (true, false), (false, true)] {
                let incoming = EffectiveAccess(
                    isWrite: isWrite,
                    isPrivileged: isPrivileged,
                    isInstruction: isInstruction
                )
                if permissions.contains(incoming.overridden(by: stream).required) {
                    result.insert(incoming.required)
                }
            }
        }
        return result
    }

    private func describe(_ access: EffectiveAccess) -> String {
        let privilege = access.isPrivileged ? "privileged" : "unprivileged"
        let kind = access.isWrite ? "writes" : access.isInstruction ? "instruction fetches" : "reads"
        return "\(privilege) \(kind)"
    }
}

extension Translation {
    /// What the page permits to transactions of this privilege, overrides of the STE applied.
    package func permitted(isPrivileged: Bool) -> (read: Bool, write: Bool, execute: Bool) {
        isPrivileged
            ? (
                incomingPermissions.contains(.privilegedRead), incomingPermissions.contains(.privilegedWrite),
                incomingPermissions.contains(.privilegedExecute)
            )
            : (
                incomingPermissions.contains(.unprivilegedRead),
                incomingPermissions.contains(.unprivilegedWrite),
                incomingPermissions.contains(.unprivilegedExecute)
            )
    }
}
