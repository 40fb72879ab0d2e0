// The registers that say where the stream table and the queues are, and how far each queue has gone.

import BitFields

/// SMMU_STRTAB_BASE (0x080): where the stream table lies.
package struct StrtabBase: RegisterWord {
    package var rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// ADDR [55:6]: the address of the table; the low bits up to its size count as 0.
    package var addr: UInt64 {
        get { rawValue[address: 6...55] }
        set { rawValue[address: 6...55] = newValue }
    }

    /// RA [62]: read-allocate hint.
    package var ra: Bool {
        get { rawValue[bit: 62] }
        set { rawValue[bit: 62] = newValue }
    }
}

/// SMMU_STRTAB_BASE_CFG (0x088): the shape of the stream table.
package struct StrtabBaseCfg: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// LOG2SIZE [5:0]: log2 of the number of StreamIDs.
    package var log2size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...5]) }
        set { rawValue[bits: 0...5] = UInt32(newValue) }
    }

    /// SPLIT [10:6]: StreamID bits of the second level: 6, 8 or 10.
    package var split: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...10]) }
        set { rawValue[bits: 6...10] = UInt32(newValue) }
    }

    /// FMT [17:16]: 0 linear, 1 2-level.
    package var fmt: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...17]) }
        set { rawValue[bits: 16...17] = UInt32(newValue) }
    }
}

/// SMMU_{CMDQ,EVENTQ,PRIQ}_BASE (0x090, 0x0A0, 0x0C0): where a queue lies.
package struct QueueBase: RegisterWord {
    package var rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// LOG2SIZE [4:0]: log2 of the number of entries.
    package var log2size: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...4]) }
        set { rawValue[bits: 0...4] = UInt64(newValue) }
    }

    /// ADDR [55:5]: the address of the queue; the low bits up to its size count as 0.
    package var addr: UInt64 {
        get { rawValue[address: 5...55] }
        set { rawValue[address: 5...55] = newValue }
    }

    /// RA/WA [62]: RA of the command queue, WA of the others: allocation hint.
    package var hint: Bool {
        get { rawValue[bit: 62] }
        set { rawValue[bit: 62] = newValue }
    }
}

/// SMMU_CMDQ_PROD (0x098): how far software has written commands.
package struct CmdqProd: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    package var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }
}

/// SMMU_CMDQ_CONS (0x09C): how far the SMMU has consumed commands.
package struct CmdqCons: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    package var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERR [30:24]: why the queue stopped, valid while GERROR.CMDQ_ERR is active.
    package var err: CommandError {
        get { CommandError(rawValue: UInt8(truncatingIfNeeded: rawValue[bits: 24...30])) }
        set { rawValue[bits: 24...30] = UInt32(newValue.rawValue) }
    }
}

/// SMMU_{EVENTQ,PRIQ}_PROD (0x100A8, 0x100C8): how far the SMMU has written records.
package struct OutputQueueProd: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    package var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// OVFLG [31]: toggles on overflow.
    package var ovflg: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_{EVENTQ,PRIQ}_CONS (0x100AC, 0x100CC): how far software has read records.
package struct OutputQueueCons: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    package var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// OVACKFLG [31]: software copies OVFLG here to acknowledge an overflow.
    package var ovackflg: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_CMDQ_CONTROL_PAGE_BASEn (0x4000 + 32n): where a page of enhanced command queues lies.
package struct CmdqControlPageBase: RegisterWord {
    package var rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// CMDQ_CONTROL_PAGE_PRESET [0]: the queues have fixed addresses.
    package var preset: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// CMDQGS [2:1]: size of the page: 1 is 64 KiB.
    package var cmdqGS: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 1...2]) }
        set { rawValue[bits: 1...2] = UInt64(newValue) }
    }

    /// ADDR [55:16]: offset of the page from page 0.
    package var addr: UInt64 {
        get { rawValue[address: 16...55] }
        set { rawValue[address: 16...55] = newValue }
    }
}

/// SMMU_ECMDQ_PROD: how far software has written commands of an enhanced queue.
package struct ECMDQProd: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// WR [19:0]: the next slot to write, with the wrap bit above the index.
    package var wr: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERRACK [23]: acknowledges ERR.
    package var errack: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// EN [31]: switches the queue on.
    package var en: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_ECMDQ_CONS: how far the SMMU has consumed commands of an enhanced queue.
package struct ECMDQCons: RegisterWord {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RD [19:0]: the next slot to read, with the wrap bit above the index.
    package var rd: UInt32 {
        get { rawValue[bits: 0...19] }
        set { rawValue[bits: 0...19] = newValue }
    }

    /// ERR [23]: toggles when the queue stops.
    package var err: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// ERR_REASON [26:24]: why the queue stopped.
    package var errReason: CommandError {
        get { CommandError(rawValue: UInt8(truncatingIfNeeded: rawValue[bits: 24...26])) }
        set { rawValue[bits: 24...26] = UInt32(newValue.rawValue) }
    }

    /// ENACK [31]: acknowledges EN.
    package var enack: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}
