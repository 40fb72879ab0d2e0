// The command queue's consumer: when it runs, on which thread, and how it stops.

import CLinux
import DeviceModel
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
    }

    private let execution: SMMUv3Options.CommandExecution
    private let state = Mutex(State())
    private let wakeUp = Semaphore()
    /// Inline mode: commands came from inside a transaction, and run when it has ended.
    private let isDeferred = Atomic(false)
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
            // A DMA that rings the doorbell must not wait in a CMD_SYNC for its own end.
            let isDeferring = smmud_is_in_transaction(identity)
            if isDeferring { isDeferred.store(true, ordering: .relaxed) }
            let mayRun = state.withLock { state in
                state.isPending = true
                return !isDeferring && Self.takeOver(&state)
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
    func enterTransaction() { smmud_push_transaction(identity) }

    /// Inline mode: the calling thread has ended a transaction.
    ///
    /// Commands that came from inside it run now.
    func leaveTransaction(_ smmu: SMMUv3) {
        smmud_pop_transaction()
        guard isDeferred.load(ordering: .relaxed), !smmud_is_in_transaction(identity) else { return }
        isDeferred.store(false, ordering: .relaxed)
        if state.withLock({ Self.takeOver(&$0) }) { drainInline(smmu) }
    }

    /// What names this SMMU's transactions among those that a thread is inside of.
    private var identity: UnsafeRawPointer { UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()) }

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
