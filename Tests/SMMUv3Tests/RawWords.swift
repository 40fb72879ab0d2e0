// Structures and commands as a driver writes them: 64-bit words worked out from the specification's bit numbers,
// without the encoders of SMMUv3Spec.

/// One bit, in place.
func bit(_ value: Bool, _ position: UInt64) -> UInt64 { value ? 1 << position : 0 }

/// A number, in place.
func field(_ value: some BinaryInteger, _ position: UInt64) -> UInt64 { UInt64(value) << position }

/// An STE, field by field (IHI 0070, 5.2).
struct STEWords {
    var v = true
    var config: UInt64 = 0b101
    var s1Fmt: UInt64 = 0
    var s1ContextPtr: UInt64 = 0
    var s1CDMax: UInt64 = 0
    var s1DSS: UInt64 = 0
    var s1STALLD = false
    var eats: UInt64 = 0
    var strw: UInt64 = 0
    var privCfg: UInt64 = 0
    var instCfg: UInt64 = 0
    var s2VMID: UInt64 = 0
    /// What else is set: word by word.
    var extra: [UInt64] = [0, 0, 0, 0, 0, 0, 0, 0]

    var words: [UInt64] {
        var words = extra
        words[0] |= bit(v, 0) | field(config, 1) | field(s1Fmt, 4) | s1ContextPtr | field(s1CDMax, 59)
        words[1] |= field(s1DSS, 0) | bit(s1STALLD, 27) | field(eats, 28) | field(strw, 30)
        words[1] |= field(privCfg, 48) | field(instCfg, 50)
        words[2] |= field(s2VMID, 0)
        return words
    }

    static let bypass = STEWords(config: 0b100)
}

/// The stage-2 fields of an STE, by bit number (IHI 0070, 5.2), to be merged into ``STEWords/extra``.
struct Stage2Words {
    var t0SZ: UInt64 = 24
    var sl0: UInt64 = 1
    var tg: UInt64 = 0
    var ps: UInt64 = 5
    var aa64 = true
    var endi = false
    var affd = false
    var ptw = false
    var hd = false
    var ha = false
    var s = false
    var r = true
    var sh0: UInt64 = 0
    var sl0Bit2 = false
    var ds = false
    var ttb: UInt64 = 0
    var fwb = false
    var eats: UInt64 = 0

    var words: [UInt64] {
        var words = [UInt64](repeating: 0, count: 8)
        words[1] = bit(fwb, 89 - 64) | field(eats, 92 - 64)
        words[2] = field(t0SZ, 32) | field(sl0, 38) | field(sh0, 44) | field(tg, 46) | field(ps, 48)
        words[2] |= bit(aa64, 51) | bit(endi, 52) | bit(affd, 53) | bit(ptw, 54) | bit(hd, 55)
        words[2] |= bit(ha, 56) | bit(s, 57) | bit(r, 58)
        words[3] = bit(sl0Bit2, 2) | bit(ds, 3) | ttb
        return words
    }
}

/// A CD, field by field (IHI 0070, 5.4).
struct CDWords {
    var t0SZ: UInt64 = 25
    var tg0: UInt64 = 0
    var epd0 = false
    var endi = false
    var t1SZ: UInt64 = 25
    var tg1: UInt64 = 0b10
    var epd1 = true
    var v = true
    var ips: UInt64 = 5
    var affd = false
    var wxn = false
    var tbi0 = false
    var tbi1 = false
    var pan = false
    var aa64 = true
    var hd = false
    var ha = false
    var s = false
    var r = true
    var a = true
    var aset = false
    var asid: UInt64 = 1
    var had0 = false
    var ttb0: UInt64 = 0
    var had1 = false
    var ttb1: UInt64 = 0
    var mair: UInt64 = 0xFF44
    var extra: [UInt64] = [0, 0, 0, 0, 0, 0, 0, 0]

    var words: [UInt64] {
        var words = extra
        words[0] |= field(t0SZ, 0) | field(tg0, 6) | bit(epd0, 14) | bit(endi, 15)
        words[0] |= field(t1SZ, 16) | field(tg1, 22) | bit(epd1, 30) | bit(v, 31)
        words[0] |= field(ips, 32) | bit(affd, 35) | bit(wxn, 36) | bit(tbi0, 38) | bit(tbi1, 39)
        words[0] |= bit(pan, 40) | bit(aa64, 41) | bit(hd, 42) | bit(ha, 43) | bit(s, 44) | bit(r, 45)
        words[0] |= bit(a, 46) | bit(aset, 47) | field(asid, 48)
        words[1] |= bit(had0, 1) | ttb0
        words[2] |= bit(had1, 1) | ttb1
        words[3] |= mair
        return words
    }
}

/// One command: its two words.
struct RawCommand: Hashable, Sendable {
    var low: UInt64
    var high: UInt64 = 0
}

/// Commands, worked out by bit number (IHI 0070, chapter 4).
enum Raw {
    static func sync(cs: UInt64 = 0) -> RawCommand { RawCommand(low: 0x46 | cs << 12) }
    static func cfgiSTE(_ streamID: UInt64, leaf: Bool = true) -> RawCommand {
        RawCommand(low: 0x03 | streamID << 32, high: bit(leaf, 0))
    }
    static func cfgiSTERange(_ streamID: UInt64, range: UInt64) -> RawCommand {
        RawCommand(low: 0x04 | streamID << 32, high: range)
    }
    static let cfgiAll = RawCommand(low: 0x04, high: 31)
    static func cfgiCD(_ streamID: UInt64, _ substreamID: UInt64 = 0, leaf: Bool = true) -> RawCommand {
        RawCommand(low: 0x05 | substreamID << 12 | streamID << 32, high: bit(leaf, 0))
    }
    static func cfgiCDAll(_ streamID: UInt64) -> RawCommand { RawCommand(low: 0x06 | streamID << 32) }
    static let tlbiNHAll = RawCommand(low: 0x10)
    static func tlbiNHASID(_ asid: UInt64) -> RawCommand { RawCommand(low: 0x11 | asid << 48) }
    static func tlbiNHVA(_ address: UInt64, asid: UInt64, leaf: Bool = true) -> RawCommand {
        RawCommand(low: 0x12 | asid << 48, high: address & ~0xFFF | bit(leaf, 0))
    }
    static func tlbiNHVAA(_ address: UInt64, leaf: Bool = true) -> RawCommand {
        RawCommand(low: 0x13, high: address & ~0xFFF | bit(leaf, 0))
    }
    static let tlbiNSNHAll = RawCommand(low: 0x30)
    /// A range: TG 1 is 4 KiB, 2 16 KiB, 3 64 KiB.
    static func tlbiRange(
        _ address: UInt64,
        asid: UInt64?,
        num: UInt64,
        scale: UInt64,
        ttl: UInt64,
        tg: UInt64,
        leaf: Bool = true
    ) -> RawCommand {
        let opcode: UInt64 = asid == nil ? 0x13 : 0x12
        return RawCommand(
            low: opcode | num << 12 | scale << 20 | (asid ?? 0) << 48,
            high: address & ~0xFFF | tg << 10 | ttl << 8 | bit(leaf, 0)
        )
    }
}

extension Raw {
    static func tlbiNHAll(vmid: UInt64) -> RawCommand { RawCommand(low: 0x10 | vmid << 32) }
    static func tlbiNHASID(vmid: UInt64, _ asid: UInt64) -> RawCommand {
        RawCommand(low: 0x11 | vmid << 32 | asid << 48)
    }
    static func tlbiNHVA(vmid: UInt64, _ address: UInt64, asid: UInt64) -> RawCommand {
        RawCommand(low: 0x12 | vmid << 32 | asid << 48, high: address & ~0xFFF | 1)
    }
    static func tlbiNHVAA(vmid: UInt64, _ address: UInt64) -> RawCommand {
        RawCommand(low: 0x13 | vmid << 32, high: address & ~0xFFF | 1)
    }
    static func tlbiS12VMAll(_ vmid: UInt64) -> RawCommand { RawCommand(low: 0x28 | vmid << 32) }
    static func tlbiS2IPA(vmid: UInt64, _ ipa: UInt64) -> RawCommand {
        RawCommand(low: 0x2A | vmid << 32, high: ipa & ~0xFFF | 1)
    }
    static func tlbiS2IPARange(
        vmid: UInt64,
        _ ipa: UInt64,
        num: UInt64,
        scale: UInt64,
        ttl: UInt64,
        tg: UInt64
    ) -> RawCommand {
        RawCommand(
            low: 0x2A | num << 12 | scale << 20 | vmid << 32,
            high: ipa & ~0xFFF | tg << 10 | ttl << 8 | 1
        )
    }
    static let tlbiEL2All = RawCommand(low: 0x20)
    static func tlbiEL2ASID(_ asid: UInt64) -> RawCommand { RawCommand(low: 0x21 | asid << 48) }
    static func tlbiEL2VA(_ address: UInt64, asid: UInt64) -> RawCommand {
        RawCommand(low: 0x22 | asid << 48, high: address & ~0xFFF | 1)
    }
    static func tlbiEL2VAA(_ address: UInt64) -> RawCommand {
        RawCommand(low: 0x23, high: address & ~0xFFF | 1)
    }
}

/// A leaf descriptor's attributes, by bit number (VMSAv8-64).
enum Leaf {
    static let unprivileged: UInt64 = 1 << 6
    static let readOnly: UInt64 = 1 << 7
    static let af: UInt64 = 1 << 10
    static let nG: UInt64 = 1 << 11
    static let contiguous: UInt64 = 1 << 52
    static let pxn: UInt64 = 1 << 53
    static let uxn: UInt64 = 1 << 54
    /// What Linux maps device memory with: read-write, unprivileged, accessed, not global.
    static let readWrite = unprivileged | af | nG
    static let global = unprivileged | af
}

/// A stage-2 leaf's attributes, by bit number (VMSAv8-64).
enum Leaf2 {
    static let read: UInt64 = 1 << 6
    static let write: UInt64 = 1 << 7
    static let af: UInt64 = 1 << 10
    static let dbm: UInt64 = 1 << 51
    static let normal: UInt64 = 0b1111 << 2
    static let device: UInt64 = 0b0001 << 2
    static let readWrite = read | write | af | normal
}

/// An event record's words, worked out by bit number (IHI 0070, 7.3).
func eventWords(
    _ number: UInt64,
    stream: UInt64,
    substream: UInt64? = nil,
    isRead: Bool? = nil,
    isPrivileged: Bool = false,
    isInstruction: Bool = false,
    eventClass: UInt64 = 0,
    isStage2: Bool = false,
    isTableRead: Bool = false,
    input: UInt64 = 0,
    fetch: UInt64 = 0
) -> [UInt64] {
    var first = number | stream << 32
    if let substream { first |= 1 << 11 | substream << 12 }
    var second = eventClass << 40 | bit(isStage2, 39) | bit(isTableRead, 44)
    if let isRead { second |= bit(isRead, 35) | bit(isPrivileged, 33) | bit(isInstruction, 34) }
    return [first, second, input, fetch]
}
