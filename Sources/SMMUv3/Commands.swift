// What each command does.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// How a command ended.
enum CommandOutcome {
    case done
    /// CMD_SYNC with SIG_IRQ: done, and the interrupt comes once CONS has moved on.
    case doneWithSyncInterrupt(address: UInt64, data: UInt32)
    /// CMD_SYNC with SIG_SEV: likewise the event to processors.
    case doneWithProcessorEvent
    case failed(CommandError)
}

/// A command that is being executed.
struct PendingCommand {
    /// Which enhanced command queue it is of; nil is SMMU_CMDQ.
    var queue: Int?
    let index: QueueIndex
    let address: UInt64
    /// ``RegisterFile/epoch`` when it was found.
    let epoch: UInt64
}

extension SMMUv3 {
    /// Executes the next commands of SMMU_CMDQ and the next one of each enhanced queue (IHI 0070, chapter 4), after the
    /// translation requests that wait.
    ///
    /// For the command processor alone. Round robin: no queue holds up another for longer than a command takes, or
    /// ``CommandRun/most`` that wait for nobody.
    ///
    /// - Returns: Whether to go on: false where every queue is empty, disabled or stopped by an error.
    func executeNextCommands() -> Bool {
        if identification.idr0.atos { executeTranslationRequests() }
        var goesOn = executeRun()
        guard identification.idr1.ecmdq else { return goesOn }
        var queue = nextBusyQueue(from: 0)
        while let current = queue {
            if let pending = nextCommand(ofEnhancedQueue: current), execute(pending) { goesOn = true }
            queue = nextBusyQueue(from: current + 1)
        }
        return goesOn
    }

    /// Fetches and executes a command.
    ///
    /// - Returns: Whether its queue goes on.
    func execute(_ pending: PendingCommand) -> Bool {
        let words: SIMD2<UInt64>
        do {
            words = try fetchCommand(at: PhysicalAddress(pending.address))
        } catch {
            return finish(pending, .failed(.cerrorAbt))
        }
        return execute(Command(words: words), as: pending)
    }

    /// Executes a command that has been fetched.
    ///
    /// - Returns: Whether its queue goes on.
    func execute(_ command: Command, as pending: PendingCommand) -> Bool {
        counters.addCommands(command.opcode.rawValue, 1)
        return finish(pending, execute(command, of: pending.queue))
    }

    /// Moves CONS past a command, or stops the queue at it.
    ///
    /// - Returns: Whether its queue goes on.
    func finish(_ pending: PendingCommand, _ outcome: CommandOutcome) -> Bool {
        if case .failed(let error) = outcome {
            fail(pending, error)
            return false
        }
        advance(past: pending)
        signal(outcome, epoch: pending.epoch)
        return true
    }

    /// Tells that a command is complete as it wants it told.
    ///
    /// After CONS has moved: who hears it sees CONS past the command.
    ///
    /// - Parameter epoch: ``RegisterFile/epoch`` when the command was found.
    func signal(_ outcome: CommandOutcome, epoch: UInt64) {
        switch outcome {
        case .done, .failed: break
        case .doneWithSyncInterrupt(let address, let data):
            signalSync(address: address, data: data, epoch: epoch)
        case .doneWithProcessorEvent: sendProcessorEvent()
        }
    }

    /// Reads a command from the queue, as an access that is under way.
    func fetchCommand(at address: PhysicalAddress) throws(BusError) -> SIMD2<UInt64> {
        commandSlot.enter()
        defer { commandSlot.leave() }
        return try bus.loadRAM64x2(at: address)
    }

    private func advance(past command: PendingCommand) {
        let wasFull = registers.withLock { registers in
            guard registers.epoch == command.epoch else { return false }
            if let queue = command.queue {
                return registers.enhancedQueues[queue].advance(past: command.index, identification)
            }
            return registers.advance(past: command.index.rawValue, 1).wasFull
        }
        // A processor that waits for room waits for an event.
        if wasFull, identification.idr0.sev { sendProcessorEvent() }
    }

    /// What a processor's WFE waits for, as its own SEV would send it.
    func sendProcessorEvent() {
        count(.processorEvents)
        interrupts.processorEvent?.pulse()
    }

    /// Stops the queue at the command: CMDQ_CONS.ERR, then GERROR.CMDQ_ERR.
    private func fail(_ command: PendingCommand, _ error: CommandError) {
        count(.commandErrors)
        registers.withLock { registers in
            guard registers.epoch == command.epoch else { return }
            if let queue = command.queue {
                registers.enhancedQueues[queue].fail(error)
                guard !registers.activeErrors.cmdqpErr else { return }
                return raiseGlobalError(in: &registers) { $0.cmdqpErr.toggle() }
            }
            registers.cmdqCons.err = error
            // Software that toggled GERRORN while the error was inactive has made it active: leave it so.
            guard !registers.activeErrors.cmdqErr else { return }
            raiseGlobalError(in: &registers) { $0.cmdqErr.toggle() }
        }
        sendMessages()
    }

    // MARK: Dispatch

    func execute(_ command: Command, of queue: Int?) -> CommandOutcome {
        // No Secure state: SSec is ILLEGAL in every command that has it.
        if command.opcode.hasSSec, command.ssec { return .failed(.cerrorIll) }
        switch command.opcode {
        case .prefetchConfig, .prefetchAddr:
            prefetch(command)
            return .done
        case .cfgiSTE, .cfgiSTERange, .cfgiCD, .cfgiCDAll:
            return invalidateConfiguration(command)
        case .tlbiNHAll, .tlbiNHASID, .tlbiNHVA, .tlbiNHVAA, .tlbiNSNHAll, .tlbiS12VMAll, .tlbiS2IPA,
            .tlbiEL2All, .tlbiEL2ASID, .tlbiEL2VA, .tlbiEL2VAA:
            return invalidateTranslations(command, registers.withLock { $0.invalidationControls })
        case .cfgiVMSPIDM where identification.hasVMS:
            configurationCache.invalidatePartIDMaps(of: command.vmid)
            return .done
        case .resume, .stallTerm:
            return resolveStalls(command)
        case .atcInv:
            return invalidateATC(command, of: queue)
        case .priResp:
            return respondToPageRequests(command)
        case .sync:
            return synchronize(command, of: queue)
        default:
            // Everything that the ID registers say is not there: Secure, device permission tables;
            // and reserved opcodes.
            return .failed(.cerrorIll)
        }
    }

    private func invalidateConfiguration(_ command: Command) -> CommandOutcome {
        let streamID = command.streamID.rawValue
        switch command.opcode {
        case .cfgiSTE:
            configurationCache.invalidate(streams: streamID...streamID)
        case .cfgiSTERange:
            // The aligned block of 2^(Range + 1) StreamIDs; 31 is all of them.
            let span = UInt32.max &>> (31 &- UInt32(command.range & 31))
            configurationCache.invalidate(streams: (streamID & ~span)...(streamID | span))
            if command.range & 31 == 31 { configurationCache.invalidatePartIDMaps(of: nil) }
        case .cfgiCD:
            guard identification.idr0.s1P else { return .failed(.cerrorIll) }
            configurationCache.invalidate(
                ConfigurationCache.ContextKey(streamID: command.streamID, index: command.substreamID.rawValue)
            )
        default:
            guard identification.idr0.s1P else { return .failed(.cerrorIll) }
            configurationCache.invalidateContexts(of: command.streamID)
        }
        return .done
    }

    private func synchronize(_ command: Command, of queue: Int?) -> CommandOutcome {
        guard command.cs != 0b11 else { return .failed(.cerrorIll) }
        counters.addAsConsumer(.syncs)
        // CONS stays here: the next attempt does not wait for those that were given up.
        guard atcInvalidations(of: queue).wait() else { return .failed(.cerrorAtcInvSync) }
        // Every older command has completed: they run one after the other. What is left is the transactions that
        // were translated before them, by the SMMU or by a function's ATC.
        let awaited = tracker.waitForTransactionsInFlight()
        return completion(of: command, awaited: awaited)
    }

    /// Executes a CMD_SYNC that has nothing to wait for, of SMMU_CMDQ.
    ///
    /// - Returns: nil, having done nothing, where it has, or is illegal.
    func synchronizeWithoutWaiting(_ command: Command) -> CommandOutcome? {
        guard command.cs != 0b11, !identification.idr0.ats || atcInvalidations(of: nil).isComplete,
            tracker.isIdle
        else { return nil }
        counters.addAsConsumer(.syncs)
        return completion(of: command, awaited: 0)
    }

    /// How a CMD_SYNC ends that has waited for all that it has to.
    func completion(of command: Command, awaited: Int) -> CommandOutcome {
        if awaited > 0 { counters.addAsConsumer(.transactionsAwaited, UInt64(awaited)) }
        switch command.cs {
        case CompletionSignal.sigIRQ.rawValue:
            return .doneWithSyncInterrupt(address: command.msiAddress, data: command.msiData)
        case CompletionSignal.sigSEV.rawValue where identification.idr0.sev:
            return .doneWithProcessorEvent
        default:
            // SIG_SEV without IDR0.SEV is as SIG_NONE.
            return .done
        }
    }
}

extension Opcode {
    /// Whether a command has an SSec field in bit 10.
    fileprivate var hasSSec: Bool {
        switch self {
        case .prefetchConfig, .prefetchAddr, .cfgiSTE, .cfgiSTERange, .cfgiCD, .cfgiCDAll, .cfgiVMSPIDM,
            .resume,
            .stallTerm:
            true
        default:
            false
        }
    }
}
