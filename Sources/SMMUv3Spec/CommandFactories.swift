// Each command with the fields that it has; what it does not have stays zero.

public import AddressSpace

/// NUM, SCALE, TTL and TG of a TLBI: a range of addresses, or a hint where the last descriptor lies.
///
/// The range has (NUM + 1) * 2^SCALE granules. Needs IDR3.RIL; `TG` 0 means neither range nor hint.
public struct TLBIRange: Hashable, Sendable {
    /// One less than the multiplier, 0 to 31.
    public var num: UInt8
    /// log2 of the multiplied number of granules, 0 to 31 (39 where IDR5.DS is 1).
    public var scale: UInt8
    /// The level of the last descriptor, 1 to 3; 0 unknown.
    public var ttl: UInt8
    /// The granule as TG encodes it: `Granule.tlbiTG`.
    public var tg: UInt8

    public init(num: UInt8, scale: UInt8, ttl: UInt8, tg: UInt8) {
        self.num = num
        self.scale = scale
        self.ttl = ttl
        self.tg = tg
    }

    /// A range of `granule`s.
    public init(num: UInt8, scale: UInt8, ttl: UInt8, granule: Granule) {
        self.init(num: num, scale: scale, ttl: ttl, tg: granule.tlbiTG)
    }
}

extension Command {
    /// A command of that opcode with all its other bits zero.
    public init(opcode: Opcode) {
        self.init()
        self.opcode = opcode
    }

    // MARK: Configuration

    /// CMD_CFGI_STE: forget the STE of a stream and the CDs reached through it; without `leaf` the L1STD too.
    public static func cfgiSTE(_ streamID: StreamID, leaf: Bool) -> Self {
        var command = Self(opcode: .cfgiSTE)
        command.streamID = streamID
        command.leaf = leaf
        return command
    }

    /// CMD_CFGI_STE_RANGE: forget the aligned block of 2^(range + 1) STEs around a stream's.
    public static func cfgiSTERange(_ streamID: StreamID, range: UInt8) -> Self {
        var command = Self(opcode: .cfgiSTERange)
        command.streamID = streamID
        command.range = range
        return command
    }

    /// CMD_CFGI_ALL, which is CMD_CFGI_STE_RANGE with Range 31: forget all configuration.
    public static func cfgiAll() -> Self {
        var command = Self(opcode: .cfgiSTERange)
        command.range = 31
        return command
    }

    /// CMD_CFGI_CD: forget the CD of a substream; without `leaf` the L1CD too.
    public static func cfgiCD(_ streamID: StreamID, _ substreamID: SubstreamID, leaf: Bool) -> Self {
        var command = Self(opcode: .cfgiCD)
        command.streamID = streamID
        command.substreamID = substreamID
        command.leaf = leaf
        return command
    }

    /// CMD_CFGI_CD_ALL: forget every CD of a stream.
    public static func cfgiCDAll(_ streamID: StreamID) -> Self {
        var command = Self(opcode: .cfgiCDAll)
        command.streamID = streamID
        return command
    }

    /// CMD_CFGI_VMS_PIDM: forget a virtual machine's PARTID map.
    public static func cfgiVMSPIDM(vmid: UInt16) -> Self {
        var command = Self(opcode: .cfgiVMSPIDM)
        command.vmid = vmid
        return command
    }

    /// CMD_PREFETCH_CONFIG: hint that a stream will send.
    public static func prefetchConfig(_ streamID: StreamID, _ substreamID: SubstreamID? = nil) -> Self {
        var command = Self(opcode: .prefetchConfig)
        command.streamID = streamID
        command.setSubstream(substreamID)
        return command
    }

    /// CMD_PREFETCH_ADDR: hint that a stream will use an address.
    public static func prefetchAddr(
        _ streamID: StreamID,
        _ substreamID: SubstreamID? = nil,
        address: UInt64,
        size: UInt8 = 0,
        stride: UInt8 = 0
    ) -> Self {
        var command = Self(opcode: .prefetchAddr)
        command.streamID = streamID
        command.setSubstream(substreamID)
        command.address = address
        command.prefetchSize = size
        command.prefetchStride = stride
        return command
    }

    // MARK: Translations of EL1

    /// CMD_TLBI_NH_ALL: forget stage 1 of a VMID.
    public static func tlbiNHAll(vmid: UInt16) -> Self {
        var command = Self(opcode: .tlbiNHAll)
        command.vmid = vmid
        return command
    }

    /// CMD_TLBI_NH_ASID: forget the non-global translations of an ASID.
    public static func tlbiNHASID(vmid: UInt16, asid: UInt16) -> Self {
        var command = Self(opcode: .tlbiNHASID)
        command.vmid = vmid
        command.asid = asid
        return command
    }

    /// CMD_TLBI_NH_VA: forget an address, or a range, of an ASID; without `leaf` the tables above it too.
    public static func tlbiNHVA(
        vmid: UInt16,
        asid: UInt16,
        address: UInt64,
        leaf: Bool,
        range: TLBIRange? = nil
    ) -> Self {
        var command = Self.byAddress(.tlbiNHVA, address, leaf, range)
        command.vmid = vmid
        command.asid = asid
        return command
    }

    /// CMD_TLBI_NH_VAA: forget an address, or a range, of every ASID.
    public static func tlbiNHVAA(vmid: UInt16, address: UInt64, leaf: Bool, range: TLBIRange? = nil) -> Self {
        var command = Self.byAddress(.tlbiNHVAA, address, leaf, range)
        command.vmid = vmid
        return command
    }

    // MARK: Translations of EL2

    /// CMD_TLBI_EL2_ALL: forget all of EL2.
    public static func tlbiEL2All() -> Self { Self(opcode: .tlbiEL2All) }

    /// CMD_TLBI_EL2_ASID: forget the non-global translations of an ASID of EL2-E2H.
    public static func tlbiEL2ASID(asid: UInt16) -> Self {
        var command = Self(opcode: .tlbiEL2ASID)
        command.asid = asid
        return command
    }

    /// CMD_TLBI_EL2_VA: forget an address, or a range, of an ASID of EL2; EL2 without E2H has no ASIDs.
    public static func tlbiEL2VA(
        asid: UInt16 = 0,
        address: UInt64,
        leaf: Bool,
        range: TLBIRange? = nil
    ) -> Self {
        var command = Self.byAddress(.tlbiEL2VA, address, leaf, range)
        command.asid = asid
        return command
    }

    /// CMD_TLBI_EL2_VAA: forget an address, or a range, of every ASID of EL2.
    public static func tlbiEL2VAA(address: UInt64, leaf: Bool, range: TLBIRange? = nil) -> Self {
        byAddress(.tlbiEL2VAA, address, leaf, range)
    }

    // MARK: Translations of stage 2

    /// CMD_TLBI_S12_VMALL: forget both stages of a VMID.
    public static func tlbiS12VMAll(vmid: UInt16) -> Self {
        var command = Self(opcode: .tlbiS12VMAll)
        command.vmid = vmid
        return command
    }

    /// CMD_TLBI_S2_IPA: forget stage 2 of an intermediate physical address, or of a range.
    public static func tlbiS2IPA(vmid: UInt16, ipa: UInt64, leaf: Bool, range: TLBIRange? = nil) -> Self {
        var command = Self.byAddress(.tlbiS2IPA, 0, leaf, range)
        command.vmid = vmid
        command.ipa = ipa
        return command
    }

    /// CMD_TLBI_NSNH_ALL: forget all Non-secure translations but those of EL2.
    public static func tlbiNSNHAll() -> Self { Self(opcode: .tlbiNSNHAll) }

    // MARK: PCIe

    /// CMD_ATC_INV: invalidate 2^size pages of 4 KiB in a device's ATC; size 52 is everything.
    public static func atcInv(
        _ streamID: StreamID,
        _ substreamID: SubstreamID? = nil,
        address: UInt64,
        size: UInt8,
        global: Bool = false
    ) -> Self {
        var command = Self(opcode: .atcInv)
        command.streamID = streamID
        command.setSubstream(substreamID)
        command.global = global
        command.atcSize = size
        command.address = address
        return command
    }

    /// CMD_PRI_RESP: answer a page request group, numbered 0 to 511.
    public static func priResp(
        _ streamID: StreamID,
        _ substreamID: SubstreamID? = nil,
        prgIndex: UInt16,
        response: PageResponse
    ) -> Self {
        var command = Self(opcode: .priResp)
        command.streamID = streamID
        command.setSubstream(substreamID)
        command.prgIndex = prgIndex
        command.priResp = response.rawValue
        return command
    }

    // MARK: Stalls

    /// CMD_RESUME: retry the stalled transaction `stag` of a stream (`ac`), or abort it (`ab`), or RAZ/WI.
    public static func resume(_ streamID: StreamID, stag: UInt16, ac: Bool, ab: Bool) -> Self {
        var command = Self(opcode: .resume)
        command.streamID = streamID
        command.stag = stag
        command.ac = ac
        command.ab = ab
        return command
    }

    /// CMD_STALL_TERM: abort every stalled transaction of a stream.
    public static func stallTerm(_ streamID: StreamID) -> Self {
        var command = Self(opcode: .stallTerm)
        command.streamID = streamID
        return command
    }

    // MARK: Completion

    /// CMD_SYNC: complete all commands before it, and tell it as `cs` says.
    ///
    /// - Parameters:
    ///   - cs: 0 not at all, 1 by interrupt, 2 by an event to processors.
    ///   - msiAddress: Where the MSI goes with `cs` 1; 0 sends none.
    ///   - msiData: What the MSI writes.
    ///   - msh: Shareability of the MSI; 3 is inner shareable.
    ///   - msiAttr: Memory type of the MSI; 0xF is write-back.
    /// - Returns: The command.
    public static func sync(
        cs: UInt8 = 0,
        msiAddress: UInt64 = 0,
        msiData: UInt32 = 0,
        msh: UInt8 = 0,
        msiAttr: UInt8 = 0
    ) -> Self {
        var command = Self(opcode: .sync)
        command.cs = cs
        command.msiAddress = msiAddress
        command.msiData = msiData
        command.msh = msh
        command.msiAttr = msiAttr
        return command
    }

    // MARK: Parts

    private static func byAddress(
        _ opcode: Opcode,
        _ address: UInt64,
        _ leaf: Bool,
        _ range: TLBIRange?
    ) -> Self {
        var command = Self(opcode: opcode)
        command.address = address
        command.leaf = leaf
        if let range {
            command.num = range.num
            command.scaleDS = range.scale
            command.ttl = range.ttl
            command.tg = range.tg
        }
        return command
    }

    private mutating func setSubstream(_ substreamID: SubstreamID?) {
        guard let substreamID else { return }
        ssv = true
        self.substreamID = substreamID
    }
}

extension Command {
    /// The specification's name, or of a reserved opcode its number; CMD_CFGI_ALL is told from
    /// CMD_CFGI_STE_RANGE.
    public var name: String {
        opcode == .cfgiSTERange && range == 31 ? "CMD_CFGI_ALL" : opcode.description
    }

    /// NUM, SCALE, TTL and TG together, SCALE with six bits where `ds` (IDR5.DS) is set.
    public func tlbiRange(ds: Bool) -> TLBIRange {
        TLBIRange(num: num, scale: ds ? scaleDS : scale, ttl: ttl, tg: tg)
    }
}
