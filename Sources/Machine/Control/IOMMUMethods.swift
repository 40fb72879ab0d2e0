// iommu.*, memory.allocate and driver.log: the machine's own driver.

import AddressSpace
import ControlProtocol

extension ControlService {
    static func addIOMMUMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.IOMMUMap.self) { parameters, session throws(ControlError) in
            let service = session.service
            return try service.machine.map(parameters, for: try service.endpoint(parameters.device))
        }
        dispatcher.on(Methods.IOMMUUnmap.self) { parameters, session throws(ControlError) in
            let service = session.service
            return try service.machine.unmap(parameters, for: try service.endpoint(parameters.device))
        }
        dispatcher.on(Methods.IOMMUMappings.self) { parameters, session throws(ControlError) in
            let service = session.service
            let endpoint = try parameters.device.map { (name) throws(ControlError) in
                try service.endpoint(name)
            }
            return Methods.IOMMUMappings.Result(mappings: service.machine.mappings(of: endpoint))
        }
        dispatcher.on(Methods.IOMMUAllocate.self) { parameters, session throws(ControlError) in
            let service = session.service
            return try service.machine.allocate(parameters, for: try service.endpoint(parameters.device))
        }
        dispatcher.on(Methods.IOMMUFree.self) { parameters, session throws(ControlError) in
            let service = session.service
            try service.machine.free(parameters.iova.value, of: try service.endpoint(parameters.device))
            return Nothing()
        }
        dispatcher.on(Methods.IOMMUAttach.self) { parameters, session throws(ControlError) in
            let service = session.service
            return try service.machine.attach(try service.endpoint(parameters.device), to: parameters.domain)
        }
    }

    func allocate(_ parameters: Methods.MemoryAllocate.Parameters) throws(ControlError)
        -> Methods.MemoryAllocate.Result
    {
        try machine.allocate(byteCount: parameters.length.value, alignment: parameters.alignment?.value)
    }

    func free(_ address: UInt64) throws(ControlError) { try machine.free(address) }

    func driverLog(from sequence: UInt64) -> Methods.DriverLog.Result { machine.driverLog(from: sequence) }
}
