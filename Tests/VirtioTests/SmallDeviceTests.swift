// Entropy and console.

import DeviceModel
import Glibc
import PCIFunction
import Testing
import Virtio

@Suite struct EntropyTests {
    @Test func buffersAreFilledWithBytesThatDiffer() throws {
        let machine = try TestMachine()
        let entropy = VirtioEntropy()
        let driver = try PCIDriver(machine, entropy)
        #expect(driver.function.readConfiguration(at: 0, byteCount: 4) == 0x1044_1AF4)
        let queue = try driver.start(features: .max, queues: 1)[0]
        var seen: Set<[UInt8]> = []
        for _ in 0..<4 {
            let buffer = machine.allocate(600)
            queue.add([.into(buffer, 100), .into(buffer + 100, 500)])
            driver.notify(0)
            #expect(try queue.await().length == 600)
            let bytes = machine.bytes(600, buffer)
            // A byte value that is missing among 600 is common; 100 of one kind are not.
            #expect(Set(bytes).count > 100)
            seen.insert(bytes)
        }
        #expect(seen.count == 4)
        #expect(entropy.statistics["bytes-to-driver"] == 2400)
    }

    @Test func aBufferOfFourGibibytes_getsAPart() throws {
        let machine = try TestMachine()
        let driver = try PCIDriver(machine, VirtioEntropy())
        let queue = try driver.start(features: .max, queues: 1)[0]
        let buffer = machine.allocate(1 << 16)
        queue.add([.into(buffer, Int(UInt32.max))])
        driver.notify(0)
        #expect(try queue.await().length == 1 << 16)
        // What cannot be reached, and what cannot be written, needs a reset.
        queue.add([.out(buffer, 16)])
        driver.notify(0)
        #expect(eventually { driver.status & 64 != 0 })
    }
}

@Suite struct ConsoleTests {
    let machine: TestMachine
    let directory: TestDirectory

    init() throws {
        machine = try TestMachine()
        directory = try TestDirectory()
    }

    private func print(_ text: String, _ driver: any TestDriver, _ queue: DriverQueue) throws {
        let buffer = machine.allocate(text.utf8.count)
        machine.put(Array(text.utf8), buffer)
        queue.add([.out(buffer, text.utf8.count)])
        driver.notify(1)
        #expect(try queue.await().length == 0)
    }

    @Test func whatAClientSendsAndWhatTheGuestPrints_goBothWays() throws {
        let path = directory.path + "/console"
        let console = VirtioConsole(backend: try ConsoleSocket(path: path))
        let driver = try PCIDriver(machine, console)
        #expect(driver.function.readConfiguration(at: 0, byteCount: 4) == 0x1043_1AF4)
        let queues = try driver.start(features: .max, queues: 2)
        // Without a client what is printed is gone.
        try print("lost", driver, queues[1])
        let client = try TestSocket(connectingTo: path)
        client.send(Array("ls\n".utf8))
        let buffer = machine.allocate(4096)
        queues[0].add([.into(buffer, 2)])
        queues[0].add([.into(buffer + 16, 4096 - 16)])
        driver.notify(0)
        #expect(try queues[0].await().length == 2)
        #expect(try queues[0].await().length == 1)
        #expect(machine.bytes(2, buffer) + machine.bytes(1, buffer + 16) == Array("ls\n".utf8))
        try print("hello\n", driver, queues[1])
        #expect(client.receive(6) == Array("hello\n".utf8))
    }

    @Test func aClientThatDoesNotRead_holdsThePrintingUpAndLosesNothing() throws {
        let path = directory.path + "/console"
        let driver = try PCIDriver(machine, VirtioConsole(backend: try ConsoleSocket(path: path)))
        let queues = try driver.start(features: .max, queues: 2)
        let client = try TestSocket(connectingTo: path)
        client.send([0x21])
        let input = machine.allocate(16)
        queues[0].add([.into(input, 16)])
        driver.notify(0)
        _ = try queues[0].await()
        let count = 2 << 20
        let buffer = machine.allocate(count)
        let pattern = (0..<count).map { UInt8(truncatingIfNeeded: $0 / 7) }
        machine.put(pattern, buffer)
        queues[1].add([.out(buffer, count)])
        driver.notify(1)
        #expect(client.receive(count) == pattern)
        #expect(try queues[1].await().length == 0)
    }

    @Test func clientsComeOneAfterTheOther() throws {
        let path = directory.path + "/console"
        let driver = try PCIDriver(machine, VirtioConsole(backend: try ConsoleSocket(path: path)))
        let queues = try driver.start(features: .max, queues: 2)
        let buffer = machine.allocate(256)
        for round in 0..<3 as Range<UInt64> {
            let client = try TestSocket(connectingTo: path)
            client.send([UInt8(round)])
            queues[0].add([.into(buffer + 16 * round, 16)])
            driver.notify(0)
            #expect(try queues[0].await().length == 1)
            #expect(machine.load(.byte, buffer + 16 * round) == round)
        }
    }

    @Test func sizeAndEmergencyWrites_areInTheConfiguration() throws {
        let path = directory.path + "/log"
        let console = VirtioConsole(backend: try ConsoleDescriptors.file(path), columns: 132, rows: 43)
        let driver = try MMIODriver(machine, console)
        // Before any negotiation: an early console.
        driver.setConfiguration(0x41, 8, .word)
        driver.setConfiguration(0x42, 8, .word)
        // SIZE 0, EMERG_WRITE 2.
        #expect(driver.offeredFeatures() & 0xFF == 5)
        let queues = try driver.start(features: .max, queues: 2)
        try print("CD", driver, queues[1])
        let descriptor = open(path, O_RDONLY)
        var bytes = [UInt8](repeating: 0, count: 16)
        #expect(read(descriptor, &bytes, 16) == 4)
        close(descriptor)
        #expect(bytes[..<4] == Array("ABCD".utf8)[...])
        #expect(driver.configuration(0, .word) == 43 << 16 | 132)
        console.resize(columns: 80, rows: 25)
        #expect(driver.configuration(0, .word) == 25 << 16 | 80)
        #expect(driver.takeInterrupts() & 2 == 2)
    }

    @Test func pseudoterminals_areRaw() throws {
        let (backend, path) = try ConsoleDescriptors.pseudoterminal()
        let driver = try PCIDriver(machine, VirtioConsole(backend: backend))
        let queues = try driver.start(features: .max, queues: 2)
        let terminal = open(path, O_RDWR | O_NOCTTY)
        try #require(terminal >= 0)
        defer { close(terminal) }
        try print("a\nb", driver, queues[1])
        var bytes = [UInt8](repeating: 0, count: 3)
        #expect(read(terminal, &bytes, 3) == 3)
        #expect(bytes == Array("a\nb".utf8))
        #expect(write(terminal, [3, 13] as [UInt8], 2) == 2)
        let buffer = machine.allocate(16)
        queues[0].add([.into(buffer, 16)])
        driver.notify(0)
        #expect(try queues[0].await().length == 2)
        #expect(machine.bytes(2, buffer) == [3, 13])
    }
}
