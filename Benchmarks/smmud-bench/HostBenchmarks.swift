// What the machine itself takes for what everything else is made of; each against one load from the first cache.

import CLinux
import Glibc
import Synchronization

/// Loads that each wait for the one before: a ring of 64 pointers in the first cache.
private final class LoadChain {
    private let words: UnsafeMutablePointer<Int>
    private var place = 0

    init() {
        words = .allocate(capacity: 64)
        for index in 0..<64 { words[index] = (index + 9) & 63 }
    }

    deinit { words.deallocate() }

    func run(_ count: Int) {
        var place = place
        for _ in 0..<count { place = words[place] }
        self.place = place
        smmud_compiler_barrier()
    }
}

/// Multiplications as many as a core takes at once: four chains of them keep its multiplier busy.
final class Multiplications {
    private var values: (UInt64, UInt64, UInt64, UInt64) = (3, 5, 7, 9)

    func run(_ count: Int) {
        var (a, b, c, d) = values
        for _ in 0..<count {
            // No power of a constant, which could be worked out beforehand.
            a = (a ^ a &>> 29) &* 0x5851_F42D_4C95_7F2D
            b = (b ^ b &>> 29) &* 0x5851_F42D_4C95_7F2D
            c = (c ^ c &>> 29) &* 0x5851_F42D_4C95_7F2D
            d = (d ^ d &>> 29) &* 0x5851_F42D_4C95_7F2D
        }
        values = (a, b, c, d)
        smmud_compiler_barrier()
    }
}

/// 64 MiB twice: what is copied, and where to.
private final class CopiedMemory {
    static let byteCount = 64 << 20
    private let source = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 4096)
    private let target = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    private var offset = 0

    init() {
        memset(source, 1, Self.byteCount)
        memset(target, 2, 1 << 20)
    }

    deinit {
        source.deallocate()
        target.deallocate()
    }

    func run(_ count: Int) {
        for _ in 0..<count {
            memcpy(target, source + offset, 4096)
            smmud_compiler_barrier()
            offset = (offset + 4096) & (Self.byteCount - 1)
        }
    }
}

/// Two threads that hand a number to each other through one cache line.
private final class HandOver {
    private let companion = Companion()
    private let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 32)

    deinit { words.deallocate() }

    /// Nanoseconds for one way.
    func sample(_ count: Int) -> Double {
        let (there, back) = (words, words + 16)
        let target = UInt64(count)
        there.initialize(to: 0)
        back.initialize(to: 0)
        nonisolated(unsafe) let (theirIn, theirOut) = (there, back)
        let time = companion.together {
            for turn in 1...target {
                while smmud_load_u64(theirIn) != turn { smmud_cpu_pause() }
                smmud_store_u64(theirOut, turn)
            }
        } mine: {
            for turn in 1...target {
                smmud_store_u64(there, turn)
                while smmud_load_u64(back) != turn { smmud_cpu_pause() }
            }
        }
        return time / Double(count) / 2
    }
}

private func host(_ name: String, _ subject: String, _ prepare: @escaping () -> (Int) -> Void) -> Benchmark {
    Benchmark(
        name: name,
        subject: subject,
        floor: "a load from the first cache",
        prepare: {
            let chain = LoadChain()
            return (prepare(), { chain.run($0) })
        }
    )
}

var hostBenchmarks: [Benchmark] {
    [
        host("host-load", "a load from the first cache") {
            let chain = LoadChain()
            return { chain.run($0) }
        },
        host("host-atomic", "an atomic addition that nobody else wants") {
            let word = Counter()
            return { for _ in 0..<$0 { word.value.wrappingAdd(1, ordering: .sequentiallyConsistent) } }
        },
        host("host-mutex", "lock and unlock of a mutex that nobody else wants") {
            let mutex = Mutex(0)
            return { for _ in 0..<$0 { mutex.withLock { $0 &+= 1 } } }
        },
        host("host-call", "a system call") { { for _ in 0..<$0 { _ = getppid() } } },
        host("host-copy-4KiB", "memcpy of 4 KiB, out of 64 MiB") {
            let memory = CopiedMemory()
            return { memory.run($0) }
        },
        host("host-membarrier", "membarrier(2), all other threads asleep") {
            { for _ in 0..<$0 { smmud_membarrier() } }
        },
        Benchmark(
            name: "host-membarrier-busy",
            subject: "membarrier(2) while another thread runs",
            floor: "membarrier(2), all other threads asleep",
            samplers: {
                let companion = Companion()
                let barriers: (Int) -> Void = { for _ in 0..<$0 { smmud_membarrier() } }
                return .init(
                    subject: { count in
                        companion.meanwhile({ smmud_cpu_pause() }, mine: { barriers(count) }) / Double(count)
                    },
                    floor: { try timed(barriers, $0) },
                    leastCount: 16
                )
            }
        ),
        Benchmark(
            name: "host-hand-over",
            subject: "a word from one CPU to another, both polling",
            floor: "a load from the first cache",
            samplers: {
                let (handOver, chain) = (HandOver(), LoadChain())
                return .init(
                    subject: { handOver.sample($0) },
                    floor: { try timed(chain.run, $0) },
                    leastCount: 1000
                )
            }
        ),
        twoThreads("host-two-threads", "loads from the first cache") {
            let chain = LoadChain()
            return { chain.run($0) }
        },
        // Loads wait for each other; this does not. Where the host has put both CPUs on one core it has half the speed,
        // and so has whatever keeps a core busy.
        twoThreads("host-two-cores", "work that fills a core") {
            let work = Multiplications()
            return { work.run($0) }
        },
    ]
}

/// Work that two threads do, each its own.
private func twoThreads(
    _ name: String,
    _ subject: String,
    _ prepare: @escaping () -> (Int) -> Void
) -> Benchmark {
    Benchmark(
        name: name,
        subject: "\(subject), two threads: one of them",
        floor: "the same, one thread",
        samplers: {
            let (mine, companion) = (prepare(), Companion())
            // The companion's alone.
            nonisolated(unsafe) let theirs = prepare()
            return .init(
                subject: { count in
                    companion.together({ theirs(count) }, mine: { mine(count) }) / Double(2 * count)
                },
                floor: { try timed(mine, $0) },
                leastCount: 100_000
            )
        }
    )
}

private final class Counter: Sendable {
    let value = Atomic<UInt64>(0)
}
