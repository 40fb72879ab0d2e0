// What the control socket's methods do. No socket is known here: requests come in, answers go out.

import AddressSpace
package import ControlProtocol
import DeviceModel
import DeviceTree
import SMMUv3
import SMMUv3Spec

/// What the machine cannot know of the daemon that runs it.
package struct DaemonInformation: Sendable {
    package var version: String
    /// The device tree's file.
    package var source: String?
    package var dmaSocket: String?
    /// Has the daemon stop, soon after it was called.
    package var requestShutdown: @Sendable () -> Void

    package init(
        version: String,
        source: String? = nil,
        dmaSocket: String? = nil,
        requestShutdown: @escaping @Sendable () -> Void = {}
    ) {
        self.version = version
        self.source = source
        self.dmaSocket = dmaSocket
        self.requestShutdown = requestShutdown
    }
}

/// Answers the requests of the control socket, on any number of threads.
package final class ControlService: Sendable {
    package let machine: Machine
    let information: DaemonInformation
    private let dispatcher: ControlDispatcher<ControlSession>

    /// How many bytes one request may read or write: its text must fit a line.
    static let transferLimit: UInt64 = 8 << 20

    package init(machine: Machine, information: DaemonInformation) {
        self.machine = machine
        self.information = information
        dispatcher = Self.makeDispatcher()
    }

    /// The state of one connection.
    ///
    /// It is to be closed when the connection is.
    package func makeSession() -> ControlSession { ControlSession(service: self) }

    /// Carries a request out.
    ///
    /// - Returns: The answer's line with its newline; nil where the client wants none.
    package func answer(_ request: ControlRequest, _ session: ControlSession) -> [UInt8]? {
        dispatcher.answer(request, session)
    }

    /// The methods that are answered.
    package var methodNames: [String] { dispatcher.methodNames }

    private static func makeDispatcher() -> ControlDispatcher<ControlSession> {
        var dispatcher = ControlDispatcher<ControlSession>()
        addDaemonMethods(to: &dispatcher)
        addRegisterMethods(to: &dispatcher)
        addMemoryMethods(to: &dispatcher)
        addIOMMUMethods(to: &dispatcher)
        addGroupMethods(to: &dispatcher)
        addTraceMethods(to: &dispatcher)
        addTransactionMethods(to: &dispatcher)
        addEventMethods(to: &dispatcher)
        addSVAMethods(to: &dispatcher)
        return dispatcher
    }

    // MARK: The daemon

    private static func addDaemonMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.DaemonVersion.self) { _, session throws(ControlError) in
            let information = session.service.information
            return Methods.DaemonVersion.Result(
                name: "smmud",
                version: information.version,
                controlProtocol: ControlProtocolVersion.current,
                dmaProtocol: Int(DMAProtocol.version),
                processID: currentProcessID(),
                dmaSocket: information.dmaSocket
            )
        }
        dispatcher.on(Methods.DaemonShutdown.self) { _, session throws(ControlError) in
            session.service.information.requestShutdown()
            return Nothing()
        }
        dispatcher.on(Methods.MachineDescribe.self) { _, session throws(ControlError) in
            session.service.describe()
        }
        dispatcher.on(Methods.Stats.self) { parameters, session throws(ControlError) in
            try session.service.statistics(of: parameters.smmu)
        }
        dispatcher.on(Methods.DriverLog.self) { parameters, session throws(ControlError) in
            session.service.driverLog(from: parameters.since?.value ?? 0)
        }
    }

    private func statistics(of selector: SMMUSelector?) throws(ControlError) -> Methods.Stats.Result {
        let selected = try selector.map { (selector) throws(ControlError) in [try smmuIndex(selector)] }
        var groups = (selected ?? Array(machine.smmus.indices)).map { index in
            let smmu = machine.smmus[index]
            return CounterGroup(
                owner: smmu.node.path,
                counters: smmu.model.statistics.map { Counter(name: $0.name, value: $0.value) }
            )
        }
        guard selector == nil else { return Methods.Stats.Result(groups: groups) }
        for (owner, counters) in machine.deviceStatistics where !counters.isEmpty {
            groups.append(
                CounterGroup(owner: owner, counters: counters.map { Counter(name: $0.name, value: $0.value) })
            )
        }
        return Methods.Stats.Result(groups: groups)
    }

    // MARK: Finding things

    /// The place in ``Machine/smmus`` of the SMMU that is meant; of the only one where none is named.
    func smmuIndex(_ selector: SMMUSelector?) throws(ControlError) -> Int {
        switch selector {
        case nil:
            guard machine.smmus.count == 1 else {
                throw .invalidParameter(
                    "smmu",
                    machine.smmus.isEmpty
                        ? "this board has no SMMUv3 that is enabled"
                        : "this board has \(machine.smmus.count) SMMUs; name one by its path or its index"
                )
            }
            return 0
        case .path(let path):
            let matches = machine.smmus.indices.filter { index in
                let candidate = machine.smmus[index].node.path
                return candidate == path || candidate.hasSuffix("/" + path)
            }
            guard let index = matches.first, matches.count == 1 else {
                throw .notFound(path, "there is no enabled SMMU \"\(path)\"; see machine.describe")
            }
            return index
        case .index(let place):
            // Indices are places in BoardInfo.smmus, which lists disabled SMMUs too.
            guard machine.board.smmus.indices.contains(place),
                let index = machine.smmus.firstIndex(where: {
                    $0.node.path == machine.board.smmus[place].path
                })
            else {
                throw .notFound(
                    String(place),
                    "there is no enabled SMMU of index \(place); see machine.describe"
                )
            }
            return index
        }
    }

    /// The endpoint of that name.
    func endpoint(_ name: String) throws(ControlError) -> Endpoint {
        guard let endpoint = machine.endpoint(named: name) else {
            throw .notFound(
                name,
                "there is no endpoint \"\(name)\"; give a node's path, its last part, or a PCIe function's "
                    + "address such as 0000:00:01.0 (machine.describe lists them)"
            )
        }
        return endpoint
    }

    /// Who a transaction goes out as.
    func identity(_ parameters: some RequesterParameters) throws(ControlError) -> RequesterIdentity {
        switch try parameters.requester() {
        case .device(let name, let stream):
            let endpoint = try endpoint(name)
            let streamID = stream.map { StreamID($0) } ?? endpoint.streams.first
            guard stream == nil || endpoint.streams.contains(where: { $0 == streamID }) else {
                throw .invalidParameter("stream", "\(endpoint.name) has no such StreamID")
            }
            return RequesterIdentity(smmuIndex: endpoint.smmuIndex, streamID: streamID ?? StreamID(0))
        case .stream(let streamID, let selector):
            return RequesterIdentity(smmuIndex: try smmuIndex(selector), streamID: StreamID(streamID))
        }
    }

    /// A byte count that one request can carry.
    static func transferCount(_ size: Size, _ name: String) throws(ControlError) -> Int {
        guard size.value <= transferLimit else {
            throw .limit("\(name) is \(size.value); one request moves at most \(transferLimit) bytes")
        }
        return Int(truncatingIfNeeded: size.value)
    }

    /// A bus error as an answer.
    static func controlError(_ error: BusError) -> ControlError {
        let address = error.address.rawValue
        let text = "0x" + String(address, radix: 16)
        return switch error {
        case .unassigned: .busError(at: address, "nobody answers at \(text)")
        case .refused(_, let reason):
            .busError(at: address, "who answers at \(text) refuses the access: \(reason)")
        case .lost: .busError(at: address, "the RAM at \(text) has lost its backing file")
        default: .busError(at: address, "the access to \(text) failed: \(error)")
        }
    }
}

extension DecodedField {
    /// As the control socket says it.
    var info: FieldInfo {
        FieldInfo(name: name, high: high, low: low, value: Hex(value), meaning: meaning)
    }
}
