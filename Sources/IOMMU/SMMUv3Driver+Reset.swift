// The reset sequence: every register access in the kernel's order.

import AddressSpace
import SMMUv3Spec
import Synchronization

extension SMMUv3Driver {
    /// Brings the SMMU from whatever state it is in to one in which our tables and queues count.
    func reset() throws(SMMUDriverError) {
        try disableAtReset()
        try writeAttributes()
        let table = attachments.withLock { $0.streamTable.registers }
        try device.registers.write64(RegisterOffset.strtabBase, table.base.rawValue)
        try device.registers.write32(RegisterOffset.strtabBaseCfg, table.configuration.rawValue)
        var cr0 = CR0()
        try enableCommandQueue(&cr0)
        try invalidateEverything()
        try enableEventQueue(&cr0)
        try enablePageRequests(&cr0)
        try setUpInterrupts()
        cr0.smmuen = true
        try write(cr0, "failed to enable SMMU interface")
    }

    /// Switches everything off; an SMMU that was left on aborts what comes from now on.
    private func disableAtReset() throws(SMMUDriverError) {
        let registers = device.registers
        if CR0(rawValue: try registers.read32(RegisterOffset.cr0)).smmuen {
            log.note(.warning, "SMMU currently enabled! Resetting...")
            // The kernel goes on without it: what comes then meets what GBPA says.
            do { try updateGBPA { $0.abort = true } } catch .registerTimeout {}
        }
        do { try disable() } catch {
            log.note(.error, "failed to clear cr0")
            throw error
        }
    }

    /// Changes GBPA by its own protocol: Update tells when it is done.
    private func updateGBPA(_ change: (inout GBPA) -> Void) throws(SMMUDriverError) {
        let registers = device.registers
        let update = UInt32(1) << 31
        let found = try registers.wait(for: "SMMU_GBPA", at: RegisterOffset.gbpa, mask: update, until: 0)
        var gbpa = GBPA(rawValue: found)
        change(&gbpa)
        gbpa.update = true
        try registers.write32(RegisterOffset.gbpa, gbpa.rawValue)
        do {
            _ = try registers.wait(for: "SMMU_GBPA", at: RegisterOffset.gbpa, mask: update, until: 0)
        } catch {
            log.note(.error, "GBPA not responding to update")
            throw error
        }
    }

    /// CR1: tables and queues are write-back, Inner Shareable; CR2: PTM, RECINVSID, and E2H as the CPU has it.
    private func writeAttributes() throws(SMMUDriverError) {
        var cr1 = CR1()
        cr1.tableSH = 3
        cr1.tableOC = 1
        cr1.tableIC = 1
        cr1.queueSH = 3
        cr1.queueOC = 1
        cr1.queueIC = 1
        try device.registers.write32(RegisterOffset.cr1, cr1.rawValue)
        var cr2 = CR2()
        cr2.ptm = true
        cr2.recinvsid = true
        cr2.e2H = device.usesE2H
        try device.registers.write32(RegisterOffset.cr2, cr2.rawValue)
    }

    private func enableCommandQueue(_ cr0: inout CR0) throws(SMMUDriverError) {
        let registers = device.registers
        let commands = device.commands
        var base = QueueBase()
        base.addr = commands.memory.address.rawValue
        base.log2size = UInt8(commands.log2Count)
        base.hint = true
        try registers.write64(RegisterOffset.cmdqBase, base.rawValue)
        try registers.write32(RegisterOffset.cmdqProd, 0)
        try registers.write32(RegisterOffset.cmdqCons, 0)
        commands.reset()
        cr0.cmdqen = true
        try write(cr0, "failed to enable command queue")
    }

    /// What an earlier owner of the SMMU left in its caches.
    private func invalidateEverything() throws(SMMUDriverError) {
        try device.complete([.cfgiAll()])
        if features.flags.contains(.hypervisor) { try device.complete([.tlbiEL2All()]) }
        try device.complete([.tlbiNSNHAll()])
    }

    private func enableEventQueue(_ cr0: inout CR0) throws(SMMUDriverError) {
        let registers = device.registers
        let base = eventQueue.withLock { queue in
            queue.restart()
            return queue.base
        }
        try registers.write64(RegisterOffset.eventqBase, base.rawValue)
        try registers.write32(RegisterOffset.eventqProd, 0)
        try registers.write32(RegisterOffset.eventqCons, 0)
        cr0.eventqen = true
        try write(cr0, "failed to enable event queue")
    }

    /// The PRI queue, and the check that translated transactions come from streams with ATS.
    private func enablePageRequests(_ cr0: inout CR0) throws(SMMUDriverError) {
        let registers = device.registers
        let base = pageRequestQueue?.withLock { queue in
            queue.restart()
            return queue.base
        }
        if let base {
            try registers.write64(RegisterOffset.priqBase, base.rawValue)
            try registers.write32(RegisterOffset.priqProd, 0)
            try registers.write32(RegisterOffset.priqCons, 0)
            cr0.priqen = true
            try write(cr0, "failed to enable PRI queue")
        }
        if features.flags.contains(.translationRequests) {
            cr0.atschk = true
            try write(cr0, "failed to enable ATS check")
        }
    }

    /// Message addresses or none, handlers connected, and then interrupts on.
    ///
    /// Linux: arm_smmu_setup_irqs, arm_smmu_setup_unique_irqs.
    private func setUpInterrupts() throws(SMMUDriverError) {
        try write(IRQCtrl(), "failed to disable irqs")
        let hasRequests = pageRequestQueue != nil
        let hasLine: (eventq: Bool, gerror: Bool, priq: Bool)
        switch interrupts.lines {
        case .combined: hasLine = (true, true, true)
        case .named(let eventq, let gerror, let priq):
            try setUpMessages(nil)
            hasLine = (eventq != nil, gerror != nil, priq != nil)
        case .messages(let eventq, let gerror, let priq):
            try setUpMessages((eventq, gerror, priq))
            let hasMessages = features.flags.contains(.msi)
            hasLine = (hasMessages, hasMessages, hasMessages && priq != nil)
        }
        if !hasLine.eventq { log.note(.warning, "no evtq irq - events will not be reported!") }
        if !hasLine.gerror { log.note(.warning, "no gerr irq - errors will not be reported!") }
        if hasRequests, !hasLine.priq { log.note(.warning, "no priq irq - PRI will be broken") }
        requestInterrupts()
        var control = IRQCtrl()
        control.eventqIRQEn = true
        control.gerrorIRQEn = true
        control.priqIRQEn = hasRequests
        do { try write(control, "failed to enable irqs") } catch .registerTimeout {
            // The kernel goes on without interrupts.
            log.note(.warning, "failed to enable irqs")
        }
    }

    /// Clears the addresses of messages, and sets those that the interrupt controller gave, where messages are sent.
    ///
    /// Linux: arm_smmu_setup_msis, arm_smmu_write_msi_msg.
    private func setUpMessages(
        _ messages: (eventq: MessageInterrupt, gerror: MessageInterrupt, priq: MessageInterrupt?)?
    ) throws(SMMUDriverError) {
        let registers = device.registers
        try registers.write64(RegisterOffset.gerrorIrqCfg0, 0)
        try registers.write64(RegisterOffset.eventqIrqCfg0, 0)
        let hasRequests = pageRequestQueue != nil
        if hasRequests { try registers.write64(RegisterOffset.priqIrqCfg0, 0) }
        guard features.flags.contains(.msi) else { return }
        guard let messages else {
            log.note(.info, "msi_domain absent - falling back to wired irqs")
            return
        }
        try write(messages.eventq, at: RegisterOffset.eventqIrqCfg0)
        try write(messages.gerror, at: RegisterOffset.gerrorIrqCfg0)
        if hasRequests, let priq = messages.priq { try write(priq, at: RegisterOffset.priqIrqCfg0) }
    }

    /// The three registers of a message: address, data, and attributes (Device-nGnRE).
    private func write(_ message: MessageInterrupt, at offset: UInt64) throws(SMMUDriverError) {
        // MSI_CFG0_ADDR_MASK: bits 51:2.
        let address = message.doorbell.rawValue & 0x000F_FFFF_FFFF_FFFC
        try device.registers.write64(offset, address)
        try device.registers.write32(offset + 8, message.data)
        try device.registers.write32(offset + 12, 1)
    }

    private func write(_ value: CR0, _ message: String) throws(SMMUDriverError) {
        do {
            try device.registers.write32(
                RegisterOffset.cr0,
                value.rawValue,
                acknowledgedBy: RegisterOffset.cr0ack,
                named: "SMMU_CR0ACK"
            )
        } catch {
            log.note(.error, message)
            throw error
        }
    }

    private func write(_ value: IRQCtrl, _ message: String) throws(SMMUDriverError) {
        do {
            try device.registers.write32(
                RegisterOffset.irqCtrl,
                value.rawValue,
                acknowledgedBy: RegisterOffset.irqCtrlack,
                named: "SMMU_IRQ_CTRLACK"
            )
        } catch {
            log.note(.error, message)
            throw error
        }
    }
}
