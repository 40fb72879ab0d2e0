// An optional page of an SMMU's registers, which need not follow the others on the bus.

package import DeviceModel

/// One of ``Identification/optionalPages`` as a register window of its own.
package final class SMMUv3RegisterPage: RegisterTarget {
    /// The bytes of every optional page.
    package static let byteCount: UInt64 = 0x1_0000

    private let smmu: SMMUv3
    private let offset: UInt64

    /// - Parameters:
    ///   - smmu: Whose registers.
    ///   - offset: Where the page begins, in bytes from page 0.
    package init(of smmu: SMMUv3, at offset: UInt64) {
        self.smmu = smmu
        self.offset = offset
    }

    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try smmu.read(at: self.offset &+ offset, width: width)
    }

    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        try smmu.write(value, at: self.offset &+ offset, width: width)
    }
}
