// How a function's interrupts go: by its pin, MSI or MSI-X.

import Synchronization

extension PCIFunction {
    /// How the function interrupts as it is set up now.
    package var interruptMode: PCIInterruptMode { state.withLock { mode($0) } }

    /// Whether the host has said how interrupts go (``setInterruptModeOverride(_:)``).
    package var isInterruptModeOverridden: Bool { state.withLock { $0.override != nil } }

    /// Which of the MSI-X table's vectors are not masked in it, in ascending order; none without a table.
    package var unmaskedVectors: [Int] {
        guard let table = state.withLock({ $0.table }) else { return [] }
        return (0..<table.layout.vectorCount).filter { !table.isMasked($0) }
    }

    /// What the host has said of how interrupts go; nil is what configuration space says.
    ///
    /// A VMM that takes vectors by eventfd keeps the MSI-X table to itself: the function's own stays masked, and is
    /// not looked at.
    package func setInterruptModeOverride(_ mode: PCIInterruptMode?) {
        state.withLock { state in
            state.override = mode
            updatePin(&state)
        }
        model.configurationChanged()
    }

    /// Sets the level that the model wants of its pin.
    ///
    /// The pin shows it while interrupts go by the pin and Command.Interrupt Disable is 0; Status.Interrupt Status
    /// shows it always.
    package func setINTx(_ isAsserted: Bool) {
        state.withLock { state in
            state.isPinCause = isAsserted
            updatePin(&state)
        }
    }

    /// Sends the message of a vector, or notes that it waits for being unmasked.
    ///
    /// Does nothing where interrupts go by the pin. A vector beyond those that are enabled is the last that is.
    package func signal(vector: Int) {
        enum Action { case none, host(PCIInterruptMode, any PCIFunctionHost), send(PCIMessage) }
        let action: Action = state.withLock { state in
            let mode = mode(state)
            if state.override != nil, mode != .intx {
                guard let host = state.host else { return .none }
                return .host(mode, host)
            }
            switch mode {
            case .intx: return .none
            case .msi(let count):
                let vector = max(0, min(vector, count - 1))
                guard let message = msiMessage(vector, &state) else { return .none }
                return .send(message)
            case .msix:
                guard let table = state.table, (0..<table.layout.vectorCount).contains(vector) else {
                    return .none
                }
                guard !table.isMasked(vector), !isFunctionMasked(state) else {
                    state.table?.setPending(vector)
                    return .none
                }
                return .send(table.message(vector))
            }
        }
        switch action {
        case .none: break
        case .host(let mode, let host): host.signal(vector: vector, mode, of: self)
        case .send(let message): send(message)
        }
    }

    private func mode(_ state: State) -> PCIInterruptMode {
        if let override = state.override { return override }
        if let msix = offsets.msix, state.space.bit(15, at: msix + 2) { return .msix }
        guard let msi = offsets.msi, state.space.bit(0, at: msi + 2) else { return .intx }
        let control = state.space.read16(at: msi + 2)
        // Multiple Message Enable; software may ask for no more than the function is capable of.
        let enabled = min((control >> 4) & 7, (control >> 1) & 7, 5)
        return .msi(vectorCount: 1 << Int(enabled))
    }

    private func isFunctionMasked(_ state: State) -> Bool {
        offsets.msix.map { state.space.bit(14, at: $0 + 2) } ?? false
    }

    /// The message of an MSI vector; nil where it is masked, and then it is pending.
    private func msiMessage(_ vector: Int, _ state: inout State) -> PCIMessage? {
        guard let msi = offsets.msi else { return nil }
        if msiMasks(state) >> UInt32(vector) & 1 != 0 {
            state.pendingMSI |= 1 << UInt32(vector)
            state.space.set(UInt64(state.pendingMSI), at: msi + msiDataOffset + 8, byteCount: 4)
            return nil
        }
        var address = UInt64(state.space.read32(at: msi + 4))
        if offsets.isMSIWide { address |= UInt64(state.space.read32(at: msi + 8)) << 32 }
        let data = UInt32(state.space.read16(at: msi + msiDataOffset))
        guard case .msi(let count) = mode(state) else { return nil }
        // The low bits of the data are the function's to fill with the vector's number.
        return PCIMessage(address: address, data: data & ~UInt32(count - 1) | UInt32(vector))
    }

    /// From the MSI capability's start to Message Data; mask and pending bits are 4 and 8 bytes on.
    private var msiDataOffset: Int { offsets.isMSIWide ? 12 : 8 }

    private func msiMasks(_ state: State) -> UInt32 {
        guard let msi = offsets.msi, offsets.hasMSIMasks else { return 0 }
        return state.space.read32(at: msi + msiDataOffset + 4)
    }

    /// Sends what was pending and is masked no longer.
    func sendUnmasked() {
        let messages: [PCIMessage] = state.withLock { state in
            guard state.override == nil else { return [] }
            switch mode(state) {
            case .intx: return []
            case .msi:
                guard let msi = offsets.msi, state.pendingMSI != 0 else { return [] }
                let ready = state.pendingMSI & ~msiMasks(state)
                guard ready != 0 else { return [] }
                state.pendingMSI &= ~ready
                state.space.set(UInt64(state.pendingMSI), at: msi + msiDataOffset + 8, byteCount: 4)
                return (0..<32).filter { ready >> UInt32($0) & 1 != 0 }.compactMap { msiMessage($0, &state) }
            case .msix:
                guard !isFunctionMasked(state) else { return [] }
                let vectors = state.table?.takeUnmaskedPending() ?? []
                return vectors.compactMap { state.table?.message($0) }
            }
        }
        for message in messages { send(message) }
    }

    /// Shows the pin's level as it follows from its cause and from configuration space.
    func updatePin(_ state: inout State) {
        // Status.Interrupt Status.
        state.space.setBit(3, at: Register.status, to: state.isPinCause)
        let isDisabled = state.space.bit(10, at: Register.command)
        let isAsserted = state.isPinCause && !isDisabled && isAwake(state) && mode(state) == .intx
        guard isAsserted != state.isPinAsserted else { return }
        state.isPinAsserted = isAsserted
        // Under the lock: two changes must not reach the host in the wrong order.
        state.host?.setINTx(isAsserted, of: self)
    }
}
