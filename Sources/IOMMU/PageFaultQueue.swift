// Faults from the interrupt handlers to the handlers of domains, in groups. Linux: io-pgfault.c.

import AddressSpace
import DeviceModel
import Synchronization

/// How often what happened in a fault queue.
package struct PageFaultStatistics: Hashable, Sendable {
    /// Faults that came, one for each page.
    package internal(set) var reported: UInt64 = 0
    /// Groups that were answered by how they were.
    package internal(set) var succeeded: UInt64 = 0
    package internal(set) var refused: UInt64 = 0
    /// Groups that nobody handles.
    package internal(set) var unhandled: UInt64 = 0
    /// Pages of groups that never became complete.
    package internal(set) var discarded: UInt64 = 0
}

/// One SMMU's faults between the interrupt and the answer.
///
/// Linux: struct iopf_queue.
///
/// Its lock is a leaf. Handlers and answers are called with none of it held.
final class PageFaultQueue: Sendable {
    /// How many groups of one endpoint may wait, and how many pages of incomplete ones.
    ///
    /// What a device asks for must not fill memory. More is refused.
    static let limit = 4096

    /// A complete group.
    ///
    /// Linux: struct iopf_group.
    private struct Group: Sendable {
        let endpoint: ObjectIdentifier
        let ticket: UInt64
        let faults: [PageFault]
        let last: PageFault
        let handler: any PageFaultHandler
    }

    /// One endpoint's part.
    ///
    /// Linux: struct iommu_fault_param.
    private struct Route: Sendable {
        var streams: [StreamID]
        /// By SubstreamID; nil is for transactions without one.
        var targets: [SubstreamID?: any PageFaultTarget] = [:]
        /// Whether faults are to be handled: IOMMU_DEV_FEAT_IOPF.
        var isEnabled = false
        var partial: [PageFault] = []
        /// The tickets of groups that wait or are being handled.
        var open: Set<UInt64> = []
        /// Who waits until no ticket below a number is open.
        var waiters: [(ticket: UInt64, semaphore: Semaphore)] = []
    }

    private struct State: Sendable {
        var routes: [ObjectIdentifier: Route] = [:]
        var owners: [StreamID: ObjectIdentifier] = [:]
        var waiting: [Group] = []
        var nextTicket: UInt64 = 0
        var statistics = PageFaultStatistics()
        var thread: WorkerThread?
        var isStopped = false
    }

    private let state = Mutex(State())
    private let usesThread: Bool
    /// Answers a group by its last fault.
    private let respond: @Sendable (PageFault, PageFaultResponse) -> Void

    /// - Parameters:
    ///   - usesThread: Whether a thread handles faults; otherwise they wait for ``handleAll()``.
    ///   - respond: Answers a group by its last fault.
    init(usesThread: Bool, respond: @escaping @Sendable (PageFault, PageFaultResponse) -> Void) {
        self.usesThread = usesThread
        self.respond = respond
    }

    var statistics: PageFaultStatistics { state.withLock { $0.statistics } }

    // MARK: Endpoints

    /// An endpoint exists.
    func add(_ endpoint: IOMMUEndpoint) {
        state.withLock { state in
            let id = ObjectIdentifier(endpoint)
            state.routes[id] = Route(streams: endpoint.streams)
            for stream in endpoint.streams { state.owners[stream] = id }
        }
    }

    /// An endpoint goes: what it waits for is refused, and what is being handled is waited for.
    ///
    /// Linux: iopf_queue_remove_device.
    func remove(_ endpoint: IOMMUEndpoint) {
        disable(endpoint)
        state.withLock { state in
            guard let route = state.routes.removeValue(forKey: ObjectIdentifier(endpoint)) else { return }
            for stream in route.streams { state.owners[stream] = nil }
        }
    }

    /// What transactions meet now; nil: nothing is attached.
    func setTarget(_ target: (any PageFaultTarget)?, of endpoint: IOMMUEndpoint, _ substream: SubstreamID?) {
        state.withLock { $0.routes[ObjectIdentifier(endpoint)]?.targets[substream] = target }
    }

    /// Faults are handled from now on.
    ///
    /// Linux: iopf_queue_add_device.
    func enable(_ endpoint: IOMMUEndpoint) {
        state.withLock { $0.routes[ObjectIdentifier(endpoint)]?.isEnabled = true }
    }

    /// Faults are handled no more; what waits is refused.
    func disable(_ endpoint: IOMMUEndpoint) {
        let id = ObjectIdentifier(endpoint)
        let refused = state.withLock { state -> [Group] in
            guard state.routes[id] != nil else { return [] }
            state.routes[id]?.isEnabled = false
            discardPartial(id, &state)
            let refused = state.waiting.filter { $0.endpoint == id }
            state.waiting.removeAll { $0.endpoint == id }
            return refused
        }
        for group in refused { finish(group, .invalid) }
        flush(endpoint)
    }

    // MARK: Faults

    /// Takes a fault in.
    ///
    /// Linux: iommu_report_device_fault.
    ///
    /// - Returns: False where nobody handles it, and the caller has to answer.
    func report(_ fault: PageFault) -> Bool {
        let outcome = state.withLock { state -> (isTaken: Bool, worker: WorkerThread?) in
            state.statistics.reported &+= 1
            guard let id = state.owners[fault.stream], var route = state.routes[id], !state.isStopped,
                route.isEnabled, let handler = route.targets[fault.substream]?.pageFaultHandler
            else {
                if fault.isLast { refuse(fault, &state) }
                return (false, nil)
            }
            guard fault.isLast else {
                // A group that has lost a page is answered like one with all of them: the device asks again.
                if route.partial.count < Self.limit {
                    route.partial.append(fault)
                    state.routes[id] = route
                } else {
                    state.statistics.discarded &+= 1
                }
                return (true, nil)
            }
            guard route.open.count < Self.limit else {
                refuse(fault, &state)
                return (false, nil)
            }
            let isSame = { (other: PageFault) in
                other.group == fault.group && other.stream == fault.stream
                    && other.substream == fault.substream
            }
            let faults = route.partial.filter(isSame) + [fault]
            route.partial.removeAll(where: isSame)
            let ticket = state.nextTicket
            state.nextTicket += 1
            route.open.insert(ticket)
            state.routes[id] = route
            state.waiting.append(
                Group(endpoint: id, ticket: ticket, faults: faults, last: fault, handler: handler)
            )
            return (true, usesThread ? worker(&state) : nil)
        }
        outcome.worker?.kick()
        return outcome.isTaken
    }

    /// Counts a group that nobody handles, and forgets its other pages.
    private func refuse(_ fault: PageFault, _ state: inout State) {
        state.statistics.unhandled &+= 1
        guard let id = state.owners[fault.stream], let partial = state.routes[id]?.partial else { return }
        let kept = partial.filter {
            $0.group != fault.group || $0.stream != fault.stream || $0.substream != fault.substream
        }
        state.statistics.discarded &+= UInt64(partial.count - kept.count)
        state.routes[id]?.partial = kept
    }

    private func worker(_ state: inout State) -> WorkerThread {
        if let thread = state.thread { return thread }
        let thread = WorkerThread { [weak self] in self?.handleAll() }
        state.thread = thread
        return thread
    }

    /// Drops the pages of groups that are not complete: requests have been lost, and their last ones may be among them.
    ///
    /// Linux: iopf_queue_discard_partial.
    func discardPartial() {
        state.withLock { state in for id in state.routes.keys { discardPartial(id, &state) } }
    }

    private func discardPartial(_ id: ObjectIdentifier, _ state: inout State) {
        state.statistics.discarded &+= UInt64(state.routes[id]?.partial.count ?? 0)
        state.routes[id]?.partial = []
    }

    /// Handles every group that waits.
    ///
    /// - Returns: Whether there was one.
    @discardableResult
    func handleAll() -> Bool {
        var hadAny = false
        while let group = state.withLock({ $0.waiting.isEmpty ? nil : $0.waiting.removeFirst() }) {
            hadAny = true
            var response = PageFaultResponse.success
            for fault in group.faults where response == .success { response = group.handler.handle(fault) }
            finish(group, response)
        }
        return hadAny
    }

    private func finish(_ group: Group, _ response: PageFaultResponse) {
        // Before the answer: who sees the transaction go on finds it counted.
        state.withLock { state in
            if response == .success {
                state.statistics.succeeded &+= 1
            } else {
                state.statistics.refused &+= 1
            }
        }
        respond(group.last, response)
        let waiters = state.withLock { state -> [Semaphore] in
            guard var route = state.routes[group.endpoint] else { return [] }
            route.open.remove(group.ticket)
            let oldest = route.waiters.isEmpty ? 0 : route.open.min() ?? .max
            let done = route.waiters.filter { $0.ticket <= oldest }
            route.waiters.removeAll { $0.ticket <= oldest }
            state.routes[group.endpoint] = route
            return done.map(\.semaphore)
        }
        for waiter in waiters { waiter.signal() }
    }

    /// Returns when every fault of the endpoint that was taken in before has its answer.
    ///
    /// Linux: iopf_queue_flush_dev. Not from a handler.
    func flush(_ endpoint: IOMMUEndpoint) {
        // The caller may be the one who would handle them.
        if !usesThread { handleAll() }
        let semaphore = state.withLock { state -> Semaphore? in
            let id = ObjectIdentifier(endpoint)
            guard let route = state.routes[id], !route.open.isEmpty else { return nil }
            let semaphore = Semaphore()
            state.routes[id]?.waiters.append((state.nextTicket, semaphore))
            return semaphore
        }
        semaphore?.wait()
    }

    /// Nothing is handled any more; what waits is refused.
    func stop() {
        let (thread, groups) = state.withLock { state -> (WorkerThread?, [Group]) in
            state.isStopped = true
            defer {
                state.thread = nil
                state.waiting = []
            }
            return (state.thread, state.waiting)
        }
        for group in groups { finish(group, .invalid) }
        thread?.stop()
    }
}
