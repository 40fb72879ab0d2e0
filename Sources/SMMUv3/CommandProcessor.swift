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
    // Set once, before the SMMU is shared. Weak: the SMMU owns this.
    private let owner = Mutex(WeakOwner())
    private struct WeakOwner { weak var smmu: SMMUv3? }

    init(execution: SMMUv3Options.CommandExecution) { self.execution = execution }

    func attach(_ smmu: SMMUv3) { owner.withLock { $0.smmu = smmu } }

    /// Leaves word that there may be commands.
    ///
    /// Returns at once in thread mode; in inline mode when they are done. A write that comes out of a DMA (a device
    /// that writes to our registers) is itself a transaction that a CMD_SYNC waits for, so its commands go to the
    /// thread in either mode.
    func notify(_ smmu: SMMUv3) {
        guard execution == .thread || smmud_is_in_window_dma() else { return drain(smmu) }
        let mustWake = state.withLock { state in
            guard !state.isStopped else { return false }
            if state.thread == nil { state.thread = startThread() }
            let wasPending = state.isPending
            state.isPending = true
            return !wasPending
        }
        if mustWake { wakeUp.signal() }
    }

    /// Consumes until nothing is left, unless somebody does already: then that one takes this work too.
    private func drain(_ smmu: SMMUv3) {
        let mayRun = state.withLock { state in
            state.isPending = true
            guard !state.isRunning, !state.isStopped else { return false }
            state.isRunning = true
            return true
        }
        guard mayRun else { return }
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
            while smmu.executeNextCommand() {
                if state.withLock({ $0.isStopped }) { break }
            }
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
            guard !state.withLock({ $0.isStopped }) else { return }
            // The SMMU is held only while it works: a thread that waits must not keep it alive.
            guard let smmu = owner.withLock({ $0.smmu }) else { return }
            drain(smmu)
        }
    }

    /// Ends the thread. Called from any thread but its own, or from its own when the last reference goes there.
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
