// Resets that software asks for, and the end of things.

import AddressSpace
import DeviceModel
import OSThread
import PCIFunction
import PCIHost
import Synchronization
import SystemBus
import Testing

@Suite struct ResetTests {
    // PCI Express stands at 0x60: Device Control 0x68.
    private static let deviceControl: UInt64 = 0x68

    @Test func functionIsNotReadyWhileItIsBeingReset() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let (board, cpu) = (tree.board, tree.board.cpu)
        let a = board.configuration(0, 1, 0)
        let gate = Semaphore()
        tree.a.model.resetGate.withLock { $0 = { gate.wait() } }
        let port = tree.a.function.makePort()
        try port.store(1, .word, at: IOVirtualAddress(0x8000_0000))
        cpu.write(0x8000, .halfword, at: a + Self.deviceControl)
        // The write does not wait for the reset. Meanwhile nobody is there.
        #expect(cpu.read(.word, at: a) == 0xFFFF_FFFF)
        cpu.write(0x0006, .halfword, at: a + 4)
        #expect(board.barsOnBus["a BAR 0"] == nil)
        #expect(throws: DMAFault.self) { try port.store(2, .word, at: IOVirtualAddress(0x8000_0000)) }
        gate.signal()
        // As Linux's pci_dev_wait.
        #expect(eventually { cpu.read(.word, at: a + 4) != 0xFFFF_FFFF })
        #expect(tree.a.model.resets == 1)
        #expect(cpu.read(.word, at: a + 4) == 0x0010_0000)
        #expect(cpu.read(.word, at: a + 0x10) == 0)
        cpu.write(0x1000_0000, .word, at: a + 0x10)
        cpu.write(0x0006, .halfword, at: a + 4)
        #expect(cpu.read(.word, at: 0x5000_0004) == 0x0100_0004)
        try port.store(3, .word, at: IOVirtualAddress(0x8000_0000))
        #expect(cpu.read(.word, at: 0x8000_0000) == 3)
    }

    // A reset waits for the device's DMA, which here is what asks for the reset.
    @Test func deviceThatResetsItselfByDMADoesNotWaitForItself() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let a = tree.board.configuration(0, 1, 0)
        let hasEnded = Semaphore()
        tree.a.model.resetGate.withLock { $0 = { hasEnded.wait() } }
        let port = tree.a.function.makePort()
        let model = tree.a.model
        let thread = OSThread {
            let fresh = tree.a.function.makePort()
            try? fresh.store(0xA810, .halfword, at: IOVirtualAddress(a + Self.deviceControl))
            hasEnded.signal()
        }
        thread.join()
        #expect(eventually { model.resets == 1 })
        #expect(throws: DMAFault.self) { try port.store(1, .word, at: IOVirtualAddress(0x8000_0000)) }
    }

    @Test func secondaryBusResetResetsWhatIsBelow() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let (board, cpu) = (tree.board, tree.board.cpu)
        let p = board.configuration(0, 2, 0)
        let b = board.configuration(1, 0, 0)
        // Bridge Control.Secondary Bus Reset, as pci_reset_secondary_bus.
        cpu.write(0x0040, .halfword, at: p + 0x3E)
        #expect(cpu.read(.word, at: b) == 0xFFFF_FFFF)
        #expect(board.barsOnBus.keys.sorted() == ["a BAR 0", "d BAR 0"])
        cpu.write(0x0000, .halfword, at: p + 0x3E)
        let c = board.configuration(1, 0, 1)
        #expect(eventually { cpu.read(.word, at: b) != 0xFFFF_FFFF && cpu.read(.word, at: c) != 0xFFFF_FFFF })
        #expect([tree.a, tree.b, tree.c, tree.d].map(\.model.resets) == [0, 1, 1, 0])
        #expect(cpu.read(.word, at: b + 4) == 0x0010_0000)
        // The port keeps its numbers and windows.
        #expect(cpu.read(.word, at: p + 0x18) == 0x0001_0100)
        cpu.write(0x1010_0000, .word, at: b + 0x18)
        cpu.write(0x0002, .halfword, at: b + 4)
        #expect(cpu.read(.word, at: 0x5010_0000) == 0x0220_0000)
    }

    @Test func resetDuringAResetIsASecondOne() throws {
        let tree = try Tree()
        let cpu = tree.board.cpu
        let p = tree.board.configuration(0, 2, 0)
        let gate = Semaphore()
        tree.b.model.resetGate.withLock { $0 = { gate.wait() } }
        for _ in 0..<3 {
            cpu.write(0x0040, .halfword, at: p + 0x3E)
            cpu.write(0x0000, .halfword, at: p + 0x3E)
        }
        for _ in 0..<8 { gate.signal() }
        cpu.write(0x00_01_01_00, .word, at: p + 0x18)
        let b = tree.board.configuration(1, 0, 0)
        #expect(eventually { cpu.read(.word, at: b) != 0xFFFF_FFFF })
        #expect((2...3).contains(tree.b.model.resets))
    }

    @Test func machineResetPutsEverythingBack() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        tree.board.bridge.reset()
        #expect([tree.a, tree.b, tree.c, tree.d].map(\.model.resets) == [1, 1, 1, 1])
        #expect(tree.board.barsOnBus == [:])
        #expect(tree.board.cpu.read(.word, at: tree.board.configuration(0, 2, 0) + 0x18) == 0)
        scan = KernelScan(tree.board)
        scan.assign()
        #expect(tree.board.barsOnBus.count == 5)
    }
}

@Suite struct LifetimeTests {
    /// Keeps nothing alive.
    private struct Seen {
        weak var model: TaggedModel?
        weak var bridge: PCIHostBridge?
    }

    private func visible(_ board: Board, _ name: String, _ device: UInt8) throws -> (Seen, PCIFunction) {
        let it = board.device(name, tag: 1, bars: [PCIBAR(index: 0, byteCount: 0x1000)])
        try board.add(it, .rootBus(device: device, function: 0))
        let place = board.configuration(0, device, 0)
        board.cpu.write(0x1000_0000 + UInt64(device) << 12, .word, at: place + 0x10)
        board.cpu.write(0x0006, .halfword, at: place + 4)
        return (Seen(model: it.model, bridge: board.bridge), it.function)
    }

    @Test func removedFunctionIsFreedOnceDMAHasSettled() throws {
        let (asked, gate) = (Semaphore(), Semaphore())
        let board = try Board {
            asked.signal()
            gate.wait()
        }
        var seen: Seen
        do {
            let function: PCIFunction
            (seen, function) = try visible(board, "d", 4)
            asked.wait()
            board.bridge.remove(function)
        }
        #expect(board.cpu.read(.word, at: board.configuration(0, 4, 0)) == 0xFFFF_FFFF)
        #expect(board.cpu.read(.word, at: 0x5000_4000) == 0xFFFF_FFFF)
        #expect(seen.model != nil)
        // The round that was under way when it went, and the one after.
        for _ in 0..<16 { gate.signal() }
        #expect(eventually { seen.model == nil })
        board.bridge.shutDown()
    }

    @Test func removedFunctionCanComeBack() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let d = tree.board.configuration(3, 0, 0)
        let r = tree.board.configuration(0, 3, 1)
        // Slot Status.Presence Detect State; PCI Express stands at 0x48.
        #expect(tree.board.cpu.read(.halfword, at: r + 0x62) == 0x0040)
        tree.board.bridge.remove(tree.d.function)
        #expect(tree.board.cpu.read(.halfword, at: r + 0x62) == 0)
        #expect(tree.board.cpu.read(.word, at: d) == 0xFFFF_FFFF)
        tree.board.bridge.remove(tree.d.function)
        try tree.board.add(tree.d, .below(tree.r, function: 0))
        #expect(tree.board.cpu.read(.word, at: d) == 0x1004_1AF4)
        #expect(tree.board.barsOnBus["d BAR 0"] == 0x5020_0000)
    }

    @Test func shutDownLeavesNothingOnTheBus() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        tree.a.function.setINTx(true)
        tree.board.bridge.shutDown()
        #expect(tree.board.bus.entries.map(\.name) == ["ram"])
        #expect(!tree.board.lines[1].isAsserted)
        #expect(throws: PCIHostError.noSuchPlace) {
            try tree.board.add(tree.a, .rootBus(device: 1, function: 0))
        }
        // A second time does nothing, not even to one that stands where it stood.
        let range = try #require(AddressRange(start: Board.ecam, byteCount: 16 << 20))
        let second = try PCIHostBridge(
            bus: tree.board.bus,
            name: "/second",
            ecam: range,
            buses: 0...15,
            windows: [],
            interruptLine: { _, _ in nil },
            settle: {}
        )
        tree.board.bridge.shutDown()
        #expect(tree.board.bus.entries.map(\.name) == ["ram", "/second configuration"])
        second.shutDown()
    }

    @Test func bridgeThatGoesTakesItsWindowsAlong() throws {
        var board: Board? = try Board()
        let bus = try #require(board?.bus)
        let (seen, function) = try visible(try #require(board), "d", 1)
        #expect(bus.entries.count == 3)
        board = nil
        #expect(seen.bridge == nil)
        #expect(bus.entries.map(\.name) == ["ram"])
        // Its function lives on, and has nobody to tell.
        function.setINTx(true)
        function.writeConfiguration(0, at: 4, byteCount: 2)
    }
}
