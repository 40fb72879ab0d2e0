// A guest that writes whatever it likes: nothing traps, nothing hangs, and a reset brings the controller back.

import DeviceModel
import NVMe
import PCIFunction
import SeededRandomness
import Testing

@Suite struct HostileTests {
    /// The controller still works after a reset of the function.
    private func expectRecovery(_ machine: TestMachine, _ seed: UInt64) {
        machine.function.reset()
        machine.function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        let read = TestDriver.transfer(2, block: 0, count: 8, TestDriver.buffer)
        #expect(pair.execute(read).status == 0, "seed \(seed)")
    }

    @Test(arguments: [0x1, 0x2, 0x3, 0x4, 0x5, 0x6] as [UInt64])
    func anyRegisterTakesAnyWrite(seed: UInt64) throws {
        let machine = try TestMachine()
        try machine.enableMSIX()
        var numbers = SplitMix(seed: seed)
        _ = TestDriver(machine).createQueues(1)
        for _ in 0..<2000 {
            let offset: UInt64 =
                Bool.random(using: &numbers)
                ? UInt64.random(in: 0..<0x50, using: &numbers)
                : 0x1000 + UInt64.random(in: 0..<0x60, using: &numbers)
            let width = AccessWidth.allCases.randomElement(using: &numbers) ?? .word
            // Small values are queues' indices and CC's first bits; large ones are anything.
            let value = numbers.next() >> UInt64.random(in: 0..<64, using: &numbers)
            _ = try? machine.function.writeBAR(0, value, at: offset, width: width)
            _ = try? machine.function.readBAR(0, at: offset, width: width)
        }
        for offset: UInt64 in [0x3FF8, 0x4000, .max - 7, .max] {
            _ = try? machine.function.writeBAR(0, .max, at: offset, width: .doubleword)
            _ = try? machine.function.readBAR(0, at: offset, width: .byte)
        }
        expectRecovery(machine, seed)
    }

    @Test(arguments: [0x11, 0x12, 0x13, 0x14, 0x15, 0x16] as [UInt64])
    func anyCommandsGetAnAnswer(seed: UInt64) throws {
        let machine = try TestMachine()
        var numbers = SplitMix(seed: seed)
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        let opcodes: [UInt8] = [0, 1, 2, 4, 5, 8, 9, 0x0C, 0x7C]
        // Memory that lists are taken from: addresses that are and are not there.
        for index in 0..<4096 {
            let inside = TestMachine.ramBase + 0x100_0000 + numbers.next() % 0x80_0000
            let words: [UInt64] = [inside & ~0xFFF, inside, numbers.next()]
            let word = words.randomElement(using: &numbers) ?? 0
            machine.store64(word, TestDriver.buffer + UInt64(index) * 8)
        }
        for _ in 0..<400 {
            var command = TestCommand(opcodes.randomElement(using: &numbers) ?? 0, namespace: 1)
            for word in 2..<16 { command.words[word] = UInt32(truncatingIfNeeded: numbers.next()) }
            if Bool.random(using: &numbers) {
                command = command.prp1(TestDriver.buffer + numbers.next() % 0x8000)
                    .prp2(TestDriver.buffer + numbers.next() % 0x8000 & ~7)
            }
            if Bool.random(using: &numbers) {
                command = command.with(10, UInt32.random(in: 0..<16384, using: &numbers)).with(11, 0)
                    .with(12, UInt32.random(in: 0..<2100, using: &numbers))
            }
            if Bool.random(using: &numbers) {
                command.words[0] |= UInt32.random(in: 0...3, using: &numbers) << 14
            }
            if Int.random(in: 0..<10, using: &numbers) == 0 {
                command.words[1] = UInt32(truncatingIfNeeded: numbers.next())
            }
            let identifier = pair.submit(command)
            #expect(pair.takeCompletion().identifier == identifier, "seed \(seed)")
        }
        #expect(machine.read32(0x1C) == 1, "seed \(seed)")
        expectRecovery(machine, seed)
    }

    @Test(arguments: [0x21, 0x22, 0x23, 0x24] as [UInt64])
    func anyAdminCommandsGetAnAnswerOrStayOutstanding(seed: UInt64) throws {
        let machine = try TestMachine()
        var numbers = SplitMix(seed: seed)
        let driver = TestDriver(machine)
        let opcodes: [UInt8] = [0, 1, 2, 4, 5, 6, 8, 9, 0x0A, 0x7C, 0x7F]
        for _ in 0..<400 {
            var command = TestCommand(opcodes.randomElement(using: &numbers) ?? 0)
            command.words[1] = [0, 1, 2, .max].randomElement(using: &numbers) ?? 0
            command = command.prp1(TestDriver.buffer + numbers.next() % 0x10 << 12)
                .prp2(TestDriver.buffer + numbers.next() % 0x10 << 12)
            command.words[10] = UInt32(
                truncatingIfNeeded: numbers.next() >> UInt64.random(in: 32..<64, using: &numbers)
            )
            command.words[11] =
                UInt32(truncatingIfNeeded: numbers.next() >> UInt64.random(in: 32..<64, using: &numbers)) | 1
            let identifier = driver.admin.submit(command)
            #expect(driver.admin.takeCompletion().identifier == identifier, "seed \(seed)")
        }
        expectRecovery(machine, seed)
    }

    @Test func queuesOnTheControllersOwnRegistersDoNotHoldItUp() throws {
        let machine = try TestMachine()
        // The function's BAR as the machine has it: its own DMA reaches it.
        let window = OwnRegisters(machine.function)
        let base: UInt64 = 0x1000_0000
        try machine.addWindow(window, at: base, byteCount: 0x4000)
        machine.write32(31 | 31 << 16, 0x24)
        machine.write64(base + 0x1000, 0x28)
        machine.write64(base + 0x1000, 0x30)
        machine.write32(6 << 16 | 4 << 20 | 1, 0x14)
        waitUntil("CSTS.RDY or CFS") { machine.read32(0x1C) & 3 != 0 }
        for tail: UInt32 in 1..<20 { machine.write32(tail, 0x1000) }
        // Data that goes to CC: the controller disables and enables itself.
        let driver = TestDriver(machine)
        let pair = driver.createQueues(1)
        pair.submit(TestDriver.transfer(2, block: 0, count: 1, base))
        waitUntil("the controller disabled itself") { machine.read32(0x14) == 0 }
        expectRecovery(machine, 0)
    }

    @Test func aResetByItsOwnDMADoesNotWaitForItself() throws {
        let machine = try TestMachine()
        let window = ResetRegister(machine.function)
        let base: UInt64 = 0x1000_0000
        try machine.addWindow(window, at: base, byteCount: 0x1000)
        let pair = TestDriver(machine).createQueues(1)
        pair.submit(TestDriver.transfer(2, block: 0, count: 1, base))
        waitUntil("the reset") { machine.read32(0x1C) == 0 }
        expectRecovery(machine, 0)
    }

    @Test func disablingAtAnyMomentOfABusyQueueIsClean() throws {
        let machine = try TestMachine()
        var numbers = SplitMix(seed: 0x31)
        for _ in 0..<30 {
            let driver = TestDriver(machine)
            let pairs = (1...3).map { driver.createQueues(UInt16($0)) }
            for pair in pairs {
                for index in 0..<40 {
                    let place = TestDriver.buffer + UInt64(index) * 8192
                    pair.enqueue(TestDriver.transfer(2, block: UInt64(index), count: 16, place, place + 4096))
                }
                pair.ring(pair.tail, place: UInt64(pair.id) * 2)
            }
            for _ in 0..<Int.random(in: 0..<2000, using: &numbers) { _ = machine.read32(0x1C) }
            machine.write32(machine.read32(0x14) & ~1, 0x14)
            waitUntil("CSTS.RDY is 0") { machine.read32(0x1C) == 0 }
            // From here on memory is the driver's.
            machine.write([UInt8](repeating: 0x5A, count: 64 * 16), at: pairs[0].completionBase)
            #expect(machine.read(64 * 16, at: pairs[0].completionBase).allSatisfy { $0 == 0x5A })
        }
        expectRecovery(machine, 0x31)
    }
}

/// A BAR as a window on the bus.
private final class OwnRegisters: RegisterTarget {
    private weak let function: PCIFunction?

    init(_ function: PCIFunction) { self.function = function }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard let function else { throw .noSuchRegister }
        return try function.readBAR(0, at: offset, width: width)
    }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard let function else { throw .noSuchRegister }
        try function.writeBAR(0, value, at: offset, width: width)
    }
}

/// Configuration space as a window on the bus: any write resets the function.
private final class ResetRegister: RegisterTarget {
    private weak let function: PCIFunction?

    init(_ function: PCIFunction) { self.function = function }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        function?.reset()
    }
}
