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
        if let ste = cachedSTE ?? fetchedSTE, let cd = cachedCD ?? fetchedCD,
            identification.violation(of: ste) == nil, ste.config.translatesStage1
        {
            findings += staleTranslation(transaction, identification.decode(ste), cd, outcome)
        }
        return findings
    }

    private func staleTranslation(
        _ transaction: Transaction,
        _ stream: StreamConfiguration,
        _ cd: CD,
        _ outcome: Explanation.Outcome
    ) -> [String] {
        guard identification.violation(of: cd, in: stream) == nil else { return [] }
        let context = identification.decode(cd)
        let tag = RegimeTag(world: stream.world, vmid: stream.vmid, asid: context.asid, aset: context.aset)
        let address = context.canonical(transaction.address.rawValue)
        guard let cached = translationCache.peek(address, tag: tag) else { return [] }
        let output = PhysicalAddress(cached.output(for: address))
        let command = "a CMD_TLBI_NH_VA for ASID \(tag.asid), address \(transaction.address) is missing"
        let required = EffectiveAccess(transaction).overridden(by: stream).required
        let isPermitted = cached.permissions.contains(required)
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
