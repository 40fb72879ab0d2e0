// Strict and lazy unmapping of DMA domains. Linux: __iommu_dma_unmap.

package import AddressSpace
package import IOPageTable
import Synchronization

extension IOMMUDomain {
    /// Unmaps as the DMA API does: in a domain of kind ``IOMMUDomainKind/dmaFQ`` without an invalidation.
    ///
    /// There the TLB may answer for the range until the flush queue is flushed: when a ring is full, 10 ms after the
    /// first range was put in, or by ``flushLazyUnmaps()``. So long its IOVAs are not handed out again, and the
    /// endpoint may still reach the memory: what was allocated for it goes back by ``retire(_:to:)``. In a domain of
    /// kind ``IOMMUDomainKind/dma`` it is ``unmap(_:byteCount:)``.
    /// - Throws: As ``unmap(_:byteCount:)``.
    package func unmapDMA(_ iova: IOVirtualAddress, byteCount: UInt64) throws(SMMUDriverError) -> UnmapOutcome
    {
        guard let translation, kind == .dmaFQ else { return try unmap(iova, byteCount: byteCount) }
        return try translation.unmapLazily(iova, byteCount: byteCount)
    }

    /// Gives memory back that was mapped here and has been unmapped with ``unmapDMA(_:byteCount:)``.
    ///
    /// Where unmaps are lazy that is after the next flush, as the endpoint may reach it until then; whoever finds no
    /// memory meanwhile has the queue flushed first, if `frames` is a ``PhysicalFrameAllocator``. Linux gives it back
    /// at once.
    /// - Throws: What a flush throws; then the memory is lost.
    package func retire(_ addresses: [PhysicalAddress], to frames: any PhysicalPageAllocator)
        throws(SMMUDriverError)
    {
        let retired = RetiredFrames(allocator: frames, addresses: addresses)
        guard let translation, kind == .dmaFQ else { return retired.giveBack() }
        try translation.retire(DeferredRelease(memory: retired))
    }

    /// Flushes the flush queue now; nothing where there is none.
    package func flushLazyUnmaps() throws(SMMUDriverError) { try translation?.flushLazyUnmaps() }

    /// How many unmapped ranges wait to be invalidated.
    package var lazyUnmapCount: Int { translation?.lazyUnmapCount ?? 0 }

    /// From now on ``unmapDMA(_:byteCount:)`` is lazy; a domain of kind DMA becomes DMA_FQ while it is used.
    ///
    /// Linux: iommu_dma_init_fq. There is no way back.
    func startFlushQueue() { translation?.isLazy.store(true, ordering: .sequentiallyConsistent) }
}

extension DomainTranslation {
    var lazyUnmapCount: Int { isLazy.load(ordering: .sequentiallyConsistent) ? flushQueue.count : 0 }

    func unmapLazily(_ iova: IOVirtualAddress, byteCount: UInt64) throws(SMMUDriverError) -> UnmapOutcome {
        var gather = LazyGather(TLBGather(device, tag))
        let outcome = try clear(iova, byteCount: byteCount, &gather)
        // Tables that went with the range have been invalidated; only that can have failed here.
        try gather.walks.finish()
        guard let range = AddressRange(start: iova.rawValue, byteCount: outcome.byteCount) else {
            return outcome
        }
        try retire(DeferredRelease(iovas: range))
        return outcome
    }

    /// Puts something into the flush queue, which this domain has.
    func retire(_ content: DeferredRelease) throws(SMMUDriverError) {
        content.memory?.addReclaimer(self)
        let startsTimer = try flushQueue.add(content) { () throws(SMMUDriverError) in
            try flushForReuse()
        } release: {
            release($0)
        }
        // With the SMMU off nothing is cached: what waits can go.
        if startsTimer, !device.flushTimer.arm(self) { try? flushLazyUnmaps() }
    }

    /// What waited is reached by nobody any more.
    private func release(_ content: DeferredRelease) {
        if let range = content.iovas {
            let iova = IOVirtualAddress(range.first)
            if content.isWhole {
                freeIOVA(iova, range.byteCount)
            } else {
                release(iova, range.byteCount)
            }
        }
        content.memory?.giveBack()
    }

    private func flushForReuse() throws(SMMUDriverError) {
        do throws(SMMUDriverError) { try flushAll() } catch {
            // Off, it caches nothing.
            if !device.isOff(error) { throw error }
        }
    }

    func flushLazyUnmaps() throws(SMMUDriverError) {
        guard isLazy.load(ordering: .sequentiallyConsistent) else { return }
        try flushQueue.expire { () throws(SMMUDriverError) in
            try flushForReuse()
        } release: {
            release($0)
        }
    }
}

extension DomainTranslation: PhysicalFrameReclaimer {
    func reclaimFrames() -> Bool {
        do throws(SMMUDriverError) {
            return try flushQueue.reclaim { () throws(SMMUDriverError) in try flushForReuse() }
        } catch {
            device.log.note(.error, "memory that waits for a flush stays: \(error)")
            return false
        }
    }
}

/// What a lazy unmap invalidates: tables that go, at once, and no leaves.
struct LazyGather: PageTableInvalidator {
    var walks: TLBGather

    init(_ walks: TLBGather) { self.walks = walks }

    mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64) {}

    mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool {
        walks.flushWalk(iova, byteCount: byteCount, granule: granule)
    }
}
