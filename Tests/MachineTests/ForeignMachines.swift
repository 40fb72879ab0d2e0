// Two machines in one process: a far one that serves a test engine at a vfio-user socket, and a near one that has taken
// it in.

import AddressSpace
import ControlProtocol
import DeviceModel
import Glibc
import HostIO
import Logging
import Machine
import PCIFunction
import Synchronization
import SystemBus
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// The machine of another program: its engine's DMA goes to what its client lends, and nowhere else.
final class FarMachine: Sendable {
    let path = "/tmp/smmud-far-\(getpid())-\(UInt32.random(in: 0...UInt32.max)).sock"
    /// Called for each DMA_UNMAP, before it is carried out.
    let onUnmap = Mutex<(@Sendable (AddressRange) -> Void)?>(nil)
    private let machine: Machine
    private let server: VFIOUserServer

    init() throws {
        var options = MachineOptions()
        options.memory = .client
        options.driver = .none
        options.offersFunctions = true
        options.devices = [try DeviceSpecification(argument: "dma-test-engine,at=0000:00:01.0")]
        let machine = try Machine(board: try TestBoard.load(TestBoard.small), options: options)
        self.machine = machine
        let function = try #require(machine.functions.first)
        let relay = Relay()
        server = try VFIOUserServer(
            VFIOUserServer.Configuration(name: "far"),
            device: PCIFunctionDevice(function.function),
            listener: UnixListener(path: path),
            logger: Logger(label: "far") { _ in SwiftLogNoOpLogHandler() },
            makeMemory: {
                WatchedMemory(machine.makeClientMemory(for: function.endpoint)) { relay.hear($0) }
            }
        )
        relay.owner.withLock { $0.machine = self }
        try server.start()
    }

    /// What its device can reach without asking: what it was lent by descriptor, as the device addresses it.
    var shared: [AddressRange] { machine.bus.entries.filter { $0.kind == .ram }.map(\.range) }
    /// What it has to ask for.
    var asked: [AddressRange] { machine.bus.entries.filter { $0.kind == .remote }.map(\.range) }

    func stop() {
        server.stop()
        machine.stop()
    }

    private final class Relay: Sendable {
        struct Weak { weak var machine: FarMachine? }
        let owner = Mutex(Weak())
        func hear(_ range: AddressRange) {
            owner.withLock { $0.machine }?.onUnmap.withLock { $0 }?(range)
        }
    }
}

/// A client's memory, and somebody who hears of what is taken back.
private final class WatchedMemory: VFIOUserMemory {
    private let memory: any VFIOUserMemory
    private let hear: @Sendable (AddressRange) -> Void

    init(_ memory: any VFIOUserMemory, _ hear: @escaping @Sendable (AddressRange) -> Void) {
        self.memory = memory
        self.hear = hear
    }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        try memory.map(range, source)
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        if let range = AddressRange(start: address, byteCount: byteCount) { hear(range) }
        try memory.unmap(address: address, byteCount: byteCount)
    }

    func unmapAll() { memory.unmapAll() }
}

/// The machine that has taken the far one's engine in, and software that drives the engine.
final class NearMachine {
    let machine: Machine
    let function: PCIFunction
    let client: TestClient
    let place: String

    init(
        _ far: FarMachine,
        board: String = TestBoard.small,
        at place: String = "0000:00:03.0",
        _ configure: (inout MachineOptions) -> Void = { _ in }
    ) throws {
        var options = MachineOptions()
        options.offersFunctions = true
        options.devices = [
            try DeviceSpecification(argument: "vfio-user,at=\(place),socket=\(far.path),dma=mapped")
        ]
        configure(&options)
        machine = try Machine(board: try TestBoard.load(board), options: options)
        self.place = place
        function = try #require(machine.functions.first { $0.kind == .vfioUser }).function
        #expect(machine.startDriver() == [])
        client = TestClient(machine)
        // Memory space and bus mastering.
        function.writeConfiguration(6, at: 4, byteCount: 2)
    }

    func stop() { machine.stop() }

    // MARK: The driver

    @discardableResult
    func map(
        _ iova: UInt64,
        _ byteCount: UInt64,
        to physical: UInt64? = nil,
        _ permissions: Permissions = .readWrite,
        substream: UInt64? = nil
    ) throws -> UInt64 {
        let parameters = Methods.IOMMUMap.Parameters(
            device: place,
            iova: Hex(iova),
            address: physical.map { Hex($0) },
            length: Size(byteCount),
            permissions: permissions,
            substream: substream.map { Hex($0) }
        )
        return try client.call(Methods.IOMMUMap.self, parameters).address.value
    }

    func unmap(_ iova: UInt64, _ byteCount: UInt64? = nil) throws {
        let parameters = Methods.IOMMUUnmap.Parameters(
            device: place,
            iova: Hex(iova),
            length: byteCount.map { Size($0) }
        )
        _ = try client.call(Methods.IOMMUUnmap.self, parameters)
    }

    func attach(_ kind: DomainKind) throws {
        let domain = DomainName(rawValue: kind.rawValue)
        _ = try client.call(Methods.IOMMUAttach.self, .init(device: place, domain: domain))
    }

    // MARK: Memory

    func word(_ physical: UInt64) throws -> UInt64 {
        try machine.bus.load(.doubleword, at: PhysicalAddress(physical))
    }

    func setWord(_ physical: UInt64, _ value: UInt64) throws {
        try machine.bus.store(value, .doubleword, at: PhysicalAddress(physical))
    }

    // MARK: The engine

    private static let done: UInt64 = 1
    private static let aborted: UInt64 = 0xFFFF_FFFF

    /// Has the engine do one command on the doubleword at an address; whether it could.
    private func run(_ command: UInt64, at address: UInt64) throws -> Bool {
        try function.writeBAR(0, address, at: 0x28, width: .doubleword)
        try function.writeBAR(0, address + 7, at: 0x30, width: .doubleword)
        try function.writeBAR(0, command, at: 0, width: .word)
        return try outcome(of: command)
    }

    private func outcome(of command: UInt64) throws -> Bool {
        while true {
            let state = try function.readBAR(0, at: 0, width: .word)
            if state == Self.done { return true }
            if state == Self.aborted { return false }
            try #require(state == command, "the engine says \(state)")
            sched_yield()
        }
    }

    /// Has the engine fill a range with random bytes (RAND48), from the first on.
    func startFilling(_ address: UInt64, _ byteCount: UInt64) throws {
        try function.writeBAR(0, address, at: 0x28, width: .doubleword)
        try function.writeBAR(0, address + byteCount - 1, at: 0x30, width: .doubleword)
        try function.writeBAR(0, 3, at: 0, width: .word)
    }

    /// Waits for the end of that; whether all was filled.
    func finishFilling() throws -> Bool { try outcome(of: 3) }

    /// What the engine reads at an address (SUM64 of one doubleword); nil where it could not.
    func read(_ address: UInt64) throws -> UInt64? {
        guard try run(4, at: address) else { return nil }
        return try function.readBAR(0, at: 0x48, width: .doubleword)
    }

    /// Has the engine copy a doubleword (MEMCPY); whether it could.
    func copy(_ source: UInt64, to destination: UInt64) throws -> Bool {
        try function.writeBAR(0, destination, at: 0x40, width: .doubleword)
        return try run(2, at: source)
    }
}

/// A range, for comparisons.
func bytes(_ first: UInt64, _ byteCount: UInt64) throws -> AddressRange {
    try #require(AddressRange(start: first, byteCount: byteCount))
}
