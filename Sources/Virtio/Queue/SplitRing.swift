// Split virtqueues (section 2.7), the device's side.

import AddressSpace
import CLinux
import DeviceModel

/// The device's place in a split virtqueue.
///
/// The ring is the driver's memory: every index, entry and descriptor is read once into a value and checked then.
struct SplitRing {
    private let size: UInt16
    private let descriptors: UInt64
    private let available: UInt64
    private let used: UInt64
    private let hasEventIndex: Bool
    private let hasIndirect: Bool
    /// The next entry of the available ring to take, as the driver's index counts: not modulo the size.
    private var nextAvailable: UInt16 = 0
    /// What the driver's index was last seen to be.
    private var knownAvailable: UInt16 = 0
    /// The used index as the driver sees it.
    private var publishedUsed: UInt16 = 0
    /// What is completed and not yet in the ring: id and length, as in virtq_used_elem.
    private var staged: [UInt64] = []

    /// How many completions one publication carries at most.
    static let batchCount = 16
    /// How long an indirect table may be where a queue is shorter: its length is the driver's to choose, the memory
    /// that it takes here is ours.
    static let indirectCountMax = 1024

    init(_ configuration: QueueConfiguration, _ features: VirtioFeatures) {
        size = configuration.size
        descriptors = configuration.descriptors
        available = configuration.driverArea
        used = configuration.deviceArea
        hasEventIndex = features.contains(.eventIndex)
        hasIndirect = features.contains(.indirectDescriptors)
        staged.reserveCapacity(Self.batchCount)
    }

    // MARK: Taking buffers

    /// Takes the next chain out of the available ring; false where there is none.
    mutating func next(_ chain: inout DescriptorChain, _ port: GatedPort) throws(VirtqueueError) -> Bool {
        if nextAvailable == knownAvailable { guard try look(port) else { return false } }
        let entry = available &+ 4 &+ UInt64(nextAvailable & (size &- 1)) &* 2
        let head = UInt16(truncatingIfNeeded: try port.ringLoad(.halfword, at: entry))
        guard head < size else { throw .malformed("available entry \(head) of a queue of \(size)") }
        chain.begin(id: head)
        try collect(&chain, from: head, port)
        nextAvailable &+= 1
        return true
    }

    /// Whether the driver has made a chain available.
    mutating func hasNext(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        if nextAvailable != knownAvailable { return true }
        return try look(port)
    }

    /// Reads the driver's index; whether it shows something new.
    private mutating func look(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        let index = UInt16(truncatingIfNeeded: try port.ringLoad(.halfword, at: available &+ 2))
        guard index &- nextAvailable <= size else {
            throw .malformed("available index \(index) after \(nextAvailable) in a queue of \(size)")
        }
        knownAvailable = index
        return index != nextAvailable
    }

    private func collect(_ chain: inout DescriptorChain, from head: UInt16, _ port: GatedPort)
        throws(VirtqueueError)
    {
        var index = head
        // A chain visits each descriptor once at most: one that is longer is a loop.
        for _ in 0..<size {
            guard index < size else { throw .malformed("descriptor \(index) of a queue of \(size)") }
            let descriptor = try port.splitDescriptor(at: descriptors &+ UInt64(index) &* 16)
            if descriptor.flags.contains(.indirect) {
                guard hasIndirect else { throw .malformed("an indirect descriptor that was not negotiated") }
                guard !descriptor.flags.contains(.next) else { throw .malformed("INDIRECT with NEXT") }
                return try collectIndirect(&chain, descriptor, port)
            }
            try chain.append(descriptor)
            guard descriptor.flags.contains(.next) else { return }
            index = descriptor.nextOrID
        }
        throw .malformed("a chain that is longer than its queue of \(size)")
    }

    private func collectIndirect(
        _ chain: inout DescriptorChain,
        _ table: VirtqueueDescriptor,
        _ port: GatedPort
    ) throws(VirtqueueError) {
        let count = try port.indirectCount(table, max: max(Int(size), Self.indirectCountMax))
        var index = 0
        for _ in 0..<count {
            let descriptor = try port.splitDescriptor(at: table.address &+ UInt64(index) &* 16)
            guard !descriptor.flags.contains(.indirect) else { throw .malformed("INDIRECT in a table") }
            try chain.append(descriptor)
            guard descriptor.flags.contains(.next) else { return }
            index = Int(descriptor.nextOrID)
            guard index < count else { throw .malformed("descriptor \(index) of a table of \(count)") }
        }
        throw .malformed("a chain that is longer than its table of \(count)")
    }

    // MARK: Giving them back

    /// Notes a chain as used; ``publish(_:)`` shows it to the driver.
    mutating func stage(_ chain: DescriptorChain, length: UInt32) {
        staged.append(UInt64(chain.id) | UInt64(length) &<< 32)
    }

    var isBatchFull: Bool { staged.count >= Self.batchCount || staged.count >= Int(size) }

    /// Writes what is staged to the used ring, then its index.
    ///
    /// - Returns: Whether the driver wants to be interrupted for it.
    mutating func publish(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        guard !staged.isEmpty else { return false }
        var index = publishedUsed
        for element in staged {
            let place = used &+ 4 &+ UInt64(index & (size &- 1)) &* 8
            // An element is aligned to 4 bytes only.
            try port.ringWrite(element, at: place)
            index &+= 1
        }
        staged.removeAll(keepingCapacity: true)
        let old = publishedUsed
        publishedUsed = index
        try port.ringStore(UInt64(index), .halfword, at: used &+ 2)
        // The driver writes what it wants, then looks at the index; here it is the other way round.
        smmud_fence_seq_cst()
        guard hasEventIndex else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT.
            return try port.ringLoad(.halfword, at: available) & 1 == 0
        }
        let place = available &+ 4 &+ UInt64(size) &* 2
        let event = UInt16(truncatingIfNeeded: try port.ringLoad(.halfword, at: place))
        return Self.passes(event, from: old, to: index)
    }

    /// Whether an index that went from `old` to `new` left `event` behind (vring_need_event).
    static func passes(_ event: UInt16, from old: UInt16, to new: UInt16) -> Bool {
        new &- event &- 1 < new &- old
    }

    // MARK: Being notified

    /// Asks the driver not to notify while the queue is being looked at anyway.
    func disarm(_ port: GatedPort) throws(VirtqueueError) {
        // VIRTQ_USED_F_NO_NOTIFY. With event indices, one that is not moved on stays silent by itself.
        guard !hasEventIndex else { return }
        try port.ringStore(1, .halfword, at: used)
    }

    /// Asks the driver to notify of the next chain.
    ///
    /// - Returns: Whether there is one already, for which it may not have notified.
    mutating func arm(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        if hasEventIndex {
            let place = used &+ 4 &+ UInt64(size) &* 8
            try port.ringStore(UInt64(nextAvailable), .halfword, at: place)
        } else {
            try port.ringStore(0, .halfword, at: used)
        }
        // First the wish, then the look: the driver does the same from its side.
        smmud_fence_seq_cst()
        return try hasNext(port)
    }
}
