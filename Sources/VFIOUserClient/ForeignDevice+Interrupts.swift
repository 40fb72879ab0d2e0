// A foreign device's interrupts: which eventfds are bound, and what becomes of their signals.

import PCIFunction
import Synchronization

extension ForeignDevice {
    /// What is bound.
    struct Wiring: Sendable {
        /// How the function interrupts as far as the server knows; nil before anything is bound.
        var mode: PCIInterruptMode?
        /// The events of the mode's vectors, by what ``EventThread`` calls them.
        var vectors: [Int: UInt64] = [:]
        /// The event of ERR.
        var error: UInt64?
    }

    // MARK: Signals

    /// An event was signalled, on the thread of events.
    func signalled(_ key: UInt64) {
        guard let function else { return }
        enum Target { case none, error, pin, vector(Int) }
        let target: Target = signals.withLock { signals in
            guard let vector = signals[key] else { return .none }
            switch vector {
            case .error: return .error
            case .intx: return .pin
            case .vector(let number): return .vector(number)
            }
        }
        switch target {
        case .none: break
        case .error: options.report("the device signals an error that it cannot recover from")
        case .pin:
            pin.withLock { _ in
                function.setINTx(true)
                isINTxPending.store(true, ordering: .releasing)
            }
        case .vector(let number): function.signal(vector: number)
        }
    }

    /// The guest accessed a BAR after an interrupt by pin: it may have dealt with it.
    ///
    /// The server masked the interrupt when it signalled it. Unmasked, it signals again where its cause is still
    /// there: that is how VFIO makes a level of signals.
    func guestLooked() {
        guard isINTxPending.load(ordering: .acquiring), lowerPin() else { return }
        do throws(VFIOUserClientError) {
            try client.perform(.unmask, .intx, vectors: 0..<1)
        } catch {
            options.report("INTx is not unmasked: \(error)")
        }
    }

    /// Takes the pin's level away that a signal raised; whether there was one.
    func lowerPin() -> Bool {
        pin.withLock { _ in
            guard isINTxPending.exchange(false, ordering: .acquiringAndReleasing) else { return false }
            function?.setINTx(false)
            return true
        }
    }

    // MARK: Binding

    package func configurationChanged() { updateWiring() }

    package func vectorsChanged() { updateWiring() }

    /// Binds what the function's configuration asks for now.
    func updateWiring() {
        guard let function, client.ending == nil else { return }
        wiring.withLock { wiring in
            // Looked at under the lock: of two changes at once, the later one must have the last word.
            let mode = function.interruptMode
            if mode != wiring.mode {
                unwire(&wiring)
                wire(to: mode, &wiring)
            }
            guard mode == .msix else { return }
            // Vectors are bound when they are first used, and stay so: most devices have more than anybody uses. A
            // host that has taken interrupts over uses all, and looks at no table.
            let used =
                function.isInterruptModeOverridden ? Array(0..<vectorCounts.msix) : function.unmaskedVectors
            bindVectors(used.filter { $0 < vectorCounts.msix }, .msix, &wiring)
        }
    }

    /// Lets go of everything but ERR.
    func unwire(_ wiring: inout Wiring) {
        guard let mode = wiring.mode else { return }
        wiring.mode = nil
        if !wiring.vectors.isEmpty {
            do throws(VFIOUserClientError) {
                try client.disable(mode.kind)
            } catch {
                options.report("\(mode.kind) is not disabled: \(error)")
            }
        }
        for key in wiring.vectors.values { forget(key) }
        wiring.vectors = [:]
        // A level that nobody would take away any more.
        _ = lowerPin()
    }

    /// Binds the vectors of a mode; those of MSI-X come as they are used.
    func wire(to mode: PCIInterruptMode, _ wiring: inout Wiring) {
        wiring.mode = mode
        if wiring.error == nil, vectorCounts.error > 0 { wiring.error = bind(.error, 0, .error) }
        switch mode {
        case .intx:
            guard vectorCounts.intx > 0, function?.description.interruptPin != 0 else { return }
            bindVectors([0], .intx, &wiring)
        case .msi(let count): bindVectors(Array(0..<min(count, vectorCounts.msi)), .msi, &wiring)
        case .msix: break
        }
    }

    private func bindVectors(
        _ vectors: [Int],
        _ kind: VFIOUserClient.InterruptKind,
        _ wiring: inout Wiring
    ) {
        for vector in vectors where wiring.vectors[vector] == nil {
            wiring.vectors[vector] = bind(kind, vector, kind == .intx ? .intx : .vector(vector))
        }
    }

    /// Binds an event to one vector.
    ///
    /// - Returns: What it is called by; nil where it was refused, which was reported.
    private func bind(_ kind: VFIOUserClient.InterruptKind, _ vector: Int, _ signal: Signal) -> UInt64? {
        do throws(VFIOUserClientError) {
            let event = try VFIOUserEvent()
            let key = thread.watch(event)
            signals.withLock { $0[key] = signal }
            do throws(VFIOUserClientError) {
                try client.bind([event], to: kind, from: vector)
                return key
            } catch {
                forget(key)
                throw error
            }
        } catch {
            options.report("\(kind) vector \(vector) is not bound: \(error)")
            return nil
        }
    }

    private func forget(_ key: UInt64) {
        thread.forget(key)
        signals.withLock { $0[key] = nil }
    }

    /// What an event means.
    enum Signal: Sendable {
        case intx
        case vector(Int)
        case error
    }
}

extension PCIInterruptMode {
    fileprivate var kind: VFIOUserClient.InterruptKind {
        switch self {
        case .intx: .intx
        case .msi: .msi
        case .msix: .msix
        }
    }
}
