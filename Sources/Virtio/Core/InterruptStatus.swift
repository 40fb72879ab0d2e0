// Why a device interrupts, and how much of that its driver has seen.

/// The PCI transport's ISR status, and the MMIO transport's InterruptStatus and InterruptACK (VIRTIO 1.2, 4.1.4.5 and
/// 4.2.2).
///
/// Bit 0: used buffers; bit 1: configuration change.
struct InterruptStatus: Sendable {
    private(set) var bits: UInt8 = 0
    /// What the driver has read of them.
    private var seen: UInt8 = 0
    /// What of that has come once more since.
    private var again: UInt8 = 0

    mutating func raise(_ bits: UInt8) {
        again |= bits & seen
        self.bits |= bits
    }

    /// The driver looks, and leaves the bits as they are.
    mutating func look() -> UInt8 {
        (seen, again) = (bits, 0)
        return bits
    }

    /// The driver looks, and with that acknowledges what it sees.
    mutating func take() -> UInt8 {
        defer { self = InterruptStatus() }
        return bits
    }

    /// The driver acknowledges bits.
    ///
    /// What has come since it looked stays: it was not what the driver saw. A guest's write may be under way while the
    /// guest looks into its rings already (vfio-user posts it), and what the device puts there in between would be told
    /// to nobody.
    mutating func acknowledge(_ acknowledged: UInt8) {
        bits &= ~(acknowledged & ~again)
        seen &= ~acknowledged
        again &= ~acknowledged
    }
}
