// Who is called when the SMMU interrupts.

import DeviceModel
import Synchronization

/// The driver's ends of the interrupt lines.
final class InterruptHandlers: Sendable {
    /// Notes a line's signals and tells whoever handles them.
    private final class Sink: InterruptSink {
        private let notify: @Sendable () -> Void

        init(_ notify: @escaping @Sendable () -> Void) { self.notify = notify }

        func signal(_ signal: InterruptSignal, on line: InterruptLine) {
            if signal != .deasserted { notify() }
        }
    }

    private struct State {
        var connections: [(line: InterruptLine, sink: Sink)] = []
        var workers: [WorkerThread] = []
    }

    let lines: SMMUInterrupts
    private let state = Mutex(State())
    /// Signals that came while nobody's thread handles them.
    let pendingEvents = Atomic(false)
    let pendingErrors = Atomic(false)

    init(_ lines: SMMUInterrupts) { self.lines = lines }

    /// Connects the lines to threads: one for events, one for errors, and one for page requests where there are any.
    func startThreads(
        events: @escaping @Sendable () -> Void,
        errors: @escaping @Sendable () -> Void,
        requests: (@Sendable () -> Void)?
    ) {
        let eventWorker = WorkerThread(events)
        let errorWorker = WorkerThread(errors)
        let requestWorker = requests.map { WorkerThread($0) }
        state.withLock { $0.workers = [eventWorker, errorWorker] + (requestWorker.map { [$0] } ?? []) }
        connect(
            events: { eventWorker.kick() },
            errors: { errorWorker.kick() },
            requests: { requestWorker?.kick() }
        )
    }

    /// Connects the lines to the pending flags.
    func noteOnly() {
        connect(
            events: { [weak self] in self?.pendingEvents.store(true, ordering: .releasing) },
            errors: { [weak self] in self?.pendingErrors.store(true, ordering: .releasing) },
            requests: { [weak self] in self?.pendingEvents.store(true, ordering: .releasing) }
        )
    }

    private func connect(
        events: @escaping @Sendable () -> Void,
        errors: @escaping @Sendable () -> Void,
        requests: @escaping @Sendable () -> Void
    ) {
        switch lines {
        case .combined(let line):
            connect(line) {
                errors()
                events()
                requests()
            }
        case .named(let eventq, let gerror, let priq):
            if let eventq { connect(eventq, events) }
            if let gerror { connect(gerror, errors) }
            if let priq { connect(priq, requests) }
        case .messages(let eventq, let gerror, let priq):
            connect(eventq.line, events)
            connect(gerror.line, errors)
            if let priq { connect(priq.line, requests) }
        }
    }

    private func connect(_ line: InterruptLine, _ notify: @escaping @Sendable () -> Void) {
        let sink = Sink(notify)
        state.withLock { $0.connections.append((line, sink)) }
        line.connect(sink)
    }

    /// Disconnects the lines and ends the threads.
    func stop() {
        let old = state.withLock { state in
            defer { state = State() }
            return state
        }
        for (line, sink) in old.connections { line.disconnect(sink) }
        for worker in old.workers { worker.stop() }
    }
}
