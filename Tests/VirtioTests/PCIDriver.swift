// A driver of virtio over PCI that finds its way as Linux's virtio_pci_modern does.

import DeviceModel
import PCIFunction
import Synchronization
import Testing
import Virtio

/// Records the pin's level.
final class PinHost: PCIFunctionHost {
    let isAsserted = Atomic(false)
    let assertions = Atomic<Int>(0)

    func setINTx(_ isAsserted: Bool, of function: PCIFunction) {
        self.isAsserted.store(isAsserted, ordering: .sequentiallyConsistent)
        if isAsserted { assertions.add(1, ordering: .sequentiallyConsistent) }
    }
    func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {}
    func configurationChanged(of function: PCIFunction) {}

    var level: Bool { isAsserted.load(ordering: .sequentiallyConsistent) }
}

/// A place in a BAR.
struct Structure: Equatable {
    var bar: Int
    var offset: UInt64
    var byteCount: UInt64
}

/// What both transports' drivers can do.
protocol TestDriver: AnyObject {
    var machine: TestMachine { get }
    var status: UInt8 { get }
    func setStatus(_ value: UInt8)
    func offeredFeatures() -> UInt64
    func setFeatures(_ features: UInt64)
    func setQueue(_ index: Int, _ queue: DriverQueue)
    func notify(_ index: Int)
    /// Reads the interrupt status and acknowledges it.
    func takeInterrupts() -> UInt8
    func configuration(_ offset: UInt64, _ width: AccessWidth) -> UInt64
    func setConfiguration(_ value: UInt64, _ offset: UInt64, _ width: AccessWidth)
}

extension TestDriver {
    /// Resets, and waits for it as the specification wants.
    func reset() {
        setStatus(0)
        #expect(eventually { status == 0 })
    }

    /// From reset to DRIVER_OK.
    ///
    /// Status bits: ACKNOWLEDGE 1, DRIVER 2, DRIVER_OK 4, FEATURES_OK 8.
    @discardableResult
    func start(
        features wanted: UInt64,
        queues count: Int,
        size: Int = 16,
        isPacked: Bool = false
    ) throws -> [DriverQueue] {
        reset()
        setStatus(1)
        setStatus(3)
        let features = offeredFeatures() & (wanted | 3 << 32) & ~(isPacked ? 0 : 1 << 34)
        setFeatures(features)
        setStatus(3 | 8)
        try #require(status == 11, "FEATURES_OK stays set")
        let queues = (0..<count).map { index in
            let hasEventIndex = features >> 29 & 1 != 0
            let queue =
                isPacked
                ? PackedDriverQueue(machine, size: size, hasEventIndex: hasEventIndex)
                : DriverQueue(machine, size: size, hasEventIndex: hasEventIndex)
            setQueue(index, queue)
            return queue
        }
        setStatus(15)
        return queues
    }
}

final class PCIDriver: TestDriver {
    let machine: TestMachine
    let function: PCIFunction
    let pin = PinHost()
    private(set) var common = Structure(bar: 0, offset: 0, byteCount: 0)
    private(set) var notifications = Structure(bar: 0, offset: 0, byteCount: 0)
    private(set) var notifyMultiplier: UInt64 = 0
    private(set) var interruptStatus = Structure(bar: 0, offset: 0, byteCount: 0)
    private(set) var device = Structure(bar: 0, offset: 0, byteCount: 0)
    private(set) var accessCapability = 0

    init(
        _ machine: TestMachine,
        _ device: any VirtioDevice,
        offersMSIX: Bool = false,
        makePort: (@Sendable () -> any DMAPort)? = nil
    ) throws {
        self.machine = machine
        function = try VirtioPCIFunction.make(
            name: "virtio",
            device: device,
            offersMSIX: offersMSIX,
            makePort: makePort ?? machine.makePort
        )
        function.connect(pin)
        // Memory Space Enable, Bus Master Enable.
        function.writeConfiguration(0x0006, at: 4, byteCount: 2)
        findStructures()
    }

    deinit { (function.model as? any VirtioTransport)?.shutdown() }

    var transport: VirtioPCIFunction? { function.model as? VirtioPCIFunction }

    private func byte(_ offset: Int) -> Int { Int(function.readConfiguration(at: offset, byteCount: 1)) }
    private func word(_ offset: Int) -> UInt64 {
        UInt64(function.readConfiguration(at: offset, byteCount: 4))
    }

    private func findStructures() {
        var place = byte(0x34)
        while place != 0 {
            if byte(place) == 0x09 {
                let found = Structure(
                    bar: byte(place + 4),
                    offset: word(place + 8),
                    byteCount: word(place + 12)
                )
                switch byte(place + 3) {
                case 1: common = found
                case 2:
                    notifications = found
                    notifyMultiplier = word(place + 16)
                case 3: interruptStatus = found
                case 4: device = found
                case 5: accessCapability = place
                default: Issue.record("a capability of type \(byte(place + 3))")
                }
            }
            place = byte(place + 1)
        }
    }

    func read(_ structure: Structure, _ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        (try? function.readBAR(structure.bar, at: structure.offset + offset, width: width)) ?? .max
    }

    func write(_ structure: Structure, _ value: UInt64, _ offset: UInt64, _ width: AccessWidth) {
        do { try function.writeBAR(structure.bar, value, at: structure.offset + offset, width: width) } catch
        {
            Issue.record("write at \(offset): \(error)")
        }
    }

    var status: UInt8 { UInt8(read(common, 20, .byte)) }
    func setStatus(_ value: UInt8) { write(common, UInt64(value), 20, .byte) }

    func offeredFeatures() -> UInt64 {
        write(common, 0, 0, .word)
        let low = read(common, 4, .word)
        write(common, 1, 0, .word)
        return low | read(common, 4, .word) << 32
    }

    func setFeatures(_ features: UInt64) {
        write(common, 0, 8, .word)
        write(common, features & 0xFFFF_FFFF, 12, .word)
        write(common, 1, 8, .word)
        write(common, features >> 32, 12, .word)
    }

    func setQueue(_ index: Int, _ queue: DriverQueue) {
        write(common, UInt64(index), 22, .halfword)
        write(common, UInt64(queue.size), 24, .halfword)
        // Addresses go in halves, low first, as vp_iowrite64_twopart writes them.
        for (offset, address) in [(32, queue.descriptors), (40, queue.available), (48, queue.used)] {
            write(common, address & 0xFFFF_FFFF, UInt64(offset), .word)
            write(common, address >> 32, UInt64(offset) + 4, .word)
        }
        write(common, 1, 28, .halfword)
    }

    func notify(_ index: Int) {
        write(common, UInt64(index), 22, .halfword)
        let offset = read(common, 30, .halfword) * notifyMultiplier
        write(notifications, UInt64(index), offset, .halfword)
    }

    func takeInterrupts() -> UInt8 { UInt8(read(interruptStatus, 0, .byte)) }
    func configuration(_ offset: UInt64, _ width: AccessWidth) -> UInt64 { read(device, offset, width) }
    func setConfiguration(_ value: UInt64, _ offset: UInt64, _ width: AccessWidth) {
        write(device, value, offset, width)
    }
}
