// The counters, and what one that overflows sets off. A value: who guards it and who is told is not known here.

import DeviceModel
import SMMUv3Spec

/// The state of a counter group.
///
/// Everything resets to 0, which the architecture leaves open for all but SMMU_PMCG_CR and SMMU_PMCG_IRQ_CTRL.
struct CounterGroup: Sendable {
    let configuration: PMCGConfiguration
    let hasMSI: Bool
    /// SMMU_PMCG_CEID0.
    let countableEvents: UInt64

    var counters: [UInt64]
    var shadows: [UInt64]
    var types: [PMCGEvtyper]
    /// SMMU_PMCG_SMRn.
    var filters: [PMCGSmr]
    /// CNTEN.
    var enabled: UInt64 = 0
    /// INTEN.
    var interruptEnabled: UInt64 = 0
    /// OVS.
    var overflowed: UInt64 = 0
    var cr = PMCGCr(rawValue: 0)
    var irqCtrl = PMCGIRQCtrl(rawValue: 0)
    var irqStatus = PMCGIRQStatus(rawValue: 0)
    /// SMMU_PMCG_IRQ_CFG0: ADDR [55:2].
    var messageAddress: UInt64 = 0
    /// SMMU_PMCG_IRQ_CFG1: DATA.
    var messageData: UInt32 = 0
    /// SMMU_PMCG_IRQ_CFG2: SH and MEMATTR, kept for software to read back.
    var messageAttributes: UInt32 = 0

    /// A counter overflowed whose interrupt is on, and nobody has been interrupted yet.
    var isInterruptDue = false
    /// Messages that are on their way: IRQEN = 0 is acknowledged when they have arrived.
    var messagesInFlight = 0
    /// Up to which time clock cycles have been counted, in nanoseconds.
    private(set) var countedUntil: UInt64

    /// - Parameters:
    ///   - events: What there is to count beside clock cycles.
    ///   - time: Now, in nanoseconds.
    init(
        configuration: PMCGConfiguration,
        events: SMMUPerformanceEvents,
        hasMSI: Bool,
        time: UInt64
    ) {
        self.configuration = configuration
        self.hasMSI = hasMSI
        countableEvents = events.union(SMMUPerformanceEvent.clockCycle.set).rawValue
        let count = configuration.counterSet.nonzeroBitCount
        counters = Array(repeating: 0, count: count)
        shadows = Array(repeating: 0, count: count)
        types = Array(repeating: PMCGEvtyper(rawValue: 0), count: count)
        filters = Array(repeating: PMCGSmr(rawValue: 0), count: count)
        countedUntil = time
    }

    // MARK: What counts

    /// The counters that count: SMMU_PMCG_CR.E and CNTEN[n].
    private var active: UInt64 { cr.e ? enabled : 0 }

    /// The events that some counter counts.
    var wantedEvents: SMMUPerformanceEvents {
        var events: UInt64 = 0
        for index in indices(of: active) where types[index].event < 64 {
            events |= 1 &<< UInt64(types[index].event)
        }
        return SMMUPerformanceEvents(rawValue: events & countableEvents)
    }

    /// The counters in a set, in their order.
    private func indices(of set: UInt64) -> some Sequence<Int> {
        sequence(state: set) { rest -> Int? in
            guard rest != 0 else { return nil }
            let index = rest.trailingZeroBitCount
            rest &= rest &- 1
            return index
        }
    }

    private func matches(_ index: Int, _ streamID: UInt32) -> Bool {
        let place = configuration.hasGlobalFilter ? 0 : index
        return StreamFilter(
            pattern: filters[place].streamID,
            isSpan: types[place].filterSIDSpan,
            implementedBits: configuration.streamIDMask
        ).matches(streamID)
    }

    /// Counts events of one StreamID.
    ///
    /// - Parameter now: The time, in nanoseconds; looked at only where an overflow captures counters of cycles.
    mutating func count(_ event: UInt16, _ streamID: UInt32, _ amount: UInt64, now: () -> UInt64) {
        var overflows: UInt64 = 0
        for index in indices(of: active) where types[index].event == event && matches(index, streamID) {
            if add(amount, to: index) { overflows |= 1 &<< UInt64(index) }
        }
        settle(overflows, now: now)
    }

    /// Counts clock cycles up to now: one for each nanosecond.
    ///
    /// To be called before software sees or changes anything.
    mutating func advance(to time: UInt64) {
        settle(countCycles(until: time)) { time }
    }

    private mutating func countCycles(until time: UInt64) -> UInt64 {
        guard time > countedUntil else { return 0 }
        let elapsed = time &- countedUntil
        countedUntil = time
        var overflows: UInt64 = 0
        for index in indices(of: active) where types[index].event == SMMUPerformanceEvent.clockCycle.rawValue
        {
            if add(elapsed, to: index) { overflows |= 1 &<< UInt64(index) }
        }
        return overflows
    }

    /// - Returns: Whether the counter wrapped.
    private mutating func add(_ amount: UInt64, to index: Int) -> Bool {
        let (sum, carry) = counters[index].addingReportingOverflow(amount)
        counters[index] = sum & configuration.counterMask
        return carry || sum > configuration.counterMask
    }

    // MARK: Overflow and capture (IHI 0070, 10.2.1)

    /// What counters that overflowed together set off, whether or not OVS was set before.
    private mutating func settle(_ overflows: UInt64, now: () -> UInt64) {
        guard overflows != 0 else { return }
        var overflows = overflows
        if indices(of: overflows).contains(where: { types[$0].ovfcap }) {
            // The cycles belong to the same moment, and they can overflow in their turn.
            overflows |= countCycles(until: now())
            capture()
        }
        overflowed |= overflows
        if irqCtrl.irqen, overflows & interruptEnabled != 0 { isInterruptDue = true }
    }

    /// Copies every counter to its shadow.
    mutating func capture() { shadows = counters }

    /// When a counter of clock cycles overflows, in nanoseconds; nil where nothing would come of it but a bit that
    /// is set when software looks.
    var overflowDeadline: UInt64? {
        var deadline: UInt64?
        for index in indices(of: active) where types[index].event == SMMUPerformanceEvent.clockCycle.rawValue
        {
            let interrupts = irqCtrl.irqen && interruptEnabled & (1 &<< UInt64(index)) != 0
            guard interrupts || types[index].ovfcap else { continue }
            let remaining = (configuration.counterMask &- counters[index]).addingReportingOverflow(1)
            let (time, isNever) = countedUntil.addingReportingOverflow(remaining.partialValue)
            guard !remaining.overflow, !isNever else { continue }
            deadline = min(deadline ?? .max, time)
        }
        return deadline
    }
}
