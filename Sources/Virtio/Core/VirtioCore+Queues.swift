// Queues as a transport's registers set them up, and interrupts.

import HostIO
import Synchronization

extension VirtioCore {
    /// Changes the selected queue, unless it is enabled or there is none of that number.
    func configureSelectedQueue(_ change: (inout QueueConfiguration) -> Void) {
        state.withLock { state in
            let index = Int(state.queueSelect)
            guard index < state.queues.count, !state.queues[index].isEnabled else { return }
            change(&state.queues[index].configuration)
        }
    }

    /// The selected queue; nil where there is none of that number.
    var selectedQueue: Queue? {
        state.withLock { state in
            let index = Int(state.queueSelect)
            return index < state.queues.count ? state.queues[index] : nil
        }
    }

    /// The driver enables the selected queue; after DRIVER_OK it runs at once.
    func enableSelectedQueue() {
        let isRunning: Bool = state.withLock { state in
            let index = Int(state.queueSelect)
            guard index < state.queues.count, !state.queues[index].isEnabled else { return false }
            state.queues[index].isEnabled = true
            guard state.status.contains(.driverOK) else { return false }
            activate(index, &state)
            return true
        }
        if isRunning { wakeAll() }
    }

    /// Resets the selected queue (VIRTIO_F_RING_RESET); ``isSelectedQueueResetting`` says when it is done.
    func resetSelectedQueue() {
        let thread: Int? = state.withLock { state in
            let index = Int(state.queueSelect)
            guard index < state.queues.count, state.driverFeatures.contains(.queueReset) else { return nil }
            stopQueue(index, &state)
            return threadOfQueue[index]
        }
        if let thread { threads[thread].configurationChanged() }
    }

    /// Takes the selected queue out of use, as a write of 0 to the MMIO transport's QueueReady does.
    func disableSelectedQueue() {
        let thread: Int? = state.withLock { state in
            let index = Int(state.queueSelect)
            guard index < state.queues.count, state.queues[index].isEnabled else { return nil }
            gates[index].close()
            state.queues[index].activation = 0
            state.queues[index].isEnabled = false
            return threadOfQueue[index]
        }
        if let thread { threads[thread].configurationChanged() }
    }

    private func stopQueue(_ index: Int, _ state: inout State) {
        gates[index].close()
        let sizeMax = state.queues[index].sizeMax
        let place = QueueConfiguration(size: sizeMax, descriptors: 0, driverArea: 0, deviceArea: 0)
        state.queues[index] = Queue(configuration: place, sizeMax: sizeMax)
    }

    /// Whether a transaction of the selected queue is in flight although it was stopped.
    var isSelectedQueueResetting: Bool {
        state.withLock { state in
            let index = Int(state.queueSelect)
            return index < gates.count && !gates[index].isQuiet
        }
    }

    /// The driver notified a queue.
    func notify(_ queue: Int) {
        guard queue < threadOfQueue.count else { return }
        device.statistics.countNotification()
        threads[threadOfQueue[queue]].wake.signal()
    }

    // MARK: Interrupts

    /// Interrupts the driver for used buffers; called by the queue's thread, inside its gate.
    func interrupt(_ queue: Int) {
        guard let wire = currentWire() else { return }
        let vector: UInt16 = state.withLock { state in
            guard state.status.contains(.driverOK) else { return Self.noVector }
            guard !wire.usesMessages else { return state.queues[queue].vector }
            device.statistics.countInterrupt()
            state.interruptStatus.raise(1)
            // Under the lock: the driver's acknowledgement must not come between.
            wire.setLine(true)
            return Self.noVector
        }
        guard vector != Self.noVector else { return }
        device.statistics.countInterrupt()
        wire.send(vector: Int(vector))
    }

    /// The device's configuration changed by itself.
    func configurationChanged() {
        // Held beyond the lock: the wire's end takes it.
        let wire = currentWire()
        state.withLock { notifyOfConfiguration(&$0) }
        withExtendedLifetime(wire) {}
        threads.first?.wake.signal()
    }

    /// Counts a change, and interrupts the driver for it if it runs.
    ///
    /// A message is left to thread 0: it is DMA, and a reset has to be able to wait for it.
    func notifyOfConfiguration(_ state: inout State) {
        state.generation &+= 1
        guard state.status.contains(.driverOK), let wire = currentWire() else { return }
        guard !wire.usesMessages else {
            state.isConfigurationMessageDue = true
            return
        }
        state.interruptStatus.raise(2)
        wire.setLine(true)
    }

    /// Sends a configuration change's message if one is due; thread 0 alone calls it.
    func sendConfigurationMessage() {
        let due: (vector: UInt16, activation: UInt64)? = state.withLock { state in
            guard state.isConfigurationMessageDue, state.deviceActivation != 0 else { return nil }
            state.isConfigurationMessageDue = false
            return (state.configurationVector, state.deviceActivation)
        }
        guard let due, due.vector != Self.noVector, let wire = currentWire() else { return }
        guard deviceGate.enter(due.activation) else { return }
        defer { deviceGate.leave() }
        device.statistics.countInterrupt()
        wire.send(vector: Int(due.vector))
    }

    /// Reads the interrupt status and clears it, as the PCI transport's ISR status does.
    func takeInterruptStatus() -> UInt8 {
        state.withLock { state in
            currentWire()?.setLine(false)
            return state.interruptStatus.take()
        }
    }

    /// Reads the interrupt status, as the MMIO transport's InterruptStatus does.
    func lookAtInterruptStatus() -> UInt8 { state.withLock { $0.interruptStatus.look() } }

    /// Clears bits of the interrupt status, as the MMIO transport's InterruptACK does.
    func acknowledge(_ bits: UInt8) {
        state.withLock { state in
            state.interruptStatus.acknowledge(bits)
            if state.interruptStatus.bits == 0 { currentWire()?.setLine(false) }
        }
    }

    /// What a thread needs of a queue to serve it; nil while it may not.
    func activeQueue(_ index: Int) -> (QueueConfiguration, VirtioFeatures, activation: UInt64)? {
        state.withLock { state in
            let queue = state.queues[index]
            guard queue.activation != 0 else { return nil }
            return (queue.configuration, state.driverFeatures, queue.activation)
        }
    }
}
