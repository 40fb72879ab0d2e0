// How completions become interrupts: the pin's level, MSI and MSI-X.

import DeviceModel
import PCIFunction
import Synchronization

extension ControllerCore {
    /// Interrupts for entries that were posted to a queue; not for register accesses, since a message is DMA.
    func interrupt(for queue: CompletionQueue) {
        guard queue.interruptsEnabled, let function else { return }
        switch function.interruptMode {
        case .intx: updatePin()
        case .msi:
            // INTMS masks messages of MSI as it does the pin; with MSI-X it has no meaning.
            let bit = queue.vector < 32 ? UInt32(1) << UInt32(queue.vector) : 0
            guard interruptMask.load(ordering: .sequentiallyConsistent) & bit == 0 else {
                pendingVectors.bitwiseOr(bit, ordering: .sequentiallyConsistent)
                // It may have been unmasked since.
                if interruptMask.load(ordering: .sequentiallyConsistent) & bit == 0 { control.signal() }
                return
            }
            function.signal(vector: queue.vector)
        case .msix: function.signal(vector: queue.vector)
        }
    }

    /// Sends messages that waited for INTMC.
    func sendUnmaskedMessages() {
        let mask = interruptMask.load(ordering: .sequentiallyConsistent)
        let (old, _) = pendingVectors.bitwiseAnd(mask, ordering: .sequentiallyConsistent)
        let ready = old & ~mask
        guard ready != 0, !isHalted, let function else { return }
        for vector in 0..<32 where ready >> UInt32(vector) & 1 != 0 { function.signal(vector: vector) }
    }

    /// Whether the pin's level follows from heads, so that software has to tell of each.
    var wantsHeads: Bool { function?.interruptMode == .intx }

    /// Sets the pin: it is active while a queue that interrupts has entries and vector 0 is not masked.
    func updatePin() {
        guard let function else { return }
        pin.withLock { _ in
            guard function.interruptMode == .intx else { return function.setINTx(false) }
            let isMasked = interruptMask.load(ordering: .sequentiallyConsistent) & 1 != 0
            let hasCause =
                !isMasked
                && queues.withLock { queues in
                    queues.completions.values.contains { $0.interruptsEnabled && $0.hasEntries }
                }
            function.setINTx(hasCause)
        }
    }

    /// Software changed how interrupts go.
    func interruptModeChanged() { updatePin() }
}
