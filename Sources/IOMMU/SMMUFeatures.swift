// What one SMMU can do, as its identification registers and its firmware description say.

package import IOPageTable
package import SMMUv3Spec

/// Features by name; the bits are those that the kernel prints as `features 0x…`.
package struct SMMUFeatureSet: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Stream tables may have two levels (IDR0.ST_LEVEL).
    package static let twoLevelStreamTable = Self(rawValue: 1 << 0)
    /// CD tables may have two levels (IDR0.CD2L).
    package static let twoLevelCDTable = Self(rawValue: 1 << 1)
    /// Little-endian tables (IDR0.TTENDIAN).
    package static let littleEndianTables = Self(rawValue: 1 << 2)
    /// Big-endian tables (IDR0.TTENDIAN).
    package static let bigEndianTables = Self(rawValue: 1 << 3)
    /// Page requests of PCIe functions (IDR0.PRI).
    package static let pageRequests = Self(rawValue: 1 << 4)
    /// Translation requests of PCIe functions (IDR0.ATS).
    package static let translationRequests = Self(rawValue: 1 << 5)
    /// WFE wakes up when a CMD_SYNC completes (IDR0.SEV).
    package static let sendsEvents = Self(rawValue: 1 << 6)
    /// Message-signalled interrupts (IDR0.MSI).
    package static let msi = Self(rawValue: 1 << 7)
    /// Structure accesses and walks snoop caches (`dma-coherent`, else IDR0.COHACC is overruled).
    package static let coherent = Self(rawValue: 1 << 8)
    /// Stage 1 (IDR0.S1P).
    package static let stage1 = Self(rawValue: 1 << 9)
    /// Stage 2 (IDR0.S2P).
    package static let stage2 = Self(rawValue: 1 << 10)
    /// Faulting transactions can stall (IDR0.STALL_MODEL).
    package static let stalls = Self(rawValue: 1 << 11)
    /// EL2 contexts (IDR0.Hyp).
    package static let hypervisor = Self(rawValue: 1 << 12)
    /// Faulting transactions always stall (IDR0.STALL_MODEL).
    package static let forcedStalls = Self(rawValue: 1 << 13)
    /// 52-bit virtual addresses (IDR5.VAX).
    package static let wideVirtualAddresses = Self(rawValue: 1 << 14)
    /// TLBI of ranges (IDR3.RIL).
    package static let rangeInvalidation = Self(rawValue: 1 << 15)
    /// Processes' address spaces can be shared: see ``SMMUFeatures/sharesProcessTables``.
    package static let sharedVirtualAddresses = Self(rawValue: 1 << 17)
    /// Both stages, and revisions in which nesting works.
    package static let nesting = Self(rawValue: 1 << 19)
    /// STE.SHCFG and its like take effect (IDR1.ATTR_TYPES_OVR).
    package static let attributeOverrides = Self(rawValue: 1 << 20)
    /// The Access flag is set by hardware (IDR0.HTTU).
    package static let hardwareAccessFlag = Self(rawValue: 1 << 21)
    /// Dirty state is set by hardware (IDR0.HTTU).
    package static let hardwareDirtyState = Self(rawValue: 1 << 22)
}

/// Everything that probing an SMMU yields.
package struct SMMUFeatures: Hashable, Sendable {
    package internal(set) var flags: SMMUFeatureSet = []
    /// How many bits an input address of stage 2, or an output address of stage 1, has (ias).
    package internal(set) var inputAddressBits = 0
    /// How many bits a physical address has (oas).
    package internal(set) var outputAddressBits = 0
    /// The granules that stage-1 tables may have, ascending.
    package internal(set) var granules: [PageTableGranule] = []
    package internal(set) var asidBits = 8
    package internal(set) var vmidBits = 8
    package internal(set) var streamIDBits = 0
    package internal(set) var substreamIDBits = 0
    /// log2 of the most entries that each queue may have.
    package internal(set) var commandQueueLog2 = 0
    package internal(set) var eventQueueLog2 = 0
    package internal(set) var pageRequestQueueLog2 = 0
    /// How many stalled transactions there can be (IDR5.STALL_MAX).
    package internal(set) var stallLimit = 0
    /// Full batches need a CMD_SYNC of their own (MMU-700).
    package internal(set) var syncsFullBatches = false
    package internal(set) var iidr = IIDR(rawValue: 0)

    /// Whether the SMMU can walk a process's page table as its CPU does: coherently, with pages of 4 KiB.
    ///
    /// Linux: arm_smmu_sva_supported.
    package var sharesProcessTables: Bool {
        flags.isSuperset(of: [.coherent, .stage1]) && granules.contains(.kib4)
    }

    /// How many bits an IOVA of a stage-1 domain has.
    package var virtualAddressBits: Int { flags.contains(.wideVirtualAddresses) ? 52 : 48 }
}

// MARK: Probe

/// Reads the identification registers the way the kernel does, and refuses what it refuses.
struct HardwareProbe {
    let registers: RegisterPort
    let isCoherent: Bool
    let httuOverride: UInt8?
    let log: DriverLog
    private var features = SMMUFeatures()

    init(registers: RegisterPort, isCoherent: Bool, httuOverride: UInt8?, log: DriverLog) {
        self.registers = registers
        self.isCoherent = isCoherent
        self.httuOverride = httuOverride
        self.log = log
    }

    /// Reads IDR0, IDR1, IDR3, IDR5 and IIDR, in that order, and no other register.
    mutating func run() throws(SMMUDriverError) -> SMMUFeatures {
        try readIDR0(IDR0(rawValue: try registers.read32(RegisterOffset.idr0)))
        try readIDR1(IDR1(rawValue: try registers.read32(RegisterOffset.idr1)))
        let idr3 = IDR3(rawValue: try registers.read32(RegisterOffset.idr3))
        if idr3.ril { features.flags.insert(.rangeInvalidation) }
        try readIDR5(IDR5(rawValue: try registers.read32(RegisterOffset.idr5)))
        readIIDR(IIDR(rawValue: try registers.read32(RegisterOffset.iidr)))
        if features.sharesProcessTables { features.flags.insert(.sharedVirtualAddresses) }
        log.note(
            .info,
            "ias \(features.inputAddressBits)-bit, oas \(features.outputAddressBits)-bit"
                + " (features 0x\(hex(features.flags.rawValue, digits: 8)))"
        )
        return features
    }

    private mutating func readIDR0(_ idr0: IDR0) throws(SMMUDriverError) {
        func refuse(_ reason: String) -> SMMUDriverError {
            .unsupportedHardware(register: "SMMU_IDR0", value: idr0.rawValue, reason: reason)
        }
        switch idr0.ttendian {
        case 0: features.flags.formUnion([.littleEndianTables, .bigEndianTables])
        case 2: features.flags.insert(.littleEndianTables)
        default: throw refuse("unknown/unsupported TT endianness!")
        }
        if idr0.stLevel == 1 { features.flags.insert(.twoLevelStreamTable) }
        if idr0.cd2L { features.flags.insert(.twoLevelCDTable) }
        if idr0.pri { features.flags.insert(.pageRequests) }
        if idr0.ats { features.flags.insert(.translationRequests) }
        if idr0.sev { features.flags.insert(.sendsEvents) }
        if idr0.msi { features.flags.insert(.msi) }
        if idr0.hyp { features.flags.insert(.hypervisor) }
        readHTTU(idr0)
        // What firmware says of coherency wins.
        if isCoherent { features.flags.insert(.coherent) }
        if idr0.cohacc != isCoherent {
            log.note(.warning, "IDR0.COHACC overridden by FW configuration (\(isCoherent))")
        }
        switch idr0.stallModel {
        case 0: features.flags.insert(.stalls)
        case 2: features.flags.formUnion([.stalls, .forcedStalls])
        default: break
        }
        if idr0.s1P { features.flags.insert(.stage1) }
        if idr0.s2P { features.flags.insert(.stage2) }
        guard idr0.s1P || idr0.s2P else { throw refuse("no translation support!") }
        if idr0.s1P && idr0.s2P { features.flags.insert(.nesting) }
        switch idr0.ttf {
        case 2: break
        case 3: features.inputAddressBits = 40
        default: throw refuse("AArch64 table format not supported!")
        }
        features.asidBits = idr0.asid16 ? 16 : 8
        features.vmidBits = idr0.vmid16 ? 16 : 8
    }

    /// Hardware update of the Access flag and of dirty state; what ACPI says of it wins.
    private mutating func readHTTU(_ idr0: IDR0) {
        func flags(_ httu: UInt8) -> SMMUFeatureSet {
            var flags: SMMUFeatureSet = []
            if httu >= 1 { flags.insert(.hardwareAccessFlag) }
            if httu >= 2 { flags.insert(.hardwareDirtyState) }
            return flags
        }
        let hardware = flags(idr0.httu)
        let used = flags(httuOverride ?? idr0.httu)
        features.flags.formUnion(used)
        if used != hardware {
            log.note(
                .warning,
                "IDR0.HTTU features(0x\(hex(hardware.rawValue))) overridden by FW configuration "
                    + "(0x\(hex(used.rawValue)))"
            )
        }
    }

    private mutating func readIDR1(_ idr1: IDR1) throws(SMMUDriverError) {
        func refuse(_ reason: String) -> SMMUDriverError {
            .unsupportedHardware(register: "SMMU_IDR1", value: idr1.rawValue, reason: reason)
        }
        guard !idr1.tablesPreset, !idr1.queuesPreset, !idr1.rel else {
            throw refuse("embedded implementation not supported")
        }
        if idr1.attrTypesOvr { features.flags.insert(.attributeOverrides) }
        // A batch of 64 commands has to fit, with its CMD_SYNC.
        guard idr1.cmdqs > 6 else {
            throw refuse("command queue size <= \(CommandBatch.limit) entries not supported")
        }
        // The architecture has no more than 2^19 entries and 2^32 streams; larger fields are reserved.
        features.commandQueueLog2 = min(Int(idr1.cmdqs), 19)
        features.eventQueueLog2 = min(Int(idr1.eventqs), 19)
        features.pageRequestQueueLog2 = min(Int(idr1.priqs), 19)
        features.substreamIDBits = min(Int(idr1.ssidsize), 20)
        features.streamIDBits = min(Int(idr1.sidsize), 32)
        // One level-2 table would hold all of them: two levels have no use.
        if features.streamIDBits <= StreamTable.split { features.flags.remove(.twoLevelStreamTable) }
    }

    private mutating func readIDR5(_ idr5: IDR5) throws(SMMUDriverError) {
        features.stallLimit = Int(idr5.stallMax)
        if idr5.gran4K { features.granules.append(.kib4) }
        if idr5.gran16K { features.granules.append(.kib16) }
        if idr5.gran64K { features.granules.append(.kib64) }
        guard !features.granules.isEmpty else {
            throw .unsupportedHardware(
                register: "SMMU_IDR5",
                value: idr5.rawValue,
                reason: "no translation granule"
            )
        }
        if idr5.vax == 1 { features.flags.insert(.wideVirtualAddresses) }
        if idr5.oas > 6 { log.note(.info, "unknown output address size. Truncating to 48-bit") }
        features.outputAddressBits = idr5.oas > 6 ? 48 : AddressSize.bits(encoding: idr5.oas)
        features.inputAddressBits = max(features.inputAddressBits, features.outputAddressBits)
    }

    /// Errata by revision, as far as they concern what this driver does.
    private mutating func readIIDR(_ iidr: IIDR) {
        features.iidr = iidr
        guard iidr.implementer == 0x43B else { return }
        switch iidr.productID {
        case 0x483:
            if iidr.variant == 0 && iidr.revision <= 2 { features.flags.remove(.sendsEvents) }
            if iidr.variant < 2 { features.flags.remove(.nesting) }
        case 0x487:
            features.syncsFullBatches = true
            features.flags.remove(.nesting)
        default: break
        }
    }
}
