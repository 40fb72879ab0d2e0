// What a domain's endpoints have written. Linux: iommu_dirty_ops.

package import AddressSpace
import IOPageTable
import Synchronization

extension IOMMUDomain {
    /// Whether hardware notes what is written.
    package var tracksDirtyState: Bool { translation?.configuration.tracksDirtyState ?? false }

    /// Which pages of a range were written since they were mapped or last cleared, and makes them clean.
    ///
    /// Linux: read_and_clear_dirty. Writes that come when it has returned are seen by the next call; those in flight
    /// by this one or the next.
    /// - Parameters:
    ///   - range: IOVAs, whole pages.
    ///   - clears: False only looks (IOMMU_DIRTY_NO_CLEAR).
    /// - Returns: The dirty pages and blocks, whole: they may reach beyond the range.
    /// - Throws: ``SMMUDriverError/noDirtyTracking``, ``SMMUDriverError/pageTable(_:)``, or what the command queue
    ///   throws: then what was found is lost.
    package func readDirty(_ range: AddressRange, clears: Bool = true) throws(SMMUDriverError)
        -> [AddressRange]
    {
        guard let translation else { throw .domainDoesNotTranslate(kind) }
        guard tracksDirtyState else { throw .noDirtyTracking }
        return try translation.readDirty(range, clears: clears)
    }
}

extension DomainTranslation {
    fileprivate func readDirty(_ range: AddressRange, clears: Bool) throws(SMMUDriverError) -> [AddressRange]
    {
        var gather = TLBGather(device, tag)
        let result = state.withLock { state -> Result<[AddressRange], IOPageTableError> in
            do throws(IOPageTableError) {
                return .success(
                    try state.table.readDirty(
                        IOVirtualAddress(range.first),
                        byteCount: range.byteCount,
                        clears: clears,
                        invalidator: &gather
                    )
                )
            } catch { return .failure(error) }
        }
        try gather.finish()
        switch result {
        case .success(let ranges): return ranges
        case .failure(let error): throw .pageTable(error)
        }
    }
}
