// A performance monitor counter group as a device: its lock, its interrupt, its place beside an SMMU.

package import AddressSpace
package import DeviceModel
import SMMUv3Spec
import Synchronization

/// A performance monitor counter group (PMCG) of an SMMU (IHI 0070, chapter 10), without Secure or Realm state.
///
/// It counts what the SMMU reports, exactly: each event takes the group's lock, but only while a counter counts it.
/// Clock cycles are nanoseconds.
///
/// Lock order: this lock, then the SMMU's list of who counts, the timer's or an interrupt line's, which are leaves.
/// Messages are sent without a lock: they may go to any address, also to this group's own registers.
package final class PMCG: Sendable {
    /// Writes a message-signalled interrupt: 32 bits of data to a physical address.
    package typealias MessageWrite = @Sendable (UInt32, PhysicalAddress) throws(BusError) -> Void

    private struct Message {
        var data: UInt32
        var address: PhysicalAddress
    }

    private struct State: Sendable {
        var group: CounterGroup
        var reportedEvents = SMMUPerformanceEvents()
        var deadline: UInt64?
        // Weak: an SMMU holds on to the groups that count its events.
        weak var source: (any SMMUPerformanceSource)?
    }

    /// What people call it: its path in the device tree.
    package let name: String
    package let configuration: PMCGConfiguration
    private let state: Mutex<State>
    private let interrupt: InterruptLine?
    private let sendMessage: MessageWrite?
    private let timer: any PMCGTimer

    /// Builds a group in its reset state.
    ///
    /// - Parameters:
    ///   - name: What people call it.
    ///   - configuration: What it has.
    ///   - source: The SMMU whose events it counts; nil leaves clock cycles.
    ///   - interrupt: The wire that an overflow pulses where no message is configured.
    ///   - timer: Its clock.
    ///   - sendMessage: How it sends messages; nil is a group without them (SMMU_PMCG_CFGR.MSI = 0).
    package init(
        name: String,
        configuration: PMCGConfiguration = PMCGConfiguration(),
        source: (any SMMUPerformanceSource)?,
        interrupt: InterruptLine? = nil,
        timer: any PMCGTimer = HostTimer(),
        sendMessage: MessageWrite? = nil
    ) {
        self.name = name
        self.configuration = configuration
        self.interrupt = interrupt
        self.sendMessage = sendMessage
        self.timer = timer
        let group = CounterGroup(
            configuration: configuration,
            events: source?.performanceEvents ?? [],
            hasMSI: sendMessage != nil,
            time: timer.now
        )
        state = Mutex(State(group: group, source: source))
    }

    /// Ends the clock's thread, and has the SMMU forget the group.
    package func stop() {
        // Without the lock: the thread may be waiting for it.
        timer.stop()
        state.withLock { state in
            state.source?.report([], to: self)
            state.source = nil
        }
    }

    deinit { timer.stop() }

    /// Puts every register back to its reset value.
    package func reset() {
        change { group in
            var new = CounterGroup(
                configuration: group.configuration,
                events: SMMUPerformanceEvents(rawValue: group.countableEvents),
                hasMSI: group.hasMSI,
                time: group.countedUntil
            )
            // They arrive, whatever happens here.
            new.messagesInFlight = group.messagesInFlight
            group = new
        }
    }

    /// The window of registers at page 0.
    package var page0: PMCGPage { PMCGPage(group: self, number: .page0) }

    /// The window of registers at page 1; nil where the group has none.
    package var page1: PMCGPage? {
        configuration.relocatesCounters ? PMCGPage(group: self, number: .page1) : nil
    }

    // MARK: Changing the state

    /// Looks at the registers or changes them, at one moment; then does what follows from it.
    func change<Result>(_ body: (inout CounterGroup) -> Result) -> Result {
        let (result, message) = state.withLock { state in
            state.group.advance(to: timer.now)
            let result = body(&state.group)
            publish(&state)
            return (result, raiseInterrupt(&state.group))
        }
        if let message { send(message) }
        return result
    }

    /// Tells the SMMU what is counted now, and the clock when to wake us.
    private func publish(_ state: inout State) {
        let events = state.group.wantedEvents.subtracting(SMMUPerformanceEvent.clockCycle.set)
        if events != state.reportedEvents {
            state.reportedEvents = events
            state.source?.report(events, to: self)
        }
        let deadline = state.group.overflowDeadline
        if deadline != state.deadline {
            state.deadline = deadline
            timer.arm(deadline) { [weak self] in self?.deadlineHasCome() }
        }
    }

    private func deadlineHasCome() {
        // Looking is enough: it counts the cycles. The clock has forgotten the deadline.
        let message = state.withLock { state in
            state.deadline = nil
            state.group.advance(to: timer.now)
            publish(&state)
            return raiseInterrupt(&state.group)
        }
        if let message { send(message) }
    }

    /// One pulse, or one message to be sent, for what has overflowed.
    private func raiseInterrupt(_ group: inout CounterGroup) -> Message? {
        guard group.isInterruptDue else { return nil }
        group.isInterruptDue = false
        guard group.hasMSI, group.messageAddress != 0 else {
            // Under the lock that guards the cause: OVS and the counter are visible before the edge.
            interrupt?.pulse()
            return nil
        }
        group.messagesInFlight += 1
        return Message(data: group.messageData, address: PhysicalAddress(group.messageAddress))
    }

    private func send(_ message: Message) {
        var isAborted = false
        do throws(BusError) {
            try sendMessage?(message.data, message.address)
        } catch {
            isAborted = true
        }
        state.withLock { state in
            state.group.messagesInFlight -= 1
            if isAborted { state.group.irqStatus.irqAbt = true }
        }
    }
}

extension PMCG: SMMUPerformanceMonitor {
    package func count(_ event: SMMUPerformanceEvent, _ streamID: StreamID, _ amount: UInt64) {
        let message = state.withLock { state in
            state.group.count(event.rawValue, streamID.rawValue, amount) { timer.now }
            return raiseInterrupt(&state.group)
        }
        if let message { send(message) }
    }
}

/// One page of a counter group's registers, as the bus sees it.
package final class PMCGPage: RegisterTarget {
    /// 4 KiB.
    package static let byteCount: UInt64 = 0x1000

    private let group: PMCG
    private let number: PMCGPageNumber

    init(group: PMCG, number: PMCGPageNumber) {
        self.group = group
        self.number = number
    }

    /// Reads a register: 32 bits anywhere, 64 bits as two of 32 at one moment.
    ///
    /// Undefined locations are RES0. 8- and 16-bit accesses are refused, as the architecture permits (6.2).
    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try checkAccess(offset, width)
        return group.change { [number] group in
            let low = UInt64(group.read(offset, number))
            guard width == .doubleword else { return low }
            return low | UInt64(group.read(offset &+ 4, number)) &<< 32
        }
    }

    /// Writes a register: 32 bits anywhere, 64 bits as two of 32 that no event and no other access comes between.
    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        try checkAccess(offset, width)
        group.change { [number] group in
            group.write(UInt32(truncatingIfNeeded: value), at: offset, number)
            guard width == .doubleword else { return }
            group.write(UInt32(truncatingIfNeeded: value &>> 32), at: offset &+ 4, number)
        }
    }

    private func checkAccess(_ offset: UInt64, _ width: AccessWidth) throws(RegisterAccessError) {
        guard width == .word || width == .doubleword else { throw .unsupportedWidth }
        guard offset % UInt64(width.rawValue) == 0 else { throw .misaligned }
    }
}
