// A CD, checked and decoded: what stage 1 works from.

import BitFields
import SMMUv3Spec

/// The part of a CD that one half of the address space is translated with: TTB0 and its fields, or TTB1.
struct TableRegion: Equatable, Sendable {
    /// EPDn: no walk.
    var isWalkDisabled: Bool
    /// TBIn: address bits [63:56] are ignored.
    var ignoresTopByte: Bool
    /// E0PDn: unprivileged accesses fault.
    var refusesUnprivileged: Bool
    /// 64 - TnSZ.
    var inputBits: Int
    var format: TableFormat
    /// TTBn.
    var tableBase: UInt64
    /// HADn.
    var ignoresHierarchicalAttributes: Bool
    /// SHn: with DS every leaf's shareability.
    var walkShareability: UInt8
}

/// What a valid CD configures.
struct ContextConfiguration: Equatable, Sendable {
    var lower: TableRegion
    var upper: TableRegion
    /// min(IPS, OAS) in bits.
    var outputBits: Int
    var asid: UInt16
    var aset: Bool
    var mair: UInt64
    /// AFFD, of effect without `updatesAccessFlag`.
    var accessFlagFaultsDisabled: Bool
    /// HA.
    var updatesAccessFlag: Bool
    /// HD, of effect with HA alone.
    var updatesDirtyState: Bool
    var permissionRules: PermissionRules
    /// CD.A: terminated transactions abort; otherwise read as zero, write ignored.
    var aborts: Bool
    /// CD.R: translation-related faults are recorded.
    var records: Bool
    /// CD.S: they stall, whatever CD.A and CD.R say.
    var stalls: Bool
    /// PARTID and PMG, of effect where STE.S1MPAM lets the CD choose; a virtual machine's PARTID is mapped already.
    var mpam = MPAMIdentity()
}

/// What the permissions of a leaf depend on beside the leaf.
struct PermissionRules: Equatable, Sendable {
    /// Whether the regime has an upper half, ASIDs and unprivileged accesses: all but NS-EL2.
    var hasTwoRanges: Bool
    var wxn: Bool
    var pan: Bool
    /// EPAN, where SMMU_IDR3.EPAN has it: PAN looks at unprivileged execution too.
    var epan: Bool
    /// VMSAv8-32 LPAE tables (AA64 == 0).
    var isAArch32 = false
    /// UWXN, of VMSAv8-32: what unprivileged accesses can write, privileged ones do not execute.
    var uwxn = false
}

extension ContextConfiguration {
    var hasTwoRanges: Bool { permissionRules.hasTwoRanges }

    /// A context that translates nothing: what stands where stage 1 does not translate.
    static let unused: ContextConfiguration = {
        let region = TableRegion(
            isWalkDisabled: true,
            ignoresTopByte: false,
            refusesUnprivileged: false,
            inputBits: 48,
            format: TableFormat(stage: .stage1, granule: .kib4),
            tableBase: 0,
            ignoresHierarchicalAttributes: false,
            walkShareability: 0
        )
        return ContextConfiguration(
            lower: region,
            upper: region,
            outputBits: 0,
            asid: 0,
            aset: false,
            mair: 0,
            accessFlagFaultsDisabled: false,
            updatesAccessFlag: false,
            updatesDirtyState: false,
            permissionRules: PermissionRules(hasTwoRanges: true, wxn: false, pan: false, epan: false),
            aborts: true,
            records: true,
            stalls: false
        )
    }()

    /// Whether TTB1 translates an address: by bit 55, with or without a top byte, or by TxSZ in 32 bits.
    @inline(__always)  // On the way of every transaction that a port does not answer.
    func isUpper(_ address: UInt64) -> Bool {
        guard !permissionRules.isAArch32 else { return isUpperOf32Bits(address) }
        return hasTwoRanges && address[bit: 55]
    }

    func region(of address: UInt64) -> TableRegion { isUpper(address) ? upper : lower }

    /// The input address with the top byte replaced where it is ignored, so that equal translations compare equal.
    @inline(__always)  // As above.
    func canonical(_ address: UInt64) -> UInt64 {
        let isUpper = isUpper(address)
        guard isUpper ? upper.ignoresTopByte : lower.ignoresTopByte else { return address }
        return isUpper ? address | 0xFF00_0000_0000_0000 : address & 0x00FF_FFFF_FFFF_FFFF
    }
}

extension Identification {
    /// Why a CD is invalid or ILLEGAL (IHI 0070, 5.4 and CdIllegal()), in words; nil where it is valid.
    func violation(of cd: CD, in stream: StreamConfiguration) -> String? {
        guard cd.v else { return "CD.V is 0" }
        if stream.s1STALLD, cd.s { return "CD.S is 1 though STE.S1STALLD forbids stalls" }
        if idr0.termModel, !cd.a { return "CD.A is 0 with SMMU_IDR0.TERM_MODEL 1" }
        if idr0.stallModel == 0b01, cd.s { return "CD.S is 1 with SMMU_IDR0.STALL_MODEL 1 (no stalls)" }
        if idr0.stallModel == 0b10, !cd.s { return "CD.S is 0 with SMMU_IDR0.STALL_MODEL 2 (stalls forced)" }
        // Without an upper half EPD0 is effectively 0 and TTB1 does not exist.
        let usesLower = !stream.world.hasTwoRanges || !cd.epd0
        let usesUpper = stream.world.hasTwoRanges && !cd.epd1
        if usesLower || usesUpper {
            if idr0.ttendian == 0b10, cd.endi {
                return "CD.ENDI is 1; SMMU_IDR0.TTENDIAN has little-endian alone"
            }
            if idr0.ttendian == 0b11, !cd.endi {
                return "CD.ENDI is 0; SMMU_IDR0.TTENDIAN has big-endian alone"
            }
        }
        if let reason = formatViolation(of: cd, in: stream) { return reason }
        guard cd.aa64 else { return asidViolation(of: cd, in: stream) }
        if cd.ha || cd.hd, idr0.httu == 0 { return "CD.HA or CD.HD is 1 with SMMU_IDR0.HTTU 0" }
        if cd.hd, idr0.httu == 1 { return "CD.HD is 1 with SMMU_IDR0.HTTU 1 (access flag alone)" }
        if cd.haft, !cd.ha, idr0.httu == 3 { return "CD.HAFT is 1 with CD.HA 0" }
        if let reason = asidViolation(of: cd, in: stream) { return reason }
        // Both halves are checked for every transaction, whichever half its address selects.
        if usesLower {
            let granule = Granule(tg0: cd.tg0)
            if let reason = regionViolation(cd, "0", size: cd.t0SZ, granule: granule, table: cd.ttb0) {
                return reason
            }
        }
        if usesUpper {
            let granule = Granule(tg1: cd.tg1)
            if let reason = regionViolation(cd, "1", size: cd.t1SZ, granule: granule, table: cd.ttb1) {
                return reason
            }
        }
        return nil
    }

    private func asidViolation(of cd: CD, in stream: StreamConfiguration) -> String? {
        guard stream.world.hasTwoRanges, !idr0.asid16, cd.asid > 0xFF else { return nil }
        return "CD.ASID has upper bits with SMMU_IDR0.ASID16 0"
    }

    private func regionViolation(_ cd: CD, _ n: String, size: UInt8, granule: Granule?, table: UInt64)
        -> String?
    {
        guard let granule, supports(granule) else {
            return "CD.TG\(n) selects a granule that is reserved or that SMMU_IDR5 does not have"
        }
        let largest: UInt8 = !idr3.stt ? 39 : granule == .kib64 ? 47 : 48
        let hasLargeInput = idr5.vax >= 1 && (granule == .kib64 || (idr5.ds && cd.ds))
        let smallest: UInt8 = hasLargeInput ? 12 : 16
        guard size >= smallest, size <= largest else {
            return "CD.T\(n)SZ is \(size), outside \(smallest)...\(largest)"
        }
        let outputBits = AddressSize.effectiveBits(encoding: cd.ips, limit: idr5.oas)
        let limit: UInt64 = 1 << UInt64(outputBits)
        guard table < limit, granule == .kib64 || (idr5.ds && cd.ds) || table < 1 << 48 else {
            return
                "CD.TTB\(n) 0x\(String(table, radix: 16)) is beyond the \(outputBits)-bit intermediate address size"
        }
        return nil
    }

    /// Decodes a CD in which ``violation(of:in:)`` found nothing.
    func decode(_ cd: CD, in stream: StreamConfiguration) -> ContextConfiguration {
        guard cd.aa64 else { return decodeAArch32(cd, in: stream) }
        let hasTwoRanges = stream.world.hasTwoRanges
        return ContextConfiguration(
            lower: TableRegion(
                isWalkDisabled: hasTwoRanges && cd.epd0,
                ignoresTopByte: cd.tbi0,
                refusesUnprivileged: hasTwoRanges && idr3.e0pd && cd.e0pd0,
                inputBits: 64 - Int(cd.t0SZ),
                // A region whose walks are disabled may hold anything; its granule is never used.
                format: format(Granule(tg0: cd.tg0) ?? .kib4, cd),
                tableBase: cd.ttb0,
                ignoresHierarchicalAttributes: cd.had0 && idr3.had,
                walkShareability: cd.sh0
            ),
            upper: TableRegion(
                isWalkDisabled: !hasTwoRanges || cd.epd1,
                ignoresTopByte: cd.tbi1,
                refusesUnprivileged: hasTwoRanges && idr3.e0pd && cd.e0pd1,
                inputBits: 64 - Int(cd.t1SZ),
                format: format(Granule(tg1: cd.tg1) ?? .kib4, cd),
                tableBase: cd.ttb1,
                ignoresHierarchicalAttributes: cd.had1 && idr3.had,
                walkShareability: cd.sh1
            ),
            outputBits: AddressSize.effectiveBits(encoding: cd.ips, limit: idr5.oas),
            asid: hasTwoRanges ? cd.asid : 0,
            aset: hasTwoRanges && cd.aset,
            mair: cd.mair,
            accessFlagFaultsDisabled: cd.affd,
            updatesAccessFlag: cd.ha,
            updatesDirtyState: cd.ha && cd.hd,
            permissionRules: PermissionRules(
                hasTwoRanges: hasTwoRanges,
                wxn: cd.wxn,
                pan: hasTwoRanges && cd.pan,
                epan: idr3.epan && cd.epan
            ),
            aborts: cd.a,
            records: cd.r,
            stalls: cd.s
        )
    }

    private func format(_ granule: Granule, _ cd: CD) -> TableFormat {
        TableFormat(
            stage: .stage1,
            granule: granule,
            has52BitOutput: granule == .kib64 && has52BitOutput,
            ds: granule != .kib64 && idr5.ds && cd.ds,
            isBigEndian: cd.endi
        )
    }
}
