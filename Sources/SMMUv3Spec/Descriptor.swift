// The VMSAv8-64 translation table descriptor, of both stages.

import BitFields

/// A VMSAv8-64 translation table descriptor (8 bytes).
///
/// One set of accessors serves stage 1 and stage 2, tables, blocks and pages: which of them mean something
/// depends on where the descriptor was found.
public struct Descriptor: Hashable, Sendable {
    /// The descriptor, in the byte order of the processor.
    public var rawValue: UInt64

    /// The descriptor with these bits, whatever they are.
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// All zero: invalid.
    public init() { rawValue = 0 }

    /// Type [1:0]: 0 and 2 invalid, 1 a block, 3 a table or page.
    public var type: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 0...1]) }
        set { rawValue[bits: 0...1] = UInt64(newValue) }
    }

    /// Valid [0]: the descriptor translates.
    public var isValid: Bool {
        get { rawValue[bit: 0] }
        set { rawValue[bit: 0] = newValue }
    }

    /// Type [1]: a table above level 3, a page at level 3; 0 a block.
    public var isTableOrPage: Bool {
        get { rawValue[bit: 1] }
        set { rawValue[bit: 1] = newValue }
    }

    /// AttrIndx [4:2]: stage 1: which byte of MAIR.
    public var attrIndx: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 2...4]) }
        set { rawValue[bits: 2...4] = UInt64(newValue) }
    }

    /// NS [5]: stage 1, Secure: the output is Non-secure.
    public var ns: Bool {
        get { rawValue[bit: 5] }
        set { rawValue[bit: 5] = newValue }
    }

    /// AP [7:6]: stage 1, AP[2:1]: bit 1 read-only, bit 0 unprivileged access.
    public var ap: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...7]) }
        set { rawValue[bits: 6...7] = UInt64(newValue) }
    }

    /// SH [9:8]: shareability; output address bits 51:50 with 52-bit addresses of the 4 KiB and 16 KiB
    /// granules.
    public var sh: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 8...9]) }
        set { rawValue[bits: 8...9] = UInt64(newValue) }
    }

    /// AF [10]: Access flag.
    public var af: Bool {
        get { rawValue[bit: 10] }
        set { rawValue[bit: 10] = newValue }
    }

    /// nG [11]: stage 1: not global, so tagged with the ASID.
    public var nG: Bool {
        get { rawValue[bit: 11] }
        set { rawValue[bit: 11] = newValue }
    }

    /// nT [16]: blocks only: do not cache, while the block is being split.
    public var nT: Bool {
        get { rawValue[bit: 16] }
        set { rawValue[bit: 16] = newValue }
    }

    /// GP [50]: stage 1: guarded page, which the SMMU ignores.
    public var gp: Bool {
        get { rawValue[bit: 50] }
        set { rawValue[bit: 50] = newValue }
    }

    /// DBM [51]: dirty bit modifier: hardware may make it writable.
    public var dbm: Bool {
        get { rawValue[bit: 51] }
        set { rawValue[bit: 51] = newValue }
    }

    /// Contiguous [52]: hint that this is one of an aligned group of like entries.
    public var contiguous: Bool {
        get { rawValue[bit: 52] }
        set { rawValue[bit: 52] = newValue }
    }

    /// PXN [53]: stage 1: privileged execute-never.
    public var pxn: Bool {
        get { rawValue[bit: 53] }
        set { rawValue[bit: 53] = newValue }
    }

    /// UXN [54]: stage 1: unprivileged execute-never; execute-never in EL2 and EL3.
    public var uxn: Bool {
        get { rawValue[bit: 54] }
        set { rawValue[bit: 54] = newValue }
    }

    /// Software [58:55]: free for software, of stage 1.
    public var software: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 55...58]) }
        set { rawValue[bits: 55...58] = UInt64(newValue) }
    }

    /// PBHA [62:59]: page-based hardware attributes.
    public var pbha: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 59...62]) }
        set { rawValue[bits: 59...62] = UInt64(newValue) }
    }

    /// AttrIndx[3] [59]: stage 1, with CD.AIE: the fourth bit of AttrIndx.
    public var attrIndx3: Bool {
        get { rawValue[bit: 59] }
        set { rawValue[bit: 59] = newValue }
    }

    /// PXNTable [59]: stage-1 table: PXN for all below.
    public var pxnTable: Bool {
        get { rawValue[bit: 59] }
        set { rawValue[bit: 59] = newValue }
    }

    /// UXNTable [60]: stage-1 table: UXN for all below.
    public var uxnTable: Bool {
        get { rawValue[bit: 60] }
        set { rawValue[bit: 60] = newValue }
    }

    /// APTable [62:61]: stage-1 table: bit 1 no writes, bit 0 no unprivileged access for all below.
    public var apTable: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 61...62]) }
        set { rawValue[bits: 61...62] = UInt64(newValue) }
    }

    /// NSTable [63]: stage-1 table, Secure: the tables below are Non-secure.
    public var nsTable: Bool {
        get { rawValue[bit: 63] }
        set { rawValue[bit: 63] = newValue }
    }

    /// MemAttr [5:2]: stage 2: memory type, in the encoding that STE.S2FWB selects.
    public var s2MemAttr: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 2...5]) }
        set { rawValue[bits: 2...5] = UInt64(newValue) }
    }

    /// S2AP [7:6]: stage 2: bit 0 read, bit 1 write.
    public var s2AP: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 6...7]) }
        set { rawValue[bits: 6...7] = UInt64(newValue) }
    }

    /// XN [54:53]: stage 2: execute-never, two bits with IDR3.XNX, else bit 1 of them.
    public var s2XN: UInt8 {
        get { UInt8(truncatingIfNeeded: rawValue[bits: 53...54]) }
        set { rawValue[bits: 53...54] = UInt64(newValue) }
    }

    /// NS [55]: stage 2, Realm: the output is Non-secure.
    public var s2NS: Bool {
        get { rawValue[bit: 55] }
        set { rawValue[bit: 55] = newValue }
    }

    /// AMEC [63]: stage 2, Realm: alternate memory encryption context.
    public var s2AMEC: Bool {
        get { rawValue[bit: 63] }
        set { rawValue[bit: 63] = newValue }
    }

    /// The output address of the block or page that this describes at `level` (-1 to 3).
    ///
    /// - Parameters:
    ///   - granule: The granule of the table.
    ///   - level: The level that the descriptor was found at.
    ///   - has52BitOutput: The 64 KiB granule has output address bits 51:48 in bits 15:12 (IDR5.OAS at least
    ///     52).
    ///   - ds: The 4 KiB and 16 KiB granules have output address bits 51:50 in bits 9:8 (CD.DS or STE.S2DS).
    /// - Returns: The address, with the bits below the block's or page's size zero.
    public func outputAddress(granule: Granule, level: Int, has52BitOutput: Bool, ds: Bool) -> UInt64 {
        address(from: granule.log2Bytes(ofLevel: level), granule, has52BitOutput, ds)
    }

    /// The address of the next table that this table descriptor points at; parameters as for `outputAddress`.
    public func nextTableAddress(granule: Granule, has52BitOutput: Bool, ds: Bool) -> UInt64 {
        address(from: granule.log2Bytes, granule, has52BitOutput, ds)
    }

    private func address(from low: Int, _ granule: Granule, _ has52BitOutput: Bool, _ ds: Bool) -> UInt64 {
        let above = UInt64.max << low
        switch granule {
        case .kib64:
            let address = rawValue & UInt64.mask(0...47) & above
            return has52BitOutput ? address | rawValue[bits: 12...15] &<< 48 : address
        case .kib4, .kib16:
            guard ds else { return rawValue & UInt64.mask(0...47) & above }
            return rawValue & UInt64.mask(0...49) & above | rawValue[bits: 8...9] &<< 50
        }
    }
}
