// Pins through root ports to lines, messages to memory.

import AddressSpace
import DeviceModel
import PCIFunction
import PCIHost
import SystemBus
import Testing

@Suite struct InterruptTests {
    @Test func pinsAreRoutedByTheDeviceOnTheBridgesBus() throws {
        let tree = try Tree(buses: 0x40...0x4F)
        // a: 00.1.0 INTA; b and c: functions 0 and 1 below 00.2.0, INTA and INTB, which device 0 does not turn; d:
        // below 00.3.1.
        #expect(tree.board.routesAsked.all == [[0x4008, 1], [0x4010, 1], [0x4010, 2], [0x4019, 1]])
    }

    @Test func severalFunctionsShareALine() throws {
        let tree = try Tree()
        let lines = tree.board.lines
        // a: 1 + 0; b: 2 + 0; c: 2 + 1; d: 3 + 0.
        func asserted() -> [Bool] { lines.map(\.isAsserted) }
        tree.a.function.setINTx(true)
        #expect(asserted() == [false, true, false, false])
        tree.b.function.setINTx(true)
        #expect(asserted() == [false, true, true, false])
        tree.c.function.setINTx(true)
        tree.d.function.setINTx(true)
        #expect(asserted() == [false, true, true, true])
        tree.c.function.setINTx(false)
        #expect(asserted() == [false, true, true, true])
        tree.d.function.setINTx(false)
        #expect(asserted() == [false, true, true, false])
        #expect(lines[3].counts.assertions == 1)
    }

    @Test func interruptDisableReleasesTheLine() throws {
        let tree = try Tree()
        let a = tree.board.configuration(0, 1, 0)
        tree.a.function.setINTx(true)
        tree.board.cpu.write(0x0400, .halfword, at: a + 4)
        #expect(!tree.board.lines[1].isAsserted)
        #expect(tree.board.cpu.read(.halfword, at: a + 6) == 0x0018)
        tree.board.cpu.write(0, .halfword, at: a + 4)
        #expect(tree.board.lines[1].isAsserted)
    }

    @Test func levelThatIsThereWhenAFunctionComesIsSeen() throws {
        let board = try Board()
        let device = board.device("d", tag: 1)
        device.function.setINTx(true)
        try board.add(device, .rootBus(device: 0, function: 0))
        #expect(board.lines[0].isAsserted)
        board.bridge.remove(device.function)
        #expect(!board.lines[0].isAsserted)
        // What it does afterwards reaches nobody.
        device.function.setINTx(false)
        device.function.setINTx(true)
        #expect(!board.lines[0].isAsserted)
    }

    @Test func functionWithoutAPinHasNoLine() throws {
        let board = try Board()
        let device = board.device("d", tag: 1, pin: 0)
        try board.add(device, .rootBus(device: 0, function: 0))
        device.function.setINTx(true)
        #expect(board.routesAsked.all == [])
        #expect(board.lines.allSatisfy { !$0.isAsserted })
    }

    // MSI stands at 0x48: control 0x4A, address 0x4C, data 0x54.
    @Test func messagesAreWrittenToMemory() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let board = tree.board
        let c = board.configuration(1, 0, 1)
        board.cpu.write(0x8000_0100, .word, at: c + 0x4C)
        board.cpu.write(0x8887, .halfword, at: c + 0x54)
        board.cpu.write(0x0011, .halfword, at: c + 0x4A)
        tree.c.function.signal(vector: 0)
        #expect(board.cpu.read(.word, at: 0x8000_0100) == 0x8886)
        // The port lets nothing up: the message is lost.
        let p = board.configuration(0, 2, 0)
        board.cpu.write(0x0002, .halfword, at: p + 4)
        tree.c.function.signal(vector: 1)
        #expect(board.cpu.read(.word, at: 0x8000_0100) == 0x8886)
        board.cpu.write(0x0006, .halfword, at: p + 4)
        tree.c.function.signal(vector: 1)
        #expect(board.cpu.read(.word, at: 0x8000_0100) == 0x8887)
        #expect(board.portsMade.all == [0x0101])
    }

    // Software chooses the address: here a function's own Command register, by way of the ECAM window.
    @Test func messageToItsOwnConfigurationSpaceEnds() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let board = tree.board
        let a = board.configuration(0, 1, 0)
        board.cpu.write(UInt64(truncatingIfNeeded: a & 0xFFFF_FFFF) + 4, .word, at: a + 0x4C)
        board.cpu.write(a >> 32, .word, at: a + 0x50)
        board.cpu.write(0x0402, .halfword, at: a + 0x54)
        board.cpu.write(0x0001, .halfword, at: a + 0x4A)
        tree.a.function.signal(vector: 0)
        #expect(board.cpu.read(.halfword, at: a + 4) == 0x0402)
        #expect(!tree.a.function.isBusMaster)
    }
}

@Suite struct RequesterTests {
    @Test func requesterIDsFollowTheBusNumbers() throws {
        let tree = try Tree(buses: 0x40...0x4F)
        let bridge = tree.board.bridge
        #expect(bridge.requesterID(of: tree.a.function) == 0x4008)
        // b and d are 0 until the buses have numbers.
        #expect(tree.board.renumbered.all == ["a", "c"])
        _ = KernelScan(tree.board)
        let ids = bridge.functions.map(\.requesterID)
        #expect(ids == [0x4008, 0x4100, 0x4101, 0x4300])
        #expect(tree.b.requester.requesterID == 0x4100)
        #expect(tree.board.renumbered.all == ["a", "c", "b", "c", "d"])
        tree.board.cpu.write(0x00_49_48_40, .word, at: tree.board.configuration(0x40, 2, 0) + 0x18)
        #expect(bridge.requesterID(of: tree.b.function) == 0x4800)
        #expect(tree.board.renumbered.all.suffix(2) == ["b", "c"])
        let stranger = tree.board.device("stranger", tag: 9)
        #expect(bridge.requesterID(of: stranger.function) == nil)
    }

    @Test func portsAreMadeAnewForANewRequesterIDOnly() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let board = tree.board
        let port = tree.b.function.makePort()
        for value in 1...3 as ClosedRange<UInt64> {
            try port.store(value, .word, at: IOVirtualAddress(0x8000_0000))
        }
        #expect(board.portsMade.all == [0x0100])
        board.cpu.write(0x00_05_05_00, .word, at: board.configuration(0, 2, 0) + 0x18)
        #expect(try port.load(.word, at: IOVirtualAddress(0x8000_0000)) == 3)
        #expect(
            try port.lend(
                [DMARange(address: IOVirtualAddress(0x8000_0000), byteCount: 8)],
                for: .read,
                .plain
            ) { _ in }
        )
        #expect(board.portsMade.all == [0x0100, 0x0500])
    }

    @Test func nothingGoesUpWhileABridgeOnTheWayIsClosed() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let board = tree.board
        let target = IOVirtualAddress(0x8000_0000)
        let aborted = DMAFault(cause: .aborted, address: target, bytesTransferred: 0)
        let port = tree.b.function.makePort()
        try port.store(1, .word, at: target)
        let p = board.configuration(0, 2, 0)
        board.cpu.write(0x0002, .halfword, at: p + 4)
        #expect(throws: aborted) { try port.store(2, .word, at: target) }
        #expect(throws: aborted) { try port.load(.word, at: target) }
        #expect(throws: aborted) {
            try port.lend([DMARange(address: target, byteCount: 4)], for: .write, .plain) { _ in }
        }
        board.cpu.write(0x0006, .halfword, at: p + 4)
        #expect(try port.load(.word, at: target) == 1)
        // The same requester ID: the same port.
        #expect(board.portsMade.all == [0x0100])
        board.bridge.remove(tree.b.function)
        #expect(throws: aborted) { try port.store(2, .word, at: target) }
    }

    @Test func functionThatIsNowhereIssuesNothing() throws {
        let board = try Board()
        let device = board.device("d", tag: 1)
        device.function.writeConfiguration(0x0006, at: 4, byteCount: 2)
        let port = device.function.makePort()
        #expect(throws: DMAFault.self) { try port.store(1, .word, at: IOVirtualAddress(0x8000_0000)) }
        #expect(board.portsMade.all == [])
    }
}
