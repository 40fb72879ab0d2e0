// Memory that a device and its driver share for long. Linux: dma_alloc_coherent.

package import AddressSpace
import DeviceModel
import IOPageTable
import Synchronization

/// Zeroed memory at one address of the device's, in one or more pieces of physical memory.
package struct DMACoherentBuffer: Sendable {
    /// What the device is told.
    package let address: IOVirtualAddress
    /// As it was asked for.
    package let byteCount: UInt64
    /// Where it is, in the order of the device's addresses; whole pages.
    package let pieces: [DMABuffer]
    fileprivate let access: any PhysicalAccess

    /// The physical address of the byte at `offset`; nil beyond the end.
    package func physical(at offset: UInt64) -> PhysicalAddress? {
        guard offset < byteCount else { return nil }
        var rest = offset
        for piece in pieces {
            if rest < piece.byteCount { return PhysicalAddress(piece.physical.rawValue &+ rest) }
            rest -= piece.byteCount
        }
        return nil
    }

    /// Reads as the driver does, through its own mapping of the pieces.
    ///
    /// - Throws: ``DMAError/invalid(_:)`` beyond the end, ``DMAError/bus(_:)``.
    package func read(_ count: Int, at offset: UInt64 = 0) throws(DMAError) -> [UInt8] {
        var bytes: [UInt8] = []
        for part in try parts(offset, count) {
            do { bytes += try access.read(Int(part.byteCount), at: part.physical) } catch {
                throw .bus(error)
            }
        }
        return bytes
    }

    /// Writes as the driver does, through its own mapping of the pieces.
    ///
    /// - Throws: As ``read(_:at:)``.
    package func write(_ bytes: [UInt8], at offset: UInt64 = 0) throws(DMAError) {
        var rest = bytes[...]
        for part in try parts(offset, bytes.count) {
            let chunk = Array(rest.prefix(Int(part.byteCount)))
            do { try access.write(chunk, at: part.physical) } catch { throw .bus(error) }
            rest = rest.dropFirst(chunk.count)
        }
    }

    private func parts(_ offset: UInt64, _ count: Int) throws(DMAError) -> [DMABuffer] {
        guard let count = UInt64(exactly: count), offset <= byteCount, count <= byteCount - offset else {
            throw .invalid("\(count) bytes at \(offset) leave the buffer of \(byteCount) bytes (EINVAL)")
        }
        var parts: [DMABuffer] = []
        var start = offset
        var rest = count
        for piece in pieces {
            guard rest > 0 else { break }
            if start >= piece.byteCount {
                start -= piece.byteCount
                continue
            }
            let length = min(rest, piece.byteCount - start)
            parts.append(DMABuffer(PhysicalAddress(piece.physical.rawValue &+ start), byteCount: length))
            rest -= length
            start = 0
        }
        return parts
    }
}

extension DMADevice {
    /// The largest block that the page allocator gives: MAX_PAGE_ORDER, 4 MiB.
    static let largestBlockByteCount: UInt64 = 4 << 20

    /// Allocates zeroed memory that the device reaches within its coherent mask.
    ///
    /// Translated, the memory is in as few blocks of the page sizes as can be had, and need not be contiguous; direct,
    /// it is.
    /// - Parameters:
    ///   - byteCount: How much; rounded up to whole pages.
    ///   - attributes: ``DMAAttributes/forceContiguous``, ``DMAAttributes/allocateSinglePages``,
    ///     ``DMAAttributes/privileged``, ``DMAAttributes/noWarn``.
    /// - Throws: Why the kernel returns NULL; nothing is allocated then.
    package func allocateCoherent(byteCount: UInt64, attributes: DMAAttributes = []) throws(DMAError)
        -> DMACoherentBuffer
    {
        guard byteCount > 0, byteCount <= 1 << 62 else {
            throw .invalid("\(byteCount) bytes of coherent memory cannot be had (EINVAL)")
        }
        do throws(DMAError) {
            return translation == nil
                ? try allocateDirect(byteCount)
                : try allocateTranslated(byteCount, attributes)
        } catch { throw refused(error, attributes) }
    }

    /// Gives coherent memory back.
    ///
    /// Linux: dma_free_coherent.
    ///
    /// Lazily unmapped, its pages are used again only after the next flush.
    /// - Throws: As ``unmap(_:byteCount:_:_:)``.
    package func freeCoherent(_ buffer: DMACoherentBuffer) throws(DMAError) {
        let mapping: DMABook.Mapping
        do throws(DMAError) {
            mapping = try book.withLock { (book) throws(DMAError) in
                try book.take(buffer.address, .coherent, byteCount: buffer.byteCount, .bidirectional)
            }
        } catch { throw refused(error, []) }
        try end(mapping, [])
    }

    // MARK: Direct

    private func allocateDirect(_ byteCount: UInt64) throws(DMAError) -> DMACoherentBuffer {
        let size = (byteCount + 0xFFF) & ~0xFFF
        let address: PhysicalAddress
        do {
            address = try memory.frames.allocate(byteCount: size, alignment: 0x1000)
        } catch { throw .noMemory(.noMemory(purpose: "coherent memory", error)) }
        let frames = RetiredFrames(allocator: memory.frames, addresses: [address])
        let limit = min(coherentMask, traits.busLimit)
        // The allocator gives the lowest memory that it has: there is none below this.
        guard address.rawValue &+ (size - 1) <= limit else {
            frames.giveBack()
            throw .addressOverflow(address, byteCount: size, mask: coherentMask, busLimit: traits.busLimit)
        }
        return keep(
            [DMABuffer(address, byteCount: size)],
            IOVirtualAddress(address.rawValue),
            byteCount,
            frames,
            nil
        )
    }

    private func keep(
        _ pieces: [DMABuffer],
        _ address: IOVirtualAddress,
        _ byteCount: UInt64,
        _ frames: RetiredFrames,
        _ mapped: (range: AddressRange?, pieces: [DMAPiece])?
    ) -> DMACoherentBuffer {
        var mapping = DMABook.Mapping(kind: .coherent, byteCount: byteCount, direction: .bidirectional)
        mapping.frames = frames
        mapping.range = mapped?.range
        mapping.pieces = mapped?.pieces ?? []
        book.withLock { $0.insert(mapping, at: address) }
        return DMACoherentBuffer(
            address: address,
            byteCount: byteCount,
            pieces: pieces,
            access: memory.access
        )
    }

    // MARK: Translated

    private func allocateTranslated(_ byteCount: UInt64, _ attributes: DMAAttributes) throws(DMAError)
        -> DMACoherentBuffer
    {
        guard let granule = translation?.configuration.granule.byteCount else {
            throw .invalid("the device is not behind an IOMMU (EINVAL)")
        }
        let size = (byteCount + granule - 1) & ~(granule - 1)
        let buffers = try allocateBlocks(size, attributes)
        let frames = RetiredFrames(allocator: memory.frames, addresses: buffers.map(\.physical))
        do throws(DMAError) {
            let iova = try allocateIOVA(size, mask: coherentMask)
            var pieces: [DMAPiece] = []
            var next = iova.rawValue
            for buffer in buffers {
                pieces.append(
                    DMAPiece(
                        iova: IOVirtualAddress(next),
                        physical: buffer.physical,
                        byteCount: buffer.byteCount
                    )
                )
                next &+= buffer.byteCount
            }
            let range = try map(pieces, permissions(.bidirectional, attributes), iova, size)
            return keep(buffers, iova, byteCount, frames, (range, pieces))
        } catch {
            if !error.leavesTranslations { frames.giveBack() }
            throw error
        }
    }

    /// Memory in blocks of the domain's page sizes, the largest that fit and can be had.
    ///
    /// Linux: __iommu_dma_alloc_pages.
    private func allocateBlocks(_ byteCount: UInt64, _ attributes: DMAAttributes) throws(DMAError)
        -> [DMABuffer]
    {
        guard let configuration = translation?.configuration else { return [] }
        let granule = configuration.granule.byteCount
        var sizes = configuration.pageByteCounts.filter { $0 <= max(granule, Self.largestBlockByteCount) }
        if attributes.contains(.allocateSinglePages) { sizes = [granule] }
        if attributes.contains(.forceContiguous) { sizes = [byteCount] }
        var blocks: [DMABuffer] = []
        var rest = byteCount
        while rest > 0 {
            guard let size = sizes.last else { break }
            guard size <= rest else {
                sizes.removeLast()
                continue
            }
            do {
                let alignment = attributes.contains(.forceContiguous) ? granule : size
                let address = try memory.frames.allocate(byteCount: size, alignment: alignment)
                blocks.append(DMABuffer(address, byteCount: size))
                rest -= size
            } catch {
                // Smaller ones may be there still.
                if sizes.count > 1, case .exhausted = error {
                    sizes.removeLast()
                    continue
                }
                RetiredFrames(allocator: memory.frames, addresses: blocks.map(\.physical)).giveBack()
                throw .noMemory(.noMemory(purpose: "coherent memory", error))
            }
        }
        return blocks
    }
}
