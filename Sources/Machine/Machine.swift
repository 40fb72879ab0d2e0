// A machine: everything that one device tree describes, built and wired.

package import AddressSpace
package import DeviceModel
package import DeviceTree
package import GuestMemory
import PCIHost
import PMCG
package import SMMUv3
import Synchronization
package import SystemBus
package import VFIOUserServer

/// An SMMUv3 of the machine.
package struct MachineSMMU: Sendable {
    package let node: SMMUv3Node
    package let model: SMMUv3
}

/// Somebody who drives an interrupt line.
package struct InterruptSource: Sendable {
    package let line: InterruptLine
    /// The path of the node that drives it.
    package let device: String
    /// What the device calls it.
    package let label: String
}

/// All that one device tree describes: RAM, SMMUs, interrupt lines and requesters on one bus.
package final class Machine: Sendable {
    package let board: BoardDescription
    package let options: MachineOptions
    package let bus: SystemBus
    /// The SMMUs that are enabled, in the order of the tree.
    package let smmus: [MachineSMMU]
    /// The counter groups that are enabled, in the order of the tree.
    package let pmcgs: [MachinePMCG]
    /// Who drives which line; two devices may drive one.
    package let interrupts: [InterruptSource]
    /// Every event of every SMMU, in one order.
    package let events: MachineEventLog
    /// RAM as it was made, for lending it to clients.
    package let memory: [RAM]
    /// The transactions of devices without an SMMU.
    let directTracker: TransactionTracker
    /// What clients lend.
    let lentMemory: LentMemory
    /// Where memory of clients goes that have no addresses for it themselves.
    let physicalWindows: PhysicalWindows
    /// The MSI controllers' doorbells, in the order of the tree.
    package let doorbells: [MSIDoorbell]
    /// The PCIe functions with a model, in the order in which they were asked for.
    package let functions: [MachineFunction]
    /// The platform devices with a model.
    package let platformDevices: [MachinePlatformDevice]
    private let ports: PortMaker
    private let hostBridges: [PCIHostBridge]
    private let rootPorts: [MachineBuses.Port]
    private let directory: Mutex<EndpointDirectory>
    /// The machine's own operating-system side, once it is started.
    let operatingSystem = OnceSet<OperatingSystem>()
    /// Clients whose address spaces devices share.
    package let clientProcesses = ClientProcesses()

    /// One region of RAM.
    package struct RAM: Sendable {
        /// The `memory` node's path.
        package let path: String
        package let range: AddressRange
        package let region: GuestMemory.MemoryRegion
    }

    /// Builds a machine in its reset state.
    ///
    /// - Throws: ``MachineError`` where the host refuses what is needed (memory, file descriptors).
    package init(board: BoardDescription, options: MachineOptions = MachineOptions()) throws(MachineError) {
        self.board = board
        self.options = options
        let bus = SystemBus()
        self.bus = bus
        memory = options.memory == .own ? try Self.makeMemory(of: board, on: bus) : []
        let directTracker = TransactionTracker()
        self.directTracker = directTracker

        var lines = LineTable()
        var smmus: [MachineSMMU] = []
        for node in board.enabledSMMUs {
            smmus.append(try Self.makeSMMU(node, of: board, options, on: bus, &lines))
        }
        self.smmus = smmus
        var pmcgs: [MachinePMCG] = []
        for node in board.pmcgs { pmcgs.append(try Self.makePMCG(node, beside: smmus, on: bus, &lines)) }
        self.pmcgs = pmcgs
        let models = smmus.map(\.model)
        let settle: @Sendable () -> Void = {
            for model in models { model.waitForAccessesInFlight() }
            directTracker.waitForTransactionsInFlight()
        }
        lentMemory = LentMemory(bus: bus) {
            let generation = bus.generation
            settle()
            bus.reclaim(through: generation)
        }
        physicalWindows = PhysicalWindows(in: Self.upperHalf(of: models))
        doorbells = Self.makeDoorbells(of: board, on: bus)
        events = MachineEventLog()
        var indices: [String: Int] = [:]
        for (index, smmu) in smmus.enumerated() { indices[smmu.node.path] = index }
        var directory = EndpointDirectory(board: board, smmuIndices: indices)
        ports = PortMaker(bus: bus, directTracker: directTracker, smmus: models)
        // A guest has its own host bridges.
        var buses: MachineBuses?
        if options.memory == .own {
            buses = try MachineBuses(
                of: board,
                on: bus,
                line: { lines.line($0, of: $1, labelled: "INTx") },
                settle: settle
            )
        }
        hostBridges = buses?.bridges ?? []
        rootPorts = buses?.rootPorts ?? []
        let devices = try Self.makeDevices(
            of: board,
            options,
            &directory,
            ports,
            &lines,
            buses: options.offersFunctions ? nil : buses,
            indices
        )
        functions = devices.functions
        platformDevices = devices.platform
        lentMemory.follow(by: functions.compactMap(\.foreignMemory))
        interrupts = lines.sources
        self.directory = Mutex(directory)
        for (index, smmu) in smmus.enumerated() { events.listen(to: smmu.model, at: index) }
    }

    /// Lets no DMA wait for software any more: what is stalled, or would be, is aborted.
    ///
    /// Before those are waited for who issue DMA.
    package func endStalls() {
        for smmu in smmus { smmu.model.endStalls() }
    }

    /// Stops the machine's own driver, and ends every thread of the machine's models.
    package func stop() {
        endStalls()
        for function in functions { function.shutDown() }
        for device in platformDevices { device.shutDown() }
        for bridge in hostBridges { bridge.shutDown() }
        stopDriver()
        for pmcg in pmcgs { pmcg.model.stop() }
        for smmu in smmus { smmu.model.stop() }
    }

    // MARK: Building

    private static func makeMemory(of board: BoardDescription, on bus: SystemBus) throws(MachineError)
        -> [RAM]
    {
        var memory: [RAM] = []
        for node in board.memory {
            do {
                let region = try GuestMemory.MemoryRegion.anonymous(
                    byteCount: node.range.byteCount,
                    name: node.path
                )
                try bus.addRAM(region, at: PhysicalAddress(node.range.first), name: node.path)
                memory.append(RAM(path: node.path, range: node.range, region: region))
            } catch {
                throw MachineError("\(node.path): no RAM at \(node.range): \(error)")
            }
        }
        return memory
    }

    private static func makeSMMU(
        _ node: SMMUv3Node,
        of board: BoardDescription,
        _ options: MachineOptions,
        on bus: SystemBus,
        _ lines: inout LineTable
    ) throws(MachineError) -> MachineSMMU {
        func line(_ role: SMMUv3Node.InterruptRole) -> InterruptLine? {
            node.interrupt(role).map { lines.line($0, of: node.path, labelled: role.rawValue) }
        }
        var smmuOptions = options.smmu
        if node.hasBrokenPage1RegisterSpace { smmuOptions.aliasesPage1InPage0 = true }
        let model = SMMUv3(
            name: node.path,
            identification: options.smmuProfile.identification(
                streamIDBits: streamIDBits(of: node.path, board),
                isCoherent: node.isDMACoherent,
                registerByteCount: modelledRegisters(of: node, board)
            ),
            options: smmuOptions,
            bus: bus,
            interrupts: SMMUv3.Interrupts(
                eventQueue: line(.eventQueue),
                globalError: line(.globalError),
                commandSync: line(.commandSync),
                pageRequestQueue: line(.priQueue),
                combined: line(.combined)
            )
        )
        do {
            try bus.addWindow(model, at: node.architectedRegisters, name: node.path)
            for page in model.identification.optionalPages {
                guard
                    let range = AddressRange(
                        start: node.registers.first &+ page.offset,
                        byteCount: SMMUv3RegisterPage.byteCount
                    )
                else { continue }
                let window = SMMUv3RegisterPage(of: model, at: page.offset)
                try bus.addWindow(window, at: range, name: "\(node.path) \(page.name)")
            }
        } catch {
            throw MachineError("\(node.path): its registers at \(error.inserting) overlap \(error.existing)")
        }
        return MachineSMMU(node: node, model: model)
    }

    /// How many bytes of `reg` the model may have: all that BA_VATOS reaches, or the two pages alone where counter
    /// groups stand in the last two, where the optional pages would be.
    private static func modelledRegisters(of node: SMMUv3Node, _ board: BoardDescription) -> UInt64 {
        let least = Identification.requiredRegisterByteCount
        let tail = 2 * SMMUv3RegisterPage.byteCount
        let byteCount = min(node.registers.byteCount & ~(SMMUv3RegisterPage.byteCount - 1), 0x400_0000)
        guard !node.hasBrokenPage1RegisterSpace, byteCount >= least + tail,
            let pages = AddressRange(start: node.registers.first &+ byteCount &- tail, byteCount: tail)
        else { return least }
        let isTaken = board.pmcgs.contains { group in
            [group.page0, group.page1].contains { page in
                page.map { $0.first <= pages.last && pages.first <= $0.last } ?? false
            }
        }
        return isTaken ? least : byteCount
    }

    /// SMMU_IDR1.SIDSIZE: enough for every StreamID that the tree gives out there, and no less than 16.
    private static func streamIDBits(of path: String, _ board: BoardDescription) -> UInt8 {
        var largest: UInt32 = 0xFFFF
        for device in board.masters {
            for iommu in device.iommus where iommu.path == path {
                if let streamID = iommu.streamID { largest = max(largest, streamID.rawValue) }
            }
        }
        for host in board.pcieHosts {
            for entry in host.iommuMap where entry.targetPath == path && entry.length > 0 {
                largest = max(largest, entry.outputBase &+ (entry.length - 1))
            }
        }
        return UInt8(truncatingIfNeeded: 32 - largest.leadingZeroBitCount)
    }

    /// The upper half of the addresses that every SMMU can drive: boards have nothing there.
    private static func upperHalf(of smmus: [SMMUv3]) -> AddressRange {
        let bits = UInt64(smmus.map(\.identification.outputAddressBits).min() ?? 48)
        guard let range = AddressRange(start: 1 << (bits - 1), byteCount: 1 << (bits - 1)) else {
            preconditionFailure("addresses have 32 to 52 bits")
        }
        return range
    }

    /// Doorbells where the tree has MSI controllers whose registers nothing else overlaps.
    private static func makeDoorbells(of board: BoardDescription, on bus: SystemBus) -> [MSIDoorbell] {
        board.msiControllers.compactMap { node in
            guard let doorbell = MSIDoorbell(node), let frame = node.registers.first,
                (try? bus.addWindow(doorbell, at: frame.range, name: node.path)) != nil
            else { return nil }
            return doorbell
        }
    }

    /// Whether other functions are to stand in the device of one that is named by its address.
    private static func hasSibling(_ one: DeviceSpecification, in all: [DeviceSpecification]) -> Bool {
        guard let dot = one.place.lastIndex(of: ".") else { return false }
        let device = one.place[...dot]
        return all.contains {
            $0.place != one.place && $0.place.hasPrefix(device) && $0.place.count == one.place.count
        }
    }

    /// What stands at the places that specifications name.
    private struct Devices {
        var functions: [MachineFunction] = []
        var platform: [MachinePlatformDevice] = []

        /// What has a name already.
        func kind(at name: String) -> DeviceSpecification.Kind? {
            functions.first { $0.endpoint.name == name }?.kind
                ?? platform.first { $0.endpoint.name == name }?.kind
        }
    }

    private static func makeDevices(
        of board: BoardDescription,
        _ options: MachineOptions,
        _ directory: inout EndpointDirectory,
        _ ports: PortMaker,
        _ lines: inout LineTable,
        buses: MachineBuses?,
        _ smmuIndices: [String: Int]
    ) throws(MachineError) -> Devices {
        var builder = DeviceBuilder(options: options, ports: ports)
        var devices = Devices()
        let specifications = try board.deviceSpecifications() + options.devices
        for specification in specifications {
            guard let endpoint = directory.endpoint(named: specification.place) else {
                throw MachineError(
                    "\(specification.source): the tree has no \(specification.place): a PCIe function's address "
                        + "below one of its hosts, or a node's path"
                )
            }
            if let kind = devices.kind(at: endpoint.name) {
                throw MachineError(
                    "\(specification.source): a \(kind.rawValue) is at \(endpoint.name) already"
                )
            }
            if endpoint.kind == .pcie {
                let seat = try buses?.seat(for: endpoint, board, ports, smmuIndices)
                if case .below? = seat?.place { try specification.checkNeedsNoFixedStream() }
                let function = try builder.function(
                    specification,
                    endpoint,
                    isMultiFunction: Self.hasSibling(specification, in: specifications),
                    makePort: seat?.makePort
                )
                devices.functions.append(function)
                do throws(PCIHostError) {
                    if let seat {
                        try seat.bridge.add(function.function, requester: seat.requester, at: seat.place)
                    }
                } catch {
                    throw MachineError("\(specification.source): \(endpoint.name): \(error)")
                }
            } else if let node = board.devices.first(where: { $0.path == endpoint.name }) {
                devices.platform.append(
                    try builder.platformDevice(
                        specification,
                        endpoint,
                        node,
                        line: { lines.line($0, of: node.path, labelled: "interrupt") },
                        on: ports.bus
                    )
                )
            }
        }
        try builder.finish()
        return devices
    }

    /// What the devices count, by their endpoints' names.
    var deviceStatistics: [(owner: String, counters: [(name: String, value: UInt64)])] {
        functions.map { ($0.endpoint.name, $0.statistics()) }
            + platformDevices.map { ($0.endpoint.name, $0.statistics) }
    }

    /// The configuration spaces that there are, by their host's path and their requester ID in the tree.
    var configurationSpaces: [String: PCITopology.Models] {
        var spaces: [String: PCITopology.Models] = [:]
        for host in board.pcieHosts {
            for child in host.children {
                guard let port = rootPorts.first(where: { $0.path == child.path }) else { continue }
                if let requesterID = child.requesterID {
                    spaces[host.path, default: [:]][requesterID] = port.port
                }
            }
            for function in functions where function.endpoint.name.hasPrefix(host.path + "/") {
                spaces[host.path, default: [:]][function.address.requesterID] = FunctionConfiguration(
                    function: function.function
                )
            }
        }
        return spaces
    }

    // MARK: Clients' memory

    /// What is to become of the memory that a new client lends to a device of `endpoint`, or, with nil, to no device in
    /// particular: the machine's RAM where the options say so, otherwise mappings in the device's domain.
    ///
    /// Where the endpoint's SMMU has no driver that could map, it takes none.
    package func makeClientMemory(for endpoint: Endpoint?) -> any VFIOUserMemory {
        guard options.memory == .own, let endpoint, endpoint.smmuIndex != nil else {
            return GuestRAM(lentMemory)
        }
        guard let managed = try? operatingSystem.value?.managed(endpoint) else { return NoMemory() }
        return MappedMemory(lentMemory, physicalWindows, managed)
    }

    // MARK: The guest's interrupt controller

    /// Passes interrupts and messages on to a guest of QEMU.
    ///
    /// - Returns: Lines that have no input there, a sentence each.
    package func connect(_ client: QtestClient) -> [String] {
        var complaints: [String] = []
        for line in Set(interrupts.map { ObjectIdentifier($0.line) }) {
            guard let source = interrupts.first(where: { ObjectIdentifier($0.line) == line }) else {
                continue
            }
            guard let number = source.line.identity.interruptID, number >= 32,
                number - 32 < QtestClient.interruptCount
            else {
                complaints.append(
                    "\(source.device): \(source.label): \(source.line.identity.controller) has no such SPI; "
                        + "a guest has SPIs 0 to \(QtestClient.interruptCount - 1)"
                )
                continue
            }
            source.line.connect(QtestInterruptSink(client, number: number - 32))
        }
        for doorbell in doorbells { doorbell.connect(client) }
        return complaints.sorted()
    }

    /// Every window of ours that a guest is to see: SMMUs, counter groups and platform devices.
    package var platformWindows: [AddressRange] {
        let doorbells = Set(board.msiControllers.map(\.path))
        return bus.entries.filter { $0.kind == .window && !doorbells.contains($0.name) }.map(\.range)
    }

    /// The window through which a guest sees them; nil where there are none, or they are too far apart.
    ///
    /// Only a machine whose RAM is a client's has one: to others there is nothing that it would be part of.
    package func makeWindow() -> MachineWindow? {
        guard options.memory == .client else { return nil }
        guard let range = MachineWindow.enclosing(platformWindows) else { return nil }
        let window = MachineWindow(range, on: bus, smmus: smmus)
        for doorbell in doorbells where doorbell.takesInterruptIDs { doorbell.connect(window) }
        return window
    }

    // MARK: Requesters

    /// Every endpoint that is known by now.
    package var endpoints: [Endpoint] { directory.withLock { $0.endpoints } }

    /// The endpoint of that name or alias; a PCIe function is found by its address even where the tree does not
    /// mention it.
    package func endpoint(named name: String) -> Endpoint? { directory.withLock { $0.endpoint(named: name) } }

    /// The endpoint that issues transactions as `identity`, if the tree has one.
    package func endpoint(at identity: RequesterIdentity) -> Endpoint? {
        directory.withLock { $0.endpoint(at: identity) }
    }

    /// A view of memory for one user of a requester's identity.
    package func makePort(for identity: RequesterIdentity) -> any DMAPort {
        ports.port(for: identity, endpoint(at: identity)?.kind ?? .platform)
    }
}

/// Interrupt lines by what they are connected to.
struct LineTable {
    private var lines: [InterruptIdentity: InterruptLine] = [:]
    private(set) var sources: [InterruptSource] = []

    /// The line to that input of that controller: one line, however many drive it.
    mutating func line(_ identity: InterruptIdentity, of device: String, labelled label: String)
        -> InterruptLine
    {
        let line = lines[identity] ?? InterruptLine(identity: identity, label: label)
        lines[identity] = line
        sources.append(InterruptSource(line: line, device: device, label: label))
        return line
    }
}

/// A value that is set once and read often.
final class OnceSet<Value: Sendable>: Sendable {
    private let storage = Mutex<Value?>(nil)

    var value: Value? { storage.withLock { $0 } }

    func set(_ value: Value) { storage.withLock { $0 = value } }
}
