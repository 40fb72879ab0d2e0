// The driver of counter groups against registers that a test fills in, and the report of what it read.

import ControlProtocol
import SMMUClient
import Testing

/// A bus that notes each store, and answers loads with what the test says.
private final class NotingBus: BusAccess {
    /// By address; 0 where nothing is.
    var words: [UInt64: UInt64]
    private(set) var stores: [String] = []

    init(_ words: [UInt64: UInt64]) { self.words = words }

    func load(at address: UInt64, bits: Int) throws(ClientError) -> UInt64 { words[address] ?? 0 }

    func store(_ value: UInt64, at address: UInt64, bits: Int) throws(ClientError) {
        stores.append("\(Hex(address)) <- \(Hex(value)) (\(bits))")
    }

    func takeStores() -> [String] {
        defer { stores = [] }
        return stores
    }
}

@Suite("Driver of counter groups")
struct CounterGroupDriverTests {
    private func group(pages: [UInt64]) -> PMCGInfo {
        PMCGInfo(
            path: "/pmu",
            smmu: "/smmu",
            registers: pages.map { RangeInfo(base: Hex($0), size: 0x1000) }
        )
    }

    /// Switching off and resetting a group of 8 counters whose overflow status is at `overflow`.
    private func reset(_ overflow: String) -> [String] {
        [
            "0x1e04 <- 0x0 (32)", "0x1e50 <- 0x0 (32)", "0x1c20 <- 0xff (64)", "0x1c60 <- 0xff (64)",
            "\(overflow) <- 0xff (64)",
        ]
    }

    @Test(
        "64-bit counters in page 1: reset, events with their filter, counters at 0, all on at once; then read"
    )
    func relocated() throws {
        // CFGR: 8 counters of 64 bits, RELOC_CTRS.
        let bus = NotingBus([0x1E00: 0x0010_3F07, 0x1E20: 0x3F])
        var driver = try CounterGroupDriver(group(pages: [0x1000, 0x3000]), bus)
        #expect(driver.counterCount == 8)
        #expect(driver.countableEvents.map(\.number) == [0, 1, 2, 3, 4, 5])
        let events = [PerformanceEvent(number: 1), PerformanceEvent(number: 4)]
        try driver.start(events, of: StreamSelection(streamID: 0x42))
        #expect(
            bus.takeStores() == reset("0x3c80") + [
                "0x1400 <- 0x1 (32)", "0x1a00 <- 0x42 (32)", "0x3000 <- 0x0 (64)", "0x1404 <- 0x4 (32)",
                "0x1a04 <- 0x42 (32)", "0x3008 <- 0x0 (64)", "0x1c00 <- 0x3 (64)", "0x1e04 <- 0x1 (32)",
            ]
        )
        bus.words[0x3000] = 17
        bus.words[0x3008] = 4
        bus.words[0x3CC0] = 0b10
        let reading = try driver.stop()
        #expect(bus.takeStores() == ["0x1e04 <- 0x0 (32)"] + reset("0x3c80"))
        #expect(
            reading
                == CounterGroupReading(
                    path: "/pmu",
                    smmu: "/smmu",
                    stream: 0x42,
                    span: false,
                    counters: [
                        CounterReading(name: "transaction", event: 1, count: 17),
                        CounterReading(name: "trans_table_walk_access", event: 4, count: 4, overflowed: true),
                    ]
                )
        )
    }

    @Test("32-bit counters with one filter for all: only the first has one; without a filter it takes all")
    func globalFilter() throws {
        // CFGR: 8 counters of 32 bits, SID_FILTER_TYPE.
        let bus = NotingBus([0x1E00: 0x0080_1F07, 0x1E20: 0x3F])
        var driver = try CounterGroupDriver(group(pages: [0x1000]), bus)
        try driver.start([PerformanceEvent(number: 1), PerformanceEvent(number: 2)], of: nil)
        #expect(
            bus.takeStores() == reset("0x1c80") + [
                "0x1400 <- 0x20000001 (32)", "0x1a00 <- 0xffffffff (32)", "0x1000 <- 0x0 (32)",
                "0x1404 <- 0x2 (32)", "0x1004 <- 0x0 (32)", "0x1c00 <- 0x3 (64)", "0x1e04 <- 0x1 (32)",
            ]
        )
    }

    @Test("what it cannot do it says before it touches the group")
    func refusals() throws {
        let bus = NotingBus([0x1E00: 0x0000_3F01, 0x1E20: 0x07])
        var driver = try CounterGroupDriver(group(pages: [0x1000]), bus)
        #expect(throws: ClientError.local("/pmu has 2 counters; 3 events are too many")) {
            try driver.start((0..<3).map { PerformanceEvent(number: $0) }, of: nil)
        }
        #expect(
            throws: ClientError.local(
                "/pmu does not count pcie_ats_trans_rq; it counts cycles, transaction, tlb_miss"
            )
        ) { try driver.start([PerformanceEvent(number: 6)], of: nil) }
        #expect(bus.takeStores().isEmpty)
        #expect(try !driver.isCounting())
        bus.words[0x1E04] = 1
        #expect(try driver.isCounting())

        let broken = NotingBus([0x1E00: 0x0010_3F07])
        #expect(throws: ClientError.violation("/pmu has its counters in page 1, and no page 1")) {
            try CounterGroupDriver(group(pages: [0x1000]), broken)
        }
        #expect(throws: ClientError.violation("/pmu has no registers")) {
            try CounterGroupDriver(group(pages: []), broken)
        }
    }

    @Test("events go by Linux's names or by number")
    func names() {
        #expect(PerformanceEvent("cycles")?.number == 0)
        #expect(PerformanceEvent("TLB_MISS")?.number == 2)
        #expect(PerformanceEvent("pcie_ats_trans_passed")?.number == 7)
        #expect(PerformanceEvent("0x80")?.number == 0x80)
        #expect(PerformanceEvent("65535")?.number == 0xFFFF)
        #expect(PerformanceEvent("65536") == nil)
        #expect(PerformanceEvent("misses") == nil)
        #expect(PerformanceEvent(number: 5).description == "config_struct_access")
        #expect(PerformanceEvent(number: 0x80).description == "event 0x80")
    }

    @Test("The report is a table for each group, with misses as a share of the transactions")
    func report() {
        let result = CountingResult(
            seconds: 1.0427,
            groups: [
                CounterGroupReading(
                    path: "/pmu@1",
                    smmu: "/smmu@0",
                    counters: [
                        CounterReading(name: "cycles", event: 0, count: 1_042_700_000),
                        CounterReading(name: "transaction", event: 1, count: 40),
                        CounterReading(name: "tlb_miss", event: 2, count: 5),
                        CounterReading(name: "config_cache_miss", event: 3, count: 0),
                        CounterReading(
                            name: "trans_table_walk_access",
                            event: 4,
                            count: 20,
                            overflowed: true
                        ),
                    ]
                ),
                CounterGroupReading(
                    path: "/pmu@2",
                    stream: 0x47,
                    span: true,
                    counters: [CounterReading(name: "tlb_miss", event: 2, count: 1)]
                ),
            ]
        )
        #expect(
            CounterReport.text(result) == """
                /pmu@1  of /smmu@0
                       COUNT  EVENT
                  1042700000  cycles
                          40  transaction
                           5  tlb_miss                 12.5% of transactions
                           0  config_cache_miss        0.0% of transactions
                          20  trans_table_walk_access  wrapped: too small
                /pmu@2  StreamIDs like 0x47
                  COUNT  EVENT
                      1  tlb_miss
                1.042 s

                """
        )
    }
}
