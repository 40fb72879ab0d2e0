// The identification registers: what an SMMU can do, constant while it runs.

import BitFields

/// SMMU_IDR0 (0x000): what the SMMU can do.
public struct IDR0: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// S2P [0]: stage 2.
    public var s2P: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// S1P [1]: stage 1.
    public var s1P: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// TTF [3:2]: table formats: bit 0 LPAE, bit 1 VMSAv8-64.
    public var ttf: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 2...3]) }
        set { rawValue[bits: 2...3] = UInt32(newValue) }
    }

    /// COHACC [4]: the SMMU's own accesses are IO-coherent.
    public var cohacc: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// BTM [5]: broadcast TLB maintenance.
    public var btm: Bool {
        get { rawValue[bit: 5] }
        set { rawValue[bit: 5] = newValue }
    }

    /// HTTU [7:6]: hardware updates: 0 none, 1 Access flag, 2 and dirty state, 3 and table descriptors.
    public var httu: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...7]) }
        set { rawValue[bits: 6...7] = UInt32(newValue) }
    }

    /// DORMHINT [8]: STATUSR.DORMANT works.
    public var dormhint: Bool {
        get { rawValue[bit: 8] }
        set { rawValue[bit: 8] = newValue }
    }

    /// Hyp [9]: EL2 contexts.
    public var hyp: Bool {
        get { rawValue[bit: 9] }
        set { rawValue[bit: 9] = newValue }
    }

    /// ATS [10]: PCIe ATS.
    public var ats: Bool {
        get { rawValue[bit: 10] }
        set { rawValue[bit: 10] = newValue }
    }

    /// NS1ATS [11]: split-stage ATS is NOT supported.
    public var ns1ATS: Bool {
        get { rawValue[bit: 11] }
        set { rawValue[bit: 11] = newValue }
    }

    /// ASID16 [12]: 16-bit ASIDs.
    public var asid16: Bool {
        get { rawValue[bit: 12] }
        set { rawValue[bit: 12] = newValue }
    }

    /// MSI [13]: message-signalled interrupts.
    public var msi: Bool {
        get { rawValue[bit: 13] }
        set { rawValue[bit: 13] = newValue }
    }

    /// SEV [14]: wake-up events to processors.
    public var sev: Bool {
        get { rawValue[bit: 14] }
        set { rawValue[bit: 14] = newValue }
    }

    /// ATOS [15]: address translation operations.
    public var atos: Bool {
        get { rawValue[bit: 15] }
        set { rawValue[bit: 15] = newValue }
    }

    /// PRI [16]: PCIe page requests.
    public var pri: Bool {
        get { rawValue[bit: 16] }
        set { rawValue[bit: 16] = newValue }
    }

    /// VMW [17]: VMID wildcards.
    public var vmw: Bool {
        get { rawValue[bit: 17] }
        set { rawValue[bit: 17] = newValue }
    }

    /// VMID16 [18]: 16-bit VMIDs.
    public var vmid16: Bool {
        get { rawValue[bit: 18] }
        set { rawValue[bit: 18] = newValue }
    }

    /// CD2L [19]: 2-level CD tables.
    public var cd2L: Bool {
        get { rawValue[bit: 19] }
        set { rawValue[bit: 19] = newValue }
    }

    /// VATOS [20]: virtual ATOS page.
    public var vatos: Bool {
        get { rawValue[bit: 20] }
        set { rawValue[bit: 20] = newValue }
    }

    /// TTENDIAN [22:21]: table endianness: 0 mixed, 2 little, 3 big.
    public var ttendian: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 21...22]) }
        set { rawValue[bits: 21...22] = UInt32(newValue) }
    }

    /// ATSRECERR [23]: CR2.REC_CFG_ATS exists.
    public var atsrecerr: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }

    /// STALL_MODEL [25:24]: 0 stall and terminate, 1 terminate only, 2 stall only.
    public var stallModel: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 24...25]) }
        set { rawValue[bits: 24...25] = UInt32(newValue) }
    }

    /// TERM_MODEL [26]: terminated transactions always abort.
    public var termModel: Bool {
        get { rawValue[bit: 26] }
        set { rawValue[bit: 26] = newValue }
    }

    /// ST_LEVEL [28:27]: 0 linear stream tables, 1 also 2-level.
    public var stLevel: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 27...28]) }
        set { rawValue[bits: 27...28] = UInt32(newValue) }
    }

    /// RME_IMPL [30]: RME for the Non-secure and Realm states.
    public var rmeImpl: Bool {
        get { rawValue[bit: 30] }
        set { rawValue[bit: 30] = newValue }
    }
}

/// SMMU_IDR1 (0x004): sizes and presets.
public struct IDR1: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// SIDSIZE [5:0]: StreamID bits.
    public var sidsize: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...5]) }
        set { rawValue[bits: 0...5] = UInt32(newValue) }
    }

    /// SSIDSIZE [10:6]: SubstreamID bits.
    public var ssidsize: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...10]) }
        set { rawValue[bits: 6...10] = UInt32(newValue) }
    }

    /// PRIQS [15:11]: log2 of the most PRI queue entries.
    public var priqs: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 11...15]) }
        set { rawValue[bits: 11...15] = UInt32(newValue) }
    }

    /// EVENTQS [20:16]: log2 of the most event queue entries.
    public var eventqs: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...20]) }
        set { rawValue[bits: 16...20] = UInt32(newValue) }
    }

    /// CMDQS [25:21]: log2 of the most command queue entries.
    public var cmdqs: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 21...25]) }
        set { rawValue[bits: 21...25] = UInt32(newValue) }
    }

    /// ATTR_PERMS_OVR [26]: INSTCFG, PRIVCFG and NSCFG overrides work.
    public var attrPermsOvr: Bool {
        get { rawValue[bit: 26] }
        set { rawValue[bit: 26] = newValue }
    }

    /// ATTR_TYPES_OVR [27]: MTCFG, SHCFG and ALLOCCFG overrides work.
    public var attrTypesOvr: Bool {
        get { rawValue[bit: 27] }
        set { rawValue[bit: 27] = newValue }
    }

    /// REL [28]: preset bases are relative to page 0.
    public var rel: Bool {
        get { rawValue[bit: 28] }
        set { rawValue[bit: 28] = newValue }
    }

    /// QUEUES_PRESET [29]: queue bases are fixed.
    public var queuesPreset: Bool {
        get { rawValue[bit: 29] }
        set { rawValue[bit: 29] = newValue }
    }

    /// TABLES_PRESET [30]: the stream table base is fixed.
    public var tablesPreset: Bool {
        get { rawValue[bit: 30] }
        set { rawValue[bit: 30] = newValue }
    }

    /// ECMDQ [31]: enhanced command queues.
    public var ecmdq: Bool {
        get { rawValue[bit: 31] }
        set { rawValue[bit: 31] = newValue }
    }
}

/// SMMU_IDR2 (0x008): where the VATOS page lies.
public struct IDR2: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// BA_VATOS [9:0]: the VATOS page lies at 0x20000 + BA_VATOS * 0x10000.
    public var baVATOS: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...9]) }
        set { rawValue[bits: 0...9] = UInt32(newValue) }
    }
}

/// SMMU_IDR3 (0x00C): more that the SMMU can do.
public struct IDR3: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// HAD [2]: CD.HAD works.
    public var had: Bool {
        get { rawValue[bit: 2] }
        set { rawValue[bit: 2] = newValue }
    }

    /// PBHA [3]: page-based hardware attributes.
    public var pbha: Bool {
        get { rawValue[bit: 3] }
        set { rawValue[bit: 3] = newValue }
    }

    /// XNX [4]: stage-2 XN has two bits.
    public var xnx: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// PPS [5]: page request group responses carry the PASID of the request.
    public var pps: Bool {
        get { rawValue[bit: 5] }
        set { rawValue[bit: 5] = newValue }
    }

    /// MPAM [7]: MPAM.
    public var mpam: Bool {
        get { rawValue[bit: 7] }
        set { rawValue[bit: 7] = newValue }
    }

    /// FWB [8]: STE.S2FWB works.
    public var fwb: Bool {
        get { rawValue[bit: 8] }
        set { rawValue[bit: 8] = newValue }
    }

    /// STT [9]: small translation tables.
    public var stt: Bool {
        get { rawValue[bit: 9] }
        set { rawValue[bit: 9] = newValue }
    }

    /// RIL [10]: range invalidation and level hints.
    public var ril: Bool {
        get { rawValue[bit: 10] }
        set { rawValue[bit: 10] = newValue }
    }

    /// BBML [12:11]: break-before-make level.
    public var bbml: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 11...12]) }
        set { rawValue[bits: 11...12] = UInt32(newValue) }
    }

    /// E0PD [13]: CD.E0PD works.
    public var e0pd: Bool {
        get { rawValue[bit: 13] }
        set { rawValue[bit: 13] = newValue }
    }

    /// PTWNNC [14]: walks to Device memory are Normal non-cacheable.
    public var ptwnnc: Bool {
        get { rawValue[bit: 14] }
        set { rawValue[bit: 14] = newValue }
    }

    /// DPT [15]: device permission table.
    public var dpt: Bool {
        get { rawValue[bit: 15] }
        set { rawValue[bit: 15] = newValue }
    }

    /// PASIDTT [16]: translated transactions carry a PASID.
    public var pasidtt: Bool {
        get { rawValue[bit: 16] }
        set { rawValue[bit: 16] = newValue }
    }

    /// EPAN [17]: CD.EPAN works.
    public var epan: Bool {
        get { rawValue[bit: 17] }
        set { rawValue[bit: 17] = newValue }
    }

    /// S1PI [18]: stage-1 permission indirection.
    public var s1PI: Bool {
        get { rawValue[bit: 18] }
        set { rawValue[bit: 18] = newValue }
    }

    /// S2PI [19]: stage-2 permission indirection.
    public var s2PI: Bool {
        get { rawValue[bit: 19] }
        set { rawValue[bit: 19] = newValue }
    }

    /// S2PO [20]: stage-2 permission overlay.
    public var s2PO: Bool {
        get { rawValue[bit: 20] }
        set { rawValue[bit: 20] = newValue }
    }

    /// THE [21]: translation hardening.
    public var the: Bool {
        get { rawValue[bit: 21] }
        set { rawValue[bit: 21] = newValue }
    }

    /// MTEPERM [22]: the stage-2 NoTagAccess memory types.
    public var mteperm: Bool {
        get { rawValue[bit: 22] }
        set { rawValue[bit: 22] = newValue }
    }

    /// AIE [23]: CD.AIE works.
    public var aie: Bool {
        get { rawValue[bit: 23] }
        set { rawValue[bit: 23] = newValue }
    }
}

/// SMMU_IDR5 (0x014): address sizes, granules and the number of stalls.
public struct IDR5: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// OAS [2:0]: output address size, see `AddressSize`.
    public var oas: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...2]) }
        set { rawValue[bits: 0...2] = UInt32(newValue) }
    }

    /// GRAN4K [4]: 4 KiB granule.
    public var gran4K: Bool {
        get { rawValue[bit: 4] }
        set { rawValue[bit: 4] = newValue }
    }

    /// GRAN16K [5]: 16 KiB granule.
    public var gran16K: Bool {
        get { rawValue[bit: 5] }
        set { rawValue[bit: 5] = newValue }
    }

    /// GRAN64K [6]: 64 KiB granule.
    public var gran64K: Bool {
        get { rawValue[bit: 6] }
        set { rawValue[bit: 6] = newValue }
    }

    /// DS [7]: 52-bit addresses with the 4 KiB and 16 KiB granules.
    public var ds: Bool {
        get { rawValue[bit: 7] }
        set { rawValue[bit: 7] = newValue }
    }

    /// D128 [8]: VMSAv9-128 tables.
    public var d128: Bool {
        get { rawValue[bit: 8] }
        set { rawValue[bit: 8] = newValue }
    }

    /// VAX [11:10]: virtual addresses per TTB: 0 48 bits, 1 52 bits, 2 56 bits.
    public var vax: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 10...11]) }
        set { rawValue[bits: 10...11] = UInt32(newValue) }
    }

    /// STALL_MAX [31:16]: the most stalled transactions.
    public var stallMax: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 16...31]) }
        set { rawValue[bits: 16...31] = UInt32(newValue) }
    }
}

/// SMMU_IDR6 (0x190): enhanced command queues.
public struct IDR6: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// LOG2NUMQ [19:16]: log2 of the queues in one control page.
    public var log2NumQ: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...19]) }
        set { rawValue[bits: 16...19] = UInt32(newValue) }
    }

    /// LOG2NUMP [27:24]: log2 of the control pages.
    public var log2NumP: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 24...27]) }
        set { rawValue[bits: 24...27] = UInt32(newValue) }
    }
}

/// SMMU_IIDR (0x018): who made it.
public struct IIDR: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Implementer [11:0]: JEP106 code of the maker; Arm is 0x43B.
    public var implementer: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 0...11]) }
        set { rawValue[bits: 0...11] = UInt32(newValue) }
    }

    /// Revision [15:12]: minor revision.
    public var revision: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 12...15]) }
        set { rawValue[bits: 12...15] = UInt32(newValue) }
    }

    /// Variant [19:16]: major revision.
    public var variant: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 16...19]) }
        set { rawValue[bits: 16...19] = UInt32(newValue) }
    }

    /// ProductID [31:20]: the part; MMU-600 is 0x483.
    public var productID: UInt16 {
        get { UInt16(truncatingIfNeeded: rawValue[bits: 20...31]) }
        set { rawValue[bits: 20...31] = UInt32(newValue) }
    }
}

/// SMMU_AIDR (0x01C): the architecture it follows.
public struct AIDR: RegisterWord {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// ArchMinorRev [3:0]: 0 to 4: SMMUv3.0 to SMMUv3.4.
    public var archMinorRev: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...3]) }
        set { rawValue[bits: 0...3] = UInt32(newValue) }
    }

    /// ArchMajorRev [7:4]: 0: SMMUv3.
    public var archMajorRev: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 4...7]) }
        set { rawValue[bits: 4...7] = UInt32(newValue) }
    }
}
