// Which CPUs threads run on, where a row says something of one CPU, or of two.

import CLinux

/// The calling thread, kept on one CPU as long as this lives.
///
/// Threads and programs that it starts meanwhile are on the same CPU, and stay there. One thread makes it and
/// lets go of it.
final class Affinity {
    /// The CPUs that this thread may run on.
    private let allowed: [CInt]

    private init() {
        allowed = [CInt](unsafeUninitializedCapacity: 1024) { cpus, count in
            count = smmud_allowed_cpus(cpus.baseAddress, cpus.count)
        }
    }

    deinit { _ = smmud_keep_on_cpus(allowed, allowed.count) }

    /// All on one CPU.
    static func one() -> Affinity {
        let affinity = Affinity()
        affinity.keep(on: affinity.allowed.first ?? 0)
        return affinity
    }

    /// On two CPUs: what `others` starts is on the one, this thread on the other.
    ///
    /// - Throws: ``SkippedBenchmark`` where there are no two.
    static func two<Others>(_ others: () throws -> Others) throws -> (Affinity, Others) {
        let affinity = Affinity()
        guard affinity.allowed.count > 1 else { throw SkippedBenchmark(reason: "it takes two CPUs") }
        affinity.keep(on: affinity.allowed[1])
        let started = try others()
        affinity.keep(on: affinity.allowed[0])
        return (affinity, started)
    }

    private func keep(on cpu: CInt) { _ = smmud_keep_on_cpus([cpu], 1) }
}
