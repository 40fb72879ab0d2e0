// Transactions that stalled on a fault: who waits, by which STAG software names them, and how they go on.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization

/// How a stalled transaction goes on.
enum StallResolution: Sendable {
    /// As a new transaction: configuration and translation are looked up again.
    case retry
    case abort
    case readAsZeroWriteIgnored
}

/// One transaction that waits.
final class StalledTransaction: Sendable {
    private let resolution = Mutex<StallResolution?>(nil)
    private let semaphore = Semaphore()

    /// Lets it go on; only the first word counts.
    func resolve(_ value: StallResolution) {
        let isFirst = resolution.withLock { resolution in
            defer { if resolution == nil { resolution = value } }
            return resolution == nil
        }
        if isFirst { semaphore.signal() }
    }

    /// Waits until it may go on.
    ///
    /// Once, on the requester's thread, outside of its transaction.
    func wait() -> StallResolution {
        semaphore.wait()
        return resolution.withLock { $0 } ?? .abort
    }
}

/// The stalled transactions of one SMMU, guarded by the registers' lock.
struct StallTable: Sendable {
    private struct Entry: Sendable {
        let streamID: StreamID
        let transaction: StalledTransaction
    }

    /// Those whose event software can see, by STAG.
    private var recorded: [UInt16: Entry] = [:]
    /// Those whose event found no room: each tries again when there may be some.
    ///
    /// At most one for each requester's thread.
    private var unrecorded: [Entry] = []
    /// The STAG to try first: one that was given back is used again as late as possible.
    private var nextSTAG: UInt16 = 0
    /// STAGs are 0 up to this.
    private let capacity: UInt16
    /// Nobody waits any longer: the machine stops.
    private(set) var hasEnded = false

    /// - Parameter capacity: SMMU_IDR5.STALL_MAX: how many stalls can be recorded at a time.
    init(capacity: UInt16) { self.capacity = max(1, capacity) }

    /// How many wait, with and without a record.
    var counts: (recorded: Int, unrecorded: Int) { (recorded.count, unrecorded.count) }

    /// A STAG that names no transaction; nil where every one does.
    var freeSTAG: UInt16? {
        guard recorded.count < Int(capacity) else { return nil }
        var stag = nextSTAG
        while recorded[stag] != nil { stag = next(after: stag) }
        return stag
    }

    private func next(after stag: UInt16) -> UInt16 { stag &+ 1 < capacity ? stag &+ 1 : 0 }

    /// A transaction whose event is in the queue now.
    mutating func insert(_ streamID: StreamID, stag: UInt16) -> StalledTransaction {
        let transaction = StalledTransaction()
        recorded[stag] = Entry(streamID: streamID, transaction: transaction)
        nextSTAG = next(after: stag)
        return transaction
    }

    /// A transaction whose event cannot be recorded now.
    mutating func insertUnrecorded(_ streamID: StreamID) -> StalledTransaction {
        let transaction = StalledTransaction()
        unrecorded.append(Entry(streamID: streamID, transaction: transaction))
        return transaction
    }

    /// There may be room for a record: those without one try again.
    mutating func retryUnrecorded() {
        for entry in unrecorded { entry.transaction.resolve(.retry) }
        unrecorded.removeAll()
    }

    /// CMD_RESUME; of no effect where the STAG names no transaction of that stream.
    mutating func resume(_ streamID: StreamID, stag: UInt16, _ resolution: StallResolution) {
        guard let entry = recorded[stag], entry.streamID == streamID else { return }
        recorded[stag] = nil
        entry.transaction.resolve(resolution)
        retryUnrecorded()
    }

    /// CMD_STALL_TERM.
    mutating func terminate(_ streamID: StreamID) {
        terminate { $0 == streamID }
        retryUnrecorded()
    }

    /// SMMUEN 1 -> 0, and reset.
    mutating func terminateAll() { terminate { _ in true } }

    private mutating func terminate(where isMeant: (StreamID) -> Bool) {
        for (stag, entry) in recorded where isMeant(entry.streamID) {
            entry.transaction.resolve(.abort)
            recorded[stag] = nil
        }
        for entry in unrecorded where isMeant(entry.streamID) { entry.transaction.resolve(.abort) }
        unrecorded.removeAll { isMeant($0.streamID) }
    }

    /// Aborts all that wait, and lets nobody wait any more.
    mutating func end() {
        hasEnded = true
        terminateAll()
    }
}

extension SMMUv3 {
    /// Aborts the transactions that are stalled, and from now on those that would.
    ///
    /// Before the threads of requesters are waited for.
    package func endStalls() { registers.withLock { $0.stalls.end() } }

    /// Notes that a transaction stalls on a fault, and records its event.
    ///
    /// Called inside the transaction. Where the event cannot be recorded now, nothing is lost and nothing
    /// overflows (IHI 0070, 3.12.2): the transaction is retried when it can, and faults again if it still does.
    ///
    /// - Returns: What to wait for outside of the transaction; nil where it is to be aborted at once.
    func stall(_ fault: TranslationFault, _ transaction: Transaction) -> StalledTransaction? {
        let (result, hasMessages) = registers.withLock { registers in
            // `fault` may be of before SMMUEN was cleared, which has terminated all that were stalled.
            guard !registers.stalls.hasEnded, registers.cr0ack.smmuen, var record = fault.record else {
                return (nil as StalledTransaction?, false)
            }
            guard let stag = registers.stalls.freeSTAG else {
                return (registers.stalls.insertUnrecorded(transaction.streamID), false)
            }
            record.stall = true
            record.stag = stag
            let result: StalledTransaction
            if enqueue(record, isStalled: true, in: &registers) == .recorded {
                count(.faults)
                count(.stalls)
                log(record, .recorded, fault.reason, in: &registers)
                result = registers.stalls.insert(transaction.streamID, stag: stag)
            } else {
                result = registers.stalls.insertUnrecorded(transaction.streamID)
            }
            return (result, registers.messages.hasUnsent)
        }
        if hasMessages { sendMessages() }
        return result
    }

    /// CMD_RESUME and CMD_STALL_TERM.
    func resolveStalls(_ command: Command) -> CommandOutcome {
        guard identification.idr0.stallModel != 0b01 else { return .failed(.cerrorIll) }
        registers.withLock { registers in
            guard command.opcode == .resume else { return registers.stalls.terminate(command.streamID) }
            let termination: StallResolution =
                command.ab || identification.idr0.termModel ? .abort : .readAsZeroWriteIgnored
            registers.stalls.resume(
                command.streamID,
                stag: command.stag,
                command.ac ? .retry : termination
            )
        }
        return .done
    }
}
