// The daemon as a process: how soon it is ready, and what it keeps resident.

import Glibc

/// Where device trees of real boards are; scripts/fetch-boards fetches them.
enum BoardDirectory {
    nonisolated(unsafe) static var path = ".cache/boards"

    /// The blob of a board.
    static func blob(_ name: String) throws -> String {
        let blob = path + "/" + name
        guard access(blob, R_OK) == 0 else {
            throw SkippedBenchmark(reason: "\(blob) is missing; scripts/fetch-boards fetches it")
        }
        return blob
    }
}

var daemonBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "start-hip07",
            subject: "smmud from start to ready on HiSilicon's D05",
            floor: "echo, from start to its line",
            samplers: {
                let blob = try BoardDirectory.blob("hisilicon/hip07-d05.dtb")
                return .init(subject: { try startTime(blob, $0) }, floor: { try echoTime($0) })
            }
        ),
        Benchmark(
            name: "memory-hip07",
            subject: "resident memory of smmud when it is ready, likewise",
            floor: "that of cat",
            unit: .bytes,
            samplers: {
                let blob = try BoardDirectory.blob("hisilicon/hip07-d05.dtb")
                let scratch = try ScratchDirectory()
                return .init(
                    subject: { _ in
                        let daemon = try startedDaemon(blob, scratch)
                        return try daemon.residentByteCount()
                    },
                    floor: { _ in
                        let process = try HostProcess([
                            "sh", "-c", "echo ready; exec cat /dev/zero > /dev/null",
                        ])
                        try process.waitForLine()
                        // It reads for ever: soon it is what cat is.
                        usleep(20_000)
                        return try process.residentByteCount()
                    }
                )
            }
        ),
    ]
}

/// A daemon that has said that it is ready.
private func startedDaemon(_ blob: String, _ scratch: ScratchDirectory) throws -> HostProcess {
    let daemon = try HostProcess([
        HostProcess.path(ofBuilt: "smmud"), blob, "--control", scratch.path + "/control", "--dma",
        scratch.path + "/dma", "--log-level", "error",
    ])
    try daemon.waitForLine()
    return daemon
}

/// Nanoseconds from start to the ready line; the end is beside the clock.
func startTime(_ blob: String, _ count: Int) throws -> Double {
    let scratch = try ScratchDirectory()
    var time = 0.0
    for _ in 0..<count {
        let start = nanosecondsNow()
        let daemon = try startedDaemon(blob, scratch)
        time += Double(nanosecondsNow() &- start)
        withExtendedLifetime(daemon) {}
    }
    return time / Double(count)
}

private func echoTime(_ count: Int) throws -> Double {
    var time = 0.0
    for _ in 0..<count {
        let start = nanosecondsNow()
        let process = try HostProcess(["/bin/echo", "ready"])
        try process.waitForLine()
        time += Double(nanosecondsNow() &- start)
        withExtendedLifetime(process) {}
    }
    return time / Double(count)
}
