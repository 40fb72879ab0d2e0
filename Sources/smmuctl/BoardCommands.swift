// Commands about the daemon and the machine as a whole.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Board: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows the machine: SMMUs, interrupts, endpoints and their StreamIDs, memory.",
        discussion: "Example: smmuctl board --json | jq '.endpoints[].name'"
    )
    @OptionGroup var global: GlobalOptions

    func run() throws {
        let board = try global.call(Methods.MachineDescribe.self, Nothing())
        try global.print(board, as: BoardReport.text(board))
    }
}

struct Stats: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows counters.",
        discussion: "Example: smmuctl stats --smmu 0"
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var smmu: SMMUOption

    func run() throws {
        let stats = try global.call(Methods.Stats.self, .init(smmu: smmu.selector))
        try global.print(stats, as: Reports.counters(stats.groups))
    }
}

struct Log: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows what the daemon's own drivers have logged.",
        discussion: "Example: smmuctl log --since 10"
    )
    @OptionGroup var global: GlobalOptions
    @Option(help: "Only lines with this number or a higher one.") var since: Number?

    func run() throws {
        let log = try global.call(Methods.DriverLog.self, .init(since: since?.size))
        try global.print(log, as: Reports.log(log.lines))
    }
}

struct Version: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows the daemon's version and its protocols'.",
        discussion: "Example: smmuctl version --json"
    )
    @OptionGroup var global: GlobalOptions

    func run() throws {
        let version = try global.call(Methods.DaemonVersion.self, Nothing())
        let dmaSocket = version.dmaSocket.map { ", DMA socket \($0)" } ?? ""
        try global.print(
            version,
            as: "\(version.name) \(version.version), process \(version.processID), control protocol "
                + "\(version.controlProtocol), DMA protocol \(version.dmaProtocol)\(dmaSocket)\n"
        )
    }
}

struct Shutdown: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stops the daemon.",
        discussion: "Example: smmuctl shutdown"
    )
    @OptionGroup var global: GlobalOptions

    func run() throws {
        let answer = try global.call(Methods.DaemonShutdown.self, Nothing())
        try global.print(answer, as: "the daemon is stopping\n")
    }
}
