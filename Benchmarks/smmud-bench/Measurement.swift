// How a subject is measured against its floor: pairs of samples, interleaved, so that both see the same machine.

import Glibc

/// What a row's figure is in.
enum Unit: String, Codable {
    /// Nanoseconds for one repetition.
    case nanoseconds
    /// Bytes of memory.
    case bytes
}

/// Something to measure, and the least that could do the job: its floor.
struct Benchmark {
    /// Take one sample of so many repetitions, and give the figure of one of them.
    struct Samplers {
        let subject: (Int) throws -> Double
        let floor: (Int) throws -> Double
        /// The fewest repetitions of a sample: where another thread has to wake up first, one of them says nothing.
        var leastCount = 1
    }

    /// What `--filter` matches.
    let name: String
    let subject: String
    let floor: String
    let unit: Unit
    /// Sets up what both work on.
    let samplers: () throws -> Samplers
    /// Sets up the subject alone and gives its body, for `--repetitions`; nil where there is nothing to count.
    let counted: (() throws -> (Int) throws -> Void)?

    /// A row of which each sample is the time of a loop.
    ///
    /// - Parameters:
    ///   - name: What `--filter` matches.
    ///   - subject: In words.
    ///   - floor: In words.
    ///   - prepare: Sets up what both work on. Each closure runs its body so many times.
    init(
        name: String,
        subject: String,
        floor: String,
        prepare: @escaping () throws -> (subject: (Int) throws -> Void, floor: (Int) throws -> Void)
    ) {
        self.name = name
        self.subject = subject
        self.floor = floor
        unit = .nanoseconds
        samplers = {
            let (subject, floor) = try prepare()
            return Samplers(subject: { try timed(subject, $0) }, floor: { try timed(floor, $0) })
        }
        counted = { try prepare().subject }
    }

    /// A row that takes its own samples.
    ///
    /// - Parameters:
    ///   - name: What `--filter` matches.
    ///   - subject: In words.
    ///   - floor: In words.
    ///   - unit: Of what the samplers give.
    ///   - counted: Sets up what `--repetitions` runs.
    ///   - samplers: Sets up what both work on.
    init(
        name: String,
        subject: String,
        floor: String,
        unit: Unit = .nanoseconds,
        counted: (() throws -> (Int) throws -> Void)? = nil,
        samplers: @escaping () throws -> Samplers
    ) {
        self.name = name
        self.subject = subject
        self.floor = floor
        self.unit = unit
        self.counted = counted
        self.samplers = samplers
    }
}

/// How long to measure.
struct Effort {
    /// How many pairs of samples.
    var pairs: Int
    /// How long one sample takes at least.
    var sampleNanoseconds: Double
    /// How long one row may take beyond its preparation; slow ones get fewer pairs, but never less than seven.
    var rowNanoseconds: Double

    /// Many short samples: a short one is more often left alone by what else runs on the machine.
    static let full = Effort(pairs: 101, sampleNanoseconds: 1_000_000, rowNanoseconds: 2_500_000_000)
    static let quick = Effort(pairs: 9, sampleNanoseconds: 300_000, rowNanoseconds: 200_000_000)
}

/// The median of samples, and the quartiles around it.
struct Spread: Codable {
    let median: Double
    let lowerQuartile: Double
    let upperQuartile: Double

    init(_ values: [Double]) {
        let sorted = values.sorted()
        func quantile(_ fraction: Double) -> Double {
            sorted[Int((Double(sorted.count - 1) * fraction).rounded())]
        }
        median = quantile(0.5)
        lowerQuartile = quantile(0.25)
        upperQuartile = quantile(0.75)
    }
}

/// What came out.
///
/// Figures are of this machine at this moment; the ratio is what to quote.
struct Measurement {
    let name: String
    let subject: String
    let floor: String
    let unit: Unit
    /// How many pairs of samples the figures are from.
    let pairs: Int
    /// In how many pairs the kernel took the CPU away; they count only where there are hardly others.
    let disturbedPairs: Int
    let subjectFigure: Spread
    let floorFigure: Spread
    /// Of each pair, subject by floor.
    let ratio: Spread
}

extension Benchmark {
    func measure(_ effort: Effort) throws -> Measurement {
        let samplers = try samplers()
        let subjectCount = try calibrate(samplers.subject, samplers.leastCount, effort)
        let floorCount = try calibrate(samplers.floor, samplers.leastCount, effort)
        var subjects: [Double] = []
        var floors: [Double] = []
        let start = nanosecondsNow()
        // Pairs in which the kernel took the CPU away from us: a second choice.
        var disturbed: [(subject: Double, floor: Double)] = []
        while subjects.count < effort.pairs {
            let pair = subjects.count + disturbed.count
            guard pair < 7 || Double(nanosecondsNow() &- start) < effort.rowNanoseconds else { break }
            let preemptions = preemptionCount()
            let (subject, floor): (Double, Double)
            // Whoever comes second finds a warmer or a more throttled machine: take turns.
            if pair.isMultiple(of: 2) {
                subject = try samplers.subject(subjectCount)
                floor = try samplers.floor(floorCount)
            } else {
                floor = try samplers.floor(floorCount)
                subject = try samplers.subject(subjectCount)
            }
            if preemptionCount() == preemptions {
                subjects.append(subject)
                floors.append(floor)
            } else {
                disturbed.append((subject, floor))
            }
        }
        if subjects.count < 7 {
            subjects += disturbed.map(\.subject)
            floors += disturbed.map(\.floor)
        }
        return Measurement(
            name: name,
            subject: subject,
            floor: floor,
            unit: unit,
            pairs: subjects.count,
            disturbedPairs: disturbed.count,
            subjectFigure: Spread(subjects),
            floorFigure: Spread(floors),
            ratio: Spread(zip(subjects, floors).map { $0 / $1 })
        )
    }

    /// How many repetitions make a sample long enough; warms up on the way.
    private func calibrate(_ sampler: (Int) throws -> Double, _ leastCount: Int, _ effort: Effort) throws
        -> Int
    {
        guard unit == .nanoseconds else { return 1 }
        var count = leastCount
        while true {
            let duration = try sampler(count) * Double(count)
            // The first sample is cold, and each may have been held up: so short a one has to be as long three times.
            let isLong = duration >= 20 * effort.sampleNanoseconds
            if try isLong || duration >= effort.sampleNanoseconds && staysLong(sampler, count, effort) {
                return count
            }
            count *= 2
        }
    }

    private func staysLong(_ sampler: (Int) throws -> Double, _ count: Int, _ effort: Effort) throws -> Bool {
        for _ in 0..<2 where try sampler(count) * Double(count) < effort.sampleNanoseconds { return false }
        return true
    }
}

/// Nanoseconds for one of `count` repetitions.
func timed(_ body: (Int) throws -> Void, _ count: Int) throws -> Double {
    let start = nanosecondsNow()
    try body(count)
    return Double(nanosecondsNow() &- start) / Double(count)
}

/// How often threads of this process had to leave a CPU that they wanted to keep.
private func preemptionCount() -> Int {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return usage.ru_nivcsw
}

func nanosecondsNow() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
