// The events of every SMMU of a machine, in one order, and who hears of them.

package import SMMUv3
import Synchronization

/// An event with its place in the machine's history.
package struct MachineEvent: Sendable {
    /// Counts all events of the machine from 0.
    package let sequence: UInt64
    /// The SMMU's place in ``Machine/smmus``.
    package let smmuIndex: Int
    package let event: LoggedEvent
}

/// Hears of every event of a machine.
///
/// A leaf: it notes the event, wakes whoever handles it, and returns.
package protocol MachineEventListener: AnyObject, Sendable {
    func eventHappened(_ event: MachineEvent)
}

/// Keeps the last events of all SMMUs and passes each on.
package final class MachineEventLog: Sendable {
    /// How many events are kept.
    static let capacity = 4096

    private struct State: Sendable {
        var events: [MachineEvent] = []
        var next: UInt64 = 0
        var listeners: [any MachineEventListener] = []
    }
    private let state = Mutex(State())

    init() {}

    func listen(to smmu: SMMUv3, at index: Int) {
        smmu.addEventObserver(Tap(log: self, smmuIndex: index))
    }

    fileprivate func append(_ event: LoggedEvent, _ smmuIndex: Int) {
        state.withLock { state in
            let entry = MachineEvent(sequence: state.next, smmuIndex: smmuIndex, event: event)
            state.next &+= 1
            if state.events.count == Self.capacity { state.events.removeFirst(Self.capacity / 8) }
            state.events.append(entry)
            for listener in state.listeners { listener.eventHappened(entry) }
        }
    }

    /// The events from that sequence number on, oldest first, and the number of the next one.
    package func events(from sequence: UInt64) -> (events: [MachineEvent], next: UInt64) {
        state.withLock { state in (state.events.filter { $0.sequence >= sequence }, state.next) }
    }

    /// Adds a listener.
    ///
    /// - Returns: The sequence number of the first event that it hears of.
    @discardableResult
    package func add(_ listener: any MachineEventListener) -> UInt64 {
        state.withLock { state in
            state.listeners.append(listener)
            return state.next
        }
    }

    /// Removes a listener.
    ///
    /// When this returns it hears no more.
    package func remove(_ listener: any MachineEventListener) {
        state.withLock { $0.listeners.removeAll { $0 === listener } }
    }

    private final class Tap: EventObserver {
        private let log: MachineEventLog
        private let smmuIndex: Int

        init(log: MachineEventLog, smmuIndex: Int) {
            self.log = log
            self.smmuIndex = smmuIndex
        }

        func eventHappened(_ event: LoggedEvent, in smmu: SMMUv3) { log.append(event, smmuIndex) }
    }
}
