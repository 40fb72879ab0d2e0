// Writes to registers, and what they set off.

import BitFields
import SMMUv3Spec

/// What a register write asks of the rest of the SMMU, once the registers' lock is released.
struct WriteConsequences: OptionSet {
    let rawValue: Int
    /// There may be commands to execute, or an acknowledgement to give.
    static let commandQueue = WriteConsequences(rawValue: 1)
    /// Translations found before the write must not be used again.
    static let translationControls = WriteConsequences(rawValue: 2)
}

extension RegisterFile {
    /// Writes the 32-bit word at `offset`.
    ///
    /// Offsets without a register, and read-only ones, ignore it.
    mutating func write(_ value: UInt32, at offset: UInt64, aliasesPage1: Bool) -> WriteConsequences {
        switch offset {
        case RegisterOffset.cr0:
            return writeCR0(CR0(rawValue: value))
        case RegisterOffset.cr1:
            writeCR1(CR1(rawValue: value))
        case RegisterOffset.cr2 where !isSMMUEnabledOrEnabling:
            // PTM has no effect without broadcast TLB maintenance, but drivers write it and read it back.
            let recCfgATS: UInt32 = identification.idr0.atsrecerr ? 0b1000 : 0
            cr2.rawValue = value & ((identification.idr0.hyp ? 0b111 : 0b110) | recCfgATS)
            return .translationControls
        case RegisterOffset.gbpa:
            return writeGBPA(GBPA(rawValue: value))
        case RegisterOffset.irqCtrl:
            irqCtrl.rawValue = value & (identification.idr0.pri ? 0b111 : 0b101)
        case RegisterOffset.gerrorn:
            gerrorn.rawValue = value & implementedErrors
            stalls.retryUnrecorded()  // EVENTQ_ABT_ERR may have been in their way.
            return .commandQueue
        case RegisterOffset.gerrorIrqCfg1 where acceptsGerrorMessage:
            gerrorMessage.cfg1.rawValue = value
        case RegisterOffset.gerrorIrqCfg2 where acceptsGerrorMessage:
            gerrorMessage.cfg2.rawValue = value & 0x3F
        case RegisterOffset.eventqIrqCfg1 where acceptsEventqMessage:
            eventqMessage.cfg1.rawValue = value
        case RegisterOffset.eventqIrqCfg2 where acceptsEventqMessage:
            eventqMessage.cfg2.rawValue = value & 0x3F
        case RegisterOffset.strtabBaseCfg where !isSMMUEnabledOrEnabling:
            strtabBaseCfg.rawValue = value & 0x3_07FF
            return .translationControls
        case RegisterOffset.cmdqProd:
            writeCmdqProd(value)
            return .commandQueue
        case RegisterOffset.cmdqCons where !cr0.cmdqen && !cr0ack.cmdqen:
            cmdqCons.rawValue = value & 0x7F0F_FFFF
        case RegisterOffset.eventqProd:
            writeEventqProd(value)
        case RegisterOffset.eventqCons:
            writeEventqCons(value)
        case 0xA8 where aliasesPage1:
            writeEventqProd(value)
        case 0xAC where aliasesPage1:
            writeEventqCons(value)
        default:
            writePRIQ(value, at: offset, aliasesPage1: aliasesPage1)
            return write64Half(value, at: offset)
        }
        return []
    }

    /// SMMU_CMDQ_PROD: there may be commands.
    mutating func writeCmdqProd(_ value: UInt32) { cmdqProd = value & 0xF_FFFF }

    /// GERROR bits that this SMMU has: CMDQ_ERR, EVENTQ_ABT_ERR, SFM_ERR, which is never raised; with MSIs
    /// MSI_CMDQ_ABT_ERR, MSI_EVENTQ_ABT_ERR, MSI_GERROR_ABT_ERR; with a PRI queue PRIQ_ABT_ERR; with both
    /// MSI_PRIQ_ABT_ERR; with enhanced command queues CMDQP_ERR.
    private var implementedErrors: UInt32 {
        var errors: UInt32 = 0b1_0000_0101
        if identification.idr0.msi { errors |= 0b1011_0000 }
        if identification.idr0.pri { errors |= identification.idr0.msi ? 0b0100_1000 : 0b1000 }
        if identification.idr1.ecmdq { errors |= 1 << 9 }
        return errors
    }

    /// GERROR_IRQ_CFGn take writes: there are messages, and GERROR_IRQEN is 0.
    private var acceptsGerrorMessage: Bool { identification.idr0.msi && !irqCtrlack.gerrorIRQEn }
    /// EVENTQ_IRQ_CFGn take writes.
    private var acceptsEventqMessage: Bool { identification.idr0.msi && !irqCtrlack.eventqIRQEn }

    /// SMMUEN is set, or is being set or cleared: what it guards does not take writes.
    private var isSMMUEnabledOrEnabling: Bool { cr0.smmuen || cr0ack.smmuen }

    private mutating func writeCR0(_ value: CR0) -> WriteConsequences {
        var new = CR0(rawValue: 0)
        new.smmuen = value.smmuen
        new.eventqen = value.eventqen
        new.priqen = value.priqen && identification.idr0.pri
        new.atschk = value.atschk && identification.idr0.ats
        // Taken at once: commands that were consumed before have invalidated what they name.
        if identification.idr0.vmw { new.vmw = value.vmw }
        // A field is not rewritten before its update is acknowledged.
        new.cmdqen = cr0.cmdqen == cr0ack.cmdqen ? value.cmdqen : cr0.cmdqen
        let changesTranslation = new.smmuen != cr0ack.smmuen || new.atschk != cr0ack.atschk
        if cr0ack.smmuen, !new.smmuen {
            stalls.terminateAll()
            gatos.terminate()
            vatos.terminate()
        }
        if new.eventqen, !cr0ack.eventqen { stalls.retryUnrecorded() }
        cr0 = new
        cr0ack.smmuen = new.smmuen
        cr0ack.eventqen = new.eventqen
        cr0ack.priqen = new.priqen
        cr0ack.atschk = new.atschk
        cr0ack.vmw = new.vmw
        // CMDQEN 1 -> 0 is acknowledged by the command processor, when the current command has finished.
        if new.cmdqen { cr0ack.cmdqen = true }
        var consequences: WriteConsequences = .commandQueue
        if changesTranslation { consequences.insert(.translationControls) }
        return consequences
    }

    private mutating func writeCR1(_ value: CR1) {
        // TABLE_* take writes while SMMUEN is 0, QUEUE_* while every queue is disabled.
        var mask: UInt32 = 0
        if !isSMMUEnabledOrEnabling { mask |= UInt32.mask(6...11) }
        if !cr0.cmdqen, !cr0ack.cmdqen, !cr0.eventqen, !cr0ack.eventqen, !cr0.priqen, !cr0ack.priqen,
            !hasEnabledEnhancedQueue
        {
            mask |= UInt32.mask(0...5)
        }
        cr1.rawValue = (cr1.rawValue & ~mask) | (value.rawValue & mask)
    }

    private mutating func writeGBPA(_ value: GBPA) -> WriteConsequences {
        // Only with Update = 1 in the same write. The update is complete at once, so Update reads as 0.
        guard value.update else { return [] }
        var new = GBPA(rawValue: value.rawValue & 0x001F_3F1F)
        new.update = false
        gbpa = new
        return .translationControls
    }

    private mutating func writeEventqProd(_ value: UInt32) {
        guard !cr0.eventqen, !cr0ack.eventqen else { return }
        eventqProd.rawValue = value & 0x800F_FFFF
    }

    private mutating func writeEventqCons(_ value: UInt32) {
        eventqCons.rawValue = value & 0x800F_FFFF
        stalls.retryUnrecorded()
    }

    /// ADDR [51:2] of IRQ_CFG0: the bits above come with SMMUv3.4.
    private static let messageAddress: UInt64 = 0x000F_FFFF_FFFF_FFFC

    private mutating func write64Half(_ value: UInt32, at offset: UInt64) -> WriteConsequences {
        func replacingHalf(of register: UInt64) -> UInt64 { register.replacingHalf(at: offset, by: value) }
        switch offset & ~4 {
        case RegisterOffset.strtabBase where !isSMMUEnabledOrEnabling:
            strtabBase.rawValue = replacingHalf(of: strtabBase.rawValue) & 0x400F_FFFF_FFFF_FFC0
            return .translationControls
        case RegisterOffset.cmdqBase where !cr0.cmdqen && !cr0ack.cmdqen:
            cmdqBase.rawValue = replacingHalf(of: cmdqBase.rawValue) & 0x400F_FFFF_FFFF_FFFF
        case RegisterOffset.eventqBase where !cr0.eventqen && !cr0ack.eventqen:
            eventqBase.rawValue = replacingHalf(of: eventqBase.rawValue) & 0x400F_FFFF_FFFF_FFFF
        case RegisterOffset.gerrorIrqCfg0 where acceptsGerrorMessage:
            gerrorMessage.cfg0.rawValue = replacingHalf(of: gerrorMessage.cfg0.rawValue) & Self.messageAddress
        case RegisterOffset.eventqIrqCfg0 where acceptsEventqMessage:
            eventqMessage.cfg0.rawValue = replacingHalf(of: eventqMessage.cfg0.rawValue) & Self.messageAddress
        default:
            return writeOptional(value, at: offset)
        }
        return []
    }
}
