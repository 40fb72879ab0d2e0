// Random translation tables: mostly sound, with every kind of flaw among them.

import SeededRandomness
import Testing

/// Memory as one stage's tables see it.
protocol TableMemory: AnyObject {
    func peek(_ address: UInt64) throws -> UInt64
    func poke(_ address: UInt64, _ word: UInt64) throws
    /// A table of `byteCount` bytes, aligned to them.
    func makeTable(_ byteCount: UInt64, _ random: inout SplitMix) throws -> UInt64
}

/// Tables at physical addresses.
final class PhysicalTables: TableMemory {
    let guest: TestGuest
    init(_ guest: TestGuest) { self.guest = guest }
    func peek(_ address: UInt64) throws -> UInt64 { try guest.peek(address) }
    func poke(_ address: UInt64, _ word: UInt64) throws { try guest.poke(address, word) }
    func makeTable(_ byteCount: UInt64, _ random: inout SplitMix) throws -> UInt64 {
        guest.allocate(max(64, byteCount))
    }
}

/// Tables at IPAs, whose pages stage 2 scatters.
final class IntermediateTables: TableMemory {
    let guest: TestGuest
    let stage2: RandomStage
    /// How often one page in a hundred is flawed in stage 2.
    let flaws: UInt64
    private var pages: [UInt64: UInt64] = [:]

    init(_ guest: TestGuest, _ stage2: RandomStage, flaws: UInt64) {
        self.guest = guest
        self.stage2 = stage2
        self.flaws = flaws
    }

    private func physical(_ address: UInt64) throws -> UInt64 {
        let mask: UInt64 = (1 << UInt64(stage2.plain.granule)) - 1
        // Where a descriptor points anywhere there is nothing to build on.
        guard let page = pages[address & ~mask] else { throw NoTable() }
        return page | address & mask
    }
    func peek(_ address: UInt64) throws -> UInt64 { try guest.peek(try physical(address)) }
    func poke(_ address: UInt64, _ word: UInt64) throws { try guest.poke(try physical(address), word) }

    func makeTable(_ byteCount: UInt64, _ random: inout SplitMix) throws -> UInt64 {
        let page: UInt64 = 1 << UInt64(stage2.plain.granule)
        let size = max(64, byteCount)
        for _ in 0..<1000 {
            let range = min(stage2.plain.inputBits, 40)
            let base = random.next() & ((1 << UInt64(range)) - 1) & ~(size - 1)
            let parts = Array(stride(from: base & ~(page - 1), to: base + size, by: Int(page)))
            // Only where stage 2 maps nothing yet: what is there may lead anywhere.
            guard try parts.allSatisfy({ try stage2.isUnmapped($0) }) else { continue }
            for part in parts {
                let physical = guest.allocate(page)
                let isFlawed = random.next() % 100 < flaws
                let flags = isFlawed ? stage2.randomFlags(&random) : Leaf2.readWrite
                // Of the flawed ones some are where no RAM is.
                let shown: UInt64 = isFlawed && random.next() % 3 == 0 ? 0x10_0000_0000 : physical
                try stage2.mapPage(part, to: shown, flags, &random)
                pages[part] = physical
            }
            return base
        }
        throw NoRoom()
    }

    struct NoRoom: Error {}
    struct NoTable: Error {}
}

/// One stage's random tables.
final class RandomStage {
    var plain: PlainStage
    let memory: any TableMemory
    let isStage2: Bool
    /// Outputs for leaves.
    let output: (inout SplitMix) -> UInt64

    init(
        _ plain: PlainStage,
        _ memory: any TableMemory,
        isStage2: Bool,
        _ random: inout SplitMix,
        output: @escaping (inout SplitMix) -> UInt64
    ) throws {
        self.plain = plain
        self.memory = memory
        self.isStage2 = isStage2
        self.output = output
        let first = plain.inputBits - Self.shift(plain, plain.startLevel)
        self.plain.base = try memory.makeTable(8 << UInt64(first), &random)
    }

    static func shift(_ plain: PlainStage, _ level: Int) -> Int {
        plain.granule + (plain.granule - 3) * (3 - level)
    }

    func shift(_ level: Int) -> Int { Self.shift(plain, level) }

    private func load(_ entry: UInt64) throws -> UInt64 {
        let word = try memory.peek(entry)
        return plain.isBigEndian ? word.byteSwapped : word
    }

    func store(_ entry: UInt64, _ word: UInt64) throws {
        try memory.poke(entry, plain.isBigEndian ? word.byteSwapped : word)
    }

    private func encode(_ address: UInt64) -> UInt64 {
        if plain.granule == 16, plain.isLarge {
            return address & 0xFFFF_FFFF_0000 | (address >> 48 & 0xF) << 12
        }
        if plain.granule < 16, plain.ds { return address & 0x3_FFFF_FFFF_F000 | (address >> 50 & 3) << 8 }
        return address & 0xFFFF_FFFF_F000
    }

    private func decode(_ word: UInt64) -> UInt64 {
        let page: UInt64 = (1 << UInt64(plain.granule)) - 1
        if plain.granule == 16 {
            return word & 0xFFFF_FFFF_0000 | (plain.isLarge ? (word >> 12 & 0xF) << 48 : 0)
        }
        guard plain.ds else { return word & 0xFFFF_FFFF_F000 & ~page }
        return word & 0x3_FFFF_FFFF_F000 & ~page | (word >> 8 & 3) << 50
    }

    private func entry(_ table: UInt64, _ address: UInt64, _ level: Int) -> UInt64 {
        let bits = level == plain.startLevel ? plain.inputBits - shift(level) : plain.granule - 3
        return table + ((address >> UInt64(shift(level))) & ((1 << UInt64(bits)) - 1)) * 8
    }

    /// The entries on the way to an address that exist, from the first table on.
    func path(_ address: UInt64) throws -> [(level: Int, entry: UInt64, word: UInt64)] {
        var result: [(level: Int, entry: UInt64, word: UInt64)] = []
        var table = plain.base
        for level in plain.startLevel...3 {
            let entry = entry(table, address, level)
            guard let word = try? load(entry) else { return result }
            result.append((level, entry, word))
            guard level < 3, word & 3 == 3 else { return result }
            table = decode(word)
        }
        return result
    }

    func isUnmapped(_ address: UInt64) throws -> Bool {
        try path(address).last.map { $0.word & 1 == 0 } ?? false
    }

    /// Maps one page, making the tables that are missing.
    func mapPage(_ address: UInt64, to output: UInt64, _ flags: UInt64, _ random: inout SplitMix) throws {
        var table = plain.base
        for level in plain.startLevel..<3 {
            let entry = entry(table, address, level)
            if try load(entry) & 1 == 0 {
                let next = try memory.makeTable(1 << UInt64(plain.granule), &random)
                try store(entry, encode(next) | 3)
            }
            table = decode(try load(entry))
        }
        try store(entry(table, address, 3), encode(output) | flags | 3)
    }

    func randomFlags(_ random: inout SplitMix) -> UInt64 {
        // Everything below bit 12 but the type, above bit 51; SH is address with DS.
        var flags = random.next() & 0xFFF8_0000_0000_0CFC
        if !(plain.granule < 16 && plain.ds) { flags |= random.next() & 0x300 }
        if random.next() % 10 > 0 { flags |= 1 << 10 }
        if random.next() % 3 > 0 { flags |= 1 << 6 }
        if isStage2, random.next() % 3 > 0 { flags |= 0b1111 << 2 }
        return flags
    }

    /// A descriptor for a level: a leaf, a table that exists from now on, or a flaw.
    func randomDescriptor(_ level: Int, _ random: inout SplitMix) throws -> UInt64 {
        let dice = random.next() % 100
        if dice < 4 { return random.next() & ~1 }
        if dice < 6 {
            let word = random.next() | 1
            // Of 48 random bits few are an address of 40: some are, so that there is a walk to go on.
            return plain.outputBits == 40 && word >> 63 == 1 ? word & ~0xFF00_0000_0000 : word
        }
        if level < 3, dice < 70 {
            let next = try memory.makeTable(1 << UInt64(plain.granule), &random)
            let hierarchical = !isStage2 && random.next() % 3 == 0 ? random.next() << 59 & ~(1 << 63) : 0
            return encode(next) | hierarchical | random.next() & 0x07F0_0000_0000_0000 | 3
        }
        let size: UInt64 = 1 << UInt64(shift(level))
        var output = output(&random) & ~(size - 1)
        if random.next() % 40 == 0 { output |= 1 << (random.next() % 52) }
        return encode(output) | randomFlags(&random) | (level == 3 ? 3 : 1)
    }

    /// Fills what is empty on the way to an address.
    func fill(_ address: UInt64, _ random: inout SplitMix) throws {
        while let last = try path(address).last, last.word == 0 {
            let word = try randomDescriptor(last.level, &random)
            try store(last.entry, word)
            if word & 3 != 3 || last.level == 3 { return }
        }
    }
}
