// Translation in software, for iova_to_phys and for people who look.

package import AddressSpace

/// Where an IOVA leads.
package struct PageTableTranslation: Equatable, Sendable {
    package let physical: PhysicalAddress
    /// The size of the page or block that maps it.
    package let pageByteCount: UInt64
    package let permissions: MappingPermissions
    /// The leaf as it stands in memory.
    package let descriptor: UInt64

    package init(
        physical: PhysicalAddress,
        pageByteCount: UInt64,
        permissions: MappingPermissions,
        descriptor: UInt64
    ) {
        self.physical = physical
        self.pageByteCount = pageByteCount
        self.permissions = permissions
        self.descriptor = descriptor
    }
}

/// One descriptor that a walk reads.
package struct PageTableWalkStep: Equatable, Sendable {
    package let level: Int
    package let descriptorAddress: PhysicalAddress
    package let descriptor: UInt64
}

extension IOPageTable {
    /// Where `iova` leads; nil where nothing is mapped.
    package func translate(_ iova: IOVirtualAddress) throws(IOPageTableError) -> PageTableTranslation? {
        guard let last = try walk(iova).last else { return nil }
        let descriptor = PageTableDescriptor(rawValue: last.descriptor)
        guard descriptor.kind(atLevel: last.level, configuration: configuration) == .leaf else { return nil }
        let size = configuration.entryByteCount(atLevel: last.level)
        let base = descriptor.outputAddress(configuration).rawValue & ~(size &- 1)
        return PageTableTranslation(
            physical: PhysicalAddress(base | iova.rawValue & (size &- 1)),
            pageByteCount: size,
            permissions: descriptor.permissions(configuration),
            descriptor: last.descriptor
        )
    }

    /// The descriptors on the way to `iova`'s leaf, or to the one at which the way ends; none where `iova` lies
    /// beyond the input size.
    package func walk(_ iova: IOVirtualAddress) throws(IOPageTableError) -> [PageTableWalkStep] {
        guard iova.rawValue &>> UInt64(configuration.inputAddressBits) == 0 else { return [] }
        var steps: [PageTableWalkStep] = []
        var table = root
        for level in configuration.startLevel...3 {
            let entry = entryAddress(table, configuration.index(of: iova.rawValue, atLevel: level))
            let descriptor = try load(entry)
            steps.append(
                PageTableWalkStep(level: level, descriptorAddress: entry, descriptor: descriptor.rawValue)
            )
            switch descriptor.kind(atLevel: level, configuration: configuration) {
            case .invalid, .leaf: return steps
            case .table: table = try follow(descriptor, at: entry)
            case .foreign: throw .corrupted(descriptorAddress: entry, descriptor: descriptor.rawValue)
            }
        }
        return steps
    }
}
