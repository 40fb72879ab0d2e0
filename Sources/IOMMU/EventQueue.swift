// The event queue as its reader keeps it.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec

/// The event queue's memory and how far it has been read.
struct EventQueue {
    let memory: OwnedFrames
    let log2Count: Int
    /// EVENTQ_CONS.RD with its wrap bit.
    private var consumer: UInt32 = 0
    /// EVENTQ_CONS.OVACKFLG: the overflow that was acknowledged last.
    private var acknowledgedOverflow = false
    /// The overflow that was told last.
    private var reportedOverflow = false

    init(memory: OwnedFrames, log2Count: Int) {
        self.memory = memory
        self.log2Count = log2Count
    }

    /// EVENTQ_BASE.
    var base: QueueBase {
        var base = QueueBase()
        base.addr = memory.address.rawValue
        base.log2size = UInt8(log2Count)
        base.hint = true
        return base
    }

    /// Both indices are 0 again.
    mutating func restart() { self = EventQueue(memory: memory, log2Count: log2Count) }

    /// Takes all records, and acknowledges an overflow at the end.
    ///
    /// - Parameters:
    ///   - registers: Where EVENTQ_PROD and EVENTQ_CONS are.
    ///   - rounds: How often to look for more: a device that faults faster than we read must not keep us.
    ///   - log: Where overflows are told.
    ///   - handle: Called for each record.
    /// - Returns: Whether there may be more.
    mutating func drain(
        _ registers: RegisterPort,
        rounds: Int,
        log: DriverLog,
        _ handle: (EventRecord) -> Void
    ) throws(SMMUDriverError) -> Bool {
        for _ in 0..<rounds {
            let producer = OutputQueueProd(rawValue: try registers.read32(RegisterOffset.eventqProd))
            if producer.ovflg != reportedOverflow {
                reportedOverflow = producer.ovflg
                log.note(.error, "EVTQ overflow detected -- events lost")
            }
            let indexMask = (UInt32(2) << UInt32(log2Count)) &- 1
            let count = (producer.wr &- consumer) & indexMask
            guard count > 0 else {
                try acknowledgeOverflow(producer, registers)
                return false
            }
            guard count <= 1 << UInt32(log2Count) else {
                log.note(.error, "EVTQ producer 0x\(hex(producer.rawValue)) is beyond the queue")
                return false
            }
            for _ in 0..<count {
                let record = try read(registers.access)
                consumer = (consumer &+ 1) & indexMask
                try writeConsumer(registers)
                handle(record)
            }
        }
        return true
    }

    private func read(_ access: any PhysicalAccess) throws(SMMUDriverError) -> EventRecord {
        let slot = UInt64(consumer & ((1 << UInt32(log2Count)) &- 1))
        let address = memory.address.rawValue &+ slot &* UInt64(EventRecord.byteCount)
        var words = SIMD4<UInt64>()
        do {
            for index in 0..<4 {
                words[index] = try access.load(
                    .doubleword,
                    at: PhysicalAddress(address &+ UInt64(index) &* 8)
                )
            }
        } catch { throw .bus(error) }
        return EventRecord(words: words)
    }

    private mutating func acknowledgeOverflow(_ producer: OutputQueueProd, _ registers: RegisterPort)
        throws(SMMUDriverError)
    {
        guard producer.ovflg != acknowledgedOverflow else { return }
        acknowledgedOverflow = producer.ovflg
        try writeConsumer(registers)
    }

    private func writeConsumer(_ registers: RegisterPort) throws(SMMUDriverError) {
        var value = OutputQueueCons()
        value.rd = consumer
        value.ovackflg = acknowledgedOverflow
        try registers.write32(RegisterOffset.eventqCons, value.rawValue)
    }
}
