// Creating and deleting I/O queues, and their doorbells in memory.

import AddressSpace
import BitFields
import DeviceModel
import PCIFunction
import Synchronization

extension ControllerCore {
    /// QID and QSIZE of CDW10, checked, and PRP1.
    private func newQueue(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus)
        -> (id: UInt16, entryCount: UInt32, base: UInt64)
    {
        let id = UInt16(truncatingIfNeeded: entry.words[10])
        let entryCount = (entry.words[10] >> 16) + 1
        guard (1...UInt16(parameters.ioQueueCount)).contains(id) else { throw .invalidQueueIdentifier }
        guard entryCount >= 2, entryCount <= UInt32(parameters.queueEntryCountMax) else {
            throw .invalidQueueSize
        }
        // PC: queues are contiguous (CAP.CQR).
        guard entry.words[11][bit: 0] else { throw .invalidField }
        guard entry.prp1 & (worker.pageByteCount - 1) == 0 else { throw .invalidPRPOffset }
        return (id, entryCount, entry.prp1)
    }

    func createCompletionQueue(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (id, entryCount, base) = try newQueue(entry, worker)
        // Entries of 2^4 bytes, which software says by CC before.
        guard registers.withLock({ $0.configuration.completionEntrySize }) == 4 else {
            throw .invalidQueueSize
        }
        let vector = Int(entry.words[11] >> 16)
        let interruptsEnabled = entry.words[11][bit: 1]
        if interruptsEnabled { try checkVector(vector) }
        let queue = CompletionQueue(
            id: id,
            base: base,
            entryCount: entryCount,
            vector: vector,
            interruptsEnabled: interruptsEnabled
        )
        let (isFree, shadow) = queues.withLock { ($0.completions[id] == nil, $0.shadow) }
        guard isFree else { throw .invalidQueueIdentifier }
        if let shadow { try enable(queue.shadow, shadow.place(of: id, isCompletion: true), 0, worker) }
        queues.withLock { $0.completions[id] = queue }
    }

    private func checkVector(_ vector: Int) throws(CommandStatus) {
        let (function, vectorCount) = connection.withLock { ($0.function, $0.vectorCount) }
        // The pin is vector 0. More vectors than software enabled are none of its queues' to use, but a host that takes
        // vectors by itself enables them one by one: what the function has is the limit.
        let limit = function?.interruptMode == .intx ? 1 : vectorCount
        guard vector < limit else { throw .invalidInterruptVector }
    }

    func createSubmissionQueue(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (id, entryCount, base) = try newQueue(entry, worker)
        guard registers.withLock({ $0.configuration.submissionEntrySize }) == 6 else {
            throw .invalidQueueSize
        }
        let completionID = UInt16(truncatingIfNeeded: entry.words[11] >> 16)
        guard (1...UInt16(parameters.ioQueueCount)).contains(completionID) else {
            throw .invalidQueueIdentifier
        }
        let (isFree, completions, shadow) = queues.withLock {
            ($0.submissions[id] == nil, $0.completions[completionID], $0.shadow)
        }
        guard isFree else { throw .invalidQueueIdentifier }
        guard let completions else { throw .invalidCompletionQueue }
        let queue = SubmissionQueue(
            id: id,
            base: base,
            entryCount: entryCount,
            completionQueue: completions
        )
        if let shadow { try enable(queue.shadow, shadow.place(of: id, isCompletion: false), 0, worker) }
        guard startWorker(queue, pageByteCount: worker.pageByteCount) else { throw .internalError }
    }

    func deleteSubmissionQueue(_ entry: SubmissionEntry) throws(CommandStatus) {
        let id = UInt16(truncatingIfNeeded: entry.words[10])
        guard id != 0, queues.withLock({ $0.submissions[id] != nil }) else { throw .invalidQueueIdentifier }
        // What was fetched is completed; what was not never is.
        joinWorker(id)
        queues.withLock { _ = $0.submissions.removeValue(forKey: id) }
    }

    func deleteCompletionQueue(_ entry: SubmissionEntry) throws(CommandStatus) {
        let id = UInt16(truncatingIfNeeded: entry.words[10])
        let status: CommandStatus? = queues.withLock { queues in
            guard id != 0, queues.completions[id] != nil else { return .invalidQueueIdentifier }
            guard !queues.submissions.values.contains(where: { $0.completionQueue.id == id }) else {
                return .invalidQueueDeletion
            }
            queues.completions[id] = nil
            return nil
        }
        if let status { throw status }
        updatePin()
    }

    // MARK: Doorbell Buffer Config

    /// Has I/O queues' doorbells in memory.
    ///
    /// The admin queue's stay registers: drivers do not write them to memory.
    func configureDoorbellBuffers(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let mask = worker.pageByteCount - 1
        guard entry.prp1 & mask == 0, entry.prp2 & mask == 0, entry.prp1 != 0, entry.prp2 != 0 else {
            throw .invalidField
        }
        let buffers = ShadowBuffers(doorbells: entry.prp1, eventIndexes: entry.prp2)
        let (submissions, completions) = queues.withLock { queues in
            (queues.submissions.values.filter { $0.id != 0 }, queues.completions.values.filter { $0.id != 0 })
        }
        do throws(CommandStatus) {
            for queue in completions {
                let place = buffers.place(of: queue.id, isCompletion: true)
                try enable(
                    queue.shadow,
                    place,
                    latest(queue.shadow, queue.headValue, queue.entryCount, worker),
                    worker
                )
            }
            for queue in submissions {
                let place = buffers.place(of: queue.id, isCompletion: false)
                try enable(
                    queue.shadow,
                    place,
                    latest(queue.shadow, queue.tailValue, queue.entryCount, worker),
                    worker
                )
            }
        } catch {
            // None, where not all: the registers go on to be the doorbells.
            for queue in completions { queue.shadow.disable() }
            for queue in submissions { queue.shadow.disable() }
            queues.withLock { $0.shadow = nil }
            throw error
        }
        queues.withLock { $0.shadow = buffers }
        // They sleep without having asked for a register write by the EventIdx.
        for queue in submissions { queue.wake.signal() }
    }

    /// What a doorbell says: in the memory that it had before, or in its register.
    private func latest(
        _ shadow: ShadowDoorbell,
        _ value: UInt32,
        _ entryCount: UInt32,
        _ worker: QueueWorker
    )
        throws(CommandStatus) -> UInt32
    {
        do throws(DMAFault) {
            guard let found = try shadow.load(worker.port), found < entryCount else { return value }
            return found
        } catch {
            throw .dataTransferError
        }
    }

    private func enable(
        _ shadow: ShadowDoorbell,
        _ place: (doorbell: UInt64, eventIndex: UInt64),
        _ value: UInt32,
        _ worker: QueueWorker
    ) throws(CommandStatus) {
        do throws(DMAFault) {
            try shadow.enable(
                doorbell: place.doorbell,
                eventIndex: place.eventIndex,
                value: value,
                worker.port
            )
        } catch {
            throw .dataTransferError
        }
    }
}
