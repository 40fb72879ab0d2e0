// What a table walk does to memory: one aligned word after the other, mostly from the same RAM.

public import CLinux

/// Reads the aligned 64-bit words of one table walk.
///
/// It remembers the RAM that the last word was in, so a word that follows takes a comparison and a load. It is of
/// use to those alone who may use ``SystemBus/loadRAM64(at:)``, and no longer than one look-up: it holds on to the
/// map as it was when it was made.
@frozen public struct DescriptorReader {
    /// The first address of the RAM that is remembered, and how far into it the last whole word is.
    @usableFromInline var first: UInt64
    @usableFromInline var lastOffset: UInt64
    @usableFromInline var host: UnsafeRawPointer
    @usableFromInline var lostFlag: UnsafePointer<UInt32>
    /// A ``BusSnapshot``.
    @usableFromInline let map: UnsafeRawPointer

    init(_ snapshot: UnsafeMutablePointer<BusSnapshot>) {
        map = UnsafeRawPointer(snapshot)
        // Nothing is remembered: no offset from here is within RAM.
        first = .max
        lastOffset = 0
        host = map
        lostFlag = map.assumingMemoryBound(to: UInt32.self)
        if let record = snapshot.pointee.ram.baseAddress, !snapshot.pointee.ram.isEmpty {
            remember(record)
        }
    }

    /// Reads a word, single-copy atomic, with acquire ordering.
    ///
    /// - Parameter address: A multiple of 8.
    /// - Returns: nil where ``SystemBus/loadRAM64(at:)`` has to be asked: it fails there, or the memory is a peer's.
    @inline(__always)  // Once for each level of every walk.
    @inlinable public mutating func load(_ address: UInt64) -> UInt64? {
        if address &- first > lastOffset {
            guard find(address) else { return nil }
        }
        let value = smmud_load_u64(host + Int(truncatingIfNeeded: address &- first))
        return smmud_load_u32(lostFlag) == 0 ? value : nil
    }

    /// Reads eight consecutive words, each as ``load(_:)`` does, in no particular order.
    ///
    /// - Parameter address: A multiple of 8.
    /// - Returns: nil where ``SystemBus/loadRAM64x8(at:)`` has to be asked.
    @inline(__always)  // For each structure of a look-up without a cache.
    @inlinable public mutating func load8(_ address: UInt64) -> SIMD8<UInt64>? {
        if address &- first > lastOffset {
            guard find(address) else { return nil }
        }
        let offset = address &- first
        // All eight in the same RAM.
        guard lastOffset &- offset >= 56 else { return nil }
        let place = host + Int(truncatingIfNeeded: offset)
        let words = SIMD8(
            smmud_load_u64(place),
            smmud_load_u64(place + 8),
            smmud_load_u64(place + 16),
            smmud_load_u64(place + 24),
            smmud_load_u64(place + 32),
            smmud_load_u64(place + 40),
            smmud_load_u64(place + 48),
            smmud_load_u64(place + 56)
        )
        return smmud_load_u32(lostFlag) == 0 ? words : nil
    }

    @inline(never)  // Keeps the walk small.
    @usableFromInline mutating func find(_ address: UInt64) -> Bool {
        let snapshot = map.assumingMemoryBound(to: BusSnapshot.self)
        guard let record = snapshot.pointee.ram(containing: address) else { return false }
        return remember(record) && address &- first <= lastOffset
    }

    /// - Returns: false where its words are not all aligned in the host.
    @discardableResult
    private mutating func remember(_ record: UnsafeMutablePointer<RAMRecord>) -> Bool {
        let range = record.pointee
        guard range.last &- range.first >= 7, range.first & 7 == 0, UInt(bitPattern: range.host) & 7 == 0
        else { return false }
        first = range.first
        lastOffset = range.last &- range.first &- 7
        host = UnsafeRawPointer(range.host)
        lostFlag = range.lostFlag
        return true
    }
}

extension SystemBus {
    /// A reader of one walk's descriptors.
    public func makeDescriptorReader() -> DescriptorReader { DescriptorReader(snapshot) }
}
