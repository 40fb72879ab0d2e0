// The command queue's opcodes.

/// Opcode [7:0] of a command: any byte can be held, the architecture's have names.
public struct Opcode: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Hint: fetch a stream's configuration.
    @inlinable public static var prefetchConfig: Self { Self(rawValue: 0x01) }
    /// Hint: fetch a stream's translation of an address.
    @inlinable public static var prefetchAddr: Self { Self(rawValue: 0x02) }
    /// Forget one STE.
    @inlinable public static var cfgiSTE: Self { Self(rawValue: 0x03) }
    /// Forget a range of STEs; Range 31 is CMD_CFGI_ALL.
    @inlinable public static var cfgiSTERange: Self { Self(rawValue: 0x04) }
    /// Forget one CD.
    @inlinable public static var cfgiCD: Self { Self(rawValue: 0x05) }
    /// Forget every CD of a stream.
    @inlinable public static var cfgiCDAll: Self { Self(rawValue: 0x06) }
    /// Forget a virtual machine's PARTID map.
    @inlinable public static var cfgiVMSPIDM: Self { Self(rawValue: 0x07) }
    /// Forget stage 1 of a VMID.
    @inlinable public static var tlbiNHAll: Self { Self(rawValue: 0x10) }
    /// Forget stage 1 of an ASID.
    @inlinable public static var tlbiNHASID: Self { Self(rawValue: 0x11) }
    /// Forget an address of an ASID.
    @inlinable public static var tlbiNHVA: Self { Self(rawValue: 0x12) }
    /// Forget an address of every ASID.
    @inlinable public static var tlbiNHVAA: Self { Self(rawValue: 0x13) }
    /// Forget all of EL3.
    @inlinable public static var tlbiEL3All: Self { Self(rawValue: 0x18) }
    /// Forget an address of EL3.
    @inlinable public static var tlbiEL3VA: Self { Self(rawValue: 0x1A) }
    /// Forget all of EL2.
    @inlinable public static var tlbiEL2All: Self { Self(rawValue: 0x20) }
    /// Forget an ASID of EL2-E2H.
    @inlinable public static var tlbiEL2ASID: Self { Self(rawValue: 0x21) }
    /// Forget an address of EL2.
    @inlinable public static var tlbiEL2VA: Self { Self(rawValue: 0x22) }
    /// Forget an address of EL2, every ASID.
    @inlinable public static var tlbiEL2VAA: Self { Self(rawValue: 0x23) }
    /// Forget both stages of a VMID.
    @inlinable public static var tlbiS12VMAll: Self { Self(rawValue: 0x28) }
    /// Forget stage 2 of an address.
    @inlinable public static var tlbiS2IPA: Self { Self(rawValue: 0x2A) }
    /// Forget all that is not of EL2.
    @inlinable public static var tlbiNSNHAll: Self { Self(rawValue: 0x30) }
    /// Invalidate a device's ATC.
    @inlinable public static var atcInv: Self { Self(rawValue: 0x40) }
    /// Answer a page request group.
    @inlinable public static var priResp: Self { Self(rawValue: 0x41) }
    /// Retry or terminate a stalled transaction.
    @inlinable public static var resume: Self { Self(rawValue: 0x44) }
    /// Terminate a stream's stalled transactions.
    @inlinable public static var stallTerm: Self { Self(rawValue: 0x45) }
    /// Complete all commands before it.
    @inlinable public static var sync: Self { Self(rawValue: 0x46) }
    /// Secure: forget all of EL2.
    @inlinable public static var tlbiSEL2All: Self { Self(rawValue: 0x50) }
    /// Secure: forget an ASID of EL2-E2H.
    @inlinable public static var tlbiSEL2ASID: Self { Self(rawValue: 0x51) }
    /// Secure: forget an address of EL2.
    @inlinable public static var tlbiSEL2VA: Self { Self(rawValue: 0x52) }
    /// Secure: forget an address of EL2, every ASID.
    @inlinable public static var tlbiSEL2VAA: Self { Self(rawValue: 0x53) }
    /// Secure: forget both stages of a VMID.
    @inlinable public static var tlbiSS12VMAll: Self { Self(rawValue: 0x58) }
    /// Secure: forget stage 2 of an address.
    @inlinable public static var tlbiSS2IPA: Self { Self(rawValue: 0x5A) }
    /// Secure: forget all that is not of EL2.
    @inlinable public static var tlbiSNHAll: Self { Self(rawValue: 0x60) }
    /// Forget the device permission table.
    @inlinable public static var dptiAll: Self { Self(rawValue: 0x70) }
    /// Forget an address of the device permission table.
    @inlinable public static var dptiPA: Self { Self(rawValue: 0x73) }

    /// The specification's name, such as `CMD_TLBI_NH_VA`; nil where the value is reserved.
    ///
    /// 0x04 is `CMD_CFGI_STE_RANGE` here: `Command.name` knows CMD_CFGI_ALL from it.
    public var name: String? { Self.names[self] }

    private static let names: [Opcode: String] = [
        .prefetchConfig: "CMD_PREFETCH_CONFIG",
        .prefetchAddr: "CMD_PREFETCH_ADDR",
        .cfgiSTE: "CMD_CFGI_STE",
        .cfgiSTERange: "CMD_CFGI_STE_RANGE",
        .cfgiCD: "CMD_CFGI_CD",
        .cfgiCDAll: "CMD_CFGI_CD_ALL",
        .cfgiVMSPIDM: "CMD_CFGI_VMS_PIDM",
        .tlbiNHAll: "CMD_TLBI_NH_ALL",
        .tlbiNHASID: "CMD_TLBI_NH_ASID",
        .tlbiNHVA: "CMD_TLBI_NH_VA",
        .tlbiNHVAA: "CMD_TLBI_NH_VAA",
        .tlbiEL3All: "CMD_TLBI_EL3_ALL",
        .tlbiEL3VA: "CMD_TLBI_EL3_VA",
        .tlbiEL2All: "CMD_TLBI_EL2_ALL",
        .tlbiEL2ASID: "CMD_TLBI_EL2_ASID",
        .tlbiEL2VA: "CMD_TLBI_EL2_VA",
        .tlbiEL2VAA: "CMD_TLBI_EL2_VAA",
        .tlbiS12VMAll: "CMD_TLBI_S12_VMALL",
        .tlbiS2IPA: "CMD_TLBI_S2_IPA",
        .tlbiNSNHAll: "CMD_TLBI_NSNH_ALL",
        .atcInv: "CMD_ATC_INV",
        .priResp: "CMD_PRI_RESP",
        .resume: "CMD_RESUME",
        .stallTerm: "CMD_STALL_TERM",
        .sync: "CMD_SYNC",
        .tlbiSEL2All: "CMD_TLBI_S_EL2_ALL",
        .tlbiSEL2ASID: "CMD_TLBI_S_EL2_ASID",
        .tlbiSEL2VA: "CMD_TLBI_S_EL2_VA",
        .tlbiSEL2VAA: "CMD_TLBI_S_EL2_VAA",
        .tlbiSS12VMAll: "CMD_TLBI_S_S12_VMALL",
        .tlbiSS2IPA: "CMD_TLBI_S_S2_IPA",
        .tlbiSNHAll: "CMD_TLBI_SNH_ALL",
        .dptiAll: "CMD_DPTI_ALL",
        .dptiPA: "CMD_DPTI_PA",
    ]

    /// Every opcode that the architecture names, in numerical order.
    public static let all: [Opcode] = names.keys.sorted { $0.rawValue < $1.rawValue }
}

extension Opcode: CustomStringConvertible {
    public var description: String { name ?? "opcode 0x" + String(rawValue, radix: 16) }
}
