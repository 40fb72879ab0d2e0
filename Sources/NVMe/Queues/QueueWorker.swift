// The thread of one submission queue: fetch, execute, complete.

import AddressSpace
import DeviceModel
import Glibc
import HostIO
import Synchronization

/// What became of a command.
enum CommandOutcome {
    /// It is done, with what DW0 and DW1 say.
    case complete(CommandStatus, result: UInt64 = 0)
    /// It stays outstanding: an Asynchronous Event Request.
    case outstanding
}

/// Takes commands from one queue, in their order.
///
/// Confined to its thread.
final class QueueWorker {
    let controller: ControllerCore
    let queue: SubmissionQueue
    let port: any DMAPort
    /// CC.MPS in bytes.
    let pageByteCount: UInt64
    /// The data of the command at hand; kept for its memory.
    var ranges: [DMARange] = []
    private var head: UInt32 = 0
    /// Completions that were posted since the last interrupt.
    private var unsignalledCount = 0
    private let batch = UnsafeMutableRawBufferPointer.allocate(
        byteCount: QueueWorker.batchCount * SubmissionEntry.byteCount,
        alignment: 64
    )
    /// Where PRP lists and SGL segments are read into.
    let listBuffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 64)
    private var scratchBuffer: UnsafeMutableRawBufferPointer?
    private var wait: WorkWait

    /// How many commands are fetched at once.
    private static let batchCount = 16
    /// How many completions may wait for their interrupt while more commands are at hand.
    private static let unsignalledCountMax = 8

    init(_ controller: ControllerCore, _ queue: SubmissionQueue, _ port: any DMAPort, pageByteCount: UInt64) {
        self.controller = controller
        self.queue = queue
        self.port = port
        self.pageByteCount = pageByteCount
        // The admin queue's commands come one by one, and events are due there without one.
        wait = WorkWait(limitMicroseconds: queue.id == 0 ? 0 : controller.parameters.pollMicroseconds)
    }

    deinit {
        batch.deallocate()
        listBuffer.deallocate()
        scratchBuffer?.deallocate()
    }

    /// Memory to copy through where none can be lent.
    var scratch: UnsafeMutableRawBufferPointer {
        if let scratchBuffer { return scratchBuffer }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 4096)
        scratchBuffer = buffer
        return buffer
    }

    /// Works until the queue is stopped.
    func run() {
        while !queue.isStopping {
            guard !controller.isHalted else {
                queue.wake.wait()
                continue
            }
            do throws(DMAFault) {
                try deliverEvents()
                let tail = try currentTail()
                if head == tail {
                    signal()
                    if try !polls() { try sleep() }
                } else {
                    wait.found()
                    try execute(upTo: tail)
                }
            } catch {
                // A queue that cannot be reached: nobody can be told of it but by CSTS.
                controller.fail()
            }
        }
        // Of a queue that was deleted, what is completed is told.
        if !controller.isHalted { signal() }
    }

    private func currentTail() throws(DMAFault) -> UInt32 {
        guard let value = try queue.shadow.load(port) else { return queue.tailValue }
        return checked(value)
    }

    /// What a doorbell in memory says, where the queue has such an entry.
    private func checked(_ value: UInt32) -> UInt32 {
        guard value < queue.entryCount else {
            controller.report(.invalidDoorbellValue)
            return head
        }
        queue.note(tail: value)
        return value
    }

    /// Looks for a command for a while, where that pays; whether there may be something to do.
    private func polls() throws(DMAFault) -> Bool {
        var isTail = true
        let hasWork = try wait.looks { () throws(DMAFault) in
            if queue.isStopping || controller.isHalted { return true }
            let tail = try queue.shadow.load(port) ?? queue.tailValue
            isTail = tail < queue.entryCount
            return tail != head
        }
        // What is no tail ends the looking: it is reported before the sleep, once.
        return hasWork && isTail
    }

    /// Sleeps until there may be something to do.
    private func sleep() throws(DMAFault) {
        queue.prepareToSleep()
        let tail = try queue.shadow.arm(head, port).map { checked($0) } ?? queue.tailValue
        if tail == head, !queue.isStopping {
            port.rest()
            queue.wake.wait()
        }
        queue.awake()
    }

    private func execute(upTo tail: UInt32) throws(DMAFault) {
        let inRow = tail > head ? tail - head : queue.entryCount - head
        let count = min(Int(inRow), Self.batchCount)
        let place = queue.base &+ UInt64(head) &* UInt64(SubmissionEntry.byteCount)
        try port.read(
            at: IOVirtualAddress(place),
            into: UnsafeMutableRawBufferPointer(rebasing: batch[..<(count * SubmissionEntry.byteCount)]),
            .plain
        )
        for index in 0..<count {
            let start = index * SubmissionEntry.byteCount
            let entry = SubmissionEntry(
                UnsafeRawBufferPointer(rebasing: batch[start..<start + SubmissionEntry.byteCount])
            )
            head = head + 1 == queue.entryCount ? 0 : head + 1
            // A controller that was reset completes nothing.
            guard !controller.isHalted else { return }
            try deliverEvents()
            let outcome: CommandOutcome =
                queue.isStopping
                ? .complete(.abortedByQueueDeletion) : controller.execute(entry, self)
            queue.counters.commands.wrappingAdd(1, ordering: .relaxed)
            guard case .complete(let status, let result) = outcome else { continue }
            try complete(entry, status, result)
        }
    }

    private func complete(_ entry: SubmissionEntry, _ status: CommandStatus, _ result: UInt64)
        throws(DMAFault)
    {
        var status = status
        if !status.isSuccess {
            queue.counters.errors.wrappingAdd(1, ordering: .relaxed)
            controller.errorLog.add(entry, status, queue: queue.id)
            status = status.withMore
        }
        try post(
            CompletionEntry(
                result: result,
                submissionQueueHead: UInt16(truncatingIfNeeded: head),
                submissionQueue: queue.id,
                commandIdentifier: entry.commandIdentifier,
                status: status
            )
        )
    }

    /// Posts an entry as soon as there is room; not at all where the queue is stopped before.
    private func post(_ entry: CompletionEntry) throws(DMAFault) {
        let completionQueue = queue.completionQueue
        let wantsHead = completionQueue.shadow.isEnabled && controller.wantsHeads
        if try !completionQueue.post(entry, port, wantsHead: wantsHead) {
            signal()
            completionQueue.beginWaiting(queue.wake)
            defer { completionQueue.endWaiting(queue.wake) }
            while try !completionQueue.post(entry, port, wantsHead: wantsHead) {
                guard !queue.isStopping, !controller.isHalted else { return }
                queue.wake.wait()
            }
        }
        unsignalledCount += 1
        if unsignalledCount >= Self.unsignalledCountMax { signal() }
    }

    /// Interrupts for what was posted since the last time.
    func signal() {
        guard unsignalledCount > 0 else { return }
        unsignalledCount = 0
        controller.interrupt(for: queue.completionQueue)
    }

    /// Completes Asynchronous Event Requests that have an event.
    private func deliverEvents() throws(DMAFault) {
        guard queue.id == 0 else { return }
        while let (commandIdentifier, event) = controller.asynchronousEvents.takeDeliverable() {
            try post(
                CompletionEntry(
                    result: UInt64(event.dword),
                    submissionQueueHead: UInt16(truncatingIfNeeded: head),
                    submissionQueue: 0,
                    commandIdentifier: commandIdentifier,
                    status: .success
                )
            )
        }
    }

    /// Completes an outstanding command with an error: what Abort does to an Asynchronous Event Request.
    func abort(_ commandIdentifier: UInt16) throws(DMAFault) {
        try post(
            CompletionEntry(
                result: 0,
                submissionQueueHead: UInt16(truncatingIfNeeded: head),
                submissionQueue: 0,
                commandIdentifier: commandIdentifier,
                status: .abortRequested
            )
        )
    }
}
