// Transactions that a device has translated itself, by ATS.

import AddressSpace
import DeviceModel
import SMMUv3Spec

extension SMMUv3 {
    /// Lets a translated transaction pass, as it is or through stage 2, or does not (IHI 0070, 3.9.1.3).
    ///
    /// - Parameter transaction: Without SubstreamID, data, unprivileged: SMMU_IDR3.PASIDTT is 0.
    func passTranslated(_ transaction: Transaction, _ observer: inout some LookupObserver)
        throws(TranslationFault) -> Translation
    {
        let controls = currentControls()
        guard identification.idr0.ats, controls.isEnabled else {
            throw translationForbidden(transaction, "translation, or ATS, is disabled")
        }
        guard controls.checksTranslated else { return try passUnchecked(transaction) }
        let (ste, stream) = try configuration(ofTranslated: transaction, controls, &observer)
        switch atsMode(of: ste, controls) {
        case .off:
            throw translationForbidden(transaction, "the effective STE.EATS is 0")
        case .full:
            return try passUnchecked(transaction)
        case .splitStage:
            // Stage 1 is done: what is left is what a stream without stage 1 does.
            let resolved = ResolvedStream(stream: stream, outcome: .bypass)
            return try translate(transaction, resolved, controls.generation, .cached, &observer)
        }
    }

    /// The STE; its errors are recorded where CR2.REC_CFG_ATS wants them, whatever CR2.RECINVSID says.
    private func configuration(
        ofTranslated transaction: Transaction,
        _ controls: TranslationControls,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> (STE, StreamConfiguration) {
        var controls = controls
        controls.recordsBadStreamIDs = true
        do throws(TranslationFault) {
            let ste = try fetchSTE(transaction, controls, .cached, &observer)
            return (ste, try configuration(of: ste, transaction, controls))
        } catch {
            var fault = error
            if !controls.recordsATSErrors { fault.record = nil }
            throw fault
        }
    }

    private func passUnchecked(_ transaction: Transaction) throws(TranslationFault) -> Translation {
        let address = transaction.address.rawValue
        guard address < identification.outputAddressLimit else {
            throw .silentAbort(
                "the translated address is beyond the \(identification.outputAddressBits)-bit output size"
            )
        }
        return bypass(address, EffectiveAccess(transaction), .bus)
    }

    private func translationForbidden(_ transaction: Transaction, _ reason: String) -> TranslationFault {
        .abort(
            .translationForbidden(
                streamID: transaction.streamID,
                substreamID: transaction.attributes.substreamID,
                rnw: transaction.kind == .read,
                inputAddress: transaction.address.rawValue
            ),
            reason
        )
    }
}
