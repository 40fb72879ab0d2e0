// Ranges of IOVAs that are not for the domain to choose.

package import AddressSpace
package import IOPageTable
import Synchronization

/// A range of IOVAs that firmware, or the platform, has a say in.
package struct ReservedRegion: Hashable, Sendable {
    /// What the range is for.
    package enum Kind: String, Sendable {
        /// The endpoint accesses it at any time: it stays mapped one to one.
        case direct
        /// As ``direct`` until a driver takes the endpoint over.
        case directRelaxable = "direct-relaxable"
        /// Never to be mapped.
        case reserved
        /// Where MSIs go; hardware does not translate it.
        case msi
        /// Where who maps by hand has the doorbells' pages; domains of the DMA API choose for themselves.
        case softwareMSI = "software-msi"

        /// As `reserved_regions` in sysfs has it, which tells the two kinds of MSI regions not apart.
        package var sysfsName: String { self == .softwareMSI ? "msi" : rawValue }
    }

    package let kind: Kind
    package let range: AddressRange
    /// What direct regions are mapped with.
    package let permissions: MappingPermissions

    package init(_ kind: Kind, _ range: AddressRange, permissions: MappingPermissions = .readWrite) {
        self.kind = kind
        self.range = range
        self.permissions = permissions
    }
}

extension DomainTranslation {
    func apply(_ region: ReservedRegion) throws(SMMUDriverError) {
        switch region.kind {
        case .direct, .directRelaxable: try mapOneToOne(region)
        case .reserved, .msi:
            state.withLock { state in
                state.iovas.reserve(region.range)
                if !state.forbidden.contains(region.range) { state.forbidden.append(region.range) }
            }
            if region.kind == .msi { doorbells.withLock { $0.untranslated.append(region.range) } }
        case .softwareMSI: break
        }
    }

    /// Maps those pages of the region that are not mapped yet: two endpoints may bring the same region.
    private func mapOneToOne(_ region: ReservedRegion) throws(SMMUDriverError) {
        let page = configuration.granule.byteCount
        state.withLock { $0.iovas.reserve(region.range) }
        let first = region.range.first & ~(page - 1)
        let last = region.range.last | (page - 1)
        var start: UInt64?
        var current = first
        while true {
            let isMapped = try translate(IOVirtualAddress(current)) != nil
            if !isMapped, start == nil { start = current }
            let isLast = last - current < page
            if let from = start, isMapped || isLast {
                let end = isMapped ? current : current &+ page
                try map(
                    IOVirtualAddress(from),
                    to: PhysicalAddress(from),
                    byteCount: end &- from,
                    permissions: region.permissions
                )
                start = nil
            }
            if isLast { return }
            current += page
        }
    }
}
