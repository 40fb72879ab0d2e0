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
    /// Bits of the word that the consumer, and those who leave word for it, agree by.
    private enum Flag {
        /// There may be work that the current consumer has not seen.
        static let pending: UInt32 = 1 << 0
        /// Somebody is consuming.
        static let running: UInt32 = 1 << 1
        static let stopped: UInt32 = 1 << 2
        /// There is a thread.
        static let thread: UInt32 = 1 << 3
    }

    private let execution: SMMUv3Options.CommandExecution
    private let flags = Atomic<UInt32>(0)
    /// Held to start the thread, and to end it.
    private let thread = Mutex<pthread_t?>(nil)
    private let wakeUp = Semaphore()
    /// Inline mode: commands came from inside a transaction, and run when it has ended.
    private let isDeferred = Atomic(false)
    /// Set once, before the SMMU is shared.
    ///
    /// Not counted, for the SMMU owns this; and not weak, which makes every reference to it slower to count. The thread
    /// takes it while ``stop()`` has not been called, which the SMMU's deinitialisation does, and which waits for
    /// the thread: until then the SMMU is there.
    private let owner = Mutex<Unmanaged<SMMUv3>?>(nil)

    init(execution: SMMUv3Options.CommandExecution) { self.execution = execution }

    func attach(_ smmu: SMMUv3) { owner.withLock { $0 = .passUnretained(smmu) } }

    /// What a thread that writes a register does for the commands that it makes visible.
    enum Caller {
        /// Executes all of them, unless somebody is at it, who then does.
        case executes
        /// Executes what waits for nobody.
        case lends
        /// Leaves them to the command thread.
        case leavesWord
        /// Inline mode: it is inside of a transaction, at the end of which they are executed.
        case defers
    }

    /// What the calling thread is.
    var caller: Caller {
        switch execution {
        case .thread: smmud_is_in_transaction(lender) ? .lends : .leavesWord
        // A DMA that rings the doorbell must not wait in a CMD_SYNC for its own end.
        case .inline: smmud_is_in_transaction(identity) ? .defers : .executes
        }
    }

    /// Whether the caller may execute commands, within the registers' lock: nobody else does meanwhile.
    @inline(__always)  // Once for each write of SMMU_CMDQ_PROD.
    func isFree(for caller: Caller) -> Bool {
        // Acquiring: what the last consumer has done is seen.
        let flags = flags.load(ordering: .acquiring)
        return switch caller {
        case .executes: flags & (Flag.running | Flag.stopped) == 0
        // Where there is word the thread is on its way.
        case .lends: flags & (Flag.pending | Flag.running | Flag.stopped) == 0
        case .leavesWord, .defers: false
        }
    }

    /// Leaves word that there may be commands.
    ///
    /// Returns at once in thread mode; in inline mode when they are done. Not within the registers' lock.
    func notify(_ smmu: SMMUv3, _ caller: Caller) {
        switch caller {
        case .lends:
            if takeOverIfIdle() { return executeLent(smmu) }
            fallthrough
        case .leavesWord:
            if leaveWord() { wakeUp.signal() }
        case .defers:
            isDeferred.store(true, ordering: .relaxed)
            flags.bitwiseOr(Flag.pending, ordering: .sequentiallyConsistent)
        case .executes:
            // Whoever runs takes the work of those who come meanwhile.
            if takeOverOrLeaveWord() { drainInline(smmu) }
        }
    }

    // MARK: Who consumes
    //
    // Whoever becomes the consumer looks at the queue after that, so that word that was left before is taken with it.
    // Who leaves word has written the register before. It looks within the registers' lock: who holds that, and finds
    // no consumer, is alone with the queue until it lets go; see ``SMMUv3/writeProducer(_:)``.

    /// Replaces the flags by what `change` makes of them; nil leaves them.
    ///
    /// - Returns: What they were before; nil where they were left.
    @inline(__always)  // Each use is a compare-and-exchange that rarely has to be repeated.
    private func update(_ change: (UInt32) -> UInt32?) -> UInt32? {
        var old = flags.load(ordering: .relaxed)
        while let new = change(old) {
            let (isDone, seen) = flags.compareExchange(
                expected: old,
                desired: new,
                ordering: .sequentiallyConsistent
            )
            if isDone { return old }
            old = seen
        }
        return nil
    }

    /// Makes the caller the consumer, or leaves word with the one that there is.
    ///
    /// - Returns: Whether the caller consumes.
    private func takeOverOrLeaveWord() -> Bool {
        let old = update { old in
            guard old & Flag.stopped == 0 else { return nil }
            return old & Flag.running == 0 ? (old | Flag.running) & ~Flag.pending : old | Flag.pending
        }
        guard let old else { return false }
        return old & Flag.running == 0
    }

    /// Makes the caller the consumer where there is none, and word was left.
    private func takeOver() -> Bool {
        update { old in
            guard old & (Flag.pending | Flag.running | Flag.stopped) == Flag.pending else { return nil }
            return (old | Flag.running) & ~Flag.pending
        } != nil
    }

    /// Makes the caller the consumer where there is none, and no word was left.
    private func takeOverIfIdle() -> Bool {
        update { old in
            old & (Flag.pending | Flag.running | Flag.stopped) == 0 ? old | Flag.running : nil
        } != nil
    }

    /// Whether somebody has left word while the consumer, which has nothing left to do, was at it.
    ///
    /// Where nobody has, it is the consumer no longer.
    private func goesOn() -> Bool {
        let old = update { old in
            Self.hasWord(old) ? old & ~Flag.pending : old & ~Flag.running
        }
        return Self.hasWord(old ?? 0)
    }

    private static func hasWord(_ flags: UInt32) -> Bool {
        flags & (Flag.pending | Flag.stopped) == Flag.pending
    }

    private var isStopped: Bool { flags.load(ordering: .acquiring) & Flag.stopped != 0 }

    /// Inline mode: the calling thread begins a transaction.
    func enterTransaction() { smmud_push_transaction(identity) }

    /// Inline mode: the calling thread has ended a transaction.
    ///
    /// Commands that came from inside it run now.
    func leaveTransaction(_ smmu: SMMUv3) {
        smmud_pop_transaction()
        guard isDeferred.load(ordering: .relaxed), !smmud_is_in_transaction(identity) else { return }
        isDeferred.store(false, ordering: .relaxed)
        if takeOver() { drainInline(smmu) }
    }

    // MARK: Lent time

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
    var isIdle: Bool { flags.load(ordering: .acquiring) & (Flag.pending | Flag.running) == 0 }

    /// Notes that there is work for the thread.
    ///
    /// - Returns: Whether it has to be woken: who runs looks again before it ends.
    private func leaveWord() -> Bool {
        startThreadOnce()
        let old = flags.bitwiseOr(Flag.pending, ordering: .sequentiallyConsistent).oldValue
        return old & (Flag.pending | Flag.running | Flag.stopped) == 0
    }

    /// Executes commands as the consumer until there are none, or the next one is for the thread.
    private func executeLent(_ smmu: SMMUv3) {
        var remaining = Self.lentCommandCount
        while remaining > 0 {
            switch smmu.executeCommandsAtOnce(atMost: remaining) {
            case .executed(let count):
                remaining -= count
                if isStopped { return }
            case .mustWait:
                return handOver()
            case .nothing:
                remaining -= 1
                if !goesOn() { return }
            }
        }
        handOver()
    }

    /// Leaves what there is to the thread.
    private func handOver() {
        startThreadOnce()
        // Word that was left while this ran woke nobody.
        let old = update { old in
            old & Flag.stopped == 0 ? (old | Flag.pending) & ~Flag.running : old & ~Flag.running
        }
        if let old, old & Flag.stopped == 0 { wakeUp.signal() }
    }

    /// What names this SMMU's transactions among those that a thread is inside of.
    private var identity: UnsafeRawPointer { UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()) }

    private func drainInline(_ smmu: SMMUv3) {
        repeat { while smmu.executeNextCommands() {} } while goesOn()
    }

    // MARK: The thread

    private func startThreadOnce() {
        guard flags.load(ordering: .acquiring) & (Flag.thread | Flag.stopped) == 0 else { return }
        thread.withLock { thread in
            // stop() sets the flag within the lock.
            guard thread == nil, !isStopped else { return }
            thread = startThread()
            if thread != nil { flags.bitwiseOr(Flag.thread, ordering: .sequentiallyConsistent) }
        }
    }

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
            if isStopped { return }
            guard takeOver() else { continue }
            // The SMMU is held only while it works: a thread that waits must not keep it alive. Where it is being
            // deinitialised already, that waits for this thread, and this counts for nothing.
            guard let smmu = owner.withLock({ $0?.takeUnretainedValue() }) else { return }
            repeat {
                while smmu.executeNextCommands() {
                    if isStopped { return }
                }
            } while goesOn()
        }
    }

    /// Ends the thread.
    ///
    /// Called from any thread but its own, or from its own when the last reference goes there.
    func stop() {
        let thread = thread.withLock { thread in
            flags.bitwiseOr(Flag.stopped, ordering: .sequentiallyConsistent)
            defer { thread = nil }
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
