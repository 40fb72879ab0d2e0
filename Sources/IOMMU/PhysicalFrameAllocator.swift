// Free RAM in power-of-two blocks: what the driver's tables, queues and buffers are made of.

package import AddressSpace
package import DeviceModel
package import IOPageTable
import Synchronization

/// A buddy allocator over the RAM that the operating-system side may use.
///
/// Blocks are powers of two and naturally aligned, as hardware wants its tables and queues. The lowest free block
/// that fits is taken, so that the same requests give the same addresses in every run.
package final class PhysicalFrameAllocator: PhysicalPageAllocator {
    /// log2 of the smallest block.
    private static let leastOrder = 12
    private static let orderCount = 64 - leastOrder

    private struct State {
        /// Free blocks' addresses by order, ascending.
        var free = [[UInt64]](repeating: [], count: orderCount)
        /// The order of each block that is in use.
        var used: [UInt64: Int] = [:]
        var usedByteCount: UInt64 = 0
    }

    private let memory: any PhysicalAccess
    private let state: Mutex<State>
    /// Who is asked when there is no memory left; no lock is held meanwhile.
    private let reclaimers = ReclaimerList()
    /// The last address of RAM that can be handed out; 0 where there is none.
    package let lastAddress: UInt64
    /// How many bytes there are, used or free.
    package let byteCount: UInt64

    /// Takes charge of `ranges` without `reserved`; parts of a 4 KiB frame are left out.
    ///
    /// - Parameters:
    ///   - memory: How RAM is cleared.
    ///   - ranges: RAM. What two of them share is counted once.
    ///   - reserved: What must not be handed out, such as `reserved-memory` and what a guest was loaded into.
    package init(memory: any PhysicalAccess, ranges: [AddressRange], excluding reserved: [AddressRange] = [])
    {
        self.memory = memory
        var state = State()
        var total: UInt64 = 0
        var last: UInt64 = 0
        for range in Self.frames(of: ranges, excluding: reserved) {
            total &+= range.byteCount
            last = max(last, range.last)
            Self.insertBlocks(of: range, into: &state)
        }
        byteCount = total
        lastAddress = last
        self.state = Mutex(state)
    }

    /// How many bytes are handed out, each request counted as the block that it got.
    package var usedByteCount: UInt64 { state.withLock { $0.usedByteCount } }

    package func allocate(byteCount: UInt64, alignment: UInt64) throws(PhysicalPageError) -> PhysicalAddress {
        guard byteCount > 0, alignment.nonzeroBitCount == 1,
            let order = Self.order(holding: byteCount), let aligned = Self.order(holding: alignment)
        else { throw .invalidRequest(byteCount: byteCount, alignment: alignment) }
        var address = take(order, alignedTo: max(order, aligned))
        if address == nil, reclaimers.reclaim() { address = take(order, alignedTo: max(order, aligned)) }
        guard let address else { throw .exhausted(byteCount: byteCount, alignment: alignment) }
        do {
            try memory.fill(0, byteCount: 1 << UInt64(order), at: PhysicalAddress(address))
        } catch {
            state.withLock { state in _ = Self.giveBack(address, to: &state) }
            throw .memory(error)
        }
        return PhysicalAddress(address)
    }

    private func take(_ order: Int, alignedTo aligned: Int) -> UInt64? {
        state.withLock { state in Self.take(order: order, alignedTo: aligned, from: &state) }
    }

    package func free(_ address: PhysicalAddress) throws(PhysicalPageError) {
        let isFreed = state.withLock { state in Self.giveBack(address.rawValue, to: &state) }
        guard isFreed else { throw .notAllocated(address) }
    }
}

extension PhysicalFrameAllocator: ReclaimingPageAllocator {
    package func add(_ reclaimer: any PhysicalFrameReclaimer) { reclaimers.add(reclaimer) }
}

// MARK: Blocks

extension PhysicalFrameAllocator {
    /// The least order whose blocks hold `byteCount`; nil above 2^63.
    private static func order(holding byteCount: UInt64) -> Int? {
        let bits = 64 - (byteCount - 1).leadingZeroBitCount
        return bits < 64 ? max(bits, leastOrder) : nil
    }

    /// The lowest free block of at least order `alignedTo`, cut down to `order`.
    private static func take(order: Int, alignedTo aligned: Int, from state: inout State) -> UInt64? {
        let candidates = (aligned..<64).compactMap { order -> (address: UInt64, order: Int)? in
            state.free[order - leastOrder].first.map { ($0, order) }
        }
        guard let block = candidates.min(by: { $0.address < $1.address }) else { return nil }
        state.free[block.order - leastOrder].removeFirst()
        var current = block.order
        while current > order {
            current -= 1
            insert(block.address &+ (1 << UInt64(current)), order: current, into: &state)
        }
        state.used[block.address] = order
        state.usedByteCount &+= 1 << UInt64(order)
        return block.address
    }

    /// Frees a block and joins it with its buddies.
    private static func giveBack(_ address: UInt64, to state: inout State) -> Bool {
        guard let order = state.used.removeValue(forKey: address) else { return false }
        state.usedByteCount &-= 1 << UInt64(order)
        var block = address
        var current = order
        while current < 63 {
            let buddy = block ^ (1 << UInt64(current))
            let list = current - leastOrder
            let index = state.free[list].insertionIndex(of: buddy)
            guard index < state.free[list].count, state.free[list][index] == buddy else { break }
            state.free[list].remove(at: index)
            block = min(block, buddy)
            current += 1
        }
        insert(block, order: current, into: &state)
        return true
    }

    private static func insert(_ address: UInt64, order: Int, into state: inout State) {
        let list = order - leastOrder
        state.free[list].insert(address, at: state.free[list].insertionIndex(of: address))
    }

    /// Cuts a range of whole frames into the largest aligned blocks.
    private static func insertBlocks(of range: AddressRange, into state: inout State) {
        var start = range.first
        var remaining = range.byteCount
        while remaining > 0 {
            let aligned = start == 0 ? 63 : start.trailingZeroBitCount
            let order = min(aligned, 63 - remaining.leadingZeroBitCount)
            insert(start, order: order, into: &state)
            start &+= 1 << UInt64(order)
            remaining &-= 1 << UInt64(order)
        }
    }

    /// The whole frames that lie in `ranges` and touch none of `reserved`.
    private static func frames(of ranges: [AddressRange], excluding reserved: [AddressRange])
        -> [AddressRange]
    {
        let mask: UInt64 = (1 << UInt64(leastOrder)) - 1
        var result: [AddressRange] = []
        for range in ranges.sorted(by: { $0.first < $1.first }) {
            // Rounded inwards; what an earlier range covered already is left out.
            var first = (range.first &+ mask) & ~mask
            if first < range.first { continue }
            if let previous = result.last, previous.last >= first { first = previous.last &+ 1 }
            // The end is the first byte after the range, 0 for 2^64; the last frame of the space is left out.
            let end = range.last == .max ? ~mask : (range.last &+ 1) & ~mask
            guard first < end, let whole = AddressRange(first: first, last: end &- 1) else { continue }
            result.append(whole)
        }
        for hole in reserved {
            guard let outward = AddressRange(first: hole.first & ~mask, last: hole.last | mask) else {
                continue
            }
            result = result.flatMap { $0.subtracting(outward) }
        }
        return result
    }
}

extension AddressRange {
    /// What is left of this range without `hole`: none, one or two ranges.
    func subtracting(_ hole: AddressRange) -> [AddressRange] {
        guard overlaps(hole) else { return [self] }
        var parts: [AddressRange] = []
        if hole.first > first, let below = AddressRange(first: first, last: hole.first - 1) {
            parts.append(below)
        }
        if hole.last < last, let above = AddressRange(first: hole.last + 1, last: last) {
            parts.append(above)
        }
        return parts
    }
}

extension [UInt64] {
    /// Where `value` is, or would be, in this ascending array.
    func insertionIndex(of value: UInt64) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = low + (high - low) / 2
            if self[middle] < value { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

/// One block of memory that is given back when its owner goes.
final class OwnedFrames: Sendable {
    let address: PhysicalAddress
    let byteCount: UInt64
    private let frames: any PhysicalPageAllocator
    private let isAbandoned = Atomic(false)

    /// Allocates a block aligned to its size, or to `alignment` where that is more.
    init(_ frames: any PhysicalPageAllocator, byteCount: UInt64, alignment: UInt64 = 1)
        throws(PhysicalPageError)
    {
        let size = byteCount.roundedUpToPowerOfTwo
        address = try frames.allocate(byteCount: byteCount, alignment: Swift.max(size, alignment))
        self.byteCount = byteCount
        self.frames = frames
    }

    /// Keeps the block from being given back: hardware may still reach it.
    func abandon() { isAbandoned.store(true, ordering: .relaxed) }

    deinit {
        guard !isAbandoned.load(ordering: .relaxed) else { return }
        try? frames.free(address)
    }
}

extension UInt64 {
    /// The least power of two that is not below this; 0 where that is 2^64.
    var roundedUpToPowerOfTwo: UInt64 {
        self <= 1 ? 1 : 1 << UInt64(64 - (self - 1).leadingZeroBitCount)
    }
}
