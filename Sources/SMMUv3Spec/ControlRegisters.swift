// The control, bypass, interrupt and error registers.

import BitFields

/// SMMU_CR0 (0x020) and SMMU_CR0ACK (0x024), of one layout: what is switched on.
///
/// Software writes CR0 and waits until CR0ACK says the same.
public struct CR0: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// SMMUEN [0]: translation.
    public var smmuen: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// PRIQEN [1]: PRI queue.
    public var priqen: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// EVENTQEN [2]: event queue.
    public var eventqen: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// CMDQEN [3]: command queue.
    public var cmdqen: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }

    /// ATSCHK [4]: ATS-translated traffic is checked.
    public var atschk: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// VMW [8:6]: how many low VMID bits invalidations ignore, 0 to 4.
    public var vmw: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...8]) }
        set { rawValue[bits: 6...8] = UInt32(newValue) }
    }

    /// DPT_WALK_EN [10]: device permission table walks.
    public var dptWalkEn: Bool {
        get { rawValue[bit: 10] }
        set { rawValue[bit: 10] = newValue }
    }
}

/// SMMU_CR1 (0x028): how the SMMU reaches its own tables and queues.
///
/// Cacheability: 0 non-cacheable, 1 write-back, 2 write-through. Shareability: 0 non-shareable, 2 outer, 3
/// inner.
public struct CR1: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// QUEUE_IC [1:0]: inner cacheability of queues.
    public var queueIC: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...1]) }
        set { rawValue[bits: 0...1] = UInt32(newValue) }
    }

    /// QUEUE_OC [3:2]: outer cacheability of queues.
    public var queueOC: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 2...3]) }
        set { rawValue[bits: 2...3] = UInt32(newValue) }
    }

    /// QUEUE_SH [5:4]: shareability of queues.
    public var queueSH: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 4...5]) }
        set { rawValue[bits: 4...5] = UInt32(newValue) }
    }

    /// TABLE_IC [7:6]: inner cacheability of stream tables.
    public var tableIC: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...7]) }
        set { rawValue[bits: 6...7] = UInt32(newValue) }
    }

    /// TABLE_OC [9:8]: outer cacheability of stream tables.
    public var tableOC: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...9]) }
        set { rawValue[bits: 8...9] = UInt32(newValue) }
    }

    /// TABLE_SH [11:10]: shareability of stream tables.
    public var tableSH: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 10...11]) }
        set { rawValue[bits: 10...11] = UInt32(newValue) }
    }
}

/// SMMU_CR2 (0x02C): modes that take effect when translation is switched on.
public struct CR2: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// E2H [0]: EL2 streams are EL2-E2H.
    public var e2H: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// RECINVSID [1]: C_BAD_STREAMID is recorded.
    public var recinvsid: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// PTM [2]: private TLB maintenance: broadcasts are ignored.
    public var ptm: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// REC_CFG_ATS [3]: configuration errors of ATS requests are recorded.
    public var recCfgATS: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }
}

/// SMMU_STATUSR (0x040): whether the SMMU sleeps.
public struct STATUSR: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// DORMANT [0]: no locally cached configuration or translation.
    public var dormant: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_GBPA (0x044): what happens to traffic while translation is switched off.
///
/// Only a write with Update set has an effect; the SMMU clears Update when it has taken the value.
public struct GBPA: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// MemAttr [3:0]: the memory type that replaces the incoming one if MTCFG is set.
    public var memAttr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...3]) }
        set { rawValue[bits: 0...3] = UInt32(newValue) }
    }

    /// MTCFG [4]: MemAttr replaces the incoming memory type.
    public var mtCfg: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// ALLOCCFG [11:8]: 0b0xxx incoming allocation hints, 0b1RWT these.
    public var allocCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...11]) }
        set { rawValue[bits: 8...11] = UInt32(newValue) }
    }

    /// SHCFG [13:12]: shareability: 0 non-shareable, 1 incoming, 2 outer, 3 inner.
    public var shCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 12...13]) }
        set { rawValue[bits: 12...13] = UInt32(newValue) }
    }

    /// PRIVCFG [17:16]: privilege: 0 and 1 incoming, 2 unprivileged, 3 privileged.
    public var privCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...17]) }
        set { rawValue[bits: 16...17] = UInt32(newValue) }
    }

    /// INSTCFG [19:18]: reads are: 0 and 1 incoming, 2 data, 3 instruction.
    public var instCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 18...19]) }
        set { rawValue[bits: 18...19] = UInt32(newValue) }
    }

    /// ABORT [20]: all traffic aborts.
    public var abort: Bool {
        get { rawValue[bit: 20] }
        set { rawValue[bit: 20] = newValue }
    }

    /// Update [31]: set to change the register, clear when done.
    public var update: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_AGBPA (0x048): more of GBPA, IMPLEMENTATION DEFINED.
public struct AGBPA: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// IMPDEF [31:0]: IMPLEMENTATION DEFINED.
    public var impDef: UInt32 {
        get { rawValue[bits: 0...31] }
        set { rawValue[bits: 0...31] = newValue }
    }
}

/// SMMU_IRQ_CTRL (0x050) and SMMU_IRQ_CTRLACK (0x054), of one layout: which interrupts are on.
public struct IRQCtrl: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// GERROR_IRQEN [0]: global error interrupt.
    public var gerrorIRQEn: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// PRIQ_IRQEN [1]: PRI queue interrupt.
    public var priqIRQEn: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// EVENTQ_IRQEN [2]: event queue interrupt.
    public var eventqIRQEn: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }
}

/// SMMU_GERROR (0x060) and SMMU_GERRORN (0x064), of one layout: global errors.
///
/// An error is active where the two differ: the SMMU toggles GERROR, software acknowledges in GERRORN.
public struct GError: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// CMDQ_ERR [0]: the command queue stopped at a command, see CMDQ_CONS.ERR.
    public var cmdqErr: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// EVENTQ_ABT_ERR [2]: a write to the event queue aborted.
    public var eventqAbtErr: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// PRIQ_ABT_ERR [3]: a write to the PRI queue aborted.
    public var priqAbtErr: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }

    /// MSI_CMDQ_ABT_ERR [4]: the MSI of a CMD_SYNC aborted.
    public var msiCmdqAbtErr: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// MSI_EVENTQ_ABT_ERR [5]: the MSI of the event queue aborted.
    public var msiEventqAbtErr: Bool {
        get { rawValue[bit: 5] }
        set { rawValue[bit: 5] = newValue }
    }

    /// MSI_PRIQ_ABT_ERR [6]: the MSI of the PRI queue aborted.
    public var msiPriqAbtErr: Bool {
        get { rawValue[bit: 6] }
        set { rawValue[bit: 6] = newValue }
    }

    /// MSI_GERROR_ABT_ERR [7]: the MSI of the global error interrupt aborted.
    public var msiGerrorAbtErr: Bool {
        get { rawValue[bit: 7] }
        set { rawValue[bit: 7] = newValue }
    }

    /// SFM_ERR [8]: service failure mode.
    public var sfmErr: Bool {
        get { rawValue[bit: 8] }
        set { rawValue[bit: 8] = newValue }
    }

    /// CMDQP_ERR [9]: an enhanced command queue stopped.
    public var cmdqpErr: Bool {
        get { rawValue[bit: 9] }
        set { rawValue[bit: 9] = newValue }
    }

    /// DPT_ERR [10]: a device permission table error.
    public var dptErr: Bool {
        get { rawValue[bit: 10] }
        set { rawValue[bit: 10] = newValue }
    }
}

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG0: where an MSI is written; 0 sends none.
public struct IRQCfg0: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// ADDR [55:2]: the address of the doorbell.
    public var addr: UInt64 {
        get { rawValue[address: 2...55] }
        set { rawValue[address: 2...55] = newValue }
    }
}

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG1: what an MSI writes.
public struct IRQCfg1: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// DATA [31:0]: the 32 bits written.
    public var data: UInt32 {
        get { rawValue[bits: 0...31] }
        set { rawValue[bits: 0...31] = newValue }
    }
}

/// SMMU_{GERROR,EVENTQ,PRIQ}_IRQ_CFG2: how an MSI is written.
public struct IRQCfg2: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// MemAttr [3:0]: memory type, as STE.MemAttr.
    public var memAttr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...3]) }
        set { rawValue[bits: 0...3] = UInt32(newValue) }
    }

    /// SH [5:4]: shareability.
    public var sh: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 4...5]) }
        set { rawValue[bits: 4...5] = UInt32(newValue) }
    }

    /// LO [31]: PRI queue only: interrupt when a message with Last arrives, not when the queue fills.
    public var lo: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}
