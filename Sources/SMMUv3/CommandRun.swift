// Commands of SMMU_CMDQ several at a time: what is read at once, what is executed in a row, and when CONS moves.

import AddressSpace
import CLinux
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// Commands of SMMU_CMDQ that lie one after the other, and may be executed now.
struct CommandRun {
    /// How many there are at most.
    static let most = 8

    /// Where the first of them is, as SMMU_CMDQ_CONS.RD has it.
    let index: UInt32
    let address: UInt64
    /// At least 1.
    let count: Int
    /// ``RegisterFile/epoch`` when they were found.
    let epoch: UInt64
    let controls: InvalidationControls
    let log2Entries: UInt8

    /// The first of them.
    var first: PendingCommand {
        PendingCommand(index: QueueIndex(index, log2Entries: log2Entries), address: address, epoch: epoch)
    }
}

/// What registers say about invalidations.
struct InvalidationControls {
    /// The low bits of VMIDs that an invalidation does not compare: SMMU_CR0.VMW; reserved values are as 0.
    let wildcardVMIDBits: UInt16
    /// SMMU_CR2.E2H.
    let isE2H: Bool
}

/// How far the first commands of a run came that were executed in a row.
private struct RunProgress {
    /// How many were executed.
    var done = 0
    /// How the last of them ended; those before it have nothing to signal.
    var outcome = CommandOutcome.done
    /// The command behind them, where it was read.
    var next: Command?
}

extension RegisterFile {
    var invalidationControls: InvalidationControls {
        let vmw = identification.idr0.vmw ? cr0ack.vmw : 0
        return InvalidationControls(
            wildcardVMIDBits: vmw <= 4 ? (1 &<< UInt16(vmw)) &- 1 : 0,
            isE2H: cr2.e2H
        )
    }

    /// The commands from CONS on that may be executed now; nil where there is none.
    @inline(__always)  // Once for each run.
    mutating func nextRun() -> CommandRun? {
        guard cr0.cmdqen else {
            // Nothing is being executed now: CMDQEN 1 -> 0 is complete.
            cr0ack.cmdqen = false
            return nil
        }
        guard cr0ack.cmdqen, !activeErrors.cmdqErr else { return nil }
        let entries = (cmdqIndexMask &>> 1) &+ 1
        let consumer = cmdqCons.rawValue & cmdqIndexMask
        let waiting = (cmdqProd &- consumer) & cmdqIndexMask
        // Indices that no queue can have: wait until software has made them consistent.
        guard waiting != 0, waiting <= entries else { return nil }
        let entry = consumer & (entries &- 1)
        return CommandRun(
            index: consumer,
            address: cmdqStart &+ UInt64(entry) &* UInt64(Command.byteCount),
            count: Int(min(waiting, entries &- entry, UInt32(CommandRun.most))),
            epoch: epoch,
            controls: invalidationControls,
            log2Entries: cmdqLog2Entries
        )
    }

    /// Moves SMMU_CMDQ_CONS past commands from `index` on.
    ///
    /// - Returns: Whether the queue was full, and whether there is reason to look for more.
    @inline(__always)  // Once for each run.
    mutating func advance(past index: UInt32, _ count: Int) -> (wasFull: Bool, hasMore: Bool) {
        let waiting = (cmdqProd &- cmdqCons.rawValue) & cmdqIndexMask
        let next = (index &+ UInt32(truncatingIfNeeded: count)) & cmdqIndexMask
        cmdqCons.rawValue = cmdqCons.rawValue & ~0xF_FFFF | next
        // Not enabled: there is an acknowledgement to give.
        return (
            waiting == (cmdqIndexMask &>> 1) &+ 1, (cmdqProd ^ next) & cmdqIndexMask != 0 || !cr0.cmdqen
        )
    }
}

extension SMMUv3 {
    /// Executes some of the commands that SMMU_CMDQ has: a few that wait for nobody, or one of any kind.
    ///
    /// - Returns: Whether to go on: false where the queue is empty, disabled or stopped by an error.
    func executeRun() -> Bool {
        guard let run = registers.withLock({ $0.nextRun() }) else { return false }
        let progress = executeSimple(run, atMost: run.count, isLent: false)
        guard progress.done == 0 else { return finish(run, progress) }
        guard let command = progress.next else { return execute(run.first) }
        return execute(command, as: run.first)
    }

    /// Executes commands of SMMU_CMDQ that wait for nobody: CMD_SYNC, too, where there is nothing to wait for.
    ///
    /// For the command processor alone. What a caller cannot wait for: transactions in flight that do not leave
    /// soon, functions that answer invalidations, and memory that a client has to be asked for.
    func executeCommandsAtOnce(atMost limit: Int) -> CommandProgress {
        guard !hasTranslationRequest, !identification.idr1.ecmdq || nextBusyQueue(from: 0) == nil else {
            return .mustWait
        }
        guard let run = registers.withLock({ $0.nextRun() }) else { return .nothing }
        let progress = executeSimple(run, atMost: min(run.count, limit), isLent: true)
        guard progress.done == 0 else {
            _ = finish(run, progress)
            return .executed(progress.done)
        }
        // What was read counts: the queue is the guest's, and may hold something else by now.
        guard let command = progress.next, let outcome = outcomeAtOnce(of: command) else { return .mustWait }
        counters.addCommands(command.opcode.rawValue, 1)
        _ = finish(run.first, outcome)
        return .executed(1)
    }

    /// Executes the first commands of a run as far as they are CMD_TLBI_*, and a CMD_SYNC behind them, or first, that
    /// has nothing to wait for.
    ///
    /// CONS has not moved yet when it returns. Commands are read as accesses that are under way, and where they do not
    /// lie in memory of our own not at all: ``fetchCommand(at:)`` says why.
    ///
    /// - Parameters:
    ///   - limit: How many at most.
    ///   - isLent: The caller may not wait for a message to be taken.
    @inline(__always)  // Once for each run.
    private func executeSimple(_ run: CommandRun, atMost limit: Int, isLent: Bool) -> RunProgress {
        var progress = RunProgress()
        commandSlot.enter()
        defer { commandSlot.leave() }
        guard let span = bus.view.hostSpan(at: PhysicalAddress(run.address)),
            UInt(bitPattern: span.start) & 7 == 0
        else { return progress }
        var offset: UInt64 = 0
        while progress.done < limit, offset &+ UInt64(Command.byteCount) &- 1 <= span.last {
            let place = span.start + Int(truncatingIfNeeded: offset)
            let command = Command(words: SIMD2(smmud_load_u64(place), smmud_load_u64(place + 8)))
            // After the words: what cannot be read any more reads as zero.
            guard smmud_load_u32(span.lostFlag) == 0 else { return progress }
            guard let outcome = executeWithoutWaiting(command, run.controls, isLent: isLent) else {
                progress.next = command
                return progress
            }
            counters.addCommands(command.opcode.rawValue, 1)
            progress.done &+= 1
            if command.opcode == .sync {
                progress.outcome = outcome
                return progress
            }
            offset &+= UInt64(Command.byteCount)
        }
        return progress
    }

    /// Executes a CMD_TLBI_*, or a CMD_SYNC that has nothing to wait for.
    ///
    /// - Returns: nil, having done nothing, where the command is any other, or illegal.
    @inline(__always)  // Once for each command.
    private func executeWithoutWaiting(_ command: Command, _ controls: InvalidationControls, isLent: Bool)
        -> CommandOutcome?
    {
        if command.opcode == .sync {
            if isLent, sendsMessageElsewhere(command) { return nil }
            return synchronizeWithoutWaiting(command)
        }
        guard command.opcode.isTLBI, case .done = invalidateTranslations(command, controls) else {
            return nil
        }
        return .done
    }

    /// Moves CONS past the first commands of a run, of which only the last may have something to signal.
    ///
    /// - Returns: Whether the queue goes on.
    @inline(__always)  // Once for each run.
    private func finish(_ run: CommandRun, _ progress: RunProgress) -> Bool {
        let (wasFull, hasMore) = registers.withLock { registers in
            registers.epoch == run.epoch ? registers.advance(past: run.index, progress.done) : (false, true)
        }
        // A processor that waits for room waits for an event.
        if wasFull, identification.idr0.sev { sendProcessorEvent() }
        signal(progress.outcome, epoch: run.epoch)
        return hasMore
    }
}

extension Opcode {
    /// Whether it is a CMD_TLBI_* that a Non-secure queue can have; others are as any other illegal command.
    @inline(__always)  // Once for each command.
    fileprivate var isTLBI: Bool {
        // CMD_TLBI_NH_ALL, ASID, VA, VAA; EL2_ALL, ASID, VA, VAA; S12_VMALL, S2_IPA; NSNH_ALL.
        let opcodes: UInt64 = 0b1111 &<< 0x10 | 0b1111 &<< 0x20 | 0b101 &<< 0x28 | 1 &<< 0x30
        return rawValue < 64 && opcodes &>> UInt64(rawValue) & 1 != 0
    }
}
