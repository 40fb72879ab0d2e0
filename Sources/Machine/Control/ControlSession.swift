// One client's connection to the control socket: what it subscribed to, and what waits to be sent to it.

import ControlProtocol
import DeviceModel
import IOMMU
import Synchronization

/// What one client hears of without asking.
///
/// Events and signals come from under locks of the machine, so they are only noted here; whoever serves the
/// connection fetches them, and turns them into text, on a thread of its own.
package final class ControlSession: Sendable {
    /// How many notifications wait for a client that does not read; then the newest are dropped, and counted.
    static let capacity = 4096

    enum Item: Sendable {
        case event(MachineEvent)
        case interrupt(source: Int, InterruptSignal, count: UInt64)
        case command(SentCommand, smmuIndex: Int)
        case log(ControlProtocol.LogLine)
    }

    private struct State: Sendable {
        var items: [(item: Item, droppedBefore: UInt64)] = []
        var dropped: UInt64 = 0
        var isClosed = false
        var events: EventTap?
        var interrupts: [Int: LineTap] = [:]
        var commands: CommandTap?
        var log: LogTap?
    }
    private let state = Mutex(State())
    private let wakeUp = Semaphore()
    let service: ControlService

    init(service: ControlService) { self.service = service }

    // MARK: Sending

    /// Waits for notifications.
    ///
    /// - Returns: Lines to send, each with its newline; nil once the session is closed.
    package func waitForNotifications() -> [[UInt8]]? {
        while true {
            let (items, isClosed) = state.withLock { state in
                let items = state.items
                state.items = []
                return (items, state.isClosed)
            }
            if !items.isEmpty {
                return items.map { service.line(for: $0.item, droppedBefore: $0.droppedBefore) }
            }
            if isClosed { return nil }
            wakeUp.wait()
        }
    }

    /// Ends every subscription, and ``waitForNotifications()``.
    package func close() {
        unsubscribeFromEvents()
        unsubscribeFromInterrupts(nil)
        unsubscribeFromCommands()
        unsubscribeFromLog()
        state.withLock { $0.isClosed = true }
        wakeUp.signal()
    }

    fileprivate func note(_ item: Item) {
        state.withLock { state in
            guard state.items.count < Self.capacity else {
                state.dropped &+= 1
                return
            }
            state.items.append((item, state.dropped))
            state.dropped = 0
        }
        wakeUp.signal()
    }

    // MARK: Subscribing

    /// Whether anything is subscribed to.
    package var hasSubscriptions: Bool {
        state.withLock {
            $0.events != nil || !$0.interrupts.isEmpty || $0.commands != nil || $0.log != nil
        }
    }

    /// Hears of events from now on, of one SMMU or of all; replaces an earlier subscription.
    ///
    /// - Returns: The sequence number of the first event that it may hear of.
    func subscribeToEvents(ofSMMU smmuIndex: Int?) -> UInt64 {
        unsubscribeFromEvents()
        let tap = EventTap(session: self, smmuIndex: smmuIndex)
        state.withLock { $0.events = tap }
        return service.machine.events.add(tap)
    }

    func unsubscribeFromEvents() {
        let tap = state.withLock { state in
            let tap = state.events
            state.events = nil
            return tap
        }
        if let tap { service.machine.events.remove(tap) }
    }

    /// Hears of a line's signals from now on.
    func subscribeToInterrupt(source: Int) {
        let tap = LineTap(session: self, source: source)
        let isNew = state.withLock { state in
            guard state.interrupts[source] == nil else { return false }
            state.interrupts[source] = tap
            return true
        }
        if isNew { service.machine.interrupts[source].line.connect(tap) }
    }

    /// Ends subscriptions to these lines, or to all.
    func unsubscribeFromInterrupts(_ sources: [Int]?) {
        let taps = state.withLock { state in
            let ended = sources ?? Array(state.interrupts.keys)
            return ended.compactMap { source in
                state.interrupts.removeValue(forKey: source).map { (source, $0) }
            }
        }
        for (source, tap) in taps { service.machine.interrupts[source].line.disconnect(tap) }
    }

    /// Hears of commands from now on, of one SMMU or of all; replaces an earlier subscription.
    func subscribeToCommands(ofSMMU smmuIndex: Int?) {
        unsubscribeFromCommands()
        guard let followers = service.machine.operatingSystem.value?.followers else { return }
        let tap = CommandTap(session: self, smmuIndex: smmuIndex)
        state.withLock { $0.commands = tap }
        followers.add(tap)
    }

    func unsubscribeFromCommands() {
        let tap = state.withLock { state in
            defer { state.commands = nil }
            return state.commands
        }
        if let tap { service.machine.operatingSystem.value?.followers.remove(tap) }
    }

    /// Hears of the drivers' lines from now on; replaces an earlier subscription.
    ///
    /// - Returns: The number of the first line that it may hear of.
    func subscribeToLog() -> UInt64 {
        unsubscribeFromLog()
        guard let log = service.machine.operatingSystem.value?.log else { return 0 }
        let tap = LogTap(session: self)
        state.withLock { $0.log = tap }
        return log.add(tap)
    }

    func unsubscribeFromLog() {
        let tap = state.withLock { state in
            defer { state.log = nil }
            return state.log
        }
        if let tap { service.machine.operatingSystem.value?.log.remove(tap) }
    }

    // The machine holds its listeners, so these must not hold the session.

    private final class CommandTap: CommandFollower {
        private let session: Weak
        let smmuIndex: Int?

        init(session: ControlSession, smmuIndex: Int?) {
            self.session = Weak(session)
            self.smmuIndex = smmuIndex
        }

        func commandWasSent(_ command: SentCommand, toSMMU smmuIndex: Int) {
            session.value?.note(.command(command, smmuIndex: smmuIndex))
        }
    }

    private final class LogTap: DriverLogListener {
        private let session: Weak

        init(session: ControlSession) { self.session = Weak(session) }

        func lineWasLogged(_ line: ControlProtocol.LogLine) { session.value?.note(.log(line)) }
    }

    private final class EventTap: MachineEventListener {
        private let session: Weak
        private let smmuIndex: Int?

        init(session: ControlSession, smmuIndex: Int?) {
            self.session = Weak(session)
            self.smmuIndex = smmuIndex
        }

        func eventHappened(_ event: MachineEvent) {
            guard smmuIndex == nil || smmuIndex == event.smmuIndex else { return }
            session.value?.note(.event(event))
        }
    }

    private final class LineTap: InterruptSink {
        private let session: Weak
        private let source: Int

        init(session: ControlSession, source: Int) {
            self.session = Weak(session)
            self.source = source
        }

        func signal(_ signal: InterruptSignal, on line: InterruptLine) {
            let counts = line.counts
            session.value?.note(
                .interrupt(
                    source: source,
                    signal,
                    count: signal == .pulse ? counts.pulses : counts.assertions
                )
            )
        }
    }

    private final class Weak: @unchecked Sendable {
        // Unchecked: weak references are safe to read from any thread, and this one is written once.
        private(set) weak var value: ControlSession?
        init(_ value: ControlSession) { self.value = value }
    }
}
