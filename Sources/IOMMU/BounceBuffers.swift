// Memory that stands between a device and buffers that it must not, or cannot, reach. Linux: swiotlb.

package import AddressSpace
import DeviceModel
package import IOPageTable
import Synchronization

/// A pool of slots of 2 KiB, shared by all devices.
///
/// Linux: io_tlb_mem.
///
/// A mapping takes slots in a row within one segment of 128. What it takes is zeroed around the buffer's bytes as far
/// as the device can see, so that the device reads nothing of what was there before. Its locks are leaves.
package final class BounceBuffers: Sendable {
    /// IO_TLB_SIZE.
    package static let slotByteCount: UInt64 = 2048
    /// IO_TLB_SEGSIZE.
    static let segmentSlots = 128
    /// IO_TLB_DEFAULT_SIZE: 64 MiB.
    package static let defaultByteCount: UInt64 = 64 << 20

    private struct State {
        /// Whether each slot is in use.
        var isUsed: [Bool]
        var usedCount = 0
        /// Where the next search begins, so that what was given back last is not used first.
        var next = 0
        /// How many slots each mapping has, by its first.
        var lengths: [Int: Int] = [:]
    }

    private let frames: OwnedFrames
    let access: any PhysicalAccess
    private let state: Mutex<State>
    private let reclaimers = ReclaimerList()

    /// Takes memory for a pool.
    ///
    /// - Parameters:
    ///   - memory: Where it comes from, and how it is copied.
    ///   - byteCount: How much; a power of two of at least 256 KiB, what is less is rounded up.
    package init(_ memory: DMAMemory, byteCount: UInt64 = defaultByteCount) throws(PhysicalPageError) {
        let segment = Self.slotByteCount * UInt64(Self.segmentSlots)
        guard byteCount <= 1 << 40 else {
            throw .invalidRequest(byteCount: byteCount, alignment: segment)
        }
        let size = max(byteCount, segment).roundedUpToPowerOfTwo
        frames = try OwnedFrames(memory.frames, byteCount: size, alignment: segment)
        access = memory.access
        state = Mutex(State(isUsed: [Bool](repeating: false, count: Int(size / Self.slotByteCount))))
    }

    /// How many slots there are.
    package var slotCount: Int { state.withLock { $0.isUsed.count } }
    /// How many slots are in use.
    package var usedSlotCount: Int { state.withLock { $0.usedCount } }
    /// The most that one mapping can have: 256 KiB.
    package var maxMappingByteCount: UInt64 { Self.slotByteCount * UInt64(Self.segmentSlots) }
    /// Where the pool is.
    package var range: AddressRange? {
        AddressRange(start: frames.address.rawValue, byteCount: frames.byteCount)
    }

    /// Takes slots for a buffer, and copies it there whatever the direction: a device that writes only part of it
    /// must not leave the rest to chance.
    ///
    /// Linux: swiotlb_tbl_map_single.
    /// - Parameters:
    ///   - buffer: What it stands for.
    ///   - alignment: What the device sees whole: the granule, or 1.
    ///   - offsetMask: Which low address bits stay as they are.
    /// - Throws: ``DMAError/bounceBuffersFull(byteCount:slotCount:usedCount:)``, ``DMAError/bus(_:)``.
    func take(_ buffer: DMABuffer, alignment: UInt64, offsetMask: UInt64) throws(DMAError) -> BounceSlot {
        let offset = buffer.physical.rawValue & offsetMask
        let unit = max(alignment, Self.slotByteCount, offsetMask &+ 1)
        let (sum, overflow) = buffer.byteCount.addingReportingOverflow(offset &+ unit &- 1)
        let size = sum & ~(unit &- 1)
        guard !overflow, size <= maxMappingByteCount else { throw full(buffer) }
        let slots = Int(size / Self.slotByteCount)
        let stride = Int(unit / Self.slotByteCount)
        var found = state.withLock { Self.find(slots, stride, &$0) }
        if found == nil, reclaimers.reclaim() { found = state.withLock { Self.find(slots, stride, &$0) } }
        guard let found else { throw full(buffer) }
        let block = frames.address.rawValue &+ UInt64(found) * Self.slotByteCount
        let slot = BounceSlot(
            pool: self,
            index: found,
            address: PhysicalAddress(block &+ offset),
            buffer: buffer
        )
        do throws(DMAError) {
            try clear(block, offset)
            try clear(block &+ offset &+ buffer.byteCount, size &- offset &- buffer.byteCount)
            try slot.copyOut(0, buffer.byteCount)
        } catch {
            slot.giveBack()
            throw error
        }
        return slot
    }

    private func clear(_ address: UInt64, _ byteCount: UInt64) throws(DMAError) {
        guard byteCount > 0 else { return }
        do { try access.fill(0, byteCount: byteCount, at: PhysicalAddress(address)) } catch {
            throw .bus(error)
        }
    }

    private func full(_ buffer: DMABuffer) -> DMAError {
        state.withLock { state in
            .bounceBuffersFull(
                byteCount: buffer.byteCount,
                slotCount: state.isUsed.count,
                usedCount: state.usedCount
            )
        }
    }

    /// The first free run at a multiple of `stride` that stays in one segment.
    private static func find(_ slots: Int, _ stride: Int, _ state: inout State) -> Int? {
        let count = state.isUsed.count
        let start = state.next / stride * stride
        for step in Swift.stride(from: 0, to: count, by: stride) {
            let first = (start + step) % count
            guard first % segmentSlots + slots <= segmentSlots,
                !state.isUsed[first..<first + slots].contains(true)
            else { continue }
            for slot in first..<first + slots { state.isUsed[slot] = true }
            state.usedCount += slots
            state.lengths[first] = slots
            state.next = (first + slots) % count
            return first
        }
        return nil
    }

    func giveBack(_ index: Int) {
        state.withLock { state in
            guard let slots = state.lengths.removeValue(forKey: index) else { return }
            for slot in index..<index + slots { state.isUsed[slot] = false }
            state.usedCount -= slots
        }
    }

    func add(_ reclaimer: any PhysicalFrameReclaimer) { reclaimers.add(reclaimer) }
}

/// One mapping's slots, and the buffer for which they stand.
struct BounceSlot: Sendable {
    let pool: BounceBuffers
    let index: Int
    /// The first byte that stands for the buffer's first.
    let address: PhysicalAddress
    let buffer: DMABuffer

    /// From the buffer to the slots.
    func copyOut(_ offset: UInt64, _ byteCount: UInt64) throws(DMAError) {
        try copy(from: buffer.physical, to: address, offset, byteCount)
    }

    /// From the slots to the buffer.
    func copyBack(_ offset: UInt64, _ byteCount: UInt64) throws(DMAError) {
        try copy(from: address, to: buffer.physical, offset, byteCount)
    }

    /// - Precondition: The part lies within the buffer, which the book has checked.
    private func copy(
        from source: PhysicalAddress,
        to target: PhysicalAddress,
        _ offset: UInt64,
        _ byteCount: UInt64
    ) throws(DMAError) {
        guard byteCount > 0, byteCount <= pool.maxMappingByteCount else { return }
        do {
            let bytes = try pool.access.read(Int(byteCount), at: PhysicalAddress(source.rawValue &+ offset))
            try pool.access.write(bytes, at: PhysicalAddress(target.rawValue &+ offset))
        } catch { throw .bus(error) }
    }
}

extension BounceSlot: RetiredMemory {
    func giveBack() { pool.giveBack(index) }

    func addReclaimer(_ reclaimer: any PhysicalFrameReclaimer) { pool.add(reclaimer) }
}
