// Eventfds that others signal, and what is done then, on a thread of its own.

import CLinux
import Glibc
import GuestMemory
import HostIO
import Synchronization
import SystemPackage

/// Watches eventfds.
///
/// Nobody reads them: they are shared, and a read could block. Each signal is an edge.
final class EventWatcher: Sendable {
    /// Names what is watched, to stop watching it.
    struct Token: Hashable, Sendable { fileprivate let number: UInt64 }

    private final class Watch: Sendable {
        let descriptor: OwnedDescriptor
        let action: @Sendable () -> Void

        init(_ descriptor: consuming OwnedDescriptor, _ action: @escaping @Sendable () -> Void) {
            self.descriptor = descriptor
            self.action = action
        }
    }

    private struct State: Sendable {
        var watches: [UInt64: Watch] = [:]
        var lastNumber: UInt64 = 0
        var thread: SystemThread.Handle?
        var isStopped = false
    }

    /// Lock order: a leaf; actions run without it.
    private let state = Mutex(State())
    private let name: String
    private let epoll: OwnedDescriptor
    private let stopEvent: WakeEvent

    /// - Throws: The system's error where it gives no descriptor.
    init(name: String) throws(Errno) {
        self.name = name
        let epoll = smmud_epoll_create()
        guard epoll >= 0 else { throw Errno(rawValue: -epoll) }
        self.epoll = OwnedDescriptor(adopting: epoll)
        stopEvent = try WakeEvent()
        let error = smmud_epoll_watch(epoll, stopEvent.descriptor, 0)
        guard error == 0 else { throw Errno(rawValue: -error) }
    }

    deinit { stop() }

    /// Does `action` at each signal, and at once where the eventfd has been signalled already.
    ///
    /// - Throws: The system's error where it gives no thread, or does not let the descriptor be watched.
    func watch(_ descriptor: consuming OwnedDescriptor, _ action: @escaping @Sendable () -> Void)
        throws(Errno)
        -> Token
    {
        let watch = Watch(descriptor, action)
        let result: Result<Token, Errno> = state.withLock { state in
            guard !state.isStopped else { return .failure(.canceled) }
            do throws(Errno) {
                if state.thread == nil {
                    state.thread = try SystemThread.start(named: name) { [unowned self] in run() }
                }
            } catch {
                return .failure(error)
            }
            state.lastNumber &+= 1
            let error = smmud_epoll_watch(epoll.rawValue, watch.descriptor.rawValue, state.lastNumber)
            guard error == 0 else { return .failure(Errno(rawValue: -error)) }
            state.watches[state.lastNumber] = watch
            return .success(Token(number: state.lastNumber))
        }
        return try result.get()
    }

    /// Stops watching.
    ///
    /// An action that runs already may end after this returns.
    func forget(_ token: Token) {
        let watch = state.withLock { state in
            let watch = state.watches.removeValue(forKey: token.number)
            if let watch { smmud_epoll_forget(epoll.rawValue, watch.descriptor.rawValue) }
            return watch
        }
        // Closed here at the earliest: the kernel must forget it before its number is another's.
        withExtendedLifetime(watch) {}
    }

    /// Stops watching all, and waits for what is being done.
    func stop() {
        let (thread, watches) = state.withLock { state in
            state.isStopped = true
            let result = (state.thread, state.watches)
            for watch in state.watches.values {
                smmud_epoll_forget(epoll.rawValue, watch.descriptor.rawValue)
            }
            state.watches = [:]
            state.thread = nil
            return result
        }
        withExtendedLifetime(watches) {}
        guard let thread else { return }
        stopEvent.signal()
        SystemThread.join(thread)
    }

    private func run() {
        var tokens = [UInt64](repeating: 0, count: 16)
        while true {
            let count = smmud_epoll_wait(epoll.rawValue, &tokens, CInt(tokens.count))
            guard count >= 0 else { return }
            for token in tokens[..<Int(count)] {
                let (isStopped, watch) = state.withLock { ($0.isStopped, $0.watches[token]) }
                if isStopped { return }
                watch?.action()
            }
        }
    }
}
