// Translation granules and address sizes, and the several ways in which fields encode them.

// Swift 6.3 ignores @inlinable on the members of a package type that is not itself .

/// A translation granule: the size of a page and of a table.

public enum Granule: Hashable, Sendable, CaseIterable {
    case kib4, kib16, kib64

    /// log2 of a page's bytes: 12, 14 or 16.
    @inlinable
    public var log2Bytes: Int {
        switch self {
        case .kib4: return 12
        case .kib16: return 14
        case .kib64: return 16
        }
    }

    /// How many address bits one level resolves: 9, 11 or 13.
    @inlinable
    public var stride: Int { log2Bytes &- 3 }

    /// Bytes of a page.
    @inlinable
    public var byteCount: UInt64 { 1 &<< UInt64(truncatingIfNeeded: log2Bytes) }

    /// log2 of the bytes that one descriptor of `level` (-1 to 3) covers.
    @inlinable
    public func log2Bytes(ofLevel level: Int) -> Int { log2Bytes &+ stride &* (3 &- level) }

    /// The granule that CD.TG0 encodes: 0 4 KiB, 1 64 KiB, 2 16 KiB; nil where it is reserved.
    public init?(tg0 field: UInt8) {
        switch field {
        case 0b00: self = .kib4
        case 0b01: self = .kib64
        case 0b10: self = .kib16
        default: return nil
        }
    }

    /// The granule that CD.TG1 encodes: 1 16 KiB, 2 4 KiB, 3 64 KiB; nil where it is reserved.
    public init?(tg1 field: UInt8) {
        switch field {
        case 0b01: self = .kib16
        case 0b10: self = .kib4
        case 0b11: self = .kib64
        default: return nil
        }
    }

    /// The granule that STE.S2TG encodes, which is as CD.TG0.
    public init?(s2TG field: UInt8) { self.init(tg0: field) }

    /// The granule that TG of a TLBI encodes: 1 4 KiB, 2 16 KiB, 3 64 KiB; nil for 0, no range.
    public init?(tlbiTG field: UInt8) {
        switch field {
        case 0b01: self = .kib4
        case 0b10: self = .kib16
        case 0b11: self = .kib64
        default: return nil
        }
    }

    /// What CD.TG0 and STE.S2TG say for it.
    public var tg0: UInt8 {
        switch self {
        case .kib4: return 0b00
        case .kib64: return 0b01
        case .kib16: return 0b10
        }
    }

    /// What CD.TG1 says for it.
    public var tg1: UInt8 {
        switch self {
        case .kib16: return 0b01
        case .kib4: return 0b10
        case .kib64: return 0b11
        }
    }

    /// What STE.S2TG says for it.
    public var s2TG: UInt8 { tg0 }

    /// What TG of a TLBI says for it.
    public var tlbiTG: UInt8 {
        switch self {
        case .kib4: return 0b01
        case .kib16: return 0b10
        case .kib64: return 0b11
        }
    }
}

extension Granule: CustomStringConvertible {
    public var description: String {
        switch self {
        case .kib4: return "4 KiB"
        case .kib16: return "16 KiB"
        case .kib64: return "64 KiB"
        }
    }
}

/// The three-bit encoding of address sizes in IDR5.OAS, CD.IPS and STE.S2PS.
public enum AddressSize {
    /// The number of address bits: 32, 36, 40, 42, 44, 48, 52 or 56.
    ///
    /// - Parameters:
    ///   - encoding: The field; bits above its three are ignored.
    ///   - largest: The most bits that the version of the architecture knows, which larger encodings stand
    ///     for: 48 in SMMUv3.0, 52 up to v3.3, 56 in v3.4.
    /// - Returns: The number of bits, at most `largest`.
    public static func bits(encoding: UInt8, largest: Int = 56) -> Int {
        let bits: Int
        switch encoding & 0b111 {
        case 0: bits = 32
        case 1: bits = 36
        case 2: bits = 40
        case 3: bits = 42
        case 4: bits = 44
        case 5: bits = 48
        case 6: bits = 52
        default: bits = 56
        }
        return min(bits, largest)
    }

    /// The encoding of a number of address bits; nil where there is none.
    public static func encoding(bits: Int) -> UInt8? {
        (0...7).first { self.bits(encoding: $0) == bits }
    }
}
