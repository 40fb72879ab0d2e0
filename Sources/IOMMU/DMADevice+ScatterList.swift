// Scatterlists: many buffers in one range of IOVAs, told to the device as few segments. Linux: iommu_dma_map_sg.

import AddressSpace
import IOPageTable
import Synchronization

/// A scatterlist that is mapped.
package struct DMAScatterMapping: Sendable {
    /// What the device is told: no more than there were buffers.
    package let segments: [DMASegment]
    package let direction: DMADataDirection
    /// The mappings in the book by their addresses: one for all, or one for each buffer.
    fileprivate let parts: [Part]

    fileprivate struct Part: Sendable {
        let address: IOVirtualAddress
        let byteCount: UInt64
    }
}

extension DMADevice {
    /// Maps buffers for DMA.
    ///
    /// Linux: dma_map_sgtable.
    ///
    /// Translated, all are in one range of IOVAs, and buffers that meet there at a page's boundary become one segment
    /// as long as it is no longer than ``maxSegmentByteCount`` and crosses no ``segmentBoundaryMask``. Direct, and
    /// where one of them needs a bounce buffer because the device is not trusted, each is a segment.
    ///
    /// The kernel maps what follows a buffer in physical memory where it moves the next one up to a boundary; here that
    /// stays unmapped.
    /// - Throws: As ``map(_:byteCount:_:_:)``: all are mapped or none.
    package func map(
        _ buffers: [DMABuffer],
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes = []
    ) throws(DMAError) -> DMAScatterMapping {
        guard !buffers.isEmpty else { throw .invalid("a scatterlist has one buffer or more (EINVAL)") }
        for buffer in buffers {
            guard buffer.byteCount > 0, buffer.physical.advanced(by: buffer.byteCount - 1) != nil else {
                throw .invalid(
                    "a buffer of \(buffer.byteCount) bytes at \(buffer.physical) cannot be mapped (EINVAL)"
                )
            }
        }
        guard translation != nil else { return try mapEach(buffers, direction, attributes) }
        do throws(DMAError) {
            for buffer in buffers where try mustBounce(buffer, attributes) {
                return try mapEach(buffers, direction, attributes)
            }
        } catch { throw refused(error, attributes) }
        do throws(DMAError) { return try mapTogether(buffers, direction, attributes) } catch {
            throw refused(error, attributes)
        }
    }

    /// Ends a mapping.
    ///
    /// Linux: dma_unmap_sgtable.
    ///
    /// - Throws: As ``unmap(_:byteCount:_:_:)``. Every part is tried; the first error is thrown.
    package func unmap(_ mapping: DMAScatterMapping, _ attributes: DMAAttributes = []) throws(DMAError) {
        var failure: DMAError?
        for part in mapping.parts {
            do throws(DMAError) {
                let taken = try book.withLock { (book) throws(DMAError) in
                    try book.take(part.address, .scatterList, byteCount: part.byteCount, mapping.direction)
                }
                try end(taken, attributes)
            } catch {
                if case .misuse = error { note(.warning, "\(error)") }
                failure = failure ?? error
            }
        }
        if let failure { throw failure }
    }

    /// Linux: dma_sync_sgtable_for_cpu.
    package func syncForCPU(_ mapping: DMAScatterMapping) throws(DMAError) {
        for part in mapping.parts {
            try syncForCPU(part.address, byteCount: part.byteCount, mapping.direction)
        }
    }

    /// Linux: dma_sync_sgtable_for_device.
    package func syncForDevice(_ mapping: DMAScatterMapping) throws(DMAError) {
        for part in mapping.parts {
            try syncForDevice(part.address, byteCount: part.byteCount, mapping.direction)
        }
    }

    private func mapEach(
        _ buffers: [DMABuffer],
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes
    ) throws(DMAError) -> DMAScatterMapping {
        var segments: [DMASegment] = []
        func mapping() -> DMAScatterMapping {
            DMAScatterMapping(
                segments: segments,
                direction: direction,
                parts: segments.map { DMAScatterMapping.Part(address: $0.address, byteCount: $0.byteCount) }
            )
        }
        for buffer in buffers {
            do throws(DMAError) {
                let address = try mapOne(buffer, direction, attributes, .scatterList)
                segments.append(DMASegment(address, byteCount: buffer.byteCount))
            } catch {
                // Nothing has been transferred.
                try? unmap(mapping(), .skipCPUSync)
                throw error
            }
        }
        return mapping()
    }

    private func mapTogether(
        _ buffers: [DMABuffer],
        _ direction: DMADataDirection,
        _ attributes: DMAAttributes
    ) throws(DMAError) -> DMAScatterMapping {
        guard let granule = translation?.configuration.granule.byteCount,
            let layout = ScatterLayout(
                buffers,
                granule: granule,
                boundaryMask: segmentBoundaryMask,
                maxSegment: maxSegmentByteCount
            )
        else { throw .noMemory(.iovasExhausted(byteCount: .max)) }
        let iova = try allocateIOVA(layout.byteCount, mask: mask)
        let pieces = layout.pieces(at: iova)
        var mapping = DMABook.Mapping(kind: .scatterList, byteCount: layout.byteCount, direction: direction)
        mapping.range = try map(pieces, permissions(direction, attributes), iova, layout.byteCount)
        mapping.pieces = pieces
        book.withLock { $0.insert(mapping, at: iova) }
        return DMAScatterMapping(
            segments: layout.segments(at: iova),
            direction: direction,
            parts: [DMAScatterMapping.Part(address: iova, byteCount: layout.byteCount)]
        )
    }
}

/// Where each buffer of a scatterlist lies in the range of IOVAs that all of them get.
///
/// The range will be aligned to its size. So if the boundary is no smaller than the range nothing crosses it, and if it
/// is smaller the range starts on one: lengths alone decide the layout.
struct ScatterLayout {
    private struct Placed {
        let buffer: DMABuffer
        /// Where its first page lies, from the range's start.
        let start: UInt64
        /// Its offset into that page.
        let offset: UInt64
        /// How much of the range it takes: whole pages.
        let byteCount: UInt64
    }

    private let placed: [Placed]
    private let boundaryMask: UInt64
    private let maxSegment: UInt64
    /// The whole range.
    let byteCount: UInt64

    /// - Returns: nil where the sum leaves 64 bits.
    init?(_ buffers: [DMABuffer], granule: UInt64, boundaryMask: UInt64, maxSegment: UInt64) {
        let mask = granule - 1
        var placed: [Placed] = []
        var total: UInt64 = 0
        for buffer in buffers {
            let offset = buffer.physical.rawValue & mask
            let (sum, overflow) = buffer.byteCount.addingReportingOverflow(offset &+ mask)
            guard !overflow else { return nil }
            let size = sum & ~mask
            // A buffer that would cross the boundary starts on it, if it is not longer than all before it.
            let padding = (boundaryMask &- total &+ 1) & boundaryMask
            if padding > 0, padding < size - 1 {
                let (padded, overflow) = total.addingReportingOverflow(padding)
                guard !overflow else { return nil }
                total = padded
            }
            placed.append(Placed(buffer: buffer, start: total, offset: offset, byteCount: size))
            let (end, endOverflow) = total.addingReportingOverflow(size)
            guard !endOverflow else { return nil }
            total = end
        }
        self.placed = placed
        self.boundaryMask = boundaryMask
        self.maxSegment = maxSegment
        byteCount = total
    }

    func pieces(at iova: IOVirtualAddress) -> [DMAPiece] {
        placed.map {
            DMAPiece(
                iova: IOVirtualAddress(iova.rawValue &+ $0.start),
                physical: PhysicalAddress($0.buffer.physical.rawValue &- $0.offset),
                byteCount: $0.byteCount
            )
        }
    }

    /// Linux: __finalise_sg.
    func segments(at iova: IOVirtualAddress) -> [DMASegment] {
        var segments: [DMASegment] = []
        // The length of the segment that can still grow; 0 where it ended within a page.
        var open: UInt64 = 0
        var end: UInt64 = 0
        for entry in placed {
            let address = iova.rawValue &+ entry.start
            let length = entry.buffer.byteCount
            let fits = open <= maxSegment && length <= maxSegment - open
            if open > 0, entry.offset == 0, entry.start == end, address & boundaryMask != 0, fits {
                open &+= length
                segments[segments.count - 1].byteCount = open
            } else {
                open = length
                segments.append(DMASegment(IOVirtualAddress(address &+ entry.offset), byteCount: length))
            }
            end = entry.start &+ entry.byteCount
            if entry.offset &+ length < entry.byteCount { open = 0 }
        }
        return segments
    }
}
