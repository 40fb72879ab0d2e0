// The registers of address translation operations (ATOS and VATOS).

public import AddressSpace
import BitFields

/// SMMU_GATOS_CTRL (0x100): starts an address translation operation.
public struct GATOSCtrl: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// RUN [0]: set to start; the SMMU clears it when done.
    public var run: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }
}

/// SMMU_GATOS_SID (0x108): whose address to translate.
public struct GATOSSid: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// STREAMID [31:0]: the stream.
    public var streamID: StreamID {
        get { StreamID(UInt32(truncatingIfNeeded: rawValue[bits: 0...31])) }
        set { rawValue[bits: 0...31] = UInt64(newValue.rawValue) }
    }

    /// SUBSTREAMID [51:32]: the substream.
    public var substreamID: SubstreamID {
        get { SubstreamID(UInt32(truncatingIfNeeded: rawValue[bits: 32...51])) }
        set { rawValue[bits: 32...51] = UInt64(newValue.rawValue) }
    }

    /// SSID_VALID [52]: SUBSTREAMID counts.
    public var ssidValid: Bool {
        get { rawValue[bit: 52] }
        set { rawValue[bit: 52] = newValue }
    }
}

/// SMMU_GATOS_ADDR (0x110): which address to translate, and as what access.
public struct GATOSAddr: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// HTTUI [6]: leave Access flags and dirty state alone.
    public var httui: Bool {
        get { rawValue[bit: 6] }
        set { rawValue[bit: 6] = newValue }
    }

    /// InD [7]: instruction access.
    public var ind: Bool {
        get { rawValue[bit: 7] }
        set { rawValue[bit: 7] = newValue }
    }

    /// RnW [8]: read.
    public var rnw: Bool {
        get { rawValue[bit: 8] }
        set { rawValue[bit: 8] = newValue }
    }

    /// PnU [9]: privileged.
    public var pnu: Bool {
        get { rawValue[bit: 9] }
        set { rawValue[bit: 9] = newValue }
    }

    /// TYPE [11:10]: 1 stage 1, 2 stage 2, 3 both.
    public var type: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 10...11]) }
        set { rawValue[bits: 10...11] = UInt64(newValue) }
    }

    /// ADDR [63:12]: the address.
    public var addr: UInt64 {
        get { rawValue[address: 12...63] }
        set { rawValue[address: 12...63] = newValue }
    }
}

/// SMMU_GATOS_PAR (0x118): the result of an address translation operation.
///
/// With FAULT set, REASON, FAULTCODE and FADDR count; else SH, Size, ADDR and ATTR.
public struct GATOSPar: RegisterWord {
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// FAULT [0]: the translation failed.
    public var fault: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// REASON [2:1]: 0 stage 1 or configuration, 1 stage 2 on the CD, 2 on a table, 3 on the input.
    public var reason: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 1...2]) }
        set { rawValue[bits: 1...2] = UInt64(newValue) }
    }

    /// FAULTCODE [11:4]: an event number, or 0xFD to 0xFF.
    public var faultcode: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 4...11]) }
        set { rawValue[bits: 4...11] = UInt64(newValue) }
    }

    /// SH [9:8]: shareability.
    public var sh: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...9]) }
        set { rawValue[bits: 8...9] = UInt64(newValue) }
    }

    /// Size [11]: 0 4 KiB; 1 the lowest set bit N of ADDR says 2^(N+1) bytes.
    public var size: Bool {
        get { rawValue[bit: 11] }
        set { rawValue[bit: 11] = newValue }
    }

    /// ADDR [55:12]: the output address, or FADDR: the faulting IPA.
    public var addr: UInt64 {
        get { rawValue[address: 12...55] }
        set { rawValue[address: 12...55] = newValue }
    }

    /// ATTR [63:56]: memory attributes, as one byte of MAIR.
    public var attr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 56...63]) }
        set { rawValue[bits: 56...63] = UInt64(newValue) }
    }
}

/// SMMU_VATOS_SEL (0x180): whose addresses the VATOS page may translate.
public struct VATOSSel: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// VMID [15:0]: the VMID of streams that it may name.
    public var vmid: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...15]) }
        set { rawValue[bits: 0...15] = UInt32(newValue) }
    }
}
