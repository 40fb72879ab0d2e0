// Translations that hit and that miss, and DMA of several sizes, each against its floor.

import DeviceModel
import SMMUv3

var translationBenchmarks: [Benchmark] {
    var rows = [
        Benchmark(
            name: "hit-port",
            subject: "read of 8 B in the page the port used last",
            floor: "the same without an SMMU",
            prepare: {
                let bench = try TranslationBench()
                return (
                    { count in for _ in 0..<count { try bench.read(8, at: TranslationBench.pages) } },
                    { count in for _ in 0..<count { try bench.readDirectly(8, at: 0) } }
                )
            }
        ),
        overPages("hit-tlb", "read of 8 B, 2048 pages in turn: TLB hits"),
        overPages("miss", "the same without a TLB: walks of 4 levels, no walk cache") {
            $0.tlbEntries = 0
            $0.setWalkCache(0)
        },
    ]
    if SMMUv3Options.walkCache != nil {
        rows += [
            overPages("miss-walk-cache", "the same without a TLB, with a walk cache") {
                $0.tlbEntries = 0
                $0.setWalkCache(1024)
            },
            overPages("miss-nested-walk-cache", "the same in two stages, with a walk cache", isNested: true) {
                $0.tlbEntries = 0
                $0.setWalkCache(1024)
            },
        ]
    }
    rows += [
        overPages("miss-all", "the same without any cache: STE, CD, walk") { $0.disableCaches() },
        overPages(
            "miss-all-two-level",
            "the same by a 2-level stream table: an L1STD, too",
            hasTwoLevels: true
        ) {
            $0.disableCaches()
        },
        overPages("miss-nested", "walks of 4 levels in two stages, STE and CD cached", isNested: true) {
            $0.tlbEntries = 0
            $0.setWalkCache(0)
        },
        overPages("miss-nested-all", "the same without any cache", isNested: true) { $0.disableCaches() },
        dma("dma-read-64B", 64, .read),
        dma("dma-write-64B", 64, .write),
        dma("dma-read-4KiB", 4096, .read),
        dma("dma-write-4KiB", 4096, .write),
        dma("dma-read-1MiB", 1 << 20, .read),
        dma("dma-write-1MiB", 1 << 20, .write),
        dma("dma-read-1MiB-block", 1 << 20, .read, in: TranslationBench.block),
        inTurn("dma-64MiB-by-4KiB", "read of 4 KiB, 64 MiB of 4 KiB pages in turn", 4096),
        inTurn("dma-64MiB-by-1MiB", "read of 1 MiB, 64 MiB of 4 KiB pages in turn", 1 << 20),
        inTurn("dma-64MiB-apart", "the same, pages in a row apart in memory", 1 << 20, isScattered: true),
    ]
    return rows
}

/// Rows of as many pages as fit into the TLB, and of a few more than a smaller one would hold.
var cacheBenchmarks: [Benchmark] {
    [256, 257, 2048, 65536].map { count in
        random(
            "random-\(count)",
            "read of 8 B, \(count) pages at random, 16 KiB of data",
            count,
            dataPageCount: 4
        ) {
            $0.tlbEntries = 1 << 17
        }
    } + [
        random("random-full", "the same, 65535 pages in a TLB of 65536", 65535, dataPageCount: 4) {
            $0.tlbEntries = 1 << 16
        },
        random("random-65536-data", "the same, 65536 pages, 256 MiB of data", 65536, dataPageCount: 65536) {
            $0.tlbEntries = 1 << 17
        },
    ]
}

extension SMMUv3Options {
    /// The option that sizes the walk cache, where this SMMU has one.
    static var walkCache: NamedSMMUOption? { named.first { $0.name.hasPrefix("walk-cache") } }

    mutating func setWalkCache(_ entries: Int) {
        if let name = Self.walkCache?.name { try? set("\(name)=\(entries)") }
    }

    /// No cache at all: each transaction fetches its STE and CD and walks.
    mutating func disableCaches() {
        tlbEntries = 0
        configurationCacheEntries = 0
        setWalkCache(0)
    }
}

/// Small reads that touch a page each, so that no port remembers the translation.
///
/// The pages are 16 KiB of data in turn, which the first cache holds: what is measured is the translation.
private func overPages(
    _ name: String,
    _ subject: String,
    isNested: Bool = false,
    hasTwoLevels: Bool = false,
    _ change: @escaping (inout SMMUv3Options) -> Void = { _ in }
) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "the same without an SMMU",
        prepare: {
            let bench = try TranslationBench(
                dataPageCount: 4,
                isNested: isNested,
                hasTwoLevels: hasTwoLevels,
                change
            )
            return ({ try bench.readShuffled($0) }, { try bench.readShuffledDirectly($0) })
        }
    )
}

private func random(
    _ name: String,
    _ subject: String,
    _ pageCount: Int,
    dataPageCount: Int,
    _ change: @escaping (inout SMMUv3Options) -> Void
) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "the same without an SMMU",
        prepare: {
            let bench = try TranslationBench(pageCount: pageCount, dataPageCount: dataPageCount, change)
            // Hot: each page has been there once.
            try bench.readShuffled(pageCount)
            return ({ try bench.readShuffled($0) }, { try bench.readShuffledDirectly($0) })
        }
    )
}

private func dma(
    _ name: String,
    _ byteCount: Int,
    _ kind: TransactionKind,
    in region: UInt64 = TranslationBench.pages
) -> Benchmark {
    let size = byteCount < 1024 ? "\(byteCount) B" : byteCount < 1 << 20 ? "\(byteCount >> 10) KiB" : "1 MiB"
    return Benchmark(
        name: name,
        subject: "\(kind) of \(size) by DMA" + (region == TranslationBench.block ? " in a 2 MiB block" : ""),
        floor: "memcpy of the same \(size)",
        prepare: {
            let bench = try TranslationBench()
            switch kind {
            case .read:
                return (
                    { count in for _ in 0..<count { try bench.read(byteCount, at: region) } },
                    { count in for _ in 0..<count { bench.copyOut(byteCount, at: 0) } }
                )
            case .write:
                return (
                    { count in for _ in 0..<count { try bench.write(byteCount, at: region) } },
                    { count in for _ in 0..<count { bench.copyIn(byteCount, at: 0) } }
                )
            }
        }
    )
}

/// Much memory, piece by piece.
private func inTurn(
    _ name: String,
    _ subject: String,
    _ byteCount: Int,
    isScattered: Bool = false
) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "memcpy of the same pieces",
        prepare: {
            let bench = try TranslationBench(pageCount: 16384, isScattered: isScattered)
            return (
                { try bench.readInTurn($0, pieceByteCount: byteCount) },
                { bench.copyInTurn($0, pieceByteCount: byteCount) }
            )
        }
    )
}
