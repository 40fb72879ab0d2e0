// Invalidations: beside many and few resident entries, inline and as the daemon executes them.

import BareMachine
import CLinux
import SMMUv3
import SMMUv3Spec

var invalidationBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "invalidate",
            subject: "CMD_TLBI_NH_VA and CMD_SYNC, inline, empty TLB",
            floor: "membarrier(2)",
            prepare: {
                let bench = try TranslationBench { $0.commandExecution = .inline }
                return (
                    { count in for _ in 0..<count { try bench.invalidate(page: 0, asid: 2) } },
                    { count in for _ in 0..<count { smmud_membarrier() } }
                )
            }
        ),
        beside("tlbi-sync-16", 16, .inline),
        beside("tlbi-sync-65536", 65536, .inline),
        beside("tlbi-sync-16-thread", 16, .thread),
        beside("tlbi-sync-65536-thread", 65536, .thread),
    ]
}

extension TranslationBench {
    /// Invalidates one page and waits for it.
    func invalidate(page: Int, asid: UInt16 = 2) throws {
        try machine.submitPair(
            .tlbiNHVA(vmid: 0, asid: asid, address: Self.pages + UInt64(page) << 12, leaf: true),
            .sync()
        )
        guard machine.smmu.options.commandExecution == .thread else { return }
        while try !machine.hasConsumedAll { smmud_cpu_pause() }
    }
}

/// CMD_TLBI_NH_VA of an entry that is resident beside others, and CMD_SYNC.
private func beside(_ name: String, _ residentCount: Int, _ execution: SMMUv3Options.CommandExecution)
    -> Benchmark
{
    func prepare() throws -> TranslationBench {
        let bench = try TranslationBench(pageCount: 2 * residentCount, dataPageCount: 512) {
            $0.commandExecution = execution
            $0.tlbEntries = 1 << 17
        }
        for page in 0..<residentCount { try bench.read(8, at: TranslationBench.pages + UInt64(page) << 12) }
        return bench
    }
    return Benchmark(
        name: name,
        subject:
            "CMD_TLBI_NH_VA and CMD_SYNC, \(execution == .inline ? "inline" : "by the command thread, CONS polled"),"
            + " \(residentCount) entries",
        floor: "membarrier(2)",
        // Pages that are not resident: none has to be filled in again.
        counted: {
            let bench = try prepare()
            return { count in
                for index in 0..<count { try bench.invalidate(page: residentCount + index % residentCount) }
            }
        },
        samplers: {
            let bench = try prepare()
            return .init(
                subject: { count in
                    var (done, time) = (0, 0.0)
                    while done < count {
                        let batch = min(count - done, residentCount)
                        let start = nanosecondsNow()
                        for page in 0..<batch { try bench.invalidate(page: page) }
                        time += Double(nanosecondsNow() &- start)
                        // Beside the clock: resident again.
                        for page in 0..<batch {
                            try bench.read(8, at: TranslationBench.pages + UInt64(page) << 12)
                        }
                        done += batch
                    }
                    return time / Double(count)
                },
                floor: { count in try timed({ for _ in 0..<$0 { smmud_membarrier() } }, count) },
                leastCount: 16
            )
        }
    )
}
