// Freeing what the bus was told to forget, once nobody can be using it.

import DeviceModel
import Glibc
import HostIO
import Synchronization
import SystemBus
import SystemPackage

/// A thread that waits for accesses under way, so that no register access has to.
///
/// An access that moves a BAR may itself be a DMA, which would wait for its own end.
final class Reclaimer: Sendable {
    private let bus: SystemBus
    private let settle: @Sendable () -> Void
    private let wake = Semaphore()
    private let isStopping = Atomic(false)
    private let isRequested = Atomic(false)
    private let thread = Mutex<SystemThread.Handle?>(nil)

    /// - Parameter settle: Returns once every DMA that was in flight when it was called has ended.
    init(_ bus: SystemBus, settle: @escaping @Sendable () -> Void) {
        self.bus = bus
        self.settle = settle
    }

    func start() throws(Errno) {
        let handle = try SystemThread.start(named: "pci-reclaim") { [self] in run() }
        thread.withLock { $0 = handle }
    }

    /// Frees what has been removed by now, a little later.
    func request() {
        // However often software moves a BAR meanwhile, it is one round more.
        guard !isRequested.exchange(true, ordering: .acquiringAndReleasing) else { return }
        wake.signal()
    }

    /// Frees what has been removed by now, and ends the thread.
    func stop(isWaiting: Bool) {
        isStopping.store(true, ordering: .releasing)
        wake.signal()
        guard let handle = thread.withLock({ $0.take() }) else { return }
        if isWaiting { SystemThread.join(handle) } else { pthread_detach(handle) }
    }

    private func run() {
        while true {
            wake.wait()
            // Before the map is looked at: whoever asks to stop has removed what it wants freed.
            isRequested.store(false, ordering: .sequentiallyConsistent)
            let isLast = isStopping.load(ordering: .acquiring)
            let generation = bus.generation
            settle()
            bus.reclaim(through: generation)
            if isLast { return }
        }
    }
}
