// A counter group beside an SMMU that is only its reports, with a clock that a test turns.

import AddressSpace
import DeviceModel
import PMCG
import Synchronization
import Testing

/// An SMMU as a counter group knows it.
final class TestSource: SMMUPerformanceSource {
    let performanceEvents: SMMUPerformanceEvents
    private let wanted = Mutex<[SMMUPerformanceEvents]>([])
    private let monitor = Mutex<(any SMMUPerformanceMonitor)?>(nil)

    init(_ events: SMMUPerformanceEvents) { performanceEvents = events }

    func report(_ events: SMMUPerformanceEvents, to monitor: any SMMUPerformanceMonitor) {
        wanted.withLock { $0.append(events) }
        self.monitor.withLock { $0 = events.isEmpty ? nil : monitor }
    }

    /// Every set of events that was asked for, in order.
    var history: [UInt64] { wanted.withLock { $0.map(\.rawValue) } }

    /// Something happened: it is reported where somebody wants to know.
    func happen(_ event: SMMUPerformanceEvent, _ streamID: UInt32 = 0, _ amount: UInt64 = 1) {
        guard let last = wanted.withLock({ $0.last }), last.contains(event.set) else { return }
        monitor.withLock { $0 }?.count(event, StreamID(streamID), amount)
    }
}

/// A clock that stands still until a test moves it.
final class ManualTimer: PMCGTimer {
    private struct State {
        var now: UInt64
        var deadline: UInt64?
        var wake: (@Sendable () -> Void)?
    }
    private let state: Mutex<State>

    init(startingAt now: UInt64 = 1000) { state = Mutex(State(now: now)) }

    var now: UInt64 { state.withLock { $0.now } }
    var deadline: UInt64? { state.withLock { $0.deadline } }

    func arm(_ deadline: UInt64?, _ wake: @escaping @Sendable () -> Void) {
        state.withLock { state in
            state.deadline = deadline
            state.wake = wake
        }
    }

    func stop() { state.withLock { $0.deadline = nil } }

    /// Lets time pass, and calls whoever is due.
    func advance(by nanoseconds: UInt64) {
        let due = state.withLock { state -> (@Sendable () -> Void)? in
            state.now += nanoseconds
            guard let deadline = state.deadline, deadline <= state.now else { return nil }
            state.deadline = nil
            return state.wake
        }
        due?()
    }
}

/// Counts a line's pulses.
final class PulseCounter: InterruptSink {
    private let pulses = Atomic<Int>(0)
    let arrival = Semaphore()
    func signal(_ signal: InterruptSignal, on line: InterruptLine) {
        if signal == .pulse { pulses.add(1, ordering: .relaxed) }
        arrival.signal()
    }
    var count: Int { pulses.load(ordering: .relaxed) }
}

/// Messages that arrived, and what is to become of the next.
final class Doorbell: Sendable {
    struct Message: Equatable {
        var data: UInt32
        var address: UInt64
    }
    private let messages = Mutex<[Message]>([])
    private let failure = Mutex<BusError?>(nil)
    private let interference = Mutex<(@Sendable () -> Void)?>(nil)

    var received: [Message] { messages.withLock { $0 } }

    func fail(_ error: BusError?) { failure.withLock { $0 = error } }
    /// Does something while a message is on its way.
    func meanwhile(_ body: @escaping @Sendable () -> Void) { interference.withLock { $0 = body } }

    func write(_ data: UInt32, _ address: PhysicalAddress) throws(BusError) {
        interference.withLock { $0 }?()
        if let error = failure.withLock({ $0 }) { throw error }
        messages.withLock { $0.append(Message(data: data, address: address.rawValue)) }
    }
}

/// What SMMUs that have ATS report.
let everyEvent = SMMUPerformanceEvents(rawValue: 0xFE)
/// What ours report: 1 to 5.
let ownEvents: SMMUPerformanceEvents = [
    .transaction, .tlbMiss, .configurationCacheMiss, .tableWalkAccess, .configurationAccess,
]

/// A counter group with all around it.
struct TestGroup {
    let source: TestSource
    let timer = ManualTimer()
    let wire = PulseCounter()
    let doorbell = Doorbell()
    let group: PMCG
    let page0: PMCGPage
    let page1: PMCGPage?

    /// - Parameter configure: Changes a group of 8 counters of 64 bits with 16-bit StreamIDs.
    init(
        hasMSI: Bool = false,
        events: SMMUPerformanceEvents = ownEvents,
        _ configure: (inout PMCGConfiguration) -> Void = { _ in }
    ) {
        var configuration = PMCGConfiguration()
        configuration.streamIDBits = 16
        configure(&configuration)
        source = TestSource(events)
        let line = InterruptLine(
            identity: InterruptIdentity(controller: "/intc", specifier: [0, 78, 1]),
            label: "overflow"
        )
        line.connect(wire)
        let write: PMCG.MessageWrite = { [doorbell] (data, address) throws(BusError) in
            try doorbell.write(data, address)
        }
        group = PMCG(
            name: "/pmu",
            configuration: configuration,
            source: source,
            interrupt: line,
            timer: timer,
            sendMessage: hasMSI ? write : nil
        )
        page0 = group.page0
        page1 = group.page1
    }

    func read(_ offset: UInt64, _ width: AccessWidth = .word) throws -> UInt64 {
        try page0.read(at: offset, width: width)
    }

    func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .word) throws {
        try page0.write(value, at: offset, width: width)
    }

    /// A 64-bit counter.
    func counter(_ index: UInt64) throws -> UInt64 { try read(8 * index, .doubleword) }

    /// Has counter `index` count an event: EVTYPERn, SMRn, CNTENSET0, and CR.E for all.
    func start(_ index: UInt64, event: UInt64, isSpan: Bool = true, stream: UInt64 = 0xFFFF_FFFF) throws {
        try write(0x400 + 4 * index, event | (isSpan ? 1 << 29 : 0))
        try write(0xA00 + 4 * index, stream)
        try write(0xC00, 1 << index, .doubleword)
        try write(0xE04, 1)
    }
}
