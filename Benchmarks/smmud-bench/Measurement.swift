// How a subject is measured against its floor: pairs of samples, interleaved, so that both see the same machine.

import Glibc

/// Something to measure, and the least that could do the job: its floor.
struct Benchmark {
    /// What `--filter` matches.
    let name: String
    let subject: String
    let floor: String
    /// Sets up what both work on.
    ///
    /// Each closure runs its body so many times.
    let prepare: () throws -> (subject: (Int) throws -> Void, floor: (Int) throws -> Void)
}

/// How long to measure.
struct Effort {
    /// How many pairs of samples.
    var pairs: Int
    /// How long one sample takes at least.
    var sampleNanoseconds: Double

    static let full = Effort(pairs: 41, sampleNanoseconds: 4_000_000)
    static let quick = Effort(pairs: 9, sampleNanoseconds: 500_000)
}

/// What came out.
///
/// Times are of this machine at this moment; the ratio is what to quote.
struct Measurement: Encodable {
    let name: String
    let subject: String
    let floor: String
    let pairs: Int
    let subjectNanoseconds: Double
    let floorNanoseconds: Double
    /// The median of the pairs' ratios, and the quartiles around it.
    let ratio: Double
    let ratioLowerQuartile: Double
    let ratioUpperQuartile: Double
}

extension Benchmark {
    func measure(_ effort: Effort) throws -> Measurement {
        let (subject, floor) = try prepare()
        let subjectCount = try Self.calibrate(subject, effort)
        let floorCount = try Self.calibrate(floor, effort)
        var subjects: [Double] = []
        var floors: [Double] = []
        for pair in 0..<effort.pairs {
            // Whoever comes second finds a warmer or a more throttled machine: take turns.
            if pair.isMultiple(of: 2) {
                subjects.append(try Self.sample(subject, subjectCount))
                floors.append(try Self.sample(floor, floorCount))
            } else {
                floors.append(try Self.sample(floor, floorCount))
                subjects.append(try Self.sample(subject, subjectCount))
            }
        }
        let ratios = zip(subjects, floors).map { $0 / $1 }
        return Measurement(
            name: name,
            subject: self.subject,
            floor: self.floor,
            pairs: effort.pairs,
            subjectNanoseconds: quantile(subjects, 0.5),
            floorNanoseconds: quantile(floors, 0.5),
            ratio: quantile(ratios, 0.5),
            ratioLowerQuartile: quantile(ratios, 0.25),
            ratioUpperQuartile: quantile(ratios, 0.75)
        )
    }

    /// How many repetitions make a sample long enough; warms up on the way.
    private static func calibrate(_ body: (Int) throws -> Void, _ effort: Effort) throws -> Int {
        var count = 1
        while true {
            let nanoseconds = try sample(body, count) * Double(count)
            if nanoseconds >= effort.sampleNanoseconds { return count }
            count *= 2
        }
    }

    /// Nanoseconds for one of `count` repetitions.
    private static func sample(_ body: (Int) throws -> Void, _ count: Int) throws -> Double {
        let start = nanosecondsNow()
        try body(count)
        return Double(nanosecondsNow() - start) / Double(count)
    }
}

private func nanosecondsNow() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

private func quantile(_ values: [Double], _ fraction: Double) -> Double {
    let sorted = values.sorted()
    return sorted[Int((Double(sorted.count - 1) * fraction).rounded())]
}
