// What things cost on a board of 64 SMMUs, 1000 endpoints and a million mapped pages, against a small board.

import SMMUv3

private let pageCount = 1000
private let large = GeneratedBoard(smmuCount: 64, endpointCount: 1000)

/// The boards, built once for all rows: a million pages take a while to map.
private final class Boards {
    let small: DrivenBoard
    let large: DrivenBoard

    init(_ change: (inout SMMUv3Options) -> Void = { _ in }) throws {
        func make(_ board: GeneratedBoard) throws -> DrivenBoard {
            try DrivenBoard(board, pageCount: pageCount) {
                $0.commandExecution = .inline
                change(&$0)
            }
        }
        small = try make(GeneratedBoard())
        large = try make(smmud_bench.large)
    }
}

private func row(
    _ name: String,
    _ subject: String,
    _ change: @escaping (inout SMMUv3Options) -> Void = { _ in },
    _ sample: @escaping (DrivenBoard, Int) throws -> Double
) -> Benchmark {
    Benchmark(
        name: name,
        subject: "\(subject), 64 SMMUs, 1000 endpoints, 1000000 pages",
        floor: "1 SMMU, 1 endpoint, 1000 pages",
        samplers: {
            let boards = try Boards(change)
            return .init(subject: { try sample(boards.large, $0) }, floor: { try sample(boards.small, $0) })
        }
    )
}

var largeBoardBenchmarks: [Benchmark] {
    [
        row("large-hit", "hit in one page") { board, count in
            try timed({ for _ in 0..<$0 { try board.read(page: 0) } }, count)
        },
        row("large-tlb", "TLB hit in 1000 pages of one endpoint") { board, count in
            try timed(board.readPages, count)
        },
        row("large-endpoints", "read of 8 B, all endpoints in turn") { board, count in
            try timed(
                { for index in 0..<$0 { try board.read(page: 0, by: index % board.ports.count) } },
                count
            )
        },
        row("large-miss", "walk of 4 levels", { $0.tlbEntries = 0 }) { board, count in
            try timed(board.readPages, count)
        },
        row(
            "large-miss-walk-cache",
            "the same with a walk cache",
            {
                $0.tlbEntries = 0
                $0.setWalkCache(1024)
            },
            { board, count in try timed(board.readPages, count) }
        ),
        row("large-miss-all", "the same without any cache: STE, CD, walk", { $0.disableCaches() }) {
            board,
            count in
            try timed(board.readPages, count)
        },
        row("large-dma-4KiB", "read of 4 KiB, one page") { board, count in
            try timed({ for _ in 0..<$0 { try board.read(page: 0, byteCount: 4096) } }, count)
        },
        row("large-tlbi-sync", "unmap of a page: CMD_TLBI_NH_VA and CMD_SYNC, inline") { board, count in
            try board.unmapTime(count)
        },
        Benchmark(
            name: "large-start",
            subject: "smmud from start to ready, 64 SMMUs, 1000 endpoints",
            floor: "1 SMMU, 1 endpoint",
            samplers: {
                let (one, other) = (try ScratchDirectory(), try ScratchDirectory())
                let (small, large) = (
                    try one.compile(GeneratedBoard().source), try other.compile(large.source)
                )
                return .init(
                    subject: { count in
                        withExtendedLifetime(other) {}
                        return try startTime(large, count)
                    },
                    floor: { count in
                        withExtendedLifetime(one) {}
                        return try startTime(small, count)
                    }
                )
            }
        ),
    ]
}
