// What the server needs of a device and of the machine behind it.

package import DeviceModel
package import GuestMemory
package import VFIOUserProtocol

/// A device that is offered to vfio-user clients, one client at a time.
///
/// Called on the thread of the client's connection, which serves the client's commands in their order: a device
/// never waits here for DMA, a walk or the client. Writes that come by ioeventfd come from another thread.
package protocol VFIOUserDevice: AnyObject, Sendable {
    /// What clients are told of it; the same as long as it lives.
    var description: VFIOUserDeviceDescription { get }
    /// A client is there; its interrupts go by `interrupts` until ``clientDetached()``.
    func clientAttached(_ interrupts: any VFIOUserInterrupts)
    /// The client is gone: its memory has been given back before, its interrupts go nowhere.
    func clientDetached()
    /// Fills `buffer` from a region; the bytes are in it, and it can be read.
    func readRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        into buffer: UnsafeMutableRawBufferPointer
    )
        throws(VFIOUserError)
    /// Writes `buffer` to a region; the bytes are in it, and it can be written.
    func writeRegion(_ region: VFIOUserRegionIndex, at offset: UInt64, _ buffer: UnsafeRawBufferPointer)
        throws(VFIOUserError)
    /// The client bound vectors of this kind of interrupt, or let go of some or all of them.
    ///
    /// - Parameter boundVectors: How many there are up to the last that is bound; 0 where none is.
    func interruptsChanged(_ index: VFIOUserInterruptIndex, boundVectors: Int)
    /// DEVICE_RESET.
    func reset()
    /// Whether the device, before this write returns, waits for the end of its DMA, as a function-level reset does.
    ///
    /// DMA that waits for the client is then broken off first: the thread that is to wait is the one that would
    /// deliver the client's answer.
    func stopsDMA(byWriting buffer: UnsafeRawBufferPointer, to region: VFIOUserRegionIndex, at offset: UInt64)
        -> Bool
    /// The file that a region is mapped through, where its description says that it can be; it stays the device's.
    func regionDescriptor(_ region: VFIOUserRegionIndex) -> CInt?
}

extension VFIOUserDevice {
    package func stopsDMA(
        byWriting buffer: UnsafeRawBufferPointer,
        to region: VFIOUserRegionIndex,
        at offset: UInt64
    ) -> Bool { false }

    package func regionDescriptor(_ region: VFIOUserRegionIndex) -> CInt? { nil }
}

/// Where a device's interrupts go: the eventfds that a client bound.
///
/// Leaves: they take one lock, write an eventfd at most, and call nobody. Any thread may call them.
package protocol VFIOUserInterrupts: AnyObject, Sendable {
    /// Signals one vector of MSI, MSI-X, ERR or REQ; nothing happens where no eventfd is bound.
    func signal(_ index: VFIOUserInterruptIndex, vector: Int)
    /// Sets the level of INTx: the client is told when it rises, and again after each unmask while it is high.
    func setINTx(_ isAsserted: Bool)
}

/// What becomes of the memory that one client lends.
///
/// Made anew for each connection; ``unmapAll()`` comes before it is let go of.
package protocol VFIOUserMemory: AnyObject, Sendable {
    /// The client lends memory for `range` of its device's addresses.
    ///
    /// - Throws: `EEXIST` where something of it is mapped already (the very same again is no error), `ENOSPC`,
    ///   `EINVAL`.
    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError)
    /// Takes back what lies wholly in the range. When this returns no transaction uses it any more.
    ///
    /// - Throws: `ENOENT` where nothing is mapped there, `EINVAL` where a mapping would be split.
    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError)
    /// Takes everything back.
    func unmapAll()
}

/// One DMA_MAP.
package struct VFIOUserMemoryRange: Hashable, Sendable {
    package var address: UInt64
    package var byteCount: UInt64
    package var isReadable: Bool
    package var isWritable: Bool

    package init(address: UInt64, byteCount: UInt64, isReadable: Bool, isWritable: Bool) {
        self.address = address
        self.byteCount = byteCount
        self.isReadable = isReadable
        self.isWritable = isWritable
    }

    /// Whether all of it is among these bytes.
    func isInside(_ bytes: ClosedRange<UInt64>) -> Bool {
        // A range has a byte at least, and all of them below 2^64: the session sees to it.
        address >= bytes.lowerBound && address &+ (byteCount &- 1) <= bytes.upperBound
    }
}

/// Where the bytes of a DMA_MAP are.
package enum VFIOUserMemorySource: ~Copyable {
    /// In a file, from this offset on.
    case descriptor(OwnedDescriptor, offset: UInt64)
    /// With the client, which is asked by DMA_READ and DMA_WRITE; offsets are relative to the range.
    case messages(any RemoteMemory)
}
