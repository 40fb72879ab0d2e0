// The queues that the SMMU fills, as their reader keeps them: events and page requests.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec

/// An output queue's memory and how far it has been read.
struct OutputQueue {
    /// Which queue it is.
    enum Kind {
        case events
        case pageRequests

        /// The name in the kernel's log.
        var name: String { self == .events ? "EVTQ" : "PRIQ" }
        var lost: String { self == .events ? "events" : "requests" }
        var entryByteCount: UInt64 {
            UInt64(self == .events ? EventRecord.byteCount : PRIEntry.byteCount)
        }
        /// Where EVENTQ_PROD, or PRIQ_PROD, is.
        var producer: UInt64 { self == .events ? RegisterOffset.eventqProd : RegisterOffset.priqProd }
        /// Where EVENTQ_CONS, or PRIQ_CONS, is.
        var consumer: UInt64 { self == .events ? RegisterOffset.eventqCons : RegisterOffset.priqCons }
    }

    let kind: Kind
    let memory: OwnedFrames
    let log2Count: Int
    /// CONS.RD with its wrap bit.
    private var consumer: UInt32 = 0
    /// CONS.OVACKFLG: the overflow that was acknowledged last.
    private var acknowledgedOverflow = false
    /// The overflow that was told last.
    private var reportedOverflow = false
    /// An overflow was told, and its entries are not all taken yet.
    private var hasOverflowed = false

    init(_ kind: Kind, memory: OwnedFrames, log2Count: Int) {
        self.kind = kind
        self.memory = memory
        self.log2Count = log2Count
    }

    /// EVENTQ_BASE, or PRIQ_BASE.
    var base: QueueBase {
        var base = QueueBase()
        base.addr = memory.address.rawValue
        base.log2size = UInt8(log2Count)
        base.hint = true
        return base
    }

    /// Both indices are 0 again.
    mutating func restart() { self = OutputQueue(kind, memory: memory, log2Count: log2Count) }

    /// Takes all entries, and acknowledges an overflow at the end.
    ///
    /// - Parameters:
    ///   - registers: Where PROD and CONS are.
    ///   - rounds: How often to look for more: a device that faults faster than we read must not keep us.
    ///   - log: Where overflows are told.
    ///   - overflowed: Called after an overflow and the entries that were there, before it is acknowledged.
    ///   - handle: Called for each entry's words; those of a page request are the first two.
    /// - Returns: Whether there may be more.
    mutating func drain(
        _ registers: RegisterPort,
        rounds: Int,
        log: DriverLog,
        overflowed: () -> Void = {},
        _ handle: (SIMD4<UInt64>) -> Void
    ) throws(SMMUDriverError) -> Bool {
        for _ in 0..<rounds {
            let producer = OutputQueueProd(rawValue: try registers.read32(kind.producer))
            if producer.ovflg != reportedOverflow {
                reportedOverflow = producer.ovflg
                log.note(.error, "\(kind.name) overflow detected -- \(kind.lost) lost")
                hasOverflowed = true
            }
            let indexMask = (UInt32(2) << UInt32(log2Count)) &- 1
            let count = (producer.wr &- consumer) & indexMask
            guard count > 0 else {
                // Only now: what had come of a group before the overflow was taken in with the rest.
                if hasOverflowed {
                    hasOverflowed = false
                    overflowed()
                }
                try acknowledgeOverflow(producer, registers)
                return false
            }
            guard count <= 1 << UInt32(log2Count) else {
                log.note(.error, "\(kind.name) producer 0x\(hex(producer.rawValue)) is beyond the queue")
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

    private func read(_ access: any PhysicalAccess) throws(SMMUDriverError) -> SIMD4<UInt64> {
        let slot = UInt64(consumer & ((1 << UInt32(log2Count)) &- 1))
        let address = memory.address.rawValue &+ slot &* kind.entryByteCount
        var words = SIMD4<UInt64>()
        do {
            for index in 0..<Int(kind.entryByteCount / 8) {
                words[index] = try access.load(
                    .doubleword,
                    at: PhysicalAddress(address &+ UInt64(index) &* 8)
                )
            }
        } catch { throw .bus(error) }
        return words
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
        try registers.write32(kind.consumer, value.rawValue)
    }
}
