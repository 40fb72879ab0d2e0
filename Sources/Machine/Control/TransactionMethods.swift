// translate, explain and dma.*: the machine as a device sees it.

import AddressSpace
import ControlProtocol
import DeviceModel
import SMMUv3
import SMMUv3Spec

extension ControlService {
    static func addTransactionMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.Translate.self) { parameters, session throws(ControlError) in
            try session.service.translate(parameters)
        }
        dispatcher.on(Methods.Explain.self) { parameters, session throws(ControlError) in
            try session.service.explain(parameters)
        }
        dispatcher.on(Methods.DMARead.self) { parameters, session throws(ControlError) in
            let count = try transferCount(parameters.length, "length")
            let attributes = TransactionAttributes(
                substreamID: try parameters.substreamID().map { SubstreamID($0) },
                isPrivileged: parameters.privileged ?? false,
                isInstruction: parameters.instruction ?? false
            )
            let port = session.service.machine.makePort(for: try session.service.identity(parameters))
            let (data, fault) = read(count, at: parameters.iova.value, port, attributes)
            return Methods.DMARead.Result(data: ByteString(data), fault: fault.map(faultInfo))
        }
        dispatcher.on(Methods.DMAWrite.self) { parameters, session throws(ControlError) in
            let attributes = TransactionAttributes(
                substreamID: try parameters.substreamID().map { SubstreamID($0) },
                isPrivileged: parameters.privileged ?? false
            )
            let port = session.service.machine.makePort(for: try session.service.identity(parameters))
            let fault = write(parameters.data.bytes, at: parameters.iova.value, port, attributes)
            return Methods.DMAWrite.Result(
                bytesTransferred: fault.map { Size($0.bytesTransferred) }
                    ?? Size(UInt64(parameters.data.bytes.count)),
                fault: fault.map(faultInfo)
            )
        }
        dispatcher.on(Methods.DMACopy.self) { parameters, session throws(ControlError) in
            try session.service.copy(parameters)
        }
    }

    // MARK: DMA

    /// Reads on behalf of a device.
    ///
    /// - Returns: What came before the fault, or everything.
    private static func read(
        _ count: Int,
        at address: UInt64,
        _ port: any DMAPort,
        _ attributes: TransactionAttributes
    ) -> ([UInt8], DMAFault?) {
        var data = [UInt8](repeating: 0, count: count)
        var fault: DMAFault?
        data.withUnsafeMutableBytes { buffer in
            do throws(DMAFault) {
                try port.read(at: IOVirtualAddress(address), into: buffer, attributes)
            } catch {
                fault = error
            }
        }
        if let fault { data.removeLast(count - min(count, Int(truncatingIfNeeded: fault.bytesTransferred))) }
        return (data, fault)
    }

    private static func write(
        _ data: [UInt8],
        at address: UInt64,
        _ port: any DMAPort,
        _ attributes: TransactionAttributes
    ) -> DMAFault? {
        data.withUnsafeBytes { buffer in
            do throws(DMAFault) {
                try port.write(buffer, at: IOVirtualAddress(address), attributes)
                return nil
            } catch {
                return error
            }
        }
    }

    private func copy(_ parameters: Methods.DMACopy.Parameters) throws(ControlError) -> Methods.DMACopy.Result
    {
        let source = machine.makePort(for: try identity(parameters.source))
        let destination = machine.makePort(for: try identity(parameters.destination))
        let sourceAttributes = try Self.attributes(of: parameters.source)
        let destinationAttributes = try Self.attributes(of: parameters.destination)
        var done: UInt64 = 0
        while done < parameters.length.value {
            let count = Int(truncatingIfNeeded: min(parameters.length.value - done, 1 << 20))
            let (data, sourceFault) = Self.read(
                count,
                at: parameters.source.iova.value &+ done,
                source,
                sourceAttributes
            )
            let destinationFault = Self.write(
                data,
                at: parameters.destination.iova.value &+ done,
                destination,
                destinationAttributes
            )
            done += destinationFault?.bytesTransferred ?? UInt64(data.count)
            if let fault = destinationFault ?? sourceFault {
                return Methods.DMACopy.Result(
                    bytesTransferred: Size(done),
                    fault: Self.faultInfo(fault),
                    faultSide: destinationFault == nil ? .source : .destination
                )
            }
        }
        return Methods.DMACopy.Result(bytesTransferred: Size(done))
    }

    private static func attributes(of end: DMAEnd) throws(ControlError) -> TransactionAttributes {
        TransactionAttributes(
            substreamID: try end.substreamID().map { SubstreamID($0) },
            isPrivileged: end.privileged ?? false
        )
    }

    /// A fault as the device sees it.
    static func faultInfo(_ fault: DMAFault) -> FaultInfo {
        let address = Hex(fault.address.rawValue)
        let bytes = Size(fault.bytesTransferred)
        switch fault.cause {
        case .event(let number):
            let name = EventNumber(rawValue: number).description
            return FaultInfo(
                kind: .event,
                event: Hex(number),
                name: name,
                address: address,
                bytesTransferred: bytes,
                message: "the SMMU terminated the transaction at \(address): \(name)"
            )
        case .aborted:
            return FaultInfo(
                kind: .aborted,
                address: address,
                bytesTransferred: bytes,
                message: "the SMMU aborted the transaction at \(address) without an event"
            )
        case .bus(let error):
            return FaultInfo(
                kind: .bus,
                address: address,
                physicalAddress: Hex(error.address.rawValue),
                bytesTransferred: bytes,
                message: controlError(error).message
            )
        }
    }

    // MARK: Translations

    private func translate(_ parameters: TransactionParameters) throws(ControlError) -> TranslationOutcome {
        let identity = try identity(parameters)
        guard let index = identity.smmuIndex else { return untranslated(parameters) }
        return outcome(machine.smmus[index].model.probe(try transaction(parameters, identity)), parameters)
    }

    private func explain(_ parameters: TransactionParameters) throws(ControlError) -> Methods.Explain.Result {
        let identity = try identity(parameters)
        guard let index = identity.smmuIndex else {
            let step = ExplainStep(
                kind: "decision",
                title: "no SMMU stands before this device",
                note: "its addresses are physical addresses"
            )
            return Methods.Explain.Result(steps: [step], outcome: untranslated(parameters))
        }
        let transaction = try transaction(parameters, identity)
        let explanation = machine.smmus[index].model.explain(transaction)
        let report = ExplanationReport(smmu: machine.smmus[index], transaction: transaction)
        return Methods.Explain.Result(
            steps: report.steps(of: explanation),
            outcome: outcome(explanation.outcome, parameters)
        )
    }

    private func transaction(_ parameters: TransactionParameters, _ identity: RequesterIdentity)
        throws(ControlError) -> Transaction
    {
        let access = parameters.access ?? .read
        return Transaction(
            streamID: identity.streamID,
            attributes: TransactionAttributes(
                substreamID: try parameters.substreamID().map { SubstreamID($0) },
                isPrivileged: parameters.privileged ?? false,
                isInstruction: access == .execute
            ),
            kind: access == .write ? .write : .read,
            address: IOVirtualAddress(parameters.iova.value)
        )
    }

    private func untranslated(_ parameters: TransactionParameters) -> TranslationOutcome {
        .translation(TranslationInfo(address: parameters.iova, regime: "no SMMU"))
    }

    private func outcome(_ outcome: Explanation.Outcome, _ parameters: TransactionParameters)
        -> TranslationOutcome
    {
        switch outcome {
        case .translated(let translation):
            .translation(
                TranslationInfo(
                    address: Hex(translation.output.rawValue),
                    pageSize: translation.isBypassed ? nil : Size(UInt64(1) << UInt64(translation.log2Bytes)),
                    regime: translation.isBypassed ? "bypass" : translation.stages.description,
                    permissions: translation.isBypassed
                        ? nil : Self.permissions(translation, isPrivileged: parameters.privileged ?? false),
                    attributes: MemoryAttributeText.describe(
                        translation.attributes.mair,
                        shareability: translation.attributes.shareability
                    )
                )
            )
        case .fault(let fault):
            .fault(
                FaultInfo(
                    kind: fault.event == nil ? .aborted : .event,
                    event: fault.event.map { Hex($0.rawValue) },
                    name: fault.event?.description,
                    address: parameters.iova,
                    bytesTransferred: 0,
                    message: fault.reason
                )
            )
        }
    }

    private static func permissions(_ translation: Translation, isPrivileged: Bool)
        -> ControlProtocol.Permissions
    {
        let permitted = translation.permitted(isPrivileged: isPrivileged)
        return ControlProtocol.Permissions(
            read: permitted.read,
            write: permitted.write,
            execute: permitted.execute,
            // Only what unprivileged transactions are not permitted at all.
            privileged: !translation.permitted(isPrivileged: false).read
                && !translation.permitted(isPrivileged: false).write && isPrivileged
        )
    }
}
