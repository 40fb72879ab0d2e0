// The command queue: insertion by any thread, completion by CMD_SYNC, recovery from command errors.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization

/// Commands that go to the SMMU together: full batches go out as they fill, the rest with a CMD_SYNC at the end.
struct CommandBatch {
    /// CMDQ_BATCH_ENTRIES.
    static let limit = 64

    private let queue: CommandQueue
    private var commands: [Command] = []

    init(_ queue: CommandQueue) { self.queue = queue }

    mutating func add(_ command: Command) throws(SMMUDriverError) {
        if queue.syncsFullBatches, commands.count == Self.limit - 1 {
            try flush(withSync: true)
        } else if commands.count == Self.limit {
            try flush(withSync: false)
        }
        commands.append(command)
    }

    /// Sends what is left, and returns when everything that was added is complete.
    mutating func submit() throws(SMMUDriverError) { try flush(withSync: true) }

    private mutating func flush(withSync: Bool) throws(SMMUDriverError) {
        let batch = commands
        commands = []
        try queue.issue(batch, thenSync: withSync)
    }
}

/// The SMMU's command queue.
///
/// Any thread inserts. What one call inserts lies together, and whatever the thread wrote to memory before is
/// visible to the SMMU before it sees the commands. Lock order: `state` is taken under any lock of the driver
/// and takes none but the trace's and the listener's.
final class CommandQueue: Sendable {
    /// log2 of the number of entries.
    let log2Count: Int
    let memory: OwnedFrames
    let syncsFullBatches: Bool
    /// Whether CMD_SYNC's completion is an MSI into its own entry.
    private let usesMSIPolling: Bool
    private let registers: RegisterPort
    private let log: DriverLog

    /// Entries ever written and ever consumed.
    ///
    /// Hardware's indices are these modulo 2^(log2Count + 1): the numbers that never wrap tell a waiter that
    /// slept long from one that has to wait on.
    private struct Positions {
        var produced: UInt64 = 0
        var consumed: UInt64 = 0
    }

    /// What one lock guards: commands are counted in the order in which they lie in the queue.
    private struct State {
        var positions = Positions()
        var history = CommandHistory()
        var listener: CommandListener?
    }
    private let state = Mutex(State())
    private let isStopped = Atomic(false)
    /// Called while waiting, where no thread handles interrupts: command errors must be seen to.
    private let whileWaiting = Mutex(Waiting())
    // Not the closure itself: each time that one is read out of a generic, it is wrapped once more, and stored so.
    private struct Waiting { var body: (@Sendable () -> Void)? }

    init(
        log2Count: Int,
        memory: OwnedFrames,
        registers: RegisterPort,
        features: SMMUFeatures,
        usesMSIPolling: Bool,
        log: DriverLog
    ) {
        self.log2Count = log2Count
        self.memory = memory
        self.registers = registers
        self.usesMSIPolling = usesMSIPolling
        self.log = log
        syncsFullBatches = features.syncsFullBatches
    }

    func setWhileWaiting(_ body: (@Sendable () -> Void)?) { whileWaiting.withLock { $0.body = body } }

    /// Both indices start again at 0, as reset writes them to the registers.
    func reset() { state.withLock { $0.positions = Positions() } }

    /// What was sent so far.
    var history: CommandHistory { state.withLock { $0.history } }

    /// - Returns: The number of the next command.
    func setListener(_ listener: CommandListener?) -> UInt64 {
        state.withLock { state in
            state.listener = listener
            return state.history.next
        }
    }

    /// From now on nothing is issued, and nobody waits on.
    func stop() { isStopped.store(true, ordering: .sequentiallyConsistent) }

    // MARK: Insertion

    /// Puts commands into the queue, and waits for their completion where a CMD_SYNC is asked for.
    ///
    /// - Parameter commands: At most ``CommandBatch/limit``.
    func issue(_ commands: [Command], thenSync: Bool) throws(SMMUDriverError) {
        guard !isStopped.load(ordering: .sequentiallyConsistent) else { throw .stopped }
        guard !commands.isEmpty || thenSync else { return }
        var deadline = Deadline(registers.clock)
        while true {
            let isLast = !deadline.wait()
            if let sync = try insert(commands, thenSync: thenSync) {
                if thenSync { try waitForSync(at: sync) }
                return
            }
            try checkProgress(isLast, syncAt: nil)
        }
    }

    /// Inserts where there is room.
    ///
    /// - Returns: The position of the last entry; nil where the queue is too full.
    private func insert(_ commands: [Command], thenSync: Bool) throws(SMMUDriverError) -> UInt64? {
        let count = UInt64(commands.count + (thenSync ? 1 : 0))
        // Mutex.withLock takes a closure that throws one type.
        return try state.withLock { (state) throws(SMMUDriverError) -> UInt64? in
            if room(state.positions) < count { try readConsumer(&state.positions) }
            guard room(state.positions) >= count else { return nil }
            let first = state.positions.produced
            for (offset, command) in commands.enumerated() {
                try write(command, at: first &+ UInt64(offset))
            }
            let last = first &+ count &- 1
            let sync = thenSync ? sync(at: last) : nil
            if let sync { try write(sync, at: last) }
            state.positions.produced &+= count
            for command in commands { Self.note(command, &state) }
            if let sync { Self.note(sync, &state) }
            try registers.write32(RegisterOffset.cmdqProd, index(state.positions.produced))
            return last
        }
    }

    private static func note(_ command: Command, _ state: inout State) {
        let sequence = state.history.note(command)
        state.listener?(SentCommand(sequence: sequence, command: command))
    }

    private func room(_ positions: Positions) -> UInt64 {
        (1 << UInt64(log2Count)) &- (positions.produced &- positions.consumed)
    }

    private func write(_ command: Command, at position: UInt64) throws(SMMUDriverError) {
        registers.trace?.note(.command(command))
        let address = entryAddress(position)
        do {
            try registers.access.store(command.words[0], .doubleword, at: address)
            try registers.access.store(
                command.words[1],
                .doubleword,
                at: PhysicalAddress(address.rawValue &+ 8)
            )
        } catch { throw .bus(error) }
    }

    /// The CMD_SYNC for this position.
    ///
    /// Without MSIs it is signalled by an event, and with MSIs by a zero that the SMMU writes over the entry itself.
    private func sync(at position: UInt64) -> Command {
        let address = usesMSIPolling ? entryAddress(position).rawValue : 0
        return .sync(
            cs: (usesMSIPolling ? CompletionSignal.sigIRQ : .sigSEV).rawValue,
            msiAddress: address,
            msiData: 0,
            msh: 3,
            msiAttr: 0xF
        )
    }

    // MARK: Completion

    private func waitForSync(at position: UInt64) throws(SMMUDriverError) {
        var deadline = Deadline(registers.clock)
        while true {
            let isLast = !deadline.wait()
            if try isConsumed(position) { return }
            do { try checkProgress(isLast, syncAt: position) } catch {
                // The last look may have come before the consumer moved and the clock after it.
                if try isConsumed(position) { return }
                throw error
            }
        }
    }

    private func isConsumed(_ position: UInt64) throws(SMMUDriverError) -> Bool {
        if usesMSIPolling {
            let word: UInt64
            do { word = try registers.access.load(.word, at: entryAddress(position)) } catch {
                throw .bus(error)
            }
            if word == 0 {
                state.withLock { $0.positions.consumed = max($0.positions.consumed, position &+ 1) }
                return true
            }
            // Another producer may have found the entry free and used it again.
            return state.withLock { $0.positions.consumed > position }
        }
        return try state.withLock { (state) throws(SMMUDriverError) in
            if state.positions.consumed <= position { try readConsumer(&state.positions) }
            return state.positions.consumed > position
        }
    }

    /// Between two looks: sees to errors, and ends the wait when the queue was stopped or its time is over.
    ///
    /// - Parameters:
    ///   - isLast: Whether the time is over.
    ///   - position: The CMD_SYNC that is waited for; nil where it is room.
    private func checkProgress(_ isLast: Bool, syncAt position: UInt64?) throws(SMMUDriverError) {
        guard !isStopped.load(ordering: .sequentiallyConsistent) else { throw .stopped }
        if let body = whileWaiting.withLock({ $0.body }) { body() }
        guard isLast else { return }
        let producer = try registers.read32(RegisterOffset.cmdqProd)
        let consumer = try registers.read32(RegisterOffset.cmdqCons)
        if let position {
            log.note(
                .error,
                "CMD_SYNC timeout at 0x\(hex(index(position), digits: 8))"
                    + " [hwprod 0x\(hex(producer, digits: 8)), hwcons 0x\(hex(consumer, digits: 8))]"
            )
        } else {
            log.note(.error, "CMDQ timeout")
        }
        throw .commandQueueTimeout(producer: producer, consumer: consumer)
    }

    /// Reads CMDQ_CONS.
    ///
    /// An index that names nothing between the last one and the producer is not believed.
    private func readConsumer(_ positions: inout Positions) throws(SMMUDriverError) {
        let found = CmdqCons(rawValue: try registers.read32(RegisterOffset.cmdqCons)).rd
        let mask: UInt64 = (2 << UInt64(log2Count)) &- 1
        let advance = (UInt64(found) &- positions.consumed) & mask
        if advance <= positions.produced &- positions.consumed { positions.consumed &+= advance }
    }

    // MARK: Indices

    /// What a position is in CMDQ_PROD and CMDQ_CONS: index and wrap bit.
    private func index(_ position: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: position & ((2 << UInt64(log2Count)) &- 1))
    }

    private func entryAddress(_ position: UInt64) -> PhysicalAddress {
        let slot = position & ((1 << UInt64(log2Count)) &- 1)
        return PhysicalAddress(memory.address.rawValue &+ slot &* UInt64(Command.byteCount))
    }

    // MARK: Errors

    /// Sees to GERROR.CMDQ_ERR: reads why the queue stopped, and replaces an illegal command by a CMD_SYNC.
    ///
    /// The caller acknowledges afterwards, and the SMMU goes on where it stopped.
    func recoverFromError() throws(SMMUDriverError) {
        let consumer = CmdqCons(rawValue: try registers.read32(RegisterOffset.cmdqCons))
        let name: String
        switch consumer.err {
        case .cerrorNone: name = "No error"
        case .cerrorIll: name = "Illegal command"
        case .cerrorAbt: name = "Abort on command fetch"
        case .cerrorAtcInvSync: name = "ATC invalidate timeout"
        default: name = "Unknown"
        }
        log.note(.error, "CMDQ error (cons 0x\(hex(consumer.rawValue, digits: 8))): \(name)")
        switch consumer.err {
        case .cerrorAbt: log.note(.error, "retrying command fetch")
        case .cerrorNone, .cerrorAtcInvSync: break
        // A code that nobody knows is met as an illegal command is: else the queue would stay where it is.
        default: try replaceCommand(at: UInt64(consumer.rd))
        }
    }

    private func replaceCommand(at position: UInt64) throws(SMMUDriverError) {
        let address = entryAddress(position)
        let second = PhysicalAddress(address.rawValue &+ 8)
        do {
            let words = (
                try registers.access.load(.doubleword, at: address),
                try registers.access.load(.doubleword, at: second)
            )
            log.note(.error, "skipping command in error state:")
            log.note(.error, "\t0x\(hex(words.0, digits: 16))")
            log.note(.error, "\t0x\(hex(words.1, digits: 16))")
            let sync = Command.sync(cs: CompletionSignal.sigSEV.rawValue, msh: 3, msiAttr: 0xF)
            registers.trace?.note(.command(sync))
            try registers.access.store(sync.words[0], .doubleword, at: address)
            try registers.access.store(sync.words[1], .doubleword, at: second)
        } catch { throw .bus(error) }
    }
}
