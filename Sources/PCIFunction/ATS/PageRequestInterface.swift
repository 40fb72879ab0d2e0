// A function's page request interface (PRI): groups that are under way, and who waits for them.

import AddressSpace
import DeviceModel
import Synchronization

/// The page request interface of one function.
///
/// Each group has one request. There are no more of them at a time than software has allotted the function.
///
/// Lock: a leaf.
final class PageRequestInterface: Sendable {
    /// What became of a request.
    enum Outcome: Sendable {
        /// Software says that the page is there.
        case success
        /// It cannot be had; or nobody answers.
        case refused
    }

    private struct Group: Sendable {
        /// Who waits; nil where that was given up.
        ///
        /// The group is in use until its response comes all the same.
        var waiter: Semaphore?
        var code: PageRequestGroupResponse.Code?
    }

    private struct State: Sendable {
        var isEnabled = false
        var limit = 0
        var groups: [UInt16: Group] = [:]
        var next: UInt16 = 0
        /// Those who wait for a group.
        var queue: [Semaphore] = []
        var isStopped = false
        var count: UInt64 = 0
        var statusChanged: (@Sendable (_ bits: UInt16) -> Void)?
    }

    /// Page Request Status.Response Failure.
    static let responseFailure: UInt16 = 1 << 0
    /// Page Request Status.Unexpected Page Request Group Index.
    static let unexpectedGroup: UInt16 = 1 << 1

    private static let groupCount: UInt16 = 512
    private let state = Mutex(State())
    private let timeout: Duration

    init(timeoutMilliseconds: UInt32) { timeout = .milliseconds(Int64(timeoutMilliseconds)) }

    /// Page Request Control.Enable.
    var isEnabled: Bool { state.withLock { $0.isEnabled && $0.limit > 0 && !$0.isStopped } }

    /// How many requests were sent.
    var count: UInt64 { state.withLock { $0.count } }

    /// Who is told of bits of Page Request Status that become 1.
    func connect(_ statusChanged: @escaping @Sendable (UInt16) -> Void) {
        state.withLock { $0.statusChanged = statusChanged }
    }

    func configure(isEnabled: Bool, limit: UInt32) {
        state.withLock { state in
            state.limit = Int(min(limit, UInt32(Self.groupCount)))
            guard state.isEnabled != isEnabled else { return }
            state.isEnabled = isEnabled
            if !isEnabled { Self.release(&state) }
        }
    }

    /// Page Request Control.Reset: nothing is under way.
    func reset() {
        state.withLock { state in
            Self.release(&state)
            state.groups.removeAll()
        }
    }

    /// Lets nobody wait any more.
    func stop() {
        state.withLock { state in
            state.isStopped = true
            Self.release(&state)
        }
    }

    /// Ends every wait without a response.
    private static func release(_ state: inout State) {
        for index in state.groups.keys {
            state.groups[index]?.waiter?.signal()
            state.groups[index]?.waiter = nil
        }
        for waiter in state.queue { waiter.signal() }
        state.queue.removeAll()
    }

    /// Sends a page request and waits for its response.
    ///
    /// Not inside of a transaction, nor with a lock that the response might need.
    func request(_ request: PageRequest, over port: any ATSPort) -> Outcome {
        let deadline = ContinuousClock.now.advanced(by: timeout)
        let waiter = Semaphore()
        guard let index = group(waiter, deadline) else { return .refused }
        var request = request
        request.group = index
        request.isLast = true
        port.sendPageRequest(request)
        _ = waiter.wait(until: deadline)
        return state.withLock { state in
            guard let code = state.groups[index]?.code else {
                state.groups[index]?.waiter = nil
                return .refused
            }
            state.groups[index] = nil
            if !state.queue.isEmpty { state.queue.removeFirst().signal() }
            return code == .success ? .success : .refused
        }
    }

    /// A group of the function's own; nil where there is none in time.
    private func group(_ waiter: Semaphore, _ deadline: ContinuousClock.Instant) -> UInt16? {
        while true {
            let turn = Semaphore()
            let (index, mustWait): (UInt16?, Bool) = state.withLock { state in
                guard state.isEnabled, !state.isStopped else { return (nil, false) }
                guard state.groups.count < state.limit else {
                    state.queue.append(turn)
                    return (nil, true)
                }
                while state.groups[state.next] != nil { state.next = (state.next + 1) % Self.groupCount }
                let index = state.next
                state.groups[index] = Group(waiter: waiter)
                state.next = (index + 1) % Self.groupCount
                state.count &+= 1
                return (index, false)
            }
            guard mustWait else { return index }
            guard turn.wait(until: deadline) else {
                state.withLock { state in
                    if let place = state.queue.firstIndex(where: { $0 === turn }) {
                        state.queue.remove(at: place)
                    } else if !state.queue.isEmpty {
                        // The turn came too late: it is the next one's.
                        state.queue.removeFirst().signal()
                    }
                }
                return nil
            }
        }
    }

    /// A response to a group.
    func receive(_ response: PageRequestGroupResponse) {
        let (tell, bits) = state.withLock { state -> ((@Sendable (UInt16) -> Void)?, UInt16) in
            guard let group = state.groups[response.group], group.code == nil else {
                return (state.statusChanged, Self.unexpectedGroup)
            }
            if let waiter = group.waiter {
                state.groups[response.group]?.code = response.code
                waiter.signal()
            } else {
                // Given up: the group is free again.
                state.groups[response.group] = nil
                if !state.queue.isEmpty { state.queue.removeFirst().signal() }
            }
            let isFailure = response.code != .success && response.code != .invalidRequest
            return (state.statusChanged, isFailure ? Self.responseFailure : 0)
        }
        if bits != 0 { tell?(bits) }
    }
}
