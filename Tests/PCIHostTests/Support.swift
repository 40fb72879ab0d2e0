// The machine around a host bridge: a CPU, memory, devices that answer with what they are, interrupt lines.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import PCIFunction
import PCIHost
import Synchronization
import SystemBus
import Testing

/// A register file that reads as who answers: tag in bits 31:24, BAR in 23:20, offset below; until it is written.
final class TaggedModel: PCIFunctionModel {
    private struct State {
        var written: [UInt64: UInt64] = [:]
        var resets = 0
    }
    private let state = Mutex(State())
    let tag: UInt32
    /// What a reset waits for.
    let resetGate = Mutex<(@Sendable () -> Void)?>(nil)

    init(tag: UInt32) { self.tag = tag }

    var resets: Int { state.withLock { $0.resets } }

    static func word(_ tag: UInt32, _ bar: Int, _ offset: UInt64) -> UInt64 {
        UInt64(tag) << 24 | UInt64(bar) << 20 | offset & 0xF_FFFF
    }

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard width == .word else { throw .unsupportedWidth }
        return state.withLock { $0.written[UInt64(index) << 56 | offset] } ?? Self.word(tag, index, offset)
    }

    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard width == .word else { throw .unsupportedWidth }
        state.withLock { $0.written[UInt64(index) << 56 | offset] = value }
    }

    func reset() {
        resetGate.withLock { $0 }?()
        state.withLock { state in
            state.resets += 1
            state.written = [:]
        }
    }
}

/// What a CPU sees: 1s where the bus has no answer.
struct CPU: Sendable {
    let bus: SystemBus

    func read(_ width: AccessWidth, at address: UInt64) -> UInt64 {
        (try? bus.load(width, at: PhysicalAddress(address))) ?? width.allOnes
    }

    func write(_ value: UInt64, _ width: AccessWidth, at address: UInt64) {
        try? bus.store(value, width, at: PhysicalAddress(address))
    }
}

/// Notes things in their order, from any thread.
final class Notes<Element: Sendable>: Sendable {
    private let state = Mutex<[Element]>([])
    func add(_ element: Element) { state.withLock { $0.append(element) } }
    var all: [Element] { state.withLock { $0 } }
}

/// One device of a board, with what is needed to ask after it.
struct Device {
    let function: PCIFunction
    let model: TaggedModel
    let requester: PCIRequester
}

/// A host bridge on a bus with 1 MiB of RAM at 0x8000_0000.
final class Board: Sendable {
    let bus = SystemBus()
    let tracker: TransactionTracker
    let log = Notes<String>()
    /// Requester IDs for which a port was made.
    let portsMade = Notes<UInt16>()
    /// Names of functions whose requester ID changed.
    let renumbered = Notes<String>()
    /// What the routing closure was asked.
    let routesAsked = Notes<[UInt16]>()
    let lines: [InterruptLine]
    let bridge: PCIHostBridge

    static let ecam: UInt64 = 0x40_1000_0000
    /// PCI 0x1000_0000 is the CPU's 0x5000_0000, for 256 MiB; PCI 0x80_0000_0000 its 0x90_0000_0000, for 64 GiB.
    static let low = (pci: 0x1000_0000, cpu: 0x5000_0000, byteCount: 0x1000_0000) as Window
    static let high = (pci: 0x80_0000_0000, cpu: 0x90_0000_0000, byteCount: 0x10_0000_0000) as Window
    typealias Window = (pci: UInt64, cpu: UInt64, byteCount: UInt64)

    init(buses: ClosedRange<UInt8> = 0...15, settle: (@Sendable () -> Void)? = nil) throws {
        let (bus, log, renumbered, asked) = (bus, log, renumbered, routesAsked)
        let tracker = TransactionTracker()
        self.tracker = tracker
        let ram = try MemoryRegion.anonymous(byteCount: 1 << 20, name: "ram")
        try bus.addRAM(ram, at: PhysicalAddress(0x8000_0000), name: "ram")
        let lines = (0..<4).map { index in
            InterruptLine(
                identity: InterruptIdentity(controller: "/gic", specifier: [0, UInt32(index), 4]),
                label: "int\(index)"
            )
        }
        self.lines = lines
        let windows = try [Self.low, Self.high].map { window in
            let range = try #require(AddressRange(start: window.cpu, byteCount: window.byteCount))
            return PCIHostWindow(pciAddress: window.pci, cpuRange: range)
        }
        bridge = try PCIHostBridge(
            bus: bus,
            name: "/pcie",
            ecam: try #require(AddressRange(start: Self.ecam, byteCount: UInt64(buses.count) << 20)),
            buses: buses,
            windows: windows,
            // As on QEMU's virt: a line for each sum of device and pin.
            interruptLine: { requesterID, pin in
                asked.add([requesterID, UInt16(pin)])
                return lines[(Int(requesterID >> 3 & 31) + Int(pin) - 1) % 4]
            },
            settle: settle ?? { tracker.waitForTransactionsInFlight() },
            requesterIDChanged: { renumbered.add($0.name) },
            log: { log.add($0) }
        )
    }

    var cpu: CPU { CPU(bus: bus) }

    func device(
        _ name: String,
        tag: UInt32,
        bars: [PCIBAR] = [],
        _ capabilities: [PCICapability] = [.express(.endpoint)],
        pin: UInt8 = 1,
        isMultiFunction: Bool = false
    ) -> Device {
        let model = TaggedModel(tag: tag)
        let requester = PCIRequester()
        let (bus, tracker, made) = (bus, tracker, portsMade)
        let description = PCIFunctionDescription(
            identity: PCIIdentity(vendorID: 0x1AF4, deviceID: UInt16(0x1000 + tag), classCode: 0xFF0000),
            bars: bars,
            capabilities: capabilities,
            interruptPin: pin,
            isMultiFunction: isMultiFunction
        )
        let function = PCIFunction(name: name, description, model: model) {
            RequesterPort(requester) { requesterID in
                made.add(requesterID)
                return DirectPort(bus: bus, tracker: tracker)
            }
        }
        return Device(function: function, model: model, requester: requester)
    }

    func add(_ device: Device, _ place: PCIPlace) throws {
        try bridge.add(device.function, requester: device.requester, at: place)
    }

    static func port(_ name: String, isMultiFunction: Bool = false) -> PCIRootPort {
        PCIRootPort(
            name: name,
            identity: PCIIdentity(vendorID: 0x1B36, deviceID: 0x000C, classCode: 0),
            slotNumber: 1,
            isMultiFunction: isMultiFunction
        )
    }

    /// The address of a function's register in the ECAM window.
    func configuration(_ bus: UInt8, _ device: UInt8, _ function: UInt8, _ offset: UInt64 = 0) -> UInt64 {
        let index = UInt64(bus - bridge.buses.lowerBound) << 8 | UInt64(device) << 3 | UInt64(function)
        return Self.ecam + index << 12 + offset
    }

    /// The names of what is on the bus beside RAM and the ECAM window, with the ranges' first addresses.
    var barsOnBus: [String: UInt64] {
        let names = bus.entries.filter { $0.name.contains(" BAR ") }.map { ($0.name, $0.range.first) }
        return Dictionary(names) { first, _ in first }
    }
}

/// A board as the tests of enumeration want it.
///
/// - 00.1.0 `a`: BAR 0 of 4 KiB
/// - 00.2.0 root port `p`: below it `b` (BAR 0 of 64 bits, prefetchable, 16 KiB; BAR 2 of 64 KiB) and `c` (BAR 0 of
///   4 KiB) as functions 0 and 1
/// - 00.3.0 root port `q`, empty
/// - 00.3.1 root port `r`: below it `d` (BAR 0 of 64 bits, 1 MiB)
struct Tree {
    let board: Board
    let a: Device
    let b: Device
    let c: Device
    let d: Device
    let p = Board.port("p")
    let q = Board.port("q", isMultiFunction: true)
    let r = Board.port("r", isMultiFunction: true)

    init(buses: ClosedRange<UInt8> = 0...15) throws {
        board = try Board(buses: buses)
        let express: [PCICapability] = [.powerManagement, .msi(vectorCount: 2), .express(.endpoint)]
        a = board.device("a", tag: 1, bars: [PCIBAR(index: 0, byteCount: 0x1000)], express)
        b = board.device(
            "b",
            tag: 2,
            bars: [
                PCIBAR(index: 0, byteCount: 0x4000, space: .memory64, isPrefetchable: true),
                PCIBAR(index: 2, byteCount: 0x1_0000),
            ],
            express,
            isMultiFunction: true
        )
        c = board.device("c", tag: 3, bars: [PCIBAR(index: 0, byteCount: 0x1000)], express, pin: 2)
        d = board.device("d", tag: 4, bars: [PCIBAR(index: 0, byteCount: 1 << 20, space: .memory64)], express)
        try board.add(a, .rootBus(device: 1, function: 0))
        try board.bridge.add(p, device: 2)
        try board.bridge.add(q, device: 3)
        try board.bridge.add(r, device: 3, function: 1)
        try board.add(b, .below(p, function: 0))
        try board.add(c, .below(p, function: 1))
        try board.add(d, .below(r, function: 0))
    }
}

/// Waits until something is the case; gives up after a minute.
func eventually(_ condition: () -> Bool) -> Bool {
    for _ in 0..<600_000 {
        if condition() { return true }
        usleep(100)
    }
    return false
}
