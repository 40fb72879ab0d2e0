// What the driver does when the SMMU interrupts: events and global errors.

import AddressSpace
import SMMUv3Spec
import Synchronization

extension SMMUv3Driver {
    /// Connects handlers to the lines: threads, or notes for whoever polls.
    func requestInterrupts() {
        switch device.options.interruptHandling {
        case .threads:
            let requests: @Sendable () -> Void = { [weak self] in _ = self?.handlePageRequests() }
            interrupts.startThreads(
                events: { [weak self] in _ = self?.handleEvents() },
                errors: { [weak self] in _ = self?.handleGlobalErrors() },
                requests: pageRequestQueue == nil ? nil : requests
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

    /// Handles what is there now, events, page requests and errors, whether or not a line told of it.
    ///
    /// Without threads it handles page faults, too.
    ///
    /// - Returns: Whether there was anything.
    @discardableResult
    package func pollInterrupts() -> Bool {
        interrupts.pendingErrors.store(false, ordering: .relaxed)
        interrupts.pendingEvents.store(false, ordering: .relaxed)
        let hadErrors = handleGlobalErrors()
        let hadEvents = handleEvents() > 0
        let hadRequests = handlePageRequests() > 0
        let hadFaults = device.options.interruptHandling == .inline && pageFaults.handleAll()
        return hadErrors || hadEvents || hadRequests || hadFaults
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
                    try queue.drain(device.registers, rounds: 16, log: log) { words in
                        count += 1
                        handle(EventRecord(words: words))
                    }
                }
            } catch {
                log.note(.error, "the event queue cannot be read: \(error)")
                return count
            }
        }
        return count
    }

    /// A stalled transaction waits for its page where somebody brings pages in; all else is told.
    ///
    /// Linux: arm_smmu_handle_evt.
    private func handle(_ record: EventRecord) {
        guard record.number.isTranslationRelated, record.stall else {
            log.note(record)
            return
        }
        let fault = PageFault(record)
        // Faults of stage 2 are nobody's: the driver has no such domains.
        if !record.s2, pageFaults.report(fault) { return }
        log.note(record)
        // Nobody cared: the access is aborted.
        device.answer(fault, .invalid)
    }

    // MARK: Page requests

    /// Takes all page requests from the queue.
    ///
    /// - Returns: How many there were.
    private func handlePageRequests() -> Int {
        guard let pageRequestQueue else { return 0 }
        var count = 0
        var mayBeMore = true
        while mayBeMore {
            do {
                mayBeMore = try pageRequestQueue.withLock { (queue) throws(SMMUDriverError) in
                    try queue.drain(device.registers, rounds: 16, log: log) {
                        // The SMMU answered what was lost: those groups will never be complete.
                        pageFaults.discardPartial()
                    } _: { words in
                        count += 1
                        handle(PRIEntry(words: SIMD2(words[0], words[1])))
                    }
                }
            } catch {
                log.note(.error, "the PRI queue cannot be read: \(error)")
                return count
            }
        }
        return count
    }

    /// Linux: arm_smmu_handle_ppr.
    private func handle(_ entry: PRIEntry) {
        // A stop marker: the function has stopped to use the PASID, and waits for nothing.
        if entry.ssv, entry.last, !entry.r, !entry.w { return }
        let fault = PageFault(entry)
        if pageFaults.report(fault) { return }
        log.note(.info, "unexpected PRI request received:")
        let letters = (entry.r ? "R" : "") + (entry.w ? "W" : "") + (entry.x ? "X" : "")
        log.note(
            .info,
            "\tsid 0x\(hex(entry.streamID.rawValue, digits: 8))."
                + "0x\(hex(entry.ssv ? entry.substreamID.rawValue : 0, digits: 5)): "
                + "[\(entry.prgIndex)\(entry.last ? "L" : "")] \(entry.priv ? "" : "un")privileged "
                + "\(letters) access at iova 0x\(hex(entry.pageAddress, digits: 16))"
        )
        if entry.last { device.answer(fault, .failure) }
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

    /// How often what happened to faults that wait for a page.
    package var pageFaultStatistics: PageFaultStatistics { pageFaults.statistics }

    /// GERROR_ERR_MASK: CMDQ_ERR, the abort flags of queues and MSIs, SFM_ERR.
    private static let knownErrors: UInt32 = 0x1FD
}
