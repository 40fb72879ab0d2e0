// The PRI queue's registers.

import BitFields
import SMMUv3Spec

/// SMMU_PRIQ_BASE, PROD, CONS and IRQ_CFG0, 1 and 2; all RES0 where SMMU_IDR0.PRI is 0.
struct PRIQRegisters: Sendable {
    var base = QueueBase(rawValue: 0)
    /// OVFLG resets to 0.
    var prod = OutputQueueProd(rawValue: 0)
    var cons = OutputQueueCons(rawValue: 0)
    var message = MessageRegisters()

    /// log2 of the queue's entries: LOG2SIZE capped to SMMU_IDR1.PRIQS.
    func log2Entries(_ identification: Identification) -> UInt8 {
        min(base.log2size, identification.idr1.priqs)
    }

    /// OVFLG is not acknowledged: nothing is written.
    var isOverflowing: Bool { prod.ovflg != cons.ovackflg }

    /// IRQ_CFG2.LO: the interrupt is for each request with Last, not for the queue becoming non-empty.
    var interruptsOnLast: Bool { message.cfg2.lo }

    /// PROD; the bits above the wrap flag, which are the SMMU's own, read as zero.
    func visibleProd(_ identification: Identification) -> UInt32 {
        var value = prod
        value.wr = QueueIndex(prod.wr, log2Entries: log2Entries(identification)).rawValue
        return value.rawValue
    }
}

extension RegisterFile {
    /// The 32-bit word at `offset`; nil where that is no register of the PRI queue.
    func readPRIQ(_ offset: UInt64, aliasesPage1: Bool) -> UInt32? {
        guard identification.idr0.pri else { return nil }
        switch offset {
        case RegisterOffset.priqBase: return UInt32(truncatingIfNeeded: priq.base.rawValue)
        case RegisterOffset.priqBase + 4: return UInt32(truncatingIfNeeded: priq.base.rawValue &>> 32)
        case RegisterOffset.priqIrqCfg0: return UInt32(truncatingIfNeeded: priq.message.cfg0.rawValue)
        case RegisterOffset.priqIrqCfg0 + 4:
            return UInt32(truncatingIfNeeded: priq.message.cfg0.rawValue &>> 32)
        case RegisterOffset.priqIrqCfg1: return priq.message.cfg1.rawValue
        case RegisterOffset.priqIrqCfg2: return priq.message.cfg2.rawValue
        case RegisterOffset.priqProd: return priq.visibleProd(identification)
        case RegisterOffset.priqCons: return priq.cons.rawValue
        case 0xC8 where aliasesPage1: return priq.visibleProd(identification)
        case 0xCC where aliasesPage1: return priq.cons.rawValue
        default: return nil
        }
    }

    /// Writes the 32-bit word at `offset`, if that is a register of the PRI queue.
    mutating func writePRIQ(_ value: UInt32, at offset: UInt64, aliasesPage1: Bool) {
        guard identification.idr0.pri else { return }
        // Guarded by PRIQEN itself, not by whether SMMUEN lets it take effect.
        let isEnabled = cr0.priqen || cr0ack.priqen
        let acceptsMessage = !irqCtrl.priqIRQEn && !irqCtrlack.priqIRQEn
        let hasMessages = identification.idr0.msi
        switch offset {
        case RegisterOffset.priqBase where !isEnabled:
            priq.base.rawValue = (priq.base.rawValue & 0xFFFF_FFFF_0000_0000) | UInt64(value)
        case RegisterOffset.priqBase + 4 where !isEnabled:
            priq.base.rawValue =
                (priq.base.rawValue & 0xFFFF_FFFF) | (UInt64(value) & 0x400F_FFFF) &<< 32
        case RegisterOffset.priqIrqCfg0 where acceptsMessage && hasMessages:
            priq.message.cfg0.rawValue =
                (priq.message.cfg0.rawValue & 0xFFFF_FFFF_0000_0000) | UInt64(value & ~0b11)
        case RegisterOffset.priqIrqCfg0 + 4 where acceptsMessage && hasMessages:
            priq.message.cfg0.rawValue =
                (priq.message.cfg0.rawValue & 0xFFFF_FFFF) | (UInt64(value) & 0xF_FFFF) &<< 32
        case RegisterOffset.priqIrqCfg1 where acceptsMessage && hasMessages:
            priq.message.cfg1.rawValue = value
        case RegisterOffset.priqIrqCfg2 where acceptsMessage:
            // LO is for the wire, too, and so is there without messages.
            priq.message.cfg2.rawValue = value & (hasMessages ? 0x8000_003F : 0x8000_0000)
        case RegisterOffset.priqProd where !isEnabled:
            priq.prod.rawValue = value & 0x800F_FFFF
        case RegisterOffset.priqCons:
            priq.cons.rawValue = value & 0x800F_FFFF
        case 0xC8 where aliasesPage1 && !isEnabled:
            priq.prod.rawValue = value & 0x800F_FFFF
        case 0xCC where aliasesPage1:
            priq.cons.rawValue = value & 0x800F_FFFF
        default:
            break
        }
    }
}
