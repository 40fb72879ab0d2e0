// ATS translation requests: what the SMMU answers to a function that asks for a translation.

import AddressSpace
import DeviceModel
import SMMUv3Spec

/// What a stream may do with ATS: the effective STE.EATS.
enum ATSMode: Sendable {
    case off
    /// Completions give physical addresses; translated transactions pass.
    case full
    /// Completions give IPAs; translated transactions go through stage 2.
    case splitStage
}

extension SMMUv3 {
    /// The effective STE.EATS of a valid STE that does not abort.
    func atsMode(of ste: STE, _ controls: TranslationControls) -> ATSMode {
        guard ste.config != .bypass else { return .off }
        switch ste.eats {
        case 0b01: return .full
        // Who would translate the IPA, where translated transactions are not looked at?
        case 0b10 where controls.checksTranslated: return .splitStage
        // 0b11 needs device permission tables, which no profile has.
        default: return .off
        }
    }

    /// Answers a translation request (IHI 0070, 3.9.1.2 and 13.7).
    ///
    /// Inside of a transaction, so that a CMD_SYNC waits for an answer that is made of what it invalidates.
    func answer(
        _ request: ATSTranslationRequest,
        of streamID: StreamID,
        _ observer: inout some LookupObserver
    ) -> ATSTranslationAnswer {
        // Without a PASID a request is for data, unprivileged.
        let transaction = Transaction(
            streamID: streamID,
            attributes: TransactionAttributes(
                substreamID: request.substreamID,
                isPrivileged: request.substreamID != nil && request.isPrivileged
            ),
            kind: .read,
            address: request.address
        )
        // There is no interface to ask by.
        guard identification.idr0.ats else { return .unsupportedRequest }
        count(.translationRequests)
        let controls = currentControls()
        guard controls.isEnabled else { return refuse(transaction, "SMMU_CR0.SMMUEN is 0") }
        do {
            let ste = try fetchSTE(transaction, controls, .cached, &observer)
            let stream = try configuration(of: ste, transaction, controls)
            guard atsMode(of: ste, controls) != .off else {
                return refuse(transaction, "the effective STE.EATS is 0")
            }
            let outcome = try resolve(stream, transaction, controls, .cached, &observer)
            let resolved = ResolvedStream(stream: stream, outcome: outcome)
            let lookup = TranslationRequestLookup(
                transaction: transaction,
                request: request,
                resolved: resolved,
                generation: controls.generation,
                isSplit: atsMode(of: ste, controls) == .splitStage
            )
            return .success(try grant(lookup, &observer))
        } catch {
            return answer(to: error, transaction, controls)
        }
    }

    /// Unsupported Request, with its event: ATS is off for the stream.
    private func refuse(_ transaction: Transaction, _ reason: String) -> ATSTranslationAnswer {
        report(
            .abort(
                .badATSTranslationRequest(
                    streamID: transaction.streamID,
                    substreamID: transaction.attributes.substreamID,
                    inputAddress: transaction.address.rawValue
                ),
                reason
            ),
            transaction
        )
        return .unsupportedRequest
    }

    /// What a fault makes of the answer: the device hears of faults of the translation, software does not; errors
    /// of the configuration are recorded where CR2.REC_CFG_ATS wants them.
    private func answer(
        to fault: TranslationFault,
        _ transaction: Transaction,
        _ controls: TranslationControls
    ) -> ATSTranslationAnswer {
        switch fault.event {
        case nil:
            // STE.Config 0b0xx.
            return .unsupportedRequest
        case .fTranslation?, .fAddrSize?, .fAccess?, .fPermission?:
            return .success(denial(transaction))
        default:
            var fault = fault
            if !controls.recordsATSErrors { fault.record = nil }
            report(fault, transaction)
            return .completerAbort
        }
    }

    /// R and W 0, in the size of the smallest translation unit: the smallest granule.
    private func denial(_ transaction: Transaction) -> ATSTranslation {
        let smallest: UInt8 = identification.idr5.gran4K ? 12 : identification.idr5.gran16K ? 14 : 16
        return .denied(log2Bytes: smallest, isPrivileged: transaction.attributes.isPrivileged)
    }

    /// The translation, with those of the permissions that were asked for that the tables give.
    ///
    /// A request that may write is one that does, for the access flag and the dirty state: the transactions
    /// themselves are not seen here. Where no write is permitted it is looked at as a read.
    private func grant(_ lookup: TranslationRequestLookup, _ observer: inout some LookupObserver)
        throws(TranslationFault) -> ATSTranslation
    {
        var found: Translation?
        if !lookup.request.noWrite { found = try translation(lookup, .write, &observer) }
        if found == nil { found = try translation(lookup, .read, &observer) }
        guard let found else { return denial(lookup.transaction) }
        let isPrivileged = lookup.transaction.attributes.isPrivileged
        let permitted = found.permitted(isPrivileged: isPrivileged)
        let input = lookup.transaction.address.rawValue
        let output = lookup.isSplit ? found.intermediate ?? input : found.output.rawValue
        // A bypass is as large as addresses are.
        let log2Bytes = min(found.log2Bytes, UInt8(identification.outputAddressBits))
        return ATSTranslation(
            output: output & ~((1 &<< UInt64(log2Bytes)) &- 1),
            log2Bytes: log2Bytes,
            canRead: permitted.read,
            canWrite: permitted.write,
            // There is no way to say execute without read.
            canExecute: lookup.request.substreamID != nil && lookup.request.isExecute && permitted.read
                && permitted.execute,
            isPrivileged: isPrivileged
        )
    }

    /// Translates as for one kind of access; nil where that is not permitted.
    private func translation(
        _ lookup: TranslationRequestLookup,
        _ kind: TransactionKind,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> Translation? {
        var transaction = lookup.transaction
        transaction.kind = kind
        do throws(TranslationFault) {
            return try translate(transaction, lookup.resolved, lookup.generation, .cached, &observer)
        } catch {
            guard error.event == .fPermission else { throw error }
            return nil
        }
    }
}

/// A translation request, as far as its configuration has been looked up.
private struct TranslationRequestLookup {
    let transaction: Transaction
    let request: ATSTranslationRequest
    let resolved: ResolvedStream
    let generation: InvalidationStamp
    /// Whether the answer is an IPA.
    let isSplit: Bool
}
