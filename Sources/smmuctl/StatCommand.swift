// smmuctl stat: counts with the performance monitor counter groups, as `perf stat` does.

import ArgumentParser
import ControlProtocol
import Glibc
import SMMUClient

struct Stat: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Counts events with the board's performance counters, as perf stat does.",
        discussion: """
            Counts until Ctrl-C, for some seconds (--for), or while a command runs (after --). It programs the \
            counter groups' registers as a driver would, so it takes none that a driver counts with. What the \
            daemon counts of its own, from its start on, is shown by 'smmuctl stats'.

            Events: cycles, transaction, tlb_miss, config_cache_miss, trans_table_walk_access, \
            config_struct_access, pcie_ats_trans_rq, pcie_ats_trans_passed, or a number.

            Example: smmuctl stat --for 10
            Example: smmuctl stat -e transaction -e tlb_miss --stream 0x10 -- smmuctl dma read sid:0:0x10 0x10000 64
            """
    )
    @OptionGroup var global: GlobalOptions
    @Option(
        name: [.customShort("e"), .customLong("event")],
        help: "An event to count; all that there are counters for unless given. May be given several times."
    )
    var events: [PerformanceEvent] = []
    @Option(
        help: ArgumentHelp(
            "A counter group, by its path, its end, or its place among the board's; all unless given. May be "
                + "given several times.",
            valueName: "group"
        )
    )
    var pmcg: [String] = []
    @Option(help: "Only events of this StreamID.") var stream: Number?
    @Flag(
        help: "With --stream: ignore its lowest clear bit and the set bits below (0x47 stands for 0x40-0x4f)."
    )
    var span = false
    @Option(name: .customLong("for"), help: ArgumentHelp("Stop after so long.", valueName: "seconds"))
    var seconds: Double?
    @Flag(help: "Take groups that somebody else counts with.") var force = false
    @Argument(
        parsing: .postTerminator,
        help: ArgumentHelp("A command to count for, behind --.", valueName: "command")
    )
    var command: [String] = []

    func validate() throws {
        if let stream, UInt32(exactly: stream.value) == nil {
            throw ValidationError("--stream: a StreamID has 32 bits.")
        }
        guard stream != nil || !span else { throw ValidationError("--span goes with --stream.") }
        guard seconds == nil || command.isEmpty else {
            throw ValidationError("Give --for or a command, not both.")
        }
        if let seconds {
            guard seconds >= 0, seconds <= 1e9 else { throw ValidationError("--for takes 0 to 1e9 seconds.") }
        }
    }

    func run() throws {
        // From here on a signal ends the counting, not us: the counters are switched off again.
        let signals = SignalSet(SIGINT, SIGTERM, SIGHUP, SIGCHLD)
        signals.block()
        var exitCode = ExitCode.success
        let result = try global.withClient { client throws(ClientError) in
            var drivers = try drivers(client)
            for index in drivers.indices {
                do throws(ClientError) {
                    try drivers[index].start(events(of: drivers[index]), of: selection)
                } catch {
                    for started in 0..<index { _ = try drivers[started].stop() }
                    throw error
                }
            }
            let start = Clock.now
            do throws(FileProblem) {
                exitCode = try wait(signals)
            } catch {
                for index in drivers.indices { _ = try drivers[index].stop() }
                throw .local(error.description)
            }
            let elapsed = Clock.now - start
            var groups: [CounterGroupReading] = []
            for index in drivers.indices { groups.append(try drivers[index].stop()) }
            return CountingResult(seconds: elapsed, groups: groups)
        }
        try global.print(result, as: CounterReport.text(result))
        if exitCode != .success { throw exitCode }
    }

    private var selection: StreamSelection? {
        stream.map { StreamSelection(streamID: UInt32(truncatingIfNeeded: $0.value), isSpan: span) }
    }

    private func events(of driver: CounterGroupDriver<ControlClient>) -> [PerformanceEvent] {
        events.isEmpty ? Array(driver.countableEvents.prefix(driver.counterCount)) : events
    }

    /// The groups that are wanted, none of them in use.
    private func drivers(_ client: ControlClient) throws(ClientError) -> [CounterGroupDriver<ControlClient>] {
        let board = try client.call(Methods.MachineDescribe.self, Nothing())
        guard !board.pmcgs.isEmpty else {
            throw .local("this board has no performance counters: it needs an arm,smmu-v3-pmcg node")
        }
        var drivers: [CounterGroupDriver<ControlClient>] = []
        for group in try selected(board.pmcgs) {
            let driver = try CounterGroupDriver(group, client)
            if !force, try driver.isCounting() {
                throw .local("\(group.path) is in use, by a driver or another smmuctl; --force takes it")
            }
            drivers.append(driver)
        }
        return drivers
    }

    private func selected(_ groups: [PMCGInfo]) throws(ClientError) -> [PMCGInfo] {
        guard !pmcg.isEmpty else { return groups }
        var places: Set<Int> = []
        for name in pmcg {
            let matches =
                Int(name).map { place in groups.indices.filter { $0 == place } }
                ?? groups.indices.filter { groups[$0].path == name || groups[$0].path.hasSuffix("/" + name) }
            guard let place = matches.first, matches.count == 1 else {
                throw .local("there is no counter group \"\(name)\"; smmuctl board shows them")
            }
            places.insert(place)
        }
        return places.sorted().map { groups[$0] }
    }

    /// Waits for the end of what is counted; the exit code of the command, if there is one.
    private func wait(_ signals: SignalSet) throws(FileProblem) -> ExitCode {
        guard !command.isEmpty else {
            let end = seconds.map { Clock.now + $0 }
            while true {
                let signal = signals.wait(seconds: end.map { $0 - Clock.now })
                if signal == nil || signal != SIGCHLD { return .success }
            }
        }
        let process = try SpawnedProcess(command)
        while true {
            if let exitCode = process.exitCode() { return ExitCode(exitCode) }
            // A terminal sends Ctrl-C to the command too; the other signals are passed on.
            if let signal = signals.wait(seconds: nil), signal == SIGTERM || signal == SIGHUP {
                process.send(signal)
            }
        }
    }
}

extension PerformanceEvent: ExpressibleByArgument {
    package init?(argument: String) { self.init(argument) }
}
