// The threads of a device: they sleep until the driver, the host or a reset wakes them.

import CLinux
import DeviceModel
import Glibc
import HostIO
import Synchronization
import SystemPackage

/// One thread, which serves some queues of one device.
final class VirtioThread: Sendable {
    let number: Int
    let queues: [Int]
    let wake: WakeEvent
    /// Counts changes of which queues run.
    private let version = Atomic<UInt64>(1)
    private let isStopping = Atomic(false)
    private let handle = Mutex<SystemThread.Handle?>(nil)

    /// What marks the calling thread as one of these; its address is all that counts.
    private static let marker = Marker()
    private final class Marker: Sendable {}
    private static var markerAddress: UnsafeRawPointer {
        UnsafeRawPointer(Unmanaged.passUnretained(marker).toOpaque())
    }

    /// Whether the caller runs on a thread of a virtio device.
    static var isCurrent: Bool { smmud_is_in_transaction(markerAddress) }

    init(number: Int, queues: [Int]) throws(Errno) {
        self.number = number
        self.queues = queues
        wake = try WakeEvent()
    }

    func start(_ core: VirtioCore, makePort: @escaping @Sendable () -> any DMAPort) throws(Errno) {
        let thread = try SystemThread.start(named: "virtio-\(core.device.type.rawValue)-\(number)") {
            [self] in
            smmud_push_transaction(Self.markerAddress)
            run(core, makePort())
            smmud_pop_transaction()
        }
        handle.withLock { $0 = thread }
    }

    /// Some queue was started or stopped.
    func configurationChanged() {
        version.wrappingAdd(1, ordering: .sequentiallyConsistent)
        wake.signal()
    }

    /// Ends the thread, and waits for that unless it is the caller.
    func stop() {
        isStopping.store(true, ordering: .sequentiallyConsistent)
        wake.signal()
        let thread = handle.withLock { handle in
            defer { handle = nil }
            return handle
        }
        guard let thread else { return }
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            SystemThread.join(thread)
        }
    }

    private func run(_ core: VirtioCore, _ port: any DMAPort) {
        let worker = core.device.makeWorker(number)
        var active = [VirtioQueue?](repeating: nil, count: core.gates.count)
        var seen: UInt64 = 0
        while true {
            // First the reset, then the look: what comes after the look wakes the wait.
            wake.reset()
            if isStopping.load(ordering: .sequentiallyConsistent) { return }
            let current = version.load(ordering: .sequentiallyConsistent)
            if current != seen {
                seen = current
                adopt(core, port, &active)
            }
            if number == 0 { core.sendConfigurationMessage() }
            do throws(VirtqueueError) {
                try worker.serve(active)
            } catch {
                fail(core, error, &active)
            }
            port.rest()
            wait(for: worker)
        }
    }

    /// Takes over which queues run now.
    private func adopt(_ core: VirtioCore, _ port: any DMAPort, _ active: inout [VirtioQueue?]) {
        for index in queues {
            guard let (configuration, features, activation) = core.activeQueue(index) else {
                active[index] = nil
                continue
            }
            guard active[index]?.activation != activation else { continue }
            active[index] = VirtioQueue(
                index: index,
                configuration,
                features,
                activation: activation,
                port: GatedPort(port, core.gates[index], activation)
            ) { core.interrupt(index) }
        }
    }

    /// A queue of this thread cannot go on, and with it the device, unless the queue was reset meanwhile.
    private func fail(_ core: VirtioCore, _ error: VirtqueueError, _ active: inout [VirtioQueue?]) {
        for index in queues {
            guard let queue = active[index], queue.hasFailed || !queue.port.isOpen else { continue }
            if queue.hasFailed { core.queueFailed(index, activation: queue.activation, error) }
            active[index] = nil
        }
    }

    private func wait(for worker: any VirtioWorker) {
        var entries = worker.pollEntries
        entries.append(pollfd(fd: wake.descriptor, events: Int16(POLLIN), revents: 0))
        // An interrupted wait is a short one: the loop looks at everything anyway.
        _ = poll(&entries, nfds_t(entries.count), -1)
    }
}
