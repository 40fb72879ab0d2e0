// Commands that show what happened: events and interrupts, before or from now on.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Events: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows events that SMMUs raised, with their records.",
        discussion: """
            With --follow, waits for new ones until it is interrupted; with --json then a line for each.

            Example: smmuctl events --limit 1
            """
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var smmu: SMMUOption
    @Option(help: "Only events with this number or a higher one.") var since: Number?
    @Option(help: "At most so many, the latest ones.") var limit: Number?
    @Flag(help: "Wait for new events.") var follow = false
    @Flag(help: "A line for each event, without its record and fields.") var brief = false

    func run() throws {
        if !follow {
            let result = try global.call(Methods.EventsList.self, parameters)
            try global.print(result, as: EventReport.text(result.events, showsFields: !brief))
            return
        }
        var lines: [(EventInfo, Size?)] = []
        try global.withClient { client throws(ClientError) in
            let next = try client.call(Methods.EventsSubscribe.self, .init(smmu: smmu.selector)).next
            if since != nil || limit != nil {
                let older = try client.call(Methods.EventsList.self, parameters).events
                // What came after the subscription comes as a notification too.
                lines = older.filter { $0.sequence.value < next.value }.map { ($0, nil) }
            }
            repeat {
                for (event, dropped) in lines { show(event, dropped) }
                lines = []
                let line = try following(client)
                do throws(ControlError) {
                    let notification = try line.parameters(as: EventNotification.self)
                    if let notification { lines = [(notification.event, notification.dropped)] }
                } catch { throw .violation(error.message) }
            } while true
        }
    }

    private var parameters: Methods.EventsList.Parameters {
        .init(smmu: smmu.selector, since: since?.size, limit: limit?.size)
    }

    private func show(_ event: EventInfo, _ dropped: Size?) {
        try? global.printLine(
            EventNotification(event: event, dropped: dropped),
            as: EventReport.text(event, showsFields: !brief, dropped: dropped)
        )
    }
}

struct IRQ: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "irq",
        abstract: "Shows interrupt lines and how often they were raised.",
        discussion: """
            With --follow, waits for signals until it is interrupted; with --json then a line for each.

            Example: smmuctl irq --follow 0 1
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "Line numbers; all lines unless given.") var lines: [Int] = []
    @Flag(help: "Wait for signals.") var follow = false

    func run() throws {
        if !follow {
            let result = try global.call(Methods.InterruptsList.self, Nothing())
            let wanted = result.interrupts.filter { lines.isEmpty || lines.contains($0.line) }
            try global.print(
                Methods.InterruptsList.Result(interrupts: wanted),
                as: Reports.interrupts(wanted)
            )
            return
        }
        try global.withClient { client throws(ClientError) in
            _ = try client.call(Methods.InterruptsSubscribe.self, .init(lines: lines.isEmpty ? nil : lines))
            while true {
                let line = try following(client)
                do throws(ControlError) {
                    guard let signal = try line.parameters(as: InterruptNotification.self) else { continue }
                    try? global.printLine(signal, as: Reports.signal(signal))
                } catch { throw .violation(error.message) }
            }
        }
    }
}

/// The next notification; a daemon that goes away while it is followed is a connection that was lost.
func following(_ client: ControlClient) throws(ClientError) -> ControlNotificationLine {
    guard let line = try client.nextNotification() else {
        throw .disconnected(reason: "the daemon closed it")
    }
    return line
}
