// register.*, bus.* and memory.*: the machine as a CPU sees it.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import Glibc
import SMMUv3
import SMMUv3Spec
import SystemBus

func currentProcessID() -> Int { Int(getpid()) }

extension ControlService {
    static func addRegisterMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.RegisterRead.self) { parameters, session throws(ControlError) in
            let service = session.service
            let index = try service.smmuIndex(parameters.smmu)
            let place = try service.place(of: parameters.register, parameters.width, index)
            return try service.readRegister(place, ofSMMU: index)
        }
        dispatcher.on(Methods.RegisterWrite.self) { parameters, session throws(ControlError) in
            let service = session.service
            let index = try service.smmuIndex(parameters.smmu)
            let place = try service.place(of: parameters.register, parameters.width, index)
            try service.store(parameters.value.value, place.width, at: place.address)
            return Nothing()
        }
        dispatcher.on(Methods.RegisterList.self) { parameters, session throws(ControlError) in
            let service = session.service
            let index = try service.smmuIndex(parameters.smmu)
            return try service.listRegisters(ofSMMU: index)
        }
        dispatcher.on(Methods.BusLoad.self) { parameters, session throws(ControlError) in
            let width = try accessWidth(parameters.width, default: 32)
            return Methods.BusLoad.Result(
                value: Hex(try session.service.load(width, at: parameters.address.value))
            )
        }
        dispatcher.on(Methods.BusStore.self) { parameters, session throws(ControlError) in
            let width = try accessWidth(parameters.width, default: 32)
            try session.service.store(parameters.value.value, width, at: parameters.address.value)
            return Nothing()
        }
    }

    // MARK: Registers

    private struct RegisterPlace {
        var name: String?
        var offset: UInt64
        var address: UInt64
        var width: AccessWidth
    }

    private func place(of selector: RegisterSelector, _ bits: Int?, _ index: Int) throws(ControlError)
        -> RegisterPlace
    {
        let window = machine.smmus[index].node.architectedRegisters
        let register: SMMUv3Spec.RegisterInfo?
        let offset: UInt64
        switch selector {
        case .name(let name):
            guard let found = RegisterMap.register(named: name) else {
                throw .notFound(name, "there is no register \"\(name)\"; register.list has their names")
            }
            register = found
            offset = found.offset
        case .offset(let value):
            register = RegisterMap.register(at: value)
            offset = value
        }
        let isOptional = machine.smmus[index].model.identification.optionalPages.contains { page in
            page.offset..<(page.offset &+ SMMUv3RegisterPage.byteCount) ~= offset
        }
        guard offset < window.byteCount || isOptional else {
            throw .invalidParameter("register", "offset 0x\(String(offset, radix: 16)) is outside the window")
        }
        let width = try Self.accessWidth(bits, default: (register?.byteCount ?? 4) * 8)
        return RegisterPlace(
            name: register?.name,
            offset: offset,
            address: window.first &+ offset,
            width: width
        )
    }

    private func readRegister(_ place: RegisterPlace, ofSMMU index: Int) throws(ControlError)
        -> ControlProtocol.RegisterInfo
    {
        let value = try load(place.width, at: place.address)
        return ControlProtocol.RegisterInfo(
            name: place.name,
            offset: Hex(place.offset),
            width: place.width.rawValue * 8,
            value: Hex(value),
            fields: RegisterMap.fields(at: place.offset, value: value).map(\.info)
        )
    }

    private func listRegisters(ofSMMU index: Int) throws(ControlError) -> Methods.RegisterList.Result {
        let window = machine.smmus[index].node.architectedRegisters
        var registers: [ControlProtocol.RegisterInfo] = []
        for register in RegisterMap.all where register.offset < window.byteCount {
            let place = try place(of: .offset(register.offset), nil, index)
            registers.append(try readRegister(place, ofSMMU: index))
        }
        return Methods.RegisterList.Result(smmu: machine.smmus[index].node.path, registers: registers)
    }

    private static func accessWidth(_ bits: Int?, default usual: Int) throws(ControlError) -> AccessWidth {
        let bits = bits ?? usual
        guard bits % 8 == 0, let width = AccessWidth(rawValue: bits / 8) else {
            throw .invalidParameter("width", "\(bits) bits: it is 8, 16, 32 or 64")
        }
        return width
    }

    private func load(_ width: AccessWidth, at address: UInt64) throws(ControlError) -> UInt64 {
        do {
            return try machine.bus.load(width, at: PhysicalAddress(address))
        } catch {
            throw Self.controlError(error)
        }
    }

    private func store(_ value: UInt64, _ width: AccessWidth, at address: UInt64) throws(ControlError) {
        guard value <= width.allOnes else {
            throw .invalidParameter("value", "it is wider than \(width.rawValue * 8) bits")
        }
        do {
            try machine.bus.store(value, width, at: PhysicalAddress(address))
        } catch {
            throw Self.controlError(error)
        }
    }

    // MARK: Memory

    static func addMemoryMethods(to dispatcher: inout ControlDispatcher<ControlSession>) {
        dispatcher.on(Methods.MemoryRead.self) { parameters, session throws(ControlError) in
            let count = try transferCount(parameters.length, "length")
            return Methods.MemoryRead.Result(
                data: ByteString(
                    try busResult { () throws(BusError) in
                        try session.service.machine.bus.read(
                            count,
                            at: PhysicalAddress(parameters.address.value)
                        )
                    }
                )
            )
        }
        dispatcher.on(Methods.MemoryWrite.self) { parameters, session throws(ControlError) in
            try busResult { () throws(BusError) in
                try session.service.machine.bus.write(
                    parameters.data.bytes,
                    at: PhysicalAddress(parameters.address.value)
                )
            }
            return Nothing()
        }
        dispatcher.on(Methods.MemoryFill.self) { parameters, session throws(ControlError) in
            try busResult { () throws(BusError) in
                try session.service.machine.bus.fill(
                    parameters.byte ?? 0,
                    byteCount: parameters.length.value,
                    at: PhysicalAddress(parameters.address.value)
                )
            }
            return Nothing()
        }
        dispatcher.on(Methods.MemoryAllocate.self) { parameters, session throws(ControlError) in
            try session.service.allocate(parameters)
        }
        dispatcher.on(Methods.MemoryFree.self) { parameters, session throws(ControlError) in
            try session.service.free(parameters.address.value)
            return Nothing()
        }
    }

    private static func busResult<Value>(_ access: () throws(BusError) -> Value) throws(ControlError) -> Value
    {
        do {
            return try access()
        } catch {
            throw controlError(error)
        }
    }
}
