// What a translation would do and why, without doing it: for people and tools.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization

/// A look-up made for a person: from memory as it is now, past every cache, recording nothing.
package struct Explanation: Equatable, Sendable {
    /// Every structure and descriptor fetched, in order, with remarks between.
    package var steps: [ExplainedStep]
    /// Where it ends.
    package var outcome: Outcome
    /// What the caches would have answered instead, where that differs: the sign of a missing invalidation.
    package var staleness: [String]

    package enum Outcome: Equatable, Sendable {
        case translated(Translation)
        case fault(TranslationFault)
    }
}

extension SMMUv3 {
    /// Explains how a transaction would be translated.
    package func explain(_ transaction: Transaction) -> Explanation {
        var recorder = StepRecorder()
        let controls = currentControls()
        let outcome = withOwnAccess { look(transaction, controls, .uncached, &recorder) }
        return Explanation(
            steps: recorder.steps,
            outcome: outcome,
            staleness: staleness(transaction, controls, recorder.steps, outcome)
        )
    }

    /// Translates from memory as it is now, past every cache, recording nothing.
    package func probe(_ transaction: Transaction) -> Explanation.Outcome {
        var observer = NoObserver()
        return withOwnAccess { look(transaction, currentControls(), .uncached, &observer) }
    }

    private func look(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) -> Explanation.Outcome {
        do {
            return .translated(try translate(transaction, controls, policy, &observer))
        } catch {
            return .fault(error)
        }
    }

    // MARK: Stale caches

    private func staleness(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ steps: [ExplainedStep],
        _ outcome: Explanation.Outcome
    ) -> [String] {
        guard controls.isEnabled else { return [] }
        var findings: [String] = []
        var fetchedSTE: STE?
        var fetchedCD: CD?
        var passedL1CD = false
        for case .fetched(let structure) in steps {
            switch structure {
            case .ste(_, let ste): fetchedSTE = ste
            case .cd(_, let cd): fetchedCD = cd
            case .l1cd: passedL1CD = true
            default: break
            }
        }
        let cachedSTE = configurationCache.peek(transaction.streamID)
        if let cachedSTE, cachedSTE != fetchedSTE {
            findings.append(
                "the configuration cache holds another STE than memory: a CMD_CFGI_STE for StreamID "
                    + "\(transaction.streamID) is missing"
            )
        }
        let key = ConfigurationCache.ContextKey(
            streamID: transaction.streamID,
            index: transaction.attributes.substreamID?.rawValue ?? 0
        )
        let cachedCD = configurationCache.peek(key)
        if let cachedCD, cachedCD != fetchedCD, fetchedCD != nil || passedL1CD {
            findings.append(
                "the configuration cache holds another CD than memory: a CMD_CFGI_CD for StreamID "
                    + "\(transaction.streamID), SubstreamID 0x\(String(key.index, radix: 16)) is missing"
            )
        }
        // A transaction uses what is cached where something is.
        guard let ste = cachedSTE ?? fetchedSTE, identification.violation(of: ste) == nil,
            !ste.config.abortsSilently
        else { return findings }
        let stream = identification.decode(ste, isE2H: controls.isE2H)
        if stream.config.translatesStage1, let cd = cachedCD ?? fetchedCD,
            identification.violation(of: cd, in: stream) == nil
        {
            let context = identification.decode(cd, in: stream)
            findings += staleTranslation(transaction, stream, context, outcome)
            // Where memory was walked from another table there is nothing to compare.
            if findings.isEmpty {
                findings += staleTable(
                    transaction,
                    ResolvedStream(stream: stream, outcome: .stage1(context)),
                    steps
                )
            }
        }
        if let stage2 = stream.stage2 {
            findings += staleStage2(transaction, stream, stage2, outcome)
        }
        return findings
    }

    /// Whether the walk cache knows a table of stage 1 where memory has another, or none.
    private func staleTable(_ transaction: Transaction, _ resolved: ResolvedStream, _ steps: [ExplainedStep])
        -> [String]
    {
        let address = resolved.context.canonical(transaction.address.rawValue)
        guard let known = walkCache.lookUp(address, resolved.plan) else { return [] }
        let plan = resolved.plan.pointee
        let half = plan.isUpper(address) ? plan.upper.pointee : plan.lower.pointee
        let tableLevel = half.level(ofEntriesCovering: known.log2Bytes &- half.stride)
        var hierarchical: UInt64 = 0
        var isWalked = false
        for case .fetched(.descriptor(let location, let word, let level, let format)) in steps
        where format.stage == .stage1 {
            isWalked = true
            if level == tableLevel, location.rawValue & (UInt64.max &<< half.pageBits) == known.address,
                hierarchical == known.hierarchical & half.hierarchicalMask
            {
                return []
            }
            hierarchical |= word.rawValue & half.hierarchicalMask
        }
        guard isWalked else { return [] }
        let name = plan.tag.regime == .nsEL1 ? "CMD_TLBI_NH_VA" : "CMD_TLBI_EL2_VA"
        let vmid = identification.idr0.s2P && plan.tag.regime == .nsEL1 ? "VMID \(plan.tag.vmid), " : ""
        return [
            "the walk cache still has a level-\(tableLevel) table for this address at "
                + "\(PhysicalAddress(known.address)), which the tables no longer lead to: a \(name) without Leaf "
                + "for \(vmid)ASID \(plan.tag.asid), address \(transaction.address) is missing"
        ]
    }

    private func staleTranslation(
        _ transaction: Transaction,
        _ stream: StreamConfiguration,
        _ context: ContextConfiguration,
        _ outcome: Explanation.Outcome
    ) -> [String] {
        let tag = RegimeTag(
            regime: TranslationRegime(stream.world),
            vmid: stream.vmid,
            asid: context.asid,
            aset: context.aset
        )
        let address = context.canonical(transaction.address.rawValue)
        guard let cached = translationCache.peek(address, tag: tag) else { return [] }
        let name = tag.regime == .nsEL1 ? "CMD_TLBI_NH_VA" : "CMD_TLBI_EL2_VA"
        let vmid = identification.idr0.s2P && tag.regime == .nsEL1 ? "VMID \(tag.vmid), " : ""
        return compare(
            cached,
            cached.output(for: address),
            EffectiveAccess(transaction).overridden(by: stream),
            outcome,
            "a \(name) for \(vmid)ASID \(tag.asid), address \(transaction.address) is missing"
        )
    }

    /// What the TLB holds of stage 2 alone, for the IPA of the transaction as memory has it now.
    private func staleStage2(
        _ transaction: Transaction,
        _ stream: StreamConfiguration,
        _ stage2: Stage2Configuration,
        _ outcome: Explanation.Outcome
    ) -> [String] {
        let ipa: UInt64
        switch outcome {
        case .translated(let translation):
            ipa = translation.intermediate ?? transaction.address.rawValue
        case .fault(let fault):
            // Stage 1 must have come through for stage 2 to be asked.
            guard let record = fault.record, record.s2, record.eventClass == .in else { return [] }
            ipa = record.number == .fWalkEABT ? transaction.address.rawValue : record.ipa
        }
        let tag = RegimeTag(regime: .nsEL1Stage2, vmid: stage2.vmid, asid: 0, aset: false)
        guard let cached = translationCache.peek(ipa, tag: tag) else { return [] }
        // An IPA from a record has no low bits; those of a page do not change on the way.
        let offset = transaction.address.rawValue & 0xFFF
        return compare(
            cached,
            cached.output(for: ipa & ~0xFFF | offset),
            EffectiveAccess(transaction).overridden(by: stream),
            outcome,
            "a CMD_TLBI_S2_IPA for VMID \(tag.vmid), IPA 0x\(String(ipa, radix: 16)) is missing"
        )
    }

    private func compare(
        _ cached: CachedTranslation,
        _ address: UInt64,
        _ access: EffectiveAccess,
        _ outcome: Explanation.Outcome,
        _ command: String
    ) -> [String] {
        let output = PhysicalAddress(address)
        let isPermitted = cached.permissions.contains(access.required)
        // A walk asks memory for what is not dirty yet.
        guard cached.answers(access.required, isWrite: access.isWrite) else { return [] }
        switch outcome {
        case .translated(let translation) where translation.output != output && !translation.isBypassed:
            return ["the TLB still translates this address to \(output): \(command)"]
        case .translated(let translation) where !isPermitted && !translation.isBypassed:
            return ["the TLB still refuses this access, which the tables now permit: \(command)"]
        case .fault(let fault)
        where fault.event == .fTranslation || fault.event == .fAddrSize || fault.event == .fAccess
            || fault.event == .fWalkEABT:
            return [
                "the TLB still translates this address to \(output), which the tables no longer do: \(command)"
            ]
        case .fault(let fault) where fault.event == .fPermission && isPermitted:
            return ["the TLB still permits this access, which the tables no longer do: \(command)"]
        default:
            return []
        }
    }
}
