// The command queue's consumer: when it runs, on which thread, and how it stops.

import CLinux
import DeviceModel
import Glibc
import Synchronization

/// Runs an SMMU's command queue, on a thread of its own or inline.
///
/// A register write must not wait for a command (a CMD_SYNC waits for DMA in flight), so writes only leave word
/// here. A caller that lends its time executes what need not wait, and the thread does the rest. One consumer runs
/// at a time.
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
            let isLent = smmud_is_in_transaction(lender)
            let action = state.withLock { state in
                guard !state.isStopped else { return ThreadAction.nothing }
                if isLent, !state.isRunning, !state.isPending {
                    state.isRunning = true
                    return .executeHere
                }
                return leaveWord(&state) ? .wake : .nothing
            }
            switch action {
            case .nothing: break
            case .wake: wakeUp.signal()
            case .executeHere: executeLent(smmu)
            }
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

    // MARK: Lent time

    private enum ThreadAction { case nothing, wake, executeHere }

    /// How many commands a register write executes at most; a queue that is longer is for the thread.
    static let lentCommandCount = 64

    /// Runs `body`, a register write by a thread that is inside no transaction and may be held up for some
    /// microseconds: commands that it makes visible are executed by the caller, as far as they wait for nobody.
    ///
    /// Of no effect in inline mode.
    func lendingTime<Failure: Error>(_ body: () throws(Failure) -> Void) throws(Failure) {
        smmud_push_transaction(lender)
        defer { smmud_pop_transaction() }
        try body()
    }

    /// What names callers of ``lendingTime(_:)``, apart from ``identity``.
    private var lender: UnsafeRawPointer { UnsafeRawPointer(Unmanaged.passUnretained(wakeUp).toOpaque()) }

    /// Whether nobody consumes, and nobody has left word, so that the next caller of ``lendingTime(_:)`` executes.
    var isIdle: Bool { state.withLock { !$0.isRunning && !$0.isPending } }

    /// Notes that there is work for the thread.
    ///
    /// - Returns: Whether it has to be woken: who runs looks again before it ends.
    private func leaveWord(_ state: inout State) -> Bool {
        if state.thread == nil { state.thread = startThread() }
        let wasPending = state.isPending
        state.isPending = true
        return !wasPending && !state.isRunning
    }

    /// Executes commands as the consumer until there are none, or the next one is for the thread.
    private func executeLent(_ smmu: SMMUv3) {
        for _ in 0..<Self.lentCommandCount {
            switch smmu.executeNextCommandAtOnce() {
            case .executed: if state.withLock({ $0.isStopped }) { return }
            case .mustWait: return handOver()
            case .nothing: if !goesOn() { return }
            }
        }
        handOver()
    }

    /// Whether somebody has left word while the consumer, which has nothing left to do, was at it.
    ///
    /// Where nobody has, it is the consumer no longer.
    private func goesOn() -> Bool {
        state.withLock { state in
            guard state.isPending, !state.isStopped else {
                state.isRunning = false
                return false
            }
            state.isPending = false
            return true
        }
    }

    /// Leaves what there is to the thread.
    private func handOver() {
        let mustWake = state.withLock { state in
            state.isRunning = false
            // Word that was left while this ran woke nobody.
            state.isPending = false
            return !state.isStopped && leaveWord(&state)
        }
        if mustWake { wakeUp.signal() }
    }

    /// What names this SMMU's transactions among those that a thread is inside of.
    private var identity: UnsafeRawPointer { UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()) }

    private func drainInline(_ smmu: SMMUv3) {
        while goesOn() { while smmu.executeNextCommand() {} }
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
            let (isStopped, mayRun) = state.withLock { ($0.isStopped, Self.takeOver(&$0)) }
            if isStopped { return }
            guard mayRun else { continue }
            // The SMMU is held only while it works: a thread that waits must not keep it alive.
            guard let smmu = owner.withLock({ $0.smmu }) else { return }
            while goesOn() {
                while smmu.executeNextCommand() {
                    if state.withLock({ $0.isStopped }) { return }
                }
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
