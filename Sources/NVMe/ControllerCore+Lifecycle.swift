// Starting and stopping: the control thread.

import BlockStorage
import DeviceModel
import Glibc
import HostIO
import PCIFunction
import Synchronization
import SystemPackage

/// Marks the threads of NVMe controllers.
enum ControllerThread {
    private static let key: pthread_key_t = {
        var key = pthread_key_t()
        // Fails where a process has a thousand of them; then no thread is marked.
        pthread_key_create(&key, nil)
        return key
    }()

    /// Whether the calling thread is one: it must not wait for one.
    static var isCurrent: Bool { pthread_getspecific(key) != nil }

    static func start(_ name: String, _ body: @escaping @Sendable () -> Void) throws(Errno)
        -> SystemThread.Handle
    {
        try SystemThread.start(named: name) {
            pthread_setspecific(key, UnsafeRawPointer(bitPattern: 1))
            body()
        }
    }
}

extension ControllerCore {
    func startControlThread() throws(NVMeError) {
        do throws(Errno) {
            let handle = try ControllerThread.start("nvme-control") { self.runControl() }
            // It ends when the controller goes; nobody waits for it, since it may be the one that lets go last.
            pthread_detach(handle)
        } catch {
            throw .noThread(error)
        }
    }

    /// Ends all threads; does not wait.
    func terminate() {
        registers.withLock { $0.isTerminating = true }
        setHalted(true)
        control.signal()
    }

    private struct Work {
        var needsStop: Bool
        var needsFlush: Bool
        var isTerminating: Bool
        var waiters: [DeviceModel.Semaphore]
    }

    private func runControl() {
        while true {
            control.wait()
            let work = registers.withLock { state in
                let work = Work(
                    needsStop: state.needsStop || state.isTerminating,
                    needsFlush: state.needsFlush,
                    isTerminating: state.isTerminating,
                    waiters: state.stopWaiters
                )
                state.needsStop = false
                state.needsFlush = false
                state.stopWaiters = []
                return work
            }
            if work.needsStop { stop() }
            for waiter in work.waiters { waiter.signal() }
            if work.isTerminating { return }
            sendUnmaskedMessages()
            if work.needsFlush { finishShutdown() }
            startIfEnabled()
        }
    }

    /// Ends all queues: when this returns, no DMA of theirs is to come.
    private func stop() {
        setHalted(true)
        for queue in queues.withLock({ Array($0.submissions.values) }) { queue.stop() }
        // The admin queue's first: after it, nobody makes queues.
        joinWorker(0)
        for id in queues.withLock({ Array($0.workers.keys) }) { joinWorker(id) }
        queues.withLock { $0 = QueueTable() }
        asynchronousEvents.reset()
        features.withLock { $0 = FeatureValues() }
        isWriteCacheEnabled.store(true, ordering: .sequentiallyConsistent)
        interruptMask.store(0, ordering: .sequentiallyConsistent)
        pendingVectors.store(0, ordering: .sequentiallyConsistent)
        registers.withLock { state in
            let shutdown = state.needsFlush ? ShutdownStatus.occurring : .none
            state.status = ControllerStatus(rawValue: 0)
            state.status.shutdown = shutdown
            state.isRunning = false
            state.isRefused = false
        }
        updatePin()
    }

    /// Stops a queue's thread and waits for its end.
    func joinWorker(_ id: UInt16) {
        let (queue, handle) = queues.withLock {
            ($0.submissions[id], $0.workers.removeValue(forKey: id))
        }
        queue?.stop()
        if let handle { SystemThread.join(handle) }
    }

    /// Puts on stable storage what was written.
    private func finishShutdown() {
        var isFlushed = true
        do throws(Errno) { try image.flush() } catch { isFlushed = false }
        registers.withLock { state in
            if isFlushed { state.status.shutdown = .complete } else { state.status.isFatal = true }
        }
    }

    private func startIfEnabled() {
        let state: RegisterState? = registers.withLock { state in
            guard state.configuration.isEnabled, !state.isRunning, !state.isRefused, !state.needsStop,
                !state.isTerminating
            else { return nil }
            return state
        }
        guard let state else { return }
        let isStarted = start(state)
        registers.withLock { state in
            state.isRunning = isStarted
            state.isRefused = !isStarted
            // A shutdown of before is over.
            if state.configuration.shutdownNotification == 0 { state.status.shutdown = .none }
            // A reset that came meanwhile is carried out next.
            if isStarted { state.status.isReady = true } else { state.status.isFatal = true }
        }
    }

    /// Makes the admin queues and starts their worker.
    private func start(_ state: RegisterState) -> Bool {
        let configuration = state.configuration
        let submissionCount = (state.adminQueueSizes & 0xFFF) + 1
        let completionCount = (state.adminQueueSizes >> 16 & 0xFFF) + 1
        guard configuration.memoryPageSize <= ControllerCapabilities.pageSizeMax,
            configuration.commandSet == 0, configuration.arbitration == 0,
            submissionCount >= 2, completionCount >= 2,
            function != nil
        else { return false }
        let completions = CompletionQueue(
            id: 0,
            base: state.adminCompletionBase,
            entryCount: completionCount,
            vector: 0,
            interruptsEnabled: true
        )
        let submissions = SubmissionQueue(
            id: 0,
            base: state.adminSubmissionBase,
            entryCount: submissionCount,
            completionQueue: completions
        )
        setHalted(false)
        // A reset that came since then has said so before it is looked for here, or is halted by its stop.
        if registers.withLock({ $0.needsStop || $0.isTerminating }) { setHalted(true) }
        queues.withLock { $0.completions[0] = completions }
        return startWorker(submissions, pageByteCount: 1 << UInt64(configuration.memoryPageSize + 12))
    }

    /// Adds a submission queue and starts its thread.
    ///
    /// - Parameter pageByteCount: CC.MPS as it was when the controller was enabled.
    func startWorker(_ queue: SubmissionQueue, pageByteCount: UInt64) -> Bool {
        guard let function else { return false }
        // Made here, used there: a port has one user, and that is the thread from its start on.
        let port = PortBox(port: function.makePort())
        queues.withLock { $0.submissions[queue.id] = queue }
        do throws(Errno) {
            let handle = try ControllerThread.start("nvme-sq\(queue.id)") {
                QueueWorker(self, queue, port.port, pageByteCount: pageByteCount).run()
            }
            queues.withLock { $0.workers[queue.id] = handle }
            return true
        } catch {
            queues.withLock { _ = $0.submissions.removeValue(forKey: queue.id) }
            return false
        }
    }
}

// SAFETY of @unchecked Sendable: it carries a port to the one thread that uses it.
private struct PortBox: @unchecked Sendable { let port: any DMAPort }
