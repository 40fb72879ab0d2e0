// Free IOVAs that were used before, at hand without a search. Linux: iova_rcache.

import Synchronization

/// Pages that a thread's next allocation can take: a stack of the first pfns of free ranges of one size.
///
/// Linux: iova_magazine.
struct IOVAMagazine: Sendable {
    /// IOVA_MAG_SIZE.
    static let capacity = 127

    private(set) var pfns: [UInt64] = []

    var isEmpty: Bool { pfns.isEmpty }
    var isFull: Bool { pfns.count == Self.capacity }

    mutating func push(_ pfn: UInt64) { pfns.append(pfn) }

    /// Takes the last one put in that is at or below `last`.
    mutating func pop(upTo last: UInt64) -> UInt64? {
        guard let index = pfns.lastIndex(where: { $0 <= last }) else { return nil }
        pfns.swapAt(index, pfns.count - 1)
        return pfns.removeLast()
    }
}

/// One domain's caches of free ranges: for each thread and size two magazines, and a depot of full ones for all.
///
/// What is in here stays taken in the ``IOVAAllocator``. Sizes are powers of two of pages, 1 to 32. Its locks are
/// leaves: a thread's, then the depot's.
final class IOVARangeCache: Sendable {
    /// IOVA_RANGE_CACHE_MAX_SIZE: sizes of 2^0 to 2^5 pages.
    static let orderCount = 6
    /// MAX_GLOBAL_MAGS: how many full magazines of one size the depot holds.
    static let depotCapacity = 32

    private struct Pair: Sendable {
        var loaded = IOVAMagazine()
        var previous = IOVAMagazine()

        mutating func exchange() { (loaded, previous) = (previous, loaded) }
    }

    private final class Slot: Sendable {
        let pairs = Mutex([Pair](repeating: Pair(), count: orderCount))
    }

    private let slots: [Slot]
    private let depot = Mutex([[IOVAMagazine]](repeating: [], count: orderCount))
    private let hits = Atomic<Int>(0)

    init() { slots = (0..<ThreadSlot.count).map { _ in Slot() } }

    /// How often ``take(order:upTo:slot:)`` found something.
    var hitCount: Int { hits.load(ordering: .relaxed) }

    /// log2 of the pages that a range of `count` pages takes here; nil where it is too large.
    static func order(ofPages count: UInt64) -> Int? {
        guard count > 0, count <= 1 << UInt64(orderCount - 1) else { return nil }
        return count.roundedUpToPowerOfTwo.trailingZeroBitCount
    }

    /// A free range of 2^order pages whose first pfn is at or below `last`.
    func take(order: Int, upTo last: UInt64, slot: Int = ThreadSlot.own) -> UInt64? {
        let pfn = slots[slot].pairs.withLock { pairs -> UInt64? in
            if pairs[order].loaded.isEmpty {
                if !pairs[order].previous.isEmpty {
                    pairs[order].exchange()
                } else if let full = depot.withLock({ $0[order].popLast() }) {
                    pairs[order].loaded = full
                }
            }
            return pairs[order].loaded.pop(upTo: last)
        }
        if pfn != nil { hits.wrappingAdd(1, ordering: .relaxed) }
        return pfn
    }

    /// Puts a free range of 2^order pages in.
    ///
    /// - Returns: What there is no room for: it has to be freed.
    func put(_ pfn: UInt64, order: Int, slot: Int = ThreadSlot.own) -> [UInt64] {
        slots[slot].pairs.withLock { pairs in
            var overflow: [UInt64] = []
            if pairs[order].loaded.isFull {
                if !pairs[order].previous.isFull {
                    pairs[order].exchange()
                } else {
                    let full = pairs[order].loaded
                    pairs[order].loaded = IOVAMagazine()
                    let hasRoom = depot.withLock { depot in
                        guard depot[order].count < Self.depotCapacity else { return false }
                        depot[order].append(full)
                        return true
                    }
                    if !hasRoom { overflow = full.pfns }
                }
            }
            pairs[order].loaded.push(pfn)
            return overflow
        }
    }

    /// Takes everything out, of every thread: each range's first pfn and its order.
    ///
    /// Linux: free_cpu_cached_iovas, free_global_cached_iovas.
    func takeAll() -> [(pfn: UInt64, order: Int)] {
        var all: [(pfn: UInt64, order: Int)] = []
        for slot in slots {
            slot.pairs.withLock { pairs in
                for order in pairs.indices {
                    all += (pairs[order].loaded.pfns + pairs[order].previous.pfns).map { ($0, order) }
                    pairs[order] = Pair()
                }
            }
        }
        depot.withLock { depot in
            for order in depot.indices {
                all += depot[order].flatMap(\.pfns).map { ($0, order) }
                depot[order] = []
            }
        }
        return all
    }

    /// How many ranges are in here.
    var count: Int {
        let inSlots = slots.reduce(0) { sum, slot in
            sum
                + slot.pairs.withLock { pairs in
                    pairs.reduce(0) { $0 + $1.loaded.pfns.count + $1.previous.pfns.count }
                }
        }
        return inSlots + depot.withLock { $0.joined().reduce(0) { $0 + $1.pfns.count } }
    }
}
