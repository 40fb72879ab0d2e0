// What a table walk does to memory: one aligned word after the other, mostly from the same RAM.

public import CLinux

/// RAM whose aligned 64-bit words can be read one by one.
@frozen @usableFromInline struct DescriptorSpan {
    /// The first address, and how far into it the last whole word is.
    @usableFromInline var first: UInt64
    @usableFromInline var lastOffset: UInt64
    @usableFromInline var host: UnsafeRawPointer
    @usableFromInline var lostFlag: UnsafePointer<UInt32>

    /// All of a record's RAM; nil where its words are not all aligned in the host.
    init?(_ record: RAMRecord) {
        guard record.last &- record.first >= 7, record.first & 7 == 0, UInt(bitPattern: record.host) & 7 == 0
        else { return nil }
        first = record.first
        lastOffset = record.last &- record.first &- 7
        host = UnsafeRawPointer(record.host)
        lostFlag = record.lostFlag
    }

    /// No address: the one offset that it has is that of no multiple of 8.
    init() {
        first = .max
        lastOffset = 0
        host = Self.nothing.host
        lostFlag = Self.nothing.lostFlag
    }

    /// A flag that is never set, and memory that is never read; it stays for ever.
    // SAFETY: nobody writes what the pointers point at.
    private nonisolated(unsafe) static let nothing:
        (host: UnsafeRawPointer, lostFlag: UnsafePointer<UInt32>) = {
            let word = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
            word.initialize(to: 0)
            return (UnsafeRawPointer(word), UnsafePointer(word))
        }()
}

/// Reads the aligned 64-bit words of one table walk.
///
/// It remembers the RAM that the last word was in, so a word that follows takes a comparison and a load. It is of
/// use to those alone who may use ``SystemBus/loadRAM64(at:)``, and no longer than one look-up: it holds on to the
/// map as it was when it was made.
@frozen public struct DescriptorReader {
    @usableFromInline var span: DescriptorSpan
    @usableFromInline let map: UnsafeMutablePointer<BusSnapshot>

    @inline(__always)  // Once for each look-up that misses.
    @inlinable init(_ snapshot: UnsafeMutablePointer<BusSnapshot>) {
        map = snapshot
        span = snapshot.pointee.firstSpan
    }

    /// Reads a word, single-copy atomic, with acquire ordering.
    ///
    /// - Parameter address: A multiple of 8.
    /// - Returns: nil where ``SystemBus/loadRAM64(at:)`` has to be asked: it fails there, or the memory is a peer's.
    @inlinable public mutating func load(_ address: UInt64) -> UInt64? {
        guard let value = word(at: address), isIntact else { return nil }
        return value
    }

    /// Reads a word as ``load(_:)`` does, but not yet for use: where ``isIntact`` says no later on, it may have been
    /// lost before it was read.
    ///
    /// So a walk of many words asks once, at its end.
    ///
    /// - Parameter address: A multiple of 8.
    /// - Returns: nil where ``SystemBus/loadRAM64(at:)`` has to be asked.
    @inline(__always)  // Once for each level of every walk.
    @inlinable public mutating func word(at address: UInt64) -> UInt64? { word(in: address, at: 0) }

    /// Reads a word of a table, as ``word(at:)`` does.
    ///
    /// - Parameters:
    ///   - table: A multiple of 8, and the last to be known: as little as possible is left to do with it.
    ///   - offset: Likewise a multiple of 8.
    @inline(__always)  // Once for each level of every walk.
    @inlinable public mutating func word(in table: UInt64, at offset: UInt64) -> UInt64? {
        let place = table &+ (offset &- span.first)
        guard place > span.lastOffset else {
            return smmud_load_u64(span.host + Int(truncatingIfNeeded: place))
        }
        guard find(table &+ offset) else { return nil }
        return smmud_load_u64(span.host + Int(truncatingIfNeeded: table &+ offset &- span.first))
    }

    /// Reads a word as ``word(in:at:)`` does, if it is in the RAM that was read last.
    ///
    /// Changes nothing: of a copy, all of this stays in registers.
    @inline(__always)  // Once for each level of every walk in two stages.
    @inlinable public func wordNearby(in table: UInt64, at offset: UInt64) -> UInt64? {
        let place = table &+ (offset &- span.first)
        guard place <= span.lastOffset else { return nil }
        return smmud_load_u64(span.host + Int(truncatingIfNeeded: place))
    }

    /// Whether the memory of every word that was read so far was there.
    @inline(__always)  // Once for each walk.
    @inlinable public var isIntact: Bool {
        // That of other RAM was asked before this was found.
        smmud_load_u32(span.lostFlag) == 0
    }

    /// Whether eight consecutive words are these, each read as ``load(_:)`` does, in no particular order.
    ///
    /// - Parameter address: A multiple of 8.
    /// - Returns: false, too, where ``SystemBus/loadRAM64x8(at:)`` has to be asked.
    @inline(__always)  // For each structure of a look-up without a cache.
    @inlinable public mutating func isEqual(_ address: UInt64, to words: UnsafePointer<UInt64>) -> Bool {
        if address &- span.first > span.lastOffset {
            guard find(address) else { return false }
        }
        let offset = address &- span.first
        // All eight in the same RAM.
        guard span.lastOffset &- offset >= 56 else { return false }
        let place = span.host + Int(truncatingIfNeeded: offset)
        return smmud_load_u64(place) == words[0] && smmud_load_u64(place + 8) == words[1]
            && smmud_load_u64(place + 16) == words[2] && smmud_load_u64(place + 24) == words[3]
            && smmud_load_u64(place + 32) == words[4] && smmud_load_u64(place + 40) == words[5]
            && smmud_load_u64(place + 48) == words[6] && smmud_load_u64(place + 56) == words[7]
            && isIntact
    }

    /// Whether the bytes from an address up to `last` bytes further are in the RAM that was read last; false is no
    /// answer.
    @inline(__always)  // Once for each walk.
    @inlinable public func isInSameRAM(_ address: UInt64, _ last: UInt64) -> Bool {
        let offset = address &- span.first
        return offset <= span.lastOffset && last <= span.lastOffset &- offset
    }

    /// Finds the RAM of another address.
    ///
    /// - Returns: false where there is none, and where the RAM before it has been lost.
    @inline(never)  // Keeps the walk small.
    @usableFromInline mutating func find(_ address: UInt64) -> Bool {
        guard isIntact, let record = map.pointee.ram(containing: address),
            let found = DescriptorSpan(record.pointee), address &- found.first <= found.lastOffset
        else { return false }
        span = found
        return true
    }
}

extension BusView {
    /// A reader of one walk's descriptors.
    @inline(__always)  // Once for each look-up that misses.
    @inlinable public func makeDescriptorReader() -> DescriptorReader { DescriptorReader(snapshot) }
}

extension SystemBus {
    /// A reader of one walk's descriptors.
    public func makeDescriptorReader() -> DescriptorReader { view.makeDescriptorReader() }
}
