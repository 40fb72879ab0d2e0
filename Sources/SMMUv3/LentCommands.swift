// Commands that are executed by the caller of a register write, because they wait for nobody.

import AddressSpace
import GuestMemory
import SMMUv3Spec
import SystemBus

/// What became of an attempt to execute a command at once.
enum CommandProgress {
    /// So many were.
    case executed(Int)
    /// The next command may have to wait for somebody, so it was not begun.
    case mustWait
    /// There is none that could be executed.
    case nothing
}

extension SMMUv3 {
    /// Runs `body`, which writes this SMMU's registers, on a thread that may execute commands meanwhile.
    ///
    /// For threads that stand between a guest and the SMMU: one thread fewer has to be woken before the guest's
    /// CMD_SYNC is complete. At most ``CommandProcessor/lentCommandCount`` commands are executed so, and none that
    /// waits for a transaction or for software. Not from inside a transaction.
    package func lendingTime<Failure: Error>(_ body: () throws(Failure) -> Void) throws(Failure) {
        try commandProcessor.lendingTime(body)
    }

    /// Executes a command, unless it is one that may wait.
    func outcomeAtOnce(of command: Command) -> CommandOutcome? {
        switch command.opcode {
        case .cfgiSTE, .cfgiSTERange, .cfgiCD, .cfgiCDAll, .tlbiNHAll, .tlbiNHASID, .tlbiNHVA, .tlbiNHVAA,
            .tlbiNSNHAll, .tlbiS12VMAll, .tlbiS2IPA, .tlbiEL2All, .tlbiEL2ASID, .tlbiEL2VA, .tlbiEL2VAA:
            // One that fails has done nothing, and what it stops and tells of is the thread's to do.
            if case .failed = execute(command, of: nil) { return nil }
            return .done
        // Structures and the tables that they are behind, a few reads: of memory that is here.
        case .prefetchConfig where !isMemoryElsewhere:
            if case .failed = execute(command, of: nil) { return nil }
            return .done
        case .sync: return synchronizeAtOnce(command)
        default: return nil
        }
    }

    private var isMemoryElsewhere: Bool {
        commandSlot.enter()
        defer { commandSlot.leave() }
        return busView.hasRemoteMemory
    }

    private func synchronizeAtOnce(_ command: Command) -> CommandOutcome? {
        guard command.cs != 0b11, atcInvalidations(of: nil).isComplete, !sendsMessageElsewhere(command),
            let awaited = tracker.waitShortlyForTransactionsInFlight()
        else { return nil }
        counters.addAsConsumer(.syncs)
        return completion(of: command, awaited: awaited)
    }

    /// Whether a CMD_SYNC sends a message to where somebody has to be asked, or waited for.
    func sendsMessageElsewhere(_ command: Command) -> Bool {
        guard command.cs == CompletionSignal.sigIRQ.rawValue, identification.idr0.msi, command.msiAddress != 0
        else { return false }
        return bus.hostPointer(at: PhysicalAddress(command.msiAddress), count: 4, for: .read) == nil
    }
}
