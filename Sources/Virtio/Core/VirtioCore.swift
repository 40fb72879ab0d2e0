// The state that every transport shares: features, status, queues, interrupts.

import AddressSpace
import DeviceModel
import HostIO
import Synchronization
import SystemPackage

/// How a transport reaches its driver.
///
/// The first two are called under the core's lock, as leaves; the third with no lock, by a thread of the device.
protocol VirtioInterruptWire: AnyObject, Sendable {
    /// Whether interrupts go as messages, and not by the line.
    var usesMessages: Bool { get }
    func setLine(_ isAsserted: Bool)
    func send(vector: Int)
}

/// What a device is to its driver, apart from where the registers stand.
///
/// Lock order: a device's lock may be held around this one's; the wire's come after it. No memory is accessed under
/// it, and no device is called.
final class VirtioCore: Sendable {
    /// VIRTIO_MSI_NO_VECTOR.
    static let noVector: UInt16 = 0xFFFF

    struct Queue: Sendable {
        var configuration: QueueConfiguration
        let sizeMax: UInt16
        var isEnabled = false
        var vector = VirtioCore.noVector
        /// Nonzero while the device may use the queue.
        var activation: UInt64 = 0
    }

    struct State: Sendable {
        var status: VirtioStatus = []
        /// What the status was before a reset that has not ended yet.
        var statusBeforeReset: VirtioStatus = []
        var deviceFeatureSelect: UInt32 = 0
        var driverFeatureSelect: UInt32 = 0
        var driverFeatures: VirtioFeatures = []
        var queueSelect: UInt16 = 0
        var queues: [Queue]
        var configurationVector = VirtioCore.noVector
        var interruptStatus = InterruptStatus()
        var generation: UInt32 = 0
        var activationCount: UInt64 = 0
        /// A configuration change's message is due; thread 0 sends it.
        var isConfigurationMessageDue = false
        var deviceActivation: UInt64 = 0
        var lastError: VirtqueueError?
    }

    let device: any VirtioDevice
    let offered: VirtioFeatures
    let state: Mutex<State>
    let gates: [DMAGate]
    /// For messages that belong to no queue.
    let deviceGate = DMAGate()
    let threads: [VirtioThread]
    /// Which thread serves a queue.
    let threadOfQueue: [Int]
    private let wire = Mutex(WeakWire())

    private struct WeakWire { weak var wire: (any VirtioInterruptWire)? }

    init(_ device: any VirtioDevice) throws(Errno) {
        self.device = device
        offered = device.features.union(.transport)
        let sizes = device.queueSizesMax
        gates = sizes.map { _ in DMAGate() }
        state = Mutex(State(queues: Self.initialQueues(sizes)))
        var owners = [Int](repeating: 0, count: sizes.count)
        var threads: [VirtioThread] = []
        for (thread, queues) in device.threadQueues.enumerated() {
            for queue in queues { owners[queue] = thread }
            threads.append(try VirtioThread(number: thread, queues: queues))
        }
        self.threads = threads
        threadOfQueue = owners
    }

    private static func initialQueues(_ sizes: [UInt16]) -> [Queue] {
        sizes.map { size in
            let place = QueueConfiguration(size: size, descriptors: 0, driverArea: 0, deviceArea: 0)
            return Queue(configuration: place, sizeMax: size)
        }
    }

    /// Starts the threads.
    ///
    /// - Parameter makePort: The device's view of memory, for one user.
    func start(_ wire: any VirtioInterruptWire, makePort: @escaping @Sendable () -> any DMAPort) throws(Errno)
    {
        self.wire.withLock { $0.wire = wire }
        device.connect { [weak self] in self?.configurationChanged() }
        do throws(Errno) {
            for thread in threads { try thread.start(self, makePort: makePort) }
        } catch {
            shutdown()
            throw error
        }
    }

    /// Ends all threads; the device answers registers still, and does nothing more.
    func shutdown() {
        let wake = state.withLock { stopQueues(&$0) }
        if wake { for thread in threads { thread.wake.signal() } }
        for thread in threads { thread.stop() }
    }

    func currentWire() -> (any VirtioInterruptWire)? { wire.withLock { $0.wire } }

    // MARK: Features and status

    /// The 32 offered features that DeviceFeaturesSel chose.
    func deviceFeatures() -> UInt32 {
        state.withLock { state in
            guard state.deviceFeatureSelect < 2 else { return 0 }
            return UInt32(truncatingIfNeeded: offered.rawValue >> UInt64(32 * state.deviceFeatureSelect))
        }
    }

    func driverFeatures() -> UInt32 {
        state.withLock { state in
            guard state.driverFeatureSelect < 2 else { return 0 }
            return UInt32(
                truncatingIfNeeded: state.driverFeatures.rawValue >> UInt64(32 * state.driverFeatureSelect)
            )
        }
    }

    /// The driver's features; fixed once FEATURES_OK is set.
    func setDriverFeatures(_ value: UInt32) {
        state.withLock { state in
            guard !state.status.contains(.featuresOK) else { return }
            guard state.driverFeatureSelect < 2 else {
                // Bits that nobody offered: kept as such, so that FEATURES_OK is refused.
                if value != 0 { state.driverFeatures.insert(VirtioFeatures(bit: 63)) }
                return
            }
            let shift = UInt64(32 * state.driverFeatureSelect)
            let kept = state.driverFeatures.rawValue & ~(0xFFFF_FFFF << shift)
            state.driverFeatures = VirtioFeatures(rawValue: kept | UInt64(value) << shift)
        }
    }

    /// What the status register reads.
    ///
    /// After a reset it reads 0 only once no transaction of before is in flight, which is how a driver knows that its
    /// memory is its own again.
    func status() -> VirtioStatus {
        state.withLock { state in
            guard state.status.isEmpty, !state.statusBeforeReset.isEmpty else { return state.status }
            guard gates.allSatisfy(\.isQuiet), deviceGate.isQuiet else { return state.statusBeforeReset }
            state.statusBeforeReset = []
            return []
        }
    }

    /// The driver wrote the status register: 0 resets, anything else adds to what is set.
    func setStatus(_ value: VirtioStatus) {
        guard !value.isEmpty else { return reset() }
        enum Outcome { case nothing, negotiated(VirtioFeatures), running }
        let outcome: Outcome = state.withLock { state in
            // DEVICE_NEEDS_RESET is the device's alone.
            var added = value.subtracting(state.status).subtracting(.needsReset)
            if added.contains(.featuresOK), !isAcceptable(state.driverFeatures) { added.remove(.featuresOK) }
            let hasFeatures = state.status.union(added).contains(.featuresOK)
            if added.contains(.driverOK), !hasFeatures { added.remove(.driverOK) }
            state.status.formUnion(added)
            guard added.contains(.driverOK) else {
                return added.contains(.featuresOK) ? .negotiated(state.driverFeatures) : .nothing
            }
            startQueues(&state)
            return .running
        }
        switch outcome {
        case .nothing: break
        case .negotiated(let features): device.negotiated(features)
        case .running: wakeAll()
        }
    }

    private func isAcceptable(_ features: VirtioFeatures) -> Bool {
        features.isSubset(of: offered) && features.isSuperset(of: .required) && device.accepts(features)
    }

    private func startQueues(_ state: inout State) {
        state.activationCount += 1
        state.deviceActivation = state.activationCount
        deviceGate.open(state.deviceActivation)
        for index in state.queues.indices where state.queues[index].isEnabled { activate(index, &state) }
    }

    func activate(_ index: Int, _ state: inout State) {
        let isPacked = state.driverFeatures.contains(.packedRing)
        if let defect = state.queues[index].configuration.defect(isPacked: isPacked) {
            fail(&state, .malformed(defect))
            return
        }
        guard !state.status.contains(.needsReset) else { return }
        state.activationCount += 1
        state.queues[index].activation = state.activationCount
        gates[index].open(state.activationCount)
    }

    /// Resets the device without waiting: ``status()`` says when it is done.
    func reset() {
        let wasRunning: Bool = state.withLock { state in
            let wasRunning = stopQueues(&state)
            var fresh = State(queues: Self.initialQueues(state.queues.map(\.sizeMax)))
            fresh.statusBeforeReset = state.status.isEmpty ? state.statusBeforeReset : state.status
            fresh.generation = state.generation
            fresh.activationCount = state.activationCount
            fresh.lastError = state.lastError
            state = fresh
            currentWire()?.setLine(false)
            return wasRunning
        }
        device.statistics.countReset()
        device.wasReset()
        if wasRunning { wakeAll() }
    }

    /// Resets the device; when this returns, it issues no more DMA of before.
    ///
    /// Called by a thread of a device of this module (its DMA reached the register that resets), it does not wait: it
    /// could be waiting for itself.
    func resetAndWait() {
        reset()
        guard !VirtioThread.isCurrent else { return }
        for gate in gates { gate.waitUntilQuiet() }
        deviceGate.waitUntilQuiet()
    }

    /// Stops every queue; whether any ran.
    private func stopQueues(_ state: inout State) -> Bool {
        var ran = state.deviceActivation != 0
        state.deviceActivation = 0
        deviceGate.close()
        for index in state.queues.indices {
            ran = ran || state.queues[index].activation != 0
            state.queues[index].activation = 0
            gates[index].close()
        }
        return ran
    }

    func wakeAll() { for thread in threads { thread.configurationChanged() } }

    // MARK: Errors

    /// A queue's thread cannot go on with it: the device needs a reset, unless it had one meanwhile.
    func queueFailed(_ queue: Int, activation: UInt64, _ error: VirtqueueError) {
        guard error != .stopped else { return }
        if case .fault = error {
            device.statistics.countFault()
        } else {
            device.statistics.countMalformed()
        }
        // Held beyond the lock: the wire's end takes it.
        let wire = currentWire()
        state.withLock { state in
            guard state.queues[queue].activation == activation else { return }
            fail(&state, error)
        }
        withExtendedLifetime(wire) {}
        threads.first?.wake.signal()
    }

    /// Sets DEVICE_NEEDS_RESET, and stops all queues.
    private func fail(_ state: inout State, _ error: VirtqueueError) {
        state.lastError = error
        state.status.insert(.needsReset)
        for index in state.queues.indices {
            state.queues[index].activation = 0
            gates[index].close()
        }
        notifyOfConfiguration(&state)
    }

    /// Why the device needed a reset last, for people.
    var lastError: VirtqueueError? { state.withLock { $0.lastError } }
}
