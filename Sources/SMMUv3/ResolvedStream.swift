// A stream's configuration as it is kept: looked up, checked, decoded once, and found again where it has not changed.

import AddressSpace
import DeviceModel
import SMMUv3Spec

/// A stream's configuration, looked up and checked, with what it leads to for one SubstreamID or none.
///
/// An object, because it is large: a port that keeps one, and a walk that reads it, copy a reference.
// SAFETY of @unchecked Sendable: what the pointer points at is written once, before anybody has it.
final class ResolvedStream: @unchecked Sendable {
    let stream: StreamConfiguration
    /// Whether stage 1 translates.
    let translatesStage1: Bool
    /// Whether stage 2 translates: asked at every step of a walk.
    let translatesStage2: Bool
    /// Stage 1, where it translates.
    let context: ContextConfiguration
    /// What quick walks go by; at one address for as long as this lives.
    let plan: UnsafePointer<StreamPlan>
    /// What it was made of, where that is all that it depends on.
    let source: Source?

    /// What a configuration was made of.
    struct Source: Equatable, Sendable {
        var ste: STE
        /// CR2.E2H.
        var isE2H: Bool
        var substreamID: SubstreamID?
        /// The CD and its index, where stage 1 translates.
        var context: Context?

        struct Context: Equatable, Sendable {
            var index: UInt32
            var cd: CD
        }
    }

    init(stream: StreamConfiguration, outcome: StreamOutcome, source: Source? = nil) {
        self.stream = stream
        self.source = source
        translatesStage2 = stream.stage2 != nil
        switch outcome {
        case .bypass:
            translatesStage1 = false
            context = .unused
            plan = StreamPlan.make(stream, nil, source)
        case .stage1(let context):
            translatesStage1 = true
            self.context = context
            plan = StreamPlan.make(stream, context, source)
        }
    }

    deinit { StreamPlan.free(plan) }

    /// Whether there is a short way for an address of stage 1.
    func hasPlan(for address: UInt64) -> Bool {
        (plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower).pointee.isUsable
    }
}

extension SMMUv3 {
    /// The configuration of a stream and SubstreamID, checked: what does not depend on address, direction or
    /// privilege.
    ///
    /// For an SMMU that is enabled. The result is good for as long as nothing is invalidated after
    /// `controls.generation`.
    ///
    /// - Parameter old: What the same stream's configuration was; given again where nothing of it has changed.
    func resolveStream(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        reusing old: ResolvedStream? = nil,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> ResolvedStream {
        let ste = try fetchSTE(transaction, controls, policy, &observer)
        if let old,
            let resolved = try resolveAgain(old, ste, transaction, controls, policy, &observer)
        {
            return resolved
        }
        let stream = try configuration(of: ste, transaction, controls)
        var source = ResolvedStream.Source(
            ste: ste,
            isE2H: controls.isE2H,
            substreamID: transaction.attributes.substreamID
        )
        // A virtual machine's PARTIDs come from a table in memory, too.
        let isWhole = !(stream.config == .nested && stream.usesContextMPAM && identification.hasVMS)
        guard let index = try contextIndex(stream, transaction, &observer) else {
            return ResolvedStream(stream: stream, outcome: .bypass, source: isWhole ? source : nil)
        }
        let cd = try fetchCD(index, stream, transaction, controls, policy, nil, &observer)
        source.context = ResolvedStream.Source.Context(index: index, cd: cd)
        let lookup = LookupScope(policy: policy, generation: controls.generation)
        return ResolvedStream(
            stream: stream,
            outcome: .stage1(try context(of: cd, stream, transaction, lookup, &observer)),
            source: isWhole ? source : nil
        )
    }

    /// A configuration again, from what is in memory or in the caches by now: the same object where that is the same.
    ///
    /// - Returns: nil where it has to be worked out anew.
    func resolveAgain(
        _ old: ResolvedStream,
        _ ste: STE,
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> ResolvedStream? {
        guard let source = old.source, source.ste == ste, source.isE2H == controls.isE2H,
            source.substreamID == transaction.attributes.substreamID
        else { return nil }
        guard let context = source.context else { return old }
        let lookup = LookupScope(policy: policy, generation: controls.generation)
        let cd = try fetchCD(context.index, old.stream, transaction, controls, policy, old.plan, &observer)
        guard cd != context.cd else { return old }
        var changed = source
        changed.context?.cd = cd
        return ResolvedStream(
            stream: old.stream,
            outcome: .stage1(try self.context(of: cd, old.stream, transaction, lookup, &observer)),
            source: changed
        )
    }
}
