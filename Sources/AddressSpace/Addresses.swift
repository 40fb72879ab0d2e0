// One type for each kind of address and identity, so that the compiler keeps them apart.

/// A physical address (PA), as the SMMU drives it onto the bus and as the CPU sees it.

public struct PhysicalAddress: Hashable, Comparable, Sendable {

    public var rawValue: UInt64

    @inlinable
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `byteCount` bytes on, or nil where that leaves 64 bits.
    @inlinable
    public func advanced(by byteCount: UInt64) -> Self? {
        let (sum, overflow) = rawValue.addingReportingOverflow(byteCount)
        return overflow ? nil : Self(sum)
    }
}

/// An address as a device drives it, before any IOMMU has looked at it (IOVA; the architecture's input address).

public struct IOVirtualAddress: Hashable, Comparable, Sendable {

    public var rawValue: UInt64

    @inlinable
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `byteCount` bytes on, or nil where that leaves 64 bits.
    @inlinable
    public func advanced(by byteCount: UInt64) -> Self? {
        let (sum, overflow) = rawValue.addingReportingOverflow(byteCount)
        return overflow ? nil : Self(sum)
    }
}

/// A StreamID: which requester a transaction comes from, up to 32 bits (SMMU_IDR1.SIDSIZE).

public struct StreamID: Hashable, Comparable, Sendable {

    public var rawValue: UInt32

    @inlinable
    public init(_ rawValue: UInt32) { self.rawValue = rawValue }

    @inlinable
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// A SubstreamID (PCIe: PASID): which context of a requester, up to 20 bits (SMMU_IDR1.SSIDSIZE).

public struct SubstreamID: Hashable, Comparable, Sendable {

    public var rawValue: UInt32

    @inlinable
    public init(_ rawValue: UInt32) { self.rawValue = rawValue }

    @inlinable
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

extension PhysicalAddress: CustomStringConvertible {

    public var description: String { "0x" + String(rawValue, radix: 16) }
}

extension IOVirtualAddress: CustomStringConvertible {

    public var description: String { "0x" + String(rawValue, radix: 16) }
}

extension StreamID: CustomStringConvertible {

    public var description: String { "0x" + String(rawValue, radix: 16) }
}

extension SubstreamID: CustomStringConvertible {

    public var description: String { "0x" + String(rawValue, radix: 16) }
}
