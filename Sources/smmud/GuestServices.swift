// What a guest or another vfio-user client is served with: a socket for each function, the window, interrupts.

import DeviceModel
import HostIO
import Logging
import Machine
import ServiceLifecycle
import SystemPackage
import VFIOUserServer

/// Builds the services for vfio-user clients.
enum GuestServices {
    /// The window's socket, beside those of the functions.
    static let windowSocket = "window.sock"

    /// The name of a function's socket: `0000:00:01.0.sock`.
    static func socket(of function: MachineFunction) -> String { function.address.text + ".sock" }

    static func make(_ configuration: DaemonConfiguration, _ machine: Machine, _ logger: Logger)
        throws(Failure)
        -> [NamedService]
    {
        var services: [NamedService] = []
        do throws(Errno) {
            if let qtest = configuration.qtest {
                let client = try QtestClient(path: qtest.path, controller: qtest.controller, logger: logger)
                for complaint in machine.connect(client) { logger.warning("\(complaint)") }
                services.append(NamedService("qtest", QtestService(client: client)))
            }
        } catch {
            throw Failure(.host, "no file descriptor: \(error.description)")
        }
        guard let directory = configuration.vfioUserDirectory else { return services }
        let poll = configuration.vfioUserPollMicroseconds
        do throws(ListenerError) {
            try UnixListener.makeDirectory(directory)
        } catch {
            throw Failure(error)
        }
        for function in machine.functions {
            let device = PCIFunctionDevice(
                function.function,
                messagesByMemory: configuration.machine.memory == .client
            )
            services.append(
                try server(device, socket(of: function), in: directory, poll, logger) {
                    machine.makeClientMemory(for: function.endpoint)
                }
            )
        }
        if let window = machine.makeWindow() {
            if configuration.qtest == nil {
                for source in machine.interrupts { source.line.connect(window.pin) }
            }
            services.append(
                try server(window, windowSocket, in: directory, poll, logger) {
                    machine.makeClientMemory(for: nil)
                }
            )
        }
        return services
    }

    private static func server(
        _ device: any VFIOUserDevice,
        _ name: String,
        in directory: String,
        _ pollMicroseconds: Int,
        _ logger: Logger,
        _ makeMemory: @escaping @Sendable () -> any VFIOUserMemory
    ) throws(Failure) -> NamedService {
        let listener: UnixListener
        do throws(ListenerError) {
            listener = try UnixListener(path: directory + "/" + name)
        } catch {
            throw Failure(error)
        }
        var configuration = VFIOUserServer.Configuration(name: name)
        configuration.pollMicroseconds = pollMicroseconds
        do throws(Errno) {
            let server = try VFIOUserServer(
                configuration,
                device: device,
                listener: listener,
                logger: logger,
                makeMemory: makeMemory
            )
            return NamedService(name, VFIOUserService(server: server))
        } catch {
            throw Failure(.host, "no file descriptor: \(error.description)")
        }
    }
}

/// A device that is offered until the daemon stops.
struct VFIOUserService: Service {
    let server: VFIOUserServer

    func run() async throws {
        try server.start()
        try? await gracefulShutdown()
        await SystemThread.run(named: "stop") { server.stop() }
    }
}

/// Interrupts into a guest, until the daemon stops.
struct QtestService: Service {
    let client: QtestClient

    func run() async throws {
        try client.start()
        try? await gracefulShutdown()
        await SystemThread.run(named: "stop") { client.stop() }
    }
}
