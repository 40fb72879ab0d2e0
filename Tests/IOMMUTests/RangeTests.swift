// How the driver names ranges to invalidate: TF-RMM's cases of splitting a number of granules into NUM and SCALE.

import IOPageTable
import SMMUv3Spec
import Testing

@testable import IOMMU

@Suite("Ranges to invalidate")
struct RangeTests {
    /// A command's NUM + 1 and SCALE, by bit number: [16:12] and [24:20].
    struct Part: Equatable, CustomStringConvertible {
        var count: UInt64
        var scale: UInt64
        var granules: UInt64 { count << scale }
        var description: String { "\(count) << \(scale)" }

        init(_ count: UInt64, _ scale: UInt64) { (self.count, self.scale) = (count, scale) }
        init(_ command: Command) {
            self.init((command.words[0] >> 12 & 0x1F) + 1, command.words[0] >> 20 & 0x1F)
        }
    }

    private static func commands(_ granules: UInt64, leaf: Bool = true) -> [Command] {
        TLBTag(asid: 1, granule: .kib4, usesE2H: false, hasRanges: true)
            .commands(0, byteCount: granules << 12, pageByteCount: 0x1000, leaf: leaf)
    }

    @Test(
        "NUM and SCALE of known numbers of granules",
        arguments: [
            (1, [Part(1, 0)]), (3, [Part(3, 0)]), (6, [Part(3, 1)]), (7, [Part(7, 0)]), (10, [Part(5, 1)]),
            (31, [Part(31, 0)]), (62, [Part(31, 1)]), (124, [Part(31, 2)]), (512, [Part(1, 9)]),
            (33, [Part(1, 0), Part(1, 5)]), (511, [Part(31, 0), Part(15, 5)]),
            (513, [Part(1, 0), Part(1, 9)]), (3 << 31, [Part(3, 31)]),
            // SCALE ends at 31: then NUM, then another command.
            (1 << 31, [Part(1, 31)]), (1 << 32, [Part(2, 31)]), (1 << 35, [Part(16, 31)]),
            (1 << 36, [Part(32, 31)]), (1 << 37, [Part(32, 31), Part(32, 31)]),
            (33 << 31, [Part(32, 31), Part(1, 31)]), (1 << 36 | 1, [Part(1, 0), Part(32, 31)]),
        ] as [(UInt64, [Part])]
    )
    func known(_ granules: UInt64, _ parts: [Part]) {
        #expect(Self.commands(granules).map(Part.init) == parts)
    }

    @Test("every power of two up to the largest space is as few commands as there can be")
    func powersOfTwo() {
        for log2 in 0...40 as ClosedRange<UInt64> {
            let parts = Self.commands(1 << log2).map(Part.init)
            #expect(parts.count == (log2 <= 36 ? 1 : 1 << (log2 - 36)))
            #expect(parts.allSatisfy { $0.scale == min(log2, 31) })
        }
    }

    @Test(
        "any number of granules is covered once, in order, without a gap; one more at most where no level is known"
    )
    func coverage() {
        var numbers: [UInt64] = Array(1...128) + [255, 256, 511, 512, 513, 1023, 1 << 20]
        for log2 in [31, 32, 36, 37, 38] as [UInt64] { numbers += [1 << log2 - 1, 1 << log2, 1 << log2 + 1] }
        for granules in numbers {
            for leaf in [true, false] {
                var next: UInt64 = 0
                for command in Self.commands(granules, leaf: leaf) {
                    let part = Part(command)
                    #expect(command.words[1] & ~0xFFF == next << 12)
                    // TG, TTL and NUM, SCALE: not all of the latter zero.
                    #expect(command.words[1] >> 10 & 3 == 1)
                    #expect(command.words[1] >> 8 & 3 != 0 || part != Part(1, 0), "reserved")
                    #expect(part.granules <= granules - min(next, granules) + (leaf ? 0 : 1))
                    next += part.granules
                }
                #expect(next == granules || !leaf && next == granules + 1)
            }
        }
    }

    @Test("the level of the leaves, for each granule's page and block sizes")
    func levels() {
        let cases: [(PageTableGranule, [(log2: UInt64, ttl: UInt64)])] = [
            (.kib4, [(12, 3), (21, 2), (30, 1)]), (.kib16, [(14, 3), (25, 2)]), (.kib64, [(16, 3), (29, 2)]),
        ]
        for (granule, sizes) in cases {
            for (log2, ttl) in sizes {
                let tag = TLBTag(asid: 1, granule: granule, usesE2H: false, hasRanges: true)
                let commands = tag.commands(
                    1 << 40,
                    byteCount: 3 << log2,
                    pageByteCount: 1 << log2,
                    leaf: true
                )
                #expect(commands.allSatisfy { $0.words[1] >> 8 & 3 == ttl })
                let covered = commands.reduce(0) { $0 + Part($1).granules } << UInt64(granule.log2)
                #expect(covered == 3 << log2)
            }
        }
    }
}
