// Events: the queue in memory, its overflow and aborts, GERROR, and the log that people read.

import AddressSpace
import DeviceModel
package import SMMUv3Spec
import Synchronization
import SystemBus

/// An event as it happened, whether or not the queue took it.
package struct LoggedEvent: Equatable, Sendable {
    package enum Disposition: String, Sendable {
        /// In the event queue.
        case recorded
        /// Lost: the queue was full.
        case overflow
        /// Lost: EVENTQEN is 0, or EVENTQ_ABT_ERR is active.
        case notWritable = "not-writable"
        /// Lost: the write to the queue was aborted.
        case aborted
        /// The configuration does not want it recorded (CD.R == 0, CR2.RECINVSID == 0).
        case notRecorded = "not-recorded"
    }

    /// Counts events of this SMMU from 1 on.
    package var sequence: UInt64
    package var record: EventRecord
    package var disposition: Disposition
    /// Why, in words.
    package var reason: String
}

/// Hears of every event.
///
/// A leaf: called under the registers' lock, so it notes the event and returns.
package protocol EventObserver: AnyObject, Sendable {
    func eventHappened(_ event: LoggedEvent, in smmu: SMMUv3)
}

/// The last events, in a ring.
struct EventLog: Sendable {
    private var events: [LoggedEvent] = []
    private(set) var nextSequence: UInt64 = 1
    private let capacity: Int
    var observers: [any EventObserver] = []

    init(capacity: Int) { self.capacity = capacity }

    mutating func append(_ record: EventRecord, _ disposition: LoggedEvent.Disposition, _ reason: String)
        -> LoggedEvent
    {
        let event = LoggedEvent(
            sequence: nextSequence,
            record: record,
            disposition: disposition,
            reason: reason
        )
        nextSequence &+= 1
        guard capacity > 0 else { return event }
        if events.count == capacity { events.removeFirst(max(1, capacity / 8)) }
        events.append(event)
        return event
    }

    /// The events after `sequence`, oldest first.
    func events(after sequence: UInt64) -> [LoggedEvent] {
        events.filter { $0.sequence > sequence }
    }
}

extension SMMUv3 {
    /// The events after a sequence number, oldest first; 0 is every event still kept.
    package func events(after sequence: UInt64 = 0) -> [LoggedEvent] {
        registers.withLock { $0.eventLog.events(after: sequence) }
    }

    /// Adds a listener to every event from now on.
    package func addEventObserver(_ observer: any EventObserver) {
        registers.withLock { $0.eventLog.observers.append(observer) }
    }

    /// Records what a terminated transaction is to leave behind.
    ///
    /// Called inside the transaction, so that a CMD_SYNC that completes has every event of what it waited for in
    /// the queue.
    func report(_ fault: TranslationFault, _ transaction: Transaction) {
        count(.faults)
        guard let number = fault.event else { return }
        let hasMessages = registers.withLock { registers in
            let disposition: LoggedEvent.Disposition
            let record: EventRecord
            if let wanted = fault.record {
                record = wanted
                disposition = enqueue(wanted, in: &registers)
            } else {
                record = EventRecord(
                    number,
                    streamID: transaction.streamID,
                    substreamID: transaction.attributes.substreamID
                )
                disposition = .notRecorded
            }
            log(record, disposition, fault.reason, in: &registers)
            return registers.messages.hasUnsent
        }
        if hasMessages { sendMessages() }
    }

    /// Counts an event, keeps it for people and tells those who listen.
    func log(
        _ record: EventRecord,
        _ disposition: LoggedEvent.Disposition,
        _ reason: String,
        in registers: inout RegisterFile
    ) {
        count(disposition == .recorded ? .eventsRecorded : .eventsDropped)
        let event = registers.eventLog.append(record, disposition, reason)
        for observer in registers.eventLog.observers { observer.eventHappened(event, in: self) }
    }

    /// Appends to the event queue (IHI 0070, 3.5.3 and 7.2).
    ///
    /// Under the registers' lock, so that PROD, OVFLG and the interrupt tell one story.
    ///
    /// - Parameter isStalled: The event of a stalled transaction, which is never lost and so never overflows.
    func enqueue(_ record: EventRecord, isStalled: Bool = false, in registers: inout RegisterFile)
        -> LoggedEvent.Disposition
    {
        guard registers.cr0ack.eventqen, !registers.activeErrors.eventqAbtErr else { return .notWritable }
        let log2Entries = registers.eventqLog2Entries
        let producer = QueueIndex(registers.eventqProd.wr, log2Entries: log2Entries)
        let consumer = QueueIndex(registers.eventqCons.rd, log2Entries: log2Entries)
        // Indices that no queue can have are treated as full: nothing that software has not read is overwritten.
        guard let used = producer.entries(after: consumer), used < 1 &<< UInt32(log2Entries) else {
            if !isStalled, registers.eventqProd.ovflg == registers.eventqCons.ovackflg {
                registers.eventqProd.ovflg.toggle()
            }
            return .overflow
        }
        let address = RegisterFile.entryAddress(
            registers.eventqBase,
            producer,
            entryBytes: UInt64(EventRecord.byteCount),
            below: registers.outputAddressLimit
        )
        do {
            try bus.storeRAM64x4(record.words, at: PhysicalAddress(address))
        } catch {
            raiseGlobalError(in: &registers) { $0.eventqAbtErr.toggle() }
            return .aborted
        }
        registers.eventqProd.wr = producer.next.rawValue
        // The interrupt is for the change from empty to non-empty alone.
        if used == 0 { interrupt(.eventQueue, in: &registers) }
        return .recorded
    }
}
