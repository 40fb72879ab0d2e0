// The event queue's entry.

public import AddressSpace
import BitFields

/// An event record, as it lies in the event queue (32 bytes).
///
/// One set of accessors serves every event: which of them mean something depends on `number`.
public struct EventRecord: Hashable, Sendable {
    /// How many bytes it takes in memory, and what it is aligned to at least.
    public static let byteCount = 32

    /// Its 64-bit words, little-endian in memory, the one with bit 0 first.
    public var words: SIMD4<UInt64>

    /// All zero.
    public init() { words = .zero }

    /// The structure with these words, whatever they hold.
    public init(words: SIMD4<UInt64>) { self.words = words }

    /// Event [7:0]: what happened; decides what the other bits are.
    public var number: EventNumber {
        get { EventNumber(rawValue: UInt8(truncatingIfNeeded: words[bits: 0...7])) }
        set { words[bits: 0...7] = UInt64(newValue.rawValue) }
    }

    /// SSV [11]: SubstreamID is valid.
    public var ssv: Bool {
        get { words[bit: 11] }
        set { words[bit: 11] = newValue }
    }

    /// SubstreamID [31:12]: the substream; bits above 20 are dropped.
    public var substreamID: SubstreamID {
        get { SubstreamID(UInt32(truncatingIfNeeded: words[bits: 12...31])) }
        set { words[bits: 12...31] = UInt64(newValue.rawValue & 0xF_FFFF) }
    }

    /// StreamID [63:32]: the stream.
    public var streamID: StreamID {
        get { StreamID(UInt32(truncatingIfNeeded: words[bits: 32...63])) }
        set { words[bits: 32...63] = UInt64(newValue.rawValue) }
    }

    /// Reason [79:64]: IMPLEMENTATION DEFINED reason.
    public var reason: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 64...79]) }
        set { words[bits: 64...79] = UInt64(newValue) }
    }

    /// STAG [79:64]: names the stalled transaction to CMD_RESUME.
    public var stag: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 64...79]) }
        set { words[bits: 64...79] = UInt64(newValue) }
    }

    /// GPCF [80]: a fetch failed its granule protection check.
    public var gpcf: Bool {
        get { words[bit: 80] }
        set { words[bit: 80] = newValue }
    }

    /// Stall [95]: the transaction waits for CMD_RESUME.
    public var stall: Bool {
        get { words[bit: 95] }
        set { words[bit: 95] = newValue }
    }

    /// PnU [97]: privileged.
    public var pnu: Bool {
        get { words[bit: 97] }
        set { words[bit: 97] = newValue }
    }

    /// InD [98]: instruction.
    public var ind: Bool {
        get { words[bit: 98] }
        set { words[bit: 98] = newValue }
    }

    /// RnW [99]: read.
    public var rnw: Bool {
        get { words[bit: 99] }
        set { words[bit: 99] = newValue }
    }

    /// S2 [103]: a stage-2 fault.
    public var s2: Bool {
        get { words[bit: 103] }
        set { words[bit: 103] = newValue }
    }

    /// CLASS [105:104]: what was being translated.
    public var eventClass: EventClass {
        get { EventClass(rawValue: UInt8(truncatingIfNeeded: words[bits: 104...105])) }
        set { words[bits: 104...105] = UInt64(newValue.rawValue) }
    }

    /// TTRnW [108]: F_PERMISSION with CLASS TTD: the table access was a read.
    public var ttRnW: Bool {
        get { words[bit: 108] }
        set { words[bit: 108] = newValue }
    }

    /// Span [115:108]: E_PAGE_REQUEST: pages of 4096 bytes.
    public var span: UInt8 {
        get { UInt8(truncatingIfNeeded: words[bits: 108...115]) }
        set { words[bits: 108...115] = UInt64(newValue) }
    }

    /// uX [97]: E_PAGE_REQUEST: unprivileged execute.
    public var uX: Bool {
        get { words[bit: 97] }
        set { words[bit: 97] = newValue }
    }

    /// uW [98]: E_PAGE_REQUEST: unprivileged write.
    public var uW: Bool {
        get { words[bit: 98] }
        set { words[bit: 98] = newValue }
    }

    /// uR [99]: E_PAGE_REQUEST: unprivileged read.
    public var uR: Bool {
        get { words[bit: 99] }
        set { words[bit: 99] = newValue }
    }

    /// pX [101]: E_PAGE_REQUEST: privileged execute.
    public var pX: Bool {
        get { words[bit: 101] }
        set { words[bit: 101] = newValue }
    }

    /// pW [102]: E_PAGE_REQUEST: privileged write.
    public var pW: Bool {
        get { words[bit: 102] }
        set { words[bit: 102] = newValue }
    }

    /// pR [103]: E_PAGE_REQUEST: privileged read.
    public var pR: Bool {
        get { words[bit: 103] }
        set { words[bit: 103] = newValue }
    }

    /// InputAddr [191:128]: the address as the device sent it.
    public var inputAddress: UInt64 {
        get { words[bits: 128...191] }
        set { words[bits: 128...191] = newValue }
    }

    /// InputAddr [191:140]: E_PAGE_REQUEST: the page.
    public var pageAddress: UInt64 {
        get { words[address: 140...191] }
        set { words[address: 140...191] = newValue }
    }

    /// IPA [247:204]: the intermediate physical address of a stage-2 fault, without its low 12 bits.
    public var ipa: UInt64 {
        get { words[address: 204...247] }
        set { words[address: 204...247] = newValue }
    }

    /// FetchAddr [247:195]: the physical address of a fetch that aborted, without its low 3 bits.
    public var fetchAddress: UInt64 {
        get { words[address: 195...247] }
        set { words[address: 195...247] = newValue }
    }
}
