// The machine's own operating-system side: a driver for each SMMU, a domain for each endpoint, and free RAM.

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
final class OperatingSystem: Sendable {
    /// What became of the driver of one SMMU.
    enum DriverState: Sendable {
        case running(SMMUv3Driver)
        case failed(SMMUDriverError)
    }

    let frames: PhysicalFrameAllocator
    private let drivers: [DriverState]
    private let parameters: KernelParameters
    private let log: MachineDriverLog
    private let endpoints = Mutex<[String: ManagedEndpoint]>([:])
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
        let log = MachineDriverLog()
        self.log = log
        let asids = ASIDAllocator()
        let parameters = KernelParameters(machine.options.append)
        self.parameters = parameters
        for line in parameters.complaints + parameters.announcement { log.append(line, from: "iommu") }
        drivers = machine.smmus.map { smmu in
            Self.makeDriver(of: smmu, machine, frames, asids, parameters, log)
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
        options.granule = PageTableGranule.allCases.first {
            $0.byteCount == UInt64(machine.options.pageBytes)
        }
        options.interruptHandling = machine.options.smmu.commandExecution == .inline ? .inline : .threads
        options.logSink = { line in log.append(line, from: node.path) }
        let lines = smmu.model.lines
        do throws(SMMUDriverError) {
            return .running(
                try SMMUv3Driver(
                    access: machine.bus,
                    registerBase: PhysicalAddress(node.architectedRegisters.first),
                    registerByteCount: node.registers.byteCount,
                    frames: frames,
                    interrupts: lines.combined.map { .combined($0) }
                        ?? .named(
                            eventq: lines.eventQueue,
                            gerror: lines.globalError,
                            priq: lines.pageRequestQueue
                        ),
                    options: options
                )
            )
        } catch {
            return .failed(error)
        }
    }

    /// `/soc/iommu@2b400000` as the kernel names its device: `2b400000.iommu`.
    private static func kernelName(of path: String) -> String {
        let node = path.split(separator: "/").last.map(String.init) ?? path
        let parts = node.split(separator: "@", maxSplits: 1)
        return parts.count == 2 ? "\(parts[1]).\(parts[0])" : node
    }

    /// Switches every SMMU off.
    func stop() {
        for case .running(let driver) in drivers { driver.stop() }
    }

    func driverState(_ index: Int) -> DriverState { drivers[index] }

    func log(from sequence: UInt64) -> (lines: [ControlProtocol.LogLine], next: UInt64) {
        log.lines(from: sequence)
    }

    // MARK: Endpoints

    /// An endpoint as the driver has it; attached to a domain of its own when it is first asked for.
    func managed(_ endpoint: Endpoint) throws(ControlError) -> ManagedEndpoint {
        guard let index = endpoint.smmuIndex else {
            throw .noDriver("no SMMU stands before \(endpoint.name): its addresses are physical addresses")
        }
        let driver: SMMUv3Driver
        switch drivers[index] {
        case .running(let running): driver = running
        case .failed(let error):
            throw .noDriver("the driver of the SMMU before \(endpoint.name) gave up: \(error)")
        }
        return try endpoints.withLock { (endpoints) throws(ControlError) in
            if let known = endpoints[endpoint.name] { return known }
            let managed = try ManagedEndpoint(
                endpoint,
                driver,
                frames,
                parameters,
                foreign[endpoint.name]
            )
            endpoints[endpoint.name] = managed
            return managed
        }
    }

    /// An endpoint that the driver has already.
    func known(_ endpoint: Endpoint) -> ManagedEndpoint? { endpoints.withLock { $0[endpoint.name] } }

    /// Every endpoint that the driver has, by name.
    var allKnown: [ManagedEndpoint] {
        endpoints.withLock { endpoints in endpoints.values.sorted { $0.endpoint.name < $1.endpoint.name } }
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
            throw ManagedEndpoint.controlError(error)
        }
    }

    func free(_ address: UInt64) throws(ControlError) {
        guard allocations.withLock({ $0.removeValue(forKey: address) }) != nil else {
            throw .notMapped(at: address, "nothing that memory.allocate gave out starts at \(Hex(address))")
        }
        do {
            try frames.free(PhysicalAddress(address))
        } catch {
            throw ManagedEndpoint.controlError(error)
        }
    }
}

/// The lines of every driver, in one order.
final class MachineDriverLog: Sendable {
    private static let capacity = 4096

    private struct State: Sendable {
        var lines: [ControlProtocol.LogLine] = []
        var next: UInt64 = 0
    }
    private let state = Mutex(State())

    func append(_ text: String, from source: String) {
        state.withLock { state in
            if state.lines.count == Self.capacity { state.lines.removeFirst(Self.capacity / 8) }
            state.lines.append(
                ControlProtocol.LogLine(sequence: Size(state.next), source: source, text: text)
            )
            state.next &+= 1
        }
    }

    func lines(from sequence: UInt64) -> (lines: [ControlProtocol.LogLine], next: UInt64) {
        state.withLock { state in (state.lines.filter { $0.sequence.value >= sequence }, state.next) }
    }
}
