// The registers of one enhanced command queue.

import SMMUv3Spec
import Synchronization

/// SMMU_ECMDQ_BASE, PROD and CONS (IHI 0070, 3.5.6).
struct EnhancedCommandQueue: Sendable {
    var base = QueueBase(rawValue: 0)
    var prod = ECMDQProd(rawValue: 0)
    var cons = ECMDQCons(rawValue: 0)

    static func all(of identification: Identification) -> [EnhancedCommandQueue] {
        Array(repeating: EnhancedCommandQueue(), count: identification.enhancedQueueCount)
    }

    /// EN and ENACK say that commands are consumed, if there are any and no error stops them.
    var isEnabled: Bool { prod.en && cons.enack }

    /// EN and ENACK say that software owns all of it.
    var isDisabled: Bool { !prod.en && !cons.enack }

    /// Whether an error stops it.
    var hasError: Bool { cons.err != prod.errack }

    func log2Entries(_ identification: Identification) -> UInt8 {
        min(base.log2size, identification.idr1.cmdqs)
    }

    func producer(_ identification: Identification) -> QueueIndex {
        QueueIndex(prod.wr, log2Entries: log2Entries(identification))
    }

    func consumer(_ identification: Identification) -> QueueIndex {
        QueueIndex(cons.rd, log2Entries: log2Entries(identification))
    }

    /// The 32-bit word at an offset from BASE.
    func read(_ offset: UInt64, _ identification: Identification) -> UInt32 {
        switch offset {
        case ECMDQRegisterOffset.base, ECMDQRegisterOffset.base &+ 4:
            return base.rawValue.half(at: offset)
        case ECMDQRegisterOffset.prod:
            return prod.rawValue
        case ECMDQRegisterOffset.cons:
            var visible = cons
            visible.rd = consumer(identification).rawValue
            return visible.rawValue
        default:
            return 0
        }
    }

    /// Writes the 32-bit word at an offset from BASE.
    mutating func write(_ value: UInt32, at offset: UInt64) -> WriteConsequences {
        switch offset {
        case ECMDQRegisterOffset.base, ECMDQRegisterOffset.base &+ 4:
            guard isDisabled else { return [] }
            base.rawValue = base.rawValue.replacingHalf(at: offset, by: value) & 0x400F_FFFF_FFFF_FFFF
        case ECMDQRegisterOffset.prod:
            // Not while EN is on its way to ENACK.
            guard isDisabled || isEnabled else { return [] }
            prod.rawValue = value & 0x808F_FFFF
            // ENACK 1 -> 0 comes from the consumer, when the current command has finished.
            if prod.en { cons.enack = true }
            return .commandQueue
        case ECMDQRegisterOffset.cons:
            guard isDisabled else { return [] }
            cons.rawValue = value & 0x078F_FFFF
        default:
            break
        }
        return []
    }
}

extension RegisterFile {
    /// Which enhanced command queue's registers are at an offset from page 0, and the offset from its BASE.
    func enhancedQueue(at offset: UInt64) -> (queue: Int, register: UInt64)? {
        let page = identification.commandQueueControlPage
        guard identification.idr1.ecmdq, offset >= page, offset &- page < 0x1_0000 else { return nil }
        let spacing = identification.enhancedQueueSpacing
        let queue = Int(truncatingIfNeeded: (offset &- page) / spacing)
        guard enhancedQueues.indices.contains(queue) else { return nil }
        return (queue, (offset &- page) % spacing)
    }

    /// Whether CR1.QUEUE_* are in use by an enhanced command queue.
    var hasEnabledEnhancedQueue: Bool { enhancedQueues.contains { !$0.isDisabled } }
}

extension EnhancedCommandQueue {
    /// Moves CONS on.
    ///
    /// - Returns: Whether the queue was full.
    mutating func advance(past index: QueueIndex, _ identification: Identification) -> Bool {
        let entries: UInt32 = 1 &<< UInt32(log2Entries(identification))
        let wasFull = producer(identification).entries(after: consumer(identification)) == entries
        cons.rd = index.next.rawValue
        return wasFull
    }

    /// Stops at the command at CONS: ERR_REASON, then ERR.
    mutating func fail(_ error: CommandError) {
        cons.errReason = error
        // Software that made ERRACK differ while there was no error has stopped the queue: leave it so.
        if !hasError { cons.err.toggle() }
    }
}

extension EnhancedCommandQueue {
    /// Whether the consumer has something to do: a command, or to acknowledge that the queue is off.
    func isBusy(_ identification: Identification) -> Bool {
        guard isEnabled else { return !isDisabled }
        return !hasError && producer(identification) != consumer(identification)
    }
}

extension SMMUv3 {
    /// The first enhanced command queue from a number on that the consumer has something to do for.
    func nextBusyQueue(from first: Int) -> Int? {
        registers.withLock { registers in
            registers.enhancedQueues.indices.dropFirst(first).first {
                registers.enhancedQueues[$0].isBusy(identification)
            }
        }
    }

    /// The command that an enhanced command queue's CONS points at, if it may be executed now.
    func nextCommand(ofEnhancedQueue number: Int) -> PendingCommand? {
        registers.withLock { registers in
            let queue = registers.enhancedQueues[number]
            guard queue.isEnabled else {
                // Nothing is being executed now: EN 1 -> 0 is complete.
                if !queue.prod.en { registers.enhancedQueues[number].cons.enack = false }
                return nil
            }
            let consumer = queue.consumer(identification)
            guard !queue.hasError,
                let waiting = queue.producer(identification).entries(after: consumer), waiting > 0
            else { return nil }
            let address = RegisterFile.entryAddress(
                queue.base,
                consumer,
                entryBytes: UInt64(Command.byteCount),
                below: registers.outputAddressLimit
            )
            return PendingCommand(queue: number, index: consumer, address: address, epoch: registers.epoch)
        }
    }
}
