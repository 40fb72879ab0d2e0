// What the driver does when the SMMU interrupts: events and global errors.

import SMMUv3Spec
import Synchronization

extension SMMUv3Driver {
    /// Connects handlers to the lines: threads, or notes for whoever polls.
    func requestInterrupts() {
        switch device.options.interruptHandling {
        case .threads:
            interrupts.startThreads(
                events: { [weak self] in _ = self?.handleEvents() },
                errors: { [weak self] in _ = self?.handleGlobalErrors() }
            )
        case .inline:
            interrupts.noteOnly()
            // A waiter for the command queue would wait for ever on an error that nobody acknowledges.
            device.commands.setWhileWaiting { [weak self] in
                guard let self, interrupts.pendingErrors.exchange(false, ordering: .acquiring) else { return }
                _ = handleGlobalErrors()
            }
        }
    }

    /// Handles what is there now, events and errors, whether or not a line told of it.
    ///
    /// - Returns: Whether there was anything.
    @discardableResult
    package func pollInterrupts() -> Bool {
        interrupts.pendingErrors.store(false, ordering: .relaxed)
        interrupts.pendingEvents.store(false, ordering: .relaxed)
        let hadErrors = handleGlobalErrors()
        return handleEvents() > 0 || hadErrors
    }

    // MARK: Events

    /// Takes all events from the queue.
    ///
    /// - Returns: How many there were.
    private func handleEvents() -> Int {
        var count = 0
        var mayBeMore = true
        // One round of the lock a time, so that others come in between.
        while mayBeMore {
            do {
                mayBeMore = try eventQueue.withLock { (queue) throws(SMMUDriverError) in
                    try queue.drain(device.registers, rounds: 16, log: log) { record in
                        count += 1
                        handle(record)
                    }
                }
            } catch {
                log.note(.error, "the event queue cannot be read: \(error)")
                return count
            }
        }
        return count
    }

    private func handle(_ record: EventRecord) {
        log.note(record)
        guard record.number.isTranslationRelated, record.stall else { return }
        // Nobody handles stalled faults: the transaction is aborted.
        do {
            try device.commands.issue(
                [.resume(record.streamID, stag: record.stag, ac: false, ab: true)],
                thenSync: false
            )
        } catch { log.note(.error, "a stalled transaction cannot be ended: \(error)") }
    }

    // MARK: Global errors

    /// Sees to GERROR: tells what it says, gets the command queue going again, acknowledges.
    ///
    /// - Returns: Whether an error was active.
    func handleGlobalErrors() -> Bool {
        errorHandling.withLock { _ in
            do throws(SMMUDriverError) {
                return try acknowledgeErrors()
            } catch {
                log.note(.error, "global errors cannot be handled: \(error)")
                return false
            }
        }
    }

    private func acknowledgeErrors() throws(SMMUDriverError) -> Bool {
        let gerror = try device.registers.read32(RegisterOffset.gerror)
        let gerrorn = try device.registers.read32(RegisterOffset.gerrorn)
        let active = GError(rawValue: gerror ^ gerrorn)
        guard active.rawValue & Self.knownErrors != 0 else { return false }
        log.note(
            .warning,
            "unexpected global error reported (0x\(hex(active.rawValue, digits: 8))), this could be serious"
        )
        if active.sfmErr {
            log.note(.error, "device has entered Service Failure Mode!")
            try disable()
        }
        if active.msiGerrorAbtErr { log.note(.warning, "GERROR MSI write aborted") }
        if active.msiPriqAbtErr { log.note(.warning, "PRIQ MSI write aborted") }
        if active.msiEventqAbtErr { log.note(.warning, "EVTQ MSI write aborted") }
        if active.msiCmdqAbtErr { log.note(.warning, "CMDQ MSI write aborted") }
        if active.priqAbtErr { log.note(.error, "PRIQ write aborted -- events may have been lost") }
        if active.eventqAbtErr { log.note(.error, "EVTQ write aborted -- events may have been lost") }
        if active.cmdqErr { try device.commands.recoverFromError() }
        try device.registers.write32(RegisterOffset.gerrorn, gerror)
        return true
    }

    /// GERROR_ERR_MASK: CMDQ_ERR, the abort flags of queues and MSIs, SFM_ERR.
    private static let knownErrors: UInt32 = 0x1FD
}
