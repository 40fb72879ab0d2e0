// The SMMUv3 as a device: what it is built of, its reset, and what it shows to people.

package import AddressSpace
import CLinux
package import DeviceModel
import SMMUv3Spec
import Synchronization
package import SystemBus

/// One SMMUv3: registers, queues, look-ups, caches.
///
/// Non-secure programming interface.
///
/// Locks, in order: `commandProcessor`'s, `registers`, then a cache's, then an interrupt line's, which is a leaf.
/// Register accesses take `registers` alone and wait for nothing else; that of SMMU_CMDQ_PROD may take a cache's within
/// it. A transaction that hits in its port takes no lock at all.
package final class SMMUv3: Sendable {
    /// The wired interrupt outputs.
    ///
    /// A `combined` line carries the pulses of every output that has no line.
    package struct Interrupts: Sendable {
        package var eventQueue: InterruptLine?
        package var globalError: InterruptLine?
        package var commandSync: InterruptLine?
        package var pageRequestQueue: InterruptLine?
        package var combined: InterruptLine?
        /// The event to processors (SEV), where SMMU_IDR0.SEV says that there is one; never on `combined`.
        package var processorEvent: InterruptLine?

        package init(
            eventQueue: InterruptLine? = nil,
            globalError: InterruptLine? = nil,
            commandSync: InterruptLine? = nil,
            pageRequestQueue: InterruptLine? = nil,
            combined: InterruptLine? = nil,
            processorEvent: InterruptLine? = nil
        ) {
            self.eventQueue = eventQueue
            self.globalError = globalError
            self.commandSync = commandSync
            self.pageRequestQueue = pageRequestQueue
            self.combined = combined
            self.processorEvent = processorEvent
        }
    }

    /// What people call it: its path in the device tree.
    package let name: String
    package let identification: Identification
    package let options: SMMUv3Options
    let bus: SystemBus
    /// The map of `bus`: for walks, which count no reference to it.
    let busView: BusView
    let interrupts: Interrupts

    let registers: Mutex<RegisterFile>
    let invalidationGeneration: InvalidationGeneration
    let translationCache: TranslationCache
    let walkCache: WalkCache
    let configurationCache: ConfigurationCache
    let tracker = TransactionTracker()
    /// The SMMU's own accesses outside of transactions: command fetches, messages, and look-ups for people.
    ///
    /// A tracker of their own, because a CMD_SYNC is executed by one who makes such accesses.
    let ownAccesses = TransactionTracker()
    /// The command consumer's place there: there is one consumer at a time.
    let commandSlot: TransactionTracker.Slot
    let counters = Counters()
    let performance = PerformanceCounting()
    let commandProcessor: CommandProcessor
    let atsEndpoints = ATSEndpoints()
    /// Those of SMMU_CMDQ, then those of each enhanced command queue: a CMD_SYNC is for its own queue alone.
    let atcInvalidations: [ATCInvalidations]

    /// Builds an SMMU in its reset state.
    ///
    /// Its own accesses (structures, queues, walks) and its streams' transactions go to `bus`.
    package init(
        name: String,
        identification: Identification,
        options: SMMUv3Options = SMMUv3Options(),
        bus: SystemBus,
        interrupts: Interrupts = Interrupts()
    ) {
        self.name = name
        var identification = identification
        if options.sendsProcessorEvents { identification.idr0.sev = true }
        self.identification = identification
        self.options = options
        self.bus = bus
        busView = bus.view
        self.interrupts = interrupts
        let generation = InvalidationGeneration()
        invalidationGeneration = generation
        translationCache = TranslationCache(entryCount: options.tlbEntries, generation: generation)
        walkCache = WalkCache(entryCount: options.effectiveWalkCacheEntries, generation: generation)
        configurationCache = ConfigurationCache(
            capacity: options.configurationCacheEntries,
            generation: generation
        )
        registers = Mutex(
            RegisterFile(identification: identification, options: options)
        )
        commandProcessor = CommandProcessor(execution: options.commandExecution)
        atcInvalidations = (0...identification.enhancedQueueCount).map { _ in
            ATCInvalidations(timeoutMilliseconds: options.atcInvalidationTimeoutMilliseconds)
        }
        commandSlot = ownAccesses.acquireSlot()
        commandProcessor.attach(self)
    }

    /// Ends the command thread, and aborts the transactions that are stalled.
    ///
    /// Commands that were accepted are not executed any further.
    package func stop() {
        endStalls()
        for queue in atcInvalidations { queue.end() }
        commandProcessor.stop()
    }

    deinit {
        for queue in atcInvalidations { queue.end() }
        commandProcessor.stop()
    }

    /// Puts every register back to its reset value and empties the caches.
    package func reset() {
        registers.withLock { registers in registers = RegisterFile(resetting: registers) }
        walkCache.invalidate(.everything)
        translationCache.invalidate(.everything)
        configurationCache.invalidate(streams: 0...UInt32.max)
        configurationCache.invalidatePartIDMaps(of: nil)
    }

    // MARK: What transactions need

    /// A view of memory for one requester.
    ///
    /// The port has one user at a time and must not outlive the machine.
    ///
    /// - Parameters:
    ///   - streamID: Whose transactions they are.
    ///   - canStall: Whether its transactions may wait for software. PCIe's may not (IHI 0070, 3.12.2.3): where
    ///     a stall is configured they are aborted, and the event says so.
    package func makePort(for streamID: StreamID, canStall: Bool = true) -> StreamPort {
        StreamPort(smmu: self, streamID: streamID, canStall: canStall)
    }

    /// The wired interrupt outputs, as they were connected.
    package var lines: Interrupts { interrupts }

    /// Waits until every access to memory that was under way when this was called has ended: transactions of
    /// requesters, and the SMMU's own.
    ///
    /// For those who have taken memory off the bus. Not from inside a transaction.
    package func waitForAccessesInFlight() {
        tracker.waitForTransactionsInFlight()
        ownAccesses.waitForTransactionsInFlight()
    }

    /// Does what looks at memory on nobody's behalf, as an access that ``waitForAccessesInFlight()`` waits for.
    func withOwnAccess<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure)
        -> Result
    {
        let slot = ownAccesses.acquireSlot()
        slot.enter()
        defer {
            slot.leave()
            ownAccesses.releaseSlot(slot)
        }
        return try body()
    }

    func currentControls() -> TranslationControls {
        let generation = invalidationGeneration.stamp()
        var controls = registers.withLock { $0.translationControls }
        controls.generation = generation
        return controls
    }

    // MARK: Statistics

    /// Named counters, in the order in which to show them.
    package var statistics: [(name: String, value: UInt64)] {
        let tlb = translationCache.counters
        let configuration = configurationCache.counters
        let stalled = registers.withLock { $0.stalls.counts }
        let directHits = tracker.total(StreamPort.Counter.directHits)
        return [
            ("transactions", directHits &+ tracker.total(StreamPort.Counter.transactions)),
            ("port-hits", directHits &+ tracker.total(StreamPort.Counter.hits)),
            ("bytes-read", tracker.total(StreamPort.Counter.bytesRead)),
            ("bytes-written", tracker.total(StreamPort.Counter.bytesWritten)),
            ("tlb-hits", tlb.hits &+ tracker.total(StreamPort.Counter.tlbHits)),
            ("tlb-misses", tlb.misses &+ tracker.total(StreamPort.Counter.tlbMisses)),
            ("tlb-fills", tlb.fills),
            ("tlb-overtaken-fills", tlb.overtakenFills), ("tlb-evictions", tlb.evictions),
            ("tlb-invalidated", tlb.invalidatedEntries), ("tlb-resident", UInt64(tlb.residentEntries)),
            ("config-hits", configuration.hits), ("config-misses", configuration.misses),
            ("config-invalidated", configuration.invalidatedEntries),
            ("config-resident-stes", UInt64(configuration.residentSTEs)),
            ("config-resident-cds", UInt64(configuration.residentCDs)),
            ("stalled-now", UInt64(stalled.recorded)),
            ("stalled-without-record", UInt64(stalled.unrecorded)),
        ]
            + counters.all { name in
                switch name {
                case .walks: tracker.total(StreamPort.Counter.walks)
                case .descriptorFetches: tracker.total(StreamPort.Counter.descriptors)
                case .configurationFetches: tracker.total(StreamPort.Counter.structures)
                default: 0
                }
            }
    }

    func count(_ counter: Counters.Name) { counters.add(counter) }
}

/// Counters off the hit path.
// SAFETY of @unchecked Sendable: the pointer never changes, and what it points at is accessed atomically.
final class Counters: @unchecked Sendable {
    enum Name: Int, CaseIterable {
        case walks, descriptorFetches, configurationFetches, faults, stalls
        case eventsRecorded, eventsDropped
        case commands, commandErrors, syncs, transactionsAwaited
        case processorEvents
        case translationRequests, pageRequests

        var text: String {
            switch self {
            case .walks: "walks"
            case .descriptorFetches: "descriptor-fetches"
            case .configurationFetches: "config-fetches"
            case .faults: "faults"
            case .stalls: "stalls"
            case .eventsRecorded: "events-recorded"
            case .eventsDropped: "events-dropped"
            case .commands: "commands"
            case .commandErrors: "command-errors"
            case .syncs: "syncs"
            case .transactionsAwaited: "sync-awaited-transactions"
            case .processorEvents: "processor-events"
            case .translationRequests: "ats-translation-requests"
            case .pageRequests: "pri-page-requests"
            }
        }
    }

    /// One for each name, then one for each opcode.
    private let words: UnsafeMutablePointer<UInt64>
    private static let opcodeCount = 256
    private static let nameCount = Name.allCases.count

    init() {
        let count = Self.nameCount + Self.opcodeCount
        words = .allocate(capacity: count)
        words.initialize(repeating: 0, count: count)
    }

    deinit { words.deallocate() }

    func add(_ name: Name, _ amount: UInt64 = 1) { smmud_add_u64(words + name.rawValue, amount) }

    /// The same for the command processor, to whose counters nobody else adds.
    func addAsConsumer(_ name: Name, _ amount: UInt64 = 1) { addAsConsumer(name.rawValue, amount) }

    /// Counts commands of an opcode: for the command processor.
    func addCommands(_ opcode: UInt8, _ amount: UInt64) {
        addAsConsumer(Self.nameCount + Int(opcode), amount)
    }

    private func addAsConsumer(_ index: Int, _ amount: UInt64) {
        smmud_store_u64(words + index, words[index] &+ amount)
    }

    /// All of them, each with what `ports` says that ports have counted by themselves.
    func all(_ ports: (Name) -> UInt64) -> [(name: String, value: UInt64)] {
        let commands = (0..<Self.opcodeCount).map { smmud_load_u64(words + Self.nameCount + $0) }
        var result = Name.allCases.map { name in
            let own = name == .commands ? commands.reduce(0, &+) : smmud_load_u64(words + name.rawValue)
            return (name: name.text, value: own &+ ports(name))
        }
        for (opcode, count) in commands.enumerated() where count > 0 {
            result.append((Opcode(rawValue: UInt8(opcode)).description, count))
        }
        return result
    }
}
