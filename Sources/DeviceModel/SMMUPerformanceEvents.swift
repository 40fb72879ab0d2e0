// What an SMMU tells the performance monitors beside it.

public import AddressSpace

/// Something that an SMMU does and a performance monitor counter group can count (IHI 0070, 10.3).
///
/// The raw value is the architecture's number of the event.
public enum SMMUPerformanceEvent: UInt16, CaseIterable, Sendable {
    /// A clock cycle.
    ///
    /// Of the counter group itself: no SMMU reports it, and no StreamID belongs to it.
    case clockCycle = 0
    /// A transaction came in, however it ends.
    case transaction = 1
    /// A transaction whose translation no TLB had: its tables were walked.
    case tlbMiss = 2
    /// A transaction whose STE or CD no cache had: it was fetched.
    case configurationCacheMiss = 3
    /// One access to a translation table.
    case tableWalkAccess = 4
    /// One access to a stream table, a CD table, or one of their first levels.
    case configurationAccess = 5
    /// An ATS translation request came in.
    case atsTranslationRequest = 6
    /// An ATS-translated transaction came in.
    case atsTranslatedTransaction = 7

    /// The set of this event alone.
    public var set: SMMUPerformanceEvents { SMMUPerformanceEvents(rawValue: 1 << UInt64(rawValue)) }
}

/// A set of events: bit n is event n, as in SMMU_PMCG_CEID0.
public struct SMMUPerformanceEvents: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let transaction = SMMUPerformanceEvent.transaction.set
    public static let tlbMiss = SMMUPerformanceEvent.tlbMiss.set
    public static let configurationCacheMiss = SMMUPerformanceEvent.configurationCacheMiss.set
    public static let tableWalkAccess = SMMUPerformanceEvent.tableWalkAccess.set
    public static let configurationAccess = SMMUPerformanceEvent.configurationAccess.set
    public static let atsTranslationRequest = SMMUPerformanceEvent.atsTranslationRequest.set
    public static let atsTranslatedTransaction = SMMUPerformanceEvent.atsTranslatedTransaction.set
}

/// Who counts an SMMU's events: a counter group.
public protocol SMMUPerformanceMonitor: AnyObject, Sendable {
    /// Events of one StreamID happened.
    ///
    /// Called by whoever issues the transaction, which holds no lock. It takes the monitor's own lock.
    func count(_ event: SMMUPerformanceEvent, _ streamID: StreamID, _ amount: UInt64)
}

/// Who reports events: an SMMU.
public protocol SMMUPerformanceSource: AnyObject, Sendable {
    /// The events that it reports.
    var performanceEvents: SMMUPerformanceEvents { get }
    /// Sets which events `monitor` hears of from now on; none at first.
    ///
    /// A transaction that begins when this has returned is reported. The source keeps the monitor for as long as
    /// the set is not empty. It may be called under the monitor's lock.
    func report(_ events: SMMUPerformanceEvents, to monitor: any SMMUPerformanceMonitor)
}
