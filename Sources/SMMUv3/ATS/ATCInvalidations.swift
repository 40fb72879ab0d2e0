// CMD_ATC_INV: invalidate requests to functions, and those that a CMD_SYNC still waits for.

package import AddressSpace
package import DeviceModel
import SMMUv3Spec
import Synchronization

/// The functions behind an SMMU that take invalidate requests and page responses, by StreamID.
final class ATSEndpoints: Sendable {
    private struct Entry: Sendable { weak var endpoint: (any ATSEndpoint)? }
    private let entries = Mutex<[UInt32: Entry]>([:])

    func connect(_ endpoint: any ATSEndpoint, at streamID: StreamID) {
        entries.withLock { entries in
            // Those that are gone: functions whose requester ID has changed leave their old one behind.
            if entries.count >= 64 { entries = entries.filter { $0.value.endpoint != nil } }
            entries[streamID.rawValue] = Entry(endpoint: endpoint)
        }
    }

    func endpoint(at streamID: StreamID) -> (any ATSEndpoint)? {
        entries.withLock { $0[streamID.rawValue]?.endpoint }
    }
}

/// Invalidate requests whose completion has not come yet.
///
/// It counts them, and no more: how many software sends before its next CMD_SYNC is up to software.
final class ATCInvalidations: Sendable {
    private struct State {
        /// How many; also in `count`.
        var outstanding = 0
        /// Counts the times that those outstanding were given up.
        var epoch: UInt64 = 0
        /// When the last one has timed out.
        var deadline = ContinuousClock.now
        /// The SMMU stops: nobody waits any more.
        var hasEnded = false
    }
    private let state = Mutex(State())
    /// Written under `state`; atomic so that a CMD_SYNC with nothing to wait for takes no lock.
    private let count = Atomic(0)
    private let timeout: Duration
    private let completed = Semaphore()

    /// - Parameter timeoutMilliseconds: How long a completion may take.
    init(timeoutMilliseconds: UInt32) { timeout = .milliseconds(Int64(timeoutMilliseconds)) }

    /// One request goes out.
    ///
    /// - Returns: What its completion calls, once.
    func begin() -> @Sendable () -> Void {
        let deadline = ContinuousClock.now.advanced(by: timeout)
        let epoch = state.withLock { state in
            state.outstanding += 1
            count.store(state.outstanding, ordering: .releasing)
            state.deadline = deadline
            return state.epoch
        }
        return { [self] in
            state.withLock { state in
                // A completion after its timeout is of no use to anybody.
                guard state.epoch == epoch, state.outstanding > 0 else { return }
                state.outstanding -= 1
                count.store(state.outstanding, ordering: .releasing)
                if state.outstanding == 0 { completed.signal() }
            }
        }
    }

    /// Whether none is outstanding, so that ``wait()`` would not wait.
    ///
    /// For the one who executes CMD_SYNC, which is the one who called ``begin()``.
    var isComplete: Bool { count.load(ordering: .acquiring) == 0 }

    /// Waits until every request that went out is complete, or has timed out.
    ///
    /// For the one who executes CMD_SYNC.
    ///
    /// - Returns: Whether none timed out. Those that did are given up: the next call does not wait for them.
    func wait() -> Bool {
        if isComplete { return true }
        while true {
            let deadline: ContinuousClock.Instant? = state.withLock { state in
                state.outstanding == 0 || state.hasEnded ? nil : state.deadline
            }
            guard let deadline else { return true }
            // A signal may be of a batch before: look again.
            if completed.wait(until: deadline) { continue }
            return state.withLock { state in
                guard state.outstanding > 0 else { return true }
                state.outstanding = 0
                count.store(0, ordering: .releasing)
                state.epoch &+= 1
                return false
            }
        }
    }

    /// Whoever waits goes on.
    func end() {
        state.withLock { $0.hasEnded = true }
        completed.signal()
    }
}

extension SMMUv3 {
    /// Says who takes the invalidate requests and page responses of a StreamID.
    ///
    /// Held weakly. One function for each StreamID: the last one counts.
    package func connect(_ endpoint: any ATSEndpoint, at streamID: StreamID) {
        atsEndpoints.connect(endpoint, at: streamID)
    }

    /// CMD_ATC_INV.
    ///
    /// - Parameter queue: Which enhanced command queue it is of; nil is SMMU_CMDQ.
    func invalidateATC(_ command: Command, of queue: Int?) -> CommandOutcome {
        guard identification.idr0.ats, command.atcSize <= 52 else { return .failed(.cerrorIll) }
        guard registers.withLock({ $0.cr0ack.smmuen }) else { return .done }
        // No function takes it: that is as one that answers Unsupported Request, which is success (3.9.1.5).
        guard let endpoint = atsEndpoints.endpoint(at: command.streamID) else { return .done }
        // The smart shift gives 0, and so all ones, for Size 52.
        let below: UInt64 = (1 << (12 + UInt64(command.atcSize))) &- 1
        let first = command.address & ~below
        let request = ATCInvalidation(
            substreamID: command.ssv ? command.substreamID : nil,
            isGlobal: command.ssv && command.global,
            range: first...(first | below)
        )
        endpoint.invalidate(request, completion: atcInvalidations(of: queue).begin())
        return .done
    }

    /// The invalidate requests of a queue that its CMD_SYNC waits for.
    func atcInvalidations(of queue: Int?) -> ATCInvalidations { atcInvalidations[queue.map { $0 + 1 } ?? 0] }
}
