// The context descriptor (CD) and its first-level descriptor (L1CD).

import BitFields

/// A context descriptor: one stage-1 address space (64 bytes).
///
/// Every field of every word can be read, also where the hardware would ignore it or call it illegal.
public struct CD: Hashable, Sendable {
    /// How many bytes it takes in memory, and what it is aligned to at least.
    public static let byteCount = 64

    /// Its 64-bit words, little-endian in memory, the one with bit 0 first.
    public var words: SIMD8<UInt64>

    /// All zero.
    public init() { words = .zero }

    /// The structure with these words, whatever they hold.
    public init(words: SIMD8<UInt64>) { self.words = words }

    /// T0SZ [5:0]: the range of TTB0 has 64 - T0SZ bits; ignored if EPD0.
    public var t0SZ: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 0...5]) }
        set { words[bits: 0...5] = UInt64(newValue) }
    }

    /// TG0 [7:6]: granule of TTB0: 0 4 KiB, 1 64 KiB, 2 16 KiB.
    public var tg0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 6...7]) }
        set { words[bits: 6...7] = UInt64(newValue) }
    }

    /// IR0 [9:8]: inner cacheability of walks through TTB0.
    public var ir0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 8...9]) }
        set { words[bits: 8...9] = UInt64(newValue) }
    }

    /// OR0 [11:10]: outer cacheability of walks through TTB0.
    public var or0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 10...11]) }
        set { words[bits: 10...11] = UInt64(newValue) }
    }

    /// SH0 [13:12]: shareability of walks through TTB0.
    public var sh0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 12...13]) }
        set { words[bits: 12...13] = UInt64(newValue) }
    }

    /// EPD0 [14]: no walks through TTB0: F_TRANSLATION.
    public var epd0: Bool {
        get { words[bit: 14] }
        set { words[bit: 14] = newValue }
    }

    /// ENDI [15]: stage-1 tables are big-endian.
    public var endi: Bool {
        get { words[bit: 15] }
        set { words[bit: 15] = newValue }
    }

    /// T1SZ [21:16]: the range of TTB1 has 64 - T1SZ bits; ignored if EPD1.
    public var t1SZ: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 16...21]) }
        set { words[bits: 16...21] = UInt64(newValue) }
    }

    /// TG1 [23:22]: granule of TTB1, encoded unlike TG0: 1 16 KiB, 2 4 KiB, 3 64 KiB.
    public var tg1: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 22...23]) }
        set { words[bits: 22...23] = UInt64(newValue) }
    }

    /// IR1 [25:24]: inner cacheability of walks through TTB1.
    public var ir1: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 24...25]) }
        set { words[bits: 24...25] = UInt64(newValue) }
    }

    /// OR1 [27:26]: outer cacheability of walks through TTB1.
    public var or1: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 26...27]) }
        set { words[bits: 26...27] = UInt64(newValue) }
    }

    /// SH1 [29:28]: shareability of walks through TTB1.
    public var sh1: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 28...29]) }
        set { words[bits: 28...29] = UInt64(newValue) }
    }

    /// EPD1 [30]: no walks through TTB1: F_TRANSLATION.
    public var epd1: Bool {
        get { words[bit: 30] }
        set { words[bit: 30] = newValue }
    }

    /// V [31]: valid; 0 gives C_BAD_CD.
    public var v: Bool {
        get { words[bit: 31] }
        set { words[bit: 31] = newValue }
    }

    /// IPS [34:32]: stage-1 output size, as IDR5.OAS.
    public var ips: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 32...34]) }
        set { words[bits: 32...34] = UInt64(newValue) }
    }

    /// AFFD [35]: a clear Access flag does not fault.
    public var affd: Bool {
        get { words[bit: 35] }
        set { words[bit: 35] = newValue }
    }

    /// WXN [36]: writable means execute-never.
    public var wxn: Bool {
        get { words[bit: 36] }
        set { words[bit: 36] = newValue }
    }

    /// UWXN [37]: LPAE: unprivileged writable means privileged execute-never.
    public var uwxn: Bool {
        get { words[bit: 37] }
        set { words[bit: 37] = newValue }
    }

    /// TBI0 [38]: the top byte of TTB0 addresses is ignored.
    public var tbi0: Bool {
        get { words[bit: 38] }
        set { words[bit: 38] = newValue }
    }

    /// TBI1 [39]: the top byte of TTB1 addresses is ignored.
    public var tbi1: Bool {
        get { words[bit: 39] }
        set { words[bit: 39] = newValue }
    }

    /// PAN [40]: privileged access never.
    public var pan: Bool {
        get { words[bit: 40] }
        set { words[bit: 40] = newValue }
    }

    /// AA64 [41]: stage-1 tables are VMSAv8-64.
    public var aa64: Bool {
        get { words[bit: 41] }
        set { words[bit: 41] = newValue }
    }

    /// HD [42]: hardware updates the dirty state.
    public var hd: Bool {
        get { words[bit: 42] }
        set { words[bit: 42] = newValue }
    }

    /// HA [43]: hardware updates the Access flag.
    public var ha: Bool {
        get { words[bit: 43] }
        set { words[bit: 43] = newValue }
    }

    /// S [44]: stage-1 faults stall.
    public var s: Bool {
        get { words[bit: 44] }
        set { words[bit: 44] = newValue }
    }

    /// R [45]: stage-1 faults are recorded.
    public var r: Bool {
        get { words[bit: 45] }
        set { words[bit: 45] = newValue }
    }

    /// A [46]: terminated transactions abort; 0: RAZ/WI.
    public var a: Bool {
        get { words[bit: 46] }
        set { words[bit: 46] = newValue }
    }

    /// ASET [47]: the ASID belongs to the non-shared set.
    public var aset: Bool {
        get { words[bit: 47] }
        set { words[bit: 47] = newValue }
    }

    /// ASID [63:48]: the address space identifier.
    public var asid: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 48...63]) }
        set { words[bits: 48...63] = UInt64(newValue) }
    }

    /// NSCFG0 [64]: Secure: NS of walks through TTB0.
    public var nsCfg0: Bool {
        get { words[bit: 64] }
        set { words[bit: 64] = newValue }
    }

    /// HAD0 [65]: hierarchical attributes of TTB0 tables are ignored (DisCH0 with VMSAv9-128).
    public var had0: Bool {
        get { words[bit: 65] }
        set { words[bit: 65] = newValue }
    }

    /// E0PD0 [66]: unprivileged accesses to the TTB0 range fault.
    public var e0pd0: Bool {
        get { words[bit: 66] }
        set { words[bit: 66] = newValue }
    }

    /// HAFT [67]: the Access flag is managed in table descriptors too.
    public var haft: Bool {
        get { words[bit: 67] }
        set { words[bit: 67] = newValue }
    }

    /// TTB0 [115:68]: the address of the first table of the lower range.
    public var ttb0: UInt64 {
        get { words[address: 68...115] }
        set { words[address: 68...115] = newValue }
    }

    /// PnCH [122]: the protected attribute is bit 52.
    public var pnCH: Bool {
        get { words[bit: 122] }
        set { words[bit: 122] = newValue }
    }

    /// EPAN [123]: PAN also where unprivileged execution is permitted.
    public var epan: Bool {
        get { words[bit: 123] }
        set { words[bit: 123] = newValue }
    }

    /// HWU059 [124]: hardware may use bit 59 of TTB0 descriptors.
    public var hwu059: Bool {
        get { words[bit: 124] }
        set { words[bit: 124] = newValue }
    }

    /// HWU060 [125]: hardware may use bit 60 of TTB0 descriptors.
    public var hwu060: Bool {
        get { words[bit: 125] }
        set { words[bit: 125] = newValue }
    }

    /// HWU061 [126]: hardware may use bit 61 of TTB0 descriptors.
    public var hwu061: Bool {
        get { words[bit: 126] }
        set { words[bit: 126] = newValue }
    }

    /// HWU062 [127]: hardware may use bit 62 of TTB0 descriptors.
    public var hwu062: Bool {
        get { words[bit: 127] }
        set { words[bit: 127] = newValue }
    }

    /// NSCFG1 [128]: Secure: NS of walks through TTB1.
    public var nsCfg1: Bool {
        get { words[bit: 128] }
        set { words[bit: 128] = newValue }
    }

    /// HAD1 [129]: hierarchical attributes of TTB1 tables are ignored (DisCH1 with VMSAv9-128).
    public var had1: Bool {
        get { words[bit: 129] }
        set { words[bit: 129] = newValue }
    }

    /// E0PD1 [130]: unprivileged accesses to the TTB1 range fault.
    public var e0pd1: Bool {
        get { words[bit: 130] }
        set { words[bit: 130] = newValue }
    }

    /// AIE [131]: AttrIndx has a fourth bit, descriptor bit 59.
    public var aie: Bool {
        get { words[bit: 131] }
        set { words[bit: 131] = newValue }
    }

    /// TTB1 [179:132]: the address of the first table of the upper range.
    public var ttb1: UInt64 {
        get { words[address: 132...179] }
        set { words[address: 132...179] = newValue }
    }

    /// DS [186]: 52-bit addresses with the 4 KiB and 16 KiB granules.
    public var ds: Bool {
        get { words[bit: 186] }
        set { words[bit: 186] = newValue }
    }

    /// PIE [187]: stage-1 permission indirection.
    public var pie: Bool {
        get { words[bit: 187] }
        set { words[bit: 187] = newValue }
    }

    /// HWU159 [188]: hardware may use bit 59 of TTB1 descriptors.
    public var hwu159: Bool {
        get { words[bit: 188] }
        set { words[bit: 188] = newValue }
    }

    /// HWU160 [189]: hardware may use bit 60 of TTB1 descriptors.
    public var hwu160: Bool {
        get { words[bit: 189] }
        set { words[bit: 189] = newValue }
    }

    /// HWU161 [190]: hardware may use bit 61 of TTB1 descriptors.
    public var hwu161: Bool {
        get { words[bit: 190] }
        set { words[bit: 190] = newValue }
    }

    /// HWU162 [191]: hardware may use bit 62 of TTB1 descriptors.
    public var hwu162: Bool {
        get { words[bit: 191] }
        set { words[bit: 191] = newValue }
    }

    /// MAIR0 [223:192]: memory attributes 0 to 3.
    public var mair0: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 192...223]) }
        set { words[bits: 192...223] = UInt64(newValue) }
    }

    /// MAIR1 [255:224]: memory attributes 4 to 7.
    public var mair1: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 224...255]) }
        set { words[bits: 224...255] = UInt64(newValue) }
    }

    /// AMAIR0 [287:256]: auxiliary memory attributes, IMPLEMENTATION DEFINED.
    public var amair0: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 256...287]) }
        set { words[bits: 256...287] = UInt64(newValue) }
    }

    /// AMAIR1 [319:288]: auxiliary memory attributes, IMPLEMENTATION DEFINED.
    public var amair1: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 288...319]) }
        set { words[bits: 288...319] = UInt64(newValue) }
    }

    /// IMPDEF [351:320]: IMPLEMENTATION DEFINED.
    public var impDef320: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 320...351]) }
        set { words[bits: 320...351] = UInt64(newValue) }
    }

    /// PARTID [367:352]: MPAM partition.
    public var partID: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 352...367]) }
        set { words[bits: 352...367] = UInt64(newValue) }
    }

    /// PMG [375:368]: MPAM performance monitoring group.
    public var pmg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 368...375]) }
        set { words[bits: 368...375] = UInt64(newValue) }
    }

    /// PIIU [431:384]: the sixteen unprivileged base permissions of three bits, index 0 lowest.
    public var piiu: UInt64 {
        get { words[bits: 384...431] }
        set { words[bits: 384...431] = newValue }
    }

    /// PIIP [495:448]: the sixteen privileged base permissions of three bits, index 0 lowest.
    public var piip: UInt64 {
        get { words[bits: 448...495] }
        set { words[bits: 448...495] = newValue }
    }

    /// MAIR [255:192]: memory attributes 0 to 7, one byte each, index 0 lowest.
    public var mair: UInt64 {
        get { words[3] }
        set { words[3] = newValue }
    }
}

/// A first-level context descriptor: where a table of CDs lies (8 bytes).
public struct L1CD: Hashable, Sendable {
    /// How many bytes it takes in memory.
    public static let byteCount = 8

    /// The descriptor as it lies in memory, little-endian.
    public var word: UInt64

    /// All zero: invalid.
    public init() { word = 0 }

    /// The descriptor with this word, whatever it holds.
    public init(word: UInt64) { self.word = word }

    /// V [0]: valid.
    public var v: Bool {
        get { word[bit: 0] }
        set { word[bit: 0] = newValue }
    }

    /// L2Ptr [55:12]: the address of the table of CDs; an IPA where stage 2 is on.
    public var l2Ptr: UInt64 {
        get { word[address: 12...55] }
        set { word[address: 12...55] = newValue }
    }
}
