// One 64-bit descriptor of a VMSAv8-64 stage-1 table.

import AddressSpace
import BitFields

/// A stage-1 descriptor as the driver writes it and reads it back.
///
/// Arm ARM D8.3.
struct StageOneDescriptor: Equatable {
    var rawValue: UInt64

    /// What a descriptor is at its level.
    enum Kind {
        /// Bit 0 is clear: nothing is mapped.
        case invalid
        /// A page, or a block of this level's size.
        case leaf
        /// The next level's table.
        case table
        /// An encoding that no table of ours has: someone else wrote it.
        case foreign
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    /// A table descriptor.
    ///
    /// The bits for hierarchical permissions stay clear.
    init(table: PhysicalAddress, configuration: PageTableConfiguration) {
        rawValue = 0b11 | Self.outputField(table.rawValue, configuration)
    }

    /// A leaf for `level`.
    init(
        leaf physical: PhysicalAddress,
        level: Int,
        permissions: MappingPermissions,
        configuration: PageTableConfiguration
    ) {
        rawValue = Self.outputField(physical.rawValue, configuration) | Self.attributes(permissions)
        rawValue[bits: 0...1] = level == 3 ? 0b11 : 0b01
    }

    /// This leaf's attributes on another page or block.
    func leaf(at physical: PhysicalAddress, level: Int, configuration: PageTableConfiguration) -> Self {
        var copy = self
        copy.rawValue &= ~Self.outputMask(configuration)
        copy.rawValue |= Self.outputField(physical.rawValue, configuration)
        copy.rawValue[bits: 0...1] = level == 3 ? 0b11 : 0b01
        return copy
    }

    func kind(atLevel level: Int, configuration: PageTableConfiguration) -> Kind {
        switch (rawValue[bits: 0...1], level) {
        case (0b00, _), (0b10, _): .invalid
        case (0b11, 3): .leaf
        case (0b11, _): .table
        case (_, 3): .foreign
        default: configuration.hasLeaves(atLevel: level) ? .leaf : .foreign
        }
    }

    /// The output address of a leaf, or the address of a table.
    func outputAddress(_ configuration: PageTableConfiguration) -> PhysicalAddress {
        var address = rawValue & UInt64.mask(configuration.granule.log2...47)
        // With 64 KiB pages bits [15:12] hold address bits [51:48].
        if configuration.granule == .kib64 { address |= rawValue[bits: 12...15] &<< 48 }
        return PhysicalAddress(address)
    }

    /// What the leaf's attributes allow.
    ///
    /// ``MappingPermissions/read`` is always among them.
    var permissions: MappingPermissions {
        var permissions: MappingPermissions = [.read]
        if !rawValue[bit: 7] { permissions.insert(.write) }
        if !rawValue[bit: 6] { permissions.insert(.privileged) }
        if rawValue[bits: 53...54] == 0b11 { permissions.insert(.noExecute) }
        if rawValue[bits: 2...4] == 2 { permissions.insert(.device) }
        if rawValue[bits: 8...9] == 0b11 { permissions.insert(.cacheable) }
        return permissions
    }

    /// Bit 55, which hardware ignores: the descriptor has been written back for a walker that does not snoop.
    static let synced: UInt64 = 1 << 55

    private static func outputMask(_ configuration: PageTableConfiguration) -> UInt64 {
        .mask(configuration.granule == .kib64 ? 12...47 : configuration.granule.log2...47)
    }

    private static func outputField(_ address: UInt64, _ configuration: PageTableConfiguration) -> UInt64 {
        (address | (address &>> 36) & 0xF000) & outputMask(configuration)
    }

    private static func attributes(_ permissions: MappingPermissions) -> UInt64 {
        var word: UInt64 = 0
        word[bit: 11] = true  // nG: the entry belongs to its ASID.
        word[bit: 10] = true  // AF: never an access flag fault.
        word[bit: 7] = !permissions.contains(.write)  // AP[2]: read-only.
        word[bit: 6] = !permissions.contains(.privileged)  // AP[1]: unprivileged access.
        word[bits: 2...4] = permissions.contains(.device) ? 2 : permissions.contains(.cacheable) ? 1 : 0
        word[bits: 8...9] = permissions.contains(.cacheable) ? 0b11 : 0b10
        if permissions.contains(.noExecute) { word[bits: 53...54] = 0b11 }
        return word
    }
}
