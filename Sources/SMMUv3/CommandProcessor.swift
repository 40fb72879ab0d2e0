// The command queue's consumer: when it runs, on which thread, and how it stops.

import CLinux
import Glibc
import Synchronization

/// Runs an SMMU's command queue, on a thread of its own or inline.
///
/// A register write must not wait for a command (a CMD_SYNC waits for DMA in flight), so writes only leave word
/// here. One consumer runs at a time.
final class CommandProcessor: Sendable {
    private struct State {
        /// There may be work that the current consumer has not seen.
        var isPending = false
        /// Somebody is consuming.
        var isRunning = false
        var isStopped = false
        var thread: pthread_t?
        /// Inline mode: how many transactions each thread is inside.
        var transactions: [pthread_t: Int] = [:]
    }

    private let execution: SMMUv3Options.CommandExecution
    private let state = Mutex(State())
    private let wakeUp = Semaphore()
    // Set once, before the SMMU is shared. Weak: the SMMU owns this.
    private let owner = Mutex(WeakOwner())
    private struct WeakOwner { weak var smmu: SMMUv3? }

    init(execution: SMMUv3Options.CommandExecution) { self.execution = execution }

    func attach(_ smmu: SMMUv3) { owner.withLock { $0.smmu = smmu } }

    /// Leaves word that there may be commands.
    ///
    /// Returns at once in thread mode; in inline mode when they are done.
    func notify(_ smmu: SMMUv3) {
        switch execution {
        case .thread:
            let mustWake = state.withLock { state in
                guard !state.isStopped else { return false }
                if state.thread == nil { state.thread = startThread() }
                let wasPending = state.isPending
                state.isPending = true
                return !wasPending
            }
            if mustWake { wakeUp.signal() }
        case .inline:
            let mayRun = state.withLock { state in
                state.isPending = true
                // A DMA that rings the doorbell must not wait in a CMD_SYNC for its own end.
                guard state.transactions[pthread_self()] == nil else { return false }
                return Self.takeOver(&state)
            }
            // Whoever runs takes the work of those who come meanwhile.
            if mayRun { drainInline(smmu) }
        }
    }

    /// Makes the caller the consumer unless there is one.
    private static func takeOver(_ state: inout State) -> Bool {
        guard state.isPending, !state.isRunning, !state.isStopped else { return false }
        state.isRunning = true
        return true
    }

    /// Inline mode: the calling thread begins a transaction.
    func enterTransaction() {
        state.withLock { $0.transactions[pthread_self(), default: 0] += 1 }
    }

    /// Inline mode: the calling thread has ended a transaction.
    ///
    /// Commands that came from inside it run now.
    func leaveTransaction(_ smmu: SMMUv3) {
        let mayRun = state.withLock { state in
            let remaining = (state.transactions[pthread_self()] ?? 0) - 1
            state.transactions[pthread_self()] = remaining > 0 ? remaining : nil
            return remaining <= 0 && Self.takeOver(&state)
        }
        if mayRun { drainInline(smmu) }
    }

    private func drainInline(_ smmu: SMMUv3) {
        while true {
            let goesOn = state.withLock { state in
                guard state.isPending, !state.isStopped else {
                    state.isRunning = false
                    return false
                }
                state.isPending = false
                return true
            }
            guard goesOn else { return }
            while smmu.executeNextCommand() {}
        }
    }

    // MARK: The thread

    /// Starts the thread; it holds this object, not the SMMU, so that dropping the SMMU ends it.
    private func startThread() -> pthread_t? {
        var thread = pthread_t()
        let context = Unmanaged.passRetained(self)
        let error = pthread_create(
            &thread,
            nil,
            { context in
                guard let context else { return nil }
                Unmanaged<CommandProcessor>.fromOpaque(context).takeRetainedValue().run()
                return nil
            },
            context.toOpaque()
        )
        guard error == 0 else {
            context.release()
            return nil
        }
        return thread
    }

    private func run() {
        smmud_name_thread("smmu-cmdq")
        while true {
            wakeUp.wait()
            let isStopped = state.withLock { state in
                state.isPending = false
                return state.isStopped
            }
            // The SMMU is held only while it works: a thread that waits must not keep it alive.
            guard !isStopped, let smmu = owner.withLock({ $0.smmu }) else { return }
            while smmu.executeNextCommand() {
                if state.withLock({ $0.isStopped }) { return }
            }
        }
    }

    /// Ends the thread.
    ///
    /// Called from any thread but its own, or from its own when the last reference goes there.
    func stop() {
        let thread = state.withLock { state in
            let thread = state.isStopped ? nil : state.thread
            state.isStopped = true
            state.thread = nil
            return thread
        }
        guard let thread else { return }
        wakeUp.signal()
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            pthread_join(thread, nil)
        }
    }
}

/// A counting semaphore.
final class Semaphore: @unchecked Sendable {
    // Unchecked: sem_t is made for concurrent use.
    private let storage: UnsafeMutablePointer<sem_t>

    init() {
        storage = .allocate(capacity: 1)
        sem_init(storage, 0, 0)
    }

    deinit {
        sem_destroy(storage)
        storage.deallocate()
    }

    func signal() { sem_post(storage) }

    func wait() {
        while sem_wait(storage) != 0 {
            // EINTR: a signal handler ran. Nothing else can fail.
        }
    }
}
