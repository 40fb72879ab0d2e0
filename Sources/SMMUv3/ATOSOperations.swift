// Address translation operations: what GATOS and VATOS answer (IHI 0070, chapter 9).

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization

/// One request of GATOS or VATOS, as its registers were when it began.
private struct ATOSRequest {
    let isVirtual: Bool
    let sid: GATOSSid
    let addr: GATOSAddr
    /// SMMU_VATOS_SEL.VMID.
    let vmid: UInt16
    let ticket: UInt64
    let epoch: UInt64

    var translatesStage1: Bool { addr.type & 0b01 != 0 }
    var translatesStage2: Bool { addr.type & 0b10 != 0 }

    /// The transaction that it asks about.
    var transaction: Transaction {
        Transaction(
            streamID: sid.streamID,
            attributes: TransactionAttributes(
                substreamID: sid.ssidValid ? sid.substreamID : nil,
                isPrivileged: addr.pnu,
                isInstruction: addr.ind
            ),
            kind: addr.rnw ? .read : .write,
            address: IOVirtualAddress(addr.addr)
        )
    }
}

extension SMMUv3 {
    /// Executes the requests of GATOS and VATOS that wait.
    ///
    /// For the command processor alone, so that a request and an invalidation come one after the other.
    func executeTranslationRequests() {
        guard identification.idr0.atos else { return }
        for isVirtual in [false, true] {
            while let request = nextTranslationRequest(isVirtual) {
                let result = withOwnAccess { answer(request) }
                registers.withLock { registers in
                    guard registers.epoch == request.epoch else { return }
                    if isVirtual {
                        registers.vatos.finish(result, request.ticket)
                    } else {
                        registers.gatos.finish(result, request.ticket)
                    }
                }
            }
        }
    }

    /// Whether a translation request waits.
    var hasTranslationRequest: Bool {
        identification.idr0.atos && registers.withLock { $0.gatos.isRunning || $0.vatos.isRunning }
    }

    private func nextTranslationRequest(_ isVirtual: Bool) -> ATOSRequest? {
        registers.withLock { registers in
            let interface = isVirtual ? registers.vatos : registers.gatos
            guard interface.isRunning else { return nil }
            return ATOSRequest(
                isVirtual: isVirtual,
                sid: interface.sid,
                addr: interface.addr,
                vmid: registers.vatosSel.vmid,
                ticket: interface.ticket,
                epoch: registers.epoch
            )
        }
    }

    /// PAR, for one request.
    ///
    /// No event, no stall, no override of the STE. With HTTUI nothing is updated, and every update counts as made.
    private func answer(_ request: ATOSRequest) -> GATOSPar {
        // Reserved TYPEs, and stages that are not implemented.
        guard request.addr.type != 0, !request.isVirtual || request.addr.type == 0b01,
            !request.translatesStage1 || identification.idr0.s1P,
            !request.translatesStage2 || identification.idr0.s2P,
            request.translatesStage1 || !request.sid.ssidValid
        else { return .fault(ATOSFault.invalidRequest) }
        do {
            let translation = try translate(request)
            // What nothing translates has no size; the smallest is permitted.
            let size = translation.isBypassed ? 12 : translation.log2Bytes
            return .translated(
                to: translation.output.rawValue,
                log2Bytes: size,
                attributes: translation.attributes
            )
        } catch {
            return result(of: error, request)
        }
    }

    private func translate(_ request: ATOSRequest) throws(TranslationFault) -> Translation {
        let transaction = request.transaction
        let policy: CachePolicy = request.addr.httui ? .readOnly : .cached
        var observer = NoObserver()
        var controls = currentControls()
        // What is recorded or not makes no difference here: every fault is told.
        controls.recordsBadStreamIDs = true
        let ste = try fetchSTE(transaction, controls, policy, &observer)
        guard identification.violation(of: ste) == nil else {
            throw .abort(.configuration(.cBadSTE, streamID: transaction.streamID, substreamID: nil), "")
        }
        if request.isVirtual, !identification.tags(ste, with: request.vmid) {
            throw .abort(.configuration(.cBadSTE, streamID: transaction.streamID, substreamID: nil), "")
        }
        guard !ste.config.abortsSilently,
            !request.translatesStage1 || ste.config.translatesStage1,
            !request.translatesStage2 || ste.config.translatesStage2
        else { throw .silentAbort("the stream has no such stage") }
        var stream = identification.decode(ste, isE2H: controls.isE2H)
        stream.privCfg = 0
        stream.instCfg = 0
        stream.incoming = .bus
        stream.stage2?.records = true
        stream.stage2?.stalls = false
        guard request.translatesStage1 else {
            let resolved = ResolvedStream(stream: stream, outcome: .bypass)
            return try translate(transaction, resolved, controls.generation, policy, &observer)
        }
        var outcome = try resolve(stream, transaction, controls, policy, &observer)
        if case .stage1(var context) = outcome {
            context.records = true
            context.stalls = false
            outcome = .stage1(context)
        }
        if request.translatesStage2 || stream.stage2 == nil {
            let resolved = ResolvedStream(stream: stream, outcome: outcome)
            return try translate(transaction, resolved, controls.generation, policy, &observer)
        }
        guard case .stage1 = outcome else {
            stream.stage2 = nil
            let resolved = ResolvedStream(stream: stream, outcome: outcome)
            return try translate(transaction, resolved, controls.generation, policy, &observer)
        }
        return try translateStage1Alone(
            transaction,
            ResolvedStream(stream: stream, outcome: outcome),
            LookupScope(policy: policy, generation: controls.generation)
        )
    }

    /// Stage 1 of a nested stream: its tables are behind stage 2, its output is not translated further.
    ///
    /// The TLB keeps both stages in one, so this walks.
    private func translateStage1Alone(
        _ transaction: Transaction,
        _ resolved: ResolvedStream,
        _ lookup: LookupScope
    ) throws(TranslationFault) -> Translation {
        let access = EffectiveAccess(transaction)
        let address = resolved.context.canonical(transaction.address.rawValue)
        let input = WalkInput(
            transaction: transaction,
            access: access,
            resolved: resolved,
            tag: RegimeTag(
                regime: TranslationRegime(resolved.stream.world),
                vmid: resolved.stream.vmid,
                asid: resolved.context.asid,
                aset: resolved.context.aset
            ),
            lookup: lookup,
            endsAtStage1: true
        )
        if resolved.context.region(of: address).refusesUnprivileged, !access.isPrivileged {
            throw translationFault(.fTranslation, input, "CD.E0PDn refuses unprivileged accesses")
        }
        var observer = NoObserver()
        let entry = try walkStage1(input, &observer)
        guard entry.stage1Permissions.contains(access.required) else {
            throw translationFault(.fPermission, input, "the page does not permit \(access)")
        }
        return translation(entry, address, access, resolved, isFromTLB: false)
    }

    /// PAR of a request that failed.
    private func result(of fault: TranslationFault, _ request: ATOSRequest) -> GATOSPar {
        guard let event = fault.event, let record = fault.record else {
            return .fault(ATOSFault.invalidStage)
        }
        let isWalkAbort = event == .fWalkEABT
        guard record.s2, isWalkAbort || event.isTranslationRelated else { return .fault(event.rawValue) }
        // A request about stage 1 alone hears nothing of stage 2: what it refuses is an abort of the fetch.
        guard request.translatesStage2 else {
            let code: EventNumber = record.eventClass == .cd ? .fCDFetch : .fWalkEABT
            return .fault(code.rawValue)
        }
        let reason: UInt8 =
            switch record.eventClass {
            case .cd: 0b01
            case .ttd: 0b10
            default: 0b11
            }
        let tellsAddress = request.translatesStage1 && !isWalkAbort
        return .fault(event.rawValue, reason: reason, ipa: tellsAddress ? record.ipa : 0)
    }
}

extension Identification {
    /// Whether translations of a valid STE are tagged with this VMID.
    fileprivate func tags(_ ste: STE, with vmid: UInt16) -> Bool {
        !ste.config.abortsSilently && usesVMID(ste) && ste.s2VMID == vmid
    }
}
