// What the controller's threads and its register accesses share.

import BlockStorage
import DeviceModel
import Glibc
import HostIO
import PCIFunction
import Synchronization
import SystemPackage

/// The controller without its face: what threads may hold without keeping the function alive.
///
/// Locks, none of which is held during DMA but a completion queue's posting lock:
/// 1. a completion queue's posting lock;
/// 2. the pin's;
/// 3. registers, queues, features, asynchronous events, error log: each a leaf of this target. Under the pin's, the
///    function's own is taken.
final class ControllerCore: Sendable {
    let image: RawImage
    let parameters: NVMeParameters
    let identity: NamespaceIdentity
    let registers = Mutex(RegisterState())
    let queues = Mutex(QueueTable())
    let features = Mutex(FeatureValues())
    let asynchronousEvents = AsynchronousEvents()
    let errorLog = ErrorLog()
    let totals = TransferTotals()
    /// What the control thread sleeps on.
    let control = Semaphore()

    /// INTMS and INTMC: 1s are masked vectors.
    let interruptMask = Atomic<UInt32>(0)
    /// MSI vectors that wait for INTMC.
    let pendingVectors = Atomic<UInt32>(0)
    /// Held while the pin's level is worked out and set, so that two do not set it in the wrong order.
    let pin = Mutex(())
    /// Feature 06h, where each write looks at it.
    let isWriteCacheEnabled = Atomic(true)

    /// Nothing more is fetched or completed: the controller failed, or is being stopped.
    private let haltFlag = Atomic(true)

    struct Connection: Sendable {
        weak var function: PCIFunction?
        var vectorCount = 1
    }
    let connection = Mutex(Connection())

    init(_ image: RawImage, _ parameters: NVMeParameters) {
        self.image = image
        self.parameters = parameters
        identity = NamespaceIdentity(serialNumber: parameters.serialNumber)
    }

    func connect(_ function: PCIFunction, vectorCount: Int) {
        connection.withLock { $0 = Connection(function: function, vectorCount: vectorCount) }
    }

    var function: PCIFunction? { connection.withLock { $0.function } }

    var isHalted: Bool { haltFlag.load(ordering: .acquiring) }
    func setHalted(_ isHalted: Bool) { haltFlag.store(isHalted, ordering: .sequentiallyConsistent) }

    var status: ControllerStatus { registers.withLock { $0.status } }

    /// The namespace's size in logical blocks.
    var blockCount: UInt64 { image.byteCount / UInt64(parameters.logicalBlockByteCount) }

    /// CSTS.CFS: only a reset helps.
    func fail() {
        setHalted(true)
        registers.withLock { $0.status.isFatal = true }
    }

    /// Notes an event for software, to be told on the admin queue's thread.
    func report(_ event: AsynchronousEvent) {
        guard asynchronousEvents.add(event) else { return }
        queues.withLock { $0.submissions[0] }?.wake.signal()
    }

    func execute(_ entry: SubmissionEntry, _ worker: QueueWorker) -> CommandOutcome {
        worker.queue.id == 0 ? executeAdmin(entry, worker) : executeNVM(entry, worker)
    }

    var queueStatistics: [NVMeController.QueueStatistics] {
        queues.withLock { queues in
            queues.submissions.values.map { queue in
                NVMeController.QueueStatistics(
                    id: queue.id,
                    commands: queue.counters.commands.load(ordering: .relaxed),
                    bytes: queue.counters.bytes.load(ordering: .relaxed),
                    errors: queue.counters.errors.load(ordering: .relaxed)
                )
            }
        }.sorted { $0.id < $1.id }
    }
}

/// The queues that there are.
struct QueueTable {
    var submissions: [UInt16: SubmissionQueue] = [:]
    var completions: [UInt16: CompletionQueue] = [:]
    /// The thread of each submission queue; whoever takes one out joins it.
    var workers: [UInt16: SystemThread.Handle] = [:]
    /// Where Doorbell Buffer Config put the buffers.
    var shadow: ShadowBuffers?
}

/// The two pages of Doorbell Buffer Config.
struct ShadowBuffers: Equatable {
    var doorbells: UInt64
    var eventIndexes: UInt64

    /// Where an entry stands: submission queues at even places, completion queues at odd ones, as doorbells do.
    func place(of queue: UInt16, isCompletion: Bool) -> (doorbell: UInt64, eventIndex: UInt64) {
        let offset = (UInt64(queue) * 2 + (isCompletion ? 1 : 0)) * 4
        return (doorbells &+ offset, eventIndexes &+ offset)
    }
}

/// What SMART / Health Information counts, since the controller was made.
final class TransferTotals: Sendable {
    let readCommands = Atomic<UInt64>(0)
    let writeCommands = Atomic<UInt64>(0)
    let bytesRead = Atomic<UInt64>(0)
    let bytesWritten = Atomic<UInt64>(0)
    let mediaErrors = Atomic<UInt64>(0)
}
