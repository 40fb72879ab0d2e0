// Small tables by hand: what each known deviation of QEMU is shown with.

import AddressSpace
import SMMUv3Spec
import SeededRandomness

/// One stream of the first requester, with tables in which everything is mapped until a deviation's case says not.
///
/// Stage 1 has 39 bits of 4 KiB pages and maps ``address`` to ``Layout/data``; stage 2 has 39 bits of IPA and maps
/// RAM to itself.
final class Fixture {
    static let address: UInt64 = 0x80_0000
    /// An IPA that stage 2 does not map.
    static let unmapped: UInt64 = 0x5000_0000

    let builder = CaseBuilder(SplitMix(seed: 0))
    var shape = MachineShape()
    var ste = STE()
    var cd = CD()
    var table: StreamTable
    /// STEs that an L1STD says it has, where that is not what it takes.
    var span: UInt64?
    private var olds: [UInt64: Int] = [:]

    static let root = Layout.tables
    static let middle = Layout.tables + 0x1000
    static let pages = Layout.tables + 0x2000
    static let context = Layout.tables + 0x3000
    static let root2 = Layout.tables + 0x1_0000
    static let middle2 = Layout.tables + 0x1_2000
    /// Stage 2's table of pages for the 2 MiB in which stage 1's tables are.
    static let tablePages2 = Layout.tables + 0x1_3000
    /// The same for the first 2 MiB of data.
    static let dataPages2 = Layout.tables + 0x1_4000
    private static let second = Layout.tables + 0x2_0000

    init(_ config: StreamConfig) {
        table = StreamTable(builder, isTwoLevel: false)
        ste.v = true
        ste.config = config
        ste.s1ContextPtr = Self.context
        (ste.s2AA64, ste.s2T0SZ, ste.s2SL0, ste.s2PS, ste.s2R) = (true, 25, 1, 5, true)
        ste.s2TTB = Self.root2
        ste.s2VMID = 7
        (cd.v, cd.aa64, cd.a, cd.r, cd.epd1) = (true, true, true, true, true)
        (cd.t0SZ, cd.ips, cd.ttb0, cd.asid) = (25, 5, Self.root, 3)
        builder.poke(Self.root, Self.middle | 3)
        builder.poke(Self.middle + 4 * 8, Self.pages | 3)
        for index in 0..<16 as Range<UInt64> { leaf(index, Layout.data + index << 12 | 0xF43) }
        builder.poke(Self.root2 + 8, Self.middle2 | 3)
        for index in 0..<8 as Range<UInt64> {
            builder.poke(Self.middle2 + index * 8, Layout.ram + index << 21 | 0x7FD)
        }
    }

    /// Stage 1's descriptor of a page from ``address`` on.
    func leaf(_ index: UInt64, _ word: UInt64) { builder.poke(Self.pages + index * 8, word) }

    /// Gives the tables pages of their own in stage 2, each to itself.
    func splitTables() { split(0, Self.tablePages2) }

    /// Gives the first 2 MiB of data pages of their own in stage 2.
    func splitData() { split(4, Self.dataPages2) }

    private func split(_ index: UInt64, _ pages: UInt64) {
        builder.poke(Self.middle2 + index * 8, pages | 3)
        for page in 0..<512 as Range<UInt64> {
            builder.poke(pages + page * 8, Layout.ram + index << 21 + page << 12 | 0x7FF)
        }
    }

    /// Stage 2's descriptor of a page of RAM that was split.
    func page2(_ address: UInt64, _ word: UInt64) {
        let pages = address < Layout.data ? Self.tablePages2 : Self.dataPages2
        builder.poke(pages + (address >> 12 & 0x1FF) * 8, word)
    }

    func boot() {
        builder.poke(Self.context, cd.words)
        let stream = UInt64(Layout.streams[0])
        if shape.isTwoLevel {
            builder.poke(table.base, Self.second | (span ?? 7))
            builder.poke(Self.second + stream * 64, ste.words)
            builder.boot(base: table.base, configuration: 11 | 6 << 6 | 1 << 16, cr2: table.cr2)
        } else {
            builder.poke(table.base + stream * 64, ste.words)
            builder.boot(base: table.base, configuration: UInt32(table.log2Size), cr2: table.cr2)
        }
    }

    func read(_ address: UInt64 = Fixture.address) { access(address, isWrite: false) }
    func write(_ address: UInt64 = Fixture.address) { access(address, isWrite: true) }

    private func access(_ address: UInt64, isWrite: Bool) {
        let old = olds[address]
        olds[address] = builder.access(0, address, isWrite: isWrite, before: old)
    }

    func finished(_ name: String) -> Case {
        var result = Case(seed: 0, index: 0, shape: shape)
        result.kind = name
        result.steps = builder.steps
        return result
    }
}
