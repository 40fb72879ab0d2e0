// The stream table: its entry (STE) and its first-level descriptor (L1STD).

import BitFields

/// A stream table entry: how one stream is translated (64 bytes).
///
/// Every field of every word can be read, also where the hardware would ignore it or call it illegal.
public struct STE: Hashable, Sendable {
    /// How many bytes it takes in memory, and what it is aligned to at least.
    public static let byteCount = 64

    /// Its 64-bit words, little-endian in memory, the one with bit 0 first.
    public var words: SIMD8<UInt64>

    /// All zero.
    public init() { words = .zero }

    /// The structure with these words, whatever they hold.
    public init(words: SIMD8<UInt64>) { self.words = words }

    /// V [0]: valid; 0 gives C_BAD_STE.
    public var v: Bool {
        get { words[bit: 0] }
        set { words[bit: 0] = newValue }
    }

    /// Config [3:1]: which stages a stream goes through.
    public var config: StreamConfig {
        get { StreamConfig(rawValue: UInt8(truncatingIfNeeded: words[bits: 1...3])) }
        set { words[bits: 1...3] = UInt64(newValue.rawValue) }
    }

    /// S1Fmt [5:4]: the shape of the CD table; 0b11 behaves as linear.
    public var s1Fmt: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 4...5]) }
        set { words[bits: 4...5] = UInt64(newValue) }
    }

    /// S1ContextPtr [55:6]: the address of the CD or of the (first-level) CD table; an IPA where stage 2 is
    /// on.
    public var s1ContextPtr: UInt64 {
        get { words[address: 6...55] }
        set { words[address: 6...55] = newValue }
    }

    /// S1CDMax [63:59]: log2 of the number of CDs; 0 disables substreams.
    public var s1CDMax: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 59...63]) }
        set { words[bits: 59...63] = UInt64(newValue) }
    }

    /// S1DSS [65:64]: what happens to traffic without a SubstreamID: 0 terminate, 1 bypass stage 1, 2 use
    /// CD 0.
    public var s1DSS: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 64...65]) }
        set { words[bits: 64...65] = UInt64(newValue) }
    }

    /// S1CIR [67:66]: inner cacheability of CD fetches.
    public var s1CIR: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 66...67]) }
        set { words[bits: 66...67] = UInt64(newValue) }
    }

    /// S1COR [69:68]: outer cacheability of CD fetches.
    public var s1COR: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 68...69]) }
        set { words[bits: 68...69] = UInt64(newValue) }
    }

    /// S1CSH [71:70]: shareability of CD fetches.
    public var s1CSH: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 70...71]) }
        set { words[bits: 70...71] = UInt64(newValue) }
    }

    /// S2HWU59 [72]: hardware may use bit 59 of stage-2 descriptors.
    public var s2HWU59: Bool {
        get { words[bit: 72] }
        set { words[bit: 72] = newValue }
    }

    /// S2HWU60 [73]: hardware may use bit 60 of stage-2 descriptors.
    public var s2HWU60: Bool {
        get { words[bit: 73] }
        set { words[bit: 73] = newValue }
    }

    /// S2HWU61 [74]: hardware may use bit 61 of stage-2 descriptors.
    public var s2HWU61: Bool {
        get { words[bit: 74] }
        set { words[bit: 74] = newValue }
    }

    /// S2HWU62 [75]: hardware may use bit 62 of stage-2 descriptors.
    public var s2HWU62: Bool {
        get { words[bit: 75] }
        set { words[bit: 75] = newValue }
    }

    /// DRE [76]: destructive reads are allowed.
    public var dre: Bool {
        get { words[bit: 76] }
        set { words[bit: 76] = newValue }
    }

    /// CONT [80:77]: hint that 2^CONT neighbouring STEs are identical.
    public var cont: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 77...80]) }
        set { words[bits: 77...80] = UInt64(newValue) }
    }

    /// DCP [81]: directed cache prefetches are allowed.
    public var dcp: Bool {
        get { words[bit: 81] }
        set { words[bit: 81] = newValue }
    }

    /// PPAR [82]: page request group responses the SMMU makes itself carry the PASID.
    public var ppar: Bool {
        get { words[bit: 82] }
        set { words[bit: 82] = newValue }
    }

    /// MEV [83]: events of this stream may be merged.
    public var mev: Bool {
        get { words[bit: 83] }
        set { words[bit: 83] = newValue }
    }

    /// SW_RESERVED [87:84]: free for software.
    public var swReserved: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 84...87]) }
        set { words[bits: 84...87] = UInt64(newValue) }
    }

    /// S1PIE [88]: permits CD.PIE.
    public var s1PIE: Bool {
        get { words[bit: 88] }
        set { words[bit: 88] = newValue }
    }

    /// S2FWB [89]: stage-2 MemAttr has the forced write-back encoding.
    public var s2FWB: Bool {
        get { words[bit: 89] }
        set { words[bit: 89] = newValue }
    }

    /// S1MPAM [90]: PARTID and PMG come from the CD.
    public var s1MPAM: Bool {
        get { words[bit: 90] }
        set { words[bit: 90] = newValue }
    }

    /// S1STALLD [91]: stage-1 stalls are disallowed.
    public var s1STALLD: Bool {
        get { words[bit: 91] }
        set { words[bit: 91] = newValue }
    }

    /// EATS [93:92]: ATS: 0 off, 1 full, 2 split-stage, 3 full with DPT.
    public var eats: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 92...93]) }
        set { words[bits: 92...93] = UInt64(newValue) }
    }

    /// STRW [95:94]: the StreamWorld of a stage-1-only stream.
    public var strw: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 94...95]) }
        set { words[bits: 94...95] = UInt64(newValue) }
    }

    /// MemAttr [99:96]: the memory type that replaces the incoming one if MTCFG is set.
    public var memAttr: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 96...99]) }
        set { words[bits: 96...99] = UInt64(newValue) }
    }

    /// MTCFG [100]: MemAttr replaces the incoming memory type.
    public var mtCfg: Bool {
        get { words[bit: 100] }
        set { words[bit: 100] = newValue }
    }

    /// ALLOCCFG [104:101]: 0b0xxx incoming allocation hints, 0b1RWT these.
    public var allocCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 101...104]) }
        set { words[bits: 101...104] = UInt64(newValue) }
    }

    /// SHCFG [109:108]: shareability: 0 non-shareable, 1 incoming, 2 outer, 3 inner.
    public var shCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 108...109]) }
        set { words[bits: 108...109] = UInt64(newValue) }
    }

    /// NSCFG [111:110]: Secure streams: 0 incoming, 2 Secure, 3 Non-secure.
    public var nsCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 110...111]) }
        set { words[bits: 110...111] = UInt64(newValue) }
    }

    /// PRIVCFG [113:112]: privilege: 0 and 1 incoming, 2 unprivileged, 3 privileged.
    public var privCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 112...113]) }
        set { words[bits: 112...113] = UInt64(newValue) }
    }

    /// INSTCFG [115:114]: reads are: 0 and 1 incoming, 2 data, 3 instruction.
    public var instCfg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 114...115]) }
        set { words[bits: 114...115] = UInt64(newValue) }
    }

    /// IMPDEF [127:116]: IMPLEMENTATION DEFINED.
    public var impDef116: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 116...127]) }
        set { words[bits: 116...127] = UInt64(newValue) }
    }

    /// S2VMID [143:128]: the VMID that tags stage-2 and NS-EL1 translations.
    public var s2VMID: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 128...143]) }
        set { words[bits: 128...143] = UInt64(newValue) }
    }

    /// IMPDEF [159:144]: IMPLEMENTATION DEFINED.
    public var impDef144: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 144...159]) }
        set { words[bits: 144...159] = UInt64(newValue) }
    }

    /// S2T0SZ [165:160]: the IPA has 64 - S2T0SZ bits.
    public var s2T0SZ: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 160...165]) }
        set { words[bits: 160...165] = UInt64(newValue) }
    }

    /// S2SL0 [167:166]: the start level of stage-2 walks, encoded by granule.
    public var s2SL0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 166...167]) }
        set { words[bits: 166...167] = UInt64(newValue) }
    }

    /// S2IR0 [169:168]: inner cacheability of stage-2 walks.
    public var s2IR0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 168...169]) }
        set { words[bits: 168...169] = UInt64(newValue) }
    }

    /// S2OR0 [171:170]: outer cacheability of stage-2 walks.
    public var s2OR0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 170...171]) }
        set { words[bits: 170...171] = UInt64(newValue) }
    }

    /// S2SH0 [173:172]: shareability of stage-2 walks.
    public var s2SH0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 172...173]) }
        set { words[bits: 172...173] = UInt64(newValue) }
    }

    /// S2TG [175:174]: stage-2 granule: 0 4 KiB, 1 64 KiB, 2 16 KiB.
    public var s2TG: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 174...175]) }
        set { words[bits: 174...175] = UInt64(newValue) }
    }

    /// S2PS [178:176]: stage-2 output size, as IDR5.OAS.
    public var s2PS: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 176...178]) }
        set { words[bits: 176...178] = UInt64(newValue) }
    }

    /// S2AA64 [179]: stage-2 tables are VMSAv8-64.
    public var s2AA64: Bool {
        get { words[bit: 179] }
        set { words[bit: 179] = newValue }
    }

    /// S2ENDI [180]: stage-2 tables are big-endian.
    public var s2ENDI: Bool {
        get { words[bit: 180] }
        set { words[bit: 180] = newValue }
    }

    /// S2AFFD [181]: a clear stage-2 Access flag does not fault.
    public var s2AFFD: Bool {
        get { words[bit: 181] }
        set { words[bit: 181] = newValue }
    }

    /// S2PTW [182]: stage-1 walks and CD fetches that stage 2 maps as Device fault.
    public var s2PTW: Bool {
        get { words[bit: 182] }
        set { words[bit: 182] = newValue }
    }

    /// S2HD [183]: hardware updates the stage-2 dirty state.
    public var s2HD: Bool {
        get { words[bit: 183] }
        set { words[bit: 183] = newValue }
    }

    /// S2HA [184]: hardware updates the stage-2 Access flag.
    public var s2HA: Bool {
        get { words[bit: 184] }
        set { words[bit: 184] = newValue }
    }

    /// S2S [185]: stage-2 faults stall.
    public var s2S: Bool {
        get { words[bit: 185] }
        set { words[bit: 185] = newValue }
    }

    /// S2R [186]: stage-2 faults are recorded.
    public var s2R: Bool {
        get { words[bit: 186] }
        set { words[bit: 186] = newValue }
    }

    /// S2HAFT [187]: the Access flag is managed in stage-2 table descriptors too.
    public var s2HAFT: Bool {
        get { words[bit: 187] }
        set { words[bit: 187] = newValue }
    }

    /// S2PIE [188]: stage-2 permission indirection.
    public var s2PIE: Bool {
        get { words[bit: 188] }
        set { words[bit: 188] = newValue }
    }

    /// S2POE [189]: stage-2 permission overlay.
    public var s2POE: Bool {
        get { words[bit: 189] }
        set { words[bit: 189] = newValue }
    }

    /// DPT_VMATCH [191:190]: VMID match of the device permission table, with EATS 3.
    public var dptVMatch: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 190...191]) }
        set { words[bits: 190...191] = UInt64(newValue) }
    }

    /// S2NSW [192]: Secure: NS of walks through S2TTB.
    public var s2NSW: Bool {
        get { words[bit: 192] }
        set { words[bit: 192] = newValue }
    }

    /// S2NSA [193]: Secure: NS of outputs for a Non-secure IPA.
    public var s2NSA: Bool {
        get { words[bit: 193] }
        set { words[bit: 193] = newValue }
    }

    /// S2SL0_2 [194]: bit 2 of S2SL0, with S2DS and the 4 KiB granule.
    public var s2SL0Bit2: Bool {
        get { words[bit: 194] }
        set { words[bit: 194] = newValue }
    }

    /// S2DS [195]: 52-bit addresses with the 4 KiB and 16 KiB granules.
    public var s2DS: Bool {
        get { words[bit: 195] }
        set { words[bit: 195] = newValue }
    }

    /// S2TTB [243:196]: the address of the first stage-2 table.
    public var s2TTB: UInt64 {
        get { words[address: 196...243] }
        set { words[address: 196...243] = newValue }
    }

    /// S2SKL [254:253]: VMSAv9-128: start-level skip.
    public var s2SKL: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 253...254]) }
        set { words[bits: 253...254] = UInt64(newValue) }
    }

    /// IMPDEF [271:256]: IMPLEMENTATION DEFINED.
    public var impDef256: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 256...271]) }
        set { words[bits: 256...271] = UInt64(newValue) }
    }

    /// PARTID [287:272]: MPAM partition.
    public var partID: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 272...287]) }
        set { words[bits: 272...287] = UInt64(newValue) }
    }

    /// S_S2T0SZ [293:288]: S2T0SZ of the Secure IPA space.
    public var sS2T0SZ: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 288...293]) }
        set { words[bits: 288...293] = UInt64(newValue) }
    }

    /// S_S2SL0 [295:294]: S2SL0 of the Secure IPA space.
    public var sS2SL0: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 294...295]) }
        set { words[bits: 294...295] = UInt64(newValue) }
    }

    /// S_S2TG [303:302]: S2TG of the Secure IPA space.
    public var sS2TG: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 302...303]) }
        set { words[bits: 302...303] = UInt64(newValue) }
    }

    /// MECID [319:304]: Realm: memory encryption context.
    public var mecID: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 304...319]) }
        set { words[bits: 304...319] = UInt64(newValue) }
    }

    /// PMG [327:320]: MPAM performance monitoring group.
    public var pmg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 320...327]) }
        set { words[bits: 320...327] = UInt64(newValue) }
    }

    /// MPAM_NS [328]: MPAM space of a Secure stream.
    public var mpamNS: Bool {
        get { words[bit: 328] }
        set { words[bit: 328] = newValue }
    }

    /// AssuredOnly [329]: stage-2 AssuredOnly check.
    public var assuredOnly: Bool {
        get { words[bit: 329] }
        set { words[bit: 329] = newValue }
    }

    /// TL0 [330]: stage-2 TL0.
    public var tl0: Bool {
        get { words[bit: 330] }
        set { words[bit: 330] = newValue }
    }

    /// TL1 [331]: stage-2 TL1.
    public var tl1: Bool {
        get { words[bit: 331] }
        set { words[bit: 331] = newValue }
    }

    /// VMSPtr [375:332]: the address of the virtual machine structure.
    public var vmsPtr: UInt64 {
        get { words[address: 332...375] }
        set { words[address: 332...375] = newValue }
    }

    /// S2SW [384]: Secure: NS of walks through S_S2TTB.
    public var s2SW: Bool {
        get { words[bit: 384] }
        set { words[bit: 384] = newValue }
    }

    /// S2SA [385]: Secure: NS of outputs for a Secure IPA.
    public var s2SA: Bool {
        get { words[bit: 385] }
        set { words[bit: 385] = newValue }
    }

    /// S_S2SL0_2 [386]: S2SL0_2 of the Secure IPA space.
    public var sS2SL0Bit2: Bool {
        get { words[bit: 386] }
        set { words[bit: 386] = newValue }
    }

    /// S_S2TTB [439:388]: S2TTB of the Secure IPA space.
    public var sS2TTB: UInt64 {
        get { words[address: 388...439] }
        set { words[address: 388...439] = newValue }
    }

    /// S_S2SKL [446:445]: S2SKL of the Secure IPA space.
    public var sS2SKL: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 445...446]) }
        set { words[bits: 445...446] = UInt64(newValue) }
    }

    /// S2POI [511:448]: the sixteen stage-2 overlay permissions of four bits, index 0 lowest.
    public var s2POI: UInt64 {
        get { words[bits: 448...511] }
        set { words[bits: 448...511] = newValue }
    }
}

/// A first-level stream table descriptor: where a run of STEs lies (8 bytes).
public struct L1STD: Hashable, Sendable {
    /// How many bytes it takes in memory.
    public static let byteCount = 8

    /// The descriptor as it lies in memory, little-endian.
    public var word: UInt64

    /// All zero: invalid.
    public init() { word = 0 }

    /// The descriptor with this word, whatever it holds.
    public init(word: UInt64) { self.word = word }

    /// Span [4:0]: 0 invalid, 1 to 11: 2^(Span-1) STEs; the rest reserved, behaves as 0.
    public var span: UInt8 {
        get { UInt8(truncatingIfNeeded: word[bits: 0...4]) }
        set { word[bits: 0...4] = UInt64(newValue) }
    }

    /// L2Ptr [55:6]: the address of the array of STEs.
    public var l2Ptr: UInt64 {
        get { word[address: 6...55] }
        set { word[address: 6...55] = newValue }
    }
}
