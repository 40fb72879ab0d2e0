// Asynchronous Event Requests that are outstanding, and events that wait for one.

import Synchronization

/// What an Asynchronous Event Request completes with.
struct AsynchronousEvent: Equatable, Sendable {
    /// DW0: type in bits 2:0, information in 15:8, log page in 23:16.
    var dword: UInt32

    var type: UInt32 { dword & 7 }

    /// Error status, Write to Invalid Doorbell Register; told by the error log.
    static let invalidDoorbellRegister = Self(dword: 0x01_0000)
    /// Error status, Invalid Doorbell Write Value.
    static let invalidDoorbellValue = Self(dword: 0x01_0100)
}

/// Brings events and requests together.
///
/// An event's type is masked from its delivery until software reads the log page that it names.
final class AsynchronousEvents: Sendable {
    /// AERL, as a count.
    static let requestCountMax = 4
    /// Beyond these, events of doorbells are dropped: a guest can write wrong values for ever.
    private static let eventCountMax = 8

    private struct State {
        var requests: [UInt16] = []
        var events: [AsynchronousEvent] = []
        var maskedTypes: Set<UInt32> = []
    }
    private let state = Mutex(State())

    /// Notes an event.
    ///
    /// - Returns: Whether it is new.
    func add(_ event: AsynchronousEvent) -> Bool {
        state.withLock { state in
            guard state.events.count < Self.eventCountMax, !state.events.contains(event) else { return false }
            state.events.append(event)
            return true
        }
    }

    /// Keeps a request outstanding.
    ///
    /// - Returns: Whether there was room for it.
    func addRequest(_ commandIdentifier: UInt16) -> Bool {
        state.withLock { state in
            guard state.requests.count < Self.requestCountMax else { return false }
            state.requests.append(commandIdentifier)
            return true
        }
    }

    /// Takes a request back, for Abort.
    ///
    /// - Returns: Whether it was outstanding.
    func removeRequest(_ commandIdentifier: UInt16) -> Bool {
        state.withLock { state in
            guard let index = state.requests.firstIndex(of: commandIdentifier) else { return false }
            state.requests.remove(at: index)
            return true
        }
    }

    /// The next event that may be told, and the request to tell it by.
    func takeDeliverable() -> (commandIdentifier: UInt16, AsynchronousEvent)? {
        state.withLock { state in
            guard let request = state.requests.first,
                let index = state.events.firstIndex(where: { !state.maskedTypes.contains($0.type) })
            else { return nil }
            let event = state.events.remove(at: index)
            state.requests.removeFirst()
            state.maskedTypes.insert(event.type)
            return (request, event)
        }
    }

    /// Software read the log page of a type.
    func unmask(type: UInt32) { state.withLock { _ = $0.maskedTypes.remove(type) } }

    func reset() { state.withLock { $0 = State() } }
}
