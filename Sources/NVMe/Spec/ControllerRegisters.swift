// The controller's registers: where they stand and what their bits mean.

import BitFields

/// Offsets in the controller's BAR (NVM Express Base Specification 1.4, section 3.1).
enum RegisterOffset {
    static let cap: UInt64 = 0x00
    static let vs: UInt64 = 0x08
    static let intms: UInt64 = 0x0C
    static let intmc: UInt64 = 0x10
    static let cc: UInt64 = 0x14
    static let csts: UInt64 = 0x1C
    /// NVM subsystem reset: CAP.NSSRS is 0, so it is not there.
    static let nssr: UInt64 = 0x20
    static let aqa: UInt64 = 0x24
    static let asq: UInt64 = 0x28
    static let acq: UInt64 = 0x30
    /// SQ0TDBL; the others follow, 4 bytes each, submission and completion in turn (CAP.DSTRD is 0).
    static let doorbells: UInt64 = 0x1000
}

/// Controller Capabilities, CAP.
struct ControllerCapabilities: RawRepresentable, Equatable {
    var rawValue: UInt64

    init(rawValue: UInt64) { self.rawValue = rawValue }

    /// What this controller says.
    ///
    /// - Parameter queueEntryCountMax: 2...65536.
    init(queueEntryCountMax: Int) {
        rawValue = 0
        rawValue[bits: 0...15] = UInt64(queueEntryCountMax - 1)  // MQES
        rawValue[bit: 16] = true  // CQR: queues are contiguous.
        rawValue[bits: 24...31] = UInt64(Self.timeoutHalfSeconds)  // TO
        rawValue[bit: 37] = true  // CSS: the NVM command set.
        rawValue[bits: 48...51] = 0  // MPSMIN: 4 KiB
        rawValue[bits: 52...55] = UInt64(Self.pageSizeMax)  // MPSMAX
    }

    /// CAP.TO: how long software waits for CSTS.RDY.
    static let timeoutHalfSeconds: UInt8 = 60
    /// CAP.MPSMAX: pages of 64 KiB.
    static let pageSizeMax: UInt32 = 4
}

/// Version, VS: 1.4.0.
let specificationVersion: UInt32 = 0x0001_0400

/// Controller Configuration, CC.
struct ControllerConfiguration: RawRepresentable, Equatable {
    var rawValue: UInt32

    /// EN.
    var isEnabled: Bool { rawValue[bit: 0] }
    /// CSS, I/O command set selected.
    var commandSet: UInt32 { rawValue[bits: 4...6] }
    /// MPS: memory pages are 2^(12 + MPS) bytes.
    var memoryPageSize: UInt32 { rawValue[bits: 7...10] }
    /// AMS, arbitration mechanism.
    var arbitration: UInt32 { rawValue[bits: 11...13] }
    /// SHN: 0 none, 1 normal, 2 abrupt.
    var shutdownNotification: UInt32 { rawValue[bits: 14...15] }
    /// IOSQES: log2 of the size of a submission queue's entries.
    var submissionEntrySize: UInt32 { rawValue[bits: 16...19] }
    /// IOCQES: log2 of the size of a completion queue's entries.
    var completionEntrySize: UInt32 { rawValue[bits: 20...23] }

    /// Bits that software can write.
    static let writable: UInt32 = 0x00FF_FFF1
}

/// Controller Status, CSTS.
struct ControllerStatus: RawRepresentable, Equatable {
    var rawValue: UInt32

    /// RDY.
    var isReady: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
    /// CFS, controller fatal status.
    var isFatal: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }
    /// SHST.
    var shutdown: ShutdownStatus {
        get { ShutdownStatus(rawValue: rawValue[bits: 2...3]) }
        set { rawValue[bits: 2...3] = newValue.rawValue }
    }
}

/// CSTS.SHST.
struct ShutdownStatus: RawRepresentable, Equatable {
    var rawValue: UInt32

    static let none = Self(rawValue: 0)
    static let occurring = Self(rawValue: 1)
    static let complete = Self(rawValue: 2)
}
