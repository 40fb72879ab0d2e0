// Performance counters over the control socket: a driver of counter groups, in loads and stores on the bus.

package import ControlProtocol
import SMMUv3Spec

/// Loads and stores on a machine's bus, as a CPU does them.
package protocol BusAccess {
    /// One load of 32 or 64 bits.
    func load(at address: UInt64, bits: Int) throws(ClientError) -> UInt64
    /// One store of 32 or 64 bits.
    func store(_ value: UInt64, at address: UInt64, bits: Int) throws(ClientError)
}

extension ControlClient: BusAccess {
    package func load(at address: UInt64, bits: Int) throws(ClientError) -> UInt64 {
        try call(Methods.BusLoad.self, .init(address: Hex(address), width: bits)).value.value
    }

    package func store(_ value: UInt64, at address: UInt64, bits: Int) throws(ClientError) {
        _ = try call(Methods.BusStore.self, .init(address: Hex(address), width: bits, value: Hex(value)))
    }
}

/// An event that a counter group can count, by the name that Linux has for it.
package struct PerformanceEvent: Hashable, Sendable, CustomStringConvertible {
    package let number: UInt16

    package init(number: UInt16) { self.number = number }

    /// A name of Linux's, or a number of at most 16 bits.
    package init?(_ text: String) {
        if let place = Self.names.firstIndex(of: text.lowercased()) {
            number = UInt16(place)
        } else if let value = NumberText.value(of: text), let number = UInt16(exactly: value) {
            self.number = number
        } else {
            return nil
        }
    }

    /// The architected events' names, in the order of their numbers.
    package static let names = [
        "cycles", "transaction", "tlb_miss", "config_cache_miss", "trans_table_walk_access",
        "config_struct_access", "pcie_ats_trans_rq", "pcie_ats_trans_passed",
    ]

    package var description: String {
        Int(number) < Self.names.count ? Self.names[Int(number)] : "event " + Hex(number).description
    }
}

/// The StreamIDs whose events are counted.
package struct StreamSelection: Equatable, Sendable {
    package var streamID: UInt32
    /// The lowest clear bit of `streamID` and the set bits below it are ignored, as Linux's `filter_span` has it.
    package var isSpan: Bool

    package init(streamID: UInt32, isSpan: Bool = false) {
        self.streamID = streamID
        self.isSpan = isSpan
    }

    /// Every StreamID.
    static let all = StreamSelection(streamID: .max, isSpan: true)
}

/// What one counter counted.
package struct CounterReading: Codable, Equatable, Sendable {
    /// The event's name.
    package var name: String
    /// The event's number.
    package var event: Hex
    package var count: UInt64
    /// The counter wrapped, so the count is too small.
    package var overflowed: Bool

    package init(name: String, event: Hex, count: UInt64, overflowed: Bool = false) {
        self.name = name
        self.event = event
        self.count = count
        self.overflowed = overflowed
    }
}

/// What one counter group counted.
package struct CounterGroupReading: Codable, Equatable, Sendable {
    /// The group's path.
    package var path: String
    /// The path of the SMMU that it counts for.
    package var smmu: String?
    /// The StreamID, or span of them, that was counted; nil for all.
    package var stream: Hex?
    package var span: Bool?
    package var counters: [CounterReading]

    package init(
        path: String,
        smmu: String? = nil,
        stream: Hex? = nil,
        span: Bool? = nil,
        counters: [CounterReading]
    ) {
        self.path = path
        self.smmu = smmu
        self.stream = stream
        self.span = span
        self.counters = counters
    }
}

/// Drives one counter group.
///
/// Register accesses are those of Linux's driver: the group is reset first, then each counter gets its event, its
/// filter and its start, and all are switched on together.
package struct CounterGroupDriver<Bus: BusAccess> {
    package let group: PMCGInfo
    private let bus: Bus
    private let page0: UInt64
    /// Where counters and overflow status are.
    private let relocated: UInt64
    private let configuration: PMCGCfgr
    /// SMMU_PMCG_CEID0.
    private let countable: UInt64
    private var events: [PerformanceEvent] = []
    private var selection: StreamSelection?

    /// Finds out what the group has.
    ///
    /// - Throws: ``ClientError`` where its registers do not answer, or it lacks a page that it should have.
    package init(_ group: PMCGInfo, _ bus: Bus) throws(ClientError) {
        guard let page0 = group.registers.first?.base.value else {
            throw .violation("\(group.path) has no registers")
        }
        self.group = group
        self.bus = bus
        self.page0 = page0
        let cfgr = try bus.load(at: page0 &+ PMCGRegisterOffset.cfgr, bits: 32)
        configuration = PMCGCfgr(rawValue: UInt32(truncatingIfNeeded: cfgr))
        if configuration.relocCtrs {
            guard group.registers.count > 1 else {
                throw .violation("\(group.path) has its counters in page 1, and no page 1")
            }
            relocated = group.registers[1].base.value
        } else {
            relocated = page0
        }
        countable = try bus.load(at: page0 &+ PMCGRegisterOffset.ceid0, bits: 64)
    }

    /// How many counters there are, 1...64.
    package var counterCount: Int { Int(configuration.nctr) + 1 }

    /// The architected events that it counts.
    package var countableEvents: [PerformanceEvent] {
        (0..<64).filter { countable >> UInt64($0) & 1 != 0 }.map { PerformanceEvent(number: UInt16($0)) }
    }

    /// Whether somebody counts with it: SMMU_PMCG_CR.E.
    package func isCounting() throws(ClientError) -> Bool {
        let cr = try bus.load(at: page0 &+ PMCGRegisterOffset.cr, bits: 32)
        return PMCGCr(rawValue: UInt32(truncatingIfNeeded: cr)).e
    }

    /// Counts from 0: these events, in this order, of these StreamIDs.
    ///
    /// - Throws: ``ClientError/local(_:)`` for more events than counters or an event that it does not count.
    package mutating func start(_ events: [PerformanceEvent], of selection: StreamSelection?)
        throws(ClientError)
    {
        guard events.count <= counterCount else {
            throw .local("\(group.path) has \(counterCount) counters; \(events.count) events are too many")
        }
        for event in events where event.number < 64 && countable >> UInt64(event.number) & 1 == 0 {
            throw .local(
                "\(group.path) does not count \(event); it counts "
                    + countableEvents.map(\.description).joined(separator: ", ")
            )
        }
        try reset()
        self.events = events
        self.selection = selection
        for (index, event) in events.enumerated() { try set(index, event, selection ?? .all) }
        let set = events.isEmpty ? 0 : UInt64.max >> UInt64(64 - events.count)
        try bus.store(set, at: page0 &+ PMCGRegisterOffset.cntenset0, bits: 64)
        try bus.store(1, at: page0 &+ PMCGRegisterOffset.cr, bits: 32)
    }

    private func reset() throws(ClientError) {
        let all = UInt64.max >> UInt64(64 - counterCount)
        try bus.store(0, at: page0 &+ PMCGRegisterOffset.cr, bits: 32)
        try bus.store(0, at: page0 &+ PMCGRegisterOffset.irqCtrl, bits: 32)
        try bus.store(all, at: page0 &+ PMCGRegisterOffset.cntenclr0, bits: 64)
        try bus.store(all, at: page0 &+ PMCGRegisterOffset.intenclr0, bits: 64)
        try bus.store(all, at: relocated &+ PMCGRegisterOffset.ovsclr0, bits: 64)
    }

    private func set(_ index: Int, _ event: PerformanceEvent, _ selection: StreamSelection)
        throws(ClientError)
    {
        var type = PMCGEvtyper(rawValue: 0)
        type.event = event.number
        let hasFilter = index == 0 || !configuration.sidFilterType
        type.filterSIDSpan = hasFilter && selection.isSpan
        try bus.store(UInt64(type.rawValue), at: page0 &+ PMCGRegisterOffset.evtyper(index), bits: 32)
        if hasFilter {
            try bus.store(UInt64(selection.streamID), at: page0 &+ PMCGRegisterOffset.smr(index), bits: 32)
        }
        try bus.store(0, at: counter(index), bits: counterBits)
    }

    /// Stops counting, and reads what was counted.
    package mutating func stop() throws(ClientError) -> CounterGroupReading {
        try bus.store(0, at: page0 &+ PMCGRegisterOffset.cr, bits: 32)
        let overflows = try bus.load(at: relocated &+ PMCGRegisterOffset.ovsset0, bits: 64)
        var counters: [CounterReading] = []
        for (index, event) in events.enumerated() {
            counters.append(
                CounterReading(
                    name: event.description,
                    event: Hex(event.number),
                    count: try bus.load(at: counter(index), bits: counterBits),
                    overflowed: overflows >> UInt64(index) & 1 != 0
                )
            )
        }
        try reset()
        return CounterGroupReading(
            path: group.path,
            smmu: group.smmu,
            stream: selection.map { Hex($0.streamID) },
            span: selection.map(\.isSpan),
            counters: counters
        )
    }

    /// Bits of a counter's register.
    private var counterBits: Int { configuration.size > 31 ? 64 : 32 }

    private func counter(_ index: Int) -> UInt64 {
        relocated &+ PMCGRegisterOffset.evcntr(index, stride: UInt64(counterBits / 8))
    }
}
