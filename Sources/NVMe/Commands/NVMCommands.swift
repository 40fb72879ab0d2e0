// The NVM command set: what I/O queues execute.

import BitFields
import BlockStorage
import Synchronization
import SystemPackage

extension ControllerCore {
    /// Executes a command of an I/O queue, on its worker's thread.
    func executeNVM(_ entry: SubmissionEntry, _ worker: QueueWorker) -> CommandOutcome {
        do throws(CommandStatus) {
            guard entry.fusedOperation == 0 else { throw .invalidField }
            switch entry.opcode {
            case NVMOpcode.flush: try flush(entry, worker)
            case NVMOpcode.read: try read(entry, worker)
            case NVMOpcode.write: try write(entry, worker)
            case NVMOpcode.compare: try compare(entry, worker)
            case NVMOpcode.writeZeroes: try writeZeroes(entry, worker)
            case NVMOpcode.datasetManagement: try manageDataset(entry, worker)
            default: throw .invalidOpcode
            }
            return .complete(.success)
        } catch {
            if error.rawValue & 0x700 == 0x200, error != .compareFailure {
                totals.mediaErrors.wrappingAdd(1, ordering: .relaxed)
            }
            return .complete(error)
        }
    }

    /// FUA, of CDW12.
    private func forcesUnitAccess(_ entry: SubmissionEntry) -> Bool { entry.words[12][bit: 30] }

    /// The bytes of the image that CDW10 to CDW12 name.
    private func extent(_ entry: SubmissionEntry, isTransfer: Bool) throws(CommandStatus)
        -> (offset: UInt64, byteCount: UInt64)
    {
        guard entry.namespace == 1 else { throw .invalidNamespace }
        let blockByteCount = UInt64(parameters.logicalBlockByteCount)
        let count = UInt64(entry.words[12][bits: 0...15]) + 1
        let byteCount = count * blockByteCount
        if isTransfer, byteCount > 4096 << UInt64(IdentifyPages.transferSizeMax) { throw .invalidField }
        let first = entry.doubleWord(10)
        guard first <= blockCount, count <= blockCount - first else { throw .outOfRange }
        return (first * blockByteCount, byteCount)
    }

    private func read(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (offset, byteCount) = try extent(entry, isTransfer: true)
        try worker.resolveData(entry, byteCount: Int(byteCount))
        // What is read with FUA is on stable storage.
        if forcesUnitAccess(entry), !image.isReadOnly { try flushImage(worker) }
        try worker.readImage(at: offset)
        totals.readCommands.wrappingAdd(1, ordering: .relaxed)
        totals.bytesRead.wrappingAdd(byteCount, ordering: .relaxed)
        worker.queue.counters.bytes.wrappingAdd(byteCount, ordering: .relaxed)
    }

    private func write(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (offset, byteCount) = try extent(entry, isTransfer: true)
        guard !image.isReadOnly else { throw .namespaceWriteProtected }
        try worker.resolveData(entry, byteCount: Int(byteCount))
        try worker.writeImage(at: offset)
        try flushIfWrittenThrough(entry, worker)
        totals.writeCommands.wrappingAdd(1, ordering: .relaxed)
        totals.bytesWritten.wrappingAdd(byteCount, ordering: .relaxed)
        worker.queue.counters.bytes.wrappingAdd(byteCount, ordering: .relaxed)
    }

    private func compare(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (offset, byteCount) = try extent(entry, isTransfer: true)
        try worker.resolveData(entry, byteCount: Int(byteCount))
        guard try worker.compareImage(at: offset) else { throw .compareFailure }
        worker.queue.counters.bytes.wrappingAdd(byteCount, ordering: .relaxed)
    }

    private func writeZeroes(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        let (offset, byteCount) = try extent(entry, isTransfer: false)
        guard !image.isReadOnly else { throw .namespaceWriteProtected }
        worker.signal()
        do throws(Errno) {
            // DEAC, bit 25 of CDW12: they may be deallocated.
            try image.writeZeroes(at: offset, byteCount: byteCount, mayUnmap: entry.words[12][bit: 25])
        } catch {
            throw QueueWorker.status(error, isWrite: true)
        }
        try flushIfWrittenThrough(entry, worker)
    }

    private func manageDataset(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        guard entry.namespace == 1 else { throw .invalidNamespace }
        guard !image.isReadOnly else { throw .namespaceWriteProtected }
        let count = Int(entry.words[10][bits: 0...7]) + 1
        try worker.resolveData(entry, byteCount: count * 16)
        let bytes = try worker.gather(byteCount: count * 16)
        // AD, deallocate; the other attributes are hints.
        guard entry.words[11][bit: 2] else { return }
        let blockByteCount = UInt64(parameters.logicalBlockByteCount)
        let ranges: [(first: UInt64, count: UInt64)] = bytes.withUnsafeBytes { bytes in
            (0..<count).map { index in
                let count = bytes.loadUnaligned(fromByteOffset: index * 16 + 4, as: UInt32.self)
                let first = bytes.loadUnaligned(fromByteOffset: index * 16 + 8, as: UInt64.self)
                return (UInt64(littleEndian: first), UInt64(UInt32(littleEndian: count)))
            }
        }
        for range in ranges {
            guard range.first <= blockCount, range.count <= blockCount - range.first else {
                throw .outOfRange
            }
        }
        worker.signal()
        for range in ranges where range.count > 0 {
            do throws(Errno) {
                try image.discard(
                    at: range.first * blockByteCount,
                    byteCount: range.count * blockByteCount
                )
            } catch {
                throw QueueWorker.status(error, isWrite: true)
            }
        }
    }

    // MARK: The write cache

    private func flush(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus) {
        guard entry.namespace == 1 || entry.namespace == broadcastNamespace else { throw .invalidNamespace }
        try flushImage(worker)
    }

    /// Before a write is acknowledged that asks for FUA, or while the write cache is off.
    private func flushIfWrittenThrough(_ entry: SubmissionEntry, _ worker: QueueWorker) throws(CommandStatus)
    {
        guard forcesUnitAccess(entry) || !isWriteCacheEnabled.load(ordering: .acquiring) else { return }
        try flushImage(worker)
    }

    private func flushImage(_ worker: QueueWorker) throws(CommandStatus) {
        // It may take long: those who are done hear of it before.
        worker.signal()
        do throws(Errno) {
            try image.flush()
        } catch {
            throw QueueWorker.status(error, isWrite: true)
        }
    }
}
