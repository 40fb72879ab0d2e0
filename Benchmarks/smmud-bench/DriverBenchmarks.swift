// Our own driver's DMA API: a buffer's life with strict and with lazy invalidation.

import AddressSpace
import CLinux
import IOMMU
import SMMUv3

var driverBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "map-unmap-strict",
            subject: "dma_map_single and dma_unmap_single of 4 KiB, strict, commands by the SMMU's thread",
            floor: "membarrier(2)",
            prepare: { (try maps(.dma, .thread), { for _ in 0..<$0 { smmud_membarrier() } }) }
        ),
        lazy("map-unmap-lazy", .thread, "by the SMMU's thread"),
        Benchmark(
            name: "map-unmap-strict-inl",
            subject: "dma_map_single and dma_unmap_single of 4 KiB, strict, commands inline",
            floor: "membarrier(2)",
            prepare: { (try maps(.dma, .inline), { for _ in 0..<$0 { smmud_membarrier() } }) }
        ),
        lazy("map-unmap-lazy-inl", .inline, "inline"),
    ]
}

private func lazy(_ name: String, _ execution: SMMUv3Options.CommandExecution, _ where: String) -> Benchmark {
    Benchmark(
        name: name,
        subject: "the same, lazy, commands \(`where`)",
        floor: "the same, strict",
        prepare: { (try maps(.dmaFQ, execution), try maps(.dma, execution)) }
    )
}

/// Maps and unmaps a buffer; each has a machine of its own.
private func maps(_ kind: IOMMUDomainKind, _ execution: SMMUv3Options.CommandExecution) throws -> (Int) throws
    -> Void
{
    let board = try DrivenBoard(GeneratedBoard(), [kind], pageCount: 0) { $0.commandExecution = execution }
    let device = board.device(0)
    return { try device.mapAndUnmap(board.buffer, $0) }
}

extension DMADevice {
    /// dma_map_single and dma_unmap_single of 4 KiB, so often.
    func mapAndUnmap(_ buffer: PhysicalAddress, _ count: Int) throws {
        for _ in 0..<count {
            let address = try map(buffer, byteCount: 4096, .bidirectional)
            try unmap(address, byteCount: 4096, .bidirectional)
        }
    }
}
