// Commands that are executed by the caller of a register write, because they wait for nobody.

import AddressSpace
import GuestMemory
import SMMUv3Spec
import SystemBus

/// What became of an attempt to execute a command at once.
enum CommandProgress {
    case executed
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

    /// Executes the next command of SMMU_CMDQ if it is one that waits for nobody.
    ///
    /// For the command processor alone. What a caller cannot wait for: transactions in flight that do not leave
    /// soon, functions that answer invalidations, and memory that a client has to be asked for.
    func executeNextCommandAtOnce() -> CommandProgress {
        guard !hasTranslationRequest, !identification.idr1.ecmdq || nextBusyQueue(from: 0) == nil else {
            return .mustWait
        }
        guard let pending = nextCommand() else { return .nothing }
        guard isOwnRAM(pending.address, byteCount: UInt64(Command.byteCount)),
            let words = try? fetchCommand(at: PhysicalAddress(pending.address))
        else { return .mustWait }
        // From here on what was read counts: the queue is the guest's, and may hold something else by now.
        let command = Command(words: words)
        guard let outcome = outcomeAtOnce(of: command) else { return .mustWait }
        counters.addCommand(command.opcode)
        _ = finish(pending, outcome)
        return .executed
    }

    /// Executes a command, unless it is one that may wait.
    private func outcomeAtOnce(of command: Command) -> CommandOutcome? {
        switch command.opcode {
        case .cfgiSTE, .cfgiSTERange, .cfgiCD, .cfgiCDAll, .tlbiNHAll, .tlbiNHASID, .tlbiNHVA, .tlbiNHVAA,
            .tlbiNSNHAll, .tlbiS12VMAll, .tlbiS2IPA, .tlbiEL2All, .tlbiEL2ASID, .tlbiEL2VA, .tlbiEL2VAA:
            // One that fails has done nothing, and what it stops and tells of is the thread's to do.
            if case .failed = execute(command, of: nil) { return nil }
            return .done
        case .sync: return synchronizeAtOnce(command)
        default: return nil
        }
    }

    private func synchronizeAtOnce(_ command: Command) -> CommandOutcome? {
        guard command.cs != 0b11, atcInvalidations(of: nil).isComplete else { return nil }
        let sendsMessage = command.cs == CompletionSignal.sigIRQ.rawValue && identification.idr0.msi
        guard !sendsMessage || command.msiAddress == 0 || isOwnRAM(command.msiAddress, byteCount: 4),
            let awaited = tracker.waitShortlyForTransactionsInFlight()
        else { return nil }
        count(.syncs)
        return completion(of: command, awaited: awaited)
    }

    /// Whether memory can be accessed without asking anybody.
    private func isOwnRAM(_ address: UInt64, byteCount: UInt64) -> Bool {
        bus.hostPointer(at: PhysicalAddress(address), count: Int(byteCount), for: .read) != nil
    }
}
