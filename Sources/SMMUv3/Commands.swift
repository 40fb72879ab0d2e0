// What each command does.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// How a command ended.
private enum CommandOutcome {
    case done
    /// CMD_SYNC: done, and this output is pulsed once CONS has moved on.
    case doneWithSyncInterrupt
    case failed(CommandError)
}

/// A command that is being executed.
private struct PendingCommand {
    let index: QueueIndex
    let address: UInt64
    /// ``RegisterFile/epoch`` when it was found.
    let epoch: UInt64
}

extension SMMUv3 {
    /// Fetches and executes the command at CONS (IHI 0070, chapter 4).
    ///
    /// For the command processor alone.
    ///
    /// - Returns: Whether to go on: false where the queue is empty, disabled or stopped by an error.
    func executeNextCommand() -> Bool {
        guard let pending = nextCommand() else { return false }
        let outcome: CommandOutcome
        do {
            let command = Command(words: try fetchCommand(at: PhysicalAddress(pending.address)))
            counters.addCommand(command.opcode)
            outcome = execute(command)
        } catch {
            outcome = .failed(.cerrorAbt)
        }
        switch outcome {
        case .done:
            advance(past: pending)
        case .doneWithSyncInterrupt:
            advance(past: pending)
            // Who hears this sees CONS past the CMD_SYNC.
            pulse(interrupts.commandSync)
        case .failed(let error):
            fail(pending, error)
            return false
        }
        return true
    }

    /// Reads a command from the queue, as an access that is under way.
    private func fetchCommand(at address: PhysicalAddress) throws(BusError) -> SIMD2<UInt64> {
        commandSlot.enter()
        defer { commandSlot.leave() }
        return try bus.loadRAM64x2(at: address)
    }

    /// The command that CONS points at, if it may be executed now.
    private func nextCommand() -> PendingCommand? {
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
        registers.withLock { registers in
            guard registers.epoch == command.epoch else { return }
            registers.cmdqCons.rd = command.index.next.rawValue
        }
    }

    /// Stops the queue at the command: CMDQ_CONS.ERR, then GERROR.CMDQ_ERR.
    private func fail(_ command: PendingCommand, _ error: CommandError) {
        count(.commandErrors)
        registers.withLock { registers in
            guard registers.epoch == command.epoch else { return }
            registers.cmdqCons.err = error
            // Software that toggled GERRORN while the error was inactive has made it active: leave it so.
            guard !registers.activeErrors.cmdqErr else { return }
            raiseGlobalError(in: &registers) { $0.cmdqErr.toggle() }
        }
    }

    // MARK: Dispatch

    private func execute(_ command: Command) -> CommandOutcome {
        // No Secure state: SSec is ILLEGAL in every command that has it.
        if command.opcode.hasSSec, command.ssec { return .failed(.cerrorIll) }
        switch command.opcode {
        case .prefetchConfig, .prefetchAddr:
            return .done  // Hints.
        case .cfgiSTE, .cfgiSTERange, .cfgiCD, .cfgiCDAll:
            return invalidateConfiguration(command)
        case .tlbiNHAll, .tlbiNHASID, .tlbiNHVA, .tlbiNHVAA, .tlbiNSNHAll:
            return invalidateTranslations(command)
        case .sync:
            return synchronize(command)
        default:
            // Everything that the ID registers say is not there: stage 2 (TLBI_S12_VMALL, TLBI_S2_IPA), EL2,
            // Secure, ATS, PRI, stalls, MPAM; and reserved opcodes.
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

    private func invalidateTranslations(_ command: Command) -> CommandOutcome {
        // Without stage 2 the VMID field is RES0 and entries are tagged with 0.
        let vmid = identification.idr0.s2P ? command.vmid : 0
        if command.opcode == .tlbiNSNHAll {
            translationCache.invalidate(.all(.nsEL1))
            return .done
        }
        guard identification.idr0.s1P else { return .failed(.cerrorIll) }
        switch command.opcode {
        case .tlbiNHAll:
            translationCache.invalidate(.vmid(.nsEL1, vmid))
        case .tlbiNHASID:
            translationCache.invalidate(.asid(.nsEL1, vmid: vmid, asid: command.asid))
        default:
            guard let scope = addressScope(of: command) else { return .failed(.cerrorIll) }
            translationCache.invalidate(
                command.opcode == .tlbiNHVA
                    ? .address(.nsEL1, vmid: vmid, asid: command.asid, scope)
                    : .addressAllASIDs(.nsEL1, vmid: vmid, scope)
            )
        }
        return .done
    }

    /// The addresses of a TLBI by VA, with range and TTL where SMMU_IDR3.RIL has them (IHI 0070, 4.4.1.1).
    ///
    /// - Returns: nil for the reserved combination of a range with NUM, SCALE and TTL all zero.
    private func addressScope(of command: Command) -> TranslationCache.AddressScope? {
        // Entries are tagged with addresses sign-extended from bit 55.
        let address = UInt64(bitPattern: (Int64(bitPattern: command.address) &<< 8) &>> 8)
        guard identification.idr3.ril, command.tg != 0, let granule = Granule(tlbiTG: command.tg) else {
            return TranslationCache.AddressScope(
                first: address,
                last: address &+ 0xFFF,
                granule: nil,
                level: nil
            )
        }
        var level = command.ttl == 0 ? nil : command.ttl
        // Level 1 has no 16 KiB leaves without DS: the value is reserved and acts as 0.
        if granule == .kib16, level == 1, !identification.idr5.ds { level = nil }
        if command.num == 0, command.scale == 0, level == nil { return nil }
        let pages = UInt64(command.num &+ 1) &<< UInt64(command.scale)
        let (bytes, overflow) = pages.multipliedReportingOverflow(by: granule.byteCount)
        let (last, wraps) = address.addingReportingOverflow(bytes &- 1)
        // A range does not wrap at the top of the address space.
        return TranslationCache.AddressScope(
            first: address,
            last: overflow || wraps ? UInt64.max : last,
            granule: granule,
            level: level
        )
    }

    private func synchronize(_ command: Command) -> CommandOutcome {
        guard command.cs != 0b11 else { return .failed(.cerrorIll) }
        count(.syncs)
        // Every older command has completed: they run one after the other. What is left is the transactions that
        // were translated before them.
        let awaited = tracker.waitForTransactionsInFlight()
        if awaited > 0 { counters.add(.transactionsAwaited, UInt64(awaited)) }
        // SIG_SEV without IDR0.SEV is as SIG_NONE. Without MSIs, SIG_IRQ is the wired output.
        return command.cs == CompletionSignal.sigIRQ.rawValue ? .doneWithSyncInterrupt : .done
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
