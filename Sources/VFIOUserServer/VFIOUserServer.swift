// A device at a socket: one client after the other.

import CLinux
import Glibc
package import HostIO
package import Logging
import Synchronization
package import SystemPackage
package import VFIOUserProtocol

/// Offers one device at one Unix socket to vfio-user clients.
///
/// One client is served at a time; another that connects meanwhile waits until the first is gone, as it would with
/// the reference library. A device outlives its clients: what one leaves behind is its registers' state, and nothing
/// else.
package final class VFIOUserServer: Sendable {
    package struct Configuration: Sendable {
        /// For threads and log lines.
        package var name: String
        /// What is offered to clients.
        package var limits = VFIOUserServerLimits()
        /// How long the client may take to answer a DMA_READ or DMA_WRITE.
        package var dmaTimeoutMilliseconds = 5000
        /// How long to look for the client's next message before sleeping, where its messages come in bursts; 0 is
        /// not at all.
        package var pollMicroseconds = 0

        package init(name: String) { self.name = name }
    }

    private struct State: Sendable {
        var thread: SystemThread.Handle?
        var stream: (any ClientStream)?
    }

    private let configuration: Configuration
    private let device: any VFIOUserDevice
    private let listener: UnixListener
    private let logger: Logger
    private let makeMemory: @Sendable () -> any VFIOUserMemory
    private let stopSignal: StopSignal
    private let state = Mutex(State())

    /// - Parameters:
    ///   - makeMemory: What becomes of one client's memory, anew for each.
    /// - Throws: The system's error where it gives no descriptor.
    package init(
        _ configuration: Configuration,
        device: any VFIOUserDevice,
        listener: UnixListener,
        logger: Logger,
        makeMemory: @escaping @Sendable () -> any VFIOUserMemory
    ) throws(Errno) {
        self.configuration = configuration
        self.device = device
        self.listener = listener
        self.logger = logger
        self.makeMemory = makeMemory
        stopSignal = StopSignal(try WakeEvent())
        smmud_prepare_eventfd_signals()
    }

    /// Starts serving.
    ///
    /// - Throws: The system's error where it gives no thread.
    package func start() throws(Errno) {
        let thread = try SystemThread.start(named: configuration.name) { [self] in acceptClients() }
        state.withLock { $0.thread = thread }
    }

    /// Ends it: the client's connection, its memory, its interrupts and all threads, and the socket's file is gone.
    ///
    /// Not to be called by the device from the thread that serves it.
    package func stop() {
        stopSignal.set()
        let thread = state.withLock { state in
            state.stream?.abandon()
            defer { state.thread = nil }
            return state.thread
        }
        if let thread { SystemThread.join(thread) }
        listener.close()
    }

    private func acceptClients() {
        // Clients can bring a failure about as often as they like; the log says it once, until accepting works.
        var logged: Errno?
        var entries = [
            pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: stopSignal.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        while !stopSignal.isSet {
            guard poll(&entries, 2, -1) > 0, entries[1].revents == 0 else { continue }
            let descriptor = smmud_accept(listener.descriptor)
            guard descriptor < 0 else {
                logged = nil
                serve(ClientSocket(adopting: descriptor))
                continue
            }
            let error = Errno(rawValue: -descriptor)
            // The client changed its mind.
            if [.wouldBlock, .interrupted, .connectionAbort].contains(error) { continue }
            if logged != error { logger.error("\(configuration.name): no client: \(error.description)") }
            logged = error
            // The system lacks something. The client waits; so do we, or until we are to stop.
            stopSignal.wait(milliseconds: 100)
        }
    }

    private func serve(_ stream: any ClientStream) {
        let isStopping = state.withLock { state in
            state.stream = stream
            return stopSignal.isSet
        }
        if isStopping { return }
        logger.debug("\(configuration.name): a client is there")
        let connection = ServedConnection(
            stream,
            device: device,
            memory: makeMemory(),
            configuration: configuration
        )
        if let violation = connection.serve() {
            logger.info("\(configuration.name): the client was let go: \(violation.description)")
        } else {
            logger.debug("\(configuration.name): the client is gone")
        }
        state.withLock { $0.stream = nil }
    }
}
