// sva.*: devices in clients' address spaces.

import AddressSpace
import ControlProtocol
import DeviceTree
import IOMMU

extension ControlService {
    static func addSVAMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.SVAList.self) { _, session throws(ControlError) in
            session.service.sharedAddressSpaces
        }
        dispatcher.on(Methods.SVABind.self) { parameters, session throws(ControlError) in
            let service = session.service
            let process = try service.process(parameters.process)
            return try service.machine.bind(try service.endpoint(parameters.device), to: process)
        }
        dispatcher.on(Methods.SVAUnbind.self) { parameters, session throws(ControlError) in
            let service = session.service
            let process = try service.process(parameters.process)
            try service.machine.unbind(try service.endpoint(parameters.device), from: process)
            return Nothing()
        }
    }

    private func process(_ number: Int) throws(ControlError) -> ClientProcess {
        guard let process = machine.clientProcesses.all.first(where: { Int($0.space.id) == number }) else {
            throw .notFound(
                String(number),
                "no client has the address space \(number); sva.list tells which there are"
            )
        }
        return process
    }

    private var sharedAddressSpaces: Methods.SVAList.Result {
        Methods.SVAList.Result(
            processes: machine.clientProcesses.all.map { process in
                let statistics = process.space.statistics
                return SVAProcessInfo(
                    process: Int(process.space.id),
                    areas: process.space.areas.map { area in
                        SVAAreaInfo(
                            address: Hex(area.range.first),
                            length: Size(area.range.byteCount),
                            permissions: Permissions(
                                read: area.access.contains(.read),
                                write: area.access.contains(.write),
                                execute: area.access.contains(.execute)
                            )
                        )
                    },
                    residentPages: Size(UInt64(process.space.residentPageCount)),
                    broughtIn: Size(statistics.broughtIn),
                    spurious: Size(statistics.spurious),
                    refused: Size(statistics.refused)
                )
            },
            bonds: machine.clientProcesses.bonds.map { SVABondInfo($0) },
            faults: machine.pageFaultStatistics.map { path, statistics in
                PageFaultInfo(
                    smmu: path,
                    reported: Size(statistics.reported),
                    succeeded: Size(statistics.succeeded),
                    refused: Size(statistics.refused),
                    unhandled: Size(statistics.unhandled),
                    discarded: Size(statistics.discarded)
                )
            }
        )
    }
}

extension SVABondInfo {
    init(_ bond: SVABond) {
        self.init(
            process: Int(bond.process.id),
            device: bond.endpoint.name,
            substream: Hex(bond.substream.rawValue),
            asid: Hex(bond.asid)
        )
    }
}

extension Machine {
    /// What became of faults, by the paths of the SMMUs that the own driver runs.
    fileprivate var pageFaultStatistics: [(path: String, statistics: PageFaultStatistics)] {
        guard let system = operatingSystem.value else { return [] }
        return smmus.enumerated().compactMap { index, smmu in
            guard case .running(let driver) = system.driverState(index) else { return nil }
            return (smmu.node.path, driver.pageFaultStatistics)
        }
    }
}
