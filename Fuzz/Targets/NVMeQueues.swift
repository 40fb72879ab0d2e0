// Fuzzes an NVMe controller: registers, doorbells, queues, commands and the lists that they point at.

import AddressSpace
import BareMachine
import BlockStorage
import DeviceModel
import Glibc
import NVMe
import PCIFunction
import Synchronization
import SystemBus

/// Where things are in the 128 KiB of RAM.
private enum Place {
    static let adminSubmission = BareMachine.Layout.ram + 0x1000
    static let adminCompletion = BareMachine.Layout.ram + 0x2000
    static let submission = BareMachine.Layout.ram + 0x3000
    static let completion = BareMachine.Layout.ram + 0x4000
    static let data = BareMachine.Layout.ram + 0x8000
    /// Entries of each queue.
    static let depth: UInt64 = 64
}

/// CAP, VS, INTMS, INTMC, CC, CSTS, NSSR, AQA, ASQ, ACQ; the doorbells of three pairs.
private let registers: [UInt64] = [
    0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x30, 0x1000, 0x1004, 0x1008, 0x100C, 0x1010,
    0x1014,
]
private let adminOpcodes: [UInt32] = [0, 1, 2, 4, 5, 6, 8, 9, 0x0A, 0x0C, 0x7C, 0x80, 0xC0]
private let blockOpcodes: [UInt32] = [0, 1, 2, 4, 5, 8, 9]

/// A disk of 64 KiB, all zeros at the start of each run, of which this process has one.
private struct Disk {
    static let byteCount = 64 << 10
    private static let shared = Mutex<(image: RawImage, descriptor: CInt)?>(nil)

    static func empty() -> RawImage? {
        shared.withLock { shared in
            if shared == nil {
                var template = Array("/tmp/smmud-fuzz-XXXXXX".utf8CString)
                let descriptor = mkstemp(&template)
                let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
                defer { unlink(path) }
                guard descriptor >= 0, ftruncate(descriptor, off_t(byteCount)) == 0 else { return nil }
                guard let image = try? RawImage(path: path) else { return nil }
                shared = (image, descriptor)
            }
            guard let (image, descriptor) = shared else { return nil }
            guard ftruncate(descriptor, 0) == 0, ftruncate(descriptor, off_t(byteCount)) == 0 else {
                return nil
            }
            return image
        }
    }
}

/// Checked: after a reset of the function the controller identifies itself, whatever was done to it before.
func fuzzNVMe(_ input: inout FuzzInput) {
    guard let fuzz = try? FuzzMachine(flags: 0), let image = Disk.empty() else {
        preconditionFailure("no memory for a machine, or no disk")
    }
    defer { fuzz.close() }
    let driver = NVMeFuzzDriver(fuzz.machine, image)
    let shape = input.next()
    if shape & 1 == 0 {
        driver.enable()
        if shape & 2 == 0 { driver.createQueues() }
    }
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0:
            let offset = input.pick(registers)
            driver.write(UInt64(input.next(UInt32.self)) >> (UInt64(input.next()) & 31), offset)
        case 1:
            let word = UInt64(input.next(UInt16.self)) * 8 % FuzzMachine.ramByteCount
            try? fuzz.machine.store(input.next(UInt64.self), at: BareMachine.Layout.ram + word)
        case 2, 3: driver.submit(command(&input, adminOpcodes), toAdmin: true)
        case 4, 5: driver.submit(command(&input, blockOpcodes), toAdmin: false)
        case 6:
            // A list of pages, its last entry another list's.
            let page = BareMachine.Layout.ram + UInt64(input.next() & 31) << 12
            for index in 0..<UInt64(input.next() & 15) {
                let target = BareMachine.Layout.ram + UInt64(input.next() & 63) << 12
                try? fuzz.machine.store(target | UInt64(input.next() & 1) << 3, at: page + index * 8)
            }
        default: driver.write(UInt64(input.next() & 63), input.next() & 1 == 0 ? 0x1004 : 0x100C)
        }
    }
    driver.checkRecovery()
}

private func command(_ input: inout FuzzInput, _ opcodes: [UInt32]) -> [UInt32] {
    var words = [UInt32](repeating: 0, count: 16)
    let shape = input.next()
    // FUSE and PSDT beside the opcode.
    words[0] = input.pick(opcodes) | (shape & 1 == 0 ? 0 : UInt32(input.next()) << 8)
    words[1] = shape & 2 == 0 ? 1 : input.next(UInt32.self)
    for (index, isSet) in [(6, true), (8, shape & 4 != 0)] where isSet {
        let address = BareMachine.Layout.ram + UInt64(input.next() & 63) << 12
        words[index] = UInt32(truncatingIfNeeded: address) | UInt32(input.next()) << 2
        words[index + 1] = UInt32(truncatingIfNeeded: address >> 32)
    }
    words[10] = shape & 8 == 0 ? UInt32(input.next() & 0x1F) : input.next(UInt32.self)
    words[11] = shape & 16 == 0 ? 0 : input.next(UInt32.self)
    words[12] = shape & 32 == 0 ? UInt32(input.next() & 0x1F) : input.next(UInt32.self)
    if shape & 64 != 0 { words[4] = input.next(UInt32.self) }
    return words
}

/// Drives the controller as far as the input lets it.
private final class NVMeFuzzDriver {
    private let machine: BareMachine
    private let controller: NVMeController
    private let function: PCIFunction
    private var tails: [UInt64] = [0, 0]
    private var submitted: UInt64 = 0

    init(_ machine: BareMachine, _ image: RawImage) {
        self.machine = machine
        var parameters = NVMeParameters(serialNumber: "fuzz")
        parameters.ioQueueCount = 2
        guard let controller = try? NVMeController(image: image, parameters) else {
            preconditionFailure("no threads for a controller")
        }
        self.controller = controller
        let tracker = TransactionTracker()
        let bus = machine.bus
        function = controller.makeFunction(name: "nvme") { DirectPort(bus: bus, tracker: tracker) }
        // Memory Space and Bus Master Enable.
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
    }

    // No thread of the controller uses memory that is about to go.
    deinit { function.reset() }

    func write(_ value: UInt64, _ offset: UInt64) {
        _ = try? function.writeBAR(0, value, at: offset, width: .word)
        settle()
    }

    private func status() -> UInt64 { (try? function.readBAR(0, at: 0x1C, width: .word)) ?? 0 }

    /// AQA, ASQ, ACQ, then CC: EN, IOSQES 6, IOCQES 4.
    func enable() {
        tails = [0, 0]
        write(63 << 16 | 63, 0x24)
        write(Place.adminSubmission, 0x28)
        write(0, 0x2C)
        write(Place.adminCompletion, 0x30)
        write(0, 0x34)
        write(0x0046_0001, 0x14)
        // CSTS.RDY or CFS.
        while status() & 3 == 0 { sched_yield() }
    }

    func createQueues() {
        var words = [UInt32](repeating: 0, count: 16)
        (words[0], words[6]) = (5, UInt32(truncatingIfNeeded: Place.completion))
        (words[10], words[11]) = (63 << 16 | 1, 1)
        submit(words, toAdmin: true)
        (words[0], words[6], words[11]) = (1, UInt32(truncatingIfNeeded: Place.submission), 1 << 16 | 1)
        submit(words, toAdmin: true)
    }

    func submit(_ words: [UInt32], toAdmin: Bool) {
        let queue = toAdmin ? 0 : 1
        let entry = (toAdmin ? Place.adminSubmission : Place.submission) + tails[queue] * 64
        var words = words
        words[0] |= UInt32(tails[queue]) << 16
        for index in 0..<8 {
            let word = UInt64(words[index * 2]) | UInt64(words[index * 2 + 1]) << 32
            try? machine.store(word, at: entry + UInt64(index) * 8)
        }
        tails[queue] = (tails[queue] + 1) % Place.depth
        submitted += 1
        write(tails[queue], toAdmin ? 0x1000 : 0x1008)
    }

    /// Gives the controller's threads time for what they were told, so that a run goes much the same each time.
    private func settle() {
        for _ in 0..<50 {
            let done = controller.queueStatistics.reduce(0) { $0 + $1.commands }
            if done >= submitted || controller.hasFailed { return }
            sched_yield()
        }
    }

    func checkRecovery() {
        function.reset()
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        for word in 0..<0x200 as Range<UInt64> { try? machine.store(0, at: Place.adminCompletion + word * 8) }
        enable()
        precondition(status() & 3 == 1, "a controller that was reset is not ready")
        var words = [UInt32](repeating: 0, count: 16)
        (words[0], words[6], words[10]) = (6, UInt32(truncatingIfNeeded: Place.data), 1)
        submit(words, toAdmin: true)
        func answer() -> UInt64 { (try? machine.load(Place.adminCompletion + 8)) ?? 0 }
        // The phase tag, bit 16 of the last word; the status above it.
        while answer() >> 48 & 1 == 0 { sched_yield() }
        precondition(answer() >> 49 == 0, "a controller that was reset does not identify itself")
    }
}
