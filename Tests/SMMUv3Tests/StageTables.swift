// Translation tables of any shape and of both stages, as their owner builds them.

import SMMUv3

/// Tables with a start level and a first index of their own: concatenated, 52-bit, big-endian.
final class StageTables {
    let guest: TestGuest
    /// log2 of the granule.
    let granule: Int
    let startLevel: Int
    /// How many address bits the first table resolves.
    let firstBits: Int
    /// What descriptors say: physical addresses less this, so that stage-1 tables can lie at IPAs.
    let bias: UInt64
    var isBigEndian = false
    /// 64 KiB descriptors hold address bits [51:48] in [15:12].
    var has52Bits = false
    /// 4 KiB and 16 KiB descriptors hold address bits [51:50] in [9:8].
    var ds = false
    let root: UInt64

    init(_ guest: TestGuest, granule: Int, startLevel: Int, inputBits: Int, bias: UInt64 = 0) {
        self.guest = guest
        self.granule = granule
        self.startLevel = startLevel
        self.bias = bias
        firstBits = inputBits - (granule + (granule - 3) * (3 - startLevel))
        root = guest.allocate(max(64, 8 << UInt64(firstBits)))
    }

    /// log2 of what one descriptor of a level covers.
    func shift(_ level: Int) -> Int { granule + (granule - 3) * (3 - level) }

    func encode(_ address: UInt64) -> UInt64 {
        if granule == 16, has52Bits { return address & 0xFFFF_FFFF_0000 | (address >> 48) << 12 }
        if granule != 16, ds { return address & 0x3_FFFF_FFFF_F000 | (address >> 50 & 3) << 8 }
        return address
    }

    private func decode(_ word: UInt64) -> UInt64 {
        if granule == 16, has52Bits { return word & 0xFFFF_FFFF_0000 | (word >> 12 & 0xF) << 48 }
        let page = ~((1 << UInt64(granule)) - 1) as UInt64
        if granule != 16, ds { return word & 0x3_FFFF_FFFF_FFFF & page | (word >> 8 & 3) << 50 }
        return word & 0xFFFF_FFFF_FFFF & page
    }

    func peek(_ entry: UInt64) throws -> UInt64 {
        let word = try guest.peek(entry)
        return isBigEndian ? word.byteSwapped : word
    }

    func poke(_ entry: UInt64, _ word: UInt64) throws {
        try guest.poke(entry, isBigEndian ? word.byteSwapped : word)
    }

    /// Where the descriptor of `address` at `level` is in physical memory; makes the tables on the way.
    func entry(_ address: UInt64, level: Int = 3, tableFlags: UInt64 = 0) throws -> UInt64 {
        var table = root
        for current in startLevel...3 {
            let bits = current == startLevel ? firstBits : granule - 3
            let index = (address >> UInt64(shift(current))) & ((1 << UInt64(bits)) - 1)
            let entry = table + index * 8
            guard current < level else { return entry }
            if try peek(entry) & 1 == 0 {
                let next = guest.allocate(1 << UInt64(granule)) - bias
                try poke(entry, encode(next) | tableFlags | 0b11)
            }
            table = decode(try peek(entry)) + bias
        }
        return table
    }

    func map(_ address: UInt64, to output: UInt64, level: Int = 3, _ flags: UInt64 = Leaf2.readWrite) throws {
        try poke(try entry(address, level: level), encode(output) | flags | (level == 3 ? 0b11 : 0b01))
    }

    func unmap(_ address: UInt64, level: Int = 3) throws { try poke(try entry(address, level: level), 0) }
}

/// A guest with both stages, whose nested streams see its RAM at IPA ``ipaOfRAM``.
struct NestedSetup {
    /// Where stage 2 shows the guest's RAM.
    static let ipaOfRAM: UInt64 = 0x4000_0000
    /// Physical address less IPA.
    static let bias = TestGuest.ram - ipaOfRAM

    let guest: TestGuest
    /// 40-bit IPAs, 4 KiB granule, start level 1, two concatenated tables.
    let stage2: StageTables
    /// 39-bit VAs, 4 KiB granule, start level 1, at IPAs.
    let stage1: StageTables
    let vmid: UInt64

    /// - Parameters:
    ///   - guest: The guest.
    ///   - stream: The StreamID to attach.
    ///   - vmid: The VMID.
    ///   - block: The level at which stage 2 shows RAM: 2 is blocks of 2 MiB, 3 pages.
    ///   - s2: Changes of the STE's stage-2 fields.
    ///   - cd: Changes of the CD.
    init(
        _ guest: TestGuest,
        stream: UInt64 = 6,
        vmid: UInt64 = 7,
        block: Int = 2,
        _ s2: (inout Stage2Words) -> Void = { _ in },
        cd: (inout CDWords) -> Void = { _ in }
    ) throws {
        self.guest = guest
        self.vmid = vmid
        stage2 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 40)
        stage1 = StageTables(guest, granule: 12, startLevel: 1, inputBits: 39, bias: Self.bias)
        let step: UInt64 = block == 2 ? 0x20_0000 : 0x1000
        for offset in stride(from: 0, to: TestGuest.ramBytes, by: Int(step)) {
            try stage2.map(Self.ipaOfRAM + offset, to: TestGuest.ram + offset, level: block)
        }
        var words = Stage2Words(ttb: stage2.root)
        s2(&words)
        var context = CDWords(ttb0: stage1.root - Self.bias)
        cd(&context)
        let address = guest.allocate(64)
        try guest.poke(address, context.words)
        guest.contexts[stream] = address
        var ste = STEWords(config: 0b111, s1ContextPtr: address - Self.bias, s2VMID: vmid)
        ste.extra = words.words
        try guest.setSTE(stream, ste)
    }

    /// Maps a page in stage 1 to the IPA of a physical page in RAM.
    func map(_ address: UInt64, toPhysical physical: UInt64, _ flags: UInt64 = Leaf.readWrite) throws {
        try stage1.map(address, to: physical - Self.bias, flags)
    }

    func ipa(_ physical: UInt64) -> UInt64 { physical - Self.bias }
}

extension TestGuest {
    /// A guest whose SMMU has everything.
    static func full(bits: Int = 48, _ change: (inout GuestSetup) -> Void = { _ in }) throws -> TestGuest {
        var setup = GuestSetup()
        setup.identification = .full(outputAddressBits: bits)
        change(&setup)
        return try TestGuest(setup)
    }
}
