// Translations that hit, that miss, DMA of several sizes, and an invalidation, each against its floor.

import AddressSpace
import BareMachine
import CLinux
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3
import SMMUv3Spec
import SystemBus

/// A machine with one attached stream and mapped data, and a host buffer to copy to and from.
private final class Bench {
    static let pages: UInt64 = 0x4000_0000
    static let block: UInt64 = 0x8000_0000
    static let dataOffset: UInt64 = 32 << 20
    static let byteCount: UInt64 = 8 << 20

    let machine: BareMachine
    private let tracker = TransactionTracker()
    let port: StreamPort
    /// A port of a device that no SMMU stands before: what is left without translation.
    let direct: DirectPort
    /// Where in the host the mapped data is.
    let data: UnsafeMutableRawPointer
    let buffer: UnsafeMutableRawPointer
    static let bufferByteCount = 1 << 20
    /// Offsets of pages in an order that no prefetcher guesses.
    let shuffled: [Int]

    init(_ change: (inout SMMUv3Options) -> Void = { _ in }) throws {
        // As in the daemon: commands are executed on a thread of their own.
        var options = SMMUv3Options()
        change(&options)
        let memory = try MemoryRegion.anonymous(byteCount: 64 << 20, name: "bench")
        machine = try BareMachine(memory: memory, options: options)
        let physical = BareMachine.Layout.ram + Self.dataOffset
        try machine.attach(1)
        try machine.map(Self.pages, to: physical, byteCount: Self.byteCount)
        try machine.mapBlock(Self.block, to: physical)
        try machine.enable()
        port = machine.smmu.makePort(for: StreamID(1))
        direct = DirectPort(bus: machine.bus, tracker: tracker)
        data = try memory.pointer(at: Self.dataOffset, count: Self.byteCount, for: .write)
        memset(data, 0x5A, Int(Self.byteCount))
        buffer = .allocate(byteCount: Self.bufferByteCount, alignment: 4096)
        memset(buffer, 0xA5, Self.bufferByteCount)
        // A linear congruential walk through 2048 pages: each once, far from the one before.
        var page = 0
        shuffled = (0..<2048).map { _ in
            page = (page &* 1109 &+ 523) & 2047
            return page << 12
        }
    }

    deinit { buffer.deallocate() }

    func slice(_ count: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: buffer, count: count)
    }

    func read(_ count: Int, at address: UInt64) throws {
        try port.read(at: IOVirtualAddress(address), into: slice(count), .plain)
    }

    func write(_ count: Int, at address: UInt64) throws {
        try port.write(UnsafeRawBufferPointer(slice(count)), at: IOVirtualAddress(address), .plain)
    }

    /// The floor of a translation.
    func readDirectly(_ count: Int, at offset: Int) throws {
        let address = BareMachine.Layout.ram + Self.dataOffset + UInt64(offset)
        try direct.read(at: IOVirtualAddress(address), into: slice(count), .plain)
    }

    /// The floor of a read.
    func copyOut(_ count: Int, at offset: Int) {
        memcpy(buffer, data + offset, count)
        smmud_compiler_barrier()
    }

    /// The floor of a write.
    func copyIn(_ count: Int, at offset: Int) {
        memcpy(data + offset, buffer, count)
        smmud_compiler_barrier()
    }
}

var translationBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "hit-port",
            subject: "read of 8 B in the page the port used last",
            floor: "the same without an SMMU",
            prepare: {
                let bench = try Bench()
                return (
                    { count in for _ in 0..<count { try bench.read(8, at: Bench.pages) } },
                    { count in for _ in 0..<count { try bench.readDirectly(8, at: 0) } }
                )
            }
        ),
        Benchmark(
            name: "hit-tlb",
            subject: "read of 8 B, 2048 pages in turn: TLB hits",
            floor: "the same without an SMMU",
            prepare: { try overPages() }
        ),
        Benchmark(
            name: "miss",
            subject: "the same without a TLB: 4-level walks",
            floor: "the same without an SMMU",
            prepare: { try overPages { $0.tlbEntries = 0 } }
        ),
        Benchmark(
            name: "miss-all",
            subject: "the same without any cache: STE, CD, walk",
            floor: "the same without an SMMU",
            prepare: {
                try overPages {
                    $0.tlbEntries = 0
                    $0.configurationCacheEntries = 0
                }
            }
        ),
        dma("dma-read-64B", 64, .read),
        dma("dma-write-64B", 64, .write),
        dma("dma-read-4KiB", 4096, .read),
        dma("dma-write-4KiB", 4096, .write),
        dma("dma-read-1MiB", 1 << 20, .read),
        dma("dma-write-1MiB", 1 << 20, .write),
        dma("dma-read-1MiB-block", 1 << 20, .read, in: Bench.block),
        Benchmark(
            name: "invalidate",
            subject: "CMD_TLBI_NH_VA and CMD_SYNC, inline",
            floor: "membarrier(2)",
            prepare: {
                let bench = try Bench { $0.commandExecution = .inline }
                return (
                    { count in
                        for _ in 0..<count {
                            try bench.machine.submit(
                                .tlbiNHVA(vmid: 0, asid: 2, address: Bench.pages, leaf: true),
                                .sync()
                            )
                        }
                    },
                    { count in for _ in 0..<count { smmud_membarrier() } }
                )
            }
        ),
    ]
}

/// Small reads that touch a page each, so that no port remembers the translation.
private func overPages(_ change: (inout SMMUv3Options) -> Void = { _ in }) throws
    -> (subject: (Int) throws -> Void, floor: (Int) throws -> Void)
{
    let bench = try Bench(change)
    return (
        { count in
            for index in 0..<count {
                try bench.read(8, at: Bench.pages + UInt64(bench.shuffled[index & 2047]))
            }
        },
        { count in for index in 0..<count { try bench.readDirectly(8, at: bench.shuffled[index & 2047]) } }
    )
}

private func dma(
    _ name: String,
    _ byteCount: Int,
    _ kind: TransactionKind,
    in region: UInt64 = Bench.pages
) -> Benchmark {
    let size = byteCount < 1024 ? "\(byteCount) B" : byteCount < 1 << 20 ? "\(byteCount >> 10) KiB" : "1 MiB"
    return Benchmark(
        name: name,
        subject: "\(kind) of \(size) by DMA" + (region == Bench.block ? " in a 2 MiB block" : ""),
        floor: "memcpy of the same \(size)",
        prepare: {
            let bench = try Bench()
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
