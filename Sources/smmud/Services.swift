// The daemon's parts as services: started together, stopped in the opposite order.

import HostIO
import Machine
import ServiceLifecycle
import Synchronization

/// A service with a name for the log.
///
/// A group of services prints each of them to have a name for it, for which the runtime looks through the
/// conformances of every library, for each type of service anew: a millisecond of the start. So there is one type, and
/// it has what is looked for first.
struct NamedService: Service, TextOutputStreamable {
    private let name: String
    private let service: any Service

    init(_ name: String, _ service: any Service) { (self.name, self.service) = (name, service) }

    func write<Target: TextOutputStream>(to target: inout Target) { target.write(name) }

    func run() async throws { try await service.run() }
}

/// A socket that is served until the daemon stops.
struct SocketService: Service {
    let server: SocketServer

    /// How long clients have at the end to read their last answers.
    private static let graceMilliseconds: Int32 = 2000

    func run() async throws {
        try server.start()
        // Throws where the whole group is cancelled: then too it is time to stop.
        try? await gracefulShutdown()
        await SystemThread.run(named: "stop") { server.stop(graceMilliseconds: Self.graceMilliseconds) }
    }
}

/// The machine, which runs by itself and is stopped last.
struct MachineService: Service {
    let machine: Machine

    func run() async throws {
        try? await gracefulShutdown()
        await SystemThread.run(named: "stop") { machine.stop() }
    }
}

/// Ends stalls first of all: a connection whose DMA waits for software could not be closed.
struct StallService: Service {
    let machine: Machine

    func run() async throws {
        try? await gracefulShutdown()
        machine.endStalls()
    }
}

/// Says that everything is there.
struct ReadinessService: Service {
    let announce: @Sendable () -> Void

    func run() async throws {
        announce()
        try? await gracefulShutdown()
    }
}

/// Stops a group of services that is only made after those who may want it stopped.
final class ShutdownTrigger: Sendable {
    private struct State: Sendable {
        var group: ServiceGroup?
        var isRequested = false
    }
    private let state = Mutex(State())

    /// Has the group stop, soon.
    func request() {
        let group = state.withLock { state in
            state.isRequested = true
            return state.group
        }
        if let group { Task { await group.triggerGracefulShutdown() } }
    }

    /// Says which group is meant.
    func attach(_ group: ServiceGroup) {
        let isRequested = state.withLock { state in
            state.group = group
            return state.isRequested
        }
        if isRequested { request() }
    }
}
