// The registers that say where the stream table and the queues are, and how far each queue has gone.

import BitFields

/// SMMU_STRTAB_BASE (0x080): where the stream table lies.
public struct StrtabBase: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// ADDR [55:6]: the address of the table; the low bits up to its size count as 0.
    public var addr: UInt64 {
        get { rawValue[address: 6...55] }
        set { rawValue[address: 6...55] = newValue }
    }

    /// RA [62]: read-allocate hint.
    public var ra: Bool {
        get { rawValue[bit: 62] }
        set { rawValue[bit: 62] = newValue }
    }
}

/// SMMU_STRTAB_BASE_CFG (0x088): the shape of the stream table.
public struct StrtabBaseCfg: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// LOG2SIZE [5:0]: log2 of the number of StreamIDs.
    public var log2size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...5]) }
        set { rawValue[bits: 0...5] = UInt32(newValue) }
    }

    /// SPLIT [10:6]: StreamID bits of the second level: 6, 8 or 10.
    public var split: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...10]) }
        set { rawValue[bits: 6...10] = UInt32(newValue) }
    }

    /// FMT [17:16]: 0 linear, 1 2-level.
    public var fmt: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...17]) }
        set { rawValue[bits: 16...17] = UInt32(newValue) }
    }
}

/// SMMU_{CMDQ,EVENTQ,PRIQ}_BASE (0x090, 0x0A0, 0x0C0): where a queue lies.
public struct QueueBase: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// LOG2SIZE [4:0]: log2 of the number of entries.
    public var log2size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...4]) }
        set { rawValue[bits: 0...4] = UInt64(newValue) }
    }

    /// ADDR [55:5]: the address of the queue; the low bits up to its size count as 0.
    public var addr: UInt64 {
        get { rawValue[address: 5...55] }
        set { rawValue[address: 5...55] = newValue }
    }

    /// RA/WA [62]: RA of the command queue, WA of the others: allocation hint.
    public var hint: Bool {
        get { rawValue[bit: 62] }
        set { rawValue[bit: 62] = newValue }
    }
}

/// SMMU_CMDQ_PROD (0x098): how far software has written commands.
public struct CmdqProd: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    public var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }
}

/// SMMU_CMDQ_CONS (0x09C): how far the SMMU has consumed commands.
public struct CmdqCons: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    public var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERR [30:24]: why the queue stopped, valid while GERROR.CMDQ_ERR is active.
    public var err: CommandError {
        get { CommandError(rawValue: UInt8(truncatingIfNeeded: rawValue[bits: 24...30])) }
        set { rawValue[bits: 24...30] = UInt32(newValue.rawValue) }
    }
}

/// SMMU_{EVENTQ,PRIQ}_PROD (0x100A8, 0x100C8): how far the SMMU has written records.
public struct OutputQueueProd: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    public var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// OVFLG [31]: toggles on overflow.
    public var ovflg: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_{EVENTQ,PRIQ}_CONS (0x100AC, 0x100CC): how far software has read records.
public struct OutputQueueCons: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    public var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// OVACKFLG [31]: software copies OVFLG here to acknowledge an overflow.
    public var ovackflg: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_CMDQ_CONTROL_PAGE_BASEn (0x4000 + 32n): where a page of enhanced command queues lies.
public struct CmdqControlPageBase: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// CMDQ_CONTROL_PAGE_PRESET [0]: the queues have fixed addresses.
    public var preset: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// CMDQGS [2:1]: size of the page: 1 is 64 KiB.
    public var cmdqGS: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 1...2]) }
        set { rawValue[bits: 1...2] = UInt64(newValue) }
    }

    /// ADDR [55:16]: offset of the page from page 0.
    public var addr: UInt64 {
        get { rawValue[address: 16...55] }
        set { rawValue[address: 16...55] = newValue }
    }
}

/// SMMU_ECMDQ_PROD: how far software has written commands of an enhanced queue.
public struct ECMDQProd: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    public var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERRACK [23]: acknowledges ERR.
    public var errack: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// EN [31]: switches the queue on.
    public var en: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_ECMDQ_CONS: how far the SMMU has consumed commands of an enhanced queue.
public struct ECMDQCons: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    public var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERR [23]: toggles when the queue stops.
    public var err: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// ERR_REASON [26:24]: why the queue stopped.
    public var errReason: CommandError {
        get { CommandError(rawValue: UInt8(truncatingIfNeeded: rawValue[bits: 24...26])) }
        set { rawValue[bits: 24...26] = UInt32(newValue.rawValue) }
    }

    /// ENACK [31]: acknowledges EN.
    public var enack: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}
