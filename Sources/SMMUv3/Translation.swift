// From a transaction to an address: configuration, TLB, walk, permission, in the architecture's order.

package import AddressSpace
import BitFields
import DeviceModel
package import SMMUv3Spec

/// Where a transaction may go.
package struct Translation: Equatable, Sendable {
    /// The physical address of the transaction's first byte.
    package var output: PhysicalAddress
    /// How many bytes from there on this translation covers.
    package var byteCount: UInt64
    /// Which stages translated; ``StreamConfig/bypass`` where none did: SMMUEN == 0, STE.Config 0b100, or stage 1
    /// skipped.
    package var stages: StreamConfig
    /// The IPA of the transaction's first byte, where both stages translated.
    package var intermediate: UInt64?
    /// log2 of the page or block, the smaller where both stages have one; 64 for a bypass.
    package var log2Bytes: UInt8
    /// What ``attributes`` is made of.
    var attributeSource: AttributeSource
    /// Whether it goes to the bus as privileged.
    package var isPrivileged: Bool
    /// Whether it goes to the bus as an instruction fetch.
    package var isInstruction: Bool
    /// PARTID and PMG that go to the bus with the transaction, where SMMU_IDR3.MPAM says that there are any.
    package var mpam = MPAMIdentity()
    /// Whether the TLB answered.
    package var isFromTLB: Bool
    /// What the page permits, for each kind of access as the device drives it, overrides applied.
    var incomingPermissions: Permissions
    /// Whether it goes by the invalidations of its region; see ``InvalidationGeneration``.
    var isOfRegion = false

    /// Whether it passed untranslated.
    package var isBypassed: Bool { stages == .bypass }

    /// The memory attributes that go to the bus with the transaction.
    ///
    /// Worked out when asked for: nothing on the way of a transaction depends on them.
    package var attributes: MemoryAttributes {
        switch attributeSource {
        case .bus(let attributes): attributes.outgoing
        case .stage1(let own, let incoming): own.combined(withHintsOf: incoming).outgoing
        case .stage2(let incoming, let memAttr, let sh, let forcesWriteBack):
            incoming.combined(memAttr: memAttr, sh: sh, forcesWriteBack: forcesWriteBack).outgoing
        }
    }

    /// Where memory attributes come from.
    enum AttributeSource: Equatable, Sendable {
        /// No stage: the bus's, with overrides.
        case bus(MemoryAttributes)
        /// A stage-1 leaf's, with stage 2's in them, and the hints of the incoming ones.
        case stage1(MemoryAttributes, incoming: MemoryAttributes)
        /// A stage-2 leaf's on top of the incoming ones.
        case stage2(incoming: MemoryAttributes, memAttr: UInt8, sh: UInt8, forcesWriteBack: Bool)
    }
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
        guard controls.isEnabled else {
            observer.note("SMMU_CR0.SMMUEN is 0")
            return try passGlobally(transaction, controls)
        }
        let resolved = try resolveStream(transaction, controls, policy, &observer)
        return try translate(transaction, resolved, controls.generation, policy, &observer)
    }

    /// What SMMU_GBPA makes of a transaction while SMMUEN is 0.
    private func passGlobally(_ transaction: Transaction, _ controls: TranslationControls)
        throws(TranslationFault) -> Translation
    {
        let gbpa = controls.globalBypass
        let address = transaction.address.rawValue
        if gbpa.abort { throw .silentAbort("SMMU_GBPA.ABORT is 1") }
        guard address < identification.outputAddressLimit else {
            throw .silentAbort(
                "the address is beyond the \(identification.outputAddressBits)-bit output size"
            )
        }
        var access = EffectiveAccess(transaction)
        if identification.idr1.attrPermsOvr {
            access = access.overridden(privCfg: gbpa.privCfg, instCfg: gbpa.instCfg)
        }
        let attributes =
            identification.idr1.attrTypesOvr
            ? MemoryAttributes.bus.overridden(
                memAttr: gbpa.mtCfg ? gbpa.memAttr : nil,
                shCfg: gbpa.shCfg,
                allocCfg: gbpa.allocCfg
            ) : .bus
        return bypass(address, access, attributes, globalMPAM(controls))
    }

    /// Translates one address in a configuration.
    ///
    /// - Parameters:
    ///   - generation: The invalidation generation before `resolved` was looked up.
    ///   - isLong: The short way has been tried: ``translateQuickly(_:_:_:_:_:)``.
    func translate(
        _ transaction: Transaction,
        _ resolved: ResolvedStream,
        _ generation: InvalidationStamp,
        _ policy: CachePolicy,
        isLong: Bool = false,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let access = EffectiveAccess(transaction).overridden(
            privCfg: resolved.stream.privCfg,
            instCfg: resolved.stream.instCfg
        )
        let lookup = LookupScope(policy: policy, generation: generation)
        guard !resolved.translatesStage1 else {
            return try translateStage1(transaction, access, resolved, lookup, isLong, &observer)
        }
        // IAS is the limit where a stage is configured, whether or not stage 1 is skipped.
        let bits =
            resolved.stream.config == .bypass
            ? identification.outputAddressBits : identification.inputAddressBits
        guard transaction.address.rawValue >> UInt64(bits) == 0 else {
            throw bypassAddressSizeFault(transaction, access, bits)
        }
        guard let stage2 = resolved.stream.stage2 else {
            observer.note("stage 1 is bypassed: the address passes as it is")
            let address = transaction.address.rawValue & (identification.outputAddressLimit &- 1)
            return bypass(address, access, resolved.stream.incoming, resolved.mpam)
        }
        return try translateStage2Alone(transaction, access, resolved, stage2, lookup, &observer)
    }

    private func translateStage2Alone(
        _ transaction: Transaction,
        _ access: EffectiveAccess,
        _ resolved: ResolvedStream,
        _ stage2: Stage2Configuration,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let request = Stage2Request(
            transaction: transaction,
            access: access,
            purpose: .input,
            ipa: transaction.address.rawValue,
            lookup: lookup
        )
        let (entry, isFromTLB) = try translateStage2(request, stage2, &observer)
        var result = translation(entry, transaction.address.rawValue, access, resolved, isFromTLB: isFromTLB)
        result.stages = .stage2
        result.intermediate = nil
        result.attributeSource = .stage2(
            incoming: resolved.stream.incoming,
            memAttr: entry.memoryAttribute,
            sh: entry.shareability,
            forcesWriteBack: stage2.forcesWriteBack
        )
        return result
    }

    private func translateStage1(
        _ transaction: Transaction,
        _ access: EffectiveAccess,
        _ resolved: ResolvedStream,
        _ lookup: LookupScope,
        _ isLong: Bool,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        let address = resolved.context.canonical(transaction.address.rawValue)
        let tag = RegimeTag(
            regime: TranslationRegime(resolved.stream.world),
            vmid: resolved.stream.vmid,
            asid: resolved.context.asid,
            aset: resolved.context.aset
        )
        let required = access.required
        let refusesUnprivileged =
            resolved.context.isUpper(address)
            ? resolved.context.upper.refusesUnprivileged : resolved.context.lower.refusesUnprivileged
        let isRefused = refusesUnprivileged && !access.isPrivileged
        var hit: CachedTranslation?
        if lookup.policy.looksInCaches, !isRefused {
            // What has been looked for on the short way has been counted there.
            hit =
                isLong && resolved.hasPlan(for: address)
                ? translationCache.peek(address, tag: tag) : translationCache.lookUp(address, tag: tag)
        }
        if let hit, hit.permissions.contains(required) {
            return translation(hit, address, access, resolved, isFromTLB: true)
        }
        if !type(of: observer).hearsOfStructures, hit == nil, !isRefused, !isLong {
            var walk = makeQuickWalk(resolved.plan, lookup.policy, lookup.generation)
            let isDone = walkQuickly(address, required, &walk)
            walk.report(isDone, to: &observer, counters)
            if isDone {
                let entry = walk.entry(of: address)
                if walk.fillsTLB { translationCache.fill(entry, walkedAt: lookup.generation) }
                return translation(entry, address, access, resolved, isFromTLB: false)
            }
        }
        let input = WalkInput(
            transaction: transaction,
            access: access,
            resolved: resolved,
            tag: tag,
            lookup: lookup
        )
        return try translateStage1(input, address, hit, refusesUnprivileged, &observer)
    }

    /// The same where the TLB has no answer and the way to one is long.
    @inline(never)  // Keeps the way of a hit, and of a walk that is quick, small.
    private func translateStage1(
        _ input: WalkInput,
        _ address: UInt64,
        _ hit: CachedTranslation?,
        _ refusesUnprivileged: Bool,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation {
        guard !refusesUnprivileged || input.access.isPrivileged else {
            throw translationFault(.fTranslation, input, "CD.E0PDn refuses unprivileged accesses")
        }
        // What the TLB holds counts where it refuses, too; only a page that is not dirty yet is walked again.
        if let hit, hit.answers(input.access.required, isWrite: input.access.isWrite) {
            try check(hit, input, address)
        }
        let entry = try walk(input, address, refusesUnprivileged, &observer)
        if input.lookup.policy == .cached { translationCache.fill(entry, walkedAt: input.lookup.generation) }
        try check(entry, input, address)
        return translation(entry, address, input.access, input.resolved, isFromTLB: false)
    }

    /// Walks stage 1, and translates what it gives through stage 2 where there is one.
    @inline(__always)  // Once for each miss.
    private func walk(
        _ input: WalkInput,
        _ address: UInt64,
        _ refusesUnprivileged: Bool,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> CachedTranslation {
        var first = try walkStage1(input, &observer)
        if refusesUnprivileged { first.stage1Permissions.subtract(.unprivileged) }
        guard input.resolved.translatesStage2, let stage2 = input.stage2 else { return first }
        // A stage-1 fault comes before every stage-2 fault of the IPA.
        try check(first, input, address)
        let request = Stage2Request(
            transaction: input.transaction,
            access: input.access,
            purpose: .input,
            ipa: first.output(for: address),
            lookup: input.lookup
        )
        let (second, _) = try translateStage2(request, stage2, &observer)
        let attributes = MemoryAttributes(mair: first.memoryAttribute, shareability: first.shareability)
            .combined(
                memAttr: second.memoryAttribute,
                sh: second.shareability,
                forcesWriteBack: stage2.forcesWriteBack
            )
        return first.followed(by: second, for: address, attributes: attributes)
    }

    /// Whether the page permits the access; stage 1's word comes first.
    private func check(_ entry: CachedTranslation, _ input: WalkInput, _ address: UInt64)
        throws(TranslationFault)
    {
        guard entry.stage1Permissions.contains(input.access.required) else {
            throw translationFault(.fPermission, input, "the page does not permit \(input.access)")
        }
        guard let stage2 = input.stage2,
            !entry.stage2Permissions.contains(input.access.required)
        else {
            return
        }
        let ipa = entry.intermediate(for: address)
        let request = Stage2Request(
            transaction: input.transaction,
            access: input.access,
            purpose: .input,
            ipa: ipa,
            lookup: input.lookup
        )
        throw stage2Fault(
            .fPermission,
            request,
            stage2,
            "stage 2 does not permit \(input.access) at IPA 0x\(String(ipa, radix: 16))"
        )
    }

    /// A translation of one address by an entry of stage 1 or of both stages.
    func translation(
        _ entry: CachedTranslation,
        _ address: UInt64,
        _ access: EffectiveAccess,
        _ resolved: ResolvedStream,
        isFromTLB: Bool
    ) -> Translation {
        let mask: UInt64 = (1 &<< UInt64(entry.log2Bytes)) &- 1
        return Translation(
            output: PhysicalAddress(entry.output(for: address)),
            byteCount: mask &- (address & mask) &+ 1,
            stages: resolved.stream.config,
            intermediate: resolved.stream.stage2 == nil ? nil : entry.intermediate(for: address),
            log2Bytes: entry.log2Bytes,
            attributeSource: .stage1(
                MemoryAttributes(mair: entry.memoryAttribute, shareability: entry.shareability),
                incoming: resolved.stream.incoming
            ),
            isPrivileged: access.isPrivileged,
            isInstruction: access.isInstruction,
            mpam: resolved.mpam,
            isFromTLB: isFromTLB,
            incomingPermissions: incomingPermissions(
                entry.permissions,
                privCfg: resolved.stream.privCfg,
                instCfg: resolved.stream.instCfg
            ),
            isOfRegion: entry.isOfRegion
        )
    }

    /// The address as it is.
    func bypass(
        _ address: UInt64,
        _ access: EffectiveAccess,
        _ attributes: MemoryAttributes,
        _ mpam: MPAMIdentity
    ) -> Translation {
        Translation(
            output: PhysicalAddress(address),
            byteCount: identification.outputAddressLimit &- address,
            stages: .bypass,
            log2Bytes: 64,
            attributeSource: .bus(attributes),
            isPrivileged: access.isPrivileged,
            isInstruction: access.isInstruction,
            mpam: mpam,
            isFromTLB: false,
            incomingPermissions: .all
        )
    }

    /// An input address beyond IAS or OAS where stage 1 is bypassed: a stage-1 F_ADDR_SIZE that always aborts and
    /// is always recorded.
    private func bypassAddressSizeFault(
        _ transaction: Transaction,
        _ access: EffectiveAccess,
        _ bits: Int
    ) -> TranslationFault {
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
            "the address is beyond the \(bits)-bit address size"
        )
    }

    /// Permissions by what the device drives rather than by what the overrides make of it.
    func incomingPermissions(_ permissions: Permissions, privCfg: UInt8, instCfg: UInt8)
        -> Permissions
    {
        guard privCfg != 0 || instCfg != 0 else { return permissions }
        var result = Permissions()
        for isPrivileged in [false, true] {
            for (isWrite, isInstruction) in [(false, false), (true, false), (false, true)] {
                let incoming = EffectiveAccess(
                    isWrite: isWrite,
                    isPrivileged: isPrivileged,
                    isInstruction: isInstruction
                )
                if permissions.contains(incoming.overridden(privCfg: privCfg, instCfg: instCfg).required) {
                    result.insert(incoming.required)
                }
            }
        }
        return result
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
