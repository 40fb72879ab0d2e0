// The lines of every driver of ours, in one order, and who hears of them.

import ControlProtocol
import IOMMU
import Synchronization

/// Hears of every line.
///
/// A leaf: it notes the line and returns.
protocol DriverLogListener: AnyObject, Sendable {
    func lineWasLogged(_ line: ControlProtocol.LogLine)
}

/// Keeps the last lines of all drivers, with the time since the machine's driver started.
final class MachineDriverLog: Sendable {
    private static let capacity = 4096

    private struct State: Sendable {
        var lines: [ControlProtocol.LogLine] = []
        var next: UInt64 = 0
        var listeners: [any DriverLogListener] = []
    }
    private let state = Mutex(State())
    private let clock: any DriverClock
    private let start: UInt64

    init(clock: any DriverClock) {
        self.clock = clock
        start = clock.nanoseconds()
    }

    func append(_ text: String, from source: String) {
        let time = (clock.nanoseconds() &- start) / 1000
        state.withLock { state in
            if state.lines.count == Self.capacity { state.lines.removeFirst(Self.capacity / 8) }
            let line = ControlProtocol.LogLine(
                sequence: Size(state.next),
                source: source,
                text: text,
                microseconds: Size(time)
            )
            state.lines.append(line)
            state.next &+= 1
            for listener in state.listeners { listener.lineWasLogged(line) }
        }
    }

    func lines(from sequence: UInt64) -> (lines: [ControlProtocol.LogLine], next: UInt64) {
        state.withLock { state in (state.lines.filter { $0.sequence.value >= sequence }, state.next) }
    }

    /// - Returns: The number of the first line that it hears of.
    func add(_ listener: any DriverLogListener) -> UInt64 {
        state.withLock { state in
            state.listeners.append(listener)
            return state.next
        }
    }

    /// When this returns it hears no more.
    func remove(_ listener: any DriverLogListener) {
        state.withLock { $0.listeners.removeAll { $0 === listener } }
    }
}
