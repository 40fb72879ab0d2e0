// One 64-bit descriptor of a VMSAv8-64 table, of either stage.

import AddressSpace
import BitFields

/// A descriptor as the driver writes it and reads it back.
///
/// Arm ARM D8.3. Tables of both stages look alike; the attributes of their leaves do not.
struct PageTableDescriptor: Equatable {
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
        rawValue = Self.outputField(physical.rawValue, configuration)
        switch configuration.stage {
        case .one:
            rawValue |= Self.stageOneAttributes(permissions)
            if configuration.tracksDirtyState, permissions.contains(.write) { rawValue |= Self.dirtyModifier }
        case .two(let forcesWriteBack):
            rawValue |= Self.stageTwoAttributes(permissions, forcesWriteBack: forcesWriteBack)
        }
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
    /// ``MappingPermissions/read`` is always among them in stage 1.
    func permissions(_ configuration: PageTableConfiguration) -> MappingPermissions {
        switch configuration.stage {
        case .one: stageOnePermissions
        case .two: stageTwoPermissions
        }
    }

    private var stageOnePermissions: MappingPermissions {
        var permissions: MappingPermissions = [.read]
        if !rawValue[bit: 7] || rawValue & Self.dirtyModifier != 0 { permissions.insert(.write) }
        if !rawValue[bit: 6] { permissions.insert(.privileged) }
        if rawValue[bits: 53...54] == 0b11 { permissions.insert(.noExecute) }
        if rawValue[bits: 2...4] == 2 { permissions.insert(.device) }
        if rawValue[bits: 8...9] == 0b11 { permissions.insert(.cacheable) }
        return permissions
    }

    private var stageTwoPermissions: MappingPermissions {
        var permissions: MappingPermissions = []
        if rawValue[bit: 6] { permissions.insert(.read) }
        if rawValue[bit: 7] { permissions.insert(.write) }
        if rawValue[bits: 53...54] == 0b10 { permissions.insert(.noExecute) }
        if rawValue[bits: 2...5] == 0b0001 { permissions.insert(.device) }
        if rawValue[bits: 8...9] == 0b11 { permissions.insert(.cacheable) }
        return permissions
    }

    /// Bit 55, which hardware ignores: the descriptor has been written back for a walker that does not snoop.
    static let synced: UInt64 = 1 << 55

    /// DBM [51]: where AP[2] says read-only the page may be written, and hardware clears AP[2] when it is.
    ///
    /// Arm ARM D8.4.6.
    static let dirtyModifier: UInt64 = 1 << 51
    /// AP[2] [7]: read-only; with DBM, writable and clean.
    static let readOnly: UInt64 = 1 << 7

    /// Whether it can be written, and was, or nobody has looked since it was mapped.
    var isWritableDirty: Bool { rawValue & (Self.dirtyModifier | Self.readOnly) == Self.dirtyModifier }

    private static func outputMask(_ configuration: PageTableConfiguration) -> UInt64 {
        .mask(configuration.granule == .kib64 ? 12...47 : configuration.granule.log2...47)
    }

    private static func outputField(_ address: UInt64, _ configuration: PageTableConfiguration) -> UInt64 {
        (address | (address &>> 36) & 0xF000) & outputMask(configuration)
    }

    private static func stageOneAttributes(_ permissions: MappingPermissions) -> UInt64 {
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

    /// S2AP, MemAttr, SH, AF, and XN[1:0] = 0b10 where nobody may execute.
    ///
    /// Linux sets both bits of XN. Where the SMMU has XNX that lets privileged accesses execute, so we do not.
    /// Stage 2 knows no privilege for data: ``MappingPermissions/privileged`` says nothing here.
    private static func stageTwoAttributes(_ permissions: MappingPermissions, forcesWriteBack: Bool)
        -> UInt64
    {
        var word: UInt64 = 0
        word[bit: 10] = true  // AF: never an access flag fault.
        word[bit: 6] = permissions.contains(.read)  // S2AP[0]
        word[bit: 7] = permissions.contains(.write)  // S2AP[1]
        let memAttr: UInt64
        if permissions.contains(.device) {
            memAttr = 0b0001  // Device-nGnRE
        } else if permissions.contains(.cacheable) {
            memAttr = forcesWriteBack ? 0b0110 : 0b1111  // Write-back
        } else {
            memAttr = 0b0101  // Non-cacheable
        }
        word[bits: 2...5] = memAttr
        word[bits: 8...9] = permissions.contains(.cacheable) ? 0b11 : 0b10
        if permissions.contains(.noExecute) { word[bits: 53...54] = 0b10 }
        return word
    }
}
