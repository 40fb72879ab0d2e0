// From specifications to devices.

import AddressSpace
import BlockStorage
import DeviceModel
import DeviceTree
import Glibc
import HostIO
import NVMe
import PCIFunction
import PlatformDevices
import SMMUv3
import SystemBus
import SystemPackage
import VFIOUserClient
import Virtio

/// Builds the devices that specifications ask for.
struct DeviceBuilder {
    let options: MachineOptions
    let ports: PortMaker
    /// The first ends of network links that have no second yet, by name.
    private var openLinks: [String: NetPackets] = [:]
    private var linkCount = 0

    init(options: MachineOptions, ports: PortMaker) {
        self.options = options
        self.ports = ports
    }

    /// A function of a specification that names a PCIe endpoint.
    ///
    /// - Parameter makePort: A new view of memory with the function's identity; nil is what the tree's `iommu-map`
    ///   makes of the endpoint's address.
    mutating func function(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        isMultiFunction: Bool = false,
        makePort: (@Sendable (AddressTranslationCache?) -> any DMAPort)? = nil
    ) throws(MachineError) -> MachineFunction {
        guard let address = endpoint.name.split(separator: "/").last.flatMap({ PCIAddress($0) }) else {
            throw MachineError("\(specification.source): \(endpoint.name) is no PCIe function")
        }
        let cache = try translationCache(for: specification, endpoint)
        let makeCachedPort = makePort ?? portMaker(for: endpoint)
        return try function(
            specification,
            endpoint,
            address,
            isMultiFunction: isMultiFunction,
            capabilities(of: cache, endpoint),
            makePort: { makeCachedPort(cache) }
        ).connected(to: cache)
    }

    private mutating func function(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        _ address: PCIAddress,
        isMultiFunction: Bool,
        _ capabilities: [PCICapability],
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(MachineError) -> MachineFunction {
        if specification.kind == .nvme {
            return try nvme(specification, endpoint, address, capabilities, makePort)
        }
        if specification.kind == .vfioUser {
            return try foreign(specification, endpoint, address, makePort)
        }
        if let function = try testFunction(
            specification,
            endpoint,
            named: address.text,
            capabilities,
            makePort
        ) {
            return MachineFunction(
                address: address,
                kind: specification.kind,
                endpoint: endpoint,
                function: function,
                statistics: { [] },
                shutDown: { function.model.reset() }
            )
        }
        let device = try virtio(specification)
        let options = VirtioPCIOptions(
            offersMSIX: try specification.flag("msix", default: true),
            extendedCapabilities: capabilities,
            isMultiFunction: isMultiFunction
        )
        do throws(Errno) {
            let function = try VirtioPCIFunction.make(
                name: address.text,
                device: device,
                options: options,
                makePort: makePort
            )
            return MachineFunction(
                address: address,
                kind: specification.kind,
                endpoint: endpoint,
                function: function,
                statistics: { device.statistics.list.map { ($0.name, $0.value) } },
                shutDown: { (function.model as? VirtioPCIFunction)?.shutdown() }
            )
        } catch {
            throw Self.failure(specification, error)
        }
    }

    /// A platform device of a specification that names one of the tree.
    mutating func platformDevice(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        _ node: PlatformDevice,
        line: (InterruptIdentity) -> InterruptLine,
        on bus: SystemBus
    ) throws(MachineError) -> MachinePlatformDevice {
        guard specification.kind.isPlatformDevice else {
            throw MachineError(
                "\(specification.source): a \(specification.kind.rawValue) is a PCIe function: at=0000:00:01.0"
            )
        }
        guard let registers = node.registers.first?.range else {
            throw MachineError("\(specification.source): \(node.path) needs reg")
        }
        if specification.kind == .dmaTestEngine {
            let engine = try testEngine(specification, endpoint)
            try Self.add(engine, at: registers, of: node, needing: TestEngineDevice.byteCount, on: bus)
            return MachinePlatformDevice(
                kind: specification.kind,
                endpoint: endpoint,
                registers: registers,
                virtio: nil
            )
        }
        let device = try virtio(specification)
        guard let interrupt = node.interrupts.first else {
            throw MachineError("\(specification.source): \(node.path) needs interrupts")
        }
        let model: VirtioMMIODevice
        do throws(Errno) {
            model = try VirtioMMIODevice(
                device: device,
                line: line(interrupt.identity),
                makePort: { [makePort = portMaker(for: endpoint)] in makePort(nil) }
            )
        } catch {
            throw Self.failure(specification, error)
        }
        try Self.add(model, at: registers, of: node, needing: VirtioMMIODevice.windowByteCount, on: bus)
        return MachinePlatformDevice(
            kind: specification.kind,
            endpoint: endpoint,
            registers: registers,
            virtio: model
        )
    }

    private static func add(
        _ target: any RegisterTarget,
        at registers: AddressRange,
        of node: PlatformDevice,
        needing byteCount: UInt64,
        on bus: SystemBus
    ) throws(MachineError) {
        guard registers.byteCount >= byteCount else {
            throw MachineError(
                "\(node.path): reg has \(registers.byteCount) bytes; this device's registers have \(byteCount)"
            )
        }
        do throws(AddressConflict) {
            try bus.addWindow(target, at: registers, name: node.path)
        } catch {
            throw MachineError("\(node.path): its registers at \(error.inserting) overlap \(error.existing)")
        }
    }

    /// What is left open at the end.
    func finish() throws(MachineError) {
        if let name = openLinks.keys.min() {
            throw MachineError("the link \"\(name)\" has one end; give a second virtio-net link=\(name)")
        }
    }

    private func portMaker(for endpoint: Endpoint) -> @Sendable (AddressTranslationCache?) -> any DMAPort {
        let identity = RequesterIdentity(
            smmuIndex: endpoint.smmuIndex,
            streamID: endpoint.streams.first ?? StreamID(0)
        )
        return { [ports, kind = endpoint.kind] cache in ports.port(for: identity, kind, cache) }
    }

    private static func failure(_ specification: DeviceSpecification, _ error: Errno) -> MachineError {
        MachineError("\(specification.source): \(error.description)")
    }

    // MARK: Devices

    /// How long a queue is looked at before its driver is asked to notify.
    ///
    /// Not at all unless somebody asks for it: it pays where the driver is a guest that shares processors with
    /// us and with nobody else, and costs where others want them.
    private func pollMicroseconds(_ specification: DeviceSpecification) throws(MachineError) -> Int {
        try specification.number("poll", in: 0...10_000, default: 0)
    }

    private func nvme(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        _ address: PCIAddress,
        _ capabilities: [PCICapability],
        _ makePort: @escaping @Sendable () -> any DMAPort
    ) throws(MachineError) -> MachineFunction {
        var parameters = NVMeParameters(
            serialNumber: specification.values["serial"] ?? "smmud-\(address.text)"
        )
        parameters.ioQueueCount = try specification.number("queues", in: 1...64, default: 8)
        parameters.pollMicroseconds = try pollMicroseconds(specification)
        let image = try image(specification)
        let offersMSIX = try specification.flag("msix", default: true)
        do throws(NVMeError) {
            let controller = try NVMeController(image: image, parameters)
            return MachineFunction(
                address: address,
                kind: .nvme,
                endpoint: endpoint,
                function: controller.makeFunction(
                    name: address.text,
                    offersMSIX: offersMSIX,
                    extendedCapabilities: capabilities,
                    makePort: makePort
                ),
                statistics: {
                    let queues = controller.queueStatistics
                    return [
                        ("commands", queues.reduce(0) { $0 &+ $1.commands }),
                        ("bytes", queues.reduce(0) { $0 &+ $1.bytes }),
                        ("errors", queues.reduce(0) { $0 &+ $1.errors }),
                    ]
                },
                shutDown: { controller.reset() }
            )
        } catch {
            throw MachineError("\(specification.source): \(error)")
        }
    }

    /// The device of another program, which reaches memory by messages or is lent what is mapped for it.
    private func foreign(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        _ address: PCIAddress,
        _ makePort: @escaping @Sendable () -> any DMAPort
    ) throws(MachineError) -> MachineFunction {
        let path = try specification.required("socket")
        let isMapped = try specification.isMapped()
        if isMapped, endpoint.smmuIndex != nil, options.driver != .own {
            throw MachineError(
                "\(specification.source): dma=mapped needs smmud's own driver (--driver own) or a function without an "
                    + "SMMU: what another driver writes into its tables nobody hears of; dma=messages does not"
            )
        }
        let memory = ForeignMemory(
            on: ports.bus,
            bypasses: endpoint.smmuIndex == nil,
            reach: ports.reach(ofSMMU: endpoint.smmuIndex),
            makePort: makePort
        )
        do throws(VFIOUserClientError) {
            let client = try VFIOUserClient(path: path)
            let reports = LimitedReports(of: endpoint.name, to: options.report)
            var deviceOptions = ForeignDevice.Options { reports.add($0) }
            if isMapped { deviceOptions.window = .mapped }
            let function = try ForeignDevice.attach(
                client,
                name: address.text,
                dma: memory,
                options: deviceOptions
            )
            return MachineFunction(
                address: address,
                kind: .vfioUser,
                endpoint: endpoint,
                function: function,
                foreignMemory: isMapped ? memory : nil,
                statistics: { [] },
                shutDown: { (function.model as? ForeignDevice)?.detach() }
            )
        } catch {
            throw MachineError("\(specification.source): \(error)")
        }
    }

    /// A function that does DMA as it is told; nil where another kind is asked for.
    private func testFunction(
        _ specification: DeviceSpecification,
        _ endpoint: Endpoint,
        named name: String,
        _ capabilities: [PCICapability],
        _ makePort: @escaping @Sendable () -> any DMAPort
    ) throws(MachineError) -> PCIFunction? {
        let offersMSIX = try specification.flag("msix", default: true)
        do throws(Errno) {
            switch specification.kind {
            case .dmaTestEngine:
                return try TestEngineFunction.makeFunction(
                    name: name,
                    offersMSIX: offersMSIX,
                    offersPASID: hasSubstreams(endpoint),
                    extendedCapabilities: capabilities,
                    makePort: makePort
                )
            case .iommuTestDevice:
                return try IOMMUTestDevice.makeFunction(
                    name: name,
                    physical: ports.bus,
                    extendedCapabilities: capabilities,
                    makePort: makePort
                )
            default: return nil
            }
        } catch {
            throw Self.failure(specification, error)
        }
    }

    /// The engine of a platform device, which has as many streams as the node's `iommus` names.
    private func testEngine(_ specification: DeviceSpecification, _ endpoint: Endpoint) throws(MachineError)
        -> TestEngineDevice
    {
        let streams = endpoint.smmuIndex == nil ? [StreamID(0)] : endpoint.streams
        do throws(Errno) {
            return try TestEngineDevice(defaultStream: streams.first?.rawValue ?? 0) { [ports] stream in
                guard streams.contains(StreamID(stream)) else { return nil }
                return ports.port(
                    for: RequesterIdentity(smmuIndex: endpoint.smmuIndex, streamID: StreamID(stream)),
                    endpoint.kind
                )
            }
        } catch {
            throw Self.failure(specification, error)
        }
    }

    private mutating func virtio(_ specification: DeviceSpecification) throws(MachineError)
        -> any VirtioDevice
    {
        switch specification.kind {
        case .virtioBlock:
            return VirtioBlock(
                image: try image(specification),
                queueCount: try specification.number("queues", in: 1...64, default: 1),
                serial: specification.values["serial"] ?? "",
                pollMicroseconds: try pollMicroseconds(specification)
            )
        case .virtioRNG: return VirtioEntropy()
        case .virtioConsole: return VirtioConsole(backend: try console(specification))
        case .virtioNet: return try net(specification)
        case .nvme, .dmaTestEngine, .iommuTestDevice, .vfioUser:
            throw MachineError(
                "\(specification.source): a \(specification.kind.rawValue) is no virtio device"
            )
        }
    }

    private func image(_ specification: DeviceSpecification) throws(MachineError) -> RawImage {
        let path = try specification.required("file")
        let isReadOnly = try specification.flag("readonly", default: false)
        do throws(RawImageError) {
            return try RawImage(path: path, isReadOnly: isReadOnly)
        } catch {
            throw MachineError("\(specification.source): \(error)")
        }
    }

    private func console(_ specification: DeviceSpecification) throws(MachineError) -> any ConsoleBackend {
        let backends = try Self.one(of: ["socket", "file"], specification)
        do {
            if backends.key == "socket" { return try ConsoleSocket(path: backends.value) }
            return try ConsoleDescriptors.file(backends.value)
        } catch {
            throw MachineError("\(specification.source): \(error)")
        }
    }

    private mutating func net(_ specification: DeviceSpecification) throws(MachineError) -> VirtioNet {
        linkCount += 1
        // A locally administered address for each, where none is given.
        let text = specification.values["mac"] ?? "52:54:00:5d:00:" + Self.twoDigits(linkCount)
        guard let address = MACAddress(text) else {
            throw MachineError("\(specification.source): mac is like 52:54:00:12:34:56, not \"\(text)\"")
        }
        let mtu = try specification.number("mtu", in: 68...65517, default: 1500)
        return VirtioNet(backend: try netBackend(specification), address: address, mtu: UInt16(mtu))
    }

    private mutating func netBackend(_ specification: DeviceSpecification) throws(MachineError)
        -> any NetBackend
    {
        let backend = try Self.one(of: ["tap", "socket", "link"], specification)
        do {
            switch backend.key {
            case "tap": return try NetPackets.tap(backend.value)
            case "socket": return try NetStream(listeningAt: backend.value)
            default:
                if let other = openLinks.removeValue(forKey: backend.value) { return other }
                let (near, far) = try NetPackets.loop()
                openLinks[backend.value] = far
                return near
            }
        } catch {
            throw MachineError("\(specification.source): \(backend.key)=\(backend.value): \(error)")
        }
    }

    private static func twoDigits(_ value: Int) -> String {
        let text = String(value & 0xFF, radix: 16)
        return text.count == 1 ? "0" + text : text
    }

    /// The one of several keys that has to be given.
    private static func one(of keys: [String], _ specification: DeviceSpecification) throws(MachineError)
        -> (key: String, value: String)
    {
        let given = keys.filter { specification.values[$0] != nil }
        guard given.count == 1, let key = given.first, let value = specification.values[key], !value.isEmpty
        else {
            throw MachineError(
                "\(specification.source): a \(specification.kind.rawValue) needs one of "
                    + keys.map { $0 + "=..." }.joined(separator: ", ")
            )
        }
        return (key, value)
    }
}
