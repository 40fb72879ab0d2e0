// Commands that watch the daemon's own driver: its log, its commands, strict beside lazy.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Dmesg: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows the log of the daemon's own drivers, in the kernel's wording.",
        discussion: """
            With --follow, waits for new lines until it is interrupted; with --json then a line for each.

            Example: smmuctl dmesg --follow
            """
    )
    @OptionGroup var global: GlobalOptions
    @Flag(help: "Wait for new lines.") var follow = false

    func run() throws {
        guard follow else {
            let log = try global.call(Methods.DriverLog.self, .init())
            try global.print(log, as: LogReport.text(log.lines))
            return
        }
        try global.withClient { client throws(ClientError) in
            let next = try client.call(Methods.DriverLogSubscribe.self, Nothing()).next
            // What came after the subscription comes as a notification too.
            for line in try client.call(Methods.DriverLog.self, .init()).lines
            where line.sequence.value < next.value { show(line, nil) }
            while true {
                let notification = try following(client)
                do throws(ControlError) {
                    guard let line = try notification.parameters(as: LogNotification.self) else { continue }
                    show(line.line, line.dropped)
                } catch { throw .violation(error.message) }
            }
        }
    }

    private func show(_ line: LogLine, _ dropped: Size?) {
        try? global.printLine(
            LogNotification(line: line, dropped: dropped),
            as: LogReport.text(line, dropped: dropped)
        )
    }
}

struct Trace: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows commands that the daemon's own drivers sent to SMMUs.",
        discussion: """
            The last 1024 of each SMMU are kept. With --follow, waits for new ones until it is interrupted; with \
            --json then a line for each. With --counts, how many there were of each opcode since the start.

            Example: smmuctl trace --smmu 0 --limit 4
            """
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var smmu: SMMUOption
    @Option(help: "Only commands with this number or a higher one.") var since: Number?
    @Option(help: "At most so many, the latest ones.") var limit: Number?
    @Flag(help: "Wait for new commands.") var follow = false
    @Flag(help: "Count by opcode.") var counts = false
    @Flag(help: "Without the commands' fields.") var brief = false

    func validate() throws {
        guard !(follow && counts) else {
            throw ValidationError("Give one of --follow and --counts, not both.")
        }
        guard !counts || (since == nil && limit == nil) else {
            throw ValidationError("--counts counts from the start: leave --since and --limit out.")
        }
    }

    func run() throws {
        if counts {
            let result = try global.call(Methods.DriverCounts.self, .init(smmu: smmu.selector))
            try global.print(result, as: CommandReport.counts(result.smmus))
            return
        }
        guard follow else {
            let result = try global.call(
                Methods.DriverTrace.self,
                .init(smmu: smmu.selector, since: since?.size, limit: limit?.size)
            )
            try global.print(result, as: CommandReport.text(result.commands, showsFields: !brief))
            return
        }
        try global.withClient { client throws(ClientError) in
            _ = try client.call(Methods.DriverTraceSubscribe.self, .init(smmu: smmu.selector))
            while true {
                let notification = try following(client)
                do throws(ControlError) {
                    guard let sent = try notification.parameters(as: CommandNotification.self) else {
                        continue
                    }
                    try? global.printLine(
                        sent,
                        as: CommandReport.text(sent.command, showsFields: !brief, dropped: sent.dropped)
                    )
                } catch { throw .violation(error.message) }
            }
        }
    }
}

struct StrictLazy: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "strict-lazy",
        abstract: "Shows what strict and lazy unmapping cost, and what lazy leaves open.",
        discussion: """
            Maps, reads by DMA and unmaps buffers for a device: in a strict domain, then in a lazy one. It shows the \
            commands that went to the SMMU, and for how long DMA still reached the last buffer after its unmap. The \
            device's group must have no driver and is where it was afterwards.

            Example: smmuctl strict-lazy dma-controller@100000 --buffers 64
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Option(help: "How many buffers, 1 to 4096.") var buffers = 64
    @Option(help: "Bytes of each, up to 1M.") var length: Number?

    func run() throws {
        let result = try global.call(
            Methods.IOMMUCompare.self,
            .init(device: device, buffers: buffers, length: length?.size)
        )
        try global.print(result, as: CommandReport.text(result))
    }
}
