// Accepts connections and gives each a thread of its own, up to a limit, until it is stopped.

import CLinux
import Glibc
package import Logging
import Synchronization
package import SystemPackage

/// A listening socket with a thread that accepts, and a thread for each connection.
package final class SocketServer: Sendable {
    package struct Configuration: Sendable {
        /// For threads and log lines: `control`.
        package var name: String
        /// How many connections there may be at a time.
        package var connectionCountMax: Int
        /// What a client beyond that number is told before it is let go.
        package var refusal: [UInt8]

        package init(name: String, connectionCountMax: Int, refusal: [UInt8] = []) {
            self.name = name
            self.connectionCountMax = connectionCountMax
            self.refusal = refusal
        }
    }

    private struct Entry: Sendable {
        let connection: Connection
        let thread: SystemThread.Handle
    }
    private struct State: Sendable {
        var acceptor: SystemThread.Handle?
        /// The connections that are served, whose descriptors are open.
        var entries: [UInt64: Entry] = [:]
        /// Threads that are done, or about to be, and not joined.
        var finished: [SystemThread.Handle] = []
        var lastNumber: UInt64 = 0
        /// Whether the log has said that the limit was reached, since it was last not.
        var hasLoggedLimit = false
    }

    private let configuration: Configuration
    private let listener: UnixListener
    private let logger: Logger
    private let serve: @Sendable (Connection) -> Void
    private let state = Mutex(State())
    private let stopSignal: StopSignal
    /// Signalled at the end of each connection.
    private let connectionEnded: WakeEvent

    /// - Parameters:
    ///   - serve: Serves one connection, on a thread of its own, until it returns.
    /// - Throws: The system's error where it gives no descriptor.
    package init(
        _ configuration: Configuration,
        listener: UnixListener,
        logger: Logger,
        serve: @escaping @Sendable (Connection) -> Void
    ) throws(Errno) {
        self.configuration = configuration
        self.listener = listener
        self.logger = logger
        self.serve = serve
        stopSignal = StopSignal(try WakeEvent())
        connectionEnded = try WakeEvent()
    }

    /// Starts accepting.
    ///
    /// - Throws: The system's error where it gives no thread.
    package func start() throws(Errno) {
        let thread = try SystemThread.start(named: configuration.name) { [self] in acceptConnections() }
        state.withLock { $0.acceptor = thread }
    }

    // MARK: Accepting

    private func acceptConnections() {
        DescriptorReserve.shared.withLock { $0.enter() }
        defer { DescriptorReserve.shared.withLock { $0.leave() } }
        // Clients can bring a failure about as often as they like; the log says it once, until accepting works.
        var logged: Errno?
        var entries = [
            pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: stopSignal.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        while !stopSignal.isSet {
            guard poll(&entries, 2, -1) > 0, entries[1].revents == 0 else { continue }
            let descriptor = accept()
            guard descriptor < 0 else {
                logged = nil
                takeConnection(descriptor)
                continue
            }
            let error = Errno(rawValue: -descriptor)
            // The client changed its mind.
            if [.wouldBlock, .interrupted, .connectionAbort].contains(error) { continue }
            if logged != error {
                logger.error("clients are turned away: \(error.description)")
                logged = error
            }
            waitAfter(error)
        }
    }

    /// Accepts a client, or lets it go where there is no descriptor for it.
    ///
    /// - Returns: The client's descriptor, or why there is none, a negated error.
    private func accept() -> CInt {
        // Held while a descriptor may be taken for a client: who gives one up to let a client go must not lose it to
        // the acceptor of another socket.
        DescriptorReserve.shared.withLock { reserve in
            reserve.accept {
                smmud_accept(listener.descriptor)
            } refuse: {
                refuse($0)
            }
        }
    }

    /// Waits where trying again at once would only fail again.
    private func waitAfter(_ error: Errno) {
        guard error != .tooManyOpenFiles || DescriptorReserve.shared.withLock({ $0.isEmpty }) else { return }
        // The system lacks something. The client waits; so do we, or until we are to stop.
        stopSignal.wait(milliseconds: 100)
    }

    private func takeConnection(_ descriptor: CInt) {
        reap()
        let isRefused = state.withLock { state in
            guard state.entries.count < configuration.connectionCountMax else {
                if !state.hasLoggedLimit {
                    logger.warning(
                        "\(configuration.connectionCountMax) clients are connected: no more are taken"
                    )
                    state.hasLoggedLimit = true
                }
                return true
            }
            state.hasLoggedLimit = false
            state.lastNumber &+= 1
            let connection = Connection(number: state.lastNumber, descriptor: descriptor, stop: stopSignal)
            do throws(Errno) {
                // Under the lock, so that the thread finds its own entry when it ends.
                let thread = try SystemThread.start(named: "\(configuration.name)-\(connection.number)") {
                    [self] in
                    serve(connection)
                    finish(connection)
                }
                state.entries[connection.number] = Entry(connection: connection, thread: thread)
                return false
            } catch {
                logger.error("no thread for a client: \(error.description)")
                return true
            }
        }
        if isRefused { refuse(descriptor) }
    }

    /// Tells a client why it is not served, and lets it go.
    private func refuse(_ descriptor: CInt) {
        let flags = CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT)
        _ = send(descriptor, configuration.refusal, configuration.refusal.count, flags)
        Self.closeGently(descriptor)
    }

    /// Closes a socket so that the client reads what it was sent, and then the end of the stream.
    private static func closeGently(_ descriptor: CInt) {
        shutdown(descriptor, CInt(SHUT_RDWR))
        // What is unread when a Unix socket is closed becomes an error at the other end.
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 1) { bytes in
            while recv(descriptor, bytes.baseAddress, bytes.count, CInt(MSG_DONTWAIT)) > 0 {}
        }
        close(descriptor)
    }

    // MARK: Ending

    private func finish(_ connection: Connection) {
        state.withLock { state in
            guard let entry = state.entries.removeValue(forKey: connection.number) else { return }
            state.finished.append(entry.thread)
        }
        // Not before it is out of the table: who stops the server must not shut another file down by its number.
        Self.closeGently(connection.descriptor)
        connectionEnded.signal()
    }

    /// Joins the threads that are done.
    private func reap() {
        let finished = state.withLock { state in
            let finished = state.finished
            state.finished = []
            return finished
        }
        for thread in finished { SystemThread.join(thread) }
    }

    /// Ends it all: nobody can connect any more, the socket's file is gone, clients get the answers to what they
    /// have asked, connections are closed, and threads have ended.
    ///
    /// - Parameters:
    ///   - graceMilliseconds: How long clients have to read their last answers.
    package func stop(graceMilliseconds: Int32) {
        stopSignal.set()
        let acceptor = state.withLock { state in
            let acceptor = state.acceptor
            state.acceptor = nil
            return acceptor
        }
        if let acceptor { SystemThread.join(acceptor) }
        listener.close()
        endConnections(CInt(SHUT_RD), waitMilliseconds: graceMilliseconds)
        endConnections(CInt(SHUT_RDWR), waitMilliseconds: nil)
        reap()
    }

    /// Shuts every connection down in this way, and waits until no more are served.
    private func endConnections(_ how: CInt, waitMilliseconds: Int32?) {
        state.withLock { state in
            for entry in state.entries.values { shutdown(entry.connection.descriptor, how) }
        }
        let deadline = waitMilliseconds.map { ContinuousClock.now + .milliseconds(Int64($0)) }
        while !state.withLock({ $0.entries.isEmpty }) {
            if let deadline, ContinuousClock.now >= deadline { return }
            connectionEnded.reset()
            guard !state.withLock({ $0.entries.isEmpty }) else { return }
            connectionEnded.wait(milliseconds: deadline == nil ? nil : 20)
        }
    }
}
