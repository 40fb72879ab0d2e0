// The MSI-X table and its pending bits, as they stand in BARs.

import DeviceModel

/// One message: what is written where.
struct PCIMessage: Equatable, Sendable {
    var address: UInt64
    var data: UInt32
}

/// An MSI-X table (PCI Express Base Specification, MSI-X Capability and Table Structure).
struct MSIXTable: Sendable {
    /// Address low, address high, data, vector control: 4 words a vector.
    ///
    /// Masked at reset.
    private var words: [UInt32]
    private var pending: [UInt64]
    let layout: PCIMSIXLayout

    static let entryByteCount = 16

    init(_ layout: PCIMSIXLayout) {
        self.layout = layout
        words = Self.resetWords(layout.vectorCount)
        pending = Array(repeating: 0, count: (layout.vectorCount + 63) / 64)
    }

    private static func resetWords(_ vectorCount: Int) -> [UInt32] {
        var words = [UInt32](repeating: 0, count: vectorCount * 4)
        for vector in 0..<vectorCount { words[vector * 4 + 3] = 1 }
        return words
    }

    /// Reads 4 or 8 bytes, which is what the specification has software use.
    func readTable(at offset: Int, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try Self.check(offset, width)
        let low = UInt64(words[offset / 4])
        guard width == .doubleword else { return low }
        return low | UInt64(words[offset / 4 + 1]) << 32
    }

    /// Writes 4 or 8 bytes.
    mutating func writeTable(_ value: UInt64, at offset: Int, width: AccessWidth) throws(RegisterAccessError)
    {
        try Self.check(offset, width)
        set(UInt32(truncatingIfNeeded: value), offset / 4)
        if width == .doubleword { set(UInt32(truncatingIfNeeded: value >> 32), offset / 4 + 1) }
    }

    func readPending(at offset: Int, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try Self.check(offset, width)
        return (pending[offset / 8] >> UInt64(offset % 8 * 8)) & width.allOnes
    }

    private static func check(_ offset: Int, _ width: AccessWidth) throws(RegisterAccessError) {
        guard width == .word || width == .doubleword else { throw .unsupportedWidth }
        guard offset % width.rawValue == 0 else { throw .misaligned }
    }

    private mutating func set(_ value: UInt32, _ index: Int) {
        switch index % 4 {
        case 0: words[index] = value & ~3
        case 3: words[index] = value & 1
        default: words[index] = value
        }
    }

    // MARK: Messages

    func isMasked(_ vector: Int) -> Bool { words[vector * 4 + 3] & 1 != 0 }

    func message(_ vector: Int) -> PCIMessage {
        PCIMessage(
            address: UInt64(words[vector * 4]) | UInt64(words[vector * 4 + 1]) << 32,
            data: words[vector * 4 + 2]
        )
    }

    mutating func setPending(_ vector: Int) { pending[vector / 64] |= 1 << UInt64(vector % 64) }

    /// The vectors that are pending and no longer masked; they are pending no more.
    mutating func takeUnmaskedPending() -> [Int] {
        var vectors: [Int] = []
        for index in pending.indices {
            var rest = pending[index]
            while rest != 0 {
                let bit = rest.trailingZeroBitCount
                rest &= rest &- 1
                guard !isMasked(index * 64 + bit) else { continue }
                pending[index] &= ~(1 << UInt64(bit))
                vectors.append(index * 64 + bit)
            }
        }
        return vectors
    }

    mutating func reset() { self = MSIXTable(layout) }
}

/// Where in a BAR the structures of MSI-X stand.
///
/// Known without the function's lock: an access to a register of the model does not take it.
extension PCIMSIXLayout {
    /// The offset in the table, where a BAR's offset is in it.
    func tableOffset(_ bar: Int, _ offset: UInt64) -> Int? {
        Self.place(bar, offset, tableBAR, tableOffset, vectorCount * MSIXTable.entryByteCount)
    }

    /// The offset in the pending bits, where a BAR's offset is in them.
    func pendingOffset(_ bar: Int, _ offset: UInt64) -> Int? {
        Self.place(bar, offset, pendingBAR, pendingOffset, (vectorCount + 63) / 64 * 8)
    }

    private static func place(_ bar: Int, _ offset: UInt64, _ home: Int, _ start: UInt32, _ count: Int)
        -> Int?
    {
        guard bar == home, offset >= UInt64(start), offset &- UInt64(start) < UInt64(count) else {
            return nil
        }
        return Int(offset &- UInt64(start))
    }
}
