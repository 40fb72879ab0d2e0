// Two threads at one SMMU: two devices that hit, and one that is disturbed by invalidations.

import AddressSpace
import BareMachine
import CLinux
import DeviceModel
import SMMUv3
import SMMUv3Spec

/// Two devices of one SMMU, and a thread for the second.
private final class TwoDevices {
    /// The first device's; the second has the block, whose reads are one transaction each.
    static let pages = TranslationBench.pages
    let bench: TranslationBench
    /// The second device's.
    ///
    /// Only the companion uses it while both run.
    nonisolated(unsafe) let other: StreamPort
    nonisolated(unsafe) let buffer: UnsafeMutableRawPointer
    let companion = Companion()

    init(_ execution: SMMUv3Options.CommandExecution) throws {
        bench = try TranslationBench { $0.commandExecution = execution }
        try bench.machine.attach(2)
        other = bench.machine.smmu.makePort(for: StreamID(2))
        buffer = .allocate(byteCount: 1 << 20, alignment: 4096)
        buffer.initializeMemory(as: UInt8.self, repeating: 0, count: 1 << 20)
    }

    deinit { buffer.deallocate() }

    /// Reads by the second device; its own thread calls it.
    var otherReads: @Sendable (_ count: Int, _ byteCount: Int) -> Void {
        nonisolated(unsafe) let (port, buffer) = (other, buffer)
        return { count, byteCount in
            let slice = UnsafeMutableRawBufferPointer(start: buffer, count: byteCount)
            for _ in 0..<count {
                do {
                    try port.read(at: IOVirtualAddress(TranslationBench.block), into: slice, .plain)
                } catch {
                    preconditionFailure("the block is mapped: \(error)")
                }
            }
        }
    }

    func hits(_ count: Int) throws {
        for _ in 0..<count { try bench.read(8, at: Self.pages) }
    }
}

var threadBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "two-threads",
            subject: "hits of two devices, a thread each: one of them",
            floor: "the same, one device",
            samplers: {
                let devices = try TwoDevices(.thread)
                let reads = devices.otherReads
                return .init(
                    subject: { count in
                        try devices.companion.together({ reads(count, 8) }, mine: { try devices.hits(count) })
                            / Double(2 * count)
                    },
                    floor: { try timed(devices.hits, $0) },
                    leastCount: 10_000
                )
            }
        ),
        Benchmark(
            name: "hits-beside-tlbi",
            subject: "hits while another thread invalidates elsewhere all the time",
            floor: "hits, nobody invalidates",
            samplers: {
                let devices = try TwoDevices(.inline)
                nonisolated(unsafe) let bench = devices.bench
                return .init(
                    subject: { count in
                        let time = try devices.companion.meanwhile {
                            do { try bench.invalidate(page: 2047) } catch { preconditionFailure("\(error)") }
                        } mine: {
                            try devices.hits(count)
                        }
                        return time / Double(count)
                    },
                    floor: { try timed(devices.hits, $0) },
                    leastCount: 10_000
                )
            }
        ),
        // What of that is the other thread's being there at all: where both CPUs are one core, half.
        Benchmark(
            name: "hits-beside-work",
            subject: "hits while another thread computes, without the SMMU",
            floor: "hits, nobody else runs",
            samplers: {
                let devices = try TwoDevices(.inline)
                nonisolated(unsafe) let work = Multiplications()
                return .init(
                    subject: { count in
                        let time = try devices.companion.meanwhile {
                            work.run(100)
                        } mine: {
                            try devices.hits(count)
                        }
                        return time / Double(count)
                    },
                    floor: { try timed(devices.hits, $0) },
                    leastCount: 10_000
                )
            }
        ),
        busy("sync-busy-1MiB", 1 << 20, "1 MiB"),
        busy("sync-busy-4KiB", 4096, "4 KiB"),
    ]
}

/// CMD_SYNC while another device reads all the time, against the time of one such read: it waits for the one that is
/// in flight, and for no new one.
private func busy(_ name: String, _ byteCount: Int, _ size: String) -> Benchmark {
    Benchmark(
        name: name,
        subject: "CMD_TLBI_NH_VA and CMD_SYNC while another device reads \(size) again and again",
        floor: "one such read",
        samplers: {
            let devices = try TwoDevices(.inline)
            let (bench, reads) = (devices.bench, devices.otherReads)
            return .init(
                subject: { count in
                    let time = try devices.companion.meanwhile({ reads(1, byteCount) }) {
                        for _ in 0..<count { try bench.invalidate(page: 2047) }
                    }
                    return time / Double(count)
                },
                floor: { count in
                    try timed(
                        { for _ in 0..<$0 { try bench.read(byteCount, at: TranslationBench.block) } },
                        count
                    )
                },
                leastCount: 16
            )
        }
    )
}
