// A ring of either format.

/// The device's place in a virtqueue.
protocol Ring {
    /// Takes the next chain; false where there is none.
    mutating func next(_ chain: inout DescriptorChain, _ port: GatedPort) throws(VirtqueueError) -> Bool
    /// Whether the driver has made a chain available.
    mutating func hasNext(_ port: GatedPort) throws(VirtqueueError) -> Bool
    /// Notes a chain as used; ``publish(_:)`` shows it to the driver.
    mutating func stage(_ chain: DescriptorChain, length: UInt32)
    /// Whether enough is staged for one publication.
    var isBatchFull: Bool { get }
    /// Shows the driver what is staged.
    ///
    /// - Returns: Whether the driver wants to be interrupted for it.
    mutating func publish(_ port: GatedPort) throws(VirtqueueError) -> Bool
    /// Asks the driver not to notify while the queue is being looked at anyway.
    func disarm(_ port: GatedPort) throws(VirtqueueError)
    /// Asks the driver to notify of the next chain.
    ///
    /// - Returns: Whether there is one already, for which it may not have notified.
    mutating func arm(_ port: GatedPort) throws(VirtqueueError) -> Bool
}

extension SplitRing: Ring {}
extension PackedRing: Ring {}
