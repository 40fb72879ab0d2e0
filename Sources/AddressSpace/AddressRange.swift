// Ranges of addresses that may reach the last byte of the 64-bit space.

/// A non-empty range of 64-bit addresses, kept as its first and last byte so that it can end at 2^64 - 1.

public struct AddressRange: Hashable, Sendable {
    /// The first byte.

    public let first: UInt64
    /// The last byte, included.

    public let last: UInt64

    /// The range of `byteCount` bytes from `start`; nil where it is empty or leaves 64 bits.
    @inlinable
    public init?(start: UInt64, byteCount: UInt64) {
        guard byteCount > 0 else { return nil }
        let (last, overflow) = start.addingReportingOverflow(byteCount - 1)
        guard !overflow else { return nil }
        self.first = start
        self.last = last
    }

    /// The range from `first` to `last`, both included; nil where `last` lies below `first`.
    @inlinable
    public init?(first: UInt64, last: UInt64) {
        guard first <= last else { return nil }
        self.first = first
        self.last = last
    }

    /// How many bytes: 0 stands for the whole 64-bit space, which no 64-bit count can say.
    @inlinable
    public var byteCount: UInt64 { last &- first &+ 1 }

    @inlinable
    public func contains(_ address: UInt64) -> Bool { first <= address && address <= last }

    @inlinable
    public func contains(_ other: Self) -> Bool { first <= other.first && other.last <= last }

    @inlinable
    public func overlaps(_ other: Self) -> Bool { first <= other.last && other.first <= last }
}

extension AddressRange: CustomStringConvertible {
    /// `0x1000-0x1fff`, both ends included, as the kernel prints resources.

    public var description: String {
        "0x" + String(first, radix: 16) + "-0x" + String(last, radix: 16)
    }
}
