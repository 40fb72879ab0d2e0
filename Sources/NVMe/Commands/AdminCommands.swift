// The admin command set, but for queues.

import AddressSpace
import BitFields
import BlockStorage
import DeviceModel
import Synchronization
import SystemPackage

extension ControllerCore {
    /// Executes a command of the admin queue, on its worker's thread.
    func executeAdmin(_ entry: SubmissionEntry, _ worker: QueueWorker) -> CommandOutcome {
        do throws(CommandStatus) {
            guard entry.fusedOperation == 0 else { throw .invalidField }
            switch entry.opcode {
            case AdminOpcode.deleteSubmissionQueue: try deleteSubmissionQueue(entry)
            case AdminOpcode.createSubmissionQueue: try createSubmissionQueue(entry, worker)
            case AdminOpcode.deleteCompletionQueue: try deleteCompletionQueue(entry)
            case AdminOpcode.createCompletionQueue: try createCompletionQueue(entry, worker)
            case AdminOpcode.getLogPage: try getLogPage(entry, worker)
            case AdminOpcode.identify: try identify(entry, worker)
            case AdminOpcode.abort: return .complete(.success, result: try abort(entry, worker))
            case AdminOpcode.setFeatures: return .complete(.success, result: try setFeatures(entry, worker))
            case AdminOpcode.getFeatures: return .complete(.success, result: try getFeatures(entry))
            case AdminOpcode.asynchronousEventRequest:
                guard asynchronousEvents.addRequest(entry.commandIdentifier) else {
                    throw .asynchronousEventLimitExceeded
                }
                return .outstanding
            case AdminOpcode.doorbellBufferConfig: try configureDoorbellBuffers(entry, worker)
            default: throw .invalidOpcode
            }
            return .complete(.success)
        } catch {
            return .complete(error)
        }
    }

    // MARK: Identify

    private func identify(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let page: [UInt8]
        // CNS.
        switch entry.words[10][bits: 0...7] {
        case 0x00:
            try checkNamespace(entry)
            page = IdentifyPages.namespace(
                image,
                blockByteCount: parameters.logicalBlockByteCount,
                identity
            )
        case 0x01: page = IdentifyPages.controller(parameters, identity)
        case 0x02:
            guard entry.namespace < 0xFFFF_FFFE else { throw .invalidNamespace }
            page = IdentifyPages.activeNamespaces(above: entry.namespace)
        case 0x03:
            try checkNamespace(entry)
            page = IdentifyPages.namespaceDescriptors(identity)
        default: throw .invalidField
        }
        try worker.resolveData(entry, byteCount: page.count)
        try worker.scatter(page)
    }

    private func checkNamespace(_ entry: SubmissionEntry) throws(CommandStatus) {
        guard entry.namespace == 1 else { throw .invalidNamespace }
    }

    // MARK: Log pages

    private func getLogPage(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let identifier = UInt8(truncatingIfNeeded: entry.words[10])
        let page: [UInt8]
        switch identifier {
        case LogPageIdentifier.errorInformation: page = errorLog.page
        case LogPageIdentifier.health:
            // Of the controller; LPA says that there is none of a namespace.
            guard entry.namespace == 0 || entry.namespace == broadcastNamespace else { throw .invalidField }
            page = LogPages.health(totals, errorCount: errorLog.count)
        case LogPageIdentifier.firmwareSlots: page = LogPages.firmwareSlots
        case LogPageIdentifier.commandEffects: page = LogPages.commandEffects
        default: throw .invalidLogPage
        }
        // NUMDL and NUMDU, a count of dwords less one; LPOL and LPOU, an offset in bytes.
        let dwords = UInt64(entry.words[10][bits: 16...31]) | UInt64(entry.words[11][bits: 0...15]) << 16
        let offset = entry.doubleWord(12)
        guard offset & 3 == 0, offset <= UInt64(page.count) else { throw .invalidField }
        let wanted = (dwords + 1) * 4
        guard wanted <= 4096 << UInt64(IdentifyPages.transferSizeMax) else { throw .invalidField }
        // What lies beyond the page is nobody's to define, and stays as it is.
        let rest = page.dropFirst(Int(offset)).prefix(Int(wanted))
        try worker.resolveData(entry, byteCount: rest.count)
        try worker.scatter(Array(rest))
        // RAE keeps the event masked.
        guard !entry.words[10][bit: 15] else { return }
        switch identifier {
        case LogPageIdentifier.errorInformation: asynchronousEvents.unmask(type: 0)
        case LogPageIdentifier.health: asynchronousEvents.unmask(type: 1)
        default: break
        }
    }

    // MARK: Features

    /// - Returns: DW0.
    private func getFeatures(_ entry: SubmissionEntry) throws(CommandStatus) -> UInt64 {
        let feature = UInt8(truncatingIfNeeded: entry.words[10])
        guard FeatureIdentifier.all.contains(feature) else { throw .invalidField }
        let values: FeatureValues
        // SEL.
        switch entry.words[10][bits: 8...10] {
        case 0: values = features.withLock { $0 }
        // Default, and saved: what is not saveable has the default.
        case 1, 2: values = FeatureValues()
        // Supported capabilities: changeable in bit 2, of a namespace in bit 1, saveable in bit 0.
        case 3: return feature == FeatureIdentifier.errorRecovery ? 0b110 : 0b100
        default: throw .invalidField
        }
        let vectorCount = connection.withLock { $0.vectorCount }
        let selector = entry.words[11]
        if feature == FeatureIdentifier.interruptVector, Int(selector & 0xFFFF) >= vectorCount {
            throw .invalidField
        }
        guard let value = values.value(feature, selector, ioQueueCount: parameters.ioQueueCount) else {
            throw .invalidField
        }
        return UInt64(value)
    }

    /// - Returns: DW0.
    private func setFeatures(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) -> UInt64
    {
        let feature = UInt8(truncatingIfNeeded: entry.words[10])
        guard FeatureIdentifier.all.contains(feature) else { throw .invalidField }
        guard !entry.words[10][bit: 31] else { throw .featureNotSaveable }
        if feature == FeatureIdentifier.errorRecovery {
            guard entry.namespace == 1 || entry.namespace == broadcastNamespace else {
                throw .invalidNamespace
            }
        } else {
            guard entry.namespace == 0 || entry.namespace == broadcastNamespace else {
                throw entry.namespace == 1 ? .featureNotOfNamespace : .invalidNamespace
            }
        }
        let value = entry.words[11]
        if feature == FeatureIdentifier.numberOfQueues { return try setQueueCount(value) }
        let vectorCount = connection.withLock { $0.vectorCount }
        guard features.withLock({ $0.set(feature, value, vectorCount: vectorCount) }) else {
            throw .invalidField
        }
        if feature == FeatureIdentifier.volatileWriteCache { try setWriteCache(value & 1 != 0, worker) }
        return 0
    }

    private func setQueueCount(_ value: UInt32) throws(CommandStatus) -> UInt64 {
        guard value & 0xFFFF != 0xFFFF, value >> 16 != 0xFFFF else { throw .invalidField }
        guard queues.withLock({ $0.submissions.count == 1 && $0.completions.count == 1 }) else {
            throw .commandSequenceError
        }
        // Software may ask for any number; this is what there is.
        let count = UInt64(parameters.ioQueueCount - 1)
        return count | count << 16
    }

    private func setWriteCache(_ isEnabled: Bool, _ worker: QueueWorker) throws(CommandStatus) {
        isWriteCacheEnabled.store(isEnabled, ordering: .releasing)
        guard !isEnabled, !image.isReadOnly else { return }
        // Nothing of before stays in a cache that is off.
        do throws(Errno) { try image.flush() } catch { throw .writeFault }
    }

    // MARK: Abort

    /// - Returns: DW0: bit 0 is 1 where the command was not aborted.
    private func abort(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) -> UInt64 {
        let queue = UInt16(truncatingIfNeeded: entry.words[10])
        let command = UInt16(truncatingIfNeeded: entry.words[10] >> 16)
        guard queues.withLock({ $0.submissions[queue] != nil }) else { throw .invalidField }
        // Others are executed when they are fetched: there is none to abort.
        guard queue == 0, asynchronousEvents.removeRequest(command) else { return 1 }
        do throws(DMAFault) { try worker.abort(command) } catch { fail() }
        return 0
    }
}
