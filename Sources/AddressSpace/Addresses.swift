// One type for each kind of address and identity, so that the compiler keeps them apart.

/// A physical address (PA), as the SMMU drives it onto the bus and as the CPU sees it.
@usableFromInline
package struct PhysicalAddress: Hashable, Comparable, Sendable {
    @usableFromInline
    package var rawValue: UInt64

    @inlinable
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `byteCount` bytes on, or nil where that leaves 64 bits.
    @inlinable
    package func advanced(by byteCount: UInt64) -> Self? {
        let (sum, overflow) = rawValue.addingReportingOverflow(byteCount)
        return overflow ? nil : Self(sum)
    }
}

/// An address as a device drives it, before any IOMMU has looked at it (IOVA; the architecture's input address).
@usableFromInline
package struct IOVirtualAddress: Hashable, Comparable, Sendable {
    @usableFromInline
    package var rawValue: UInt64

    @inlinable
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `byteCount` bytes on, or nil where that leaves 64 bits.
    @inlinable
    package func advanced(by byteCount: UInt64) -> Self? {
        let (sum, overflow) = rawValue.addingReportingOverflow(byteCount)
        return overflow ? nil : Self(sum)
    }
}

/// A StreamID: which requester a transaction comes from, up to 32 bits (SMMU_IDR1.SIDSIZE).
@usableFromInline
package struct StreamID: Hashable, Comparable, Sendable {
    @usableFromInline
    package var rawValue: UInt32

    @inlinable
    package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    @inlinable
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// A SubstreamID (PCIe: PASID): which context of a requester, up to 20 bits (SMMU_IDR1.SSIDSIZE).
@usableFromInline
package struct SubstreamID: Hashable, Comparable, Sendable {
    @usableFromInline
    package var rawValue: UInt32

    @inlinable
    package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    @inlinable
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

extension PhysicalAddress: CustomStringConvertible {
    @usableFromInline
    package var description: String { "0x" + String(rawValue, radix: 16) }
}

extension IOVirtualAddress: CustomStringConvertible {
    @usableFromInline
    package var description: String { "0x" + String(rawValue, radix: 16) }
}

extension StreamID: CustomStringConvertible {
    @usableFromInline
    package var description: String { "0x" + String(rawValue, radix: 16) }
}

extension SubstreamID: CustomStringConvertible {
    @usableFromInline
    package var description: String { "0x" + String(rawValue, radix: 16) }
}
