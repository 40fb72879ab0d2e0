// What a server is to do, and what it is to send.

/// A command that was checked against the device's description and is to be carried out.
package enum VFIOUserOperation: Equatable, Sendable {
    /// The client lends memory, through the message's one descriptor or, without it, by messages.
    case mapDMA(VFIOUserDMAMap, hasDescriptor: Bool)
    /// The client takes the memory at a range back: no access to it may come after the reply.
    case unmapDMA(VFIOUserDMAUnmap)
    /// The client takes all its memory back.
    case unmapAllDMA(VFIOUserDMAUnmap)
    case setInterrupts(VFIOUserInterruptChange)
    /// The bytes are in the region, and it can be read.
    case readRegion(VFIOUserRegionAccess)
    /// The bytes are in the region, it can be written, and as many as `count` says are here.
    case writeRegion(VFIOUserRegionAccess, [UInt8])
    /// Each as a ``writeRegion(_:_:)``; one that is not permitted, and all after it, are left out.
    case writeRegions([VFIOUserSmallWrite])
    case reset
}

/// A change of where interrupts go, or of whether they do; the vectors exist.
package enum VFIOUserInterruptChange: Equatable, Sendable {
    package enum Action: Hashable, Sendable {
        case mask
        case unmask
        case trigger
    }

    /// Lets go of all descriptors of this kind of interrupt.
    case disable(VFIOUserInterruptIndex)
    /// Does this to these vectors now.
    case perform(Action, VFIOUserInterruptIndex, vectors: [Int])
    /// Binds the message's descriptors to these vectors, in this order, instead of what was bound.
    case bind(Action, VFIOUserInterruptIndex, vectors: Range<Int>)
    /// Lets go of these vectors' descriptors.
    case unbind(Action, VFIOUserInterruptIndex, vectors: Range<Int>)
}

/// Descriptors of the device that go along with a reply.
package enum VFIOUserAttachment: Equatable, Sendable {
    case none
    /// The one that a region is mapped through.
    case region(Int)
    /// The first `count` of a region's ioeventfds.
    case ioEvents(region: Int, count: Int)
    /// The client's end of the socket for the server's commands.
    case twinSocket
}

/// What follows from bytes that came in.
package enum VFIOUserServerAction: Equatable, Sendable {
    /// Nothing: go on reading.
    case more
    /// Send this, and go on.
    case send([UInt8], attaching: VFIOUserAttachment)
    /// Carry this out; then, where ``VFIOUserHeader/wantsReply``, send the header's success or failure.
    case perform(VFIOUserOperation, VFIOUserHeader)
    /// The client's answer to a command of ours, for ``VFIOUserServerCommands``.
    case deliver(VFIOUserHeader, payload: [UInt8])
    /// Send this, if anything, and end the connection.
    case close([UInt8]?, VFIOUserViolation)
}

/// What a server takes and offers.
package struct VFIOUserServerLimits: Equatable, Sendable {
    /// How many descriptors it can receive with one message.
    package var descriptorCountMax = 16
    /// How many bytes of data one read or write carries at most.
    package var dataByteCountMax = 1 << 20
    /// How many DMA_MAPs may stand at a time.
    package var mappingCountMax = 1024
    /// How many bytes one DMA_MAP takes at most.
    package var mappingByteCountMax: UInt64 = 8 << 40
    /// The page sizes of DMA_MAP, each a bit.
    package var pageSizes: UInt64 = 4096
    /// Whether clients may send REGION_WRITE_MULTI.
    package var takesMultipleWrites = true
    /// Whether to give clients that can a socket of its own for the server's commands.
    package var offersTwinSocket = true

    package init() {}
}
