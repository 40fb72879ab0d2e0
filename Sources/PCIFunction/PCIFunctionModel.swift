// What stands on either side of a function's configuration space: the device's model, and whoever carries it.

package import DeviceModel

/// What a function's registers do.
///
/// Accesses come from any thread, and never wait for DMA or a peer: a model has threads of its own for that.
package protocol PCIFunctionModel: AnyObject, Sendable {
    /// Reads `width` bytes at `offset` of a BAR, little-endian, in the low bits of the result.
    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64
    /// Writes the low `width` bytes of `value` at `offset` of a BAR.
    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    /// Puts the device into its state after power-on; when this returns, it issues no more DMA of before.
    ///
    /// Its function's configuration space is reset after it.
    func reset()
    /// Configuration space was written: bus mastering or the kind of interrupts may have changed.
    func configurationChanged()
    /// Software wrote to the MSI-X table: a vector may be masked no longer.
    func vectorsChanged()
    /// Up to 4 bytes of a capability that is live, at an offset in configuration space; nil is what is stored.
    func readLiveCapability(at offset: Int, byteCount: Int) -> UInt32?
    /// Software wrote to a live capability; what it wrote is stored already.
    func liveCapabilityWritten(at offset: Int, byteCount: Int)
}

extension PCIFunctionModel {
    package func configurationChanged() {}
    package func vectorsChanged() {}
    package func readLiveCapability(at offset: Int, byteCount: Int) -> UInt32? { nil }
    package func liveCapabilityWritten(at offset: Int, byteCount: Int) {}
}

/// How a function interrupts.
package enum PCIInterruptMode: Hashable, Sendable {
    /// By its pin.
    case intx
    /// By messages, of as many vectors as software enabled.
    case msi(vectorCount: Int)
    case msix
}

/// Whoever carries a function: a host bridge of the machine, or a VMM behind vfio-user.
package protocol PCIFunctionHost: AnyObject, Sendable {
    /// The pin's level changed.
    ///
    /// A leaf: it is called under the function's lock, and calls nobody who locks.
    func setINTx(_ isAsserted: Bool, of function: PCIFunction)
    /// A vector is signalled while the host has said how interrupts go
    /// (``PCIFunction/setInterruptModeOverride(_:)``).
    func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction)
    /// Command or a BAR changed.
    func configurationChanged(of function: PCIFunction)
}
