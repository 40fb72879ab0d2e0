// Accesses to the controller's registers and doorbells. None waits.

import DeviceModel
import Synchronization

/// What the registers hold.
struct RegisterState {
    var configuration = ControllerConfiguration(rawValue: 0)
    var status = ControllerStatus(rawValue: 0)
    /// AQA.
    var adminQueueSizes: UInt32 = 0
    /// ASQ.
    var adminSubmissionBase: UInt64 = 0
    /// ACQ.
    var adminCompletionBase: UInt64 = 0

    // What the control thread is asked for.

    /// CC.EN went to 0, or a reset: what runs has to stop.
    var needsStop = false
    /// CC.SHN asks for what is cached to be written.
    var needsFlush = false
    var isTerminating = false
    /// Who waits for a stop.
    var stopWaiters: [Semaphore] = []
    /// Queues are there.
    var isRunning = false
    /// CC.EN is 1, but what CC or AQA said was impossible.
    var isRefused = false
}

extension ControllerCore {
    /// Reads 1 to 8 bytes, naturally aligned.
    func readRegister(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset & UInt64(width.rawValue - 1) == 0 else { throw .misaligned }
        let word = registers.withLock { value(of: offset & ~7, $0) }
        return (word &>> (8 * (offset & 7))) & width.allOnes
    }

    /// Eight bytes of registers; those that are reserved, and doorbells, are 0.
    private func value(of offset: UInt64, _ state: borrowing RegisterState) -> UInt64 {
        let mask = UInt64(interruptMask.load(ordering: .relaxed))
        switch offset {
        case RegisterOffset.cap:
            return ControllerCapabilities(queueEntryCountMax: parameters.queueEntryCountMax).rawValue
        case RegisterOffset.vs: return UInt64(specificationVersion) | mask << 32
        case RegisterOffset.intmc: return mask | UInt64(state.configuration.rawValue) << 32
        case 0x18: return UInt64(state.status.rawValue) << 32
        case 0x20: return UInt64(state.adminQueueSizes) << 32
        case RegisterOffset.asq: return state.adminSubmissionBase
        case RegisterOffset.acq: return state.adminCompletionBase
        default: return 0
        }
    }

    /// Writes 4 or 8 bytes, naturally aligned.
    func writeRegister(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard width == .word || width == .doubleword else { throw .unsupportedWidth }
        guard offset & UInt64(width.rawValue - 1) == 0 else { throw .misaligned }
        writeWord(UInt32(truncatingIfNeeded: value), at: offset)
        if width == .doubleword { writeWord(UInt32(truncatingIfNeeded: value &>> 32), at: offset &+ 4) }
    }

    private func writeWord(_ value: UInt32, at offset: UInt64) {
        switch offset {
        case RegisterOffset.intms:
            interruptMask.bitwiseOr(value, ordering: .sequentiallyConsistent)
            updatePin()
        case RegisterOffset.intmc:
            interruptMask.bitwiseAnd(~value, ordering: .sequentiallyConsistent)
            updatePin()
            // A message is DMA, so it is another thread's to send.
            if pendingVectors.load(ordering: .sequentiallyConsistent) & value != 0 { control.signal() }
        case RegisterOffset.cc: writeConfiguration(value)
        case RegisterOffset.aqa: registers.withLock { $0.adminQueueSizes = value & 0x0FFF_0FFF }
        case RegisterOffset.asq, RegisterOffset.asq + 4:
            registers.withLock {
                setHalf(&$0.adminSubmissionBase, value, isHigh: offset != RegisterOffset.asq)
            }
        case RegisterOffset.acq, RegisterOffset.acq + 4:
            registers.withLock {
                setHalf(&$0.adminCompletionBase, value, isHigh: offset != RegisterOffset.acq)
            }
        case RegisterOffset.doorbells...: ring(at: offset - RegisterOffset.doorbells, value)
        default: break
        }
    }

    private func setHalf(_ register: inout UInt64, _ value: UInt32, isHigh: Bool) {
        register =
            isHigh
            ? register & 0xFFFF_FFFF | UInt64(value) << 32
            : register & ~0xFFFF_FFFF | UInt64(value & ~0xFFF)
    }

    private func writeConfiguration(_ value: UInt32) {
        registers.withLock { state in
            let old = state.configuration
            let new = ControllerConfiguration(rawValue: value & ControllerConfiguration.writable)
            state.configuration = new
            if old.isEnabled, !new.isEnabled { state.needsStop = true }
            if new.shutdownNotification != 0, old.shutdownNotification == 0 {
                state.needsFlush = true
                state.status.shutdown = .occurring
            }
        }
        control.signal()
    }

    /// A doorbell; `offset` from the first.
    private func ring(at offset: UInt64, _ value: UInt32) {
        let index = offset / 4
        guard let id = UInt16(exactly: index / 2) else { return }
        let value = value & 0xFFFF
        if index & 1 == 0 {
            guard let queue = queues.withLock({ $0.submissions[id] }) else { return noSuchDoorbell() }
            guard queue.ring(value) else { return report(.invalidDoorbellValue) }
        } else {
            guard let queue = queues.withLock({ $0.completions[id] }) else { return noSuchDoorbell() }
            guard queue.ring(value) else { return report(.invalidDoorbellValue) }
            updatePin()
        }
    }

    private func noSuchDoorbell() {
        // Of a controller that is not ready nobody can be told anything.
        guard status.isReady else { return }
        report(.invalidDoorbellRegister)
    }

    /// DEVICE_RESET, function-level reset and reset of the bus.
    func reset() {
        let waiter = Semaphore()
        registers.withLock { state in
            state.configuration = ControllerConfiguration(rawValue: 0)
            state.adminQueueSizes = 0
            state.adminSubmissionBase = 0
            state.adminCompletionBase = 0
            state.needsStop = true
            state.needsFlush = false
            state.stopWaiters.append(waiter)
        }
        setHalted(true)
        control.signal()
        guard !ControllerThread.isCurrent else { return }
        waiter.wait()
    }
}
