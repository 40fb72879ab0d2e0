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
    /// Executes the next command of each queue (IHI 0070, chapter 4), after the translation requests that wait.
    ///
    /// For the command processor alone. Round robin: no queue holds up another for longer than a command takes.
    ///
    /// - Returns: Whether to go on: false where every queue is empty, disabled or stopped by an error.
    func executeNextCommand() -> Bool {
        executeTranslationRequests()
        var goesOn = execute(nextCommand())
        guard identification.idr1.ecmdq else { return goesOn }
        var queue = nextBusyQueue(from: 0)
        while let current = queue {
            if execute(nextCommand(ofEnhancedQueue: current)) { goesOn = true }
            queue = nextBusyQueue(from: current + 1)
        }
        return goesOn
    }

    /// Fetches and executes a command.
    ///
    /// - Returns: Whether its queue goes on.
    private func execute(_ pending: PendingCommand?) -> Bool {
        guard let pending else { return false }
        let outcome: CommandOutcome
        do {
            let command = Command(words: try fetchCommand(at: PhysicalAddress(pending.address)))
            counters.addCommand(command.opcode)
            outcome = execute(command, of: pending.queue)
        } catch {
            outcome = .failed(.cerrorAbt)
        }
        return finish(pending, outcome)
    }

    /// Moves CONS past a command, or stops the queue at it.
    ///
    /// - Returns: Whether its queue goes on.
    func finish(_ pending: PendingCommand, _ outcome: CommandOutcome) -> Bool {
        switch outcome {
        case .done:
            advance(past: pending)
        case .doneWithSyncInterrupt(let address, let data):
            advance(past: pending)
            // Who hears this sees CONS past the CMD_SYNC.
            signalSync(address: address, data: data, epoch: pending.epoch)
        case .doneWithProcessorEvent:
            advance(past: pending)
            sendProcessorEvent()
        case .failed(let error):
            fail(pending, error)
            return false
        }
        return true
    }

    /// Reads a command from the queue, as an access that is under way.
    func fetchCommand(at address: PhysicalAddress) throws(BusError) -> SIMD2<UInt64> {
        commandSlot.enter()
        defer { commandSlot.leave() }
        return try bus.loadRAM64x2(at: address)
    }

    /// The command that CONS points at, if it may be executed now.
    func nextCommand() -> PendingCommand? {
        registers.withLock { registers in
            guard registers.cr0.cmdqen else {
                // Nothing is being executed now: CMDQEN 1 -> 0 is complete.
                registers.cr0ack.cmdqen = false
                return nil
            }
            guard registers.cr0ack.cmdqen, !registers.activeErrors.cmdqErr else { return nil }
            let consumer = registers.cmdqConsumer
            // Indices that no queue can have: wait until software has made them consistent.
            guard let waiting = registers.cmdqProducer.entries(after: consumer), waiting > 0 else {
                return nil
            }
            let address = RegisterFile.entryAddress(
                registers.cmdqBase,
                consumer,
                entryBytes: UInt64(Command.byteCount),
                identification
            )
            return PendingCommand(index: consumer, address: address, epoch: registers.epoch)
        }
    }

    private func advance(past command: PendingCommand) {
        let wasFull = registers.withLock { registers in
            guard registers.epoch == command.epoch else { return false }
            if let queue = command.queue {
                return registers.enhancedQueues[queue].advance(past: command.index, identification)
            }
            let waiting = registers.cmdqProducer.entries(after: registers.cmdqConsumer)
            registers.cmdqCons.rd = command.index.next.rawValue
            return waiting == 1 &<< UInt32(registers.cmdqLog2Entries)
        }
        // A processor that waits for room waits for an event.
        if wasFull, identification.idr0.sev { sendProcessorEvent() }
    }

    /// What a processor's WFE waits for, as its own SEV would send it.
    private func sendProcessorEvent() {
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
            return invalidateTranslations(command)
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
        count(.syncs)
        // CONS stays here: the next attempt does not wait for those that were given up.
        guard atcInvalidations(of: queue).wait() else { return .failed(.cerrorAtcInvSync) }
        // Every older command has completed: they run one after the other. What is left is the transactions that
        // were translated before them, by the SMMU or by a function's ATC.
        let awaited = tracker.waitForTransactionsInFlight()
        return completion(of: command, awaited: awaited)
    }

    /// How a CMD_SYNC ends that has waited for all that it has to.
    func completion(of command: Command, awaited: Int) -> CommandOutcome {
        if awaited > 0 { counters.add(.transactionsAwaited, UInt64(awaited)) }
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
