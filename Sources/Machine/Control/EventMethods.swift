// events.* and interrupts.*: what happened, and hearing of it.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import SMMUv3
import SMMUv3Spec

extension ControlService {
    static func addEventMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.EventsList.self) { parameters, session throws(ControlError) in
            try session.service.listEvents(parameters)
        }
        dispatcher.on(Methods.EventsSubscribe.self) { parameters, session throws(ControlError) in
            let index = try parameters.smmu.map { (selector) throws(ControlError) in
                try session.service.smmuIndex(selector)
            }
            return Methods.EventsSubscribe.Result(next: Size(session.subscribeToEvents(ofSMMU: index)))
        }
        dispatcher.on(Methods.EventsUnsubscribe.self) { _, session throws(ControlError) in
            session.unsubscribeFromEvents()
            return Nothing()
        }
        dispatcher.on(Methods.InterruptsList.self) { _, session throws(ControlError) in
            Methods.InterruptsList.Result(interrupts: session.service.interruptInfos())
        }
        dispatcher.on(Methods.InterruptsSubscribe.self) { parameters, session throws(ControlError) in
            for source in try session.service.interruptSources(parameters.lines) {
                session.subscribeToInterrupt(source: source)
            }
            return Nothing()
        }
        dispatcher.on(Methods.InterruptsUnsubscribe.self) { parameters, session throws(ControlError) in
            if parameters.lines == nil {
                session.unsubscribeFromInterrupts(nil)
            } else {
                session.unsubscribeFromInterrupts(try session.service.interruptSources(parameters.lines))
            }
            return Nothing()
        }
    }

    private func interruptSources(_ lines: [Int]?) throws(ControlError) -> [Int] {
        guard let lines else { return Array(machine.interrupts.indices) }
        for line in lines where !machine.interrupts.indices.contains(line) {
            throw .notFound(
                String(line),
                "there is no interrupt line \(line); this board has 0 to \(machine.interrupts.count - 1)"
            )
        }
        return lines
    }

    // MARK: Events

    private func listEvents(_ parameters: Methods.EventsList.Parameters) throws(ControlError)
        -> Methods.EventsList.Result
    {
        let index = try parameters.smmu.map { (selector) throws(ControlError) in try smmuIndex(selector) }
        let (all, next) = machine.events.events(from: parameters.since?.value ?? 0)
        let wanted = all.filter { index == nil || $0.smmuIndex == index }
        let limit = Int(clamping: parameters.limit?.value ?? 100)
        return Methods.EventsList.Result(events: wanted.suffix(limit).map(eventInfo), next: Size(next))
    }

    /// An event with everything decoded.
    func eventInfo(_ event: MachineEvent) -> EventInfo {
        let record = event.event.record
        let fields = record.fields
        let hasAddress = fields.contains { $0.name == "InputAddr" }
        let identity = RequesterIdentity(smmuIndex: event.smmuIndex, streamID: record.streamID)
        return EventInfo(
            sequence: Size(event.sequence),
            smmu: machine.smmus[event.smmuIndex].node.path,
            number: Hex(record.number.rawValue),
            name: record.number.description,
            stream: Hex(record.streamID.rawValue),
            substream: record.ssv ? Hex(record.substreamID.rawValue) : nil,
            device: machine.endpoint(at: identity)?.name,
            address: hasAddress ? Hex(record.inputAddress) : nil,
            fields: fields.map(\.info),
            words: record.words.indices.map { Hex(record.words[$0]) },
            recorded: event.event.disposition == .recorded,
            disposition: event.event.disposition.rawValue,
            reason: event.event.reason
        )
    }

    // MARK: Interrupts

    /// Every line with what it has done so far.
    func interruptInfos() -> [InterruptInfo] {
        machine.interrupts.indices.map { interruptInfo($0) }
    }

    func interruptInfo(_ index: Int) -> InterruptInfo {
        let source = machine.interrupts[index]
        let counts = source.line.counts
        return InterruptInfo(
            line: index,
            label: source.label,
            device: source.device,
            controller: source.line.identity.controller,
            specifier: source.line.identity.specifier,
            intid: source.line.identity.interruptID,
            trigger: source.line.identity.trigger?.rawValue,
            pulses: Size(counts.pulses),
            assertions: Size(counts.assertions),
            asserted: source.line.isAsserted
        )
    }

    // MARK: Notifications

    /// A notification's line, with its newline.
    func line(for item: ControlSession.Item, droppedBefore: UInt64) -> [UInt8] {
        let dropped = droppedBefore == 0 ? nil : Size(droppedBefore)
        do {
            switch item {
            case .event(let event):
                return try ControlAnswer.notification(
                    EventNotification(event: eventInfo(event), dropped: dropped)
                )
            case .interrupt(let source, let signal, let count):
                return try ControlAnswer.notification(notification(source, signal, count, dropped))
            case .command(let command, let smmuIndex):
                return try ControlAnswer.notification(
                    CommandNotification(command: commandInfo(command, ofSMMU: smmuIndex), dropped: dropped)
                )
            case .log(let line):
                return try ControlAnswer.notification(LogNotification(line: line, dropped: dropped))
            }
        } catch {
            // Text and numbers can always be written; were it not so, the client misses this one.
            return []
        }
    }

    private func notification(_ index: Int, _ signal: InterruptSignal, _ count: UInt64, _ dropped: Size?)
        -> InterruptNotification
    {
        let info = interruptInfo(index)
        let kind: InterruptNotification.Signal =
            switch signal {
            case .pulse: .pulse
            case .asserted: .asserted
            case .deasserted: .deasserted
            }
        return InterruptNotification(
            line: index,
            label: info.label,
            device: info.device,
            controller: info.controller,
            specifier: info.specifier,
            intid: info.intid,
            signal: kind,
            count: Size(count),
            dropped: dropped
        )
    }
}
