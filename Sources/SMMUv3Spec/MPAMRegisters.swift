// The registers of memory partitioning and monitoring (MPAM).

import BitFields

/// SMMU_MPAMIDR (0x130): the largest MPAM identities.
public struct MPAMIDR: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// PARTID_MAX [15:0]: the largest PARTID.
    public var partIDMax: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// PMG_MAX [23:16]: the largest PMG.
    public var pmgMax: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...23]) }
        set { rawValue[bits: 16...23] = UInt32(newValue) }
    }
}

/// SMMU_GMPAM (0x138): MPAM of accesses that the SMMU makes on its own account.
public struct GMPAM: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// SO_PARTID [15:0]: the PARTID.
    public var soPartID: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// SO_PMG [23:16]: the PMG.
    public var soPMG: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...23]) }
        set { rawValue[bits: 16...23] = UInt32(newValue) }
    }

    /// Update [31]: set to change the register, clear when done.
    public var update: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_GBPMPAM (0x13C): MPAM of traffic while translation is switched off.
public struct GBPMPAM: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// GBP_PARTID [15:0]: the PARTID.
    public var gbpPartID: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }

    /// GBP_PMG [23:16]: the PMG.
    public var gbpPMG: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...23]) }
        set { rawValue[bits: 16...23] = UInt32(newValue) }
    }

    /// Update [31]: set to change the register, clear when done.
    public var update: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}
