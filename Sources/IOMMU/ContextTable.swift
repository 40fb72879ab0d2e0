// An endpoint's CD table in memory: one CD, a linear table, or two levels with leaves of 64 KiB.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec

/// One endpoint's context descriptors.
struct ContextTable {
    /// log2 of the CDs that a leaf, or the largest linear table, holds.
    static let split = 10

    let isTwoLevel: Bool
    /// STE.S1CDMax.
    let log2Count: Int
    private let memory: any PhysicalAccess
    private let frames: any PhysicalPageAllocator
    private let table: OwnedFrames
    private var leaves: [UInt32: OwnedFrames] = [:]

    /// Builds a table without a valid CD.
    ///
    /// - Parameters:
    ///   - substreamBits: 0 for a single CD.
    ///   - features: Whether two levels can be had.
    ///   - memory: Where it is written.
    ///   - frames: What it is made of.
    init(
        substreamBits: Int,
        features: SMMUFeatures,
        memory: any PhysicalAccess,
        frames: any PhysicalPageAllocator
    ) throws(SMMUDriverError) {
        log2Count = substreamBits
        isTwoLevel = substreamBits > Self.split && features.flags.contains(.twoLevelCDTable)
        self.memory = memory
        self.frames = frames
        let byteCount: UInt64 =
            isTwoLevel
            ? UInt64(L1CD.byteCount) << UInt64(substreamBits - Self.split)
            : UInt64(CD.byteCount) << UInt64(substreamBits)
        table = try Self.allocate(byteCount, frames)
    }

    /// STE.S1ContextPtr.
    var address: PhysicalAddress { table.address }

    /// Where the CD is; nil where its leaf was never built.
    func entry(for substream: SubstreamID) -> PhysicalAddress? {
        guard UInt64(substream.rawValue) < 1 << UInt64(log2Count) else { return nil }
        guard isTwoLevel else { return Self.entry(substream.rawValue, of: table) }
        return leaves[substream.rawValue >> UInt32(Self.split)].map {
            Self.entry(substream.rawValue & 0x3FF, of: $0)
        }
    }

    /// Builds the CD's leaf where it has none, and links it with one store.
    ///
    /// - Returns: Whether it did: then CFGI_CD with Leaf = 0 has to follow.
    mutating func makeRoom(for substream: SubstreamID) throws(SMMUDriverError) -> Bool {
        guard isTwoLevel, entry(for: substream) == nil else { return false }
        let index = substream.rawValue >> UInt32(Self.split)
        let leaf = try Self.allocate(UInt64(CD.byteCount) << UInt64(Self.split), frames)
        var descriptor = L1CD()
        descriptor.v = true
        descriptor.l2Ptr = leaf.address.rawValue
        do {
            let address = PhysicalAddress(table.address.rawValue &+ UInt64(index) &* UInt64(L1CD.byteCount))
            try memory.store(descriptor.word, .doubleword, at: address)
        } catch { throw .bus(error) }
        leaves[index] = leaf
        return true
    }

    /// Keeps the memory from being given back: hardware may still read it.
    func abandon() {
        table.abandon()
        for leaf in leaves.values { leaf.abandon() }
    }

    private static func entry(_ index: UInt32, of table: OwnedFrames) -> PhysicalAddress {
        PhysicalAddress(table.address.rawValue &+ UInt64(index) &* UInt64(CD.byteCount))
    }

    private static func allocate(_ byteCount: UInt64, _ frames: any PhysicalPageAllocator)
        throws(SMMUDriverError) -> OwnedFrames
    {
        do { return try OwnedFrames(frames, byteCount: byteCount, alignment: 64) } catch {
            throw .noMemory(purpose: "CD table", error)
        }
    }
}
