// Builds the daemon's parts, ties them together, and runs them until somebody has them stop.

import CLinux
import ControlProtocol
import Glibc
import HostIO
import Logging
import Machine
import ServiceLifecycle
import SystemPackage
import UnixSignals

/// What is known of the daemon before there is a machine.
struct DaemonConfiguration: Sendable {
    static let version = "0.1.0"

    var board: BoardFiles
    var controlPath: String
    var dmaPath: String
    /// The directory of the usual places, which is made where it is missing; nil where neither socket is there.
    var directory: String?
    var machine: MachineOptions
    /// Where the vfio-user sockets are; nil where none are served.
    var vfioUserDirectory: String?
    /// How long threads of theirs look for the next message before they sleep, where that pays.
    var vfioUserPollMicroseconds: Int
    /// How interrupts reach a guest of QEMU.
    var qtest: Qtest?
    /// Whether the ready line is JSON.
    var isJSON: Bool
    var logLevel: Logger.Level

    /// A guest of QEMU, as its qtest socket reaches it.
    struct Qtest: Sendable {
        var path: String
        /// The QOM path of its interrupt controller.
        var controller: String
    }
}

/// The running daemon.
enum Daemon {
    /// Runs until it is stopped by a signal or over the control socket.
    static func run(_ configuration: DaemonConfiguration) async throws(Failure) {
        LoggingSystem.bootstrap { label in
            var handler = StreamLogHandler.standardError(label: label)
            handler.logLevel = configuration.logLevel
            return handler
        }
        let logger = Logger(label: "smmud")
        raiseDescriptorLimit()

        // The sockets first: a board may take a while to build, and it is not needed to find them taken.
        let (controlListener, dmaListener) = try makeListeners(configuration)
        var options = configuration.machine
        options.report = { logger.warning("\($0)") }
        let machine = try Machine.load(configuration.board, options: options)
        for complaint in machine.startDriver() { logger.warning("\(complaint)") }
        let trigger = ShutdownTrigger()
        let service = ControlService(
            machine: machine,
            information: DaemonInformation(
                version: DaemonConfiguration.version,
                source: configuration.board.source,
                dmaSocket: absolutePath(configuration.dmaPath),
                requestShutdown: { trigger.request() }
            )
        )
        let control: SocketServer
        let dma: SocketServer
        do throws(Errno) {
            control = try ControlServer.make(service, listener: controlListener, logger: logger)
            dma = try DMAServer.make(machine, listener: dmaListener, logger: logger)
        } catch {
            throw Failure(.host, "no file descriptor: \(error.description)")
        }
        var services = [
            NamedService("machine", MachineService(machine: machine)),
            NamedService("control", SocketService(server: control)),
            NamedService("dma", SocketService(server: dma)),
        ]
        services += try GuestServices.make(configuration, machine, logger)
        services.append(NamedService("stalls", StallService(machine: machine)))
        services.append(NamedService("readiness", ReadinessService { announce(configuration) }))
        let group = ServiceGroup(
            // Stopped from the last to the first: what DMA there is has ended when the machine stops.
            services: services,
            gracefulShutdownSignals: [.sigterm, .sigint],
            logger: logger
        )
        trigger.attach(group)
        do {
            try await group.run()
        } catch {
            throw Failure(.host, "stopped by an error: \(error)")
        }
        logger.info("stopped")
    }

    private static func makeListeners(_ configuration: DaemonConfiguration) throws(Failure)
        -> (control: UnixListener, dma: UnixListener)
    {
        do throws(ListenerError) {
            if let directory = configuration.directory { try UnixListener.makeDirectory(directory) }
            return (
                try UnixListener(path: configuration.controlPath),
                try UnixListener(path: configuration.dmaPath)
            )
        } catch {
            throw Failure(error)
        }
    }

    /// Tells whoever waits for it that clients are served.
    private static func announce(_ configuration: DaemonConfiguration) {
        smmud_forget_startup_pages()
        guard configuration.isJSON else {
            Output.print("smmud: ready: control \(configuration.controlPath) dma \(configuration.dmaPath)")
            return
        }
        let line = ReadyLine(
            ready: true,
            control: absolutePath(configuration.controlPath),
            dma: absolutePath(configuration.dmaPath),
            processID: Int(getpid())
        )
        // Strings and numbers can always be written.
        if let text = try? ControlJSON.line(line) { Output.print(String(decoding: text, as: UTF8.self)) }
    }

    private struct ReadyLine: Encodable {
        let ready: Bool
        let control: String
        let dma: String
        let processID: Int
    }

    /// A path that means the same to clients in another directory.
    private static func absolutePath(_ path: String) -> String {
        guard !path.hasPrefix("/"), let directory = getcwd(nil, 0) else { return path }
        defer { free(directory) }
        return String(cString: directory) + "/" + path
    }

    /// Makes use of all descriptors that the process may have: clients bring their own along.
    private static func raiseDescriptorLimit() {
        var limit = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        guard getrlimit(resource, &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        setrlimit(resource, &limit)
    }
}
