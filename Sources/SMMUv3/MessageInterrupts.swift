// Interrupts of the SMMU's own: wires and messages (MSIs), and what becomes of a message that nobody takes.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// An interrupt with registers of its own; CMD_SYNC's is in the command.
enum MessageSource: Sendable {
    case globalError
    case eventQueue
    case pageRequestQueue
}

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG0, 1 and 2.
///
/// CFG2's attributes are kept for software to read back: nothing behind the SMMU depends on them.
struct MessageRegisters: Sendable {
    var cfg0 = IRQCfg0(rawValue: 0)
    var cfg1 = IRQCfg1(rawValue: 0)
    var cfg2 = IRQCfg2(rawValue: 0)
}

/// A message as it was when its interrupt occurred.
struct InterruptMessage: Sendable {
    let source: MessageSource
    let address: UInt64
    let data: UInt32
    /// ``RegisterFile/epoch`` then: a reset takes back the record of what is on its way.
    let epoch: UInt64
}

/// Messages of the register-programmed interrupts, from the occurrence to the end of their write.
struct OutgoingMessages: Sendable {
    private var unsent: [InterruptMessage] = []
    private var globalErrors = 0
    private var eventQueues = 0
    private var pageRequestQueues = 0

    var hasUnsent: Bool { !unsent.isEmpty }

    /// The sources with a message that is not delivered or refused yet, as bits of SMMU_IRQ_CTRL.
    var underWay: IRQCtrl {
        var result = IRQCtrl(rawValue: 0)
        result.gerrorIRQEn = globalErrors > 0
        result.eventqIRQEn = eventQueues > 0
        result.priqIRQEn = pageRequestQueues > 0
        return result
    }

    mutating func append(_ message: InterruptMessage) {
        unsent.append(message)
        count(message.source, 1)
    }

    mutating func takeFirst() -> InterruptMessage? { unsent.isEmpty ? nil : unsent.removeFirst() }

    mutating func finish(_ message: InterruptMessage) { count(message.source, -1) }

    private mutating func count(_ source: MessageSource, _ change: Int) {
        switch source {
        case .globalError: globalErrors += change
        case .eventQueue: eventQueues += change
        case .pageRequestQueue: pageRequestQueues += change
        }
    }
}

extension RegisterFile {
    /// Leaves an interrupt's message to be sent, where SMMU_IDR0.MSI and its address say that there is one.
    mutating func queueMessage(_ source: MessageSource) {
        let registers =
            switch source {
            case .globalError: gerrorMessage
            case .eventQueue: eventqMessage
            case .pageRequestQueue: priq.message
            }
        guard identification.idr0.msi, registers.cfg0.addr != 0 else { return }
        messages.append(
            InterruptMessage(
                source: source,
                address: registers.cfg0.addr,
                data: registers.cfg1.data,
                epoch: epoch
            )
        )
    }
}

extension SMMUv3 {
    /// One occurrence of an interrupt that is enabled: the wire now, the message once the lock is released.
    ///
    /// Under the registers' lock. Whoever holds it calls ``sendMessages()`` after it: the write may go to a
    /// register window, this SMMU's own included.
    func interrupt(_ source: MessageSource, in registers: inout RegisterFile) {
        switch source {
        case .globalError:
            guard registers.irqCtrl.gerrorIRQEn else { return }
            pulse(interrupts.globalError)
        case .eventQueue:
            guard registers.irqCtrl.eventqIRQEn else { return }
            pulse(interrupts.eventQueue)
        case .pageRequestQueue:
            guard registers.irqCtrl.priqIRQEn else { return }
            pulse(interrupts.pageRequestQueue)
        }
        registers.queueMessage(source)
    }

    /// Toggles GERROR bits that are inactive, and raises the interrupt.
    func raiseGlobalError(in registers: inout RegisterFile, _ toggle: (inout GError) -> Void) {
        toggle(&registers.gerror)
        interrupt(.globalError, in: &registers)
    }

    /// Sends the messages of interrupts that occurred.
    ///
    /// Without the registers' lock.
    func sendMessages() {
        while let message = registers.withLock({ $0.messages.takeFirst() }) {
            let isDelivered = withOwnAccess { deliver(message.data, to: message.address) }
            registers.withLock { registers in
                guard registers.epoch == message.epoch else { return }
                registers.messages.finish(message)
                if !isDelivered { reportAbort(of: message.source, in: &registers) }
            }
        }
    }

    /// The write of a message aborted: the error of its source becomes active if it is not.
    private func reportAbort(of source: MessageSource, in registers: inout RegisterFile) {
        switch source {
        case .globalError:
            // Without an interrupt: it would be a message to where none is taken.
            if !registers.activeErrors.msiGerrorAbtErr { registers.gerror.msiGerrorAbtErr.toggle() }
        case .eventQueue:
            guard !registers.activeErrors.msiEventqAbtErr else { return }
            raiseGlobalError(in: &registers) { $0.msiEventqAbtErr.toggle() }
        case .pageRequestQueue:
            guard !registers.activeErrors.msiPriqAbtErr else { return }
            raiseGlobalError(in: &registers) { $0.msiPriqAbtErr.toggle() }
        }
    }

    /// Writes a message: 32 bits, little-endian, to memory or to a register.
    ///
    /// - Returns: Whether somebody took it.
    private func deliver(_ data: UInt32, to address: UInt64) -> Bool {
        let target = PhysicalAddress(address & (identification.outputAddressLimit - 1))
        do {
            try bus.store(UInt64(data), .word, at: target)
            return true
        } catch {
            return false
        }
    }

    /// CMD_SYNC has completed with CS = SIG_IRQ, and CONS is past it: its message, then its wire.
    ///
    /// For the command processor alone.
    ///
    /// - Parameters:
    ///   - address: MSIAddress; 0 sends no message.
    ///   - data: MSIData.
    ///   - epoch: ``RegisterFile/epoch`` when the command was found.
    func signalSync(address: UInt64, data: UInt32, epoch: UInt64) {
        if identification.idr0.msi, address != 0 {
            commandSlot.enter()
            let isDelivered = deliver(data, to: address)
            commandSlot.leave()
            if !isDelivered {
                registers.withLock { registers in
                    if registers.epoch == epoch { reportAbortOfSyncMessage(in: &registers) }
                }
                sendMessages()
            }
            // A line of its own has its edge whatever becomes of the message. The combined one is this model's OR of
            // the others, so it may leave out what software has been told otherwise.
            interrupts.commandSync?.pulse()
            return
        }
        pulse(interrupts.commandSync)
    }

    /// The write of a CMD_SYNC's message aborted: MSI_CMDQ_ABT_ERR becomes active if it is not.
    func reportAbortOfSyncMessage(in registers: inout RegisterFile) {
        guard !registers.activeErrors.msiCmdqAbtErr else { return }
        raiseGlobalError(in: &registers) { $0.msiCmdqAbtErr.toggle() }
    }

    /// One edge on an output's own line, or on the combined one.
    func pulse(_ line: InterruptLine?) {
        (line ?? interrupts.combined)?.pulse()
    }
}
