// What things cost on a board of 64 SMMUs, 1000 endpoints and a million mapped pages, against a small board.

import IOMMU
import Machine
import SMMUv3

private let pageCount = 1000
/// Two endpoints behind the first SMMU, where what two of them do beside each other is measured.
private let small = GeneratedBoard(endpointCount: 2)
private let large = GeneratedBoard(smmuCount: 64, endpointCount: 1000)

/// The boards of a row: a million pages take a while to map.
private final class Boards {
    let small: DrivenBoard
    let large: DrivenBoard

    init(
        _ kind: IOMMUDomainKind = .dma,
        isNested: Bool = false,
        change: (inout SMMUv3Options) -> Void = { _ in }
    ) throws {
        func make(_ board: GeneratedBoard) throws -> DrivenBoard {
            let board = try DrivenBoard(
                board,
                [kind],
                profile: isNested ? .full : .stage1,
                prefetches: !isNested,
                pageCount: pageCount
            ) {
                $0.commandExecution = .inline
                change(&$0)
            }
            if isNested { try board.nest() }
            return board
        }
        small = try make(smmud_bench.small)
        large = try make(smmud_bench.large)
    }

    func samplers(leastCount: Int = 1, _ sample: @escaping (DrivenBoard, Int) throws -> Double)
        -> Benchmark.Samplers
    {
        .init(
            subject: { [large] in try sample(large, $0) },
            floor: { [small] in try sample(small, $0) },
            leastCount: leastCount
        )
    }
}

/// Samples of the large board against samples of the small one.
private func row(
    _ name: String,
    _ subject: String,
    samplers: @escaping () throws -> Benchmark.Samplers
) -> Benchmark {
    Benchmark(
        name: name,
        subject: "\(subject), 64 SMMUs, 1000 endpoints, 1000000 pages",
        floor: "1 SMMU, 2 endpoints, 2000 pages",
        samplers: samplers
    )
}

/// The same, of boards whose SMMUs are changed.
private func row(
    _ name: String,
    _ subject: String,
    _ change: @escaping (inout SMMUv3Options) -> Void = { _ in },
    _ sample: @escaping (DrivenBoard, Int) throws -> Double
) -> Benchmark {
    row(name, subject) { try Boards(change: change).samplers(sample) }
}

/// Walks in two stages.
private func nested(
    _ name: String,
    _ subject: String,
    _ change: @escaping (inout SMMUv3Options) -> Void
) -> Benchmark {
    row(name, subject) {
        try Boards(isNested: true, change: change).samplers { board, count in
            try timed(board.readPages, count)
        }
    }
}

/// 64 MiB of endpoint 0, piece by piece.
private func wide(_ name: String, _ subject: String, _ pieceByteCount: Int) -> Benchmark {
    row(name, subject) {
        let boards = try Boards()
        for board in [boards.small, boards.large] { try board.mapWide() }
        return boards.samplers { board, count in
            try timed({ try board.readWide($0, pieceByteCount: pieceByteCount) }, count)
        }
    }
}

/// What one thread does while another has a neighbour, an endpoint of the same SMMU, do something.
private func beside(
    _ name: String,
    _ subject: String,
    leastCount: Int,
    neighbour: @escaping (DrivenBoard) throws -> Void,
    mine: @escaping (DrivenBoard, Int) throws -> Void
) -> Benchmark {
    row(name, subject) {
        let companion = Companion()
        return try Boards().samplers(leastCount: leastCount) { board, count in
            // Each of the two has endpoints, domains and buffers of its own.
            nonisolated(unsafe) let (board, neighbour) = (board, neighbour)
            let time = try companion.meanwhile {
                do { try neighbour(board) } catch { preconditionFailure("its pages are mapped: \(error)") }
            } mine: {
                try mine(board, count)
            }
            return time / Double(count)
        }
    }
}

/// The DMA API of endpoint 0.
private func maps(_ name: String, _ subject: String, _ kind: IOMMUDomainKind) -> Benchmark {
    row(name, subject) {
        let boards = try Boards(kind)
        let devices = [boards.small, boards.large].map { $0.device(0) }
        return boards.samplers { board, count in
            let device = devices[board === boards.small ? 0 : 1]
            return try timed({ try device.mapAndUnmap(board.buffer, $0) }, count)
        }
    }
}

/// Daemons on both boards, whose endpoints have all of their pages mapped over the control socket.
private func served(
    _ name: String,
    _ subject: String,
    samplers: @escaping (_ large: ServedBoard, _ small: ServedBoard) throws -> Benchmark.Samplers
) -> Benchmark {
    func served(_ board: GeneratedBoard) -> ServedBoard {
        var board = board
        board.hasHostBridge = true
        return ServedBoard(board: board, mappedByteCount: UInt64(pageCount) << 12)
    }
    return row(name, subject) { try samplers(served(large), served(small)) }
}

private func loops(_ sides: (subject: (Int) throws -> Void, floor: (Int) throws -> Void))
    -> Benchmark.Samplers
{
    .init(subject: { try timed(sides.subject, $0) }, floor: { try timed(sides.floor, $0) })
}

var largeBoardBenchmarks: [Benchmark] {
    [
        row("large-hit", "hit in one page") { board, count in
            try timed({ try board.hits($0) }, count)
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
        nested("large-nested", "walks of 4 levels in two stages, STE and CD cached") {
            $0.tlbEntries = 0
            $0.setWalkCache(0)
        },
        nested("large-nested-all", "the same without any cache") { $0.disableCaches() },
        row("large-dma-64B", "read of 64 B, one page") { board, count in
            try timed({ try board.hits($0, byteCount: 64) }, count)
        },
        row("large-dma-4KiB", "read of 4 KiB, one page") { board, count in
            try timed({ try board.hits($0, byteCount: 4096) }, count)
        },
        wide("large-64MiB-by-4KiB", "read of 4 KiB, 64 MiB of 4 KiB pages in turn", 4096),
        wide("large-64MiB-by-1MiB", "read of 1 MiB, 64 MiB of 4 KiB pages in turn", 1 << 20),
        beside(
            "large-two-threads",
            "hits while another thread has another endpoint of the SMMU hit",
            leastCount: 10_000,
            neighbour: { try $0.readByNeighbour(100, byteCount: 8) },
            mine: { try $0.hits($1) }
        ),
        beside(
            "large-hits-beside",
            "hits while another thread unmaps and maps a page of another endpoint all the time",
            leastCount: 10_000,
            neighbour: { try $0.remap($0.neighbour) },
            mine: { try $0.hits($1) }
        ),
        beside(
            "large-sync-busy",
            "unmap and map of a page while another endpoint of the SMMU reads 4 KiB again and again",
            leastCount: 16,
            neighbour: { try $0.readByNeighbour(1, byteCount: 4096) },
            mine: { board, count in for _ in 0..<count { try board.remap(0) } }
        ),
        row("large-tlbi-sync", "unmap of a page: CMD_TLBI_NH_VA and CMD_SYNC, inline") { board, count in
            try board.unmapTime(count)
        },
        maps("large-map-strict", "dma_map_single and dma_unmap_single of 4 KiB, strict, inline", .dma),
        maps("large-map-lazy", "the same, lazy", .dmaFQ),
        served("large-socket", "read of 64 B over the DMA socket") {
            loops(try roundTrips($0, against: $1, inFlight: 1))
        },
        served("large-socket-64", "the same, 64 in flight: one of them") {
            loops(try roundTrips($0, against: $1, inFlight: 64))
        },
        served("large-ring", "read of 64 B over a polled ring") {
            try ringReads($0, against: $1, outstanding: 1)
        },
        served("large-ring-64", "the same, 64 outstanding: one of them") {
            try ringReads($0, against: $1, outstanding: 64)
        },
        served("large-vfio-user", "REGION_READ of 4 B, a register of a test engine") { large, small in
            let cpus = Affinity.one()
            let (subject, floor) = (try OfferedRegister(large), try OfferedRegister(small))
            return loops(
                ({ count in try withExtendedLifetime(cpus) { try subject.read(count) } }, floor.read)
            )
        },
        Benchmark(
            name: "large-start",
            subject: "smmud from start to ready, 64 SMMUs, 1000 endpoints",
            floor: "1 SMMU, 2 endpoints",
            samplers: {
                let (one, other) = (try ScratchDirectory(), try ScratchDirectory())
                let (small, large) = (
                    try one.compile(small.source), try other.compile(large.source)
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
