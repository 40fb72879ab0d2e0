// What the DMA API asks of a domain: IOVAs by the caches, and mappings of several pieces in one range.

import AddressSpace
import IOPageTable
import Synchronization

/// Memory that is mapped in one piece; all three are multiples of the granule.
struct DMAPiece: Equatable, Sendable {
    var iova: IOVirtualAddress
    var physical: PhysicalAddress
    var byteCount: UInt64
}

extension DomainTranslation {
    private var granuleLog2: UInt64 { UInt64(configuration.granule.log2) }

    // MARK: IOVAs

    /// Takes a free range: from the calling thread's cache, or by a search.
    ///
    /// Linux: alloc_iova_fast.
    /// - Parameters:
    ///   - byteCount: A multiple of the granule; a size that the caches have is rounded up to a power of two.
    ///   - limit: The last address that the device can drive.
    ///   - isLastTry: Whether what waits in caches, and then in the flush queue, is freed and looked through before
    ///     the answer is no. Linux leaves the flush queue to its timer.
    /// - Returns: The first address, which goes back by ``freeIOVA(_:_:)`` with the same size.
    func allocateIOVA(_ byteCount: UInt64, limit: UInt64, isLastTry: Bool) -> IOVirtualAddress? {
        let count = byteCount &>> granuleLog2
        let order = IOVARangeCache.order(ofPages: count)
        let size = order.map { configuration.granule.byteCount &<< UInt64($0) } ?? byteCount
        guard count > 0, limit >= size &- 1 else { return nil }
        if let order {
            // The range has to end at the limit, not to begin there.
            let last = (limit &- (size &- 1)) &>> granuleLog2
            if let pfn = iovaCache.take(order: order, upTo: last) {
                return IOVirtualAddress(pfn &<< granuleLog2)
            }
        }
        func search() -> IOVirtualAddress? {
            state.withLock { $0.iovas.allocateHighest(byteCount: size, limit: limit) }
        }
        if let found = search() { return found }
        guard isLastTry else { return nil }
        if emptyIOVACache(), let found = search() { return found }
        guard lazyUnmapCount > 0, (try? flushLazyUnmaps()) != nil else { return nil }
        emptyIOVACache()
        return search()
    }

    /// Makes a range free that ``allocateIOVA(_:limit:isLastTry:)`` gave, and that nothing translates any more.
    func freeIOVA(_ iova: IOVirtualAddress, _ byteCount: UInt64) {
        guard let order = IOVARangeCache.order(ofPages: byteCount &>> granuleLog2) else {
            return release(iova, byteCount)
        }
        for pfn in iovaCache.put(iova.rawValue &>> granuleLog2, order: order) {
            release(IOVirtualAddress(pfn &<< granuleLog2), configuration.granule.byteCount &<< UInt64(order))
        }
    }

    /// Frees what is in the caches of all threads.
    ///
    /// - Returns: Whether there was anything.
    @discardableResult
    func emptyIOVACache() -> Bool {
        let all = iovaCache.takeAll()
        guard !all.isEmpty else { return false }
        state.withLock { state in
            for entry in all {
                let byteCount = configuration.granule.byteCount &<< UInt64(entry.order)
                guard let range = AddressRange(start: entry.pfn &<< granuleLog2, byteCount: byteCount) else {
                    continue
                }
                state.iovas.release(range)
            }
        }
        return true
    }

    // MARK: Mappings

    /// Maps pieces in a range that the caller has from ``allocateIOVA(_:limit:isLastTry:)``: all or none.
    func map(_ pieces: [DMAPiece], _ permissions: MappingPermissions) throws(SMMUDriverError) {
        var gather = TLBGather(device, tag)
        let refusal = state.withLock { state -> SMMUDriverError? in
            for (index, piece) in pieces.enumerated() {
                do throws(IOPageTableError) {
                    try state.table.map(
                        piece.iova,
                        to: piece.physical,
                        byteCount: piece.byteCount,
                        permissions: permissions,
                        invalidator: &gather
                    )
                } catch {
                    for done in pieces[..<index] {
                        _ = try? state.table.unmap(
                            done.iova,
                            byteCount: done.byteCount,
                            invalidator: &gather
                        )
                    }
                    return .pageTable(error)
                }
            }
            return nil
        }
        try gather.finish()
        if let refusal { throw refusal }
    }

    /// Unmaps pieces, and frees the whole range and the memory when no transaction uses it any more: when this
    /// returns in a strict domain, after the next flush in a lazy one.
    ///
    /// Linux: __iommu_dma_unmap.
    /// - Returns: How many bytes of the pieces were mapped; another number than theirs is a mistake of somebody's.
    /// - Throws: What the command queue throws: range and memory are lost.
    func unmap(_ pieces: [DMAPiece], freeing range: AddressRange, _ memory: (any RetiredMemory)?)
        throws(SMMUDriverError) -> UInt64
    {
        guard !isLazy.load(ordering: .sequentiallyConsistent) else {
            var gather = LazyGather(TLBGather(device, tag))
            let byteCount = try clear(pieces, &gather)
            try gather.walks.finish()
            try retire(DeferredRelease(iovas: range, isWhole: true, memory: memory))
            return byteCount
        }
        var gather = TLBGather(device, tag)
        let byteCount = try clear(pieces, &gather)
        try gather.finish()
        freeIOVA(IOVirtualAddress(range.first), range.byteCount)
        memory?.giveBack()
        return byteCount
    }

    private func clear(_ pieces: [DMAPiece], _ gather: inout some PageTableInvalidator)
        throws(SMMUDriverError) -> UInt64
    {
        var byteCount: UInt64 = 0
        for run in Self.runs(pieces) {
            byteCount &+= try clear(run.iova, byteCount: run.byteCount, &gather).byteCount
        }
        return byteCount
    }

    /// Pieces whose IOVAs follow each other as one.
    private static func runs(_ pieces: [DMAPiece]) -> [DMAPiece] {
        var runs: [DMAPiece] = []
        for piece in pieces {
            if let last = runs.last, last.iova.rawValue &+ last.byteCount == piece.iova.rawValue {
                runs[runs.count - 1].byteCount &+= piece.byteCount
            } else {
                runs.append(piece)
            }
        }
        return runs
    }
}

/// How a domain's IOVAs were found, since it was made.
package struct IOVAStatistics: Equatable, Sendable {
    /// How often a thread's cache had one.
    package let cacheHitCount: Int
    /// How often the ranges that are in use were searched.
    package let searchCount: Int
    /// How many free ranges are in the caches now.
    package let cachedCount: Int
    /// How many bytes are in use now, with those in the caches, the reserved ones and address 0.
    package let takenByteCount: UInt64
}

extension IOMMUDomain {
    /// How IOVAs were found so far; nil where the domain does not translate.
    package var iovaStatistics: IOVAStatistics? {
        guard let translation else { return nil }
        let (searches, taken) = translation.state.withLock { state in
            (state.iovas.searchCount, state.iovas.takenByteCount)
        }
        return IOVAStatistics(
            cacheHitCount: translation.iovaCache.hitCount,
            searchCount: searches,
            cachedCount: translation.iovaCache.count,
            takenByteCount: taken
        )
    }

    /// Frees the IOVAs that threads keep for their next mappings.
    package func emptyIOVACache() { translation?.emptyIOVACache() }
}
