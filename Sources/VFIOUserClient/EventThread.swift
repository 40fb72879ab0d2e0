// A thread that waits for a foreign device's interrupts.

import Glibc
import HostIO
import Synchronization
import SystemPackage

/// Calls somebody for each event that is signalled, on a thread of its own.
///
/// Lock: a leaf; the call is made with none held.
final class EventThread: Sendable {
    private struct State: Sendable {
        var events: [UInt64: VFIOUserEvent] = [:]
        var lastKey: UInt64 = 0
        var isStopped = false
        var thread: SystemThread.Handle?
    }
    private let wake: WakeEvent
    private let state = Mutex(State())

    init(_ signalled: @escaping @Sendable (_ key: UInt64) -> Void) throws(VFIOUserClientError) {
        do throws(Errno) {
            wake = try WakeEvent()
        } catch {
            throw .local("no eventfd: \(error.description)")
        }
        do throws(Errno) {
            let handle = try SystemThread.start(named: "vfu-client-irq") { [self] in run(signalled) }
            state.withLock { $0.thread = handle }
        } catch {
            throw .local("no thread for interrupts: \(error.description)")
        }
    }

    /// Waits for an event from now on.
    ///
    /// - Returns: What it is called by.
    func watch(_ event: VFIOUserEvent) -> UInt64 {
        let key = state.withLock { state in
            state.lastKey += 1
            state.events[state.lastKey] = event
            return state.lastKey
        }
        wake.signal()
        return key
    }

    /// Waits for an event no more; a call for it may be under way.
    func forget(_ key: UInt64) {
        _ = state.withLock { $0.events.removeValue(forKey: key) }
        wake.signal()
    }

    private func run(_ signalled: (UInt64) -> Void) {
        while true {
            // Held while they are polled, so that no number is another file's by then.
            let watched = state.withLock { $0.isStopped ? nil : Array($0.events) }
            guard let watched else { return }
            var entries = watched.map { pollfd(fd: $0.value.descriptor, events: Int16(POLLIN), revents: 0) }
            entries.append(pollfd(fd: wake.descriptor, events: Int16(POLLIN), revents: 0))
            var isChanged = false
            while !isChanged {
                guard poll(&entries, nfds_t(entries.count), -1) >= 0 || errno == EINTR else { return }
                isChanged = entries[watched.count].revents != 0
                for (entry, (key, event)) in zip(entries, watched)
                where entry.revents != 0 && event.take() > 0 && state.withLock({ $0.events[key] != nil }) {
                    signalled(key)
                }
            }
            wake.reset()
        }
    }

    /// Ends the thread, and waits for its end where it is not the caller's.
    func stop() {
        let thread = state.withLock { state in
            state.isStopped = true
            defer { state.thread = nil }
            return state.thread
        }
        wake.signal()
        guard let thread else { return }
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            SystemThread.join(thread)
        }
    }
}
