// The command queue's entry.

public import AddressSpace
import BitFields

/// A command, as it lies in the command queue (16 bytes).
///
/// One set of accessors serves every opcode: which of them mean something depends on `opcode`.
public struct Command: Hashable, Sendable {
    /// How many bytes it takes in memory, and what it is aligned to at least.
    public static let byteCount = 16

    /// Its 64-bit words, little-endian in memory, the one with bit 0 first.
    public var words: SIMD2<UInt64>

    /// All zero.
    public init() { words = .zero }

    /// The structure with these words, whatever they hold.
    public init(words: SIMD2<UInt64>) { self.words = words }

    /// Opcode [7:0]: which command; decides what the other bits are.
    public var opcode: Opcode {
        get { Opcode(rawValue: UInt8(truncatingIfNeeded: words[bits: 0...7])) }
        set { words[bits: 0...7] = UInt64(newValue.rawValue) }
    }

    /// Global [9]: ATC_INV: entries of every PASID go.
    public var global: Bool {
        get { words[bit: 9] }
        set { words[bit: 9] = newValue }
    }

    /// SSec [10]: the StreamID is Secure; an error on the Non-secure queue.
    public var ssec: Bool {
        get { words[bit: 10] }
        set { words[bit: 10] = newValue }
    }

    /// SSV [11]: SubstreamID is valid.
    public var ssv: Bool {
        get { words[bit: 11] }
        set { words[bit: 11] = newValue }
    }

    /// Ac [12]: RESUME: retry.
    public var ac: Bool {
        get { words[bit: 12] }
        set { words[bit: 12] = newValue }
    }

    /// Ab [13]: RESUME: if not retried, abort (1) or RAZ/WI (0).
    public var ab: Bool {
        get { words[bit: 13] }
        set { words[bit: 13] = newValue }
    }

    /// NUM [16:12]: range TLBI: one less than the multiplier.
    public var num: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 12...16]) }
        set { words[bits: 12...16] = UInt64(newValue) }
    }

    /// SCALE [24:20]: range TLBI: log2 of the multiplied number of granules, where IDR5.DS is 0.
    public var scale: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 20...24]) }
        set { words[bits: 20...24] = UInt64(newValue) }
    }

    /// SCALE [25:20]: SCALE with the sixth bit that it has where IDR5.DS is 1.
    public var scaleDS: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 20...25]) }
        set { words[bits: 20...25] = UInt64(newValue) }
    }

    /// CS [13:12]: SYNC completion: 0 none, 1 interrupt, 2 event to processors.
    public var cs: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 12...13]) }
        set { words[bits: 12...13] = UInt64(newValue) }
    }

    /// MSH [23:22]: SYNC: shareability of the MSI.
    public var msh: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 22...23]) }
        set { words[bits: 22...23] = UInt64(newValue) }
    }

    /// MSIAttr [27:24]: SYNC: memory type of the MSI, as STE.MemAttr.
    public var msiAttr: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 24...27]) }
        set { words[bits: 24...27] = UInt64(newValue) }
    }

    /// SubstreamID [31:12]: the substream.
    public var substreamID: SubstreamID {
        get { SubstreamID(UInt32(truncatingIfNeeded: words[bits: 12...31])) }
        set { words[bits: 12...31] = UInt64(newValue.rawValue) }
    }

    /// StreamID [63:32]: the stream.
    public var streamID: StreamID {
        get { StreamID(UInt32(truncatingIfNeeded: words[bits: 32...63])) }
        set { words[bits: 32...63] = UInt64(newValue.rawValue) }
    }

    /// VMID [47:32]: the virtual machine.
    public var vmid: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 32...47]) }
        set { words[bits: 32...47] = UInt64(newValue) }
    }

    /// ASID [63:48]: the address space.
    public var asid: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 48...63]) }
        set { words[bits: 48...63] = UInt64(newValue) }
    }

    /// MSIData [63:32]: SYNC: what the MSI writes.
    public var msiData: UInt32 {
        get { UInt32(truncatingIfNeeded: words[bits: 32...63]) }
        set { words[bits: 32...63] = UInt64(newValue) }
    }

    /// Leaf [64]: only the last level of information has to go.
    public var leaf: Bool {
        get { words[bit: 64] }
        set { words[bit: 64] = newValue }
    }

    /// Range [68:64]: CFGI_STE_RANGE: 2^(Range+1) streams, 31 all of them.
    public var range: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 64...68]) }
        set { words[bits: 64...68] = UInt64(newValue) }
    }

    /// Size [68:64]: PREFETCH_ADDR: log2 of the span in pages.
    public var prefetchSize: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 64...68]) }
        set { words[bits: 64...68] = UInt64(newValue) }
    }

    /// Stride [73:69]: PREFETCH_ADDR: log2 of the distance.
    public var prefetchStride: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 69...73]) }
        set { words[bits: 69...73] = UInt64(newValue) }
    }

    /// Size [69:64]: ATC_INV: log2 of the span in 4 KiB pages, 52 everything.
    public var atcSize: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 64...69]) }
        set { words[bits: 64...69] = UInt64(newValue) }
    }

    /// TTL128 [71]: TTL belongs to VMSAv9-128.
    public var ttl128: Bool {
        get { words[bit: 71] }
        set { words[bit: 71] = newValue }
    }

    /// TTL [73:72]: TLBI: level of the last descriptor, 0 unknown.
    public var ttl: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 72...73]) }
        set { words[bits: 72...73] = UInt64(newValue) }
    }

    /// TG [75:74]: TLBI: granule: 0 no range, 1 4 KiB, 2 16 KiB, 3 64 KiB.
    public var tg: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 74...75]) }
        set { words[bits: 74...75] = UInt64(newValue) }
    }

    /// STAG [79:64]: RESUME: which stalled transaction.
    public var stag: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 64...79]) }
        set { words[bits: 64...79] = UInt64(newValue) }
    }

    /// PRGIndex [72:64]: PRI_RESP: which page request group.
    public var prgIndex: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 64...72]) }
        set { words[bits: 64...72] = UInt64(newValue) }
    }

    /// Resp [77:76]: PRI_RESP: 0 failure, 1 invalid request, 2 success.
    public var priResp: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 76...77]) }
        set { words[bits: 76...77] = UInt64(newValue) }
    }

    /// Addr [127:76]: TLBI, ATC_INV and PREFETCH_ADDR: the address of the first byte.
    public var address: UInt64 {
        get { words[address: 76...127] }
        set { words[address: 76...127] = newValue }
    }

    /// IPA [119:76]: TLBI_S2_IPA: the intermediate physical address of the first byte.
    public var ipa: UInt64 {
        get { words[address: 76...119] }
        set { words[address: 76...119] = newValue }
    }

    /// MSIAddr [119:66]: SYNC: the physical address of the doorbell; 0 sends no MSI.
    public var msiAddress: UInt64 {
        get { words[address: 66...119] }
        set { words[address: 66...119] = newValue }
    }

    /// MSI_NS [127]: SYNC on the Realm queue: the MSI is Non-secure.
    public var msiNS: Bool {
        get { words[bit: 127] }
        set { words[bit: 127] = newValue }
    }
}
