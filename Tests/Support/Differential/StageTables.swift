// Random translation tables of one stage: mostly sound, flawed where that is asked for.

import SeededRandomness

/// How one stage reads its tables.
struct StageShape: Hashable {
    /// log2 of the granule: 12, 14, 16.
    var granule: Int
    /// 64 - TxSZ.
    var inputBits: Int
    var startLevel: Int
    /// Effective IPS or S2PS.
    var outputBits: Int

    func shift(_ level: Int) -> Int { granule + (granule - 3) * (3 - level) }
    /// Bits of the first level's index.
    var startBits: Int { inputBits - shift(startLevel) }
    var startBytes: UInt64 { 8 << UInt64(startBits) }
    var pageBytes: UInt64 { 1 << UInt64(granule) }
    /// Stage 2: more than one table at the first level.
    var isConcatenated: Bool { startBits > granule - 3 }

    /// The start level of stage 1.
    static func stage1(granule: Int, inputBits: Int, outputBits: Int) -> StageShape {
        var level = 3
        while inputBits > granule + (granule - 3) * (4 - level) { level -= 1 }
        return StageShape(granule: granule, inputBits: inputBits, startLevel: level, outputBits: outputBits)
    }

    /// Without 52-bit addresses.
    func hasBlocks(_ level: Int) -> Bool { level == 2 || level == 1 && granule == 12 }
}

/// How often what is flawed, of a hundred.
struct Flaws {
    /// A descriptor that is no good: invalid, reserved, beyond the address size, in no RAM.
    var descriptor: UInt64 = 0
    /// Permissions and access flag that refuse something.
    var permission: UInt64 = 10
    /// What QEMU is known to do otherwise.
    var peculiar: UInt64 = 0
}

/// One stage's tables, at physical addresses or at IPAs.
final class StageTables {
    let builder: CaseBuilder
    let shape: StageShape
    let isStage2: Bool
    /// What is behind stage 1's addresses, where it is not memory.
    let second: StageTables?
    let flaws: Flaws
    private(set) var base: UInt64 = 0
    /// Where stage 1's IPAs are, above their low 30 bits: those of tables first.
    private let regions: [UInt64]
    /// Pages of stage 1's tables that stage 2 puts elsewhere than their low bits say.
    private var scattered: [UInt64: UInt64] = [:]
    let isScattered: Bool

    private static let lowBits: UInt64 = (1 << 30) - 1

    /// Nil where there is no room for its first table.
    init?(
        _ builder: CaseBuilder,
        _ shape: StageShape,
        isStage2: Bool,
        second: StageTables? = nil,
        flaws: Flaws,
        isScattered: Bool = false
    ) {
        self.builder = builder
        self.shape = shape
        self.isStage2 = isStage2
        self.second = second
        self.flaws = flaws
        self.isScattered = isScattered
        let regionBits = max(0, (second?.shape.inputBits ?? 30) - 30)
        regions = (0..<3).map { _ in builder.random.bits(regionBits) << 30 }
        guard let base = makeTable(shape.startBytes) else { return nil }
        self.base = base
    }

    // MARK: Memory as this stage sees it

    /// Low bits of physical addresses that fit into the IPA space of stage 2.
    private func intermediate(_ physical: UInt64, _ region: Int) -> UInt64 {
        guard let second else { return physical }
        let size = min(30, second.shape.inputBits)
        return regions[region] | physical & ((1 << UInt64(size)) - 1)
    }

    private func makeTable(_ byteCount: UInt64) -> UInt64? {
        guard let second else { return builder.allocate(byteCount) }
        let page = second.shape.pageBytes
        guard let physical = builder.allocate(isScattered ? max(byteCount, page) : byteCount) else {
            return nil
        }
        let address = intermediate(physical, 0)
        for part in stride(from: address & ~(page - 1), to: address + byteCount, by: Int(page)) {
            var target = Layout.ram | part & (Self.lowBits >> 6)
            if isScattered, part >= address, part != address || builder.random.chance(50) {
                guard let elsewhere = builder.allocate(page) else { return nil }
                target = elsewhere
            }
            second.map(part, to: target, isForTables: true)
            // A block that was there before leads where the low bits say.
            if let leaf = second.path(part).last, leaf.level == 3, leaf.word & 3 == 3 {
                scattered[part] = leaf.word & 0xFFFF_FFFF_F000 & ~(page - 1)
            }
        }
        return address
    }

    /// Where an address of this stage's tables is in memory.
    private func physical(_ address: UInt64) -> UInt64 {
        guard let second else { return address }
        let mask = second.shape.pageBytes - 1
        if let page = scattered[address & ~mask], page >= Layout.tables, page < Layout.data {
            return page | address & mask
        }
        return Layout.ram | address & (Self.lowBits >> 6)
    }

    /// A place of 64 bytes for a CD.
    func makeContext() -> (address: UInt64, physical: UInt64)? {
        guard let address = makeTable(64) else { return nil }
        return (address, physical(address))
    }

    func load(_ entry: UInt64) -> UInt64 { builder.peek(physical(entry)) }
    func store(_ entry: UInt64, _ word: UInt64) { builder.poke(physical(entry), word) }

    // MARK: Ways

    func entry(_ table: UInt64, _ address: UInt64, _ level: Int) -> UInt64 {
        let bits = level == shape.startLevel ? shape.startBits : shape.granule - 3
        return table + ((address >> UInt64(shape.shift(level))) & ((1 << UInt64(bits)) - 1)) * 8
    }

    private func next(_ word: UInt64) -> UInt64 { word & 0xFFFF_FFFF_F000 & ~(shape.pageBytes - 1) }

    /// The entries on the way to an address that are in memory, from the first table on.
    func path(_ address: UInt64) -> [(level: Int, entry: UInt64, word: UInt64)] {
        var result: [(level: Int, entry: UInt64, word: UInt64)] = []
        var table = base
        for level in shape.startLevel...3 {
            let entry = entry(table, address, level)
            let word = load(entry)
            result.append((level, entry, word))
            guard level < 3, word & 3 == 3 else { break }
            table = next(word)
            // A flawed descriptor leads out of what this knows.
            guard physical(table) >= Layout.tables, physical(table) < Layout.data else { break }
        }
        return result
    }

    /// Maps what is not mapped yet on the way to an address.
    ///
    /// A block leads to where the address's low bits are, and a page to `output`.
    func map(_ address: UInt64, to output: UInt64, isForTables: Bool = false) {
        while let last = path(address).last, last.word == 0 {
            let word = descriptor(last.level, output, isForTables: isForTables)
            store(last.entry, word)
            if word & 3 != 3 || last.level == 3 { return }
        }
    }

    /// What a page or block of stage 1 leads to.
    private func anywhere(_ physical: UInt64) -> UInt64 {
        guard second != nil else { return physical }
        return intermediate(physical, 1 + Int(builder.random.below(2)))
    }

    /// Maps an address of a DMA to data, behind both stages where there are two.
    func mapData(_ address: UInt64) {
        let wanted = Self.randomData(&builder.random)
        map(address, to: isStage2 ? wanted : anywhere(wanted))
        guard let second, let last = path(address).last, last.word & 1 == 1,
            last.level == 3 || last.word & 2 == 0
        else { return }
        let mask: UInt64 = (1 << UInt64(shape.shift(last.level))) - 1
        let ipa = last.word & 0xFFFF_FFFF_F000 & ~mask | address & mask
        guard ipa >> UInt64(second.shape.inputBits) == 0 else { return }
        second.map(ipa, to: Self.randomData(&builder.random))
    }

    /// A page of 64 KiB where data is.
    static func randomData(_ random: inout SplitMix) -> UInt64 { Layout.data + random.below(127) << 16 }

    // MARK: Descriptors

    private func descriptor(_ level: Int, _ output: UInt64, isForTables: Bool) -> UInt64 {
        let isFlawed = builder.random.chance(isForTables ? flaws.descriptor / 4 : flaws.descriptor)
        if isFlawed, let word = flawedDescriptor(level) { return word }
        let isLeaf = level == 3 || shape.hasBlocks(level) && builder.random.chance(25)
        if !isLeaf {
            guard let table = makeTable(shape.pageBytes) else { return 0b10 }
            return table | 3 | tableBits()
        }
        let size: UInt64 = 1 << UInt64(shape.shift(level))
        var word = leafBits(isForTables) | (level == 3 ? 3 : 1)
        word |= output & ~(size - 1)
        // Bits of the address below the size are RES0.
        if builder.random.chance(5) { word |= builder.random.next() & (size - 1) & 0xFFFF_FFFF_F000 }
        return word
    }

    private func tableBits() -> UInt64 {
        var bits = builder.random.next() & 0x07F0_0000_0000_08FC
        if !isStage2 {
            // PXNTable and UXNTable say nothing of data.
            bits |= builder.random.next() & 0x1800_0000_0000_0000
            if builder.random.chance(flaws.peculiar) { bits |= builder.random.next() & 0x6000_0000_0000_0000 }
        }
        return bits
    }

    private func leafBits(_ isForTables: Bool) -> UInt64 {
        var random = builder.random
        defer { builder.random = random }
        // Software's bits and hints; XN, SH.
        var bits = random.next() & 0xFFF8_0000_0000_0300
        let refuses = isForTables ? flaws.permission / 5 : flaws.permission
        if !random.chance(refuses) { bits |= 1 << 10 }
        guard isStage2 else {
            bits |= random.next() & 0x83C & ~(1 << 11) | random.bits(1) << 11
            if random.chance(refuses * 2) { bits |= 1 << 7 }
            if !random.chance(flaws.peculiar) { bits |= 1 << 6 }
            return bits
        }
        bits |= random.chance(75) ? 0xF << 2 : random.pick([0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14]) << 2
        bits |= random.chance(refuses * 2) ? random.bits(2) << 6 : 3 << 6
        return bits
    }

    /// A descriptor that gives a fault; nil where none is to be had at the level.
    private func flawedDescriptor(_ level: Int) -> UInt64? {
        var random = builder.random
        defer { builder.random = random }
        let beyond: UInt64? = shape.outputBits < 48 ? 1 << UInt64(shape.outputBits) : nil
        switch random.below(6) {
        case 0: return random.next() & ~1
        case 1:
            // At level 3, 01 is reserved. Elsewhere it is a block, permitted or not.
            if level == 3 { return random.next() & ~2 | 1 }
            guard !shape.hasBlocks(level) else { return random.next() & ~1 }
            guard random.chance(flaws.peculiar) else { return nil }
            return Layout.ram & ~((1 << UInt64(shape.shift(level))) - 1) | 0x7FD
        case 2:
            // A leaf beyond the address size.
            guard let beyond, level == 3 || shape.hasBlocks(level) else { return nil }
            let size: UInt64 = 1 << UInt64(shape.shift(level))
            return (beyond | Layout.ram) & ~(size - 1) | beyond | 0x7FC | (level == 3 ? 3 : 1)
        case 3:
            // A leaf that leads to nobody.
            guard level == 3 || shape.hasBlocks(level) else { return nil }
            let size: UInt64 = 1 << UInt64(shape.shift(level))
            return Layout.nowhere & ~(size - 1) | 0x7FC | (level == 3 ? 3 : 1)
        case 4:
            // A table where no RAM is.
            guard level < 3, shape.outputBits > 32 else { return nil }
            return Layout.nowhere | 3
        default:
            guard let beyond, level < 3, random.chance(flaws.peculiar) else { return nil }
            return beyond | Layout.tables | 3
        }
    }
}
