// The PRI queue's entry.

public import AddressSpace
import BitFields

/// A page request, as it lies in the PRI queue (16 bytes).
public struct PRIEntry: Hashable, Sendable {
    /// How many bytes it takes in memory, and what it is aligned to at least.
    public static let byteCount = 16

    /// Its 64-bit words, little-endian in memory, the one with bit 0 first.
    public var words: SIMD2<UInt64>

    /// All zero.
    public init() { words = .zero }

    /// The structure with these words, whatever they hold.
    public init(words: SIMD2<UInt64>) { self.words = words }

    /// StreamID [31:0]: the stream.
    public var streamID: StreamID {
        get { StreamID(UInt32(truncatingIfNeeded: words[bits: 0...31])) }
        set { words[bits: 0...31] = UInt64(newValue.rawValue) }
    }

    /// SubstreamID [51:32]: the substream; bits above 20 are dropped.
    public var substreamID: SubstreamID {
        get { SubstreamID(UInt32(truncatingIfNeeded: words[bits: 32...51])) }
        set { words[bits: 32...51] = UInt64(newValue.rawValue & 0xF_FFFF) }
    }

    /// Priv [58]: privileged access wanted.
    public var priv: Bool {
        get { words[bit: 58] }
        set { words[bit: 58] = newValue }
    }

    /// X [59]: execute access wanted.
    public var x: Bool {
        get { words[bit: 59] }
        set { words[bit: 59] = newValue }
    }

    /// R [60]: read access wanted.
    public var r: Bool {
        get { words[bit: 60] }
        set { words[bit: 60] = newValue }
    }

    /// W [61]: write access wanted.
    public var w: Bool {
        get { words[bit: 61] }
        set { words[bit: 61] = newValue }
    }

    /// Last [62]: last request of its group.
    public var last: Bool {
        get { words[bit: 62] }
        set { words[bit: 62] = newValue }
    }

    /// SSV [63]: SubstreamID is valid.
    public var ssv: Bool {
        get { words[bit: 63] }
        set { words[bit: 63] = newValue }
    }

    /// PRGIndex [72:64]: the page request group.
    public var prgIndex: UInt16 {
        get { UInt16(truncatingIfNeeded: words[bits: 64...72]) }
        set { words[bits: 64...72] = UInt64(newValue) }
    }

    /// PageAddr [127:76]: the page.
    public var pageAddress: UInt64 {
        get { words[address: 76...127] }
        set { words[address: 76...127] = newValue }
    }
}
