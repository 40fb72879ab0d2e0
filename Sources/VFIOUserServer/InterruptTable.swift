// Where a client wants a device's interrupts: eventfds, and which vectors are masked.

import CLinux
import GuestMemory
import Synchronization
import SystemPackage
import VFIOUserProtocol

/// The interrupts of one connection.
///
/// Lock order: a leaf. Eventfds are written under the lock, so that none is written after it was given up; that
/// never waits.
final class InterruptTable: VFIOUserInterrupts {
    typealias Action = VFIOUserInterruptChange.Action

    private struct Vector: Sendable {
        /// -1 where none is bound.
        var eventfd: CInt = -1
        var isMasked = false
        /// Signalled while masked.
        var isPending = false
    }
    /// An eventfd of the client's that masks or unmasks a vector.
    private struct Switch: Hashable, Sendable {
        var action: Action
        var index: UInt32
        var vector: Int
    }
    private struct State: Sendable {
        var kinds: [[Vector]]
        var switches: [Switch: EventWatcher.Token] = [:]
        var isINTxAsserted = false
        var isClosed = false
    }

    private let state: Mutex<State>
    private let watcher: @Sendable () throws(Errno) -> EventWatcher

    /// - Parameter watcher: Who watches the eventfds that mask and unmask.
    init(
        _ interrupts: [VFIOUserInterruptDescription],
        watcher: @escaping @Sendable () throws(Errno) -> EventWatcher
    ) {
        state = Mutex(
            State(kinds: interrupts.map { Array(repeating: Vector(), count: Int($0.count)) })
        )
        self.watcher = watcher
    }

    deinit { close() }

    /// Gives all eventfds up; nothing is signalled from now on.
    func close() {
        let switches = state.withLock { state in
            state.isClosed = true
            for kind in state.kinds.indices {
                for vector in state.kinds[kind].indices { Self.unbind(&state.kinds[kind][vector]) }
            }
            defer { state.switches = [:] }
            return state.switches
        }
        forget(switches.values)
    }

    // MARK: The device's side

    func signal(_ index: VFIOUserInterruptIndex, vector: Int) {
        state.withLock { state in
            guard index != .intx, Self.exists(state, index, vector) else { return }
            Self.raise(&state.kinds[Int(index.rawValue)][vector])
        }
    }

    func setINTx(_ isAsserted: Bool) {
        state.withLock { state in
            state.isINTxAsserted = isAsserted
            Self.raiseINTx(&state)
        }
    }

    private static func exists(_ state: State, _ index: VFIOUserInterruptIndex, _ vector: Int) -> Bool {
        index.rawValue < state.kinds.count && state.kinds[Int(index.rawValue)].indices.contains(vector)
    }

    private static func raise(_ vector: inout Vector) {
        if vector.isMasked {
            vector.isPending = true
        } else if vector.eventfd >= 0 {
            smmud_signal_eventfd(vector.eventfd)
        }
    }

    /// Tells the client of INTx once, and again only after it has unmasked it.
    private static func raiseINTx(_ state: inout State) {
        guard state.isINTxAsserted, state.kinds.first?.isEmpty == false, state.kinds[0][0].eventfd >= 0,
            !state.kinds[0][0].isMasked
        else { return }
        state.kinds[0][0].isMasked = true
        smmud_signal_eventfd(state.kinds[0][0].eventfd)
    }

    // MARK: The client's side

    /// Carries out what a client asks; its vectors exist.
    ///
    /// - Throws: `EINVAL` for a descriptor that is no eventfd, and the system's error where it does not let one be
    ///   watched.
    func apply(
        _ change: VFIOUserInterruptChange,
        _ descriptors: inout ReceivedDescriptors
    ) throws(VFIOUserError) {
        switch change {
        case .disable(let index): disable(index)
        case .perform(let action, let index, let vectors):
            for vector in vectors { perform(action, index, vector) }
        case .bind(let action, let index, let vectors): try bind(action, index, vectors, &descriptors)
        case .unbind(.trigger, let index, let vectors):
            state.withLock { state in
                for vector in vectors { Self.unbind(&state.kinds[Int(index.rawValue)][vector]) }
            }
        case .unbind(let action, let index, let vectors):
            for vector in vectors {
                setSwitch(Switch(action: action, index: index.rawValue, vector: vector), to: nil)
            }
        }
    }

    /// How many vectors there are up to the last that has an eventfd.
    func boundCount(_ index: VFIOUserInterruptIndex) -> Int {
        state.withLock { state in
            guard index.rawValue < state.kinds.count else { return 0 }
            return (state.kinds[Int(index.rawValue)].lastIndex { $0.eventfd >= 0 } ?? -1) + 1
        }
    }

    private func disable(_ index: VFIOUserInterruptIndex) {
        let switches = state.withLock { state in
            for vector in state.kinds[Int(index.rawValue)].indices {
                Self.unbind(&state.kinds[Int(index.rawValue)][vector])
            }
            let switches = state.switches.filter { $0.key.index == index.rawValue }
            for key in switches.keys { state.switches[key] = nil }
            return switches
        }
        forget(switches.values)
    }

    private static func unbind(_ vector: inout Vector) {
        if vector.eventfd >= 0 { closeDescriptor(vector.eventfd) }
        vector = Vector()
    }

    private func perform(_ action: Action, _ index: VFIOUserInterruptIndex, _ vector: Int) {
        state.withLock { state in
            guard !state.isClosed else { return }
            let kind = Int(index.rawValue)
            switch action {
            // A test of the way to the client: neither the level nor the mask is looked at.
            case .trigger:
                let eventfd = state.kinds[kind][vector].eventfd
                if eventfd >= 0 { smmud_signal_eventfd(eventfd) }
            case .mask: state.kinds[kind][vector].isMasked = true
            case .unmask:
                state.kinds[kind][vector].isMasked = false
                if index == .intx { return Self.raiseINTx(&state) }
                guard state.kinds[kind][vector].isPending else { return }
                state.kinds[kind][vector].isPending = false
                Self.raise(&state.kinds[kind][vector])
            }
        }
    }

    private func bind(
        _ action: Action,
        _ index: VFIOUserInterruptIndex,
        _ vectors: Range<Int>,
        _ descriptors: inout ReceivedDescriptors
    ) throws(VFIOUserError) {
        guard descriptors.numbers.allSatisfy({ smmud_is_eventfd($0) }) else { throw .invalid }
        for vector in vectors {
            guard let descriptor = descriptors.takeFirst() else { throw .invalid }
            guard action != .trigger else {
                bindTrigger(index, vector, descriptor)
                continue
            }
            let key = Switch(action: action, index: index.rawValue, vector: vector)
            // The old one first: a signal of it must not come after one of the new.
            setSwitch(key, to: nil)
            let owned = OwnedDescriptor(adopting: descriptor)
            do throws(Errno) {
                let token = try watcher().watch(owned) { [weak self] in self?.perform(action, index, vector) }
                setSwitch(key, to: token)
            } catch {
                throw VFIOUserError(rawValue: UInt32(error.rawValue))
            }
        }
    }

    private func bindTrigger(_ index: VFIOUserInterruptIndex, _ vector: Int, _ descriptor: CInt) {
        state.withLock { state in
            let kind = Int(index.rawValue)
            guard !state.isClosed else { return closeDescriptor(descriptor) }
            let old = state.kinds[kind][vector].eventfd
            if old >= 0 { closeDescriptor(old) }
            // Masked it stays, where it was: the client has not answered the last signal.
            state.kinds[kind][vector].eventfd = descriptor
            if index == .intx { Self.raiseINTx(&state) }
        }
    }

    private func setSwitch(_ key: Switch, to token: EventWatcher.Token?) {
        let old = state.withLock { state in
            let old = state.switches.removeValue(forKey: key)
            state.switches[key] = token
            return old
        }
        if let old { forget([old]) }
    }

    private func forget(_ tokens: some Collection<EventWatcher.Token>) {
        guard !tokens.isEmpty, let watcher = try? watcher() else { return }
        for token in tokens { watcher.forget(token) }
    }
}
