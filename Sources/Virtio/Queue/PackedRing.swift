// Packed virtqueues (section 2.8), the device's side.

import AddressSpace
import CLinux
import DeviceModel

/// The device's place in a packed virtqueue.
///
/// One ring of descriptors, which driver and device both write; a bit that flips each time round tells whose a
/// descriptor is. As everywhere, what the driver wrote is read once and checked then.
struct PackedRing {
    private let size: UInt16
    private let descriptors: UInt64
    /// The driver's event suppression structure: what it wants to be interrupted for.
    private let driverEvent: UInt64
    private let deviceEvent: UInt64
    private let hasEventIndex: Bool
    private let hasIndirect: Bool
    private var next = Position()
    private var used = Position()
    private var staged: [Completion] = []

    /// A place in the ring, and which time round it is.
    private struct Position {
        var index: UInt16 = 0
        var wrap = true

        mutating func advance(_ count: UInt16, _ size: UInt16) {
            let (sum, overflow) = index.addingReportingOverflow(count)
            guard overflow || sum >= size else { return index = sum }
            index = sum &- size
            wrap.toggle()
        }
    }

    private struct Completion {
        var id: UInt16
        var length: UInt32
        var ringCount: UInt16
    }

    init(_ configuration: QueueConfiguration, _ features: VirtioFeatures) {
        size = configuration.size
        descriptors = configuration.descriptors
        driverEvent = configuration.driverArea
        deviceEvent = configuration.deviceArea
        hasEventIndex = features.contains(.eventIndex)
        hasIndirect = features.contains(.indirectDescriptors)
        staged.reserveCapacity(SplitRing.batchCount)
    }

    private func place(_ index: UInt16) -> UInt64 { descriptors &+ UInt64(index) &* 16 }

    // MARK: Taking buffers

    /// Takes the next chain; false where the driver has made none available.
    mutating func next(_ chain: inout DescriptorChain, _ port: GatedPort) throws(VirtqueueError) -> Bool {
        let flags = try flags(at: next.index, port)
        guard isAvailable(flags) else { return false }
        chain.begin(id: 0)
        try collect(&chain, flags, port)
        next.advance(chain.ringCount, size)
        return true
    }

    /// Whether the driver has made a chain available.
    func hasNext(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        isAvailable(try flags(at: next.index, port))
    }

    /// Reads a descriptor's flags, before anything else of it.
    private func flags(at index: UInt16, _ port: GatedPort) throws(VirtqueueError) -> DescriptorFlags {
        DescriptorFlags(
            rawValue: UInt16(truncatingIfNeeded: try port.ringLoad(.halfword, at: place(index) &+ 14))
        )
    }

    /// Whether the driver made the descriptor available this time round: AVAIL is as the wrap counter, USED is not.
    private func isAvailable(_ flags: DescriptorFlags) -> Bool {
        flags.contains(.available) == next.wrap && flags.contains(.used) != next.wrap
    }

    private func collect(_ chain: inout DescriptorChain, _ head: DescriptorFlags, _ port: GatedPort)
        throws(VirtqueueError)
    {
        var position = next
        for count in 1...size {
            let words = try port.descriptorWords(at: place(position.index))
            var descriptor = VirtqueueDescriptor(packed: words.0, words.1)
            // The head's flags were read first, and made the rest of the chain visible.
            if count == 1 { descriptor.flags = head }
            chain.identify(as: descriptor.nextOrID)
            chain.ringCount = count
            if descriptor.flags.contains(.indirect) {
                guard hasIndirect else { throw .malformed("an indirect descriptor that was not negotiated") }
                guard count == 1, !descriptor.flags.contains(.next) else {
                    throw .malformed("INDIRECT in a chain")
                }
                return try collectIndirect(&chain, descriptor, port)
            }
            try chain.append(descriptor)
            guard descriptor.flags.contains(.next) else { return }
            position.advance(1, size)
        }
        throw .malformed("a chain that is longer than its queue of \(size)")
    }

    /// In a packed ring's table the descriptors are in their order, all of them: NEXT says nothing there.
    private func collectIndirect(
        _ chain: inout DescriptorChain,
        _ table: VirtqueueDescriptor,
        _ port: GatedPort
    ) throws(VirtqueueError) {
        let count = try port.indirectCount(table, max: max(Int(size), SplitRing.indirectCountMax))
        for index in 0..<count {
            let words = try port.descriptorWords(at: table.address &+ UInt64(index) &* 16)
            let descriptor = VirtqueueDescriptor(packed: words.0, words.1)
            guard !descriptor.flags.contains(.indirect) else { throw .malformed("INDIRECT in a table") }
            try chain.append(descriptor)
        }
    }

    // MARK: Giving them back

    mutating func stage(_ chain: DescriptorChain, length: UInt32) {
        staged.append(Completion(id: chain.id, length: length, ringCount: chain.ringCount))
    }

    var isBatchFull: Bool { staged.count >= SplitRing.batchCount }

    /// Writes what is staged as used descriptors.
    ///
    /// The first goes last: the driver looks there, and then sees all that follow.
    ///
    /// - Returns: Whether the driver wants to be interrupted for it.
    mutating func publish(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        guard !staged.isEmpty else { return false }
        var positions: [Position] = []
        positions.reserveCapacity(staged.count)
        var count: UInt16 = 0
        for completion in staged {
            positions.append(used)
            used.advance(completion.ringCount, size)
            count &+= completion.ringCount
        }
        for (completion, position) in zip(staged, positions).reversed() {
            var flags: DescriptorFlags = position.wrap ? [.available, .used] : []
            if completion.length > 0 { flags.insert(.write) }
            // Length (4), buffer ID (2) and flags (2) in one access.
            let word =
                UInt64(completion.length) | UInt64(completion.id) &<< 32 | UInt64(flags.rawValue) &<< 48
            try port.ringStore(word, .doubleword, at: place(position.index) &+ 8)
        }
        staged.removeAll(keepingCapacity: true)
        // The driver writes what it wants, then looks at the descriptor; here it is the other way round.
        smmud_fence_seq_cst()
        return try wantsInterrupt(used: count, port)
    }

    private func wantsInterrupt(used count: UInt16, _ port: GatedPort) throws(VirtqueueError) -> Bool {
        let event = try port.ringLoad(.word, at: driverEvent)
        switch event &>> 16 & 3 {
        // RING_EVENT_FLAGS_DISABLE.
        case 1: return false
        // RING_EVENT_FLAGS_DESC: once the descriptor at this place, this time round, is used.
        case 2 where hasEventIndex:
            var place = UInt16(truncatingIfNeeded: event & 0x7FFF)
            if (event &>> 15 & 1 != 0) != used.wrap { place &-= size }
            return SplitRing.passes(place, from: used.index &- count, to: used.index)
        default: return true
        }
    }

    // MARK: Being notified

    /// Asks the driver not to notify: RING_EVENT_FLAGS_DISABLE.
    func disarm(_ port: GatedPort) throws(VirtqueueError) {
        try port.ringStore(1 &<< 16, .word, at: deviceEvent)
    }

    /// Asks the driver to notify of the next chain.
    ///
    /// - Returns: Whether there is one already, for which it may not have notified.
    func arm(_ port: GatedPort) throws(VirtqueueError) -> Bool {
        let place = UInt64(next.index) | (next.wrap ? 1 &<< 15 : 0)
        try port.ringStore(hasEventIndex ? place | 2 &<< 16 : 0, .word, at: deviceEvent)
        smmud_fence_seq_cst()
        return try hasNext(port)
    }
}
