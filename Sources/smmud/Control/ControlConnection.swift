// One client of the control socket: requests in, answers and notifications out.

import ControlProtocol
import HostIO
import Machine
import Synchronization
import SystemPackage

/// Serves one connection of the control socket.
///
/// The connection's thread reads and answers. Once the client subscribes to something, a second thread sends
/// what it is to hear. Both write whole lines, one at a time.
final class ControlConnection: Sendable {
    private let connection: Connection
    private let service: ControlService
    private let session: ControlSession
    private let writer: LineWriter
    private let notifier = Mutex<SystemThread.Handle?>(nil)

    /// How many bytes are read at a time.
    private static let inputByteCount = 64 << 10
    /// How many bytes of answers are gathered before they are sent.
    private static let outputByteCount = 64 << 10

    init(_ connection: Connection, service: ControlService) {
        self.connection = connection
        self.service = service
        session = service.makeSession()
        writer = LineWriter(connection)
    }

    /// Serves the client until it goes.
    func run() {
        let isIntact = answerRequests()
        let thread = notifier.withLock { $0 }
        // Who only closed his sending side goes on hearing what he subscribed to.
        if isIntact, session.hasSubscriptions { connection.waitForHangUp() }
        session.close()
        guard let thread else { return }
        // Nobody reads any more what the notifier may be waiting to send, unless we are the ones who stop.
        if !connection.isStopping { connection.abandon() }
        SystemThread.join(thread)
    }

    /// Answers until the client sends no more.
    ///
    /// - Returns: Whether the client can still be sent something, as far as is known.
    private func answerRequests() -> Bool {
        var codec = ControlServerCodec()
        let input = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.inputByteCount, alignment: 16)
        defer { input.deallocate() }
        while true {
            let count = connection.receive(into: input)
            guard count > 0 else { return true }
            guard answer(codec.receive(UnsafeRawBufferPointer(rebasing: input[..<count]))) else {
                return false
            }
        }
    }

    /// Carries requests out, in order, and sends the answers.
    private func answer(_ actions: [ControlServerCodec.Action]) -> Bool {
        var output: [UInt8] = []
        for action in actions {
            switch action {
            case .send(let line): output += line
            case .handle(let request): output += service.answer(request, session) ?? []
            }
            // The answer to a subscription goes out before what was subscribed to.
            let needsNotifier = session.hasSubscriptions && !hasNotifier
            if needsNotifier || output.count >= Self.outputByteCount {
                guard writer.send(output) else { return false }
                output.removeAll(keepingCapacity: true)
            }
            if needsNotifier, !startNotifier() { return false }
        }
        return output.isEmpty || writer.send(output)
    }

    private var hasNotifier: Bool { notifier.withLock { $0 != nil } }

    private func startNotifier() -> Bool {
        let thread = try? SystemThread.start(named: "notify-\(connection.number)") { [session, writer] in
            while let lines = session.waitForNotifications() {
                // After a failure the session is still emptied, until the connection's thread closes it.
                _ = writer.send(Array(lines.joined()))
            }
        }
        notifier.withLock { $0 = thread }
        return thread != nil
    }
}

/// Writes whole lines of several threads to one socket.
///
/// A thread that waits for a client to read has the other wait too: they have the same client.
private final class LineWriter: Sendable {
    private let connection: Connection
    private let isOpen = Mutex(true)

    init(_ connection: Connection) { self.connection = connection }

    /// - Returns: Whether the lines went out; not, where the client is gone.
    func send(_ lines: [UInt8]) -> Bool {
        isOpen.withLock { isOpen in
            guard isOpen else { return false }
            isOpen = lines.withUnsafeBytes { connection.send($0) }
            return isOpen
        }
    }
}
