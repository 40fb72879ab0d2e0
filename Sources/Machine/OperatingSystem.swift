// The machine's own operating-system side: drivers of SMMUs, the IOMMU core with its groups, buses, and free RAM.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import IOMMU
import IOPageTable
import SMMUv3
import SMMUv3Spec
import Synchronization

/// Drives the machine's SMMUs as an operating system would: through registers, memory and interrupt lines alone.
///
/// Lock order: `registry`, then a bus's, the core's, a group's, a domain's book.
final class OperatingSystem: Sendable {
    /// What became of the driver of one SMMU.
    enum DriverState: Sendable {
        case running(SMMUv3Driver)
        case failed(SMMUDriverError)
    }

    /// What is known by name.
    struct Registry {
        var endpoints: [String: ManagedEndpoint] = [:]
        /// By number.
        var groups: [Int: ManagedGroup] = [:]
        /// Unmanaged domains, with the SMMU that they belong to.
        var domains: [String: NamedDomain] = [:]
        /// Endpoints that were taken away, and do not come back by being named.
        var removed: Set<String> = []
    }

    /// An unmanaged domain.
    struct NamedDomain {
        let domain: ManagedDomain
        let smmuIndex: Int
    }

    let frames: PhysicalFrameAllocator
    let core: IOMMUCore
    let log: MachineDriverLog
    let platformBus = DeviceBus("platform")
    let pciBus = DeviceBus("pci")
    let registry = Mutex(Registry())
    let followers: CommandFollowers
    let drivers: [DriverState]
    /// By the place of their SMMU.
    let fixedDomains: [Int: (identity: ManagedDomain, blocked: ManagedDomain)]
    private let topology: @Sendable (PCIeHostNode, Set<UInt16>) -> PCITopology
    private let hosts: [PCIeHostNode]
    private let access: any PhysicalAccess
    /// Devices of other programs that are lent what is mapped for them, by their endpoints' names.
    private let foreign: [String: ForeignMemory]
    /// What clients allocated for themselves, by address.
    private let allocations = Mutex<[UInt64: UInt64]>([:])

    /// Probes and resets every SMMU; one that fails is left off, and the others go on.
    init(_ machine: Machine) {
        let board = machine.board
        let frames = PhysicalFrameAllocator(
            memory: machine.bus,
            ranges: board.memory.map(\.range),
            excluding: board.reservedMemory.flatMap(\.ranges)
        )
        self.frames = frames
        var foreign: [String: ForeignMemory] = [:]
        for function in machine.functions { foreign[function.endpoint.name] = function.foreignMemory }
        self.foreign = foreign
        let log = MachineDriverLog(clock: machine.options.driverClock)
        self.log = log
        let asids = ASIDAllocator()
        let parameters = KernelParameters(machine.options.append)
        for line in parameters.complaints + parameters.announcement { log.append(line, from: "iommu") }
        core = IOMMUCore(parameters) { line in log.append(line, from: "iommu") }
        let drivers = machine.smmus.map { smmu in
            Self.makeDriver(of: smmu, machine, frames, asids, parameters, log)
        }
        self.drivers = drivers
        followers = CommandFollowers(
            drivers.enumerated().compactMap { index, state in
                if case .running(let driver) = state { (index, driver) } else { nil }
            }
        )
        var fixed: [Int: (identity: ManagedDomain, blocked: ManagedDomain)] = [:]
        for (index, state) in drivers.enumerated() {
            guard case .running(let driver) = state else { continue }
            core.register(driver)
            fixed[index] = (
                ManagedDomain(driver.identityDomain, of: driver, .everyone, frames),
                ManagedDomain(driver.blockedDomain, of: driver, .everyone, frames)
            )
        }
        fixedDomains = fixed
        hosts = board.pcieHosts
        access = machine.bus
        let models = machine.configurationSpaces
        for space in models.values.flatMap(\.values) { space.enableAccessControl() }
        topology = { host, requesterIDs in
            PCITopology(host, requesterIDs: requesterIDs, models: models[host.path] ?? [:])
        }
        for bus in [platformBus, pciBus] {
            do throws(IOMMUGroupError) { try bus.register(core) } catch {
                preconditionFailure("a bus without devices has none to refuse: \(error)")
            }
        }
    }

    private static func makeDriver(
        of smmu: MachineSMMU,
        _ machine: Machine,
        _ frames: PhysicalFrameAllocator,
        _ asids: ASIDAllocator,
        _ parameters: KernelParameters,
        _ log: MachineDriverLog
    ) -> DriverState {
        let node = smmu.node
        var options = SMMUv3DriverOptions(name: kernelName(of: node.path), isCoherent: node.isDMACoherent)
        options.hasBrokenPage1 = node.hasBrokenPage1RegisterSpace
        options.hasBrokenPrefetch = node.hasBrokenPrefetchCommand
        options.httuOverride = node.httuOverride
        options.firmwareStreams = node.firmwareStreams
        options.apply(parameters)
        options.asids = asids
        options.clock = machine.options.driverClock
        options.granule = PageTableGranule.allCases.first {
            $0.byteCount == UInt64(machine.options.pageBytes)
        }
        options.interruptHandling = machine.options.smmu.commandExecution == .inline ? .inline : .threads
        options.logSink = { line in log.append(line, from: node.path) }
        do throws(SMMUDriverError) {
            var driver: SMMUv3Driver?
            // Nothing is in flight yet: its commands need not wait for a thread to wake up, or to be there.
            try smmu.model.lendingTime { () throws(SMMUDriverError) in
                driver = try SMMUv3Driver(
                    access: machine.bus,
                    registerBase: PhysicalAddress(node.architectedRegisters.first),
                    registerByteCount: node.registers.byteCount,
                    frames: frames,
                    interrupts: interrupts(of: smmu.model),
                    options: options
                )
            }
            guard let driver else { preconditionFailure("the driver is there where it was not refused") }
            return .running(driver)
        } catch {
            return .failed(error)
        }
    }

    private static func interrupts(of smmu: SMMUv3) -> SMMUInterrupts {
        let lines = smmu.lines
        return lines.combined.map { .combined($0) }
            ?? .named(eventq: lines.eventQueue, gerror: lines.globalError, priq: lines.pageRequestQueue)
    }

    /// `/soc/iommu@2b400000` as the kernel names its device: `2b400000.iommu`.
    static func kernelName(of path: String) -> String {
        let node = path.split(separator: "/").last.map(String.init) ?? path
        let parts = node.split(separator: "@", maxSplits: 1)
        return parts.count == 2 ? "\(parts[1]).\(parts[0])" : node
    }

    /// Switches every SMMU off.
    func stop() {
        for case .running(let driver) in drivers { driver.stop() }
    }

    func driverState(_ index: Int) -> DriverState { drivers[index] }

    /// The driver of an SMMU.
    func driver(_ index: Int, for what: String) throws(ControlError) -> SMMUv3Driver {
        switch drivers[index] {
        case .running(let running): return running
        case .failed(let error): throw .noDriver("the driver of the SMMU before \(what) gave up: \(error)")
        }
    }

    // MARK: Endpoints

    /// An endpoint as the driver has it; it comes onto its bus when it is first asked for.
    func managed(_ endpoint: Endpoint) throws(ControlError) -> ManagedEndpoint {
        try registry.withLock { (registry) throws(ControlError) in try managed(endpoint, &registry) }
    }

    func managed(_ endpoint: Endpoint, _ registry: inout Registry) throws(ControlError) -> ManagedEndpoint {
        if let known = registry.endpoints[endpoint.name] { return known }
        guard !registry.removed.contains(endpoint.name) else {
            throw .noDriver("\(endpoint.name) was removed; smmuctl device add brings it back")
        }
        return try add(endpoint, &registry)
    }

    /// Puts an endpoint onto its bus, where the core hears of it.
    func add(_ endpoint: Endpoint, _ registry: inout Registry) throws(ControlError) -> ManagedEndpoint {
        guard let index = endpoint.smmuIndex else {
            throw .noDriver("no SMMU stands before \(endpoint.name): its addresses are physical addresses")
        }
        let driver = try driver(index, for: endpoint.name)
        let bus = bus(of: endpoint)
        do throws(IOMMUGroupError) { try bus.add(device(endpoint, driver, registry)) } catch {
            throw ControlError(error)
        }
        guard let group = core.group(of: endpoint.name),
            let member = group.members.first(where: { $0.name == endpoint.name })
        else { throw .internalError("\(endpoint.name) has no group") }
        let managedGroup = registry.groups[group.id] ?? ManagedGroup(group, frames)
        registry.groups[group.id] = managedGroup
        var traits = DMADevice.Traits()
        traits.isCoherent = endpoint.isCoherent
        traits.isPCI = endpoint.kind == .pcie
        let log = log
        let managed = ManagedEndpoint(
            endpoint,
            member,
            in: managedGroup,
            frames,
            CoherentMemory(
                "\(bus.name) \(core.kernelName(of: endpoint.name) ?? endpoint.name)",
                DMAMemory(frames: frames, access: access),
                traits
            ) { log.append($0, from: "iommu") },
            foreign[endpoint.name]
        )
        registry.endpoints[endpoint.name] = managed
        return managed
    }

    func bus(of endpoint: Endpoint) -> DeviceBus { endpoint.kind == .pcie ? pciBus : platformBus }

    private static func kind(_ kind: ReservedIOVA.Kind) -> ReservedRegion.Kind {
        switch kind {
        case .reserved: .reserved
        case .direct: .direct
        case .directRelaxable: .directRelaxable
        }
    }

    private func device(_ endpoint: Endpoint, _ driver: SMMUv3Driver, _ registry: Registry) -> BusDevice {
        let reserved = endpoint.reservedIOVAs.map { reserved in
            ReservedRegion(Self.kind(reserved.kind), reserved.range)
        }
        guard let address = endpoint.pciAddress,
            let host = hosts.first(where: { endpoint.name.hasPrefix($0.path + "/") })
        else {
            return BusDevice(
                name: endpoint.name,
                kernelName: Self.kernelName(of: endpoint.name),
                iommu: driver,
                streams: endpoint.streams,
                substreamBits: Int(endpoint.substreamBits),
                canStall: endpoint.canStall,
                reservedRegions: reserved
            )
        }
        let others = registry.endpoints.values.map(\.endpoint).filter { $0.name.hasPrefix(host.path + "/") }
        let requesterIDs =
            others.compactMap { $0.pciAddress?.requesterID } + host.children.compactMap(\.requesterID)
            + [address.requesterID]
        let topology = topology(host, Set(requesterIDs))
        return BusDevice(
            name: endpoint.name,
            kernelName: address.text,
            place: .pci(
                segment: address.segment,
                requesterID: address.requesterID,
                group: topology.group(of: address.requesterID)
            ),
            iommu: driver,
            streams: endpoint.streams,
            substreamBits: Int(endpoint.substreamBits),
            isUntrusted: topology.isUntrusted(address.requesterID),
            reservedRegions: reserved
        )
    }

    /// An endpoint that the driver has already.
    func known(_ endpoint: Endpoint) -> ManagedEndpoint? { registry.withLock { $0.endpoints[endpoint.name] } }

    /// Every endpoint that the driver has, by name.
    var allKnown: [ManagedEndpoint] {
        registry.withLock { registry in
            registry.endpoints.values.sorted { $0.endpoint.name < $1.endpoint.name }
        }
    }

    // MARK: Memory for clients

    func allocate(byteCount: UInt64, alignment: UInt64) throws(ControlError) -> (
        address: UInt64, byteCount: UInt64
    ) {
        guard byteCount > 0, byteCount <= UInt64.max - 0xFFF else {
            throw .invalidParameter("length", "it is 1 or more, and less than 2^64 - 4096")
        }
        let rounded = (byteCount + 0xFFF) & ~0xFFF
        do {
            let address = try frames.allocate(byteCount: rounded, alignment: alignment)
            allocations.withLock { $0[address.rawValue] = rounded }
            return (address.rawValue, rounded)
        } catch {
            throw ControlError(error)
        }
    }

    func free(_ address: UInt64) throws(ControlError) {
        guard allocations.withLock({ $0.removeValue(forKey: address) }) != nil else {
            throw .notMapped(at: address, "nothing that memory.allocate gave out starts at \(Hex(address))")
        }
        do {
            try frames.free(PhysicalAddress(address))
        } catch {
            throw ControlError(error)
        }
    }
}
