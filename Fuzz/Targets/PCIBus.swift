// Fuzzes what stands below a PCIe host bridge: configuration space, BARs, DMA to them, messages.

import AddressSpace
import DeviceModel
import Glibc
import PCIFunction
import PCIHost
import Synchronization
import SystemBus

private let ecam: UInt64 = 0x4000_0000
private let window: UInt64 = 0x5000_0000

/// Where somebody stands once the ports have their bus numbers, as bus, device and function.
private let places: [UInt64] = [0x000, 0x00F, 0x010, 0x018, 0x100, 0x105, 0x200, 0x201, 0x300]

/// Registers that do something; the others are tried too.
///
/// MSI stands at 0x48, MSI-X at 0x60, PCI Express at 0x6C, in a root port at 0x48.
private let registers: [UInt64] = [
    0x04, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x3C, 0x3E, 0x44, 0x48, 0x4A, 0x4C, 0x50,
    0x54, 0x58,
    0x60, 0x62, 0x74, 0x106,
]

private let values: [UInt64] = [
    0x0006, 0x0002, 0x0000, 0xFFFF_FFFF, 0x1000_0000, 0x1000_1000, 0x1010_0000, 0x0001_0100, 0x0002_0200,
    0x0003_0100,
    0x1010_1000, 0x0000_FFF0, 0x8000, 0xC000, 0x0040, 0x0003, ecam, ecam + 0x10_0004, window, window + 0x100C,
]

/// Registers that keep what is written.
private final class Registers: PCIFunctionModel {
    private let words = Mutex([UInt64](repeating: 0, count: 64))

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard width != .byte else { throw .unsupportedWidth }
        return words.withLock { $0[Int(offset % 64)] }
    }

    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard width != .byte else { throw .unsupportedWidth }
        words.withLock { $0[Int(offset % 64)] = value }
    }

    func reset() { words.withLock { words in for index in words.indices { words[index] = 0 } } }
}

/// Two functions on the bridge's bus, three below two root ports.
private struct FuzzBus {
    let bus = SystemBus()
    let bridge: PCIHostBridge
    let functions: [PCIFunction]
    let ports: [any DMAPort]
    let line = InterruptLine(identity: InterruptIdentity(controller: "/gic", specifier: []), label: "pins")

    init() throws {
        let (bus, line) = (bus, line)
        let tracker = TransactionTracker()
        guard let range = AddressRange(start: ecam, byteCount: 4 << 20),
            let low = AddressRange(start: window, byteCount: 0x1000_0000)
        else { preconditionFailure("these are ranges") }
        let windows = [PCIHostWindow(pciAddress: 0x1000_0000, cpuRange: low)]
        bridge = try PCIHostBridge(
            bus: bus,
            name: "/pcie",
            ecam: range,
            buses: 0...3,
            windows: windows,
            interruptLine: { _, _ in line },
            settle: { tracker.waitForTransactionsInFlight() }
        )
        let rootPorts = ["p", "q"].map { name in
            let identity = PCIIdentity(vendorID: 0x1B36, deviceID: 0x000C, classCode: 0)
            return PCIRootPort(name: name, identity: identity, slotNumber: 1)
        }
        for (device, port) in zip([2, 3] as [UInt8], rootPorts) { try bridge.add(port, device: device) }
        let spots: [PCIPlace] = [
            .rootBus(device: 0, function: 0), .rootBus(device: 1, function: 7),
            .below(rootPorts[0], function: 0),
            .below(rootPorts[0], function: 5), .below(rootPorts[1], function: 0),
        ]
        functions = try spots.enumerated().map { [bridge] index, place in
            let requester = PCIRequester()
            let function = PCIFunction(name: "d\(index)", Self.description, model: Registers()) {
                RequesterPort(requester) { _ in DirectPort(bus: bus, tracker: tracker) }
            }
            try bridge.add(function, requester: requester, at: place)
            return function
        }
        ports = functions.map { $0.makePort() }
    }

    private static let description = PCIFunctionDescription(
        identity: PCIIdentity(vendorID: 0x1AF4, deviceID: 0x1042, classCode: 0xFF0000),
        bars: [
            PCIBAR(index: 0, byteCount: 0x1000), PCIBAR(index: 1, byteCount: 0x4000),
            PCIBAR(index: 2, byteCount: 1 << 33, space: .memory64, isPrefetchable: true),
        ],
        capabilities: [
            .powerManagement, .msi(vectorCount: 4),
            .msix(
                PCIMSIXLayout(
                    vectorCount: 4,
                    tableBAR: 1,
                    tableOffset: 0x1000,
                    pendingBAR: 1,
                    pendingOffset: 0x2000
                )
            ),
            .express(.endpoint), .ats(invalidateQueueDepth: 0),
        ],
        isMultiFunction: true
    )

    func store(_ value: UInt64, _ width: AccessWidth, at address: UInt64) {
        try? bus.store(value, width, at: PhysicalAddress(address))
        settle()
    }

    /// Waits for resets, which run on threads: a run depends on its input alone.
    func settle() { while bridge.isResetting { sched_yield() } }

    /// What firmware leaves behind: buses 1 and 2, windows, everything enabled.
    func setUp() {
        for (index, port) in [0x010, 0x018].enumerated() {
            let base = ecam + UInt64(port) << 12
            let number = UInt64(index + 1)
            store(number << 16 | number << 8, .word, at: base + 0x18)
            store(0x1000_1000 + number * 0x0010_0010, .word, at: base + 0x20)
            store(0x0006, .halfword, at: base + 0x04)
        }
        for (index, place) in [0x000, 0x00F, 0x100, 0x105, 0x200].enumerated() {
            let base = ecam + UInt64(place) << 12
            let first = 0x1000_0000 + UInt64(place >> 8) << 20 + UInt64(index) << 16
            store(first, .word, at: base + 0x10)
            store(first + 0x8000, .word, at: base + 0x14)
            store(0x0006, .halfword, at: base + 0x04)
        }
    }
}

func fuzzPCI(_ input: inout FuzzInput) {
    guard let fuzz = try? FuzzBus() else { preconditionFailure("no threads, or the board does not fit") }
    let flags = input.next()
    if flags & 0x80 == 0 { fuzz.setUp() }
    while !input.isEmpty {
        let operation = input.next()
        let width = input.pick([AccessWidth.word, .halfword, .byte, .doubleword])
        switch operation % 8 {
        case 0, 1:
            let address = ecam + input.pick(places) << 12 + input.pick(registers)
            fuzz.store(operation & 8 == 0 ? input.pick(values) : input.next(UInt64.self), width, at: address)
        case 2:
            let address = ecam + UInt64(input.next(UInt32.self) & 0x3F_FFFF)
            if operation & 8 == 0 {
                fuzz.store(input.next(UInt64.self), width, at: address)
            } else {
                _ = try? fuzz.bus.load(width, at: PhysicalAddress(address))
            }
        case 3:
            fuzz.store(
                input.next(UInt64.self),
                width,
                at: window + UInt64(input.next(UInt32.self) & 0x3F_FFFF)
            )
        case 4: _ = try? fuzz.bus.load(width, at: PhysicalAddress(window + UInt64(input.next(UInt32.self))))
        case 5:
            let port = input.pick(fuzz.ports)
            let address = operation & 8 == 0 ? input.pick(values) : UInt64(input.next(UInt32.self))
            try? port.store(input.pick(values), width, at: IOVirtualAddress(address))
            fuzz.settle()
        case 6: input.pick(fuzz.functions).signal(vector: Int(input.next()))
        default: input.pick(fuzz.functions).setINTx(input.next() & 1 != 0)
        }
    }
    check(fuzz)
}

/// What holds whatever was written.
private func check(_ fuzz: FuzzBus) {
    fuzz.settle()
    for entry in fuzz.bus.entries where entry.name.contains(" BAR ") {
        precondition(
            entry.range.first >= window && entry.range.last < window + 0x1000_0000,
            "a BAR is outside of the bridge's window"
        )
    }
    for function in fuzz.functions { function.setINTx(false) }
    precondition(!fuzz.line.isAsserted, "somebody holds the line who does not want it")
    fuzz.bridge.reset()
    precondition(fuzz.bus.entries.count == 1, "a BAR survived the machine's reset")
    for place in [0x000, 0x00F] as [UInt64] {
        let id = try? fuzz.bus.load(.word, at: PhysicalAddress(ecam + place << 12))
        precondition(id == 0x1042_1AF4, "an identification register has changed")
    }
    fuzz.bridge.shutDown()
    precondition(fuzz.bus.entries.isEmpty, "the bridge left something behind")
}
