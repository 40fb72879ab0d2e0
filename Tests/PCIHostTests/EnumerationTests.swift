// What software finds in the ECAM window, and how requests are routed there.

import AddressSpace
import DeviceModel
import PCIFunction
import PCIHost
import SystemBus
import Testing

@Suite struct EnumerationTests {
    @Test(arguments: [0...15, 0x40...0x4F] as [ClosedRange<UInt8>])
    func kernelFindsTheTree(buses: ClosedRange<UInt8>) throws {
        let tree = try Tree(buses: buses)
        let scan = KernelScan(tree.board)
        let first = buses.lowerBound
        let places = scan.found.map { [$0.bus - first, $0.device, $0.function] }
        #expect(
            places == [[0, 1, 0], [0, 2, 0], [0, 3, 0], [0, 3, 1], [1, 0, 0], [1, 0, 1], [3, 0, 0]]
        )
        #expect(
            scan.found.map(\.id) == [
                0x1001_1AF4, 0x000C_1B36, 0x000C_1B36, 0x000C_1B36, 0x1002_1AF4, 0x1003_1AF4, 0x1004_1AF4,
            ]
        )
        #expect(scan.found.map(\.isBridge) == [false, true, true, true, false, false, false])
        #expect(scan.found.map(\.pin) == [1, 1, 1, 1, 1, 2, 1])
        let bridges = scan.found.filter(\.isBridge)
        #expect(bridges.map { $0.secondary - first } == [1, 2, 3])
        #expect(bridges.map { $0.subordinate - first } == [1, 2, 3])
        #expect(bridges.allSatisfy { !$0.hasIO && $0.hasPrefetchable64 && $0.bars.isEmpty })
        #expect(scan.function(first, 1, 0)?.bars == [FoundBAR(index: 0, byteCount: 0x1000)])
        #expect(
            scan.function(first + 1, 0, 0)?.bars == [
                FoundBAR(index: 0, byteCount: 0x4000, is64: true, isPrefetchable: true),
                FoundBAR(index: 2, byteCount: 0x1_0000),
            ]
        )
        #expect(scan.function(first + 3, 0, 0)?.bars == [FoundBAR(index: 0, byteCount: 1 << 20, is64: true)])
    }

    @Test func nobodyReadsAsOnes() throws {
        let tree = try Tree()
        let board = tree.board
        for (width, ones) in [
            (.byte, 0xFF), (.halfword, 0xFFFF), (.word, 0xFFFF_FFFF), (.doubleword, .max),
        ] as [(AccessWidth, UInt64)] {
            // A device that is not there, a function that is not, a bus to which nobody forwards.
            for place in [
                board.configuration(0, 5, 0), board.configuration(0, 1, 1), board.configuration(9, 0, 0),
            ] {
                #expect(try board.bus.load(width, at: PhysicalAddress(place)) == ones)
                try board.bus.store(0, width, at: PhysicalAddress(place))
            }
        }
    }

    @Test func widthsAndAlignment() throws {
        let tree = try Tree()
        let a = tree.board.configuration(0, 1, 0)
        let cpu = tree.board.cpu
        #expect(cpu.read(.doubleword, at: a) == 0x0010_0000_1001_1AF4)
        #expect(cpu.read(.word, at: a) == 0x1001_1AF4)
        #expect(cpu.read(.halfword, at: a + 2) == 0x1001)
        #expect(cpu.read(.byte, at: a + 3) == 0x10)
        // 8 bytes are two requests: here BARs 0 and 1.
        cpu.write(0x1234_5678_1234_5678, .doubleword, at: a + 0x10)
        #expect(cpu.read(.doubleword, at: a + 0x10) == 0x1234_5000)
        cpu.write(0xAB, .byte, at: a + 0x13)
        #expect(cpu.read(.word, at: a + 0x10) == 0xAB34_5000)
        #expect(throws: BusError.refused(PhysicalAddress(a + 2), .misaligned)) {
            try tree.board.bus.load(.word, at: PhysicalAddress(a + 2))
        }
        #expect(throws: BusError.refused(PhysicalAddress(a + 4), .misaligned)) {
            try tree.board.bus.store(0, .doubleword, at: PhysicalAddress(a + 4))
        }
        // The last register of the window.
        #expect(cpu.read(.word, at: Board.ecam + 16 << 20 - 4) == 0xFFFF_FFFF)
    }

    @Test func busNumbersRouteRequests() throws {
        let tree = try Tree()
        let board = tree.board
        let cpu = board.cpu
        let port = board.configuration(0, 2, 0)
        let id = 0x1002_1AF4 as UInt64
        #expect(cpu.read(.word, at: board.configuration(1, 0, 0)) == 0xFFFF_FFFF)
        cpu.write(0x00_07_05_00, .word, at: port + 0x18)
        #expect(cpu.read(.word, at: board.configuration(5, 0, 0)) == id)
        #expect(cpu.read(.word, at: board.configuration(5, 0, 1)) == 0x1003_1AF4)
        // A link leads to device 0 only; the other buses of the port's have nobody.
        #expect(cpu.read(.word, at: board.configuration(5, 1, 0)) == 0xFFFF_FFFF)
        #expect(cpu.read(.word, at: board.configuration(6, 0, 0)) == 0xFFFF_FFFF)
        cpu.write(0x00_09_08_00, .word, at: port + 0x18)
        #expect(cpu.read(.word, at: board.configuration(5, 0, 0)) == 0xFFFF_FFFF)
        #expect(cpu.read(.word, at: board.configuration(8, 0, 0)) == id)
        // Secondary above subordinate: closed.
        cpu.write(0x00_07_08_00, .word, at: port + 0x18)
        #expect(cpu.read(.word, at: board.configuration(8, 0, 0)) == 0xFFFF_FFFF)
        // A secondary bus with the number of the bridge's own: that one answers.
        cpu.write(0, .word, at: port + 0x18)
        #expect(cpu.read(.word, at: board.configuration(0, 0, 0)) == 0xFFFF_FFFF)
        #expect(cpu.read(.word, at: board.configuration(0, 1, 0)) == 0x1001_1AF4)
    }

    @Test func placesAreChecked() throws {
        let tree = try Tree()
        let bridge = tree.board.bridge
        let other = tree.board.device("other", tag: 9)
        func add(_ place: PCIPlace) throws(PCIHostError) {
            try bridge.add(other.function, requester: other.requester, at: place)
        }
        #expect(throws: PCIHostError.placeTaken(by: "a")) { try add(.rootBus(device: 1, function: 0)) }
        #expect(throws: PCIHostError.placeTaken(by: "p")) { try add(.rootBus(device: 2, function: 0)) }
        #expect(throws: PCIHostError.placeTaken(by: "d")) { try add(.below(tree.r, function: 0)) }
        #expect(throws: PCIHostError.notMultiFunction("a")) { try add(.rootBus(device: 1, function: 1)) }
        #expect(throws: PCIHostError.notMultiFunction("d")) { try add(.below(tree.r, function: 1)) }
        #expect(throws: PCIHostError.noSuchPlace) { try add(.rootBus(device: 32, function: 0)) }
        #expect(throws: PCIHostError.noSuchPlace) { try add(.below(tree.r, function: 8)) }
        #expect(throws: PCIHostError.noSuchPlace) { try add(.below(Board.port("stranger"), function: 0)) }
        #expect(throws: PCIHostError.placeTaken(by: "a")) { try bridge.add(Board.port("late"), device: 1) }
        try add(.rootBus(device: 3, function: 2))
        #expect(bridge.functions.map(\.function.name) == ["a", "b", "c", "d", "other"])
    }

    @Test func ecamThatDoesNotFitIsSaid() throws {
        let board = try Board()
        func bridge(at first: UInt64, _ byteCount: UInt64) throws -> PCIHostBridge {
            try PCIHostBridge(
                bus: board.bus,
                name: "/other",
                ecam: try #require(AddressRange(start: first, byteCount: byteCount)),
                buses: 250...255,
                windows: [],
                interruptLine: { _, _ in nil },
                settle: {}
            )
        }
        let existing = try #require(AddressRange(start: Board.ecam, byteCount: 16 << 20))
        let range = try #require(AddressRange(start: Board.ecam + 15 << 20, byteCount: 6 << 20))
        #expect(throws: PCIHostError.ecam(AddressConflict(inserting: range, existing: existing))) {
            try bridge(at: Board.ecam + 15 << 20, 6 << 20)
        }
        let short = try #require(AddressRange(start: 0x1000_0000, byteCount: 0xF_FFFF))
        #expect(throws: PCIHostError.ecamTooShort(short)) { try bridge(at: 0x1000_0000, 0xF_FFFF) }
        // Two buses and a half.
        let some = try bridge(at: 0x1000_0000, 5 << 19)
        #expect(some.buses == 250...251)
        #expect(some.ecam.byteCount == 2 << 20)
        #expect(try bridge(at: 0x2000_0000, 1 << 28).buses == 250...255)
    }
}
