// Interrupts are lines: level or edge, many sources to one line, many listeners.

import Synchronization

/// How an interrupt controller is told to sense a line.
public enum InterruptTrigger: String, Hashable, Sendable {
    case edgeRising = "edge-rising"
    case edgeFalling = "edge-falling"
    case edgeBoth = "edge-both"
    case levelHigh = "level-high"
    case levelLow = "level-low"
}

/// Which input of which interrupt controller a line is.
public struct InterruptIdentity: Hashable, Sendable {
    /// The controller's path in the device tree.
    public let controller: String
    /// The interrupt specifier's cells, as the controller's binding defines them.
    public let specifier: [UInt32]
    /// The INTID where the controller is a GIC: 32 + n for SPI n, 16 + n for PPI n.
    ///
    /// Nil for other controllers.
    public let interruptID: UInt32?
    /// How the specifier wants the line sensed, where its binding says so.
    public let trigger: InterruptTrigger?

    public init(
        controller: String,
        specifier: [UInt32],
        interruptID: UInt32? = nil,
        trigger: InterruptTrigger? = nil
    ) {
        self.controller = controller
        self.specifier = specifier
        self.interruptID = interruptID
        self.trigger = trigger
    }
}

/// What happened on a line.
public enum InterruptSignal: Hashable, Sendable {
    /// One edge: an occurrence, with no level that could be read back.
    case pulse
    /// The line went from inactive to active.
    case asserted
    /// The line went from active to inactive.
    case deasserted
}

/// Hears of a line's signals.
///
/// A leaf: it is called under the line's lock, so it notes the signal, wakes whoever handles it and returns.
/// It calls no device, no bus and no line.
public protocol InterruptSink: AnyObject, Sendable {
    func signal(_ signal: InterruptSignal, on line: InterruptLine)
}

/// One input of an interrupt controller.
///
/// Lock order: last. Whoever signals may hold any lock of its own.
public final class InterruptLine: Sendable {
    public let identity: InterruptIdentity
    /// What the device calls it: `eventq`, `gerror`, `combined`.
    ///
    /// For people.
    public let label: String

    private struct State {
        var sinks: [any InterruptSink] = []
        var assertedInputs = 0
    }
    private let state = Mutex(State())
    // Written under `state`; atomic so that a sink, which runs under it, can read them.
    private let pulses = Atomic<UInt64>(0)
    private let assertions = Atomic<UInt64>(0)

    public init(identity: InterruptIdentity, label: String) {
        self.identity = identity
        self.label = label
    }

    /// Adds a listener; it hears every signal from now on, and at once an ``InterruptSignal/asserted`` if the
    /// line is active.
    public func connect(_ sink: any InterruptSink) {
        state.withLock { state in
            state.sinks.append(sink)
            if state.assertedInputs > 0 { sink.signal(.asserted, on: self) }
        }
    }

    /// Removes a listener.
    ///
    /// When this returns it hears no more.
    public func disconnect(_ sink: any InterruptSink) {
        state.withLock { state in state.sinks.removeAll { $0 === sink } }
    }

    /// Signals one occurrence of an edge interrupt.
    public func pulse() {
        state.withLock { state in
            pulses.wrappingAdd(1, ordering: .relaxed)
            for sink in state.sinks { sink.signal(.pulse, on: self) }
        }
    }

    /// How often the line pulsed, and how often it went active, since the machine was built.
    ///
    /// A sink that is being called may read it: the signal is counted already.
    public var counts: (pulses: UInt64, assertions: UInt64) {
        (pulses.load(ordering: .relaxed), assertions.load(ordering: .relaxed))
    }

    /// Whether a level source holds the line active.
    public var isAsserted: Bool { state.withLock { $0.assertedInputs > 0 } }

    fileprivate func inputChanged(to isAsserted: Bool) {
        state.withLock { state in
            let wasAsserted = state.assertedInputs > 0
            state.assertedInputs += isAsserted ? 1 : -1
            let isNowAsserted = state.assertedInputs > 0
            guard wasAsserted != isNowAsserted else { return }
            if isNowAsserted { assertions.wrappingAdd(1, ordering: .relaxed) }
            for sink in state.sinks { sink.signal(isNowAsserted ? .asserted : .deasserted, on: self) }
        }
    }
}

/// One level source of a line.
///
/// The line is active while any of its inputs is.
public final class InterruptLevelInput: Sendable {
    private let line: InterruptLine
    private let level = Mutex(false)

    public init(of line: InterruptLine) { self.line = line }

    /// Sets this source's level.
    ///
    /// Setting what it is already changes nothing.
    public func set(_ isAsserted: Bool) {
        level.withLock { level in
            guard level != isAsserted else { return }
            level = isAsserted
            line.inputChanged(to: isAsserted)
        }
    }

    deinit { set(false) }
}
