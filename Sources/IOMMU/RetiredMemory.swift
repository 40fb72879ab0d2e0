// Memory that its owner has given up while devices may still reach it, and who can hurry that on.

import AddressSpace
package import IOPageTable
import Synchronization

/// Memory that waits to be used again.
protocol RetiredMemory: Sendable {
    /// No device reaches it any more.
    func giveBack()
    /// Remembers whom to ask when there is no other memory of this kind left.
    func addReclaimer(_ reclaimer: any PhysicalFrameReclaimer)
}

/// Blocks of an allocator.
struct RetiredFrames: RetiredMemory {
    let allocator: any PhysicalPageAllocator
    let addresses: [PhysicalAddress]

    func giveBack() {
        // Each was allocated once by who retires it; an allocator that refuses it has no use for the news.
        for address in addresses { try? allocator.free(address) }
    }

    func addReclaimer(_ reclaimer: any PhysicalFrameReclaimer) {
        (allocator as? any ReclaimingPageAllocator)?.add(reclaimer)
    }
}

/// Who has memory that it gives back only when it must, or when it is time.
package protocol PhysicalFrameReclaimer: AnyObject, Sendable {
    /// Gives back what can be given back.
    ///
    /// Called where memory has run out, with any locks of the driver's held but the command queue's.
    /// - Returns: Whether that was anything.
    func reclaimFrames() -> Bool
}

/// An allocator that asks before it says that nothing is left.
package protocol ReclaimingPageAllocator: PhysicalPageAllocator {
    /// Remembers whom to ask; it is not kept alive.
    func add(_ reclaimer: any PhysicalFrameReclaimer)
}

/// Whom to ask for memory.
///
/// Its lock is a leaf.
final class ReclaimerList: Sendable {
    private struct WeakReclaimer {
        weak var reclaimer: (any PhysicalFrameReclaimer)?
    }

    private let list = Mutex<[WeakReclaimer]>([])

    func add(_ reclaimer: any PhysicalFrameReclaimer) {
        list.withLock { list in
            if list.contains(where: { $0.reclaimer === reclaimer }) { return }
            list.removeAll { $0.reclaimer == nil }
            list.append(WeakReclaimer(reclaimer: reclaimer))
        }
    }

    /// Asks everybody, with no lock held: what one gives back need not be what is looked for.
    func reclaim() -> Bool {
        let all = list.withLock { $0.compactMap(\.reclaimer) }
        return all.reduce(false) { $1.reclaimFrames() || $0 }
    }
}
