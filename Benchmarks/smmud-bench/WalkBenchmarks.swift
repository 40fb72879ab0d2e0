// Walks by how much is known before they begin: with the walk cache, and with stage 2 behind stage 1.

import AddressSpace
import BareMachine
import DeviceModel
import GuestMemory
import SMMUv3
import SMMUv3Spec
import SystemBus

/// One stream that reads pages in turn, all of which have to be walked.
private final class WalkBench {
    private static let pages: UInt64 = 0x4000_0000
    private static let dataOffset: UInt64 = 32 << 20
    private static let byteCount: UInt64 = 8 << 20
    private static let stage2Offset: UInt64 = 16 << 20

    private let machine: BareMachine
    private let tracker = TransactionTracker()
    private let port: StreamPort
    private let direct: DirectPort
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 8, alignment: 8)
    /// Offsets of pages in an order that no prefetcher guesses.
    private let shuffled: [UInt64]

    init(isNested: Bool, _ change: (inout SMMUv3Options) -> Void) throws {
        var options = SMMUv3Options()
        options.tlbEntries = 0
        change(&options)
        var identification = Identification.stage1()
        identification.idr0.s2P = true
        let memory = try MemoryRegion.anonymous(byteCount: 64 << 20, name: "bench")
        machine = try BareMachine(memory: memory, identification: identification, options: options)
        try machine.attach(1)
        try machine.map(
            Self.pages,
            to: BareMachine.Layout.ram + Self.dataOffset,
            byteCount: Self.byteCount
        )
        if isNested { try Self.putStage2Behind(1, machine, ramByteCount: memory.byteCount) }
        try machine.enable()
        port = machine.smmu.makePort(for: StreamID(1))
        direct = DirectPort(bus: machine.bus, tracker: tracker)
        var page: UInt64 = 0
        shuffled = (0..<2048).map { _ in
            page = (page &* 1109 &+ 523) & 2047
            return page << 12
        }
    }

    deinit { buffer.deallocate() }

    /// Shows a stream's stage 1 all RAM where it is, through four levels of 4 KiB tables.
    private static func putStage2Behind(_ streamID: UInt64, _ machine: BareMachine, ramByteCount: UInt64)
        throws
    {
        let root = BareMachine.Layout.ram + stage2Offset
        var free = root + 0x1000
        for offset in stride(from: 0, to: ramByteCount, by: 0x1000) {
            let address = BareMachine.Layout.ram + offset
            var table = root
            for level in 0..<3 as Range<UInt64> {
                let entry = table + ((address >> (39 - 9 * level)) & 0x1FF) * 8
                if try machine.load(entry) == 0 {
                    try machine.store(free | 0b11, at: entry)
                    free += 0x1000
                }
                table = try machine.load(entry) & 0xFFFF_FFFF_F000
            }
            // AF, inner shareable, read and write, Write-Back, page.
            try machine.store(address | 0x7FF, at: table + ((address >> 12) & 0x1FF) * 8)
        }
        var ste = STE()
        ste.v = true
        ste.config = .nested
        ste.s1ContextPtr = BareMachine.Layout.contexts + streamID * 64
        ste.s2VMID = 7
        ste.s2T0SZ = 16
        ste.s2SL0 = 0b10
        ste.s2TG = 0b00
        ste.s2PS = 5
        ste.s2AA64 = true
        ste.s2R = true
        ste.s2TTB = root
        for index in 0..<8 {
            let place = BareMachine.Layout.streamTable + streamID * 64 + UInt64(index) * 8
            try machine.store(ste.words[index], at: place)
        }
    }

    func read(_ count: Int) throws {
        for index in 0..<count {
            let address = IOVirtualAddress(Self.pages + shuffled[index & 2047])
            try port.read(at: address, into: buffer, .plain)
        }
    }

    /// The floor: the same without an SMMU.
    func readDirectly(_ count: Int) throws {
        for index in 0..<count {
            let address = BareMachine.Layout.ram + Self.dataOffset + shuffled[index & 2047]
            try direct.read(at: IOVirtualAddress(address), into: buffer, .plain)
        }
    }
}

var walkBenchmarks: [Benchmark] {
    [
        walk("miss-walk-cache", "miss with the walk cache: one descriptor") { $0.walkCacheEntries = 1024 },
        walk("miss-nested", "both stages, STE and CD cached: 24 descriptors", isNested: true) { _ in },
        walk("miss-nested-walk-cache", "both stages, the walk cache: 2 descriptors", isNested: true) {
            $0.walkCacheEntries = 1024
        },
        walk("miss-nested-all", "both stages, nothing cached: 30 fetches", isNested: true) {
            $0.configurationCacheEntries = 0
        },
    ]
}

/// Small reads that touch a page each, without a TLB.
private func walk(
    _ name: String,
    _ subject: String,
    isNested: Bool = false,
    _ change: @escaping (inout SMMUv3Options) -> Void
) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "the same without an SMMU",
        prepare: {
            let bench = try WalkBench(isNested: isNested, change)
            return ({ try bench.read($0) }, { try bench.readDirectly($0) })
        }
    )
}
