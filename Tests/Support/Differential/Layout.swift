// The machine that both sides are: where its RAM, its SMMU and its requesters are.

/// Physical addresses and StreamIDs that QEMU's `virt` machine and the model share.
package enum Layout {
    /// The registers of the SMMU of QEMU's `virt`.
    package static let registers: UInt64 = 0x0905_0000
    package static let ram: UInt64 = 0x4000_0000
    package static let ramBytes: UInt64 = 16 << 20
    static let ramEnd = ram + ramBytes

    static let commandQueue = ram
    static let log2Commands: UInt64 = 7
    static let eventQueue = ram + 0x1000
    static let log2Events: UInt64 = 7
    /// Where QEMU's devices put what they read, when a case is over.
    static let scratch = ram + 0x8000
    /// A linear stream table, or a first level, at its largest.
    static let streamTable = ram + 0x4_0000
    static let streamTableEnd = ram + 0x8_0000
    /// What the generator allocates: tables and CDs.
    static let tables = ram + 0x10_0000
    /// Where DMA goes.
    ///
    /// Every 4-byte word there holds its own address.
    static let data = ram + 0x80_0000
    /// Neither RAM nor a device, in either machine.
    static let nowhere: UInt64 = 0x1_0000_0000

    /// The StreamIDs of the requesters: two on the first bus, one on a bus behind a root port.
    package static let streams: [UInt32] = [0x08, 0xF8, 0x500]

    /// How many DMAs a case can have: each has places of its own in a device's buffer and in a page.
    static let dmaCount = 96

    /// What DMA number `index` writes.
    static func writtenWord(_ index: Int) -> UInt32 {
        0xE000_0000 | UInt32(truncatingIfNeeded: index) << 8 | 0x5A
    }
}
