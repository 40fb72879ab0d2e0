// driver.trace, driver.counts and following: what the drivers sent and said.

import ControlProtocol
import DeviceTree
import IOMMU
import SMMUv3Spec

extension ControlService {
    static func addTraceMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.DriverTrace.self) { parameters, session throws(ControlError) in
            try session.service.trace(parameters)
        }
        dispatcher.on(Methods.DriverCounts.self) { parameters, session throws(ControlError) in
            try session.service.commandCounts(parameters.smmu)
        }
        dispatcher.on(Methods.DriverTraceSubscribe.self) { parameters, session throws(ControlError) in
            _ = try session.service.machine.system()
            let index = try parameters.smmu.map { (selector) throws(ControlError) in
                try session.service.smmuIndex(selector)
            }
            session.subscribeToCommands(ofSMMU: index)
            return Nothing()
        }
        dispatcher.on(Methods.DriverTraceUnsubscribe.self) { _, session throws(ControlError) in
            session.unsubscribeFromCommands()
            return Nothing()
        }
        dispatcher.on(Methods.DriverLogSubscribe.self) { _, session throws(ControlError) in
            _ = try session.service.machine.system()
            return Methods.DriverLogSubscribe.Result(next: Size(session.subscribeToLog()))
        }
        dispatcher.on(Methods.DriverLogUnsubscribe.self) { _, session throws(ControlError) in
            session.unsubscribeFromLog()
            return Nothing()
        }
    }

    private func trace(_ parameters: Methods.DriverTrace.Parameters) throws(ControlError)
        -> Methods.DriverTrace.Result
    {
        let index = try smmuIndex(parameters.smmu)
        let driver = try machine.system().driver(index, for: "the command queue")
        let (all, next) = driver.sentCommands(since: parameters.since?.value ?? 0)
        let commands = parameters.limit.map { Array(all.suffix(Int(clamping: $0.value))) } ?? all
        return Methods.DriverTrace.Result(
            commands: commands.map { commandInfo($0, ofSMMU: index) },
            next: Size(next)
        )
    }

    private func commandCounts(_ selector: SMMUSelector?) throws(ControlError) -> Methods.DriverCounts.Result
    {
        let system = try machine.system()
        let wanted = try selector.map { (selector) throws(ControlError) in [try smmuIndex(selector)] }
        var smmus: [SMMUCommandCounts] = []
        for index in wanted ?? Array(machine.smmus.indices) {
            guard case .running(let driver) = system.driverState(index) else { continue }
            let counts = driver.commandCounts
            smmus.append(
                SMMUCommandCounts(
                    smmu: machine.smmus[index].node.path,
                    commands: counts.info,
                    total: counts.total
                )
            )
        }
        return Methods.DriverCounts.Result(smmus: smmus)
    }

    /// A command with everything decoded.
    func commandInfo(_ sent: SentCommand, ofSMMU index: Int) -> CommandInfo {
        let command = sent.command
        return CommandInfo(
            sequence: Size(sent.sequence),
            smmu: machine.smmus[index].node.path,
            opcode: Hex(command.opcode.rawValue),
            name: command.name,
            fields: command.fields.filter { $0.name != "Opcode" }.map(\.info),
            words: command.words.indices.map { Hex(command.words[$0]) }
        )
    }
}

extension CommandCounts {
    /// As the control socket says it.
    var info: [OpcodeCount] {
        opcodes.map {
            OpcodeCount(opcode: Hex($0.opcode.rawValue), name: $0.opcode.description, count: $0.count)
        }
    }
}
