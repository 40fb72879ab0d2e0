// The stream table in memory: linear, or of two levels whose second one is built on demand.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec

/// The stream table and the memory that it takes.
struct StreamTable {
    /// log2 of the streams that one level-2 table holds.
    static let split = 8
    /// log2 of the most level-1 descriptors: 1 MiB of them.
    private static let levelOneLimit = 17

    let isTwoLevel: Bool
    /// How many StreamID bits the table resolves: STRTAB_BASE_CFG.LOG2SIZE.
    let log2Size: Int
    /// What a stream's entry is before an endpoint has it.
    private let preset: STE
    private let memory: any PhysicalAccess
    private let frames: any PhysicalPageAllocator
    private let table: OwnedFrames
    /// Level-2 tables by their index in level 1.
    private var leaves: [UInt32: OwnedFrames] = [:]

    /// Builds a table in which every stream's entry is `preset`.
    init(
        _ features: SMMUFeatures,
        preset: STE,
        memory: any PhysicalAccess,
        frames: any PhysicalPageAllocator,
        log: DriverLog
    ) throws(SMMUDriverError) {
        let bits = features.streamIDBits
        isTwoLevel = features.flags.contains(.twoLevelStreamTable)
        self.preset = preset
        self.memory = memory
        self.frames = frames
        if isTwoLevel {
            let levelOne = min(Self.levelOneLimit, bits - Self.split)
            log2Size = levelOne + Self.split
            if log2Size < bits {
                log.note(.warning, "2-level strtab only covers \(log2Size)/\(bits) bits of SID")
            }
            table = try Self.allocate(8 << UInt64(levelOne), "l1 stream table", frames)
        } else {
            log2Size = bits
            table = try Self.allocate(UInt64(STE.byteCount) << UInt64(bits), "linear stream table", frames)
            try fill(table, count: 1 << UInt64(bits))
        }
    }

    /// The values of the registers that locate the table.
    var registers: (base: StrtabBase, configuration: StrtabBaseCfg) {
        var base = StrtabBase()
        base.addr = table.address.rawValue
        base.ra = true
        var configuration = StrtabBaseCfg()
        configuration.log2size = UInt8(log2Size)
        if isTwoLevel {
            configuration.fmt = 1
            configuration.split = UInt8(Self.split)
        }
        return (base, configuration)
    }

    /// How many streams there can be.
    var count: UInt64 { 1 << UInt64(log2Size) }

    /// The address of the stream's entry, with its level-2 table built if it is the first one there.
    mutating func entry(for stream: StreamID) throws(SMMUDriverError) -> PhysicalAddress {
        guard UInt64(stream.rawValue) < count else { throw .streamOutOfRange(stream, count: count) }
        guard isTwoLevel else { return Self.entry(UInt64(stream.rawValue), of: table) }
        let index = stream.rawValue >> UInt32(Self.split)
        let leaf: OwnedFrames
        if let existing = leaves[index] { leaf = existing } else { leaf = try makeLeaf(index) }
        return Self.entry(UInt64(stream.rawValue) & 0xFF, of: leaf)
    }

    private static func entry(_ index: UInt64, of table: OwnedFrames) -> PhysicalAddress {
        PhysicalAddress(table.address.rawValue &+ index &* UInt64(STE.byteCount))
    }

    /// Builds a level-2 table and then links it with one store.
    private mutating func makeLeaf(_ index: UInt32) throws(SMMUDriverError) -> OwnedFrames {
        let count: UInt64 = 1 << UInt64(Self.split)
        let leaf = try Self.allocate(UInt64(STE.byteCount) * count, "l2 stream table", frames)
        try fill(leaf, count: count)
        var descriptor = L1STD()
        descriptor.span = UInt8(Self.split + 1)
        descriptor.l2Ptr = leaf.address.rawValue
        do {
            let address = PhysicalAddress(table.address.rawValue &+ UInt64(index) &* UInt64(L1STD.byteCount))
            try memory.store(descriptor.word, .doubleword, at: address)
        } catch { throw .bus(error) }
        leaves[index] = leaf
        return leaf
    }

    /// Keeps the memory from being given back: hardware may still read it.
    func abandon() {
        table.abandon()
        for leaf in leaves.values { leaf.abandon() }
    }

    private static func allocate(_ byteCount: UInt64, _ purpose: String, _ frames: any PhysicalPageAllocator)
        throws(SMMUDriverError) -> OwnedFrames
    {
        do { return try OwnedFrames(frames, byteCount: byteCount, alignment: 64) } catch {
            throw .noMemory(purpose: purpose, error)
        }
    }

    /// Writes the preset to entries that no SMMU reads yet.
    private func fill(_ table: OwnedFrames, count: UInt64) throws(SMMUDriverError) {
        var bytes: [UInt8] = []
        for index in 0..<8 { bytes += littleEndianBytes(preset.words[index]) }
        let chunkCount = min(count, 256)
        let chunk = [UInt8]([[UInt8]](repeating: bytes, count: Int(chunkCount)).joined())
        for first in stride(from: 0, to: count, by: Int(chunkCount)) {
            do { try memory.write(chunk, at: Self.entry(first, of: table)) } catch { throw .bus(error) }
        }
    }
}

/// The word's bytes, the lowest first.
func littleEndianBytes(_ word: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: word &>> UInt64($0 * 8)) }
}
