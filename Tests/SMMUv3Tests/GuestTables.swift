// Page tables as a driver builds them, for all three granules.

import Testing

/// The granules: log2 of the bytes, and how CD.TG0 and CD.TG1 say so.
struct TestGranule: Hashable, Sendable, CustomTestStringConvertible {
    let bits: UInt64
    let tg0: UInt64
    let tg1: UInt64
    /// TG of a range TLBI.
    let tlbi: UInt64
    /// TxSZ to start level, as the specification tabulates it.
    let startLevels: [(sizes: ClosedRange<UInt64>, level: Int)]

    static func == (left: Self, right: Self) -> Bool { left.bits == right.bits }
    func hash(into hasher: inout Hasher) { hasher.combine(bits) }
    var testDescription: String { "\(1 << (bits - 10)) KiB" }

    static let kib4 = TestGranule(
        bits: 12,
        tg0: 0b00,
        tg1: 0b10,
        tlbi: 1,
        startLevels: [(16...24, 0), (25...33, 1), (34...39, 2)]
    )
    static let kib16 = TestGranule(
        bits: 14,
        tg0: 0b10,
        tg1: 0b01,
        tlbi: 2,
        startLevels: [(16...16, 0), (17...27, 1), (28...38, 2), (39...39, 3)]
    )
    static let kib64 = TestGranule(
        bits: 16,
        tg0: 0b01,
        tg1: 0b11,
        tlbi: 3,
        startLevels: [(16...21, 1), (22...34, 2), (35...39, 3)]
    )
    static let all = [kib4, kib16, kib64]

    func startLevel(_ size: UInt64) -> Int {
        startLevels.first { $0.sizes.contains(size) }?.level ?? -9
    }

    /// log2 of what one descriptor at a level covers.
    func levelBits(_ level: Int) -> UInt64 {
        switch (bits, level) {
        case (12, 3): 12
        case (12, 2): 21
        case (12, 1): 30
        case (12, 0): 39
        case (14, 3): 14
        case (14, 2): 25
        case (14, 1): 36
        case (14, 0): 47
        case (16, 3): 16
        case (16, 2): 29
        default: 42
        }
    }

    /// Levels at which a leaf may be, without 52-bit addresses.
    var leafLevels: [Int] { bits == 12 ? [1, 2, 3] : [2, 3] }
    var pageBytes: UInt64 { 1 << bits }
}

/// One half's translation tables.
final class GuestTables {
    let guest: TestGuest
    let granule: TestGranule
    let size: UInt64
    let startLevel: Int
    let root: UInt64

    init(_ guest: TestGuest, _ granule: TestGranule = .kib4, size: UInt64 = 25) {
        self.guest = guest
        self.granule = granule
        self.size = size
        startLevel = granule.startLevel(size)
        let entries: UInt64 = 1 << (64 - size - granule.levelBits(startLevel))
        root = guest.allocate(max(64, entries * 8), alignment: max(64, entries * 8))
    }

    /// Where the descriptor of `address` at `level` is; makes the tables on the way.
    func entry(_ address: UInt64, level: Int = 3, tableFlags: UInt64 = 0) throws -> UInt64 {
        var table = root
        let inRange = address & ((1 << (64 - size)) - 1)
        for current in startLevel...3 {
            let low = granule.levelBits(current)
            let index =
                current == startLevel ? inRange >> low : (inRange >> low) & ((1 << (granule.bits - 3)) - 1)
            let entry = table + index * 8
            guard current < level else { return entry }
            if try guest.peek(entry) & 1 == 0 {
                try guest.poke(entry, guest.allocate(granule.pageBytes) | tableFlags | 0b11)
            }
            table = try guest.peek(entry) & 0xFFFF_FFFF_F000 & ~(granule.pageBytes - 1)
        }
        return table
    }

    /// Writes one leaf.
    func map(_ address: UInt64, to output: UInt64, level: Int = 3, _ flags: UInt64 = Leaf.readWrite) throws {
        try guest.poke(try entry(address, level: level), output | flags | (level == 3 ? 0b11 : 0b01))
    }

    func unmap(_ address: UInt64, level: Int = 3) throws {
        try guest.poke(try entry(address, level: level), 0)
    }
}

extension TestGuest {
    /// A stream with 4 KiB tables of 39-bit addresses, and nothing mapped.
    func attachTables(
        _ streamID: UInt64,
        asid: UInt64 = 1,
        _ granule: TestGranule = .kib4,
        size: UInt64 = 25,
        _ change: (inout CDWords) -> Void = { _ in }
    ) throws -> GuestTables {
        let tables = GuestTables(self, granule, size: size)
        var cd = CDWords(t0SZ: size, tg0: granule.tg0, asid: asid, ttb0: tables.root)
        change(&cd)
        try attach(streamID, cd)
        return tables
    }

    /// A page of memory that holds `value` in its first word.
    func page(holding value: UInt64, _ byteCount: UInt64 = 0x1000) throws -> UInt64 {
        let page = allocate(byteCount)
        try poke(page, value)
        return page
    }
}
