// The command line: `smmud BOARD.dtb [options]`.

import ArgumentParser
import ControlProtocol
import Glibc
import Logging
import Machine
import SMMUClient
import SMMUv3

@main
struct SmmudCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "smmud",
        abstract: "Runs the I/O side of an Arm machine: its SMMUv3s, interrupts, memory and endpoints.",
        discussion: """
            Loads a device tree blob, or an ACPI table IORT instead of it or beside it, builds what they describe, \
            and serves two Unix sockets: one for control (JSON-RPC; see smmuctl) and one for DMA. Prints a line that \
            starts with "smmud: ready:" when clients are served. SIGTERM and SIGINT stop it.

            Exit codes: 0 stopped, or checked and found good; 64 wrong options; 65 the device tree or the IORT is \
            wrong, with one line for each problem; 66 a file cannot be read; 69 another process serves a socket; \
            70 a mistake in smmud; 71 the host refuses memory, threads or file descriptors; 73 a socket cannot be \
            made.
            """,
        version: DaemonConfiguration.version
    )

    @Argument(help: "The device tree blob.", completion: .file(extensions: ["dtb"]))
    var board: String?

    @Option(
        help: ArgumentHelp(
            "An ACPI table IORT, which describes SMMUs and their devices instead of the tree or beside it. See docs/iort.md.",
            valueName: "file"
        ),
        completion: .file(extensions: ["aml", "dat"])
    )
    var iort: String?

    @Option(
        help: ArgumentHelp(
            "RAM that the tree does not have; can be repeated. An IORT has none.",
            valueName: "address,size"
        )
    )
    var ram: [RAMArgument] = []

    @Option(help: ArgumentHelp("The control socket's path.", valueName: "path"), completion: .file())
    var control: String?

    @Option(help: ArgumentHelp("The DMA socket's path.", valueName: "path"), completion: .file())
    var dma: String?

    @Option(help: "Who drives the SMMUs: smmud's own driver, or none, for a driver outside.")
    var driver: MachineOptions.Driver = .own

    @Option(
        help:
            "Where RAM is: smmud's own memory, or what vfio-user clients lend (a guest's; needs --driver none)."
    )
    var memory: MachineOptions.Memory = .own

    @Option(
        help:
            "What the SMMUs can do: stage 1, stage 2, all that there is with 48 or 52 bits of address, or a product."
    )
    var smmu: MachineOptions.SMMUProfile = .stage1

    @Option(
        name: .customLong("smmu-option"),
        help: ArgumentHelp(
            "A choice of every SMMU; can be repeated. See docs/smmu-profiles.md.",
            valueName: "name=value"
        )
    )
    var smmuOptions: [String] = []

    @Option(
        name: .customLong("device"),
        help: ArgumentHelp(
            "A device to model: KIND,at=PLACE[,KEY=VALUE...]; can be repeated. See docs/devices.md.",
            valueName: "spec"
        )
    )
    var devices: [String] = []

    @Option(
        help: ArgumentHelp(
            "A directory for the vfio-user sockets, one for each PCIe function.",
            valueName: "path"
        ),
        completion: .directory
    )
    var vfioUser: String?

    @Option(
        help: ArgumentHelp(
            "How long to look for a vfio-user client's next message before sleeping, where they come in bursts; 0 is not at all.",
            valueName: "microseconds"
        )
    )
    var vfioUserPoll = 100

    @Option(
        help: ArgumentHelp(
            "QEMU's qtest socket, for interrupts into its guest; need not be there yet.",
            valueName: "path"
        ),
        completion: .file()
    )
    var qtest: String?

    @Option(
        help: ArgumentHelp("The guest's interrupt controller in QEMU's object tree.", valueName: "path")
    )
    var qtestGic = "/machine/unattached/device[1]"

    @Flag(help: "Build the machine, print what was found, and exit.")
    var check = false

    @Flag(help: "Print, as JSON, which vfio-user sockets there will be and what is behind each, and exit.")
    var vfioUserLayout = false

    @Flag(help: "Print JSON: with --check the board, else the ready line.")
    var json = false

    @Option(help: "How many translations each SMMU's TLB holds; 0 is no TLB.")
    var tlbEntries: Int?

    @Option(help: "How many STEs, and how many CDs, each SMMU's configuration cache holds; 0 is none.")
    var configCacheEntries: Int?

    @Option(help: "How many translations the ATC of each PCIe function with ATS holds; 0 is none.")
    var atcEntries: Int?

    @Option(help: "Where commands are executed: on a thread of the SMMU's own, or inside the register write.")
    var commands: CommandExecution = .thread

    @Option(help: "The smallest pages that smmud's own driver maps.")
    var pageSize: PageSize = .kib4

    @Option(
        help: ArgumentHelp(
            "The kernel command line of smmud's own driver: \"iommu.strict=0\". See docs/iommu.md.",
            valueName: "parameters"
        )
    )
    var append = ""

    @Option(help: "The least severe messages to log on standard error.")
    var logLevel: LogLevel = .notice

    /// What describes the board.
    private var boardFiles: BoardFiles { BoardFiles(tree: board, iort: iort, ram: ram.map(\.range)) }

    func validate() throws {
        guard board != nil || iort != nil else {
            throw ValidationError("A board is needed: a device tree blob, or an IORT with --iort FILE.")
        }
        let sizes = [
            ("--tlb-entries", tlbEntries, Self.cacheEntriesMax),
            ("--config-cache-entries", configCacheEntries, Self.cacheEntriesMax),
            ("--atc-entries", atcEntries, Self.atcEntriesMax),
        ]
        for (name, value, limit) in sizes {
            guard let value else { continue }
            guard (0...limit).contains(value) else {
                throw ValidationError("\(name) is 0 to \(limit), not \(value).")
            }
        }
        try checkDevices()
        guard check || control == nil || control != dma else {
            throw ValidationError("--control and --dma need a path each, not the same one.")
        }
    }

    /// What the command line says of memory and devices that cannot be.
    private func checkDevices() throws(ValidationError) {
        guard memory == .own || driver == .none else {
            throw ValidationError("--memory client is for a driver outside: it needs --driver none.")
        }
        guard (0...10_000).contains(vfioUserPoll) else {
            throw ValidationError("--vfio-user-poll is 0 to 10000 microseconds.")
        }
        guard qtest == nil || memory == .client else {
            throw ValidationError(
                "--qtest is for a guest whose RAM is the machine's: it needs --memory client."
            )
        }
    }

    /// More than any machine has, and less than what would not fit into memory.
    private static let cacheEntriesMax = 1 << 20
    /// An ATC is searched one by one.
    private static let atcEntriesMax = 1 << 12

    func run() async throws {
        // A reader of ours that goes away is not to end the machine.
        signal(SIGPIPE, SIG_IGN)
        do throws(Failure) {
            if check {
                try printBoard()
            } else if vfioUserLayout {
                try printLayout()
            } else {
                try await Daemon.run(daemonConfiguration())
            }
        } catch {
            for line in error.lines { Output.complain(line) }
            throw ExitCode(error.code.rawValue)
        }
    }

    private func printBoard() throws(Failure) {
        let machine = try Machine.load(boardFiles, options: machineOptions())
        defer { machine.stop() }
        let information = DaemonInformation(version: DaemonConfiguration.version, source: boardFiles.source)
        let description = ControlService(machine: machine, information: information).describe()
        do throws(ControlError) {
            let text = json ? try BoardReport.json(description) : BoardReport.text(description)
            Output.write(text.hasSuffix("\n") ? text : text + "\n")
        } catch {
            throw Failure(.software, error.message)
        }
    }

    private func printLayout() throws(Failure) {
        let machine = try Machine.load(boardFiles, options: machineOptions())
        defer { machine.stop() }
        Output.write(try VFIOUserLayout(machine).text)
    }

    private func machineOptions() throws(Failure) -> MachineOptions {
        var options = MachineOptions()
        options.memory = memory
        options.smmuProfile = smmu
        options.offersFunctions = vfioUser != nil || vfioUserLayout || memory == .client
        do throws(MachineError) {
            for device in devices { options.devices.append(try DeviceSpecification(argument: device)) }
        } catch {
            throw Failure(.usage, error.description)
        }
        options.driver = driver
        options.append = append
        options.pageBytes = pageSize.byteCount
        options.smmu.commandExecution = commands == .inline ? .inline : .thread
        do throws(SMMUOptionError) {
            for option in smmuOptions { try options.smmu.set(option) }
        } catch {
            throw Failure(.usage, error.description)
        }
        if let tlbEntries { options.smmu.tlbEntries = tlbEntries }
        if let configCacheEntries { options.smmu.configurationCacheEntries = configCacheEntries }
        if let atcEntries { options.atcEntries = atcEntries }
        return options
    }

    private func daemonConfiguration() throws(Failure) -> DaemonConfiguration {
        let controlPath = control ?? SocketPaths.control
        let dmaPath = dma ?? SocketPaths.dma
        let directory = SocketPaths.directory
        let isUsed = [controlPath, dmaPath].contains { $0.hasPrefix(directory + "/") }
        return DaemonConfiguration(
            board: boardFiles,
            controlPath: controlPath,
            dmaPath: dmaPath,
            directory: isUsed ? directory : nil,
            machine: try machineOptions(),
            vfioUserDirectory: vfioUser,
            vfioUserPollMicroseconds: vfioUserPoll,
            qtest: qtest.map { DaemonConfiguration.Qtest(path: $0, controller: qtestGic) },
            isJSON: json,
            logLevel: logLevel.level
        )
    }
}

/// Where an SMMU executes commands, as the command line says it.
enum CommandExecution: String, CaseIterable, ExpressibleByArgument {
    case thread
    case inline
}

/// A granule, as the command line says it.
enum PageSize: String, CaseIterable, ExpressibleByArgument {
    case kib4 = "4K"
    case kib16 = "16K"
    case kib64 = "64K"

    var byteCount: Int {
        switch self {
        case .kib4: 4096
        case .kib16: 16384
        case .kib64: 65536
        }
    }
}

/// A level of the log, as the command line says it.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
    case trace, debug, info, notice, warning, error, critical

    var level: Logger.Level {
        switch self {
        case .trace: .trace
        case .debug: .debug
        case .info: .info
        case .notice: .notice
        case .warning: .warning
        case .error: .error
        case .critical: .critical
        }
    }
}

extension MachineOptions.Driver: ExpressibleByArgument {}
extension MachineOptions.Memory: ExpressibleByArgument {}
extension MachineOptions.SMMUProfile: ExpressibleByArgument {}
