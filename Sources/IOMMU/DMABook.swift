// What a device has mapped, and what is said of a driver that mistakes it. Linux: dma-debug.

import AddressSpace

/// A device's mappings, by the address that the device is told.
///
/// Where nothing translates a buffer may be mapped several times at one address.
struct DMABook: Sendable {
    /// By which function something was mapped.
    enum Kind: String, Sendable {
        case single
        case scatterList = "scatter-gather"
        case coherent
        case resource
    }

    struct Mapping: Sendable {
        let kind: Kind
        let byteCount: UInt64
        let direction: DMADataDirection
        /// The IOVAs that it takes, whole pages; nil where nothing translates.
        var range: AddressRange?
        /// What is mapped in them.
        var pieces: [DMAPiece] = []
        /// The buffer that the device sees in place of the driver's.
        var bounce: BounceSlot?
        /// Coherent memory's.
        var frames: RetiredFrames?

        init(kind: Kind, byteCount: UInt64, direction: DMADataDirection) {
            self.kind = kind
            self.byteCount = byteCount
            self.direction = direction
        }
    }

    private var mappings: [IOVirtualAddress: [Mapping]] = [:]
    private(set) var count = 0

    /// What is said of a driver that lets go of its device and leaves mappings; nil where it leaves none.
    var complaintAboutLeaks: String? {
        guard let first = mappings.min(by: { $0.key < $1.key }), let mapping = first.value.first else {
            return nil
        }
        return "device driver has pending DMA allocations while released from device [count=\(count)] "
            + "One of leaked entries details: [device address=0x\(hex(first.key.rawValue, digits: 16))] "
            + "[size=\(mapping.byteCount) bytes] [mapped with \(mapping.direction.kernelName)] "
            + "[mapped as \(mapping.kind.rawValue)]"
    }

    mutating func insert(_ mapping: Mapping, at address: IOVirtualAddress) {
        mappings[address, default: []].append(mapping)
        count += 1
    }

    /// Takes out the mapping at `address` that was made so.
    ///
    /// - Throws: ``DMAError/misuse(_:)`` where there is none, in the words for the one that is most like it.
    mutating func take(
        _ address: IOVirtualAddress,
        _ kind: Kind,
        byteCount: UInt64,
        _ direction: DMADataDirection
    ) throws(DMAError) -> Mapping {
        var candidates = mappings[address] ?? []
        let index = candidates.firstIndex {
            $0.kind == kind && $0.byteCount == byteCount && $0.direction == direction
        }
        guard let index else {
            throw .misuse(Self.complaint(address, candidates, kind, byteCount, direction))
        }
        let mapping = candidates.remove(at: index)
        mappings[address] = candidates.isEmpty ? nil : candidates
        count -= 1
        return mapping
    }

    private static func complaint(
        _ address: IOVirtualAddress,
        _ candidates: [Mapping],
        _ kind: Kind,
        _ byteCount: UInt64,
        _ direction: DMADataDirection
    ) -> String {
        let place = "[device address=0x\(hex(address.rawValue, digits: 16))]"
        guard let nearest = candidates.first(where: { $0.kind == kind }) ?? candidates.first else {
            return
                "device driver tries to free DMA memory it has not allocated \(place) [size=\(byteCount) bytes]"
        }
        if nearest.byteCount != byteCount {
            return "device driver frees DMA memory with different size \(place) "
                + "[map size=\(nearest.byteCount) bytes] [unmap size=\(byteCount) bytes]"
        }
        if nearest.kind != kind {
            return "device driver frees DMA memory with wrong function \(place) [size=\(byteCount) bytes] "
                + "[mapped as \(nearest.kind.rawValue)] [unmapped as \(kind.rawValue)]"
        }
        return "device driver frees DMA memory with different direction \(place) [size=\(byteCount) bytes] "
            + "[mapped with \(nearest.direction.kernelName)] [unmapped with \(direction.kernelName)]"
    }

    /// The mapping of a part that is to be synchronised.
    ///
    /// - Throws: ``DMAError/misuse(_:)``.
    func find(
        _ address: IOVirtualAddress,
        _ offset: UInt64,
        _ byteCount: UInt64,
        _ direction: DMADataDirection
    ) throws(DMAError) -> Mapping {
        let place = "[device address=0x\(hex(address.rawValue, digits: 16))]"
        let candidates = (mappings[address] ?? []).filter { $0.kind == .single || $0.kind == .scatterList }
        guard let first = candidates.first else {
            throw .misuse(
                "device driver tries to sync DMA memory it has not allocated \(place) [size=\(byteCount) bytes]"
            )
        }
        let (end, overflow) = offset.addingReportingOverflow(byteCount)
        let fitting = candidates.filter { !overflow && end <= $0.byteCount }
        guard !fitting.isEmpty else {
            throw .misuse(
                "device driver syncs DMA memory outside allocated range \(place) "
                    + "[allocation size=\(first.byteCount) bytes] [sync offset+size=\(end)]"
            )
        }
        if let match = fitting.first(where: { $0.direction == direction || $0.direction == .bidirectional }) {
            return match
        }
        throw .misuse(
            "device driver syncs DMA memory with different direction \(place) [size=\(byteCount) bytes] "
                + "[mapped with \(fitting[0].direction.kernelName)] [synced with \(direction.kernelName)]"
        )
    }
}
